from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinescan.data.loader import Batch
from kinescan.data.synthetic.scene import paste
from kinescan.data.synthetic.shapes import SHAPES
from kinescan.data.synthetic.textures import FAMILIES, TRAIN_TEXTURES, background_textures, object_textures
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing

NUM_POSE_TARGETS, NUM_COLOUR_TARGETS = 5, 2
"""x, y, size, cosine and sine of the angle; cosine and sine of the hue."""
NUM_STILL_TARGETS = NUM_POSE_TARGETS + NUM_COLOUR_TARGETS + len(FAMILIES)
"""Pose, colour, and which of the texture families."""


@dataclass(frozen=True)
class Stills:
    """Single pictures, each with one object, and where, how large and how turned it is, and what it looks like.

    Attributes:
        pixels: [B, 3, S, S], uint8.
        targets: [B, 7 + len(FAMILIES)], float32: x and y of the centre in [-1, 1] over the frame, the size on a
            logarithmic scale from -1 (a tenth of the side) to 1 (four tenths), cosine and sine of the angle; cosine and
            sine of the bright colour's hue; 1 for the texture's family, 0 for the others.
    """

    pixels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def still_batch(num_stills: int, *, frame_size: int = 64, noise_levels: float = 3.0, seed: int = 0) -> Stills:
    """Pictures to train an image model on before it sees a video; textures are of the training pool only.

    Args:
        num_stills: B.
        frame_size: side of the square frame in pixels.
        noise_levels: standard deviation of the noise on every pixel and channel, in levels of 255.
        seed: the same seed makes the same pixels.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> stills = still_batch(4)
        >>> stills.pixels.shape, stills.targets.shape
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 12]))
    """
    for name, given, least in (("num_stills", num_stills, 1), ("frame_size", frame_size, 16), ("seed", seed, 0)):
        if given < least:
            raise ConfigError(f"{name} must be at least {least}, got {given}.")
    rng = np.random.default_rng([seed, 2])
    where = rng.uniform(-0.7, 0.7, (num_stills, 2))
    size, angle = rng.uniform(-1, 1, num_stills), rng.uniform(0, 2 * np.pi, num_stills)
    hues, families = rng.uniform(0, 1, num_stills), rng.integers(len(FAMILIES), size=num_stills)
    poses = np.stack([*((where.T + 1) / 2), 0.2 * 2.0**size], axis=-1) * frame_size
    shapes = [SHAPES[index] for index in rng.integers(len(SHAPES), size=num_stills)]
    seeds = rng.integers(TRAIN_TEXTURES.start, TRAIN_TEXTURES.stop, (2, num_stills)).tolist()
    canvas = paste(
        background_textures(seeds[0], size=frame_size),
        object_textures(seeds[1], [FAMILIES[family] for family in families], hues=hues.tolist()),
        shapes,
        torch.from_numpy(np.concatenate([poses, angle[:, None]], axis=1)).float(),
    )
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    noise = torch.empty_like(canvas).normal_(std=noise_levels, generator=generator) if noise_levels else 0
    pixels = (canvas * 255 + noise).round_().clamp_(0, 255).to(torch.uint8)
    turns = 2 * np.pi * hues
    pose_and_colour = np.stack([*where.T, size, np.cos(angle), np.sin(angle), np.cos(turns), np.sin(turns)], axis=-1)
    targets = np.concatenate([pose_and_colour, np.eye(len(FAMILIES))[families]], axis=1)
    return Stills(pixels, torch.from_numpy(targets).float())


class StillClips:
    """Batches of stills as clips of one frame, for `kinescan.training.fit`; no picture is ever shown twice.

    Labels are the targets of `still_batch`, float32 [B, 7 + len(FAMILIES)].

    Args:
        preprocessing: gives size, mean and std.
        num_batches: batches in an epoch.
        batch_size: pictures in a batch.
        noise_levels: standard deviation of the noise, in levels of 255.
        seed: the same seed makes the same pixels.
    """

    num_classes = NUM_STILL_TARGETS

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        num_batches: int,
        batch_size: int = 64,
        noise_levels: float = 3.0,
        seed: int = 0,
    ) -> None:
        self.preprocessing, self.num_batches, self.batch_size = preprocessing, num_batches, batch_size
        self.noise_levels, self.seed = noise_levels, seed

    def batches(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """The batches of an epoch from `first_batch` on, made as they are asked for."""
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        for index in range(first_batch, self.num_batches):
            batch_seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
            stills = still_batch(
                self.batch_size,
                frame_size=self.preprocessing.size,
                noise_levels=self.noise_levels,
                seed=batch_seed,
            )
            clips = ((stills.pixels.float() / 255 - mean) / std).unsqueeze(1)
            yield Batch(clips, stills.targets, list(range(self.batch_size)), [])

    def path(self, item_index: int) -> str:
        """What to call a picture in messages."""
        return f"still {item_index}"
