"""Files are written, listed and removed alike in a folder and in an object store."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.folder_store import Store, folder_store

from kinescan.errors import ConfigError
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import read_range
from kinescan.runtime.stored_files import remove_file, require_file_taker, sizes_in, write_file


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with folder_store(tmp_path / "store", monkeypatch) as found:
        yield found


@pytest.mark.parametrize("far", [True, False])
def test_a_file_is_there_when_the_block_ends_well(far: bool, store: Store, tmp_path: Path) -> None:
    folder = Path(f"{store.address}/s" if far else tmp_path / "s")
    assert sizes_in(folder) == {}
    with write_file(folder / "a.bin") as aside:
        aside.write_bytes(b"abc")
        assert aside.suffix == ".bin"
        assert "a.bin" not in sizes_in(folder)
    with write_file(folder / "deep" / "b.bin") as aside:
        aside.write_bytes(b"b")
    assert sizes_in(folder) == {"a.bin": 3}
    with pytest.raises(RuntimeError), write_file(folder / "a.bin") as aside:
        raise RuntimeError(aside)
    assert sizes_in(folder) == {"a.bin": 3}
    remove_file(folder / "a.bin")
    assert sizes_in(folder) == {}


def test_what_is_written_anew_is_read_anew(store: Store) -> None:
    for data in (b"old", b"newer"):
        with write_file(f"{store.address}/a.bin") as aside:
            aside.write_bytes(data)
        assert read_range(f"{store.address}/a.bin", 0, 99).data == data


def test_a_full_folder_for_temporary_files_is_named(store: Store) -> None:
    with pytest.raises(ConfigError, match=tempfile.gettempdir()), write_file(f"{store.address}/a.bin"):
        raise OSError(28, "No space left on device")


def test_a_store_that_fails_is_told(store: Store) -> None:
    store.failing, store.error = "a.bin", PermissionError()
    with pytest.raises(ConfigError, match=r"s3://bucket/a\.bin.*403"), write_file(f"{store.address}/a.bin") as aside:
        aside.write_bytes(b"x")
    with pytest.raises(StoreError, match="404"):
        remove_file(f"{store.address}/nothing.bin")


@pytest.mark.parametrize("address", ["http://h/s", "https://h/s", "s3://bucket/s.v2", "s3://bucket//s", "gs://b/../s"])
def test_what_takes_no_files_is_refused(address: str, store: Store) -> None:
    with pytest.raises(ConfigError, match=address.partition(":")[0]):
        require_file_taker(address)
