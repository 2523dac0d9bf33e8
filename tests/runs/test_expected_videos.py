import pytest

from kinescan.data.datasets import Unreadable
from kinescan.data.provenance import RecordedVideo
from kinescan.errors import VideoError
from kinescan.runs.expected_videos import ExpectedVideos

IDS = ("a.mp4", "b.mp4")


def _recorded(video_id: str, fingerprint: str) -> RecordedVideo:
    return RecordedVideo(video_id=video_id, label=0, path=video_id, fingerprint=fingerprint)


def test_what_was_there_or_was_scored_has_to_stay() -> None:
    expected = ExpectedVideos([_recorded("a.mp4", "1f"), _recorded("b.mp4", "")])
    gone = [Unreadable(name, "no such file", index, gone=True) for index, name in enumerate(IDS)]
    broken = Unreadable("a.mp4", "cut off", 0)
    expected.require([gone[1], broken], IDS)  # b was never there, and a broken file is named in the report
    with pytest.raises(VideoError, match=r"a\.mp4"):
        expected.require(gone, IDS)
    expected.add_scored(["a.mp4", "b.mp4"])
    for problem in (broken, gone[1]):
        with pytest.raises(VideoError, match=problem.path):
            expected.require([problem], IDS)
