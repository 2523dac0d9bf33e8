import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.mentions import mentions


def test_check_finds_a_cut_file_and_writes_both_reports(kinescan: Any, videos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(videos, copy)
    whole = kinescan("data", "check", copy, "--workers", "0")
    assert whole.exit_code == 0, whole.stderr
    assert whole.stdout.splitlines() == [
        "train: 12 of 12 videos are sound, 2 classes, 0.00 h",
        "sound: nothing was found",
    ]
    (copy / "dark/0.mp4").write_bytes((copy / "dark/0.mp4").read_bytes()[:500])
    report = tmp_path / "report"
    found = kinescan("data", "check", copy, "--test", videos, "--workers", "0", "--output", report, "--json")
    assert found.exit_code == 1, found.stderr
    said = json.loads(found.stdout)
    assert said == json.loads((report / "check.json").read_text())
    assert [video["path"] for video in said["unreadable"]] == [str(copy / "dark/0.mp4")]
    assert len(said["train_and_test"]) == 11
    assert "11" in (report / "check.txt").read_text()


def test_check_takes_a_recipe_and_published_layouts(kinescan: Any, videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "ucf"
    shutil.copytree(videos, root / "UCF-101")
    (root / "classInd.txt").write_text("1 dark\n2 bright\n")
    (root / "trainlist01.txt").write_text("dark/0.mp4 1\nbright/0.mp4 2\ndark/9.mp4 1\n")
    (root / "testlist01.txt").write_text("dark/1.mp4\nbright/0.mp4\n")
    words = ("--workers", "0", "--quick", "--json")
    found = kinescan("data", "check", root, "--reader", "ucf101", *words)
    assert found.exit_code == 1, found.stderr
    said = json.loads(found.stdout)
    assert (said["decoded"], sorted(said["parts"])) == (False, ["test", "train"])
    assert [video["id"] for video in said["missing"]] == ["dark/9"]
    assert [{video["id"] for video in group} for group in said["train_and_test"]] == [{"bright/0"}]
    recipe = tmp_path / "ucf.toml"
    recipe.write_text(f'[data]\nreader = "ucf101"\ntrain = "{root.as_posix()}"\n')
    assert json.loads(kinescan("data", "check", recipe, *words).stdout) == said
    again = kinescan("data", "check", recipe, "--split", "2", *words)
    assert (again.exit_code, "holds no trainlist02.txt" in again.stderr) == (2, True)


def test_check_says_how_far_it_is(kinescan: Any, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinescan.runtime.counter.SECONDS_BETWEEN_LINES", -1.0)
    found = kinescan("data", "check", videos, "--workers", "0", "--quick")
    assert found.stderr.splitlines()[::11] == ["checking: 1 of 12 files", "checking: 12 of 12 files"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["nowhere.toml"], "recipe 'nowhere.toml'"),
        (["empty.toml"], "data.train. Add --set data.train=VIDEOS"),
        ([".", "--set", "optim.lr=1"], "--set"),
        ([".", "--reader", "ufc101"], "'ucf101'?"),
    ],
)
def test_wrong_usage_exits_with_2(
    kinescan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.toml").write_text("seed = 1\n")
    result = kinescan("data", "check", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_limits_are_settings_of_folders_too(kinescan: Any, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinescan.data.video.limits._BYTES_PER_SECOND", float("inf"))
    for setting in ("data.max_pixels=10", "data.timeout_seconds=1e-9"):
        found = kinescan("data", "check", str(videos), "--workers", "0", "--set", setting, "--json")
        assert found.exit_code == 1
        found_bad = json.loads(found.stdout)["unreadable"]
        assert len(found_bad) == 12
        assert all(setting.partition("=")[0] in video["reason"] for video in found_bad)
    assert kinescan("data", "check", str(videos), "--workers", "0", "--set", "data.max_pixels=0").exit_code == 2


def test_check_says_what_is_odd_in_a_list(kinescan: Any, videos: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f"{videos}/dark/0.mp4,Dark\n{videos}/dark/1.mp4,dark\nlost.mp4,dark\n")
    result = kinescan("data", "check", file, "--quick")
    assert mentions(result.stderr, "'Dark'", "'dark'")
    assert "lines 3" in result.stderr
