import dataclasses
import json
import random

import pytest

from kinescan.errors import TrainingInterrupted
from kinescan.models.timing import FrameTiming
from kinescan.training import Callback, OptimConfig, TrainConfig, fit
from kinescan.training.checkpoint import load_state
from kinescan.training.timing import TimingCounts


def test_the_order_does_not_matter_nor_who_counts():
    random.seed(0)
    seconds = [random.uniform(0.01, 3.0) for _ in range(2000)]
    alone = TimingCounts()
    alone.add(seconds)
    random.shuffle(seconds)
    first, second = TimingCounts(), TimingCounts()
    first.add(seconds[:700])
    second.add(seconds[700:])
    merged = TimingCounts(json.loads(json.dumps(first.to_plain())))
    merged.merge(second.to_plain())
    assert merged.to_plain() == alone.to_plain()
    timing = merged.timing()
    assert timing.median_seconds == pytest.approx(sorted(seconds)[1000], rel=0.01)
    assert timing.shortest_seconds == pytest.approx(min(seconds), rel=0.005)
    assert timing.longest_seconds == pytest.approx(max(seconds), rel=0.005)


def test_memory_is_bounded():
    counts = TimingCounts()
    counts.add(1e-4 * 1.0001**k for k in range(100_000))
    assert len(counts.to_plain()) < 4000


def test_a_single_rate_is_kept_exactly():
    counts = TimingCounts()
    counts.add([1 / 30] * 1001)
    assert counts.timing().median_seconds == pytest.approx(1 / 30, abs=1e-6)
    assert counts.timing().is_steady


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_tells_nothing_is_not_counted(seconds):
    counts = TimingCounts()
    counts.add([seconds])
    assert counts.timing() is None


def timed(noise_clips):
    """Clips of 0.1 s from frame to frame, and in every epoch one of 0.5 s."""

    class TimedClips(noise_clips):
        def batches(self, epoch, first_batch):
            for index, batch in enumerate(super().batches(epoch, first_batch), start=first_batch):
                seconds = [0.1] * 7 + [0.5 if index == 1 else 0.1]
                yield dataclasses.replace(batch, frame_seconds=seconds)

    return TimedClips()


class Leave(Callback):
    def on_step(self, step):
        if step.step == 3:
            raise KeyboardInterrupt


OPTIM = OptimConfig(epochs=2)
TRAIN = TrainConfig(device="cpu", checkpoint_minutes=0)


def test_training_tells_the_model_and_its_checkpoints(tiny_model, noise_clips, tmp_path):
    result = fit(tiny_model, timed(noise_clips), output=tmp_path, optim=OPTIM, train=TRAIN)
    expected = FrameTiming(median_seconds=0.1, shortest_seconds=0.1, longest_seconds=0.5)
    assert tiny_model.timing == expected
    assert type(tiny_model).from_pretrained(result.last).timing == expected


def test_a_run_that_was_left_counts_on(tiny_model, noise_clips, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(tiny_model, timed(noise_clips), output=whole, optim=OPTIM, train=TRAIN)
    again = type(tiny_model)(tiny_model.config, labels=tiny_model.labels)
    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        fit(again, timed(noise_clips), output=parts, optim=OPTIM, train=TRAIN, callbacks=[Leave()])
    fit(again, timed(noise_clips), output=parts, optim=OPTIM, train=TRAIN, resume=True)
    counts = [load_state(folder / "checkpoints/last").timing for folder in (whole, parts)]
    assert counts[0] == counts[1]
    assert sum(count for count, _ in counts[0].values()) == 64


def test_clips_without_times_tell_nothing(tiny_model, noise_clips, tmp_path):
    fit(tiny_model, noise_clips(), output=tmp_path, optim=OPTIM, train=TRAIN)
    assert tiny_model.timing is None
