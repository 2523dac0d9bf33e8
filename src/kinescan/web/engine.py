"""The models of a service, and who may use them when."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError
from kinescan.inference.exported import CausalModel, ExportedStep
from kinescan.inference.model_source import resolve_model
from kinescan.inference.predictor import predict
from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import evaluation_view
from kinescan.models.pks4 import PKS4
from kinescan.runtime.device import choose_device
from kinescan.runtime.urls import mask_url
from kinescan.vlm import Vlm, load_vlm
from kinescan.web.batcher import StreamBatcher
from kinescan.web.giving_up import check_wanted, run_until
from kinescan.web.media import check_length, video_limits
from kinescan.web.problems import RequestProblem, said_of_video
from kinescan.web.settings import ServeConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_MODEL = "default"
"""Name in a request that stands for the first classifier, or for the VLM."""
_WORKERS = 2
"""Threads that run models; further requests wait for one."""


class Engine:
    """Holds the models; work on them runs in a few threads, and waits in a queue that has an end.

    Args:
        config: of the service.
        on_pass: called with how many frames of streams went through a model together.
        models: classifiers that are open already, for tests and notebooks.
        vlm: a VLM that is open already.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        on_pass: Callable[[int], None] | None = None,
        models: dict[str, VideoClassifier] | None = None,
        vlm: Vlm | None = None,
    ) -> None:
        self.config = config
        self.models: dict[str, VideoClassifier] = {}
        device = choose_device(config.device)
        for name, source in config.models.items():
            given = (models or {}).get(name)
            self.models[name] = resolve_model(source, device) if given is None else given
            _warm_up(self.models[name])
            logger.info("%s: %s from %s", name, self.models[name].name, mask_url(source))
        self.vlm = vlm if vlm is not None or config.vlm is None else load_vlm(config.vlm, device=device)
        self.vlm_name = None if config.vlm is None else Path(config.vlm).name
        self._on_pass = on_pass
        self._batchers: dict[int, StreamBatcher] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="requests")
        self._num_waiting = 0

    def close(self) -> None:
        """Ends the threads, those of streams first."""
        for batcher in self._batchers.values():
            batcher.close()
        self._pool.shutdown(cancel_futures=True)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a model, or use one."""
        return self._num_waiting

    def classifier(self, name: str | None) -> VideoClassifier:
        """A classifier by its name; the first one where none is given.

        Raises:
            RequestProblem: the name is unknown.
        """
        if not self.models:
            raise RequestProblem(404, "no classifier is served here (--model).", "model_not_found")
        chosen = next(iter(self.models)) if name in (None, "", FIRST_MODEL) else str(name)
        if chosen not in self.models:
            raise RequestProblem(404, f"unknown model. There are: {', '.join(self.models)}.", "model_not_found")
        return self.models[chosen]

    def require_vlm(self, name: str | None) -> Vlm:
        """The VLM.

        Raises:
            RequestProblem: there is none, or it has another name.
        """
        if self.vlm is None:
            raise RequestProblem(404, "no VLM is served here (--vlm FOLDER).", "model_not_found")
        if name not in (None, "", FIRST_MODEL, self.vlm_name):
            raise RequestProblem(404, f"unknown model. There is: {self.vlm_name}.", "model_not_found")
        return self.vlm

    def batcher(self, model: VideoClassifier) -> StreamBatcher:
        """What runs the streams of a causal classifier.

        Raises:
            RequestProblem: it is not causal.
        """
        if not isinstance(model, PKS4 | ExportedStep) or not model.config.causal:
            raise RequestProblem(400, "this model looks at future frames, so it takes no stream.", "model_not_causal")
        causal: CausalModel = model
        with self._lock:
            if id(model) not in self._batchers:
                self._batchers[id(model)] = StreamBatcher(causal, self._on_pass)
            return self._batchers[id(model)]

    def classify(self, model: VideoClassifier, path: Path, *, top: int, views: str | None) -> dict[str, Any]:
        """The answer of `POST /v1/predict` for one file.

        Raises:
            RequestProblem: the video is too long.
            KinescanError: it cannot be read, or the request makes no sense.
        """
        limits = video_limits(self.config.limits)
        with VideoReader(path, limits=limits) as reader:
            check_length(reader.duration_seconds, self.config.limits)
            about = {
                "num_frames": reader.num_frames,
                "duration_seconds": round(reader.duration_seconds, 6),
                "width": reader.width,
                "height": reader.height,
            }
        check_wanted()
        [found] = predict(model, path, top=top, views=views, limits=limits)
        if found.error is not None:
            raise RequestProblem(422, said_of_video(found.error), "unreadable_video")
        plain = asdict(found)
        return {
            "model": model.name,
            "labels": list(plain["labels"]),
            "scores": list(plain["scores"]),
            "seconds": found.seconds,
            "video": about,
        }

    def _enter_queue(self) -> None:
        """Counts one more request as waiting.

        Raises:
            RequestProblem: the queue is full.
        """
        with self._lock:
            if self._num_waiting >= self.config.limits.waiting:
                raise RequestProblem(429, "too many requests wait for the model. Try again in a second.", "busy")
            self._num_waiting += 1

    def _leave_queue(self, _: object = None) -> None:
        with self._lock:
            self._num_waiting -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` gives, computed by one of the threads.

        Work that takes too long, or whose client has gone, ends at its next `check_wanted`; its slot in the queue is
        free only then, so that the queue never holds more than it may.

        Raises:
            RequestProblem: the queue is full, or it takes too long.
        """
        self._enter_queue()
        given_up = threading.Event()
        try:
            future = self._pool.submit(run_until, given_up, work)
        except RuntimeError:
            self._leave_queue()
            raise RequestProblem(503, "the service is stopping.", "stopping") from None
        future.add_done_callback(self._leave_queue)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.config.limits.answer_seconds)
        except TimeoutError:
            raise RequestProblem(408, "the request took too long and was broken off.", "too_slow") from None
        finally:
            given_up.set()

    async def iterate(self, make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """What an iterator gives, each step computed by one of the threads; closed however it ends."""
        loop = asyncio.get_running_loop()
        self._enter_queue()
        try:
            iterator = await loop.run_in_executor(self._pool, make)
            try:
                while (entry := await loop.run_in_executor(self._pool, next, iterator, None)) is not None:
                    yield entry
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    await loop.run_in_executor(self._pool, close)
        finally:
            self._leave_queue()


def _warm_up(model: VideoClassifier) -> None:
    """Runs the model on a blank clip, so that what it compiles is compiled before the first request."""
    size, frames = model.preprocessing.size, model.preprocessing.num_frames
    with torch.no_grad():
        evaluation_view(model)(torch.zeros(1, frames, 3, size, size, device=model.device))


def check_models(config: ServeConfig) -> None:
    """Refuses names that could not be told apart in requests.

    Raises:
        ConfigError: one is empty or has a slash or a blank in it.
    """
    for name in config.models:
        if not name or any(sign in name for sign in "/\\ \t\n"):
            raise ConfigError(f"--model {name}=...: a name has no slashes and blanks.")
