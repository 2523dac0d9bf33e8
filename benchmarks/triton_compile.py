"""Compiles the Triton kernels for GPUs that need not be there: registers and spilled bytes at production sizes.

Run: python benchmarks/triton_compile.py [--quick]     (no GPU needed; a few minutes on one core, --quick 10 seconds)
Writes results/triton_compile.json. Stops with an error where a forward kernel spills on sm_80 or sm_90.
Says nothing about speed.

The launches are those of the package: its functions are called with tensors without data, and what they would launch
is written down and compiled for NVIDIA's sm_75 (T4), sm_80 (A100), sm_90 (H100, H200) and sm_120 (RTX 50) and for AMD's
gfx942 (MI300).
"""

import argparse
import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton._utils import find_paths_if, get_iterable_path
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kinescan.ops.attention_mass import triton as attention_mass
from kinescan.ops.local_correlation import triton as local_correlation
from kinescan.ops.local_correlation.operator import Settings
from kinescan.ops.selective_scan import triton as selective_scan
from kinescan.ops.selective_scan.operator import ScanInputs
from measure import RESULTS, write_result

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (75, 80, 90, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
"""T4, A100, H100 and H200, RTX 50; AMD's MI300."""
BACKWARD = ("_scan_backward", "_run_splits_back", "_link_splits, back", "_gather_gradient", "_project")
WITHOUT_SPILLS = (", sm_80", ", sm_90")
"""Where forward kernels must not spill; elsewhere it is written down."""
OFFSETS = (-2, -1, 0, 1, 2)


class Launch(NamedTuple):
    """What would be started on a GPU."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def scan(num_steps: int, dtype: torch.dtype, state: bool = False) -> None:
    """PKS4-B/16 with 32 clips, or a step of 4 streams: A, D and the bias in float32 beside the tokens."""
    tracks, channels, state_size = (196 * 4 if state else 196 * 32), 1536, 16
    u, delta, z = (empty(tracks, num_steps, channels, dtype=dtype) for _ in range(3))
    B, C = (empty(tracks, num_steps, state_size, dtype=dtype) for _ in range(2))
    before = empty(tracks, channels, state_size) if state else None
    inputs = ScanInputs(u, delta, empty(channels, state_size), B, C, empty(channels), z, empty(channels), True, before)
    y, last = selective_scan.scan(inputs)
    selective_scan.scan_backward(y, last if state else None, inputs)


def long_scan(dtype: torch.dtype) -> None:
    """VideoMamba-middle with 8 clips of 32 frames: few tracks, cut into splits of time."""
    tracks, num_steps, channels, state_size = 8, 32 * 196 + 1, 1152, 16
    u, delta, z = (empty(tracks, num_steps, channels, dtype=dtype) for _ in range(3))
    B, C = (empty(tracks, num_steps, state_size, dtype=dtype) for _ in range(2))
    inputs = ScanInputs(u, delta, empty(channels, state_size), B, C, empty(channels), z, empty(channels), True, None)
    y, _ = selective_scan.scan(inputs)
    selective_scan.scan_backward(y, None, inputs)


def correlation(num_channels: int, dtype: torch.dtype) -> None:
    features = empty(32, 8, num_channels, 14, 14, dtype=dtype)
    settings = Settings(OFFSETS, 9, replicate=False, first_frame=0, epsilon=0.0)
    maps = local_correlation.correlate(features, settings)
    local_correlation.correlate_backward(maps, features, settings)


def scores(head_dim: int, dtype: torch.dtype) -> None:
    keys = empty(1, 4, 4292, head_dim, dtype=dtype)
    attention_mass.attention_mass(empty(1, 16, 196, head_dim, dtype=dtype), keys, keys, head_dim**-0.5, 196)


def cases(quick: bool) -> dict[str, Callable[[], None]]:
    """Name -> what launches the kernels."""
    found: dict[str, Callable[[], None]] = {}
    for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for num_steps in (8,) if quick else (8, 32):
            found[f"selective_scan 1536x16, {num_steps} steps, {kind}"] = lambda t=num_steps, d=dtype: scan(t, d)
        found[f"selective_scan 1152x16, 6273 steps of 8 tracks, {kind}"] = lambda d=dtype: long_scan(d)
        if not quick:
            found[f"selective_scan 1536x16, one step with a state, {kind}"] = lambda d=dtype: scan(1, d, state=True)
        for num_channels in (64,) if quick else (64, 768):
            name = f"local_correlation, {num_channels} channels, window 9, {kind}"
            found[name] = lambda c=num_channels, d=dtype: correlation(c, d)
        for head_dim in (128,) if quick else (64, 128):
            found[f"attention_mass, heads of {head_dim}, {kind}"] = lambda h=head_dim, d=dtype: scores(h, d)
    return found


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches are listed instead of being started, and tables of pairs have no data."""
    launches: list[Launch] = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launch(kernel, arguments, options))

    def tables(*arguments: Any) -> Any:
        made = make_tables(*arguments[:-1], "cpu")
        return type(made)(*(tensor.to("meta") for tensor in made))

    make_tables = local_correlation._tables
    with mock.patch.object(JITFunction, "run", record), mock.patch.object(local_correlation, "_tables", tables):
        yield launches


def compile_launch(launch: Launch, target: GPUTarget) -> dict[str, int]:
    """Registers of a thread, bytes that it spills, shared memory of a program: from ptxas, or of AMD from the code."""
    kernel, arguments, options = launch
    if target.backend == "hip" and "PRECISION" in options:
        # What the package launches on AMD's GPUs.
        options = {**options, "PRECISION": "ieee"}
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*arguments, **options)
    # As `JITFunction.run` does it; a method of its own for that is not in every Triton.
    kinds = [kind for kind, _ in specialization]
    signature = dict(zip((parameter.name for parameter in kernel.params), kinds, strict=True))
    constants = {
        path: get_iterable_path(list(bound.values()), path)
        for path in find_paths_if(kinds, lambda _, kind: kind == "constexpr")
    }
    special = ["" if kind == "constexpr" else hint for kind, hint in specialization]
    attributes = {
        path: backend.parse_attr(get_iterable_path(special, path))
        for path in find_paths_if(special, lambda _, hint: isinstance(hint, str))
    }
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=backend.parse_options(dict(options)).__dict__)
    needs = (
        amd_resources(compiled.asm["amdgcn"])
        if target.backend == "hip"
        else resources(compiled.asm["ptx"], target.arch)
    )
    return {**needs, "shared_bytes": compiled.metadata.shared}


def amd_resources(code: str) -> dict[str, int]:
    """The same from the metadata at the end of AMD's code; what is spilled goes through scratch memory."""
    registers, scratch = (
        int(re.findall(rf"\.{name}:\s+(\d+)", code)[0]) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return {"registers": registers, "spill_store_bytes": scratch, "spill_load_bytes": scratch}


def resources(ptx: str, capability: int) -> dict[str, int]:
    architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        # Which assembler there is depends on the GPU only in newer ones.
        ptxas = get_ptxas(capability) if inspect.signature(get_ptxas).parameters else get_ptxas()
        command = [ptxas.path, "-v", "--regAllocOptLevel=2", f"--gpu-name={architecture}", str(file)]
        done = subprocess.run([*command, "-o", f"{file}.cubin"], capture_output=True, text=True, check=True)
    [registers] = re.findall(r"Used (\d+) registers", done.stderr)
    [(stores, loads)] = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    return {"registers": int(registers), "spill_store_bytes": int(stores), "spill_load_bytes": int(loads)}


def compile_all(quick: bool, only: str = "") -> dict[str, dict[str, dict[str, Any]]]:
    """Case -> kernel -> constants of its launch, and what it needs on each architecture."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, launch_all in cases(quick).items():
        if only not in name:
            continue
        with recorded() as launches:
            launch_all()
        results[name] = {}
        for launch in launches:
            kernel = launch.kernel.__name__
            if launch.options.get("BACK"):
                kernel = "_link_splits, back"
            if kernel in results[name] or (quick and kernel in BACKWARD):
                continue
            found: dict[str, Any] = {"constants": launch.options}
            for target in ("sm_90",) if quick else TARGETS:
                found[target] = compile_launch(launch, TARGETS[target])
                print(f"{name}, {kernel}, {target}: {found[target]}", flush=True)
            results[name][kernel] = found
    return results


def spilling(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    return [
        f"{case}, {kernel}, {target}"
        for case, kernels in results.items()
        for kernel, found in kernels.items()
        for target, needs in found.items()
        if target != "constants" and needs["spill_store_bytes"] + needs["spill_load_bytes"] > 0
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="forward kernels, bfloat16, sm_90 alone")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--name", default="triton_compile", help="of the result")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    if triton.knobs.runtime.interpret:
        raise SystemExit("TRITON_INTERPRET is set: kernels are interpreted and cannot be compiled. Unset it.")
    results = compile_all(given.quick, given.only)
    spills = spilling(results)
    wrong = [
        name
        for name in spills
        if name.endswith(WITHOUT_SPILLS) and not any(f", {kernel}, " in name for kernel in BACKWARD)
    ]
    settings = {
        "quick": given.quick,
        "only": given.only,
        "triton": triton.__version__,
        "forward_spills": bool(wrong),
        "spilling": spills,
    }
    if wrong:
        raise SystemExit(f"forward kernels spill: {wrong}. Make their blocks smaller.")
    print(write_result(given.name, seed=0, n=1, settings=settings, results=results, folder=given.folder))


if __name__ == "__main__":
    main()
