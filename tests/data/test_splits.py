from collections import Counter
from pathlib import Path

import pytest

from kinescan.data.intervals import Interval, IntervalVideo
from kinescan.data.listing import VideoItem
from kinescan.data.splits import fold_numbers, hold_out
from kinescan.errors import ConfigError


def clips(num_groups: int, size: int = 4, num_classes: int = 2) -> list[VideoItem]:
    return [
        VideoItem(Path(f"{group}/{index}.mp4"), index % num_classes, f"{group}/{index}.mp4", f"g{group}")
        for group in range(num_groups)
        for index in range(size)
    ]


def with_intervals(*labels: str) -> list[IntervalVideo]:
    return [
        IntervalVideo(
            Path(f"{index}.mp4"),
            f"{index}.mp4",
            tuple(Interval(video_id=f"{index}.mp4", label=label, start_seconds=0, end_seconds=1) for label in text),
        )
        for index, text in enumerate(labels)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_on_one_side_and_training_keeps_every_class(seed: int) -> None:
    videos = [*clips(7), VideoItem(Path("x.mp4"), 2, "x.mp4", "g0"), VideoItem(Path("y.mp4"), 2, "y.mp4", "g3")]
    ids = hold_out(videos, 0.25, seed)
    sides = {(video.group, video.video_id in ids) for video in videos}
    assert len(sides) == 7
    assert {video.label for video in videos if video.video_id not in ids} == {0, 1, 2}
    assert {video.label for video in videos if video.video_id in ids} == {0, 1, 2}
    assert ids == hold_out(videos[::-1], 0.25, seed)


def test_the_draw_depends_on_the_seed() -> None:
    assert len({hold_out(clips(20), 0.1, seed) for seed in range(20)}) > 5
    assert len({tuple(fold_numbers(clips(20), 4, seed).items()) for seed in range(20)}) > 5


def test_videos_added_later_move_none_that_is_held_out_to_training_alone() -> None:
    before = hold_out(clips(20, 1), 0.2, 0)
    after = hold_out([*clips(20, 1), *clips(22, 1)[20:]], 0.2, 0)
    assert len(before & after) >= len(before) - 1


def test_videos_of_intervals_are_held_out_by_their_labels() -> None:
    videos = with_intervals("a", "ab", "b", "", "c", "ca", "", "b")
    for seed in range(10):
        ids = hold_out(videos, 0.3, seed)
        assert 2 <= len(ids) <= 5
        for side in (True, False):
            assert {label for video in videos if (video.video_id in ids) == side for label in video.labels} == set(
                "abc"
            )


def test_folds_are_of_equal_size_with_all_classes_and_whole_groups() -> None:
    videos = clips(10)
    for seed in range(10):
        numbers = fold_numbers(videos, 5, seed)
        assert Counter(numbers.values()) == dict.fromkeys(range(1, 6), 8)
        assert len({(video.group, numbers[video.video_id]) for video in videos}) == 10
        assert len({(video.label, numbers[video.video_id]) for video in videos}) == 10
    # without groups, each class is divided evenly
    alone = [VideoItem(Path(f"{i}.mp4"), i % 3, f"{i}.mp4") for i in range(30)]
    numbers = fold_numbers(alone, 5, 0)
    assert set(Counter((item.label, numbers[item.video_id]) for item in alone).values()) == {2}


@pytest.mark.parametrize("what", ["groups", "videos"])
def test_too_few_to_divide_are_refused(what: str) -> None:
    videos = clips(1, 4) if what == "groups" else [VideoItem(Path("a.mp4"), 0, "a.mp4")]
    with pytest.raises(ConfigError, match=f"at least 2 {what}.*there are 1"):
        hold_out(videos, 0.2, 0)
    with pytest.raises(ConfigError, match=f"folds = 5 .*at least 5 {what}.*there are 1"):
        fold_numbers(videos, 5, 0)


def test_groups_that_alone_have_a_class_cannot_be_held_out() -> None:
    videos = [VideoItem(Path(f"{i}.mp4"), i, f"{i}.mp4", f"g{i}") for i in range(4)]
    with pytest.raises(ConfigError, match="4 groups"):
        hold_out(videos, 0.2, 0)
    with pytest.raises(ConfigError, match=r"validation_ratio.*0.*1.*1"):
        hold_out(videos, 1, 0, what="validation_ratio")
