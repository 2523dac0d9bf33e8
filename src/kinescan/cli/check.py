import json
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.progress import Progress

from kinescan.cli.output import FAILED, print_json, reported
from kinescan.config import DataConfig, load_recipe, parse_overrides
from kinescan.data.check import DataCheck, check_videos
from kinescan.data.listing import choose_layout, list_videos
from kinescan.errors import ConfigError
from kinescan.settings import build_settings
from kinescan.training.journal import prepare_output

logger = logging.getLogger(__name__)

EXAMPLES = (
    "kinescan data check VIDEOS --test OTHER_VIDEOS --workers 8",
    "kinescan data check data/ucf101 --reader ucf101 --split 2 --output reports/ucf101",
    "kinescan data check recipes/ssv2_pks4_b16_8f.toml --quick --json",
)
JSON_FILE, TEXT_FILE = "check.json", "check.txt"
_SECONDS_BETWEEN_LINES = 30.0


def check(
    source: str | Path,
    *,
    test: str | Path | None = None,
    reader: str | None = None,
    split: int | None = None,
    overrides: Sequence[str] = (),
    num_workers: int | None = None,
    decode: bool = True,
    output: str | Path | None = None,
) -> DataCheck:
    """Looks at every file of a data set: unreadable, cut, missing, doubled, in training and in test.

    Args:
        source: a folder with one folder of videos per class, a csv of path,label, the folder of a published data set,
            or a recipe, whose `[data]` is taken.
        test: the same for evaluation; by default the published test part, where there is one.
        reader: how they are laid out, as `data.reader`.
        split: of a published data set, as `data.split`.
        overrides: "dotted.key=value" each, for a recipe; of other sources, those of `data`.
        num_workers: processes that read files; by default as many as there are cores.
        decode: decode every frame; otherwise damage inside of files does not show.
        output: folder for check.json and check.txt.

    Raises:
        ConfigError: a source cannot be understood, or the output cannot be written.
    """
    data = _data_config(source, overrides, test=test, reader=reader, split=split)
    folder = None if output is None else prepare_output(output)
    layout = choose_layout(data.train, data.reader)
    read = partial(list_videos, root=data.root or None, reader=data.reader, split=data.split)
    parts = {"train": read(data.train)}
    if data.test or layout.has_parts:
        parts["test"] = read(data.test or data.train, part="test", classes=parts["train"].classes)
    with _Progress() as progress:
        found = check_videos(
            parts,
            same_ids=layout.has_parts,
            num_workers=os.cpu_count() or 1 if num_workers is None else num_workers,
            decode=decode,
            limits=data.limits,
            progress=progress.update,
        )
    if folder is not None:
        (folder / JSON_FILE).write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / TEXT_FILE).write_text(found.to_text() + "\n", encoding="utf-8")
    return found


def _data_config(
    source: str | Path, overrides: Sequence[str], *, test: str | Path | None, reader: str | None, split: int | None
) -> DataConfig:
    """`[data]` of a recipe, or that of a folder or list, with what was said beside it."""
    given = {"test": test and str(test), "reader": reader, "split": split}
    said = {name: value for name, value in given.items() if value is not None}
    if Path(source).suffix != ".toml":
        values = parse_overrides(overrides)
        if values.keys() - {"data"}:
            raise ConfigError(f"--set takes only data.* here: {source} is no recipe. Name a .toml file for others.")
        return build_settings(DataConfig, {"train": str(source), **values.get("data", {}), **said}, where="data")
    data = load_recipe(source, [*overrides, *(f"data.{name}={value}" for name, value in said.items())]).data
    if not data.train:
        raise ConfigError(f"{source} does not set data.train. Add --set data.train=VIDEOS.")
    return data


class _Progress:
    """Files done: a live bar on a terminal, a log line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("checking", total=None)
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info("checked %d of %d files", done, total)


@reported
def command(
    source: Annotated[Path, typer.Argument(help="Folder per class, csv, folder of a published data set, or a recipe.")],
    settings: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the recipe.")
    ] = [],  # noqa: B006
    test: Annotated[Path | None, typer.Option(help="The same for evaluation, to find what lies on both sides.")] = None,
    reader: Annotated[str | None, typer.Option(help="Layout of a published data set: ssv2, ucf101, ...")] = None,
    split: Annotated[int | None, typer.Option(help="Which of its divisions into training and test.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read files. By default one per core.", min=0)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Decode nothing: only look at structure and packets.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for check.json and check.txt.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Find broken, cut, missing and doubled videos; nothing is deleted. Exits with 1 where something was found."""
    found = check(
        source,
        test=test,
        reader=reader,
        split=split,
        overrides=settings,
        num_workers=workers,
        decode=not quick,
        output=output,
    )
    if as_json:
        print_json(found.to_json())
    else:
        print(found.to_text())
    if not found.is_sound():
        raise typer.Exit(FAILED)
