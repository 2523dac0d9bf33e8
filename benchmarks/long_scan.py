"""The selective scan over the long sequences of VideoMamba: 8 x 196 + 1 and 64 x 196 + 1 tokens, one to a few clips.

Run: OMP_NUM_THREADS=1 python benchmarks/long_scan.py            (about five minutes on one core)
The first size is a short one with as many steps of channels as the second: short and long T side by side.
The backward passes of transformers' slow path and of an eager loop take time with the square of T (the first a minute
for 1569 steps of 384 channels), so they are left out of the longer sizes.
Writes benchmarks/results/long_scan_cpu.json. Every candidate first has to meet the float64 reference in the same run.

Candidates:
    kinescan            the package's own operator, which runs over time step by step and over channels in parallel
    kinescan, time cut  the same operator on chunks of the sequence side by side: once from empty states, the states
                        handed on, once more from the right ones; parallel over time, twice the work
    blockwise           the package's form without kernels: chunks side by side in plain torch, on any device
    eager loop          the reference, in float32
    transformers        the slow path of its Mamba (`mamba_selective_scan`, what runs without CUDA kernels)
    mambapy             a parallel scan in plain torch
"""

import argparse
import gc
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import measure
from kinescan.ops import selective_scan
from kinescan.ops.selective_scan import reference

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SEED = 0
STATE = 16
SIZES = [(49, 8, 384), (1, 392, 384), (1, 1569, 384), (1, 12545, 384), (1, 12545, 1152)]
LONGEST = 10_000
"""Steps from which on half as many rounds are measured: a round of the slower candidates takes half a minute."""
QUADRATIC = {"transformers": 400, "eager loop": 2000}
"""Steps up to which the backward pass of a candidate is measured that takes time with their square."""
SPARE_BYTES = 400e6
"""Candidates that keep every state are left out where one copy of all states is larger."""
Scan = Callable[..., Tensor]


def draw(tracks: int, steps: int, channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """u, delta, A, B, C, D, z, bias as a VideoMamba has them: step sizes around 0.1, decay rates 1 to 16."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    rates = -torch.arange(1.0, STATE + 1).expand(channels, -1).to(dtype).contiguous()
    sequence = (tracks, steps)
    return [
        normal(*sequence, channels),
        0.5 * normal(*sequence, channels) - 2,
        rates,
        normal(*sequence, STATE),
        normal(*sequence, STATE),
        normal(channels),
        normal(*sequence, channels),
        0.1 * normal(channels),
    ]


def ours(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    return selective_scan(u, delta, A, B, C, D, z, bias)[0]


def eager(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    return reference.scan(u, delta, A, B, C, D, z, bias, True, None)[0]


def _chunks(x: Tensor, length: int) -> Tensor:
    """[R, T, X] -> [R, chunks, length, X], padded at the end."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % length)).unflatten(1, (-1, length))


def _hand_on(ends: Tensor, decays: Tensor) -> Tensor:
    """States before each chunk, from those that each chunk leaves by itself: [R, chunks, D, S]."""
    state, states = torch.zeros_like(ends[:, 0]), []
    for k in range(ends.shape[1]):
        states.append(state)
        state = decays[:, k] * state + ends[:, k]
    return torch.stack(states, dim=1)


def ours_in_chunks(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    steps = u.shape[1]
    length = math.ceil(steps / 8)
    delta = F.softplus(delta + bias)
    cut = [_chunks(x, length) for x in (u, delta, B, C, z)]
    folded = [x.flatten(0, 1) for x in cut]
    ends = selective_scan(folded[0], folded[1], A, folded[2], folded[3], delta_softplus=False)[1]
    decays = torch.exp(cut[1].sum(dim=2)[..., None] * A)
    starts = _hand_on(ends.unflatten(0, cut[0].shape[:2]), decays)
    y, _ = selective_scan(
        folded[0], folded[1], A, folded[2], folded[3], D, folded[4], None, False, starts.flatten(0, 1)
    )
    return y.unflatten(0, cut[0].shape[:2]).flatten(1, 2)[:, :steps]


def blockwise(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    return selective_scan(u, delta, A, B, C, D, z, bias, backend="blockwise")[0]


def _foreign(use_mambapy: bool) -> Scan | None:
    """transformers' Mamba scan without kernels, or with mambapy's parallel scan; None where it is not installed."""
    try:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan
        from transformers.utils.import_utils import is_mambapy_available
    except ImportError:
        return None
    if use_mambapy and not is_mambapy_available():
        return None

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        channels_first = [x.transpose(1, 2) for x in (u, delta, B, C, z)]
        u, delta, B, C, z = channels_first
        scan: Scan = getattr(mamba_selective_scan, "__wrapped__", mamba_selective_scan)
        return scan(u, delta, A, B, C, D, z, bias, True, use_mambapy=use_mambapy).transpose(1, 2)

    return run


def candidates() -> dict[str, Scan]:
    found = {
        "kinescan": ours,
        "kinescan, time cut": ours_in_chunks,
        "blockwise": blockwise,
        "eager loop": eager,
        "transformers": _foreign(use_mambapy=False),
        "mambapy": _foreign(use_mambapy=True),
    }
    return {name: scan for name, scan in found.items() if scan is not None}


def check(scans: dict[str, Scan]) -> dict[str, dict[str, float]]:
    """Largest errors against the float64 reference, outputs absolute and gradients relative; raises above tolerance."""
    errors: dict[str, dict[str, float]] = {}
    for tracks, steps, channels in ((1, 1569, 40), (2, 100, 33)):
        exact = [x.requires_grad_() for x in draw(tracks, steps, channels, torch.float64)]
        y = eager(*exact)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((y * weight).sum(), exact)
        for name, scan in scans.items():
            inputs = [x.requires_grad_() for x in draw(tracks, steps, channels)]
            found = scan(*inputs)
            torch.testing.assert_close(found.double(), y, atol=2e-5, rtol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
            worst = 0.0
            for gradient, expected in zip(torch.autograd.grad((found * weight).sum(), inputs), gradients, strict=True):
                worst = max(worst, ((gradient - expected).abs().max() / expected.abs().max()).item())
            assert worst < 2e-4, (name, worst)
            errors[f"{name}, T={steps}"] = {"output": (found - y).abs().max().item(), "gradient": worst}
    return errors


def time_scans(scans: dict[str, Scan], repetitions: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for tracks, steps, channels in SIZES:
        rounds = repetitions if steps < LONGEST else max(repetitions // 2, 2)
        all_states = 4.0 * tracks * steps * channels * STATE
        fitting = {
            name: scan for name, scan in scans.items() if all_states <= SPARE_BYTES or name.startswith("kinescan")
        }
        inputs = draw(tracks, steps, channels)
        tracked = [x.clone().requires_grad_() for x in inputs]

        def forward(scan: Scan, inputs: list[Tensor] = inputs) -> None:
            with torch.no_grad():
                scan(*inputs)

        def both(scan: Scan, tracked: list[Tensor] = tracked) -> None:
            torch.autograd.grad(scan(*tracked).sum(), tracked)

        entry: dict[str, Any] = {}
        for kind, run in (("forward", forward), ("forward_backward", both)):
            calls = {
                name: (lambda scan=scan, run=run: run(scan))
                for name, scan in fitting.items()
                if kind == "forward" or steps <= QUADRATIC.get(name, steps)
            }
            timings = measure.time_in_turn(calls, rounds)
            exps = tracks * steps * channels * STATE
            entry[kind] = timings
            entry[f"{kind}_cpu_over_kinescan"] = {
                name: round(timing.cpu_seconds / timings["kinescan"].cpu_seconds, 2) for name, timing in timings.items()
            }
            entry[f"{kind}_nanoseconds_per_state_step"] = {
                name: round(timing.cpu_seconds / exps * 1e9, 3) for name, timing in timings.items()
            }
            gc.collect()
        results[f"R={tracks} T={steps} D={channels}"] = entry
        print(f"R={tracks} T={steps} D={channels}", {k: v for k, v in entry.items() if "over" in k}, flush=True)
    return results


def share_threads(repetitions: int) -> dict[str, Any]:
    """One long sequence of few channels on one thread and on two: whether sharing out its channels costs anything."""
    inputs, num_threads = draw(1, 12545, 384), torch.get_num_threads()

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        with torch.no_grad():
            ours(*inputs)

    timings = measure.time_in_turn({"1 thread": lambda: on(1), "2 threads": lambda: on(2)}, repetitions)
    torch.set_num_threads(num_threads)
    more = timings["2 threads"].cpu_seconds / timings["1 thread"].cpu_seconds
    return {**timings, "cpu_of_2_threads_over_1": round(more, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    scans = candidates()
    errors = check(scans)
    results = {
        "errors_against_float64": errors,
        "scans": time_scans(scans, arguments.repetitions),
        "shared_channels": share_threads(arguments.repetitions),
        "peers": measure.versions(tuple(name for name in ("transformers", "mambapy") if name in scans)),
    }
    settings = {"state_size": STATE, "sizes": SIZES, "left_out_above_bytes": SPARE_BYTES}
    path = measure.write_result("long_scan_cpu", seed=SEED, n=arguments.repetitions, settings=settings, results=results)
    print(path)


if __name__ == "__main__":
    main()
