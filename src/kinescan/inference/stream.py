import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from kinescan.data.transforms import EvalTransform
from kinescan.data.video import Reconnect, is_live
from kinescan.errors import CheckpointError, ConfigError
from kinescan.evaluation.multiview import check_finite
from kinescan.inference.exported import CausalModel, ExportedStep
from kinescan.inference.feed import Feed, WhenBehind
from kinescan.inference.model_source import ModelSource, record_of_export, resolve_model
from kinescan.inference.precision import Precision, computing_in
from kinescan.inference.stream_average import AverageKind, choose_average
from kinescan.inference.stream_state import fitting_state, load_left_time, load_stream_state, save_stream_state
from kinescan.inference.turns import FrameSource, Turn, as_path, check_frame, frames_of, turns_of
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_state import PKS4State
from kinescan.models.pks4_still import check_skipping
from kinescan.models.still import SkipUnchanged
from kinescan.runtime.urls import mask_url
from kinescan.settings import closest

logger = logging.getLogger(__name__)

_STATE_SECONDS = 60.0
"""How often a stream's state is written where it is kept in a file."""
_CLIPS_OF_A_MEAN = 4
"""A stream longer than so many clips is warned that `average="mean"` no longer follows what happens."""
_TINY_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True)
class StreamPrediction:
    """What the model says after a frame, given all frames so far.

    Attributes:
        frame_index: the frame's index in the video source, from 0.
        seconds: its time, or, where a frame is repeated, that at which it is shown again; None for frames that came
            without one.
        labels: the best classes, first the best.
        scores: their probabilities.
        logits: [K] float32 on the CPU, of every class: averaged over the last seconds (see `StreamSession`).
        camera: whose frame it is, where there are several.
        behind_seconds: how much later the prediction is than the frame would have come without delay; None where
            frames are not read by a thread of their own (see `kinescan.inference.feed`).
        num_dropped: frames of the video source dropped so far, to stay with it.
    """

    frame_index: int
    seconds: float | None
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    logits: Tensor
    camera: str | None = None
    behind_seconds: float | None = None
    num_dropped: int = 0


class StreamSession:
    """A causal model with the state of one stream; each frame costs the same time, and the state never grows.

    Args:
        model: a causal PKS4, or the folder or hub name of a saved one, a run's folder, or an exported step; used in
            evaluation mode, left as it is. Moved to another device later, it needs a new session.
        top: how many classes a prediction names.
        device: where to compute; by default where the model is.
        state: where to continue from, as `load_stream_state` reads it; None starts anew.
        average: of a clip classifier's scores: "exponential" (the older a frame, the less it counts), "sliding" (the
            last seconds count), or "mean": all frames alike, which gives exactly the logits of each prefix of the
            stream, and soon no longer moves. None: as the model averages if that forgets, else "exponential".
        average_seconds: how old a frame is when it counts 1 / e of the newest one, or no longer; by default a
            quarter of a training clip's length, or half of it, so that the label follows a change within that length.
        allow_code: open an exported step that may run code of its own; see `load_exported`.
        precision: of `push`: "bfloat16" or "float16" computes under autocast.

    Raises:
        ConfigError: the model is not causal; average or average_seconds is wrong, or the model answers for every frame.
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
        average: AverageKind | None = None,
        average_seconds: float | None = None,
        allow_code: bool = False,
        precision: Precision = "float32",
    ) -> None:
        _check_count("top", top)
        exported = record_of_export(model)
        if exported is not None and exported.step is None:
            kind = "causal, but exported" if exported.causal else "exported"
            raise ConfigError(
                f"{exported.model} is {kind} for whole clips of {exported.num_frames} frames, with no state between "
                "them. Export one step of the stream (kinescan export RUN FOLDER --step), give the run or the saved "
                "model that it was exported from, or score whole files with predict()."
            )
        resolved = resolve_model(model, device, allow_code=allow_code)
        if not isinstance(resolved, PKS4 | ExportedStep) or not resolved.config.causal:
            raise ConfigError(
                f"{resolved.name} looks at future frames, so it cannot run on a stream. Train a PKS4 with "
                "causal = true (kinescan train --set model.options.causal=true; in Python "
                "create_model(..., causal=True)), or score whole files with predict()."
            )
        self.model: CausalModel = resolved
        self._view = evaluation_view(resolved)
        self.top = min(top, resolved.config.num_classes)
        self.precision = precision
        computing_in(precision, resolved)
        self._skip_what_stands_still()
        self.state = PKS4State()
        if state is not None:
            self.continue_from(state)
        self._transform = EvalTransform(resolved.preprocessing, crops=1)
        self._average = choose_average(resolved, average, average_seconds)
        # whether predictions are the mean of all frames, which hardly moves after a while: see `_warn_of_mean`
        self._is_mean = self._average is None and resolved.config.average == "mean" and not resolved.answers_frames
        self._is_mean |= self._average is not None and self._average.kind == "mean"
        self._has_warned = False
        self._seconds: float | None = None
        self.last_time: float | None = None

    def push(self, frame: Tensor, *, frame_index: int | None = None, seconds: float | None = None) -> StreamPrediction:
        """Feeds one frame and gives what the model says now.

        Args:
            frame: uint8 [3, H, W], RGB, any size.
            frame_index: its index in the video source; by default how many frames were fed before.
            seconds: its time.

        Raises:
            ShapeError: the frame is not uint8 [3, H, W].
            NonFiniteError: the model gives NaN or infinity.
        """
        frame_index = self.state.frames_seen if frame_index is None else frame_index
        clip = self.prepare(frame, frame_index)
        with torch.no_grad(), computing_in(self.precision, self.model):
            forward = self._view.forward_stream if self.has_own_average else self._view.stream_frames
            answers, state = forward(clip, self.state)
        return self.take(clip, answers[0, -1], state, frame_index=frame_index, seconds=seconds)

    def warm_up(self) -> None:
        """Runs the model on two blank frames, so that what it compiles is compiled before the first frame.

        A live source would continue meanwhile, and predictions would fall behind it from the start.
        """
        size = self.model.preprocessing.size
        clip = self.prepare(torch.zeros(3, size, size, dtype=torch.uint8), 0)
        state = PKS4State()
        with torch.no_grad():
            for _ in range(2):
                state = self._view.stream_frames(clip, state)[1]

    @property
    def has_own_average(self) -> bool:
        """Whether the model's logits are predicted from as they are, averaged by the model or not at all."""
        return self._average is None

    def prepare(self, frame: Tensor, frame_index: int) -> Tensor:
        """A frame as the model takes it, [1, 1, 3, size, size] on its device; see `push`."""
        check_frame(frame, frame_index)
        clip: Tensor = self._transform(frame[None]).to(self.model.device)
        return clip

    def take(
        self, clip: Tensor, answer: Tensor, state: PKS4State, *, frame_index: int, seconds: float | None
    ) -> StreamPrediction:
        """What `push` gives once the model has run, here or in a batch of streams.

        Args:
            clip: what `prepare` gave.
            answer: [K], the model's logits: of `forward_stream` with `has_own_average`, else of `stream_frames`.
            state: the model's after the frame.
            frame_index: as for `push`.
            seconds: as for `push`.

        Raises:
            NonFiniteError: the logits hold NaN or infinity.
        """
        logits = answer.float().cpu()
        check_finite(logits, clip, name=f"frame {frame_index}")
        recent = self.state.recent
        if self._average is not None:
            logits, recent = self._average.push(logits, self._elapsed(seconds, frame_index), recent)
        self.state, self._seconds = replace(state, recent=recent), seconds
        self.last_time = time.time()
        self._warn_of_mean()
        scores, best = self.model.probabilities(logits).sort(descending=True, stable=True)
        return StreamPrediction(
            frame_index=frame_index,
            seconds=seconds,
            labels=tuple(self.model.class_names[index] for index in best[: self.top].tolist()),
            scores=tuple(scores[: self.top].tolist()),
            logits=logits,
        )

    @property
    def skip_unchanged(self) -> SkipUnchanged | None:
        """Which patches are not computed again, of the model that was given; see `PKS4.skip_unchanged`."""
        return getattr(self._view, "skip_unchanged", None)

    def _skip_what_stands_still(self) -> None:
        if isinstance(self._view, PKS4) and self._view.skip_unchanged is not None:
            check_skipping(self._view.config)
            self._view.skip_unchanged = self._view.skip_unchanged.at_distance(self.model.frame_seconds)

    def continue_from(self, state: PKS4State) -> None:
        """Continues with the state of a stream, of this model, instead of its own.

        Raises:
            CheckpointError: it is that of another model, or of several streams.
        """
        self.state = fitting_state(state, self._view)

    def restart(self) -> None:
        """Forgets all that was seen, as for a video source that begins anew."""
        self.state, self._seconds = PKS4State(), None

    def _elapsed(self, seconds: float | None, frame_index: int) -> float:
        """Since the frame before, as far as times tell it; else what the model knows."""
        if seconds is not None and self._seconds is not None and seconds > self._seconds:
            return seconds - self._seconds
        assert self._average is not None, "asked for an average only"
        known = self.model.frame_seconds
        if known is None and self._average.kind != "mean" and not self._average.counts_frames:
            if self.state.recent is not None and seconds is None:
                raise ConfigError(
                    f"average_seconds needs times, but frame {frame_index} came without one, and {self.model.name} "
                    "does not say how far apart frames are. Give each frame's seconds, or leave average_seconds out."
                )
            return _TINY_SECONDS
        return known or _TINY_SECONDS

    def _warn_of_mean(self) -> None:
        """Warns once that a mean over a whole stream no longer follows what happens."""
        seen, clip = self.state.frames_seen, self.model.preprocessing.num_frames
        if self._is_mean and not self._has_warned and seen > _CLIPS_OF_A_MEAN * clip:
            self._has_warned = True
            logger.warning(
                'average="mean" counts all %d frames so far alike: what is new weighs less and less, and the scores '
                "soon stand still. It is for single clips, of %d frames with this model; for a stream take "
                '"exponential" or "sliding".',
                *(seen, clip),
            )


def stream(
    model: ModelSource,
    source: FrameSource,
    *,
    every: int | None = None,
    top: int = 5,
    device: str | torch.device | None = None,
    state: PKS4State | str | Path | None = None,
    allow_short: bool = False,
    average: AverageKind | None = None,
    average_seconds: float | None = None,
    allow_code: bool = False,
    precision: Precision = "float32",
    when_behind: WhenBehind = "wait",
    reconnect: Reconnect | None = None,
) -> Generator[StreamPrediction, None, None]:
    """A prediction after each frame, at constant time and memory per frame, however long the video source.

    Frames are taken by their times, as far apart as those of the training clips were (`model.frame_seconds`; see
    `kinescan.data.resampling.resample`): the rate of the video source does not matter, a slower one is repeated.
    Scores are averaged over the last seconds (see `StreamSession`).

    Args:
        model: a causal PKS4, or the folder or hub name of a saved one, a run's folder (its best checkpoint), or an
            exported step.
        source: a video file, its bytes or a file object; a live source (see `LiveVideo`): "-" for standard input, a URL
            such as rtsp://..., or a named pipe; frames uint8 [T, 3, H, W] or [T, H, W, 3]; or an iterable of frames
            [3, H, W] or [H, W, 3], each alone or as a pair with its time in seconds. Files and live sources are decoded
            as they come; a file object that is not a pipe is read to its end first.
        every: feed each `every`-th frame by count, whatever their times; None takes frames by their times.
        top: how many classes a prediction names.
        device: where to compute; by default where the model is.
        state: where to continue from; None starts anew. A path is a file to continue from where it is there; it is
            written every minute and when the iterator ends: at the video source's end, by an error, or closed.
        allow_short: take what can be decoded of a cut or damaged file (see VideoReader).
        average: see `StreamSession`.
        average_seconds: see `StreamSession`.
        allow_code: see `StreamSession`.
        precision: see `StreamSession`.
        when_behind: "newest" drops frames where predictions fall behind the video source, and counts them; "wait" drops
            none (see `kinescan.inference.feed.Feed`). Nothing is dropped of a file.
        reconnect: open a live source again after a break; None ends with it.

    Returns:
        An iterator; nothing is decoded before the first `next`.

    Raises:
        ConfigError: the model is not causal, a setting is wrong, or the state's folder cannot be written to.
        CheckpointError: the state is that of another model, `model` is a folder that holds no saved model; or, at the
            end, the state's file cannot be written.
        VideoError: the video source cannot be read, or breaks off (while iterating: from here on).
        ShapeError: a frame is not uint8 [3, H, W].
        NonFiniteError: the model gives NaN or infinity.

    Source: PKS4 (arXiv 2604.26461) for the scan; the causal form is ours.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"], causal=True)
        >>> frames = (torch.zeros(3, 48, 64, dtype=torch.uint8) for _ in range(6))
        >>> [prediction.frame_index for prediction in stream(model, frames, every=2)]
        [0, 2, 4]
    """
    if every is not None:
        _check_count("every", every)
    source = as_path(source)
    session = session_from(
        *(model, state),
        top=top,
        device=device,
        average=average,
        average_seconds=average_seconds,
        allow_code=allow_code,
        precision=precision,
    )
    frames = frames_of(source, session.model, allow_short, reconnect)
    predictions = predictions_of(session, source, frames, every, when_behind=when_behind)
    return _kept(predictions, session, Path(state)) if isinstance(state, str | Path) else predictions


def session_from(
    model: ModelSource,
    state: PKS4State | str | Path | None,
    *,
    top: int = 5,
    device: str | torch.device | None = None,
    average: AverageKind | None = None,
    average_seconds: float | None = None,
    allow_code: bool = False,
    precision: Precision = "float32",
) -> StreamSession:
    """A session that continues from `state`, as `stream` takes it: a state, a file where that is there, or None.

    Raises:
        ConfigError: the model is not causal, the average is wrong, or the file's folder cannot be written to.
        CheckpointError: the state is that of another model, or damaged.
    """
    path = Path(state) if isinstance(state, str | Path) else None
    if path is not None and not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"state: {path.parent} is not a folder that can be written to. Make it, or name another file."
        )
    session = StreamSession(
        model,
        top=top,
        device=device,
        state=None if isinstance(state, str | Path) else state,
        average=average,
        average_seconds=average_seconds,
        allow_code=allow_code,
        precision=precision,
    )
    if path is not None and path.exists():
        session.continue_from(load_stream_state(path, model=session.model))
        session.last_time = load_left_time(path)
    return session


def left_time_of(session: StreamSession, source: FrameSource) -> float | None:
    """When a live source was left by the program before this one; None for files and frames, whose time stood still."""
    return session.last_time if isinstance(source, str | Path) and is_live(source) else None


def predictions_of(
    session: StreamSession,
    source: FrameSource,
    frames: Iterable[Tensor | tuple[Tensor, float]],
    every: int | None,
    *,
    after_seconds: float | None = None,
    when_behind: WhenBehind = "wait",
) -> Generator[StreamPrediction, None, None]:
    """What the session says after each frame that it is fed; those up to `after_seconds` were fed before.

    Args:
        session: of the stream.
        source: where the frames come from, for the log; a live one does not wait, so that the model is made ready
            before it is opened.
        frames: of the video source (see `frames_of`), each alone or with its time.
        every: as for `stream`.
        after_seconds: up to where the video source was seen before.
        when_behind: as for `stream`.

    Raises:
        ConfigError: `when_behind` is unknown.
    """
    name = mask_url(source) if isinstance(source, str | Path) else "the stream"
    left_time = left_time_of(session, source)
    turns = partial(turns_of, session.model, frames, every, name, after_seconds=after_seconds, left_time=left_time)
    from_live = isinstance(source, str | Path) and is_live(source)
    return _predictions(session, turns, name, checked_behind(when_behind, source), from_live=from_live)


def _predictions(
    session: StreamSession,
    turns: Callable[[], Iterator[Turn]],
    name: str,
    when_behind: WhenBehind,
    *,
    from_live: bool,
) -> Generator[StreamPrediction, None, None]:
    if from_live:
        session.warm_up()
    if when_behind == "wait":
        for turn in turns():
            yield pushed(session, turn)
        return
    with closing(Feed(turns, name=name, when_behind=when_behind)) as feed:
        for fed in feed.frames():
            prediction = pushed(session, fed.turn)
            yield replace(prediction, behind_seconds=fed.behind_seconds, num_dropped=fed.num_dropped)


def pushed(session: StreamSession, turn: Turn) -> StreamPrediction:
    """What a session says after a frame in its turn."""
    if turn.is_cut:
        session.restart()
    return session.push(turn.pixels, frame_index=turn.frame_index, seconds=turn.seconds)


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
                        save_stream_state(session.state, path, model=session.model, left_time=session.last_time)
                    except CheckpointError as error:
                        logger.warning("%s The stream continues.", error)
    finally:
        if session.state is not begun:
            save_stream_state(session.state, path, model=session.model, left_time=session.last_time)
            logger.info("the state after %d frames: %s", session.state.frames_seen, path)


def checked_behind(when_behind: str, source: FrameSource) -> WhenBehind:
    """What is done when predictions fall behind; of a file, nothing is dropped.

    Raises:
        ConfigError: unknown.
    """
    if when_behind not in get_args(WhenBehind):
        raise ConfigError(f"unknown when_behind {when_behind!r}. {closest(str(when_behind), get_args(WhenBehind))}")
    if when_behind == "newest" and isinstance(source, str | Path) and not is_live(source):
        logger.info("%s is a file, of which no frames are dropped", source)
        return "wait"
    return "newest" if when_behind == "newest" else "wait"


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value!r}. Give a whole number.")
