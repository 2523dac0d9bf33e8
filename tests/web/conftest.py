import asyncio
import importlib.util
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
import uvicorn

from kinescan.data.video import write_video
from kinescan.models.classifier import VideoClassifier
from kinescan.models.timing import FrameTiming
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing
from kinescan.web.app import build_app
from kinescan.web.connections import protocol
from kinescan.web.serving import bound_socket
from kinescan.web.settings import ServeConfig, ServeLimits

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "vlm" / "conftest.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

SIZES = {"patch_size": 16, "width": 32, "depth": 2, "heads": 2, "mlp_dim": 32, "embed_dim": 32, "image_size": 32}
LIMITS = ServeLimits(
    body_bytes=2_000_000,
    stall_seconds=2.0,
    body_seconds=6.0,
    video_seconds=30.0,
    streams=3,
    sessions=1,
    uploads=2,
    answer_tokens=8,
    connections=64,
)


class Served(NamedTuple):
    url: str
    folder: Path
    config: ServeConfig
    service: Any

    def socket_url(self, path: str) -> str:
        return self.url.replace("http://", "ws://") + path


def causal_model(labels: Sequence[str] = ("left", "right")) -> VideoClassifier:
    torch.manual_seed(0)
    options = {"causal": True, "insert_after": 1, "kinematic_width": 8, "window": 3}
    made = create_model(
        "pks4_vit_ti16",
        labels=list(labels),
        preprocessing=Preprocessing(size=32, num_frames=4),
        **SIZES,
        **options,
    )
    made.timing = FrameTiming(median_seconds=0.125, shortest_seconds=0.125, longest_seconds=0.125)
    return made.eval()


def save_vlm(folder: Path) -> None:
    """A folder of a tiny VLM, whose answers mean nothing."""
    tiny.build("internvl").save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    sizes = {"min_pixels": 64, "max_pixels": 4096, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))


class Running:
    """A server on a thread, stopped at the end of the block."""

    def __init__(self, config: ServeConfig, mount: Any = None) -> None:
        app = build_app(config, mount=mount)
        settings = {"log_config": None, "ws": "websockets-sansio", "timeout_graceful_shutdown": 5}
        http = protocol(config.limits)
        self.server = uvicorn.Server(uvicorn.Config(app, http=http, ws_max_size=2**20, **settings))
        self.bound = bound_socket("127.0.0.1", 0)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.bound])))
        self.app = app

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{self.bound.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.bound.close()
        assert not self.thread.is_alive()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    causal_model().save_pretrained(folder / "model")
    save_vlm(folder / "vlm")
    (folder / "media" / "inner").mkdir(parents=True)
    frames = torch.randint(0, 256, (16, 3, 32, 48), dtype=torch.uint8)
    write_video(folder / "media" / "inner" / "a.mp4", frames, fps=8)
    write_video(folder / "secret.mp4", frames, fps=8)
    (folder / "media" / "link.mp4").symlink_to(folder / "secret.mp4")
    (folder / "media" / "loop").symlink_to(folder)
    config = ServeConfig(
        models={"small": str(folder / "model")},
        vlm=str(folder / "vlm"),
        media=folder / "media",
        port=0,
        device="cpu",
        page=False,
        limits=LIMITS,
    )
    running = Running(config)
    with running as url:
        yield Served(url, folder, config, running.app._app.state.service)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client
