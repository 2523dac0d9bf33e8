import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

from kinescan.config import RunConfig
from kinescan.data.interval_layouts import find_interval_layout
from kinescan.data.listing import VideoItem, choose_layout, read_items
from kinescan.data.loader import LoaderConfig, usual_workers
from kinescan.data.provenance import read_run_videos
from kinescan.data.sampling import Views
from kinescan.errors import ConfigError
from kinescan.evaluation.multiview import evaluate_model
from kinescan.evaluation.predictions import save_features
from kinescan.evaluation.report import CHOSEN_ON_THESE, Report, make_report
from kinescan.evaluation.temporal.activitynet import is_results
from kinescan.evaluation.temporal.report import TemporalReport
from kinescan.evaluation.temporal.results_report import ResultsReport
from kinescan.inference.exported import ExportedModel
from kinescan.inference.model_source import resolve_model
from kinescan.models.classifier import VideoClassifier
from kinescan.profiling.cost import count_cost
from kinescan.runs.datasets import make_test_set
from kinescan.runs.evaluate_frames import EvalSettings, FrameJob, eval_settings
from kinescan.runs.evaluate_results import evaluate_results
from kinescan.runs.finished import Finished
from kinescan.runs.folder import model_folder, recipe_of, run_of
from kinescan.runs.run_videos import held_out_items, seen_notes, was_chosen
from kinescan.runs.still import skip_in, still_settings
from kinescan.runtime.device import choose_device
from kinescan.runtime.distributed import open_processes
from kinescan.runtime.folder_lock import locked
from kinescan.runtime.output_folder import prepare_output
from kinescan.runtime.precision import AskedPrecision, Precision, choose_precision, computing_in, precision_of
from kinescan.runtime.run_folder import RunFolder
from kinescan.settings import closest

logger = logging.getLogger(__name__)


HINT = "kinescan eval RUN"


def evaluate(
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    views: Views | str | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    precision: AskedPrecision = "auto",
    num_workers: int | None = None,
    features: str | Path | None = None,
    allow_code: bool = False,
    overrides: Sequence[str] = (),
) -> Report | TemporalReport | ResultsReport:
    """Scores a saved model on labelled videos and writes report.json, report.md, pictures and predictions.jsonl.

    A model that answers for each frame is scored on labels with a start and an end. Started by torchrun, each process
    scores its part of the videos, and the first one writes.

    Args:
        model: a run's folder (its best checkpoint is taken), a saved or exported model, or a hub name; None for the
            newest run under ./runs. A JSON file of detected intervals is scored by itself; see `evaluate_results`.
        data: a folder with one folder of videos per class, a csv of path,label, or labels with a start and an end; by
            default what the run held out.
        views: frames x clips x crops; by default the run's, or the model's frames x 2 x 3.
        output: folder of the report; by default `evaluation` in the run's folder, or nothing is written.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "auto" is that of the training, as far as this device has it; or "float32", "tf32", "bf16", "fp16".
        num_workers: processes that read videos; by default one for each core, up to eight, and none for a few videos.
        features: safetensors file for what the head takes of each video, and every score; None writes none.
        allow_code: open an exported file that may run code of its own, one of torch.export; see `load_exported`.
        overrides: "key=value" each, of `EvalSettings`, or "still.pixel_threshold=4" and the like, of `SkipUnchanged`.

    Raises:
        ConfigError: no data is known, a class is unknown to the model, the device has no such precision, or the output
            cannot be written or another process writes into it.
        CheckpointError: no model has that name.
        VideoError: none of the videos could be read.
    """
    skip, others = still_settings(overrides)
    settings = eval_settings(others)
    if model is not None and is_results(model):
        _refuse_for_frames(views, features, 0)
        return evaluate_results(model, data=data, output=output, settings=settings)
    folder = model_folder(model, hint=HINT)
    run = run_of(folder)
    report_folder = _report_folder(output, run)
    with ExitStack() as stack:
        processes = stack.enter_context(open_processes(choose_device(device)))
        if report_folder is not None:
            stack.enter_context(locked(report_folder, processes))
        model_here = resolve_model(folder, processes.device, allow_code=allow_code)
        recipe = None if run is None else recipe_of(run)
        computed_in = _precision(model_here, precision, recipe, processes.device)
        skipped = skip_in(model_here, skip)
        with Finished(report_folder, model_here.class_names) as finished:
            report: Report | TemporalReport
            if model_here.answers_frames:
                _refuse_for_frames(views, features, num_workers or 0)
                report = FrameJob(
                    model=model_here,
                    folder=folder,
                    run=run,
                    recipe=recipe,
                    data=data,
                    settings=settings,
                    processes=processes,
                    precision=computed_in,
                ).report(finished)
            else:
                _refuse_intervals(model_here, data, settings)
                report = _scored(
                    *(model_here, folder, run, recipe, data, views, num_workers, finished),
                    precision=computed_in,
                    with_features=bool(features),
                )
            if skipped is not None:
                report = replace(report, notes=(*report.notes, skipped))
            if processes.is_main:
                _save(report, report_folder, features)
    return report


def _report_folder(output: str | Path | None, run: Path | None) -> Path | None:
    """Where the report goes: `output`, made if need be, or `evaluation` in the run's folder; None without both."""
    if output is None and run is not None:
        output = RunFolder(run).evaluation
    return None if output is None else prepare_output(output)


def _precision(
    model: VideoClassifier, asked: AskedPrecision, recipe: RunConfig | None, device: torch.device
) -> Precision | Literal[""]:
    """What to compute in; nothing of an exported file, which computes as it was made to.

    Args:
        model: knows what it was trained in, unless an earlier version saved it.
        asked: by the user.
        recipe: of its run, which may say it instead.
        device: of the model.

    Raises:
        ConfigError: the device has no such precision, or the file cannot follow.
    """
    if asked not in get_args(AskedPrecision):
        raise ConfigError(f"unknown precision {asked!r}. {closest(asked, get_args(AskedPrecision))}")
    if not isinstance(model, ExportedModel):
        in_recipe = None
        if recipe is not None and recipe.train.mixed_precision != "auto":
            in_recipe = precision_of(recipe.train.mixed_precision, tf32=recipe.train.tf32)
        return choose_precision(asked, model.trained_in or in_recipe, device)
    if asked != "auto":
        raise ConfigError(
            f"--precision {asked}: an exported model computes as it was exported. Leave --precision out, or evaluate "
            "the model that it was exported from."
        )
    return ""


def _refuse_for_frames(views: Views | str | None, features: str | Path | None, num_workers: int) -> None:
    """Passes where nothing is asked for that only answers for whole clips have.

    Raises:
        ConfigError: something is.
    """
    for name, value in (("views", views), ("features", features)):
        if value is not None:
            raise ConfigError(f"answers with a time have no {name}. Leave --{name} out.")
    if num_workers:
        raise ConfigError(
            f"--workers {num_workers}: a model that answers for every frame reads each video once, in the process that "
            "runs it. Leave --workers out, or share the videos between processes: torchrun --nproc-per-node 2 -m "
            "kinescan eval ..."
        )


def _refuse_intervals(model: VideoClassifier, data: str | Path | None, settings: EvalSettings) -> None:
    """Passes where labels are those of whole clips.

    Raises:
        ConfigError: they have a start and an end.
    """
    if data is not None and find_interval_layout(data, settings.data.reader, settings.data.root or None) is not None:
        raise ConfigError(
            f"{model.name} answers for whole clips, and the labels of {data} have a start and an end. Evaluate a model "
            "that was trained on such labels, or name videos with one label each."
        )
    if settings != EvalSettings():
        raise ConfigError(f"{model.name} answers for whole clips; --set is for models that answer for each frame.")


def _save(report: Report | TemporalReport, output: Path | None, features: str | Path | None) -> None:
    """Writes the report and the features, as far as they are wanted.

    Raises:
        ConfigError: a file cannot be written; then the report is in the log.
    """
    try:
        if output is not None:
            report.save(output)
            logger.info("report: %s", output / "report.md")
        if features is not None and isinstance(report, Report):
            save_features(report.evaluation, features)
            logger.info("features and scores: %s", features)
    except ConfigError:
        # The work of hours is not lost to a full disk.
        for line in report.to_markdown().splitlines():
            logger.warning("%s", line)
        raise


def _scored(
    model: VideoClassifier,
    folder: str,
    run: Path | None,
    recipe: RunConfig | None,
    data: str | Path | None,
    views: Views | str | None,
    num_workers: int | None,
    finished: Finished,
    *,
    precision: Precision | Literal[""],
    with_features: bool,
) -> Report:
    """The report of a model in a folder, which may belong to a run; of several processes, all get the whole."""
    items, classes, origin = _items(data, run, recipe)
    chosen = _views(views, recipe, model.preprocessing.num_frames)
    config = RunConfig(preprocessing=model.preprocessing)
    dataset = make_test_set(config, items, classes, chosen, dense_rate=model.dense_rate)
    num_workers = usual_workers(len(items)) if num_workers is None else num_workers
    loader = replace(LoaderConfig() if recipe is None else recipe.loader, num_workers=num_workers)
    with computing_in(precision or "float32", model.device):
        scores = evaluate_model(model, dataset, loader=loader, with_features=with_features, on_scored=finished.add)
    return make_report(
        scores,
        model=model.name,
        data=origin,
        seed=None if recipe is None else recipe.seed,
        precision=precision,
        # What an exported file computes cannot be counted.
        cost=None if isinstance(model, ExportedModel) else count_cost(model),
        notes=() if run is None else tuple(_notes(items, data, run, recipe, chosen_best=was_chosen(Path(folder), run))),
    )


def _notes(
    items: Sequence[VideoItem], data: str | Path | None, run: Path, recipe: RunConfig | None, *, chosen_best: bool
) -> Iterator[str]:
    """What the run has seen of the videos that it is scored on."""
    if data is not None:
        yield from seen_notes(run, recipe, items, chosen_best=chosen_best)
    elif chosen_best and not ((recorded := read_run_videos(run)) and recorded.validation):
        yield CHOSEN_ON_THESE


def _items(
    data: str | Path | None, run: Path | None, recipe: RunConfig | None
) -> tuple[list[VideoItem], tuple[str, ...], str]:
    if data is not None:
        layout = choose_layout(data)
        origin = f"the {layout.test_name} part of {data}" if layout.has_parts else str(data)
        return *read_items(data, part="test"), origin
    if run is None:
        raise ConfigError(
            "no data to evaluate on. Name a folder with one folder of videos per class: --data VIDEOS; in Python "
            "data=VIDEOS."
        )
    return held_out_items(run, recipe)


def _views(views: Views | str | None, recipe: RunConfig | None, num_frames: int) -> Views:
    if isinstance(views, Views):
        return views
    if views is not None:
        return Views.parse(views)
    return Views.parse(f"{num_frames}x2x3") if recipe is None else recipe.views()
