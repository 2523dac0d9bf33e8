"""The documentation as a site: every page is listed, and links that leave docs/ lead into the site, too."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    specification = importlib.util.spec_from_file_location("site_links", ROOT / ".ci" / "site_links.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _build(docs: Path, site: Path) -> None:
    config = {"site_name": "test", "docs_dir": str(docs), "site_dir": str(site), "theme": "mkdocs", "plugins": []}
    page = docs.parent / "mkdocs.yml"
    page.write_text("validation: {unrecognized_links: warn}\n")
    build(load_config(str(page), strict=True, hooks=[str(ROOT / ".ci" / "site_links.py")], **config))


def test_index_lists_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", (DOCS / "README.md").read_text(encoding="utf-8")))
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    folders = {f"{path.parent.name}/README.md" for path in DOCS.glob("*/README.md")}
    assert pages | folders <= linked


@pytest.mark.parametrize(
    ("uri", "text", "found"),
    [
        ("pks4.md", "[a](../src/kinescan/shapes.py)", {"../src/kinescan/shapes.py": "src/kinescan/shapes.py"}),
        ("decisions/03-pyav.md", "[a](../security.md#formats)", {"../security.md": "docs/security.md"}),
        ("repository/README.md", "[a](docs/pks4.md)", {"docs/pks4.md": "docs/pks4.md"}),
        ("pks4.md", "[a](../src/no_such.py) [b](https://example.org/x) [c](../../etc/passwd)", {}),
    ],
)
def test_links_are_found_from_where_the_page_lies(hook: ModuleType, uri: str, text: str, found: dict[str, str]) -> None:
    assert hook.targets(text, uri) == found


def test_places_in_checkout_and_site_are_inverse(hook: ModuleType) -> None:
    for path in ("docs/pks4.md", "README.md", "src/kinescan/shapes.py"):
        assert hook.place_in_checkout(hook.place_in_site(path)) == path


def test_site_holds_what_pages_link_to_and_refuses_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "pks4.md").write_text("# A page\n[shapes](../src/kinescan/shapes.py)\n")
    site = tmp_path / "site"
    _build(docs, site)
    assert (site / "repository" / "src" / "kinescan" / "shapes.py").is_file()
    (docs / "pks4.md").write_text("# A page\n[shapes](../src/kinescan/no_such.py)\n")
    with pytest.raises(Abort):
        _build(docs, site)
