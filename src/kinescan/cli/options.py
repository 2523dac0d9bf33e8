"""Options that several verbs have: each is declared once, and a verb says in its help what it means there."""

from pathlib import Path
from typing import Annotated, Any

import typer


def settings_option(text: str) -> Any:
    """`--set KEY=VALUE`, which may be given again; `text` is its help."""
    return typer.Option("--set", metavar="KEY=VALUE", help=text)


def json_option(text: str) -> Any:
    """`--json`; `text` is its help."""
    return typer.Option("--json", help=text)


AsJson = Annotated[bool, json_option("Print the result as JSON.")]
RecipeSettings = Annotated[list[str], settings_option("Replace a setting of the recipe.")]
StudyOutput = Annotated[Path | None, typer.Option(help="Folder of everything. By default runs/NAME.")]

# A data set that is looked at and not trained on.
# An address would not come out of a Path as it went in.
DataSet = Annotated[str, typer.Argument(help="Folder per class, csv, folder of a published data set, or a recipe.")]
LabelReader = Annotated[str | None, typer.Option("--reader", help="Layout of a published data set: ssv2, ucf101, ...")]
Split = Annotated[int | None, typer.Option(help="Which of its divisions into training and test.")]
Workers = Annotated[int | None, typer.Option(help="Processes that read files. By default one per core.", min=0)]

# of serve and web
ServedModels = Annotated[
    list[str],
    typer.Option("--model", help="A run, a saved or exported model or a hub name; NAME=... names it. Can be repeated."),
]
ServedVlm = Annotated[str | None, typer.Option("--vlm", help="Folder or hub name of a video VLM, for questions.")]
Host = Annotated[str, typer.Option("--host", help="Where to listen. Beyond this machine KINESCAN_API_KEY is needed.")]
Port = Annotated[int, typer.Option("--port", help="0 chooses a free one.")]
