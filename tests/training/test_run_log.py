import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mentions import mentions

from kinescan.errors import CheckpointError
from kinescan.training.run_log import Journal, write_unreadable


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def replaced(path: Path) -> None:
    path.unlink()
    path.write_text("something else\n")


@pytest.mark.parametrize(
    "happens", [Path.unlink, replaced, lambda path: path.write_text(""), lambda path: path.rename(f"{path}.1")]
)
def test_a_log_that_is_removed_or_shortened_is_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, happens: Callable[[Path], None]
) -> None:
    path = tmp_path / "log.jsonl"
    journal = Journal(path)
    for step in range(2):
        journal.write("step", {"step": step})
    happens(path)
    journal.write("step", {"step": 2})
    journal.sync()
    assert steps(path) == [0, 1, 2]
    assert caplog.text.count("written anew") == 1
    happens(path)
    journal.sync()
    assert steps(path) == [0, 1, 2]
    assert journal.num_lines == 3
    journal.close()


def test_a_log_whose_folder_is_gone_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(folder / "log.jsonl")
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"log\.jsonl.*--resume"):
        journal.write("step", {"step": 0})
    journal.close()


def test_lines_that_are_lost_before_a_resumption_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n\xff\xfe\n{"half')
    journal = Journal(path, keep_lines=5)
    journal.close()
    assert journal.num_lines == 2
    assert mentions(caplog.text, "2", "written", "5")


def test_a_list_of_unreadable_videos_that_became_empty_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "unreadable.json"
    write_unreadable(path, {"a.mp4": "cut"})
    assert json.loads(path.read_text()) == [{"path": "a.mp4", "reason": "cut"}]
    write_unreadable(path, {})
    assert not path.exists()
