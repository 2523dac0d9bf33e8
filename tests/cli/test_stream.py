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
from kinescan.models.zoo import create_model

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
