from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import print_text
from kinescan.errors import ConfigError

EXAMPLES = (
    "kinescan list",
    "kinescan list recipes",
    "kinescan list settings",
)
SETTINGS = "settings"


@reported
def command(
    kind: Annotated[
        str | None,
        typer.Argument(help="models, recipes, studies, datasets, backends or settings. By default all but settings."),
    ] = None,
    recipes: Annotated[
        Path | None, typer.Option(help="Folder to look for recipes in. By default those that come with kinescan.")
    ] = None,
    modules: OwnModules = [],  # noqa: B006
    as_json: Annotated[bool, json_option("Print the lists as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the settings as a Markdown page.")] = False,
) -> None:
    """List models, recipes, studies, data sets, backends, and every key of a recipe."""
    import_own_modules(modules)
    if markdown and kind != SETTINGS:
        raise ConfigError("--markdown goes with settings only: kinescan list settings --markdown")
    if kind == SETTINGS:
        _print_settings(as_json=as_json, markdown=markdown, own_models=bool(modules))
        return
    lists = runs.names.list_names(kind, recipes=recipes)
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
    if "studies" in lists:
        print_text(["`kinescan study NAME` runs a study; `kinescan reproduce` those of the paper's tables."])


def _print_settings(*, as_json: bool, markdown: bool, own_models: bool) -> None:
    if markdown:
        print(runs.recipe_reference.reference_page(), end="")
        return
    # The classes of settings live beside torch; what they hold is written down for a quick answer.
    keys = runs.recipe_reference.recipe_keys() if own_models else runs.recipe_keys.stored_keys()
    if as_json:
        print_json([asdict(key) for key in keys])
    else:
        for key in keys:
            default = f" = {key.default}" if key.default else ""
            print_text([f"{key.key}{default}  ({key.kind})", f"    {key.meaning}"])
