import re

from kinescan.data.readers.files import find_videos
from kinescan.data.readers.source import LabelledVideo, LabelSource, Listing
from kinescan.errors import ConfigError
from kinescan.settings import closest

ACTIVITIES = (
    *("cereals", "coffee", "friedegg", "juice", "milk"),
    *("pancake", "salat", "sandwich", "scrambledegg", "tea"),
)
TEST_PERSONS = {1: range(3, 16), 2: range(16, 29), 3: range(29, 42), 4: range(42, 55), 5: range(47, 55)}
"""Persons of the test part, by split: 1 to 4 are the data set's own; 5 is usual for whole videos (1357 to train on)."""

_NAME = re.compile(r"P(\d\d)_([a-z]+)(?:_ch(\d))?")


def read_breakfast(source: LabelSource) -> Listing:
    """Breakfast: minutes of one person preparing one of ten dishes, in PERSON/CAMERA/PERSON_DISH.avi.

    The dish in a file's name is its class. Of a stereo camera, the first channel (_ch0) counts. Splits are by person:
    1 to 4 test on P03-P15, P16-P28, P29-P41, P42-P54; 5 trains on P03-P46 and tests on P47-P54.

    Args:
        source: the folder of the persons, or one above it.

    Raises:
        ConfigError: a file is missing, or a name holds no dish that is known.
    """
    folder = source.video_folder
    if not folder.is_dir():
        raise ConfigError(f"data.root {str(folder)!r} is not a folder. Name the one that holds the folders of persons.")
    videos = []
    others = 0
    for path in find_videos(folder):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            others += 1
            continue
        person, label, channel = match.groups()
        if label not in ACTIVITIES:
            raise ConfigError(
                f"{path}: {label!r} is not one of the {len(ACTIVITIES)} dishes. {closest(label, ACTIVITIES)}"
            )
        if channel in (None, "0") and (int(person) in TEST_PERSONS[source.split]) == (source.part == "test"):
            video_id = "/".join((*path.parts[-3:-1], path.stem))
            videos.append(LabelledVideo(path, video_id, label))
    if not videos:
        raise ConfigError(
            f"{folder} holds no {source.part} video of split {source.split} called like P03/cam01/P03_cereals.avi "
            f"({others} videos of other names). Name the folder of the persons."
        )
    return Listing(videos, ACTIVITIES)
