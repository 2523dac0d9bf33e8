import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kinescan.cli import report as cli_report
from kinescan.errors import ConfigError
from kinescan.runtime.run_folder import RunFolder
from kinescan.studies import run_study, write_report


class _Read(HTMLParser):
    """What a page fetches, runs and says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words += data

    def is_alone(self) -> bool:
        """Nothing is fetched and no code runs."""
        return all(source.startswith("data:image/") for source in self.sources) and "script" not in self.tags


@pytest.fixture
def study(small: Any, tmp_path: Path) -> Path:
    return run_study(small(seeds=(0,)), output=tmp_path / "study", code="0123456789ab").output


def _run_of(study: Path) -> Path:
    return next(path.parent for path in sorted(study.rglob("study_run.json")))


def test_a_run_is_one_file_with_scores_curves_settings_and_provenance(kinescan: Any, study: Path) -> None:
    run = _run_of(study)
    result = kinescan("report", run, "--json")
    assert result.exit_code == 0, result.stderr
    path = Path(json.loads(result.stdout)["report"])
    assert path == run / "report.html"
    page = _Read(path)
    assert page.is_alone()
    # confusion and reliability
    assert page.tags.count("img") == 2
    assert page.tags.count("polyline") >= 4
    top1 = json.loads((run / "report.json").read_text())["top1"]
    digest = json.loads((RunFolder(run).best / "checksums.json").read_text())["model.safetensors"]
    for part in (f"{100 * top1:.1f} %", "[optim]", digest[:16], "finished"):
        assert part in page.words.replace("\xa0", " ")
    assert all(line.startswith("kinescan report ") for line in cli_report.EXAMPLES)


def test_a_run_that_was_killed_is_shown_as_far_as_it_is(study: Path, tmp_path: Path) -> None:
    run = _run_of(study)
    for name in ("report.json", "report.md", "confusion.png", "reliability.png"):
        (run / name).unlink()
    lines = (run / "log.jsonl").read_text().splitlines()
    last = max(json.loads(line)["step"] for line in lines)
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"kind": "step", "ep')
    page = _Read(write_report(run, tmp_path / "killed.html"))
    assert page.is_alone()
    assert f"kinescan train {run} --resume" in page.words
    assert f"step {last} " in page.words
    assert page.tags.count("polyline") >= 2
    # what is damaged is said in its place
    (run / "videos.json").write_text("{")
    page = _Read(write_report(run, tmp_path / "killed.html"))
    assert "videos.json" in page.words
    assert "[optim]" in page.words


def test_a_study_shows_its_table_its_runs_and_curves(study: Path) -> None:
    page = _Read(write_report(study))
    assert page.is_alone()
    assert page.tags.count("img") == 1
    assert "finished" in page.words
    rows = len(json.loads((study / "study.json").read_text())["runs"])
    assert page.words.count("0123456789ab") >= rows
    # stopped before any table was written
    for name in ("study.json", "study.md", "curves.png"):
        (study / name).unlink()
    page = _Read(write_report(study))
    assert "not finished" in page.words
    assert page.words.count("0123456789ab") == rows


def test_folds_and_trainings_of_a_demo_have_a_line_each(study: Path, tmp_path: Path) -> None:
    folds, demo = tmp_path / "folds", tmp_path / "demo"
    for number in (1, 2, 10):
        shutil.copytree(_run_of(study), folds / f"fold-{number}")
    (folds / "cross_validation.json").write_text("{}")
    (folds / "cross_validation.md").write_text("# 3 folds\n")
    page = _Read(write_report(folds))
    assert page.is_alone()
    assert "3 folds" in page.words
    assert page.tags.count("polyline") >= 3 * 3
    assert page.words.index("fold-1") < page.words.index("fold-2") < page.words.index("fold-10")
    for number in range(8):
        shutil.copytree(_run_of(study), demo / f"training_{number}")
    (demo / "demo.json").write_text("{}")
    (demo / "README.md").write_text("# The demo\n")
    page = _Read(write_report(demo))
    assert page.is_alone()
    assert "The demo" in page.words
    assert "training_5" in page.words
    assert "6 of 8" in page.words


def test_hostile_text_and_pictures_from_elsewhere_stay_out(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "<script>alert(1)"
    shutil.copytree(_run_of(study), run)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (run / "link.png").symlink_to(secret)
    hostile = "<script>alert(2)</script> ![a](../secret.png) ![b](link.png) ![c](https://example.org/x.png) [d](a.md)"
    (run / "report.md").write_text(f"# {hostile}\n\n| <img src=x> |\n|---|\n| [x](javascript:alert(3)) |\n")
    page = _Read(write_report(run))
    assert page.is_alone()
    assert "img" not in page.tags
    assert "<script>alert(2)" in page.words


@pytest.mark.bad_input
def test_other_folders_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match=str(folder)):
            write_report(folder)
