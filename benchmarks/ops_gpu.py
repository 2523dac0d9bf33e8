"""The Triton kernels on a GPU: parity with float64 first, then device time against compiled and eager torch.

The attention that says what each key received is also timed against attention that does not say it.

Run on a machine with a CUDA device: python benchmarks/ops_gpu.py [--dtype bfloat16] [--repetitions 30]
Writes results/ops_gpu_<dtype>.json. Peers: the step loop under torch.compile, the same in eager mode, the kernel of
mamba_ssm where that can be imported (else the reason stands in the result); for the correlation the dense product,
compiled and in eager mode.

TRITON_INTERPRET=1 python benchmarks/ops_gpu.py --dry-run: every line of it on a CPU, at sizes that say nothing about
speed; nothing is written.
"""

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kinescan.ops import attention_mass, selective_scan_step
from kinescan.profiling.device_clock import DeviceClock, compare_in_turn
from kinescan.profiling.kernel_cases import (
    OFFSETS,
    STATE_SIZE,
    WINDOW,
    Scan,
    Tensors,
    correlate,
    correlate_with_gradient,
    plain_attention,
    relative_error,
    sample_attention,
    sample_scan,
    scan_by_kernel,
    scan_by_loop,
    scan_with_gradients,
)
from measure import versions, write_result

SEED = 0
OUTPUT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
EXPONENTIALS_PER_CLOCK = 16  # of a multiprocessor, compute capability 8.0 and 9.0


@dataclass(frozen=True)
class Sizes:
    """What is timed.

    Attributes:
        tracks: R of the scans; 196 patches of 32 clips.
        lengths: T of the scans.
        channels: D.
        step_tracks: R of the single step.
        clips: B of the correlations.
        frames: T of the correlations.
        maps: (channels, side) of the correlated maps.
        attentions: (query heads, key heads, head size, queries, keys).
    """

    tracks: int = 6272
    lengths: tuple[int, ...] = (8, 32)
    channels: int = 1536
    step_tracks: int = 784
    clips: int = 32
    frames: int = 8
    maps: tuple[tuple[int, int], ...] = ((64, 14), (64, 28))
    attentions: tuple[tuple[int, int, int, int, int], ...] = ((14, 2, 64, 256, 4352), (16, 8, 128, 196, 4292))


TINY = Sizes(
    tracks=2, lengths=(2,), channels=5, step_tracks=2, clips=1, frames=1, maps=((3, 3),), attentions=((2, 1, 16, 2, 5),)
)


def mamba_scan() -> Scan | str:
    """The kernel of mamba_ssm on our layout, or why it cannot be had."""
    try:
        function = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except Exception as error:  # whatever a package that was built for another torch raises
        return f"{type(error).__name__}: {error}"

    def scan(tensors: Tensors) -> tuple[Tensor, Tensor]:
        u, delta, B, C, z = (tensors[name].transpose(1, 2) for name in ("u", "delta", "B", "C", "z"))
        options = {"delta_bias": tensors["delta_bias"], "delta_softplus": True, "return_last_state": True}
        y, state = function(u, delta, tensors["A"], B, C, D=tensors["D"], z=z, **options)
        return y.transpose(1, 2), state

    return scan


def worst(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Errors of the largest entry of each."""
    return [relative_error(a, b) for a, b in zip(found, exact, strict=True)]


def check_scans(scans: Mapping[str, Scan], device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Largest relative error of outputs and gradients against float64; stops where a tolerance is broken."""
    tensors = sample_scan(3, 11, 37, device, dtype)
    grad_y = torch.randn(3, 11, 37, device=device).to(dtype)
    exact = scan_with_gradients(scan_by_loop, {n: x.double() for n, x in tensors.items()}, grad_y.double())
    errors = {}
    for name, scan in scans.items():
        output, *gradients = worst(scan_with_gradients(scan, tensors, grad_y), exact)
        errors |= {f"scan, {name}, output": output, f"scan, {name}, gradients": max(gradients)}
    return within_tolerance(errors, dtype)


def check_correlations(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    features = torch.randn(1, 2, 5, 6, 7, device=device).to(dtype)
    grad = torch.randn(1, 2, len(OFFSETS), WINDOW**2, 6, 7, device=device).to(dtype)
    wanted = correlate_with_gradient(lambda x: correlate(x, "reference"), features.double(), grad)
    errors = {}
    for name in ("triton", "dense"):
        found = correlate_with_gradient(lambda x, name=name: correlate(x, name), features, grad)
        output, gradient = worst(found, wanted)
        errors |= {f"correlation, {name}, output": output, f"correlation, {name}, gradient": gradient}
    return within_tolerance(errors, dtype)


def check_attention(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    tensors = sample_attention(4, 2, 16, 5, 21, device, dtype)
    exact = attention_mass(*(x.double() for x in tensors), backend="reference")
    errors = {}
    for name in ("triton", "blockwise"):
        output, scores = worst(attention_mass(*tensors, backend=name), exact)
        errors |= {f"attention, {name}, output": output, f"attention, {name}, scores": scores}
    errors["attention, plain, output"] = worst((plain_attention(*tensors),), exact[:1])[0]
    return within_tolerance(errors, dtype)


def within_tolerance(errors: dict[str, float], dtype: torch.dtype) -> dict[str, float]:
    for name, error in errors.items():
        tolerance = (OUTPUT_TOLERANCE if name.endswith("output") else GRADIENT_TOLERANCE)[dtype]
        if not error <= tolerance:
            raise SystemExit(f"{name} is wrong by {error:.1e} (tolerance {tolerance}), nothing is timed.")
    return errors


def exp_floor(entries: int, device: torch.device) -> float | None:
    """Milliseconds that so many exponentials take at least, from the device's clock; None where it is not known."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None)
    if kilohertz is None:
        return None
    return entries / (EXPONENTIALS_PER_CLOCK * properties.multi_processor_count * kilohertz)


def time_scans(
    clock: DeviceClock,
    scans: Mapping[str, Scan],
    sizes: Sizes,
    device: torch.device,
    dtype: torch.dtype,
    repetitions: int,
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for steps in sizes.lengths:
        tensors = sample_scan(sizes.tracks, steps, sizes.channels, device, dtype)
        grad_y = torch.randn(tensors["u"].shape, device=device).to(dtype)
        floor = exp_floor(tensors["u"].numel() * STATE_SIZE, device)
        shape = f"{sizes.tracks} x {steps} x {sizes.channels}"
        with torch.no_grad():
            runs = {name: partial(scan, tensors) for name, scan in scans.items()}
            results[f"scan, forward, {shape}"] = {
                **compare_in_turn(clock, runs, repetitions),
                "exp_floor_milliseconds": floor,
            }
        runs = {name: partial(scan_with_gradients, scan, tensors, grad_y) for name, scan in scans.items()}
        results[f"scan, forward and backward, {shape}"] = compare_in_turn(clock, runs, repetitions)
    tensors = sample_scan(sizes.step_tracks, 1, sizes.channels, device, dtype)
    rows = {name: x[:, 0] if x.ndim == 3 else x for name, x in tensors.items()}
    state = torch.randn(sizes.step_tracks, sizes.channels, STATE_SIZE, device=device)
    loops = {name: scans[name] for name in ("compiled_loop", "eager_loop")}
    with torch.no_grad():
        runs = {name: partial(scan, {**tensors, "state": state}) for name, scan in loops.items()}
        runs["ours"] = lambda: selective_scan_step(**rows, state=state, backend="triton")
        runs["copy_of_the_state"] = state.clone
        results[f"scan, one step, {sizes.step_tracks} x {sizes.channels}"] = compare_in_turn(clock, runs, repetitions)
    return results


def time_correlations(
    clock: DeviceClock, compiled: Any, sizes: Sizes, device: torch.device, dtype: torch.dtype, repetitions: int
) -> dict[str, Any]:
    results = {}
    forms = {
        "ours": lambda x: correlate(x, "triton"),
        "compiled_dense": compiled(lambda x: correlate(x, "dense")),
        "dense": lambda x: correlate(x, "dense"),
    }
    for channels, side in sizes.maps:
        features = torch.randn(sizes.clips, sizes.frames, channels, side, side, device=device).to(dtype)
        grad = torch.randn(sizes.clips, sizes.frames, len(OFFSETS), WINDOW**2, side, side, device=device).to(dtype)
        shape = f"{sizes.clips} x {sizes.frames} x {channels} x {side} x {side}"
        with torch.no_grad():
            runs = {name: partial(form, features) for name, form in forms.items()}
            results[f"correlation, forward, {shape}"] = compare_in_turn(clock, runs, repetitions)
        runs = {n: partial(correlate_with_gradient, form, features, grad) for n, form in forms.items()}
        results[f"correlation, forward and backward, {shape}"] = compare_in_turn(clock, runs, repetitions)
    return results


def time_attention(
    clock: DeviceClock, sizes: Sizes, device: torch.device, dtype: torch.dtype, repetitions: int
) -> dict[str, Any]:
    results = {}
    for shape in sizes.attentions:
        tensors = sample_attention(*shape, device, dtype)
        runs: dict[str, Callable[[], Any]] = {
            "ours": partial(attention_mass, *tensors, backend="triton"),
            "blockwise": partial(attention_mass, *tensors, backend="blockwise"),
            "plain_attention_without_scores": partial(plain_attention, *tensors),
        }
        heads, key_heads, head_dim, queries, keys = shape
        name = f"attention with scores, {heads} on {key_heads} heads of {head_dim}, {queries} queries, {keys} keys"
        with torch.no_grad():
            results[name] = compare_in_turn(clock, runs, repetitions)
    return results


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the tokens and maps")
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU, in Triton's interpreter")
    given = parser.parse_args(words)
    if not given.dry_run and given.repetitions < 20:
        parser.error(f"--repetitions must be at least 20, got {given.repetitions}: medians of fewer say little.")
    if not given.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device: the kernels cannot be timed. --dry-run tries this script without one.")
    return given


def main() -> None:
    given = parse()
    torch.manual_seed(SEED)
    device, dtype = torch.device("cpu" if given.dry_run else "cuda"), getattr(torch, given.dtype)
    sizes, repetitions = (TINY, 1) if given.dry_run else (Sizes(), given.repetitions)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, backend="eager" if given.dry_run else "inductor")

    mamba = mamba_scan()
    scans: dict[str, Scan] = {
        "ours": scan_by_kernel,
        "compiled_loop": compiled(scan_by_loop),
        "eager_loop": scan_by_loop,
    }
    scans |= {} if isinstance(mamba, str) else {"mamba_ssm": mamba}
    clock = DeviceClock(device)
    results: dict[str, Any] = {"parity": check_scans(scans, device, dtype) | check_correlations(device, dtype)}
    results["parity"] |= check_attention(device, dtype)
    results |= time_scans(clock, scans, sizes, device, dtype, repetitions)
    results |= time_correlations(clock, compiled, sizes, device, dtype, repetitions)
    results |= time_attention(clock, sizes, device, dtype, repetitions)
    for name, found in results.items():
        print(name, found.get("milliseconds", found), found.get("times_faster_than", ""))
    if given.dry_run:
        print("dry run: nothing was measured, nothing is written")
        return
    settings = {
        "dtype": given.dtype,
        "clock": "device events, in turn",
        "mamba_ssm": mamba if isinstance(mamba, str) else versions(("mamba_ssm",)),
        "triton": versions(("triton",))["triton"],
    }
    print(write_result(f"ops_gpu_{given.dtype}", seed=SEED, n=repetitions, settings=settings, results=results))


if __name__ == "__main__":
    main()
