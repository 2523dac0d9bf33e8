from collections.abc import Sequence
from pathlib import Path

from kinescan.data.readers.files import is_hidden, is_video
from kinescan.data.readers.source import LabelledVideo, LabelSource, Listing
from kinescan.data.readers.split_names import part_of
from kinescan.errors import ConfigError
from kinescan.runtime.addresses import address_of, as_path
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import sizes_below


def remote_videos(folder: str | Path) -> list[Path]:
    """The videos at an address and below, sorted; of stores that tell what they have.

    Raises:
        ConfigError: the store does not tell, or cannot be read.
    """
    address = address_of(folder)
    assert address is not None, "a local folder is walked"
    try:
        names = sizes_below(address.rstrip("/"))
    except StoreError as error:
        raise ConfigError(f"{address}: {error.reason}") from None
    return sorted(as_path(name) for name in names if is_video(name) and not is_hidden(name.rpartition("/")[2]))


def read_remote_folder(source: LabelSource) -> Listing:
    """Videos in one folder per class of an object store.

    Raises:
        ConfigError: it holds no videos in folders, its folders are parts of a data set, or it cannot be read.
    """
    found = remote_videos(source.path)
    pairs = [(path, path.relative_to(source.path)) for path in found]
    inside = [(path, name) for path, name in pairs if len(name.parts) > 1]
    classes: Sequence[str] = sorted({name.parts[0] for _, name in inside})
    if not inside:
        raise ConfigError(
            f"{address_of(source.path)} holds no video in a folder of its class. Name a csv of path,label."
        )
    if any(part_of(name) == "train" for name in classes):
        raise ConfigError(
            f"{address_of(source.path)} holds the parts {', '.join(classes[:5])}. Name one of them, and the other one "
            "with data.test or --test."
        )
    return Listing([LabelledVideo(path, name.as_posix(), name.parts[0]) for path, name in inside], tuple(classes))
