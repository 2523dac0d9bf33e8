"""Sources that are URLs: told from files, and shown without their secrets."""

import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_MASK = "***"
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S*")


def is_url(source: str | Path) -> bool:
    """Whether a source begins like a URL ("rtsp://..."), and not merely with a name that has a colon."""
    return isinstance(source, str) and _URL.match(source) is not None


def mask_url(source: str | Path) -> str:
    """The source as it may be shown or written: a URL without user, password, values of its query, and fragment.

    User and password may themselves hold "@", "/" or "?" (people forget to escape them): all before the last "@" that
    a host follows is masked.

    Example:
        >>> print(mask_url("rtsp://me:p@ss/w@camera:554/live?token=abc&channel=1"))
        rtsp://***@camera:554/live?token=***&channel=***
    """
    text = str(source)
    begin = _URL.match(text)
    if begin is None:
        return text
    scheme, rest = text[: begin.end()], text[begin.end() :]
    at = _end_of_user(rest)
    user, rest = (f"{_MASK}@", rest[at + 1 :]) if at >= 0 else ("", rest)
    rest, _, fragment = rest.partition("#")
    path, mark, query = rest.partition("?")
    masked = "&".join(_masked_pair(pair) for pair in query.split("&")) if query else ""
    return scheme + user + path + mark + masked + (f"#{_MASK}" if fragment else "")


def mask_urls(text: str) -> str:
    """A message with every URL in it masked.

    Example:
        >>> print(mask_urls("cannot open rtsp://a:b@c/d, refused"))
        cannot open rtsp://***@c/d, refused
    """
    return _IN_TEXT.sub(lambda match: mask_url(match[0]), text)


def _end_of_user(rest: str) -> int:
    """Where the user's part ends: the last "@" that is not part of a query's value; -1 where there is none."""
    last = rest.rfind("@")
    if last < 0:
        return -1
    slash = rest.find("/")
    if slash < 0 or last < slash:
        return last
    # A "@" behind the first slash: of a password with a slash in it, or of a path ("/@handle/live")?
    before = rest[:slash]
    if "@" in before:
        return max(before.rfind("@"), _at_before_host(rest, slash))
    return _at_before_host(rest, slash) if ":" in before and not _is_host(before) else -1


def _at_before_host(rest: str, slash: int) -> int:
    query = rest.find("?", slash)
    end = len(rest) if query < 0 else query
    return rest.rfind("@", 0, end) if _is_host(rest[rest.rfind("@", 0, end) + 1 : end].split("/")[0]) else -1


def _is_host(text: str) -> bool:
    return re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(:\d{1,5})?", text) is not None


def _masked_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return f"{name}={_MASK}" if equals and value else (pair if equals else _MASK)
