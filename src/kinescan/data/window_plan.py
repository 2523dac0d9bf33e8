"""Which windows of long videos an epoch shows, and in which order.

A video with a pause in it counts as several here.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from kinescan.data.datasets import stable_seed
from kinescan.errors import ConfigError

ONSET_RATE = 0.5
"""Of the windows that show an event, how many show its beginning."""


@dataclass(frozen=True)
class Span:
    """An event as frames.

    Attributes:
        video: the video's position.
        label: what happens.
        first: its first frame.
        last: its last one.
    """

    video: int
    label: str
    first: int
    last: int


@dataclass(frozen=True)
class Window:
    """A stretch of consecutive frames.

    Attributes:
        video: the video's position.
        first: its first frame; it may reach beyond the video's end.
        starts: nothing of the video goes before it: a state that is carried begins anew.
        sample_key: what the random crop, mirroring and colours depend on besides seed and epoch.
    """

    video: int
    first: int
    starts: bool
    sample_key: str


class WindowPlan(Protocol):
    """The windows of every epoch, which depend on seed and epoch only."""

    def __len__(self) -> int:
        """Windows in an epoch."""

    def window(self, epoch: int, index: int) -> Window:
        """A window of an epoch."""


class SampledWindows:
    """Windows at random positions: a fraction at events, the others anywhere.

    By default as many as would cover all videos once. The first ones show events, sampled by the square root of how
    often their class occurs, half of them their beginning; each of the others lies at random in its part of the whole
    time.

    Args:
        lengths: frames of each video; 0 where it cannot be read: then it has one window, so that it is met and listed.
        spans: the events.
        num_frames: of a window.
        event_ratio: fraction of the windows that show an event.
        num_windows: in an epoch; 0: as many as would cover all videos once.
        seed: of the random numbers.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        spans: Sequence[Span],
        *,
        num_frames: int,
        event_ratio: float,
        num_windows: int = 0,
        seed: int,
    ) -> None:
        self._lengths, self._spans, self._num_frames, self._seed = lengths, spans, num_frames, seed
        self._unread = [video for video, length in enumerate(lengths) if not length]
        cover = sum(-(-length // num_frames) for length in lengths)
        self._count = num_windows if num_windows and cover else cover
        self._num_events = round(event_ratio * self._count) if spans else 0
        often = Counter(span.label for span in spans)
        self._weights = torch.tensor([often[span.label] ** -0.5 for span in spans], dtype=torch.float64)
        self._ends = torch.tensor(list(lengths), dtype=torch.int64).cumsum(0)

    def __len__(self) -> int:
        return self._count + len(self._unread)

    def window(self, epoch: int, index: int) -> Window:
        """A window of an epoch; each starts anew."""
        if index >= self._count:
            return Window(self._unread[index - self._count], 0, True, f"window {index}")
        generator = torch.Generator().manual_seed(stable_seed(self._seed, epoch, "window", index))
        if index < self._num_events:
            video, first = self._at_event(generator)
        else:
            video, first = self._anywhere(index - self._num_events, generator)
        return Window(video, first, True, f"window {index}")

    def _at_event(self, generator: torch.Generator) -> tuple[int, int]:
        span = self._spans[int(torch.multinomial(self._weights, 1, generator=generator))]
        onset, along, position = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        frame = span.first if onset < ONSET_RATE else span.first + int(along * (span.last - span.first + 1))
        return span.video, self._inside(span.video, frame - int(position * self._num_frames))

    def _anywhere(self, part: int, generator: torch.Generator) -> tuple[int, int]:
        within = float(torch.rand((), generator=generator, dtype=torch.float64))
        frame = int((part + within) * int(self._ends[-1]) / (self._count - self._num_events))
        video = int(torch.searchsorted(self._ends, frame, right=True))
        begun = int(self._ends[video]) - self._lengths[video]
        return video, self._inside(video, frame - begun - self._num_frames // 2)

    def _inside(self, video: int, first: int) -> int:
        return max(0, min(first, self._lengths[video] - self._num_frames))


class FollowedWindows:
    """Windows one after the other: each row of the batch follows one video, then the next.

    By default an epoch shows all of them, in every epoch in another order of the videos. With `num_windows`, it shows
    so many: each epoch continues where the one before it ended, and all windows have been shown before one is shown
    again; those of videos that cannot be read are met in each epoch.

    Whenever a video is shown anew, its windows begin at another frame. The windows of an epoch are divided into as many
    stretches as there are rows; a row starts anew where its stretch or a video begins. Where they cannot be divided
    evenly, the last rows show some windows of the epoch's start again.

    Args:
        lengths: frames of each video; 0 where it cannot be read: then it has one window, so that it is met and listed.
        video_ids: the videos' names.
        num_frames: of a window.
        num_rows: rows of the batch, of all processes together.
        num_windows: in an epoch; 0: all.
        seed: of order and beginnings.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        video_ids: Sequence[str],
        *,
        num_frames: int,
        num_rows: int,
        num_windows: int = 0,
        seed: int,
    ) -> None:
        self._lengths, self._video_ids, self._num_frames, self._seed = lengths, video_ids, num_frames, seed
        self._counts = [-(-max(1, length) // num_frames) for length in lengths]
        self._unread = [video for video, length in enumerate(lengths) if not length]
        readable = sum(self._counts) - len(self._unread)
        self._num_windows = num_windows if readable else 0
        self._num_readable = readable
        self._count = (self._num_windows or readable) + len(self._unread)
        self.num_rows = num_rows
        self.num_steps = -(-self._count // num_rows)
        self._order: tuple[int, list[_Followed]] | None = None

    def __len__(self) -> int:
        return self.num_rows * self.num_steps

    def window(self, epoch: int, index: int) -> Window:
        """A window of an epoch; `index` is row * num_steps + step."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._some(epoch) if self._num_windows else self._all(epoch)
        video, position, offset, sample_key = self._order[1][index % self._count]
        starts = position == 0 or index % self.num_steps == 0 or index % self._count == 0
        return Window(video, offset + position * self._num_frames, starts, sample_key)

    def _some(self, epoch: int) -> list["_Followed"]:
        """The next `num_windows` of all epochs' windows, and one of each video that cannot be read."""
        first, past = epoch * self._num_windows, (epoch + 1) * self._num_windows
        passes = range(first // self._num_readable, -(-past // self._num_readable))
        # A video that an epoch shows twice has a crop and a mirroring of its own each time.
        windows = [
            entry._replace(sample_key=f"{entry.sample_key}, pass {number}")
            for number in passes
            for entry in self._all(number)
            if self._lengths[entry.video]
        ]
        begun = first - passes.start * self._num_readable
        unread = [_Followed(video, 0, 0, self._video_ids[video]) for video in self._unread]
        return windows[begun : begun + self._num_windows] + unread

    def _all(self, number: int) -> list["_Followed"]:
        """Every window, in the order of a pass over all videos."""
        generator = torch.Generator().manual_seed(stable_seed(self._seed, number))
        windows = []
        for video in torch.randperm(len(self._lengths), generator=generator).tolist():
            # the last window may reach beyond the end by as much as the first leaves out, and still has a frame
            left = max(1, self._lengths[video]) - 1 - (self._counts[video] - 1) * self._num_frames
            name = self._video_ids[video]
            offset = min(stable_seed(self._seed, number, name, "first") % self._num_frames, left)
            windows += [_Followed(video, position, offset, name) for position in range(self._counts[video])]
        return windows


class _Followed(NamedTuple):
    """A window of `FollowedWindows`: position among those of its video, the frame at which the first of them begins."""

    video: int
    position: int
    offset: int
    sample_key: str


class RowOrder:
    """Batches in which each row follows its video (see `FollowedWindows`), for a loader.

    Args:
        plan: the windows.
        batch_size: rows of each process.
        num_processes: that train together.
        process_index: which of them this is.

    Raises:
        ConfigError: the plan was made for another number of rows.
    """

    def __init__(self, plan: FollowedWindows, batch_size: int, *, num_processes: int, process_index: int) -> None:
        if plan.num_rows != batch_size * num_processes:
            raise ConfigError(
                f"the windows follow {plan.num_rows} rows, and {num_processes} processes have batches of {batch_size}."
            )
        self._plan, self._rows = plan, range(process_index * batch_size, (process_index + 1) * batch_size)
        self.epoch, self.start_item = 0, 0

    def __len__(self) -> int:
        return self._plan.num_steps - self.start_item // self._plan.num_rows

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start_item // self._plan.num_rows, self._plan.num_steps):
            yield [(self.epoch, row * self._plan.num_steps + step) for row in self._rows]
