"""Times as people and programs write them."""

import math
import re

_NUMBER = r"\d+(?:[.,]\d*)?|[.,]\d+"
_SECONDS = re.compile(
    rf"([-+]?)({_NUMBER})(?:[eE]([-+]?\d{{1,2}}))?\s*(?:s|sec|secs|seconds?)?", re.IGNORECASE | re.ASCII
)
_CLOCK = re.compile(r"([-+]?)(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:[.,]\d*)?)", re.ASCII)
_FORMS = "seconds (75.5) or [hours:]minutes:seconds (1:15.5)"


def parse_seconds(text: str) -> float:
    """Seconds, of a number of seconds or of [hh:]mm:ss.ms, with a decimal point or comma.

    Raises:
        ValueError: it is not a time; the message says why and what is allowed.

    Example:
        >>> [parse_seconds(text) for text in ("75.5", "75,5", "1:15.5", "00:01:15,500", "75.5 s", "7.55e1")]
        [75.5, 75.5, 75.5, 75.5, 75.5, 75.5]
    """
    text = text.strip().replace("\u2212", "-")
    match = _SECONDS.fullmatch(text)
    if match is not None:
        sign, number, exponent = match.groups()
        seconds = float(f"{sign}{number.replace(',', '.')}e{exponent or 0}")
        if math.isfinite(seconds):
            return seconds
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{_shown(text)} is not a time{_why(text)}. Write {_FORMS}.")
    sign, hours, minutes, rest_text = match.groups()
    rest = float(rest_text.replace(",", "."))
    if rest >= 60 or (hours is not None and int(minutes) >= 60):
        raise ValueError(f"{_shown(text)} is not a time: minutes and seconds end at 59. Write {_FORMS}.")
    total = 3600 * int(hours or 0) + 60 * int(minutes) + rest
    return -total if sign == "-" else total


def is_time(text: str) -> bool:
    """Whether a text is a time that `parse_seconds` reads."""
    try:
        parse_seconds(text)
    except ValueError:
        return False
    return True


def _why(text: str) -> str:
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity", "null", "none", "na", "n/a"):
        return ": it must be finite"
    if re.fullmatch(r"\d+[:;]\d+[:;]\d+[:;]\d+", text):
        return ": a time code that ends in a frame number"
    if re.fullmatch(r"\d{1,3}(?:[.,]\d{3})+[.,]\d+", text):
        return ": thousands are separated"
    return ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
