from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kinescan import runs
from kinescan.cli.options import json_option, settings_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import print_page
from kinescan.errors import ConfigError
from kinescan.runtime.launch import is_main_process
from kinescan.runtime.signals import Interruption

if TYPE_CHECKING:
    from kinescan.evaluation.comparison import Comparison
    from kinescan.evaluation.report import Report
    from kinescan.evaluation.temporal.comparison import TemporalComparison
    from kinescan.evaluation.temporal.report import TemporalReport
    from kinescan.evaluation.temporal.results_report import ResultsReport
    from kinescan.runtime.precision import AskedPrecision

EXAMPLES = (
    "kinescan eval runs/own_videos_cpu",
    "kinescan eval my_model --data VIDEOS --views 8x2x3 --output reports/my_model --features features.safetensors",
    "kinescan eval --compare runs/first runs/second",
)


@reported
def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder, a saved model, a hub name, or a JSON of detections. By default the newest run."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder per class, csv of path,label or path,start,end,label. By default what the run held out."
        ),
    ] = None,
    views: Annotated[str | None, typer.Option(help="Frames x clips x crops, such as 8x2x3.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, tf32, bf16 or fp16; auto is that of the training.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes that read videos. By default one a core, up to 8.", min=0)
    ] = None,
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
    settings: Annotated[
        list[str],
        settings_option("thresholds=choose, data.root=VIDEOS, ...: docs/evaluation.md."),
    ] = [],  # noqa: B006
    modules: OwnModules = [],  # noqa: B006
    as_json: Annotated[bool, json_option("Print the report as JSON.")] = False,
) -> None:
    """Score a model on labelled videos and write a report; or compare two that were scored."""
    import_own_modules(modules)
    # SIGTERM ends it as Ctrl-C does: with what is done kept
    with Interruption() as stop:
        stop.immediate = True
        if compare is None:
            found: Report | TemporalReport | ResultsReport | Comparison | TemporalComparison = runs.evaluate.evaluate(
                model,
                data=data,
                views=views,
                output=output,
                device=device,
                precision=cast("AskedPrecision", precision),
                num_workers=workers,
                features=features,
                allow_code=allow_code,
                overrides=settings,
            )
        else:
            if model is not None or features is not None:
                raise ConfigError(
                    "--compare takes two runs and neither a model nor --features. Score one by itself for those."
                )
            found = runs.compare.compare_runs(
                *compare,
                data=data,
                views=views,
                output=output,
                device=device,
                precision=cast("AskedPrecision", precision),
                num_workers=workers,
                overrides=settings,
            )
    if not is_main_process():
        return
    if as_json:
        print_json(found.to_json())
    else:
        print_page(found.to_markdown())
