import pytest
import torch
from PIL import Image

from kinescan.errors import ConfigError, ShapeError
from kinescan.inference import draw_strip
from kinescan.inference.explain import kinematic_maps

PATCH = 8


@pytest.fixture
def local_model(make_model):
    """A PKS4 of 8x8 patches without positions, attention or MLP: features move exactly as patches do."""

    def make(**options):
        model = make_model(image_size=64, preprocessing_size=64, **options)
        with torch.no_grad():
            model.vit.positional_embedding.zero_()
            for block in model.vit.blocks:
                block.attn.out_proj.weight.zero_()
                block.mlp.c_proj.weight.zero_()
        return model

    return make


def shifted_clip(rows: int, columns: int, num_frames: int = 3) -> torch.Tensor:
    """Random patches that move by whole patches from frame to frame."""
    ground = torch.randn(3, 3 * 64, 3 * 64)
    ground = ground.unflatten(1, (24, 8)).unflatten(3, (24, 8))
    frames = []
    for t in range(num_frames):
        top, left = 8 - t * rows, 8 - t * columns
        frames.append(ground[:, top : top + 8, :, left : left + 8].flatten(3).flatten(1, 2))
    return torch.stack(frames)[None]


@pytest.mark.parametrize("shift", [(0, 1), (0, -2), (1, 0), (-1, 2), (0, 0)])
@pytest.mark.parametrize("options", [{}, {"correlation": False, "variation": False}])
def test_kinematic_maps_find_where_patches_went(local_model, shift, options):
    clip = shifted_clip(*shift)
    maps = kinematic_maps(local_model(**options), clip)
    inside = maps.displacement[:, :, 3:5, 3:5]
    assert inside.shape == (2, 2, 2, 2)
    assert (inside[:, 0] == shift[0]).all()
    assert (inside[:, 1] == shift[1]).all()
    assert (maps.change[:, 3:5, 3:5] > 0.1).all() == (shift != (0, 0))


def test_kinematic_maps_show_change_only_where_there_is_some(local_model):
    clip = torch.randn(1, 1, 3, 64, 64).repeat(1, 3, 1, 1, 1)
    clip[0, 2, :, :PATCH, :PATCH] += 2
    maps = kinematic_maps(local_model(), clip)
    assert maps.change[0].abs().max() == 0
    assert maps.change[1, 0, 0] > 0.1
    # Group norm spreads a little of it over the frame.
    assert maps.change[1, 4:, 4:].max() < 0.1 * maps.change[1, 0, 0]
    assert (maps.displacement[0] == 0).all()
    assert (maps.gain[0] <= 1e-6).all()


@pytest.mark.parametrize(
    "options",
    [
        {"correlation": False},
        {"variation": False},
        {"scanner": False, "correlation": False, "variation": False, "insert_after": 8},
        {"causal": True},
        {"scanner": False, "correlation": False, "variation": False, "class_token_route": "none"},
    ],
)
def test_kinematic_maps_of_every_kind_of_model(make_model, options):
    model = make_model(**options).train()
    clip = torch.randn(1, 4, 3, 32, 32)
    maps = kinematic_maps(model, clip)
    assert maps.displacement.shape == (3, 2, 4, 4)
    assert maps.change.shape == maps.gain.shape == (3, 4, 4)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(maps.logits, model.eval()(clip)[0])


@pytest.mark.parametrize("shape", [(2, 4, 3, 32, 32), (1, 1, 3, 32, 32), (4, 3, 32, 32)])
def test_kinematic_maps_want_one_clip_of_two_frames_or_more(model, shape):
    with pytest.raises(ShapeError, match=r"\[1, T, 3, H, W\].*T.*2"):
        kinematic_maps(model, torch.randn(shape))


def test_kinematic_maps_want_a_pks4():
    with pytest.raises(ConfigError, match="PKS4"):
        kinematic_maps(torch.nn.Linear(2, 2), torch.randn(1, 2, 3, 32, 32))


@pytest.mark.parametrize(("num_frames", "columns"), [(4, 4), (20, 8)])
def test_draw_strip_writes_a_picture_with_a_column_a_frame(model, tmp_path, num_frames, columns):
    clip = torch.randn(1, num_frames, 3, 32, 32)
    path = tmp_path / "strip.png"
    seconds = [0.1 * t for t in range(num_frames)]
    maps = kinematic_maps(model, clip)
    draw_strip(clip[0], maps, path, preprocessing=model.preprocessing, title="a.mp4: left 60 %", seconds=seconds)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width / picture.height == pytest.approx((1.9 * columns + 0.6) / (1.9 * 3 + 0.75), rel=0.08)
        assert len(set(picture.convert("RGB").get_flattened_data())) > 100


def test_draw_strip_says_that_it_cannot_write(model, tmp_path):
    clip = torch.randn(1, 2, 3, 32, 32)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="written"):
        draw_strip(
            clip[0],
            kinematic_maps(model, clip),
            tmp_path / "file" / "strip.png",
            preprocessing=model.preprocessing,
            title="",
        )
