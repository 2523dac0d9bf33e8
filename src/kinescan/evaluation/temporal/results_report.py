"""The report of detected intervals alone, such as those of somebody else's model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.report_parts import (
    PAGE_FILE,
    RESULTS_FILE,
    TRUTH_FILE,
    interval_lines,
    listed,
    note_lines,
    origin_lines,
    plain_detection_scores,
    report_folder,
    title_line,
)
from kinescan.evaluation.temporal.activitynet import write_results, write_truth
from kinescan.evaluation.temporal.detection import DetectionScores, detection_map
from kinescan.evaluation.temporal.intervals import Detection
from kinescan.evaluation.temporal.scores import TIOUS
from kinescan.evaluation.temporal.starts import StartScores, start_map
from kinescan.profiling.environment import Environment, describe_environment
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import escape_markdown, to_json
from kinescan.runtime.quantities import percent
from kinescan.runtime.run_folder import REPORT_FILE

TASK = "detections"
"""What report.json calls it."""


@dataclass(frozen=True, kw_only=True)
class ResultsReport:
    """Scores of detected intervals.

    Attributes:
        results: what holds them, as the user named it.
        data: the truth, as the user named it.
        truth: video id -> its true intervals.
        detections: video id, as in the truth where that knows the video -> what was found in it.
        detection: name of the thresholds -> mAP over tIoU.
        starts: point-level mAP of starts.
        environment: hardware, versions, commit.
        notes: what one has to know to read the numbers right.
    """

    results: str
    data: str
    truth: Mapping[str, tuple[Interval, ...]]
    detections: Mapping[str, tuple[Detection, ...]]
    detection: Mapping[str, DetectionScores]
    starts: StartScores
    environment: Environment
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "task": TASK,
            "model": self.results,
            "data": self.data,
            "num_videos": len(self.truth),
            "num_intervals": sum(map(len, self.truth.values())),
            "num_detections": sum(map(len, self.detections.values())),
            "detection": plain_detection_scores(self.detection),
            "starts": {"tolerances_seconds": list(self.starts.tolerances_seconds), "map": list(self.starts.mean)},
            "classes": [
                {
                    "label": label,
                    "ap_at_tiou": {
                        name: list(found.average_precision[label]) for name, found in self.detection.items()
                    },
                }
                for label in next(iter(self.detection.values())).average_precision
            ],
            "notes": list(self.notes),
            "environment": asdict(self.environment),
        }

    def to_markdown(self) -> str:
        """The report as a page."""
        parts = (self._headline(), self._tables(), origin_lines(self.environment, seed=None, precision="", seconds=0.0))
        return "\n".join(line for part in parts for line in part) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Writes report.json, report.md, and truth and results as they were matched.

        Raises:
            ConfigError: the folder cannot be written.
        """
        folder = Path(folder)
        plain = self.to_json()
        with report_folder(folder, plain, same=("task", "model", "data")):
            write_text(folder / REPORT_FILE, to_json(plain, indent=1) + "\n")
            write_text(folder / PAGE_FILE, self.to_markdown())
            write_results(folder / RESULTS_FILE, self.detections)
            write_truth(folder / TRUTH_FILE, self.truth, {})
        return folder

    def _headline(self) -> Iterator[str]:
        yield title_line(self.results, self.data)
        yield "| | |\n|---|---|"
        for name in reversed(TIOUS):
            yield f"| mAP, mean over tIoU {name} | **{percent(self.detection[name].average_map)}** |"
        for seconds in (1.0, 10.0):
            index = self.starts.tolerances_seconds.index(seconds)
            yield f"| mAP of starts within {seconds:g} s | {percent(self.starts.mean[index])} |"
        yield f"| videos, true intervals | {len(self.truth)}, {sum(map(len, self.truth.values()))} |"
        yield f"| detections | {sum(map(len, self.detections.values()))} |"
        yield from note_lines(self.notes)

    def _tables(self) -> Iterator[str]:
        yield from interval_lines(self.detection)
        names = list(reversed(TIOUS))
        yield f"\n## Classes\n\n| class | intervals | AP, tIoU {names[0]} | AP, tIoU {names[1]} |\n|---|---:|---:|---:|"
        pooled = [interval for of_video in self.truth.values() for interval in of_video]
        for label in self.detection[names[0]].average_precision:
            values = [self.detection[name].average_precision[label] for name in names]
            means = " | ".join(percent(sum(value) / len(value)) for value in values)
            yield f"| {escape_markdown(label)} | {sum(one.label == label for one in pooled)} | {means} |"
        unfound = [
            label
            for label in self.detection[names[0]].average_precision
            if not any(one.label == label for of_video in self.detections.values() for one in of_video)
        ]
        if unfound:
            yield f"\n{len(unfound)} classes are in no detection and count 0: {listed(unfound)}."


def score_results(
    truth: Mapping[str, Sequence[Interval]],
    detections: Mapping[str, Sequence[Detection]],
    *,
    results: str,
    data: str,
    notes: Sequence[str] = (),
) -> ResultsReport:
    """Scores detections that were read from a file.

    Ids of videos are matched as they are; else by the name of the file without folder and ending, and without a leading
    "v_" on either side, where that is unique. Detections in videos that the truth does not know are false, as in
    ActivityNet's evaluation, and are counted in a note.

    Args:
        truth: video id -> its true intervals.
        detections: video id -> what was found in it.
        results: what the detections are called.
        data: what the truth is called.
        notes: what one has to know beside the numbers.

    Raises:
        ConfigError: there is no true interval, or no video is in both.

    Example:
        >>> truth = {"clips/a.mp4": [Interval(video_id="clips/a.mp4", label="x", start_seconds=0.0, end_seconds=1.0)]}
        >>> found = {"v_a": [Detection(video_id="v_a", label="x", start_seconds=0.0, end_seconds=1.0, score=0.5)]}
        >>> score_results(truth, found, results="r.json", data="t.csv").detection["0.5:0.05:0.95"].average_map
        1.0
    """
    if not any(truth.values()):
        raise ConfigError(f"{data} holds no interval in its {len(truth)} videos, so that nothing can be scored.")
    known = _matched_ids(list(truth), list(detections))
    matched: dict[str, tuple[Detection, ...]] = {}
    for video, found in detections.items():
        name = known.get(video, video)
        own = tuple(
            Detection(
                video_id=name,
                label=one.label,
                start_seconds=one.start_seconds,
                end_seconds=one.end_seconds,
                score=one.score,
            )
            for one in found
        )
        matched[name] = matched.get(name, ()) + own
    if detections and not known:
        raise ConfigError(
            f"{results} and {data} share no video: the first ids are {next(iter(detections))!r} and "
            f"{next(iter(truth))!r}. Name the truth of these results."
        )
    pooled = [interval for of_video in truth.values() for interval in of_video]
    found_all = [one for of_video in matched.values() for one in of_video]
    detection = {name: detection_map(pooled, found_all, tious=tious) for name, tious in TIOUS.items()}
    labels = list(next(iter(detection.values())).average_precision)
    return ResultsReport(
        results=results,
        data=data,
        truth={video: tuple(intervals) for video, intervals in truth.items()},
        detections=matched,
        detection=detection,
        starts=start_map(pooled, found_all, labels=labels),
        environment=describe_environment(),
        notes=(*notes, *_notes(truth, detections, known, next(iter(detection.values())))),
    )


def _notes(
    truth: Mapping[str, Sequence[Interval]],
    detections: Mapping[str, Sequence[Detection]],
    known: Mapping[str, str],
    scores: DetectionScores,
) -> Iterator[str]:
    strange = [video for video in detections if video not in known]
    if strange:
        num_false = sum(len(detections[video]) for video in strange)
        yield (
            f"{len(strange)} videos of the results are unknown to the truth, such as {strange[0]}: their {num_false} "
            "detections count as false."
        )
    absent = [video for video in truth if video not in known.values()]
    if absent:
        yield (
            f"{len(absent)} of {len(truth)} videos of the truth have no results, such as {absent[0]}: what happens in "
            "them counts as missed."
        )
    if scores.ignored_labels:
        yield (
            f"{len(scores.ignored_labels)} labels of the results are in no true interval and are left out: "
            f"{', '.join(scores.ignored_labels[:10])}."
        )
    odd = sum(one.end_seconds <= one.start_seconds for found in detections.values() for one in found)
    if odd:
        yield f"{odd} detections end no later than they start; they count as false."


def _matched_ids(truth: Sequence[str], results: Sequence[str]) -> dict[str, str]:
    """Ids of results -> those of the truth."""
    there = set(truth)
    matched = {video: video for video in results if video in there}
    taken = set(matched.values())
    for short in (_stem, _bare):
        by_short: dict[str, list[str]] = {}
        for video in truth:
            by_short.setdefault(short(video), []).append(video)
        for video in results:
            candidates = by_short.get(short(video), [])
            if video not in matched and len(candidates) == 1 and candidates[0] not in taken:
                matched[video] = candidates[0]
                taken.add(candidates[0])
    return matched


def _stem(video: str) -> str:
    name = PurePosixPath(video.replace("\\", "/"))
    return name.stem if len(name.suffix) in (4, 5) else name.name


def _bare(video: str) -> str:
    return _stem(video).removeprefix("v_")
