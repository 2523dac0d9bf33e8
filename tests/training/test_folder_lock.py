import errno
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kinescan.errors import ConfigError
from kinescan.runtime.distributed import Processes
from kinescan.runtime.folder_lock import HOLDER_FILE, LOCK_FILE, is_locked, locked
from kinescan.training import TrainConfig, fit
from kinescan.training.checkpoint import find_checkpoint

HOLDER = """
import sys, time
from pathlib import Path
from kinescan.runtime.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""
RUN = Path(__file__).with_name("killed_run.py")
TRAIN = TrainConfig(device="cpu", trackers=())


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has locked tmp_path."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_until_the_first_is_killed(
    holder: subprocess.Popen[str], tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    said = (
        rf"{re.escape(str(tmp_path))} is in use: process {holder.pid} on .* \(since 20.*\) writes into it\. Wait until"
    )
    for resume in (False, True):
        with pytest.raises(ConfigError, match=said):
            fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, resume=resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert is_locked(tmp_path)
    holder.kill()
    holder.wait(timeout=30)
    assert not is_locked(tmp_path)
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN)
    assert not (tmp_path / HOLDER_FILE).exists()


def test_a_killed_run_goes_on_at_once_and_keeps_others_out_while_it_lives(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    # It ends itself as abruptly as by SIGKILL, in the middle of its second save.
    died = subprocess.run(
        [sys.executable, str(RUN), str(tmp_path), "os.replace", "10"], capture_output=True, text=True, check=False
    )
    assert died.returncode == 9, died.stderr
    assert json.loads((tmp_path / HOLDER_FILE).read_text())["process"] != os.getpid()
    assert find_checkpoint(tmp_path / "checkpoints" / "last") is not None
    ended = subprocess.run([sys.executable, str(RUN), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / HOLDER_FILE).exists()


def test_a_holder_that_nobody_knows_is_another_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    for text in ("", "[]", '{"process": 3}'):
        (tmp_path / HOLDER_FILE).write_text(text)
        with pytest.raises(ConfigError, match="another"), locked(tmp_path):
            pass


def test_the_holder_may_lock_again_and_frees_the_folder_at_the_end_only(tmp_path: Path) -> None:
    found = []

    def look() -> None:
        found.append(is_locked(tmp_path))

    def look_from_another_thread() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    assert not is_locked(tmp_path)
    with locked(tmp_path):
        with locked(tmp_path):
            assert json.loads((tmp_path / HOLDER_FILE).read_text())["process"] == os.getpid()
        look_from_another_thread()
        assert (tmp_path / HOLDER_FILE).exists()
    look_from_another_thread()
    assert found == [True, False]
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert not is_locked(tmp_path)


def test_only_the_main_process_locks_and_all_are_refused(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    class Second(Processes):
        """Hears what the first has met."""

        def broadcast(self, value: Any) -> Any:
            assert value is None
            return heard

    heard = None
    with locked(tmp_path, Second(1, 2)):
        pass
    heard = "somewhere is in use"
    with pytest.raises(ConfigError, match="somewhere"), locked(tmp_path, Second(1, 2)):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with caplog.at_level("WARNING", logger="kinescan"), locked(tmp_path):
        assert not (tmp_path / HOLDER_FILE).exists()
        (tmp_path / LOCK_FILE).touch()
        assert not is_locked(tmp_path)
    assert "system" in caplog.text
    assert os.strerror(code) in caplog.text


def test_a_lock_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    with (
        pytest.raises(ConfigError, match=r"\.lock.*folder\."),
        locked(tmp_path),
    ):
        pass
    assert not is_locked(tmp_path)
