"""Local correlation on CPU: each frame pair once, in-band products only."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinescan.ops.local_correlation import band
from kinescan.ops.local_correlation.operator import Settings, register_correlation
from kinescan.ops.local_correlation.pairs import plan_pairs
from kinescan.ops.local_correlation.reference import TOO_SHORT

_PRODUCTS_PER_THREAD = 1_000_000
"""A thread is started for no fewer multiply-adds than this: starting one costs about 50 microseconds."""


def obstacle(features: Tensor) -> str | None:
    """Why these kernels cannot run on `features`, or None when they can."""
    if features.device.type != "cpu":
        return "it runs on CPU tensors only"
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "it computes in float32; give float32, bfloat16 or float16"
    return None


def _correlate(features: Tensor, settings: Settings) -> Tensor:
    offsets, window, replicate, first_frame, epsilon = settings
    plan = plan_pairs(features.shape[1], offsets, replicate, first_frame)
    batch, num_frames, num_channels, height, width = features.shape
    num_slots = (num_frames - first_frame) * len(offsets)
    out = torch.empty(batch, num_slots, window * window, height, width)
    maps = out.numpy()
    maps[:, plan.empty_slots] = 0.0
    num_threads = _num_threads(batch * len(plan.pairs) * num_channels * out[0, 0].numel())
    directions, _ = _normalise(features, window, epsilon, num_threads)

    def correlate(first: int, last: int) -> None:
        room = _room_for_band(directions, window)
        band.correlate_pairs(
            directions, plan.pairs, plan.target_starts, plan.targets, window, width, room, maps, first, last
        )

    _run_parts(correlate, batch * len(plan.pairs), num_threads)
    return out.view(batch, num_frames - first_frame, len(offsets), window * window, height, width)


def _correlate_backward(grad: Tensor, features: Tensor, settings: Settings) -> Tensor:
    offsets, window, replicate, first_frame, epsilon = settings
    plan = plan_pairs(features.shape[1], offsets, replicate, first_frame)
    batch, num_frames, num_channels, height, _ = features.shape
    grad_maps = grad.detach().contiguous().flatten(1, 2).numpy()
    out = torch.empty(features.shape)
    grad_features = out.numpy()
    num_threads = _num_threads(2 * batch * len(plan.pairs) * num_channels * grad_maps[0, 0].size)
    directions, scales = _normalise(features, window, epsilon, num_threads)
    # With fewer clips than threads, a clip's frames are shared out too.
    num_parts = min(num_frames, -(-num_threads // batch))
    vector_width = directions.shape[3] - 2 * (window // 2)

    def differentiate(first: int, last: int) -> None:
        room = _room_for_band(directions, window)
        totals = np.empty((num_frames, height, num_channels, vector_width), dtype=np.float32)
        band.gradient_frames(
            grad_maps,
            directions,
            scales,
            plan.pairs,
            plan.symmetric_starts,
            plan.symmetric_targets,
            window,
            num_parts,
            room,
            totals,
            grad_features,
            first,
            last,
        )

    _run_parts(differentiate, batch * num_parts, num_threads)
    return out


def _normalise(
    features: Tensor, window: int, epsilon: float, num_threads: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors in the layout of the kernels, [B * T, H, C, Wp], and their scales [B * T, H, Wv]."""
    frames = features.detach().contiguous().flatten(0, 1).numpy()
    num_frames, num_channels, height, width = frames.shape
    padded_width = band.padded_width(width, window // 2)
    directions = np.empty((num_frames, height, num_channels, padded_width), dtype=np.float32)
    scales = np.empty((num_frames, height, padded_width - 2 * (window // 2)), dtype=np.float32)

    def normalise(first: int, last: int) -> None:
        band.normalise_frames(frames, window // 2, epsilon, TOO_SHORT, directions, scales, first, last)

    _run_parts(normalise, num_frames, num_threads)
    return directions, scales


def _room_for_band(directions: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    _, height, _, padded_width = directions.shape
    return np.zeros((window * window, height, padded_width), dtype=np.float32)


def _num_threads(num_products: int) -> int:
    return min(torch.get_num_threads(), 1 + num_products // _PRODUCTS_PER_THREAD)


def _run_parts(work: Callable[[int, int], None], num_jobs: int, num_threads: int) -> None:
    """Runs work(first, last) over all jobs, in equal parts on up to `num_threads` threads.

    Threads live for one call: nothing has to survive a fork, and callers on several threads do not meet. (Numba's own
    parallel loops fail at one or the other, depending on the threading layer.)
    """
    num_parts = min(num_jobs, num_threads)
    bounds = [num_jobs * part // max(num_parts, 1) for part in range(num_parts + 1)]
    if num_parts <= 1:
        work(0, num_jobs)
        return
    with ThreadPoolExecutor(num_parts - 1) as pool:
        others = [pool.submit(work, *bounds[part : part + 2]) for part in range(1, num_parts)]
        work(*bounds[:2])
        for other in others:
            other.result()


correlate_clip = register_correlation("local_correlation", _correlate, _correlate_backward, device_types="cpu")
"""As `reference.correlate_clip`, for float32 on CPU."""
