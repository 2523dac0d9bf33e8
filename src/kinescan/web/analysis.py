"""What the page shows of a video: scores over time, events, what moved and changed, and the scanner's update speed."""

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kinescan.data.sampling import view_indices
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import VideoReader
from kinescan.errors import VideoError
from kinescan.events.detector import EventDetector, EventUpdate
from kinescan.inference.event_rules import model_rules
from kinescan.inference.explain import KinematicMaps, kinematic_maps
from kinescan.inference.frame_predictor import predict_frames
from kinescan.inference.predictor import predict
from kinescan.inference.stream import stream
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.web.giving_up import check_wanted
from kinescan.web.media import check_length, video_limits
from kinescan.web.settings import ServeLimits

MOST_SHOWN = 6
"""Classes whose curves are drawn."""


@dataclass(frozen=True)
class Interval:
    """An event.

    Attributes:
        label: what happened.
        start: in seconds from the start of the video.
        end: in seconds from the start of the video.
        score: at its peak.
    """

    label: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that is shown of one video with one model.

    Attributes:
        labels: the model's classes.
        seconds: [N], of the predictions.
        scores: [N, K] in [0, 1].
        best: the class with the highest score for the whole video, as `ks.predict` and the service name it; of a model
            that answers for every frame, the class with the highest score on average.
        best_score: its score.
        events: starts and ends; empty for a model that answers for the whole video.
        duration: of the video, seconds.
        frames: [T, 3, H, W] uint8, the sampled frames as they are in the video.
        frame_seconds: [T].
        maps: what moved and changed between them; None for a model that is not a PKS4.
        update_speed: [T, Hp, Wp], mean step size (Delta) of the scanner at each patch; None without a scanner.
        speed_over_time: [S, Hp, Wp], the same over the whole video; None without a scanner.
        speed_seconds: [S], increasing.
    """

    labels: tuple[str, ...]
    seconds: NDArray[np.float64]
    scores: NDArray[np.float64]
    best: str
    best_score: float
    events: tuple[Interval, ...]
    duration: float
    frames: Tensor
    frame_seconds: tuple[float, ...]
    maps: KinematicMaps | None
    update_speed: Tensor | None
    speed_over_time: Tensor | None
    speed_seconds: NDArray[np.float64]


def analyse(model: VideoClassifier, path: str | Path, limits: ServeLimits) -> Analysis:
    """Looks at a file with a model.

    Args:
        model: any classifier; a causal PKS4 gives scores for every moment.
        path: the file.
        limits: on its length and size.

    Raises:
        RequestProblem: the video is too long.
        VideoError: it cannot be read.
    """
    bounds = video_limits(limits)
    with VideoReader(path, limits=bounds, square_pixels=model.preprocessing.square_pixels) as reader:
        check_length(reader.duration_seconds, limits)
        sampled, duration = reader.read(_clips(model, reader, 1)[0]), reader.duration_seconds
        first = float(reader.pts_seconds[0])
        check_wanted()
        maps, speed = _maps_and_speeds(model, sampled.pixels)
        is_causal = isinstance(model, PKS4) and model.config.causal
        speeds = [] if is_causal or speed is None else _speeds_of_clips(model, reader)
    whole = None if model.answers_frames else _whole_video(model, path, limits)
    if isinstance(model, PKS4) and model.config.causal:
        over_time = _over_time(model, path, duration)
    elif whole is None:
        over_time = _frame_by_frame(model, path, duration, speeds, limits)
    else:
        over_time = _alike_throughout(whole, duration, speeds)
    named = over_time.scores.mean(0) if whole is None else whole
    return Analysis(
        labels=model.class_names,
        seconds=over_time.seconds,
        scores=over_time.scores,
        best=model.class_names[int(named.argmax())],
        best_score=float(named.max()),
        events=over_time.events,
        duration=duration,
        frames=sampled.pixels,
        frame_seconds=tuple((sampled.pts_seconds - first).tolist()),
        maps=maps,
        update_speed=speed,
        speed_over_time=over_time.speeds,
        speed_seconds=over_time.speed_seconds,
    )


@dataclass(frozen=True, eq=False)
class _OverTime:
    seconds: NDArray[np.float64]
    scores: NDArray[np.float64]
    events: tuple[Interval, ...]
    speeds: Tensor | None
    speed_seconds: NDArray[np.float64]


def _over_time(model: PKS4, path: str | Path, duration: float) -> _OverTime:
    """A causal model sees every moment: scores and update speeds come from one pass over the whole video."""
    detector = EventDetector(model.class_names, model_rules(model), stream_id="page")
    view = evaluation_view(model)
    times, rows, updates, moments, maps = [], [], [], [], []
    with _recorded_speeds(view) as speeds:
        for prediction in stream(view, path):
            check_wanted()
            assert prediction.seconds is not None, "frames of files have times"
            scores = model.probabilities(prediction.logits).double().numpy()
            times.append(prediction.seconds)
            rows.append(scores)
            updates += detector.push(prediction.seconds, scores)
            found = _speed_map(view, speeds, num_frames=1)
            speeds.clear()
            if found is not None:
                moments.append(prediction.seconds)
                maps.append(found[0])
    updates += detector.finish(duration)
    return _OverTime(
        seconds=np.array(times),
        scores=np.stack(rows),
        events=_ended(updates, duration),
        speeds=torch.stack(maps) if maps else None,
        speed_seconds=np.array(moments),
    )


def _whole_video(model: VideoClassifier, path: str | Path, limits: ServeLimits) -> NDArray[np.float64]:
    """[K], as `ks.predict` and the service say it."""
    [found] = predict(model, path, top=model.config.num_classes, limits=video_limits(limits))
    if found.error is not None:
        raise VideoError(path, found.error)
    by_label = dict(zip(found.labels, found.scores, strict=True))
    return np.array([by_label[label] for label in model.class_names])


def _alike_throughout(
    scores: NDArray[np.float64], duration: float, speeds: Sequence[tuple[float, Tensor]]
) -> _OverTime:
    """A model that answers for the whole video has the same scores at all its moments."""
    return _OverTime(
        seconds=np.array([0.0, duration]),
        scores=np.stack([scores, scores]),
        events=(),
        speeds=torch.stack([speed for _, speed in speeds]) if speeds else None,
        speed_seconds=np.array([second for second, _ in speeds]),
    )


def _frame_by_frame(
    model: VideoClassifier,
    path: str | Path,
    duration: float,
    speeds: Sequence[tuple[float, Tensor]],
    limits: ServeLimits,
) -> _OverTime:
    """A model that answers for every frame and looks at those around it."""
    found = predict_frames(model, path, limits=video_limits(limits))
    detector = EventDetector(model.class_names, model_rules(model), stream_id="page")
    scores = found.scores.astype(np.float64)
    updates = [
        update for second, row in zip(found.seconds, scores, strict=True) for update in detector.push(second, row)
    ]
    return _OverTime(
        seconds=found.seconds,
        scores=scores,
        events=_ended([*updates, *detector.finish(duration)], duration),
        speeds=torch.stack([speed for _, speed in speeds]) if speeds else None,
        speed_seconds=np.array([second for second, _ in speeds]),
    )


def _ended(updates: Sequence[EventUpdate], duration: float) -> tuple[Interval, ...]:
    ends = [update.event for update in updates if update.kind == "end"]
    return tuple(Interval(e.label, e.start_seconds, e.end_seconds or duration, e.peak_score) for e in ends)


def _clips(model: VideoClassifier, reader: VideoReader, num_clips: int) -> Tensor:
    """[num_clips, T]: frames of clips as the model is scored with, evenly over the video."""
    settings = model.preprocessing
    return view_indices(
        reader.num_frames,
        num_frames=settings.num_frames,
        num_clips=num_clips,
        sampling=settings.sampling,
        frame_stride=settings.frame_stride,
        num_windows=settings.num_windows,
        frame_rate=settings.frame_rate,
        dense_rate=model.dense_rate,
        pts_seconds=reader.pts_seconds,
    )


def _speeds_of_clips(model: VideoClassifier, reader: VideoReader) -> list[tuple[float, Tensor]]:
    """Seconds and [Hp, Wp] of clips that lie side by side over the whole video, in order of time."""
    times = reader.pts_seconds - reader.pts_seconds[0]
    span = times[_clips(model, reader, 1)[0]]
    reach = float(span[-1] - span[0]) + float(span.diff().median()) if len(span) > 1 else 0.0
    num_clips = max(1, math.ceil(float(times[-1]) / reach - 0.25)) if reach else 1
    found: dict[float, Tensor] = {}
    for indices in _clips(model, reader, num_clips):
        check_wanted()
        speed = _maps_and_speeds(model, reader.read(indices).pixels)[1]
        if speed is not None:
            found |= dict(zip(times[indices].tolist(), speed, strict=True))
    return sorted(found.items(), key=operator.itemgetter(0))


def _maps_and_speeds(model: VideoClassifier, pixels: Tensor) -> tuple[KinematicMaps | None, Tensor | None]:
    if not isinstance(model, PKS4) or len(pixels) < 2:
        return None, None
    clip = EvalTransform(model.preprocessing, crops=1)(pixels).to(model.device)
    view = evaluation_view(model)
    with _recorded_speeds(view) as speeds:
        maps = kinematic_maps(view, clip)
    return maps, _speed_map(view, speeds, num_frames=len(pixels))


def _speed_map(model: PKS4, speeds: Sequence[Tensor], *, num_frames: int) -> Tensor | None:
    """[num_frames, Hp, Wp] of the last scan of all patches; None where there was none."""
    rows, columns = model.vit.grid
    found = [speed for speed in speeds if speed.shape == (rows * columns, num_frames)]
    return found[-1].T.unflatten(1, (rows, columns)).cpu() if found else None


@contextmanager
def _recorded_speeds(model: PKS4) -> Iterator[list[Tensor]]:
    """Collects [patches, T] of each scan: the mean over channels of softplus(Delta)."""
    speeds: list[Tensor] = []
    handles = []

    def keep(block: Any) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            rank, project = block.dt_proj.in_features, block.dt_proj
            steps = nn.functional.linear(output[..., :rank].float(), project.weight.float(), project.bias.float())
            speeds.append(nn.functional.softplus(steps).mean(-1).detach())

        return hook

    try:
        for block in (model.scanner or nn.Module()).modules():
            if isinstance(getattr(block, "x_proj", None), nn.Module) and hasattr(block, "dt_proj"):
                handles.append(block.x_proj.register_forward_hook(keep(block)))  # type: ignore[union-attr]
        with torch.no_grad():
            yield speeds
    finally:
        for handle in handles:
            handle.remove()
