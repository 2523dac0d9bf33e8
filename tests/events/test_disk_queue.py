import os
from pathlib import Path

import pytest

from kinescan.errors import ConfigError
from kinescan.events import disk_queue as module
from kinescan.events.disk_queue import DiskQueue


def _put(queue: DiskQueue, *numbers: int) -> None:
    for number in numbers:
        queue.put(f"s/é-{number}-start", f"{number}", stream_id="s/é", sequence=number)


def _taken(queue: DiskQueue) -> list[str]:
    found = []
    while (entry := queue.first(0.0)) is not None:
        found.append(entry[1].decode())
        queue.done(entry[0])
    return found


def test_messages_come_in_order_also_from_the_next_process(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path / "q")
    _put(queue, *range(1, 13))
    assert queue.first(0.0) == ("s/é-1-start", b"1")
    queue.done("s/é-1-start")
    queue.close()
    again = DiskQueue(tmp_path / "q")
    _put(again, 13)
    assert _taken(again) == [str(number) for number in range(2, 14)]
    again.close()


def test_what_was_accepted_is_not_added_again(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path / "q")
    _put(queue, 1, 2, 2, 1)
    assert _taken(queue) == ["1", "2"]
    _put(queue, 1, 2, 3)
    queue.close()
    again = DiskQueue(tmp_path / "q")
    assert again.position("s/é") == 3
    _put(again, 2, 3)
    assert _taken(again) == ["3"]
    again.close()


def test_a_kill_between_message_and_note_adds_nothing_twice(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path / "q")
    _put(queue, 1)
    (tmp_path / "q" / "accepted.json").unlink()
    queue.close()
    again = DiskQueue(tmp_path / "q")
    assert _taken(again) == ["1"]
    _put(again, 1)
    assert len(again) == 0
    again.close()


def test_a_full_queue_drops_the_oldest_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue = DiskQueue(tmp_path / "q", capacity=3)
    _put(queue, 1, 2, 3, 4, 5)
    assert queue.num_dropped == 2
    assert _taken(queue) == ["3", "4", "5"]
    assert caplog.text.count("dropped") == 1
    queue.close()


def test_one_set_aside_lies_in_its_folder(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path / "q")
    _put(queue, 1, 2)
    queue.set_aside("s/é-1-start")
    assert queue.num_refused == 1
    assert [path.read_text() for path in (tmp_path / "q" / "refused").iterdir()] == ["1"]
    assert _taken(queue) == ["2"]
    queue.close()


@pytest.mark.parametrize("fails", ["write_text", "atomic_write"])
def test_a_full_disk_leaves_the_queue_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    queue = DiskQueue(tmp_path / "q")
    _put(queue, 1)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, fails, full)
    with pytest.raises(OSError, match="No space"):
        _put(queue, 2)
    monkeypatch.undo()
    assert (len(queue), queue.position("s/é")) == (1, 1)
    _put(queue, 2)
    assert _taken(queue) == ["1", "2"]
    assert sorted(os.listdir(tmp_path / "q")) == [".lock", "accepted.json"]
    queue.close()


def test_one_process_has_a_folder(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path / "q")
    with pytest.raises(ConfigError, match="in use"):
        DiskQueue(tmp_path / "q")
    _put(queue, 1)
    queue.close()
    DiskQueue(tmp_path / "q").close()


def test_a_damaged_note_and_a_message_that_is_gone_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = DiskQueue(tmp_path / "q")
    _put(queue, 1, 2)
    next((tmp_path / "q").glob("*-1-*.json")).unlink()
    assert _taken(queue) == ["2"]
    queue.close()
    (tmp_path / "q" / "accepted.json").write_text("{")
    again = DiskQueue(tmp_path / "q")
    assert "accepted.json is damaged" in caplog.text
    again.close()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("")
    with pytest.raises(ConfigError, match="q"):
        DiskQueue(tmp_path / "q")
