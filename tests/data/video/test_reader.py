import json
import re
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch

from kinescan.data.video import Frames, VideoReader, write_video
from kinescan.errors import ConfigError, ShapeError, VideoError

MakeVideo = Callable[..., Path]


def decode_in_order(path: Path, stream_index: int | None = None) -> list[torch.Tensor]:
    """What PyAV itself gives, frame after frame, [H, W, 3]."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video") if stream_index is None else container.streams[stream_index]
        return [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]


def write_with_reordering(path: Path, codec: str, *, faststart: bool = False, **options: str) -> None:
    """30 frames at 25 fps with B-frames where the codec has them."""
    pixels = torch.nn.functional.interpolate(torch.rand(30, 3, 4, 4), size=(48, 64), mode="bilinear").mul(255).byte()
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.max_b_frames, stream.gop_size, stream.codec_context.thread_count = 2, 10, 1
        stream.options = options
        for index, image in enumerate(pixels.permute(0, 2, 3, 1)):
            frame = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_sound(path: Path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000)
        frame = av.AudioFrame(format=stream.format.name, layout=stream.layout.name, samples=1024)
        frame.sample_rate, frame.pts = 16000, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut(path: Path, fraction: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    return path


# every way of storing times and key frames: by edit list, guessed, none at all, in clock ticks, by seek table
FILES = {
    "b.mp4": "libx264",
    "b.mkv": "mpeg4",
    "b.avi": "mpeg4",
    "h264.avi": "libx264",
    "b.mpg": "mpeg2video",
    "b.ts": "libx264",
    "b.flv": "libx264",
    "b.m4v": "mpeg4",
    "b.h264": "libx264",
    "b.m1v": "mpeg1video",
    "b.webm": "libvpx-vp9",
    "lossless.mkv": "ffv1",
}


@pytest.mark.parametrize("name", FILES)
def test_random_access_equals_decoding_in_order(tmp_path: Path, name: str) -> None:
    write_with_reordering(tmp_path / name, FILES[name])
    expected = decode_in_order(tmp_path / name)
    assert len(expected) == 30
    with VideoReader(tmp_path / name) as video:
        assert video.num_frames == 30
        assert (video.pts_seconds.diff() > 0).all()
        assert video.fps == pytest.approx(25, rel=0.05)
        for (pixels, _), frame in zip(video, expected, strict=True):
            assert torch.equal(pixels.permute(1, 2, 0), frame)
        for indices in ([29], [11, 3, 12, 3], [9, 10, 11], list(range(0, 30, 7)), [0]):
            frames = video.read(indices)
            assert torch.equal(frames.pts_seconds, video.pts_seconds[indices])
            for slot, index in enumerate(indices):
                assert torch.equal(frames.pixels[slot].permute(1, 2, 0), expected[index]), (name, index)


def test_gif_is_read(make_video: MakeVideo) -> None:
    path = make_video("a.gif", num_frames=8, codec="gif")
    with VideoReader(path) as video:
        expected = torch.stack(decode_in_order(path)).permute(0, 3, 1, 2)
        assert torch.equal(video.read([7, 2]).pixels, expected[[7, 2]])


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (7, 3, 17, 23), dtype=torch.uint8)
    write_video(tmp_path / "a.mkv", pixels[:, :1].expand(-1, 3, -1, -1), fps=5, codec="libx264", crf=0)
    with VideoReader(tmp_path / "a.mkv") as video:
        frames = video.read(range(7))
        assert (frames.pixels.int() - pixels[:, :1].int()).abs().max() <= 2
        assert (video.height, video.width, video.codec, video.rotation_degrees) == (17, 23, "h264", 0)
        assert video.duration_seconds == pytest.approx(1.4)
        assert "7 frames" in repr(video)


def test_read_at_gives_the_frame_that_is_shown(tmp_path: Path, make_video: MakeVideo) -> None:
    times = torch.tensor([0.0, 0.1, 0.5, 0.55, 2.0])
    path = make_video("vfr.mp4", num_frames=5, pts_seconds=times)
    with VideoReader(path) as video:
        assert video.pts_seconds.tolist() == pytest.approx(times.tolist(), abs=1e-4)
        shown = video.read_at([0.0, 0.09, 0.1, 0.49, 0.5, 1.99, 2.0])
        assert torch.equal(shown.pixels, video.read([0, 0, 1, 1, 2, 3, 4]).pixels)
        with pytest.raises(ConfigError, match=r"\[0, 2"):
            video.read_at(-0.5)
        with pytest.raises(ConfigError, match="times"):
            video.read_at(10.0)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(make_video: MakeVideo, degrees: int) -> None:
    upright = make_video("a.mp4", num_frames=3)
    turned = make_video("b.mp4", num_frames=3, rotation_degrees=degrees)
    with VideoReader(upright) as plain, VideoReader(turned) as video:
        expected = torch.rot90(plain.read([1]).pixels, degrees // 90, (2, 3))
        assert torch.equal(video.read([1]).pixels, expected)
        assert (video.height, video.width) == tuple(expected.shape[2:])
        assert video.rotation_degrees == degrees


def test_iteration_is_not_disturbed_by_reading(make_video: MakeVideo) -> None:
    with VideoReader(make_video()) as video:
        expected = video.read(range(20)).pixels
        for index, (pixels, seconds) in enumerate(video):
            assert torch.equal(pixels, expected[index])
            assert seconds == pytest.approx(index / 10)
            assert torch.equal(video.read([19 - index]).pixels[0], expected[19 - index])


@pytest.mark.parametrize("size", [(23, 31), (1, 33), (24, 31)])
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi"])
def test_odd_sizes_are_kept(make_video: MakeVideo, name: str, size: tuple[int, int]) -> None:
    codec = {"a.mp4": "libx264", "a.webm": "libvpx-vp9", "a.avi": "mpeg4"}[name]
    with VideoReader(make_video(name, 3, *size, codec=codec)) as video:
        assert video.read([2]).pixels.shape == (1, 3, *size)


def test_one_frame_is_a_video(make_video: MakeVideo) -> None:
    with VideoReader(make_video(num_frames=1)) as video:
        assert video.num_frames == 1
        assert video.read([0, 0]).pixels.shape == (2, 3, 24, 32)
        assert video.fps == pytest.approx(10)


@pytest.mark.parametrize("indices", [[], [20], [-1], [0, 99]])
def test_indices_out_of_range_are_refused(make_video: MakeVideo, indices: list[int]) -> None:
    with VideoReader(make_video()) as video, pytest.raises(ConfigError, match=r"indices.*\[0, 20\)"):
        video.read(indices)


def test_frames_check_themselves() -> None:
    with pytest.raises(ShapeError, match="time"):
        Frames(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="file"):
        VideoReader(tmp_path / "a.mp4")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="folder"):
        VideoReader(tmp_path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match=r"is empty \(0 bytes\)"):
        VideoReader(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.webm", "a"])
def test_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is no video\n" * 100)
    with pytest.raises(VideoError, match=r"video.*no"):
        VideoReader(tmp_path / name)


def test_text_file_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("this is no video\n" * 100)
    with pytest.raises(VideoError, match="video"):
        VideoReader(tmp_path / "a.txt")


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.wav", "pcm_s16le"), ("a.mkv", "aac")])
def test_sound_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    write_sound(tmp_path / name, codec)
    with pytest.raises(VideoError, match=r"streams: audio\)"):
        VideoReader(tmp_path / name)


def test_video_without_frames_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="frames"):
        VideoReader(tmp_path / "a.avi")


def test_stream_can_be_chosen(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("ffv1", rate=10) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 32 + 16 * number, 24, "yuv420p"
        for stream in streams:
            image = torch.zeros(24, stream.width, 3, dtype=torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    with (
        VideoReader(tmp_path / "a.mkv", stream_index=0) as first,
        VideoReader(tmp_path / "a.mkv", stream_index=1) as other,
    ):
        assert (first.width, other.width) == (32, 48)
    with pytest.raises(ConfigError, match=r"stream_index 5.*0, 1"):
        VideoReader(tmp_path / "a.mkv", stream_index=5)


def test_mp4_cut_before_its_index_is_refused(make_video: MakeVideo) -> None:
    with pytest.raises(VideoError, match=r"video.*It"):
        VideoReader(cut(make_video(), 0.6))


@pytest.mark.parametrize(
    ("name", "codec"), [("b.webm", "libvpx-vp9"), ("b.avi", "mpeg4"), ("b.mkv", "libx264"), ("b.mp4", "libx264")]
)
def test_cut_file_is_refused_unless_short_is_allowed(tmp_path: Path, name: str, codec: str) -> None:
    write_with_reordering(tmp_path / name, codec, faststart=True)
    expected = decode_in_order(tmp_path / name)
    cut(tmp_path / name, 0.7)
    with pytest.raises(VideoError, match=r"\d+.*30.*cut.*damaged.*allow_short=True") as error:
        VideoReader(tmp_path / name)
    promised = int(re.findall(r"(\d+) of 30", str(error.value))[0])
    with VideoReader(tmp_path / name, allow_short=True) as video:
        assert 3 <= video.num_frames <= promised < 30
        assert abs(video.num_frames - promised) <= 3
        indices = list(range(video.num_frames - 3))
        assert torch.equal(video.read(indices).pixels.permute(0, 2, 3, 1), torch.stack(expected[: len(indices)]))
        assert len(list(video)) == video.num_frames


@pytest.mark.parametrize(("name", "codec"), [("b.avi", "mpeg4"), ("b.mkv", "libx264")])
def test_file_that_lost_only_its_seek_table_is_read(tmp_path: Path, name: str, codec: str) -> None:
    write_with_reordering(tmp_path / name, codec)
    with av.open(str(tmp_path / name)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        end = max(packet.pos + packet.size for packet in packets) + 16
    data = (tmp_path / name).read_bytes()
    assert end < len(data)
    (tmp_path / name).write_bytes(data[:end])
    with VideoReader(tmp_path / name) as video:
        assert len(list(video)) == 30


@pytest.mark.parametrize(("name", "codec"), [("b.ts", "libx264"), ("b2.ts", "mpeg2video")])
def test_stream_that_lost_its_start_begins_at_the_next_key_frame(tmp_path: Path, name: str, codec: str) -> None:
    write_with_reordering(tmp_path / name, codec)
    expected = torch.stack(decode_in_order(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[int(0.35 * len(data)) // 188 * 188 :])
    with VideoReader(tmp_path / name) as video:
        assert 5 < video.num_frames < 25
        frames = video.read(range(video.num_frames)).pixels.permute(0, 2, 3, 1)
        assert torch.equal(frames, expected[-video.num_frames :])
        assert len(list(video)) == video.num_frames


def test_damage_in_the_middle_is_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "b.mp4"
    write_with_reordering(path, "libx264", **{"x264-params": "scenecut=0"})
    expected = decode_in_order(path)
    with av.open(str(path)) as container:
        packet = next(
            packet for packet in container.demux(video=0) if packet.pts and packet.pts * packet.time_base >= 0.55
        )
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    with VideoReader(path) as video:
        assert video.num_frames == 30
        # key frames are 10 apart: what lies before the damage, and from the next key frame on, is whole
        whole = [0, 5, 9, 20, 25, 29]
        assert torch.equal(video.read(whole).pixels.permute(0, 2, 3, 1), torch.stack([expected[i] for i in whole]))
        for damaged in ([18], list(range(30))):
            with pytest.raises(VideoError, match=r"2\d.*30.*allow_short=True"):
                video.read(damaged)
        with pytest.raises(VideoError, match="30"):
            video.check()
    with VideoReader(path, allow_short=True) as video:
        assert 20 <= video.num_frames < 30
        assert torch.equal(video.read([video.num_frames - 1]).pixels[0].permute(1, 2, 0), expected[29])
        video.check()


def test_reading_does_not_touch_the_log_level(make_video: MakeVideo) -> None:
    before = av.logging.get_level()
    VideoReader(make_video()).close()
    assert av.logging.get_level() == before


# Real files, where they are -----------------------------------------------------------------------------------------


def real_files(shared: Path) -> list[Path]:
    folder = shared / "videos"
    if not folder.is_dir():
        pytest.skip("no ../shared/videos beside this checkout")
    return sorted(p for p in folder.rglob("*.*") if p.suffix not in {".pt", ".json", ".md"})


def test_real_frames_equal_the_reference_bit_for_bit(shared: Path) -> None:
    compared = 0
    for file in real_files(shared):
        for reference in sorted(file.parent.glob(f"{file.name}.stream*.frame*.pt")):
            stream, index = (int(number) for number in re.findall(r"stream(\d+)\.frame(\d+)", reference.name)[0])
            pixels = torch.load(reference, weights_only=True)
            with VideoReader(file, stream_index=stream) as video:
                ours = video.read([index]).pixels[0]
            assert torch.equal(ours, pixels if pixels.shape[0] == 3 else pixels.permute(2, 0, 1)), reference.name
            compared += 1
    assert compared > 50


def test_real_times_equal_the_reference(shared: Path) -> None:
    compared = 0
    for file in real_files(shared):
        for reference in file.parent.glob(f"{file.name}.stream*.all_frames_info.json"):
            stream = int(re.findall(r"stream(\d+)", reference.name)[0])
            rows = json.loads(reference.read_text())
            with VideoReader(file, stream_index=stream) as video:
                assert video.num_frames == len(rows)
                expected = torch.tensor([float(row["pts_time"]) for row in rows], dtype=torch.float64)
                assert (video.pts_seconds - expected).abs().max() < 1e-5
            compared += 1
    assert compared >= 4


def test_real_frame_at_a_time(shared: Path) -> None:
    """The references come from `ffmpeg -ss`, which gives the first frame at or after a time."""
    file = next(file for file in real_files(shared) if file.name == "nasa_13013.mp4")
    for reference in file.parent.glob("nasa_13013.mp4.time*.pt"):
        seconds = float(re.findall(r"time([\d.]+)\.pt", reference.name)[0])
        with VideoReader(file) as video:
            begins = video.pts_seconds[int((video.pts_seconds < seconds - 1e-6).sum())]
            ours = video.read_at(float(begins)).pixels[0].permute(1, 2, 0)
        assert torch.equal(ours, torch.load(reference, weights_only=True))


@pytest.mark.slow
def test_real_files_random_access_equals_order(shared: Path) -> None:
    checked = 0
    for file in real_files(shared):
        if file.name == "decord__corrupted.mp4":
            continue
        with VideoReader(file) as video:
            indices = sorted({0, video.num_frames // 3, video.num_frames // 2, max(0, video.num_frames - 2)})
            frames = video.read(indices[::-1])
            found = {}
            for index, (pixels, seconds) in enumerate(video):
                if index in indices:
                    found[index] = pixels
                    assert seconds == float(video.pts_seconds[index])
            for slot, index in enumerate(indices[::-1]):
                assert torch.equal(frames.pixels[slot], found[index]), (file.name, index)
        checked += 1
    assert checked > 40


def test_real_corrupted_file_is_counted(shared: Path) -> None:
    file = next(file for file in real_files(shared) if "corrupted" in file.name)
    with VideoReader(file) as video, pytest.raises(VideoError, match=r"28.*50"):
        video.read([0, 49])
    with VideoReader(file, allow_short=True) as video:
        assert video.num_frames == len(list(video)) == 28


def test_chosen_frames_come_in_order_and_as_often_as_asked_for(make_video: MakeVideo) -> None:
    with VideoReader(make_video(num_frames=40)) as video:
        for indices in ([0, 0, 3, 3, 3, 17, 39], [25], [38, 39], list(range(40))):
            expected = video.read(indices)
            found = list(video.in_order(indices))
            assert torch.equal(torch.stack([pixels for pixels, _ in found]), expected.pixels)
            assert [seconds for _, seconds in found] == expected.pts_seconds.tolist()
