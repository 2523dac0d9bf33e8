"""`kinescan serve` under load: requests, streams, memory, and what clients that misbehave cost the others.

Run: python benchmarks/serve_load.py            (about eight minutes; the clients share the cores with the service)
Writes benchmarks/results/serve_load.json. The service is a process of its own, started by the command line with the
motion model that comes with kinescan; clients keep their connections, check every answer, and send a made video of a
second (requests) or JPEG frames (streams). Before anything is timed, the service's answer is compared with
`ks.predict`. Memory is the service's resident memory (Linux).
"""

import argparse
import http.client
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from websockets.sync.client import connect

import kinescan as ks
import measure
from kinescan.data.synthetic.motion import MotionConfig, render_motion
from kinescan.data.video import write_video
from kinescan.models.saving.shipped import MOTION, SHIPPED

NAME = "serve_load"
SEED, FPS, FRAMES, SIZE = 0, 6, 8, 64
CLIENTS = (1, 4, 16)
STALLING = 200
"""Connections that send a byte a second of a request, or nothing."""
PACKAGES = (*measure.PACKAGES, "fastapi", "starlette", "uvicorn", "websockets")
DEADLINE_SECONDS = 600


class Service(NamedTuple):
    """A running `kinescan serve`."""

    port: int
    pid: int

    def memory_mib(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_seconds(self) -> float:
        """Of all its threads, since it was started."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """The service, ready for requests; stopped by SIGTERM."""
    log = folder / "log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "kinescan", "serve", "--no-page", "--port", "0"]
        command += ["--device", "cpu", "--model", str(SHIPPED / MOTION)]
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)
    try:
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the service did not start:\n{log.read_text()}")
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()):
                service = Service(int(found[1]), process.pid)
                try:
                    Client(service).request("GET", "/health")
                    break
                except OSError:
                    pass
            time.sleep(0.1)
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Client:
    """Requests over one connection that stays open."""

    def __init__(self, service: Service) -> None:
        self._link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=DEADLINE_SECONDS)

    def request(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The answer; anything but 200 ends the benchmark."""
        self._link.request(method, path, body, {"content-type": "video/mp4"} if body else {})
        answer = self._link.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:200]!r}")
        return json.loads(content)


def in_threads(number: int, work: Callable[[int], None]) -> None:
    """Calls `work` with 0, 1, ... in as many threads; an error in one is raised here."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Latencies in milliseconds."""
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    values = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": max(seconds)}
    return {name: round(1000 * float(value), 2) for name, value in values.items()}


def requests(service: Service, clients: int, number: int, send: Callable[[Client], Any]) -> dict[str, Any]:
    """So many requests of several clients, each of which waits for its answer before it asks again."""
    seconds: list[float] = []
    numbers = iter(range(number))

    def work(_: int) -> None:
        client = Client(service)
        send(client)
        barrier.wait()
        for _ in numbers:
            begun = time.perf_counter()
            send(client)
            seconds.append(time.perf_counter() - begun)

    started: list[tuple[float, float]] = []
    barrier = threading.Barrier(clients, action=lambda: started.append((time.perf_counter(), service.cpu_seconds())))
    in_threads(clients, work)
    wall, cpu = time.perf_counter() - started[0][0], service.cpu_seconds() - started[0][1]
    return {
        "requests_per_second": round(number / wall, 1),
        **spread(seconds),
        "service_cpu_ms_per_request": round(1000 * cpu / number, 2),
    }


def streams(service: Service, number: int, frames: int, picture: bytes) -> dict[str, Any]:
    """Streams that send as fast as they are read, and then ones that wait for each prediction."""
    start = json.dumps({"type": "start", "format": "jpeg", "fps": FPS, "events": False})
    url = f"ws://127.0.0.1:{service.port}/v1/stream"

    def ahead(_: int) -> None:
        with connect(url, max_queue=None) as link:
            link.send(start)
            barrier.wait()
            for _ in range(frames):
                link.send(picture)
            link.send(json.dumps({"type": "end"}))
            kinds = [json.loads(message)["type"] for message in link]
            if kinds != ["prediction"] * frames + ["end"]:
                raise RuntimeError(f"a stream of {frames} frames got {len(kinds)} answers, the last {kinds[-1:]}")

    def in_step(_: int) -> None:
        with connect(url) as link:
            link.send(start)
            barrier.wait()
            for index in range(frames):
                begun = time.perf_counter()
                link.send(picture)
                if json.loads(link.recv(DEADLINE_SECONDS))["type"] != "prediction":
                    raise RuntimeError("a frame got no prediction")
                if index:
                    seconds.append(time.perf_counter() - begun)

    started: list[tuple[float, float]] = []
    seconds: list[float] = []
    barrier = threading.Barrier(number, action=lambda: started.append((time.perf_counter(), service.cpu_seconds())))
    in_threads(number, ahead)
    wall, cpu = time.perf_counter() - started[0][0], service.cpu_seconds() - started[0][1]
    in_threads(number, in_step)
    total = number * frames
    return {
        "frames_per_second": round(total / wall, 1),
        "service_cpu_ms_per_frame": round(1000 * cpu / total, 3),
        "one_by_one": spread(seconds),
    }


def memory_over_requests(service: Service, number: int, send: Callable[[Client], Any]) -> dict[str, Any]:
    """Resident memory after every twentieth part of the requests, of four clients."""
    curve: dict[str, float] = {}
    part = max(1, number // 20)
    for done in range(part, number + 1, part):
        requests(service, 4, part - 4, send)
        curve[str(done)] = round(service.memory_mib(), 1)
    values = list(curve.values())
    return {
        "requests": number,
        "mib_after_requests": curve,
        "last_over_the_second": round(values[-1] / values[1], 4),
        "mib_per_1000_requests_in_the_second_half": round(
            (values[-1] - values[len(values) // 2 - 1]) / (number / 2) * 1000, 3
        ),
    }


def memory_over_streams(service: Service, number: int, picture: bytes) -> dict[str, Any]:
    """Resident memory while streams are opened, fed and closed, four at a time."""
    curve: dict[str, float] = {}
    part = max(4, number // 10 // 4 * 4)
    for done in range(part, number + 1, part):
        for _ in range(part // 4):
            streams(service, 2, 4, picture)
        curve[str(done)] = round(service.memory_mib(), 1)
    values = list(curve.values())
    return {"streams": number, "mib_after_streams": curve, "last_over_the_second": round(values[-1] / values[1], 4)}


@contextmanager
def stalling(service: Service, number: int) -> Iterator[None]:
    """Clients that owe the service something: silent ones, slow heads, slow bodies, lying lengths, idle streams."""
    heads = (
        b"",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    opened: list[tuple[int, socket.socket]] = []
    is_over = threading.Event()

    def renew(kind: int) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", service.port), timeout=10)
        link.sendall(heads[kind])
        return link

    def drip() -> None:
        while not is_over.wait(1):
            for index, (kind, link) in enumerate(opened):
                try:
                    if kind:
                        link.sendall(b"1\r\nx\r\n" if kind == 3 else b"x")
                except OSError:
                    # the service has had enough of it: another takes its place
                    link.close()
                    opened[index] = kind, renew(kind)

    with ExitStack() as stack:
        opened += [(index % len(heads), renew(index % len(heads))) for index in range(number)]
        for _ in range(4):
            link = stack.enter_context(connect(f"ws://127.0.0.1:{service.port}/v1/stream"))
            link.send(json.dumps({"type": "start", "format": "jpeg"}))
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            for _, link in opened:
                link.close()


def make_video(path: Path, size: int, frames: int) -> bytes:
    pixels = render_motion(MotionConfig(frame_size=size, num_frames=frames), "test", "horizontal", SEED)
    write_video(path, pixels, fps=FPS)
    return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600, help="timed, for each number of clients")
    parser.add_argument("--frames", type=int, default=1600, help="of all streams together")
    parser.add_argument("--memory-requests", type=int, default=10_000)
    parser.add_argument("--memory-streams", type=int, default=400)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = make_video(folder / "a.mp4", SIZE, FRAMES)
        tiny = make_video(folder / "tiny.mp4", 32, 2)
        jpeg = io.BytesIO()
        Image.fromarray(np.random.default_rng(SEED).integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(jpeg, "JPEG")
        picture = jpeg.getvalue()
        [expected] = ks.predict(SHIPPED / MOTION, folder / "a.mp4")

        def predicted(client: Client) -> None:
            answer = client.request("POST", "/v1/predict", video)
            if answer["labels"] != list(expected.labels) or not np.allclose(
                answer["scores"], expected.scores, atol=1e-4
            ):
                raise RuntimeError(f"the service says {answer}, ks.predict {expected}")

        def predicted_tiny(client: Client) -> None:
            client.request("POST", "/v1/predict?views=2x1x1&top=1", tiny)

        def healthy(client: Client) -> None:
            client.request("GET", "/health")

        with serving(folder) as service:
            predicted(Client(service))
            results["predict"] = {
                f"{clients} clients": requests(service, clients, arguments.requests, predicted) for clients in CLIENTS
            }
            results["health"] = {
                f"{clients} clients": requests(service, clients, arguments.requests, healthy) for clients in CLIENTS
            }
            print(json.dumps(results, indent=1), flush=True)
            results["streams"] = {
                f"{number} streams": streams(service, number, max(2, arguments.frames // number), picture)
                for number in CLIENTS
            }
            print(json.dumps(results["streams"], indent=1), flush=True)
            # in turn, so that a busy spell of the machine hits both
            alone, beside = [], []
            for _ in range(3):
                alone.append(requests(service, 4, arguments.requests // 3, predicted))
                with stalling(service, STALLING):
                    beside.append(requests(service, 4, arguments.requests // 3, predicted))
            names = ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")
            medians = {
                kind: {name: statistics.median(one[name] for one in found) for name in names}
                for kind, found in (("alone", alone), ("beside_stalling", beside))
            }
            ratio = medians["beside_stalling"]["p95_ms"] / medians["alone"]["p95_ms"]
            results["stalling"] = {**medians, "p95_beside_over_alone": round(ratio, 3)}
            print(json.dumps(results["stalling"], indent=1), flush=True)
            results["memory"] = memory_over_requests(service, arguments.memory_requests, predicted_tiny)
            print(json.dumps(results["memory"], indent=1), flush=True)
            results["memory_of_streams"] = memory_over_streams(service, arguments.memory_streams, picture)
            print(json.dumps(results["memory_of_streams"], indent=1), flush=True)
    settings = {
        **vars(arguments),
        "model": "motion",
        "video": f"{FRAMES} frames of {SIZE} x {SIZE}, H.264, {len(video)} bytes",
        "video_of_memory": f"2 frames of 32 x 32, {len(tiny)} bytes, one view of 2 frames",
        "frame": f"JPEG, {SIZE} x {SIZE}, {len(picture)} bytes",
        "stalling_connections": STALLING,
        "stalling_streams": 4,
    }
    print(
        measure.write_result(
            NAME, seed=SEED, n=arguments.requests, settings=settings, results=results, packages=PACKAGES
        )
    )


if __name__ == "__main__":
    main()
