"""How hard the motions of `kinescan data make motion` are: what is read without training, and what rows learn.

Run, again and again until it says "complete":   OMP_NUM_THREADS=1 python benchmarks/motion_levels.py --seconds 500
With windows over videos as well:                ... --from FOLDER

1. Read without training: correlation maps of neighbouring frames give each patch a displacement (their soft maximum,
   less that of the frame against itself). The direction of travel is the sign of its sum, that of turning the sign of
   its curl about the centre of what moves. This says whether the direction is there at a patch size at all, before
   anybody asks whether it is learned. Features: pixels of patches of 8 and 4, and what a small ViT that learned from
   stills knows after its second block (patches of 8).
2. Learned, by the demo's model and settings from the same still-trained weights, in a few hundred clips: turning by
   itself, and rows of the paper's Table 5 (the scanner alone, with the variation operator, with both). Scored within
   pairs (0.5 is chance) on held-out clips. What averages over frames needs no training to be at 0.5 exactly: it gives
   both classes of a pair the same scores (tests/data/synthetic/test_windows.py); it is trained once to show it.

Clips are rendered into memory. Writes benchmarks/results/motion_levels.json from what is done.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

import measure
from kinescan.config import RunConfig, load_recipe
from kinescan.data.loader import Batch
from kinescan.data.synthetic import MOTION_LEVELS, MOTION_PAIRS, MotionConfig, WindowConfig
from kinescan.data.synthetic.motion import render_motion
from kinescan.data.synthetic.sources import Sources, find_sources
from kinescan.data.synthetic.windows import render_window
from kinescan.data.synthetic.writing import Split
from kinescan.models.mode import evaluation_view
from kinescan.models.zoo import create_model
from kinescan.ops import local_correlation
from kinescan.runs.stills import train_on_stills
from kinescan.training.accelerator import TrainConfig
from kinescan.training.loop import fit

WORK = Path("runs/motion_levels")
RECIPES = measure.HERE.parent / "src" / "kinescan" / "recipes"
FRAMES, SIZE, BATCH = 8, 64, 16
SPLITS: tuple[Split, ...] = ("train", "test")
TIE = 1e-4
LARGE = {"object_size": 1.4}
READ_CLIPS, READ_TEMPERATURE = 60, 0.05
READ_PAIRS = ("horizontal", "turning")
WINDOWS = {"pixels, patches of 8": 5, "pixels, patches of 4": 7, "still-trained ViT, patches of 8": 5}
"""Side of the correlation window for each kind of features."""
READ_SETTINGS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "object_size 1.2": {"object_size": 1.2},
    "object_size 1.4": LARGE,
    "travel 0.5": {"travel": 0.5},
    "object_size 1.4, travel 0.5": {**LARGE, "travel": 0.5},
    "drift_pixels 4": {"drift_pixels": 4.0},
    "contrast 0.3": {"contrast": 0.3},
    "one distractor": {"distractors": 1},
    **{f"level {k}": dict(MOTION_LEVELS[k]) for k in range(1, len(MOTION_LEVELS))},
    "level 2, object_size 1.4": {**MOTION_LEVELS[2], **LARGE},
}
AVERAGING, FULL = "frame averaging", "scanner + variation + correlation"
ROWS: dict[str, dict[str, Any]] = {
    FULL: {},
    "scanner": {"correlation": False, "variation": False},
    "scanner + variation": {"correlation": False},
    AVERAGING: {},
}


@dataclass(frozen=True)
class Case:
    """What is trained on.

    Attributes:
        pairs: of motions.
        settings: of the drawn objects, or of windows.
        train_per_class: clips.
        test_per_class: clips.
        epochs: of training.
        rows: that are trained on it.
        windows: over the videos of --from, instead of drawn objects.
    """

    pairs: tuple[str, ...]
    settings: dict[str, Any]
    train_per_class: int = 160
    test_per_class: int = 100
    epochs: int = 5
    rows: tuple[str, ...] = (FULL,)
    windows: bool = False


CASES = {
    "left and right, 100 steps": Case(("horizontal",), {}, test_per_class=60),
    "turning, 100 steps": Case(("turning",), {}),
    "turning, object_size 1.4, 100 steps": Case(("turning",), LARGE),
    "turning, object_size 1.4, 240 steps": Case(("turning",), LARGE, epochs=12),
    "turning, object_size 1.4, spread 0, 100 steps": Case(("turning",), {**LARGE, "spread": 0.0}),
    "turning, spread 0, 100 steps": Case(("turning",), {"spread": 0.0}),
    "turning, object_size 1.4, spread 0.5, 100 steps": Case(("turning",), {**LARGE, "spread": 0.5}),
    "level 1: left, right, up, down, 125 steps": Case(
        ("horizontal", "vertical"), dict(MOTION_LEVELS[1]), 100, 50, 5, tuple(ROWS)
    ),
    "level 2, object_size 1.4: left, right, up, down, 96 steps": Case(
        ("horizontal", "vertical"), {**MOTION_LEVELS[2], **LARGE}, 50, 40, 8
    ),
    "windows over videos: left, right and turning, 96 steps": Case(
        ("horizontal", "turning"), {}, 50, 25, 8, (FULL,), windows=True
    ),
    "windows over videos: left and right, 100 steps": Case(("horizontal",), {}, 160, 60, 5, windows=True),
    "windows over videos: turning, 100 steps": Case(("turning",), {}, 160, 60, 5, windows=True),
}


class MemoryClips:
    """Clips in memory as a source for `fit`: pixels [n, T, 3, H, W] uint8, labels [n]."""

    def __init__(self, pixels: Tensor, labels: Tensor, config: RunConfig, *, seed: int) -> None:
        self.pixels, self.labels, self.config, self.seed = pixels, labels, config, seed
        self.num_classes, self.batch_size, self.num_batches = int(labels.max()) + 1, BATCH, len(labels) // BATCH

    def path(self, item_index: int) -> str:
        return f"clip {item_index}"

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        for index in range(first_batch, self.num_batches):
            chosen = order[index * BATCH : (index + 1) * BATCH]
            clips = to_clips(self.pixels[chosen], self.config)
            yield Batch(clips=clips, labels=self.labels[chosen], item_indices=chosen, unreadable=[])


def recipe(row: str) -> RunConfig:
    return load_recipe(RECIPES / ("demo_motion_vit.toml" if row == AVERAGING else "demo_motion_pks4.toml"), [])


def to_clips(pixels: Tensor, config: RunConfig) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.preprocessing.mean, config.preprocessing.std))
    return (pixels.float() / 255 - mean) / std


def rendered(case: Case, split: Split, seed: int, sources: Sources | None) -> tuple[Tensor, Tensor]:
    """Clips of all pairs and the same backwards; labels 2 k and 2 k + 1. Test clips are those of seed 0."""
    count = case.train_per_class if split == "train" else case.test_per_class
    pixels, labels = [], []
    for k, pair in enumerate(case.pairs):
        for index in range(count):
            clip = render(case, split, pair, index, seed if split == "train" else 0, sources)
            pixels += [clip, clip.flip(0)]
            labels += [2 * k, 2 * k + 1]
    return torch.stack(pixels), torch.tensor(labels)


def render(case: Case, split: Split, pair: str, index: int, seed: int, sources: Sources | None) -> Tensor:
    sizes: dict[str, Any] = {"frame_size": SIZE, "num_frames": FRAMES, "seed": seed, **case.settings}
    if not case.windows:
        return render_motion(MotionConfig(**sizes), split, pair, index)
    assert sources is not None
    return render_window(WindowConfig(source=str(sources.folder), fps=4, **sizes), sources, split, pair, index)


def still_weights() -> Path:
    """A ViT that has learned from stills, as the demo's; trained once."""
    last = WORK / "stills" / "checkpoints" / "last"
    if not last.exists():
        train_on_stills(load_recipe(RECIPES / "demo_stills.toml", []), WORK, 3200)
    return last


def make_model(config: RunConfig, labels: list[str], **options: Any) -> Any:
    """The demo's model from the still-trained weights, with a new head."""
    return create_model(
        config.model.name,
        labels=labels,
        preprocessing=config.preprocessing,
        weights=still_weights(),
        new_head=True,
        **{**config.model.options, **options},
    )


def learn(row: str, name: str, seed: int, sources: Sources | None) -> dict[str, Any]:
    """One training; what it reached on held-out clips, and what it took."""
    config, case = recipe(row), CASES[name]
    train, test = (rendered(case, split, seed, sources) for split in SPLITS)
    torch.manual_seed(seed)
    model = make_model(config, [label for pair in case.pairs for label in MOTION_PAIRS[pair]], **ROWS[row])
    started = time.process_time()
    fit(
        model,
        MemoryClips(*train, config, seed=seed),
        output=WORK / "learned" / f"{name} {row} {seed}".replace(" ", "_"),
        train=TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0, eval_every=1000),
        optim=replace(config.optim, epochs=case.epochs),
        seed=seed,
    )
    seconds = time.process_time() - started
    scores, few_of_training = logits(model, test[0], config), train[1][:240]
    lead = scores.gather(1, test[1][:, None]) - scores.gather(1, (test[1] ^ 1)[:, None])
    # frames in another order are summed in another order: what is within rounding is a tie
    within = torch.where(lead.abs() < TIE, torch.tensor(0.5), (lead > 0).float())[:, 0]
    right = logits(model, train[0][:240], config).argmax(1) == few_of_training
    return {
        "within_pairs": round(within.mean().item(), 4),
        "top1_of_training_clips": round(right.float().mean().item(), 4),
        "pairs": {pair: round(within[test[1] // 2 == k].mean().item(), 4) for k, pair in enumerate(case.pairs)},
        "cpu_seconds": round(seconds, 1),
    }


def logits(model: Any, pixels: Tensor, config: RunConfig) -> Tensor:
    view = evaluation_view(model)
    with torch.inference_mode():
        return torch.cat([view(to_clips(some, config)) for some in pixels.split(50)])


def features(clip: Tensor, kind: str, vit: Any, config: RunConfig) -> Tensor:
    """[T, C, H, W]: one vector for each patch of each frame."""
    pixels = to_clips(clip, config)
    if kind.startswith("pixels"):
        size = int(kind.rpartition(" ")[2])
        return F.unfold(pixels, size, stride=size).unflatten(2, (SIZE // size, SIZE // size))
    tokens = vit.embed(pixels)
    for block in vit.blocks[:2]:
        tokens = block(tokens)
    return cast(Tensor, tokens[:, 1:].transpose(1, 2).unflatten(2, (SIZE // 8, SIZE // 8)))


def displacements(maps: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """x and y [T - 1, H, W] of each patch from a frame to the next, in patches."""
    maps = (maps - maps.mean(dim=(0, 2, 3), keepdim=True)).unsqueeze(0).contiguous()
    steps = torch.arange(window) - window // 2
    down, across = (axis.flatten()[:, None, None] for axis in torch.meshgrid(steps, steps, indexing="ij"))
    own, following = (
        torch.softmax(local_correlation(maps, offsets=(k,), window=window)[0, :-1, 0] / READ_TEMPERATURE, dim=1)
        for k in (0, 1)
    )
    change = following - own
    return (change * across).sum(1), (change * down).sum(1)


def read_direction(maps: Tensor, pair: str, window: int) -> bool:
    """Whether "right" is read from a clip of "right", or "clockwise" from one of "clockwise"."""
    x, y = displacements(maps, window)
    if pair == "horizontal":
        return bool(x.sum() > 0)
    rows, columns = torch.meshgrid(torch.arange(x.shape[1]) + 0.5, torch.arange(x.shape[2]) + 0.5, indexing="ij")
    energy = (x**2 + y**2).sqrt().mean(0)
    right = columns - (energy * columns).sum() / energy.sum()
    below = rows - (energy * rows).sum() / energy.sum()
    return bool((right * y - below * x).sum() > 0)


@torch.inference_mode()
def read(setting: str, kind: str, pair: str) -> float:
    """The fraction of clips whose direction is read."""
    config = recipe(AVERAGING)
    vit = make_model(config, ["a", "b"]).eval().get_submodule("vit")
    clips = MotionConfig(frame_size=SIZE, num_frames=FRAMES, **READ_SETTINGS[setting])
    hits = [
        read_direction(features(render_motion(clips, "test", pair, index), kind, vit, config), pair, WINDOWS[kind])
        for index in range(READ_CLIPS)
    ]
    return round(statistics.mean(hits), 4)


def jobs(*, with_windows: bool, seeds: list[int]) -> Iterator[tuple[str, ...]]:
    """Keys of all parts, in order."""
    yield from (("read", setting, kind, pair) for setting in READ_SETTINGS for kind in WINDOWS for pair in READ_PAIRS)
    for seed in seeds:
        for name, case in CASES.items():
            if with_windows or not case.windows:
                yield from (("learned", name, row, str(seed)) for row in case.rows)


def publish(done: dict[str, Any]) -> None:
    found: dict[str, Any] = {"read without training": {}, "learned": {}}
    for key, value in done.items():
        part, *path = key.split("|")
        if part == "read" and path[0] in READ_SETTINGS and path[2] in READ_PAIRS:
            by_features = found["read without training"].setdefault(path[0], {})
            by_features[f"{'turning' if path[2] == 'turning' else 'left, right'}: {path[1]}"] = value
        elif part == "learned":
            found["learned"].setdefault(path[0], {}).setdefault(path[1], []).append(value)
    learned = found["learned"]
    found["learned"] = {
        shown(name, row): summary(runs, steps_of(name)) for name in learned for row, runs in learned[name].items()
    }
    settings = {
        "frames": FRAMES,
        "frame_size": SIZE,
        "clips_read": READ_CLIPS,
        "batch_size": BATCH,
        "learning_rate": recipe(FULL).optim.lr,
        "training sources of windows": done.get("sources", {}).get("train", []),
        "test sources of windows": done.get("sources", {}).get("test", []),
    }
    measure.write_result("motion_levels", seed=0, n=READ_CLIPS, settings=settings, results=found)


def steps_of(name: str) -> int:
    return int(name.split()[-2])


def shown(name: str, row: str) -> str:
    """A case's name without its steps (those are a column), and the row where it is not the whole model."""
    case, _, _ = name.rpartition(", ")
    longer = " (longer)" if steps_of(name) > 200 else ""
    return f"{case}{longer}" + ("" if row == FULL else f": {row}")


def summary(runs: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Means over seeds."""
    scores = [run["within_pairs"] for run in runs]
    return {
        "seeds": len(runs),
        "steps": steps,
        "within_pairs": statistics.mean(scores),
        "lowest": min(scores),
        "highest": max(scores),
        "top1_of_training_clips": statistics.mean(run["top1_of_training_clips"] for run in runs),
        "minutes_of_one_core": round(statistics.median(run["cpu_seconds"] for run in runs) / 60, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=500, help="Start nothing new after this time.")
    parser.add_argument("--from", dest="source", help="Folder of videos for the windows.")
    parser.add_argument("--only", help="Keys that begin so, such as read or 'learned|turning'.", default="")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    record = WORK / "done.json"
    done: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    sources = None
    if arguments.source:
        sources = find_sources(arguments.source, needed={"train": 500, "test": 500}, test_ratio=0.3, seed=0)
        done["sources"] = sources.names
    started, complete = time.monotonic(), True
    for job in jobs(with_windows=sources is not None, seeds=arguments.seeds):
        key = "|".join(job)
        if key in done or not key.startswith(arguments.only):
            continue
        if time.monotonic() - started > arguments.seconds:
            complete = False
            break
        done[key] = read(*job[1:]) if job[0] == "read" else learn(job[2], job[1], int(job[3]), sources)
        print(key, done[key], flush=True)
        record.write_text(json.dumps(done, indent=1))
    publish(done)
    print("complete" if complete else "not complete: run it again")


if __name__ == "__main__":
    main()
