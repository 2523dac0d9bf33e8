import re
from collections.abc import Sequence
from functools import partial

_OPPOSITES = {
    "left": ("right",),
    "right": ("left",),
    "leftward": ("rightward",),
    "rightward": ("leftward",),
    "leftwards": ("rightwards",),
    "rightwards": ("leftwards",),
    "clockwise": ("counterclockwise", "counter-clockwise", "anticlockwise", "anti-clockwise"),
    "counterclockwise": ("clockwise",),
    "counter-clockwise": ("clockwise",),
    "anticlockwise": ("clockwise",),
    "anti-clockwise": ("clockwise",),
}
_WORDS = "|".join(sorted(_OPPOSITES, key=len, reverse=True))
# whole words, also in snake_case and CamelCase
_DIRECTION = re.compile(rf"(?:(?<![a-z])|(?<=[a-z])(?=[A-Z]))(?i:{_WORDS})(?![a-z])")


def mirrored_labels(classes: Sequence[str]) -> tuple[int | None, ...]:
    """For each class the class that its mirror image shows, by the words in its text.

    Args:
        classes: label texts.

    Returns:
        For each class its own number where the text names no direction, that of the class with the opposite direction
        ("from left to right", "from right to left"), or None where there is none: such clips cannot be mirrored.

    Example:
        >>> mirrored_labels(["Pushing it from left to right", "Pushing it from right to left", "Hold", "turn_left"])
        (1, 0, 2, None)
    """
    index_of = {text: index for index, text in enumerate(classes)}
    return tuple(_mirrored(text, index, index_of) for index, text in enumerate(classes))


def _mirrored(text: str, index: int, index_of: dict[str, int]) -> int | None:
    if not _DIRECTION.search(text):
        return index
    # of several words for the other direction, the one that the data set uses
    for choice in range(max(map(len, _OPPOSITES.values()))):
        opposite = _DIRECTION.sub(partial(_opposite, choice=choice), text)
        if opposite in index_of:
            return index_of[opposite]
    return None


def _opposite(match: re.Match[str], choice: int) -> str:
    word = match.group()
    options = _OPPOSITES[word.lower()]
    opposite = options[min(choice, len(options) - 1)]
    if word.isupper():
        return opposite.upper()
    return opposite.capitalize() if word[0].isupper() else opposite
