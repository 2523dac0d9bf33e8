import json
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def render(script: Any) -> Any:
    return script("render")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one result of a benchmark that nobody has heard of: four sizes of two candidates."""
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(RESULTS / "ops_selective_scan_cpu.json", folder / "new_thing.json")
    document = json.loads((folder / "new_thing.json").read_text())
    seconds = {f"{name}, {n} frames": {"cpu_seconds": n * 0.1} for name in ("ours", "peer") for n in (8, 16, 32, 64)}
    document |= {"name": "new_thing", "results": {"parity": {"output": 2.5e-6}, "growth": seconds}}
    (folder / "new_thing.json").write_text(json.dumps(document))
    return folder


def test_every_aim_finds_its_number_where_the_result_is_there(render: Any) -> None:
    """Of a result that nobody measured yet, the page says so; a key that is in no result is a mistake."""
    documents = {path.stem: render.read_result(path) for path in RESULTS.glob("*.json")}
    aims = [(what, name, keys) for what, name, keys, _, _ in render.AIMS if name in documents]
    assert len(aims) >= 10
    assert [what for what, name, keys in aims if render.reached(documents, name, keys) is None] == []


def test_every_result_with_times_says_how_far_its_candidates_agree() -> None:
    for path in RESULTS.glob("*.json"):
        text = path.read_text()
        agreed = any(word in text for word in ('"parity', '"errors', "difference"))
        assert agreed or "cpu_seconds" not in text, path


def test_render_shows_an_unknown_result_with_table_plot_and_origin(render: Any, results: Path, tmp_path: Path) -> None:
    overview, page = tmp_path / "page.md", tmp_path / "page" / "new_thing.md"
    assert {overview, page} <= set(render.render(results, overview, check=False))
    assert "- [new thing](page/new_thing.md)\n" in overview.read_text()
    assert overview.read_text().count("| not measured here | |") == len(render.AIMS)
    text = page.read_text()
    assert text.startswith("# new thing\n")
    assert "(../page.md)" in text
    assert "| frames | 8 | 16 | 32 | 64 |" in text
    assert "| ours | 800 ms | 1.6 s | 3.2 s | 6.4 s |" in text
    assert "![growth](../plots/new_thing-growth.svg)" in text
    assert "[new_thing.json](../results/new_thing.json), commit `" in text
    assert "2.5e-06" in text
    assert "| growth: peer, 64 frames | 6.4 s cpu seconds |" in text
    picture = (tmp_path / "plots" / "new_thing-growth.svg").read_text()
    assert ">peer</text>" in picture
    assert "CPU time, ms" in picture


def test_render_check_writes_nothing_and_names_what_is_stale(render: Any, results: Path, tmp_path: Path) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "plots" / "new_thing-growth.svg"
    own = tmp_path / "page" / "new_thing.md"
    assert render.render(results, page, check=True) == [plot, own, page]
    assert not page.exists()
    render.render(results, page, check=False)
    assert render.render(results, page, check=True) == []
    file = results / "new_thing.json"
    file.write_text(file.read_text().replace("6.4", "6.5"))
    assert render.render(results, page, check=True) == [plot, own]
    render.render(results, page, check=False)
    assert render.render(results, page, check=True) == []


def test_render_removes_plots_and_pages_that_no_result_has(render: Any, results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    render.render(results, page, check=False)
    (tmp_path / "page" / "of_mine.md").write_text("# A page that this script did not write\n")
    (results / "new_thing.json").unlink()
    assert tmp_path / "page" / "new_thing.md" in render.render(results, page, check=True)
    render.render(results, page, check=False)
    assert list((tmp_path / "plots").iterdir()) == []
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["of_mine.md"]


def test_every_aim_that_was_measured_leads_to_the_page_of_its_benchmark(render: Any) -> None:
    rows = [line for line in render.PAGE.read_text().splitlines() if line.endswith(("reached |", "**missed** |"))]
    assert len(rows) >= 10
    for row in rows:
        target = row.partition("](")[2].partition(")")[0]
        assert (render.PAGE.parent / target).is_file(), row
