from pathlib import Path

import pytest
import torch

from kinescan.data.video import VideoReader, write_video
from kinescan.errors import ConfigError, ShapeError, VideoError

PIXELS = torch.zeros(4, 3, 24, 32, dtype=torch.uint8)


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (12, 3, 24, 32), dtype=torch.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, pixels, fps=12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_frame_rate_is_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "deep" / "a.mp4", PIXELS, fps=29.97)
    with VideoReader(tmp_path / "deep" / "a.mp4") as video:
        assert video.fps == pytest.approx(29.97, abs=0.01)


@pytest.mark.parametrize("pixels", [PIXELS[0], PIXELS.float(), PIXELS[:, :1], PIXELS[:0]])
def test_wrong_pixels_are_refused(tmp_path: Path, pixels: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"pixels.*uint8 \[T, 3, H, W\].*T >= 1"):
        write_video(tmp_path / "a.mp4", pixels, fps=8)


def test_wrong_times_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="must be 4 increasing times"):
        write_video(tmp_path / "a.mp4", PIXELS, fps=8, pts_seconds=torch.tensor([0.0, 0.2, 0.1, 0.3]))


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_fps_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ConfigError, match="fps"):
        write_video(tmp_path / "a.mp4", PIXELS, fps=fps)


def test_wrong_rotation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0, 90, 180 or 270, got 45"):
        write_video(tmp_path / "a.mp4", PIXELS, fps=8, rotation_degrees=45)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "no_such_codec"), ("a.nosuchsuffix", "libx264"), ("a.webm", "mpeg4")]
)
def test_what_ffmpeg_refuses_leaves_no_file(tmp_path: Path, name: str, codec: str) -> None:
    with pytest.raises(VideoError, match=f"'{codec}'"):
        write_video(tmp_path / name, PIXELS, fps=8, codec=codec)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match=r"cannot be written.*Check the folder"):
        write_video(tmp_path / "file" / "a.mp4", PIXELS, fps=8)
