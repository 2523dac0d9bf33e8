"""Clips that are rendered batch by batch: the training data of the motion model that comes with kinescan."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.data.loader import Batch
from kinescan.data.synthetic.leaves import leaf_pictures
from kinescan.data.synthetic.shapes import EXTENT, SHAPES, signed_distance
from kinescan.errors import ConfigError
from kinescan.fields import check_types
from kinescan.preprocessing import Preprocessing
from kinescan.shapes import Pixels

MOTION_NAMES = (
    *("right", "left", "down", "up", "clockwise", "counterclockwise", "growing", "shrinking"),
    *("down-right", "up-left", "down-left", "up-right", "still"),
)
"""What a clip may show, named for what is seen on the screen."""
REVERSED = (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12)
"""For each of `MOTION_NAMES` the one that the same clip shows backwards."""
MIRRORED = (1, 0, 2, 3, 5, 4, 6, 7, 10, 11, 8, 9, 12)
"""For each of `MOTION_NAMES` the one that its mirror image (left and right exchanged) shows."""

_DIRECTIONS = {0: (1.0, 0.0), 1: (0.0, 1.0), 4: (math.sqrt(0.5), math.sqrt(0.5)), 5: (-math.sqrt(0.5), math.sqrt(0.5))}
"""Of the first motion of each pair that travels, by the pair's place in `MOTION_NAMES`: x and y."""
_OUTLINES = (*SHAPES, "panel")
_STILL = MOTION_NAMES.index("still")
_DEGREES = math.pi / 180


@dataclass(frozen=True, kw_only=True)
class MotionClipsConfig:
    """What the clips of `MotionClips` show. Lengths are fractions of the frame's side, speeds are from frame to frame.

    Attributes:
        names: which of `MOTION_NAMES` are told apart; a motion and its reversal come together.
        shown: which of them clips show, one that is listed twice twice as often; empty: all.
        num_pictures: how many textures are rendered.
        given_fraction: fraction of the textures that are taken from the pictures that are given, where there are any.
        camera_fraction: fraction of clips in which the whole picture moves; in the others objects do.
        travel: least and largest way of what travels.
        turn_degrees: least and largest turn.
        zoom: least and largest ratio of sizes.
        object_radius: least and largest radius of an object.
        tilt_degrees: how far the direction of what travels is from the axis at most.
        noise_levels: largest standard deviation of the noise, in levels of 255.
    """

    names: tuple[str, ...] = MOTION_NAMES
    shown: tuple[str, ...] = ()
    num_pictures: int = 250
    given_fraction: float = 0.25
    camera_fraction: float = 0.5
    travel: tuple[float, float] = (0.018, 0.08)
    turn_degrees: tuple[float, float] = (5.0, 25.0)
    zoom: tuple[float, float] = (1.04, 1.15)
    object_radius: tuple[float, float] = (0.1, 0.32)
    tilt_degrees: float = 17.0
    noise_levels: float = 6.0

    def __post_init__(self) -> None:
        check_types(self)
        for name in self.names:
            if name not in MOTION_NAMES or MOTION_NAMES[REVERSED[MOTION_NAMES.index(name)]] not in self.names:
                raise ConfigError(
                    f"names must be of {', '.join(MOTION_NAMES)}, each with its reversal, got {', '.join(self.names)}."
                )
        if self.num_pictures < 2:
            raise ConfigError(f"num_pictures must be at least 2, got {self.num_pictures}.")


class MotionClips:
    """Clips in which something moves in one of `MOTION_NAMES`; for `kinescan.training.fit`, no clip comes twice.

    Half of a batch is the other half backwards, with the labels of that: the same frames, so that only their order
    tells the class. The whole picture moves, or objects do in front of one that stands still; other objects stand or
    wander about, speeds vary, the camera shakes, the light changes, there is noise.

    Args:
        preprocessing: gives the number of frames, size, mean and std.
        num_batches: batches in an epoch.
        batch_size: clips in a batch, even.
        config: what they show.
        grid: a batch's labels are fields over a grid of so many cells a side instead of indices of the names: how far
            what is in a cell has moved since the frame before, in cells, [B, T, grid * grid, 2] in x and y; 0: they are
            not.
        given: uint8 pictures [3, H, W] to take textures from, beside those that are rendered.
        seed: the same seed makes the same pixels.

    Raises:
        ConfigError: batch_size is odd.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        num_batches: int,
        batch_size: int = 32,
        config: MotionClipsConfig | None = None,
        grid: int = 0,
        given: Sequence[Tensor] = (),
        seed: int = 0,
    ) -> None:
        if batch_size % 2:
            raise ConfigError(
                f"batch_size must be even, got {batch_size}: half of a batch is the other half backwards."
            )
        self.preprocessing, self.num_batches, self.batch_size, self.seed = preprocessing, num_batches, batch_size, seed
        self.config = config or MotionClipsConfig()
        self.grid = grid
        self.num_classes = 2 if grid else len(self.config.names)
        self.labels = self.config.names
        number, own = self.config.num_pictures, self.config.num_pictures
        cut = []
        if given:
            own = round(number * (1 - self.config.given_fraction))
            rng = np.random.default_rng([seed, 3])
            cut = [_cut(rng, given[k % len(given)]) for k in range(number - own)]
        own_pictures = leaf_pictures([1000 * seed + k for k in range(own)])
        self._pictures = torch.cat([own_pictures, *(picture[None] for picture in cut)])

    def batches(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """The batches of an epoch from `first_batch` on, made as they are asked for."""
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        for index in range(first_batch, self.num_batches):
            pixels, labels, fields = self.draw(np.random.default_rng([self.seed, 5, epoch, index]))
            clips = (pixels.float() / 255 - mean) / std
            yield Batch(clips, self.targets(labels, fields), list(range(self.batch_size)), [])

    def targets(self, labels: Tensor, fields: Tensor) -> Tensor:
        """What a batch's labels are, of what `draw` gives."""
        return fields if self.grid else labels

    def draw(self, rng: np.random.Generator) -> tuple[Pixels, Tensor, Tensor]:
        """A batch: pixels uint8 [B, T, 3, S, S], labels [B] (indices of `config.names`), and fields (see `grid`)."""
        half = self.batch_size // 2
        kinds = np.array([MOTION_NAMES.index(name) for name in self.config.shown or self.config.names])
        chosen = kinds[rng.integers(len(kinds), size=half)]
        pixels, fields = self._render(rng, chosen)
        forwards = [self.labels.index(MOTION_NAMES[kind]) for kind in chosen]
        backwards = [self.labels.index(MOTION_NAMES[REVERSED[kind]]) for kind in chosen]
        turned = torch.zeros_like(fields)
        turned[:, 1:] = -fields[:, 1:].flip(1)
        return (
            torch.cat([pixels, pixels.flip(1)]),
            torch.tensor([*forwards, *backwards]),
            torch.cat([fields, turned]),
        )

    def path(self, item_index: int) -> str:
        """What to call a clip in messages."""
        return f"clip {item_index}"

    def _render(self, rng: np.random.Generator, kinds: np.ndarray) -> tuple[Tensor, Tensor]:
        config, count, num_frames = self.config, len(kinds), self.preprocessing.num_frames
        size = self.preprocessing.size
        phase = _phases(rng, count, num_frames)
        by_camera = rng.uniform(size=count) < config.camera_fraction
        still = np.full(count, _STILL)
        camera = self._poses(rng, np.where(by_camera, kinds, still), phase, reach=0.25)
        camera[..., :2] += rng.uniform(0, 0.012, (count, 1, 1)) * rng.standard_normal((count, num_frames, 2))
        canvas = self._background(rng, camera, size)
        fields = _field(camera, self.grid)
        alone = rng.uniform(size=count)
        # one that stands or wanders; those that act; in some of the moving pictures, one that moves with them
        wander = np.zeros((count, num_frames, 4))
        wander[..., :2] = (
            rng.uniform(-0.05, 0.05, (count, 1, 2)) * phase[..., None] * (rng.uniform(size=count) < 0.5)[:, None, None]
        )
        shown = alone < 0.35
        canvas, fields = self._object(rng, canvas, fields, wander, shown=shown, radius=(0.08, 0.2), fixed=camera)
        for fraction in (1.0, 0.3):
            acting = self._poses(rng, kinds, phase, reach=0.0)
            shown = ~by_camera & (rng.uniform(size=count) < fraction)
            canvas, fields = self._object(rng, canvas, fields, acting, shown=shown, radius=config.object_radius)
        return _spoil(rng, canvas, config.noise_levels), fields

    def _poses(self, rng: np.random.Generator, kinds: np.ndarray, phase: np.ndarray, *, reach: float) -> np.ndarray:
        """[n, T, 4]: offset x and y (of the frame's half), logarithm of the size, angle, about 0 in mid-clip."""
        config, count = self.config, len(kinds)
        way = 2 * _between(rng, config.travel, count)
        tilt = np.radians(rng.uniform(-config.tilt_degrees, config.tilt_degrees, count))
        turn = _DEGREES * _between(rng, config.turn_degrees, count)
        zoom = np.log(_between(rng, config.zoom, count))
        steps = np.zeros((count, 4))
        pair, sign = kinds // 2, 1.0 - 2.0 * (kinds % 2)
        forwards, aside = sign * way * np.cos(tilt), way * np.sin(tilt)
        for travelling, (x, y) in _DIRECTIONS.items():
            directed = np.stack([x * forwards - y * aside, y * forwards + x * aside], axis=1)
            steps[:, :2] = np.where((pair == travelling)[:, None], directed, steps[:, :2])
        steps[:, 2] = np.where(pair == 3, sign * zoom, 0)
        steps[:, 3] = np.where(pair == 2, sign * turn, 0)
        # a little of everything else
        moves = (kinds != _STILL)[:, None]
        steps += moves * rng.normal(0, 1, (count, 4)) * np.array([0.003, 0.003, 0.003, 0.01])
        poses = steps[:, None, :] * phase[..., None]
        if reach:
            # turns and grows about a point beside the middle
            middle = rng.uniform(-reach, reach, (count, 1, 2))
            cosine, sine = np.cos(poses[..., 3]), np.sin(poses[..., 3])
            scale = np.exp(poses[..., 2])
            moved = np.stack(
                [
                    scale * (cosine * middle[..., 0] - sine * middle[..., 1]),
                    scale * (sine * middle[..., 0] + cosine * middle[..., 1]),
                ],
                axis=-1,
            )
            poses[..., :2] += middle - moved
        return np.asarray(poses)

    def _background(self, rng: np.random.Generator, poses: np.ndarray, size: int) -> Tensor:
        count = len(poses)
        side = _between(rng, (0.25, 0.7), count)
        base = np.concatenate([rng.uniform(-1, 1, (count, 2)) * (1 - side)[:, None], np.log(side)[:, None]], axis=1)
        tilt = rng.uniform(0, 2 * math.pi, count)
        pictures = self._pictures[torch.from_numpy(rng.integers(len(self._pictures), size=count))]
        pictures = _recoloured(rng, pictures)
        return _looked_at(pictures, poses, base, tilt, size)

    def _object(
        self,
        rng: np.random.Generator,
        canvas: Tensor,
        fields: Tensor,
        poses: np.ndarray,
        *,
        shown: np.ndarray,
        radius: tuple[float, float],
        fixed: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Canvas and fields with an object in the clips where one is shown; `fixed` adds the camera's poses to its."""
        where = np.flatnonzero(shown)
        count = len(where)
        if not count:
            return canvas, fields
        poses = poses[where] + (0 if fixed is None else fixed[where] * np.array([1, 1, 0, 0]))
        size = canvas.shape[-1]
        radii = 2 * _between(rng, radius, count)
        centres = rng.uniform(-1, 1, (count, 2)) * (1 - 0.6 * np.minimum(radii, 1))[:, None] * 0.85
        sine, cosine = np.sin(poses[..., 3]), np.cos(poses[..., 3])
        position = centres[:, None] + poses[..., :2]
        scale = 1 / (radii[:, None] * np.exp(poses[..., 2]))
        tilt = rng.uniform(0, 2 * math.pi, count)
        matrix = np.zeros((*poses.shape[:2], 2, 3))
        cosine, sine = np.cos(poses[..., 3] + tilt[:, None]), np.sin(poses[..., 3] + tilt[:, None])
        matrix[..., 0, 0], matrix[..., 0, 1] = scale * cosine, scale * sine
        matrix[..., 1, 0], matrix[..., 1, 1] = -scale * sine, scale * cosine
        matrix[..., 2] = -(matrix[..., :2] @ position[..., None])[..., 0]
        grid = _grid(matrix, size)  # in object units
        outlines = torch.stack([_outline(rng) for _ in range(count)])[:, None]
        distance = _sample(outlines, grid / EXTENT, padding="border")
        pixels = torch.from_numpy(size / 2 / scale).float()[..., None, None, None]
        cover = (0.5 - distance * pixels).clamp(0, 1)
        pictures = self._pictures[torch.from_numpy(rng.integers(len(self._pictures), size=count))]
        # fine patterns only where there are pixels for them
        side = np.minimum(_between(rng, (0.15, 0.7), count), 1.5 * radii * size / pictures.shape[-1])
        side = torch.from_numpy(side).float()[:, None, None, None, None]
        texture = _sample(_recoloured(rng, pictures), grid * side)
        flat = torch.from_numpy(rng.uniform(size=count) < 0.3)[:, None, None, None, None]
        plain = torch.from_numpy(rng.uniform(0, 1, (count, 1, 3, 1, 1))).float()
        texture = torch.where(flat, plain, texture)
        indices = torch.from_numpy(where)
        canvas[indices] = torch.lerp(canvas[indices], texture, cover)
        if self.grid:
            own = _field(np.concatenate([position, poses[..., 2:]], axis=-1), self.grid)
            part = F.adaptive_avg_pool2d(cover.flatten(0, 1), self.grid).flatten(1).view(*own.shape[:3], 1)
            fields[indices] = torch.lerp(fields[indices], own, part)
        return canvas, fields


def _field(poses: np.ndarray, grid: int) -> Tensor:
    """[n, T, grid * grid, 2]: how far what moves as the poses say has moved since the frame before, in cells."""
    position, rest = torch.from_numpy(poses[..., :2]).float(), torch.from_numpy(poses[..., 2:]).float()
    axis = (torch.arange(grid) + 0.5) * (2 / max(grid, 1)) - 1
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(1, 1, -1, 2)
    moved, grown, turned = position.diff(dim=1)[:, :, None], *rest.diff(dim=1)[:, :, None, :, None].unbind(3)
    from_middle = cells - (position[:, 1:] + position[:, :-1])[:, :, None] / 2
    across = torch.stack([-from_middle[..., 1], from_middle[..., 0]], dim=-1)
    fields = (moved + grown * from_middle + turned * across) * (grid / 2)
    return F.pad(fields, (0, 0, 0, 0, 1, 0))


def _looked_at(pictures: Tensor, poses: np.ndarray, base: np.ndarray, tilt: np.ndarray, size: int) -> Tensor:
    """[n, T, 3, size, size]: pictures seen through a window, moved as the poses say."""
    scale = np.exp(base[:, 2])[:, None] / np.exp(poses[..., 2])
    angle = poses[..., 3] + tilt[:, None]
    matrix = np.zeros((*poses.shape[:2], 2, 3))
    matrix[..., 0, 0], matrix[..., 0, 1] = scale * np.cos(angle), scale * np.sin(angle)
    matrix[..., 1, 0], matrix[..., 1, 1] = -scale * np.sin(angle), scale * np.cos(angle)
    matrix[..., 2] = base[:, None, :2] - (matrix[..., :2] @ poses[..., :2, None])[..., 0]
    return _sample(pictures, _grid(matrix, size))


def _grid(matrix: np.ndarray, size: int) -> Tensor:
    """[n, T, size, size, 2]: where each pixel of a frame over [-1, 1] lies after an affine map [n, T, 2, 3]."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    rows = torch.from_numpy(matrix).float()[:, :, None, None]  # [n, T, 1, 1, 2, 3]
    return rows[..., 0] * axis[:, None] + (rows[..., 1] * axis[:, None, None] + rows[..., 2])


def _sample(pictures: Tensor, grid: Tensor, *, padding: str = "reflection") -> Tensor:
    """[n, T, C, S, S] of pictures [n, C, P, P]; beyond their edge they are mirrored, or padded otherwise."""
    num_frames, size = grid.shape[1:3]
    # frames of a clip below each other: a picture is looked up once for all of them
    seen = F.grid_sample(pictures, grid.flatten(1, 2), mode="bilinear", padding_mode=padding, align_corners=False)
    return seen.unflatten(2, (num_frames, size)).transpose(1, 2)


def _outline(rng: np.random.Generator) -> Tensor:
    """Of an object of radius 1: one of `SHAPES`, a square, or a disc."""
    choice = int(rng.integers(len(_OUTLINES) + 2))
    if choice < len(_OUTLINES):
        return signed_distance(_OUTLINES[choice])
    axis = torch.linspace(-EXTENT, EXTENT, 64)
    ratio = float(rng.uniform(0.5, 1))
    return (torch.hypot(axis[None, :], axis[:, None] / ratio) - 0.95) * ratio


def _recoloured(rng: np.random.Generator, pictures: Tensor) -> Tensor:
    """Other contrast, brightness and tints, some without colour, some with colours exchanged or inverted."""
    count = len(pictures)
    contrast = torch.from_numpy(rng.uniform(0.25, 1.2, (count, 1, 1, 1))).float()
    tint = torch.from_numpy(rng.uniform(0.3, 0.7, (count, 1, 1, 1)) + rng.normal(0, 0.06, (count, 3, 1, 1))).float()
    orders = torch.from_numpy(np.stack([rng.permutation(3) for _ in range(count)]))
    pictures = pictures.gather(1, orders[:, :, None, None].expand_as(pictures))
    grey = torch.from_numpy(rng.uniform(size=count) < 0.2)[:, None, None, None]
    pictures = torch.where(grey, pictures.mean(1, keepdim=True), pictures)
    inverted = torch.from_numpy(rng.uniform(size=count) < 0.3)[:, None, None, None]
    pictures = torch.where(inverted, 1 - pictures, pictures)
    return ((pictures - 0.5) * contrast + tint).clamp_(0, 1)


def _spoil(rng: np.random.Generator, canvas: Tensor, noise_levels: float) -> Tensor:
    """Changing light, blur, noise, and in some clips frames that repeat; as bytes."""
    count, num_frames = canvas.shape[:2]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    light = 1 + torch.randn(count, num_frames, 1, 1, 1, generator=generator) * 0.02 * torch.rand(
        count, 1, 1, 1, 1, generator=generator
    )
    blurred = np.flatnonzero(rng.uniform(size=count) < 0.25)
    if len(blurred):
        indices = torch.from_numpy(blurred)
        some = F.pad(canvas[indices].flatten(0, 1), (1, 1, 1, 1), mode="replicate")
        canvas[indices] = F.avg_pool2d(some, 3, stride=1).unflatten(0, (len(blurred), num_frames))
    deviation = torch.rand(count, 1, 1, 1, 1, generator=generator) ** 2 * noise_levels / 255
    canvas = canvas * light + torch.randn(canvas.shape, generator=generator) * deviation
    return (canvas * 255).round_().clamp_(0, 255).to(torch.uint8)


def _phases(rng: np.random.Generator, count: int, num_frames: int) -> np.ndarray:
    """[count, num_frames], in frames: about 0 in mid-clip, at a speed that varies; some stand for a while."""
    moments = np.arange(num_frames - 1) / max(1, num_frames - 2) - 0.5
    waves, start = rng.uniform(0.3, 1.2, (count, 1)), rng.uniform(0, 1, (count, 1))
    ratio = rng.uniform(1, 3, (count, 1))
    steps = ratio ** (0.5 * np.sin(2 * math.pi * (waves * moments + start)))
    pausing = rng.uniform(size=(count, 1)) < 0.15
    steps = np.where(pausing & (rng.uniform(size=steps.shape) < 0.35), 0, steps)
    phase = np.concatenate([np.zeros((count, 1)), np.cumsum(steps, axis=1)], axis=1)
    return np.asarray(phase - phase[:, -1:] / 2)


def _between(rng: np.random.Generator, bounds: tuple[float, float], count: int) -> np.ndarray:
    """[count], evenly on a logarithmic scale."""
    low, high = bounds
    return np.asarray(low * (high / low) ** rng.uniform(0, 1, count))


def _cut(rng: np.random.Generator, picture: Tensor, size: int = 128) -> Tensor:
    """[3, size, size] in [0, 1]: a square of a picture, at a size that shows it coarse or fine."""
    shorter = min(picture.shape[1:])
    side = int(np.clip(shorter * rng.uniform(0.35, 1), min(size, shorter), shorter))
    top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[1:])
    part = picture[:, top : top + side, left : left + side].float()[None] / 255
    return F.interpolate(part, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
