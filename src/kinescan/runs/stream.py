from collections.abc import Generator
from pathlib import Path

from kinescan.inference.stream import StreamPrediction, stream
from kinescan.runs.folder import model_folder
from kinescan.runtime.device import choose_device


def stream_source(
    source: str | Path,
    *,
    model: str | None = None,
    every: int | None = None,
    top: int = 1,
    device: str = "auto",
    state: str | Path | None = None,
    allow_short: bool = False,
) -> Generator[StreamPrediction, None, None]:
    """A prediction for each frame of a file or a live source.

    Args:
        source: a video file, a URL, or "-" for standard input.
        model: a run's folder, a saved causal model or a hub name; None for the newest run.
        every: feed every n-th frame by count; None takes frames by their times, as far apart as in training.
        top: how many classes to name.
        device: "auto" or the name of one.
        state: file to continue from where it is there; written every minute and at the end.
        allow_short: use what can be decoded of a cut or damaged file.

    Raises:
        ConfigError: no model was given, no such device, or a setting is wrong; see `kinescan.inference.stream.stream`.
        CheckpointError: the model or the state cannot be read.
        VideoError: the source cannot be read.
    """
    return stream(
        model_folder(model, hint="--model RUN"),
        source,
        every=every,
        top=top,
        device=choose_device(device),
        state=state,
        allow_short=allow_short,
    )
