"""A run is opened once: what models, locks and hashes `train` costs, anew, resumed, and in two processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("counted_run.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LONGEST = 400
"""Seconds of one run on a busy machine; each takes some ten on a free one."""


def _counts(arguments: list[str | Path], folder: Path, *, processes: int) -> list[dict[str, Any]]:
    """What each process counted."""
    launched = TORCHRUN if processes > 1 else []
    command = [sys.executable, *launched, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)]


@pytest.mark.timeout(2 * LONGEST)
@pytest.mark.parametrize(("processes", "begun"), [(1, "anew"), (2, "cut")])
def test_one_model_one_lock_and_each_file_hashed_once(
    processes: int, begun: str, videos: Path, tiny: list[str], tmp_path: Path
) -> None:
    recipe, run = tmp_path / "tiny.toml", tmp_path / "run"
    settings = [*tiny, f'data.train="{videos.as_posix()}"', 'model.name="pks4_vit_ti16"']
    quoted = {"group": '"group"', "cpu": '"cpu"', "4x1x1": '"4x1x1"'}
    lines = (setting.partition("=") for setting in settings)
    recipe.write_text("".join(f"{key} = {quoted.get(value, value)}\n" for key, _, value in lines), encoding="utf-8")

    epochs = {"anew": "1", "cut": "2"}
    first = _counts([recipe, run, tmp_path, epochs[begun], begun], tmp_path, processes=processes)
    assert [counts["finished"] for counts in first] == [begun == "anew"] * processes
    files = [path.name for path in (run / "checkpoints" / "last").iterdir() if path.name != "checksums.json"]
    assert len(files) >= 3
    resumed = _counts([recipe, run, tmp_path, "2", "resume"], tmp_path, processes=processes)
    assert [counts["finished"] for counts in resumed] == [True] * processes

    alone: dict[str, int] = {"models": 1, "locks": 1}
    assert first[0]["opened"] == alone
    assert resumed[0]["opened"] == alone | {f"hashed {name}": 1 for name in files}
    for other in (*first[1:], *resumed[1:]):
        # the first process holds the lock, and reads the checkpoint for all
        assert other["opened"] == {"models": 1}
    for counts in (*first, *resumed):
        # the best checkpoint is loaded once, to be scored: built without memory to check the folder, then with it
        assert counts["whole"]["models"] == (3 if counts["finished"] else 1)
        assert counts["whole"].get("locks", 0) <= 1
