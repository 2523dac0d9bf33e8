"""Selective scan on one CPU thread: against a compiled loop, an eager loop and a parallel scan in torch, after parity.

Run: python benchmarks/ops_selective_scan.py [--tracks 1568] [--repetitions 3] [--processes 5]
Writes results/ops_selective_scan_cpu.json.

Each process times all candidates in turn, first in fresh memory, which is told and not claimed, then in memory that its
allocator keeps (`measure.keep_freed_memory`). A time is the median of the processes' medians, a ratio that of their
ratios, each with the lowest and the highest. Rates are those of a trained block, a little beside 1, 2, 3 ... times the
first, and, beside, those before training, exactly so, for which our kernels need fewer exponentials.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.ops import selective_scan, selective_scan_step
from kinescan.ops.selective_scan import kernels, reference
from kinescan.profiling.activations import kept_bytes
from measure import (
    Timing,
    in_processes,
    keep_freed_memory,
    over_processes,
    peak_extra_bytes,
    ratios,
    time_in_turn,
    write_found,
    write_result,
)

SEED = 0
NUM_STEPS, NUM_CHANNELS, STATE_SIZE = 8, 1536, 16
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
SIZES = ("tracks", "training-tracks", "few-tracks", "repetitions")
FLOORS = {"exp_roof": "fraction_of_exp_roof", "state_read_and_write": "fraction_of_read_and_write_floor"}
ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def draw(
    num_tracks: int, num_steps: int = NUM_STEPS, num_channels: int = NUM_CHANNELS, *, trained: bool = True
) -> dict[str, Tensor]:
    """Inputs as a Mamba block makes them: step sizes around 0.03, A = -(1 .. S), in a trained one 5 % beside that."""
    tracks = (num_tracks, num_steps)
    tensors = {
        "u": torch.randn(*tracks, num_channels),
        "delta": torch.randn(*tracks, num_channels),
        "A": -torch.arange(1.0, STATE_SIZE + 1).repeat(num_channels, 1),
        "B": torch.randn(*tracks, STATE_SIZE),
        "C": torch.randn(*tracks, STATE_SIZE),
        "D": torch.ones(num_channels),
        "z": torch.randn(*tracks, num_channels),
        "delta_bias": torch.full((num_channels,), -3.5),
    }
    if trained:
        tensors["A"] *= 1 + 0.05 * torch.randn(tensors["A"].shape)
    return tensors


def ours(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return selective_scan(**tensors, backend="numba")


def eager_loop(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return reference.scan(*(tensors[name] for name in ORDER), True, tensors.get("state"))


# Each size of its own, which is the faster way; the same one may come with and without gradients.
_compiled = torch.compile(reference.scan, fullgraph=True, dynamic=False)


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
    before, after = (_parity(draw(4, 11, 200, trained=trained)) for trained in (False, True))
    return {name: max(before[name], after[name]) for name in before}


def _parity(tensors: dict[str, Tensor]) -> dict[str, float]:
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
            kernels.store(out, i, kernels.exp2_of_negative(kernels.load(x, i)))


def exponentials(count: int) -> Callable[[], None]:
    """As many float32 exponentials of negative numbers as asked for, in cache, and nothing else: the scan's roof."""
    size = 4096
    x, out = torch.rand(size) * -10, torch.empty(size)
    return lambda: _exponentials(x.data_ptr(), out.data_ptr(), size, count // size)


def state_traffic(state: Tensor) -> Callable[[], Any]:
    """Reads and writes a state once: the floor of a streaming step."""
    target = torch.empty_like(state)
    return lambda: np.copyto(target.numpy(), state.numpy())


def time_forward(
    num_tracks: int, repetitions: int, peers: tuple[str, ...], *, trained: bool = True
) -> dict[str, Timing]:
    tensors = draw(num_tracks, trained=trained)
    scans = {"ours": ours, **{name: PEERS[name] for name in peers}}
    runs: dict[str, Callable[[], Any]] = {name: (lambda scan=scan: scan(tensors)) for name, scan in scans.items()}
    out = (torch.empty_like(tensors["u"]), torch.empty(num_tracks, NUM_CHANNELS, STATE_SIZE))
    runs["ours, out="] = lambda: selective_scan(**tensors, backend="numba", out=out)
    runs["exp_roof"] = exponentials(num_tracks * NUM_STEPS * NUM_CHANNELS * STATE_SIZE)
    with torch.no_grad():
        return time_in_turn(runs, repetitions)


def time_training(
    num_tracks: int, repetitions: int, peers: tuple[str, ...], *, trained: bool = True
) -> dict[str, Timing]:
    tensors = draw(num_tracks, trained=trained)
    grad_y = torch.randn(num_tracks, NUM_STEPS, NUM_CHANNELS)
    scans = {"ours": ours, **{name: PEERS[name] for name in peers}}
    return time_in_turn(
        {name: (lambda scan=scan: forward_and_backward(scan, tensors, grad_y)) for name, scan in scans.items()},
        repetitions,
    )


def memory_of_training(num_tracks: int) -> dict[str, Any]:
    """Counted once: it is the same in every process."""
    tensors, grad_y = draw(num_tracks), torch.randn(num_tracks, NUM_STEPS, NUM_CHANNELS)
    scans = {"ours": ours, "compiled_loop": compiled_loop, "eager_loop": eager_loop}
    peaks = {
        name: peak_extra_bytes(lambda scan=scan: forward_and_backward(scan, tensors, grad_y))
        for name, scan in scans.items()
    }
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    return {
        "peak_extra_bytes": peaks,
        "peak_ratio_to": {name: round(peaks["ours"] / peak, 3) for name, peak in peaks.items() if name != "ours"},
        "saved_for_backward_bytes": {name: kept_bytes(lambda scan=scan: scan(leaves)) for name, scan in scans.items()},
        "input_bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }


def time_step(num_tracks: int, repetitions: int) -> dict[str, Timing]:
    """A step of a stream: each candidate hands its state on from call to call."""
    tensors = draw(num_tracks, 1)
    rows = {name: x[:, 0] if x.ndim == 3 else x for name, x in tensors.items()}
    state = torch.randn(num_tracks, NUM_CHANNELS, STATE_SIZE)
    own, y = state.clone(), torch.empty_like(rows["u"])
    steps: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
        "ours": lambda state: selective_scan_step(**rows, state=state, backend="numba"),
        "ours, out=": lambda state: selective_scan_step(**rows, state=own, backend="numba", out=(y, own)),
        "compiled_step": lambda state: compiled_loop({**tensors, "state": state}),
        "eager_step": lambda state: eager_loop({**tensors, "state": state}),
    }
    states = dict.fromkeys(steps, state)

    def go_on(name: str) -> Tensor:
        y, states[name] = steps[name](states[name])
        return y

    with torch.no_grad():
        return time_in_turn(
            {
                **{name: (lambda name=name: go_on(name)) for name in steps},
                "state_read_and_write": state_traffic(state),
                "exp_roof": exponentials(state.numel()),
            },
            repetitions,
            warmups=3,
        )


def measure_once(given: argparse.Namespace) -> dict[str, dict[str, Timing]]:
    """What one process does: times of every part."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    n, tracks, training = given.repetitions, given.tracks, given.training_tracks
    compiled, loops = ("compiled_loop",), ("compiled_loop", "eager_loop")
    found = {
        "forward_in_fresh_memory": time_forward(tracks, n, compiled),
        "forward_and_backward_in_fresh_memory": time_training(training, n, compiled),
    }
    keep_freed_memory()
    return found | {
        "forward_in_kept_memory": time_forward(tracks, n, loops),
        "forward_and_backward_in_kept_memory": time_training(training, n, loops),
        "step_in_kept_memory": time_step(196, 10 * n),
        "forward_before_training": time_forward(tracks, n, compiled, trained=False),
        "forward_and_backward_before_training": time_training(training, n, compiled, trained=False),
        "forward_of_few_tracks": time_forward(given.few_tracks, n, tuple(PEERS)),
    }


def summary(part: str, tracks: int, times: list[dict[str, Timing]]) -> dict[str, Any]:
    """A part of the results from its times in every process."""
    peers = [name for name in times[0] if not name.startswith("ours") and name not in FLOORS]
    faster = ratios(times, peers)
    found: dict[str, Any] = {
        "tracks": tracks,
        "times": {name: over_processes([one[name] for one in times]) for name in times[0]},
        **{f"times_faster_than{kind}": values for kind, values in faster.items()},
    }
    for name, ratio in FLOORS.items():
        if name in times[0] and not part.endswith("before_training"):  # which needs fewer exponentials than that
            found |= {f"{ratio}{kind}": values[name] for kind, values in ratios(times, [name]).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracks", type=int, default=1568)
    parser.add_argument("--training-tracks", type=int, default=784, help="half: the eager loop keeps 4 GB for these")
    parser.add_argument("--few-tracks", type=int, default=98, help="for the parallel scan, which needs 0.1 GB for 10")
    parser.add_argument("--repetitions", type=int, default=3, help="of a process")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process is not None:
        write_found(given.process, measure_once(given))
        return
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"parity": check_parity()}
    print("parity holds", flush=True)
    options = [f"--{name}={getattr(given, name.replace('-', '_'))}" for name in SIZES]
    runs = in_processes(Path(__file__).name, options, given.processes)
    for part in runs[0]:
        tracks = 196 if part.startswith("step") else given.few_tracks if "few" in part else given.tracks
        tracks = given.training_tracks if "backward" in part else tracks
        results[part] = summary(part, tracks, [run[part] for run in runs])
    results["forward_and_backward_in_kept_memory"] |= memory_of_training(given.training_tracks)
    settings = {
        "steps": NUM_STEPS,
        "channels": NUM_CHANNELS,
        "state_size": STATE_SIZE,
        "dtype": "float32",
        "processes": given.processes,
        "memory": "kept by the allocator (mallopt) but where a part is called fresh",
        "ratios": "of median process CPU time, one thread: median, lowest and highest of the processes",
        "repetitions_of_the_step": 10 * given.repetitions,
    }
    path = write_result("ops_selective_scan_cpu", seed=SEED, n=given.repetitions, settings=settings, results=results)
    for part, found in results.items():
        times = {name: round(time.cpu_seconds, 4) for name, time in found.get("times", {}).items()}
        print(part, times, {key: value for key, value in found.items() if key != "times"})
    print(path)


if __name__ == "__main__":
    main()
