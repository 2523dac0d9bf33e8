"""What lasts longer than one question of `ask`, and what became of each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kinescan.errors import ConfigError
from kinescan.runtime.files import require_path
from kinescan.vlm.config import is_finite

SHORTEST_SECONDS = 1e-9
"""Between two questions, or two times of saving."""


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
            if not is_finite(every) or not every >= SHORTEST_SECONDS:
                raise ConfigError(f"{name} must be a number of seconds from {SHORTEST_SECONDS} on, got {every!r}.")
        for name, path in (("load", self.load), ("save", self.save)):
            if path is not None:
                require_path(path, error=lambda said, name=name: ConfigError(f"{name}: {said}"))  # type: ignore[misc]
        if self.watch is not None and not isinstance(self.watch, str):
            raise ConfigError(f"watch must be a question in text, got a {type(self.watch).__name__}.")
        for part in ("ready", "next"):
            if self.incoming is not None and not callable(getattr(self.incoming, part, None)):
                raise ConfigError(f"incoming needs a method {part!r}, and a {type(self.incoming).__name__} has none.")
        if self.on_answer is not None and not callable(self.on_answer):
            raise ConfigError(f"on_answer is called, and must be a function, got a {type(self.on_answer).__name__}.")
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
