from pathlib import Path
from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import json_option
from kinescan.cli.output import FAILED, print_json, reported
from kinescan.cli.terminal import print_text

EXAMPLES = (
    "kinescan data convert project.json labels.csv --fps 25 --videos VIDEOS",
    "kinescan data convert events.tsv labels.csv --where subject=person1",
    "kinescan data convert eaf_files labels.csv --label tier --videos VIDEOS",
)


@reported
def command(
    source: Annotated[
        Path,
        typer.Argument(help="What was exported: Label Studio, BORIS, ELAN, CVAT for video, VIA 3; or a folder of it."),
    ],
    output: Annotated[Path, typer.Argument(help="The list to write, such as labels.csv.")],
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos. By default that of the export.")] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second at which the tool counted frames.", min=0)
    ] = None,
    label: Annotated[
        str, typer.Option(help="What makes the label, such as tier, behavior,subject or attribute:NAME.")
    ] = "",
    where: Annotated[
        list[str], typer.Option(metavar="FIELD=VALUE", help="Keep what has this value, such as tier=event.")
    ] = [],  # noqa: B006
    point: Annotated[float | None, typer.Option(help="Seconds that an event without a length lasts.", min=0)] = None,
    tool: Annotated[
        str,
        typer.Option("--format", help="label_studio, boris, elan, elan_table, cvat, via, frame_list, or auto."),
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a list that is there.")] = False,
    as_json: Annotated[bool, json_option("Print what was written as JSON.")] = False,
) -> None:
    """Write an annotation tool's export as path,start,end,label. Exits with 1 where something could not be taken."""
    report = runs.convert.convert(
        source,
        output,
        overwrite=overwrite,
        format=tool,
        frame_rate=fps or 0.0,
        label=label,
        where=where,
        videos="" if videos is None else str(videos),
        least_seconds=point or 0.0,
    )
    if as_json:
        print_json(report.to_json())
    else:
        found = report.conversion
        labels = ", ".join(f"{name} ({count})" for name, count in found.labels.most_common(20))
        print_text(
            [
                f"{report.output}: {found.labels.total()} intervals in {found.num_videos} videos, from {found.format}",
                *([f"labels: {labels}{', ...' if len(found.labels) > 20 else ''}"] if labels else []),
                *([f"wrong ({len(report.problems)}):"] if report.problems else []),
                *(f"  {problem}" for problem in report.problems),
            ]
        )
    if report.problems:
        raise typer.Exit(FAILED)
