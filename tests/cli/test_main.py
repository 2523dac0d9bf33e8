import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from kinescan.cli.main import VERBS, build_app, main
from kinescan.data.video import write_video

FLAGS = {
    "train": {"--set", "--output", "--resume", "--dry-run", "--json"},
    "cross-validate": {"--folds", "--set", "--output", "--resume", "--dry-run", "--json"},
    "study": {"--set", "--output", "--processes", "--any-code", "--dry-run", "--json"},
    "compare": {"--output", "--json"},
    "report": {"--output", "--json"},
    "eval": {
        *("--data", "--views", "--output", "--device", "--precision", "--workers", "--features"),
        *("--compare", "--allow-code", "--set", "--json"),
    },
    "predict": {
        *("--set", "--model", "--top", "--explain", "--allow-short", "--device", "--allow-code", "--json"),
        *("--segments", "--output", "--engine"),
    },
    "stream": {
        *("--set", "--model", "--every", "--allow-short", "--device", "--state", "--events", "--record"),
        *("--when-behind", "--json"),
    },
    "ask": {
        *("--model", "--budget", "--fps", "--memory", "--save", "--load", "--watch", "--compare", "--set", "--json"),
    },
    "data make": {
        *("--set", "--train-per-class", "--test-per-class", "--frame-size", "--num-frames"),
        *("--seed", "--noise", "--from", "--level", "--json"),
    },
    "data convert": {
        *("--videos", "--fps", "--label", "--where", "--point", "--format", "--overwrite", "--json"),
    },
    "data pack": {"--set", "--test", "--reader", "--split", "--size", "--shard-mib", "--workers", "--json"},
    "data index": {"--set", "--test", "--reader", "--split", "--workers", "--json"},
    "data check": {"--set", "--test", "--reader", "--split", "--workers", "--quick", "--output", "--json"},
    "reproduce": {
        "--data",
        "--scale",
        "--from",
        "--seeds",
        "--only",
        "--plan",
        "--output",
        "--processes",
        "--set",
        "--json",
    },
    "serve": {"--set", "--model", "--vlm", "--media", "--allow-url", "--host", "--port", "--no-page", "--device"},
    "web": {"--set", "--model", "--vlm", "--host", "--port", "--device"},
    "list": {"--recipes", "--markdown", "--json"},
    "recipe": {"--json"},
    "doctor": {"--json", "--gpu-check", "--device"},
    "export": {"--to", "--batch", "--frames", "--precision", "--video", "--tolerance", "--step", "--json"},
    "bench": {"--quick", "--output", "--list", "--json"},
    "profile": {"--set", "--frames", "--size", "--batch", "--num-classes", "--repeats", "--device", "--json"},
}


def _commands() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(build_app()).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{name} {sub}": entry for sub, entry in inner.items()} if inner else {name: command}
    return found


def test_flags_are_these_and_at_most_eight_beside_set_and_json() -> None:
    flags = {
        name: {
            option
            for parameter in command.params
            if not getattr(parameter, "hidden", False)
            for option in parameter.opts
            if option.startswith("--")
        }
        - {"--help"}
        for name, command in _commands().items()
    }
    demo = flags.pop("demo", set())
    importing = {name for name, used in flags.items() if "--import" in used}
    assert importing == {
        *("train", "cross-validate", "study", "eval", "predict", "stream", "export", "profile", "list", "serve", "web"),
    }
    assert {name: used - {"--import"} for name, used in flags.items()} == FLAGS
    assert all(len(used - {"--set", "--json", "--import", "--allow-code"}) <= 8 for used in (*flags.values(), demo))


@pytest.mark.parametrize("verb", sorted(FLAGS))
def test_help_ends_with_three_lines_to_copy(kinescan: Any, verb: str) -> None:
    result = kinescan(*verb.split(), "--help")
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.rstrip().splitlines() if line.strip()]
    start = lines.index("Copy one:")
    assert len(lines) - start == 4
    assert all(line.startswith(f"kinescan {verb.split()[0]}") for line in lines[start + 1 :])


def test_help_lists_every_verb_with_one_line(kinescan: Any) -> None:
    text = kinescan("--help").stdout
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\w", text, re.MULTILINE), verb


def test_lines_to_copy_use_flags_that_exist(kinescan: Any) -> None:
    for name, command in _commands().items():
        known = {option for parameter in command.params for option in parameter.opts}
        text = kinescan(*name.split(), "--help").stdout.partition("Copy one:")[2]
        assert set(re.findall(r"--[a-z-]+", text)) <= known


@pytest.mark.parametrize(
    "arguments", [["fly"], ["train"], ["train", "a.toml", "--speed", "3"], ["predict"], ["profile"]]
)
def test_wrong_usage_exits_with_2(kinescan: Any, arguments: list[str]) -> None:
    result = kinescan(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_errors_of_ours_are_one_line_on_standard_error(kinescan: Any) -> None:
    result = kinescan("train", "no.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("ConfigError: recipe 'no.toml': no such file")
    assert result.stderr.count("\n") == 1
    result = kinescan("predict", "a.mp4", "--model", "nowhere/at/all")
    assert result.exit_code == 1
    assert re.fullmatch(r"CheckpointError: nowhere/at/all: .*\n", result.stderr)


def test_program_starts_one_verb_and_shows_tracebacks_when_asked() -> None:
    program = [sys.executable, "-c", "from kinescan.cli.main import main; main()"]
    version = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=120, check=True)
    assert re.fullmatch(r"kinescan \d+\.\d+.*\n", version.stdout)
    failed = subprocess.run(
        [*program, "data", "make", "motion", "/dev/null/x", "--traceback"], capture_output=True, text=True, timeout=120
    )
    assert failed.returncode == 2
    assert "Traceback" in failed.stderr
    assert failed.stderr.rstrip().splitlines()[-1].startswith("ConfigError: /dev/null/x cannot be written")


def test_quiet_is_allowed_anywhere_and_leaves_results_and_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kinescan", "list", "--quiet", "backends"])
    logger = logging.getLogger("kinescan")
    before = logger.level
    try:
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        logger.info("a line of progress")
        logger.warning("a warning")
    finally:
        logger.setLevel(before)
    shown = capsys.readouterr()
    assert "numba" in shown.out
    assert shown.err == "a warning\n"


def test_names_that_the_terminal_cannot_show_end_nothing() -> None:
    program = [
        sys.executable,
        "-c",
        "from kinescan.cli.main import main; main()",
        "predict",
        "日本/ä.mp4",
        "--model",
        ".",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(program, capture_output=True, timeout=120, env=environment, check=False)
    assert run.returncode in (1, 2)
    assert b"Error: " in run.stderr
    assert b"Traceback" not in run.stderr


@pytest.mark.parametrize("verb", ["predict", "stream"])
def test_a_first_answer_waits_for_nothing_that_it_does_not_need(verb: str, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", torch.randint(0, 256, (12, 3, 48, 64), dtype=torch.uint8), fps=6)
    program = (
        "import atexit, sys\nfrom kinescan.cli.main import main\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\nmain()"
    )
    command = [sys.executable, "-c", program, "--quiet", verb, str(tmp_path / "a.mp4"), "--model", "motion"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    loaded = set(run.stderr.split())
    assert "kinescan.models.pks4" in loaded
    # torch's compiler, what trains on several processes, and what draws
    assert loaded & {"torch._dynamo", "torch.distributed.fsdp", "kinescan.training.loop", "matplotlib"} == set()


@pytest.mark.parametrize(("chosen", "wanted"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_where_nothing_else_is_chosen(
    chosen: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
    program = (
        "import atexit, os, sys\nfrom kinescan.cli.main import main\n"
        "assert 'torch' not in sys.modules\n"
        "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], file=sys.stderr))\nmain()"
    )
    run = subprocess.run([sys.executable, "-c", program, "list"], capture_output=True, text=True, timeout=100)
    assert run.stderr.split() == [wanted]
