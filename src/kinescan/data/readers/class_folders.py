from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinescan.data.readers.files import FolderWalk, is_hidden, is_video
from kinescan.data.readers.lists import read_list
from kinescan.data.readers.source import LabelledVideo, LabelSource, Listing, Part
from kinescan.data.readers.split_names import held_out_name, part_of
from kinescan.errors import ConfigError

LIST_SUFFIXES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True, kw_only=True)
class FolderParts:
    """How a folder is divided into a part to train on and others.

    Attributes:
        train: name of the part to train on; None where there is none.
        held_out: name of the part to score on; None where there is none.
        others: names of further parts, which are not used.
        kind: "folders" (train/CLASS/a.mp4), "lists" (train.csv), or "in classes" (CLASS/train/a.mp4).
    """

    train: str | None
    held_out: str | None
    others: tuple[str, ...] = ()
    kind: str = "folders"


def find_parts(folder: Path) -> FolderParts | None:
    """The parts of a data set that a folder holds; None where it holds classes.

    Raises:
        ConfigError: two names mean the same part, parts hold no classes, or some classes are divided and others not.
    """
    children, walk = _folders(folder), FolderWalk(folder)
    parts = [name for name in children if part_of(name)]
    names = [name for name in parts if _folders(folder / name)]
    others = [name for name in children if name not in parts]
    if names and (_is_pair(names) or not any(walk.videos(folder / name) for name in children if name not in names)):
        return _parts(folder, names, "folders")
    lists = list(_lists(folder))
    if _is_pair(lists):
        return _parts(folder, lists, "lists")
    if _is_pair(parts) and not any(walk.videos(folder / name) for name in others):
        raise ConfigError(
            f"{folder / parts[0]} holds no folder of a class. Put the videos of each class into a folder of its name, "
            f"such as {folder / parts[0] / 'CLASS'}, or write {folder / 'train.csv'} and {folder / 'test.csv'}."
        )
    inside = {name: _folders(folder / name) for name in children}
    if not any(_is_pair(inner) for inner in inside.values()):
        return None
    undivided = [name for name, inner in inside.items() if not any(map(part_of, inner))]
    undivided = [name for name in undivided if FolderWalk(folder).videos(folder / name)]
    if undivided:
        divided = next(name for name, inner in inside.items() if _is_pair(inner))
        raise ConfigError(
            f"{folder / divided} is divided into {', '.join(inside[divided])}; {', '.join(undivided[:5])} not. Divide "
            "every class, or none."
        )
    return _parts(folder, sorted({name for inner in inside.values() for name in inner if part_of(name)}), "in classes")


def read_folder(source: LabelSource) -> Listing:
    """Videos in class folders, or one part of a folder that is divided into train and test (or val).

    Raises:
        ConfigError: no class folder holds a video, or the part that is asked for is not there.
    """
    folder = source.path
    parts = find_parts(folder)
    if parts is None:
        return _read_classes(folder, _folders(folder))
    part = parts.train if source.part == "train" else (parts.held_out or parts.train)
    if part is None:
        raise ConfigError(
            f"{folder} holds the part {parts.held_out} and none to train on. Put the videos to train on into "
            f"{folder / 'train'}, in a folder for each class."
        )
    if parts.kind == "lists":
        found = read_list(replace(source, path=_lists(folder)[part], root=source.root or folder))
    elif parts.kind == "folders":
        found = _read_classes(folder, _folders(folder / part), above=part)
    else:
        found = _read_classes(folder, _folders(folder), below=part)
    unused = [name for name in _folders(folder) if not part_of(name)] if parts.kind == "folders" else []
    others = (*parts.others, *(name for name in unused if FolderWalk(folder).videos(folder / name)))
    said = f"{part} is taken as the {source.part} part; {', '.join(others)} not used"
    return replace(found, notes=(*found.notes, *((said,) if others else ())))


def _read_classes(folder: Path, names: Sequence[str], *, above: str = "", below: str = "") -> Listing:
    """Videos of the classes `names`: all below folder/above/NAME/below."""
    walk = FolderWalk(folder)
    found = {name: walk.videos(folder / above / name / below) for name in names}
    filled = {name: videos for name, videos in found.items() if videos}
    if not filled:
        parent = folder / above
        loose = sum(is_video(child.name) for child in parent.iterdir())
        holds = f"{loose} videos that lie in no class folder" if loose else "no video in a class folder"
        lists = sorted(child for child in parent.iterdir() if child.suffix.lower() in LIST_SUFFIXES)
        advice = f" If {lists[0].name} is such a list, name it: {lists[0]}." if lists else ""
        raise ConfigError(
            f"{parent} holds {holds}. Put the videos of each class into a folder of its name, or list them in a csv "
            f"of path,label.{advice}"
        )
    return Listing(
        [
            LabelledVideo(path, path.relative_to(folder).as_posix(), name)
            for name, videos in filled.items()
            for path in videos
        ],
        empty=tuple(sorted(set(found) - set(filled))),
        notes=(*walk.notes(), *_nested(folder, filled, above, below)),
    )


def _nested(folder: Path, names: Iterable[str], above: str, below: str) -> Iterator[str]:
    """Classes that all hold the same folders and nothing else may be parts of a data set under names of their own."""
    folders = [folder / above / name / below for name in names]
    inside = {tuple(_folders(one)) for one in folders}
    if len(folders) < 2 or len(inside) != 1:
        return
    [inner] = inside
    if len(inner) > 1 and not any(is_video(child.name) for one in folders for child in one.iterdir()):
        yield (
            f"each of {', '.join(one.name for one in folders[:5])} holds the folders {', '.join(inner[:5])}: the "
            "outer ones are taken for the classes. If the inner ones are, call the outer ones train and test"
        )


def _parts(folder: Path, names: Sequence[str], kind: str) -> FolderParts:
    for meant in ("train", "validation", "test"):
        same = [name for name in names if part_of(name) == meant]
        if len(same) > 1:
            raise ConfigError(f"{folder} holds {' and '.join(same)}, which mean the same part. Leave one of them.")
    train = next((name for name in names if part_of(name) == "train"), None)
    held_out = held_out_name(names)
    others = tuple(name for name in names if name not in (train, held_out))
    return FolderParts(train=train, held_out=held_out, others=others, kind=kind)


def _is_pair(names: Iterable[str]) -> bool:
    """Whether there is a part to train on beside another one."""
    meant = {part_of(name) for name in names} - {None}
    return "train" in meant and len(meant) > 1


def part_list(folder: Path, part: Part) -> Path:
    """Of a folder with train.csv beside test.csv, the list of a part.

    Raises:
        ConfigError: it has no such list.
    """
    parts = find_parts(folder)
    name = None if parts is None or parts.kind != "lists" else parts.train if part == "train" else parts.held_out
    if name is None:
        raise ConfigError(f"{folder} holds no list of a {part} part. Write {folder / 'train.csv'} beside test.csv.")
    return _lists(folder)[name]


def _lists(folder: Path) -> dict[str, Path]:
    """The lists of parts in a folder, by names without ending; numbered ones (testlist01) are published splits."""
    files = sorted(child for child in folder.iterdir() if child.suffix.lower() in LIST_SUFFIXES and child.is_file())
    return {file.stem: file for file in reversed(files) if part_of(file.stem) and not file.stem[-1].isdecimal()}


def _folders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name))
