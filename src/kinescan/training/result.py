from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run left behind.

    Attributes:
        last: checkpoint after the last epoch.
        best: checkpoint with the best score (top-1, or per-frame mAP) of all evaluations; None without evaluation.
        best_score: its score in [0, 1].
        best_epoch: its epoch, from 0.
        steps: optimizer steps taken.
        unreadable: path -> reason of videos that could not be read.
    """

    last: Path
    best: Path | None
    best_score: float | None
    best_epoch: int | None
    steps: int
    unreadable: dict[str, str]
