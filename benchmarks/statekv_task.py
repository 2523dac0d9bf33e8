"""Cue, then event: a video whose events mean something else after each cue, and a tiny VLM to learn it.

Each frame is 16 x 16 pixels and shows one thing in one of 16 cells: a cue (one of 3 colours), an event (one of 3
signs), or grey noise. An event's label is (the newest cue + the sign) mod 3, so a frame must know a cue that may lie
far behind it. Behind each frame stands the token ASK; the answer there is the event's label, or in any other frame the
newest cue (dense supervision: without it the task is not learned in the time there is). Behind the last frame stands
the question LAST: the label of the newest event. No answer is ever an input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

SIDE, CELL, CELLS = 16, 4, 16
KINDS = 3
FRAME_TOKENS = 4
STEP_TOKENS = FRAME_TOKENS + 1
IMAGE, ASK, LAST = 10, 11, 12
FIRST_CUE_ANSWER = 20
IGNORED = -100
EVENT_RATE = 0.35

COLOURS = torch.tensor([[255, 30, 30], [30, 255, 30], [40, 40, 255]], dtype=torch.uint8)
SIGNS = torch.tensor(
    [
        [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
        [[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0]],
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
    ],
    dtype=torch.uint8,
)


@dataclass(frozen=True)
class Videos:
    """A batch.

    Attributes:
        frames: [B, T, 3, 16, 16], uint8.
        answers: [B, T] token that follows ASK behind each frame: an event's label, or the newest cue.
        asked: [B, T] bool, where the frame is an event.
        last: [B] label of the newest event; IGNORED where there was none.
    """

    frames: Tensor
    answers: Tensor
    asked: Tensor
    last: Tensor


def draw(num_videos: int, num_frames: int, cue_frames: Tensor, generator: torch.Generator) -> Videos:
    """Videos with cues at `cue_frames` ([num_videos, num_frames] bool; the first frame is always one)."""
    shape = (num_videos, num_frames)

    def pick(high: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    cue_frames = cue_frames.clone()
    cue_frames[:, 0] = True
    events = (torch.rand(shape, generator=generator) < EVENT_RATE) & ~cue_frames
    colours, signs, cells = pick(KINDS), pick(KINDS), pick(CELLS)
    newest = torch.where(cue_frames, torch.arange(num_frames), 0).cummax(1).values
    cues = colours.gather(1, newest)
    answers = torch.where(events, (cues + signs) % KINDS, FIRST_CUE_ANSWER + cues)
    patches = torch.randint(60, 140, (*shape, 1, CELL, CELL), generator=generator).expand(-1, -1, 3, -1, -1)
    patches = torch.where(events[..., None, None, None], 255 * SIGNS[signs][:, :, None].int(), patches)
    patches = torch.where(cue_frames[..., None, None, None], COLOURS[colours][..., None, None].int(), patches)
    frames = torch.randint(0, 30, (*shape, 3, CELLS, CELL, CELL), generator=generator)
    frames.scatter_(
        3, cells[:, :, None, None, None, None].expand(-1, -1, 3, -1, CELL, CELL), patches[:, :, :, None].int().long()
    )
    rows = SIDE // CELL
    frames = frames.view(*shape, 3, rows, rows, CELL, CELL).transpose(4, 5).reshape(*shape, 3, SIDE, SIDE)
    newest_event = torch.where(events, torch.arange(num_frames), -1).amax(1)
    last = answers.gather(1, newest_event.clamp(min=0)[:, None])[:, 0]
    last = torch.where(newest_event < 0, IGNORED, last)
    return Videos(frames=frames.to(torch.uint8), answers=answers, asked=events, last=last)


def random_cues(num_videos: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """As in training: a new cue about every 16, 48 or 144 frames, by video."""
    gaps = torch.tensor([16.0, 48.0, 144.0])[torch.randint(0, 3, (num_videos, 1), generator=generator)]
    return torch.rand(num_videos, num_frames, generator=generator) < 1 / gaps


def distant_cues(num_videos: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """As in the comparison: cues in the first frame and in the middle alone."""
    cues = torch.zeros(num_videos, num_frames, dtype=torch.bool)
    cues[:, num_frames // 2] = True
    return cues


def build_vlm(seed: int) -> InternVLForConditionalGeneration:
    """A tiny InternVL: one vision layer, three decoder layers of width 64, two key heads for four query heads."""
    torch.manual_seed(seed)
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 32,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "eos_token_id": 31,
            "bos_token_id": None,
            "pad_token_id": None,
            "initializer_range": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": [SIDE, SIDE],
            "patch_size": [CELL, CELL],
            "initializer_range": 0.1,
            "layer_scale_init_value": 1.0,
        },
        image_token_id=IMAGE,
        image_seq_length=FRAME_TOKENS,
        downsample_ratio=0.5,
    )
    return InternVLForConditionalGeneration(config)


def pixels_of(frames: Tensor) -> Tensor:
    """[..., 3, 16, 16] uint8 as the vision tower takes them; the same in training and in streams."""
    return (frames.float() / 255 - 0.5) / 0.25


def sequence_of(videos: Videos) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] of whole videos with the question behind them, and targets [B, L]."""
    batch, num_frames = videos.answers.shape
    step = torch.tensor([IMAGE] * FRAME_TOKENS + [ASK])
    ids = torch.cat((step.repeat(batch, num_frames), torch.full((batch, 1), LAST)), dim=1)
    behind_frames = torch.full((batch, num_frames, STEP_TOKENS), IGNORED)
    behind_frames[:, :, -1] = videos.answers
    return ids, torch.cat((behind_frames.flatten(1), videos.last[:, None]), dim=1)
