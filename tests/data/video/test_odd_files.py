import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from kinescan.data.video import VideoReader, inspect_video
from kinescan.data.video.picture import to_rgb
from kinescan.data.video.table import PacketTable, lay_out_frames
from kinescan.errors import CutVideoError

from .test_decoder import assert_read_as_decoded, encode, in_decoders_order, remux

START = b"\x00\x00\x01"
DIVX = START + b"\xb2DivX503b1393p\0"
# "nothing new", said by a picture of the kind of the one before: I or P
NOTHING_NEW = {True: START + b"\xb6\x10\x00\x00", False: START + b"\xb6\x50\x00\x00"}


def pack(source: Path, target: Path) -> Path:
    """MPEG-4 with B frames as DivX and Xvid wrote it into AVI: each reference frame with the next B frame."""
    with av.open(str(source)) as given:
        packets = [(bytes(packet), packet.is_keyframe) for packet in given.demux(video=0) if packet.size]
    head = packets[0][0].index(START + b"\xb6")
    packets[0] = (packets[0][0][:head] + DIVX + packets[0][0][head:], True)
    packed: list[tuple[bytes, bool]] = []
    waiting: list[tuple[bytes, bool]] = []
    for data, key in packets:
        is_b = data[data.index(START + b"\xb6") + 4] >> 6 == 2
        if is_b and not waiting:
            packed[-1] = (packed[-1][0] + data, packed[-1][1])
            waiting = [(NOTHING_NEW[packed[-1][1]], packed[-1][1])]
        elif is_b:
            packed.append((data, False))
        else:
            packed, waiting = [*packed, *waiting, (data, key)], []
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for index, (data, key) in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, index, index, key
            packet.time_base, packet.duration = Fraction(1, 25), 1
            made.mux(packet)
    return target


def test_two_frames_in_a_packet_are_read_at_random(tmp_path: Path) -> None:
    """The packet that says "nothing new" is called a key where the one before is; skipping one loses the other."""
    path = pack(encode(tmp_path / "a.avi", "mpeg4", num_frames=43), tmp_path / "packed.avi")
    frames = in_decoders_order(path)
    assert len(frames) == 42
    with VideoReader(path) as video:
        assert video.num_frames == 42
        for index in range(42):
            assert np.array_equal(video.read([index]).pixels[0].permute(1, 2, 0), frames[index]), index


@pytest.mark.parametrize("container", ["avi", "mp4"])
@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video"])
def test_a_cut_out_of_avi_starts_with_what_decodes(tmp_path: Path, codec: str, container: str) -> None:
    whole = encode(tmp_path / "whole.avi", codec)
    with av.open(str(whole)) as given:
        packets = [packet for packet in given.demux(video=0) if packet.size]
        start = next(i for i, packet in enumerate(packets) if i and packet.is_keyframe)

    def follow(packet: av.Packet, index: int) -> None:
        packet.pts = packet.dts = index - start

    path = remux(whole, tmp_path / f"cut.{container}", follow, start=start)
    assert_read_as_decoded(path)
    with VideoReader(path) as video:
        assert video.num_frames == 40 - start - 2
        assert len(video.notes) == 1


def test_joined_matroska_is_read_in_its_second_half_after_its_first(tmp_path: Path) -> None:
    first = encode(tmp_path / "a.mkv", "mpeg4", num_frames=20).read_bytes()
    path = tmp_path / "joined.mkv"
    path.write_bytes(first + first)
    frames = in_decoders_order(path)
    with VideoReader(path) as video:
        assert video.num_frames == len(frames) == 40
        for index in (3, 30, 12, 39, 21, 0):
            assert np.array_equal(video.read([index]).pixels[0].permute(1, 2, 0), frames[index]), index


@pytest.mark.parametrize("name", ["a.ts", "a.m2ts"])
def test_joined_recordings_of_camcorders_lose_no_frame(tmp_path: Path, name: str) -> None:
    with av.open(str(encode(tmp_path / "whole.ts", "libx264"))) as given:
        options = {"mpegts_m2ts_mode": str(int(name == "a.m2ts"))}
        with av.open(str(tmp_path / name), "w", format="mpegts", options=options) as made:
            stream = made.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    made.mux(packet)
    path = tmp_path / f"joined-{name}"
    path.write_bytes((tmp_path / name).read_bytes() * 3)
    with VideoReader(path) as video:
        assert video.num_frames == len(in_decoders_order(path)) == 120
    assert inspect_video(path).problem is None


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("bits", [(5, 6, 5), (5, 5, 5)])
def test_colours_of_two_bytes_are_read_in_their_order(order: str, bits: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(0)
    values = [generator.integers(0, 2**width, (16, 32)) for width in bits]
    words = values[0] << (bits[1] + bits[2]) | values[1] << bits[2] | values[2]
    expected = np.stack([value * 255 / (2**width - 1) for value, width in zip(values, bits, strict=True)], -1)
    codec = av.codec.CodecContext.create("rawvideo", "r")
    assert isinstance(codec, av.VideoCodecContext)
    codec.width, codec.height = 32, 16
    codec.pix_fmt = f"{order}{''.join(map(str, bits))}be"
    [frame] = codec.decode(av.Packet(words.astype(">u2").tobytes()))
    assert frame.format.name == codec.pix_fmt
    found = to_rgb("a", frame, av.video.reformatter.VideoReformatter()).numpy()
    assert np.abs(found - (expected if order == "rgb" else expected[..., ::-1])).max() < 5


def test_what_a_decoder_carries_over_key_frames_is_decoded_from_the_start() -> None:
    packets = PacketTable(
        pts=[0, 1],
        dts=[0, 1],
        durations=[1, 1],
        positions=[0, 9],
        sizes=[9, 9],
        key=[True] * 2,
        shown=[True] * 2,
        is_b=[False] * 2,
    )
    starts = {
        codec: lay_out_frames(packets, codec=codec, format_name="matroska", has_times=True).start(1)
        for codec in ("dirac", "ffv1")
    }
    assert starts == {"dirac": 0, "ffv1": 1}


def test_a_stream_without_its_headers_is_not_called_too_large(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", "libx264")
    data = path.read_bytes()
    # the sets that describe the slices become units that say nothing
    for kind in (0x67, 0x68):
        data = data.replace(START + bytes([kind]), START + b"\x0c")
    path.write_bytes(data)
    with pytest.raises(CutVideoError, match="none of its") as caught, VideoReader(path) as video:
        video.read([0])
    assert "max_pixels" not in caught.value.reason


def test_ticks_of_avi_without_a_frame_are_not_missing(tmp_path: Path) -> None:
    def every_second_tick(packet: av.Packet, index: int) -> None:
        packet.pts = packet.dts = 2 * index

    path = remux(encode(tmp_path / "a.avi", "mjpeg"), tmp_path / "half.avi", every_second_tick)
    found = inspect_video(path)
    assert (found.problem, found.num_frames) == (None, 40), found.reason


def test_picture_with_a_colour_profile_ends_no_process(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (200, 100, 50))
    picture.save(tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    script = (
        "import gc, sys\nfrom kinescan.data.video import VideoReader\n"
        "for _ in range(20):\n"
        "    with VideoReader(sys.argv[1]) as video:\n"
        "        pixels = video.read([0]).pixels\n"
        "    gc.collect()\n"
        "print(pixels[0, :, 0, 0].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.png")], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "[200, 100, 50]\n")
