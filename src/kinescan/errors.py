"""The errors that users meet: each message says what was given, what is allowed, and what to do."""

import re
from pathlib import Path

ADDRESS_SCHEMES = ("http", "https", "s3", "gs", "gcs")
# within a path, such as clips/s3:/a.mp4, it is the name of a folder
_ONE_SLASH = re.compile(rf"(?<![\w.+/\\\-])({'|'.join(ADDRESS_SCHEMES)}):/(?=[^/\s])", re.IGNORECASE)


def with_both_slashes(text: str) -> str:
    """A text that names addresses as paths have them, with the addresses as they were typed.

    Example:
        >>> with_both_slashes("s3:/bucket/a.mp4 is cut"), with_both_slashes("clips/a.mp4")
        ('s3://bucket/a.mp4 is cut', 'clips/a.mp4')
    """
    return _ONE_SLASH.sub(lambda found: f"{found[1].lower()}://", text)


class KinescanError(Exception):
    """Any error that this package raises on purpose.

    Addresses travel as paths, which have one slash where an address has two; messages show both.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(with_both_slashes(part) if isinstance(part, str) else part for part in parts))


class ConfigError(KinescanError, ValueError):
    """A setting, recipe key or argument is unknown or out of range."""


class ShapeError(KinescanError, ValueError):
    """A tensor has the wrong rank, size or dtype."""


class VideoError(KinescanError, OSError):
    """A video file cannot be read as asked.

    Attributes:
        path: the file, as it was given; an address with both of its slashes.
        reason: why, without the path; this is what lists of unreadable files show.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = with_both_slashes(str(path))
        super().__init__(f"{self.path}: {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        """Worker processes send errors by pickling: keep both arguments."""
        return (type(self), (self.path, self.reason))


class CutVideoError(VideoError):
    """A video file is cut or damaged: fewer frames can be decoded than it promises."""


class BackendError(KinescanError, RuntimeError):
    """A backend that was asked for by name cannot run here.

    Attributes:
        reason: why, without the name of the op.
        is_offered: whether the op has such a backend, here or elsewhere.
    """

    def __init__(self, message: str, *, reason: str = "", is_offered: bool = True) -> None:
        super().__init__(message)
        self.reason = reason or message
        self.is_offered = is_offered


class CheckpointError(KinescanError, RuntimeError):
    """A checkpoint cannot be read, fits nothing here, or belongs to something else."""


class ExportError(KinescanError, RuntimeError):
    """A model cannot be exported, or what was exported does not give what the model gives."""


class NonFiniteError(KinescanError, ArithmeticError):
    """Pixels, loss or gradients hold NaN or infinity."""


class TrainingInterrupted(KinescanError):
    """Training was asked to stop; the message says which checkpoint it left."""


class OutOfMemoryError(KinescanError, MemoryError):
    """A device has too little memory for what was asked of it."""


class WorkerError(KinescanError, RuntimeError):
    """A process that reads videos was ended by the system, such as for lack of memory."""


class DependencyError(KinescanError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""
