import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.video import VideoReader, write_video
from kinescan.data.video.given import as_inputs, check_input, input_name, open_video, to_frame, to_frames
from kinescan.errors import ConfigError, CutVideoError, ShapeError, VideoError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    write_video(path, torch.randint(0, 256, (12, 3, 24, 32), dtype=torch.uint8), fps=8)
    return path


def test_bytes_and_file_objects_give_the_frames_of_the_file(file: Path) -> None:
    with VideoReader(file) as reader:
        expected = reader.read([3, 0, 11])
    with open(file, "rb") as opened:
        given = [file.read_bytes(), io.BytesIO(file.read_bytes()), opened]
        for video in given:
            with open_video(video, name="x") as found:
                frames = found.read([3, 0, 11])
                assert torch.equal(frames.pixels, expected.pixels)
                assert torch.equal(frames.pts_seconds, expected.pts_seconds)
        assert not opened.closed


def test_nothing_is_left_of_what_was_written_for_a_while(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "aside"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with open_video(file.read_bytes(), name="x"):
        assert len(os.listdir(place)) == 1
    with pytest.raises(VideoError), open_video(b"no video", name="x"):
        pass
    assert os.listdir(place) == []


def test_errors_name_what_was_given_and_no_file_aside(file: Path) -> None:
    with pytest.raises(VideoError) as found, open_video(b"no video", name="bytes 3"):
        pass
    assert found.value.path == "bytes 3"
    assert "kinescan-" not in str(found.value)
    with pytest.raises(CutVideoError) as cut, open_video(file.read_bytes()[:-200], name="bytes 4"):
        pass
    assert cut.value.path == "bytes 4"


def test_frames_are_told_by_the_axis_of_the_colours() -> None:
    frames = torch.randint(0, 256, (5, 3, 6, 8), dtype=torch.uint8)
    last = frames.permute(0, 2, 3, 1)
    for given in (frames, frames.numpy(), last, last.numpy(), last.numpy()[:, ::1]):
        assert torch.equal(to_frames(given), frames)
    square = torch.randint(0, 256, (5, 3, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_frames(square), square)
    assert torch.equal(to_frames(square.numpy()), square.permute(0, 3, 1, 2))
    assert to_frame(np.zeros((6, 8, 3), np.uint8)).shape == (3, 6, 8)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((5, 6, 8, 3), np.float32),
        np.zeros((6, 8, 3), np.uint8),
        np.zeros((5, 6, 8, 4), np.uint8),
        np.zeros((0, 6, 8, 3), np.uint8),
        torch.zeros(5, 6, 8, 1, dtype=torch.uint8),
    ],
)
def test_other_arrays_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        check_input(frames)


def test_what_is_no_video_is_refused() -> None:
    for given in (3, None, object()):
        with pytest.raises(ConfigError):
            check_input(given)
    with pytest.raises(ConfigError):
        check_input("rtsp://camera/1")


def test_names_hide_secrets_and_count() -> None:
    assert input_name("./a.mp4") == "a.mp4"
    assert "secret" not in input_name("https://me:secret@host/a.mp4?token=abc")
    assert input_name(np.zeros((1, 2, 2, 3), np.uint8), 2) == "frames 2"
    assert input_name(io.BytesIO(b""), 1) == "file object 1"


def test_one_video_is_a_list_of_one() -> None:
    frames = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert [len(as_inputs(one)) for one in ("a", Path("a"), b"abc", bytearray(b"abc"), frames, frames.numpy())] == [
        1
    ] * 6
    assert len(as_inputs([frames, b"abc", "a"])) == 3
    assert len(as_inputs(io.BytesIO(b"a\nb\n"))) == 1
