import numpy as np
import pytest
import torch

from kinescan.data.synthetic import MOTION_LEVELS, MOTION_PAIRS, USUAL_PAIRS, MotionConfig, WindowConfig, level_settings
from kinescan.data.synthetic.harder import DISTRACTOR_FAMILY, Extras, HarderConfig, sample_phase
from kinescan.data.synthetic.motion import render_motion, sample_motion_scene
from kinescan.data.synthetic.scene import Sprite
from kinescan.errors import ConfigError

SMALL = {"frame_size": 32, "num_frames": 7}


def extras(index: int = 0, **settings: float) -> Extras:
    return Extras((0, 0, 0, index), HarderConfig(**SMALL, **settings), "train")


def centres(sprites: list[Sprite]) -> np.ndarray:
    return np.stack([sprite.poses.numpy() for sprite in sprites])


def test_default_pixels_are_what_they_were_before_there_were_levels():
    # sums of the pixels that the release before made
    config = MotionConfig(frame_size=32, num_frames=6, seed=32)
    sums = [int(render_motion(config, "train", pair, 0).long().sum()) for pair in USUAL_PAIRS]
    assert sums == [2132782, 2375626, 2676534, 1720851, 2430594, 2138061]


def test_each_setting_changes_the_clip_and_nothing_of_the_others():
    plain = render_motion(MotionConfig(**SMALL), "train", "horizontal", 0)
    changes = ("travel", 0.5), ("speed_ratio", 4.0), ("contrast", 0.5), ("distractors", 1), ("occluders", 1)
    for name, value in (*changes, ("objects", 2), ("object_size", 0.7), ("spread", 0.5), ("drift_pixels", 3.0)):
        changed = render_motion(MotionConfig(**SMALL, **{name: value}), "train", "horizontal", 0)
        assert not torch.equal(changed, plain), name
    few, more = extras(distractors=1), extras(distractors=1, occluders=2, travel=1.0)
    assert np.array_equal(centres(few.distractors()), centres(more.distractors()))


def test_levels_are_settings_that_both_configs_take():
    assert level_settings(0, MotionConfig) == {}
    for level in range(len(MOTION_LEVELS)):
        MotionConfig(**level_settings(level, MotionConfig))
        settings = level_settings(level, WindowConfig)
        WindowConfig(source="a", **settings)
        assert "objects" not in settings
    for level in (-1, len(MOTION_LEVELS)):
        with pytest.raises(ConfigError, match="level"):
            level_settings(level, MotionConfig)


@pytest.mark.parametrize("travel", [1.0, 0.3])
def test_phase_rises_over_the_middle_share_of_the_way(travel):
    config = HarderConfig(num_frames=12, travel=travel, speed_ratio=5)
    phases = np.stack([sample_phase(np.random.default_rng(seed), config) for seed in range(4000)])
    steps = np.diff(phases, axis=1)
    assert np.allclose(phases[:, [0, -1]], [0.5 - travel / 2, 0.5 + travel / 2])
    assert (steps > 0).all()
    ratios = steps.max(1) / steps.min(1)
    assert 1.5 < np.median(ratios) <= ratios.max() <= 5.0001
    # as likely backwards: the mean step of each moment equals that of its mirror image in time
    assert np.abs(steps.mean(0) - steps.mean(0)[::-1]).max() < 0.06 * travel / 11
    assert np.allclose(sample_phase(np.random.default_rng(0), HarderConfig(num_frames=3)), [0, 0.5, 1])


def test_distractors_move_either_way_as_often_and_look_unlike_what_acts():
    ways = []
    for index in range(300):
        [sprite] = extras(index, distractors=1).distractors()
        assert (sprite.shape, sprite.family) == ("panel", DISTRACTOR_FAMILY)
        moved = sprite.poses[-1] - sprite.poses[0]
        ways.append(torch.sign(moved[moved.abs().argmax()]))
    assert abs(float(torch.stack(ways).mean())) < 0.15
    for config in (MotionConfig(**SMALL, distractors=1), MotionConfig(**SMALL, distractors=2, objects=2)):
        assert render_motion(config, "test", "covering", 1).shape == (7, 3, 32, 32)


def test_still_objects_and_occluders_stand_still():
    still = [*extras().still_objects(3, 1.0), *extras(occluders=2).occluders()]
    assert len(still) == 5
    assert np.ptp(centres(still), axis=1).max() == 0


def test_drift_is_smooth_and_bounded():
    config = HarderConfig(num_frames=24)
    paths = torch.stack([Extras((0, index), config, "train").drift(4.0) for index in range(200)])
    assert 2 < paths.abs().max() <= 4
    assert paths.diff(dim=1).abs().max() < 1.4
    assert paths.mean(dim=0).abs().max() < 0.6


@pytest.mark.parametrize("pair", list(MOTION_PAIRS))
def test_spread_moves_the_middle_of_a_motion_towards_that_of_the_frame(pair):
    def middle(spread: float) -> np.ndarray:
        scene = sample_motion_scene(np.random.default_rng(4), pair, "train", num_frames=9, spread=spread)
        return centres(list(scene.sprites))[..., :2].mean((0, 1)) - 0.5

    assert np.allclose(middle(0.0), 0, atol=1e-6)
    assert np.allclose(middle(0.5), 0.5 * middle(1.0), atol=1e-6)
    assert np.abs(middle(1.0)).max() > 0.01


def test_contrast_moves_colours_towards_grey():
    settings = {**SMALL, "noise_levels": 0.0}
    plain = render_motion(MotionConfig(**settings), "train", "vertical", 2).float()
    faint = render_motion(MotionConfig(**settings, contrast=0.5), "train", "vertical", 2).float()
    assert (faint - 127.5 - (plain - 127.5) / 2).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("travel", 0.0),
        ("travel", 1.5),
        ("speed_ratio", 0.5),
        ("contrast", 0.0),
        ("distractors", 9),
        ("occluders", -1),
        ("objects", 0),
        ("object_size", 0.0),
        ("spread", 1.5),
        ("drift_pixels", 20.0),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=name):
        MotionConfig(**{name: value})
