"""What gcsfs makes of a store's answers, and what comes of it here: asked once at a time, refused at once."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.loopback_gcs import Gcs, serve_gcs

from kinescan.errors import ConfigError
from kinescan.runtime import remote
from kinescan.runtime.gcsfs_internals import ask_once, is_refusal
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import read_range
from kinescan.runtime.stored_files import remove_file, sizes_in, write_file

# gcsfs leaves the closing of its connections to the end
_OF_GCSFS = ("DeprecationWarning", "FutureWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in _OF_GCSFS]


def test_a_refusal_of_gcsfs_is_told_from_errors_of_the_system() -> None:
    assert is_refusal(OSError("Forbidden: https://storage/b/a"))
    for other in (FileNotFoundError("a"), OSError(28, "full"), RuntimeError("x"), TimeoutError("x")):
        assert not is_refusal(other)


def test_a_gcsfs_without_what_asks_again_is_left_alone() -> None:
    class Files:
        def _request(self) -> int:
            return 3

    files = Files()
    ask_once(files)
    assert files._request() == 3


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gcs]:
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'kinescan[stores]'")
    monkeypatch.setattr(remote, "_kept", remote._Kept())
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "31")  # a number of its own: gcsfs keeps file systems by their options
    with serve_gcs(tmp_path / "gcs") as found:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", found.url)
        remote._objects.cache_clear()
        yield found
        remote._objects.cache_clear()
        gcsfs.GCSFileSystem.clear_instance_cache()
        gc.collect()


def _put(address: str, data: bytes) -> None:
    with write_file(address) as aside:
        aside.write_bytes(data)


def test_what_is_written_is_read_and_listed(store: Gcs) -> None:
    large = bytes(range(256)) * 2**15
    _put("gs://bucket/a/small.bin", b"abcdef")
    _put("gs://bucket/a/large.bin", large)
    assert (store.folder / "bucket/a/large.bin").read_bytes() == large
    assert read_range("gs://bucket/a/small.bin", 2, 4).data == b"cd"
    assert sizes_in("gs://bucket/a") == {"large.bin": len(large), "small.bin": 6}
    remove_file("gs://bucket/a/large.bin")
    assert sizes_in("gs://bucket/a") == {"small.bin": 6}
    assert sizes_in("gs://bucket/nothing") == {}


@pytest.mark.parametrize(("status", "most"), [(403, 4), (401, 4), (404, 4), (500, 4), (503, 4)])
def test_what_google_answers_is_told(status: int, most: int, store: Gcs) -> None:
    _put("gs://bucket/a.bin", b"abcdef")
    store.requests.clear()
    store.status = status
    with pytest.raises(StoreError, match=str(status)):
        read_range("gs://bucket/a.bin", 0, 4)
    assert len(store.requests) <= most
    store.requests.clear()
    with pytest.raises(ConfigError, match=rf"gs://bucket/a\.bin.*{status}"):
        _put("gs://bucket/a.bin", b"x")
    assert len(store.requests) == (4 if status >= 500 else 1)


def test_what_passes_is_tried_again_and_short_answers_are_found(store: Gcs) -> None:
    _put("gs://bucket/a.bin", b"abcdef")
    store.status, store.times = 503, 2
    assert read_range("gs://bucket/a.bin", 0, 4).data == b"abcd"
    store.status, store.short = 0, True
    with pytest.raises(StoreError, match="bytes"):
        read_range("gs://bucket/a.bin", 0, 4)
