import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self


def _signals() -> Iterator[int]:
    """The signals that ask a run to stop."""
    yield from (signal.SIGINT, signal.SIGTERM)
    hangup = getattr(signal, "SIGHUP", None)
    # nohup ignores it, so that a run continues when its terminal is closed.
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        yield hangup


class Interruption:
    """Notices Ctrl-C, SIGTERM and SIGHUP without breaking off a training step; a context manager.

    Between `with` and its end, the first signal only sets `requested`, so that the loop can finish its step and leave
    a checkpoint. A second one (SIGHUP aside), or one that comes while `immediate` is True, raises KeyboardInterrupt at
    once. The handlers found are put back at the end. Outside the main thread, where Python handles no signals,
    nothing is changed. Nor is SIGHUP where it is ignored, as under nohup.

    Args:
        repeats: False takes further signals for the first one: under torchrun, Ctrl-C or a scheduler's signal reaches
            each process by itself and once more from torchrun, which ends for good those that take too long.

    Attributes:
        requested: name of the signal that came, or None.
        immediate: while True, signals raise KeyboardInterrupt (for stretches where nothing could be lost).
    """

    def __init__(self, *, repeats: bool = True) -> None:
        self._repeats = repeats
        self.requested: str | None = None
        self.immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _signals():
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A closing terminal sends SIGHUP from several sides: that is still one request.
        again = self._repeats and self.requested is not None and number != getattr(signal, "SIGHUP", None)
        self.requested = signal.Signals(number).name
        if again or self.immediate:
            raise KeyboardInterrupt
