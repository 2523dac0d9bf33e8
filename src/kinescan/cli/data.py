from pathlib import Path
from typing import Annotated, Literal

import typer

from kinescan import runs
from kinescan.cli import check, convert, index, pack
from kinescan.cli.options import json_option, settings_option
from kinescan.cli.output import copy_lines, print_json, reported
from kinescan.cli.usage import Verb

EXAMPLES = (
    "kinescan data make motion data/motion",
    "kinescan data make motion data/real --from MY_VIDEOS --level 1",
    "kinescan data make events data/events --set pairs='[\"horizontal\"]' --noise 8 --shake 2",
)

Kind = Literal["motion", "appearance", "events"]


@reported
def command(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="motion: only the motion tells the class; appearance: only the look; "
            "events: long videos, and lists of what happens from when to when."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder, made if need be.")],
    settings: Annotated[
        list[str],
        settings_option(
            "Any other setting: fps, pairs, shake_pixels, workers, overwrite; of motion distractors, travel, ...; "
            "of events train_videos, seconds, ..."
        ),
    ] = [],  # noqa: B006
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="motion: move windows over the videos and pictures of this folder.", metavar="FOLDER"
        ),
    ] = None,
    level: Annotated[
        int | None,
        typer.Option(help="motion: how hard, 0 (as without it) to 4; docs/data.md lists them."),
    ] = None,
    train_per_class: Annotated[int | None, typer.Option(help="Training files of a class.")] = None,
    test_per_class: Annotated[int | None, typer.Option(help="Test files of a class.")] = None,
    frame_size: Annotated[int | None, typer.Option(help="Side of the square frame in pixels.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of a file.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same pixels.")] = None,
    noise: Annotated[float | None, typer.Option(help="Noise on every pixel, in levels of 255.")] = None,
    shake: Annotated[float | None, typer.Option(hidden=True, help="As --set shake_pixels.")] = None,
    as_json: Annotated[bool, json_option("Print what was made as JSON.")] = False,
) -> None:
    """Make a data set of video files."""
    flags = {
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
        "frame_size": frame_size,
        "num_frames": num_frames,
        "seed": seed,
        "noise_levels": noise,
        "shake_pixels": shake,
    }
    values = {name: value for name, value in flags.items() if value is not None}
    report = runs.make_data.make(kind, output, source=source, level=level, overrides=settings, **values)
    if as_json:
        print_json(vars(report))
    else:
        print(
            f"{report.folder}: {report.num_train} training and {report.num_test} test files in "
            f"{len(report.classes)} classes{_events(report.num_events)}, {report.seconds:.1f} s"
        )
        if report.sources:
            parts = " and ".join(f"{len(names)} to {part}" for part, names in report.sources.items())
            print(f"cut from {parts}; {len(report.left_out)} files left out")


def _events(number: int) -> str:
    return f", {number} events" if number else ""


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, epilog=copy_lines(EXAMPLES))
app.command("make", cls=Verb, epilog=copy_lines(EXAMPLES))(command)
app.command("convert", cls=Verb, epilog=copy_lines(convert.EXAMPLES))(convert.command)
app.command("index", cls=Verb, epilog=copy_lines(index.EXAMPLES))(index.command)
app.command("pack", cls=Verb, epilog=copy_lines(pack.EXAMPLES))(pack.command)
app.command("check", cls=Verb, epilog=copy_lines(check.EXAMPLES))(check.command)


@app.callback()
def _group() -> None:
    """Make data sets, take over labels of annotation tools, and check them."""
