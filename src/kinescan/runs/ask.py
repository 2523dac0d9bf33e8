from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kinescan.data.video import VideoReader, is_live, refuse_terminal
from kinescan.inference.ask import AskReport, ask, check_question
from kinescan.runtime.device import choose_device
from kinescan.vlm import StreamConfig, load_vlm


def prepare_ask(
    video: str | Path,
    questions: Sequence[str],
    *,
    model: str,
    budget: int = 4096,
    fps: float = 1.0,
    policy: str = "statekv",
    compare: str | None = None,
    storage: str = "memory",
    allow_short: bool = False,
    device: str = "auto",
) -> Callable[..., AskReport]:
    """Checks everything that was asked for, and only then loads the model.

    Args:
        video: a video file, a URL, or "-" for standard input.
        questions: each asked for itself.
        model: folder or hub name.
        budget: tokens of the past that a frame may see.
        fps: frames per second shown to the model.
        policy: what chooses them.
        compare: "full" answers with full attention too.
        storage: where all keys and values are kept.
        allow_short: use what can be decoded of a cut or damaged file.
        device: "auto" or the name of one.

    Returns:
        `kinescan.inference.ask.ask` with all this given; it takes `on_progress` and `on_text`.

    Raises:
        ConfigError: a setting is wrong, or no question was given.
        VideoError: the file cannot be read.
        CheckpointError: the model cannot be read.
    """
    check_question(questions, fps, compare)
    settings: dict[str, Any] = {"budget": budget, "policy": policy, "fps": fps, "storage": storage}
    # A slip of the pen is named before gigabytes are read.
    StreamConfig(**settings)
    refuse_terminal(video)
    if not is_live(video):
        VideoReader(video, allow_short=allow_short).close()
    vlm = load_vlm(model, device=choose_device(device))
    given: dict[str, Any] = {"compare": compare, "allow_short": allow_short, **settings}
    return partial(ask, video, questions, vlm=vlm, **given)
