"""CVAT for video 1.1: tracks of objects, each there from a frame to a frame."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.xml import is_zip, read_xml, text_of
from kinescan.data.intervals import RowProblem
from kinescan.errors import ConfigError

_SHAPES = ("box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")
_NOTHING = ("", "false", "no", "none", "__undefined__")


def is_cvat(file: Path) -> bool:
    """Whether a file is called like CVAT's exports: XML, or an archive with one."""
    return file.suffix.lower() == ".xml" or (file.suffix.lower() == ".zip" and is_zip(file))


def read_cvat(source: ExportFile) -> Export:
    """Tracks: a mark for each stretch of frames in which an object is not outside, with frames counted from 0.

    A track that does not end is there until the end of its task. With an attribute, there is a mark for each stretch in
    which the attribute has one value; of a checkbox that is ticked, the value is the attribute's name.

    Raises:
        ConfigError: it is not an export for video of CVAT, or no track has the attribute.
    """
    root = read_xml(source.path)
    if root.tag != "annotations":
        raise ConfigError(f"{source.path} is not an export of CVAT: its root is {root.tag!r}, not 'annotations'.")
    tasks = _tasks(root, source.path)
    tracks = root.findall("track")
    if not tracks and root.find("image") is not None:
        raise ConfigError(
            f"{source.path} is an export for images, which have no time. Export it as CVAT for video 1.1."
        )
    if source.attribute and not any(
        found.get("name") == source.attribute for track in tracks for found in track.iter("attribute")
    ):
        known = sorted({found.get("name", "") for track in tracks for found in track.iter("attribute")})
        raise ConfigError(
            f"{source.path} has no attribute {source.attribute!r}. Attributes: {', '.join(known) or 'none'}."
        )
    problems: list[RowProblem] = []
    marks = [mark for track in tracks for mark in _marks(track, tasks, source.attribute, problems)]
    videos = dict.fromkeys(name for name, _ in tasks.values())
    return Export(tuple(videos), tuple(marks), unit="frames", problems=tuple(problems))


def _tasks(root: Element, file: Path) -> dict[str, tuple[str, int]]:
    """Task id -> its video's name, and the frame behind its last one (0: not known). Empty id: the only task."""
    found: dict[str, tuple[str, int]] = {}
    for task in (*root.iterfind("meta/task"), *root.iterfind("meta/job"), *root.iterfind("meta/project/tasks/task")):
        name = text_of(task, "source") or text_of(root.find("meta"), "source") or text_of(task, "name") or file.stem
        stop, size = text_of(task, "stop_frame"), text_of(task, "size")
        end = int(stop) + 1 if stop.isdecimal() else int(size) if size.isdecimal() else 0
        found[text_of(task, "id")] = (name, end)
    if not found:
        found[""] = (text_of(root.find("meta"), "source") or file.stem, 0)
    return found


def _marks(
    track: Element, tasks: dict[str, tuple[str, int]], attribute: str, problems: list[RowProblem]
) -> Iterator[Mark]:
    where = f"track {track.get('id', '?')}"
    task = track.get("task_id", "")
    if task not in tasks and len(tasks) > 1:
        problems.append(RowProblem(0, f"{where} does not say which of {len(tasks)} tasks it belongs to."))
        return
    video, end_of_task = tasks.get(task) or next(iter(tasks.values()))
    keys: dict[int, tuple[bool, str]] = {}
    for shape in track:
        frame = shape.get("frame", "")
        if shape.tag not in _SHAPES:
            continue
        if not frame.isdecimal():
            problems.append(RowProblem(0, f"{where}: a {shape.tag} has the frame {frame[:40]!r}; a number is needed."))
            continue
        keys[int(frame)] = (shape.get("outside", "0") == "1", _value(shape, track, attribute))
    if not keys:
        problems.append(RowProblem(0, f"{where} has no shape with a frame."))
        return
    label = track.get("label", "")
    for start, end, value in _stretches(keys, end_of_task):
        if not attribute or value:
            fields = {"label": label, **({f"attribute:{attribute}": value} if attribute else {})}
            yield Mark(video, start, end, fields)


def _value(shape: Element, track: Element, attribute: str) -> str:
    """What the attribute is at a shape; the track's own where the shape has none."""
    if not attribute:
        return ""
    found = [
        text_of(element)
        for element in (*shape.iter("attribute"), *track.findall("attribute"))
        if element.get("name") == attribute
    ]
    value = found[0] if found else ""
    return attribute if value.lower() in ("true", "yes") else "" if value.lower() in _NOTHING else value


def _stretches(keys: dict[int, tuple[bool, str]], end_of_task: int) -> Iterator[tuple[int, int, str]]:
    """(first frame, frame behind the last one, value) of each stretch in which an object is there with one value."""
    frames = sorted(keys)
    begun: tuple[int, str] | None = None
    for frame in frames:
        outside, value = keys[frame]
        if begun is not None and (outside or value != begun[1]):
            yield begun[0], frame, begun[1]
            begun = None
        if begun is None and not outside:
            begun = (frame, value)
    if begun is not None:
        # with a shape in every frame, the last one is the end
        is_dense = len(frames) > 1 and frames[-1] - frames[0] == len(frames) - 1
        yield begun[0], frames[-1] + 1 if is_dense else max(end_of_task, frames[-1] + 1), begun[1]
