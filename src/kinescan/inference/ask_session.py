"""What lasts longer than one question of `ask`, and what became of each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kinescan.errors import ConfigError
from kinescan.vlm.config import is_finite


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question.

    Attributes:
        question: as it was asked.
        answer: of the compressed stream.
        seconds: from the question to the last token.
        full_answer: full attention's answer, where compared.
        full_seconds: from the question to full attention's last token, where compared.
        logit_difference: the largest, over the scores of the first token.
        seen_seconds: time of the newest frame that had been watched.
    """

    question: str
    answer: str
    seconds: float
    full_answer: str | None = None
    full_seconds: float | None = None
    logit_difference: float | None = None
    seen_seconds: float = 0.0


class Incoming(Protocol):
    """Questions that come while a video is watched."""

    def ready(self) -> list[str]:
        """Those that have come; it does not wait."""

    def next(self) -> str | None:
        """The next one, waited for; None where none will come."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What `ask` does besides asking questions at the end.

    Attributes:
        load: a file that a stream was saved to; the video, if any, continues it.
        save: the stream is written there once the video has been watched, or when watching fails; and while it is
            watched.
        save_every_seconds: how often then, by the clock, so that a process that is killed loses no more than that;
            less often where writing takes more than a twentieth of the time.
        watch: asked again and again while watching.
        every_seconds: how often, in the video's time.
        incoming: questions as they come, while watching and afterwards.
        on_answer: called with each answer once it is whole.
    """

    load: str | Path | None = None
    save: str | Path | None = None
    save_every_seconds: float = 60.0
    watch: str | None = None
    every_seconds: float = 30.0
    incoming: Incoming | None = None
    on_answer: Callable[[Asked], None] | None = None

    def __post_init__(self) -> None:
        for name, every in (("every", self.every_seconds), ("save_every_seconds", self.save_every_seconds)):
            if not is_finite(every) or not every > 0:
                raise ConfigError(f"{name} must be a positive number of seconds, got {every!r}.")
        if self.watch is not None and not self.watch.strip():
            raise ConfigError("the question to watch for is empty. Ask something.")

    @property
    def asks(self) -> bool:
        """Whether there is something to do without questions."""
        return self.save is not None or self.asks_while_watching

    @property
    def asks_while_watching(self) -> bool:
        """Whether questions may come between frames."""
        return self.watch is not None or self.incoming is not None
