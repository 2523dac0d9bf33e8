import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kinescan.data.intervals import RowProblem
from kinescan.data.readers.annotations import AnnotatedVideo, Annotations, LabelledSpan
from kinescan.data.readers.source import LabelSource
from kinescan.data.readers.split_names import held_out_name, part_of
from kinescan.data.readers.video_names import VideoNames
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_json, read_json_object


def is_activitynet(file: Path, root: Path | None = None) -> bool:
    """Whether a file is a JSON object with a table "database" of videos.

    Raises:
        ConfigError: it is one of results, or cannot be read.
    """
    if not file.is_file() or file.suffix.lower() != ".json":
        return False
    content = read_json(file)
    if isinstance(content, dict) and isinstance(content.get("results"), dict) and "database" not in content:
        raise ConfigError(f'{file} holds results of a model ("results"), not labels ("database").')
    return isinstance(content, dict) and isinstance(content.get("database"), dict)


def activitynet_held_out(file: Path, root: Path | None = None) -> str | None:
    """What the part is called that the file holds out; None where it has no such parts."""
    names = {name for name, _, _ in _entries(_database(file))}
    return held_out_name(names) if "train" in map(part_of, names) else None


def read_activitynet(source: LabelSource) -> Annotations:
    """ActivityNet's JSON: database/VIDEO/{subset, duration, annotations[{segment, label}]}, times in seconds.

    Videos are found by their ids, with or without "v_", below the data's root or the file's folder. Those that are not
    there are left out, as is usual: many are gone for good. A video without a subset belongs to every part.

    Raises:
        ConfigError: the file is of another form, or none of its videos is there.
    """
    entries = list(_entries(_database(source.path)))
    names = {name for name, _, _ in entries}
    has_parts = "train" in map(part_of, names)
    held_out = held_out_name(names) if has_parts else None

    def is_wanted(name: str) -> bool:
        if not has_parts or not name:
            return True
        return part_of(name) == "train" if source.part == "train" else name == held_out

    wanted = [(video_id, entry) for name, video_id, entry in entries if is_wanted(name)]
    if not wanted:
        raise ConfigError(f"{source.path} lists no video of the {source.part} part.")
    there = VideoNames(source.root or source.path.parent)
    videos, problems, missing = [], [], []
    for video_id, entry in wanted:
        path = there.find(video_id)
        if path is None:
            missing.append(video_id)
            continue
        spans: list[LabelledSpan] = []
        for found in _spans(video_id, entry):
            if isinstance(found, RowProblem):
                problems.append(found)
            else:
                spans.append(found)
        videos.append(AnnotatedVideo(path, video_id, tuple(spans)))
    if not videos:
        raise ConfigError(
            f"none of the {len(wanted)} videos of the {source.part} part that {source.path} lists is in {there.folder} "
            f"or below; the first is {wanted[0][0]}. Name the folder of the videos with data.root."
        )
    return Annotations(videos, problems=tuple(problems), missing=tuple(missing), is_published=True)


def _database(file: Path) -> Mapping[str, Any]:
    database = read_json_object(file).get("database")
    if not isinstance(database, dict) or not database:
        raise ConfigError(f'{file} holds no table "database" of videos, as ActivityNet\'s files do.')
    return database


def _entries(database: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(subset, id, entry) of each video."""
    for video_id, entry in database.items():
        if not isinstance(entry, dict):
            raise ConfigError(f"the entry of {video_id!r} must be a table, not {type(entry).__name__}.")
        yield str(entry.get("subset", "")).lower(), video_id, entry


def _spans(video_id: str, entry: Mapping[str, Any]) -> Iterator[LabelledSpan | RowProblem]:
    annotations = entry.get("annotations", [])
    if not isinstance(annotations, list):
        yield RowProblem(0, f"{video_id}: annotations must be a list.")
        return
    for number, annotation in enumerate(annotations, 1):
        where = f"{video_id}, annotation {number}"
        segment = annotation.get("segment") if isinstance(annotation, dict) else None
        label = annotation.get("label") if isinstance(annotation, dict) else None
        if not isinstance(label, str) or not isinstance(segment, list) or len(segment) != 2:
            yield RowProblem(
                0, f'{where}: {{"segment": [start, end], "label": text}} is needed, got {annotation!r:.100}.'
            )
            continue
        try:
            start, end = (float(time) for time in segment)
        except (TypeError, ValueError, OverflowError):
            start = end = math.nan
        if not (math.isfinite(start) and math.isfinite(end)):
            yield RowProblem(0, f"{where}: {segment!r:.100} are not two times in seconds.")
        elif end <= start or start < 0:
            yield RowProblem(0, f"{where}: {label!r} from {start:g} to {end:g} s: 0 <= start < end is needed.")
        else:
            yield LabelledSpan(label.strip(), start, end)
