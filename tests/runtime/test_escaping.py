import json
import os
from pathlib import Path

import pytest

from kinescan.runtime import escaping
from kinescan.runtime.escaping import escape_html, escape_markdown, escape_plot, escape_terminal, to_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 日本", "plain ä 日本"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_terminal_text_is_one_line_that_steers_nothing(text, shown):
    assert escape_terminal(text) == shown


def test_markdown_shows_tags_pipes_and_links_as_text():
    assert escape_markdown("<img src=x>|[a](http://b)") == r"\<img src=x\>\|\[a\](http&#8203;://b)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("my_own_videos (2), a+b!", "my_own_videos (2), a+b!"),
        ("_private_", r"\_private\_"),
        ("# head", r"\# head"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("$x$ `code` ![a](b)", r"\$x\$ \`code\` !\[a\](b)"),
    ],
)
def test_markdown_escapes_what_would_mean_something_there(text, shown):
    assert escape_markdown(text) == shown


def test_html_cannot_leave_an_attribute():
    assert escape_html("\"><script>'") == "&quot;&gt;&lt;script&gt;&#x27;"


def test_plot_takes_any_label():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.suptitle(escape_plot(r"$\frac{x$ and $y$"))
    figure.draw_without_rendering()


def test_json_is_valid_utf8_and_gives_names_back():
    name = os.fsdecode(b"caf\xe9/\xff.mp4") + "ä"
    text = to_json({"path": name, "score": float("inf"), "rows": [float("nan"), 1.5]})
    assert json.loads(text.encode("utf-8")) == {"path": name, "score": None, "rows": [None, 1.5]}


def test_json_with_letters_is_made_here_alone() -> None:
    """Elsewhere, `ensure_ascii=False` would let bytes of names that are no UTF-8 into a file, or end what writes it."""
    source = Path(escaping.__file__).parents[1]
    others = [path for path in source.rglob("*.py") if "ensure_ascii=False" in path.read_text(encoding="utf-8")]
    assert others == [Path(escaping.__file__)]
