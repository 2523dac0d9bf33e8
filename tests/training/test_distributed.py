"""Two real processes train together and get what one gets alone."""

import importlib.util
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from kinescan.config import load_recipe
from kinescan.data.video import write_video
from kinescan.errors import ConfigError
from kinescan.runs.train import train
from kinescan.runtime.accelerate_internals import forget_processes
from kinescan.runtime.distributed import Processes, open_processes

RECIPE = """
[model]
name = "pks4_vit_ti16"

[model.options]
patch_size = 16
width = 16
depth = 2
heads = 2
mlp_dim = 16
embed_dim = 16
insert_after = 1
kinematic_width = 8
window = 3

[preprocessing]
size = 32
num_frames = 4

[augment]
mixup_alpha = 0.8
cutmix_alpha = 1.0

[data]
train = "{videos}"

[loader]
batch_size = {batch_size}
num_workers = 0

[optim]
lr = 1e-2
lr_batch_size = 8
epochs = 2
warmup_epochs = 0
ema_decay = 0.9
eps = 1e-4

[train]
device = "cpu"
accumulate_batches = 2
log_every = 1
trackers = []

[evaluation]
views = "4x1x1"
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of nine files each, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    generator = torch.Generator().manual_seed(0)
    for label, low in (("bright", 156), ("dark", 0)):
        for index in range(9):
            pixels = torch.randint(low, low + 100, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
            write_video(folder / label / f"{index}.mp4", pixels, fps=8)
    (folder / "dark" / "3.mp4").write_text("no video")
    return folder


def _log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("clips_per_second", "seconds")} for line in lines]


def test_two_processes_give_the_losses_weights_and_scores_of_one(videos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "two.toml"
    recipe.write_text(RECIPE.format(videos=videos.as_posix(), batch_size=2))
    torchrun = [
        sys.executable,
        "-W",
        "error::FutureWarning:kinescan",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    command = [*torchrun, "-m", "kinescan", "train", str(recipe), "--output", str(tmp_path / "two"), "--json"]
    together = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert together.returncode == 0, together.stderr
    assert "Warning" not in together.stderr
    one = tmp_path / "one.toml"
    one.write_text(RECIPE.format(videos=videos.as_posix(), batch_size=4))
    alone = train(one, output=tmp_path / "one")

    said = json.loads(together.stdout)
    assert said["steps"] == alone.fit.steps == 4
    assert (said["top1"], said["num_videos"]) == (alone.report.evaluation.metrics.top1, 4)
    assert said["unreadable_training"].keys() == alone.fit.unreadable.keys()
    assert load_recipe(tmp_path / "two" / "recipe.toml").loader.batch_size == 2
    logs = _log(tmp_path / "one"), _log(tmp_path / "two")
    assert [line["kind"] for line in logs[0]] == ["step", "step", "epoch", "evaluation"] * 2
    for own, other in zip(*logs, strict=True):
        assert own.pop("kind") == other.pop("kind")
        assert own == pytest.approx(other, rel=1e-4)
    for checkpoint in ("last", "best"):
        weights = [_weights(tmp_path / run / "checkpoints" / checkpoint) for run in ("one", "two")]
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("two_processes", Path(__file__).with_name("two_processes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_one_process_meets_ends_the_run_in_both(tmp_path: Path) -> None:
    script = _script()

    def signalled(epoch: int, number: int) -> None:
        if (epoch, number) == (1, 1):
            signal.raise_signal(signal.SIGTERM)

    assert "TrainingInterrupted" in script.run(tmp_path / "from one", Processes(), disturb=signalled, dropout=0.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(tmp_path)],
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=280) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (json.loads(out) for out, _ in said)
    assert first["whole"] == second["whole"] == first["resumed"] == second["resumed"]
    # threads that are left may abort Python at its end
    assert first["threads left"] == second["threads left"] == []
    # A run that one process left is taken up by two, and one that two left by one; dropout alone would differ.
    assert first["taken up"] == second["taken up"]
    assert "TrainingInterrupted" in first["left"]
    script.run(tmp_path / "to one", Processes(), resume=True, dropout=0.0)
    plain = _weights(tmp_path / "plain/checkpoints/last")
    for other in ("from one", "to one"):
        for name, tensor in _weights(tmp_path / other / "checkpoints/last").items():
            torch.testing.assert_close(tensor, plain[name], rtol=1e-5, atol=1e-6)
    nan = (
        r"NonFiniteError: loss is nan in epoch 2, step 5; pixels hold NaN or infinity; videos: videos/30.mp4. The last"
    )
    full = r"CheckpointError: .*last cannot be written .*No space left on device"
    for met in (first, second):
        assert re.match(nan, met["nan"]), met["nan"]
        assert re.match(full, met["full"]), met["full"]
    stopped = "in epoch 2 of 2, after 4 steps. The checkpoint is"
    assert first["signal"].startswith(f"TrainingInterrupted: stopped by a signal {stopped}")
    assert second["signal"].startswith(f"TrainingInterrupted: stopped by SIGTERM {stopped}")


_HURRIED = (
    "from kinescan.training import open_run\nopen_run.SHARED_SECONDS = 0.5\n"
    "from kinescan.cli.main import main\nmain()\n"
)
"""The command, which looks for half a second for what another machine wrote."""


def test_machines_that_share_no_folder_refuse_before_one_of_them_resumes(videos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(videos=videos.as_posix(), batch_size=4))
    machines = [tmp_path / name for name in ("first", "second")]
    for machine in machines:
        machine.mkdir()
    before = train(recipe, output=machines[0] / "run", overrides=["optim.epochs=1"])
    kept = _weights(before.fit.last)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", _HURRIED, "train", str(recipe), "--output", "run", "--resume"]
    started = [
        subprocess.Popen(
            [*command, "--set", "loader.batch_size=2"],
            cwd=machine,
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, machine in enumerate(machines)
    ]
    try:
        said = [process.communicate(timeout=280) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2], said
    for _, errors in said:
        assert "process 1" in errors.splitlines()[-1]
        assert "Traceback" not in errors
    # nothing was trained, and what the first one had is as it was
    assert [path.name for path in (machines[1] / "run").iterdir() if path.name[0] != "."] == []
    after = _weights(machines[0] / "run" / "checkpoints" / "last")
    assert all(torch.equal(tensor, after[name]) for name, tensor in kept.items())


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_alone_a_process_gets_back_what_it_gave() -> None:
    alone = Processes()
    said = (alone.is_main, alone.sum([1.0, 2.0]), alone.gather("a"), alone.broadcast("a"))
    assert said == (True, [1.0, 2.0], ["a"], "a")
    assert alone.stack([3, 4]).tolist() == [[3, 4]]


def test_several_processes_refuse_a_device_that_they_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match=r"Set train.device"),
        open_processes(torch.device("mps")),
    ):
        pass


def test_a_part_of_a_tensor_is_sent_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(distributed, "all_gather_object", lambda _, value: sent.append(pickle.dumps(value)))
    Processes(0, 2).gather({"row": torch.zeros(1000, 400, dtype=torch.float64)[3]})
    assert 400 * 8 < len(sent[0]) < 6000


def test_rows_of_one_process_are_all_rows() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(Processes().gather_rows(rows), rows)


def test_several_processes_that_cannot_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as refused, open_processes(torch.device("cpu")):
        pass
    assert all(name in str(refused.value) for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"))


@pytest.mark.bad_input
def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        together = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        # accelerate warns where the number of threads is left open
        for name, value in {**together, "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, value)
        try:
            with pytest.raises(ConfigError) as refused, open_processes(torch.device("cpu")):
                pass
        finally:
            forget_processes()
    assert f"127.0.0.1:{port}" in str(refused.value)
