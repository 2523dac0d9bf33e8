import pytest
import torch

from kinescan.data import transforms
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.normalisation import normalise
from kinescan.vlm.families import pixels


def test_clips_and_frames_of_vlms_are_normalised_alike() -> None:
    frames = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = Preprocessing()
    clip = transforms.normalise(frames, settings)
    assert torch.equal(
        clip, pixels.normalise(frames.float(), pixels.PixelSettings(mean=settings.mean, std=settings.std))
    )
    exact = (frames.double() / 255 - torch.tensor(settings.mean, dtype=torch.float64).view(3, 1, 1)) / torch.tensor(
        settings.std, dtype=torch.float64
    ).view(3, 1, 1)
    torch.testing.assert_close(clip.double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_result_is_float32_in_memory_that_is_given(dtype: torch.dtype) -> None:
    frames = torch.ones(1, 3, 2, 2, dtype=dtype)
    out = torch.empty(1, 3, 2, 2)
    white = 255 if dtype == torch.uint8 else 1
    found = normalise(frames, (0.0, 0.0, 0.0), (1.0, 2.0, 4.0), white=white, out=out)
    assert found is out
    torch.testing.assert_close(out[0, :, 0, 0] * white, torch.tensor([1.0, 0.5, 0.25]))
    assert torch.equal(frames, torch.ones_like(frames))


def test_clips_and_frames_of_vlms_are_resized_by_other_arithmetic() -> None:
    """Each equals another reference (docs/decisions/16): this fails once they are equal."""
    frames = torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = transforms.resize(frames, (112, 112), "bicubic")
    assert clip.dtype == torch.uint8
    assert not torch.equal(clip.float(), pixels.resize(frames, (112, 112)))
