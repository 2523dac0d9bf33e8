from collections.abc import Iterable, Sequence

from kinescan.data.datasets import Unreadable
from kinescan.data.provenance import RecordedVideo
from kinescan.errors import VideoError


class ExpectedVideos:
    """The held-out videos that every evaluation of a run has to read, since a score without them means something else.

    Args:
        recorded: what the run knows of them: those that were there when it began are expected.
    """

    def __init__(self, recorded: Iterable[RecordedVideo]) -> None:
        self._absent = {video.video_id for video in recorded if not video.fingerprint}
        self._scored: set[str] = set()

    def require(self, unreadable: Sequence[Unreadable], video_ids: Sequence[str]) -> None:
        """Passes where none is gone that was there when the run began, and none is unreadable that was scored before.

        Args:
            unreadable: of an evaluation.
            video_ids: of all held-out videos, by `Unreadable.item_index`.

        Raises:
            VideoError: such a video is missing.
        """
        lost = []
        for problem in unreadable:
            video_id = video_ids[problem.item_index]
            if video_id in self._scored or (problem.gone and video_id not in self._absent):
                lost.append(problem)
        if lost:
            raise VideoError(
                lost[0].path,
                f"{lost[0].reason}; {len(lost)} held-out videos that were there before are gone. Bring them back: a "
                "score without them cannot be compared with the others of the run.",
            )

    def add_scored(self, video_ids: Iterable[str]) -> None:
        """These were scored: from now on they are expected."""
        self._scored.update(video_ids)
