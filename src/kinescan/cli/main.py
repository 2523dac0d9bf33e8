import importlib
import io
import os
import sys
from typing import Annotated, Any

import typer

from kinescan.cli.output import GLOBAL, QUIET, TRACEBACK, copy_lines
from kinescan.cli.own_modules import behind_the_verb
from kinescan.cli.usage import Verb
from kinescan.version import __version__

VERBS = {
    "train": ("kinescan.cli.train", "Fine-tune a model on labelled videos, as a recipe says."),
    "cross-validate": ("kinescan.cli.cross_validate", "Train a recipe on all folds of its videos but one, in turn."),
    "reproduce": (
        "kinescan.cli.reproduce",
        "Run a table of the PKS4 paper, and show its costs and scores beside ours.",
    ),
    "study": ("kinescan.cli.study", "Compare rows of settings over seeds and data, resumable, with tables."),
    "compare": ("kinescan.cli.compare", "Put finished runs side by side, grouped by everything but their seed."),
    "eval": ("kinescan.cli.evaluate", "Score a model on labelled videos and write a report."),
    "report": ("kinescan.cli.report", "Write a run, finished or not, or a study as one HTML file."),
    "predict": ("kinescan.cli.predict", "Name the classes of video files."),
    "stream": ("kinescan.cli.stream", "Classify a video frame by frame, at constant cost."),
    "ask": ("kinescan.cli.ask", "Answer questions about a long video with a pretrained VLM."),
    "web": ("kinescan.cli.web", "Open a page that shows what a model sees in a video."),
    "serve": ("kinescan.cli.serve", "Serve models by HTTP and WebSocket, OpenAI's client included."),
    "data": ("kinescan.cli.data", "Make data sets, take over labels of annotation tools, and check them."),
    "list": ("kinescan.cli.list", "List models, recipes, data sets and backends."),
    "recipe": ("kinescan.cli.recipe", "Print a recipe, to copy and change."),
    "doctor": ("kinescan.cli.doctor", "Say what works on this machine, and why other things do not."),
    "demo": ("kinescan.cli.demo", "Run the whole job on synthetic data."),
    "export": ("kinescan.cli.export", "Write a model for deployment, checked against the model itself."),
    "profile": ("kinescan.cli.profile", "Parameters, MACs and speed of models."),
    "bench": ("kinescan.cli.bench", "Measure speed and memory again, side by side with the peers."),
}
"""Verb -> the module with its `command` (or `app`, where it has verbs of its own), and one line of help."""


EXAMPLES = (
    "kinescan demo",
    "kinescan train recipes/own_videos_cpu.toml --set data.train=VIDEOS",
    "kinescan predict a.mp4 --top 5",
)


def build_app(only: str | None = None) -> typer.Typer:
    """The command line.

    Args:
        only: load the code of this verb alone, so that it starts quickly; the others are listed by name.
    """
    app = typer.Typer(
        name="kinescan",
        help="Video understanding whose cost grows linearly with the number of frames.",
        epilog=copy_lines(EXAMPLES),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, (module_name, summary) in VERBS.items():
        if only not in (None, name):
            app.command(name, help=summary)(_not_loaded)
            continue
        module = importlib.import_module(module_name)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=summary)
        else:
            app.command(name, cls=Verb, help=summary, epilog=copy_lines(module.EXAMPLES))(module.command)
    return app


def main() -> None:
    """The program `kinescan`.

    Threads of OpenMP that wait for each other sleep (OMP_WAIT_POLICY=PASSIVE) where nothing else is chosen: on a
    machine that others use too, threads that spin cost several times the CPU.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = behind_the_verb([argument for argument in sys.argv[1:] if argument not in GLOBAL])
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown as a code, and ends nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    build_app(only=verb)(args=arguments, prog_name="kinescan")


def __getattr__(name: str) -> Any:
    if name == "app":
        return build_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"kinescan {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Show where an error came from; allowed anywhere on the line.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option(QUIET, help="Print results, warnings and errors only; allowed anywhere on the line.")
    ] = False,
) -> None:
    pass


def _not_loaded() -> None:
    raise AssertionError("only the verb that runs is loaded")
