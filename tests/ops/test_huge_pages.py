import mmap
from pathlib import Path

import pytest
import torch

from kinescan.ops import huge_pages
from kinescan.ops.huge_pages import PAGE, empty_for_writing


@pytest.fixture
def asked(monkeypatch):
    """The (address, length, advice) of every request."""
    calls = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *request: calls.append(request))
    return calls


def test_large_tensor_asks_for_the_whole_pages_within_it(asked):
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("this system has no huge pages to ask for")
    tensor = empty_for_writing((5, PAGE // 4), torch.float32)
    assert tensor.shape == (5, PAGE // 4)
    [(first, length, advice)] = asked
    assert advice == mmap.MADV_HUGEPAGE
    assert first % PAGE == length % PAGE == 0
    assert tensor.data_ptr() <= first < tensor.data_ptr() + PAGE
    assert first + length <= tensor.data_ptr() + tensor.nbytes < first + length + PAGE


def test_small_tensor_asks_for_nothing(asked):
    assert empty_for_writing((7, 3), torch.float32).dtype == torch.float32
    assert empty_for_writing((0, 3), torch.float32).shape == (0, 3)
    assert asked == []


def test_system_without_huge_pages_gives_plain_memory(monkeypatch):
    monkeypatch.setattr(huge_pages, "_madvise", lambda: None)
    assert empty_for_writing((PAGE, 2), torch.float32).fill_(1).sum() == 2 * PAGE


def test_system_backs_a_large_result_with_huge_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system gives no huge pages")
    tensor = empty_for_writing((64 * PAGE // 4,), torch.float32).fill_(1)
    flags, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, past = line.split()[0].partition("-")
        if past:
            inside = int(first, 16) <= tensor.data_ptr() + PAGE < int(past, 16)
        elif inside and line.startswith("VmFlags"):
            flags = line.split()[1:]
    assert "hg" in flags  # the system may be short of whole pages, but it was asked
