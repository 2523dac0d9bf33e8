"""A stream of a clip classifier, the motion model that ships: the same actions at frame 100 and at frame 100,000.

Run: OMP_NUM_THREADS=1 python benchmarks/stream_clips.py            (about four minutes of one core)
     python benchmarks/stream_clips.py --actions 200
Writes benchmarks/results/stream_clips.json.

An action is a drawn clip of 8 frames at the rate that the model was trained with; its textures were not trained on. A
stream is actions one after the other, the same 100 of them from frame 104 on and at the end. The model's state is
carried through, its answers are averaged as a stream averages them by default, and, beside it, by a mean over all.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

import measure
from kinescan.data.synthetic.motion_clips import MotionClips, MotionClipsConfig
from kinescan.inference.stream_average import StreamAverage, choose_average
from kinescan.models.pks4 import PKS4
from kinescan.models.saving.shipped import MOTION, SHIPPED
from kinescan.models.zoo import from_pretrained

SEED = 50
POOL, ACTIONS, FIRST, COUNTED = 14, 12_500, 13, 100
"""Batches of 32 clips that actions are sampled from; actions; where the counted ones begin, and how many they are."""
TOGETHER = 6
"""Actions that the model is given at a time."""
TOLERANCE = 1e-4


def pool(model: PKS4) -> tuple[Tensor, Tensor]:
    """Clips [n, T, 3, S, S] and the class indices of their labels."""
    config = MotionClipsConfig(names=tuple(model.class_names))
    batches = list(MotionClips(model.preprocessing, num_batches=POOL, config=config, seed=SEED).batches(0, 0))
    return torch.cat([batch.clips for batch in batches]), torch.cat([batch.labels for batch in batches])


def order_of(num_actions: int, num_clips: int) -> Tensor:
    """Which clip each action shows."""
    order = torch.randint(num_clips, (num_actions,), generator=torch.Generator().manual_seed(SEED))
    order[-COUNTED:] = order[FIRST : FIRST + COUNTED]
    return order


def answers(
    model: PKS4, clips: Tensor, order: Tensor, averages: dict[str, StreamAverage]
) -> Iterator[dict[str, Tensor]]:
    """The averaged logits [T, K] of some actions at a time, by the name of the average."""
    state, taken = None, dict.fromkeys(averages)
    seconds = model.frame_seconds
    assert seconds is not None
    for some in order.split(TOGETHER):
        logits, state = model.stream_frames(clips[some].flatten(0, 1)[None], state)
        found: dict[str, list[Tensor]] = {name: [] for name in averages}
        for own in logits[0]:
            for name, average in averages.items():
                mean, taken[name] = average.push(own, seconds, taken[name])
                found[name].append(mean)
        yield {name: torch.stack(every) for name, every in found.items()}


def scores(right: Tensor, frame_seconds: float) -> dict[str, float]:
    """Of actions [n, T] with the right label or not; one without a right frame has the delay of its length."""
    told = right.any(1)
    first = torch.where(told, right.int().argmax(1), torch.tensor(right.shape[1])).float()
    return {
        "recall": told.float().mean().item(),
        "delay_seconds": first.mean().item() * frame_seconds,
        "frames_right": right.float().mean().item(),
        "last_frames_right": right[:, -1].float().mean().item(),
    }


def check(model: PKS4, clips: Tensor) -> float:
    """The largest difference between a stream's averaged logits and those of the clips that end with each frame."""
    frames = clips[:2].flatten(0, 1)[None]
    parts, state = [], None
    for frame in frames.split(1, 1):
        logits, state = model.stream_frames(frame, state)
        parts.append(logits[0])
    streamed = torch.cat(parts).cumsum(0) / torch.arange(1, frames.shape[1] + 1)[:, None]
    whole = torch.cat([model(frames[:, : t + 1]) for t in range(frames.shape[1])])
    difference = (streamed - whole).abs().max().item()
    if difference > TOLERANCE * whole.abs().max().item():
        raise SystemExit(f"a stream differs from its clip by {difference}. No result is reported.")
    return difference


@torch.inference_mode()
def run(num_actions: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and results."""
    model = from_pretrained(SHIPPED / MOTION)
    assert isinstance(model, PKS4)
    model.eval()
    default = choose_average(model, None, None)
    assert default is not None
    assert model.frame_seconds is not None
    averages = {"default": default, "mean": StreamAverage(kind="mean", seconds=float("inf"))}
    clips, labels = pool(model)
    order = order_of(num_actions, len(clips))
    parts: dict[str, list[Tensor]] = {name: [] for name in averages}
    memory, process, started = [], psutil.Process(), time.process_time()
    for some in answers(model, clips, order, averages):
        for name, logits in some.items():
            parts[name].append(logits.argmax(1))
        memory.append(process.memory_info().rss / 2**20)
    cpu = time.process_time() - started
    num_frames = clips.shape[1]
    results: dict[str, Any] = {"parity": {"stream_max_difference": check(model, clips)}}
    for name, found in parts.items():
        right = (torch.cat(found) == labels[order].repeat_interleave(num_frames)).unflatten(0, (-1, num_frames))
        # The first of them follows another action, so that what the average still holds differs.
        early, late = right[FIRST + 1 : FIRST + COUNTED], right[1 - COUNTED :]
        results[name] = {
            f"at frame {FIRST * num_frames}": scores(early, model.frame_seconds),
            f"at frame {(num_actions - COUNTED) * num_frames:,}": scores(late, model.frame_seconds),
            "frames_with_another_answer": int((early != late).sum()),
            "frames_compared": early.numel(),
        }
    tenth = max(1, len(memory) // 10)
    results["cpu_seconds_per_frame"] = cpu / (num_actions * num_frames)
    results["resident_mib_after_a_tenth"], results["resident_mib_at_the_end"] = memory[tenth], memory[-1]
    settings = {
        "model": MOTION,
        "classes": list(model.class_names),
        "frames": num_actions * num_frames,
        "frames_of_an_action": num_frames,
        "frame_seconds": model.frame_seconds,
        "default_average": default.kind,
        "default_average_seconds": default.seconds,
        "clips": len(clips),
    }
    return settings, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actions", type=int, default=ACTIONS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings, results = run(max(arguments.actions, FIRST + 2 * COUNTED))
    measure.write_result("stream_clips", seed=SEED, n=1, settings=settings, results=results)


if __name__ == "__main__":
    main()
