import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from kinescan.web.engine import Engine
from kinescan.web.giving_up import check_wanted
from kinescan.web.problems import RequestProblem
from kinescan.web.settings import ServeConfig, ServeLimits

from .conftest import causal_model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    limits = ServeLimits(answer_seconds=0.3, waiting=3)
    engine = Engine(ServeConfig(models={"a": "a"}, device="cpu", limits=limits), models={"a": causal_model()})
    yield engine
    engine.close()


def _until(engine: Engine, number: int) -> None:
    deadline = time.monotonic() + 20
    while engine.num_waiting != number and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.num_waiting == number


def test_work_that_took_too_long_ends_at_its_next_check(engine: Engine) -> None:
    ended = threading.Event()

    def work() -> None:
        try:
            while True:
                check_wanted()
                time.sleep(0.01)
        finally:
            ended.set()

    with pytest.raises(RequestProblem) as caught:
        asyncio.run(engine.run(work))
    assert (caught.value.status, caught.value.code) == (408, "too_slow")
    assert ended.wait(20)
    _until(engine, 0)
    # the thread is there for the next one
    assert asyncio.run(engine.run(lambda: 7)) == 7


def test_work_that_cannot_be_stopped_keeps_its_place(engine: Engine) -> None:
    released, waiting = threading.Event(), []

    async def ask() -> list[int]:
        found = await asyncio.gather(*(engine.run(released.wait) for _ in range(5)), return_exceptions=True)
        waiting.append(engine.num_waiting)
        return [one.status for one in found]

    # three take the places, and the one of them that had not begun leaves the queue
    assert sorted(asyncio.run(ask())) == [408, 408, 408, 429, 429]
    assert waiting == [2]
    released.set()
    _until(engine, 0)


def test_errors_of_the_work_are_raised_and_free_the_place(engine: Engine) -> None:
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(engine.run(fail))
    _until(engine, 0)
