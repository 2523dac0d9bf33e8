"""Label Studio: its JSON and JSON-MIN exports of timelines, audio regions and tracked boxes."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.files import is_video
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_json

_VIDEO_KEYS = ("video", "video_url", "videourl", "url", "media", "file")


def is_label_studio(file: Path) -> bool:
    """Whether a JSON file is a list of tasks with results that have times."""
    if file.suffix.lower() != ".json":
        return False
    content = read_json(file)
    tasks = content if isinstance(content, list) else [content]
    if not tasks or not all(isinstance(task, dict) for task in tasks):
        return False
    return any({"annotations", "data"} <= task.keys() or any(_minimal(task)) for task in tasks)


def read_label_studio(source: ExportFile) -> Export:
    """Regions of every task's newest annotation that was not cancelled.

    Frames of a timeline are counted from 1 at the frame rate that the labelling configuration sets, and both ends
    belong to the region.

    Raises:
        ConfigError: it is not a list of tasks.
    """
    content = read_json(source.path)
    tasks = content if isinstance(content, list) else [content]
    reading = _Reading()
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict):
            raise ConfigError(f"{source.path}: task {number} must be a table, not {type(task).__name__}.")
        reading.add(task, number)
    return reading.export(source.path)


class _Reading:
    """Gathers the regions of tasks."""

    def __init__(self) -> None:
        self._videos: dict[str, None] = {}
        self._frames: list[Mark] = []
        self._seconds: list[Mark] = []
        self._rates: set[float] = set()
        self._problems: list[RowProblem] = []
        self._unlabelled = self._several = self._others = 0

    def add(self, task: Mapping[str, Any], number: int) -> None:
        """One more task."""
        data = task.get("data")
        data = data if isinstance(data, dict) else task
        name = task.get("id", number)
        video = _video_of(data)
        if video is None:
            self._problems.append(RowProblem(0, f"task {name}: its data names no video.", "?"))
            return
        results = self._results(task)
        if results is None:
            self._unlabelled += 1
            return
        self._videos.setdefault(video)
        for key in ("fps", "framerate", "frame_rate"):
            if _is_rate(data.get(key)):
                self._rates.add(float(data[key]))
        for result in results:
            self._region(result, video, f"task {name}")

    def export(self, file: Path) -> Export:
        """What was gathered.

        Raises:
            ConfigError: parts of it are counted at different rates.
        """
        notes = []
        if self._unlabelled:
            notes.append(f"{self._unlabelled} tasks have no annotation yet, and are left out")
        if self._several:
            notes.append(f"{self._several} tasks have several annotations: the newest of each is taken")
        if self._others:
            notes.append(f"{self._others} regions have no time, and are left out")
        rate = next(iter(self._rates)) if len(self._rates) == 1 else 0.0
        marks, unit = self._seconds, "seconds"
        if self._frames:
            unit = "frames"
            if self._seconds and not rate:
                raise ConfigError(f"{file} holds regions in seconds and in frames. Export them apart.")
            in_frames = [replace(mark, start=mark.start * rate, end=mark.end * rate) for mark in self._seconds]
            marks = [*self._frames, *in_frames]
        return Export(
            tuple(self._videos),
            tuple(marks),
            unit="frames" if unit == "frames" else "seconds",
            frame_rate=rate,
            counts_own_frames=False,
            problems=tuple(self._problems),
            notes=tuple(notes),
        )

    def _results(self, task: Mapping[str, Any]) -> Sequence[Any] | None:
        """Regions of a task; None where nobody has labelled it."""
        if "annotations" not in task:
            return list(_minimal(task)) or None
        given = task["annotations"]
        annotations = [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []
        annotations = [entry for entry in annotations if not entry.get("was_cancelled")]
        if not annotations:
            return None
        self._several += len(annotations) > 1
        chosen = max(annotations, key=lambda entry: (bool(entry.get("ground_truth")), str(entry.get("updated_at", ""))))
        results = chosen.get("result")
        return results if isinstance(results, list) else []

    def _region(self, result: Any, video: str, where: str) -> None:
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            self._others += 1
            return
        labels = [text for key, texts in value.items() if key.endswith("labels") for text in _texts(texts)]
        try:
            spans, in_frames = _spans(value)
            if not all(math.isfinite(time) for span in spans for time in span):
                raise ValueError
        except (TypeError, ValueError, KeyError, OverflowError):
            self._problems.append(
                RowProblem(0, f"{where}: a region has no times that can be read: {value!r:.120}.", video)
            )
            return
        if not spans:
            self._others += 1
            return
        if not labels:
            self._problems.append(RowProblem(0, f"{where}: a region has no label: {value!r:.120}.", video))
        count, duration = value.get("framesCount"), value.get("duration")
        if in_frames and count is not None and duration is not None and _is_rate(count) and _is_rate(duration):
            self._rates.add(round(float(count) / float(duration), 3))
        fields = {"control": str(result.get("from_name", ""))}
        kept = self._frames if in_frames else self._seconds
        kept += [Mark(video, start, end, {"label": label, **fields}) for start, end in spans for label in labels]


def _spans(value: Mapping[str, Any]) -> tuple[list[tuple[float, float]], bool]:
    """Times of a region, and whether they are frames (from 0, the end behind the last one)."""
    if "ranges" in value:
        pairs = [(float(span["start"]), float(span["end"])) for span in value["ranges"]]
        return [(max(start - 1, 0.0), max(end, start)) for start, end in pairs], True
    if "sequence" in value:
        return list(_lifespans(value)), True
    if "start" in value and "end" in value and "text" not in value:
        return [(float(value["start"]), float(value["end"]))], False
    return [], False


def _lifespans(value: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """When a tracked box is there: from a key frame to the next one that ends it, or to the video's end."""
    started: float | None = None
    last = 0.0
    for key in sorted(value["sequence"], key=lambda key: float(key["frame"])):
        last = float(key["frame"])
        started = last if started is None else started
        if key.get("enabled") is False:
            yield started - 1, last
            started = None
    if started is not None:
        yield started - 1, max(float(value.get("framesCount") or last), last)


def _is_rate(value: Any) -> bool:
    """Whether a value is a number that may be a rate, a count or a length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 < value < 1e9


def _texts(texts: Any) -> list[str]:
    return [str(text).strip() for text in (texts if isinstance(texts, list) else [texts])]


def _minimal(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Regions in a task of the export JSON-MIN: values under the names of the controls."""
    for name, values in task.items():
        for value in values if isinstance(values, list) else []:
            if isinstance(value, dict) and (
                "ranges" in value or "sequence" in value or {"start", "end"} <= value.keys()
            ):
                yield {"value": value, "from_name": name}


def _video_of(data: Mapping[str, Any]) -> str | None:
    """The name of a task's video."""
    texts = {key.lower(): text for key, text in data.items() if isinstance(text, str)}
    ordered = [*(texts[key] for key in _VIDEO_KEYS if key in texts), *texts.values()]
    named = (name for text in ordered if is_video(name := _name_in(text)))
    return next(named, None)


def _name_in(text: str) -> str:
    """The path in an address."""
    source = re.search(r"""src=["']([^"']+)""", text)
    try:
        parts = urlsplit(source[1] if source else text)
        local = parse_qs(parts.query).get("d")
    except ValueError:
        return text
    return unquote(local[0] if local else parts.path)
