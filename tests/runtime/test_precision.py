import logging

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.runtime.precision import choose_precision, computing_in, precision_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_auto_is_the_precision_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    for device in (CPU, GPU):
        assert choose_precision("auto", "bf16", device) == "bf16"
        assert choose_precision("auto", None, device) == "float32"
        assert choose_precision("float32", "bf16", device) == "float32"
    assert choose_precision("auto", "fp16", GPU) == "fp16"
    assert precision_of("fp16", tf32=True) == "fp16"


def test_a_device_without_the_precision_of_the_training_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for trained_in, device in (("fp16", CPU), ("bf16", GPU)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert choose_precision("auto", trained_in, device) == "float32"
        assert len(caplog.records) == 1
        assert trained_in in caplog.records[0].message


@pytest.mark.bad_input
def test_what_is_asked_for_and_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for asked, device in (("fp16", CPU), ("bf16", GPU)):
        with pytest.raises(ConfigError) as refused:
            choose_precision(asked, None, device)
        assert asked in str(refused.value)
        assert "float32" in str(refused.value)


def test_within_the_block_only() -> None:
    layer, rows, before = torch.nn.Linear(2, 2), torch.zeros(1, 2), torch.get_float32_matmul_precision()
    for precision, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with computing_in(precision, CPU):
            assert layer(rows).dtype == dtype
            assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else before)
        assert layer(rows).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == before
