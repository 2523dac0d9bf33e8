"""What README and docs say is run: Python blocks as code, command lines against the real command line."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import kinescan
from kinescan.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial_events.md"
"""Its blocks run one behind the other, commands among them: see test_tutorial.py."""
BLOCK = re.compile(r"(<!-- not run:[^\n]*-->\n)?```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def _blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """(run it?, text) of each fenced block of that language."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(not skipped, text) for skipped, kind, text in found if kind == language]


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for run, text in _blocks(page, "python"):
        if ">>>" in text:
            test = doctest.DocTestParser().get_doctest(text, namespace, page.name, str(page), 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            if run:
                runner.run(test, clear_globs=False)
                namespace.update(test.globs)
                assert runner.summarize().failed == 0
            continue
        code = compile(text, str(page), "exec")
        if run:
            exec(code, namespace)  # the project's own documentation


def _command_lines() -> list[tuple[str, str]]:
    lines = []
    for page in PAGES:
        for language in ("console", "bash", "sh"):
            for _, text in _blocks(page, language):
                joined = text.replace("\\\n", " ")
                lines += [(page.name, line.strip()) for line in joined.splitlines() if "kinescan " in line]
    return [(page, line.removeprefix("$ ")) for page, line in lines if line.removeprefix("$ ").startswith("kinescan ")]


@pytest.mark.parametrize(("page", "line"), _command_lines())
def test_command_lines_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: object = typer.main.get_command(app)
    path = []
    while words and getattr(command, "commands", None):
        assert words[0] in command.commands, f"{page}: no verb {words[0]!r} in {line!r}"
        command = command.commands[words[0]]
        path.append(words.pop(0))
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= known | {"--help"}, f"{page}: {line!r} uses {used - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    absent = [t for t in targets if not (page.parent / t).exists()]
    assert absent == []


def test_benchmark_page_is_what_the_results_say() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "render.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def _modules() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(kinescan.__path__, "kinescan.")]
    return [name for name in names if not name.endswith(("triton", "__main__"))]


@pytest.mark.parametrize("name", _modules())
def test_docstring_examples_print_what_they_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "ks": kinescan}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_help_of_every_verb_ends_with_lines_to_copy() -> None:
    command = typer.main.get_command(app)
    for verb in command.commands:
        text = CliRunner().invoke(app, [verb, "--help"]).output
        assert len(re.findall(r"kinescan \w+", text)) >= 3, verb
