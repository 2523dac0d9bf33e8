"""The report of a model that answers for each frame: every number, the curve, the timelines."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kinescan.data.datasets import Unreadable
from kinescan.data.intervals import Interval
from kinescan.evaluation.report_parts import (
    CURVE_FILE,
    DECODED_FILE,
    FRAMES_FILE,
    MOST_LISTED,
    PAGE_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    TIMELINES,
    TRUTH_FILE,
    ReportFields,
    interval_lines,
    listed,
    note_lines,
    plain_detection_scores,
    report_folder,
    unreadable_lines,
)
from kinescan.evaluation.temporal.activitynet import plain_detection, write_results, write_truth
from kinescan.evaluation.temporal.alarms import AlarmScores
from kinescan.evaluation.temporal.detection import DetectionScores
from kinescan.evaluation.temporal.frame_file import save_frame_predictions
from kinescan.evaluation.temporal.frames import FrameScores
from kinescan.evaluation.temporal.pictures import plot_curve, plot_timeline
from kinescan.evaluation.temporal.scores import (
    CHANCE_CALIBRATED,
    SOON_SECONDS,
    TIOUS,
    OperatingPoint,
    TemporalScores,
    VideoResult,
)
from kinescan.evaluation.temporal.segmentation import SegmentationScores
from kinescan.events.predictions import FramePredictions
from kinescan.profiling.cost import Cost
from kinescan.profiling.environment import describe_environment
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_markdown, to_json
from kinescan.runtime.precision import Precision
from kinescan.runtime.quantities import percent
from kinescan.runtime.run_folder import REPORT_FILE
from kinescan.settings import to_plain

TASK = "intervals"
"""What report.json calls it."""
MOST_TIMELINES = 200
"""Pictures of so many videos, the worst first."""


@dataclass(frozen=True, kw_only=True)
class TemporalReport(ReportFields):
    """An evaluation with all that is needed to read it later.

    Attributes:
        scores: all numbers.
        predictions: scores of the frames of each video, which the numbers are made of.
        rules_from: where the thresholds come from, in words.
        paths: video id -> its file, where that is known.
        unreadable: files that could not be read; no number counts them.
        seconds: how long it took.
    """

    scores: TemporalScores
    predictions: tuple[FramePredictions, ...]
    rules_from: str
    paths: Mapping[str, str]
    unreadable: tuple[Unreadable, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as plain values: everything but the scores of each frame."""
        scores = self.scores
        numbers = {
            "num_intervals": scores.alarms.num_true,
            "hours": scores.alarms.hours,
            "frames": {
                "map": scores.frames.mean,
                "chance_map": scores.chance_map,
                "calibrated_map": scores.frames.calibrated_mean,
                "chance_calibrated_map": CHANCE_CALIBRATED,
            },
            "detection": plain_detection_scores(scores.detection),
            "segmentation": _plain_segmentation(scores.segmentation, scores.largest_fraction),
            "no_segmentation": scores.no_segmentation,
            "decoded": self._plain_decoded(),
            "alarms": _plain_alarms(scores.alarms),
            "rules": to_plain(scores.rules),
            "rules_from": self.rules_from,
            "grace_seconds": scores.grace_seconds,
            "classes": list(self._plain_classes()),
            "classes_by_chance": list(scores.lost),
            "curve": [{"shift": point.shift, **_plain_alarms(point.alarms)} for point in scores.curve],
            "videos": [self._plain_video(index, video) for index, video in enumerate(scores.videos)],
        }
        common = self.plain_fields(
            numbers, num_videos=len(scores.videos), unreadable=self.unreadable, seconds=self.seconds
        )
        return {"task": TASK, **common}

    def to_markdown(self) -> str:
        """The report as a page: results, every class, the curve, the worst videos, where it was measured."""
        parts = [self._headline(), self._decoded(), self._class_table(), interval_lines(self.scores.detection)]
        parts += [self._curve(), self._videos(), self.origin_lines(self.seconds)]
        return "\n".join(line for part in parts for line in part) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Writes report.json, report.md, the pictures, and what they are made of.

        Beside them: predictions.jsonl (a line for each video: truth, events, detections), results.json,
        results_decoded.json and truth.json (ActivityNet's format), frames.safetensors (every score). A report of the
        same model, data and precision in the folder is replaced; another one is moved to its `earlier-1`, `earlier-2`,
        ...

        Args:
            folder: made if need be.

        Returns:
            The folder.

        Raises:
            ConfigError: the folder cannot be written.
        """
        folder = Path(folder)
        plain = self.to_json()
        with report_folder(folder, plain, same=("task", "model", "data", "precision")):
            # First what hours were spent on.
            save_frame_predictions(self.predictions, folder / FRAMES_FILE)
            write_text(folder / REPORT_FILE, to_json(plain, indent=1) + "\n")
            write_text(folder / PAGE_FILE, self.to_markdown())
            write_text(folder / PREDICTIONS_FILE, "".join(self._lines()))
            videos = self.scores.videos
            write_results(folder / RESULTS_FILE, {video.video_id: video.detections for video in videos})
            write_results(folder / DECODED_FILE, self.scores.decoded.detections)
            ends = {video.video_id: video.end_seconds for video in videos}
            write_truth(folder / TRUTH_FILE, {video.video_id: video.intervals for video in videos}, ends)
            plot_curve(self.scores.curve, folder / CURVE_FILE)
            self._save_timelines(folder / TIMELINES)
        return folder

    def _save_timelines(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for old in folder.glob("[0-9][0-9][0-9]_*.png"):
            old.unlink()
        predictions = {one.video_id: one for one in self.predictions}
        for index, video in enumerate(self.scores.videos[:MOST_TIMELINES]):
            plot_timeline(video, predictions[video.video_id], folder / _picture(index, video.video_id))

    def _lines(self) -> Iterator[str]:
        for video in self.scores.videos:
            yield video_line(video, self.paths.get(video.video_id, ""))

    def _plain_decoded(self) -> dict[str, Any]:
        found = self.scores.decoded
        return {
            "rules": to_plain(found.rules),
            "frames": {"map": found.frames.mean, "calibrated_map": found.frames.calibrated_mean},
            "detection": plain_detection_scores(found.detection),
            "segmentation": _plain_segmentation(found.segmentation, self.scores.largest_fraction),
        }

    def _plain_classes(self) -> Iterator[dict[str, Any]]:
        scores = self.scores
        for label in scores.classes:
            yield {
                "label": label,
                "ap": scores.frames.average_precision.get(label),
                "chance_ap": scores.frame_fractions[label],
                "calibrated_ap": scores.frames.calibrated.get(label),
                "ap_at_tiou": {name: found.average_precision.get(label) for name, found in scores.detection.items()},
                **_plain_alarms(scores.alarms_of[label]),
            }

    def _plain_video(self, index: int, video: VideoResult) -> dict[str, Any]:
        return {
            "video_id": video.video_id,
            "seconds": video.end_seconds,
            "num_intervals": len(video.intervals),
            "num_missed": video.alarms.num_missed,
            "num_false": video.alarms.num_false,
            "frame_accuracy": video.frame_accuracy,
            "timeline": f"{TIMELINES}/{_picture(index, video.video_id)}" if index < MOST_TIMELINES else None,
        }

    def _headline(self) -> Iterator[str]:
        scores, alarms = self.scores, self.scores.alarms
        yield self.title_line()
        yield "| | |\n|---|---|"
        yield f"| per-frame mAP (by chance) | **{percent(scores.frames.mean)}** ({percent(scores.chance_map)}) |"
        calibrated = f"{percent(scores.frames.calibrated_mean)} ({percent(CHANCE_CALIBRATED)})"
        yield f"| calibrated mAP (by chance) | {calibrated} |"
        for name in reversed(TIOUS):
            yield f"| mAP, mean over tIoU {name} | {percent(scores.detection[name].average_map)} |"
        if scores.segmentation is not None:
            f1 = ", ".join(f"{value:.1f}" for value in scores.segmentation.f1.values())
            yield f"| segmental F1 at 10, 25, 50 % | {f1} |"
            yield f"| edit score | {scores.segmentation.edit:.1f} |"
            accuracy = f"{scores.segmentation.accuracy:.1f} % ({percent(scores.largest_fraction)})"
            yield f"| frames right (commonest label) | {accuracy} |"
        yield f"| events missed | {alarms.num_missed} of {alarms.num_true} ({percent(alarms.missed_ratio)}) |"
        yield f"| delay of the told: median, 90 % | {_delay(alarms, 0.5)}, {_delay(alarms, 0.9)} |"
        yield f"| told within {SOON_SECONDS:g} s of the onset | {percent(alarms.told_within(SOON_SECONDS))} |"
        yield f"| false alarms per hour | {alarms.false_alarms_per_hour:.2f} ({alarms.num_false} in {_hours(alarms)}) |"
        if scores.grace_seconds:
            yield f"| an alarm is right until | {scores.grace_seconds:g} s after the event's end |"
        yield f"| videos scored | {len(scores.videos)} |"
        yield f"| thresholds | {escape_markdown(self.rules_from)} |"
        if self.cost is not None:
            yield f"| parameters | {self.cost.num_parameters / 1e6:.2f} M |"
        yield from note_lines(self.notes)
        if scores.segmentation is None:
            yield f"\nNo segmental F1, edit score and frame accuracy: {escape_markdown(scores.no_segmentation)}."
        if scores.num_short:
            yield (
                f"\n{scores.num_short} of {alarms.num_true} intervals are so short that no frame of the model lies in "
                "them; the numbers for single frames do not know them."
            )
        yield from unreadable_lines(self.unreadable, len(scores.videos))

    def _decoded(self) -> Iterator[str]:
        """The numbers beside those of frames that were decided with what comes after them, too."""
        scores, decoded = self.scores, self.scores.decoded
        yield "\n## Decoded over whole videos\n\n| | each frame by itself | decoded |\n|---|---:|---:|"
        both = zip(
            _timeless(scores.frames, scores.detection, scores.segmentation),
            _timeless(decoded.frames, decoded.detection, decoded.segmentation),
            strict=True,
        )
        for (name, value), (_, value_decoded) in both:
            yield f"| {name} | {value} | {value_decoded} |"
        yield (
            "\nDecoded: a frame's scores count together with those of the frames before and after it (forward-backward "
            f"algorithm; classes last {decoded.rules.mean_seconds:g} s on average). For files, not for streams: "
            f"`kinescan predict --segments --set events=decoded`; {DECODED_FILE} holds the intervals."
        )

    def _class_table(self) -> Iterator[str]:
        scores = self.scores
        yield "\n## Classes\n\n| class | AP | by chance | cAP | missed | delay | false/h |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for label in scores.classes:
            alarms, nan = scores.alarms_of[label], float("nan")
            cells = (
                percent(scores.frames.average_precision.get(label, nan)),
                percent(scores.frame_fractions[label]),
                percent(scores.frames.calibrated.get(label, nan)),
                f"{alarms.num_missed} of {alarms.num_true}",
                _delay(alarms, 0.5),
                f"{alarms.false_alarms_per_hour:.2f}",
            )
            yield f"| {escape_markdown(label)} | {' | '.join(cells)} |"
        yield (
            "\nAP and cAP (with calibrated precision, about 50 % by chance) of single frames; delay is the median of "
            "the told events."
        )
        if scores.lost:
            yield (
                f"\n**The frames of {len(scores.lost)} of {len(scores.classes)} classes are found no better than by "
                f"chance**, whatever the mean says: {listed(scores.lost)}."
            )
        absent = [label for label in scores.classes if not scores.alarms_of[label].num_true]
        if absent:
            yield f"\n{len(absent)} classes have no interval in these videos and are in no mean: {listed(absent)}."

    def _curve(self) -> Iterator[str]:
        yield f"\n## Delay and missed events over false alarms\n\n![curve]({CURVE_FILE})\n"
        yield f"| false/h | missed | median delay | 90 % | told within {SOON_SECONDS:g} s |"
        yield "|---:|---:|---:|---:|---:|"
        for point in _distinct(self.scores.curve):
            alarms, mark = point.alarms, " chosen" if point.shift == 0 else ""
            yield (
                f"| {alarms.false_alarms_per_hour:.2f}{mark} | {percent(alarms.missed_ratio)} "
                f"| {_delay(alarms, 0.5)} | {_delay(alarms, 0.9)} | {percent(alarms.told_within(SOON_SECONDS))} |"
            )
        yield "\nAll thresholds made stricter or looser together, from strict to loose."

    def _videos(self) -> Iterator[str]:
        yield "\n## Videos, the worst first\n\n| video, timeline | events | missed | false | right |"
        yield "|---|---:|---:|---:|---:|"
        for index, video in enumerate(self.scores.videos[:MOST_LISTED]):
            accuracy = "-" if video.frame_accuracy is None else percent(video.frame_accuracy)
            counts = f"{len(video.intervals)} | {video.alarms.num_missed} | {video.alarms.num_false} | {accuracy}"
            yield f"| [{escape_markdown(video.video_id)}]({TIMELINES}/{_picture(index, video.video_id)}) | {counts} |"
        more = len(self.scores.videos) - MOST_LISTED
        if more > 0:
            yield f"\nAnd {more} more, in {REPORT_FILE}; {TIMELINES}/ has pictures of the {MOST_TIMELINES} worst."


def _timeless(
    frames: FrameScores, detection: Mapping[str, DetectionScores], segmentation: SegmentationScores | None
) -> Iterator[tuple[str, str]]:
    """Names and values of the numbers that need no moment of an alarm."""
    yield "per-frame mAP", percent(frames.mean)
    for name in reversed(TIOUS):
        yield f"mAP, mean over tIoU {name}", percent(detection[name].average_map)
    if segmentation is not None:
        yield "segmental F1 at 10, 25, 50 %", ", ".join(f"{value:.1f}" for value in segmentation.f1.values())
        yield "edit score", f"{segmentation.edit:.1f}"
        yield "frames right", f"{segmentation.accuracy:.1f} %"


def make_temporal_report(
    scores: TemporalScores,
    predictions: Sequence[FramePredictions],
    *,
    model: str,
    data: str,
    rules_from: str,
    paths: Mapping[str, str] | None = None,
    unreadable: Sequence[Unreadable] = (),
    seed: int | None = None,
    precision: Precision | Literal[""] = "",
    notes: Sequence[str] = (),
    cost: Cost | None = None,
    seconds: float = 0.0,
) -> TemporalReport:
    """A report of an evaluation that was made here and now; see `TemporalReport` for the arguments."""
    return TemporalReport(
        model=model,
        data=data,
        scores=scores,
        predictions=tuple(predictions),
        rules_from=rules_from,
        environment=describe_environment(),
        paths=paths or {},
        unreadable=tuple(unreadable),
        seed=seed,
        precision=precision,
        notes=tuple(notes),
        cost=cost,
        seconds=seconds,
    )


def video_line(video: VideoResult, path: str) -> str:
    """The line of one video in predictions.jsonl: truth, events and detections."""
    told = {(alarm.label, alarm.seconds) for alarm in video.told}
    line = {
        "video_id": video.video_id,
        "path": path,
        "intervals": [_plain_interval(one) for one in video.intervals],
        "events": [
            {
                "id": event.id,
                "label": event.label,
                "segment": [event.start_seconds, event.end_seconds],
                "told_at": min(
                    (seconds for label, seconds in told if label == event.label and seconds >= event.start_seconds),
                    default=None,
                ),
                "peak_score": round(event.peak_score, 6),
                "mean_score": round(event.mean_score, 6),
            }
            for event in video.events
        ],
        "results": [plain_detection(one) for one in video.detections],
        "num_missed": video.alarms.num_missed,
        "num_false": video.alarms.num_false,
    }
    return to_json(line) + "\n"


def _plain_segmentation(found: SegmentationScores | None, largest_fraction: float) -> dict[str, Any] | None:
    if found is None:
        return None
    f1 = {f"{100 * overlap:.0f}": value for overlap, value in found.f1.items()}
    return {
        "accuracy": found.accuracy,
        "accuracy_of_commonest": 100 * largest_fraction,
        "edit": found.edit,
        "f1": f1,
    }


def _plain_interval(interval: Interval) -> dict[str, Any]:
    return {"label": interval.label, "segment": [interval.start_seconds, interval.end_seconds]}


def _plain_alarms(alarms: AlarmScores) -> dict[str, Any]:
    return {
        "num_intervals": alarms.num_true,
        "num_missed": alarms.num_missed,
        "missed_ratio": alarms.missed_ratio,
        "num_false": alarms.num_false,
        "false_alarms_per_hour": alarms.false_alarms_per_hour,
        "delay_seconds": {"median": alarms.delay_seconds(0.5), "90 %": alarms.delay_seconds(0.9)},
        f"told_within_{SOON_SECONDS:g}_s": alarms.told_within(SOON_SECONDS),
    }


def _distinct(curve: Sequence[OperatingPoint]) -> Iterator[OperatingPoint]:
    """Of neighbours with the same counts, one; the chosen one stays."""
    before = None
    for point in curve:
        facts = (point.alarms.num_false, point.alarms.num_missed)
        if facts != before or point.shift == 0:
            yield point
        before = facts


def _picture(index: int, video_id: str) -> str:
    name = re.sub(r"[^A-Za-z0-9-]+", "_", Path(video_id).stem).strip("_")[:40]
    return f"{index + 1:03d}_{name or 'video'}.png"


def _delay(alarms: AlarmScores, quantile: float) -> str:
    seconds = alarms.delay_seconds(quantile)
    return "-" if seconds != seconds else f"{seconds:.2f} s"


def _hours(alarms: AlarmScores) -> str:
    return f"{alarms.hours:.2f} h" if alarms.hours >= 0.995 else f"{60 * alarms.hours:.1f} min"
