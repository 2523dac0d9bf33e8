from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kinescan.data.video import write_video


def moving_pixels(num_frames: int, height: int = 24, width: int = 32, *, seed: int = 0) -> Tensor:
    """[T, 3, H, W] bytes: a smooth texture that slides, so that every frame differs from the others."""
    generator = torch.Generator().manual_seed(seed)
    texture = torch.rand(1, 3, 6, 6 + num_frames // 2 + 1, generator=generator)
    wide = torch.nn.functional.interpolate(texture, size=(height, width + 4 * num_frames), mode="bilinear")[0]
    return torch.stack([wide[:, :, 4 * t : 4 * t + width] for t in range(num_frames)]).mul(255).byte()


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small video of moving_pixels and gives its path."""

    def make(name: str = "a.mp4", num_frames: int = 20, height: int = 24, width: int = 32, **options: object) -> Path:
        seed = int(options.pop("seed", 0))  # type: ignore[call-overload]
        path = tmp_path / name
        write_video(path, moving_pixels(num_frames, height, width, seed=seed), **{"fps": 10.0, **options})  # type: ignore[arg-type]
        return path

    return make


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., Path]:
    """Makes empty files below the test's folder, or one file with a text, and gives that folder."""

    def make(*names: str, text: str = "") -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return make
