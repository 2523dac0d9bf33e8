"""One HTML file that can be sent to somebody: pictures are in it, and it fetches nothing."""

import base64
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from kinescan.errors import ConfigError
from kinescan.runtime.escaping import escape_html
from kinescan.runtime.files import read_bytes

_MOST_PICTURE_BYTES = 8 * 2**20
_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp", ".svg": "svg+xml"}
_STYLE = """
:root { color-scheme: light dark; --line: rgba(128, 128, 128, .35); --soft: rgba(128, 128, 128, .1); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; max-width: 62rem; margin: 0 auto;
  padding: 1rem 1.2rem 4rem; color: #1c2430; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th:empty { padding: 0; border: 0; } thead th { font-weight: 600; white-space: nowrap; }
td[style*=right], th[style*=right] { font-variant-numeric: tabular-nums; padding-left: .8rem; }
img { max-width: min(100%, 44rem); height: auto; background: #fff; border-radius: 6px; }
pre { background: var(--soft); padding: .8rem; border-radius: 6px; overflow-x: auto; font-size: .85rem;
  line-height: 1.4; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .92em; }
details { margin: .6rem 0; } summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
.badge { display: inline-block; border-radius: 1rem; padding: .1rem .8rem; font-size: .85rem; font-weight: 600;
  color: #fff; background: #1b7a54; }
.badge.open { background: #a8460f; }
.note { border-left: 4px solid #c2611f; background: var(--soft); padding: .5rem .9rem; border-radius: 4px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem; }
.chart { margin: 0; } .chart svg { width: 100%; height: auto; display: block; }
.chart figcaption { font-size: .92rem; font-weight: 600; }
.chart text { fill: currentColor; font-size: 12px; opacity: .8; }
.chart .grid { stroke: currentColor; opacity: .15; }
.key { font-weight: 400; font-size: .85rem; white-space: nowrap; margin-left: .6rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .3em; }
footer { margin-top: 3rem; font-size: .85rem; opacity: .75; }
@media (prefers-color-scheme: dark) { body { color: #e3e8f0; background: #0f1319; } }
@media (max-width: 40rem) { body { padding: .6rem .8rem 3rem; } table { font-size: .85rem; } }
@media print { details:not([open]) { display: none; } body { max-width: none; } }
"""


def html_page(title: str, body: str, *, reload_seconds: int | None = None) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML.
        reload_seconds: a browser reads the page again so often, while it is being written; None: never.
    """
    reload = "" if reload_seconds is None else f'<meta http-equiv="refresh" content="{reload_seconds}">'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape_html(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing may be fetched and no code may run, whatever text a run has in it
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"{reload}<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def markdown_html(text: str, folder: str | Path) -> str:
    """A page of ours in Markdown as HTML, with its pictures in it.

    Titles become one step smaller. Links stay where they lead to the web, and are plain text where they lead to a file.

    Args:
        text: the Markdown.
        folder: where its pictures lie; none is taken from elsewhere.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 1)}"
        _embed(token.children or [], Path(folder))
    shown = str(reader.renderer.render(tokens, reader.options, {}))
    return shown.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")


def _embed(tokens: list[Token], folder: Path) -> None:
    """Puts pictures into the page and takes away links to files."""
    open_links: list[bool] = []
    for token in tokens:
        if token.type == "image":
            source = picture_url(folder, unquote(str(token.attrs.get("src", ""))))
            if source is None:
                # what is not there is a word, and no broken picture
                token.type, token.content, token.children = "text", f"[{token.content}]", None
            else:
                token.attrs["src"] = source
        elif token.type == "link_open":
            is_web = urlsplit(str(token.attrs.get("href", ""))).scheme in ("http", "https")
            open_links.append(is_web)
            if not is_web:
                token.tag, token.attrs = "span", {}
        elif token.type == "link_close" and not open_links.pop():
            token.tag = "span"


def picture_url(folder: Path, name: str) -> str | None:
    """A picture in a folder as a data URL; None where there is none, or where it lies elsewhere."""
    path = folder / name
    kind = _KINDS.get(path.suffix.lower())
    if kind is None or "\0" in name or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        return None
    try:
        content = read_bytes(path, max_bytes=_MOST_PICTURE_BYTES)
    except ConfigError:
        return None
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
