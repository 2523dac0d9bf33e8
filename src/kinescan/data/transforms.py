"""From decoded frames to the clip that a model takes, at random in training and fixed in test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.data.rand_augment import MAX_MAGNITUDE, OPERATIONS, carry_out, chunks, grey, sample_operations
from kinescan.errors import ConfigError, NonFiniteError, ShapeError
from kinescan.fields import check_types
from kinescan.preprocessing import Preprocessing
from kinescan.runtime import normalisation
from kinescan.settings import renamed_parameters
from kinescan.shapes import Pixels


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training clips are varied: sampled once for each clip, the same for all its frames.

    Attributes:
        crop_scale: smallest and largest fraction of the picture's area that the random crop shows; (1, 1) with
            `crop_aspect` (1, 1) is the middle square at full height.
        crop_aspect: smallest and largest ratio of the crop's width to its height.
        flip_rate: how often clips are mirrored left to right; 0.5 is usual, as in Kinetics. Where a label speaks of a
            direction ("moving something from left to right"), the mirrored clip takes the label of the opposite one;
            where no class has that, the clip is not mirrored. 0, as for Something-Something, mirrors nothing.
        rand_augment_operations: operations of RandAugment on each clip; 0 for none.
        rand_augment_magnitude: their strength, of 30.
        color_jitter: brightness, contrast and saturation are scaled by up to 1 +- this; 0 for none.
        invert_rate: how often colours are inverted: what was brighter than what is behind it becomes darker. For models
            that see what changed (`model.options.changes_only`), whose sign that is, and few clips.
        erase_rate: how often a rectangle of 2 to 33 % of the picture is replaced by noise (random erasing).
        mixup_alpha: clips are blended in pairs by a Beta(alpha, alpha) weight; 0 for never.
        cutmix_alpha: a rectangle of another clip is pasted in, its area by a Beta(alpha, alpha) weight; 0 for never.
            Where both are on, a fair coin decides for each batch.
        mix_rate: how often a batch is mixed.
    """

    crop_scale: tuple[float, float] = (0.25, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    flip_rate: float = 0.0
    rand_augment_operations: int = 2
    rand_augment_magnitude: int = 9
    color_jitter: float = 0.0
    invert_rate: float = 0.0
    erase_rate: float = 0.25
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    mix_rate: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        low, high = self.crop_scale
        if not 1e-4 <= low <= high <= 1:
            raise ConfigError(f"crop_scale must be increasing fractions from 0.0001 to 1, got {self.crop_scale}.")
        low, high = self.crop_aspect
        if not 1e-2 <= low <= high <= 1e2:
            raise ConfigError(f"crop_aspect must be increasing ratios from 0.01 to 100, got {self.crop_aspect}.")
        for name in ("flip_rate", "invert_rate", "erase_rate", "mix_rate", "color_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) != 0 and not 1e-2 <= getattr(self, name) <= 1e3:
                raise ConfigError(f"{name} must be 0, or lie in 0.01 to 1000, got {getattr(self, name)}.")
        if not 0 <= self.rand_augment_operations <= len(OPERATIONS):
            raise ConfigError(
                f"rand_augment_operations must lie in [0, {len(OPERATIONS)}], got {self.rand_augment_operations}."
            )
        if not 0 <= self.rand_augment_magnitude <= MAX_MAGNITUDE:
            raise ConfigError(
                f"rand_augment_magnitude must lie in [0, {MAX_MAGNITUDE}], got {self.rand_augment_magnitude}."
            )


@dataclass(frozen=True, kw_only=True)
class SampledAugmentation:
    """What is left to be done to the frames of a training clip that are cropped, resized and mirrored.

    Attributes:
        operations: of RandAugment, as `sample_operations` gives them.
        magnitude: their strength, of 30.
        jitter: factors of brightness, contrast and saturation; None for no colour jitter.
        erased: top, left, height and width of the rectangle that is replaced; None for none.
        noise: [3, height, width], what it is replaced by.
    """

    operations: tuple[tuple[int, int], ...] = ()
    magnitude: int = 0
    jitter: tuple[float, float, float] | None = None
    erased: tuple[int, int, int, int] | None = None
    noise: Tensor | None = None

    def pin_memory(self) -> "SampledAugmentation":
        """The same with the noise in page-locked memory."""
        return self if self.noise is None else replace(self, noise=self.noise.pin_memory())


class TrainTransform:
    """Frames as a training clip: random crop, flip, inversion, RandAugment, colour jitter, normalisation, erasing.

    Everything is sampled once and done to all frames alike. Frames are resized as bytes, which rounds to 1/255 and
    costs a tenth of resizing floats.

    Args:
        preprocessing: size, mean, std and interpolation.
        augment: what is sampled.

    Example:
        >>> transform = TrainTransform(Preprocessing(size=64), AugmentConfig())
        >>> transform(torch.zeros(8, 3, 72, 96, dtype=torch.uint8), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 64, 64])
    """

    def __init__(self, preprocessing: Preprocessing, augment: AugmentConfig) -> None:
        self.preprocessing, self.augment = preprocessing, augment

    def __call__(
        self,
        pixels: Pixels,
        *,
        generator: torch.Generator,
        mirror: bool | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The clip.

        Args:
            pixels: [T, 3, H, W], uint8, or float in [0, 1].
            generator: of all random numbers.
            mirror: whether to mirror; by default sampled, by `flip_rate`.
            out: [T, 3, size, size], float32, to write the clip into; by default new memory.

        Returns:
            [T, 3, size, size], float32.

        Raises:
            ShapeError: pixels are not of this form.
            NonFiniteError: a float pixel is NaN or infinite.
        """
        frames, left = self.sample(pixels, generator=generator, mirror=mirror)
        return finish_clip(frames, left, self.preprocessing, out=out)

    def sample(
        self, pixels: Pixels, *, generator: torch.Generator, mirror: bool | None = None
    ) -> tuple[Tensor, SampledAugmentation]:
        """The frames cropped, resized, mirrored and inverted, and what `finish_clip` is to do to them, on any device.

        Args:
            pixels: [T, 3, H, W], uint8, or float in [0, 1].
            generator: of all random numbers.
            mirror: whether to mirror; by default sampled, by `flip_rate`.

        Returns:
            [T, 3, size, size] in the dtype of the pixels, and the rest.

        Raises:
            ShapeError, NonFiniteError: as above.
        """
        check_pixels(pixels)
        settings, augment = self.preprocessing, self.augment
        size = pixels.shape[2:]
        # of a whole frame that is stretched into a square, shapes are those within the square
        stretched = size[1] / size[0] if settings.whole_frame else 1.0
        low, high = (stretched * aspect for aspect in augment.crop_aspect)
        top, left, height, width = sample_crop(size, augment.crop_scale, (low, high), generator)
        crop = pixels[:, :, top : top + height, left : left + width]
        frames = resize(crop, (settings.size, settings.size), settings.interpolation)
        sampled = chance(augment.flip_rate, generator)
        if sampled if mirror is None else mirror:
            frames = frames.flip(3)
        num_operations, strength = augment.rand_augment_operations, augment.color_jitter
        operations = sample_operations(num_operations, generator) if num_operations else ()
        jitter = _sample_jitter(strength, generator) if strength else None
        box = _sample_box((settings.size, settings.size), generator) if chance(augment.erase_rate, generator) else None
        noise = None if box is None else torch.randn(3, *box[2:], generator=generator)
        # the last draw: a rate of 0 leaves all others as they are
        if augment.invert_rate and chance(augment.invert_rate, generator):
            frames = (255 if frames.dtype == torch.uint8 else 1) - frames
        return frames, SampledAugmentation(
            operations=operations,
            magnitude=augment.rand_augment_magnitude,
            jitter=jitter,
            erased=box,
            noise=noise,
        )


def finish_clip(
    frames: Tensor, left: SampledAugmentation, settings: Preprocessing, *, out: Tensor | None = None
) -> Tensor:
    """The clip of frames that `TrainTransform.sample` gave: RandAugment, colour jitter, normalisation, random erasing.

    Args:
        frames: [T, 3, size, size], uint8, or float in [0, 1], on any device.
        left: what to do.
        settings: mean and std.
        out: [T, 3, size, size], float32, to write the clip into; by default new memory.

    Returns:
        [T, 3, size, size], float32, on the device of the frames.
    """
    if left.operations or left.jitter is not None:
        frames = to_unit(frames)
    if left.operations:
        frames = carry_out(frames, left.operations, magnitude=left.magnitude, in_place=True)
    if left.jitter is not None:
        frames = jitter_colors(frames, left.jitter)
    clip = normalise(frames, settings, out=out)
    if left.erased is not None and left.noise is not None:
        top, column, height, width = left.erased
        clip[:, :, top : top + height, column : column + width] = left.noise.to(clip.device, non_blocking=True)
    return clip


def finish_clips(clips: Tensor, left: Sequence[SampledAugmentation], settings: Preprocessing) -> Tensor:
    """`finish_clip` of each clip of a batch: [B, T, 3, size, size] uint8 -> float32, where they are."""
    out = torch.empty(clips.shape, device=clips.device)
    for frames, own, clip in zip(clips, left, out, strict=True):
        finish_clip(frames, own, settings, out=clip)
    return out


class EvalTransform:
    """Frames as the views of a test clip: short side resized, crops along the longer side, normalised.

    With `whole_frame`, both sides are resized, so that all crops are the same. Frames are resized as bytes where they
    come as bytes, which rounds to 1/255.

    Args:
        preprocessing: size, crop_ratio, mean, std and interpolation.
        crops: 1 takes the middle; more are spread from one end of the longer side to the other.

    Raises:
        ConfigError: crops is below 1.

    Example:
        >>> transform = EvalTransform(Preprocessing(size=64), crops=3)
        >>> transform(torch.zeros(8, 3, 72, 96, dtype=torch.uint8)).shape
        torch.Size([3, 8, 3, 64, 64])
    """

    def __init__(self, preprocessing: Preprocessing, *, crops: int = 1) -> None:
        if crops < 1:
            raise ConfigError(f"crops must be at least 1, got {crops}.")
        self.preprocessing, self.crops = preprocessing, crops

    def __call__(self, pixels: Pixels, *, out: Tensor | None = None) -> Tensor:
        """The views.

        Args:
            pixels: [T, 3, H, W], uint8, or float in [0, 1].
            out: [crops, ..., 3, size, size], float32, to write them into, where ... are axes whose product is T; by
                default new memory.

        Returns:
            [crops, T, 3, size, size], float32, or `out`.

        Raises:
            ShapeError: pixels are not of this form.
            NonFiniteError: a float pixel is NaN or infinite.
        """
        check_pixels(pixels)
        settings = self.preprocessing
        short, size = round(settings.size / settings.crop_ratio), settings.size
        height, width = pixels.shape[2:]
        scale = short / min(height, width)
        height, width = max(short, round(height * scale)), max(short, round(width * scale))
        if settings.whole_frame:
            height = width = short
        frames = resize(pixels, (height, width), settings.interpolation)
        views = torch.empty(self.crops, len(frames), 3, size, size) if out is None else out
        frames = frames.unflatten(0, views.shape[1:-3])
        for number, view in enumerate(views):
            fraction = 0.5 if self.crops == 1 else number / (self.crops - 1)
            top = round((height - size) * (fraction if height > width else 0.5))
            left = round((width - size) * (fraction if width >= height else 0.5))
            normalise(frames[..., top : top + size, left : left + size], settings, out=view)
        return views


@renamed_parameters(places="positions")
def mix(
    clips: Tensor,
    soft_labels: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    positions: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch whose clips are blended (mixup) or pasted into each other (cutmix) in pairs, and their labels.

    Positions 0 and 1 are a pair, 2 and 3, and so on: order is random already. So a batch that is divided between
    processes or cut into smaller ones at even positions, mixed with the same generator, gives the same clips. A clip
    whose partner is not there stays as it is.

    Args:
        clips: [B, T, 3, H, W], float, on any device.
        soft_labels: [B, K], the probability of each class, on the same device.
        config: mixup_alpha, cutmix_alpha and mix_rate.
        generator: of the random numbers, on the CPU, one for the batch.
        positions: of the B clips in the batch as it was ordered (`Batch.positions`), where some were left out.

    Returns:
        Mixed clips and labels of the same shapes; the arguments are left as they are.

    Raises:
        ShapeError: clips are not [B, T, 3, H, W], labels not [B, K], or positions not B different numbers.

    Source: mixup (arXiv 1710.09412), eq. 1; CutMix (arXiv 1905.04899), eq. 1 and 2. The rectangle is the same in all
        frames.

    Example:
        >>> labels = torch.eye(2)
        >>> clips, mixed = mix(torch.rand(2, 8, 3, 32, 32), labels, AugmentConfig(), torch.Generator().manual_seed(0))
        >>> clips.shape, mixed.sum(1).tolist()
        (torch.Size([2, 8, 3, 32, 32]), [1.0, 1.0])
    """
    if clips.ndim != 5 or soft_labels.ndim != 2 or len(clips) != len(soft_labels):
        raise ShapeError(
            f"clips must be [B, T, 3, H, W] and soft_labels [B, K], got {list(clips.shape)}, {list(soft_labels.shape)}."
        )
    partner_of = _partners(range(len(clips)) if positions is None else positions, len(clips))
    alphas = [config.mixup_alpha, config.cutmix_alpha]
    alone = partner_of == list(range(len(clips)))
    if alone or not any(alphas) or not chance(config.mix_rate, generator):
        return clips, soft_labels
    partners = torch.tensor(partner_of, dtype=torch.int64).to(clips.device, non_blocking=True)
    cut = not alphas[0] or (alphas[1] > 0 and chance(0.5, generator))
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    kept = float(numbers.beta(alphas[cut], alphas[cut]))
    if cut:
        height, width = clips.shape[-2:]
        rows, columns = _sample_rectangle((height, width), 1 - kept, numbers)
        pasted = clips[..., rows, columns][partners]
        clips = clips.clone()
        clips[..., rows, columns] = pasted
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        clips = clips.lerp(clips[partners], 1 - kept)
    return clips, soft_labels.lerp(soft_labels[partners], 1 - kept)


def _partners(positions: Sequence[int], num_clips: int) -> list[int]:
    """Of each of the B clips, the clip that each is paired with; itself where its partner is not there."""
    index_of = {position: index for index, position in enumerate(positions)}
    if not len(positions) == len(index_of) == num_clips:
        raise ShapeError(f"positions must be {num_clips} different numbers, one for each clip, got {list(positions)}.")
    return [index_of.get(position ^ 1, index_of[position]) for position in positions]


def check_pixels(pixels: Tensor) -> None:
    """Passes frames as `read` gives them, and floats instead of them.

    Raises:
        ShapeError: pixels are not [T, 3, H, W] of uint8 or a float type.
        NonFiniteError: a float pixel is NaN or infinite.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise ShapeError(f"pixels must be [T, 3, H, W] with T >= 1, got {list(pixels.shape)}.")
    if pixels.dtype == torch.uint8:
        return
    if not pixels.is_floating_point():
        raise ShapeError(f"pixels must be uint8, or float in [0, 1], got {pixels.dtype}.")
    finite = torch.isfinite(pixels).flatten(1).all(1)
    if not finite.all():
        broken = (~finite).nonzero().flatten().tolist()
        raise NonFiniteError(f"pixels hold NaN or infinity in {len(broken)} of {len(finite)} frames: {broken[:8]}.")


def resize(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Frames at another size, with antialiasing.

    Args:
        pixels: [T, 3, H, W], uint8 or float.
        size: (height, width).
        interpolation: "bilinear" or "bicubic".

    Returns:
        [T, 3, height, width] in the dtype of `pixels`; `pixels` itself where it has this size.
    """
    if tuple(pixels.shape[2:]) == size:
        return pixels
    # bytes with the channels last take the fast path
    layout = torch.channels_last if pixels.dtype == torch.uint8 else torch.contiguous_format
    return F.interpolate(pixels.contiguous(memory_format=layout), size=size, mode=interpolation, antialias=True)


def to_unit(pixels: Tensor) -> Tensor:
    """[T, 3, H, W], uint8 or float, as contiguous float32 in [0, 1]."""
    frames = torch.empty(pixels.shape, device=pixels.device).copy_(pixels)
    return frames.div_(255) if pixels.dtype == torch.uint8 else frames.clamp_(0, 1)


def normalise(pixels: Tensor, settings: Preprocessing, *, out: Tensor | None = None) -> Tensor:
    """(pixels / 255 - mean) / std; floats are taken to be in [0, 1] already.

    Args:
        pixels: [T, 3, H, W], uint8 or float.
        settings: mean and standard deviation of each channel.
        out: [T, 3, H, W], float32, to write into; None: new, contiguous memory.

    Returns:
        [T, 3, H, W], float32.
    """
    white = 255 if pixels.dtype == torch.uint8 else 1
    return normalisation.normalise(pixels, settings.mean, settings.std, white=white, out=out)


def sample_crop(
    size: tuple[int, ...], scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """A random crop: its area uniform in `scale`, its aspect log-uniform in `aspect`.

    Where ten samples do not fit, it is the largest crop in the middle whose aspect is allowed.

    Args:
        size: (height, width) of the frame, in pixels.
        scale: lowest and highest area, as fractions of the frame's.
        aspect: lowest and highest width over height.
        generator: gives the random numbers.

    Returns:
        Top, left, height and width, in pixels.
    """
    height, width = size
    crop = _try_crop(height, width, scale, aspect, generator)
    if crop is not None:
        return crop
    ratio = min(max(width / height, aspect[0]), aspect[1])
    crop_width, crop_height = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _try_crop(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int] | None:
    for _ in range(10):
        area_fraction, shape, y, x = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (scale[0] + area_fraction * (scale[1] - scale[0]))
        ratio = aspect[0] * (aspect[1] / aspect[0]) ** shape
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(y * (height - crop_height + 1)), int(x * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return None


def _sample_jitter(strength: float, generator: torch.Generator) -> tuple[float, float, float]:
    """Factors of brightness, contrast and saturation."""
    brightness, contrast, saturation = (1 + strength * (2 * torch.rand(3, generator=generator) - 1)).tolist()
    return brightness, contrast, saturation


def jitter_colors(frames: Tensor, factors: tuple[float, float, float]) -> Tensor:
    """Brightness, contrast and saturation, in place; contrast is about the mean of the whole clip.

    Args:
        frames: [T, 3, H, W] in [0, 1], changed.
        factors: of brightness, contrast and saturation; 1 leaves each as it is.
    """
    brightness, contrast, saturation = factors
    mean = torch.stack([grey(chunk).mean() for chunk in chunks(frames)]).mean().mul_(brightness)
    for chunk in chunks(frames):
        chunk.mul_(brightness * contrast).add_(mean, alpha=1 - contrast)
        luma = grey(chunk)
        chunk.mul_(saturation).add_(luma, alpha=1 - saturation).clamp_(0, 1)
    return frames


def _sample_box(size: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int] | None:
    """The rectangle of random erasing; the noise in it stands still."""
    return _try_crop(*size, (0.02, 1 / 3), (0.3, 1 / 0.3), generator)


def _sample_rectangle(size: tuple[int, int], fraction: float, numbers: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a rectangle of this fraction of the area, cut off at the border."""
    slices = []
    for length in size:
        middle, half = int(numbers.integers(length)), int(length * math.sqrt(fraction)) // 2
        slices.append(slice(max(0, middle - half), min(length, middle + half)))
    return slices[0], slices[1]


def chance(rate: float, generator: torch.Generator) -> bool:
    """Whether something happens that does at this rate."""
    return float(torch.rand((), generator=generator)) < rate
