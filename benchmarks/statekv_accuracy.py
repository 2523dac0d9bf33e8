"""Where a compressed state keeps the accuracy of full attention: a tiny VLM trained here on the cue-then-event task.

Run, for seeds 0, 1 and 2, as often as it takes (each call continues where the last one stopped):
    python benchmarks/statekv_accuracy.py train --seed 0 --minutes 5
    python benchmarks/statekv_accuracy.py compare --seed 0 --minutes 5
    python benchmarks/statekv_accuracy.py report
The grid of policies, budgets and lengths was fixed before the first comparison. A length counts where full attention
scores at least 0.9.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional

import measure
import statekv_task as task
from kinescan.vlm import StreamConfig
from kinescan.vlm.attention import attention_of, refuse_padding
from kinescan.vlm.cache import StreamCache
from kinescan.vlm.chat import Chat
from kinescan.vlm.families import PixelSettings, family_class
from kinescan.vlm.families.door import registered_attention
from kinescan.vlm.policy import POLICIES, Policy, StateKV, make_policy
from kinescan.vlm.stream import VideoStream

LENGTHS = (32, 64, 128)
BUDGETS = (5, 10, 20, 40, 80)
SEEDS = (0, 1, 2, 3)
FRESH = (4, 5, 6, 7, 8, 9)
"""Seeds of the settings that the method leaves free, chosen before any of them was trained; seed 2 was looked at."""
FRAMES_PER_CELL = 1024
ENOUGH = 0.9
STEPS = 1500
RATE = 3e-3
BATCH_FRAMES = 320
NAMES = tuple(name for name in POLICIES if name != "none")
KINDS = {"kind_a": task.EVENT_A, "kind_b": task.EVENT_B}
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
PIXELS = PixelSettings(mean=(0.5,) * 3, std=(0.25,) * 3)


def length_at(step: int, generator: torch.Generator) -> int:
    """Frames of a training batch: 8 at first, at last between 8 and 136."""
    longest = min(136, 8 + step // 8)
    return int(torch.randint(8, longest + 1, (), generator=generator))


def answers_of(model: Any, videos: task.Videos) -> Tensor:
    """[B, T, V] scores behind each frame; full attention, one forward."""
    pixels = task.pixels_of(videos.frames.flatten(0, 1))
    hidden = model.model(input_ids=task.tokens_of(videos), pixel_values=pixels).last_hidden_state
    scores: Tensor = model.lm_head(hidden[:, task.STEP_TOKENS - 1 :: task.STEP_TOKENS])
    return scores


def train_step(model: Any, optimizer: torch.optim.Optimizer, generator: torch.Generator, num_frames: int) -> Tensor:
    count = max(4, BATCH_FRAMES // num_frames)
    videos = task.draw(task.random_kinds(count, num_frames, generator), generator)
    loss = functional.cross_entropy(answers_of(model, videos).flatten(0, 1), videos.answers.flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def plain_accuracy(model: Any, num_frames: int, count: int = 16) -> list[float]:
    """Fraction of right labels behind events of each kind."""
    generator = torch.Generator().manual_seed(10_000 + num_frames)
    videos = task.draw(task.distant_kinds(count, num_frames, generator), generator)
    right = answers_of(model, videos).argmax(-1) == videos.answers
    return [round(float(right[videos.kinds == kind].float().mean()), 4) for kind in KINDS.values()]


def train(
    seed: int,
    minutes: float,
    folder: Path,
    steps: int = STEPS,
    *,
    take: Callable[[Any, torch.optim.Optimizer, torch.Generator, int], Tensor] = train_step,
    length: Callable[[int, torch.Generator], int] = length_at,
    accuracy: Callable[[Any, int], Any] = plain_accuracy,
) -> None:
    """Trains the model of this seed, or continues.

    Args:
        seed: of the weights and of the videos.
        minutes: after this time it stops, and can be continued.
        folder: of the checkpoints.
        steps: in all.
        take: a step on videos of so many frames.
        length: how many, by step.
        accuracy: with full attention at so many frames, for the log.
    """
    path = folder / f"seed{seed}.pt"
    model = task.build_vlm(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    done, log = 0, []
    if path.exists():
        stored = torch.load(path, weights_only=True)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        generator.set_state(stored["generator"])
        done, log = stored["step"], stored["log"]

    def save() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
        torch.save({**state, "step": done, "log": log}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    end = time.monotonic() + 60 * minutes
    model.train()
    while done < steps and time.monotonic() < end:
        warm = min(1.0, (done + 1) / 50)
        rate = RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = take(model, optimizer, generator, length(done, generator))
        done += 1
        if done % 100 == 0:
            model.eval()
            right = {str(length): accuracy(model, length) for length in LENGTHS}
            model.train()
            log.append([done, round(float(loss), 4), right])
            print(seed, done, f"{loss:.4f}", right, flush=True)
            save()
    save()


class TaskChat(Chat):
    """ASK behind every frame."""

    def after_patch(self) -> list[int]:
        return [task.ASK]


class WatchedStream(VideoStream):
    """Keeps what the model says at the last token of each step: its answer behind the newest frame."""

    said: int = -1

    def _end_step(self, begun: Any, hidden: Tensor) -> None:
        super()._end_step(begun, hidden)
        self.said = int(self.family.logits(hidden[-1:]).argmax())


class FoldedCache(StreamCache):
    """Several videos in step: their key heads lie side by side, and a policy chooses for each by itself anyway."""

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        super().update(keys.flatten(0, 1)[None], values.flatten(0, 1)[None], layer_idx)
        return keys, values


def folded_attention(cache: StreamCache) -> Any:
    """The stream's own attention, over the heads of all videos."""
    inner = attention_of(cache)

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        videos, heads, queries, dim = query.shape
        output, _ = inner(module, query.flatten(0, 1)[None], key, value, mask, options.get("scaling"))
        return output.view(queries, videos, heads, dim).transpose(0, 1).contiguous(), None

    return attention


class FoldedStream:
    """Videos in step through one decoder, frame by frame; each sees itself alone.

    Args:
        model: of the task.
        count: videos.
        options: of the cache.
    """

    def __init__(self, model: Any, count: int, **options: Any) -> None:
        self.family = family_class(model)(model, pixels=PIXELS)
        own = self.family.cache_shape()
        self.cache = FoldedCache(replace(own, key_heads=count * own.key_heads), **options)
        self.count, self.upcoming = count, 0
        self.attention = folded_attention(self.cache)

    def push(self, tokens: Tensor) -> Tensor:
        """[B] what is said behind a frame of each video, whose features are [B, N, W]."""
        embedded = torch.cat((tokens, self._embedded(task.ASK)), dim=1)
        self.cache.is_text = torch.tensor([False] * task.FRAME_TOKENS + [True])
        self.cache.make_room(embedded.shape[1])
        said = self._run(embedded)
        self.upcoming += embedded.shape[1]
        return said

    def ask(self, token_id: int) -> Tensor:
        """[B] what is said behind a question of one token, which leaves no trace."""
        self.cache.answering = True
        try:
            return self._run(self._embedded(token_id))
        finally:
            self.cache.answering = False
            self.cache.drop_answer()

    def _embedded(self, token_id: int) -> Tensor:
        return self.family.embed([token_id]).expand(self.count, 1, -1)

    def _run(self, embedded: Tensor) -> Tensor:
        positions = torch.arange(self.upcoming, self.upcoming + embedded.shape[1])[None]
        decoder = self.family.decoder
        with registered_attention(decoder, self.attention, refuse_padding):
            output = decoder(inputs_embeds=embedded, position_ids=positions, past_key_values=self.cache, use_cache=True)
        return self.family.logits(output.last_hidden_state[:, -1]).argmax(-1)


@torch.no_grad()
def said_behind_frames(
    model: Any,
    tokens: Tensor,
    policy: str | Policy,
    budget: int | None,
    ratios: tuple[float, ...] | None = None,
    **limit: Any,
) -> Tensor:
    """[B, T] what the model says behind each frame, for features [B, T, N, W]; one frame of all videos at a time."""
    options = {"policy": make_policy(policy), "budget": budget, "budget_ratios": ratios, **limit}
    stream = FoldedStream(model, len(tokens), **options)
    return torch.stack([stream.push(tokens[:, frame]) for frame in range(tokens.shape[1])], dim=1)


def check_folding(model: Any, videos: task.Videos, tokens: Tensor) -> None:
    """The first video by itself, through a stream as everyone opens it, must say the same."""
    family = family_class(model)(model, pixels=PIXELS)
    said = []
    with WatchedStream(family, TaskChat(family), StreamConfig(budget=BUDGETS[1])) as stream:
        for frame in videos.frames[0]:
            stream.push(frame)
            said.append(stream.said)
    if said != said_behind_frames(model, tokens, "statekv", BUDGETS[1])[0].tolist():
        raise SystemExit("videos in step say something else than a stream of one: nothing is compared.")


def cells() -> list[tuple[int, str, int | None]]:
    grid: list[tuple[int, str, int | None]] = []
    for length in LENGTHS:
        grid.append((length, "none", None))
        grid += [(length, name, budget) for name in POLICIES if name != "none" for budget in BUDGETS]
    return grid


def trained_model(seed: int, folder: Path, steps: int = STEPS) -> Any:
    """The model of this seed in evaluation mode; None, with a line that says so, where its training is not complete."""
    checkpoint = folder / f"seed{seed}.pt"
    stored = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {"step": 0}
    if stored["step"] < steps:
        print(f"seed {seed}: {stored['step']} of {steps} steps are trained; finish with train first")
        return None
    model = task.build_vlm(seed)
    model.load_state_dict(stored["model"])
    return model.eval()


def seen_videos(model: Any, length: int, seed: int) -> tuple[task.Videos, Tensor]:
    """`FRAMES_PER_CELL` frames of videos of this length, and their tokens; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed + length)
    videos = task.draw(task.distant_kinds(FRAMES_PER_CELL // length, length, generator), generator)
    with torch.no_grad():
        seen = model.model.get_image_features(task.pixels_of(videos.frames.flatten(0, 1))).pooler_output
    return videos, seen.unflatten(0, videos.kinds.shape)


class Cells:
    """Counts of right answers by cell, kept in a file after each; what is in it is not counted again.

    Args:
        path: the file.
        minutes: after this time no further cell is begun.
        seed: for the line that is printed.
    """

    def __init__(self, path: Path, minutes: float, seed: int) -> None:
        self.path, self.seed, self.end = path, seed, time.monotonic() + 60 * minutes
        self.done = json.loads(path.read_text()) if path.exists() else {}

    def is_due(self, key: str) -> bool:
        return key not in self.done and time.monotonic() <= self.end

    def count(self, key: str, said: Tensor, videos: task.Videos) -> None:
        """Adds a cell: for each kind of event, how many answers are right, of how many."""
        right = said == videos.answers
        self.done[key] = {
            name: [int(right[videos.kinds == kind].sum()), int((videos.kinds == kind).sum())]
            for name, kind in KINDS.items()
        }
        self.path.write_text(json.dumps(self.done))
        found = {name: round(hits / count, 3) for name, (hits, count) in self.done[key].items()}
        print(self.seed, key, found, flush=True)


def compare(seed: int, minutes: float, folder: Path) -> None:
    model = trained_model(seed, folder)
    if model is None:
        return
    counted = Cells(folder / f"seed{seed}_cells.json", minutes, seed)
    sampled: dict[int, tuple[task.Videos, Tensor]] = {}
    for length, policy, budget in cells():
        key = f"{length}/{policy}/{budget}"
        if not counted.is_due(key):
            continue
        if length not in sampled:
            sampled[length] = seen_videos(model, length, 20_000 + 1000 * seed)
            check_folding(model, *sampled[length])
        videos, tokens = sampled[length]
        counted.count(key, said_behind_frames(model, tokens, policy, budget), videos)


def open_questions() -> dict[str, tuple[Policy | str, tuple[float, ...] | None]]:
    """What the method leaves free, fixed before any seed of FRESH was trained: a policy and the layers' ratios."""
    return {
        "statekv": ("statekv", None),
        "queries: frame": (StateKV(queries="frame"), None),
        "queries: text": (StateKV(queries="text"), None),
        "recent 1/4": (StateKV(recent_ratio=0.25), None),
        "recent 1/2": (StateKV(recent_ratio=0.5), None),
        "decay 0.5": (StateKV(decay=0.5), None),
        "decay 0.9": (StateKV(decay=0.9), None),
        "decay 0.9, recent 1/4": (StateKV(decay=0.9, recent_ratio=0.25), None),
        "decay 1, recent 1/4": (StateKV(decay=1.0, recent_ratio=0.25), None),
        "layers 4:1:1": ("statekv", (4, 1, 1)),
        "layers 1:1:4": ("statekv", (1, 1, 4)),
        "decay 0.9, layers 4:1:1": (StateKV(decay=0.9), (4, 1, 1)),
        "h2o": ("h2o", None),
        "sinks_recency": ("sinks_recency", None),
    }


def explore(seed: int, minutes: float, folder: Path) -> None:
    """Every setting of `open_questions` at an eighth of the tokens, for one seed."""
    model = trained_model(seed, folder)
    if model is None:
        return
    counted = Cells(folder / f"seed{seed}_open.json", minutes, seed)
    for length in LENGTHS:
        videos, tokens = seen_videos(model, length, 30_000 + 1000 * seed)
        budget = length * task.STEP_TOKENS // 8
        for name, (policy, ratios) in {"full attention": ("none", None), **open_questions()}.items():
            key = f"{length}/{name}"
            if counted.is_due(key):
                counted.count(key, said_behind_frames(model, tokens, policy, budget, ratios), videos)


def report(folder: Path, results_folder: Path = measure.RESULTS) -> None:
    """Writes counts and accuracies of the seeds that are done; tables and the plot are made from these files alone."""
    training: dict[str, Any] = {}
    counts: dict[str, dict[str, dict[str, list[int]]]] = {}
    for seed in SEEDS:
        path = folder / f"seed{seed}.pt"
        if path.exists():
            stored = torch.load(path, weights_only=True)
            training[str(seed)] = {"steps": stored["step"], "log": stored["log"]}
            path = folder / f"seed{seed}_cells.json"
            done = json.loads(path.read_text()) if path.exists() else {}
            if len(done) == len(cells()):
                counts[str(seed)] = done
    raw = results_folder / "raw" / "statekv_accuracy.json"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps({"training": training, "counts": counts}) + "\n")
    results = {
        f"{kind}_in_videos_of_{length}_frames": summary(counts, kind, length) for kind in KINDS for length in LENGTHS
    }
    settings = {
        "budgets": BUDGETS,
        "tokens_per_frame": task.STEP_TOKENS,
        "frames_per_cell": FRAMES_PER_CELL,
        "seeds": SEEDS,
        "training_steps": STEPS,
        "frames_per_batch": BATCH_FRAMES,
        "enough": ENOUGH,
        "chance": round(1 / task.VALUES, 3),
    }
    path = measure.write_result(
        "statekv_accuracy", seed=SEEDS[0], n=FRAMES_PER_CELL, settings=settings, results=results, folder=results_folder
    )
    show(json.loads(path.read_text()), FIGURES if results_folder == measure.PUBLISHED else results_folder)


def summary(counts: dict[str, dict[str, dict[str, list[int]]]], kind: str, length: int) -> dict[str, Any]:
    """The seeds that count, and over them each policy's mean, lowest and highest accuracy at each budget."""

    def accuracies(key: str, seeds: Iterable[str]) -> dict[str, float]:
        found = {seed: counts[seed][key][kind] for seed in seeds if key in counts[seed]}
        return {seed: right / count for seed, (right, count) in found.items()}

    full = accuracies(f"{length}/none/None", counts)
    seeds = [seed for seed, accuracy in full.items() if accuracy >= ENOUGH]
    summed: dict[str, Any] = {"seeds_that_count": ", ".join(seeds), "full_attention_by_seed": full}
    if not seeds:
        return summed
    summed["budget_tokens"] = BUDGETS
    for name, reduce in (("accuracy", statistics.fmean), ("lowest", min), ("highest", max)):
        summed[name] = {
            policy: [reduce(accuracies(f"{length}/{policy}/{budget}", seeds).values()) for budget in BUDGETS]
            for policy in NAMES
        }
    return summed


def show(document: dict[str, Any], folder: Path) -> None:
    """Prints tables for the docs and draws the plot."""
    settings, results = document["settings"], document["results"]
    for setting, rows in results.items():
        full = ", ".join(f"{value:.2f}" for value in rows["full_attention_by_seed"].values())
        print(f"\n{setting}: full attention {full}; seeds that count: {rows['seeds_that_count']}\n")
        if not rows["seeds_that_count"]:
            continue
        print("| policy | " + " | ".join(f"{budget} tokens" for budget in settings["budgets"]) + " |")
        print("|---" * (1 + len(settings["budgets"])) + "|")
        for name in NAMES:
            columns = zip(*(rows[which][name] for which in ("accuracy", "lowest", "highest")), strict=True)
            print(f"| `{name}` | " + " | ".join(_cell(*column) for column in columns) + " |")
    figure, axes = plt.subplots(len(KINDS), len(LENGTHS), figsize=(10, 6), sharex=True, sharey=True, squeeze=False)
    for axis, (setting, rows) in zip(axes.flat, results.items(), strict=True):
        _draw(axis, rows, settings)
        axis.set_title(setting.replace("_", " "), fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("budget (tokens)")
    for row in axes:
        row[0].set_ylabel("accuracy behind events")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="lower center", ncols=9, fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "statekv_accuracy.png", dpi=90)


def _draw(axis: Any, rows: dict[str, Any], settings: dict[str, Any]) -> None:
    axis.axhline(settings["chance"], color="grey", linestyle=":", label="chance")
    axis.set_xscale("log", base=2)
    axis.set_xticks(settings["budgets"], [str(budget) for budget in settings["budgets"]])
    counted = [value for value in rows["full_attention_by_seed"].values() if value >= settings["enough"]]
    if not counted:
        return
    axis.axhline(statistics.fmean(counted), color="black", linestyle="--", label="full attention")
    for name in NAMES:
        width = 2.5 if name == "statekv" else 1
        axis.plot(settings["budgets"], rows["accuracy"][name], marker=".", label=name, linewidth=width)


def _cell(mean: float, lowest: float, highest: float) -> str:
    return f"{mean:.2f} ({lowest:.2f}-{highest:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "compare", "explore", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/statekv_accuracy"))
    given = parser.parse_args()
    if given.what == "report":
        report(given.folder)
    else:
        {"train": train, "compare": compare, "explore": explore}[given.what](given.seed, given.minutes, given.folder)


if __name__ == "__main__":
    main()
