import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.bright_model import bright_model, write_blinking

from kinescan.data.video import VideoReader
from kinescan.events.rules import EventRules, save_rules


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bright_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blinking(tmp_path_factory.mktemp("video") / "a.ts", 10, 12, 10, 12, 6)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_printed_and_written(kinescan: Any, saved: Path, video: Path) -> None:
    Path("rules.toml").write_text('files = ["a.csv"]\nmerge_seconds = 0.2\n')
    result = kinescan("stream", video, "--model", saved, "--events", "a.jsonl", "--events", "rules.toml", "--json")
    assert result.exit_code == 0, result.stderr
    told = _records(result.stdout)
    assert [(record["kind"], record["id"].split("-")[1]) for record in told] == [
        ("start", "1"),
        ("end", "1"),
        ("start", "2"),
        ("end", "2"),
    ]
    assert _records(Path("a.jsonl").read_text()) == told
    with open("a.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [record["id"] for record in told]
    assert told[1]["end_seconds"] - told[1]["start_seconds"] == pytest.approx(1.2)
    lines = kinescan("stream", video, "--model", saved, "--events", "-").stdout.splitlines()
    assert len(lines) == 4
    assert all("bright" in line for line in lines)


def test_a_recording_holds_every_frame(kinescan: Any, saved: Path, video: Path) -> None:
    result = kinescan("stream", video, "--model", saved, "--record", "out.mp4", "--json")
    assert result.exit_code == 0, result.stderr
    assert [record["kind"] for record in _records(result.stdout)] == ["start", "end", "start", "end"]
    with VideoReader("out.mp4") as reader:
        assert reader.num_frames == 50
    refused = kinescan("stream", video, "--model", saved, "--record", "out.txt")
    assert refused.exit_code == 2
    assert "out.txt" in refused.stderr


def test_settings_change_the_rules(kinescan: Any, saved: Path, video: Path) -> None:
    options = ["--model", saved, "--events", "-", "--json"]
    result = kinescan("stream", video, *options, "--set", "events.least_seconds=5.0")
    assert (result.exit_code, result.stdout) == (0, "")
    refused = kinescan("stream", video, *options, "--set", "events.classes.brigt.on=0.9")
    assert refused.exit_code == 2
    assert "'bright'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--events", "a.txt"], "a.txt"),
        (["--set", "events.on=0.6"], "--events"),
        (["--events", "missing/a.jsonl"], "missing"),
        (["--events", "ftp://host/a"], "http"),
        (["--events", "--state"], "--state"),
    ],
)
def test_wrong_targets_are_one_line(kinescan: Any, saved: Path, video: Path, arguments: list[str], named: str) -> None:
    result = kinescan("stream", video, "--model", saved, *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stderr.count("ConfigError") == 1


def test_thresholds_of_another_model_are_refused(kinescan: Any, saved: Path, video: Path) -> None:
    save_rules("other.json", EventRules(), classes=("background", "bright"), weights="0")
    result = kinescan("stream", video, "--model", saved, "--events", "other.json")
    assert result.exit_code == 2
    assert "other weights" in result.stderr


def test_a_kill_between_start_and_end_tells_the_end_after_the_restart(saved: Path, video: Path) -> None:
    command = [
        *(sys.executable, "-m", "kinescan", "stream", "-", "--model", str(saved), "--device", "cpu", "--json"),
        *("--events", "a.jsonl", "--state", "camera.state", "--set", "events.gap_seconds=1000.0"),
    ]
    # up to the middle of the first event, and no end: a camera that continues
    head = write_blinking(Path("head.ts"), 10, 25).read_bytes()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(head)
    process.stdin.flush()
    start = json.loads(process.stdout.readline())
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert start["kind"] == "start"
    assert [record["kind"] for record in _records(Path("a.jsonl").read_text())] == ["start"]
    rest = write_blinking(Path("rest.ts"), 10, 12, 8).read_bytes()
    again = subprocess.run(command, input=rest, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr
    records = _records(Path("a.jsonl").read_text())
    assert [record["kind"] for record in records] == ["start", "end", "start", "end"]
    assert records[0]["id"] == records[1]["id"] == start["id"] != records[2]["id"] == records[3]["id"]
    assert records[0]["start_time"] == records[1]["start_time"] < records[1]["end_time"]
    assert [record["sequence"] for record in records] == [1, 2, 3, 4]


def test_segments_of_a_folder(kinescan: Any, saved: Path, video: Path) -> None:
    rules = ["--set", "events=rules.toml", "--set", "events.merge_seconds=0.2"]
    Path("rules.toml").write_text("least_seconds = 0.3\n")
    result = kinescan("predict", video.parent, "--segments", "--output", "a.csv", "--model", saved, "--json", *rules)
    assert result.exit_code == 0, result.stderr
    [listed] = json.loads(result.stdout)
    assert [event["kind"] for event in listed["events"]] == ["end", "end"]
    with open("a.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [event["id"] for event in listed["events"]]
    table = kinescan("predict", video, "--segments", "--model", saved).stdout.splitlines()
    assert len(table) == 3
    decoded = kinescan("predict", video, "--segments", "--set", "events=decoded", "--model", saved).stdout.splitlines()
    assert len(decoded) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--output", "a.csv"], "--segments"),
        (["--segments", "--output", "a.txt"], "a.txt"),
        (["--segments", "--set", "events.onn=1.0"], "'on'"),
        (["--set", "events.on=0.5"], "--segments"),
        (["--set", "events=decoded"], "--segments"),
        (["--segments", "--set", "decoding.mean_seconds=3"], "events=decoded"),
        (["--segments", "--set", "events=decoded", "--set", "decoding.mean_second=3"], "'mean_seconds'"),
        (["--segments", "--set", "events=decoded", "--set", "decoding.mean_seconds=0"], "decoding.mean_seconds"),
        (["--segments", "--set", "events=decoded", "--set", "events.on=0.5"], "events.on"),
        (["--segments", "--set", "events=decode"], "decode"),
        (["--segments", "--set", "events=missing.toml"], "missing.toml"),
        ([], "--segments"),
    ],
)
def test_wrong_ways_to_ask_for_segments_are_one_line(
    kinescan: Any, saved: Path, video: Path, arguments: list[str], named: str
) -> None:
    result = kinescan("predict", video, "--model", saved, *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stderr.count("ConfigError") == 1
