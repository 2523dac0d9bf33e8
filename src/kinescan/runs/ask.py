from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kinescan.config import parse_overrides
from kinescan.data.video import Reconnect, VideoReader, is_live, refuse_terminal
from kinescan.errors import ConfigError
from kinescan.inference.ask import AskReport, ask
from kinescan.inference.ask_checks import check_question, check_together, require_saving
from kinescan.inference.ask_session import Session
from kinescan.inference.ask_settings import AskSettings
from kinescan.runtime.device import choose_device
from kinescan.runtime.files import read_text
from kinescan.settings import build_settings
from kinescan.vlm import load_vlm
from kinescan.vlm.saved_stream import saved_settings

BUDGET = 4096

__all__ = ["ask_session", "ask_settings", "prepare_ask", "read_questions"]


def ask_session(**given: Any) -> Session:
    """What lasts longer than one question: see `kinescan.inference.ask.Session` for its fields."""
    return Session(**given)


def prepare_ask(
    video: str | Path | None,
    questions: Sequence[str],
    *,
    model: str,
    budget: int | None = None,
    fps: float | None = None,
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
        budget: tokens of the past that a frame may see; 4096 by default, or as the saved stream has it.
        fps: frames per second shown to the model; 1 by default, or as the saved stream has it.
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
        ConfigError: a setting is wrong, contradicts another one, or would do nothing; or no question was given.
        VideoError: the file cannot be read.
        CheckpointError: the model, or the saved stream, cannot be read, or what is watched cannot be saved there.
    """
    session, settings = session or Session(), settings or AskSettings()
    shown_fps = 1.0 if fps is None else fps
    check_question(questions, shown_fps, compare, session)
    check_together(video, session, allow_short=allow_short, reconnect=reconnect)
    seen_tokens = BUDGET if budget is None else budget
    # A slip of the pen is named before gigabytes are read.
    if session.load is None:
        settings.of_stream(budget=seen_tokens, fps=shown_fps, memory=memory)
        if budget is not None and settings.policy == "none":
            raise ConfigError(f"policy none lets frames see everything, and --budget {budget} is given. Leave one out.")
    else:
        config, pixels = saved_settings(session.load)
        settings.require_those_of(session.load, config, pixels, budget=budget, fps=fps, memory_budget=memory)
    if session.save is not None:
        require_saving(session.save)
    if video is not None:
        refuse_terminal(video)
        if not is_live(video):
            VideoReader(video, allow_short=allow_short).close()
    vlm = load_vlm(
        model,
        device=choose_device(device, setting="device"),
        dtype=settings.dtype,
        merge_adapter=settings.merge_adapter,
    )
    return partial(
        ask,
        video,
        questions,
        vlm=vlm,
        budget=seen_tokens,
        fps=shown_fps,
        memory=memory,
        compare=compare,
        allow_short=allow_short,
        settings=settings,
        session=session,
        reconnect=reconnect,
    )


def ask_settings(overrides: Sequence[str], given: dict[str, Any]) -> tuple[AskSettings, Reconnect | None]:
    """Settings from `--set NAME=VALUE`, with those that a flag of their own gives; and how to reconnect, where given.

    Args:
        overrides: texts such as "temperature=0.7" and "reconnect.limit_seconds=600".
        given: name -> value; None where no flag was given.

    Raises:
        ConfigError: one is unknown, its value makes no sense, or a flag says otherwise than `--set`.

    Example:
        >>> ask_settings(["temperature=0.7"], {"seed": 3})[0].generation.temperature
        0.7
    """
    values = parse_overrides(overrides)
    found = values.pop("reconnect", None)
    reconnect = None if found is None else build_settings(Reconnect, found, where="reconnect")
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    flags = {name: value for name, value in given.items() if value not in (None, [], ())}
    for name, value in flags.items():
        if name in values and values[name] != value:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value!r}, and --set {name} is {values[name]!r}. Give one of the two."
            )
    return build_settings(AskSettings, {**asdict(AskSettings()), **values, **flags}), reconnect


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
