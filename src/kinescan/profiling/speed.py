"""How long a model takes for a view, part by part, and how much memory it needs meanwhile."""

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinescan.errors import ConfigError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.profiling.parts import watch_parts

PASSES_FOR_PARTS = 2
"""Parts are told apart in passes of their own: on a GPU that means waiting for each."""
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Times and memory of forward passes, without gradients.

    Attributes:
        device: where they ran.
        num_threads: of torch on the CPU.
        latency_seconds: of one view by itself, the median.
        num_clips: views in a batch.
        views_per_second: in batches of so many, by the median.
        peak_bytes: memory that such a batch takes at its peak beside the model; None where the system does not tell.
        part_seconds: part -> time of one view in it.
    """

    device: str
    num_threads: int
    latency_seconds: float
    num_clips: int
    views_per_second: float
    peak_bytes: int | None
    part_seconds: dict[str, float]


def measure_speed(
    model: VideoClassifier,
    *,
    num_frames: int | None = None,
    num_clips: int = 1,
    repeats: int = 5,
    device: torch.device | str = "cpu",
) -> Speed:
    """Times forward passes on noise; every first pass is not counted.

    Args:
        model: moved to the device, and left there.
        num_frames: frames of a view; by default as many as the model's preprocessing takes.
        num_clips: views in a batch, for the throughput and the peak.
        repeats: timed passes of each kind.
        device: where to run.

    Raises:
        ConfigError: repeats or num_clips are below 1.
    """
    if repeats < 1 or num_clips < 1:
        raise ConfigError(f"repeats and num_clips must be at least 1, got {repeats} and {num_clips}.")
    target = torch.device(device)
    frames = model.preprocessing.num_frames if num_frames is None else num_frames
    size = model.config.image_size
    clip = torch.randn(num_clips, frames, 3, size, size).to(target)
    model = evaluation_view(model.to(target))
    with torch.inference_mode():
        latency = _median(lambda: _forward(model, clip[:1]), repeats)
        batch = latency if num_clips == 1 else _median(lambda: _forward(model, clip), repeats)
        part_seconds = _part_seconds(model, clip[:1], min(repeats, PASSES_FOR_PARTS))
        peak = peak_extra_bytes(lambda: _forward(model, clip), target)
    return Speed(
        device=str(target),
        num_threads=torch.get_num_threads(),
        latency_seconds=latency,
        num_clips=num_clips,
        views_per_second=num_clips / batch,
        peak_bytes=peak,
        part_seconds=part_seconds,
    )


def peak_extra_bytes(run: Callable[[], object], device: torch.device, *, warmups: int = 1) -> int | None:
    """Memory that a call needs at its peak beyond what was held before.

    On CUDA the allocator tells; on a CPU under Linux the process's high-water mark, which is set back before.

    Args:
        run: the call.
        device: whose memory is measured.
        warmups: calls before the one that counts: what only a first call needs does not count.

    Returns:
        Bytes, or None where the system does not tell.
    """
    for _ in range(warmups):
        run()
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # Memory that the C library kept would hide a peak below it.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR_REFS.write_text("5")
        resident = _status_bytes("VmRSS")
        run()
        return max(0, _status_bytes("VmHWM") - resident)
    except OSError:
        return None


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def _forward(model: VideoClassifier, clip: Tensor) -> None:
    # Reading a value back waits for the device.
    model(clip).flatten()[0].item()


def _median(run: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _part_seconds(model: VideoClassifier, clip: Tensor, passes: int) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for _ in range(passes):
        with _stopwatches(model, clip.device) as seconds:
            _forward(model, clip)
        for part, value in seconds.items():
            found.setdefault(part, []).append(value)
    return {part: statistics.median(values) for part, values in found.items()}


@contextlib.contextmanager
def _stopwatches(model: VideoClassifier, device: torch.device) -> Iterator[dict[str, float]]:
    """Part -> seconds, complete at the end of the block."""
    with watch_parts(model) as parts:
        seconds = dict.fromkeys(parts.names, 0.0)
        last = time.perf_counter()

        def switch() -> None:
            nonlocal last
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            seconds[parts.current] += now - last
            last = now

        parts.on_switch = switch
        yield seconds
        switch()
