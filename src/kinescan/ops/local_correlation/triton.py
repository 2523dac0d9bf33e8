"""The local correlation on a GPU: each pair of frames once, in-band products only, no atomics.

A patch p is a number, y * W + x. Displacement m = (dy + R) * window + dx + R moves it to p + dy * W + dx, where that is
inside the frame. Neighbouring threads have neighbouring patches, so that maps are read and written in runs.
S(t, t + k) holds the products of S(t + k, t), too: displacement m at patch p is displacement M - 1 - m at the patch
that it leads to. What leads out of the frame is in one as in the other, at m and p, and is zero.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinescan.ops.local_correlation.operator import Settings
from kinescan.ops.local_correlation.pairs import plan_pairs
from kinescan.ops.local_correlation.reference import TOO_SHORT

BLOCK_PATCHES = 64
BLOCK_CHANNELS = 32
BLOCK_SHIFTS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _measure(  # type: ignore[no-untyped-def]
    features_ptr,
    scales_ptr,
    num_channels,
    size,
    epsilon,
    shortest,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Scales [F, H * W], 1 / length of each vector and 0 where its square is at most `shortest`."""
    num_tiles = tl.cdiv(size, BLOCK_P)
    frame = (tl.program_id(0) // num_tiles).to(tl.int64)
    patches = (tl.program_id(0) % num_tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    is_patch = patches < size
    squares = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, num_channels, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        at = (frame * num_channels + channels)[:, None] * size + patches[None, :]
        inside = (channels < num_channels)[:, None] & is_patch[None, :]
        value = tl.load(features_ptr + at, mask=inside, other=0.0).to(tl.float32)
        squares += value * value
    square = tl.sum(squares, 0) + epsilon
    # Not the other way round: a NaN has to stay one.
    is_short = square <= shortest
    scale = tl.where(is_short, 0.0, 1.0 / tl.sqrt_rn(tl.where(is_short, 1.0, square)))
    tl.store(scales_ptr + frame * size + patches, scale, mask=is_patch)


@triton.jit  # type: ignore[untyped-decorator]
def _correlate(  # type: ignore[no-untyped-def]
    features_ptr,
    scales_ptr,
    pairs_ptr,
    starts_ptr,
    targets_ptr,
    out_ptr,
    num_pairs,
    num_frames,
    num_slots,
    num_channels,
    height,
    width,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Products of a block of patches of one frame with some displacements in another, to all maps that hold them."""
    SHIFTS: tl.constexpr = WINDOW * WINDOW
    SHIFT_BLOCKS: tl.constexpr = (SHIFTS + BLOCK_M - 1) // BLOCK_M
    size = height * width
    num_tiles = tl.cdiv(size, BLOCK_P)
    patches = (tl.program_id(0) % num_tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    block_and_job = tl.program_id(0) // num_tiles
    shifts = (block_and_job % SHIFT_BLOCKS) * BLOCK_M + tl.arange(0, BLOCK_M)
    clip = (block_and_job // SHIFT_BLOCKS // num_pairs).to(tl.int64)
    pair = block_and_job // SHIFT_BLOCKS % num_pairs
    frame = clip * num_frames + tl.load(pairs_ptr + 2 * pair)
    other_frame = clip * num_frames + tl.load(pairs_ptr + 2 * pair + 1)

    down, right = shifts // WINDOW - WINDOW // 2, shifts % WINDOW - WINDOW // 2
    y, x = (patches // width)[None, :] + down[:, None], (patches % width)[None, :] + right[:, None]
    is_patch = patches < size
    is_wanted = (shifts < SHIFTS)[:, None] & is_patch[None, :]
    inside = is_wanted & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    others = y * width + x

    left_ptr = features_ptr + frame * num_channels * size
    right_ptr = features_ptr + other_frame * num_channels * size
    sums = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for channel in range(0, num_channels):
        left = tl.load(left_ptr + channel * size + patches, mask=is_patch, other=0.0).to(tl.float32)
        right_at = channel * size + others
        sums += left[None, :] * tl.load(right_ptr + right_at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scales_ptr + frame * size + patches, mask=is_patch, other=0.0)
    sums *= scale[None, :] * tl.load(scales_ptr + other_frame * size + others, mask=inside, other=0.0)
    cosines = tl.where(inside, sums, 0.0).to(out_ptr.dtype.element_ty)

    straight = shifts[:, None] * size + patches[None, :]
    turned = tl.where(inside, (SHIFTS - 1 - shifts)[:, None] * size + others, straight)
    for i in range(tl.load(starts_ptr + pair), tl.load(starts_ptr + pair + 1)):
        slot, is_turned = tl.load(targets_ptr + 2 * i), tl.load(targets_ptr + 2 * i + 1)
        map_ptr = out_ptr + (clip * num_slots + slot) * SHIFTS * size
        tl.store(map_ptr + tl.where(is_turned == 1, turned, straight), cosines, mask=is_wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _gather_gradient(  # type: ignore[no-untyped-def]
    grad_ptr,
    features_ptr,
    scales_ptr,
    look_starts_ptr,
    looks_ptr,
    targets_ptr,
    out_ptr,
    num_frames,
    num_slots,
    num_channels,
    height,
    width,
    WINDOW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Gradient of a block of directions, [B * T, C, H, W] in float32: of every frame that looks at it or is looked at.

    looks_ptr: [n, 4], other frame, its first and one past its last target, and what the targets say when they look
    from here to there.
    """
    SHIFTS: tl.constexpr = WINDOW * WINDOW
    size = height * width
    num_tiles = tl.cdiv(size, BLOCK_P)
    num_blocks = tl.cdiv(num_channels, BLOCK_C)
    patches = (tl.program_id(0) % num_tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    channels = (tl.program_id(0) // num_tiles % num_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    frame_of_all = tl.program_id(0) // num_tiles // num_blocks
    clip = (frame_of_all // num_frames).to(tl.int64)
    frame = frame_of_all % num_frames
    is_patch, is_channel = patches < size, channels < num_channels
    sums = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for look in range(tl.load(look_starts_ptr + frame), tl.load(look_starts_ptr + frame + 1)):
        other_frame = clip * num_frames + tl.load(looks_ptr + 4 * look)
        first, past = tl.load(looks_ptr + 4 * look + 1), tl.load(looks_ptr + 4 * look + 2)
        from_here = tl.load(looks_ptr + 4 * look + 3)
        other_ptr = features_ptr + (other_frame * num_channels + channels)[:, None] * size
        for shift in range(0, SHIFTS):
            y = patches // width + shift // WINDOW - WINDOW // 2
            x = patches % width + shift % WINDOW - WINDOW // 2
            inside = is_patch & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            others = y * width + x
            weights = tl.zeros((BLOCK_P,), tl.float32)
            for i in range(first, past):
                slot, direction = tl.load(targets_ptr + 2 * i), tl.load(targets_ptr + 2 * i + 1)
                turned = (SHIFTS - 1 - shift) * size + others
                at = tl.where(direction == from_here, shift * size + patches, turned)
                map_ptr = grad_ptr + (clip * num_slots + slot) * SHIFTS * size
                weights += tl.load(map_ptr + at, mask=inside, other=0.0).to(tl.float32)
            weights *= tl.load(scales_ptr + other_frame * size + others, mask=inside, other=0.0)
            mask = is_channel[:, None] & inside[None, :]
            sums += weights[None, :] * tl.load(other_ptr + others[None, :], mask=mask, other=0.0).to(tl.float32)
    at = (frame_of_all.to(tl.int64) * num_channels + channels)[:, None] * size + patches[None, :]
    tl.store(out_ptr + at, sums, mask=is_channel[:, None] & is_patch[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _project(  # type: ignore[no-untyped-def]
    gradient_ptr,
    features_ptr,
    scales_ptr,
    out_ptr,
    num_channels,
    size,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """From the gradient of directions to that of features: what is left across the direction, over the length."""
    num_tiles = tl.cdiv(size, BLOCK_P)
    frame = (tl.program_id(0) // num_tiles).to(tl.int64)
    patches = (tl.program_id(0) % num_tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    is_patch = patches < size
    scale = tl.load(scales_ptr + frame * size + patches, mask=is_patch, other=0.0)
    along = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, num_channels, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        at = (frame * num_channels + channels)[:, None] * size + patches[None, :]
        inside = (channels < num_channels)[:, None] & is_patch[None, :]
        direction = tl.load(features_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :]
        along += direction * tl.load(gradient_ptr + at, mask=inside, other=0.0)
    length = tl.sum(along, 0)
    for start in range(0, num_channels, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        at = (frame * num_channels + channels)[:, None] * size + patches[None, :]
        inside = (channels < num_channels)[:, None] & is_patch[None, :]
        direction = tl.load(features_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :]
        across = tl.load(gradient_ptr + at, mask=inside, other=0.0) - length[None, :] * direction
        tl.store(out_ptr + at, (across * scale[None, :]).to(out_ptr.dtype.element_ty), mask=inside)


class _Tables(NamedTuple):
    """A `PairPlan` on a device, int32, and for each frame the frames that it shares pairs with."""

    pairs: Tensor
    target_starts: Tensor
    targets: Tensor
    empty_slots: Tensor
    look_starts: Tensor
    looks: Tensor
    symmetric_targets: Tensor


@lru_cache(maxsize=64)
def _tables(num_frames: int, offsets: tuple[int, ...], replicate: bool, first_frame: int, device: str) -> _Tables:
    if torch.device(device).type != "cuda":
        return _make_tables(num_frames, offsets, replicate, first_frame, device)
    # While torch.compile prepares a CUDA graph, what this thread allocates lies in the memory of that graph, which its
    # replays overwrite. The tables are kept for other calls: another thread allocates them.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_make_tables, num_frames, offsets, replicate, first_frame, device).result()


def _make_tables(num_frames: int, offsets: tuple[int, ...], replicate: bool, first_frame: int, device: str) -> _Tables:
    plan = plan_pairs(num_frames, offsets, replicate, first_frame)
    looks: list[list[tuple[int, int, int, int]]] = [[] for _ in range(num_frames)]
    for i, (a, b) in enumerate(plan.pairs.tolist()):
        first, past = plan.symmetric_starts[i : i + 2].tolist()
        looks[a].append((b, first, past, 0))
        if a != b:
            looks[b].append((a, first, past, 1))
    starts = [0]
    for each in looks:
        starts.append(starts[-1] + len(each))

    def on_device(values: object) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int32, device=device)

    return _Tables(
        pairs=on_device(plan.pairs),
        target_starts=on_device(plan.target_starts),
        targets=on_device(plan.targets),
        empty_slots=torch.as_tensor(plan.empty_slots, device=device),
        look_starts=on_device(starts),
        looks=on_device([look for each in looks for look in each]),
        symmetric_targets=on_device(plan.symmetric_targets),
    )


def correlate(features: Tensor, settings: Settings) -> Tensor:
    """As `reference.correlate_clip`: [B, T, C, H, W] to [B, T, K, M, H, W] in their dtype; float32 inside."""
    offsets, window, replicate, first_frame, epsilon = settings
    features = features.contiguous()
    batch, num_frames, num_channels, height, width = features.shape
    num_slots = (num_frames - first_frame) * len(offsets)
    tables = _tables(num_frames, offsets, replicate, first_frame, str(features.device))
    shape = (batch, num_slots, window * window, height, width)
    out = torch.empty(shape, dtype=features.dtype, device=features.device)
    if len(tables.empty_slots):
        out[:, tables.empty_slots] = 0.0
    num_pairs = len(tables.pairs)
    if num_pairs:
        scales = _scales(features, epsilon)
        block = min(BLOCK_SHIFTS, triton.next_power_of_2(window * window))
        tiles = triton.cdiv(height * width, BLOCK_PATCHES) * triton.cdiv(window * window, block)
        with torch.cuda.device_of(features):
            _correlate[(batch * num_pairs * tiles,)](
                features, scales, tables.pairs, tables.target_starts, tables.targets, out,
                num_pairs, num_frames, num_slots, num_channels, height, width,
                WINDOW=window, BLOCK_M=block, BLOCK_P=BLOCK_PATCHES,
            )  # fmt: skip
    return out.view(batch, num_frames - first_frame, len(offsets), window * window, height, width)


def correlate_backward(grad: Tensor, features: Tensor, settings: Settings) -> Tensor:
    """The gradient [B, T, C, H, W] of `correlate` for that of its maps [B, T, K, M, H, W]; summed in float32."""
    offsets, window, replicate, first_frame, epsilon = settings
    features, grad = features.contiguous(), grad.contiguous()
    batch, num_frames, num_channels, height, width = features.shape
    num_slots = (num_frames - first_frame) * len(offsets)
    tables = _tables(num_frames, offsets, replicate, first_frame, str(features.device))
    scales = _scales(features, epsilon)
    gradient = torch.empty(features.shape, dtype=torch.float32, device=features.device)
    out = gradient if features.dtype == torch.float32 else torch.empty_like(features)
    tiles = batch * num_frames * triton.cdiv(height * width, BLOCK_PATCHES)
    blocks = {"BLOCK_C": BLOCK_CHANNELS, "BLOCK_P": BLOCK_PATCHES}
    with torch.cuda.device_of(features):
        _gather_gradient[(tiles * triton.cdiv(num_channels, BLOCK_CHANNELS),)](
            grad, features, scales, tables.look_starts, tables.looks, tables.symmetric_targets, gradient,
            num_frames, num_slots, num_channels, height, width, WINDOW=window, **blocks,
        )  # fmt: skip
        _project[(tiles,)](gradient, features, scales, out, num_channels, height * width, **blocks)
    return out


def _scales(features: Tensor, epsilon: float) -> Tensor:
    """1 / length of every vector of [B, T, C, H, W], [B * T, H * W]."""
    batch, num_frames, num_channels, height, width = features.shape
    size = height * width
    scales = torch.empty(batch * num_frames, size, dtype=torch.float32, device=features.device)
    programs = batch * num_frames * triton.cdiv(size, BLOCK_PATCHES)
    with torch.cuda.device_of(features):
        _measure[(programs,)](
            features, scales, num_channels, size, epsilon, TOO_SHORT**2,
            BLOCK_C=BLOCK_CHANNELS, BLOCK_P=BLOCK_PATCHES,
        )  # fmt: skip
    return scales
