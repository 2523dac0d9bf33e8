"""Label Studio: its exports of timelines, audio regions and tracked boxes as JSON, JSON-MIN, CSV and TSV."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.sheet import find_header, read_sheet
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.files import is_video
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_json

_VIDEO_KEYS = ("video", "video_url", "videourl", "url", "media", "file")
_DETAILS = ("choices", "taxonomy", "rating", "number", "datetime", "text")
"""What controls for each region (perRegion) say of one; each is a region of its own in the export."""

_TABLES = (".csv", ".tsv")
_COLUMNS = ("annotation_id", "annotator", "lead_time")
"""What every table of its has, beside the tasks' data and the controls."""


def is_label_studio(file: Path) -> bool:
    """Whether a JSON file is a list of tasks with results that have times, or a table has its columns."""
    if file.suffix.lower() in _TABLES:
        return find_header(read_sheet(file), *_COLUMNS, within=1) is not None
    if file.suffix.lower() != ".json":
        return False
    content = read_json(file)
    tasks = content if isinstance(content, list) else [content]
    if not all(isinstance(task, dict) for task in tasks):
        return False
    # a project without tasks is exported as an empty list
    return not tasks or any(
        ("data" in task and _annotations(task) is not None) or any(_minimal(task)) for task in tasks
    )


def read_label_studio(source: ExportFile) -> Export:
    """Regions of every task's newest annotation that was not cancelled; tables hold what JSON-MIN does, in cells.

    Frames of a timeline are counted from 1 at the frame rate that the labelling configuration sets, and both ends
    belong to the region.

    What other controls say of a region, such as choices, becomes an attribute of its mark, named by the control.

    Raises:
        ConfigError: it is not a list of tasks, or no region has the attribute.
    """
    if source.path.suffix.lower() in _TABLES:
        tasks = _tasks_of_table(source.path)
    else:
        content = read_json(source.path)
        tasks = content if isinstance(content, list) else [content]
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict):
            raise ConfigError(f"{source.path}: task {number} must be a table, not {type(task).__name__}.")
    reading = _Reading(source.attribute)
    for number, (task, is_one_of_several) in enumerate(_newest(tasks), 1):
        reading.add(task, number, is_one_of_several=is_one_of_several)
    if source.attribute and source.attribute not in reading.attributes:
        raise ConfigError(
            f"{source.path} has no attribute {source.attribute!r}. Attributes: "
            f"{', '.join(sorted(reading.attributes)) or 'none'}."
        )
    return reading.export()


def _tasks_of_table(file: Path) -> list[dict[str, Any]]:
    """Tasks as JSON-MIN has them: what a cell holds of a list or a table is JSON there."""
    header, *rows = read_sheet(file)
    return [
        {name: _value_in(cell) for name, cell in zip(header.cells, row.cells, strict=False) if cell} for row in rows
    ]


def _value_in(cell: str) -> Any:
    if not cell.startswith(("[", "{")):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _newest(tasks: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """Each task's newest annotation, and whether there were several: JSON-MIN and tables have a row for each."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for number, task in enumerate(tasks):
        is_repeated = "annotation_id" in task and "id" in task
        found.setdefault(str(task["id"]) if is_repeated else (number,), []).append(task)
    return [
        (max(several, key=lambda task: _moment(task.get("updated_at"))), len(several) > 1) for several in found.values()
    ]


class _Reading:
    """Gathers the regions of tasks.

    Args:
        attribute: regions without this attribute are left out; empty: none is.

    Attributes:
        attributes: names of all that were met.
    """

    def __init__(self, attribute: str) -> None:
        self.attributes: set[str] = set()
        self._attribute = attribute
        self._videos: dict[str, None] = {}
        self._marks: list[Mark] = []
        self._problems: list[RowProblem] = []
        self._unlabelled = self._several = self._others = 0

    def add(self, task: Mapping[str, Any], number: int, *, is_one_of_several: bool = False) -> None:
        """One more task; `is_one_of_several` where it had annotations that were not taken."""
        self._several += is_one_of_several
        data = task.get("data")
        data = data if isinstance(data, dict) else task
        where = f"task {task.get('id', number)}"
        videos = _videos_of(data)
        if not videos:
            self._problems.append(RowProblem(0, f"{where}: its data names no video.", "?"))
            return
        results = self._results(task)
        if results is None:
            self._unlabelled += 1
            return
        regions = [result for result in results if isinstance(result, dict) and isinstance(result.get("value"), dict)]
        self._others += len(results) - len(regions)
        targets = {str(region["to_name"]) for region in regions if "to_name" in region}
        rate = _rate_of(data, regions)
        self._videos.update(dict.fromkeys(videos.values() if len(targets) > 1 else list(videos.values())[:1]))
        for region, details in _with_details(regions):
            self.attributes |= details.keys()
            target = str(region.get("to_name", ""))
            video = videos.get(target.lower()) or (next(iter(videos.values())) if len(targets) < 2 else None)
            if video is None and len(set(videos.values())) == 1:
                video = next(iter(videos.values()))
            if video is None:
                several = ", ".join(f"{name} ({path})" for name, path in videos.items())
                self._problems += [
                    RowProblem(0, f"{where}: which of its videos {target!r} shows is not said: {several}.", path)
                    for path in dict.fromkeys(videos.values())
                ]
                continue
            self._videos.setdefault(video)
            self._region(region, video, where, rate, details)

    def export(self) -> Export:
        """What was gathered."""
        notes = []
        if self._unlabelled:
            notes.append(f"{self._unlabelled} tasks have no annotation yet, and are left out")
        if self._several:
            notes.append(f"{self._several} tasks have several annotations: the newest of each is taken")
        if self._others:
            notes.append(f"{self._others} regions have no time, and are left out")
        if self.attributes and not self._attribute:
            names = sorted(self.attributes)
            notes.append(
                f"labels can be made of attributes, too: --label label,attribute:{names[0]} ({', '.join(names)})"
            )
        return Export(
            tuple(self._videos),
            tuple(self._marks),
            unit="frames",
            counts_own_frames=False,
            problems=tuple(self._problems),
            notes=tuple(notes),
        )

    def _results(self, task: Mapping[str, Any]) -> Sequence[Any] | None:
        """Regions of a task; None for a task without annotations."""
        given = _annotations(task)
        if given is None:
            # JSON-MIN and tables have a row for each annotation: one without regions says that nothing happens
            return list(_minimal(task)) or ([] if "annotation_id" in task else None)
        annotations = [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []
        annotations = [entry for entry in annotations if not entry.get("was_cancelled")]
        if not annotations:
            return None
        self._several += len(annotations) > 1
        chosen = max(annotations, key=lambda entry: (bool(entry.get("ground_truth")), _moment(entry.get("updated_at"))))
        results = chosen.get("result")
        return results if isinstance(results, list) else []

    def _region(
        self, region: Mapping[str, Any], video: str, where: str, rate: float, details: Mapping[str, str]
    ) -> None:
        value = region["value"]
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
        if self._attribute and self._attribute not in details:
            return
        if not any(labels) and not any(details.values()):
            self._problems.append(RowProblem(0, f"{where}: a region has no label: {value!r:.120}.", video))
            return
        fields = {
            "control": str(region.get("from_name", "")),
            **{f"attribute:{name}": text for name, text in details.items()},
        }
        self._marks += [
            Mark(video, start, end, {"label": label, **fields}, frame_rate=rate, in_seconds=not in_frames)
            for start, end in spans
            for label in labels or [""]
        ]


def _with_details(regions: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Each region that was marked, and what other controls say of it: their names and texts.

    What says something of a region has its id; in JSON-MIN and tables there are no ids, and it has its times. Where no
    region with a label is meant, it is a region by itself.
    """
    said: dict[str, dict[str, str]] = {}
    first: dict[str, dict[str, Any]] = {}
    marked = [region for region in regions if not _details_of(region)]
    for region in regions:
        details = _details_of(region)
        if details:
            said.setdefault(_key_of(region), {}).update(details)
            first.setdefault(_key_of(region), region)
    known = {_key_of(region) for region in marked}
    alone = [region for key, region in first.items() if key not in known]
    return [(region, said.get(_key_of(region), {})) for region in (*marked, *alone)]


def _key_of(region: Mapping[str, Any]) -> str:
    """What regions of one place in time share: an id, or else their times."""
    times = {name: region["value"].get(name) for name in ("ranges", "sequence", "start", "end")}
    return str(region["id"]) if "id" in region else json.dumps(times, sort_keys=True, default=str)


def _has_times(region: Mapping[str, Any]) -> bool:
    value = region["value"]
    return "ranges" in value or "sequence" in value or {"start", "end"} <= value.keys()


def _details_of(region: Mapping[str, Any]) -> dict[str, str]:
    """Name of a control -> what it says of a region; empty for the region itself, which has labels or none yet."""
    value = region["value"]
    if any(key.endswith("labels") for key in value) or not _has_times(region):
        return {}
    texts = [text for key in _DETAILS if key in value for text in _texts(value[key])]
    return {str(region.get("from_name") or region.get("type") or "attribute"): " ".join(texts)} if texts else {}


def _rate_of(data: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> float:
    """Frames per second that a task says: in its data, or by the number of frames and the length of a tracked box."""
    given = [float(data[key]) for key in ("fps", "framerate", "frame_rate") if _is_rate(data.get(key))]
    sizes = [(region["value"].get("framesCount"), region["value"].get("duration")) for region in regions]
    counted = {
        round(float(count) / float(length), 3) for count, length in sizes if _is_rate(count) and _is_rate(length)
    }
    return given[0] if given else next(iter(counted)) if len(counted) == 1 else 0.0


def _annotations(task: Mapping[str, Any]) -> Any:
    """What people marked in a task; Label Studio called it completions before its version 1."""
    return task.get("annotations", task.get("completions"))


def _moment(text: Any) -> float:
    """Seconds of a time stamp with or without a time zone, so that two can be compared; -inf for other text."""
    try:
        moment = datetime.fromisoformat(str(text))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return -math.inf


def _spans(value: Mapping[str, Any]) -> tuple[list[tuple[float, float]], bool]:
    """Times of a region, and whether they are frames (from 0, the end behind the last one)."""
    if "ranges" in value:
        pairs = [(float(span["start"]), float(span["end"])) for span in value["ranges"]]
        # both frames belong to it; one that ends before its start stays so, and is listed
        return [(start, end) if end < start else (max(start - 1, 0.0), max(end, 1.0)) for start, end in pairs], True
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
    """Texts in a list or alone; of a path through a taxonomy, its parts."""
    each = texts if isinstance(texts, list) else [texts]
    return ["/".join(map(str, text)) if isinstance(text, list) else str(text).strip() for text in each]


def _minimal(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Regions in a task of the export JSON-MIN: values under the names of the controls."""
    for name, values in task.items():
        for value in values if isinstance(values, list) else []:
            if isinstance(value, dict) and (
                "ranges" in value or "sequence" in value or {"start", "end"} <= value.keys()
            ):
                yield {"value": value, "from_name": name}


def _videos_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Names of a task's videos by their keys in small letters, the usual keys first."""
    texts = {key.lower(): text for key, text in data.items() if isinstance(text, str)}
    ordered = {**{key: texts[key] for key in _VIDEO_KEYS if key in texts}, **texts}
    return {key: name for key, text in ordered.items() if is_video(name := _name_in(text))}


def _name_in(text: str) -> str:
    """The path in an address."""
    source = re.search(r"""src=["']([^"']+)""", text)
    try:
        parts = urlsplit(source[1] if source else text)
        local = parse_qs(parts.query).get("d")
    except ValueError:
        return text
    return unquote(local[0] if local else parts.path)
