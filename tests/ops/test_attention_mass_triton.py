"""The Triton kernels of attention_mass: on a GPU where there is one, and by Triton's interpreter."""

import pytest
import torch

from kinescan.errors import BackendError
from kinescan.ops.attention_mass import attention_mass

# (query heads, key heads, queries, keys, head size)
SHAPES = [(1, 1, 1, 1, 8), (4, 4, 1, 63, 16), (8, 2, 12, 32, 16), (2, 1, 65, 130, 24), (4, 2, 70, 70, 7)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check_every_shape(device):
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


CHECKS = {"every_shape": check_every_shape}


@pytest.mark.parametrize("name", CHECKS)
def test_by_the_interpreter(name, interpreted):
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name):
    CHECKS[name]("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_by_name_says_why_it_cannot_run():
    ones = torch.ones(1, 1, 1, 8)
    with pytest.raises(BackendError, match=r"needs a CUDA|triton is not"):
        attention_mass(ones, ones, ones, backend="triton")


@pytest.mark.parametrize(("hip", "expected"), [(None, "tf32x3"), ("6.4.0", "ieee")])
def test_products_of_float32_are_those_that_the_gpu_has(hip, expected, monkeypatch):
    kernels = pytest.importorskip("kinescan.ops.attention_mass.triton")
    monkeypatch.setattr(torch.version, "hip", hip)
    for dim in (16, 64, 128, 256):
        assert kernels.launch_sizes(dim, torch.float32)["PRECISION"] == expected
