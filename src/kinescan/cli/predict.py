from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinescan import runs
from kinescan.cli.output import FAILED, JsonList, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import Table, line_limit, print_text, shown_length
from kinescan.runtime.quantities import percent
from kinescan.runtime.signals import Interruption

if TYPE_CHECKING:
    from kinescan.inference.predictor import Prediction
    from kinescan.models.classifier import VideoClassifier

EXAMPLES = (
    "kinescan predict a.mp4",
    "kinescan predict a.mp4 folder/ --model runs/own_videos_cpu --top 5 --json",
    "kinescan predict a.mp4 --explain pictures/",
)
HEADER = ("file", "class", "score", "time")
WIDTHS = (len("100.0 %"), len("10.00 s"))
"""Of score and time."""


@reported
def command(
    paths: Annotated[list[Path], typer.Argument(help="Video files, and folders of them.")],
    model: Annotated[
        str | None,
        typer.Option(help="A run's folder, a saved or exported model or a hub name. By default the newest run."),
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
    modules: OwnModules = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print predictions as JSON.")] = False,
) -> None:
    """Name the classes of video files; each prediction is printed as soon as it is made."""
    import_own_modules(modules)
    job = runs.predict.prepare_prediction(paths, model=model, overrides=settings, device=device, allow_code=allow_code)
    # SIGTERM ends it as Ctrl-C does: with whole lines
    with Interruption() as stop:
        stop.immediate = True
        with JsonList() if as_json else nullcontext() as entries:
            rows = _Rows(job.model, job.files)
            found = job.run(
                views=views,
                top=top,
                explain_folder=explain,
                allow_short=allow_short,
                on_prediction=rows.add if entries is None else lambda prediction: entries.add(asdict(prediction)),
            )
    if all(prediction.error is not None for prediction in found):
        raise typer.Exit(FAILED)


class _Rows:
    """A table that grows with every prediction."""

    def __init__(self, model: "VideoClassifier", files: list[Path]) -> None:
        longest = [max(shown_length(str(name)) for name in names) for names in (files, model.class_names)]
        self._table = Table(HEADER, (*longest, *WIDTHS), limit=line_limit())
        self._begun = False

    def add(self, prediction: "Prediction") -> None:
        if not self._begun:
            self._table.print_header()
            self._begun = True
        if prediction.error:
            print_text([f"{prediction.path}: {prediction.error}"])
        for label, score in zip(prediction.labels, prediction.scores, strict=True):
            self._table.print_row((prediction.path, label, f"{percent(score)}", f"{prediction.seconds:.2f} s"))
