"""`kinescan data pack`, as it is typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.folder_store import folder_store
from typer.testing import CliRunner

from kinescan.cli.main import build_app
from kinescan.data.video import write_video
from kinescan.errors import ConfigError
from kinescan.runs.pack import pack

Invoke = Callable[..., tuple[int, str]]


@pytest.fixture
def invoke() -> Invoke:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(build_app(), [*words])
        return result.exit_code, result.output

    return run


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in ("run/a", "jump/b"):
        pixels = torch.randint(0, 256, (6, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        write_video(tmp_path / "v" / f"{name}.mp4", pixels, fps=6)
    return tmp_path / "v"


def test_packed_and_checked(videos: Path, tmp_path: Path, invoke: Invoke) -> None:
    shards = str(tmp_path / "s")
    code, said = invoke("data", "pack", str(videos), shards, "--workers", "0", "--json")
    assert (code, json.loads(said)["num_videos"]) == (0, 2)
    code, said = invoke("data", "check", shards, "--workers", "0", "--json")
    assert code in (0, 1)
    assert json.loads(said)["parts"]["train"]["readable"] == 2


def test_packed_into_a_store(videos: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_store(tmp_path / "store", monkeypatch) as store:
        code, said = invoke("data", "pack", str(videos), f"{store.address}/s", "--workers", "0", "--json")
        assert (code, json.loads(said)["folder"], json.loads(said)["num_videos"]) == (0, "s3://bucket/s", 2)
        code, said = invoke("data", "check", f"{store.address}/s", "--workers", "0", "--json")
        assert json.loads(said)["parts"]["train"]["readable"] == 2
        code, said = invoke("data", "pack", str(videos), f"{store.address}/s", "--workers", "0")
        assert (code, "s3://bucket/s" in said) == (2, True)


def test_what_could_not_be_packed_is_named(videos: Path, tmp_path: Path, invoke: Invoke) -> None:
    (videos / "run" / "c.mp4").write_bytes(b"no video")
    code, said = invoke("data", "pack", str(videos), str(tmp_path / "s"), "--workers", "0", "--size", "16")
    assert code == 1
    assert "run/c.mp4" in said


def test_what_cannot_be_packed_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1/s"):
        pack(videos, "http://127.0.0.1/s")
    with pytest.raises(ConfigError, match="MiB"):
        pack(videos, tmp_path / "s", shard_mib=0)
    (videos / "times.csv").write_text("path,start,end,label\nrun/a.mp4,0,0.5,x\n")
    with pytest.raises(ConfigError, match=r"times\.csv"):
        pack(videos / "times.csv", tmp_path / "s")
