"""A piece of the token sequence, text and frames in turn, made ready for the decoder."""

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


Piece = Text | Patch | Embedded


@dataclass(frozen=True)
class Sequenced:
    """What the decoder takes.

    Attributes:
        embedded: [n, W].
        positions: [n] or [3, n].
        visual: [n], True where a token is the tower's.
        deepstack: features of those tokens, [visual.sum(), W] for each of the first layers.
    """

    embedded: Float[Tensor, "n W"]
    positions: Tensor
    visual: Bool[Tensor, "n"]
    deepstack: tuple[Float[Tensor, "v W"], ...]


def sequence(family: Family, pieces: Sequence[Piece], positions: Positions) -> Sequenced:
    """The pieces in a row; `positions` moves on.

    Args:
        family: embeds text and gives positions.
        pieces: at least one token in all.
        positions: how far positions have been given out.
    """
    vectors, positions_of_parts, visual, levels = [], [], [], []
    for piece in pieces:
        if isinstance(piece, Patch):
            vectors.append(piece.features.tokens)
            positions_of_parts.append(family.vision_positions(positions, piece.features, piece.seconds))
            levels.append(piece.features.deepstack)
        else:
            part = piece.vectors if isinstance(piece, Embedded) else family.embed(piece.token_ids)
            if not len(part):
                continue
            vectors.append(part)
            positions_of_parts.append(family.text_positions(positions, len(part)))
        visual.append(torch.full((len(vectors[-1]),), isinstance(piece, Patch), device=vectors[-1].device))
    like = family.embedding
    return Sequenced(
        embedded=torch.cat([part.to(like.device, like.dtype) for part in vectors]),
        positions=torch.cat(positions_of_parts, dim=-1),
        visual=torch.cat(visual).to(like.device),
        deepstack=tuple(torch.cat(level).to(like.device, like.dtype) for level in zip(*levels, strict=True)),
    )
