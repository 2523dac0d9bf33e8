import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.data.video import write_video
from kinescan.inference import load_stream_state
from kinescan.models.timing import FrameTiming
from kinescan.models.zoo import create_model, from_pretrained

SIZES = {"patch_size": 16, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "insert_after": 1}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    create_model(
        "pks4_vit_ti16", labels=["a", "b"], image_size=32, kinematic_width=8, window=3, causal=True, **SIZES
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.ts"
    write_video(path, torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8), fps=10)
    return path


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def without_time(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "milliseconds"} for line in lines]


def test_standard_input_gives_what_the_file_gives(kinescan: Any, causal: Path, recording: Path) -> None:
    options = ["--model", str(causal), "--every", "2", "--json", "--device", "cpu"]
    file = kinescan("stream", recording, *options)
    assert file.exit_code == 0, file.stderr
    command = [sys.executable, "-m", "kinescan", "stream", "-", *options]
    piped = subprocess.run(command, input=recording.read_bytes(), capture_output=True, check=False)
    assert piped.returncode == 0, piped.stderr
    assert without_time(lines_of(piped.stdout.decode())) == without_time(lines_of(file.stdout))


def test_a_stream_that_is_ended_leaves_its_state(causal: Path, recording: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    command = [sys.executable, "-m", "kinescan", "stream", "-", "--model", str(causal), "--state", str(state), "--json"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    # a camera that goes on: the pipe stays open
    process.stdin.write(recording.read_bytes())
    process.stdin.flush()
    first = json.loads(process.stdout.readline())
    assert first["frame_index"] == 0
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    rest, said = process.communicate(timeout=60)
    assert process.returncode == 1
    frames = 1 + len(rest.splitlines())
    assert 1 <= load_stream_state(state).frames_seen <= 30
    assert abs(load_stream_state(state).frames_seen - frames) <= 1
    assert f"{load_stream_state(state).frames_seen} frames: {state}" in said.decode()
    again = subprocess.run(command, input=recording.read_bytes(), capture_output=True, check=False)
    assert again.returncode == 0, again.stderr
    assert load_stream_state(state).frames_seen >= 30 + frames - 1


def test_errors_of_a_live_source_are_one_line(kinescan: Any, causal: Path) -> None:
    refused = kinescan("stream", "tcp://127.0.0.1:9", "--model", causal)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1].startswith("VideoError: tcp://127.0.0.1:9: cannot be opened as video")


@pytest.fixture(scope="module")
def timed(causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, trained with a frame every 0.2 s."""
    folder = tmp_path_factory.mktemp("timed") / "model"
    model = from_pretrained(causal)
    model.timing = FrameTiming(median_seconds=0.2, shortest_seconds=0.2, longest_seconds=0.2)
    model.save_pretrained(folder)
    return folder


def test_frames_are_taken_by_their_times_or_by_count(kinescan: Any, timed: Path, causal: Path, recording: Path) -> None:
    def frames(model: Path, *options: str) -> list[int]:
        done = kinescan("stream", recording, "--model", model, "--json", *options)
        assert done.exit_code == 0, done.stderr
        return [line["frame_index"] for line in lines_of(done.stdout)]

    assert frames(timed) == list(range(0, 30, 2))
    assert frames(timed, "--every", "3") == list(range(0, 30, 3))
    # a model of before
    assert frames(causal) == list(range(30))


def test_the_average_is_chosen_by_set(kinescan: Any, timed: Path, recording: Path) -> None:
    def last(*options: str) -> list[float]:
        done = kinescan("stream", recording, "--model", timed, "--json", "--set", "stream.top=2", *options)
        assert done.exit_code == 0, done.stderr
        return sorted(lines_of(done.stdout)[-1]["scores"])

    averages = [
        last(),
        last("--set", "stream.average=mean"),
        last("--set", "stream.average=sliding"),
        last("--set", "stream.average_seconds=30"),
    ]
    assert len({tuple(scores) for scores in averages}) == 4
    assert last("--set", "stream.average=exponential", "--set", "stream.average_seconds=0.4") == averages[0]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("stream.average=median", "exponential"),
        ("stream.average_seconds=-1", "average_seconds"),
        ("stream.averag=mean", "average"),
        ("stream=mean", "stream.NAME=VALUE"),
        ("events.on=0.5", "--events"),
    ],
)
def test_a_wrong_setting_of_a_stream_is_an_error(
    kinescan: Any, timed: Path, recording: Path, setting: str, named: str
) -> None:
    done = kinescan("stream", recording, "--model", timed, "--set", setting)
    assert done.exit_code != 0
    assert named in done.stderr


def test_cameras_are_ended_with_all_their_states(causal: Path, recording: Path, tmp_path: Path) -> None:
    """One camera is a pipe that stays open, one is a file, and one is dead from the start."""
    pipe, cameras = tmp_path / "pipe", tmp_path / "cameras.toml"
    os.mkfifo(pipe)
    sources = {"door": pipe, "yard": recording, "dead": "tcp://127.0.0.1:9"}
    tables = [f'[[camera]]\nname = "{name}"\nurl = "{source}"\n' for name, source in sources.items()]
    cameras.write_text("\n".join(tables))
    options = ["--model", str(causal), "--state", str(tmp_path / "states"), "--json"]
    command = [sys.executable, "-m", "kinescan", "stream", str(cameras), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    with pipe.open("wb") as file:
        file.write(recording.read_bytes())
        file.flush()
        lines = [json.loads(process.stdout.readline())]
        while {line["camera"] for line in lines} != {"door", "yard"}:
            lines.append(json.loads(process.stdout.readline()))
        os.kill(process.pid, signal.SIGTERM)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 1
    lines += lines_of(rest.decode())
    assert all(line["dropped"] == 0 and line["behind_seconds"] >= 0 for line in lines)
    for name in ("door", "yard"):
        seen = load_stream_state(tmp_path / "states" / f"{name}.state").frames_seen
        assert abs(seen - sum(line["camera"] == name for line in lines)) <= 1
    assert "dead (tcp://127.0.0.1:9)" in said.decode()
