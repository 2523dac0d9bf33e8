import contextlib
import io
import itertools
import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from kinescan.data.video import LiveVideo
from kinescan.data.video.codec import codec_now
from kinescan.errors import VideoError

NUM_FRAMES = 30


def recording(codec: str, *, stream_id: int = 256, form: str = "mpegts", sound: bool = False) -> bytes:
    """Noise that turns from dark to bright, a key frame every 10."""
    buffer, generator = io.BytesIO(), np.random.default_rng(0)
    # in fragments, as a pipe needs it
    options = {"movflags": "frag_keyframe+empty_moov"} if form == "mp4" else {}
    with av.open(buffer, "w", format=form, options=options) as container:
        stream = container.add_stream(
            codec, rate=25, width=96, height=64, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p"
        )
        stream.codec_context.gop_size = 10
        stream.codec_context.max_b_frames = 0
        if form == "mpegts":
            stream.id = stream_id
        if codec == "libx265":
            stream.codec_context.options = {"x265-params": "log-level=none"}
        if sound:
            audio = container.add_stream("aac", rate=8000)
        for index in range(NUM_FRAMES):
            picture = generator.integers(0, 100, (64, 96, 3), dtype=np.uint8) + np.uint8(5 * index)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
            if sound:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 8000, 320 * index
                for packet in audio.encode(silence):
                    container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return buffer.getvalue()


@pytest.fixture
def piped(tmp_path):
    """Gives a named pipe into which these bytes are written."""
    threads = []

    def open_pipe(content: bytes) -> Path:
        path = tmp_path / "pipe"
        os.mkfifo(path)

        def write() -> None:
            with contextlib.suppress(BrokenPipeError):
                path.write_bytes(content)

        threads.append(threading.Thread(target=write, daemon=True))
        threads[-1].start()
        return path

    yield open_pipe
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("mpeg2video", "libx264"),
        ("libx264", "mpeg2video"),
        ("mpeg4", "libx264"),
        ("libx264", "libx265"),
        ("libx265", "libx264"),
    ],
)
def test_frames_go_on_behind_a_change_of_codec(before, now, piped, caplog):
    with LiveVideo(piped(recording(before) + recording(now))) as video:
        frames = [(float(pixels.float().mean()), seconds) for pixels, seconds in video]
    brightness, times = zip(*frames, strict=True)
    # FFmpeg itself loses a frame where the parser changes
    assert len(frames) + video.num_left_out >= 2 * NUM_FRAMES - 2
    assert len(frames) >= 2 * NUM_FRAMES - 4
    assert brightness[-1] == pytest.approx(max(brightness[:NUM_FRAMES]), abs=12), (
        "the second recording ends as the first"
    )
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert "codec changes" in caplog.text


def test_the_codec_of_a_moment(tmp_path):
    path = tmp_path / "a.ts"
    path.write_bytes(recording("mpeg2video") + recording("libx264"))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert codec_now(stream, "mpeg2video") == "mpeg2video"
        for packet in container.demux(stream):
            last = packet
        assert last.size == 0
        assert codec_now(stream, "mpeg2video") == "h264"
        assert stream.codec_context.name == "mpeg2video", "PyAV's does not follow"


def test_an_unknown_codec_stays_as_it_was(tmp_path):
    path = tmp_path / "a.webm"
    path.write_bytes(recording("libvpx", form="webm"))
    with av.open(str(path)) as container:
        assert codec_now(container.streams.video[0], "vp8") == "vp8"


def test_sound_that_begins_on_the_way_ends_nothing(piped):
    with LiveVideo(piped(recording("libx264") + recording("libx264", sound=True))) as video:
        assert len(list(video)) == 2 * NUM_FRAMES


@pytest.mark.parametrize("case", ["another stream", "flv"])
def test_a_recording_that_is_passed_over_is_said(case, piped, caplog):
    if case == "another stream":
        content = recording("libx264") + recording("libx264", stream_id=400)
    else:
        content = recording("libx264", form=case) + recording("flv", form=case)
    with LiveVideo(piped(content)) as video:
        num_frames = len(list(video))
    assert NUM_FRAMES <= num_frames <= 2 * NUM_FRAMES
    assert ("read" in caplog.text) == (num_frames < 2 * NUM_FRAMES)


@pytest.mark.parametrize(("form", "sound"), [("mpegts", True), ("flv", False), ("mp4", False), ("matroska", False)])
def test_a_recording_alone_leaves_nothing_unread(form, sound, piped, caplog):
    with LiveVideo(piped(recording("libx264", form=form, sound=sound))) as video:
        assert len(list(video)) == NUM_FRAMES
    assert "were not read" not in caplog.text


def test_an_empty_pipe_says_that_it_is_empty(piped):
    with pytest.raises(VideoError, match="empty"):
        LiveVideo(piped(b""))


def test_pictures_in_parts_end_without_a_boundary(piped):
    pictures = recording("mjpeg", form="mpjpeg")
    with LiveVideo(piped(pictures)) as video:
        assert len(list(video)) == NUM_FRAMES


def test_data_without_any_of_the_video_is_an_error(tmp_path):
    path, stopped = tmp_path / "pipe", threading.Event()
    os.mkfifo(path)
    other = recording("libx264", stream_id=400)

    def write() -> None:
        with path.open("wb") as file:
            file.write(recording("libx264"))
            try:
                while not stopped.wait(0.05):
                    file.write(other)
                    file.flush()
            except BrokenPipeError:
                pass

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    with LiveVideo(path, timeout_seconds=1.0) as video:
        with pytest.raises(VideoError, match="video"):
            list(video)
        assert video.num_frames >= NUM_FRAMES - 6
    stopped.set()
    thread.join(10)
