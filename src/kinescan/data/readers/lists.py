import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinescan.data.readers.files import is_video
from kinescan.data.readers.source import LabelledVideo, LabelSource, Listing
from kinescan.data.readers.split_names import TEST_NAMES, TRAIN_NAMES, held_out_name, no_training_part, part_of
from kinescan.data.readers.table import Row, read_rows
from kinescan.data.stored import member_of
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import is_read_address, is_remote
from kinescan.runtime.urls import is_url

PATH_COLUMNS = (
    *("path", "video_path", "file_path", "filepath", "clip_path", "relative_path", "rel_path", "video", "file"),
    *("filename", "file_name", "video_file", "video_name", "clip", "clip_name", "name"),
)
LABEL_COLUMNS = (
    *("label", "class", "label_name", "class_name", "classname", "category", "action", "activity", "target", "labels"),
    *("label_id", "class_id", "class_index", "y"),
)
PART_COLUMNS = ("split", "subset", "set", "part", "partition")
MOST_LETTERS = 1000
"""Of a label."""
LONGEST_PATH = 4096
_FORM = "Write one line of path,label for each video, or a header line that names the columns, such as path,label."


@dataclass(frozen=True)
class _Columns:
    """Indices of the columns; None where the list has no header, or no such column."""

    path: int
    label: int
    part: int | None = None
    group: int | None = None


def read_list(source: LabelSource) -> Listing:
    """Videos that a text file lists, one a line, with or without a header.

    With a header that names a column split (or subset, set, part), rows that it puts on the other side are left out.

    Raises:
        ConfigError: a line or the header cannot be understood.
    """
    file, root = source.path, source.root or source.path.parent
    columns, rows = _read_table(file, root, source.group_column)
    notes: tuple[str, ...] = ()
    if columns is not None:
        rows, notes = _rows_of_part(rows, columns, source)
        cut = [(row, _cell(row, columns.path), _cell(row, columns.label)) for row in rows]
    else:
        cut = [(row, *_path_and_label(row, root, file)) for row in rows]
        _refuse_swapped(cut, root, file)
    videos = []
    for row, path, label in cut:
        if not path or not label:
            raise ConfigError(f"{file}, line {row.line}: expected path and label, got {','.join(row.cells)!r}.")
        if len(label) > MOST_LETTERS:
            raise ConfigError(
                f"{file}, line {row.line}: a label has {len(label):,} letters; {MOST_LETTERS:,} are allowed. {_FORM}"
            )
        if len(path) > LONGEST_PATH:
            raise ConfigError(f"{file}, line {row.line}: a path has {len(path):,} letters; no file's path is so long.")
        elsewhere = _address(path, root, f"{file}, line {row.line}")
        relative = path if elsewhere else relative_path(path, root)
        group = "" if columns is None or columns.group is None else _cell(row, columns.group)
        if source.group_column and not group:
            raise ConfigError(f"{file}, line {row.line}: the column {source.group_column!r} is empty. Write a group.")
        full = Path(relative) if elsewhere else root / relative
        videos.append(LabelledVideo(full, Path(relative).as_posix(), label, row.line, group))
    there = files_there([video.path for video in videos])
    _refuse_other_lines(videos, there, file)
    missing = [video.video_id for video, found in zip(videos, there, strict=True) if not found]
    return Listing(videos, missing=tuple(dict.fromkeys(missing)), notes=notes)


def _address(path: str, root: Path, where: str) -> bool:
    """Whether what stands in a list is an address that is read, and not a file.

    Raises:
        ConfigError: it is one that is not read, or one with secrets in it.
    """
    if not is_url(path) or os.path.exists(os.path.join(root, path)):
        return False
    try:
        return is_read_address(path)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def list_held_out_name(file: Path, root: Path | None = None) -> str | None:
    """What a list calls the part that it holds out, by a column split (subset, set, ...); None: it has no such parts.

    Raises:
        ConfigError: as for `read_list`.
    """
    columns, rows = _read_table(file, root or file.parent)
    return None if columns is None else _held_out_name(rows, columns)


def files_there(paths: Sequence[Path]) -> list[bool]:
    """Which of many files are there; every folder is read once, and of shards, the tar counts.

    Addresses count as there: a store is not asked for each of many files.
    """
    names: dict[str, frozenset[str]] = {}
    shards: dict[str, bool] = {}
    found = []
    for path in paths:
        if (member := member_of(path)) is not None:
            if member.shard not in shards:
                shards[member.shard] = is_remote(member.shard) or os.path.isfile(member.shard)
            found.append(shards[member.shard])
            continue
        if is_remote(path):
            found.append(True)
            continue
        folder, name = os.path.split(path)
        if folder not in names:
            try:
                names[folder] = frozenset(os.listdir(folder or "."))
            except (OSError, ValueError):
                names[folder] = frozenset()
        # Some file systems do not tell upper from lower case.
        found.append(name in names[folder] or (bool(names[folder]) and os.path.exists(path)))
    return found


def _read_table(file: Path, root: Path, group: str = "") -> tuple[_Columns | None, list[Row]]:
    """The columns that a header names, and the rows below it."""
    rows, comments = read_rows(file, root)
    columns = _columns(rows[0], file, group) if rows else None
    if columns is not None:
        _refuse_two_labels(columns, rows, file)
        rows = rows[1:]
    elif rows:
        # "# label,path": numpy writes headers as comments
        above = [row for row in comments if row.line < rows[0].line]
        columns = next((found for row in above if (found := _columns(row, file, group)) is not None), None)
        if columns is None:
            if group:
                raise ConfigError(f"{file} has no header, so no column {group!r}. Add one: path,label,{group}.")
            _refuse_unknown_header(rows, root, file)
    if not rows:
        raise ConfigError(f"{file} lists no video. Write one line of path,label for each.")
    return columns, rows


def column_names(header: Row) -> list[str]:
    """The names in a header, in small letters, with words joined by underscores."""
    return [_plain_name(cell) for cell in header.cells]


def _plain_name(name: str) -> str:
    return "_".join(name.lower().replace("-", " ").replace("_", " ").split())


def _columns(header: Row, file: Path, group: str) -> _Columns | None:
    names = column_names(header)
    path, label, part = (
        next((names.index(name) for name in known if name in names), None)
        for known in (PATH_COLUMNS, LABEL_COLUMNS, PART_COLUMNS)
    )
    if path is None or label is None:
        return None
    for column in (path, label, part):
        if column is not None and names.count(names[column]) > 1:
            raise ConfigError(
                f"{file}, line {header.line}: two columns are called {header.cells[column]!r}. Remove or rename one."
            )
    return _Columns(path, label, part, find_group_column(header, file, group))


def find_group_column(header: Row, file: Path, group: str) -> int | None:
    """The index of the column that divides videos into groups; None where none is asked for.

    Raises:
        ConfigError: the header has no such column, or two.
    """
    if not group:
        return None
    wanted = _plain_name(group)
    found = [column for column, name in enumerate(column_names(header)) if name == wanted]
    if len(found) != 1:
        count = "no column" if not found else "two columns"
        raise ConfigError(
            f"{file}, line {header.line}: {count} {group!r} for data.group. Columns: {', '.join(header.cells)}."
        )
    return found[0]


def _refuse_two_labels(columns: _Columns, rows: Sequence[Row], file: Path) -> None:
    """Two columns that may both hold labels, and do not divide the videos alike (as a class and its number do).

    Raises:
        ConfigError: there are such columns.
    """
    names = column_names(rows[0])
    for other, name in enumerate(names):
        if name not in LABEL_COLUMNS or other == columns.label:
            continue
        pairs = {(_cell(row, columns.label), _cell(row, other)) for row in rows[1:]}
        if not len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs}):
            raise ConfigError(
                f"{file}, line {rows[0].line}: the columns {rows[0].cells[columns.label]!r} and "
                f"{rows[0].cells[other]!r} may both hold labels, and divide the videos in different ways. Remove or "
                "rename the one that does not."
            )


def _refuse_unknown_header(rows: Sequence[Row], root: Path, file: Path) -> None:
    """A first line without a video above lines that have one names columns, in words that we do not know."""
    first, others = rows[0], rows[1:]

    def names_video(row: Row) -> bool:
        return any(
            is_video(cell) or os.path.isfile(os.path.join(root, cell))
            for text in row.cells
            for cell in (text, *re.split(r"[,;|\t]", text))
        )

    known = {*PATH_COLUMNS, *LABEL_COLUMNS, *PART_COLUMNS} & set(column_names(first))
    numbered = len(others) > 1 and all(row.cells[-1].isdecimal() for row in others) and not first.cells[-1].isdecimal()
    if not names_video(first) and (numbered or known or any(map(names_video, others[:1000]))):
        raise ConfigError(
            f"{file}, line {first.line}: {','.join(first.cells)!r} names no video, so it looks like a header whose "
            f"columns are not all known. A column of paths is called {', '.join(PATH_COLUMNS[:4])}, ...; one of labels "
            f"{', '.join(LABEL_COLUMNS[:4])}, .... Rename the columns, or remove the line."
        )


def _path_and_label(row: Row, root: Path, file: Path) -> tuple[str, str]:
    """Of a row without a header; a path may hold what separates cells, if it is there."""
    cells = row.cells
    if len(cells) < 2:
        mixed = " Its cells are not separated as those of other lines are." if re.search(r"[,;|\t]", cells[0]) else ""
        raise ConfigError(f"{file}, line {row.line}: expected path and label, got {cells[0][:200]!r}.{mixed} {_FORM}")
    if len(cells) == 2:
        return cells[0], cells[1]
    for separator in (",", ";", "\t", ", ", "; "):
        for end in range(len(cells) - 1, 1, -1):
            path = separator.join(cells[:end])
            if end == len(cells) - 1 and os.path.isfile(os.path.join(root, path)):
                return path, cells[-1]
    raise ConfigError(
        f"{file}, line {row.line}: {len(cells)} cells and no header, so it is unknown which is the label: "
        f"{','.join(cells)[:200]!r}. {_FORM} A text that holds the separator goes into double quotes."
    )


def _refuse_swapped(cut: Sequence[tuple[Row, str, str]], root: Path, file: Path) -> None:
    """Labels that name videos beside paths that name none: the columns are the other way round."""
    sample = cut[:1000]
    if all(_looks_like_video(label, root) for _, _, label in sample) and not any(
        _looks_like_video(path, root) for _, path, _ in sample
    ):
        raise ConfigError(
            f"{file}, line {cut[0][0].line}: the second column names videos, the first does not. Write path,label, or "
            "the header line label,path."
        )


def _refuse_other_lines(videos: Sequence[LabelledVideo], there: Sequence[bool], file: Path) -> None:
    """A line that names no video among others that do: a remark, a sum, the header of another list."""
    named = [found or is_video(video.path.name) for video, found in zip(videos, there, strict=True)]
    if 2 * sum(named) > len(named) and not all(named):
        video = videos[named.index(False)]
        raise ConfigError(
            f"{file}, line {video.line}: {video.video_id!r} is not a file, and does not end as a video's name does. "
            f'Correct the path, remove the line, or start it with "#" if it is a remark. {_FORM}'
        )


def _looks_like_video(text: str, root: Path) -> bool:
    return is_video(text) or os.path.isfile(os.path.join(root, text))


def _held_out_name(rows: Sequence[Row], columns: _Columns) -> str | None:
    """The name of the rows that are held out; None where no column tells them from those to train on."""
    names = _part_names(rows, columns)
    return held_out_name(names) if "train" in map(part_of, names) else None


def _part_names(rows: Sequence[Row], columns: _Columns) -> set[str]:
    return set() if columns.part is None else {_cell(row, columns.part).lower() for row in rows}


def _rows_of_part(rows: list[Row], columns: _Columns, source: LabelSource) -> tuple[list[Row], tuple[str, ...]]:
    """The rows on the side that is asked for, and what is to be reported about others.

    Raises:
        ConfigError: the part of a row is unknown, or no row is of the training part.
    """
    names, held_out = _part_names(rows, columns), _held_out_name(rows, columns)
    if columns.part is None or not any(map(part_of, names)):
        shown = ", ".join(map(repr, sorted(names)[:5]))
        said = f"the column of parts holds {shown}, which are not names of parts such as train and test: it is not used"
        return rows, ((said,) if names else ())
    kept, others = [], 0
    for row in rows:
        name = _cell(row, columns.part).lower()
        if part_of(name) is None:
            raise ConfigError(
                f"{source.path}, line {row.line}: {name!r} is not a part of a data set. Allowed: "
                f"{', '.join(sorted(TRAIN_NAMES | TEST_NAMES))}. Rename the column if it means something else."
            )
        if (part_of(name) == "train") if source.part == "train" else name == held_out:
            kept.append(row)
        others += part_of(name) != "train" and name != held_out
    if "train" not in map(part_of, names):
        if source.part == "train":
            raise no_training_part(source.path, names)
        return rows, ()
    if held_out is None:
        return rows, ()
    said = f"{others} videos of other parts than train and {held_out} are not used"
    return kept, ((said,) if others else ())


def _cell(row: Row, column: int) -> str:
    return row.cells[column] if column < len(row.cells) else ""


def relative_path(path: str, root: Path) -> str:
    """The path as its file spells it, where only that names a file.

    Lists from Windows have backslashes for slashes; lists and disks may spell accented letters as one sign or as two.
    """
    forms = [path]
    if "\\" in path and os.sep == "/":
        forms.append(path.replace("\\", "/"))
    if not path.isascii():
        forms += [unicodedata.normalize(form, spelt) for spelt in tuple(forms) for form in ("NFC", "NFD")]
    if len(forms) == 1:
        return path
    return next((spelt for spelt in forms if os.path.exists(os.path.join(root, spelt))), path)
