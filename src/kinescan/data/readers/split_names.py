"""What the parts of a data set are called."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from kinescan.errors import ConfigError

TRAIN_NAMES = frozenset({"train", "training"})
VALIDATION_NAMES = frozenset({"val", "valid", "validation", "validate", "dev"})
TEST_NAMES = frozenset({"test", "testing", "eval", "evaluation", "holdout", "heldout", *VALIDATION_NAMES})
_FILLERS = frozenset({"set", "data", "dataset", "video", "videos", "clips", "split", "part", "subset", "list", "files"})


def part_of(name: str) -> Literal["train", "validation", "test"] | None:
    """The part that a name means, such as "Training", "test_set", "valdata" or "train_256"; None: of none.

    Example:
        >>> part_of("Train"), part_of("val-videos"), part_of("testset"), part_of("training shoes")
        ('train', 'validation', 'test', None)
    """
    words = [word for word in re.split(r"[\W_\d]+", name.lower().replace("held_out", "heldout")) if word]
    left = [word for word in words if word not in _FILLERS]
    if len(left) != 1:
        return None
    word = left[0]
    for filler in sorted(_FILLERS, key=len, reverse=True):
        if word not in TRAIN_NAMES | TEST_NAMES and word.endswith(filler):
            word = word.removesuffix(filler)
            break
    if word in TRAIN_NAMES:
        return "train"
    if word in VALIDATION_NAMES:
        return "validation"
    return "test" if word in TEST_NAMES else None


def held_out_name(names: Collection[str]) -> str | None:
    """Of the names of parts, the one that a run is scored on while it trains: validation before test.

    Example:
        >>> held_out_name(["train", "test", "val"]), held_out_name(["train"])
        ('val', None)
    """
    found = sorted((name for name in names if part_of(name) in ("validation", "test")), key=str.lower)
    return min(found, key=lambda name: part_of(name) == "test", default=None)


def no_training_part(path: str | Path, names: Collection[str]) -> ConfigError:
    """The error for a list with a column of parts, none of which is to train on."""
    return ConfigError(
        f"{path} lists videos of the parts {', '.join(sorted(names))} and none to train on. List those to train on, "
        "with train in that column, or name another list."
    )
