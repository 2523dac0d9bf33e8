"""What an evaluation has done so far: shown, and kept in a file until the report is written."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kinescan.errors import ConfigError
from kinescan.evaluation.multiview import VideoScore
from kinescan.evaluation.predictions import prediction_line
from kinescan.evaluation.temporal.activitynet import plain_detection
from kinescan.evaluation.temporal.proposals import propose_intervals
from kinescan.events.predictions import FramePredictions
from kinescan.runtime.counter import Counter
from kinescan.runtime.escaping import to_json
from kinescan.runtime.launch import is_main_process, rank

logger = logging.getLogger(__name__)

FINISHED_FILE = "predictions.unfinished.jsonl"
"""In the folder of the report; of several processes, each has its own, with its number before the ending."""


class Finished:
    """Writes each video's prediction as soon as it is made; the file goes when the block ends well.

    When the block ends by Ctrl-C or an error, the file stays, and the log says where it is and how far it got.

    Args:
        folder: of the report; None keeps no file.
        labels: the model's classes, in the order of the scores.
    """

    def __init__(self, folder: Path | None, labels: Sequence[str]) -> None:
        name = FINISHED_FILE if is_main_process() else FINISHED_FILE.replace(".jsonl", f".{rank()}.jsonl")
        self._path = None if folder is None else folder / name
        self._labels = labels
        self._file: IO[str] | None = None
        self._counter = Counter("evaluating", "videos")
        self._num_scored = self._num_right = 0
        self._answers_frames = False

    def __enter__(self) -> Self:
        self._counter.__enter__()
        return self

    def add(self, video: VideoScore, done: int, total: int) -> None:
        """One more video is scored.

        Args:
            video: its scores.
            done: how many videos have been read so far.
            total: how many there are.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._num_right += video.right
        self._write(prediction_line(video, self._labels), done, total)

    def add_frames(self, predictions: FramePredictions, done: int, total: int) -> None:
        """One more video has an answer for every frame; its line is one that `kinescan eval` scores as results.

        Args:
            predictions: of its frames.
            done: how many videos have been read so far.
            total: how many there are.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._answers_frames = True
        results = [plain_detection(one) for one in propose_intervals(predictions)]
        line = {"video_id": predictions.video_id, "seconds": predictions.end_seconds, "results": results}
        self._write(to_json(line) + "\n", done, total)

    def _write(self, line: str, done: int, total: int) -> None:
        self._num_scored += 1
        self._counter.update(done, total)
        if self._path is None:
            return
        try:
            if self._file is None:
                # In a stranger's folder it may be a link to anywhere.
                self._path.unlink(missing_ok=True)
                self._file = self._path.open("x", encoding="utf-8", newline="\n")
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"{self._path} cannot be written ({error.strerror or error}). Free space, or choose another --output."
            ) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counter.__exit__(kind, error, trace)
        if self._file is not None:
            self._file.close()
        if kind is None:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            return
        if self._num_scored:
            kept = "" if self._path is None else f"; their predictions: {self._path}"
            right = f", {100 * self._num_right / self._num_scored:.1f} % of them right"
            said = "" if self._answers_frames else right
            logger.warning("%d of %s videos were scored%s%s", self._num_scored, self._counter.num_all, said, kept)
