"""README's moving picture: what `kinescan stream --events --record` draws, with the model that comes with kinescan.

`make gif` calls it. The video is made here from a photograph that the model was not trained on; how it moves changes
every two and a half seconds.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kinescan.data.video import VideoReader, write_video
from kinescan.models.saving.shipped import SHIPPED

FPS, SECONDS = 12, 2.5
MOTIONS = ("clockwise", "right", "up", "left")
"""What is seen, one after the other."""
_WIDTH, _HEIGHT = 480, 224
_ZOOM = 0.75
"""Height of the window, of the photograph's."""
_TRAVEL, _TURN = 0.42, math.radians(62)
"""A second: window heights, and radians."""
_SHOWN_EVERY, _COLORS, _DRAWN_COLORS, _MOST_BYTES = 2, 32, 12, 2_000_000


def moving_photograph(width: int = _WIDTH, height: int = _HEIGHT) -> Tensor:
    """A window that moves and turns over a photograph.

    Args:
        width: of the frames.
        height: of the frames.

    Returns:
        [T, 3, height, width], uint8, for 12 frames a second.
    """
    with Image.open(SHIPPED / "textures" / "coffee.jpg") as picture:
        photograph = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        photograph = photograph.view(picture.height, picture.width, 3).permute(2, 0, 1)[None] / 255
    ways = {"right": (-1, 0, 0), "left": (1, 0, 0), "up": (0, 1, 0), "down": (0, -1, 0), "clockwise": (0, 0, -1)}
    x, y, angle, frames = 0.0, 0.0, 0.0, []
    for motion in MOTIONS:
        right, down, turn = ways[motion]
        for _ in range(round(SECONDS * FPS)):
            step = 2 * _ZOOM * _TRAVEL / FPS
            # the window moves along its own sides
            x += step * (right * math.cos(angle) - down * math.sin(angle))
            y += step * (right * math.sin(angle) + down * math.cos(angle))
            angle += turn * _TURN / FPS
            frames.append(_window(photograph, (x, y), angle, (width, height)))
    return torch.stack(frames)


def _window(photograph: Tensor, centre: tuple[float, float], angle: float, size: tuple[int, int]) -> Tensor:
    """[3, height, width], uint8: beyond its rim, the photograph is seen mirrored."""
    width, height = size
    high, wide = _ZOOM, _ZOOM * width / height
    cosine, sine = math.cos(angle), math.sin(angle)
    where = torch.tensor([[[wide * cosine, -high * sine, centre[0]], [wide * sine, high * cosine, centre[1]]]])
    grid = F.affine_grid(where, [1, 3, height, width], align_corners=False)
    seen = F.grid_sample(photograph, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return (seen[0] * 255).round().clamp(0, 255).to(torch.uint8)


def write_gif(video: Path, target: Path) -> None:
    """The video as a GIF that repeats, of few colours so that it loads at once.

    Raises:
        SystemExit: it is larger than a page should load.
    """
    with VideoReader(video) as reader:
        pixels = reader.read(range(0, reader.num_frames, _SHOWN_EVERY)).pixels
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in pixels]
    palette = _palette(pixels)
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    milliseconds = 1000 * _SHOWN_EVERY // FPS
    first.save(target, save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=True)
    if target.stat().st_size > _MOST_BYTES:
        raise SystemExit(f"{target} has {target.stat().st_size} bytes; at most {_MOST_BYTES} are wanted")


def _palette(pixels: Tensor) -> Image.Image:
    """One for all frames: colours of the photograph, and those of the timeline, which are few and must stay apart."""
    seen = torch.cat(list(pixels[:: len(pixels) // 4, :, :_HEIGHT]), dim=2)
    # the timeline at several times: a class that left it has its colour, too
    drawn = torch.cat(list(pixels.flip(0)[:: len(pixels) // 8, :, _HEIGHT:]), dim=2)
    ground = drawn.flatten(1).mode(dim=1).values
    colors: list[int] = ground.tolist()
    for part, count, method in (
        (seen, _COLORS - _DRAWN_COLORS - 1, Image.Quantize.MEDIANCUT),
        (drawn, _DRAWN_COLORS, Image.Quantize.MAXCOVERAGE),
    ):
        picture = Image.fromarray(part.permute(1, 2, 0).contiguous().numpy()).quantize(count, method=method)
        colors += (picture.getpalette() or [])[: 3 * count]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors + colors[:3] * (256 - len(colors) // 3))
    return palette


def main() -> None:
    """Makes the video, has the command draw into it, and writes the GIF."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_video(folder / "made.mp4", moving_photograph(), fps=FPS)
        command = [sys.executable, "-m", "kinescan", "stream", "made.mp4", "--model", "motion"]
        subprocess.run([*command, "--events", "-", "--record", "drawn.mp4"], cwd=folder, check=True)
        write_gif(folder / "drawn.mp4", target)
    print(f"{target}: {target.stat().st_size} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
