"""Our operations against kornia's, which they stood on before, and colour jitter against its formula."""

import kornia.enhance
import kornia.geometry.transform
import pytest
import torch

from kinescan.data.rand_augment import OPERATIONS, carry_out, sample_operations
from kinescan.data.transforms import jitter_colors

TOLERANCE = 2e-5
STRENGTHS = (0.0, 0.3, 1.0)


def _clip(seed: int = 0, num_frames: int = 3, size: tuple[int, int] = (37, 52)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_frames, 3, 5, 6, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (wide * 0.9 + 0.05).mul(255).round().div(255)


def _tall(frames: torch.Tensor) -> torch.Tensor:
    return frames.transpose(0, 1).flatten(1, 2)[None]


def _wide(tall: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return tall[0].unflatten(1, (len(like), -1)).transpose(0, 1)


def _kornia(name: str, frames: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    factor = 1 + 0.9 * strength * sign
    if name == "equalize":
        return _wide(kornia.enhance.equalize(_tall(frames)), frames)
    if name == "contrast":
        return _wide(kornia.enhance.adjust_contrast_with_mean_subtraction(_tall(frames), factor), frames)
    if name == "color":
        return kornia.enhance.adjust_saturation_with_gray_subtraction(frames, factor)
    if name == "sharpness":
        return kornia.enhance.sharpness(frames, factor)
    height, width = frames.shape[-2:]
    one, zero = torch.ones(len(frames)), torch.zeros(len(frames))
    if name == "rotate":
        return kornia.geometry.transform.rotate(frames, sign * 30 * strength * one)
    by = 0.1 * strength * sign
    moved = (
        torch.stack([by * width * one, zero], 1) if name.endswith("x") else torch.stack([zero, by * height * one], 1)
    )
    return kornia.geometry.transform.translate(frames, moved)


@pytest.mark.parametrize("name", ["equalize", "contrast", "color", "sharpness", "rotate", "translate_x", "translate_y"])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_equal_kornia(name: str, strength: float, sign: int) -> None:
    frames = _clip()
    expected = _kornia(name, frames, strength, sign).clamp(0, 1)
    assert torch.allclose(OPERATIONS[name](frames.clone(), strength, sign), expected, atol=TOLERANCE)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_shearing_moves_rows_or_columns(axis: str) -> None:
    frames = torch.zeros(1, 3, 41, 41)
    frames[..., 30, 20] = 1
    frames = frames if axis == "x" else frames.transpose(2, 3).contiguous()
    out = OPERATIONS[f"shear_{axis}"](frames, 1.0, 1)
    out = out if axis == "x" else out.transpose(2, 3)
    assert out[0, 0, 30, 23] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_chunks_make_no_difference(name: str, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, where all frames are one chunk."""
    frames = _clip(1)
    by_frame = OPERATIONS[name](frames.clone(), 0.4, sign)
    monkeypatch.setattr("kinescan.data.rand_augment.chunks", lambda clip: iter([clip]))
    assert torch.allclose(OPERATIONS[name](frames.clone(), 0.4, sign), by_frame, atol=1e-6)


def test_the_frames_given_stay_as_they_are() -> None:
    frames = _clip(2)
    before = frames.clone()
    sampled = sample_operations(4, torch.Generator().manual_seed(0))
    out = carry_out(frames, sampled, magnitude=20)
    assert torch.equal(frames, before)
    assert torch.equal(carry_out(frames, sampled, magnitude=20, in_place=True), out)
    assert torch.equal(frames, out)


@pytest.mark.parametrize("factors", [(1.2, 0.7, 1.3), (0.8, 1.4, 0.0), (1.0, 1.0, 1.0)])
def test_jitter_is_its_formula(factors: tuple[float, float, float]) -> None:
    frames = _clip(3)
    brightness, contrast, saturation = factors
    bright = frames * brightness
    luma = (bright * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    contrasted = luma.mean() + contrast * (bright - luma.mean())
    grey = luma.mean() + contrast * (luma - luma.mean())
    expected = grey.lerp(contrasted, saturation).clamp(0, 1)
    assert torch.allclose(jitter_colors(frames.clone(), factors), expected, atol=TOLERANCE)
