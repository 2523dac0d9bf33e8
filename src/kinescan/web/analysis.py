"""What the page shows of a video: scores over time, events, what moved and changed, and the scanner's update speed."""

from collections.abc import Iterator
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
from kinescan.events.detector import EventDetector
from kinescan.inference.event_rules import model_rules
from kinescan.inference.explain import KinematicMaps, kinematic_maps
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
        events: starts and ends; empty for a model that is not causal.
        duration: of the video, seconds.
        frames: [T, 3, H, W] uint8, the sampled frames as they are in the video.
        frame_seconds: [T].
        maps: what moved and changed between them; None for a model that is not a PKS4.
        update_speed: [T, Hp, Wp], mean step size (Delta) of the scanner at each patch; None without a scanner.
    """

    labels: tuple[str, ...]
    seconds: NDArray[np.float64]
    scores: NDArray[np.float64]
    events: tuple[Interval, ...]
    duration: float
    frames: Tensor
    frame_seconds: tuple[float, ...]
    maps: KinematicMaps | None
    update_speed: Tensor | None

    @property
    def best(self) -> str:
        """The class with the highest score on average."""
        return self.labels[int(self.scores.mean(0).argmax())]


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
        settings = model.preprocessing
        indices = view_indices(
            reader.num_frames,
            num_frames=settings.num_frames,
            num_clips=1,
            sampling=settings.sampling,
            frame_stride=settings.frame_stride,
            num_windows=settings.num_windows,
            frame_rate=settings.frame_rate,
            dense_rate=model.dense_rate,
            pts_seconds=reader.pts_seconds,
        )[0]
        sampled, duration = reader.read(indices), reader.duration_seconds
        first = float(reader.pts_seconds[0])
    check_wanted()
    maps, speed = _maps_and_speeds(model, sampled.pixels)
    seconds, scores, events = _over_time(model, path, duration)
    return Analysis(
        labels=model.class_names,
        seconds=seconds,
        scores=scores,
        events=events,
        duration=duration,
        frames=sampled.pixels,
        frame_seconds=tuple((sampled.pts_seconds - first).tolist()),
        maps=maps,
        update_speed=speed,
    )


def _over_time(
    model: VideoClassifier, path: str | Path, duration: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[Interval, ...]]:
    if not isinstance(model, PKS4) or not model.config.causal:
        [found] = predict(model, path, top=model.config.num_classes)
        by_label = dict(zip(found.labels, found.scores, strict=True))
        row = [by_label.get(label, 0.0) for label in model.class_names]
        return np.array([0.0, duration]), np.array([row, row]), ()
    detector = EventDetector(model.class_names, model_rules(model), stream_id="page")
    times, rows, updates = [], [], []
    for prediction in stream(model, path):
        check_wanted()
        assert prediction.seconds is not None, "frames of files have times"
        scores = model.probabilities(prediction.logits).double().numpy()
        times.append(prediction.seconds)
        rows.append(scores)
        updates += detector.push(prediction.seconds, scores)
    updates += detector.finish(duration)
    ends = [update.event for update in updates if update.kind == "end"]
    events = [Interval(one.label, one.start_seconds, one.end_seconds or duration, one.peak_score) for one in ends]
    return np.array(times), np.stack(rows), tuple(events)


def _maps_and_speeds(model: VideoClassifier, pixels: Tensor) -> tuple[KinematicMaps | None, Tensor | None]:
    if not isinstance(model, PKS4) or len(pixels) < 2:
        return None, None
    clip = EvalTransform(model.preprocessing, crops=1)(pixels).to(model.device)
    view = evaluation_view(model)
    with _recorded_speeds(view) as speeds:
        maps = kinematic_maps(view, clip)
    grid = view.vit.grid
    found = [speed for speed in speeds if speed.shape == (grid[0] * grid[1], len(pixels))]
    return maps, None if not found else found[-1].T.unflatten(1, grid).cpu()


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
