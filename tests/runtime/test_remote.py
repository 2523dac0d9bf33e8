"""Files that lie elsewhere, read by blocks."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.loopback_store import Behaviour, serve

from kinescan.errors import ConfigError, DependencyError
from kinescan.runtime import remote
from kinescan.runtime.files import read_text
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import BLOCK, RangeFile, read_range, remote_size, sizes_below

pytestmark = pytest.mark.usefixtures("dropped_sockets")

DATA = random.Random(0).randbytes(5 * BLOCK + 77)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Behaviour]]:
    (tmp_path / "a.bin").write_bytes(DATA)
    with serve(tmp_path) as found:
        yield found


def test_a_range_file_is_a_file(server: tuple[str, Behaviour]) -> None:
    address, _ = server
    mine, theirs = RangeFile(f"{address}/a.bin", 100, 4 * BLOCK), io.BytesIO(DATA[100 : 100 + 4 * BLOCK])
    draw = random.Random(1)
    for _ in range(200):
        if draw.random() < 0.5:
            whence = draw.randrange(3)
            offset = draw.randrange(0, 4 * BLOCK) if whence == 0 else draw.randrange(-BLOCK, BLOCK)
            if whence == 1 and theirs.tell() + offset < 0:
                offset = 0
            assert mine.seek(offset, whence) == theirs.seek(offset, whence)
        size = draw.choice([-1, 0, 1, 1000, BLOCK, 3 * BLOCK])
        assert mine.read(size) == theirs.read(size)
        assert mine.tell() == theirs.tell()


def test_little_is_read_for_little(server: tuple[str, Behaviour]) -> None:
    address, told = server
    file = RangeFile(f"{address}/a.bin", 0, len(DATA))
    file.seek(-10, io.SEEK_END)
    assert file.read() == DATA[-10:]
    assert (told.num_requests, told.num_bytes) == (1, 77)
    file.seek(0)
    while file.read(1000):
        pass
    assert told.num_requests < 6
    again = RangeFile(f"{address}/a.bin", 0, len(DATA))
    before = told.num_requests
    assert again.read() == DATA
    assert told.num_requests == before


def test_a_file_that_changes_or_ends_too_soon_is_an_error(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, _ = server
    size, version = remote_size(f"{address}/a.bin")
    file = RangeFile(f"{address}/a.bin", 0, size, version=version)
    (tmp_path / "a.bin").write_bytes(DATA[::-1])
    file.seek(3 * BLOCK)
    with pytest.raises(StoreError) as error:
        file.read(10)
    assert not error.value.is_gone
    with pytest.raises(StoreError, match=f"{len(DATA):,}"):
        RangeFile(f"{address}/a.bin", BLOCK, len(DATA)).read()


def test_texts_are_read_from_addresses(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    address, _ = server
    (tmp_path / "a.csv").write_text("a.mp4,x\n")
    assert read_text(f"{address}/a.csv") == "a.mp4,x\n"
    with pytest.raises(ConfigError, match="404"):
        read_text(f"{address}/b.csv")
    with pytest.raises(ConfigError, match="1,000"):
        read_text(f"{address}/a.bin", max_bytes=1000)


def test_web_servers_do_not_list(server: tuple[str, Behaviour]) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        sizes_below(server[0])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, extra: str) -> None:
        raise DependencyError(f"{name} {extra}")

    monkeypatch.setattr(remote, "optional_package", absent)
    for address, name in (("s3://nobody/a", "s3fs stores"), ("gs://nobody/a", "gcsfs stores")):
        with pytest.raises(DependencyError, match=name):
            read_range(address, 0, 1)


class _Files:
    """A file system of fsspec whose back end fails."""

    retries = 5

    def __init__(self, error: Exception) -> None:
        self._error, self.num_requests = error, 0

    def invalidate_cache(self, address: str) -> None:
        pass

    def info(self, address: str) -> None:
        self.num_requests += self.retries
        raise self._error


def _of_kind(
    name: str, cause: BaseException | None = None, base: type[Exception] = Exception, **facts: object
) -> Exception:
    error = type(name, (base,), facts)("https://bucket/a?signature=hunter2")
    error.__cause__ = cause
    return error


def _answered(status: int) -> Exception:
    return _of_kind("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": status}})


@pytest.mark.parametrize(
    ("error", "told", "num_requests"),
    [
        (_of_kind("PermissionError", base=PermissionError), "403", 1),
        (_of_kind("FileNotFoundError", base=FileNotFoundError), "404", 1),
        (_of_kind("OSError", _answered(500), OSError), "500", 4),
        (_of_kind("OSError", _answered(400), OSError), "400", 1),
        (_of_kind("HttpError", code=503), "503", 4),
        (_of_kind("ReadTimeoutError"), remote.SECONDS_VARIABLE, 4),
        (_of_kind("OSError", _of_kind("ClientPayloadError", code=400), OSError), "fewer", 4),
        (_of_kind("NoCredentialsError"), "credentials", 1),
        (_of_kind("EndpointConnectionError"), "EndpointConnectionError", 4),
    ],
)
def test_what_an_object_store_answers_is_told_and_tried_four_times_at_most(
    error: Exception, told: str, num_requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _Files(error)
    fsspec = SimpleNamespace(filesystem=lambda scheme, **_: files)
    monkeypatch.setattr(remote, "optional_package", lambda name, extra: fsspec)
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.0)
    remote._objects.cache_clear()
    with pytest.raises(StoreError, match=told) as caught:
        read_range("s3://bucket/a", 0, 1)
    assert files.num_requests == num_requests
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("seconds", ["0", "nan", "soon", "-1"])
def test_seconds_that_are_none(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.SECONDS_VARIABLE, seconds)
    with pytest.raises(ConfigError, match=remote.SECONDS_VARIABLE):
        remote.request_seconds()
