"""What committed results say of where they come from."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
FOLDERS = re.compile(r"""(?:^|[\s=:'"(,])(/[\w.-]+/|~/|[A-Za-z]:\\)""")
"""The beginning of a path of one machine."""
TO_BE_MADE_AGAIN = {
    "motion_levels.json": "hours of training",
    "shards_cpu.json": "wants a machine that does nothing else",
    "ssp_grid.json": "hours of training",
    "statekv_accuracy.json": "hours of training",
}
"""Results of a commit that got another name before it was pushed: no longer to be looked up."""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_no_result_names_a_folder_of_a_machine(file: Path) -> None:
    assert [text for text in _texts(json.loads(file.read_text())) if FOLDERS.search(text)] == []


@pytest.mark.parametrize(
    "word", ["/home/me/videos", "--videos=/tmp/a", "python /root/x.py", "~/videos/a", "C:\\videos"]
)
def test_folders_of_machines_are_found(word: str) -> None:
    assert FOLDERS.search(word)


def test_commits_of_results_can_be_looked_up() -> None:
    if _git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("this checkout does not have all commits")
    there = set(_git("rev-list", "HEAD").split())
    commits = {file.name: json.loads(file.read_text()).get("commit", "") for file in RESULTS}
    lost = {name for name, commit in commits.items() if commit.removesuffix("+changes") not in there}
    assert lost - TO_BE_MADE_AGAIN.keys() == set()
