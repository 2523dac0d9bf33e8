import os
import shutil
import stat

import pytest

from kinescan.errors import CheckpointError, ConfigError, VideoError
from kinescan.runtime.atomic_write import (
    atomic_files,
    atomic_folder,
    atomic_write,
    folder_aside,
    require_writable,
    write_text,
)


def test_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(ValueError, match="codec"):
        write_text(tmp_path / "a.json", "new\ud800")
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_full_disk_is_our_error_with_advice(tmp_path):
    with (
        pytest.raises(CheckpointError, match=r"a\.json.*No space left.*Do this"),
        atomic_write(tmp_path / "a.json", error=CheckpointError, advice="Do this."),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_folder_in_the_way_is_our_error(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match="written"):
        write_text(tmp_path / "a" / "b.txt", "x")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/null", path)], ids=["pipe", "device"])
def test_nothing_that_is_no_file_is_replaced(make, tmp_path):
    """By someone who may write to /dev, a file would take the device's place."""
    make(tmp_path / "a")
    for write in (lambda path: write_text(path, "x"), require_writable):
        with pytest.raises(ConfigError, match="device"):
            write(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert not (tmp_path / "a").is_file()


def test_new_file_has_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a") as aside:
            aside.touch(mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / "a").write_text("")
    (tmp_path / "a").chmod(0o640)
    write_text(tmp_path / "a", "x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_undecodable_bytes_of_names_are_written_as_they_were(tmp_path):
    write_text(tmp_path / "a", os.fsdecode(b"caf\xe9\n"))
    assert (tmp_path / "a").read_bytes() == b"caf\xe9\n"


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "b", "inner/c", "own"):
        (folder / name).write_text("old")
    return folder


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "os.chmod", "shutil.rmtree"])
@pytest.mark.parametrize("way", ["file", "files", "folder"])
def test_full_disk_at_any_call_leaves_whole_files(old, monkeypatch, way, call):
    """Fails at the first such call, then at the second, and so on, until one try gets through."""
    before = _files(old)
    for number in range(1, 30):
        calls = []
        module, name = call.split(".")
        original = getattr({"os": os, "shutil": shutil}[module], name)

        def full(*arguments, original=original, calls=calls, number=number, **keywords):
            calls.append(1)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
            return original(*arguments, **keywords)

        monkeypatch.setattr({"os": os, "shutil": shutil}[module], name, full)
        try:
            _write_new(old, way)
        except CheckpointError:
            pass
        finally:
            monkeypatch.undo()
        now = _files(old)
        assert now.keys() >= before.keys()
        assert set(now.values()) <= {"old", "new"}
        if call != "shutil.rmtree":
            assert not [path for path in old.parent.rglob("*") if ".part" in path.name or path.name.endswith(".new")]
        if way == "folder":
            # The folder is the old one or the new one, never a mixture.
            assert set(now.values()) in ({"old"}, {"new"})
        if len(calls) < number:
            break
    _write_new(old, way)
    assert _files(old)["a"] == "new"
    assert [path.name for path in old.parent.iterdir()] == ["model"]


def _write_new(folder, way):
    if way == "file":
        write_text(folder / "a", "new", error=CheckpointError)
        return
    if way == "files":
        block = atomic_files(folder, last="a", error=CheckpointError)
        names = ("a", "b")
    else:
        block = atomic_folder(folder, is_whole=lambda new: True, error=CheckpointError)
        names = ("a", "b", "inner/c", "own")
    with block as aside:
        (aside / "inner").mkdir()
        for name in names:
            (aside / name).write_text("new")
        if way == "files":
            (aside / "inner").rmdir()


def test_files_that_fail_in_the_block_leave_the_old_ones_whole(old):
    before = _files(old)

    def fill(folder):
        with atomic_files(folder, error=CheckpointError) as aside:
            (aside / "a").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="space"):
        fill(old)
    assert _files(old) == before


def test_files_of_a_folder_that_is_not_there_leave_none_when_they_fail(tmp_path):
    def fail():
        with atomic_files(tmp_path / "model") as aside:
            (aside / "a").write_text("new")
            raise NotADirectoryError

    with pytest.raises(ConfigError):
        fail()
    assert os.listdir(tmp_path) == []


def test_files_replace_what_they_are_said_to(old):
    with atomic_files(old, last="a", instead_of=["b", "absent"]) as aside:
        (aside / "a").write_text("new")
        (aside / "part").mkdir()
        (aside / "part" / "d").write_text("new")
    assert _files(old) == {"a": "new", "inner/c": "old", "own": "old", "part/d": "new"}


def test_the_last_file_takes_its_name_after_all_others(tmp_path, monkeypatch):
    order = []
    original = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(b.name), original(a, b)))
    with atomic_files(tmp_path, last="b") as aside:
        for name in ("a", "b", "c"):
            (aside / name).touch(mode=0o600)
    assert order == ["a", "c", "b"]


def test_errors_of_ours_in_a_block_stay_what_they_are(tmp_path):
    for block in (
        atomic_write(tmp_path / "a"),
        atomic_files(tmp_path / "b"),
        atomic_folder(tmp_path / "c", is_whole=lambda new: True),
    ):
        with pytest.raises(VideoError, match="cut"), block:
            raise VideoError("a.mp4", "is cut")
    assert os.listdir(tmp_path) == []


def test_a_folder_left_between_two_renames_is_put_into_its_place(old):
    os.replace(old, folder_aside(old, "new"))
    with pytest.raises(KeyError), atomic_folder(old, is_whole=lambda new: (new / "own").is_file()):
        raise KeyError
    assert _files(old)["own"] == "old"


def test_a_link_in_the_place_of_what_is_written_aside_leads_nowhere(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("old")
    folder_aside(tmp_path / "a", "new").symlink_to(other)
    with atomic_folder(tmp_path / "a", is_whole=lambda new: False) as aside:
        (aside / "x").write_text("new")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f".{os.getpid()}.part").symlink_to(other)
    with atomic_files(tmp_path / "b") as aside:
        (aside / "x").write_text("new")
    assert _files(other) == {"kept": "old"}
    assert _files(tmp_path / "a") == _files(tmp_path / "b") == {"x": "new"}


@pytest.mark.parametrize("path", [None, 0, True, b"a.json", "", "a\0b", ["a.json"], ".", "/"], ids=repr)
def test_what_is_no_path_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda: write_text(path, "x"), lambda: require_writable(path)):
        with pytest.raises(ConfigError):
            write()
    assert not list(tmp_path.iterdir())
