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
    assert set(needs) == {"_scan", "_measure", "_correlate", "_attend", "_weigh"}
    for kernel, found in needs.items():
        assert found["spill_store_bytes"] == found["spill_load_bytes"] == 0, kernel
        assert 16 <= found["registers"] <= 255, kernel
