"""At opening: whether frame by frame gives what the model's own forward gives, on random frames."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kinescan.errors import ConfigError, KinescanError
from kinescan.runtime.error_text import first_line
from kinescan.vlm.cache import StreamCache
from kinescan.vlm.families import Family, Generic, Positions
from kinescan.vlm.policy import KeepAll
from kinescan.vlm.sequence import Chunk, Patch, Text, sequence
from kinescan.vlm.steps import Step, run_steps

NUM_FRAMES = 3
TOLERANCE = 1e-3
"""Largest difference of a logit, in parts of the largest logit, in float32."""


@torch.no_grad()
def check_family(family: Family) -> None:
    """Finds how frames enter a model without a family of its own, and leaves the others alone.

    Three random frames go in one by one with an unlimited budget, and through the model's own forward at once.

    Raises:
        ConfigError: no way gives the same logits, to 1e-3 of the largest (8 steps of the dtype where that is more); the
            message says where they differ first.
    """
    if not isinstance(family, Generic):
        return
    reasons = []
    for way in family.ways():
        family.use(way)
        try:
            problem = _difference(family)
        except KinescanError:
            raise
        # The forward of any class of transformers, with arguments that may not be its own.
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
        if problem is None:
            return
        reasons.append(f"as {way.argument} [{'1, ' * way.leading}T, 3, H, W]: {problem}")
    raise ConfigError(
        f"{family.name} cannot be run frame by frame: {'; '.join(reasons)}. Use a model of a family that is "
        "supported by name (docs/statekv.md)."
    )


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that counts as none.

    Example:
        >>> tolerance(torch.float32), tolerance(torch.bfloat16)
        (0.001, 0.0625)
    """
    return max(TOLERANCE, 8 * torch.finfo(dtype).eps)


def _difference(family: Generic) -> str | None:
    """Where frame by frame departs from the plain forward; None where it does not."""
    height, width = family.frame_size()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (NUM_FRAMES, 3, height, width), dtype=torch.uint8, generator=generator)
    texts = [_some_ids(family, 3, 1), _some_ids(family, 4, 11)]
    features = [family.encode(frame[None]) for frame in frames]
    lengths = [3, *(len(part.tokens) for part in features), 4]
    opening, *later = [[Patch(part, 0.0)] for part in features]
    stepwise = _stepwise(family, [[Text(texts[0]), *opening], *later, [Text(texts[1])]])
    token = family.token_id(family.way)
    ids = [*texts[0], *[token] * sum(lengths[1:-1]), *texts[1]]
    given: dict[str, Any] = {
        "input_ids": torch.tensor([ids], device=family.embedding.device),
        family.way.argument: family.encoder_input(family.prepare(frames)),
    }
    plain = family.model(**given).logits[0].float()
    apart = (stepwise - plain).abs().amax(-1) / plain.abs().max().clamp_min(1e-12)
    worst = float(apart.max())
    if not worst > tolerance(family.embedding.dtype) and bool(torch.isfinite(apart).all()):
        return None
    first = int((~(apart <= tolerance(family.embedding.dtype))).nonzero()[0])
    names = ["the text before the frames", *(f"frame {number + 1}" for number in range(NUM_FRAMES)), "the text behind"]
    part = next(index for index in range(len(lengths)) if first < sum(lengths[: index + 1]))
    return f"logits differ by {worst:.2g} of the largest, first in {names[part]} (token {first + 1} of {len(ids)})"


def _stepwise(family: Generic, steps: Sequence[Sequence[Chunk]]) -> Tensor:
    """[n, V] logits of all tokens, step after step."""
    cache = StreamCache(family.cache_shape(), policy=KeepAll(), budget=None)
    positions, hidden = Positions(), list[Tensor]()
    for step in steps:
        inputs = sequence(family, step, positions)
        hidden += run_steps([Step(family=family, cache=cache, inputs=inputs, num_positions=2**15, answering=False)])
    return family.logits(torch.cat(hidden)).float()


def _some_ids(family: Generic, count: int, first: int) -> list[int]:
    """Ordinary tokens."""
    special = {family.token_id(way) for way in family.ways()}
    return [index for index in range(first, len(family.embedding)) if index not in special][:count]
