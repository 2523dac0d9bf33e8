from collections import Counter

import pytest

from kinescan.data.window_plan import FollowedWindows, RowOrder, SampledWindows, Span
from kinescan.errors import ConfigError

LENGTHS = [40, 7, 16, 1, 90]
IDS = ["a", "b", "c", "d", "e"]
SPANS = [Span(0, "fall", 10, 14), *(Span(4, "walk", k, k + 3) for k in range(0, 64, 4))]


def _sampled(ratio: float = 0.5) -> SampledWindows:
    return SampledWindows(LENGTHS, SPANS, num_frames=8, event_ratio=ratio, seed=0)


def _followed(rows: int) -> FollowedWindows:
    return FollowedWindows(LENGTHS, IDS, num_frames=8, num_rows=rows, seed=0)


def test_windows_are_sampled_by_seed_epoch_and_index_alone() -> None:
    first = [_sampled().window(3, index) for index in range(len(_sampled()))]
    assert first == [_sampled().window(3, index) for index in range(len(first))]
    assert first != [_sampled().window(4, index) for index in range(len(first))]
    assert all(0 <= window.first <= max(0, LENGTHS[window.video] - 8) and window.starts for window in first)


@pytest.mark.parametrize("num_windows", [6, 1000])
def test_an_epoch_has_as_many_windows_as_it_is_told(num_windows: int) -> None:
    plan = SampledWindows([*LENGTHS, 0], SPANS, num_frames=8, event_ratio=0.5, num_windows=num_windows, seed=0)
    assert len(plan) == num_windows + 1  # the video that cannot be read has one
    windows = [plan.window(epoch, index) for epoch in range(30) for index in range(len(plan))]
    assert {window.video for window in windows} == set(range(6))
    assert all(0 <= window.first <= max(0, [*LENGTHS, 0][window.video] - 8) for window in windows)
    nothing = SampledWindows([0], [], num_frames=8, event_ratio=0.5, num_windows=num_windows, seed=0)
    assert len(nothing) == 1


def test_a_part_of_the_windows_shows_events_rare_ones_more_often_than_they_occur() -> None:
    plan, labels = _sampled(), Counter[str]()
    for epoch in range(60):
        for index in range(round(0.5 * len(plan))):
            window = plan.window(epoch, index)
            shown = {
                span.label
                for span in SPANS
                if span.video == window.video and span.first <= window.first + 7 and span.last >= window.first
            }
            assert shown
            labels.update(shown)
    # One interval of 17; by the square root, one window of five.
    assert 0.1 < labels["fall"] / labels.total() < 0.3


def test_the_other_windows_reach_every_part_of_the_time() -> None:
    seen = {video: set[int]() for video in range(5)}
    plan = _sampled(0.01)
    for epoch in range(40):
        for index in range(len(plan)):
            window = plan.window(epoch, index)
            seen[window.video] |= set(range(window.first, min(window.first + 8, LENGTHS[window.video])))
    assert {video: len(frames) for video, frames in seen.items()} == dict(enumerate(LENGTHS))


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_each_row_follows_one_video_to_its_end_and_then_the_next(rows: int) -> None:
    plan = _followed(rows)
    seen = Counter[tuple[int, int]]()
    for row in range(rows):
        before = None
        for step in range(plan.num_steps):
            window = plan.window(2, row * plan.num_steps + step)
            assert window.first < LENGTHS[window.video]
            seen[window.video, window.first] += 1
            follows = before is not None and (window.video, window.first) == (before.video, before.first + 8)
            assert window.starts != follows
            before = window
    # All windows of all videos; what does not divide evenly is shown again.
    assert {video for video, _ in seen} == set(range(5))
    assert seen.total() - len(seen) < rows
    assert [sum(video == k for video, _ in seen) for k in range(5)] == [5, 1, 2, 1, 12]


@pytest.mark.parametrize("num_windows", [1, 5, 8, 21, 50])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_followed_windows_of_an_epoch_are_as_many_as_told_and_epochs_go_on(num_windows: int, rows: int) -> None:
    lengths = [*LENGTHS, 0]
    plan = FollowedWindows(lengths, [*IDS, "broken"], num_frames=8, num_rows=rows, num_windows=num_windows, seed=0)
    assert plan.num_steps == -(-(num_windows + 1) // rows)
    seen = Counter[int]()
    epochs = 42
    for epoch in range(epochs):
        windows = [plan.window(epoch, index) for index in range(len(plan))]
        assert windows[num_windows].video == 5  # met in each epoch, so that it is listed
        seen.update(window.video for window in windows[:num_windows])
        for index, window in enumerate(windows):
            assert 0 <= window.first < max(1, lengths[window.video])
            if not window.starts:
                before = windows[index - 1]
                assert (window.video, window.first, window.sample_key) == (
                    before.video,
                    before.first + 8,
                    before.sample_key,
                )
        assert all(windows[row * plan.num_steps].starts for row in range(rows))
    # 21 windows in all: no video is shown more often than another by more than a pass.
    passes = num_windows * epochs / 21
    assert seen.total() == num_windows * epochs
    assert all(
        count * int(passes) <= seen[video] <= count * (int(passes) + 1) for video, count in enumerate([5, 1, 2, 1, 12])
    )


def test_a_video_that_an_epoch_shows_twice_is_cropped_anew() -> None:
    plan = FollowedWindows([16], ["a"], num_frames=8, num_rows=1, num_windows=4, seed=0)
    first, _, second, _ = (plan.window(0, index) for index in range(4))
    assert first.sample_key != second.sample_key
    assert first.starts
    assert second.starts


def test_rows_and_batches_do_not_depend_on_how_many_processes_share_them() -> None:
    alone = RowOrder(_followed(4), 4, num_processes=1, process_index=0)
    two = [RowOrder(_followed(4), 2, num_processes=2, process_index=index) for index in range(2)]
    assert list(alone) == [first + second for first, second in zip(*two, strict=True)]
    alone.start_item = 2 * 4
    assert len(alone) == len(two[0]) - 2
    assert next(iter(alone))[0] == (0, 2)


def test_epochs_differ_in_order_and_beginnings() -> None:
    plan = _followed(2)
    first, second = ([plan.window(epoch, index) for index in range(len(plan))] for epoch in (0, 1))
    assert [window.video for window in first] != [window.video for window in second]
    assert {(window.video, window.first) for window in first} != {(window.video, window.first) for window in second}


def test_a_loader_with_other_rows_than_the_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 rows"):
        RowOrder(_followed(4), 3, num_processes=1, process_index=0)
