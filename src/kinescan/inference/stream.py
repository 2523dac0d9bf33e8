import logging
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kinescan.data.transforms import EvalTransform
from kinescan.data.video import LiveVideo, VideoReader, is_live
from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.evaluation.mode import evaluation_view
from kinescan.evaluation.multiview import check_finite
from kinescan.inference.source import ModelSource, record_of_export, resolve_model
from kinescan.layers.kinematic import KinematicState
from kinescan.layers.mamba import MambaState
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
        frame_index: the frame's place in the source, from 0.
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
        state: where to go on from, as `load_stream_state` reads it; None starts anew.

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
        if top < 1:
            raise ConfigError(f"top must be at least 1, got {top}.")
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
                f"{resolved.name} looks at frames to come, so it cannot run on a stream. Train a PKS4 with "
                "causal = true (kinescan train --set model.options.causal=true; in Python "
                "create_model(..., causal=True)), or score whole files with predict()."
            )
        self.model: PKS4 = resolved
        self._view = evaluation_view(resolved)
        self.top = min(top, resolved.config.num_classes)
        self.state = PKS4State() if state is None else _fitting_state(state, resolved)
        self._transform = EvalTransform(resolved.preprocessing, crops=1)

    def push(self, frame: Tensor, *, frame_index: int | None = None, seconds: float | None = None) -> StreamPrediction:
        """Feeds one frame and gives what the model says now.

        Args:
            frame: uint8 [3, H, W], RGB, any size.
            frame_index: its place in the source; by default how many frames were fed before.
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
        state: where to go on from; None starts anew. A path is a file to go on from where it is there, and to write
            every minute and when the iterator ends, however it ends: at the source's end, by an error, or closed.
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
    if every < 1:
        raise ConfigError(f"every must be at least 1, got {every}.")
    frames = _frames_of(source, allow_short) if isinstance(source, str | Path) else source
    if not isinstance(state, str | Path):
        return _predictions(StreamSession(model, top=top, device=device, state=state), frames, every)
    path = Path(state)
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"state: {path.parent} is no folder that can be written to. Make it, or name another file.")
    begun = load_stream_state(path) if path.exists() else None
    session = StreamSession(model, top=top, device=device, state=begun)
    return _kept(_predictions(session, frames, every), session, path)


def save_stream_state(state: PKS4State, path: str | Path) -> None:
    """Writes a stream's state to a safetensors file, to go on later or elsewhere.

    An earlier file is there until the new one is whole.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
    aside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
    try:
        save_file(tensors, aside, metadata={"kinescan_stream_state": "1", "frames_seen": str(state.frames_seen)})
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError(
            f"the stream's state cannot be written to {path}: {error}. Name a file in a folder with room."
        ) from error


def load_stream_state(path: str | Path) -> PKS4State:
    """Reads what `save_stream_state` wrote; give it to `stream` or `StreamSession` with the same model.

    Raises:
        CheckpointError: the file is missing, damaged, or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the stream's state cannot be read: {error}") from error
    if "kinescan_stream_state" not in metadata:
        raise CheckpointError(f"{path} holds tensors, but no stream's state. Give a file that save_stream_state wrote.")
    return _state_of(tensors, int(metadata["frames_seen"]))


def _state_of(tensors: Mapping[str, Tensor], frames_seen: int) -> PKS4State:
    """The inverse of `PKS4State.tensors`."""
    route = "class_tokens."
    scan = tensors.get("scanner.scan")
    return PKS4State(
        frames_seen=frames_seen,
        class_tokens={int(name.removeprefix(route)): tensors[name] for name in tensors if name.startswith(route)},
        kinematic=KinematicState(tensors.get("kinematic.correlation"), tensors.get("kinematic.variation")),
        scanner=None if scan is None else MambaState(scan, tensors["scanner.conv_tail"]),
        average=tensors.get("average"),
    )


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
                    save_stream_state(session.state, path)
                    written = time.monotonic()
    finally:
        if session.state is not begun:
            save_stream_state(session.state, path)
            logger.info("the state after %d frames: %s", session.state.frames_seen, path)


def _frames_of(source: str | Path, allow_short: bool) -> Iterator[tuple[Tensor, float]]:
    with LiveVideo(source) if is_live(source) else VideoReader(source, allow_short=allow_short) as video:
        yield from video


def _check_frame(frame: Tensor, frame_index: int) -> None:
    if not isinstance(frame, Tensor) or frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[0] != 3:
        given = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, Tensor) else type(frame).__name__
        raise ShapeError(
            f"frame {frame_index} must be a uint8 tensor [3, H, W], got {given.removeprefix('torch.')}. "
            "For an array [H, W, 3] use torch.from_numpy(array).permute(2, 0, 1)."
        )


def _fitting_state(state: PKS4State, model: PKS4) -> PKS4State:
    """The state on the model's device.

    Raises:
        CheckpointError: it is the state of another model, or of several streams.
    """
    device = next(model.parameters()).device
    moved = _state_of({name: tensor.to(device) for name, tensor in state.tensors().items()}, state.frames_seen)
    rows, columns = model.vit.grid
    expected: dict[str, tuple[int, ...]] = {"average": (1, model.head.in_features)}
    if model.scanner is not None:
        inner, size = model.scanner.mamba.A_log.shape
        expected["scanner.scan"] = (rows * columns, inner, size)
    tensors = moved.tensors()
    for name, shape in expected.items():
        given = tuple(tensors[name].shape) if name in tensors else None
        if moved.frames_seen and given != shape:
            raise CheckpointError(
                f"the state does not fit {model.name}: {name} is {given}, but this model's is {shape}. "
                "Give the state of one stream of the same model."
            )
    return moved
