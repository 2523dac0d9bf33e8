"""Runs the tests, folder by folder, in the environment of `make newest` and writes the result into docs/versions.md.

`make newest` calls it with the Python of that environment. Each folder of tests is a process of its own, logged in
build/newest/FOLDER.log. Results are kept in docs/newest.json, one entry for each set of versions, after each folder: a
run that was broken off is finished by naming the folders that are left (`make newest-again PARTS="cli data"`).
"""

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "newest.json"
PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- Written by make newest, from newest.json -->\n", "<!-- End of what make newest writes -->\n"
TOP = "top"
NAMED = ("torch", "transformers")


def parts() -> list[str]:
    """The folders of tests that are run one after another; `top` is the files that are in none of them."""
    return [
        TOP,
        *sorted({path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/test_*.py")}),
    ]


def paths_of(part: str) -> list[str]:
    """What pytest is given for a part."""
    files = sorted((ROOT / "tests").glob("test_*.py")) if part == TOP else [ROOT / "tests" / part]
    return [path.relative_to(ROOT).as_posix() for path in files]


def normalized(name: str) -> str:
    """A package's name as registries compare it: lower case, `-` for `_` and `.`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> list[str]:
    """The packages that pyproject.toml names, with all extras, sorted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {normalized(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}
    return sorted(names - {normalized(project["name"])})


def installed_versions() -> dict[str, str]:
    """The version of each declared package that this environment has."""
    found = {normalized(each.metadata["Name"]): each.version for each in metadata.distributions()}
    return {name: found[name] for name in declared() if name in found}


def newer_releases() -> dict[str, str]:
    """The newest release of each declared package that is not installed here: bounds, ours or others', kept it out."""
    command = [sys.executable, "-m", "pip", "list", "--disable-pip-version-check", "--outdated", "--format", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    newest = {normalized(each["name"]): each["latest_version"] for each in json.loads(listed)}
    return {name: newest[name] for name in declared() if name in newest}


def counts(report: Path) -> dict[str, Any]:
    """How many tests of a JUnit report passed, failed and were skipped, and the names of those that failed."""
    passed, skipped, failures = 0, 0, []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname', '')}.{case.get('name', '')}".removeprefix("tests."))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "failed": len(failures), "skipped": skipped, "failures": sorted(set(failures))}


def run(part: str) -> dict[str, Any]:
    """Runs one part in a process of its own; a process that ends without a report is an error."""
    folder = ROOT / "build" / "newest"
    folder.mkdir(parents=True, exist_ok=True)
    report, log = folder / f"{part}.xml", folder / f"{part}.log"
    report.unlink(missing_ok=True)
    processes = os.environ.get("TEST_PROCESSES", "auto")
    several = [] if processes == "0" else ["-n", processes, "--maxprocesses", "8", "--dist", "loadfile"]
    command = [sys.executable, "-m", "pytest", *paths_of(part), "-q", f"--junitxml={report}", *several]
    print(f"{part}: {' '.join(command[1:])}", flush=True)  # noqa: T201
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if not report.is_file():
        raise SystemExit(f"pytest ended with exit status {code} and wrote no report for {part}: see {log}")
    return {**counts(report), "commit": commit()}


def commit() -> str:
    """The commit of the checkout, with "-dirty" where files other than those written here differ from it."""
    commands = (["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    name, changed = (subprocess.run(c, cwd=ROOT, capture_output=True, text=True, check=True).stdout for c in commands)
    own = {path.relative_to(ROOT).as_posix() for path in (KEPT, PAGE)}
    return name.strip() + ("-dirty" if {line[3:] for line in changed.splitlines()} - own else "")


def tried_before() -> dict[str, str]:
    """The versions of constraints.txt, with which each change is tested."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {normalized(name): version for name, _, version in (line.partition("==") for line in lines)}


def rendered(runs: list[dict[str, Any]]) -> str:
    """The Markdown of docs/versions.md between its two marks, newest run first; `runs` is what newest.json holds."""
    lines = [
        "| when | Python | torch | transformers | other packages than in constraints.txt | passed | failed | skipped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    details: list[str] = []
    for each in sorted(runs, key=lambda entry: entry["date"], reverse=True):
        others = [f"{name} {version}" for name, version in each["differs"].items() if name not in NAMED]
        sums = {kind: sum(part[kind] for part in each["parts"].values()) for kind in ("passed", "failed", "skipped")}
        versions = " | ".join(each["versions"].get(name, "none") for name in NAMED)
        lines.append(
            f"| {each['date']} | {each['python']} | {versions} | {', '.join(others) or 'none'} | {sums['passed']:,} | "
            f"{sums['failed']:,} | {sums['skipped']:,} |"
        )
        details += _details(each)
    return "\n".join([*lines, *details]) + "\n"


def _details(entry: dict[str, Any]) -> list[str]:
    """The parts of one run, its failures and the newer releases that did not run."""
    lines = ["", f"{entry['date']}, Python {entry['python']}, torch {entry['versions'].get('torch', 'none')}:", ""]
    lines += ["| tests | passed | failed | skipped | commit |", "|---|---|---|---|---|"]
    for name, part in sorted(entry["parts"].items()):
        lines.append(
            f"| `{name}` | {part['passed']:,} | {part['failed']:,} | {part['skipped']:,} | `{part['commit']}` |"
        )
    kept_out = ", ".join(f"{name} {version}" for name, version in entry["kept_out"].items())
    lines += ["", f"Newer releases that did not run: {kept_out or 'none'}."]
    failures = [f"- `{name}`" for _, part in sorted(entry["parts"].items()) for name in part["failures"]]
    return [*lines, *(["", "Failed:", "", *failures] if failures else [])]


def page_with(text: str, section: str) -> str:
    """The page `text` with `section` between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{PAGE}: the lines {BEGIN.strip()!r} and {END.strip()!r} are needed once each")
    return before + BEGIN + "\n" + section + "\n" + END + after


def main() -> None:
    """Runs the parts that are named, or all."""
    wanted = sys.argv[1:] or parts()
    if unknown := sorted(set(wanted) - set(parts())):
        raise SystemExit(f"unknown parts {unknown}; parts are {parts()}")
    runs = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else []
    versions, python = installed_versions(), platform.python_version()
    entry = next((each for each in runs if each["versions"] == versions and each["python"] == python), None)
    if entry is None:
        entry = {"python": python, "versions": versions, "parts": {}}
        runs.append(entry)
    entry["system"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    constraints = tried_before()
    entry["differs"] = {name: version for name, version in versions.items() if constraints.get(name) != version}
    entry["kept_out"] = newer_releases()
    for part in wanted:
        entry["parts"][part] = run(part)
        entry["date"] = datetime.now(UTC).date().isoformat()
        KEPT.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        section = rendered(runs)
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), section), encoding="utf-8")
        print({kind: entry["parts"][part][kind] for kind in ("passed", "failed", "skipped")}, flush=True)  # noqa: T201
    if any(entry["parts"][part]["failed"] for part in wanted):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
