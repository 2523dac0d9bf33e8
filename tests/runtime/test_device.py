import logging
from types import SimpleNamespace

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.runtime import device
from kinescan.runtime.device import choose_device, widest_float


@pytest.mark.parametrize("name", ["xpu", "npu:0", "tpu", "CUDA"])
def test_devices_that_are_not_used_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_device(name)
    assert name in str(refused.value)


def test_an_accelerator_that_is_not_used_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "_available", lambda: {"auto": True, "cpu": True, "mps": False, "cuda": False})
    monkeypatch.setattr(torch, "xpu", SimpleNamespace(is_available=lambda: True))
    device._say_what_is_not_used.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [choose_device("auto").type for _ in range(3)] == ["cpu"] * 3
    assert [record.args[1] for record in caplog.records if record.args] == ["xpu"]
    device._say_what_is_not_used.cache_clear()


def test_sums_are_kept_in_what_a_device_has() -> None:
    kinds = ("cpu", "cuda", "mps")
    expected = [torch.float64, torch.float64, torch.float32]
    assert [widest_float(torch.device(kind)) for kind in kinds] == expected
