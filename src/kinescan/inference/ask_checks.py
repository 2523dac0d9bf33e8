"""What `ask` refuses before a model is read: settings that contradict each other, or that would do nothing."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kinescan.data.video import Reconnect, is_live
from kinescan.errors import CheckpointError, ConfigError
from kinescan.inference.ask_session import Session
from kinescan.inference.ask_settings import AskSettings
from kinescan.runtime.atomic_write import require_writable
from kinescan.runtime.files import require_path, require_regular
from kinescan.vlm import Vlm
from kinescan.vlm.config import check_fps
from kinescan.vlm.snapshot import holds_stream

__all__ = ["check_arguments", "check_question", "check_together", "require_saving", "require_vlm"]


def check_arguments(video: Any, allow_short: Any, called: dict[str, Any], **objects: Any) -> None:
    """Refuses arguments of `ask` that are of another type, before anything is watched.

    Args:
        video: see `ask`, as the others.
        allow_short: a truth value.
        called: name -> what will be called; None where nothing was given.
        **objects: vlm, settings, session and reconnect; None where nothing was given.

    Raises:
        ConfigError: one is.
    """
    if video is not None and video != "":
        require_path(video)
    if not isinstance(allow_short, bool):
        raise ConfigError(f"allow_short must be True or False, got {allow_short!r:.60}.")
    kinds = {"vlm": Vlm, "settings": AskSettings, "session": Session, "reconnect": Reconnect}
    for name, value in objects.items():
        if value is not None and not isinstance(value, kinds[name]):
            raise ConfigError(f"{name} must be of the class {kinds[name].__name__}, got a {type(value).__name__}.")
    for name, value in called.items():
        if value is not None and not callable(value):
            raise ConfigError(f"{name} is called, and must be a function, got a {type(value).__name__}.")


def require_vlm(vlm: Any) -> None:
    """Raises ConfigError where no model is given."""
    if vlm is None:
        raise ConfigError("vlm is None, and a question needs a model. Give what kinescan.vlm.load_vlm gives.")


def check_question(questions: Sequence[str], fps: float, compare: str | None, session: Session | None = None) -> None:
    """Refuses what `ask` cannot answer, before a model is loaded.

    Raises:
        ConfigError: no question was given, or a setting is out of range.
    """
    if questions is not None and (isinstance(questions, str | bytes) or not isinstance(questions, list | tuple)):
        raise ConfigError(f'questions must be a list, got a {type(questions).__name__}. Give ["What happens?"], say.')
    if not questions and not (session and session.asks):
        raise ConfigError("no question was given. Give at least one, in quotes.")
    for question in questions or ():
        if isinstance(question, bytes) or not isinstance(question, str | Iterable):
            raise ConfigError(f"a question must be text, or a row of token ids, got a {type(question).__name__}.")
        if not isinstance(question, Tensor) and not (question.strip() if isinstance(question, str) else question):
            raise ConfigError("a question is empty. Ask something, or leave it out.")
    check_fps(fps)
    if compare not in (None, "full"):
        raise ConfigError(f"compare can be 'full', got {compare!r}.")
    if compare and session and session.load is not None:
        raise ConfigError("compare needs the video from its start, and a saved stream is loaded. Leave one out.")


def check_together(
    video: str | Path | None, session: Session, *, allow_short: bool = False, reconnect: Reconnect | None = None
) -> None:
    """Refuses settings that have nothing to work on.

    Raises:
        ConfigError: nothing is given to watch or to load; or a setting is given that is about watching where nothing is
            watched, or about a live source where the video is a file.
    """
    if video is None:
        if session.load is None:
            raise ConfigError("no video was given. Give a file, a URL or -, or a saved stream by --load.")
        idle = {"save": session.save is not None, "watch": session.watch is not None, "allow_short": allow_short}
        idle["reconnect"] = reconnect is not None
        if names := " and ".join(name for name, is_given in idle.items() if is_given):
            raise ConfigError(
                f"{names}: that is for a video to be watched, and only a saved stream is given. Give a video, or leave "
                "it out."
            )
    elif reconnect is not None and not is_live(video):
        raise ConfigError(f"reconnect is about live sources, and {video} is a file. Leave it out.")


def require_saving(save: str | Path) -> None:
    """Refuses a place where what is watched cannot be saved, or where something else would be lost by it.

    Raises:
        CheckpointError: the file cannot be written, or is there and holds something other than a saved stream.
    """
    require_writable(save, error=CheckpointError)
    path = Path(save)
    if not path.exists():
        return
    require_regular(path, error=CheckpointError)
    if path.stat().st_size and not holds_stream(path):
        raise CheckpointError(
            f"{save} is there and holds no saved stream: it would be overwritten. Choose another name, or remove it."
        )
