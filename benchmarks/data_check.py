"""Which damage `kinescan data check` finds: flipped bits, zeroed blocks, cuts, files joined to themselves.

Run: python benchmarks/data_check.py            (about three minutes)
There is no aim: the numbers say what a sound report is worth, container by container. `packets` reads structure and
packets only (`--quick`), `frames` decodes every frame.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import torch

import measure
from kinescan.data.video import inspect_video, write_video

NAME = "data_check_cpu"
SEED = 0
BLOCK_BYTES = 4096
FILES = {
    "h264_mp4": ("a.mp4", "libx264"),
    "h264_mkv": ("a.mkv", "libx264"),
    "h264_ts": ("a.ts", "libx264"),
    "vp9_webm": ("a.webm", "libvpx-vp9"),
    "mpeg4_avi": ("a.avi", "mpeg4"),
    "gif": ("a.gif", "gif"),
}
Change = Callable[[bytes, random.Random], bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12, help="of each damage that is sampled at random")
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure_file(Path(folder), *entry, given.trials) for name, entry in FILES.items()}
    path = measure.write_result(
        NAME,
        seed=SEED,
        n=given.trials,
        settings={"frames": 60, "height": 120, "width": 160, "block_bytes": BLOCK_BYTES},
        results={"found of each damage": results},
        folder=given.output,
    )
    print(path)


def measure_file(folder: Path, file_name: str, codec: str, trials: int) -> dict[str, Any]:
    """Shares found of each damage, and how long a check takes."""
    path = folder / file_name
    _write(path, codec)
    whole = path.read_bytes()
    seconds = {}
    for depth in ("packets", "frames"):
        started = time.process_time()
        assert inspect_video(path, decode=depth == "frames").problem is None, path
        seconds[depth] = time.process_time() - started
    found: dict[str, Any] = {"check_seconds": seconds}
    for damage, (change, count) in damages(trials).items():
        draws = random.Random(SEED)
        said = {"packets": 0, "frames": 0}
        for _ in range(count):
            path.write_bytes(change(whole, draws))
            for depth in said:
                inspected = inspect_video(path, decode=depth == "frames")
                said[depth] += inspected.problem is not None or bool(inspected.notes)
        found[damage] = {depth: number / count for depth, number in said.items()}
    return found


def damages(trials: int) -> dict[str, tuple[Change, int]]:
    """Each with how often it is tried."""
    return {
        "one bit flipped": (_flip, trials),
        "4 KiB zeroed": (_zero, trials),
        "cut anywhere": (lambda data, draws: data[: draws.randrange(len(data) // 10, len(data) - 1)], trials),
        "last byte lost": (lambda data, draws: data[:-1], 1),
        "joined to itself": (lambda data, draws: data + data, 1),
    }


def _flip(data: bytes, draws: random.Random) -> bytes:
    position = draws.randrange(len(data) // 20, len(data))
    return data[:position] + bytes([data[position] ^ 1 << draws.randrange(8)]) + data[position + 1 :]


def _zero(data: bytes, draws: random.Random) -> bytes:
    position = draws.randrange(len(data) // 20, len(data) - BLOCK_BYTES)
    return data[:position] + bytes(BLOCK_BYTES) + data[position + BLOCK_BYTES :]


def _write(path: Path, codec: str) -> None:
    generator = torch.Generator().manual_seed(SEED)
    texture = torch.rand(1, 3, 30, 100, generator=generator)
    wide = torch.nn.functional.interpolate(texture, size=(120, 400), mode="bilinear")[0]
    pixels = torch.stack([wide[:, :, 4 * t : 4 * t + 160] for t in range(60)]).mul(255).byte()
    if codec != "gif":
        write_video(path, pixels, fps=25, codec=codec)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "rgb8"
        for picture in _pictures(pixels):
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _pictures(pixels: torch.Tensor) -> Iterator[av.VideoFrame]:
    for index, image in enumerate(pixels.permute(0, 2, 3, 1)):
        picture = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24").reformat(format="rgb8")
        picture.pts = index
        yield picture


if __name__ == "__main__":
    main()
