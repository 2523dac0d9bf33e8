from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinescan.data.readers.files import FolderWalk, is_hidden, is_video
from kinescan.data.readers.lists import read_list
from kinescan.data.readers.source import LabelledVideo, Listing, Source
from kinescan.data.readers.split_names import TEST_NAMES, TRAIN_NAMES, held_out_name
from kinescan.errors import ConfigError


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
        ConfigError: two names mean the same part.
    """
    children = _folders(folder)
    names = [name for name in children if _is_part(name) and _folders(folder / name)]
    both = _is_pair(names)
    if names and (both or not any(FolderWalk(folder).videos(folder / name) for name in children if name not in names)):
        return _parts(folder, names, "folders")
    lists = [path.stem for path in sorted(folder.glob("*.[cC][sS][vV]")) if _is_part(path.stem)]
    if _is_pair(lists):
        return _parts(folder, lists, "lists")
    inside = [_folders(folder / name) for name in children]
    if inside and all(inner and all(map(_is_part, inner)) for inner in inside):
        names = sorted({name for inner in inside for name in inner})
        return _parts(folder, names, "in classes") if _is_pair(names) else None
    return None


def read_folder(source: Source) -> Listing:
    """Videos in class folders, or one part of a folder that is divided into train and test (or val).

    Raises:
        ConfigError: there is no video in a class folder, or the part that is asked for is not there.
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
        file = next(path for path in folder.glob("*.[cC][sS][vV]") if path.stem == part)
        found = read_list(Source(path=file, root=source.root or folder))
    elif parts.kind == "folders":
        found = _read_classes(folder, _folders(folder / part), above=part)
    else:
        found = _read_classes(folder, _folders(folder), below=part)
    unused = [name for name in _folders(folder) if not _is_part(name)] if parts.kind == "folders" else []
    others = (*parts.others, *(name for name in unused if FolderWalk(folder).videos(folder / name)))
    said = f"{part} is taken as the {source.part} part; {', '.join(others)} not used"
    return replace(found, notes=(*found.notes, *((said,) if others else ())))


def _read_classes(folder: Path, names: Sequence[str], *, above: str = "", below: str = "") -> Listing:
    """Videos of the classes `names`: all below folder/above/NAME/below."""
    walk = FolderWalk(folder)
    found = {name: walk.videos(folder / above / name / below) for name in names}
    filled = {name: videos for name, videos in found.items() if videos}
    if not filled:
        place = folder / above
        loose = sum(is_video(child.name) for child in place.iterdir())
        holds = f"{loose} videos that lie in no class folder" if loose else "no video in a class folder"
        raise ConfigError(
            f"{place} holds {holds}. Put the videos of each class into a folder of its name, or list them in a csv "
            "of path,label."
        )
    return Listing(
        [
            LabelledVideo(path, path.relative_to(folder).as_posix(), name)
            for name, videos in filled.items()
            for path in videos
        ],
        empty=tuple(sorted(set(found) - set(filled))),
        notes=walk.notes(),
    )


def _parts(folder: Path, names: Sequence[str], kind: str) -> FolderParts:
    train = [name for name in names if name.lower() in TRAIN_NAMES]
    if len(train) > 1:
        raise ConfigError(f"{folder} holds {' and '.join(train)}, which mean the same part. Leave one of them.")
    held_out = held_out_name(names)
    others = tuple(name for name in names if name not in (*train, held_out))
    return FolderParts(train=train[0] if train else None, held_out=held_out, others=others, kind=kind)


def _is_part(name: str) -> bool:
    return name.lower() in TRAIN_NAMES | TEST_NAMES


def _is_pair(names: Iterable[str]) -> bool:
    """Whether there is a part to train on beside another one."""
    lower = {name.lower() for name in names}
    return bool(lower & TRAIN_NAMES) and bool(lower & TEST_NAMES)


def _folders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name))
