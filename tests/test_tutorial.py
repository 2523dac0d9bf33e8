"""The tutorial, block after block as a reader would: shell lines as commands, Python in one program."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial_events.md"
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)


def _run(line: str) -> str:
    words = shlex.split(line)
    assert words[0] == "kinescan", line
    done = subprocess.run(
        [sys.executable, "-m", "kinescan", *words[1:]], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)
def test_every_block_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINESCAN_WEBHOOK_SECRET", "")
    namespace: dict[str, object] = {}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    for language, text in blocks:
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                _run(line)
        else:
            exec(compile(text, str(PAGE), "exec"), namespace)  # the project's own documentation
    received = namespace["received"]
    assert isinstance(received, list)
    told = [line for line in Path("events.jsonl").read_text(encoding="utf-8").splitlines() if line]
    assert len(received) == len(told) > 0
    assert {record["kind"] for record in received} <= {"start", "end"}
    assert Path("report/report.md").is_file()
    assert Path("events.csv").is_file()
