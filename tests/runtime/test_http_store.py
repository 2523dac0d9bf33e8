"""What a server may answer: each is right, or an error that says what came."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.loopback_store import Behaviour, serve

from kinescan.runtime import remote
from kinescan.runtime.http_store import HttpStore, StoreError, status_error

pytestmark = pytest.mark.usefixtures("dropped_sockets")

DATA = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Behaviour]]:
    (tmp_path / "a.bin").write_bytes(DATA)
    (tmp_path / "b c.bin").write_bytes(DATA)
    with serve(tmp_path) as found:
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)


def test_ranges_are_given(server: tuple[str, Behaviour]) -> None:
    address, told = server
    store = HttpStore(5.0)
    for start, end in ((0, 10), (7, 300), (10_000, 20_000)):
        part = store.read(f"{address}/a.bin", start, end)
        assert (part.data, part.num_bytes) == (DATA[start:end], len(DATA))
        assert part.version
    assert store.read(f"{address}/b c.bin", 0, 4).data == DATA[:4]
    assert store.read(f"{address}/a.bin", 99_999, 100_000).data == b""
    assert told.num_bytes < len(DATA)


def test_a_server_without_ranges_is_read_no_farther_than_needed(server: tuple[str, Behaviour]) -> None:
    address, told = server
    told.ranges = False
    part = HttpStore(5.0).read(f"{address}/a.bin", 100, 200)
    assert (part.data, part.num_bytes) == (DATA[100:200], len(DATA))


@pytest.mark.parametrize(("status", "is_told"), [(403, "403"), (401, "401"), (404, "404"), (418, "418")])
@pytest.mark.usefixtures("quick")
def test_refusals_are_told_at_once(server: tuple[str, Behaviour], status: int, is_told: str) -> None:
    address, told = server
    told.status = status
    with pytest.raises(StoreError, match=is_told) as error:
        remote.read_range(f"{address}/a.bin", 0, 9)
    assert told.num_requests == 1
    assert error.value.is_gone


def _status(told: Behaviour) -> None:
    told.status = 500


def _short(told: Behaviour) -> None:
    told.short_by = 3


def _busy(told: Behaviour) -> None:
    told.status = 429


@pytest.mark.parametrize("fail", [_status, _short, _busy])
@pytest.mark.usefixtures("quick")
def test_what_may_pass_is_tried_again(server: tuple[str, Behaviour], fail: Callable[[Behaviour], None]) -> None:
    address, told = server
    fail(told)
    told.times = 2
    assert remote.read_range(f"{address}/a.bin", 5, 50).data == DATA[5:50]
    assert told.num_requests == 3


@pytest.mark.parametrize(("fail", "is_told"), [(_status, "500"), (_short, "42|fail"), (_busy, "429")])
@pytest.mark.usefixtures("quick")
def test_what_does_not_pass_is_an_error(
    server: tuple[str, Behaviour], fail: Callable[[Behaviour], None], is_told: str
) -> None:
    address, told = server
    fail(told)
    with pytest.raises(StoreError, match=is_told):
        remote.read_range(f"{address}/a.bin", 5, 50)
    assert told.num_requests == 4


@pytest.mark.parametrize("slow", [{"seconds": 0.6}, {"trickle": 0.6}])
def test_a_slow_server_is_an_error(server: tuple[str, Behaviour], slow: dict[str, float]) -> None:
    address, told = server
    for name, value in slow.items():
        setattr(told, name, value)
    with pytest.raises(StoreError, match=r"0\.2") as error:
        HttpStore(0.2).read(f"{address}/a.bin", 0, 9000)
    assert error.value.may_pass


def test_no_server_is_an_error() -> None:
    with pytest.raises(StoreError) as error:
        HttpStore(1.0).read("http://127.0.0.1:9/a.bin", 0, 1)
    assert error.value.may_pass


def test_redirects_stay_on_their_host(server: tuple[str, Behaviour]) -> None:
    address, told = server
    told.redirect, told.failing, told.times = "/a.bin", "elsewhere", 1
    assert HttpStore(5.0).read(f"{address}/elsewhere", 0, 5).data == DATA[:5]
    told.redirect, told.times = "http://169.254.169.254/secret?token=abc", 1
    with pytest.raises(StoreError, match=r"169\.254\.169\.254") as error:
        HttpStore(5.0).read(f"{address}/elsewhere", 0, 5)
    assert "abc" not in error.value.reason
    told.redirect, told.failing, told.times = "/loop", "loop", 100
    with pytest.raises(StoreError):
        HttpStore(5.0).read(f"{address}/loop", 0, 5)


def test_passwords_of_netrc_go_to_their_host_only(
    server: tuple[str, Behaviour], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, told = server
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    HttpStore(5.0).read(f"{address}/a.bin", 0, 5)
    assert told.headers[-1]["Authorization"].startswith("Basic ")
    (tmp_path / ".netrc").write_text("machine elsewhere login me password hunter2\n")
    HttpStore(5.0).read(f"{address}/a.bin", 0, 5)
    assert "Authorization" not in told.headers[-1]


def test_errors_travel_between_processes() -> None:
    again = pickle.loads(pickle.dumps(status_error(503)))
    assert (again.reason, again.is_gone, again.may_pass, again.status) == (status_error(503).reason, True, True, 503)
