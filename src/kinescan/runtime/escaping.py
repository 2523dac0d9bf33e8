"""Text from strangers (names of files, labels, metadata), made safe for where it is shown."""

import html
import json
import re
import unicodedata
from typing import Any

# A sign inside of a word, or one that means something at the start of a line only, stays as it is elsewhere.
_MARKDOWN = re.compile(r"([\\`*\[\]|<>~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[#+=-]|(?<=^\d)[.)])")
_KEPT_IN_LINES = "\n\t\u200c\u200d"
_SURROGATE = re.compile("[\ud800-\udfff]")
_AUTOLINK = re.compile(r"(?i)\b(https?|ftp|mailto|www)([:.])")


def escape_terminal(text: str) -> str:
    r"""The text in one line that cannot steer a terminal: control, direction and undecodable characters shown as codes.

    Example:
        >>> print(escape_terminal("a\x1b[31m\n\udcff"))
        a\x1b[31m\n\xff
    """
    return "".join(character if _is_shown(character) else _code(character) for character in text)


def escape_lines(text: str) -> str:
    r"""A text of several lines that cannot steer a terminal.

    As `escape_terminal`, but line ends, tabs and the joiners of Persian and of emoji stay.

    Example:
        >>> print(escape_lines("a\x1b[31m\nb"))
        a\x1b[31m
        b
    """
    return "".join(
        character if character in _KEPT_IN_LINES or _is_shown(character) else _code(character) for character in text
    )


def escape_markdown(text: str) -> str:
    r"""The text as Markdown that shows just this text, in a paragraph or in the cell of a table.

    Example:
        >>> print(escape_markdown("<b>a|b</b>"))
        \<b\>a\|b\</b\>
    """
    return _AUTOLINK.sub(r"\1&#8203;\2", _MARKDOWN.sub(r"\\\1", escape_terminal(text)))


def escape_html(text: str) -> str:
    """The text as HTML that shows just this text, in an element or in a quoted attribute.

    Example:
        >>> print(escape_html("<b>a</b>"))
        &lt;b&gt;a&lt;/b&gt;
    """
    return html.escape(escape_terminal(text), quote=True)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    r"""The text as LaTeX that shows just this text, in a paragraph or in the cell of a table.

    Example:
        >>> print(escape_latex("R&D_50 %"))
        R\&D\_50 \%
    """
    return "".join(_LATEX.get(character, character) for character in escape_terminal(text))


def escape_plot(text: str, *, length: int = 40) -> str:
    r"""The text as a label of a plot that is not read as a formula; of a long one, both ends.

    Args:
        text: the label.
        length: a longer one loses its middle: labels of one data set often begin alike.

    Example:
        >>> print(escape_plot(r"$\frac{x$"))
        \$\frac{x\$
    """
    shown = escape_terminal(text)
    if len(shown) > length:
        shown = f"{shown[: length // 2]}…{shown[-(length - length // 2 - 1) :]}"
    return shown.replace("$", r"\$")


def to_json(value: Any, *, indent: int | None = None) -> str:
    r"""The value as JSON text that can be written as UTF-8 and is valid anywhere; names keep their letters.

    Bytes of file names that are not UTF-8 become escapes such as `\udcff`, which reading gives back as they were.
    NaN and infinity, which JSON does not have, become null.

    Example:
        >>> print(to_json({"path": "ä\udcff", "score": float("nan")}))
        {"path": "ä\udcff", "score": null}
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, default=str, allow_nan=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _is_shown(character: str) -> bool:
    return character == " " or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _code(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
