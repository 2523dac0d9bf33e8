from pathlib import Path
from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import AsJson, settings_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.terminal import print_page, print_text
from kinescan.errors import ConfigError

EXAMPLES = (
    "kinescan demo",
    "kinescan demo --quick",
    "kinescan demo --stills --output runs/stills --set preprocessing.size=48",
)


@reported
def command(
    output: Annotated[Path, typer.Option(help="Folder of everything; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    recipes: Annotated[Path, typer.Option(help="Folder with the demo's recipes.")] = Path("recipes"),
    train_per_class: Annotated[int, typer.Option(help="Training files of each motion; looks get half.", min=1)] = 160,
    test_per_class: Annotated[int, typer.Option(help="Held-out files of each class.", min=1)] = 40,
    stills: Annotated[
        bool, typer.Option("--stills", help="Only train the image model that the others start from.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the first page: what the model that comes with kinescan sees.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="Videos and pictures for the first page's windows.")
    ] = None,
    settings: Annotated[list[str], settings_option("Replace a setting of every training run.")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Run the whole job on synthetic data: about ten minutes on two CPU cores.

    The first page, what the model that comes with kinescan sees, is there within a minute or two.
    """
    if stills and (quick or source is not None):
        raise ConfigError("--stills trains the image model and writes no page: leave out --quick and --from.")
    if quick:
        page = runs.demo.quick_demo(output, source=source)
        if as_json:
            print_json({"page": str(page)})
        else:
            print_text([f"The page: {page}"])
        return
    if stills:
        weights = runs.demo.stills(output, recipes=recipes, overrides=settings)
        if as_json:
            print_json({"checkpoint": str(weights)})
        else:
            print_text([f"Start from it: --set model.weights={weights} --set model.new_head=true"])
        return
    result = runs.demo.demo(
        output,
        recipes=recipes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        source=source,
        overrides=settings,
    )
    if as_json:
        print_json(result.to_json())
    else:
        print_page(runs.demo_page.opening(result.to_json()))
        print_text(["", f"The whole page: {result.page}"])
