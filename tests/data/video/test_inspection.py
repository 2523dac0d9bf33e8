import pickle
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from kinescan.data.video import VideoReader, inspect_video
from kinescan.errors import CutVideoError, VideoError


def remux(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return target


def cut(path: Path, fraction: float) -> Path:
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    return short


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_sound_files_are_found_sound(make_video: Callable[..., Path], name: str, codec: str) -> None:
    found = inspect_video(make_video(name, codec=codec))
    assert (found.problem, found.reason, found.num_frames) == (None, "", 20)
    assert found.seconds == pytest.approx(2.0, abs=0.05)
    assert len(found.content) == 32
    assert inspect_video(make_video(name, codec=codec), decode=False).problem is None


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_files_cut_in_half_are_short(make_video: Callable[..., Path], name: str, codec: str, decode: bool) -> None:
    found = inspect_video(cut(make_video(name, 60, 96, 128, codec=codec), 0.5), decode=decode)
    assert found.problem == "short"
    assert "missing" in found.reason


def test_streamed_webm_that_promises_no_bytes_is_still_short(make_video: Callable[..., Path], tmp_path: Path) -> None:
    whole = make_video("a.webm", codec="libvpx-vp9", num_frames=60)
    # a segment of unknown length, with the duration in its header: as recorders write it
    data = bytearray(whole.read_bytes())
    position = data.index(bytes.fromhex("18538067")) + 4
    data[position : position + 8] = bytes.fromhex("01FFFFFFFFFFFFFF")
    (tmp_path / "live.webm").write_bytes(data)
    assert inspect_video(tmp_path / "live.webm").problem is None
    found = inspect_video(cut(tmp_path / "live.webm", 0.5))
    assert found.problem == "short"
    assert "before" in found.reason


def test_damage_inside_shows_only_when_frames_are_decoded(make_video: Callable[..., Path]) -> None:
    path = make_video("a.mp4", num_frames=40, keyframe_interval=10)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    assert inspect_video(path, decode=False).problem is None
    found = inspect_video(path)
    assert found.problem == "short"
    assert "40" in found.reason


def test_missing_and_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    found = [inspect_video(tmp_path / name) for name in ("lost.mp4", "text.mp4", "empty.mp4", ".")]
    assert [file.problem for file in found] == ["missing", "unreadable", "unreadable", "unreadable"]
    assert found[2].reason == "is empty (0 bytes). Fetch it again."
    assert found[0].path == str(tmp_path / "lost.mp4")


def test_content_does_not_depend_on_the_container(make_video: Callable[..., Path], tmp_path: Path) -> None:
    first, other = make_video("a.mp4"), make_video("b.mp4", seed=1)
    packed = remux(first, tmp_path / "a.mkv")
    content = [inspect_video(path).content for path in (first, packed, other)]
    assert content[0] == content[1] != content[2]
    quick = [inspect_video(path, decode=False).content for path in (first, packed)]
    assert quick[0] != quick[1]
    with VideoReader(first) as video:
        assert video.fingerprint() == content[0]
        assert video.missing_seconds() == 0


def test_cut_videos_have_an_error_of_their_own(make_video: Callable[..., Path]) -> None:
    path = cut(make_video("a.avi", 60, 96, 128, codec="mpeg4"), 0.5)
    with pytest.raises(CutVideoError, match="frames") as caught:
        VideoReader(path)
    assert isinstance(caught.value, VideoError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.path, copy.reason) == (CutVideoError, str(path), caught.value.reason)


def test_real_files_are_sound_but_for_the_damaged_one(shared: Path) -> None:
    names = (
        "clips/mmaction2__test.avi",
        "clips/smth-smth-v2-baseline-with-models__vid.mp4",
        "torchcodec/nasa_13013.mp4",
    )
    assert [inspect_video(shared / "videos" / name).problem for name in names] == [None, None, None]
    found = inspect_video(shared / "videos/odd/decord__corrupted.mp4")
    assert (found.problem, found.reason[:36]) == ("short", "28 of 50 frames can be decoded (the l"[:36])


def test_a_gif_without_its_last_bytes_is_short(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.gif"), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "rgb8"
        for index in range(6):
            picture = av.VideoFrame(32, 24, "rgb8")
            picture.planes[0].update(bytes([40 * index]) * picture.planes[0].buffer_size)
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert inspect_video(tmp_path / "a.gif").problem is None
    for fraction in (0.5, 0.999):
        found = inspect_video(cut(tmp_path / "a.gif", fraction))
        assert (found.problem, "missing" in found.reason) == ("short", True)


def test_a_second_file_that_is_not_read_is_a_fault_and_one_that_is_read_is_noted(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    for name, codec, problem in (("a.mp4", "libx264", "short"), ("a.avi", "mpeg4", None)):
        path = make_video(name, codec=codec)
        size = path.stat().st_size
        path.write_bytes(path.read_bytes() + path.read_bytes())
        found = inspect_video(path, decode=False)
        assert found.problem == problem
        assert f"byte {size:,}" in " ".join((found.reason, *found.notes))


def test_an_index_with_fewer_frames_than_the_header_says_is_short(make_video: Callable[..., Path]) -> None:
    path = make_video("a.avi", 60, codec="mpeg4")
    data = bytearray(path.read_bytes())
    # the number of frames in the header of the stream
    length = data.index(b"strh") + 8 + 32
    assert data[length : length + 4] == (60).to_bytes(4, "little")
    for promised, problem in ((62, None), (64, "short")):
        data[length : length + 4] = promised.to_bytes(4, "little")
        path.write_bytes(data)
        found = inspect_video(path, decode=False)
        assert found.problem == problem
    assert "4 frames fewer" in found.reason
