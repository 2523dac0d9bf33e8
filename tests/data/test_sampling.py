from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinescan.data.sampling import (
    Views,
    clip_indices,
    dense_indices,
    even_positions,
    segment_indices,
    view_indices,
    window_indices,
)
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing

counts = st.integers(1, 500)


@given(counts, st.integers(1, 64))
def test_segments_take_one_frame_of_each_part(num_frames: int, num_segments: int) -> None:
    for position in ("random", "middle"):
        indices = segment_indices(num_frames, num_segments, position=position)
        assert indices.shape == (num_segments,)
        for part, index in enumerate(indices.tolist()):
            assert int(part * num_frames / num_segments) <= index <= (part + 1) * num_frames / num_segments
        assert 0 <= indices.min() <= indices.max() < num_frames


def test_random_segments_reach_every_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    sampled = [segment_indices(12, 4, position="random", generator=generator) for _ in range(300)]
    assert set(torch.stack(sampled)[:, 1].tolist()) == {3, 4, 5}


def test_random_draws_follow_the_generator() -> None:
    def draw(seed: int) -> tuple[list[int], list[int]]:
        generator = torch.Generator().manual_seed(seed)
        segments = segment_indices(300, 8, position="random", generator=generator)
        dense = dense_indices(300, 8, frame_stride=4, position="random", generator=generator)
        return segments.tolist(), dense.tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_short_videos_repeat_frames_in_order() -> None:
    assert segment_indices(3, 8, position="middle").tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert segment_indices(1, 4, position="random").tolist() == [0, 0, 0, 0]
    assert dense_indices(5, 4, frame_stride=2, position="middle").tolist() == [0, 2, 4, 4]
    assert view_indices(2, num_frames=4, num_clips=2, sampling="segments").tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


@given(counts, st.integers(1, 32), st.integers(1, 8))
def test_dense_frames_are_a_stride_apart(num_frames: int, length: int, stride: int) -> None:
    indices = dense_indices(num_frames, length, frame_stride=stride, position="random")
    assert (indices.diff() >= 0).all()
    assert indices.max() < num_frames
    if num_frames > (length - 1) * stride:
        assert (indices.diff() == stride).all()


def test_dense_middle_is_centred() -> None:
    assert dense_indices(11, 3, frame_stride=2, position="middle").tolist() == [3, 5, 7]


@given(counts, st.integers(1, 32), st.integers(1, 4))
def test_one_clip_of_segments_is_the_middle(num_frames: int, length: int, stride: int) -> None:
    one = view_indices(num_frames, num_frames=length, num_clips=1, sampling="segments")
    assert torch.equal(one[0], segment_indices(num_frames, length, position="middle"))
    dense = view_indices(num_frames, num_frames=length, num_clips=1, sampling="dense", frame_stride=stride)
    assert torch.equal(dense[0], dense_indices(num_frames, length, frame_stride=stride, position="middle"))


def test_clips_take_different_points_of_each_part() -> None:
    clips = view_indices(80, num_frames=8, num_clips=5, sampling="segments")
    assert torch.equal(clips[:, 0], torch.tensor([1, 3, 5, 7, 9]))
    assert torch.equal(clips - clips[:, :1], torch.arange(0, 80, 10).expand(5, 8))


def test_dense_clips_reach_both_ends() -> None:
    clips = view_indices(100, num_frames=8, num_clips=4, sampling="dense", frame_stride=4)
    assert clips[0, 0] == 0
    assert clips[-1, -1] == 99


@given(counts, st.integers(1, 32), st.integers(1, 8))
def test_windows_lie_inside_and_cover_the_video(num_frames: int, length: int, num_windows: int) -> None:
    one = window_indices(num_frames, length, num_windows=num_windows, position="random")
    assert 0 <= one.min() <= one.max() < num_frames
    assert one.max() - one.min() < num_frames / num_windows + 1
    clips = view_indices(
        num_frames, num_frames=length, num_clips=num_windows, sampling="windows", num_windows=num_windows
    )
    # together they are the middles of all parts of the video, each once
    whole = segment_indices(num_frames, length * num_windows, position="middle")
    assert (clips.flatten() - whole).abs().max() <= 1
    assert (clips.diff(dim=1) >= 0).all()


def test_windows_reach_both_ends_and_the_middle() -> None:
    clips = view_indices(800, num_frames=4, num_clips=3, sampling="windows", num_windows=8)
    assert clips.tolist() == [[12, 37, 62, 87], [362, 387, 412, 437], [712, 737, 762, 787]]
    one = view_indices(800, num_frames=4, num_clips=1, sampling="windows", num_windows=8)
    assert torch.equal(one[0], window_indices(800, 4, num_windows=8, position="middle"))
    assert torch.equal(one[0], clips[1])
    generator = torch.Generator().manual_seed(0)
    starts = [int(window_indices(800, 4, num_windows=8, position="random", generator=generator)[0]) for _ in range(300)]
    assert min(starts) < 40
    assert max(starts) > 680


@pytest.mark.parametrize("sampling", ["segments", "dense", "windows"])
def test_training_clips_are_sampled_as_asked(sampling: str) -> None:
    sampled = clip_indices(
        400,
        4,
        sampling=sampling,
        frame_stride=5,
        num_windows=4,
        generator=torch.Generator().manual_seed(3),  # type: ignore[arg-type]
    )
    options = {"position": "random", "generator": torch.Generator().manual_seed(3)}
    expected = {
        "segments": segment_indices(400, 4, **options),  # type: ignore[arg-type]
        "dense": dense_indices(400, 4, frame_stride=5, position="random", generator=torch.Generator().manual_seed(3)),
        "windows": window_indices(400, 4, num_windows=4, position="random", generator=torch.Generator().manual_seed(3)),
    }[sampling]
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize("text", ["8x2x3", " 8 x 2 x 3 "])
def test_views_are_parsed(text: str) -> None:
    views = Views.parse(text)
    assert (views.frames, views.clips, views.crops, views.num_views) == (8, 2, 3, 6)


@pytest.mark.parametrize("text", ["", "8", "8x2", "8x2x3x1", "8,2,3", "-8x2x3", "8x2xc", "8.5x1x1"])
def test_wrong_views_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="frames"):
        Views.parse(text)


def test_views_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 frame, 1 clip and 1 crop, got 8x0x3"):
        Views.parse("8x0x3")


@pytest.mark.parametrize("name", ["num_frames_in_video", "num_segments"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*1.*0"):
        segment_indices(**{"num_frames_in_video": 4, "num_segments": 4, name: 0}, position="middle")


def test_no_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_windows.*1.*0"):
        window_indices(4, 4, num_windows=0, position="middle")
    with pytest.raises(ConfigError, match=r"num_windows.*1.*0"):
        view_indices(4, num_frames=4, num_clips=1, sampling="windows", num_windows=0)


def _times(rate: float, count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64) / rate + 3.0


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0])
def test_rate_takes_the_same_moments_at_any_rate_of_the_video(rate: float) -> None:
    times = _times(rate, int(8 * rate))
    clips = view_indices(len(times), num_frames=8, num_clips=3, sampling="rate", frame_rate=6.25, pts_seconds=times)
    moments = times[clips] - 3.0
    assert torch.allclose(moments.diff(dim=1), torch.tensor(0.16, dtype=torch.float64))
    assert moments[:, 0].tolist() == pytest.approx([0.0, 3.36, 6.72])
    sampled = clip_indices(
        len(times),
        8,
        sampling="rate",
        frame_rate=6.25,
        pts_seconds=times,
        generator=torch.Generator().manual_seed(1),
    )
    assert torch.allclose(times[sampled].diff(), torch.tensor(0.16, dtype=torch.float64))


def test_rate_of_a_short_and_of_a_slow_video() -> None:
    short, slow = _times(10, 3), _times(2, 4)
    assert clip_indices(3, 5, sampling="rate", frame_rate=10, pts_seconds=short).tolist() == [0, 1, 2, 2, 2]
    assert even_positions(slow, 0.25).tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert even_positions(short[:1], 0.25).tolist() == [0]


def test_no_clip_shows_the_frame_before_a_jump_of_the_clock_for_hours() -> None:
    times = torch.cat([_times(10, 20), _times(10, 20) + 7200])
    assert even_positions(times, 0.1).tolist() == list(range(40))


@pytest.mark.parametrize("options", [{"frame_rate": 4.0}, {"pts_seconds": torch.zeros(4, dtype=torch.float64)}])
def test_rate_without_rate_or_times_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="frame_rate"):
        clip_indices(4, 2, sampling="rate", **options)


@pytest.mark.parametrize(
    "options",
    [{"sampling": "rate"}, {"sampling": "rate", "frame_rate": -1.0}, {"frame_rate": 1e9}],
)
def test_rate_and_its_number_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="frame_rate"):
        Preprocessing(**options)


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0])
def test_dense_views_count_frames_of_the_training_rate(rate: float) -> None:
    times = _times(rate, int(8 * rate))
    options: dict[str, Any] = {"num_frames": 8, "num_clips": 3, "sampling": "dense", "frame_stride": 4}
    clips = view_indices(len(times), dense_rate=25.0, pts_seconds=times, **options)
    moments = times[clips] - 3.0
    assert torch.allclose(moments.diff(dim=1), torch.tensor(0.16, dtype=torch.float64))
    same = torch.equal(clips, view_indices(len(times), **options))
    assert same == (rate == 25.0)
