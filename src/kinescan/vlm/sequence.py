"""A chunk of the token sequence, text and frames in turn, made ready for the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinescan.vlm.families import Family, Features, Positions


@dataclass(frozen=True)
class Text:
    """Text tokens."""

    token_ids: Sequence[int]


@dataclass(frozen=True)
class Patch:
    """One temporal patch, and the time of its first frame."""

    features: Features
    seconds: float


@dataclass(frozen=True)
class Embedded:
    """Embeddings that stand for no token, placed as text."""

    vectors: Float[Tensor, "n W"]


Chunk = Text | Patch | Embedded


@dataclass(frozen=True)
class Sequenced:
    """What the decoder takes.

    Attributes:
        embedded: [n, W].
        positions: [n] or [3, n].
        visual: [n], True where a token is the encoder's.
        deepstack: features of those tokens, [visual.sum(), W] for each of the first layers.
    """

    embedded: Float[Tensor, "n W"]
    positions: Tensor
    visual: Bool[Tensor, " n"]
    deepstack: tuple[Float[Tensor, "v W"], ...]


def sequence(family: Family, chunks: Sequence[Chunk], positions: Positions) -> Sequenced:
    """The chunks in a row; `positions` moves on.

    Args:
        family: embeds text and gives positions.
        chunks: at least one token in all.
        positions: how far positions have been given out.
    """
    vectors, positions_of_parts, visual, levels = [], [], [], []
    for chunk in chunks:
        if isinstance(chunk, Patch):
            vectors.append(chunk.features.tokens)
            positions_of_parts.append(family.vision_positions(positions, chunk.features, chunk.seconds))
            levels.append(chunk.features.deepstack)
        else:
            part = chunk.vectors if isinstance(chunk, Embedded) else family.embed(chunk.token_ids)
            if not len(part):
                continue
            vectors.append(part)
            positions_of_parts.append(family.text_positions(positions, len(part)))
        visual.append(torch.full((len(vectors[-1]),), isinstance(chunk, Patch), device=vectors[-1].device))
    like = family.embedding
    return Sequenced(
        embedded=torch.cat([part.to(like.device, like.dtype) for part in vectors]),
        positions=torch.cat(positions_of_parts, dim=-1),
        visual=torch.cat(visual).to(like.device),
        deepstack=tuple(torch.cat(level).to(like.device, like.dtype) for level in zip(*levels, strict=True)),
    )


def text_ids(chunks: Sequence[Chunk]) -> set[int]:
    """The text tokens among chunks."""
    return {token for chunk in chunks if isinstance(chunk, Text) for token in chunk.token_ids}
