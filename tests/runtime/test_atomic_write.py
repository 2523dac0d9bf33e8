import os
import stat

import pytest

from kinescan.errors import CheckpointError, ConfigError
from kinescan.runtime.atomic_write import atomic_write, write_text


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
