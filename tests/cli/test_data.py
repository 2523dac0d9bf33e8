import json
from pathlib import Path
from typing import Any

from tests.mentions import mentions

from kinescan.data.synthetic import MOTION_LEVELS


def test_data_make_writes_both_kinds(kinescan: Any, tmp_path: Path) -> None:
    sizes = ["--train-per-class", "2", "--test-per-class", "1", "--frame-size", "32", "--num-frames", "4"]
    made = kinescan("data", "make", "motion", tmp_path / "a", *sizes, "--set", 'pairs=["vertical"]', "--json")
    assert made.exit_code == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["classes"], said["num_train"], said["num_test"]) == (["down", "up"], 4, 2)
    assert len(list((tmp_path / "a" / "train").rglob("*.mp4"))) == 4
    again = kinescan("data", "make", "motion", tmp_path / "a", *sizes)
    assert again.exit_code == 2
    assert "empty" in again.stderr
    looks = ["--set", 'colours=["red", "blue"]', "--set", 'families=["dots"]', "--noise", "0", "--shake", "0"]
    made = kinescan("data", "make", "appearance", tmp_path / "b", *sizes, *looks, "--seed", "3")
    assert made.exit_code == 0, made.stderr
    assert mentions(made.stdout, "4", "training", "2", "2 classes")
    few = ["--set", "seconds=6", "--set", "train_videos=2", "--set", "test_videos=1", "--frame-size", "16"]
    made = kinescan("data", "make", "events", tmp_path / "e", *few, "--json")
    assert made.exit_code == 0, made.stderr
    assert (json.loads(made.stdout)["num_train"], (tmp_path / "e" / "train.csv").is_file()) == (2, True)
    refused = kinescan("data", "make", "events", tmp_path / "f", "--train-per-class", "2")
    assert (refused.exit_code, "train_per_class" in refused.stderr) == (2, True)
    wrong = kinescan("data", "make", "motion", tmp_path / "c", "--set", "frame_sice=3")
    assert (wrong.exit_code, "'frame_size'?" in wrong.stderr) == (2, True)
    assert kinescan("data", "make", "weather", tmp_path / "d").exit_code == 2


def test_data_make_motion_takes_levels_and_a_folder_of_sources(kinescan: Any, tmp_path: Path) -> None:
    sizes = ["--train-per-class", "1", "--test-per-class", "1", "--frame-size", "32", "--num-frames", "4"]
    hard = kinescan("data", "make", "motion", tmp_path / "a", *sizes, "--level", "4", "--set", "contrast=0.9")
    assert hard.exit_code == 0, hard.stderr
    config = json.loads((tmp_path / "a" / "meta.json").read_text())["config"]
    assert (config["distractors"], config["contrast"], config["frame_size"]) == (2, 0.9, 32)
    made = kinescan(
        "data", "make", "motion", tmp_path / "b", *sizes, "--from", tmp_path / "a", "--level", "1", "--json"
    )
    assert made.exit_code == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["num_train"], said["num_test"], len(said["classes"])) == (8, 8, 8)
    assert all(name.startswith(f"{part}/") for part, names in said["sources"].items() for name in names)
    for wrong in (["motion", "--level", "5"], ["events", "--level", "1"], ["appearance", "--from", tmp_path / "a"]):
        refused = kinescan("data", "make", wrong[0], tmp_path / "c", *wrong[1:])
        assert (refused.exit_code, str(wrong[1]) in refused.stderr or "level" in refused.stderr) == (2, True)
    few = kinescan("data", "make", "motion", tmp_path / "d", *sizes, "--from", tmp_path / "a" / "test" / "up")
    assert (few.exit_code, ("too few" in few.stderr)) == (2, True)
    help_text = kinescan("data", "make", "--help").stdout
    assert f"to {len(MOTION_LEVELS) - 1}" in help_text
