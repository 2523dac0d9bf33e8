"""Videos read out of shards against loose files: on this machine, and from a server with latency.

Run: OMP_NUM_THREADS=1 python benchmarks/shards.py            (about a minute)

The server runs on this machine and waits before each answer, as one far away would; one process reads one clip after
another, so that the numbers are of one worker. Frames are compared before anything is timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import measure
from kinescan.data import VideoReader, list_videos, write_video
from kinescan.data.shards.pack import PackSettings, pack_videos
from kinescan.runtime import remote
from kinescan.runtime.addresses import as_path

NAME = "shards_cpu"
SEED = 0
LATENCIES = (0.0, 0.02, 0.05)
SERVER = """
import re, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
root, latency = sys.argv[1], float(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    def do_GET(self):
        time.sleep(latency)
        start, end = map(int, re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers["Range"]).groups())
        try:
            file = open(root + self.path, "rb")
        except OSError:
            self.send_response(404); self.send_header("Content-Length", "0"); self.end_headers(); return
        with file:
            size = file.seek(0, 2)
            file.seek(start)
            data = file.read(min(end + 1, size) - start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def make_videos(folder: Path, number: int) -> None:
    """Sliding textures with grain: 4 s of 320x240, as short clips of data sets are."""
    for index in range(number):
        generator = torch.Generator().manual_seed(SEED + index)
        coarse = torch.rand(1, 3, 9, 24, generator=generator)
        wide = torch.nn.functional.interpolate(coarse, size=(240, 320 + 96), mode="bicubic")[0]
        frames = torch.stack([wide[:, :, t : t + 320] for t in range(96)])
        frames += torch.randn(96, 1, 240, 320, generator=generator) * 0.02
        pixels = frames.clamp(0, 1).mul(255).byte()
        write_video(folder / f"c{index % 2}" / f"{index:03d}.mp4", pixels, fps=24, keyframe_interval=24)


@contextmanager
def server(root: Path, latency: float) -> Iterator[str]:
    """A server in a process of its own, as its work is not to be counted."""
    command = [sys.executable, "-c", SERVER, str(root), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def read(path: Path) -> torch.Tensor:
    with VideoReader(path) as video:
        return video.read(range(5, video.num_frames, 12)).pixels


def timed(paths: list[Path], repetitions: int) -> dict[str, float]:
    """Clips a second and processor time: medians of several passes over all videos, each read anew, and their range."""
    seconds, cpu, counted = [], [], 0
    plain = remote.read_range

    def counting(*given: Any) -> Any:
        nonlocal counted
        counted += 1
        return plain(*given)

    for _ in range(repetitions):
        remote._kept = remote._Kept()
        started, used = time.perf_counter(), time.process_time()
        for path in paths:
            read(path)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    remote._kept = remote._Kept()
    remote.read_range = counting
    defaults = remote.RangeFile.__init__.__kwdefaults__
    defaults["read"] = counting
    try:
        for path in paths:
            read(path)
    finally:
        remote.read_range = defaults["read"] = plain
    return {
        "clips_per_second": round(len(paths) / statistics.median(seconds), 2),
        "clips_per_second_lowest": round(len(paths) / max(seconds), 2),
        "clips_per_second_highest": round(len(paths) / min(seconds), 2),
        "cpu_ms_a_clip": round(1000 * statistics.median(cpu) / len(paths), 1),
        "cpu_ms_a_clip_lowest": round(1000 * min(cpu) / len(paths), 1),
        "cpu_ms_a_clip_highest": round(1000 * max(cpu) / len(paths), 1),
        "requests_per_clip": round(counted / len(paths), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_videos(root / "loose", args.videos)
        listed = list_videos(root / "loose").items
        loose = [item.path for item in listed]
        pack_videos({"train": list_videos(root / "loose")}, root / "shards")
        pack_videos({"train": list_videos(root / "loose")}, root / "small", PackSettings(size=128))
        packed, small = ([item.path for item in list_videos(root / folder).items] for folder in ("shards", "small"))
        assert all(torch.equal(read(one), read(other)) for one, other in zip(loose, packed, strict=True))
        results["file_bytes"] = sum(path.stat().st_size for path in loose) // len(loose)
        results["file_bytes_at_128_pixels"] = sum(path.stat().st_size for path in (root / "small").glob("*.tar"))
        results["file_bytes_at_128_pixels"] //= len(loose)
        results["this machine"] = {
            "loose files": timed(loose, args.repetitions),
            "shards": timed(packed, args.repetitions),
            "shards of frames at 128 pixels": timed(small, args.repetitions),
        }
        for latency in LATENCIES:
            with server(root, latency) as address:

                def far(paths: list[Path], address: str = address) -> list[Path]:
                    return [as_path(f"{address}/{path.relative_to(root)}") for path in paths]

                results[f"a server, {latency * 1000:g} ms an answer"] = {
                    "loose files": timed(far(loose), args.repetitions),
                    "shards": timed(far(packed), args.repetitions),
                    "shards of frames at 128 pixels": timed(far(small), args.repetitions),
                }
            print(json.dumps(results), flush=True)
    settings = {"videos": args.videos, "video": "320x240, 4 s at 24 fps, H.264", "frames": 8, "processes": 1}
    measure.write_result(NAME, seed=SEED, n=args.repetitions, settings=settings, results=results)


if __name__ == "__main__":
    main()
