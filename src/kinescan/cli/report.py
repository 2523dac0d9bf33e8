from pathlib import Path
from typing import Annotated

import typer

from kinescan import studies
from kinescan.cli.options import AsJson
from kinescan.cli.output import print_json, reported
from kinescan.cli.terminal import print_text

EXAMPLES = (
    "kinescan report runs/own_videos_cpu",
    "kinescan report runs/own_videos_cpu --output own_videos.html",
    "kinescan report studies/pks4_over_vit --json",
)


@reported
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not, of a study or a demo.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write. By default report.html in the folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file with scores, learning curves, settings and provenance; it holds its pictures."""
    path = studies.write_report(run, output)
    if as_json:
        print_json({"report": str(path), "num_bytes": path.stat().st_size})
    else:
        print_text([str(path)])
