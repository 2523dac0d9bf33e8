"""Two real processes divide a model and get what one gets with all of it."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from kinescan.errors import ConfigError
from kinescan.models.zoo import from_pretrained
from kinescan.runtime.distributed import Processes
from kinescan.training import OptimConfig, TrainConfig
from kinescan.training.checkpoint import load_state
from kinescan.training.dry_run import make_plan
from kinescan.training.resume_check import describe_computing
from kinescan.training.sharding import ShardedModel

TOLERANCE = 1e-5


def _script() -> Any:
    path = Path(__file__).with_name("sharded_processes.py")
    spec = importlib.util.spec_from_file_location("sharded_processes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _together(folder: Path, *cases: str) -> list[dict[str, Any]]:
    """What two processes that divide models met."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sharded_processes.py")), str(folder), *cases],
            env={**os.environ, **launched, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=280) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert all("Warning" not in err for _, err in said), said
    return [json.loads(out) for out, _ in said]


def _same_weights(first: Path, second: Path, *, tolerance: float = TOLERANCE) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


def test_two_processes_that_divide_a_model_give_what_one_gives(tmp_path: Path) -> None:
    script, alone = _script(), Processes()

    def signalled(epoch: int, number: int) -> None:
        if (epoch, number) == (1, 1):
            signal.raise_signal(signal.SIGTERM)

    assert "TrainingInterrupted" in script.run(tmp_path / "from one", alone, disturb=signalled)["error"]
    first, second = _together(tmp_path)
    whole = script.run(tmp_path / "one", alone)
    frozen = script.run(tmp_path / "one frozen", alone, train=replace(script.TRAIN, **script.FROZEN))
    for case, expected in (("full", whole), ("frozen", frozen)):
        for own, other in ((first[case], expected), (second[case], expected)):
            assert other["error"] == own["error"] == ""
            for ours, theirs in zip(own["steps"], other["steps"], strict=True):
                assert ours == pytest.approx(theirs, abs=TOLERANCE)
        # all processes are left with the same whole model
        assert first[case]["weights"] == second[case]["weights"]
    for checkpoint in ("last", "best"):
        _same_weights(tmp_path / "full/checkpoints" / checkpoint, tmp_path / "one/checkpoints" / checkpoint)
        _same_weights(tmp_path / "frozen/checkpoints" / checkpoint, tmp_path / "one frozen/checkpoints" / checkpoint)
    # a checkpoint is one file, whole: statistics of batch norms and the optimizer's averages among it
    assert from_pretrained(tmp_path / "full/checkpoints/best").trained_in == "float32"
    ours, theirs = (load_state(tmp_path / run / "checkpoints/last").optimizer["state"] for run in ("full", "one"))
    for index, own in ours.items():
        torch.testing.assert_close(own["exp_avg_sq"], theirs[index]["exp_avg_sq"], rtol=1e-3, atol=1e-7)
    # half precision rounds as with whole models in two processes
    for ours, theirs in zip(first["half"]["steps"], first["half plain"]["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    # a state that is carried from window to window is each process's own
    carried = script.run_carried(tmp_path / "one carried", alone)
    for own, other in zip(first["carried"]["steps"], carried["steps"], strict=True):
        assert own == pytest.approx(other, abs=TOLERANCE)
    assert first["carried"] == second["carried"]
    # one process left, two took up; two left, one takes up
    assert first["left"]["error"].startswith("TrainingInterrupted")
    assert first["taken up"]["error"] == script.run(tmp_path / "left", alone, resume=True)["error"] == ""
    for run in ("from one", "left"):
        _same_weights(tmp_path / run / "checkpoints/last", tmp_path / "one/checkpoints/last", tolerance=1e-4)


def test_each_block_is_divided_by_itself() -> None:
    """So that the parameters of one block at a time are whole, and not those of the model."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        sharded = ShardedModel(_script().make_model(), Processes())
        blocks = [block for block, _ in sharded.model.sharded_blocks()]
        sharded.shard(sharded.model)
    finally:
        torch.distributed.destroy_process_group()
    assert len(blocks) == 3 + 1  # the ViT's, and the scanner
    assert all(isinstance(block, FSDPModule) for block in blocks)
    divided = {name for name, parameter in sharded.model.named_parameters() if isinstance(parameter, DTensor)}
    assert divided == {name for name, _ in sharded.plain.named_parameters()}


@pytest.mark.bad_input
def test_a_scaled_loss_cannot_be_divided() -> None:
    with pytest.raises(ConfigError) as refused:
        TrainConfig(device="cuda", mixed_precision="fp16", sharding="full")
    assert all(word in str(refused.value) for word in ("sharding", "fp16", "bf16"))


def test_each_process_plans_for_its_part() -> None:
    script = _script()
    model, noise = script.make_model(), script.Noise(Processes(0, 2))
    parts, wholes = (
        make_plan(
            *(model, noise),
            train=TrainConfig(device="cpu", sharding=sharding),
            optim=OptimConfig(ema_decay=0.9),
            num_processes=2,
            timed=False,
        ).memory
        for sharding in ("full", "none")
    )
    for name in ("gradients", "optimizer", "ema"):
        assert getattr(parts, name) == -(-getattr(wholes, name) // 2)
    assert parts.activations == wholes.activations
    assert wholes.weights // 2 <= parts.weights < wholes.weights


def test_a_checkpoint_says_how_parameters_were_held() -> None:
    cpu = torch.device("cpu")
    assert describe_computing(cpu, "no", sharded=True)["sharding"] == "full"
    assert "sharding" not in describe_computing(cpu, "no")
