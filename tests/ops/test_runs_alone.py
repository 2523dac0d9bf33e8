"""Kernels that are called without their operator: the same numbers, and torch's compiler is not loaded for them."""

import subprocess
import sys

import pytest
import torch

from kinescan.ops import local_correlation, selective_scan
from kinescan.runtime import torch_internals as internals

SAME = """
import sys, torch
from kinescan.ops import local_correlation, selective_scan
torch.manual_seed(0)
u, delta = torch.randn(2, 6, 5, 32)
A, B, C = -torch.rand(32, 16), torch.randn(6, 5, 16), torch.randn(6, 5, 16)
frames = torch.randn(1, 4, 8, 7, 7)
out = torch.empty(6, 5, 32), torch.empty(6, 32, 16)

def results():
    y, state = selective_scan(u, delta, A, B, C, backend="numba")
    return y, state, local_correlation(frames, window=3, backend="numba")

with torch.no_grad():
    alone = results()
    selective_scan(u, delta, A, B, C, backend="numba", out=out)
    before = out[0]._version, out[1]._version
    selective_scan(u, delta, A, B, C, backend="numba", out=out)
assert (out[0]._version, out[1]._version) > before
assert "torch._dynamo" not in sys.modules
by_operator = results()
assert "torch._dynamo" in sys.modules
for one, other in zip((*alone, *out), (*by_operator, *by_operator[:2]), strict=True):
    assert one.dtype == other.dtype and torch.equal(one, other)
"""


def test_the_kernels_alone_give_what_the_operators_give() -> None:
    done = subprocess.run([sys.executable, "-c", SAME], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)


@pytest.mark.usefixtures("no_compiler")
def test_a_count_of_operations_sees_the_operators() -> None:
    class Names(internals.TorchDispatchMode):
        seen: tuple[str, ...] = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen += (func.name(),)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Names() as names:
        local_correlation(torch.ones(1, 2, 4, 3, 3), window=3, backend="numba")
        u = torch.ones(1, 2, 16)
        selective_scan(u, u, -torch.ones(16, 16), u, u, backend="numba")
    assert {"kinescan::local_correlation", "kinescan::selective_scan"} <= set(names.seen)
