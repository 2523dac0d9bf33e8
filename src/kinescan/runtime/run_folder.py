"""Where things lie in the folder of a run; docs/run_folder.md says what each holds and when it is written."""

from dataclasses import dataclass
from pathlib import Path

RUNS = "runs"
"""The folder that runs are written to by default; no name below it is looked for on the hub."""
RECIPE_FILE = "recipe.toml"
VIDEOS_FILE = "videos.json"
REPORT_FILE = "report.json"
"""In each folder that holds a report."""
RULES_FILE = "events.json"
"""Beside a model's config.json: its thresholds of events."""
CHECKPOINTS = "checkpoints"
LAST = "last"
BEST = "best"


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run's folder; none has to be there.

    Attributes:
        path: the folder.

    Example:
        >>> RunFolder(Path("runs/a")).last.as_posix()
        'runs/a/checkpoints/last'
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / RECIPE_FILE

    @property
    def videos(self) -> Path:
        """Which videos are trained on and which are held out."""
        return self.path / VIDEOS_FILE

    @property
    def log(self) -> Path:
        """Loss, accuracy and speed: one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def unreadable(self) -> Path:
        """Training videos that could not be read, with the reason of each."""
        return self.path / "unreadable.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def last(self) -> Path:
        """The newest checkpoint, to resume from."""
        return self.checkpoints / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the best top-1, or per-frame mAP, on the validation or held-out videos."""
        return self.checkpoints / BEST

    @property
    def evaluation(self) -> Path:
        """The folder of the report that `kinescan eval` writes."""
        return self.path / "evaluation"

    @property
    def report_folders(self) -> tuple[Path, Path]:
        """Folders that may hold a report: that of the training, and that of `kinescan eval`."""
        return self.path, self.evaluation

    def is_run(self) -> bool:
        """Whether a run was begun here: there is a recipe, and a checkpoint was written."""
        return self.recipe.is_file() and self.checkpoints.is_dir()
