"""The Triton kernels: on a GPU where there is one, by Triton's interpreter where it is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kinescan.errors import BackendError
from kinescan.ops.attention_mass import attention_mass

HAS_TRITON = importlib.util.find_spec("triton") is not None
# (query heads, key heads, queries, keys, head size)
SHAPES = [(1, 1, 1, 1, 8), (4, 4, 1, 63, 16), (8, 2, 12, 32, 16), (2, 1, 65, 130, 24), (4, 2, 70, 70, 7)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check(device):
    """Every shape and dtype against the reference; raises at the first that differs."""
    torch.manual_seed(0)
    for shape in SHAPES:
        query_heads, key_heads, queries, keys, dim = shape
        for dtype, tolerance in TOLERANCE.items():
            q = (2 * torch.randn(2, query_heads, queries, dim)).to(device, dtype)
            k, v = torch.randn(2, 2, key_heads, keys, dim).to(device, dtype)
            for observed in (None, min(3, queries)):
                output, mass = attention_mass(q, k, v, 0.4, "triton", observed=observed)
                expected = attention_mass(q, k, v, 0.4, "reference", observed=observed)
                torch.testing.assert_close(output, expected[0], atol=tolerance, rtol=tolerance)
                torch.testing.assert_close(mass, expected[1], atol=1e-4, rtol=1e-4)
                assert mass.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_match_reference_on_a_gpu():
    check("cuda")


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_match_reference_by_the_interpreter():
    # In a process of its own: the choice of the interpreter is made when triton is imported.
    folder = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import {Path(__file__).stem} as tests; tests.check('cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_triton_by_name_says_why_it_cannot_run():
    ones = torch.ones(1, 1, 1, 8)
    reason = "needs a CUDA device" if HAS_TRITON else "triton is not installed"
    with pytest.raises(BackendError, match=reason):
        attention_mass(ones, ones, ones, backend="triton")


def compile_for_hopper():
    """Both kernels to machine code for compute capability 9.0, without a device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kinescan.ops.attention_mass import triton as kernels

    sizes = {"DIM": 128, "WIDE_DIM": 128, "BLOCK_Q": 64, "BLOCK_K": 64, "WIDEN": False}
    for kernel, pointers, integers in ((kernels._attend, 5, 3), (kernels._weigh, 4, 4)):
        kinds = ["*bf16"] * pointers + ["fp32"] + ["i32"] * integers
        floats = {"lse_ptr": "*fp32", "mass_ptr": "*fp32"}
        plain = [name for name in kernel.arg_names if name not in sizes]
        signature = {name: floats.get(name, kind) for name, kind in zip(plain, kinds, strict=True)}
        signature |= dict.fromkeys(sizes, "constexpr")
        source = ASTSource(kernel, signature, constexprs={(kernel.arg_names.index(n),): v for n, v in sizes.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert len(compiled.asm["cubin"]) > 1000


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_compile_for_hopper():
    folder = str(Path(__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import {Path(__file__).stem} as tests; tests.compile_for_hopper()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
