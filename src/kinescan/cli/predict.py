from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kinescan.cli.limits import chosen_limits
from kinescan.cli.output import FAILED, print_json, print_table, reported
from kinescan.cli.runs import model_folder
from kinescan.inference.predictor import predict
from kinescan.training.engine import choose_device

EXAMPLES = (
    "kinescan predict a.mp4",
    "kinescan predict a.mp4 folder/ --model runs/own_videos_cpu --top 5 --json",
    "kinescan predict a.mp4 --explain pictures/",
)


@reported
def command(
    paths: Annotated[list[Path], typer.Argument(help="Video files, and folders of them.")],
    model: Annotated[
        str | None, typer.Option(help="A run's folder, a saved model or a hub name. By default the newest run.")
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="data.max_pixels or data.timeout_seconds of a file.")
    ] = [],  # noqa: B006
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    views: Annotated[str | None, typer.Option(help="Frames x clips x crops to average over, such as 8x2x3.")] = None,
    explain: Annotated[Path | None, typer.Option(help="Folder for pictures of what moved and what changed.")] = None,
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Use what can be decoded of cut or damaged files.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Open a model of torch.export (.pt2), which may run code of its own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print predictions as JSON.")] = False,
) -> None:
    """Name the classes of video files."""
    predictions = predict(
        model_folder(model),
        paths,
        views=views,
        top=top,
        device=choose_device(device),
        explain_folder=explain,
        allow_code=allow_code,
        limits=chosen_limits(settings),
        allow_short=allow_short,
    )
    if as_json:
        print_json([asdict(prediction) for prediction in predictions])
    else:
        rows = [
            (prediction.path, label, f"{100 * score:.1f} %", f"{prediction.seconds:.2f} s")
            for prediction in predictions
            for label, score in zip(prediction.labels, prediction.scores, strict=True)
        ]
        unreadable = [(prediction.path, "-", "-", prediction.error) for prediction in predictions if prediction.error]
        print_table(("file", "class", "score", "time"), rows + unreadable)
    if all(prediction.error is not None for prediction in predictions):
        raise typer.Exit(FAILED)
