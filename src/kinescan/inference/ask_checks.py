"""What `ask` refuses before a model is read: settings that contradict each other, or that would do nothing."""

from collections.abc import Sequence
from pathlib import Path

from kinescan.data.video import Reconnect, is_live
from kinescan.errors import CheckpointError, ConfigError
from kinescan.inference.ask_session import Session
from kinescan.runtime.atomic_write import require_writable
from kinescan.runtime.files import require_regular
from kinescan.vlm.config import check_fps
from kinescan.vlm.snapshot import holds_stream

__all__ = ["check_question", "check_together", "require_saving"]


def check_question(questions: Sequence[str], fps: float, compare: str | None, session: Session | None = None) -> None:
    """Refuses what `ask` cannot answer, before a model is loaded.

    Raises:
        ConfigError: no question was given, or a setting is out of range.
    """
    if not questions and not (session and session.asks):
        raise ConfigError("no question was given. Give at least one, in quotes.")
    if any(isinstance(question, str) and not question.strip() for question in questions):
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
