"""Sources that are URLs: told from files, and shown without their secrets."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from kinescan.errors import ADDRESS_SCHEMES, ConfigError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
# one slash, or none, is a slip of the pen that FFmpeg's own messages repeat
_NETWORK = r"(?:rtsp[su]?|rtmp\w{0,2}|https?|srt|s?ftps?|tcp|udp|tls|rtp|mms\w?)"
_BEGIN = re.compile(rf"[A-Za-z][A-Za-z0-9+.\-]*://|(?<![\w.\-]){_NETWORK}:/?(?=[^\s/])", re.IGNORECASE)
_BEGIN_IN_TEXT = re.compile(rf"[A-Za-z][A-Za-z0-9+.\-]*://|(?<![\w.\-]){_NETWORK}:/(?=[^\s/])", re.IGNORECASE)
_COLLAPSED = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]+):/+(?P<rest>.*)", re.DOTALL)
_MASK = "***"
_AT_IN_AUTHORITY = re.compile(r"@|%(?:25)*40", re.IGNORECASE)
_AT_HOST = re.compile(r"@(?=[\w\[%.])")
_IPV6 = re.compile(r"(\[[^\]@/?#]*\](:\d*)?|[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)")
_HOST = re.compile(r"[\w.\-]*")
_HOST_AND_PORT = re.compile(r"[\w.\-]*:\d{1,5}")
_DOMAIN = re.compile(r"[\w\-]+(\.[\w\-]+)+(:\d{1,5})?")
_NAME = re.compile(r"[\w.\-\[\]%]{1,40}")
_QUOTES = "\"'`"
_LONGEST_PUNCTUATION = 2


def is_url(source: str | Path) -> bool:
    """Whether a video source begins like a URL ("rtsp://..."), and not merely with a name that has a colon."""
    return isinstance(source, str) and _URL.match(source) is not None


def url_of(source: str | Path) -> str | None:
    """The URL that a text or path stands for, also one that a `Path` has made "az:/..." of; None for a file.

    A name that is here is a file, and so is one in a folder of this machine called "az:".

    Example:
        >>> url_of(Path("az://container/a.mp4")), url_of("a:b.mp4")
        ('az://container/a.mp4', None)
    """
    text = str(source)
    found = _COLLAPSED.fullmatch(text)
    if found is None or os.path.lexists(text) or os.path.isdir(f"{found['scheme']}:"):
        return None
    return f"{found['scheme']}://{found['rest']}"


def refuse_url(source: str | Path, what: str, *, error: Callable[[str], Exception] = ConfigError) -> None:
    """Raises where a file of this machine is needed and a URL was given, see `url_of`.

    Args:
        source: what was given.
        what: what is needed and what to do; ends the message.
        error: makes the error to raise.

    Raises:
        ConfigError: (or what `error` makes) it is a URL.
    """
    url = url_of(source)
    if url is None:
        return
    scheme = url.partition("://")[0].lower()
    hint = " Leave file:// out of a path of this machine." if scheme == "file" else ""
    if scheme not in ADDRESS_SCHEMES:
        hint += f" Of addresses, {', '.join(f'{known}://' for known in ADDRESS_SCHEMES)} are read, where any is."
    raise error(f"{mask_url(url)} is an address, not a file. {what}{hint}")


def mask_url(source: str | Path) -> str:
    """The video source as it may be shown or written: a URL without user, password, other secrets that it may carry.

    Masked are: user and password; every value of the query, and what has no name there; the fragment; values
    behind "=" in the path; the stream's key of RTMP. Scheme, host, port, path and the names of the query stay.

    User and password may themselves hold "@", "/", "?", "#" or spaces (people forget to escape them). Where a text can
    be read in two ways, what is a secret in either of them is masked.

    Example:
        >>> print(mask_url("rtsp://me:p@ss/w@camera:554/live?token=abc&channel=1"))
        rtsp://***@camera:554/live?token=***&channel=***
    """
    text = str(source)
    begin = _BEGIN.search(text)
    if begin is None:
        return text
    return text[: begin.end()] + _masked(begin[0], text[begin.end() :])


def mask_urls(text: str, source: str | Path | None = None) -> str:
    """A message with every URL in it masked.

    Args:
        text: the message.
        source: a URL that it may hold as it is; known beforehand, it is found whatever is in it.

    Example:
        >>> print(mask_urls("cannot open rtsp://a:b@c/d, refused"))
        cannot open rtsp://***@c/d, refused
    """
    if source is not None and str(source):
        text = text.replace(str(source), mask_url(source))
    masked, done = [], 0
    while (begin := _BEGIN_IN_TEXT.search(text, done)) is not None:
        end = _end_in_text(text, begin)
        masked += [text[done : begin.end()], _masked(begin[0], text[begin.end() : end])]
        done = end
    return "".join(masked) + text[done:]


def _is_rtmp(scheme: str) -> bool:
    return scheme.lower().startswith("rtmp")


def _masked(scheme: str, rest: str) -> str:
    """What follows the scheme, masked."""
    hides_path = _is_rtmp(scheme)
    # a file's path may hold "@" without a password before it
    shown, at = ("", 0) if scheme.lower() == "file://" else _user(rest)
    tail = rest[at:]
    if "?" in rest[:at]:
        # it may be the rest of a query's value, with others behind it
        tail, *others = re.split("[&;]", tail, maxsplit=1)
        return shown + _masked_tail(tail, hides_path) + (f"&{_MASK}" if others else "")
    return shown + _masked_tail(tail, hides_path)


def _user(rest: str) -> tuple[str, int]:
    """What is shown instead of user and password, and where the host begins."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    name = authority.partition(":")[0]
    num_before_query = len(re.split(r"[?#]", rest, maxsplit=1)[0])
    in_path = rest.rfind("@", 0, num_before_query)
    in_query = _last_without_name(rest, num_before_query)
    ats = list(_AT_IN_AUTHORITY.finditer(authority))
    if ats:
        begin, end = ats[-1].span()
        if in_path > end and _is_host(re.split("/", rest[in_path + 1 : num_before_query])[0]):
            begin, end = in_path, in_path + 1
        begin, end = (in_query, in_query + 1) if in_query > end else (begin, end)
        user = rest[:begin]
        # nothing before "@" is how multicast is written; what is masked already stays as it is
        return (f"{user}@" if not user or re.fullmatch(rf"[\w.\-]*:{re.escape(_MASK)}", user) else f"{_MASK}@"), end
    if _IPV6.fullmatch(authority):
        return "", 0
    if _HOST.fullmatch(authority):
        at = max(in_path, in_query)
        return (f"{_MASK}@", at + 1) if at >= 0 and _ends_user(authority, rest, at) else ("", 0)
    if _HOST_AND_PORT.fullmatch(authority):
        # of a port with a path, or of a password that begins with digits
        if in_path >= 0:
            return f"{name}:{_MASK}@", max(in_path, in_query) + 1
        return (f"{name}:{_MASK}", len(rest)) if "@" in rest else ("", 0)
    if "@" in rest:
        return f"{_MASK}@", (max(in_path, in_query) if in_path >= 0 else rest.rfind("@")) + 1
    return (f"{name}:{_MASK}", len(rest)) if ":" in authority else ("", 0)


def _ends_user(name: str, rest: str, at: int) -> bool:
    """Whether an "@" behind what looks like a host ends a user's part with a slash in it, as tokens may have one."""
    host = re.split("[/?#]", rest[at + 1 :])[0]
    return re.search(r"^[^?#]*:\S*$", rest[:at]) is not None or (
        "." not in name and _DOMAIN.fullmatch(host) is not None
    )


def _last_without_name(rest: str, start: int) -> int:
    """Index of the last "@" of query or fragment that no "name=" stands before; -1 where there is none."""
    found = [at.start() for at in re.finditer("@", rest) if at.start() > start]
    return max((at for at in found if "=" not in re.split("[?#&;]", rest[:at])[-1]), default=-1)


def _is_host(text: str) -> bool:
    return any(kind.fullmatch(text) for kind in (_IPV6, _HOST, _HOST_AND_PORT))


def _masked_tail(tail: str, hides_path: bool) -> str:
    """Host, path, query and fragment."""
    if hides_path and (shown := re.match(r"[^/?#\s]*/[^/?#\s]*(?=[/?#\s])", tail)) is not None:
        # host/application/key
        mark = tail[shown.end()]
        return shown[0] + (mark if mark in "/?#" else " ") + _MASK
    rest, sharp, fragment = tail.partition("#")
    path, mark, query = rest.partition("?")
    path = re.sub(r"=[^/]+", f"={_MASK}", path)
    masked = "&".join(_masked_pair(pair) for pair in query.split("&")) if query else ""
    return path + mark + masked + sharp + (_MASK if fragment else "")


def _masked_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    # "=" at the end alone may be the padding of a secret without a name
    is_named = equals and value.strip("=") and _NAME.fullmatch(name)
    return f"{name}={_MASK}" if is_named else (_MASK if pair else "")


def _end_in_text(text: str, begin: re.Match[str]) -> int:
    """Where a URL ends in a message; spaces belong to it where they are of user or password."""
    start = begin.end()
    following = _BEGIN_IN_TEXT.search(text, start)
    line_end = min(
        len(text) if (newline := text.find("\n", start)) < 0 else newline,
        len(text) if following is None else following.start(),
    )
    token = re.match(r"\S*", text[start:line_end])
    assert token is not None, "it matches nothing at least"
    quote = text[begin.start() - 1] if begin.start() and text[begin.start() - 1] in _QUOTES else None
    authority = re.split(r"[/?#]", token[0], maxsplit=1)[0]
    is_clean = _IPV6.fullmatch(authority) or (_HOST.fullmatch(authority) and authority != token[0])
    ats = [] if is_clean else [at.end() for at in _AT_HOST.finditer(text, start, line_end)]
    least = ats[-1] if ats else start
    if quote is not None:
        closing = re.compile(rf"{quote}(?!\w)").search(text, least, line_end)
        if closing is not None:
            return closing.start()
    # RTMP's options follow behind spaces
    rest = re.compile(r"\S*(?: \w+=\S*)*" if _is_rtmp(begin[0]) else r"\S*")
    end = rest.match(text, least, line_end).end()  # type: ignore[union-attr]
    closed = text[least:end].rstrip(":,.;)]}>\"'`")
    return max(least + len(closed), end - _LONGEST_PUNCTUATION)
