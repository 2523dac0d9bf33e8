import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from torch import Tensor

from kinescan.config import ModelConfig, RunConfig, dump_recipe, load_recipe, parse_overrides
from kinescan.data.datasets import VideoDataset
from kinescan.data.intervals import IntervalVideo
from kinescan.data.listing import VideoItem
from kinescan.data.provenance import RecordedVideo, RunVideos
from kinescan.data.sampling import Views
from kinescan.data.transforms import AugmentConfig, mix
from kinescan.data.window_dataset import WindowDataset
from kinescan.errors import ConfigError
from kinescan.evaluation.multiview import Evaluation, check_evaluation_room, evaluate_model
from kinescan.evaluation.report import CHOSEN_ON_THESE, Report, make_report
from kinescan.evaluation.temporal.report import TemporalReport
from kinescan.models.classifier import VideoClassifier
from kinescan.models.registry import find_model
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.profiling.cost import count_cost
from kinescan.runs.datasets import (
    Division,
    evaluated_on,
    is_of_intervals,
    make_test_set,
    make_training_clips,
    make_training_set,
    read_videos,
)
from kinescan.runs.expected_videos import ExpectedVideos
from kinescan.runs.folder import as_begun, choose_output, run_of
from kinescan.runs.frame_run import (
    CHOSEN_BY,
    WINDOWS,
    FrameScores,
    frame_config,
    frame_labels,
    frame_report,
    make_frame_task,
    make_window_set,
    window_digest,
)
from kinescan.runs.run_videos import TRAINING_VIDEOS, training_digest, videos_of_run, was_chosen
from kinescan.runtime.addresses import is_remote
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.device import choose_device
from kinescan.runtime.distributed import Processes, open_processes
from kinescan.runtime.own_modules import import_own_module, module_of
from kinescan.runtime.precision import choose_precision, computing_in
from kinescan.runtime.recipe_files import find_recipe
from kinescan.runtime.run_folder import RunFolder
from kinescan.runtime.signals import Interruption
from kinescan.settings import to_plain
from kinescan.training.callbacks import Callback, Start
from kinescan.training.dataset_clips import DatasetClips
from kinescan.training.dry_run import Plan, make_plan
from kinescan.training.frame_task import FrameTask
from kinescan.training.loop import fit
from kinescan.training.open_run import OpenRun, open_run
from kinescan.training.optim import parameter_groups, trainable_only
from kinescan.training.result import FitResult

logger = logging.getLogger(__name__)

NOT_TRAINED = "With optim.epochs = 0 nothing was trained: these are the scores of the model as it starts."


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run left.

    Attributes:
        output: folder of the run.
        fit: checkpoints and the best score while training.
        report: of `checkpoint` with the final views.
        checkpoint: the best one, or the last, as `evaluation.checkpoint` says.
    """

    output: Path
    fit: FitResult
    report: Report | TemporalReport
    checkpoint: Path

    @property
    def best_epoch(self) -> int | None:
        """That of the checkpoint, from 1, where it is the best of its evaluations; None of the last."""
        chosen = self.checkpoint == self.fit.best and self.fit.best_epoch is not None
        return self.fit.best_epoch + 1 if chosen and self.fit.best_epoch is not None else None

    def to_json(self) -> dict[str, Any]:
        """The run as plain values."""
        run = {
            "output": str(self.output),
            "checkpoint": str(self.checkpoint),
            "best_epoch": self.best_epoch,
            "steps": self.fit.steps,
            "unreadable_training": self.fit.unreadable,
        }
        if isinstance(self.report, TemporalReport):
            scores, unreadable = self.report.scores, self.report.unreadable
            return {
                **run,
                **scores.summary,
                "num_videos": len(scores.videos),
                "unreadable_test": {str(file.path): file.reason for file in unreadable},
            }
        metrics, unreadable = self.report.evaluation.metrics, self.report.evaluation.unreadable
        return {
            **run,
            "top1": metrics.top1,
            "top5": metrics.top5,
            "num_videos": metrics.num_videos,
            "unreadable_test": {str(file.path): file.reason for file in unreadable},
        }


def train(
    recipe: str | Path | RunConfig,
    *,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Trains as a recipe says, evaluates the best checkpoint (or the last one) and writes the report.

    The folder of the run holds recipe.toml (resolved), log.jsonl, tensorboard/, checkpoints/last, checkpoints/best,
    report.json, report.md, videos.json (what was trained on and what was held out), and unreadable.json where videos
    could not be read.

    Args:
        recipe: a TOML file, the name of a recipe that comes with kinescan, or the configuration itself; to resume, also
            the folder of the run.
        overrides: "dotted.key=value" each, for a file.
        output: folder of the run; by default the recipe's, or the next free one under runs/.
        resume: continues from the run's last checkpoint.
        callbacks: are told of the start, of every step, epoch and evaluation, and of the end of the training.

    Raises:
        ConfigError: a setting is wrong, the output cannot be written or another process writes into it, or there are no
            classes to tell apart.
        VideoError: no video could be read.
        NonFiniteError, CheckpointError, TrainingInterrupted: as `kinescan.training.fit` raises them.
    """
    of_run = False
    if resume and isinstance(recipe, str | Path) and RunFolder(Path(recipe)).recipe.is_file():
        # A run's folder says both: which recipe, and where.
        recipe, output = RunFolder(Path(recipe)).recipe, output or recipe
        of_run = True
    config, name = _resolve(recipe, overrides, of_run=of_run)
    chosen = output or config.output or choose_output(name, resume=resume)
    if resume:
        config = as_begun(config, Path(chosen))
    with open_run(chosen, device=config.train.device, resume=resume) as run:
        folder = run.folder.path
        result, report = _train_into(run, replace(config, output=str(folder)), callbacks)
    if isinstance(report, TemporalReport):
        logger.info(
            "per-frame mAP %.1f %% on %s: %s", 100 * report.scores.frames.mean, report.data, folder / "report.md"
        )
    else:
        top1 = report.evaluation.metrics.top1
        logger.info("top-1 %.1f %% on %s: %s", 100 * top1, report.data, folder / "report.md")
    return TrainResult(output=folder, fit=result, report=report, checkpoint=_scored(config, result))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What of a run depends on the kind of its labels.

    Attributes:
        config: of the run, with what the labels ask of the model.
        labels: of the model, in the order of its outputs.
        dataset: training samples.
        chosen_by: the score that the best checkpoint is chosen by.
        task: what outputs are to be; None for classification.
        settings: what the weights depend on besides the config.
    """

    config: RunConfig
    labels: tuple[str, ...]
    dataset: VideoDataset | WindowDataset
    chosen_by: str = "top1"
    task: FrameTask | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def _work(config: RunConfig, division: Division[VideoItem] | Division[IntervalVideo], processes: Processes) -> _Work:
    if not is_of_intervals(division):
        _refuse_frames(config)
        clips = cast(Division[VideoItem], division)
        dataset = make_training_set(config, clips.training, clips.classes)
        return _Work(config=config, labels=clips.classes, dataset=dataset)
    config = frame_config(config)
    labels = frame_labels(config, division.classes)
    windows = make_window_set(config, division.training, labels, processes)
    return _Work(
        config=config,
        labels=labels,
        dataset=windows,
        chosen_by=CHOSEN_BY,
        task=make_frame_task(config, windows),
        settings={WINDOWS: window_digest(windows)},
    )


def _refuse_frames(config: RunConfig) -> None:
    """Passes where nothing is set that needs labels with a start and an end.

    Raises:
        ConfigError: something is.
    """
    wrong = ["train.carry_state"] if config.train.carry_state else []
    wrong += ["model.options.output"] if config.model.options.get("output", "clip") != "clip" else []
    wrong += ["data.overlaps"] if config.data.overlaps else []
    if wrong:
        raise ConfigError(
            f"{wrong[0]} is for labels with a start and an end, and those of {config.data.train!r} are of whole clips. "
            "Leave it out, or give a csv of path,start,end,label."
        )


def _train_into(
    run: OpenRun, config: RunConfig, callbacks: Sequence[Callback]
) -> tuple[FitResult, Report | TemporalReport]:
    """The run itself, in a folder that is its own."""
    folder, processes = run.folder.path, run.processes
    division = read_videos(config)
    work = _work(config, division, processes)
    set_seed(config.seed)
    model = _make_model(work.config, work.labels)
    # So that the run's folder says what its model needs.
    module = config.model.module or module_of(type(model)) or ""
    config = replace(work.config, model=replace(work.config.model, module=module))
    clips = make_training_clips(config, work.dataset, processes)
    videos = processes.broadcast(videos_of_run(folder, config, division) if processes.is_main else None)
    scores: HeldOutScores | FrameScores
    final: HeldOutScores | FrameScores
    if is_of_intervals(division):
        scores = FrameScores(config, division.chosen_on, videos.chosen_on, processes)
        final = FrameScores(config, division.held_out, videos.held_out, processes)
    else:
        of_clips = cast(Division[VideoItem], division)
        scores = HeldOutScores(config, of_clips.chosen_on, division.classes, videos.chosen_on)
        final = HeldOutScores(config, of_clips.held_out, division.classes, videos.held_out)
        _check_evaluations(config, of_clips, processes.count)
    result = fit(
        model,
        clips,
        output=run,
        train=config.train,
        optim=config.optim,
        mix=None if work.task is not None else partial(_mixed, config.augment),
        task=work.task,
        evaluate=scores,
        chosen_by=work.chosen_by,
        seed=config.seed,
        settings={**to_plain(config), TRAINING_VIDEOS: training_digest(division.training), **work.settings},
        callbacks=[_SettingsKept(folder, config, videos), _MemoryFilled(clips), *callbacks],
    )
    report = _final_report(config, result, final if division.validation else scores, division, processes)
    if processes.is_main:
        report.save(folder)
    return result, report


def _check_evaluations(config: RunConfig, division: Division[VideoItem], num_processes: int) -> None:
    """Passes where the evaluations of a run have room for what their workers read, so that none fails after an epoch.

    Raises:
        ConfigError: shared memory is too small; says how much is needed and how to get it.
    """
    evaluated = ((division.chosen_on, config.views_while_training()), (division.held_out, config.views()))
    for items, views in evaluated:
        if items:
            dataset = make_test_set(config, items, division.classes, views)
            check_evaluation_room(dataset, config.loader, num_processes=num_processes)


class _SettingsKept(Callback):
    """Writes recipe.toml and videos.json when the run starts, so that a refused resumption changes neither."""

    def __init__(self, folder: Path, config: RunConfig, videos: RunVideos) -> None:
        self._folder, self._config, self._videos = folder, config, videos

    def on_start(self, start: Start) -> None:
        if start.is_main:
            write_text(RunFolder(self._folder).recipe, dump_recipe(self._config))
            self._videos.save(self._folder)


class _MemoryFilled(Callback):
    """Reads the videos of `data.kept_frames` before the first step, unless the run is at its end; Ctrl-C ends it."""

    def __init__(self, clips: DatasetClips) -> None:
        self._clips = clips

    def on_start(self, start: Start) -> None:
        if start.epoch < start.num_epochs:
            with Interruption() as stop:
                stop.immediate = True
                self._clips.fill()


def plan(recipe: str | Path | RunConfig, *, overrides: Sequence[str] = ()) -> tuple[RunConfig, Plan]:
    """What `train` would do with the same recipe: the resolved recipe, groups, memory and time; nothing is written.

    Args:
        recipe: a TOML file, or the configuration itself.
        overrides: "dotted.key=value" each, for a file.

    Raises:
        ConfigError: a setting is wrong, or there are no classes to tell apart.
    """
    config, _ = _resolve(recipe, overrides, of_run=False)
    with open_processes(choose_device(config.train.device)) as processes:
        division = read_videos(config)
        work = _work(config, division, processes)
        config = work.config
        set_seed(config.seed)
        clips = make_training_clips(config, work.dataset, processes)
        if not is_of_intervals(division):
            _check_evaluations(config, cast(Division[VideoItem], division), processes.count)
        model = _make_model(config, work.labels)
        planned = make_plan(model, clips, train=config.train, optim=config.optim, num_processes=processes.count)
    return config, planned


def try_out(
    config: RunConfig, classes: Sequence[str], *, of_intervals: bool = False, with_weights: bool = True
) -> None:
    """Builds what a run needs besides its videos: the model with its weights, and the groups of its parameters.

    Args:
        config: of the run.
        classes: label texts.
        of_intervals: whether labels have a start and an end.
        with_weights: False leaves pretrained weights out, which may not be there yet.

    Raises:
        ConfigError: a setting is wrong, or patterns match nothing.
        CheckpointError: the weights cannot be read, or do not fit.
    """
    labels = tuple(classes)
    if of_intervals:
        config = frame_config(config)
        labels = frame_labels(config, classes)
    else:
        _refuse_frames(config)
    if not with_weights:
        config = replace(config, model=replace(config.model, weights=""))
    model, train = _make_model(config, labels, announced=False), config.train
    stem = model.stem_parameters() if train.freeze_stem else ()
    with trainable_only(model, train.trainable, frozen=train.frozen, stem=stem):
        parameter_groups(model, config.optim, layer_depths=model.layer_depths(), num_layers=model.num_layers)


def _resolve(recipe: str | Path | RunConfig, overrides: Sequence[str], *, of_run: bool) -> tuple[RunConfig, str]:
    """The configuration and the run's usual name; a module that the user's own recipe names is imported.

    Args:
        recipe: as for `train`.
        overrides: as for `train`.
        of_run: the recipe was found in a run's folder, and not named.
    """
    if isinstance(recipe, RunConfig):
        config = recipe
    else:
        config = load_recipe(recipe, overrides)
        if config.model.module:
            _import_module(config.model, find_recipe(recipe), overrides, of_run=of_run)
    if not config.data.train:
        raise ConfigError("data.train is not set. Name a folder with one folder of videos per class, or a csv.")
    return config, config.model.name if isinstance(recipe, RunConfig) else Path(recipe).stem


def _import_module(model: ModelConfig, recipe: Path, overrides: Sequence[str], *, of_run: bool) -> None:
    """Imports the module that a recipe names, but for one in a run's folder or elsewhere, which may be a stranger's.

    Raises:
        ConfigError: the module cannot be imported, or it is wanted and may not be.
    """
    typed = parse_overrides(overrides).get("model")
    if (isinstance(typed, dict) and "module" in typed) or not (of_run or is_remote(recipe) or run_of(recipe.parent)):
        import_own_module(model.module)
    elif find_model(model.name) is None:
        raise ConfigError(
            f"{recipe} names the model {model.name!r} of the module {model.module!r}. A recipe in a run's folder or at "
            f"an address imports no code by itself: add --import {model.module} if you trust that module."
        )


def _make_model(config: RunConfig, classes: Sequence[str], *, announced: bool = True) -> VideoClassifier:
    model = create_model(
        config.model.name,
        labels=classes,
        weights=config.model.weights or None,
        preprocessing=config.preprocessing,
        new_head=config.model.new_head,
        text=config.model.text,
        **config.model.options,
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    part = "" if trained == model.num_parameters else f" ({trained / 1e6:.2f} M trained, the rest frozen)"
    if announced:
        logger.info("%s: %.2f M parameters%s, %d classes", model.name, model.num_parameters / 1e6, part, len(classes))
    return model


def _mixed(
    augment: AugmentConfig, clips: Tensor, labels: Tensor, generator: torch.Generator, positions: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    return mix(clips, labels, augment, generator, positions=positions)


class HeldOutScores:
    """Scores on the held-out videos; one that is gone ends the run, since the others' score means something else.

    Args:
        config: of the run.
        held_out: the videos.
        classes: label texts.
        recorded: what the run knows of them: which files were there when it began.
    """

    def __init__(
        self,
        config: RunConfig,
        held_out: Sequence[VideoItem],
        classes: Sequence[str],
        recorded: Sequence[RecordedVideo],
    ) -> None:
        self._config, self._held_out, self._classes = config, held_out, classes
        self._expected = ExpectedVideos(recorded)

    def __call__(self, model: VideoClassifier) -> dict[str, float]:
        """Scores after an epoch, as `fit` takes them."""
        metrics = self.evaluate(model, self._config.views_while_training()).metrics
        return {"top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss}

    def evaluate(self, model: VideoClassifier, views: Views) -> Evaluation:
        """All held-out videos, scored with some views.

        Raises:
            VideoError: one that was there when the run began, or that was scored before, is gone.
        """
        dataset = make_test_set(self._config, self._held_out, self._classes, views, dense_rate=model.dense_rate)
        evaluation = evaluate_model(model, dataset, loader=self._config.loader)
        self._expected.require(evaluation.unreadable, [item.video_id for item in self._held_out])
        self._expected.add_scored(item.video_id for item in evaluation.items)
        return evaluation


def _scored(config: RunConfig, result: FitResult) -> Path:
    return result.last if config.evaluation.checkpoint == "last" else result.best or result.last


def _final_report(
    config: RunConfig,
    result: FitResult,
    scores: HeldOutScores | FrameScores,
    division: Division[VideoItem] | Division[IntervalVideo],
    processes: Processes,
) -> Report | TemporalReport:
    """The checkpoint that is to be scored, with the final views."""
    checkpoint = _scored(config, result)
    chosen = checkpoint == result.best and was_chosen(checkpoint, checkpoint.parents[1])
    # an early stop chooses, too
    chosen = chosen or config.train.early_stop_evaluations > 0
    notes = (CHOSEN_ON_THESE,) if chosen and not division.validation else ()
    notes = notes if config.optim.epochs else (NOT_TRAINED,)
    if isinstance(scores, FrameScores) and is_of_intervals(division):
        return frame_report(
            config, checkpoint, scores, division, data=evaluated_on(config), notes=notes, processes=processes
        )
    assert isinstance(scores, HeldOutScores)
    device = choose_device(config.train.device)
    model = from_pretrained(checkpoint).to(device)
    precision = choose_precision(config.evaluation.precision, model.trained_in, device)
    with computing_in(precision, device):
        evaluation = scores.evaluate(model, config.views())
    return make_report(
        evaluation,
        model=model.name,
        data=evaluated_on(config),
        seed=config.seed,
        precision=precision,
        cost=count_cost(model),
        notes=notes,
    )
