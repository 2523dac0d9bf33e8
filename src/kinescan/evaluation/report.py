from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kinescan.evaluation.metrics import Metrics, confusion_matrix
from kinescan.evaluation.multiview import Evaluation
from kinescan.evaluation.plots import plot_confusion, plot_reliability
from kinescan.evaluation.predictions import prediction_lines
from kinescan.evaluation.report_parts import (
    CONFUSION_FILE,
    PAGE_FILE,
    PREDICTIONS_FILE,
    RELIABILITY_FILE,
    ReportFields,
    listed,
    note_lines,
    report_folder,
    unreadable_lines,
)
from kinescan.profiling.cost import Cost
from kinescan.profiling.environment import describe_environment
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_markdown, to_json
from kinescan.runtime.precision import Precision
from kinescan.runtime.quantities import percent
from kinescan.runtime.run_folder import REPORT_FILE

CHOSEN_ON_THESE = (
    "The checkpoint was chosen as the best of its run on these same videos, so its score here is too high on average. "
    "Score it on videos that chose nothing before you compare or publish it."
)
"""Note of a report whose checkpoint was picked by the videos that it is scored on."""


@dataclass(frozen=True, kw_only=True)
class Report(ReportFields):
    """An evaluation with all that is needed to read it later: on which data, by which model, where.

    Attributes:
        evaluation: scores, labels and the files that could not be read.
    """

    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """The report as plain values: everything but the scores of each video."""
        evaluation = self.evaluation
        metrics = evaluation.metrics
        numbers = {
            "views": str(evaluation.views),
            "top1": metrics.top1,
            "top5": metrics.top5,
            "top5_classes": metrics.top5_classes,
            "mean_class_accuracy": metrics.mean_class_accuracy,
            "calibration_error": metrics.calibration_error,
            "loss": metrics.loss,
            "reliability": [asdict(entry) for entry in metrics.reliability],
            "classes": [asdict(entry) for entry in metrics.classes],
            "confusions": [asdict(entry) for entry in metrics.confusions],
        }
        return self.plain_fields(
            numbers, num_videos=metrics.num_videos, unreadable=evaluation.unreadable, seconds=evaluation.seconds
        )

    def to_markdown(self) -> str:
        """The report as a page: the result, every class, the commonest mistakes, where it was measured."""
        parts = [self._headline(), self._class_table(), self._mistakes(), self._calibration()]
        parts.append(self.origin_lines(self.evaluation.seconds))
        return "\n".join(line for part in parts for line in part) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Writes report.json, report.md, two pictures and predictions.jsonl (a line for each video).

        A report of the same model, data, views and precision in the folder is replaced; one of others is moved to its
        `earlier-1`, `earlier-2`, ...

        Args:
            folder: made if need be.

        Returns:
            The folder.

        Raises:
            ConfigError: the folder cannot be written.
        """
        folder = Path(folder)
        evaluation = self.evaluation
        matrix = confusion_matrix(evaluation.scores.argmax(1), evaluation.targets, num_classes=len(evaluation.labels))
        plain = self.to_json()
        with report_folder(folder, plain, same=("task", "model", "data", "views", "precision")):
            write_text(folder / REPORT_FILE, to_json(plain, indent=1) + "\n")
            write_text(folder / PAGE_FILE, self.to_markdown())
            write_text(folder / PREDICTIONS_FILE, "".join(prediction_lines(evaluation)))
            plot_confusion(matrix, evaluation.labels, folder / CONFUSION_FILE)
            plot_reliability(evaluation.metrics.reliability, folder / RELIABILITY_FILE)
        return folder

    def _headline(self) -> Iterator[str]:
        metrics, evaluation = self.evaluation.metrics, self.evaluation
        yield self.title_line()
        yield "| | |\n|---|---|"
        yield f"| top-1 | **{percent(metrics.top1)}** |"
        yield f"| top-{metrics.top5_classes} | {percent(metrics.top5)} |"
        yield f"| mean over classes | {percent(metrics.mean_class_accuracy)} |"
        yield f"| calibration error | {percent(metrics.calibration_error)} |"
        yield f"| videos scored | {metrics.num_videos} |"
        yield f"| views (frames x clips x crops) | {evaluation.views} |"
        if self.cost is not None:
            macs = self.cost.macs
            yield f"| parameters | {self.cost.num_parameters / 1e6:.2f} M |"
            yield (
                f"| GMACs a view | {macs.without_attention / 1e9:.2f} "
                f"({macs.with_attention / 1e9:.2f} with attention products) |"
            )
        yield from note_lines(self.notes)
        if metrics.top5_classes < 5:
            yield f"\nThere are {len(evaluation.labels)} classes, so the top 5 are the top {metrics.top5_classes}."
        yield from unreadable_lines(evaluation.unreadable, metrics.num_videos)

    def _class_table(self) -> Iterator[str]:
        yield "\n## Classes\n\n| class | videos | right | accuracy |\n|---|---:|---:|---:|"
        for entry in self.evaluation.metrics.classes:
            accuracy = "no videos" if entry.accuracy is None else percent(entry.accuracy)
            yield f"| {escape_markdown(entry.label)} | {entry.num_videos} | {entry.num_right} | {accuracy} |"
        chance = 1 / len(self.evaluation.labels)
        lost = [
            entry.label
            for entry in self.evaluation.metrics.classes
            if entry.accuracy is not None and entry.accuracy <= chance
        ]
        if lost:
            yield (
                f"\n**{len(lost)} of {len(self.evaluation.labels)} classes are right no more often than a guess** "
                f"({percent(chance)}), whatever the average says: {listed(lost)}."
            )

    def _mistakes(self) -> Iterator[str]:
        metrics: Metrics = self.evaluation.metrics
        yield f"\n![confusion matrix]({CONFUSION_FILE})"
        if metrics.confusions:
            yield "\n## Commonest mistakes\n\n| class | taken for | videos | of the class |\n|---|---|---:|---:|"
        for entry in metrics.confusions:
            fraction = percent(entry.ratio)
            taken_for = escape_markdown(entry.taken_for)
            yield f"| {escape_markdown(entry.label)} | {taken_for} | {entry.num_videos} | {fraction} |"

    def _calibration(self) -> Iterator[str]:
        metrics = self.evaluation.metrics
        yield "\n## Calibration\n"
        yield (
            f"Calibration error {percent(metrics.calibration_error)}: the mean distance between the score of the best "
            "class and how often it is right."
        )
        yield f"\n![reliability]({RELIABILITY_FILE})"
        yield "\n| score of the best class | videos | mean score | right |\n|---|---:|---:|---:|"
        for entry in metrics.reliability:
            if entry.confidence is not None and entry.accuracy is not None:
                yield (
                    f"| {entry.low:.2f} to {entry.high:.2f} | {entry.num_videos} | {percent(entry.confidence)} "
                    f"| {percent(entry.accuracy)} |"
                )


def make_report(
    evaluation: Evaluation,
    *,
    model: str,
    data: str,
    seed: int | None = None,
    precision: Precision | Literal[""] = "",
    cost: Cost | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """A report of an evaluation that was made here and now.

    Args:
        evaluation: what `evaluate_model` gave.
        model: name of the model.
        data: what it was evaluated on.
        seed: of the run that trained the model.
        precision: that the model computed in.
        cost: what `count_cost` gave.
        notes: what one has to know to read the numbers right.
    """
    return Report(
        model=model,
        data=data,
        evaluation=evaluation,
        environment=describe_environment(),
        seed=seed,
        precision=precision,
        cost=cost,
        notes=tuple(notes),
    )
