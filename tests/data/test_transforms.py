import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.data.rand_augment import OPERATIONS, rand_augment
from kinescan.data.transforms import AugmentConfig, EvalTransform, TrainTransform, mix, sample_crop
from kinescan.errors import ConfigError, NonFiniteError, ShapeError
from kinescan.preprocessing import Preprocessing

PLAIN = AugmentConfig(rand_augment_operations=0, erase_rate=0, mixup_alpha=0, cutmix_alpha=0)
SETTINGS = Preprocessing(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def picture(height: int = 48, width: int = 72, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1).mul(255).byte()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def back(clip: Tensor, settings: Preprocessing = SETTINGS) -> Tensor:
    """Normalised pixels as [0, 255] again."""
    return (clip * torch.tensor(settings.std).view(3, 1, 1) + torch.tensor(settings.mean).view(3, 1, 1)) * 255


@pytest.mark.parametrize("seed", range(12))
def test_a_still_clip_stays_still(seed: int) -> None:
    augment = AugmentConfig(flip_rate=0.5, rand_augment_magnitude=15, color_jitter=0.4, erase_rate=1.0)
    clip = TrainTransform(SETTINGS, augment)(picture().repeat(5, 1, 1, 1), generator=seeded(seed))
    assert clip.shape == (5, 3, 32, 32)
    assert torch.isfinite(clip).all()
    assert torch.allclose(clip, clip[:1].expand_as(clip), atol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_treat_frames_alike(name: str, sign: int) -> None:
    frames = picture(24, 32).float().div(255).repeat(3, 1, 1, 1) * 0.5 + 0.2
    out = OPERATIONS[name](frames.clone(), 0.5, sign)
    assert out.shape == frames.shape
    assert torch.allclose(out, out[:1].expand_as(out), atol=1e-5)
    assert not torch.allclose(out, frames, atol=0.01)


@pytest.mark.parametrize("name", ["auto_contrast", "equalize", "contrast", "brightness", "solarize"])
def test_operations_do_not_flicker(name: str) -> None:
    """A patch that does not change keeps its colour whatever happens in the rest of the picture."""
    frames = picture(24, 32).float().div(255).repeat(2, 1, 1, 1) * 0.5 + 0.2
    frames[1, :, 12:] = 1.0
    out = OPERATIONS[name](frames.clone(), 0.5, 1)
    assert torch.allclose(out[0, :, :10], out[1, :, :10], atol=1e-5)


def test_strength_zero_of_graded_operations_is_the_identity() -> None:
    frames = picture(24, 32).float().div(255)
    for name in set(OPERATIONS) - {"auto_contrast", "equalize", "invert"}:
        assert torch.allclose(OPERATIONS[name](frames.clone(), 0.0, 1), frames, atol=1e-5), name


def test_translation_moves_by_its_fraction() -> None:
    frames = torch.zeros(1, 3, 20, 40)
    frames[:, :, 10, 20] = 1
    assert OPERATIONS["translate_x"](frames.clone(), 1.0, 1)[0, 0, 10, 24] == pytest.approx(1, abs=1e-4)
    assert OPERATIONS["translate_y"](frames.clone(), 1.0, -1)[0, 0, 8, 20] == pytest.approx(1, abs=1e-4)


def test_rand_augment_draws_by_its_generator() -> None:
    frames = picture().float().div(255)
    draws = [rand_augment(frames, num_operations=2, magnitude=9, generator=seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.rand(3)
    assert torch.equal(draws[0], rand_augment(frames, num_operations=2, magnitude=9, generator=seeded(0)))


def test_train_clip_depends_on_its_generator_only() -> None:
    transform = TrainTransform(SETTINGS, AugmentConfig(color_jitter=0.4))
    first = transform(picture(), generator=seeded(3))
    torch.manual_seed(99)
    assert torch.equal(first, transform(picture(), generator=seeded(3)))
    assert not torch.equal(first, transform(picture(), generator=seeded(4)))


def test_flip_is_off_by_default_and_mirrors_when_on() -> None:
    whole = {"crop_scale": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "rand_augment_operations": 0, "erase_rate": 0.0}
    pixels = picture(32, 32)
    plain = TrainTransform(SETTINGS, AugmentConfig(**whole))(pixels, generator=seeded())
    flipped = TrainTransform(SETTINGS, AugmentConfig(**whole, flip_rate=1.0))(pixels, generator=seeded())
    assert AugmentConfig().flip_rate == 0
    assert torch.allclose(back(plain), pixels.float(), atol=1e-3)
    assert torch.equal(flipped, plain.flip(3))


@pytest.mark.parametrize("floats", [False, True])
def test_colours_are_inverted_when_asked_for_and_nothing_else_changes(floats: bool) -> None:
    varied = {"flip_rate": 0.5, "erase_rate": 0.0, "color_jitter": 0.3}
    pixels = picture() / 255 if floats else picture()
    never, always = (TrainTransform(SETTINGS, AugmentConfig(**varied, invert_rate=rate)) for rate in (0.0, 1.0))
    assert AugmentConfig().invert_rate == 0
    for seed in range(4):
        (plain, left), (inverted, also_left) = (one.sample(pixels, generator=seeded(seed)) for one in (never, always))
        assert inverted.dtype == plain.dtype
        assert torch.equal(inverted, (1 if floats else 255) - plain)
        assert also_left == left
    half = TrainTransform(SETTINGS, AugmentConfig(**varied, invert_rate=0.5))
    both = ([one.sample(pixels, generator=seeded(seed))[0] for one in (never, half)] for seed in range(12))
    assert {torch.equal(plain, sampled) for plain, sampled in both} == {True, False}


def test_mirroring_can_be_decided_from_outside_without_changing_the_other_draws() -> None:
    transform = TrainTransform(SETTINGS, AugmentConfig(flip_rate=0.5, erase_rate=0.0, rand_augment_operations=0))
    plain = [transform(picture(), generator=seeded(seed), mirror=False) for seed in range(8)]
    mirrored = [transform(picture(), generator=seeded(seed), mirror=True) for seed in range(8)]
    sampled = [transform(picture(), generator=seeded(seed)) for seed in range(8)]
    assert all(torch.equal(one, other.flip(3)) for one, other in zip(plain, mirrored, strict=True))
    assert {torch.equal(one, other) for one, other in zip(sampled, mirrored, strict=True)} == {True, False}


@pytest.mark.parametrize("augment", [PLAIN, AugmentConfig(color_jitter=0.3, erase_rate=1.0)])
def test_clips_are_written_where_they_are_wanted(augment: AugmentConfig) -> None:
    pixels = picture().repeat(6, 1, 1, 1)
    train, block = TrainTransform(SETTINGS, augment), torch.full((2, 6, 3, 32, 32), math.nan)
    clip = train(pixels, generator=seeded(1), out=block[1])
    assert clip.data_ptr() == block[1].data_ptr()
    assert torch.equal(block[1], train(pixels, generator=seeded(1)))
    test, views = EvalTransform(SETTINGS, crops=3), torch.full((2, 3, 3, 3, 32, 32), math.nan)
    test(pixels, out=views.transpose(0, 1))
    expected = test(pixels).unflatten(1, (2, 3)).transpose(0, 1)  # [clips, crops, T, 3, size, size]
    assert torch.equal(views, expected)


def test_crops_stay_inside_and_keep_scale_and_aspect() -> None:
    generator = seeded()
    for _ in range(300):
        top, left, height, width = sample_crop((48, 72), (0.25, 0.5), (0.75, 4 / 3), generator)
        assert 0 <= top <= 48 - height
        assert 0 <= left <= 72 - width
        assert 0.23 < height * width / (48 * 72) < 0.53
        assert 0.7 < width / height < 1.4
    assert sample_crop((10, 1000), (1.0, 1.0), (0.75, 4 / 3), generator) == (0, 493, 10, 13)
    assert sample_crop((1000, 10), (1.0, 1.0), (0.75, 4 / 3), generator) == (493, 0, 13, 10)


def test_erasing_replaces_one_rectangle_for_all_frames() -> None:
    clip = TrainTransform(SETTINGS, AugmentConfig(rand_augment_operations=0, erase_rate=1.0))
    plain = TrainTransform(SETTINGS, PLAIN)
    pixels = picture().repeat(4, 1, 1, 1)
    differs = (clip(pixels, generator=seeded(5)) != plain(pixels, generator=seeded(5))).all(1)
    assert torch.equal(differs, differs[:1].expand_as(differs))
    rows, columns = differs[0].nonzero(as_tuple=True)
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert area == len(rows)
    assert 0.01 < area / 32**2 < 0.4


def test_eval_resizes_the_short_side_and_crops_the_middle() -> None:
    pixels = picture(64, 96)
    views = EvalTransform(SETTINGS)(pixels)
    expected = F.interpolate(pixels.float(), size=(32, 48), mode="bilinear", antialias=True)[..., 8:40]
    assert views.shape == (1, 1, 3, 32, 32)
    # bytes are rounded once
    assert (back(views[0]) - expected).abs().max() < 1.1


@pytest.mark.parametrize(("height", "width"), [(32, 80), (80, 32)])
def test_three_crops_cover_the_longer_side(height: int, width: int) -> None:
    pixels = picture(height, width)
    views = EvalTransform(SETTINGS, crops=3)(pixels)
    assert views.shape == (3, 1, 3, 32, 32)
    for view, start in zip(views, (0, 24, 48), strict=True):
        crop = pixels[..., start : start + 32] if width > height else pixels[..., start : start + 32, :]
        assert torch.allclose(back(view), crop.float(), atol=1e-3)


def test_crop_ratio_leaves_a_border() -> None:
    settings = Preprocessing(size=32, crop_ratio=0.5, mean=SETTINGS.mean, std=SETTINGS.std)
    pixels = picture(64, 64)
    assert torch.allclose(back(EvalTransform(settings)(pixels)[0]), pixels[..., 16:48, 16:48].float(), atol=1e-3)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 64)])
def test_a_whole_frame_is_stretched_in_test_and_training_alike(size: tuple[int, int]) -> None:
    settings = Preprocessing(size=32, whole_frame=True, mean=SETTINGS.mean, std=SETTINGS.std)
    pixels = picture(*size)
    views = EvalTransform(settings, crops=3)(pixels)
    whole = F.interpolate(pixels.float(), size=(32, 32), mode="bilinear", antialias=True)
    assert (back(views) - whole).abs().max() < 1.5
    plain = AugmentConfig(
        crop_scale=(1, 1), crop_aspect=(1, 1), rand_augment_operations=0, erase_rate=0, mixup_alpha=0, cutmix_alpha=0
    )
    assert torch.equal(TrainTransform(settings, plain)(pixels, generator=seeded()), views[0])
    # shapes of crops are those within the square, whatever that of the frame
    shown = {sample_crop((64, 128), (0.5, 0.5), (2 * 0.75, 2 * 4 / 3), seeded(seed))[2:] for seed in range(40)}
    assert all(0.74 < width / 128 / (height / 64) < 1.36 for height, width in shown)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (31, 33), (500, 3)])
def test_any_size_becomes_a_clip(size: tuple[int, int], interpolation: str) -> None:
    settings = Preprocessing(size=32, interpolation=interpolation)  # type: ignore[arg-type]
    pixels = torch.full((2, 3, *size), 128, dtype=torch.uint8)
    assert EvalTransform(settings, crops=3)(pixels).shape == (3, 2, 3, 32, 32)
    assert TrainTransform(settings, AugmentConfig())(pixels, generator=seeded()).shape == (2, 3, 32, 32)


def test_floats_and_bytes_agree() -> None:
    pixels = picture(32, 32)
    assert torch.allclose(EvalTransform(SETTINGS)(pixels), EvalTransform(SETTINGS)(pixels / 255), atol=1e-5)


def test_channels_last_and_contiguous_agree() -> None:
    pixels = picture(48, 72).repeat(2, 1, 1, 1)
    decoded = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(EvalTransform(SETTINGS)(pixels), EvalTransform(SETTINGS)(decoded))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pixels_that_are_no_numbers_are_named(bad: float) -> None:
    pixels = torch.zeros(4, 3, 32, 32)
    pixels[2, 1, 5, 5] = bad
    with pytest.raises(NonFiniteError, match=r"NaN.*1.*4 frames: \[2\]"):
        EvalTransform(SETTINGS)(pixels)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        TrainTransform(SETTINGS, PLAIN)(pixels, generator=seeded())


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 1, 32, 32), (0, 3, 32, 32), (1, 4, 3, 32, 32)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"pixels.*\[T, 3, H, W\]"):
        EvalTransform(SETTINGS)(torch.zeros(shape, dtype=torch.uint8))


def test_wrong_dtype_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"uint8.*\[0, 1\].*torch.int64"):
        EvalTransform(SETTINGS)(torch.zeros(1, 3, 32, 32, dtype=torch.int64))


def test_no_crop_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crops.*1.*0"):
        EvalTransform(SETTINGS, crops=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("crop_scale", (0.0, 1.0), "crop_scale"),
        ("crop_scale", (0.9, 0.5), "crop_scale"),
        ("crop_aspect", (0.0, 1.0), "crop_aspect"),
        ("flip_rate", 1.5, r"flip_rate.*\[0, 1\].*1.5"),
        ("invert_rate", -0.5, "invert_rate must lie"),
        ("erase_rate", -0.1, "erase_rate must lie"),
        ("mix_rate", 2.0, "mix_rate must lie"),
        ("color_jitter", 3.0, "color_jitter must lie"),
        ("mixup_alpha", -1.0, "mixup_alpha must be 0, or lie"),
        ("cutmix_alpha", math.nan, "cutmix_alpha"),
        ("rand_augment_operations", 16, r"rand_augment_operations.*\[0, 15\].*16"),
        ("rand_augment_magnitude", 31, r"rand_augment_magnitude.*\[0, 30\].*31"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**{name: value})  # type: ignore[arg-type]


def batch(num_clips: int = 6) -> tuple[Tensor, Tensor]:
    clips = torch.arange(1.0, num_clips + 1).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 16, 16).contiguous()
    return clips, torch.eye(num_clips)


def test_mixup_blends_clips_as_labels() -> None:
    clips, labels = batch()
    mixed, soft = mix(clips, labels, AugmentConfig(cutmix_alpha=0), seeded(1))
    values = torch.arange(1.0, 7.0)
    assert torch.allclose(mixed[:, 0, 0, 0, 0], soft @ values, atol=1e-5)
    assert torch.allclose(mixed, mixed[:, :1, :1, :1, :1].expand_as(mixed))
    assert torch.allclose(soft.sum(1), torch.ones(6))
    assert not torch.allclose(soft, labels)


def test_cutmix_pastes_one_rectangle_and_counts_its_area() -> None:
    clips, labels = batch()
    for seed in range(8):
        mixed, soft = mix(clips, labels, AugmentConfig(mixup_alpha=0), seeded(seed))
        values = torch.arange(1.0, 7.0)
        assert torch.allclose(mixed.mean((1, 2, 3, 4)), soft @ values, atol=1e-4)
        assert torch.equal(mixed[:, 0], mixed[:, 1])
        assert set(mixed[0].unique().tolist()) <= {1.0, 2.0}


def test_mix_leaves_its_arguments_alone_and_draws_by_its_generator() -> None:
    clips, labels = batch()
    before = clips.clone()
    draws = [mix(clips, labels, AugmentConfig(), seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(clips, before)
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][1], draws[2][1])


@pytest.mark.parametrize(
    "config", [AugmentConfig(mixup_alpha=0, cutmix_alpha=0), AugmentConfig(mix_rate=0.0), AugmentConfig()]
)
def test_nothing_to_mix_is_left_as_it_is(config: AugmentConfig) -> None:
    clips, labels = batch(1 if config == AugmentConfig() else 6)
    mixed, soft = mix(clips, labels, config, seeded())
    assert mixed is clips
    assert soft is labels


@pytest.mark.parametrize("config", [AugmentConfig(cutmix_alpha=0), AugmentConfig(mixup_alpha=0)])
def test_mix_of_a_part_is_the_part_of_the_mix(config: AugmentConfig) -> None:
    clips, labels = batch(7)
    whole = mix(clips, labels, config, seeded(2))
    assert torch.equal(whole[0][6], clips[6])
    for part in (slice(0, 2), slice(2, 7)):
        ours = mix(clips[part], labels[part], config, seeded(2))
        assert torch.equal(ours[0], whole[0][part])
        assert torch.equal(ours[1], whole[1][part])


def test_mix_leaves_a_clip_without_its_partner_alone() -> None:
    clips, labels = batch(6)
    whole = mix(clips, labels, AugmentConfig(cutmix_alpha=0), seeded(1))
    there = [0, 1, 2, 4, 5]
    mixed, soft = mix(clips[there], labels[there], AugmentConfig(cutmix_alpha=0), seeded(1), positions=there)
    assert torch.equal(mixed[2], clips[2])
    assert torch.equal(soft[2], labels[2])
    assert torch.equal(mixed[[0, 1, 3, 4]], whole[0][[0, 1, 4, 5]])


def test_mix_takes_the_old_name_of_positions() -> None:
    clips, labels = batch(3)
    with pytest.warns(DeprecationWarning, match="positions"):
        old = mix(clips, labels, AugmentConfig(), seeded(1), places=[0, 1, 3])
    assert torch.equal(old[0], mix(clips, labels, AugmentConfig(), seeded(1), positions=[0, 1, 3])[0])


@pytest.mark.parametrize("positions", [[0, 1], [0, 1, 1]])
def test_mix_refuses_positions_that_do_not_fit(positions: list[int]) -> None:
    clips, labels = batch(3)
    with pytest.raises(ShapeError, match=r"positions.*3.*\[0, 1"):
        mix(clips, labels, AugmentConfig(), seeded(), positions=positions)


def test_mix_refuses_hard_labels() -> None:
    with pytest.raises(ShapeError, match=r"soft_labels \[B, K\]"):
        mix(batch()[0], torch.arange(6), AugmentConfig(), seeded())
