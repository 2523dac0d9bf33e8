"""Trains and counts what opening the run cost, for test_opened_once.py; each process writes FOLDER/RANK.json.

python counted_run.py RECIPE OUTPUT FOLDER EPOCHS [resume | cut], alone or started by torchrun. With "cut", the last
process gets SIGTERM after the first step of the second epoch.
"""

import functools
import hashlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from kinescan.errors import TrainingInterrupted
from kinescan.models import VideoClassifier
from kinescan.runs.train import train
from kinescan.runtime.launch import rank, world_size
from kinescan.training.callbacks import Callback, Start, Step

COUNTS: Counter[str] = Counter()


def count(owner: Any, name: str, key: Callable[..., str | None]) -> None:
    """Counts the calls of a function; under no key, a call is not counted."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def counted(*args: Any, **values: Any) -> Any:
        if (counted_as := key(*args)) is not None:
            COUNTS[counted_as] += 1
        return function(*args, **values)

    setattr(owner, name, counted)


class Opened(Callback):
    """What was counted when the first step begins."""

    def on_start(self, start: Start) -> None:
        self.counts = dict(COUNTS)


class Cut(Callback):
    """Ends the run as a cluster does: the last process is asked to stop, and all stop."""

    def on_step(self, step: Step) -> None:
        if step.epoch == 1 and rank() == world_size() - 1:
            signal.raise_signal(signal.SIGTERM)


def hashed(file: Any, *_: Any) -> str | None:
    path = Path(str(getattr(file, "name", "")))
    return f"hashed {path.name}" if path.parent.parent.name == "checkpoints" else None


def main(recipe: str, output: str, folder: str, epochs: str, how: str = "anew") -> None:
    count(VideoClassifier, "__init__", lambda *_: "models")
    count(FileLock, "acquire", lambda lock, *_: None if lock.is_locked else "locks")
    count(hashlib, "file_digest", hashed)
    opened = Opened()
    callbacks = [opened, Cut()] if how == "cut" else [opened]
    finished = True
    try:
        train(recipe, overrides=[f"optim.epochs={epochs}"], output=output, resume=how == "resume", callbacks=callbacks)
    except TrainingInterrupted:
        finished = False
    counts = {"opened": opened.counts, "whole": dict(COUNTS), "finished": finished}
    (Path(folder) / f"{rank()}.json").write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
