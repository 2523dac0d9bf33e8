import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from kinescan.cli.output import print_json, reported
from kinescan.data.listing import DATASETS
from kinescan.models.zoo import MODELS, list_models
from kinescan.ops.backend import Backend

EXAMPLES = (
    "kinescan list",
    "kinescan list --json",
    "kinescan list --recipes path/to/recipes",
)

MADE = {
    "motion": "kinescan data make motion OUT: only the motion tells the class",
    "appearance": "kinescan data make appearance OUT: only the look tells the class",
}


def list_all(recipes: str | Path = "recipes") -> dict[str, Any]:
    """What can be named: models, recipes, data sets, backends.

    Args:
        recipes: folder to look for recipes in.
    """
    return {
        "models": {name: _summary(MODELS[name].settings) for name in list_models()},
        "recipes": {str(path): _first_comment(path) for path in sorted(Path(recipes).glob("*.toml"))},
        "datasets": {name: layout.summary for name, layout in DATASETS.items()} | MADE,
        "backends": list(get_args(Backend)),
    }


def _summary(settings: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "the defaults of PKS4Config"


def _first_comment(path: Path) -> str:
    """The recipe's first line where it is a comment, else the model that it trains."""
    text = path.read_text(encoding="utf-8")
    first = text.partition("\n")[0]
    if first.startswith("#"):
        return first.lstrip("# ")
    model = tomllib.loads(text).get("model", {})
    return str(model if isinstance(model, str) else model.get("name", ""))


@reported
def command(
    recipes: Annotated[Path, typer.Option(help="Folder to look for recipes in.")] = Path("recipes"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the lists as JSON.")] = False,
) -> None:
    """List models, recipes, data sets and backends."""
    lists = list_all(recipes)
    if as_json:
        print_json(lists)
        return
    for kind, entries in lists.items():
        print(kind)
        pairs = entries.items() if isinstance(entries, dict) else [(entry, "") for entry in entries]
        width = max((len(name) for name, _ in pairs), default=0)
        for name, summary in pairs:
            print(f"  {name.ljust(width)}  {summary}".rstrip())
    print("`kinescan doctor` says which backends run here.")
