"""Cue, then event: a video whose events mean something else after each cue, and a tiny VLM to learn it.

Each frame is 8 x 8 pixels, one token for each of its 4 cells, and shows one thing in one of them: a cue of kind A or B
(one of 3 colours each), an event of kind A or B (one of 3 signs), or grey noise. An event's label is (the newest cue of
its kind + the sign) mod 3, so a frame must know a cue that may lie far behind it. Behind each frame stands the token
ASK; the answer there is the event's label, or in any other frame the newest cue of kind A (dense supervision: a target
in every frame). So most frames need the cue of kind A, and nothing but an event of kind B needs the cue of kind B. No
answer is ever an input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

SIDE, CELL, CELLS = 8, 4, 4
VALUES = 3
FRAME_TOKENS = 4
STEP_TOKENS = FRAME_TOKENS + 1
IMAGE, ASK = 10, 11
FIRST_CUE_ANSWER = 20
NOTHING, CUE_A, CUE_B, EVENT_A, EVENT_B = range(5)

COLOURS = torch.tensor(
    [[[255, 30, 30], [30, 255, 30], [40, 40, 255]], [[255, 255, 30], [30, 255, 255], [255, 40, 255]]],
    dtype=torch.uint8,
)
SIGNS = torch.tensor(
    [
        [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
        [[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0]],
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
    ],
    dtype=torch.uint8,
)
INKS = torch.tensor([[255, 255, 255], [255, 140, 0]], dtype=torch.uint8)


@dataclass(frozen=True)
class Videos:
    """A batch.

    Attributes:
        frames: [B, T, 3, 8, 8], uint8.
        kinds: [B, T] what each frame shows: NOTHING, CUE_A, CUE_B, EVENT_A or EVENT_B.
        answers: [B, T] token that follows ASK behind each frame.
    """

    frames: Tensor
    kinds: Tensor
    answers: Tensor


def newest_value(shown: Tensor, values: Tensor) -> Tensor:
    """[B, T] value of the newest frame that was `shown`."""
    newest = torch.where(shown, torch.arange(shown.shape[1]), 0).cummax(1).values
    return values.gather(1, newest)


def draw(kinds: Tensor, generator: torch.Generator) -> Videos:
    """Videos of the given kinds [B, T] of frames; the first two frames are always a cue of kind A and one of kind B."""
    kinds = kinds.clone()
    kinds[:, 0], kinds[:, 1] = CUE_A, CUE_B
    values = torch.randint(0, VALUES, kinds.shape, generator=generator)
    cue_a, cue_b = (newest_value(kinds == kind, values) for kind in (CUE_A, CUE_B))
    answers = FIRST_CUE_ANSWER + cue_a
    for event, cue in ((EVENT_A, cue_a), (EVENT_B, cue_b)):
        answers = torch.where(kinds == event, (cue + values) % VALUES, answers)
    return Videos(frames=_paint(kinds, values, generator), kinds=kinds, answers=answers)


def _paint(kinds: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    shape = kinds.shape
    things = torch.randint(60, 140, (*shape, 1, CELL, CELL), generator=generator).expand(-1, -1, 3, -1, -1)
    for index, (cue, event) in enumerate(((CUE_A, EVENT_A), (CUE_B, EVENT_B))):
        signs = SIGNS[values][:, :, None] * INKS[index][:, None, None].long()
        colours = COLOURS[index][values][..., None, None].long().expand_as(signs)
        things = torch.where((kinds == event)[..., None, None, None], signs, things)
        things = torch.where((kinds == cue)[..., None, None, None], colours, things)
    frames = torch.randint(0, 30, (*shape, 3, CELLS, CELL, CELL), generator=generator)
    cells = torch.randint(0, CELLS, shape, generator=generator)[:, :, None, None, None, None]
    frames.scatter_(3, cells.expand(-1, -1, 3, -1, CELL, CELL), things[:, :, :, None])
    return joined_cells(frames)


def joined_cells(cells: Tensor) -> Tensor:
    """Frames [B, T, 3, 8, 8] uint8 of their cells [B, T, 3, CELLS, CELL, CELL], row after row."""
    rows, shape = SIDE // CELL, cells.shape[:2]
    frames = cells.reshape(*shape, 3, rows, rows, CELL, CELL).transpose(4, 5).reshape(*shape, 3, SIDE, SIDE)
    return frames.to(torch.uint8)


def random_kinds(num_videos: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """As in training: events in six frames of ten; new cues about every 8, 24 or 72 frames, by video."""

    def rolls() -> Tensor:
        return torch.rand(num_videos, num_frames, generator=generator)

    events = torch.where(rolls() < 0.5, EVENT_A, EVENT_B)
    kinds = torch.where(rolls() < 0.6, events, NOTHING)
    gaps = torch.tensor([8.0, 24.0, 72.0])[torch.randint(0, 3, (num_videos, 1), generator=generator)]
    for cue in (CUE_A, CUE_B):
        kinds = torch.where(rolls() < 1 / gaps, cue, kinds)
    return kinds


def distant_kinds(num_videos: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """As in the comparison: cues at the start and in the middle alone; events of a kind in one frame of ten each."""
    rolls = torch.rand(num_videos, num_frames, generator=generator)
    kinds = torch.where(rolls < 0.1, EVENT_A, torch.where(rolls < 0.2, EVENT_B, NOTHING))
    kinds[:, num_frames // 2], kinds[:, num_frames // 2 + 1] = CUE_A, CUE_B
    return kinds


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
        downsample_ratio=1.0,
    )
    return InternVLForConditionalGeneration(config)


def pixels_of(frames: Tensor) -> Tensor:
    """[..., 3, 8, 8] uint8 as the vision encoder takes them; the same in training and in streams."""
    return (frames.float() / 255 - 0.5) / 0.25


def tokens_of(videos: Videos) -> Tensor:
    """Token ids [B, L] of whole videos."""
    step = torch.tensor([IMAGE] * FRAME_TOKENS + [ASK])
    return step.repeat(*videos.kinds.shape)
