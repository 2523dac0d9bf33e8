"""Kernels for GPUs, compiled where there is none."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def compile_kernels(folder):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "triton_compile.py"), "--quick", "--folder", str(folder)],
        env={**kept, "TRITON_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_forward_kernels_compile_for_hopper_without_spills(tmp_path):
    done = compile_kernels(tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "triton_compile.json").read_text())["results"]
    needs = {kernel: found["sm_90"] for kernels in results.values() for kernel, found in kernels.items()}
    assert set(needs) == {"_scan", "_run_splits", "_link_splits", "_measure", "_correlate", "_attend", "_weigh"}
    for kernel, found in needs.items():
        assert found["spill_store_bytes"] == found["spill_load_bytes"] == 0, kernel
        assert 16 <= found["registers"] <= 255, kernel


KEYS = """
import sys
sys.path.insert(0, {benchmarks!r})
import torch
import triton_compile
from kinescan.ops.selective_scan import triton as scan
from kinescan.ops.selective_scan.operator import ScanInputs
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

def empty(*shape):
    return torch.empty(shape, device="meta")

keys = {{}}
backend = make_backend(triton_compile.TARGETS["sm_80"])
for tracks in (1, 7, 16, 127, 128, 129, 6272, 6076):
    inputs = ScanInputs(
        *(empty(tracks, 8, 1536), empty(tracks, 8, 1536), empty(1536, 16), empty(tracks, 8, 16), empty(tracks, 8, 16)),
        *(empty(1536), empty(tracks, 8, 1536), empty(1536), True, None),
    )
    with triton_compile.recorded() as launches:
        y, _ = scan.scan(inputs)
        scan.scan_backward(y, None, inputs)
    for launch in launches:
        bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
        _, specialization, options = bind(*launch.arguments, **launch.options)
        keys.setdefault(launch.kernel.__name__, set()).add(str((specialization, options)))
print({{name: len(found) for name, found in keys.items()}})
"""


def test_a_batch_with_other_numbers_of_tracks_is_not_compiled_anew():
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", KEYS.format(benchmarks=str(ROOT / "benchmarks"))],
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'_scan': 1, '_scan_backward': 1}"
