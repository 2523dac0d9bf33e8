"""What every verb prints: results on standard output, everything else on standard error."""

import contextlib
import errno
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, Self

import typer

from kinescan.errors import ConfigError, KinescanError
from kinescan.runtime.escaping import escape_terminal, to_json
from kinescan.runtime.launch import is_main_process
from kinescan.runtime.urls import mask_urls

P = ParamSpec("P")

DONE, FAILED, USAGE = 0, 1, 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

logger = logging.getLogger("kinescan")


class _StandardError(logging.Handler):
    """Writes to whatever standard error is at that moment, so that a live bar can keep itself below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        # A closed terminal ends no run: what it computes is worth more than the line.
        with contextlib.suppress(OSError):
            print(escape_terminal(mask_urls(self.format(record))), file=sys.stderr)


def is_quiet() -> bool:
    """Whether only results, warnings and errors are wanted: no log lines and no bars."""
    return QUIET in sys.argv


def start_logging() -> None:
    """Shows the package's log lines on standard error; done by the command line only, once."""
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main_process() and not is_quiet() else logging.WARNING)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(to_json(value, indent=1))


class JsonList:
    """One JSON list on standard output, an entry a line, each printed as it comes; closed however the block ends."""

    def __init__(self) -> None:
        self._num_entries = 0

    def __enter__(self) -> Self:
        print("[", end="", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        print("\n]", flush=True)

    def add(self, value: Any) -> None:
        """The next entry."""
        print(("," if self._num_entries else "") + "\n" + to_json(value), end="", flush=True)
        self._num_entries += 1


def copy_lines(examples: tuple[str, ...]) -> str:
    """The end of a verb's help: lines to copy."""
    # \b keeps the lines as they are, however narrow the terminal.
    return "\n".join(["\b", "Copy one:", *(f"  {line}" for line in examples)])


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """The command; its `kinescan.errors` become one line on standard error, and its exit code.

    A wrong setting or argument (ConfigError) is 2, like any wrong usage; every other error of `kinescan.errors` is 1.
    Errors that are not ours keep their traceback, since they are mistakes in this package.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        start_logging()
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except KinescanError as error:
            if TRACEBACK in sys.argv:
                print(mask_urls(traceback.format_exc()), file=sys.stderr, end="")
            print(escape_terminal(mask_urls(f"{type(error).__name__}: {error}")), file=sys.stderr)
            raise typer.Exit(USAGE if isinstance(error, ConfigError) else FAILED) from None
        except KeyboardInterrupt:
            print("stopped; what was printed or written until then is kept", file=sys.stderr)
            raise typer.Exit(FAILED) from None
        except BrokenPipeError:
            raise typer.Exit(FAILED) from None
        except OSError as error:
            if error.filename is not None or error.errno not in _FULL:
                raise
            with contextlib.suppress(OSError):
                # Nothing is left that Python would try to write at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"the output cannot be written ({error.strerror}). Free space, or redirect it.", file=sys.stderr)
            raise typer.Exit(FAILED) from None

    return run


TRACEBACK = "--traceback"
"""Anywhere on the command line: shows where an error was raised."""
QUIET = "--quiet"
"""Anywhere on the command line: only results, warnings and errors are printed."""
GLOBAL = (TRACEBACK, QUIET)
"""Options that every verb has."""
