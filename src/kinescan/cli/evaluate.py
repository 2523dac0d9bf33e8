import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kinescan.cli.output import print_json, reported
from kinescan.cli.runs import RECIPE_FILE, model_folder, run_of
from kinescan.cli.videos import evaluated_on, make_test_set, read_videos
from kinescan.config import RunConfig, load_recipe
from kinescan.data.datasets import VideoItem, read_items
from kinescan.data.loader import LoaderConfig
from kinescan.data.sampling import Views
from kinescan.errors import ConfigError
from kinescan.evaluation.cost import count_cost
from kinescan.evaluation.multiview import evaluate_model
from kinescan.evaluation.report import Report, make_report
from kinescan.models.zoo import from_pretrained
from kinescan.training.engine import choose_device
from kinescan.training.journal import prepare_output

logger = logging.getLogger(__name__)

EXAMPLES = (
    "kinescan eval runs/own_videos_cpu",
    "kinescan eval runs/own_videos_cpu --data OTHER_VIDEOS --views 8x2x3",
    "kinescan eval my_model --data VIDEOS --output reports/my_model --json",
)


def evaluate(
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    views: Views | str | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    num_workers: int = 0,
) -> Report:
    """Scores a saved model on labelled videos and writes report.json, report.md and confusion.png.

    Args:
        model: a run's folder (its best checkpoint is taken), a saved model, or a hub name; None for the newest run
            under ./runs.
        data: a folder with one folder of videos per class, or a csv of path,label; by default what the run held out.
        views: frames x clips x crops; by default the run's, or the model's frames x 2 x 3.
        output: folder of the report; by default `evaluation` in the run's folder, or nothing is written.
        device: "auto", "cpu", "cuda" or "mps".
        num_workers: processes that read videos.

    Raises:
        ConfigError: no data is known, a class is unknown to the model, or the output cannot be written.
        CheckpointError: there is no such model.
        VideoError: none of the videos could be read.
    """
    folder = model_folder(model)
    run = run_of(folder)
    if output is None and run is not None:
        output = run / "evaluation"
    if output is not None:
        output = prepare_output(output)
    resolved = from_pretrained(folder).to(choose_device(device))
    recipe = load_recipe(run / RECIPE_FILE) if run is not None else None
    items, classes, origin = _items(data, recipe)
    chosen = _views(views, recipe, resolved.preprocessing.num_frames)
    config = RunConfig(preprocessing=resolved.preprocessing)
    dataset = make_test_set(config, items, classes, chosen)
    loader = replace(LoaderConfig() if recipe is None else recipe.loader, num_workers=num_workers)
    evaluation = evaluate_model(resolved, dataset, loader=loader)
    seed = None if recipe is None else recipe.seed
    report = make_report(evaluation, model=resolved.name, data=origin, seed=seed, cost=count_cost(resolved))
    if output is not None:
        report.save(output)
        logger.info("report: %s", Path(output) / "report.md")
    return report


def _items(data: str | Path | None, recipe: RunConfig | None) -> tuple[list[VideoItem], tuple[str, ...], str]:
    if data is not None:
        return *read_items(data), str(data)
    if recipe is None:
        raise ConfigError("no data to evaluate on. Name a folder with one folder of videos per class with --data.")
    _, held_out, classes = read_videos(recipe)
    return held_out, classes, evaluated_on(recipe)


def _views(views: Views | str | None, recipe: RunConfig | None, num_frames: int) -> Views:
    if isinstance(views, Views):
        return views
    if views is not None:
        return Views.parse(views)
    return Views.parse(f"{num_frames}x2x3") if recipe is None else recipe.views()


@reported
def command(
    model: Annotated[
        str | None, typer.Argument(help="A run's folder, a saved model or a hub name. By default the newest run.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder per class, or csv of path,label. By default what the run held out.")
    ] = None,
    views: Annotated[str | None, typer.Option(help="Frames x clips x crops, such as 8x2x3.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that read videos.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Score a model on labelled videos and write a report."""
    report = evaluate(model, data=data, views=views, output=output, device=device, num_workers=workers)
    if as_json:
        print_json(report.to_json())
    else:
        print(report.to_markdown())
