from pathlib import Path
from typing import Annotated

import typer

from kinescan.cli.output import print_json, reported
from kinescan.cli.terminal import print_page
from kinescan.errors import ConfigError
from kinescan.evaluation.comparison import Comparison
from kinescan.evaluation.report import Report
from kinescan.runs.compare import compare_reports
from kinescan.runs.evaluate import HINT, evaluate
from kinescan.runs.folder import model_folder, run_of
from kinescan.runtime.launch import is_main_process, world_size
from kinescan.runtime.signals import Interruption

EXAMPLES = (
    "kinescan eval runs/own_videos_cpu",
    "kinescan eval my_model --data VIDEOS --views 8x2x3 --output reports/my_model --features features.safetensors",
    "kinescan eval --compare runs/first runs/second",
)


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
    features: Annotated[
        Path | None, typer.Option(help="File for features and every score of each video, as safetensors.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="RUN RUN", help="Two runs or reports: their gap video by video, and whether it is noise."),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Open a model of torch.export (.pt2), which may run code of its own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Score a model on labelled videos and write a report; or compare two that were scored."""
    # SIGTERM ends it as Ctrl-C does: with what is done kept
    with Interruption() as stop:
        stop.immediate = True
        if compare is None:
            found: Report | Comparison = evaluate(
                model,
                data=data,
                views=views,
                output=output,
                device=device,
                num_workers=workers,
                features=features,
                allow_code=allow_code,
            )
        else:
            found = _compared(compare, model, data, views, output, device, workers, features)
    if not is_main_process():
        return
    if as_json:
        print_json(found.to_json())
    else:
        print_page(found.to_markdown())


def _compared(
    pair: tuple[str, str],
    model: str | None,
    data: Path | None,
    views: str | None,
    output: Path | None,
    device: str,
    workers: int,
    features: Path | None,
) -> Comparison:
    """Of the reports that are there; with data or views, of runs scored anew."""
    if world_size() > 1:
        raise ConfigError("--compare is work for one process. Score both runs with torchrun, then compare without it.")
    if model is not None or features is not None:
        raise ConfigError("--compare takes two runs and neither a model nor --features. Score one by itself for those.")
    if data is not None or views is not None:
        placeless = [run for run in pair if run_of(model_folder(run, hint=HINT)) is None]
        if placeless:
            raise ConfigError(
                f"{placeless[0]} is no run's folder, so its new report has no place. Score it first, kinescan eval "
                f"{placeless[0]} --data ... --output REPORT, and compare REPORT."
            )
        for run in pair:
            evaluate(run, data=data, views=views, device=device, num_workers=workers)
    return compare_reports(*pair, output=output)
