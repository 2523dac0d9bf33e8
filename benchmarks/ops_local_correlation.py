"""Local correlation on a CPU, one thread: kinescan's kernels beside the best forms in plain torch, eager and compiled.

Run: OMP_NUM_THREADS=1 python benchmarks/ops_local_correlation.py  (about four minutes)
Writes results/ops_local_correlation_cpu.json. Every candidate is checked for equal maps and gradients before it is
timed, and kinescan's against the reference in float64. Times are process CPU time, candidates in turn.

In-band products: a frame pair counts once, a frame with itself half, and only displacements inside the frame count.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kinescan.ops import local_correlation
from kinescan.ops.local_correlation import local_correlation_step
from kinescan.profiling.activations import kept_bytes
from measure import Timing, peak_extra_bytes, time_in_turn, write_result

OFFSETS, WINDOW, SEED = (-2, -1, 0, 1, 2), 9, 0
RADIUS = WINDOW // 2
ROOF_SIZE = 1024
OURS, ROOF = "kinescan", "sgemm"
Form = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement, how often it is repeated, and whether the compiled peer takes part."""

    batch: int
    frames: int
    channels: int
    side: int
    repetitions: int
    with_compiled: bool

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.frames}x{self.channels}x{self.side}x{self.side}"

    @property
    def in_band_flops(self) -> int:
        """Of the forward pass; the backward pass has twice as many."""
        meets = sum(0 <= y + d < self.side for y in range(self.side) for d in range(-RADIUS, RADIUS + 1)) ** 2
        pairs = {
            (min(t, t + o), max(t, t + o)) for t in range(self.frames) for o in OFFSETS if 0 <= t + o < self.frames
        }
        products = sum((meets + self.side**2) // 2 if a == b else meets for a, b in pairs)
        return 2 * self.batch * self.channels * products


CASES = [
    Case(1, 8, 768, 14, 15, True),
    Case(8, 8, 64, 14, 15, True),
    Case(1, 8, 768, 28, 7, False),
    Case(1, 8, 64, 28, 9, False),
]


def dense_symmetric(select: Callable[..., Tensor], features: Tensor) -> Tensor:
    """Each frame pair once as a whole [N, C] x [C, N] product, batched over clips and pairs; then the band is taken."""
    batch, frames, _, height, width = features.shape
    directions = functional.normalize(features, dim=2).flatten(3)
    maps: dict[int, Tensor] = {}
    for tau in sorted({abs(offset) for offset in OFFSETS}):
        products = directions[:, : frames - tau].transpose(2, 3) @ directions[:, tau:]
        products = products.view(batch, frames - tau, height, width, height, width)
        nothing = features.new_zeros(batch, tau, WINDOW * WINDOW, height, width)
        maps[tau] = torch.cat([select(products, transposed=False), nothing], 1)
        if tau:
            maps[-tau] = torch.cat([nothing, select(products, transposed=True)], 1)
    return torch.stack([maps[offset] for offset in OFFSETS], 2)


def band_by_index(products: Tensor, transposed: bool, with_index_select: bool = False) -> Tensor:
    height, width = products.shape[2:4]
    num_patches = height * width
    index, inside = _band_index(height, width)
    patches = torch.arange(num_patches)
    flat = (index * num_patches + patches if transposed else patches * num_patches + index).flatten()
    rows = products.flatten(2)
    taken = rows.index_select(2, flat) if with_index_select else rows[:, :, flat]
    return (taken.view(*products.shape[:2], *index.shape) * inside).unflatten(3, (height, width))


def band_by_strides(products: Tensor, transposed: bool) -> Tensor:
    batch, pairs, height, width = products.shape[:4]
    edges = (0, 0, 0, 0) if transposed else ()
    padded = functional.pad(products, (*edges, RADIUS, RADIUS, RADIUS, RADIUS))
    by_clip, by_pair, *strides = padded.stride()
    if transposed:
        strides = strides[2:] + strides[:2]
    y, x, y_other, x_other = strides
    strides = (by_clip, by_pair, y_other, x_other, y + y_other, x + x_other)
    return padded.as_strided((batch, pairs, WINDOW, WINDOW, height, width), strides).flatten(2, 3)


def tiled_symmetric(features: Tensor, rows: int) -> Tensor:
    """Blocks of rows against the rows that they can meet; the other direction is the mirrored and moved band."""
    batch, frames, _, height, width = features.shape
    directions = functional.normalize(features, dim=2)
    padded = functional.pad(directions, (RADIUS, RADIUS, RADIUS, RADIUS))
    maps: dict[int, Tensor] = {}
    for tau in sorted({abs(offset) for offset in OFFSETS}):
        blocks = []
        for top in range(0, height, rows):
            size = min(rows, height - top)
            block = directions[:, : frames - tau, :, top : top + size].flatten(3).transpose(2, 3)
            around = padded[:, tau:, :, top : top + size + 2 * RADIUS].flatten(3)
            products = (block @ around).view(batch, frames - tau, size, width, size + 2 * RADIUS, width + 2 * RADIUS)
            by_clip, by_pair, y, x, y_other, x_other = products.stride()
            strides = (by_clip, by_pair, y_other, x_other, y + y_other, x + x_other)
            blocks.append(products.as_strided((batch, frames - tau, WINDOW, WINDOW, size, width), strides))
        band = torch.cat(blocks, 4)
        maps[tau] = functional.pad(band.flatten(2, 3), (0, 0, 0, 0, 0, 0, 0, tau))
        if tau:
            mirrored = functional.pad(band.flip(2, 3), (RADIUS, RADIUS, RADIUS, RADIUS))
            by_clip, by_pair, dy, dx, y, x = mirrored.stride()
            moved = mirrored.as_strided(band.shape, (by_clip, by_pair, dy + y, dx + x, y, x)).flatten(2, 3)
            maps[-tau] = functional.pad(moved, (0, 0, 0, 0, 0, 0, tau, 0))
    return torch.stack([maps[offset] for offset in OFFSETS], 2)


def _band_index(height: int, width: int) -> tuple[Tensor, Tensor]:
    """For each displacement and patch the number of the patch that is met, and 1.0 where it lies in the frame."""
    steps = torch.arange(-RADIUS, RADIUS + 1)
    y = torch.arange(height).repeat_interleave(width) + steps.repeat_interleave(WINDOW)[:, None]
    x = torch.arange(width).repeat(height) + steps.repeat(WINDOW)[:, None]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return torch.where(inside, y * width + x, 0), inside.float()


def forms(case: Case) -> dict[str, Form]:
    """All candidates by name."""
    candidates: dict[str, Form] = {
        OURS: lambda features: local_correlation(features, OFFSETS, WINDOW, backend="numba"),
        "dense symmetric, by strides": lambda features: dense_symmetric(band_by_strides, features),
        "dense symmetric, by index": lambda features: dense_symmetric(band_by_index, features),
        "dense symmetric, by index_select": lambda features: dense_symmetric(
            partial(band_by_index, with_index_select=True), features
        ),
        "tiled symmetric, 2 rows": lambda features: tiled_symmetric(features, 2),
        "tiled symmetric, 4 rows": lambda features: tiled_symmetric(features, 4),
        "tiled symmetric, 7 rows": lambda features: tiled_symmetric(features, 7),
    }
    if case.with_compiled:
        candidates["compiled dense symmetric"] = torch.compile(
            lambda features: dense_symmetric(band_by_index, features), fullgraph=True, dynamic=False
        )
    return candidates


def check_parity(candidates: dict[str, Form], features: Tensor, grad: Tensor) -> dict[str, list[float]]:
    """Largest difference of maps, and of gradients as a fraction of the largest.

    Peers from kinescan on the whole input; kinescan from the reference in float64 on two frames.
    """
    start = (features[:1, :2], grad[:1, :2])
    exact = differentiate(
        lambda x: local_correlation(x, OFFSETS, WINDOW, backend="reference"), *(part.double() for part in start)
    )
    ours = differentiate(candidates[OURS], features, grad)
    found = {}
    for name, form in candidates.items():
        expected = exact if name == OURS else ours
        given = differentiate(form, *start) if name == OURS else differentiate(form, features, grad)
        maps_error = (given[0] - expected[0]).abs().max().item()
        gradient_error = ((given[1] - expected[1]).abs().max() / expected[1].abs().max()).item()
        if maps_error > 1e-5 or gradient_error > 1e-4:
            raise SystemExit(f"{name}: maps differ by {maps_error:.1e}, gradients by {gradient_error:.1e}: not timed")
        found[name] = [maps_error, gradient_error]
    return found


def differentiate(form: Form, features: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = features.detach().requires_grad_()
    maps = form(leaf)
    (gradient,) = torch.autograd.grad(maps, leaf, grad)
    return maps.detach(), gradient


def measure_case(case: Case) -> dict[str, Any]:
    torch.manual_seed(SEED)
    features = torch.randn(case.batch, case.frames, case.channels, case.side, case.side)
    grad = torch.randn(case.batch, case.frames, len(OFFSETS), WINDOW * WINDOW, case.side, case.side)
    candidates = forms(case)
    parity = check_parity(candidates, features, grad)
    left, right = torch.randn(2, ROOF_SIZE, ROOF_SIZE)
    forward: dict[str, Callable[[], Any]] = {ROOF: lambda: left @ right}
    both: dict[str, Callable[[], Any]] = {ROOF: lambda: left @ right}
    for name, form in candidates.items():
        forward[name] = lambda form=form: form(features)
        both[name] = lambda form=form: differentiate(form, features, grad)
    result = {
        "in_band_gflop_forward": case.in_band_flops / 1e9,
        "parity": parity,
        "forward": summarise(case, time_in_turn(forward, case.repetitions), 1),
        "forward and backward": summarise(case, time_in_turn(both, case.repetitions), 3),
    }
    best = next(iter(result["forward and backward"]["candidates"]))
    leaf = features.clone().requires_grad_()
    result["memory"] = {
        name: {
            "peak_extra_bytes": peak_extra_bytes(both[name]),
            "saved_bytes": kept_bytes(lambda name=name: candidates[name](leaf)),
        }
        for name in (best, OURS)
    }
    return result


def summarise(case: Case, timings: dict[str, Timing], passes: int) -> dict[str, Any]:
    """Ratios to the best peer, fractions of the roof, and the timings, best peer first."""
    roof = 2 * ROOF_SIZE**3 / timings[ROOF].cpu_seconds
    peers = sorted((name for name in timings if name not in (OURS, ROOF)), key=lambda name: timings[name].cpu_seconds)
    ours = timings[OURS].cpu_seconds
    flops = passes * case.in_band_flops
    return {
        "best_peer": peers[0],
        "speedup_over_best_peer": timings[peers[0]].cpu_seconds / ours,
        "sgemm_roof_gflops": roof / 1e9,
        "fraction_of_sgemm_roof": flops / ours / roof,
        "candidates": {name: timings[name] for name in (*peers, OURS)},
    }


def measure_step() -> dict[str, Any]:
    """One frame against its four predecessors, beside the whole op on the same five frames."""
    torch.manual_seed(SEED)
    clip = torch.randn(1, 5, 64, 14, 14)
    offsets = (-4, -3, -2, -1)
    step, whole = local_correlation_step(clip[:, -1], clip[:, :-1]), local_correlation(clip, offsets)
    torch.testing.assert_close(step, whole[:, -1], atol=1e-5, rtol=1e-5)
    timings = time_in_turn(
        {
            "whole op": lambda: local_correlation(clip, offsets),
            "step": lambda: local_correlation_step(clip[:, -1], clip[:, :-1]),
        },
        300,
    )
    return {"frames": list(clip.shape), "candidates": timings}


def chosen_cases() -> list[Case]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, help="sizes to measure")
    parser.add_argument("--repetitions", type=int, help="by default as many as each size has")
    given = parser.parse_args()
    chosen = [case for case in CASES if case.name in given.cases]
    return [replace(case, repetitions=given.repetitions) for case in chosen] if given.repetitions else chosen


def main() -> None:
    cases = chosen_cases()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        results = {case.name: measure_case(case) for case in cases}
    results["step"] = measure_step()
    for name, result in results.items():
        for passes in ("forward", "forward and backward"):
            if passes in result:
                part = result[passes]
                print(
                    f"{name:18} {passes:21} {part['speedup_over_best_peer']:5.2f}x over {part['best_peer']}, "
                    f"{part['fraction_of_sgemm_roof']:.2f} of {part['sgemm_roof_gflops']:.0f} GFLOP/s"
                )
    repetitions = min(case.repetitions for case in cases)
    settings = {"offsets": OFFSETS, "window": WINDOW, "sizes": "clips x frames x channels x height x width"}
    print(write_result("ops_local_correlation_cpu", seed=SEED, n=repetitions, settings=settings, results=results))


if __name__ == "__main__":
    main()
