"""Learning curves: what a run's log.jsonl says of its epochs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError
from kinescan.runtime.files import parse_json, read_text
from kinescan.runtime.run_folder import RunFolder

_MAX_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The epochs and steps of a run.

    Attributes:
        steps: number -> what was logged after it, every few steps.
        epochs: number -> what was logged after its last step: loss, accuracy and so on.
        evaluations: number -> scores.
    """

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(values.get("seconds", 0.0) for values in self.epochs.values())


def read_curves(folder: str | Path) -> Curves:
    """The curves of a run; of a run without a log, empty ones. Lines that were cut by a kill are left out."""
    found, file = Curves(), RunFolder(Path(folder)).log
    if not file.is_file():
        return found
    for line in read_text(file, max_bytes=_MAX_BYTES).splitlines():
        try:
            entry = parse_json(line, file)
        except ConfigError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int):
            continue
        if entry.get("kind") == "step" and isinstance(entry.get("step"), int):
            found.steps[entry["step"]] = {**_numbers(entry), "epoch": float(entry["epoch"])}
            continue
        part = {"epoch": found.epochs, "evaluation": found.evaluations}.get(str(entry.get("kind")))
        if part is not None:
            part[entry["epoch"]] = _numbers(entry)
    return found


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in entry.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "epoch"
    }
