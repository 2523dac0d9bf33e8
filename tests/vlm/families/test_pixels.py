import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kinescan.errors import ConfigError, ShapeError
from kinescan.vlm.families import PixelSettings, family_class, read_pixel_settings
from kinescan.vlm.families.pixels import free_size, normalise, patchify, resize

SIZES = [(720, 1280), (480, 640), (28, 28), (37, 2000), (5000, 4000), (60, 90), (1, 150), (240, 426)]


def frames_of(num_frames, height, width):
    """Smooth frames, as pictures are."""
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 9, width), indexing="ij")
    waves = torch.stack([torch.sin(y * (c + 1) + x * (t + 1)) for t in range(num_frames) for c in range(3)])
    return (waves.reshape(num_frames, 3, height, width) * 120 + 128).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_free_size_keeps_the_documented_conditions(size):
    lowest, highest = 3136, 602112
    height, width = free_size(*size, factor=28, min_pixels=lowest, max_pixels=highest)
    assert height % 28 == width % 28 == 0
    assert lowest <= height * width <= highest
    shape = (height / width) / (size[0] / size[1])
    if min(size) >= 56:
        assert 0.75 < shape < 1.34


@pytest.mark.parametrize("size", SIZES)
def test_free_size_agrees_with_transformers(size):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    for limits in ((3136, 602112), (56 * 56, 14 * 14 * 4 * 1280), (100_000, 120_000)):
        ours = free_size(*size, factor=28, min_pixels=limits[0], max_pixels=limits[1])
        assert ours == module.smart_resize(*size, factor=28, min_pixels=limits[0], max_pixels=limits[1])


def test_patchify_order_worked_by_hand():
    frames = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    rows, grid = patchify(frames, patch=2, merge=2, temporal_patch=2)
    assert grid == (1, 4, 4)
    expected = []
    for block_y in range(2):
        for block_x in range(2):
            for y in range(2):
                for x in range(2):
                    top, left = 4 * block_y + 2 * y, 4 * block_x + 2 * x
                    row = [frames[t, c, top + i, left + j]
                           for c in range(3) for t in range(2) for i in range(2) for j in range(2)]  # fmt: skip
                    expected.append(row)
    assert torch.equal(rows, torch.tensor(expected))


def test_patchify_repeats_the_last_frame():
    frames = torch.randn(3, 3, 4, 4)
    rows, grid = patchify(frames, patch=2, merge=2, temporal_patch=2)
    assert grid[0] == 2
    assert torch.equal(rows, patchify(frames[[0, 1, 2, 2]], patch=2, merge=2, temporal_patch=2)[0])


@pytest.mark.parametrize(("size", "target"), [((48, 80), (28, 56)), ((30, 30), (84, 56)), ((28, 28), (28, 28))])
def test_resize_agrees_with_pillow(size, target):
    frame = frames_of(1, *size)
    found = resize(frame, target)[0]
    image = Image.fromarray(frame[0].permute(1, 2, 0).numpy()).resize(target[::-1], Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()
    assert (found - expected).abs().max() <= 1
    assert torch.equal(found, found.round())


def test_normalise_is_the_documented_formula():
    settings = PixelSettings(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    frame = torch.tensor([0.0, 255.0, 51.0]).view(1, 3, 1, 1)
    expected = [(0 / 255 - 0.1) / 0.5, (255 / 255 - 0.2) / 0.6, (51 / 255 - 0.3) / 0.7]
    torch.testing.assert_close(normalise(frame, settings).flatten(), torch.tensor(expected))


def test_qwen_pixels_agree_with_transformers(vlm):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    model = vlm("qwen2_5_vl")
    settings = PixelSettings(min_pixels=512, max_pixels=1024)
    family = family_class(model)(model, pixels=settings)
    frame = frames_of(1, 48, 60)
    processor = module.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 512, "longest_edge": 1024}
    )
    output = processor(Image.fromarray(frame[0].permute(1, 2, 0).numpy()), return_tensors="pt")
    found = family.prepare(frame)
    assert found.shape == output["pixel_values"].shape
    assert family.frame_size(48, 60) == tuple(4 * side for side in output["image_grid_thw"][0, 1:].tolist())
    # One step of 255 is 0.0146 to 0.0157 after normalising.
    assert (found - output["pixel_values"]).abs().max() < 0.016


def test_fixed_size_pixels_agree_with_transformers(vlm):
    module = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    model = vlm("internvl")
    frame = frames_of(1, 48, 60)
    processor = module.GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, crop_to_patches=False)
    image = Image.fromarray(frame[0].permute(1, 2, 0).numpy())
    expected = processor(image, return_tensors="pt")["pixel_values"]
    found = family_class(model)(model, pixels=PixelSettings()).prepare(frame)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.016


def test_qwen3_frame_size_shares_the_allowance_of_the_whole_video(vlm):
    model = vlm("qwen3_vl")
    kind = family_class(model)
    settings = PixelSettings(mean=(0.5,) * 3, std=(0.5,) * 3, min_pixels=4096, max_pixels=409_600)
    few, many = (kind(model, pixels=settings, horizon_frames=count) for count in (10, 100))
    assert few.frame_size(720, 1280) == free_size(720, 1280, factor=8, min_pixels=1, max_pixels=40960)
    assert many.frame_size(720, 1280) == free_size(720, 1280, factor=8, min_pixels=1, max_pixels=4300)
    # Alone, a frame is held to 768 tokens of 8 x 8 pixels.
    height, width = kind(model, pixels=settings).frame_size(720, 1280)
    assert height * width <= 768 * 64
    assert kind(model, pixels=replace(settings, min_pixels=64)).frame_size(4, 40) == (8, 80)


@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_fixed_size_families_take_any_frame(name, vlm):
    model = vlm(name)
    family = family_class(model)(model, pixels=PixelSettings())
    side = 24 if name == "llava_onevision" else 16
    prepared = family.prepare(frames_of(2, 40, 50))
    assert prepared.shape == (2, 3, side, side)
    expected = normalise(resize(frames_of(2, 40, 50), (side, side)), PixelSettings())
    assert torch.equal(prepared, expected)


def test_settings_are_read_from_a_checkpoint(tmp_path, vlm):
    kind = family_class(vlm("qwen2_5_vl"))
    assert read_pixel_settings(kind, tmp_path) == kind.default_pixels
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.4, 0.4, 0.4], "min_pixels": 64, "max_pixels": 4096}'
    )
    settings = read_pixel_settings(kind, str(tmp_path))
    assert settings == PixelSettings(mean=(0.5,) * 3, std=(0.4,) * 3, min_pixels=64, max_pixels=4096)
    (tmp_path / "video_preprocessor_config.json").write_text('{"size": {"height": 20, "width": 30}}')
    assert read_pixel_settings(kind, tmp_path).size == (20, 30)
    assert read_pixel_settings(kind, None) == kind.default_pixels


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: free_size(1, 300, factor=28, min_pixels=1, max_pixels=9), ShapeError, "too narrow"),
        (lambda: PixelSettings(min_pixels=10, max_pixels=5), ConfigError, "min_pixels=10, max_pixels=5"),
        (lambda: PixelSettings(std=(0.1, 0.0, 0.1)), ConfigError, "positive"),
    ],
)
@pytest.mark.bad_input
def test_bad_input_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_area_stays_near_what_was_asked():
    height, width = free_size(480, 640, factor=28, min_pixels=200_000, max_pixels=210_000)
    assert math.isclose(height * width, 205_000, rel_tol=0.08)
