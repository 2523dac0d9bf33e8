"""What a study found: rows with mean, spread and paired differences, as JSON and as a page."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from kinescan.evaluation.report import CHOSEN_ON_THESE
from kinescan.runtime.escaping import escape_markdown
from kinescan.runtime.quantities import duration
from kinescan.settings import to_plain
from kinescan.studies.job import NON_FINITE, RunRecord
from kinescan.studies.statistics import Difference, Spread, paired_difference, spread
from kinescan.studies.study import Study

ALL_DATA = "all data"
_PLAIN = ("_seconds", "_per_hour", "loss")
_TITLES = {"top1": "top-1", "top5": "top-5", "frame_map": "per-frame mAP", "mean_class_accuracy": "mean over classes"}
_TITLES |= {"decoded_f1_at_50": "segmental F1 at 50 %, decoded"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row on one data set, by one score.

    Attributes:
        row: its name.
        data: its name; empty where the study names none; `ALL_DATA` for the mean over all.
        metric: name of the score, such as "top1".
        spread: over seeds (of `ALL_DATA`: of the means over the data); None where no run is done.
        difference: to the base row, in pairs; None for the base row, and where no pair is done.
    """

    row: str
    data: str
    metric: str
    spread: Spread | None
    difference: Difference | None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study and what its runs gave so far.

    Attributes:
        study: what was run.
        output: its folder.
        code: version of the code that ran, by its content.
        runs: those that are done, in the study's order.
        num_planned: how many runs the study has.
        failed: title of a run -> why it is not done, where something went wrong.
        notes: what one has to know beside the numbers.
    """

    study: Study
    output: Path
    code: str
    runs: tuple[RunRecord, ...]
    num_planned: int
    failed: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Every run is done."""
        return len(self.runs) == self.num_planned

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores that the table shows."""
        if self.study.metrics:
            return self.study.metrics
        known = {name for run in self.runs for name in run.scores}
        return ("frame_map",) if "frame_map" in known else ("top1",)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """The names of the rows' own columns."""
        return tuple(dict.fromkeys(name for row in self.study.rows for name in row.columns))

    @property
    def data(self) -> tuple[str, ...]:
        """The data sets, and their mean where there are several."""
        names = tuple(entry.name for entry in self.study.data_parts) or ("",)
        return names if len(names) == 1 else (*names, ALL_DATA)

    def values(self, row: str, data: str, metric: str) -> dict[str, float]:
        """What pairs are made of -> the score: the seed; of `ALL_DATA`, see `paired_by`."""
        if data != ALL_DATA:
            return {
                f"seed {run.seed}": run.scores[metric]
                for run in self.runs
                if (run.row, run.data) == (row, data) and metric in run.scores
            }
        names = [entry.name for entry in self.study.data_parts]
        parts = {name: self.values(row, name, metric) for name in names}
        if self.paired_by == "data":
            return {name: found for name, part in parts.items() for found in part.values()}
        seeds = [f"seed {seed}" for seed in self.study.seeds]
        return {
            seed: mean(parts[name][seed] for name in names) for seed in seeds if all(seed in parts[n] for n in names)
        }

    @property
    def paired_by(self) -> str:
        """What pairs of the mean over all data share: "seed", or "data" of a study with one seed."""
        return "data" if len(self.study.seeds) == 1 else "seed"

    def cell(self, row: str, data: str, metric: str) -> Cell:
        """One row on one data set, by one score."""
        values = self.values(row, data, metric)
        base = self.values(self.study.base_row, data, metric)
        shared = [key for key in values if key in base]
        paired = bool(shared) and row != self.study.base_row
        return Cell(
            row=row,
            data=data,
            metric=metric,
            spread=spread(list(values.values())) if values else None,
            difference=paired_difference([values[key] for key in shared], [base[key] for key in shared])
            if paired
            else None,
        )

    def cells(self) -> Iterator[Cell]:
        """All of them, data by data and row by row."""
        for data in self.data:
            for row in self.study.rows:
                for metric in self.metrics:
                    yield self.cell(row.name, data, metric)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "name": self.study.name,
            "output": str(self.output),
            "finished": self.is_finished,
            "num_planned": self.num_planned,
            "num_done": len(self.runs),
            "base": self.study.base_row,
            "method": list(self.method()),
            "notes": list(self.notes),
            "failed": dict(self.failed),
            "code": self.code,
            "table": [cell.to_json() for cell in self.cells()],
            "runs": [run.to_json() for run in self.runs],
            "study": to_plain(self.study),
        }

    def to_markdown(self) -> str:
        """The page: a table for each data set, then how it was made and what is missing."""
        lines = [f"# {escape_markdown(self.study.title or self.study.name)}"]
        for data in self.data:
            lines += ["", *([f"## {escape_markdown(data)}", ""] if data else []), *self._table(data)]
        lines += ["", *self.method()]
        lines += [f"\n**Note.** {escape_markdown(note)}" for note in (*self._missing(), *self.notes)]
        lines += self._where()
        return "\n".join(lines) + "\n"

    def method(self) -> Iterator[str]:
        """How the numbers were made, in sentences."""
        yield "Mean ± standard deviation (n - 1) over n runs of different seeds, scored on the test videos."
        yield from self._checkpoints()
        if len(self.study.rows) > 1:
            yield (
                f"Difference: the row minus {escape_markdown(self.study.base_row)}, paired by seed, in points, with "
                "Student's t interval of 95 %."
            )
        if ALL_DATA in self.data:
            how = "each data set is a pair" if self.paired_by == "data" else "the mean over the data, paired by seed"
            yield f"{ALL_DATA[0].upper()}{ALL_DATA[1:]}: {how}."

    def _checkpoints(self) -> Iterator[str]:
        """Which checkpoint was scored; what a run's note says is not said again."""
        runs = [run for run in self.runs if CHOSEN_ON_THESE not in run.notes and run.scores]
        last = sum(run.best_epoch in (None, run.epochs) for run in runs)
        if runs and last == len(runs):
            yield "The last checkpoint of each run is scored: the test videos chose nothing."
        elif runs and not last:
            yield "Of each run the checkpoint is scored that was best on its validation videos."

    def _table(self, data: str) -> Iterator[str]:
        extra, metrics = self.extra_columns, self.metrics
        header = ["", *(heading(metric) for metric in metrics), "n", "difference", "time", *extra]
        if len(self.study.rows) == 1:
            header.remove("difference")
        yield f"| {' | '.join(map(escape_markdown, header))} |"
        yield f"|---|{'---:|' * (len(header) - 1)}"
        for row in self.study.rows:
            cells = [self.cell(row.name, data, metric) for metric in metrics]
            first = cells[0]
            shown = [escape_markdown(row.name), *map(shown_spread, cells), str(first.spread.n if first.spread else 0)]
            if len(self.study.rows) > 1:
                shown.append(shown_difference(first) if row.name != self.study.base_row else "base")
            shown += [self._time(row.name, data), *(escape_markdown(str(row.columns.get(name, ""))) for name in extra)]
            yield f"| {' | '.join(shown)} |"

    def _time(self, row: str, data: str) -> str:
        found = [run.train_seconds for run in self.runs if run.row == row and data in (run.data, ALL_DATA)]
        return duration(mean(found)) if found else ""

    def _missing(self) -> Iterator[str]:
        if not self.is_finished:
            yield f"{len(self.runs)} of {self.num_planned} runs are done. The same command continues."
        for run in self.runs:
            if run.status == NON_FINITE:
                where = " / ".join(part for part in (run.row, run.data, f"seed {run.seed}") if part)
                yield f"{where} has no score: {run.message}"
        for title, reason in self.failed.items():
            yield f"{title} is not done: {reason}"
        told = Counter(note for run in self.runs for note in run.notes)
        for note, count in told.items():
            yield note if count == len(self.runs) else f"{count} of {len(self.runs)} runs: {note}"

    def _where(self) -> Iterator[str]:
        if not self.runs:
            return
        yield "\n## Where it was measured\n"
        yield f"- code {self.code}, seeds {', '.join(map(str, self.study.seeds))}"
        here = _unique(run.environment for run in self.runs)
        for machine in here:
            packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
            accelerators = ", ".join(machine["accelerators"]) or "no accelerator"
            cpu = f"{machine['cpu']}, {machine['num_cores']} cores"
            yield f"- Python {machine['python']}, {packages}; {cpu}, {accelerators}"
        yield f"- {sum(run.cpu_seconds for run in self.runs):.0f} s of processor time in all runs together"
        yield "- time: of the training epochs of a run, h:mm:ss"


def _unique(values: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def heading(metric: str) -> str:
    """The score as the head of a column."""
    title = _TITLES.get(metric, metric)
    return title if metric.endswith(_PLAIN) else f"{title} (%)"


def _scale(metric: str) -> float:
    """Parts of a whole are shown in per cent; times and rates as they are."""
    return 1.0 if metric.endswith(_PLAIN) else 100.0


def shown_spread(cell: Cell) -> str:
    """Mean and standard deviation as tables show them."""
    if cell.spread is None:
        return "-"
    scale, found = _scale(cell.metric), cell.spread
    deviation = "" if found.n == 1 else f" ± {scale * found.standard_deviation:.1f}"
    return f"{scale * found.mean:.1f}{deviation}"


def shown_difference(cell: Cell) -> str:
    """The difference and its interval as tables show them."""
    if cell.difference is None:
        return "-"
    scale, found = _scale(cell.metric), cell.difference
    interval = "" if found.n == 1 else f" ({scale * found.low:+.1f} to {scale * found.high:+.1f})"
    return f"{scale * found.mean:+.1f}{interval}"
