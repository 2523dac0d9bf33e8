"""The table of families in docs/statekv.md is made from the code: this file, run as a script, writes it."""

import inspect
import re
from pathlib import Path

from kinescan.vlm.families import FAMILIES, Generic
from kinescan.vlm.families.refused import OWN_CODE, REFUSED

PAGE = Path(__file__).parents[3] / "docs" / "statekv.md"
START, END = "<!-- families: made by tests/vlm/families/test_table.py -->\n", "<!-- end of families -->"


def said(kind: type) -> str:
    first = (inspect.getdoc(kind) or "").partition("\n")[0]
    return first.partition(": ")[2].rstrip(".").replace("|", "\\|") or first


def table() -> str:
    rows = ["| model type | | |", "|---|---|---|"]
    rows += [f"| `{name}` | runs | {said(FAMILIES[name])} |" for name in sorted(FAMILIES)]
    rows += [f"| others of transformers | checked at opening | {said(Generic)} |"]
    rows += [f"| `{name}` | refused | {REFUSED[name]} |" for name in sorted(REFUSED)]
    rows += [f"| `{name}` | refused | only its own code runs it; use {OWN_CODE[name]} |" for name in sorted(OWN_CODE)]
    return "\n".join(rows) + "\n"


def test_the_page_has_the_table_of_the_code():
    page = PAGE.read_text()
    assert page.partition(START)[2].partition(END)[0] == table()


def test_every_family_says_what_is_particular():
    assert all(re.match(r"\w", said(kind)) for kind in FAMILIES.values())
    assert not set(FAMILIES) & (set(REFUSED) | set(OWN_CODE))


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2])
