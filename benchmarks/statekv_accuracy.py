"""Where a compressed state keeps the accuracy of full attention: a tiny VLM trained here on the cue-then-event task.

Run, for seeds 0, 1 and 2, as often as it takes (each call goes on where the last one stopped):
    python benchmarks/statekv_accuracy.py train --seed 0 --minutes 5
    python benchmarks/statekv_accuracy.py compare --seed 0 --minutes 5
    python benchmarks/statekv_accuracy.py report
The grid of policies, budgets and lengths was fixed before the first comparison. A length counts where full attention
scores at least 0.9.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional

import measure
import statekv_task as task
from kinescan.vlm import Features, StreamConfig
from kinescan.vlm.chat import Chat
from kinescan.vlm.families import PixelSettings, family_class
from kinescan.vlm.policy import POLICIES
from kinescan.vlm.sequence import Piece
from kinescan.vlm.stream import VideoStream

LENGTHS = (16, 32, 64, 128)
BUDGETS = (5, 10, 20, 40)
SEEDS = (0, 1, 2)
VIDEOS_PER_CELL = 8
ENOUGH = 0.9
STEPS = 1200
BATCH_FRAMES = 256
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
PIXELS = PixelSettings(mean=(0.5,) * 3, std=(0.25,) * 3)


def length_at(step: int, generator: torch.Generator) -> int:
    """Frames of a training batch: 8 at first, at last between 8 and 136."""
    longest = min(136, 8 + step // 8)
    return int(torch.randint(8, longest + 1, (), generator=generator))


def train_step(model: Any, optimizer: torch.optim.Optimizer, generator: torch.Generator, num_frames: int) -> Tensor:
    count = max(4, BATCH_FRAMES // num_frames)
    videos = task.draw(count, num_frames, task.random_cues(count, num_frames, generator), generator)
    ids, targets = task.sequence_of(videos)
    logits = model(input_ids=ids, pixel_values=task.pixels_of(videos.frames.flatten(0, 1))).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=task.IGNORED)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def plain_accuracy(model: Any, num_frames: int, count: int = 24) -> tuple[float, float]:
    """Share of right labels behind event frames, and of right answers to the questions; full attention, one forward."""
    generator = torch.Generator().manual_seed(10_000 + num_frames)
    videos = task.draw(count, num_frames, task.distant_cues(count, num_frames, generator), generator)
    ids, targets = task.sequence_of(videos)
    logits = model(input_ids=ids, pixel_values=task.pixels_of(videos.frames.flatten(0, 1))).logits
    chosen = logits.argmax(-1)
    steps = num_frames * task.STEP_TOKENS
    behind = chosen[:, :steps].view(count, num_frames, task.STEP_TOKENS)[:, :, -1]
    live = (behind == videos.answers)[videos.asked].float().mean()
    known = targets[:, steps:] != task.IGNORED
    return float(live), float((chosen == targets)[:, steps:][known].float().mean())


def train(seed: int, minutes: float, folder: Path, steps: int = STEPS) -> None:
    path = folder / f"seed{seed}.pt"
    model = task.build_vlm(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
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
        warm = min(1.0, (done + 1) / 100)
        rate = 2e-3 * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = train_step(model, optimizer, generator, length_at(done, generator))
        done += 1
        if done % 100 == 0:
            model.eval()
            right = {str(length): plain_accuracy(model, length) for length in LENGTHS}
            model.train()
            log.append([done, round(float(loss), 4), right])
            print(seed, done, f"{loss:.4f}", {k: [round(x, 3) for x in v] for k, v in right.items()}, flush=True)
            save()
    save()


class TaskChat(Chat):
    """ASK behind every frame, the question's one token behind the last."""

    def after_patch(self) -> list[int]:
        return [task.ASK]


class WatchedStream(VideoStream):
    """Keeps what the model says at the last token of each step: its answer behind the newest frame."""

    said: int = -1

    def _run(self, pieces: Any, positions: Any, *, answering: bool) -> Tensor:
        hidden = super()._run(list[Piece](pieces), positions, answering=answering)
        if not answering:
            self.said = int(self.family.logits(hidden[-1:]).argmax())
        return hidden


def encoded(model: Any, videos: task.Videos) -> list[list[Features]]:
    """What the vision tower makes of each video; the same for every policy."""
    family = family_class(model)(model, pixels=PIXELS)
    with torch.no_grad():
        return [[family.encode(frame[None]) for frame in frames] for frames in videos.frames]


def stream_accuracy(
    model: Any, videos: task.Videos, features: list[list[Features]], policy: str, budget: int | None
) -> dict[str, int]:
    """Right answers and questions over some videos, live (behind event frames) and asked (behind the last frame)."""
    counts = {"live_right": 0, "live": 0, "asked_right": 0, "asked": 0}
    for index in range(len(videos.frames)):
        family = family_class(model)(model, pixels=PIXELS)
        with WatchedStream(family, TaskChat(family), StreamConfig(budget=budget, policy=policy)) as stream:
            for patch, event, answer in zip(features[index], videos.asked[index], videos.answers[index], strict=True):
                stream.push(patch)
                if event:
                    counts["live"] += 1
                    counts["live_right"] += stream.said == int(answer)
            if (answer := int(videos.last[index])) != task.IGNORED:
                counts["asked"] += 1
                counts["asked_right"] += int(stream.ask([task.LAST], max_new_tokens=1).logits.argmax()) == answer
    return counts


def cells() -> list[tuple[int, str, int | None]]:
    grid: list[tuple[int, str, int | None]] = []
    for length in LENGTHS:
        grid.append((length, "none", None))
        grid += [(length, name, budget) for name in POLICIES if name != "none" for budget in BUDGETS]
    return grid


def compare(seed: int, minutes: float, folder: Path, count: int = VIDEOS_PER_CELL) -> None:
    checkpoint = folder / f"seed{seed}.pt"
    stored = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {"step": 0}
    if stored["step"] < STEPS:
        print(f"seed {seed}: {stored['step']} of {STEPS} steps are trained; go on with train first")
        return
    model = task.build_vlm(seed)
    model.load_state_dict(stored["model"])
    model.eval()
    path = folder / f"seed{seed}_cells.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    drawn: dict[int, tuple[task.Videos, list[list[Features]]]] = {}
    end = time.monotonic() + 60 * minutes
    for length, policy, budget in cells():
        key = f"{length}/{policy}/{budget}"
        if key in done or time.monotonic() > end:
            continue
        if length not in drawn:
            generator = torch.Generator().manual_seed(20_000 + length)
            videos = task.draw(count, length, task.distant_cues(count, length, generator), generator)
            drawn[length] = (videos, encoded(model, videos))
        done[key] = stream_accuracy(model, *drawn[length], policy, budget)
        path.write_text(json.dumps(done))
        right = done[key]
        print(
            seed,
            key,
            round(right["live_right"] / right["live"], 3),
            round(right["asked_right"] / right["asked"], 3),
            flush=True,
        )


def report(folder: Path, results_folder: Path = measure.RESULTS) -> None:
    """Writes the raw counts and the accuracies; tables and the plot are made from these files alone."""
    training: dict[str, Any] = {}
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for seed in SEEDS:
        path = folder / f"seed{seed}.pt"
        if path.exists():
            stored = torch.load(path, weights_only=True)
            training[str(seed)] = {"steps": stored["step"], "log": stored["log"]}
            path = folder / f"seed{seed}_cells.json"
            counts[str(seed)] = json.loads(path.read_text()) if path.exists() else {}
    raw = results_folder / "raw" / "statekv_accuracy.json"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps({"training": training, "counts": counts}) + "\n")
    results = {kind: summary(counts, kind) for kind in ("live", "asked")}
    settings = {
        "budgets": BUDGETS,
        "tokens_per_frame": task.STEP_TOKENS,
        "videos_per_cell": VIDEOS_PER_CELL,
        "seeds": SEEDS,
        "training_steps": STEPS,
        "frames_per_batch": BATCH_FRAMES,
        "enough": ENOUGH,
        "chance": round(1 / task.KINDS, 3),
    }
    path = measure.write_result(
        "statekv_accuracy", seed=SEEDS[0], n=VIDEOS_PER_CELL, settings=settings, results=results, folder=results_folder
    )
    show(json.loads(path.read_text()), FIGURES if results_folder == measure.PUBLISHED else results_folder)


def summary(counts: dict[str, dict[str, dict[str, int]]], kind: str) -> dict[str, Any]:
    """Per length the seeds that count; per policy the mean, lowest and highest accuracy over them at each budget."""
    found = {}
    for length in LENGTHS:
        whole = {seed: cells[f"{length}/none/None"] for seed, cells in counts.items() if f"{length}/none/None" in cells}
        seeds = [seed for seed, cell in whole.items() if cell[f"{kind}_right"] >= ENOUGH * cell[kind]]
        full = [cell[f"{kind}_right"] / cell[kind] for cell in whole.values()]
        rows: dict[str, Any] = {"seeds_that_count": len(seeds), "full_attention_by_seed": full}
        for policy in POLICIES:
            for name, best in (("mean", None), ("lowest", min), ("highest", max)):
                values = []
                for budget in BUDGETS:
                    cells = [counts[seed].get(f"{length}/{policy}/{budget}") for seed in seeds]
                    right = [cell[f"{kind}_right"] / cell[kind] for cell in cells if cell]
                    values.append((best(right) if best else sum(right) / len(right)) if right else None)
                if policy != "none" and seeds:
                    rows[f"{policy}_{name}"] = values
        found[f"{length}_frames"] = rows
    return found


def show(document: dict[str, Any], folder: Path) -> None:
    """Prints tables for the docs and draws the plot."""
    settings, results = document["settings"], document["results"]
    names = [name for name in POLICIES if name != "none"]
    for kind, title in (("live", "behind each event"), ("asked", "asked at the end")):
        for length, rows in results[kind].items():
            full = ", ".join(f"{value:.2f}" for value in rows["full_attention_by_seed"])
            print(f"\n{title}, {length}: full attention {full}; {rows['seeds_that_count']} seeds count\n")
            print("| policy | " + " | ".join(f"{budget} tokens" for budget in settings["budgets"]) + " |")
            print("|---" * (1 + len(settings["budgets"])) + "|")
            for name in names if rows["seeds_that_count"] else ():
                columns = zip(*(rows[f"{name}_{which}"] for which in ("mean", "lowest", "highest")), strict=True)
                print(f"| `{name}` | " + " | ".join(_cell(*column) for column in columns) + " |")
    lengths = [length for length, rows in results["live"].items() if rows["seeds_that_count"]]
    if not lengths:
        return
    figure, axes = plt.subplots(1, len(lengths), figsize=(3.2 * len(lengths), 3.4), sharey=True, squeeze=False)
    for axis, length in zip(axes[0], lengths, strict=True):
        rows = results["live"][length]
        for name in names:
            points = [(x, y) for x, y in zip(settings["budgets"], rows[f"{name}_mean"], strict=True) if y is not None]
            width = 2.5 if name == "statekv" else 1
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name, linewidth=width)
        counted = [value for value in rows["full_attention_by_seed"] if value >= settings["enough"]]
        axis.axhline(sum(counted) / len(counted), color="black", linestyle="--", label="full attention")
        axis.axhline(settings["chance"], color="grey", linestyle=":", label="chance")
        tokens = int(length.split("_")[0]) * settings["tokens_per_frame"]
        axis.set(title=f"{length.replace('_', ' ')} ({tokens} tokens)", xlabel="budget (tokens)")
        axis.set_xscale("log", base=2)
        axis.set_xticks(settings["budgets"], [str(budget) for budget in settings["budgets"]])
    axes[0][0].set_ylabel("accuracy behind events")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "statekv_accuracy.png", dpi=110)


def _cell(mean: float | None, lowest: float | None, highest: float | None) -> str:
    return "-" if mean is None else f"{mean:.2f} ({lowest:.2f}-{highest:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "compare", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/statekv_accuracy"))
    given = parser.parse_args()
    if given.what == "report":
        report(given.folder)
    else:
        {"train": train, "compare": compare}[given.what](given.seed, given.minutes, given.folder)


if __name__ == "__main__":
    main()
