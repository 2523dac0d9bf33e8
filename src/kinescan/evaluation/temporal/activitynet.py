"""Truth and results as ActivityNet's JSON, which evaluators of others read, and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinescan.data.intervals import Interval
from kinescan.errors import ConfigError
from kinescan.evaluation.temporal.intervals import Detection
from kinescan.runtime.atomic_write import write_text
from kinescan.runtime.escaping import to_json
from kinescan.runtime.files import parse_json, read_json_object, read_text
from kinescan.settings import closest
from kinescan.version import __version__

MAX_BYTES = 2**31
SUBSET = "test"


def write_results(path: str | Path, detections: Mapping[str, Sequence[Detection]]) -> None:
    """Writes what a model found as `results` of ActivityNet's JSON.

    Args:
        path: the file.
        detections: video id -> what was found in it; a video without any is there, too.

    Raises:
        ConfigError: the file cannot be written.
    """
    results = {video: [plain_detection(one) for one in found] for video, found in detections.items()}
    content = {"version": f"kinescan {__version__}", "results": results, "external_data": {}}
    write_text(path, to_json(content, indent=1) + "\n")


def plain_detection(detection: Detection) -> dict[str, Any]:
    """An entry of `results`."""
    return {
        "label": detection.label,
        "score": detection.score,
        "segment": [detection.start_seconds, detection.end_seconds],
    }


def write_truth(
    path: str | Path,
    truth: Mapping[str, Sequence[Interval]],
    ends_seconds: Mapping[str, float],
    *,
    subset: str = SUBSET,
) -> None:
    """Writes true intervals as `database` of ActivityNet's JSON.

    Args:
        path: the file.
        truth: video id -> its intervals; a video in which nothing happens has none.
        ends_seconds: video id -> its duration, where it is known.
        subset: what the part of the data is called in the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    database = {
        video: {
            "subset": subset,
            "duration": ends_seconds.get(video),
            "annotations": [{"segment": [one.start_seconds, one.end_seconds], "label": one.label} for one in intervals],
        }
        for video, intervals in truth.items()
    }
    content = {"version": f"kinescan {__version__}", "taxonomy": [], "database": database}
    write_text(path, to_json(content, indent=1) + "\n")


def read_results(path: str | Path) -> dict[str, tuple[Detection, ...]]:
    """What a model found, of ActivityNet's JSON, or of the lines that an evaluation leaves that was ended early.

    Args:
        path: a file with `{"results": {video: [{label, score, segment}]}}`, or with one JSON object a line, each with
            `video_id` and `results`.

    Returns:
        Video id -> detections, in the order of the file.

    Raises:
        ConfigError: the file cannot be read, or an entry is none; it says which.
    """
    text = read_text(path, max_bytes=MAX_BYTES)
    results = _of_lines(text, path) if str(path).endswith(".jsonl") else _of_object(parse_json(text, path), path)
    return {video: _detections(path, video, found) for video, found in results.items()}


def is_results(path: str | Path) -> bool:
    """Whether a path is a file that can only be one of results: JSON, or lines of it."""
    return Path(path).suffix.lower() in (".json", ".jsonl") and Path(path).is_file()


def is_truth(path: str | Path) -> bool:
    """Whether a path is a JSON file, as ActivityNet's truth is."""
    return Path(path).suffix.lower() == ".json" and Path(path).is_file()


def read_truth(path: str | Path, *, subset: str = "") -> dict[str, tuple[Interval, ...]]:
    """True intervals of ActivityNet's JSON; the videos themselves are not needed.

    Args:
        path: a file with `{"database": {video: {subset, annotations[{segment, label}]}}}`.
        subset: which part; empty: all, where there is one part; else the one that is not for training and has labels.

    Returns:
        Video id -> intervals, in the order of the file; a video without annotations has none.

    Raises:
        ConfigError: the file cannot be read, an entry is none, or it does not say which subset is meant.
    """
    content = read_json_object(path, max_bytes=MAX_BYTES)
    database = content.get("database")
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        raise ConfigError(
            f'{path} has no "database" with an entry for each video. Truth looks like {{"database": {{"clip1": '
            '{"subset": "validation", "annotations": [{"segment": [1.5, 4.0], "label": "fall"}]}}}.'
        )
    wanted = _subset(path, database, subset)
    return {
        video: tuple(_interval(path, video, index, one) for index, one in enumerate(_annotations(path, video, entry)))
        for video, entry in database.items()
        if wanted is None or str(entry.get("subset", "")).lower() == wanted
    }


def _subset(path: str | Path, database: dict[str, Any], subset: str) -> str | None:
    """The part that is meant; None: all."""
    names = {str(entry.get("subset", "")).lower(): bool(entry.get("annotations")) for entry in database.values()}
    for entry in database.values():
        names[str(entry.get("subset", "")).lower()] |= bool(entry.get("annotations"))
    if subset:
        if subset.lower() not in names:
            raise ConfigError(f"{path} has no subset {subset!r}. {closest(subset, [name for name in names if name])}")
        return subset.lower()
    if len(names) == 1:
        return None
    held_out = [name for name, labelled in names.items() if labelled and not name.startswith("train")]
    if len(held_out) != 1:
        raise ConfigError(
            f"{path} has the subsets {', '.join(sorted(names))}. Say which one to score: --set subset=validation."
        )
    return held_out[0]


def _annotations(path: str | Path, video: str, entry: dict[str, Any]) -> list[Any]:
    found = entry.get("annotations", [])
    if not isinstance(found, list):
        raise ConfigError(f"{path}: the annotations of {video!r} must be a list, not {type(found).__name__}.")
    return found


def _interval(path: str | Path, video: str, index: int, entry: Any) -> Interval:
    try:
        start, end = map(_number, entry["segment"])
        label = entry["label"]
        if not isinstance(label, str) or not label:
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{path}: annotation {index} of {video!r} is {to_json(entry)[:120]}; needed are label, a text, and "
            "segment, two numbers of seconds."
        ) from None
    return Interval(video_id=video, label=label, start_seconds=start, end_seconds=end)


def _of_object(content: Any, path: str | Path) -> dict[str, Any]:
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise ConfigError(
            f'{path} has no "results" with an entry for each video. Results look like '
            '{"results": {"clip1": [{"label": "fall", "score": 0.8, "segment": [1.4, 4.2]}]}}.'
        )
    return results


def _of_lines(text: str, path: str | Path) -> dict[str, Any]:
    results = {}
    # Not splitlines: JSON leaves separators that only Unicode knows inside of texts.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            entry = parse_json(line, f"{path}, line {number}")
            if not isinstance(entry, dict) or not isinstance(entry.get("video_id"), str) or "results" not in entry:
                raise ConfigError(f"{path}, line {number}: needs video_id, a text, and results, a list.")
            results[entry["video_id"]] = entry["results"]
    return results


def _detections(path: str | Path, video: str, found: Any) -> tuple[Detection, ...]:
    if not isinstance(found, list):
        raise ConfigError(f"{path}: the results of {video!r} must be a list, not {type(found).__name__}.")
    return tuple(_detection(path, video, index, entry) for index, entry in enumerate(found))


def _detection(path: str | Path, video: str, index: int, entry: Any) -> Detection:
    try:
        start, end = map(_number, entry["segment"])
        label, score = entry["label"], _number(entry["score"])
        if not isinstance(label, str):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{path}: entry {index} of {video!r} is {to_json(entry)[:120]}; needed are label, a text, score, a number, "
            "and segment, two numbers of seconds."
        ) from None
    return Detection(video_id=video, label=label, start_seconds=start, end_seconds=end, score=score)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)
