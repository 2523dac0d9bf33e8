"""Selective scan on one CPU thread: against a compiled loop, an eager loop and a parallel scan in torch, after parity.

Run: python benchmarks/ops_selective_scan.py [--tracks 1568] [--repetitions 5]
Writes results/ops_selective_scan_cpu.json.
"""

import argparse
import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.evaluation.activations import kept_bytes
from kinescan.ops import selective_scan, selective_scan_step
from kinescan.ops.selective_scan import kernels, reference
from measure import Timing, peak_extra_bytes, time_in_turn, write_result

SEED = 0
NUM_STEPS, NUM_CHANNELS, NUM_PLACES = 8, 1536, 16
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def draw(num_tracks: int, num_steps: int = NUM_STEPS, num_channels: int = NUM_CHANNELS) -> dict[str, Tensor]:
    """Inputs as a Mamba block makes them at the start: A = -(1 .. S), step sizes around 0.03."""
    tracks = (num_tracks, num_steps)
    return {
        "u": torch.randn(*tracks, num_channels),
        "delta": torch.randn(*tracks, num_channels),
        "A": -torch.arange(1.0, NUM_PLACES + 1).repeat(num_channels, 1),
        "B": torch.randn(*tracks, NUM_PLACES),
        "C": torch.randn(*tracks, NUM_PLACES),
        "D": torch.ones(num_channels),
        "z": torch.randn(*tracks, num_channels),
        "delta_bias": torch.full((num_channels,), -3.5),
    }


def ours(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return selective_scan(**tensors, backend="numba")


def eager_loop(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return reference.scan(*(tensors[name] for name in ORDER), True, tensors.get("state"))


_compiled = torch.compile(reference.scan, fullgraph=True)


def compiled_loop(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return _compiled(*(tensors[name] for name in ORDER), True, tensors.get("state"))


def parallel_scan(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """All steps at once, in log2(T) rounds in which each takes in the one 1, 2, 4 ... before it (Hillis and Steele)."""
    u, B, C = tensors["u"], tensors["B"], tensors["C"]
    delta = F.softplus(tensors["delta"] + tensors["delta_bias"])
    decay = torch.exp(delta[..., None] * tensors["A"])  # [R, T, D, S]
    h = (delta * u)[..., None] * B[:, :, None]
    distance = 1
    while distance < u.shape[1]:
        h = torch.cat([h[:, :distance], torch.addcmul(h[:, distance:], decay[:, distance:], h[:, :-distance])], dim=1)
        decay = torch.cat([decay[:, :distance], decay[:, distance:] * decay[:, :-distance]], dim=1)
        distance *= 2
    y = (h @ C[..., None])[..., 0] + tensors["D"] * u
    return y * F.silu(tensors["z"]), h[:, -1]


PEERS: dict[str, Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]] = {
    "compiled_loop": compiled_loop,
    "eager_loop": eager_loop,
    "parallel_scan": parallel_scan,
}


def forward_and_backward(
    scan: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]], tensors: dict[str, Tensor], grad_y: Tensor
) -> tuple[Tensor, ...]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y, _ = scan(leaves)
    return (y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad_y))


def check_parity() -> dict[str, float]:
    """Largest error of outputs and gradients against float64; stops where a tolerance is broken."""
    tensors = draw(4, 11, 200)
    grad_y = torch.randn(4, 11, 200)
    exact = forward_and_backward(eager_loop, {n: x.double() for n, x in tensors.items()}, grad_y.double())
    errors = {}
    for name, scan in {"ours": ours, **PEERS}.items():
        found = forward_and_backward(scan, tensors, grad_y)
        errors[f"{name}_output"] = (found[0] - exact[0]).abs().max().item()
        pairs = zip(found[1:], exact[1:], strict=True)
        errors[f"{name}_gradient"] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        if errors[f"{name}_output"] > OUTPUT_TOLERANCE or errors[f"{name}_gradient"] > GRADIENT_TOLERANCE:
            raise SystemExit(f"{name} is wrong, nothing is timed: {errors}")
    return errors


@numba.njit  # type: ignore[misc]
def _exponentials(x, out, size, repetitions):  # type: ignore[no-untyped-def]
    for _ in range(repetitions):
        for i in range(0, size, kernels.LANES):
            kernels.store(out, i, kernels.exp2(kernels.load(x, i)))


def exponentials(count: int) -> Callable[[], None]:
    """As many float32 exponentials as asked for, in cache, and nothing else: the roof of the scan."""
    size = 4096
    x, out = torch.rand(size) * -10, torch.empty(size)
    return lambda: _exponentials(x.data_ptr(), out.data_ptr(), size, count // size)


def state_traffic(state: Tensor) -> Callable[[], Any]:
    """Reads and writes a state once: the floor of a streaming step."""
    target = torch.empty_like(state)
    return lambda: np.copyto(target.numpy(), state.numpy())


def keep_freed_memory() -> None:
    """From now on the allocator hands freed memory out again instead of giving it back to the system (glibc)."""
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold, largest = -3, -1, 2**31 - 1
    if not (libc.mallopt(mmap_threshold, largest) and libc.mallopt(trim_threshold, largest)):
        raise SystemExit("this C library has no mallopt")


def ratio(above: Timing, below: Timing) -> float:
    return round(above.cpu_seconds / below.cpu_seconds, 2)


def measure_forward(num_tracks: int, repetitions: int, peers: tuple[str, ...]) -> dict[str, Any]:
    tensors = draw(num_tracks)
    count = num_tracks * NUM_STEPS * NUM_CHANNELS * NUM_PLACES
    scans = {"ours": ours, **{name: PEERS[name] for name in peers}}
    runs = {name: (lambda scan=scan: scan(tensors)) for name, scan in scans.items()}
    with torch.no_grad():
        times = time_in_turn({**runs, "exp_roof": exponentials(count)}, repetitions)
    return {
        "tracks": num_tracks,
        "times": times,
        "times_faster_than": {name: ratio(times[name], times["ours"]) for name in peers},
        "share_of_exp_roof": ratio(times["exp_roof"], times["ours"]),
        "exp_per_second": round(count / times["exp_roof"].cpu_seconds),
    }


def measure_training(num_tracks: int, repetitions: int, peers: tuple[str, ...]) -> dict[str, Any]:
    tensors = draw(num_tracks)
    grad_y = torch.randn(num_tracks, NUM_STEPS, NUM_CHANNELS)
    scans = {"ours": ours, **{name: PEERS[name] for name in peers}}
    runs = {name: (lambda scan=scan: forward_and_backward(scan, tensors, grad_y)) for name, scan in scans.items()}
    times = time_in_turn(runs, repetitions)
    peaks = {name: peak_extra_bytes(run) for name, run in runs.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    saved = {name: kept_bytes(lambda scan=scan: scan(leaves)) for name, scan in scans.items()}
    return {
        "tracks": num_tracks,
        "times": times,
        "times_faster_than": {name: ratio(times[name], times["ours"]) for name in peers},
        "peak_extra_bytes": peaks,
        "peak_share_of": {name: round(peaks["ours"] / peaks[name], 3) for name in peers},
        "saved_for_backward_bytes": saved,
        "input_bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }


def measure_step(num_tracks: int, repetitions: int) -> dict[str, Any]:
    """A step of a stream: each candidate hands its state on from call to call."""
    tensors = draw(num_tracks, 1)
    rows = {name: x[:, 0] if x.ndim == 3 else x for name, x in tensors.items()}
    state = torch.randn(num_tracks, NUM_CHANNELS, NUM_PLACES)
    steps: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
        "ours": lambda state: selective_scan_step(**rows, state=state, backend="numba"),
        "compiled_step": lambda state: compiled_loop({**tensors, "state": state}),
        "eager_step": lambda state: eager_loop({**tensors, "state": state}),
    }
    states = dict.fromkeys(steps, state)

    def go_on(name: str) -> Tensor:
        y, states[name] = steps[name](states[name])
        return y

    with torch.no_grad():
        times = time_in_turn(
            {
                **{name: (lambda name=name: go_on(name)) for name in steps},
                "state_read_and_write": state_traffic(state),
                "exp_roof": exponentials(state.numel()),
            },
            repetitions,
            warmups=3,
        )
    return {
        "tracks": num_tracks,
        "times": times,
        "times_faster_than": {name: ratio(times[name], times["ours"]) for name in ("compiled_step", "eager_step")},
        "share_of_read_and_write_floor": ratio(times["state_read_and_write"], times["ours"]),
        "share_of_exp_roof": ratio(times["exp_roof"], times["ours"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracks", type=int, default=1568)
    parser.add_argument("--training-tracks", type=int, default=784, help="half: the eager loop keeps 4 GB for these")
    parser.add_argument("--few-tracks", type=int, default=98, help="for the parallel scan, which needs 0.1 GB for 10")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    loops, everyone, n = ("compiled_loop", "eager_loop"), tuple(PEERS), arguments.repetitions
    results: dict[str, Any] = {
        "parity": check_parity(),
        "forward": measure_forward(arguments.tracks, n, loops),
        "forward_and_backward": measure_training(arguments.training_tracks, n, loops),
        "forward_of_few_tracks": measure_forward(arguments.few_tracks, n, everyone),
        "forward_and_backward_of_few_tracks": measure_training(arguments.few_tracks, n, everyone),
        "step": measure_step(196, 10 * n),
    }
    # Results are large: mapping fresh memory for them takes the system as long as the scan takes the processor.
    keep_freed_memory()
    results["forward_in_kept_memory"] = measure_forward(arguments.tracks, n, loops)
    results["forward_and_backward_in_kept_memory"] = measure_training(arguments.training_tracks, n, loops)
    results["step_in_kept_memory"] = measure_step(196, 10 * n)
    settings = {
        "steps": NUM_STEPS,
        "channels": NUM_CHANNELS,
        "places": NUM_PLACES,
        "dtype": "float32",
        "ratios": "of median process CPU time, one thread",
        "repetitions_of_the_step": 10 * n,
    }
    path = write_result("ops_selective_scan_cpu", seed=SEED, n=n, settings=settings, results=results)
    for part, found in results.items():
        times = {name: round(time.cpu_seconds, 4) for name, time in found.get("times", {}).items()}
        print(part, times, {key: value for key, value in found.items() if key != "times"})
    print(path)


if __name__ == "__main__":
    main()
