import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from kinescan.data.clips import read_clips, video_inputs
from kinescan.data.sampling import Views
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import Limits
from kinescan.data.video.given import VideoInput
from kinescan.errors import ConfigError, VideoError
from kinescan.evaluation.multiview import VIEWS_PER_FORWARD, score_videos
from kinescan.inference import drawing
from kinescan.inference.explain import kinematic_maps
from kinescan.inference.model_source import ModelSource, resolve_model
from kinescan.inference.precision import Precision, computing_in
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.runtime.addresses import require_local
from kinescan.runtime.quantities import percent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one video, or why it could not be read.

    Attributes:
        path: the file; for a video that is not a file, a name ("bytes 3", "frames 0") with its index among those given.
        labels: the best classes, first the best; empty for an unreadable one.
        scores: their probabilities.
        seconds: how long it took, decoding and model together; in batches, the same for each video of a batch.
        error: why the file could not be read; None where it was.
        explanation: the picture that was written; None without `explain_folder`.
    """

    path: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: float
    error: str | None = None
    explanation: str | None = None


def predict(
    model: ModelSource,
    paths: VideoInput | Iterable[VideoInput],
    *,
    views: Views | str | None = None,
    top: int = 5,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    explain_folder: str | Path | None = None,
    views_per_forward: int = VIEWS_PER_FORWARD,
    videos_per_batch: int = 1,
    fps: float | None = None,
    allow_code: bool = False,
    limits: Limits | None = None,
    allow_short: bool = False,
    on_prediction: Callable[[Prediction], None] | None = None,
) -> list[Prediction]:
    """The best classes of each video.

    A video that cannot be read is listed with its reason and stops none of the others; none is swapped for another.

    Args:
        model: a classifier; the folder or hub name of a saved one; the folder of a run (its best checkpoint) or of an
            exported one. It is used in evaluation mode and left as it is, so that several threads may use it.
        paths: one video or several: files, addresses (http, https: fetched first), the bytes of files, file objects, or
            frames, uint8 [T, 3, H, W] or [T, H, W, 3]; a folder stands for the video files below it, sorted by name.
        views: frames x clips x crops to average over, such as "8x2x3"; by default those of the model (`num_clips`) x 1.
        top: how many classes to name.
        device: where to compute; by default where the model is.
        precision: "bfloat16" or "float16" computes under autocast, which is faster where the device has it.
        explain_folder: draw into this folder, for each video, what moved and what changed; made if need be.
        views_per_forward: how many views go through the model at once.
        videos_per_batch: how many videos are read before their views go through the model together.
        fps: frames a second of videos given as frames; by default as far apart as the model's training frames.
        allow_code: open an exported file that may run code of its own, one of torch.export; see `load_exported`.
        limits: what one file may take; beyond it, it counts as one that cannot be read.
        allow_short: predict from what can be decoded of cut or damaged files (see VideoReader).
        on_prediction: called with each prediction as it is made, so that nothing is lost if the rest never comes.

    Returns:
        One prediction a video, in the order of `paths`.

    Raises:
        ConfigError: the model answers for every frame, or cannot explain; no video was given, or a folder holds none; a
            setting is wrong; or explain_folder cannot be written.
        ShapeError: an array has not the shape of a video.
        CheckpointError: `model` is a folder or name that holds no saved model.
        NonFiniteError: the model gives NaN or infinity for a video, which is named.

    Example:
        >>> import tempfile
        >>> from kinescan.data.video import write_video
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", torch.zeros(16, 3, 64, 64, dtype=torch.uint8), fps=8)
        ...     [prediction] = predict(model, folder)
        >>> sorted(prediction.labels), round(sum(prediction.scores), 4), prediction.error
        (['left', 'right'], 1.0, None)
    """
    predictions = []
    for prediction in predict_iter(
        model,
        paths,
        views=views,
        top=top,
        device=device,
        precision=precision,
        explain_folder=explain_folder,
        views_per_forward=views_per_forward,
        videos_per_batch=videos_per_batch,
        fps=fps,
        allow_code=allow_code,
        limits=limits,
        allow_short=allow_short,
    ):
        predictions.append(prediction)
        if on_prediction is not None:
            on_prediction(prediction)
    return predictions


def predict_iter(
    model: ModelSource,
    paths: VideoInput | Iterable[VideoInput],
    *,
    views: Views | str | None = None,
    top: int = 5,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    explain_folder: str | Path | None = None,
    views_per_forward: int = VIEWS_PER_FORWARD,
    videos_per_batch: int = 1,
    fps: float | None = None,
    allow_code: bool = False,
    limits: Limits | None = None,
    allow_short: bool = False,
) -> Iterator[Prediction]:
    """As `predict`, each prediction as soon as it is made; arguments are checked and the model is opened at once.

    Args:
        model: as for `predict`.
        paths: as for `predict`.
        views: as for `predict`.
        top: as for `predict`.
        device: as for `predict`.
        precision: as for `predict`.
        explain_folder: as for `predict`.
        views_per_forward: as for `predict`.
        videos_per_batch: as for `predict`.
        fps: as for `predict`.
        allow_code: as for `predict`.
        limits: as for `predict`.
        allow_short: as for `predict`.

    Raises:
        ConfigError: as `predict`, at the call.
        CheckpointError: as `predict`, at the call.
        ShapeError: as `predict`, at the call.
        NonFiniteError: as `predict`, when the video's turn comes.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("pks4_vit_ti16", labels=["left", "right"])
        >>> frames = torch.zeros(16, 3, 64, 64, dtype=torch.uint8)
        >>> [prediction.path for prediction in predict_iter(model, [frames, frames.permute(0, 2, 3, 1).numpy()])]
        ['frames 0', 'frames 1']
    """
    for name, number in (
        ("top", top),
        ("videos_per_batch", videos_per_batch),
        ("views_per_forward", views_per_forward),
    ):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, got {number}.")
    if fps is not None and not 0 < fps < float("inf"):
        raise ConfigError(f"fps must be positive, got {fps}.")
    videos = video_inputs(paths)
    resolved = resolve_model(model, device, allow_code=allow_code)
    if resolved.answers_frames:
        raise ConfigError(
            f"{resolved.name} answers for every frame and names no class of a whole clip. Find out what happens from "
            "when to when: kinescan predict --segments, in Python predict_events() or predict_frames()."
        )
    job = _Job(
        evaluation_view(resolved),
        _chosen_views(views, resolved),
        min(top, resolved.config.num_classes),
        views_per_forward,
        precision=precision,
        fps=fps or 1 / (resolved.frame_seconds or 1 / 25),
        limits=limits,
        allow_short=allow_short,
    )
    folder = None if explain_folder is None else make_explain_folder(explain_folder, resolved)[0]
    return _in_batches(job, videos, folder, videos_per_batch)


def _in_batches(
    job: "_Job", videos: Sequence[tuple[str, VideoInput]], folder: Path | None, size: int
) -> Iterator[Prediction]:
    numbered = iter(enumerate(videos))
    while part := list(islice(numbered, size)):
        pictures = [_picture_path(folder, index, name) for index, (name, _) in part]
        yield from job.predict([video for _, video in part], pictures)


@dataclass(frozen=True)
class _Read:
    """A video that was read: its views [clips, crops, T, 3, H, W] and the times of the first clip."""

    name: str
    clips: Tensor
    frame_seconds: list[float]
    seconds: float


class _Job:
    """Predicts video after video with one model and one choice of views."""

    def __init__(
        self,
        model: VideoClassifier,
        views: Views,
        top: int,
        views_per_forward: int,
        *,
        precision: Precision,
        fps: float,
        limits: Limits | None,
        allow_short: bool,
    ) -> None:
        self.model, self.views, self.top, self.views_per_forward = model, views, top, views_per_forward
        self.precision, self.fps, self.limits, self.allow_short = precision, fps, limits, allow_short
        self.transform = EvalTransform(model.preprocessing, crops=views.crops)
        computing_in(precision, model)

    def predict(self, videos: Sequence[tuple[str, VideoInput]], pictures: Sequence[Path | None]) -> list[Prediction]:
        """One prediction a video; those that could be read go through the model together."""
        parts = [self._read(*video) for video in videos]
        read = [part for part in parts if isinstance(part, _Read)]
        started = time.perf_counter()
        if read:
            with computing_in(self.precision, self.model):
                scores = score_videos(
                    self.model,
                    [part.clips.flatten(0, 1) for part in read],
                    names=[part.name for part in read],
                    views_per_forward=self.views_per_forward,
                )
        batch_seconds = (time.perf_counter() - started) / max(1, len(read))
        own = iter(scores) if read else iter(())
        return [
            part if isinstance(part, Prediction) else self._answer(part, next(own), picture, batch_seconds)
            for part, picture in zip(parts, pictures, strict=True)
        ]

    def _read(self, name: str, video: VideoInput) -> "_Read | Prediction":
        started = time.perf_counter()
        try:
            clips, seconds = read_clips(
                video,
                self.model.preprocessing,
                self.views,
                self.transform,
                self.limits,
                allow_short=self.allow_short,
                dense_rate=self.model.dense_rate,
                name=name,
                fps=self.fps,
            )
        except VideoError as error:
            logger.warning("left out, cannot be read: %s", error)
            return Prediction(
                path=name, labels=(), scores=(), seconds=time.perf_counter() - started, error=error.reason
            )
        return _Read(name, clips, seconds, time.perf_counter() - started)

    def _answer(self, read: _Read, scores: Tensor, picture: Path | None, batch_seconds: float) -> Prediction:
        probabilities, best = scores.sort(descending=True, stable=True)
        prediction = Prediction(
            path=read.name,
            labels=tuple(self.model.class_names[index] for index in best[: self.top].tolist()),
            scores=tuple(probabilities[: self.top].tolist()),
            seconds=read.seconds + batch_seconds,
            explanation=None if picture is None else str(picture),
        )
        if picture is not None:
            self._explain(read.clips[0, self.views.crops // 2], read.frame_seconds, prediction, picture)
        return prediction

    def _explain(self, clip: Tensor, seconds: Sequence[float], prediction: Prediction, picture: Path) -> None:
        assert isinstance(self.model, PKS4)
        device = next(self.model.parameters()).device
        drawing.draw_strip(
            clip,
            kinematic_maps(self.model, clip[None].to(device)),
            picture,
            preprocessing=self.model.preprocessing,
            title=f"{Path(prediction.path).name}: {prediction.labels[0]} {percent(prediction.scores[0])}",
            seconds=seconds,
        )


def _chosen_views(views: Views | str | None, model: VideoClassifier) -> Views:
    if views is None:
        return Views(frames=model.preprocessing.num_frames, clips=model.num_clips, crops=1)
    return Views.parse(views) if isinstance(views, str) else views


def make_explain_folder(folder: str | Path, model: VideoClassifier) -> tuple[Path, PKS4]:
    """The folder of pictures, made if need be, and the model that can be explained.

    Raises:
        ConfigError: the model is not a PKS4, which alone can be explained, or the folder cannot be made.
    """
    if not isinstance(model, PKS4):
        raise ConfigError(f"only PKS4 models can be explained, {model.name} is none. Leave explain_folder out.")
    require_local(folder)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"explain_folder {folder} cannot be made: {error.strerror}. Choose another folder."
        ) from error
    return folder, model


def _picture_path(folder: Path | None, index: int, name: str) -> Path | None:
    """Numbered, since files of different folders may have the same name."""
    return None if folder is None else folder / f"{index:04d}_{Path(name).stem}.png"
