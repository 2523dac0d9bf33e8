from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from kinescan.cli.output import print_json, reported
from kinescan.cli.terminal import print_text
from kinescan.config import packaged_recipes
from kinescan.data.listing import DATASETS
from kinescan.errors import ConfigError
from kinescan.models.zoo import MODELS, list_models
from kinescan.ops.backend import Backend
from kinescan.runs.recipe_reference import recipe_keys, reference_page
from kinescan.runtime.files import read_text, read_toml
from kinescan.settings import closest

EXAMPLES = (
    "kinescan list",
    "kinescan list recipes",
    "kinescan list settings",
)

MADE = {
    "motion": "kinescan data make motion OUT: only the motion tells the class",
    "appearance": "kinescan data make appearance OUT: only the look tells the class",
}


SETTINGS = "settings"


def list_all(recipes: str | Path | None = None) -> dict[str, Any]:
    """What can be named: models, recipes, data sets, backends.

    Args:
        recipes: folder to look for recipes in; None for those that come with kinescan.
    """
    found = (
        packaged_recipes() if recipes is None else {str(path): path for path in sorted(Path(recipes).glob("*.toml"))}
    )
    return {
        "models": {name: _summary(MODELS[name].settings) for name in list_models()},
        "recipes": {name: _first_comment(path) for name, path in found.items()},
        "datasets": {name: layout.summary for name, layout in DATASETS.items()} | MADE,
        "backends": list(get_args(Backend)),
    }


def _summary(settings: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "the defaults of PKS4Config"


def _first_comment(path: Path) -> str:
    """The recipe's first line where it is a comment, else the model that it trains."""
    try:
        first = read_text(path).partition("\n")[0]
        if first.startswith("#"):
            return first.lstrip("# ")
        model = read_toml(path).get("model", {})
    except ConfigError as error:
        return f"cannot be read: {error}"
    return str(model.get("name", "") if isinstance(model, dict) else model)


@reported
def command(
    kind: Annotated[
        str | None,
        typer.Argument(help="models, recipes, datasets, backends or settings. By default all but settings."),
    ] = None,
    recipes: Annotated[
        Path | None, typer.Option(help="Folder to look for recipes in. By default those that come with kinescan.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lists as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the settings as a Markdown page.")] = False,
) -> None:
    """List models, recipes, data sets, backends, and every key of a recipe."""
    if markdown and kind != SETTINGS:
        raise ConfigError("--markdown goes with settings only: kinescan list settings --markdown")
    if kind == SETTINGS:
        _print_settings(as_json=as_json, markdown=markdown)
        return
    lists = list_all(recipes)
    if kind is not None:
        if kind not in lists:
            raise ConfigError(f"cannot list {kind!r}. {closest(kind, [*lists, SETTINGS])}")
        lists = {kind: lists[kind]}
    if as_json:
        print_json(lists)
        return
    for name, entries in lists.items():
        print_text([name])
        pairs = entries.items() if isinstance(entries, dict) else [(entry, "") for entry in entries]
        width = max((len(entry) for entry, _ in pairs), default=0)
        print_text(f"  {entry.ljust(width)}  {summary}".rstrip() for entry, summary in pairs)
    if "backends" in lists:
        print_text(["`kinescan doctor` says which backends run here."])
    if "recipes" in lists:
        print_text(["`kinescan recipe NAME > my.toml` copies a recipe."])


def _print_settings(*, as_json: bool, markdown: bool) -> None:
    if as_json:
        print_json([asdict(key) for key in recipe_keys()])
    elif markdown:
        print(reference_page(), end="")
    else:
        for key in recipe_keys():
            default = f" = {key.default}" if key.default else ""
            print_text([f"{key.key}{default}  ({key.kind})", f"    {key.meaning}"])
