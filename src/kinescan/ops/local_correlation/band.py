"""Jitted loops over the in-band products of frame pairs: the correlation of two frames and its gradient.

Layouts, all float32 and contiguous, with R = window // 2, M = window * window displacements m = (dy + R) * window +
dx + R, Wv = W rounded up to whole vectors and Wp = R + Wv + R:
    scales     [F, H, Wv]      1 / length of the features of F frames, 0 for zero vectors and beside the rows
    directions [F, H, C, Wp]   unit vectors of F frames; row x sits at R + x, zeros left and right of it
    band       [M, H, Wp]      one value for each patch (y, x at R + x) and displacement; left and right of x: see uses
Zeros beside the rows make products with patches outside the frame vanish without a branch.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np

from kinescan.ops.local_correlation.vectors import (
    LANES,
    add_lanes,
    clear_vector,
    copy_lanes,
    copy_vector,
    make_row_products,
    make_weighted_rows,
    project_vector,
    scale_lanes,
)

CHANNEL_CHUNK = 64
"""Channels of four padded rows that stay in the first-level cache."""
GRADIENT_CHUNK = 96
"""Channels of a frame that stay in the second-level cache beside a band."""

_products_3x3 = make_row_products(3, 3)
_products_2x3 = make_row_products(2, 3)
_products_1x3 = make_row_products(1, 3)
_products_3x1 = make_row_products(3, 1)
_products_2x1 = make_row_products(2, 1)
_products_1x1 = make_row_products(1, 1)
_weighted_2x6 = make_weighted_rows(2, 6)
_weighted_1x6 = make_weighted_rows(1, 6)
_weighted_2x4 = make_weighted_rows(2, 4)
_weighted_1x4 = make_weighted_rows(1, 4)
_weighted_1x1 = make_weighted_rows(1, 1)


def _compile(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # nowhere to keep compiled code: compile again in every process
        return numba.njit(nogil=True)(function)


def padded_width(width: int, radius: int) -> int:
    """Wp of the layouts above."""
    return -(-width // LANES) * LANES + 2 * radius


@no_type_check
@_compile
def normalise_frames(features, radius, epsilon, too_short, directions, scales, first, last):
    """Fills directions and scales of frames first .. last - 1 from features [F, C, H, W]."""
    num_channels, height, width = features.shape[1:]
    stride = directions.shape[3]
    squares = np.empty(height * width, dtype=np.float32)
    for frame in range(first, last):
        squares[:] = 0.0
        for c in range(num_channels):
            plane = features[frame, c].reshape(-1)
            for p in range(plane.size):
                squares[p] += plane[p] * plane[p]
        scales[frame] = 0.0
        for y in range(height):
            for x in range(width):
                length = np.sqrt(squares[y * width + x] + np.float32(epsilon))
                # Not the other way round: a NaN has to stay one.
                scales[frame, y, x] = np.float32(0.0) if length <= too_short else np.float32(1.0) / length
        for y in range(height):
            for c in range(num_channels):
                start = ((frame * num_channels + c) * height + y) * width
                row = directions[frame, y, c]
                for x in range(0, stride - LANES, LANES):
                    clear_vector(row.ctypes.data + 4 * x)
                clear_vector(row.ctypes.data + 4 * (stride - LANES))
                for x in range(0, width, LANES):
                    if start + x + LANES <= features.size:
                        scale_lanes(
                            row.ctypes.data + 4 * (radius + x),
                            features.ctypes.data + 4 * (start + x),
                            scales[frame, y].ctypes.data + 4 * x,
                            width - x,
                        )
                    else:
                        for lane in range(x, width):
                            row[radius + lane] = features[frame, c, y, lane] * scales[frame, y, lane]


@no_type_check
@_compile
def correlate_pairs(directions, pairs, target_starts, targets, window, width, band, out, first, last):
    """Fills the target maps of jobs first .. last - 1, job = clip * num_pairs + pair.

    Args:
        directions: [B * T, H, C, Wp].
        pairs: int64 [P, 2], frames a <= b of a clip, each pair once.
        target_starts: int64 [P + 1]; targets[target_starts[p] : target_starts[p + 1]] are those of pair p.
        targets: int64 [n, 2], (slot of `out`, 1 if it looks from b to a).
        window: side of the square of displacements, in patches; odd.
        width: W.
        band: [M, H, Wp], room to work in; zeros beside the rows.
        out: [B, slots, M, H, W].
        first: index of the first job.
        last: one after the last job.
    """
    num_frames = directions.shape[0] // out.shape[0]
    for job in range(first, last):
        clip, pair = divmod(job, pairs.shape[0])
        a, b = pairs[pair]
        _correlate(directions[clip * num_frames + a], directions[clip * num_frames + b], a == b, window, band)
        for i in range(target_starts[pair], target_starts[pair + 1]):
            _write_maps(band, window, width, targets[i, 1] == 1, a == b, out[clip, targets[i, 0]])


@no_type_check
@_compile
def _correlate(a, b, is_same, window, band):
    """Fills band[(dy, dx), y, R + x] with < a(y, x), b(y + dy, x + dx) >; only dy >= 0 where both are one frame."""
    height, num_channels, stride = a.shape
    radius = window // 2
    map_size = height * stride
    band[:, :, radius : stride - radius] = 0.0
    for first in range(0, num_channels, CHANNEL_CHUNK):
        count = min(CHANNEL_CHUNK, num_channels - first)
        for y_b in range(height):
            y = max(0, y_b - radius)
            y_end = y_b + 1 if is_same else min(height, y_b + radius + 1)
            while y < y_end:
                num_rows = min(3, y_end - y)
                for x in range(0, stride - 2 * radius, LANES):
                    _row_tile(
                        num_rows,
                        window,
                        a.ctypes.data + 4 * ((y * num_channels + first) * stride + radius + x),
                        num_channels * stride,
                        b.ctypes.data + 4 * ((y_b * num_channels + first) * stride + x),
                        stride,
                        count,
                        band.ctypes.data + 4 * ((y_b - y + radius) * window * map_size + y * stride + radius + x),
                        map_size,
                    )
                y += num_rows


@no_type_check
@_compile
def _row_tile(num_rows, window, a, a_row, b, stride, count, out, map_size):
    """The products of up to three rows of a with one row of b, for all horizontal displacements."""
    # One row further down in a is one vertical displacement less.
    out_row = stride - window * map_size
    shift = 0
    while shift + 3 <= window:
        if num_rows == 3:
            _products_3x3(a, a_row, b + 4 * shift, stride, count, out + 4 * shift * map_size, out_row, map_size)
        elif num_rows == 2:
            _products_2x3(a, a_row, b + 4 * shift, stride, count, out + 4 * shift * map_size, out_row, map_size)
        else:
            _products_1x3(a, a_row, b + 4 * shift, stride, count, out + 4 * shift * map_size, out_row, map_size)
        shift += 3
    while shift < window:
        if num_rows == 3:
            _products_3x1(a, a_row, b + 4 * shift, stride, count, out + 4 * shift * map_size, out_row, map_size)
        elif num_rows == 2:
            _products_2x1(a, a_row, b + 4 * shift, stride, count, out + 4 * shift * map_size, out_row, map_size)
        else:
            _products_1x1(a, a_row, b + 4 * shift, stride, count, out + 4 * shift * map_size, out_row, map_size)
        shift += 1


@no_type_check
@_compile
def _write_maps(band, window, width, is_flipped, is_half, out):
    """Copies a band to the maps [M, H, W]; S(b, a) is S(a, b) transposed: displacements mirrored, maps moved."""
    num_maps, height, stride = band.shape
    radius = window // 2
    for m in range(num_maps):
        dy, dx = m // window - radius, m % window - radius
        is_mirrored = is_flipped or (is_half and dy < 0)
        for y in range(height):
            y_source = y + dy if is_mirrored else y
            is_inside = 0 <= y_source < height
            source_map = num_maps - 1 - m if is_mirrored else m
            x_source = radius + dx if is_mirrored else radius
            source = band.ctypes.data + 4 * ((source_map * height + y_source) * stride + x_source)
            # The last vector of a row reaches into the next ones, which are written after it.
            target = (m * height + y) * width
            for x in range(0, width, LANES):
                if target + x + LANES > out.size:
                    for lane in range(x, width):
                        out[m, y, lane] = band[source_map, y_source, x_source + lane] if is_inside else np.float32(0.0)
                elif is_inside:
                    copy_vector(out.ctypes.data + 4 * (target + x), source + 4 * x)
                else:
                    clear_vector(out.ctypes.data + 4 * (target + x))


@no_type_check
@_compile
def gradient_frames(
    grad_maps, directions, scales, pairs, target_starts, targets, window, num_parts, band, totals, out, first, last
):
    """Fills the gradients of the features for jobs first .. last - 1, job = clip * num_parts + part of its frames.

    Args:
        grad_maps: [B, slots, M, H, W].
        directions: [B * T, H, C, Wp].
        scales: [B * T, H, Wv].
        pairs: as in `correlate_pairs`.
        target_starts: as in `correlate_pairs`.
        targets: as there; those of a frame with itself are listed in both directions.
        window: side of the square of displacements, in patches; odd.
        num_parts: a clip's frames are shared out among so many jobs.
        band: [M, H, Wp], room to work in; zeros beside the rows.
        totals: [T, H, C, Wv], room to work in.
        out: [B, T, C, H, W].
        first: index of the first job.
        last: one after the last job.
    """
    num_frames = out.shape[1]
    for job in range(first, last):
        clip, part = divmod(job, num_parts)
        low, high = num_frames * part // num_parts, num_frames * (part + 1) // num_parts
        of_clip = directions[clip * num_frames : (clip + 1) * num_frames]
        totals[low:high] = 0.0
        for pair in range(pairs.shape[0]):
            a, b = pairs[pair]
            wants_a, wants_b = low <= a < high, low <= b < high and a != b
            if wants_a or wants_b:
                _gather_band(grad_maps, clip, targets[target_starts[pair] : target_starts[pair + 1]], window, band)
            if wants_a:
                _add_weighted(band, of_clip[b], window, False, totals[a])
            if wants_b:
                _add_weighted(band, of_clip[a], window, True, totals[b])
        for t in range(low, high):
            _write_gradient(totals[t], of_clip[t], scales[clip * num_frames + t], window // 2, out[clip, t])


@no_type_check
@_compile
def _gather_band(grad_maps, clip, targets, window, band):
    """Fills the band of a -> b with the gradients of both directions, summed; what is outside the frame stays zero."""
    num_slots, num_maps, height, width = grad_maps.shape[1:]
    stride = band.shape[2]
    radius = window // 2
    for i in range(targets.shape[0]):
        slot, is_flipped = targets[i]
        for m in range(num_maps):
            dy, dx = (m // window - radius, m % window - radius) if is_flipped else (0, 0)
            maps = (clip * num_slots + slot) * num_maps + (num_maps - 1 - m if is_flipped else m)
            for y in range(height):
                start = (maps * height + y + dy) * width + dx
                row = band.ctypes.data + 4 * ((m * height + y) * stride + radius)
                end = width - max(dx, 0) if 0 <= y + dy < height else 0
                for x in range(0, width, LANES):
                    if start + x < 0 or start + x + LANES > grad_maps.size:
                        _gather_lanes(grad_maps, start, x, max(x, -dx), min(x + LANES, end), i > 0, band[m, y, radius:])
                    elif i == 0:
                        copy_lanes(row + 4 * x, grad_maps.ctypes.data + 4 * (start + x), -dx - x, end - x)
                    else:
                        add_lanes(row + 4 * x, grad_maps.ctypes.data + 4 * (start + x), -dx - x, end - x)


@no_type_check
@_compile
def _gather_lanes(grad_maps, start, first, begin, end, keeps, row):
    """As copy_lanes or add_lanes, value by value, where a whole vector would reach over the ends of memory."""
    values = grad_maps.reshape(-1)
    for lane in range(first, first + LANES):
        total = row[lane] if keeps else np.float32(0.0)
        row[lane] = total + values[start + lane] if begin <= lane < end else total


@no_type_check
@_compile
def _add_weighted(band, source, window, is_transposed, total):
    """Adds to total [H, C, Wv] the band, or its transpose, times source [H, C, Wp]."""
    height, num_channels, stride = source.shape
    vector_width = total.shape[2]
    radius = window // 2
    map_size = height * stride
    for channel in range(0, num_channels, GRADIENT_CHUNK):
        count = min(GRADIENT_CHUNK, num_channels - channel)
        for y in range(0, height, 2):
            num_rows = min(2, height - y)
            # Source rows that all target rows of the tile meet, then those that only one of them meets.
            common, common_end = max(0, y + num_rows - 1 - radius), min(height, y + radius + 1)
            spans = (
                (y, num_rows, common, common_end),
                (y, 1, max(0, y - radius), common if num_rows == 2 else 0),
                (y + 1, 1, y + 1 + radius, min(height, y + 2 + radius) if num_rows == 2 else 0),
            )
            for row, rows, begin, end in spans:
                if begin >= end:
                    continue
                if is_transposed:
                    m = (row - begin + radius) * window
                    w = (m * height + begin) * stride + 2 * radius
                    w_row, w_m, w_n = window * map_size, stride - window * map_size, map_size - 1
                    f, f_n = (begin * num_channels + channel) * stride + 2 * radius, -1
                else:
                    m = (begin - row + radius) * window
                    w = (m * height + row) * stride + radius
                    w_row, w_m, w_n = stride - window * map_size, window * map_size, map_size
                    f, f_n = (begin * num_channels + channel) * stride, 1
                _channel_tiles(
                    rows,
                    band.ctypes.data + 4 * w,
                    w_row,
                    w_m,
                    w_n,
                    source.ctypes.data + 4 * f,
                    stride,
                    num_channels * stride,
                    f_n,
                    end - begin,
                    window,
                    total.ctypes.data + 4 * (row * num_channels + channel) * vector_width,
                    num_channels * vector_width,
                    vector_width,
                    count,
                )


@no_type_check
@_compile
def _channel_tiles(
    num_rows, w, w_row, w_m, w_n, f, stride, f_m, f_n, count_m, count_n, out, out_row, vector_width, num_channels
):
    """Adds the weighted rows for all channels of a chunk, six and four at a time."""
    for x in range(0, 4 * vector_width, 4 * LANES):
        c = 0
        while c + 6 <= num_channels:
            f_c, out_c = f + 4 * c * stride + x, out + 4 * c * vector_width + x
            if num_rows == 2:
                _weighted_2x6(
                    w + x, w_row, w_m, w_n, f_c, stride, f_m, f_n, count_m, count_n, out_c, out_row, vector_width
                )
            else:
                _weighted_1x6(
                    w + x, w_row, w_m, w_n, f_c, stride, f_m, f_n, count_m, count_n, out_c, out_row, vector_width
                )
            c += 6
        if c + 4 <= num_channels:
            f_c, out_c = f + 4 * c * stride + x, out + 4 * c * vector_width + x
            if num_rows == 2:
                _weighted_2x4(
                    w + x, w_row, w_m, w_n, f_c, stride, f_m, f_n, count_m, count_n, out_c, out_row, vector_width
                )
            else:
                _weighted_1x4(
                    w + x, w_row, w_m, w_n, f_c, stride, f_m, f_n, count_m, count_n, out_c, out_row, vector_width
                )
            c += 4
        while c < num_channels:
            f_c, out_c = f + 4 * c * stride + x, out + 4 * c * vector_width + x
            for row in range(num_rows):
                w_offset, out_offset = w + 4 * row * w_row + x, out_c + 4 * row * out_row
                _weighted_1x1(w_offset, 0, w_m, w_n, f_c, 0, f_m, f_n, count_m, count_n, out_offset, 0, 0)
            c += 1


@no_type_check
@_compile
def _write_gradient(total, directions, scales, radius, out):
    """The gradient of the features [C, H, W]: what lies along a unit vector changes nothing, the rest is scaled."""
    height, num_channels, vector_width = total.shape
    stride = directions.shape[2]
    width = out.shape[2]
    along = np.zeros((height, vector_width), dtype=np.float32)
    for y in range(height):
        for x in range(0, vector_width, LANES):
            _weighted_1x1(
                total.ctypes.data + 4 * (y * num_channels * vector_width + x),
                0,
                0,
                vector_width,
                directions.ctypes.data + 4 * (y * num_channels * stride + radius + x),
                0,
                0,
                stride,
                1,
                num_channels,
                along.ctypes.data + 4 * (y * vector_width + x),
                0,
                0,
            )
    for c in range(num_channels):
        for y in range(height):
            target = (c * height + y) * width
            for x in range(0, width, LANES):
                # As in _write_maps: rows in order, so that what reaches over a row's end is written again.
                if target + x + LANES <= out.size:
                    project_vector(
                        out.ctypes.data + 4 * (target + x),
                        total.ctypes.data + 4 * ((y * num_channels + c) * vector_width + x),
                        along.ctypes.data + 4 * (y * vector_width + x),
                        directions.ctypes.data + 4 * ((y * num_channels + c) * stride + radius + x),
                        scales.ctypes.data + 4 * (y * vector_width + x),
                    )
                else:
                    for lane in range(x, width):
                        rest = total[y, c, lane] - along[y, lane] * directions[y, c, radius + lane]
                        out[c, y, lane] = rest * scales[y, lane]
