import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.data.transforms import EvalTransform
from kinescan.data.video import LiveVideo, VideoReader, is_live
from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.evaluation.multiview import check_finite
from kinescan.inference.model_source import ModelSource, record_of_export, resolve_model
from kinescan.inference.stream_state import fitting_state, load_stream_state, save_stream_state
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4, PKS4State

logger = logging.getLogger(__name__)

_STATE_SECONDS = 60.0
"""How often a stream's state is written where it is kept in a file."""

FrameSource = str | Path | Iterable[Tensor | tuple[Tensor, float]]
"""A video file; "-" (standard input), a URL or a named pipe; or frames uint8 [3, H, W] as they come, each alone or with
its time in seconds."""


@dataclass(frozen=True, kw_only=True)
class StreamPrediction:
    """What the model says after a frame, of all it has seen so far.

    Attributes:
        frame_index: the frame's index in the source, from 0.
        seconds: its time; None for frames that came without one.
        labels: the best classes, first the best.
        scores: their probabilities.
        logits: [K] float32 on the CPU, of every class: those of the clip that ends with this frame.
    """

    frame_index: int
    seconds: float | None
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    logits: Tensor


class StreamSession:
    """A causal model with the state of one stream; each frame costs the same time, and the state never grows.

    Args:
        model: a causal PKS4, or the folder or hub name of a saved one, or a run's folder; used in evaluation mode, left
            as it is. Moved to another device later, it needs a new session.
        top: how many classes a prediction names.
        device: where to compute; by default where the model is.
        state: where to continue from, as `load_stream_state` reads it; None starts anew.

    Raises:
        ConfigError: the model is not causal.
        CheckpointError: the state is that of another model, or `model` is a folder that holds no saved model.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"], causal=True)
        >>> session = StreamSession(model)
        >>> first = session.push(torch.zeros(3, 48, 64, dtype=torch.uint8))
        >>> (first.frame_index, len(first.labels)), session.state.frames_seen
        ((0, 2), 1)
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        top: int = 5,
        device: str | torch.device | None = None,
        state: PKS4State | None = None,
    ) -> None:
        _check_count("top", top)
        exported = record_of_export(model)
        if exported is not None:
            kind = "causal, but exported" if exported.causal else "exported"
            raise ConfigError(
                f"{exported.model} is {kind}: an exported file takes whole clips of {exported.num_frames} frames "
                "and keeps no state between them. Give the run or the saved model that it was exported from, or score "
                "whole files with predict()."
            )
        resolved = resolve_model(model, device)
        if not isinstance(resolved, PKS4) or not resolved.config.causal:
            raise ConfigError(
                f"{resolved.name} looks at future frames, so it cannot run on a stream. Train a PKS4 with "
                "causal = true (kinescan train --set model.options.causal=true; in Python "
                "create_model(..., causal=True)), or score whole files with predict()."
            )
        self.model: PKS4 = resolved
        self._view = evaluation_view(resolved)
        self.top = min(top, resolved.config.num_classes)
        self.state = PKS4State() if state is None else fitting_state(state, resolved)
        self._transform = EvalTransform(resolved.preprocessing, crops=1)

    def push(self, frame: Tensor, *, frame_index: int | None = None, seconds: float | None = None) -> StreamPrediction:
        """Feeds one frame and gives what the model says now.

        Args:
            frame: uint8 [3, H, W], RGB, any size.
            frame_index: its index in the source; by default how many frames were fed before.
            seconds: its time.

        Raises:
            ShapeError: the frame is not uint8 [3, H, W].
            NonFiniteError: the model gives NaN or infinity.
        """
        frame_index = self.state.frames_seen if frame_index is None else frame_index
        _check_frame(frame, frame_index)
        clip = self._transform(frame[None]).to(self.model.device)  # [1, 1, 3, size, size]
        with torch.no_grad():
            prefixes, state = self._view.forward_stream(clip, self.state)
        logits = prefixes[0, -1].float().cpu()
        check_finite(logits, clip, name=f"frame {frame_index}")
        self.state = state
        scores, best = logits.softmax(0).sort(descending=True, stable=True)
        return StreamPrediction(
            frame_index=frame_index,
            seconds=seconds,
            labels=tuple(self.model.class_names[index] for index in best[: self.top].tolist()),
            scores=tuple(scores[: self.top].tolist()),
            logits=logits,
        )


def stream(
    model: ModelSource,
    source: FrameSource,
    *,
    every: int = 1,
    top: int = 5,
    device: str | torch.device | None = None,
    state: PKS4State | str | Path | None = None,
    allow_short: bool = False,
) -> Generator[StreamPrediction, None, None]:
    """A prediction after each frame, at constant time and memory per frame, however long the source.

    The logits after a frame are those that `model` gives for the clip of all frames up to it.

    Args:
        model: a causal PKS4, or the folder or hub name of a saved one, or a run's folder (its best checkpoint).
        source: a video file, decoded as it goes; a live source, read as it comes (see `LiveVideo`): "-" for standard
            input, a URL such as rtsp://..., or a named pipe; or an iterable of frames uint8 [3, H, W], each alone or as
            a pair with its time in seconds.
        every: feed each `every`-th frame and skip the others; choose it so that frames lie about as far apart as in
            the clips of the training.
        top: how many classes a prediction names.
        device: where to compute; by default where the model is.
        state: where to continue from; None starts anew. A path is a file to continue from where it is there, and to
            write every minute and when the iterator ends, however it ends: at the source's end, by an error, or closed.
        allow_short: take what can be decoded of a cut or damaged file (see VideoReader).

    Returns:
        An iterator; nothing is decoded before the first `next`.

    Raises:
        ConfigError: the model is not causal, `every` or `top` is below 1, or the state's folder cannot be written to.
        CheckpointError: the state is that of another model, or `model` is a folder that holds no saved model; at the
            end, the state's file cannot be written.
        VideoError: the source cannot be read, or breaks off (while iterating: from here on).
        ShapeError: a frame is not uint8 [3, H, W] (while iterating).
        NonFiniteError: the model gives NaN or infinity (while iterating).

    Source: PKS4 (arXiv 2604.26461) for the scan; the causal form is ours.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"], causal=True)
        >>> frames = (torch.zeros(3, 48, 64, dtype=torch.uint8) for _ in range(6))
        >>> [prediction.frame_index for prediction in stream(model, frames, every=2)]
        [0, 2, 4]
    """
    _check_count("every", every)
    if not isinstance(state, str | Path):
        session = StreamSession(model, top=top, device=device, state=state)
        return _predictions(session, _frames_of(source, session, allow_short), every)
    path = Path(state)
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"state: {path.parent} is not a folder that can be written to. Make it, or name another file."
        )
    session = StreamSession(model, top=top, device=device)
    if path.exists():
        session.state = fitting_state(load_stream_state(path, model=session.model), session.model)
    return _kept(_predictions(session, _frames_of(source, session, allow_short), every), session, path)


def _predictions(
    session: StreamSession, frames: Iterable[Tensor | tuple[Tensor, float]], every: int
) -> Generator[StreamPrediction, None, None]:
    for frame_index, entry in enumerate(frames):
        if frame_index % every == 0:
            frame, seconds = entry if isinstance(entry, tuple) else (entry, None)
            yield session.push(frame, frame_index=frame_index, seconds=seconds)


def _kept(
    predictions: Generator[StreamPrediction, None, None], session: StreamSession, path: Path
) -> Generator[StreamPrediction, None, None]:
    """The same, with the state written each minute and at the end."""
    written, begun = time.monotonic(), session.state
    try:
        with closing(predictions):
            for prediction in predictions:
                yield prediction
                if time.monotonic() - written > _STATE_SECONDS:
                    written = time.monotonic()
                    # room may be made until the next minute: the stream continues meanwhile
                    try:
                        save_stream_state(session.state, path, model=session.model)
                    except CheckpointError as error:
                        logger.warning("%s The stream continues.", error)
    finally:
        if session.state is not begun:
            save_stream_state(session.state, path, model=session.model)
            logger.info("the state after %d frames: %s", session.state.frames_seen, path)


def _frames_of(
    source: FrameSource, session: StreamSession, allow_short: bool
) -> Iterable[Tensor | tuple[Tensor, float]]:
    if not isinstance(source, str | Path):
        return source
    return _decoded(source, allow_short=allow_short, square_pixels=session.model.preprocessing.square_pixels)


def _decoded(source: str | Path, *, allow_short: bool, square_pixels: bool) -> Iterator[tuple[Tensor, float]]:
    if is_live(source):
        opened: LiveVideo | VideoReader = LiveVideo(source, square_pixels=square_pixels)
    else:
        opened = VideoReader(source, allow_short=allow_short, square_pixels=square_pixels)
    with opened as video:
        yield from video


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value!r}. Give a whole number.")


def _check_frame(frame: Tensor, frame_index: int) -> None:
    if (
        not isinstance(frame, Tensor)
        or frame.dtype != torch.uint8
        or frame.ndim != 3
        or frame.shape[0] != 3
        or not frame.numel()
    ):
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, Tensor) else type(frame).__name__
        raise ShapeError(
            f"frame {frame_index} must be a uint8 tensor [3, H, W], got {given.removeprefix('torch.')}. "
            "For an array [H, W, 3] use torch.from_numpy(array).permute(2, 0, 1)."
        )
