"""Events in long videos, frame by frame: PKS4 against the same ViT without time, with a GRU and with a causal TCN.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/events.py --seconds 900
Several processes may share the rows and seeds: --only "PKS4, windows" --seeds 0 1 in one, --only "ViT" in another.

The videos are those of `kinescan data make events` at 48 pixels and 6 frames a second, rendered into memory, with two
objects and no distractor. All rows start from one ViT that was trained on stills; its embedding and two lower blocks
stay as they are, its upper blocks learn at a fifth of the rate of what is new. All see the same windows of 12 frames in
the same order, through the loop of `kinescan.training.fit`; frames whose past is not in the window count nothing.
"Carried state" is the same training, but that after the first steps windows go one after the other and the state goes
on between them. Thresholds are chosen on validation videos, for the most events that are told within half a second at
no more than two false alarms an hour; numbers are of test videos, whose textures no training video has, in one pass
over each. Then the same twelve test videos stand at frame 100 and at frame 100,000 of one stream.
Writes benchmarks/results/events.json from what is done, and what each row and seed gave into raw/ beside it, which is
read again: seeds that are made later are added to those that are there.

Harder videos, each with models and a result of their own: --data distractors (a panel moves as the objects do and means
nothing; writes events_distractors.json), --data everything (that, and objects that turn, grow and shrink besides
moving: eight classes; writes events_everything.json).
"""

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import measure
from events_models import ROWS, SIZES
from kinescan.config import load_recipe
from kinescan.data.frame_labels import IGNORED
from kinescan.data.intervals import Interval
from kinescan.data.loader import Batch
from kinescan.data.synthetic.event_scene import EVENT_PAIRS
from kinescan.data.synthetic.events import EventsConfig, render_events, sample_event_scene
from kinescan.evaluation.temporal.alarms import Alarm, AlarmScores, score_alarms
from kinescan.evaluation.temporal.scores import SOON_SECONDS, TemporalScores, score_frames
from kinescan.evaluation.temporal.thresholds import choose_rules
from kinescan.events.detector import EventUpdate, detect_updates
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import PKS4State
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing
from kinescan.runs.stills import STILLS_PER_EPOCH, train_on_stills
from kinescan.settings import build_settings, to_plain
from kinescan.shapes import BACKGROUND
from kinescan.training.accelerator import TrainConfig
from kinescan.training.frame_task import FrameTask
from kinescan.training.loop import fit
from kinescan.training.optim import OptimConfig

Truth = Mapping[str, tuple[Interval, ...]]
"""Video -> what happens in it."""
Prepare = Callable[[Tensor], Tensor]
DATA: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "distractors": {"distractors": 1},
    "everything": {"distractors": 1, "pairs": ("horizontal", "vertical", "turning", "scaling")},
}
"""What is drawn, by the name that --data takes: fields of `EventsConfig` that differ from `CONFIG`'s."""


def data_name() -> str:
    """The value of --data: read before anything else, since classes and videos below depend on it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", choices=DATA, default="plain")
    return str(parser.parse_known_args()[0].data)


DATA_NAME = data_name()
RESULT = "events" if DATA_NAME == "plain" else f"events_{DATA_NAME}"
WORK = Path("runs") / RESULT
RAW = measure.RESULTS / "raw" / f"{RESULT}.json"
"""What each row and seed gave."""
STILLS = Path("runs/events/stills")
"""One ViT for all data: what it saw belongs to none of them."""
RECIPES = measure.HERE.parent / "src" / "kinescan" / "recipes"
CONFIG = replace(
    EventsConfig(
        frame_size=SIZES["image_size"],
        fps=6.0,
        shake_pixels=0.75,
        pairs=("horizontal", "vertical"),
        objects=2,
        distractors=0,
    ),
    **DATA[DATA_NAME],
)
"""Frames of 48 pixels shake by as much of their side as the default's 64 do."""
DENSE = replace(CONFIG, pause_seconds=1.0, quiet_ratio=0.05)
"""What is trained on: more happens in a minute."""
CONFIGS = {"train": DENSE, "validation": CONFIG, "test": CONFIG}
CLASSES = (BACKGROUND, *CONFIG.classes)
NUM_VIDEOS = {"train": 160, "validation": 90, "test": 60}
FIRST_VALIDATION = 10_000
WINDOW, NEW, CHUNK, VIDEOS_AT_ONCE = 12, 4, 60, 8
"""Frames of a window; its first ones count nothing where it starts anew, since what they look back at is missing."""
BATCH, STEPS, CARRIED_AFTER, RATE, BACKBONE_RATE = 16, 500, 150, 5e-3, 0.2
"""With carried state, windows follow each other after the first `CARRIED_AFTER` of `STEPS`."""
FROZEN = (
    *("vit.class_embedding", "vit.positional_embedding", "vit.conv1.*", "vit.ln_pre.*"),
    "vit.transformer.resblocks.[01].*",
)
FROZEN_ROUTES = ("class_token_routes.[0-3].*",)
"""The exchange of class tokens in the two lower blocks, in the rows that have one."""
AT_ONSETS = 0.75
"""The fraction of the windows that show the beginning of an event, anywhere in them; the others lie anywhere."""
SEEDS = (0, 1, 2)
MOST_FALSE_ALARMS = 2.0
LOADED_SECONDS = 5.0
EARLY, LATE, REPEATED, SETTLED_SECONDS = 100, 100_000, 12, 2.0
NUMBERS = (
    "per_frame_map",
    "map_at_tiou_0.5",
    "recall",
    "told_within_0.5_s",
    "delay_median_seconds",
    "delay_90_seconds",
    "false_alarms_per_hour",
)
CLAIMED = ("per_frame_map", "told_within_0.5_s", "false_alarms_per_hour")
SPREAD: Mapping[str, Callable[[Iterable[float]], float]] = {"lowest": min, "highest": max}


def load_videos(part: str) -> tuple[Tensor, Truth]:
    """Frames [videos, T, 3, S, S] uint8, made once and mapped from a file afterwards; and what happens in each."""
    split: Any = "test" if part == "test" else "train"
    config = CONFIGS[part]
    first = FIRST_VALIDATION if part == "validation" else 0
    indices = range(first, first + NUM_VIDEOS[part])
    path = WORK / f"{part}_{len(indices)}.pt"
    if not path.exists():
        pixels = torch.stack([render_events(config, split, index) for index in indices])
        aside = path.with_suffix(".part")
        torch.save(pixels, aside)
        aside.replace(path)
    names = [f"{part}/{index}" for index in indices]
    truth = {
        name: sample_event_scene(config, split, index).intervals(name)
        for name, index in zip(names, indices, strict=True)
    }
    return torch.load(path, mmap=True), truth


def frame_labels(intervals: Sequence[Interval], num_frames: int) -> Tensor:
    """[T]: the class of what happens at each frame's time."""
    labels = torch.zeros(num_frames, dtype=torch.long)
    seconds = torch.arange(num_frames) / CONFIG.fps
    for event in intervals:
        inside = (seconds >= event.start_seconds) & (seconds < event.end_seconds)
        labels[inside] = CLASSES.index(event.label)
    return labels


class LabelledVideos:
    """Frames and labels of a part, and windows of them."""

    def __init__(self, part: str) -> None:
        self.pixels, truth = load_videos(part)
        self.labels = torch.stack([frame_labels(events, self.pixels.shape[1]) for events in truth.values()])
        self.last = self.pixels.shape[1] - WINDOW
        onsets = (self.labels[:, 1:] != self.labels[:, :-1]) & (self.labels[:, 1:] > 0)
        self.onsets = (onsets.nonzero() + torch.tensor([0, 1])).tolist()

    def position(self, rng: np.random.Generator, at_onsets: float) -> "Position":
        """A window, and how it is shown."""
        video, first = int(rng.integers(len(self.pixels))), int(rng.integers(self.last + 1))
        if rng.uniform() < at_onsets:
            video, onset = self.onsets[int(rng.integers(len(self.onsets)))]
            first = onset - int(rng.integers(1, WINDOW))
        return Position(video, min(max(first, 0), self.last), View.draw(rng))

    def window(self, position: "Position") -> tuple[Tensor, Tensor]:
        """Frames [T, 3, S, S] uint8 and labels [T]."""
        video, first, view = position.video, position.first, position.view
        if view.reversed:
            first = self.last - first
        return view.show(self.pixels[video, first : first + WINDOW], self.labels[video, first : first + WINDOW].clone())


@dataclass(frozen=True)
class View:
    """How a video is shown: forwards or backwards, mirrored or not in x and in y, and its colours in which order.

    Everything in the videos is as likely backwards and mirrored; only the classes' names change.
    """

    reversed: bool
    mirrored: bool
    upside_down: bool
    colours: tuple[int, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "View":
        backwards, mirrored, upside_down = (rng.uniform(size=3) < 0.5).tolist()
        return cls(backwards, mirrored, upside_down, tuple(rng.permutation(3).tolist()))

    def show(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pixels = pixels[:, list(self.colours)]
        if self.reversed:
            pixels, labels = pixels.flip(0), exchanged(labels.flip(0), *CONFIG.pairs)
        if self.mirrored:
            pixels, labels = pixels.flip(3), exchanged(labels, "horizontal", "turning")
        if self.upside_down:
            pixels, labels = pixels.flip(2), exchanged(labels, "vertical", "turning")
        return pixels, labels


def exchanged(labels: Tensor, *pairs: str) -> Tensor:
    """Labels with the two classes of each of these pairs exchanged."""
    to = torch.arange(len(CLASSES))
    for pair in set(pairs) & set(CONFIG.pairs):
        one, other = (CLASSES.index(name) for name in EVENT_PAIRS[pair])
        to[one], to[other] = other, one
    return to[labels]


class Position(NamedTuple):
    """A window of a training video; `first` counts in the order in which the view shows the video."""

    video: int
    first: int
    view: View


class Windows:
    """Windows of training videos, most of them with an onset: a source for `fit`. Each starts anew, with no state."""

    num_classes = len(CLASSES)
    batch_size = BATCH
    num_batches = STEPS

    def __init__(self, prepare: Prepare, *, seed: int) -> None:
        self.videos = LabelledVideos("train")
        self.prepare, self.seed = prepare, seed

    def path(self, item_index: int) -> str:
        return f"video {item_index}"

    def batches(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        assert epoch == 0
        assert first_batch == 0
        rng = np.random.default_rng([self.seed, 7])
        for _ in range(CARRIED_AFTER):
            yield self.batch([self.videos.position(rng, AT_ONSETS) for _ in range(BATCH)], [True] * BATCH)
        yield from self.later(rng)

    def later(self, rng: np.random.Generator) -> Iterator[Batch]:
        """The rest."""
        for _ in range(STEPS - CARRIED_AFTER):
            yield self.batch([self.videos.position(rng, AT_ONSETS) for _ in range(BATCH)], [True] * BATCH)

    def batch(self, positions: Sequence[Position], starts: list[bool]) -> Batch:
        pixels, labels = map(torch.stack, zip(*map(self.videos.window, positions), strict=True))
        labels[:, :NEW][torch.tensor(starts)] = IGNORED
        indices = [position.video for position in positions]
        return Batch(clips=self.prepare(pixels), labels=labels, item_indices=indices, unreadable=[], starts=starts)


class FollowedWindows(Windows):
    """Later on, each row of the batch follows a video from window to window, then another."""

    def later(self, rng: np.random.Generator) -> Iterator[Batch]:
        # Each row joins somewhere, so that they do not all start anew at the same time.
        positions, starts = [self.videos.position(rng, 0.0) for _ in range(BATCH)], [True] * BATCH
        for _ in range(STEPS - CARRIED_AFTER):
            yield self.batch(positions, starts)
            starts = [position.first + WINDOW > self.videos.last for position in positions]
            positions = [
                Position(int(rng.integers(len(self.videos.pixels))), 0, View.draw(rng))
                if ended
                else position._replace(first=position.first + WINDOW)
                for ended, position in zip(starts, positions, strict=True)
            ]


def preparer(preprocessing: Preprocessing) -> Prepare:
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return lambda pixels: (pixels.float() / 255 - mean) / std


def stills() -> Path:
    """The ViT that all rows start from, trained on single pictures."""
    folder = STILLS / "checkpoints" / "last"
    if not folder.exists():
        config = load_recipe(RECIPES / "demo_stills.toml")
        preprocessing = replace(config.preprocessing, size=SIZES["image_size"])
        train_on_stills(replace(config, preprocessing=preprocessing), STILLS, STILLS_PER_EPOCH)
    return folder


def build(row: str) -> VideoClassifier:
    name, options = ROWS[row]
    causal = {} if name == "vit_ti16" else {"causal": True}
    sizes = {key: value for key, value in SIZES.items() if key in ("activation", "heads", "image_size")}
    return create_model(name, labels=CLASSES, weights=stills(), output="frames", **sizes, **causal, **options)


def model_folder(row: str, seed: int, *, carried: bool) -> Path:
    return WORK / "models" / f"{row}, {'carried' if carried else 'windows'}, {seed}".replace(" ", "_")


def train(row: str, seed: int, *, carried: bool = False) -> VideoClassifier:
    """A row's model, trained on the same windows in the same order as the others of that seed; once, then loaded."""
    folder = model_folder(row, seed, carried=carried)
    if folder.exists():
        return from_pretrained(folder)
    torch.manual_seed(seed)
    model = build(row)
    source = (FollowedWindows if carried else Windows)(preparer(model.preprocessing), seed=seed)
    output = WORK / "run" / folder.name
    shutil.rmtree(output, ignore_errors=True)
    fit(
        model,
        source,
        output=output,
        train=TrainConfig(
            device="cpu",
            trackers=(),
            checkpoint_minutes=0,
            carry_state=carried,
            frozen=FROZEN + (FROZEN_ROUTES if len(getattr(model, "class_token_routes", ())) else ()),
        ),
        optim=OptimConfig(
            lr=RATE,
            lr_batch_size=BATCH,
            lr_scales={"vit.*": BACKBONE_RATE},
            epochs=1,
            warmup_epochs=0.05,
            layer_decay=1.0,
            label_smoothing=0.0,
        ),
        task=FrameTask(),
        seed=seed,
    )
    model.save_pretrained(folder)
    return model


def predict(model: VideoClassifier, folder: Path, part: str) -> tuple[list[FramePredictions], Truth]:
    """Answers to all videos of a part, kept beside the model; and what happens in them."""
    pixels, truth = load_videos(part)
    path = folder / f"{part}_{len(truth)}.npy"
    if not path.exists():
        aside = path.with_suffix(".part.npy")
        np.save(aside, run_over(model, pixels).numpy())
        aside.replace(path)
    return [as_predictions(name, torch.from_numpy(one)) for name, one in zip(truth, np.load(path), strict=True)], truth


@torch.inference_mode()
def run_over(model: VideoClassifier, pixels: Tensor) -> Tensor:
    """Scores [videos, T, K]: one pass over each, several side by side, the state carried from chunk to chunk."""
    prepare, found = preparer(model.preprocessing), []
    for some in torch.arange(len(pixels)).split(VIDEOS_AT_ONCE):
        state, parts = None, []
        for first in range(0, pixels.shape[1], CHUNK):
            logits, state = answer(model, prepare(pixels[some, first : first + CHUNK]), state)
            parts.append(model.probabilities(logits))
        found.append(torch.cat(parts, dim=1))
    return torch.cat(found)


def answer(model: VideoClassifier, clip: Tensor, state: PKS4State | None) -> tuple[Tensor, PKS4State | None]:
    """Logits [B, T, K] of the next frames; a ViT without time has no state."""
    assert isinstance(model, PKS4)
    return model.forward_stream(clip, state) if model.config.causal else (model(clip), None)


def as_predictions(name: str, scores: Tensor) -> FramePredictions:
    """Scores [T, K] of frames at the videos' rate."""
    return FramePredictions(
        video_id=name,
        seconds=np.arange(len(scores)) / CONFIG.fps,
        scores=scores.float().numpy(),
        classes=CLASSES,
        end_seconds=len(scores) / CONFIG.fps,
    )


def score(row: str, seed: int, *, carried: bool) -> dict[str, Any]:
    """A trained row on the test videos, under rules chosen on the validation videos: strict ones, and those of F1."""
    start = time.process_time()
    model, folder = train(row, seed, carried=carried), model_folder(row, seed, carried=carried)
    trained = time.process_time() - start
    start = time.process_time()
    strict, best = chosen_rules(model, folder)
    predictions, truth = predict(model, folder, "test")
    found = score_frames(predictions, truth, strict)
    every = [event for events in truth.values() for event in events]
    told = [
        Alarm(video_id=one.video_id, label=update.event.label, seconds=update.told_at_seconds)
        for one in predictions
        for update in detect_updates(one, best)
        if update.kind == "start"
    ]
    return {
        "per_frame_map": found.frames.mean,
        "per_frame_mcap": found.frames.calibrated_mean,
        "map_at_tiou_0.5": map_at_half(found),
        **alarm_numbers(found.alarms),
        "at_best_f1": alarm_numbers(score_alarms(every, told, hours=found.alarms.hours)),
        "parameters": model.num_parameters,
        # A model that was trained before costs nothing here.
        "train_cpu_seconds": trained if trained > LOADED_SECONDS else math.nan,
        "test_cpu_seconds": time.process_time() - start,
        "rules": to_plain(strict),
    }


def chosen_rules(model: VideoClassifier, folder: Path) -> tuple[EventRules, EventRules]:
    """Thresholds and times that tell of the most events of the validation videos soon, at the false alarms aimed at.

    And those of the best F1.
    """
    predictions, truth = predict(model, folder, "validation")
    strict = choose_rules(
        predictions, truth, most_false_alarms_per_hour=MOST_FALSE_ALARMS, told_within_seconds=SOON_SECONDS
    )
    return strict.rules, choose_rules(predictions, truth).rules


def map_at_half(found: TemporalScores) -> float:
    """MAP at tIoU 0.5."""
    scores = found.detection["0.5:0.05:0.95"]
    return scores.mean[scores.tious.index(0.5)]


def alarm_numbers(alarms: AlarmScores) -> dict[str, float]:
    return {
        "recall": 1 - alarms.missed_ratio,
        "told_within_0.5_s": alarms.told_within(SOON_SECONDS),
        "delay_median_seconds": alarms.delay_seconds(0.5),
        "delay_90_seconds": alarms.delay_seconds(0.9),
        "false_alarms_per_hour": alarms.false_alarms_per_hour,
        "events": alarms.num_true,
    }


def long_stream(row: str, seed: int, *, carried: bool) -> dict[str, Any]:
    """The same videos at frame 100 and at frame 100,000 of one stream, with other videos before and between."""
    scored = read_done()[f"{job_name(row, carried=carried)}|{seed}"]
    rules = build_settings(EventRules, scored["rules"])
    pixels, truth = load_videos("test")
    path = model_folder(row, seed, carried=carried) / "stream.npy"
    if not path.exists():
        np.save(path, run_stream(train(row, seed, carried=carried), pixels).numpy())
    whole = torch.from_numpy(np.load(path))
    updates = detect_updates(as_predictions("stream", whole), rules)
    asked = [truth[name] for name in list(truth)[:REPEATED]]
    num_frames = REPEATED * pixels.shape[1]
    early, late = whole[EARLY : EARLY + num_frames], whole[LATE : LATE + num_frames]
    settled = round(SETTLED_SECONDS * CONFIG.fps)
    return {
        **{f"at frame {first:,}": scores_from(first, updates, asked, pixels.shape[1]) for first in (EARLY, LATE)},
        "frames": len(whole),
        "largest_difference_of_scores_after_2_s": float((early - late).abs()[settled:].max()),
        "frames_with_another_answer": int((early.argmax(1) != late.argmax(1)).sum()),
    }


@torch.inference_mode()
def run_stream(model: VideoClassifier, pixels: Tensor) -> Tensor:
    """Scores [T, K] of the whole stream, the state carried from chunk to chunk."""
    prepare, state, scores = preparer(model.preprocessing), None, []
    for video, first, last in stream_order(len(pixels), pixels.shape[1]):
        for begin in range(first, last, CHUNK):
            logits, state = answer(model, prepare(pixels[video : video + 1, begin : min(begin + CHUNK, last)]), state)
            scores.append(model.probabilities(logits)[0])
    return torch.cat(scores)


def stream_order(num_videos: int, length: int) -> list[tuple[int, int, int]]:
    """(video, first frame, frame after the last) of the stream's parts; the first videos come twice."""
    asked, others = range(REPEATED), range(REPEATED, num_videos)
    every = [(video, 0, length) for video in asked]
    order = [(others[0], length - EARLY, length), *every]
    frames, turn = EARLY + REPEATED * length, 0
    while frames < LATE:
        turn += 1
        order.append((others[turn % len(others)], 0, min(length, LATE - frames)))
        frames += min(length, LATE - frames)
    return order + every


def scores_from(
    first: int, updates: Sequence[EventUpdate], asked: Sequence[Sequence[Interval]], length: int
) -> dict[str, float]:
    """Alarms of the stream from a frame on, where the videos with the intervals `asked` stand one after the other."""
    begin, end = first / CONFIG.fps, (first + len(asked) * length) / CONFIG.fps
    truth = [
        Interval(
            video_id="stream",
            label=event.label,
            start_seconds=event.start_seconds + begin + index * length / CONFIG.fps,
            end_seconds=event.end_seconds + begin + index * length / CONFIG.fps,
        )
        for index, events in enumerate(asked)
        for event in events
    ]
    alarms = [
        Alarm(video_id="stream", label=update.event.label, seconds=update.told_at_seconds)
        for update in updates
        if update.kind == "start" and begin <= update.told_at_seconds < end
    ]
    return alarm_numbers(score_alarms(truth, alarms, hours=(end - begin) / 3600))


def job_name(row: str, *, carried: bool) -> str:
    return f"{row}, {'carried state' if carried else 'windows'}"


Job = tuple[str, Callable[..., dict[str, Any]], str, bool]
"""Name, what to do, with which row, and whether its state was carried in training."""
JOBS: tuple[Job, ...] = (
    *((job_name(row, carried=False), score, row, False) for row in ROWS),
    (job_name("PKS4", carried=True), score, "PKS4", True),
    ("PKS4, windows: one stream", long_stream, "PKS4", False),
    ("PKS4, carried state: one stream", long_stream, "PKS4", True),
)
"""A stream after its row, whose thresholds it takes."""


def in_order(seeds: Sequence[int]) -> list[tuple[int, Job]]:
    """Every job of every seed; long streams of all but the first seed come last."""
    every = [(seed, job) for seed in seeds for job in JOBS]
    return sorted(every, key=lambda one: one[1][1] is long_stream and one[0] != seeds[0])


def done_path(name: str, seed: int) -> Path:
    return WORK / "done" / f"{name}, {seed}.json"


def summarise(done: Mapping[str, Any]) -> dict[str, Any]:
    """Means over the seeds, with the lowest and the highest of what is claimed."""
    rows, strictless, streams = {}, {}, {}
    for name, work, _, _ in JOBS:
        runs = [done[f"{name}|{seed}"] for seed in SEEDS if f"{name}|{seed}" in done]
        if not runs:
            continue
        if work is score:
            rows[name] = {
                "seeds": len(runs),
                **{key: mean_of(runs, key) for key in NUMBERS},
                **(spread(runs) if len(runs) > 1 else {}),
                "parameters": runs[0]["parameters"],
                "train_cpu_seconds": mean_of(runs, "train_cpu_seconds"),
            }
            strictless[name] = {key: mean_of([run["at_best_f1"] for run in runs], key) for key in NUMBERS[2:]}
            continue
        streams[name] = {
            position: {key: mean_of([run[position] for run in runs], key) for key in runs[0][position]}
            for position in runs[0]
            if position.startswith("at frame")
        } | {key: max(run[key] for run in runs) for key in runs[0] if not key.startswith("at frame")}
    return {"rows": rows, "at_the_best_f1_of_validation_videos": strictless, "one_stream": streams}


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The lowest and the highest of what is claimed."""
    return {f"{key}_{kind}": of(run[key] for run in runs) for key in CLAIMED for kind, of in SPREAD.items()}


def mean_of(runs: Sequence[Mapping[str, float]], key: str) -> float | None:
    """None where no run has a number, such as the delay where nothing was told."""
    found = [run[key] for run in runs if run[key] is not None and not math.isnan(run[key])]
    return statistics.mean(found) if found else None


def without_nan(content: Any) -> Any:
    """Nested dicts with None for each number that is none, as JSON has it."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content


def publish(done: Mapping[str, Any]) -> None:
    settings = {
        **{key: SIZES[key] for key in ("image_size", "patch_size", "width", "depth")},
        "fps": CONFIG.fps,
        "videos": NUM_VIDEOS,
        "video_seconds": CONFIG.seconds,
        "objects": CONFIG.objects,
        "distractors": CONFIG.distractors,
        "pairs": CONFIG.pairs,
        "classes": CLASSES,
        "window_frames": WINDOW,
        "batch_size": BATCH,
        "frames_that_count_nothing": NEW,
        "steps": STEPS,
        "carried_after": CARRIED_AFTER,
        "learning_rate": RATE,
        "of_the_upper_blocks": RATE * BACKBONE_RATE,
        "most_false_alarms_per_hour_on_validation": MOST_FALSE_ALARMS,
    }
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.write_text(json.dumps(without_nan(done), indent=1, sort_keys=True, allow_nan=False) + "\n")
    summary = summarise(done)
    fewest = min((row["seeds"] for row in summary["rows"].values()), default=0)
    measure.write_result(RESULT, seed=SEEDS[0], n=fewest, settings=settings, results=summary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="Start nothing new after this time.")
    parser.add_argument("--data", choices=DATA, default="plain", help="what is drawn; see above")
    parser.add_argument("--only", nargs="*", help="beginnings of the rows to do")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS), choices=SEEDS)
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "done").mkdir(exist_ok=True)
    started = time.monotonic()
    for seed, (name, work, row, carried) in in_order(arguments.seeds):
        if f"{name}|{seed}" in read_done() or (arguments.only and not name.startswith(tuple(arguments.only))):
            continue
        if time.monotonic() - started > arguments.seconds:
            return
        found = work(row, seed, carried=carried)
        done_path(name, seed).write_text(json.dumps(found, indent=1))
        print(name, seed, found, flush=True)
        publish(read_done())
    print("complete")


def read_done() -> dict[str, Any]:
    """What all processes have done, and what was published before."""
    paths = {f"{name}|{seed}": done_path(name, seed) for name, *_ in JOBS for seed in SEEDS}
    before = json.loads(RAW.read_text()) if RAW.exists() else {}
    return before | {key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}


if __name__ == "__main__":
    main()
