"""Times on the device's own clock, of several candidates in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


class DeviceClock:
    """Milliseconds between two moments of a CUDA device's own stream; of the process's CPU time elsewhere.

    Args:
        device: that the model computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_gpu = device.type == "cuda"

    def time(self, run: Callable[[], Any]) -> float:
        """Milliseconds of a call."""
        if not self.is_gpu:
            before = time.process_time()
            run()
            return 1000 * (time.process_time() - before)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def peak_bytes(self, run: Callable[[], Any]) -> int | None:
        """Memory that a call needs at its peak, beyond what was there; None where the device does not tell."""
        if not self.is_gpu:
            return None
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def compare_in_turn(clock: DeviceClock, runs: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, Any]:
    """Median, least and largest milliseconds of each, called in turn after rounds that are not timed.

    Args:
        clock: of the device.
        runs: name -> call; one of them is "ours".
        repetitions: timed calls of each.

    Returns:
        "milliseconds", "range", "peak_bytes" by name, and "times_faster_than": by how much "ours" is faster.
    """
    for _ in range(3 if clock.is_gpu else 1):
        for run in runs.values():
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            taken[name].append(clock.time(run))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ours = max(medians["ours"], 1e-6)  # where a clock is too coarse
    return {
        "milliseconds": medians,
        "range": {name: [min(values), max(values)] for name, values in taken.items()},
        "times_faster_than": {name: round(medians[name] / ours, 2) for name in runs if name != "ours"},
        "peak_bytes": {name: clock.peak_bytes(run) for name, run in runs.items()},
    }
