"""A hook of mkdocs: links of the pages that leave docs/ lead to copies of the files in the site.

The pages are written to be read in a checkout, too, where `../src/kinescan/shapes.py` leads to the file. In the site
the linked file is in `repository/`, Markdown as a page. A link that leads nowhere stays as it is: mkdocs --strict
refuses it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "repository"
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)#\s]+)(?P<after>(?:#[^)\s]*)?\))")


def place_in_checkout(uri: str) -> str:
    """Where a file of the site lies in the checkout; both paths are relative and with slashes."""
    return uri.removeprefix(f"{FOLDER}/") if uri.startswith(f"{FOLDER}/") else f"docs/{uri}"


def place_in_site(path: str) -> str:
    """Where a file of the checkout lies in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}/{path}"


def targets(text: str, uri: str) -> dict[str, str]:
    """Each relative link of a page that leads to a file of the checkout, with the file's path there."""
    found = {}
    for match in LINK.finditer(text):
        target = match["target"]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place_in_checkout(uri)), target))
        if "://" not in target and not path.startswith("..") and (ROOT / path).is_file():
            found[target] = path
    return found


def on_files(files: Files, config: Any) -> Files:
    """Adds the files outside docs/ that pages link to, and those that these link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        uri = waiting.pop()
        text = (ROOT / place_in_checkout(uri)).read_text(encoding="utf-8")
        for path in targets(text, uri).values():
            new = place_in_site(path)
            if files.get_file_from_path(new) is None:
                files.append(File.generated(config, new, abs_src_path=str(ROOT / path)))
                waiting += [new] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Gives each link to a file of the checkout the file's place in the site."""
    uri = page.file.src_uri
    found = targets(markdown, uri)

    def replaced(match: re.Match[str]) -> str:
        if match["target"] not in found:
            return match[0]
        target = posixpath.relpath(place_in_site(found[match["target"]]), posixpath.dirname(uri) or ".")
        return f"{match['before']}{target}{match['after']}"

    return LINK.sub(replaced, markdown)
