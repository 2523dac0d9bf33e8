"""Trains and counts what opening the run cost, for test_opened_once.py; each process writes FOLDER/RANK.json.

python counted_run.py RECIPE OUTPUT FOLDER EPOCHS [resume], alone or started by torchrun.
"""

import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from kinescan.models import VideoClassifier
from kinescan.runs.train import train
from kinescan.runtime.launch import rank
from kinescan.training.callbacks import Callback, Start

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


def hashed(file: Any, *_: Any) -> str | None:
    path = Path(str(getattr(file, "name", "")))
    return f"hashed {path.name}" if path.parent.parent.name == "checkpoints" else None


def main(recipe: str, output: str, folder: str, epochs: str, *resume: str) -> None:
    count(VideoClassifier, "__init__", lambda *_: "models")
    count(FileLock, "acquire", lambda lock, *_: None if lock.is_locked else "locks")
    count(hashlib, "file_digest", hashed)
    opened = Opened()
    train(recipe, overrides=[f"optim.epochs={epochs}"], output=output, resume=bool(resume), callbacks=[opened])
    counts = {"opened": opened.counts, "whole": dict(COUNTS)}
    (Path(folder) / f"{rank()}.json").write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
