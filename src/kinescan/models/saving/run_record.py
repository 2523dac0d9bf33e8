"""What a run's folder tells of the model that it trained: the recipe, and how well it did."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from kinescan.errors import CheckpointError
from kinescan.fields import fits
from kinescan.runtime.files import read_json_object, read_text
from kinescan.runtime.run_folder import REPORT_FILE, RunFolder

_PART_OF = re.compile(r"(\d+% held out of |the \S+ part of )(.+?)( \(\w+, split \d+\))?")
_PATH = re.compile(r"""(["'])((?:~|\.{0,2}/|[A-Za-z]:[\\/]).*?)\1""")


@dataclass(frozen=True, kw_only=True)
class ReportedScore:
    """The head of a report.

    Attributes:
        data: what the model was scored on, such as "20% held out of train"; of a path, its last name.
        views: frames x clips x crops.
        num_videos: how many were scored.
        top1: fraction of videos whose best class is right.
        top5: fraction of videos whose class is among the best `top5_classes`.
        top5_classes: 5, or the number of classes.
        calibration_error: expected calibration error.
        notes: what one has to know.
    """

    data: str
    views: str
    num_videos: int
    top1: float
    top5: float
    top5_classes: int
    calibration_error: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, as its folder tells it.

    Attributes:
        recipe: the resolved recipe, TOML.
        reports: every score that was written.
    """

    recipe: str
    reports: tuple[ReportedScore, ...]

    def published_recipe(self) -> str:
        """The recipe without the folders of the training's machine: of every path, the last name.

        Example:
            >>> RunRecord(recipe='train = "/home/me/ssv2/train.csv"', reports=()).published_recipe()
            'train = "train.csv"'
        """
        return _PATH.sub(lambda match: f"{match[1]}{_last_name(match[2])}{match[1]}", self.recipe.strip())


def read_run(folder: str | Path) -> RunRecord:
    """What the folder of a run tells.

    Raises:
        CheckpointError: it is not a run's folder, or a report in it is damaged.
    """
    run = RunFolder(Path(folder))
    if not run.recipe.is_file():
        raise CheckpointError(
            f"{folder} has no {run.recipe.name}. Give the folder of a run, as `kinescan train` wrote it."
        )
    reports = [file for home in run.report_folders if (file := home / REPORT_FILE).is_file()]
    recipe = read_text(run.recipe, error=CheckpointError)
    return RunRecord(recipe=recipe, reports=tuple(_read_report(file) for file in reports))


def _read_report(path: Path) -> ReportedScore:
    content = read_json_object(path, error=CheckpointError)
    hints = get_type_hints(ReportedScore)
    values = {"notes": [], **{name: content[name] for name in hints if name in content}}
    wrong = [name for name, hint in hints.items() if not fits(values.get(name), hint)]
    if wrong:
        raise CheckpointError(
            f"{path} is not a report of kinescan: {', '.join(wrong)} missing or of the wrong kind. Evaluate once more: "
            "kinescan eval"
        )
    return ReportedScore(**{**values, "data": _without_folders(values["data"]), "notes": tuple(values["notes"])})


def _without_folders(data: str) -> str:
    """What was scored on, as `evaluated_on` says it, with the last name of its path only."""
    match = _PART_OF.fullmatch(data)
    return _last_name(data) if match is None else f"{match[1]}{_last_name(match[2])}{match[3] or ''}"


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path
