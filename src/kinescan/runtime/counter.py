"""How far a verb is: a live bar on a terminal, a log line now and then elsewhere, nothing with --quiet."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Counter:
    """Counts things that are done; a context manager.

    Args:
        doing: such as "checking".
        things: such as "files".
    """

    def __init__(self, doing: str, things: str) -> None:
        self._doing, self._things = doing, things
        self._console = Console(stderr=True)
        # The command line sets the level; --quiet raises it, and so does every process but the first.
        shown = self._console.is_terminal and logger.isEnabledFor(logging.INFO)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not shown,
            # results that go into a file or a pipe stay there
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(doing, total=None)
        self._last_line = time.monotonic()
        self.num_done = 0
        self.num_all: int | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """So many are done."""
        self.num_done, self.num_all = done, total
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info("%s: %d of %d %s", self._doing, done, total, self._things)
