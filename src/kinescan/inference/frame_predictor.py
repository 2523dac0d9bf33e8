"""What a model says of every frame of a file, however long the file is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinescan.data.timestamps import timed_frames
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import Limits, VideoReader
from kinescan.errors import ConfigError
from kinescan.evaluation.multiview import check_finite, known_labels
from kinescan.events.predictions import FramePredictions
from kinescan.inference.model_source import ModelSource, resolve_model
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import PKS4State
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.urls import refuse_url

OVERLAP = 0.5
"""Fraction of a window that the next one sees again."""


def predict_frames(
    model: ModelSource,
    path: str | Path,
    *,
    video_id: str | None = None,
    overlap: float = OVERLAP,
    device: str | torch.device | None = None,
    limits: Limits | None = None,
    allow_short: bool = False,
    on_frame: Callable[[float, NDArray[np.float32]], None] | None = None,
) -> FramePredictions:
    """The probabilities of every class in every frame of a file, of a model that answers for frames.

    Frames are taken by their times, at the rate that the model was trained with. A causal model passes over the file
    once, so that memory does not depend on its length. Any other model sees overlapping windows of as many frames as it
    was trained with: where two windows hold a frame, its probabilities are averaged, and the nearer a frame stands to
    the middle of a window, the more that window counts.

    Args:
        model: a classifier with `output="frames"`; the folder or hub name of a saved one; or the folder of a run. It is
            used in evaluation mode and left as it is, so that threads may share it.
        path: the video file.
        video_id: which video the result is of; by default the file's name.
        overlap: fraction of a window, in [0, 1), that the next one sees again; a causal model has no windows.
        device: where to compute; by default where the model is.
        limits: what the file may take.
        allow_short: take what can be decoded of a cut or damaged file (see VideoReader).
        on_frame: called with time and probabilities [K] of each frame of a causal model as they are there.

    Raises:
        ConfigError: the model answers for whole clips, or `overlap` is out of range.
        CheckpointError: `model` is a folder or name that holds no saved model.
        VideoError: the file cannot be read.
        NonFiniteError: the model gives NaN or infinity.

    Example:
        >>> import tempfile
        >>> from kinescan.data.video import write_video
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["background", "fall"], causal=True, output="frames")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(12, 3, 64, 64, dtype=torch.uint8), fps=8)
        ...     found = predict_frames(model, f"{folder}/a.mp4")
        >>> found.scores.shape, found.classes, found.seconds[:3].tolist(), found.end_seconds
        ((12, 2), ('background', 'fall'), [0.0, 0.125, 0.25], 1.5)
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap must lie in [0, 1), got {overlap}.")
    refuse_url(path, "Answer for a live source with kinescan stream, or fetch the file first.")
    resolved = require_frames(resolve_model(model, device))
    labels = known_labels(resolved)
    view, settings = evaluation_view(resolved), resolved.preprocessing
    name = str(path) if video_id is None else video_id
    with (
        VideoReader(path, limits=limits, allow_short=allow_short, square_pixels=settings.square_pixels) as video,
        torch.no_grad(),
    ):
        frames = timed_frames(video, rate_of(resolved))
        clips = (pixels for pixels, _ in video.in_order(frames.positions.tolist()))
        # behind a pause the model begins anew: nothing is stretched over it
        parts = [islice(clips, length) for length in frames.lengths]
        if isinstance(view, PKS4) and view.config.causal:
            answers = chain.from_iterable(_one_pass(view, part, settings, name) for part in parts)
            scores = _told(answers, frames.seconds.tolist(), on_frame)
        else:
            hop = max(1, round(settings.num_frames * (1 - overlap)))
            windows = [
                _windows(view, part, settings, name, num_frames=length, hop=hop)
                for part, length in zip(parts, frames.lengths, strict=True)
            ]
            scores = np.concatenate(windows)
    return FramePredictions(
        video_id=Path(path).name if video_id is None else video_id,
        seconds=frames.seconds,
        scores=scores,
        classes=labels,
        end_seconds=max(frames.end_seconds, float(frames.seconds[-1])),
    )


def require_frames(model: VideoClassifier) -> VideoClassifier:
    """The model itself, if it answers for every frame.

    Raises:
        ConfigError: it answers for whole clips.
    """
    if not model.answers_frames:
        raise ConfigError(
            f"{model.name} answers for whole clips, not for every frame. Train it on labels with a start and an end, "
            'which sets model.options.output = "frames", or classify whole files with predict().'
        )
    return model


def rate_of(model: VideoClassifier) -> float:
    """Frames a second at which the model sees a file: those of its training; 0 where they are unknown."""
    if model.preprocessing.frame_rate:
        return model.preprocessing.frame_rate
    return 0.0 if model.timing is None else 1.0 / model.timing.median_seconds


def _told(
    answers: Iterator[NDArray[np.float32]],
    seconds: Sequence[float],
    on_frame: Callable[[float, NDArray[np.float32]], None] | None,
) -> NDArray[np.float32]:
    """[N, K] probabilities of all frames, each told with its time as it is there."""
    found = []
    for time, own in zip(seconds, answers, strict=True):
        found.append(own)
        if on_frame is not None:
            on_frame(time, own)
    return np.stack(found)


def _one_pass(
    model: PKS4, frames: Iterable[Tensor], settings: Preprocessing, name: str
) -> Iterator[NDArray[np.float32]]:
    """[K] probabilities of frame after frame."""
    state = PKS4State()
    transform = EvalTransform(settings, crops=1)
    frames = iter(frames)
    while chunk := list(islice(frames, settings.num_frames)):
        clip = transform(torch.stack(chunk)).to(model.device)  # [1, n, 3, size, size]
        logits, state = model.forward_stream(clip, state)
        check_finite(logits, clip, name=name)
        yield from model.probabilities(logits)[0].float().cpu().numpy()


def _windows(
    model: VideoClassifier, frames: Iterable[Tensor], settings: Preprocessing, name: str, *, num_frames: int, hop: int
) -> NDArray[np.float32]:
    """[N, K] probabilities, averaged over the windows that hold a frame."""
    transform = EvalTransform(settings, crops=1)
    length = min(settings.num_frames, num_frames)
    starts = [*range(0, num_frames - length, hop), num_frames - length]
    steps = torch.arange(length, dtype=torch.float64)
    weight = torch.minimum(steps, steps.flip(0)) + 1
    sums = torch.zeros(num_frames, model.config.num_classes, dtype=torch.float64)
    weights = torch.zeros(num_frames, 1, dtype=torch.float64)
    kept: list[Tensor] = []
    first, frames = 0, iter(frames)
    for start in starts:
        kept, first = kept[start - first :], start
        missing = [transform(frame[None])[0] for frame in islice(frames, length - len(kept))]
        kept += missing
        clip = torch.cat(kept)[None].to(model.device)
        logits = model(clip)
        check_finite(logits, clip, name=name)
        sums[start : start + length] += weight[:, None] * model.probabilities(logits)[0].cpu().double()
        weights[start : start + length] += weight[:, None]
    scores: NDArray[np.float32] = (sums / weights).float().numpy()
    return scores
