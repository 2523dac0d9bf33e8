from typing import Any

from kinescan.data.readers.files import find_annotation
from kinescan.data.readers.source import LabelSource, Listing, find_listed
from kinescan.errors import ConfigError
from kinescan.runtime.files import read_json
from kinescan.settings import closest

_PREFIX = "something-something-v2-"


def read_ssv2(source: LabelSource) -> Listing:
    """Something-Something V2: labels.json, train.json and validation.json beside the folder of webm files.

    The test part's labels were held back at first; "test" is the validation part, as everywhere. A video's template
    "Holding [something]" is the class "Holding something"; the numbers of labels.json are the order of classes.
    Annotation files may carry the prefix "something-something-v2-" of their first release.

    Args:
        source: the folder that holds both, or annotations in it and videos in `root`.

    Raises:
        ConfigError: a file is missing or has another form, a template is not a class, or no video is there.
    """
    name = {"train": "train.json", "test": "validation.json"}[source.part]
    file = find_annotation(source.path, [name, f"{_PREFIX}{name}"])
    labels_file = find_annotation(source.path, ["labels.json", f"{_PREFIX}labels.json"])
    numbers = read_json(labels_file)
    if not isinstance(numbers, dict) or sorted(map(str, numbers.values())) != sorted(map(str, range(len(numbers)))):
        raise ConfigError(f'{labels_file} must map label texts to the numbers from "0" on. Fetch it again.')
    classes = tuple(sorted(numbers, key=lambda text: int(numbers[text])))
    entries = read_json(file)
    if not isinstance(entries, list):
        raise ConfigError(f"{file} must be a list of videos. Fetch it again.")
    known = frozenset(classes)
    listed = []
    for index, entry in enumerate(entries):
        video_id, label = _read_entry(entry, index, file)
        if label not in known:
            raise ConfigError(
                f"{file}: video {video_id} has the template {label!r}, which {labels_file.name} does not know. "
                f"{closest(label, classes)}"
            )
        listed.append((video_id, label))
    return find_listed(listed, classes, source, annotation=file, suffix=".webm")


def _read_entry(entry: Any, index: int, file: Any) -> tuple[str, str]:
    try:
        return str(entry["id"]), str(entry["template"]).replace("[", "").replace("]", "")
    except (KeyError, TypeError):
        raise ConfigError(f"{file}: entry {index} has no id and template. Fetch it again.") from None
