import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinescan.data.clips import read_clips, video_files
from kinescan.data.sampling import Views
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import Limits
from kinescan.errors import ConfigError, VideoError
from kinescan.evaluation.multiview import VIEWS_PER_FORWARD, score_views
from kinescan.inference.explain import kinematic_maps
from kinescan.inference.model_source import ModelSource, resolve_model
from kinescan.inference.strip import draw_strip
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.runtime.quantities import percent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one file, or why the file could not be read.

    Attributes:
        path: the file.
        labels: the best classes, first the best; empty for an unreadable file.
        scores: their probabilities.
        seconds: how long it took, decoding and model together.
        error: why the file could not be read; None for a file that was.
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
    paths: str | Path | Iterable[str | Path],
    *,
    views: Views | str | None = None,
    top: int = 5,
    device: str | torch.device | None = None,
    explain_folder: str | Path | None = None,
    views_per_forward: int = VIEWS_PER_FORWARD,
    allow_code: bool = False,
    limits: Limits | None = None,
    allow_short: bool = False,
    on_prediction: Callable[[Prediction], None] | None = None,
) -> list[Prediction]:
    """The best classes of each video file.

    A file that cannot be read is listed with its reason and stops none of the others; none is swapped for another.

    Args:
        model: a classifier; the folder or hub name of a saved one; the folder of a run (its best checkpoint) or of an
            exported one. It is used in evaluation mode and left as it is, so that several threads may use it.
        paths: video files; a folder stands for the video files in it and below, in order of their names.
        views: frames x clips x crops to average over, such as "8x2x3"; by default one clip of as many frames as the
            model's preprocessing takes, cropped in the middle.
        top: how many classes to name.
        device: where to compute; by default where the model is.
        explain_folder: draw into this folder, for each file, what moved and what changed; made if need be.
        views_per_forward: how many views go through the model at once.
        allow_code: open an exported file that may run code of its own, one of torch.export; see `load_exported`.
        limits: what one file may take; beyond it, it counts as one that cannot be read.
        allow_short: predict from what can be decoded of cut or damaged files (see VideoReader).
        on_prediction: called with each prediction as it is made, so that nothing is lost if the rest never comes.

    Returns:
        One prediction a file, in the order of `paths`.

    Raises:
        ConfigError: the model answers for every frame; no path was given, a folder holds no video, views cannot be
            parsed, top is below 1, or explain_folder cannot be written or the model cannot explain.
        CheckpointError: `model` is a folder or name that holds no saved model.
        NonFiniteError: the model gives NaN or infinity for a file, which is named.

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
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}.")
    files = video_files(paths)
    resolved = resolve_model(model, device, allow_code=allow_code)
    if resolved.answers_frames:
        raise ConfigError(
            f"{resolved.name} answers for every frame and names no class of a whole clip. Find out what happens from "
            "when to when: kinescan predict --segments, in Python predict_events() or predict_frames()."
        )
    chosen = _chosen_views(views, resolved)
    folder = None if explain_folder is None else make_explain_folder(explain_folder, resolved)[0]
    job = _Job(
        evaluation_view(resolved),
        chosen,
        min(top, resolved.config.num_classes),
        views_per_forward,
        limits=limits,
        allow_short=allow_short,
    )
    predictions = []
    for index, file in enumerate(files):
        predictions.append(job.predict(file, _picture_path(folder, index, file)))
        if on_prediction is not None:
            on_prediction(predictions[-1])
    return predictions


class _Job:
    """Predicts file after file with one model and one choice of views."""

    def __init__(
        self,
        model: VideoClassifier,
        views: Views,
        top: int,
        views_per_forward: int,
        *,
        limits: Limits | None,
        allow_short: bool,
    ) -> None:
        self.model, self.views, self.top, self.views_per_forward = model, views, top, views_per_forward
        self.limits, self.allow_short = limits, allow_short
        self.transform = EvalTransform(model.preprocessing, crops=views.crops)

    def predict(self, file: Path, picture: Path | None) -> Prediction:
        started = time.perf_counter()
        try:
            clips, seconds = read_clips(
                file,
                self.model.preprocessing,
                self.views,
                self.transform,
                self.limits,
                allow_short=self.allow_short,
                dense_rate=self.model.dense_rate,
            )
        except VideoError as error:
            logger.warning("left out, cannot be read: %s", error)
            return Prediction(
                path=str(file), labels=(), scores=(), seconds=time.perf_counter() - started, error=error.reason
            )
        scores = score_views(self.model, clips.flatten(0, 1), name=str(file), views_per_forward=self.views_per_forward)
        probabilities, best = scores.sort(descending=True, stable=True)
        prediction = Prediction(
            path=str(file),
            labels=tuple(self.model.class_names[index] for index in best[: self.top].tolist()),
            scores=tuple(probabilities[: self.top].tolist()),
            seconds=time.perf_counter() - started,
            explanation=None if picture is None else str(picture),
        )
        if picture is not None:
            self._explain(clips[0, self.views.crops // 2], seconds, prediction, picture)
        return prediction

    def _explain(self, clip: Tensor, seconds: Sequence[float], prediction: Prediction, picture: Path) -> None:
        assert isinstance(self.model, PKS4)
        device = next(self.model.parameters()).device
        draw_strip(
            clip,
            kinematic_maps(self.model, clip[None].to(device)),
            picture,
            preprocessing=self.model.preprocessing,
            title=f"{Path(prediction.path).name}: {prediction.labels[0]} {percent(prediction.scores[0])}",
            seconds=seconds,
        )


def _chosen_views(views: Views | str | None, model: VideoClassifier) -> Views:
    if views is None:
        return Views(frames=model.preprocessing.num_frames, clips=1, crops=1)
    return Views.parse(views) if isinstance(views, str) else views


def make_explain_folder(folder: str | Path, model: VideoClassifier) -> tuple[Path, PKS4]:
    """The folder of pictures, made if need be, and the model that can be explained.

    Raises:
        ConfigError: the model is not a PKS4, which alone can be explained, or the folder cannot be made.
    """
    if not isinstance(model, PKS4):
        raise ConfigError(f"only PKS4 models can be explained, {model.name} is none. Leave explain_folder out.")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"explain_folder {folder} cannot be made: {error.strerror}. Choose another folder."
        ) from error
    return folder, model


def _picture_path(folder: Path | None, index: int, file: Path) -> Path | None:
    """Numbered, since files of different folders may have the same name."""
    return None if folder is None else folder / f"{index:04d}_{file.stem}.png"
