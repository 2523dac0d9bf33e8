import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from tests.events.conftest import MakeTold

from kinescan.errors import CheckpointError
from kinescan.events import teller as teller_module
from kinescan.events.sinks import Calls
from kinescan.events.teller import Teller
from kinescan.events.told import Told


class _Sink:
    """Keeps what it is told; fails as often as it is asked to, and waits until it is let go."""

    def __init__(self, *, failures: int = 0, position: int = 0, held: bool = False) -> None:
        self.name = "sink"
        self.keys: list[str] = []
        self.free = threading.Event()
        self._failures, self._position = failures, position
        if not held:
            self.free.set()

    def deliver(self, told: Told) -> None:
        self.free.wait()
        if self._failures:
            self._failures -= 1
            raise OSError(28, "No space left on device")
        self.keys.append(told.key)

    def position(self, stream_id: str) -> int:
        return self._position

    def close(self, patience_seconds: float) -> None:
        pass


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller_module, "_FIRST_WAIT_SECONDS", 0.01)


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_every_sink_is_told_in_order_and_a_slow_one_holds_nobody(make_told: MakeTold) -> None:
    quick, slow = _Sink(), _Sink(held=True)
    teller = Teller([slow, quick])
    begun = time.monotonic()
    for number in range(1, 51):
        teller.tell([make_told(number)])
    assert time.monotonic() - begun < 1
    _until(lambda: len(quick.keys) == 50)
    assert slow.keys == []
    slow.free.set()
    teller.close()
    assert slow.keys == quick.keys == [f"s-{number}-start" for number in range(1, 51)]


def test_one_that_fails_is_tried_again_until_it_takes_it(make_told: MakeTold, caplog: pytest.LogCaptureFixture) -> None:
    sink = _Sink(failures=3)
    teller = Teller([sink])
    with caplog.at_level(logging.WARNING):
        teller.tell([make_told(1), make_told(2)])
        _until(lambda: len(sink.keys) == 2)
    teller.close()
    assert sink.keys == ["s-1-start", "s-2-start"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "No space" in caplog.messages[0]
    assert "after 3 failures" in caplog.messages[1]


def test_memory_is_bounded_and_what_gives_way_is_counted(
    make_told: MakeTold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(teller_module, "MOST_WAITING", 10)
    sink = _Sink(held=True)
    teller = Teller([sink])
    for number in range(1, 101):
        teller.tell([make_told(number)])
    sink.free.set()
    teller.close()
    assert len(sink.keys) == 10
    assert sink.keys[-1] == "s-100-start"
    assert "90 records" in caplog.text


def test_the_end_waits_no_longer_than_it_is_told_to(make_told: MakeTold, caplog: pytest.LogCaptureFixture) -> None:
    sink = _Sink(held=True)
    teller = Teller([sink])
    teller.tell([make_told(1), make_told(2)])
    begun = time.monotonic()
    teller.close(patience_seconds=0.2)
    assert time.monotonic() - begun < 2
    assert "2 records" in caplog.text
    sink.free.set()


def test_a_snapshot_is_saved_before_its_records_are_told(make_told: MakeTold) -> None:
    order: list[Any] = []

    def save(snapshot: Any, pending: Sequence[Told]) -> None:
        order.append((snapshot, [told.key for told in pending]))

    sink = _Sink()
    sink.deliver = lambda told: order.append(told.key)  # type: ignore[method-assign]
    teller = Teller([sink], save=save)
    teller.tell([make_told(1)], "a")
    _until(lambda: len(order) == 2)
    teller.close("b")
    assert order[:2] == [("a", ["s-1-start"]), "s-1-start"]
    assert order[-1] == ("b", [])


def test_the_last_snapshot_does_not_wait_for_slow_sinks(make_told: MakeTold) -> None:
    saved: list[tuple[str, list[str]]] = []
    sink = _Sink(held=True)
    teller = Teller([sink], save=lambda snapshot, pending: saved.append((snapshot, [told.key for told in pending])))
    teller.tell([make_told(1)])
    closing = threading.Thread(target=teller.close, args=("end",))
    closing.start()
    _until(lambda: saved == [("end", ["s-1-start"])])
    sink.free.set()
    closing.join(10)
    assert saved[-1] == ("end", [])


def test_a_sink_that_lags_finds_its_records_in_the_snapshot(make_told: MakeTold) -> None:
    saved: list[list[str]] = []
    sink = _Sink(held=True)
    teller = Teller([_Sink(), sink], save=lambda snapshot, pending: saved.append([told.key for told in pending]))
    teller.tell([make_told(1)], "a")
    _until(lambda: saved)
    teller.tell([make_told(2)], "b")
    _until(lambda: len(saved) == 2)
    teller.close("c", patience_seconds=0.1)
    assert saved == [["s-1-start"], ["s-1-start", "s-2-start"], ["s-1-start", "s-2-start"]]
    sink.free.set()


def test_after_a_restart_a_sink_is_told_what_lies_behind_its_position(make_told: MakeTold) -> None:
    ahead, behind = _Sink(position=2), _Sink()
    teller = Teller([ahead, behind], pending=[make_told(number) for number in (1, 2, 3)])
    teller.close()
    assert ahead.keys == ["s-3-start"]
    assert behind.keys == ["s-1-start", "s-2-start", "s-3-start"]


def test_events_are_told_although_the_state_cannot_be_saved(
    make_told: MakeTold, caplog: pytest.LogCaptureFixture
) -> None:
    def save(snapshot: Any, pending: Sequence[Told]) -> None:
        raise CheckpointError("state-1.")

    sink = _Sink()
    teller = Teller([sink], save=save)
    teller.tell([make_told(1)], "a")
    _until(lambda: sink.keys)
    with pytest.raises(CheckpointError, match="state-1"):
        teller.close("b")
    assert "state-1" in caplog.text


def test_a_pipe_that_nobody_reads_ends_the_stream(make_told: MakeTold) -> None:
    def call(told: Told) -> None:
        raise BrokenPipeError

    teller = Teller([Calls("standard output", call)])
    teller.tell([make_told(1)])
    time.sleep(0.05)
    with pytest.raises(BrokenPipeError):
        _until(lambda: teller.tell([]))
    teller.close(patience_seconds=0.1)


def test_the_end_waits_for_one_that_is_slow_and_takes_them(make_told: MakeTold) -> None:
    sink = _Sink()
    deliver = sink.deliver

    def slow(told: Told) -> None:
        time.sleep(0.05)
        deliver(told)

    sink.deliver = slow  # type: ignore[method-assign]
    teller = Teller([sink])
    teller.tell([make_told(number) for number in range(1, 21)])
    teller.close(patience_seconds=0.5)
    assert len(sink.keys) == 20


@pytest.mark.parametrize("save", ["none", "works", "fails"])
def test_records_that_nobody_took_are_logged_where_no_state_keeps_them(
    make_told: MakeTold, caplog: pytest.LogCaptureFixture, save: str
) -> None:
    def saved(snapshot: Any, pending: Sequence[Told]) -> None:
        if save == "fails":
            raise CheckpointError("the disk is full")

    teller = Teller([_Sink(failures=10**6)], save=None if save == "none" else saved)
    for number in (1, 2):
        teller.tell([make_told(number)], number)
    if save == "fails":
        with pytest.raises(CheckpointError):
            teller.close(3, patience_seconds=0.1)
    else:
        teller.close(3, patience_seconds=0.1)
    logged = [f'"id": "s-{number}"' in caplog.text for number in (1, 2)]
    assert logged == [save != "works"] * 2
