from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kinescan.config import parse_overrides
from kinescan.data.video import Reconnect, VideoReader, is_live, refuse_terminal
from kinescan.errors import CheckpointError, ConfigError
from kinescan.inference.ask import AskReport, Session, ask, check_question
from kinescan.inference.ask_settings import AskSettings
from kinescan.runtime.atomic_write import require_writable
from kinescan.runtime.device import choose_device
from kinescan.runtime.files import read_text
from kinescan.settings import build_settings
from kinescan.vlm import load_vlm
from kinescan.vlm.snapshot import read_snapshot

__all__ = ["ask_session", "ask_settings", "prepare_ask", "read_questions"]


def ask_session(**given: Any) -> Session:
    """What lasts longer than one question: see `kinescan.inference.ask.Session` for its fields."""
    return Session(**given)


def prepare_ask(
    video: str | Path | None,
    questions: Sequence[str],
    *,
    model: str,
    budget: int = 4096,
    fps: float = 1.0,
    memory: str | None = None,
    compare: str | None = None,
    allow_short: bool = False,
    device: str = "auto",
    settings: AskSettings | None = None,
    session: Session | None = None,
    reconnect: Reconnect | None = None,
) -> Callable[..., AskReport]:
    """Checks everything that was asked for, and only then loads the model.

    Args:
        video: a video file, a URL, or "-" for standard input; None where a saved stream is asked alone.
        questions: each asked for itself.
        model: folder or hub name.
        budget: tokens of the past that a frame may see.
        fps: frames per second shown to the model.
        memory: what the full KV cache takes at most.
        compare: "full" answers with full attention too.
        allow_short: use what can be decoded of a cut or damaged file.
        device: "auto" or the name of one.
        settings: further ones.
        session: saving, loading, and questions while watching.
        reconnect: how a live source is opened again after a break.

    Returns:
        `kinescan.inference.ask.ask` with all this given; it takes `on_progress` and `on_text`.

    Raises:
        ConfigError: a setting is wrong, or no question was given.
        VideoError: the file cannot be read.
        CheckpointError: the model, or the saved stream, cannot be read, or what is watched cannot be saved there.
    """
    session, settings = session or Session(), settings or AskSettings()
    check_question(questions, fps, compare, session)
    if video is None and session.load is None:
        raise ConfigError("no video was given. Give a file, a URL or -, or a saved stream by --load.")
    # A slip of the pen is named before gigabytes are read.
    settings.of_stream(budget=budget, fps=fps, memory=memory)
    if session.load is not None:
        read_snapshot(session.load)
    if session.save is not None:
        require_writable(session.save, error=CheckpointError)
    if video is not None:
        refuse_terminal(video)
        if not is_live(video):
            VideoReader(video, allow_short=allow_short).close()
    vlm = load_vlm(model, device=choose_device(device), dtype=settings.dtype, merge_adapter=settings.merge_adapter)
    return partial(
        ask,
        video,
        questions,
        vlm=vlm,
        budget=budget,
        fps=fps,
        memory=memory,
        compare=compare,
        allow_short=allow_short,
        settings=settings,
        session=session,
        reconnect=reconnect,
    )


def ask_settings(overrides: Sequence[str], given: dict[str, Any]) -> tuple[AskSettings, Reconnect]:
    """Settings from `--set NAME=VALUE`, with those that a flag of their own gives; and how to reconnect.

    Args:
        overrides: texts such as "temperature=0.7" and "reconnect.limit_seconds=600".
        given: name -> value; None where no flag was given.

    Raises:
        ConfigError: one is unknown, or its value makes no sense.

    Example:
        >>> ask_settings(["temperature=0.7"], {"seed": 3})[0].generation.temperature
        0.7
    """
    values = parse_overrides(overrides)
    reconnect = build_settings(Reconnect, values.pop("reconnect", {}), where="reconnect")
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    values |= {name: value for name, value in given.items() if value not in (None, [], ())}
    return build_settings(AskSettings, {**asdict(AskSettings()), **values}), reconnect


def read_questions(path: str | Path) -> list[str]:
    """Questions of a text file, one a line; empty lines and those that start with # are left out.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    lines = [line.strip() for line in read_text(path, error=ConfigError).splitlines()]
    questions = [line for line in lines if line and not line.startswith("#")]
    if not questions:
        raise ConfigError(f"{path} holds no question. Write one a line.")
    return questions
