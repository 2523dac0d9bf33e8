"""Needles in a video: what six signs were, shown once each at some time, is asked behind the video.

Frames are those of `statekv_task` (8 x 8 pixels, 4 tokens, one token behind each), from a camera that stands still: the
background is one and the same in all frames of a video. Six frames show a needle each, in one cell: a colour of its
own and one of 3 signs. Of the others one half shows a grey thing in some cell, the other half nothing. Behind the video
each colour is asked for, and the answer is its sign. Nothing says while watching what will be asked, so that an answer
needs what the full KV cache holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import statekv_task as task

COLOURS = task.COLOURS.flatten(0, 1)
NEEDLES = len(COLOURS)
FIRST_QUESTION = 12
"""Token that asks for the first colour; the others follow."""


@dataclass(frozen=True)
class NeedleVideos:
    """A batch.

    Attributes:
        frames: [B, T, 3, 8, 8], uint8.
        answers: [B, NEEDLES] token that answers the question for each colour.
        shown: [B, NEEDLES] frame that shows it.
    """

    frames: Tensor
    answers: Tensor
    shown: Tensor


def draw(num_videos: int, num_frames: int, generator: torch.Generator) -> NeedleVideos:
    """Videos of at least `NEEDLES` frames."""
    order = torch.rand(num_videos, num_frames, generator=generator).argsort(1)
    shown = order[:, :NEEDLES]
    values = torch.randint(0, task.VALUES, (num_videos, NEEDLES), generator=generator)
    grey = torch.randint(60, 140, (num_videos, num_frames, 1, task.CELL, task.CELL), generator=generator)
    grey = grey.expand(-1, -1, 3, -1, -1).clone()
    painted = task.SIGNS[values][:, :, None] * COLOURS[None, :, :, None, None].long()
    index = shown[:, :, None, None, None].expand_as(painted)
    things = grey.scatter(1, index, painted)
    is_shown = torch.rand(num_videos, num_frames, generator=generator) < 0.5
    is_shown.scatter_(1, shown, True)
    still = torch.randint(0, 30, (num_videos, 1, 3, task.CELLS, task.CELL, task.CELL), generator=generator)
    frames = still.expand(-1, num_frames, -1, -1, -1, -1).clone()
    cells = torch.randint(0, task.CELLS, (num_videos, num_frames), generator=generator)
    there = functional.one_hot(cells, task.CELLS).bool() & is_shown[..., None]
    frames = torch.where(there[:, :, None, :, None, None], things[:, :, :, None], frames)
    return NeedleVideos(frames=task.joined_cells(frames), answers=task.FIRST_CUE_ANSWER + values, shown=shown)


def questions() -> Tensor:
    """[NEEDLES] the tokens that ask."""
    return torch.arange(FIRST_QUESTION, FIRST_QUESTION + NEEDLES)


def tokens_of(videos: NeedleVideos) -> Tensor:
    """Token ids [B, L] of whole videos and all questions behind them."""
    step = torch.tensor([task.IMAGE] * task.FRAME_TOKENS + [task.ASK])
    count, num_frames = videos.frames.shape[:2]
    return torch.cat((step.repeat(count, num_frames), questions().expand(count, -1)), dim=1)
