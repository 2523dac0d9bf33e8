import io
import logging

import pytest
from rich.console import Console

from kinescan.training import progress
from kinescan.training.progress import ProgressBar


def _run(console: Console) -> None:
    with ProgressBar(2, 4, console=console) as bar:
        for epoch in range(2):
            for done in range(1, 5):
                bar.update(epoch=epoch, batches_done=done, loss=0.5, accuracy=0.75, clips_per_second=12.3)


def test_progress_bar_shows_loss_accuracy_speed_memory_and_time_left() -> None:
    screen = io.StringIO()
    _run(Console(file=screen, force_terminal=True, width=120))
    text = screen.getvalue()
    for shown in ("2/2", "4/4", "loss 0.500", "accuracy 75.0%", "12.3 clips/s", "GiB", "0:00:00 left"):
        assert shown in text


def test_progress_bar_of_a_narrow_terminal_keeps_the_time_left() -> None:
    screen = io.StringIO()
    _run(Console(file=screen, force_terminal=True, width=80, no_color=True))
    text = screen.getvalue()
    for shown in ("2/2", "4/4", "loss 0.500", "75% right", "0:00:00 left"):
        assert shown in text
    assert "…" not in text


def test_progress_without_a_terminal_is_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO)
    screen = io.StringIO()
    _run(Console(file=screen, force_terminal=False))
    assert screen.getvalue() == ""
    assert len(caplog.messages) == 8
    assert caplog.messages[0].startswith("epoch 1/2  batch 1/4  loss 0.500  accuracy 75.0%  12.3 clips/s")


def test_time_left_counts_from_where_a_resumed_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 110.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = ProgressBar(10, 10, console=Console(file=io.StringIO()))
    bar.__enter__()
    assert bar._time_left(8, 1) == "0:03:10"
    assert bar._time_left(8, 2) == "0:03:00"
