import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from kinescan.errors import VideoError
from kinescan.inference.feed import LATEST_SECONDS, Arrivals, Feed
from kinescan.inference.turns import Turn

PIXELS = torch.zeros(3, 2, 2, dtype=torch.uint8)


def camera(num_frames: int, seconds: float, *, cuts: tuple[int, ...] = ()) -> Iterator[Turn]:
    """Frames that come as far apart as their times say."""
    start = time.monotonic()
    for index in range(num_frames):
        time.sleep(max(0.0, start + index * seconds - time.monotonic()))
        yield Turn(index, PIXELS, index * seconds, index in cuts)


def test_the_newest_frame_stays_with_a_source_three_times_as_fast(caplog):
    """60 frames in 3 s; each takes three times as long as it is from one to the next."""
    feed = Feed(lambda: camera(60, 0.05), name="door", when_behind="newest")
    taken, behind = [], []
    for fed in feed.frames():
        time.sleep(0.15)
        taken.append(fed.turn.frame_index)
        behind.append(fed.behind_seconds)
    feed.close()
    assert taken[0] == 0
    assert taken == sorted(set(taken))
    # the last one, which is the newest, is never dropped
    assert taken[-1] == 59
    assert len(taken) + feed.num_dropped == 60
    assert 25 < feed.num_dropped < 50
    # some frames lie as close as in training
    assert any(later - earlier == 1 for earlier, later in itertools.pairwise(taken))
    assert max(behind) < 1.0
    assert caplog.text.count("door: ") == 2
    assert f"door: {feed.num_dropped} of 60 frames" in caplog.text


def test_waiting_drops_nothing_and_holds_the_source():
    read = []

    def source() -> Iterator[Turn]:
        for index in range(40):
            read.append(index)
            yield Turn(index, PIXELS, index * 0.01, False)

    feed = Feed(source, name="door")
    time.sleep(0.3)
    assert len(read) <= 5
    assert [fed.turn.frame_index for fed in feed.frames()] == list(range(40))
    assert feed.num_dropped == 0
    feed.close()


def test_memory_is_bounded_while_an_answer_takes_long():
    feed = Feed(lambda: camera(100, 0.02), name="door", when_behind="newest")
    frames = feed.frames()
    next(frames)
    time.sleep(1.5)
    assert len(feed._waiting) <= LATEST_SECONDS / 0.02 + 3
    feed.close()


def test_a_gap_is_known_even_if_its_first_frame_is_dropped():
    feed = Feed(lambda: camera(60, 0.02, cuts=(20,)), name="door", when_behind="newest")
    cuts, indices = [], []
    for fed in feed.frames():
        time.sleep(0.9 if fed.turn.frame_index < 20 else 0.01)
        indices.append(fed.turn.frame_index)
        cuts.append(fed.turn.is_cut)
    feed.close()
    assert 20 not in indices
    assert sum(cuts) == 1
    assert indices[cuts.index(True)] > 20


@pytest.mark.parametrize("when_behind", ["wait", "newest"])
def test_an_error_comes_behind_the_frames_before_it(when_behind):
    def source() -> Iterator[Turn]:
        yield Turn(0, PIXELS, 0.0, False)
        raise VideoError("door", "broke off")

    feed = Feed(source, name="door", when_behind=when_behind)
    frames = feed.frames()
    assert next(frames).turn.frame_index == 0
    with pytest.raises(VideoError, match="broke off"):
        next(frames)
    assert feed.has_ended


def test_closing_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source() -> Iterator[Turn]:
        try:
            for index in range(10**6):
                yield Turn(index, PIXELS, float(index), False)
        finally:
            closed.set()

    feed = Feed(source, name="door")
    feed.close()
    assert closed.wait(5)


def test_frames_are_late_by_the_one_that_came_soonest():
    arrivals = Arrivals()
    assert arrivals.due(0.0, 100.0) == 100.0
    # this one came a second sooner than the first has it
    assert arrivals.due(2.0, 101.0) == 101.0
    assert arrivals.due(2.5, 103.0) == 101.5
    # a pause of the camera's clock is no delay for ever
    assert arrivals.due(3.0, 114.0) == 114.0
    assert arrivals.due(5.0, 116.5) == 116.0
