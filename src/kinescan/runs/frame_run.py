"""A run on labels with a start and an end: windows of long videos, and answers for every frame."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kinescan.config import RunConfig
from kinescan.data.frame_labels import frame_truth
from kinescan.data.intervals import IntervalVideo
from kinescan.data.provenance import RecordedVideo
from kinescan.data.transforms import TrainTransform
from kinescan.data.window_dataset import MeasuredVideo, WindowDataset, measure_videos
from kinescan.errors import ConfigError, VideoError
from kinescan.evaluation.temporal.frames import frame_map
from kinescan.evaluation.temporal.report import TemporalReport
from kinescan.models.classifier import VideoClassifier
from kinescan.models.pks4 import PKS4
from kinescan.models.registry import require_model
from kinescan.models.zoo import from_pretrained
from kinescan.runs.datasets import Division
from kinescan.runs.expected_videos import ExpectedVideos
from kinescan.runs.frame_evaluation import (
    AnsweredVideos,
    answer_videos,
    choose_for,
    report_frames,
    rules_notes,
    save_chosen,
)
from kinescan.runtime.distributed import Processes
from kinescan.runtime.precision import choose_precision, computing_in
from kinescan.shapes import BACKGROUND
from kinescan.training.frame_task import FrameTask, balanced_weights

logger = logging.getLogger(__name__)

CHOSEN_BY = "frame_map"
"""The score that the best checkpoint is chosen by."""
WINDOWS = "training_windows"
"""Key of the digest of the windows among the settings in a checkpoint."""


def frame_config(config: RunConfig) -> RunConfig:
    """The run with a model that answers for every frame, as `data.overlaps` says.

    Raises:
        ConfigError: a setting contradicts labels with a start and an end.
    """
    name, options = config.model.name, config.model.options
    if not issubclass(require_model(name).model, PKS4):
        raise ConfigError(
            f"labels with a start and an end need a model that answers for every frame, and {name} answers for whole "
            'clips. Set model.name to a PKS4 or a plain ViT, such as "pks4_vit_b16".'
        )
    wanted = {"output": "frames", "overlapping": config.data.overlaps}
    wrong = [key for key, value in wanted.items() if options.get(key, value) != value]
    if wrong:
        told = ", ".join(f"model.options.{key} = {options[key]!r}" for key in wrong)
        raise ConfigError(
            f"{told} contradicts labels with a start and an end (data.overlaps = {str(config.data.overlaps).lower()}). "
            "Leave it out: the run sets it."
        )
    augment = config.augment
    if augment.mix_rate and (augment.mixup_alpha or augment.cutmix_alpha):
        raise ConfigError(
            "mixup and cutmix blend whole clips, and labels with a start and an end are of single frames. Set "
            "augment.mix_rate = 0."
        )
    return replace(config, model=replace(config.model, options={**options, **wanted}))


def frame_labels(config: RunConfig, classes: Sequence[str]) -> tuple[str, ...]:
    """The model's classes: those of the data, behind "background" unless they overlap."""
    return tuple(classes) if config.data.overlaps else (BACKGROUND, *classes)


def make_window_set(
    config: RunConfig, videos: Sequence[IntervalVideo], labels: Sequence[str], processes: Processes
) -> WindowDataset:
    """Training windows: at random positions, or with `train.carry_state` one after the other.

    Args:
        config: of the run.
        videos: training videos with their intervals.
        labels: of the model, in the order of its outputs.
        processes: that train together; with `train.carry_state` each row of their batches follows a video.

    Raises:
        ConfigError: no rate of frames is set.
        VideoError: not one video can be read.
    """
    data = config.data
    measured = measure_videos(videos, config.preprocessing, limits=data.limits, allow_short=data.allow_short)
    _refuse_unreadable(measured)
    dataset = WindowDataset(
        measured,
        labels,
        TrainTransform(config.preprocessing, config.augment),
        preprocessing=config.preprocessing,
        overlapping=data.overlaps,
        event_ratio=data.event_ratio,
        num_windows=data.windows_per_epoch,
        num_rows=config.loader.batch_size * processes.count if config.train.carry_state else 0,
        kept_gib=data.kept_gib if data.kept_frames else 0.0,
        seed=config.seed,
        limits=data.limits,
        allow_short=data.allow_short,
    )
    hours = sum(len(entry.seconds) for entry in measured) / config.preprocessing.frame_rate / 3600
    logger.info(
        "%d windows of %.2f s an epoch, %s, out of %.2f hours; something happens in %.1f %% of them",
        *(len(dataset), config.preprocessing.num_frames / config.preprocessing.frame_rate),
        "one after the other" if config.train.carry_state else f"{data.event_ratio:.0%} of them at events",
        *(hours, 100 * dataset.event_fraction),
    )
    return dataset


def window_digest(dataset: WindowDataset) -> str:
    """How many windows a run has, and a hash of the frames that they are taken from: kept in checkpoints.

    A video that could not be read when the run began, and can be now, would change all windows.
    """
    lines = "\n".join(f"{entry.video.video_id}\t{entry.lengths}" for entry in dataset.measured)
    return (
        f"{len(dataset)} windows, SHA-256 {hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    )


def make_frame_task(config: RunConfig, dataset: WindowDataset) -> FrameTask:
    """The loss: windows at random positions are balanced themselves, followed ones by the weights of their frames."""
    event, background = 1.0, 1.0
    if config.train.carry_state:
        event, background = balanced_weights(dataset.event_fraction, config.data.event_ratio)
    return FrameTask(
        overlapping=config.data.overlaps,
        label_smoothing=config.optim.label_smoothing,
        event_weight=event,
        background_weight=background,
    )


class FrameScores:
    """Per-frame scores on videos that are not trained on; one that is gone ends the run.

    Args:
        config: of the run.
        videos: the videos.
        recorded: what the run knows of them: which files were there when it began.
        processes: that share the videos out.

    Raises:
        ConfigError: nothing happens in any of them.
    """

    def __init__(
        self,
        config: RunConfig,
        videos: Sequence[IntervalVideo],
        recorded: Sequence[RecordedVideo],
        processes: Processes,
    ) -> None:
        if not any(video.intervals for video in videos):
            raise ConfigError(
                f"none of the {len(videos)} videos to evaluate on has an interval, so that no score can be computed. "
                "Name others with data.test, or hold out more with data.held_out_ratio."
            )
        self._config, self._videos, self._processes = config, tuple(videos), processes
        self._expected = ExpectedVideos(recorded)

    def __call__(self, model: VideoClassifier) -> dict[str, float]:
        """Scores after an epoch, as `fit` takes them."""
        return frame_scores(self.evaluate(model))

    def evaluate(self, model: VideoClassifier) -> AnsweredVideos:
        """Answers for every frame of all videos; of several processes, each answers for its part.

        Raises:
            VideoError: a video that was there when the run began, or that was scored before, is gone; or none can be
                read.
        """
        data = self._config.data
        found = answer_videos(
            model, self._videos, processes=self._processes, limits=data.limits, allow_short=data.allow_short
        )
        self._expected.require(found.unreadable, [video.video_id for video in self._videos])
        if not found.predictions:
            first = found.unreadable[0]
            raise VideoError(first.path, f"{first.reason} None of {len(found.unreadable)} videos could be read.")
        self._expected.add_scored(video.video_id for video in found.videos)
        return found


def frame_scores(found: AnsweredVideos) -> dict[str, float]:
    """Per-frame mAP and its calibrated form, and the ratio of right frames, in all and balanced over classes."""
    labels = found.predictions[0].classes
    pairs = zip(found.videos, found.predictions, strict=True)
    truth = np.concatenate([frame_truth(video.intervals, answer.seconds, labels) for video, answer in pairs])
    scores = np.concatenate([answer.scores for answer in found.predictions])
    background = BACKGROUND if labels[0] == BACKGROUND else None
    ranked = frame_map(truth, scores, labels=labels, background=background)
    chosen = np.eye(len(labels), dtype=bool)[scores.argmax(axis=1)] if background else scores > 0.5
    # of overlapping classes, frames with and without a class are two
    sides = [(truth, chosen)] if background else [(truth, chosen), (~truth, ~chosen)]
    recalls = [
        float(said[true[:, k], k].mean()) for true, said in sides for k in range(len(labels)) if true[:, k].any()
    ]
    right = (truth & chosen).any(axis=1) if background else truth == chosen
    return {
        CHOSEN_BY: ranked.mean if ranked.average_precision else 0.0,
        "calibrated_frame_map": ranked.calibrated_mean if ranked.calibrated else 0.0,
        "frame_accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "loss": _frame_loss(truth, scores, exclusive=background is not None),
    }


def _frame_loss(truth: np.ndarray, scores: np.ndarray, *, exclusive: bool) -> float:
    """Cross-entropy of the frames in nats; of overlapping classes, the mean over the classes' own yes and no."""
    least = np.finfo(np.float64).tiny
    right = -np.log(np.maximum(scores.astype(np.float64), least))
    if exclusive:
        return float(right[truth].mean())
    wrong = -np.log(np.maximum(1.0 - scores.astype(np.float64), least))
    return float(np.where(truth, right, wrong).mean())


def frame_report(
    config: RunConfig,
    folder: Path,
    scores: FrameScores,
    division: Division[IntervalVideo],
    *,
    data: str,
    notes: Sequence[str],
    processes: Processes,
) -> TemporalReport:
    """Thresholds for a checkpoint, chosen and saved with it, and its report on the held-out videos.

    Args:
        config: of the run.
        folder: of the checkpoint.
        scores: on the held-out videos.
        division: videos to choose thresholds on.
        data: what the held-out videos are called.
        notes: what one has to know.
        processes: that share the videos.
    """
    model = from_pretrained(folder).to(processes.device)
    precision = choose_precision(config.evaluation.precision, model.trained_in, processes.device)
    with computing_in(precision, processes.device):
        chosen, rules_from = choose_for(
            model,
            division.validation,
            division.training,
            processes=processes,
            limits=config.data.limits,
            allow_short=config.data.allow_short,
            grace_seconds=config.evaluation.grace_seconds,
        )
        answered = scores.evaluate(model)
    if processes.is_main:
        save_chosen(chosen, model, folder)
    return report_frames(
        model,
        answered,
        chosen.rules,
        data=data,
        rules_from=rules_from,
        seed=config.seed,
        precision=precision,
        notes=(*notes, *rules_notes(chosen)),
        grace_seconds=config.evaluation.grace_seconds,
    )


def _refuse_unreadable(measured: Sequence[MeasuredVideo]) -> None:
    """Where files are there and none can be read, nothing can be trained.

    Raises:
        VideoError: not one video can be read.
    """
    if not any(len(entry.seconds) for entry in measured):
        first = measured[0]
        raise VideoError(
            first.video.path,
            f"{first.reason} None of the {len(measured)} training videos can be read. Check data.train.",
        )
