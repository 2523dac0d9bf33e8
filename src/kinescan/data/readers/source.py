"""What a label reader is asked for, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinescan.data.groups import column_of
from kinescan.data.readers.files import index_videos
from kinescan.errors import ConfigError
from kinescan.runtime.lazy import old_names

__getattr__ = old_names(__name__, {"Source": "LabelSource"})

Part = Literal["train", "test"]
"""Which side of a data set; "test" is its validation part where the labels of its test part are not published."""


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """Where labels are read from, and which of them.

    Attributes:
        path: the data set's folder, or a list of videos with their labels.
        root: folder of the videos; None where they lie in `path` or below it.
        part: "train" or "test".
        split: which of the published divisions into training and test, from 1.
        group: what must stay on one side: "column NAME" of a list, or a pattern over ids; see `kinescan.data.groups`.
    """

    path: Path
    root: Path | None = None
    part: Part = "train"
    split: int = 1
    group: str = ""

    @property
    def group_column(self) -> str:
        """The column of a list that names the group of each video; empty: no column does."""
        return column_of(self.group)

    @property
    def video_folder(self) -> Path:
        """Where videos are looked for."""
        return self.path if self.root is None else self.root


@dataclass(frozen=True)
class LabelledVideo:
    """A video with the text of its label.

    Attributes:
        path: the file, whether it is there or not.
        video_id: what names it wherever its folder lies.
        label: text of the class.
        line: of the list that names it, from 1; 0 where no list does.
        group: what a column of the list says of its group.
    """

    path: Path
    video_id: str
    label: str
    line: int = 0
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """What a label reader found.

    Attributes:
        videos: labelled, in the order of the data set.
        classes: label texts in the data set's own order; None where it has none: then alphabetical.
        missing: ids that the annotations list and no file was found for.
        left_out: missing videos are not among `videos`, as where it is normal that some are gone; otherwise they
            are, and show as unreadable.
        empty: names that look like classes and hold no video; they are not classes.
        notes: what else a user should know.
    """

    videos: list[LabelledVideo]
    classes: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    left_out: bool = False
    empty: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_listed(
    listed: Sequence[tuple[str, str]],
    classes: tuple[str, ...],
    source: LabelSource,
    *,
    annotation: Path,
    suffix: str,
    leave_out_missing: bool = False,
) -> Listing:
    """The listing of videos that an annotation file names.

    Args:
        listed: (id, label text) of each video; the id is the end of its path, without suffix.
        classes: in the data set's order.
        source: names the folder of the videos.
        annotation: the file, for errors.
        suffix: of the files as they are published, for the paths of those that are missing.
        leave_out_missing: see `Listing.left_out`.

    Raises:
        ConfigError: nothing is listed, or no listed video is there.
    """
    if not listed:
        raise ConfigError(f"{annotation} lists no video. Fetch it again.")
    folder = source.video_folder
    if not folder.is_dir():
        raise ConfigError(f"data.root {str(folder)!r} is not a folder. Name the one that holds the videos.")
    there = index_videos(folder, num_parts=listed[0][0].count("/") + 1)
    missing = tuple(video_id for video_id, _ in listed if video_id not in there)
    if len(missing) == len(listed):
        raise ConfigError(
            f"none of the {len(listed)} videos that {annotation} lists is in {folder} or below; the first is "
            f"{missing[0]}{suffix}. Name the folder of the videos with data.root."
        )
    return Listing(
        [
            LabelledVideo(there.get(video_id, folder / f"{video_id}{suffix}"), video_id, label)
            for video_id, label in listed
            if not leave_out_missing or video_id in there
        ],
        classes,
        missing,
        leave_out_missing,
    )
