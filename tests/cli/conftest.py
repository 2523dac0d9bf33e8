from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kinescan.cli.main import build_app
from kinescan.data.video import write_video

TINY = [
    *("model.options.patch_size=16", "model.options.width=16", "model.options.depth=2", "model.options.heads=2"),
    *("model.options.mlp_dim=16", "model.options.embed_dim=16", "model.options.insert_after=1"),
    *("model.options.kinematic_width=8", "model.options.window=3", "model.options.norm=group"),
    *("model.options.causal=true", "preprocessing.size=32", "preprocessing.num_frames=4"),
    *("optim.epochs=2", "optim.warmup_epochs=0", "loader.batch_size=4", "loader.num_workers=0"),
    *("train.device=cpu", "train.eval_every=1", "train.trackers=[]", "evaluation.views=4x1x1"),
]


@pytest.fixture
def kinescan() -> Any:
    """Runs a command line in this process; the result has exit_code, stdout and stderr."""
    app = build_app()

    def run(*arguments: str | Path) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Settings of a run of a second."""
    return TINY


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six files each: dark and bright noise, 32x32."""
    folder = tmp_path_factory.mktemp("videos")
    generator = torch.Generator().manual_seed(0)
    for label, low in (("bright", 156), ("dark", 0)):
        for index in range(6):
            pixels = torch.randint(low, low + 100, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
            write_video(folder / label / f"{index}.mp4", pixels, fps=8)
    return folder


@pytest.fixture
def train_arguments(videos: Path, tmp_path: Path) -> list[str]:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")
    settings = [word for setting in [*TINY, f"data.train={videos}"] for word in ("--set", setting)]
    return ["train", str(recipe), *settings]


@pytest.fixture(scope="session")
def three_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 3 s (60 frames)."""
    root = tmp_path_factory.mktemp("three_seconds")
    for name in ("a.mp4", "b.mp4"):
        write_video(root / name, torch.zeros(60, 3, 16, 16, dtype=torch.uint8), fps=20)
    return root


@pytest.fixture
def convert(kinescan: Any, three_seconds: Path, tmp_path: Path) -> Any:
    """Writes an export, converts it, and gives the rows of the list, paths without folders, and what was said."""

    def run(name: str, content: str | bytes, *flags: str, code: int = 0, found: bool = True) -> Any:
        source, output = tmp_path / name, tmp_path / "labels.csv"
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
        where = ["--videos", str(three_seconds)] if found else []
        result = kinescan("data", "convert", str(source), str(output), *where, "--overwrite", *flags)
        assert result.exit_code == code, (result.stdout, result.stderr)
        if code == 2:
            return result.stderr
        lines = output.read_text().splitlines()
        assert lines[0] == "path,start,end,label"
        rows = [tuple(line.split(",")) for line in lines[1:]]
        run.said = result.stdout + result.stderr  # type: ignore[attr-defined]
        return [(Path(row[0]).name, *row[1:]) for row in rows]

    return run
