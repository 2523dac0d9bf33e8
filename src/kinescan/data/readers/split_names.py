"""What the parts of a data set are called."""

from collections.abc import Collection

TRAIN_NAMES = frozenset({"train", "training"})
VALIDATION_NAMES = frozenset({"val", "valid", "validation", "validate", "dev"})
TEST_NAMES = frozenset({"test", "testing", *VALIDATION_NAMES})


def held_out_name(names: Collection[str]) -> str | None:
    """Of the names of parts, the one that a run is scored on while it trains: validation before test.

    Example:
        >>> held_out_name(["train", "test", "val"]), held_out_name(["train"])
        ('val', None)
    """
    found = sorted((name for name in names if name.lower() in TEST_NAMES), key=str.lower)
    return min(found, key=lambda name: name.lower() not in VALIDATION_NAMES, default=None)
