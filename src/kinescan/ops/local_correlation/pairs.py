"""Which pairs of frames a correlation needs, each once, and which maps each pair gives: S(t, t+k) = S(t+k, t)'."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PairPlan:
    """Which frame pairs are needed, and which maps each of them gives.

    Attributes:
        pairs: int64 [P, 2], frames a <= b.
        target_starts: int64 [P + 1], where the targets of each pair begin.
        targets: int64 [n, 2], (output slot, 1 if the slot looks from b to a).
        symmetric_starts: as target_starts, for symmetric_targets.
        symmetric_targets: as targets, with those of a frame and itself in both directions.
        empty_slots: int64, slots that look outside the clip.
    """

    pairs: Integers
    target_starts: Integers
    targets: Integers
    symmetric_starts: Integers
    symmetric_targets: Integers
    empty_slots: Integers


@lru_cache(maxsize=64)
def plan_pairs(num_frames: int, offsets: tuple[int, ...], replicate: bool, first_frame: int) -> PairPlan:
    """The plan for a clip; slot (t - first_frame) * len(offsets) + k of the output is what frame t sees at offset k."""
    targets: dict[tuple[int, int], list[tuple[int, int]]] = {}
    empty_slots = []
    for t in range(first_frame, num_frames):
        for k, offset in enumerate(offsets):
            slot = (t - first_frame) * len(offsets) + k
            u = min(max(t + offset, 0), num_frames - 1) if replicate else t + offset
            if 0 <= u < num_frames:
                targets.setdefault((min(t, u), max(t, u)), []).append((slot, int(t > u)))
            else:
                empty_slots.append(slot)
    symmetric = {
        (a, b): [*slots, *((slot, 1) for slot, _ in slots)] if a == b else slots for (a, b), slots in targets.items()
    }
    pairs = np.array(list(targets), dtype=np.int64).reshape(-1, 2)
    return PairPlan(
        pairs, *_concatenate(targets.values()), *_concatenate(symmetric.values()), np.array(empty_slots, dtype=np.int64)
    )


def _concatenate(lists: Iterable[list[tuple[int, int]]]) -> tuple[Integers, Integers]:
    """Where each list starts, and all of them behind each other."""
    kept = list(lists)
    starts = np.cumsum([0, *(len(each) for each in kept)], dtype=np.int64)
    return starts, np.array([item for each in kept for item in each], dtype=np.int64).reshape(-1, 2)
