"""From the texts of labels to the numbers of classes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinescan.data.readers import LabelledVideo
from kinescan.errors import ConfigError
from kinescan.settings import closest

MAX_CLASSES = 100_000
"""Of a data set; more means that something other than a class was taken for a label."""
_WHOLE = re.compile(r"\+?(\d+)(?:\.0*|,00?)?")
_NUMBER = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)", re.IGNORECASE)
_WORD_NUMBER = re.compile(r"[-+]?(?:nan|inf(?:inity)?)", re.IGNORECASE)
_MOST_DIGITS = 18


@dataclass(frozen=True)
class ClassNumbers:
    """What labels mean.

    Attributes:
        classes: label texts in the order of their numbers.
        index_of: label text -> number of its class.
    """

    classes: tuple[str, ...]
    index_of: dict[str, int]


def number_labels(
    videos: Sequence[LabelledVideo], classes: Sequence[str] | None, *, source: Path, is_list: bool
) -> ClassNumbers:
    """The classes of labelled videos, and the number of each label.

    Labels of a list that are all whole numbers are class numbers: 1, 01 and 1.0 are the same class.

    Args:
        videos: labelled by texts.
        classes: label texts in the order of their numbers; None takes the numbers, or the texts in their order.
        source: the list or folder, for errors.
        is_list: labels come from a text file, not from names of folders.

    Raises:
        ConfigError: a label is not one of the classes, numbers and texts are mixed, a number is not a class number, or
            there are absurdly many classes.
    """
    texts = {video.label: video.line for video in reversed(videos)}
    numbers = _numbers(texts, source) if is_list and (classes is None or not texts.keys() <= set(classes)) else None
    if classes is None:
        classes = sorted(texts) if numbers is None else _numbered_classes(numbers, texts, source)
    _refuse_too_many(len(classes), source)
    if len(set(classes)) < len(classes):
        twice = next(name for name, count in Counter(classes).items() if count > 1)
        raise ConfigError(f"class {twice!r} is given twice. Class names must differ.")
    index_of = {name: index for index, name in enumerate(classes)}
    if numbers is not None:
        by_name = all(str(number) in index_of for number in numbers.values())
        index_of = {text: index_of[str(number)] if by_name else number for text, number in numbers.items()}
        index_of = {text: index for text, index in index_of.items() if index < len(classes)}
    unknown = sorted(text for text in texts if text not in index_of)
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        hint = closest(unknown[0], classes) if numbers is None else f"Allowed: 0 to {len(classes) - 1}."
        raise ConfigError(
            f"{_at(source, texts[unknown[0]])}: label {unknown[0][:100]!r}{more} is not one of the {len(classes)} "
            f"classes. {hint}"
        )
    return ClassNumbers(tuple(classes), {text: index_of[text] for text in texts})


def lookalikes(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of classes that differ only in upper and lower case, blanks, or the form of their letters.

    Example:
        >>> lookalikes(["Jump", "run", "jump "])
        [('Jump', 'jump ')]
    """
    seen: dict[str, str] = {}
    pairs = []
    for name in classes:
        letters = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
        plain = " ".join(letters.casefold().replace("_", " ").split())
        if plain in seen:
            pairs.append((seen[plain], name))
        seen.setdefault(plain, name)
    return pairs


def _numbers(texts: dict[str, int], source: Path) -> dict[str, int] | None:
    """Label text -> class number, where labels are numbers; None where they are texts.

    Raises:
        ConfigError: some are numbers and some are not, or a number is not a class number.
    """
    numeric = {text: line for text, line in texts.items() if _NUMBER.fullmatch(text)}
    others = [text for text in texts if text not in numeric]
    if others and all(_WORD_NUMBER.fullmatch(text) for text in numeric):
        return None
    if not numeric:
        return None
    if others:
        text, number = others[0], next(iter(numeric))
        raise ConfigError(
            f"{source} mixes numbers and texts as labels: {number[:100]!r} on line {texts[number]}, {text[:100]!r} on "
            f"line {texts[text]}. Write the class's name on every line, or its number on every line."
        )
    numbers = {}
    for text, line in texts.items():
        match = _WHOLE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"{_at(source, line)}: label {text[:100]!r} is not a class number. Give whole numbers from 0; "
                "leave videos without a label out."
            )
        if len(match[1].lstrip("0")) > _MOST_DIGITS:
            _refuse_number(text, source, line)
        numbers[text] = int(match[1])
    return numbers


def _numbered_classes(numbers: dict[str, int], texts: dict[str, int], source: Path) -> list[str]:
    """Names of classes that have none: "0", "1", ... up to the largest number."""
    text = max(numbers, key=numbers.__getitem__)
    count, used = numbers[text] + 1, len(set(numbers.values()))
    if count > MAX_CLASSES or count > max(1000, 100 * used):
        _refuse_number(text, source, texts[text], f" and {used} classes have a video")
    return [str(number) for number in range(count)]


def _refuse_number(text: str, source: Path, line: int, beside: str = "") -> None:
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    raise ConfigError(
        f"{_at(source, line)}: label {shown} would make a class for every number up to it{beside}. Labels are class "
        f"numbers from 0 on, at most {MAX_CLASSES:,} classes; if these numbers are names (years, dates, ids), write a "
        "letter into each."
    )


def _refuse_too_many(count: int, source: Path) -> None:
    if count > MAX_CLASSES:
        raise ConfigError(
            f"{source}: {count:,} classes; at most {MAX_CLASSES:,} are allowed. Check which column holds the labels."
        )


def _at(source: Path, line: int) -> str:
    return f"{source}, line {line}" if line else str(source)
