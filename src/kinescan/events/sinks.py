"""Who is told of events: one interface, and the files."""

import csv
import io
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from kinescan.errors import ConfigError
from kinescan.events.told import FIELDS, Told, stream_of
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import read_head, require_regular

_TAIL_BYTES = 2**20
"""The last bytes of a file, in which the newest record of a stream is looked for."""
_LONGEST_LINE = 2**16


class Sink(Protocol):
    """Someone who is told of events, one after the other, by a thread of its own (see `Teller`)."""

    name: str
    """For messages, without secrets."""

    def deliver(self, told: Told) -> None:
        """Takes one record; returning means that it is safe.

        Raises:
            OSError: not now; it is tried again.
            BrokenPipeError: nobody listens any more; the stream is ended.
        """

    def position(self, stream_id: str) -> int:
        """The sequence number of the last record of a stream that is safe; 0 where none is known."""

    def close(self, patience_seconds: float) -> None:
        """Finishes what is on its way, within so many seconds."""


class _LineFile:
    """A file that grows by a line a record, each written whole and synced.

    The file is opened for each record: one that was moved away meanwhile, as by logrotate, begins anew. A line that a
    kill has cut is taken away, since whoever restarts the stream tells it again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        # several streams may be told of in one file
        self._lock = threading.Lock()
        if not self.path.parent.is_dir():
            raise ConfigError(f"{self.path.parent} is not a folder, so {self.path} cannot be written. Make the folder.")
        if not os.path.lexists(self.path):
            try:
                self._append(b"")
            except OSError as error:
                raise ConfigError(
                    f"{self.path} cannot be written ({error.strerror or error}). Name another file."
                ) from None
        require_regular(self.path)
        self._check_kind()
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"{self.path} cannot be written. Check its permissions, or name another file.")

    def deliver(self, told: Told) -> None:
        with self._lock:
            self._append(self._line(told).encode("utf-8", "surrogateescape"))

    def position(self, stream_id: str) -> int:
        tail = self._tail()
        known = [sequence for found, sequence in map(self._position_of, tail) if found == stream_id]
        return max(known, default=0)

    def close(self, patience_seconds: float) -> None:
        pass

    def _append(self, line: bytes) -> None:
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            size = _whole_size(handle)
            text = line if size else self._header() + line
            written = 0
            try:
                while written < len(text):
                    written += os.write(handle, text[written:])
                os.fsync(handle)
            except OSError:
                # half a line would be garbage for whoever reads the file
                with suppress(OSError):
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

    def _tail(self) -> list[str]:
        try:
            with open(self.path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().decode("utf-8", "surrogateescape").splitlines(keepends=True)
        except OSError:
            return []
        begun = lines if size <= _TAIL_BYTES else lines[1:]
        return [line for line in begun if line.endswith("\n")]

    def _check_kind(self) -> None:
        head = read_head(self.path, _LONGEST_LINE).decode("utf-8", "replace")
        first = head.partition("\n")[0]
        if head and not self._is_ours(first, whole="\n" in head):
            raise ConfigError(
                f"{self.path} holds something other than events, and is left as it is. Name another file, or move it "
                "away."
            )

    def _header(self) -> bytes:
        """The first line of a new file; empty where the format has none."""
        return b""

    def _line(self, told: Told) -> str:
        """One record with its line end."""
        raise NotImplementedError

    def _position_of(self, line: str) -> tuple[str, int]:
        """Stream and sequence number of a line; ("", 0) where it has none."""
        raise NotImplementedError

    def _is_ours(self, first_line: str, *, whole: bool) -> bool:
        """Whether a file with this first line holds events; `whole` is False where a kill has cut it."""
        raise NotImplementedError


class JsonLines(_LineFile):
    """A file with one JSON object a line; a file that is there is continued.

    Args:
        path: the file.

    Raises:
        ConfigError: it cannot be written, is not a regular file, or holds something other than events.
    """

    def _line(self, told: Told) -> str:
        return to_json(told.to_plain()) + "\n"

    def _position_of(self, line: str) -> tuple[str, int]:
        try:
            record = json.loads(line)
            return stream_of(record["id"]), int(record["sequence"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "", 0

    def _is_ours(self, first_line: str, *, whole: bool) -> bool:
        if not whole:
            return first_line.startswith('{"kind": "')
        return self._position_of(first_line)[0] != "" or first_line.startswith('{"kind": "')


class CsvFile(_LineFile):
    """A file with one row a record, under a header; a file that is there is continued.

    Args:
        path: the file.

    Raises:
        ConfigError: it cannot be written, is not a regular file, or holds something other than events.
    """

    def _header(self) -> bytes:
        return (",".join(FIELDS) + "\n").encode()

    def _line(self, told: Told) -> str:
        return csv_row(told)

    def _position_of(self, line: str) -> tuple[str, int]:
        try:
            values = dict(zip(FIELDS, next(csv.reader([line])), strict=True))
            return stream_of(values["id"]), int(values["sequence"])
        except (ValueError, StopIteration, csv.Error):
            return "", 0

    def _is_ours(self, first_line: str, *, whole: bool) -> bool:
        header = ",".join(FIELDS)
        return first_line == header or (not whole and header.startswith(first_line))


class Calls:
    """A function that is given every record, such as one that prints it.

    Args:
        name: for messages.
        call: the function; an OSError that it raises means not now.
    """

    def __init__(self, name: str, call: Callable[[Told], None]) -> None:
        self.name = name
        self._call = call

    def deliver(self, told: Told) -> None:
        """Calls the function."""
        self._call(told)

    def position(self, stream_id: str) -> int:
        """0: the function does not say which records it has kept."""
        return 0

    def close(self, patience_seconds: float) -> None:
        """Does nothing: `deliver` has done it all."""


class SharedSink:
    """A sink that several streams tell: it is closed when the last of them has closed it.

    Args:
        sink: may be told from several threads at once.
    """

    def __init__(self, sink: Sink) -> None:
        self.name = sink.name
        self._sink = sink
        self._lock = threading.Lock()
        self._num_streams = 0

    def joined(self) -> Self:
        """The sink, for one more stream."""
        with self._lock:
            self._num_streams += 1
        return self

    def deliver(self, told: Told) -> None:
        """Passes a record on."""
        self._sink.deliver(told)

    def position(self, stream_id: str) -> int:
        """That of the sink."""
        return self._sink.position(stream_id)

    def close(self, patience_seconds: float) -> None:
        """Closes the sink where no other stream tells it any more."""
        with self._lock:
            self._num_streams -= 1
            is_last = not self._num_streams
        if is_last:
            self._sink.close(patience_seconds)


def csv_row(told: Told) -> str:
    """One line of CSV, in the order of FIELDS, with its line end; None is empty, and no line end stands in a value."""
    text = io.StringIO()
    values = [" ".join(value.splitlines()) if isinstance(value, str) else value for value in told.to_plain().values()]
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _whole_size(handle: int) -> int:
    """The size of a file up to its last whole line, to which it is cut."""
    size = os.lseek(handle, 0, os.SEEK_END)
    if not size or os.pread(handle, 1, size - 1) == b"\n":
        return size
    begin = max(0, size - _LONGEST_LINE)
    whole = begin + os.pread(handle, size - begin, begin).rfind(b"\n") + 1
    if whole > begin or not begin:
        os.ftruncate(handle, whole)
        return whole
    return size
