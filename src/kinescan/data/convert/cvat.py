"""CVAT: tracks of objects of its export for video 1.1, and tags and shapes of single frames of that for images 1.1."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from kinescan.data.convert.export import Export, ExportFile, Mark
from kinescan.data.convert.xml import is_zip, read_xml, text_of
from kinescan.data.intervals import RowProblem
from kinescan.data.readers.files import is_video
from kinescan.errors import ConfigError

_SHAPES = ("box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")
_NOTHING = ("", "false", "no", "none", "__undefined__")


def is_cvat(file: Path) -> bool:
    """Whether a file is called like CVAT's exports: XML, or an archive with one."""
    return file.suffix.lower() == ".xml" or (file.suffix.lower() == ".zip" and is_zip(file))


def read_cvat(source: ExportFile) -> Export:
    """A mark for each stretch of frames in which something is there, with frames counted from 0.

    A track is there while it is not outside; one that does not end is there until the end of its task. Tags and shapes
    of single frames of a video (the export for images, the only one that holds tags) are there in each frame that
    has one of the same label. With an attribute, there is a mark for each stretch in which the attribute has one
    value; of a checkbox that is ticked, the value is the attribute's name.

    Raises:
        ConfigError: it is not an export of CVAT, its pictures are not the frames of a video, or nothing has
            the attribute.
    """
    root = read_xml(source.path)
    if root.tag != "annotations":
        raise ConfigError(f"{source.path} is not an export of CVAT: its root is {root.tag!r}, not 'annotations'.")
    tasks = _tasks(root, source.path)
    tracks, images = root.findall("track"), root.findall("image")
    _check_attribute(source, tracks or images)
    problems: list[RowProblem] = []
    if tracks or not images:
        marks = [mark for track in tracks for mark in _marks(track, tasks, source.attribute, problems)]
    else:
        marks = list(_marks_of_frames(images, tasks, source, problems))
    videos = dict.fromkeys(task.video for task in tasks.values())
    attributes = _attribute_names(tracks or images)
    notes = (
        (f"labels can be made of attributes, too: --label attribute:{attributes[0]} ({', '.join(attributes)})",)
        if attributes and not source.attribute
        else ()
    )
    return Export(tuple(videos), tuple(marks), unit="frames", problems=tuple(problems), notes=notes)


@dataclass(frozen=True)
class _Task:
    """A video: its name, the frame behind its last one (0: not known), and every how many frames it was annotated."""

    video: str
    end: int = 0
    step: int = 1


def _attribute_names(elements: Sequence[Element]) -> list[str]:
    return sorted({found.get("name", "") for element in elements for found in element.iter("attribute")} - {""})


def _check_attribute(source: ExportFile, elements: Sequence[Element]) -> None:
    known = _attribute_names(elements)
    if source.attribute and source.attribute not in known:
        raise ConfigError(
            f"{source.path} has no attribute {source.attribute!r}. Attributes: {', '.join(known) or 'none'}."
        )


def _tasks(root: Element, file: Path) -> dict[str, _Task]:
    """Tasks by their ids. Empty id: the only task."""
    found: dict[str, _Task] = {}
    for task in (*root.iterfind("meta/task"), *root.iterfind("meta/job"), *root.iterfind("meta/project/tasks/task")):
        name = text_of(task, "source") or text_of(root.find("meta"), "source") or text_of(task, "name") or file.stem
        stop, size = text_of(task, "stop_frame"), text_of(task, "size")
        end = int(stop) + 1 if stop.isdecimal() else int(size) if size.isdecimal() else 0
        step = re.fullmatch(r"step\s*=\s*([1-9]\d{0,6})", text_of(task, "frame_filter"))
        found[text_of(task, "id")] = _Task(name, end, int(step[1]) if step else 1)
    return found or {"": _Task(text_of(root.find("meta"), "source") or file.stem)}


def _task_of(element: Element, where: str, tasks: Mapping[str, _Task], problems: list[RowProblem]) -> _Task | None:
    """The task of a track or an image; None, and a problem, where it is not said."""
    task = element.get("task_id", "")
    if task not in tasks and len(tasks) > 1:
        problems.append(RowProblem(0, f"{where} does not say which of {len(tasks)} tasks it belongs to."))
        return None
    return tasks.get(task) or next(iter(tasks.values()))


def _marks(track: Element, tasks: Mapping[str, _Task], attribute: str, problems: list[RowProblem]) -> Iterator[Mark]:
    where = f"track {track.get('id', '?')}"
    task = _task_of(track, where, tasks, problems)
    if task is None:
        return
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
    for start, end, value in _stretches(keys, task):
        if not attribute or value:
            yield _mark(task.video, start, end, track.get("label", ""), attribute, value)


def _mark(video: str, start: int, end: int, label: str, attribute: str, value: str) -> Mark:
    return Mark(video, start, end, {"label": label, **({f"attribute:{attribute}": value} if attribute else {})})


def _marks_of_frames(
    images: Sequence[Element], tasks: Mapping[str, _Task], source: ExportFile, problems: list[RowProblem]
) -> Iterator[Mark]:
    """Marks of the export for images of a task that is a video: one for each stretch of frames with the same label.

    Raises:
        ConfigError: its pictures are not the frames of a video.
    """
    if not any(is_video(task.video) for task in tasks.values()):
        raise ConfigError(
            f"{source.path} is an export of pictures and not of a video, so that nothing has a time. Export a task "
            "whose data is a video, best as CVAT for video 1.1."
        )
    frames: dict[tuple[_Task, str, str], set[int]] = {}
    for image in images:
        where = f"image {image.get('name') or image.get('id', '?')}"
        task = _task_of(image, where, tasks, problems)
        number = re.search(r"(?:^|[^0-9])frame_(\d{1,12})(?:\.\w+)?$", image.get("name", ""))
        frame = number[1] if number else image.get("id", "")
        if task is None:
            continue
        if not frame.isdecimal():
            problems.append(RowProblem(0, f"{where} has no number of a frame."))
            continue
        for found in image:
            value = _value(found, image, source.attribute)
            if found.tag in ("tag", *_SHAPES) and (not source.attribute or value):
                frames.setdefault((task, found.get("label", ""), value), set()).add(int(frame))
    for (task, label, value), numbers in frames.items():
        ordered = sorted(numbers)
        start = ordered[0]
        for frame, following in zip(ordered, [*ordered[1:], None], strict=True):
            if following is None or following > frame + task.step:
                yield _mark(task.video, start, _behind(frame, task), label, source.attribute, value)
                start = following or 0


def _behind(frame: int, task: _Task) -> int:
    """The frame behind the last one of a stretch, of which every `step`th frame was annotated."""
    return min(frame + task.step, task.end) if task.end > frame else frame + task.step


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


def _stretches(keys: Mapping[int, tuple[bool, str]], task: _Task) -> Iterator[tuple[int, int, str]]:
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
        # with a shape in every frame that was annotated, the last one is the end
        is_dense = len(frames) > 1 and frames[-1] - frames[0] == (len(frames) - 1) * task.step
        yield begun[0], _behind(frames[-1], task) if is_dense else max(task.end, frames[-1] + 1), begun[1]
