"""Precision and device of a run, and an environment that asks for something else; GPUs are stood in for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.training.accelerator import TrainConfig, choose_precision, open_accelerator, refuse_environment


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A CUDA device that is there for those who ask; "native" says whether its hardware has bfloat16."""
    hardware = {"native": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or hardware["native"]
    )
    return hardware


def test_auto_takes_bf16_where_the_hardware_has_it(gpu: dict[str, bool]) -> None:
    assert choose_precision(TrainConfig()) == "bf16"
    gpu["native"] = False
    assert choose_precision(TrainConfig()) == "no"
    assert choose_precision(TrainConfig(mixed_precision="fp16")) == "fp16"
    assert choose_precision(TrainConfig(device="cpu")) == "no"


def test_fp16_is_refused_without_a_gpu() -> None:
    with pytest.raises(ConfigError):
        TrainConfig(device="cpu", mixed_precision="fp16")
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        with pytest.raises(ConfigError):
            choose_precision(TrainConfig(mixed_precision="fp16"))


@pytest.mark.parametrize(
    ("environ", "setting"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "train.accumulate_batches"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "1"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "yes"}, "Megatron"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "ACCELERATE_USE_PARALLELISM_CONFIG"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "INDUCTOR"),
        ({"ACCELERATE_TORCH_DEVICE": "cuda:1"}, "train.device"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "train.mixed_precision"),
    ],
)
def test_an_environment_that_asks_for_something_else_is_refused_by_name(
    environ: dict[str, str], setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused, open_accelerator(TrainConfig(device="cpu", trackers=()), tmp_path):
        pass
    assert setting in str(refused.value)
    assert next(iter(environ)) in str(refused.value)


def test_what_a_plain_launch_sets_is_accepted(gpu: dict[str, bool]) -> None:
    plain = {
        "ACCELERATE_USE_CPU": "False",
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_CPU_AFFINITY": "1",
    }
    refuse_environment(plain, TrainConfig(device="cpu"))
    refuse_environment(plain, TrainConfig())
    refuse_environment({**plain, "ACCELERATE_MIXED_PRECISION": "bf16"}, TrainConfig())
    refuse_environment({**plain, "ACCELERATE_USE_CPU": "True"}, TrainConfig(device="cpu"))
    with pytest.raises(ConfigError):
        refuse_environment({**plain, "ACCELERATE_USE_CPU": "True"}, TrainConfig())


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_holds_for_the_run_only(tf32: bool, tmp_path: Path) -> None:
    before: Any = torch.get_float32_matmul_precision()
    with open_accelerator(TrainConfig(device="cpu", trackers=(), tf32=tf32), tmp_path):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else before)
    assert torch.get_float32_matmul_precision() == before
