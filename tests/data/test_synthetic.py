import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.sampling import segment_indices
from kinescan.data.synthetic import (
    FAMILIES,
    MOTION_PAIRS,
    NUM_COLOUR_TARGETS,
    NUM_POSE_TARGETS,
    NUM_STILL_TARGETS,
    SHAPES,
    TEST_TEXTURES,
    TRAIN_TEXTURES,
    AppearanceConfig,
    MotionConfig,
    StillClips,
    make_appearance,
    make_motion,
    still_batch,
)
from kinescan.data.synthetic.appearance import COLOURS, render_appearance
from kinescan.data.synthetic.motion import Look, render_disturbed, render_motion, sample_motion_scene
from kinescan.data.synthetic.scene import render
from kinescan.data.synthetic.shapes import signed_distance
from kinescan.data.synthetic.textures import background_textures, object_textures
from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing

PAIRS = list(MOTION_PAIRS)
SMALL = {"frame_size": 32, "num_frames": 6, "train_per_class": 2, "test_per_class": 1}


def decoded(path: Path) -> torch.Tensor:
    with VideoReader(path) as video:
        return video.read(torch.arange(video.num_frames)).pixels


def object_centre(scene_kind: str, *, split: str = "train", seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return sample_motion_scene(rng, scene_kind, split, num_frames=9).sprites[0].poses.numpy()


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "motion"
    make_motion(folder, MotionConfig(**SMALL, pairs=("horizontal", "covering")))
    return folder


def test_motion_lays_out_a_folder_per_class_with_its_settings(motion):
    classes = sorted(path.name for path in (motion / "train").iterdir())
    assert classes == ["covering", "left", "right", "uncovering"]
    for split, number in (("train", 2), ("test", 1)):
        for label in classes:
            assert len(list((motion / split / label).glob("*.mp4"))) == number
    meta = json.loads((motion / "meta.json").read_text())
    assert (meta["kind"], meta["complete"], meta["classes"]) == ("motion", True, classes)
    assert meta["config"]["pairs"] == ["horizontal", "covering"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("pair", ["horizontal", "covering"])
def test_motion_files_of_a_pair_are_each_other_backwards_to_the_bit(motion, split, pair):
    forwards, backwards = (decoded(motion / split / label / "0000.mp4") for label in MOTION_PAIRS[pair])
    assert torch.equal(forwards, backwards.flip(0))
    assert not torch.equal(forwards, backwards)


def test_motion_files_show_what_was_rendered(motion):
    config = MotionConfig(**SMALL, pairs=("horizontal", "covering"))
    pixels = render_motion(config, "train", "horizontal", 1)
    difference = decoded(motion / "train" / "right" / "0001.mp4").float() - pixels.float()
    assert difference.shape == (6, 3, 32, 32)
    assert difference.abs().mean() < 12


def test_middle_frames_of_segments_are_symmetric_in_time_at_the_default_length():
    indices = segment_indices(MotionConfig().num_frames, 8, position="middle")
    assert torch.equal(indices, MotionConfig().num_frames - 1 - indices.flip(0))


@pytest.mark.parametrize("pair", PAIRS)
def test_render_motion_repeats_itself_and_changes_with_seed_split_and_index(pair):
    config = MotionConfig(**SMALL)
    clip = render_motion(config, "train", pair, 0)
    assert clip.shape == (6, 3, 32, 32)
    assert clip.dtype == torch.uint8
    assert torch.equal(clip, render_motion(config, "train", pair, 0))
    others = [
        render_motion(MotionConfig(**SMALL, seed=1), "train", pair, 0),
        render_motion(config, "test", pair, 0),
        render_motion(config, "train", pair, 1),
    ]
    assert not any(torch.equal(clip, other) for other in others)


def test_a_subset_of_pairs_makes_the_same_clips():
    few, all_pairs = MotionConfig(**SMALL, pairs=("turning",)), MotionConfig(**SMALL)
    assert torch.equal(render_motion(few, "test", "turning", 0), render_motion(all_pairs, "test", "turning", 0))


def test_workers_do_not_change_the_files(tmp_path):
    for workers in (1, 3):
        config = MotionConfig(**SMALL, pairs=("scaling",), workers=workers)
        make_motion(tmp_path / str(workers), config)
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.mp4"))
    assert len(files) == 6
    assert all((tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes() for file in files)


def test_first_classes_of_pairs_move_as_their_names_say():
    right, down = object_centre("horizontal"), object_centre("vertical")
    assert (np.diff(right[:, 0]) > 0).all()
    assert np.ptp(right[:, 1]) < 0.1 < np.ptp(right[:, 0])
    assert (np.diff(down[:, 1]) > 0).all()
    assert (np.diff(object_centre("turning")[:, 3]) > 0).all()
    assert (np.diff(object_centre("scaling")[:, 2]) > 0).all()
    scene = sample_motion_scene(np.random.default_rng(0), "meeting", "train", num_frames=9)
    apart = (scene.sprites[0].poses[:, :2] - scene.sprites[1].poses[:, :2]).norm(dim=1)
    assert bool((apart.diff() < 0).all())


def test_turning_is_clockwise_on_the_screen():
    rng = np.random.default_rng(5)
    scene = sample_motion_scene(rng, "turning", "train", num_frames=9, look=Look(shape="drop"))
    frames = render(scene, frame_size=64).float()
    background = render(draw_background_only(scene), frame_size=64).float()
    mask = (frames - background).abs().sum(1) > 60  # [T, 64, 64]
    angles = []
    for frame, pose in zip(mask, scene.sprites[0].poses, strict=True):
        rows, columns = frame.nonzero(as_tuple=True)
        x, y = columns - pose[0] * 64, rows - pose[1] * 64
        tip = (x**2 + y**2).argmax()  # the drop's tip is its farthest point
        angles.append(float(torch.atan2(y[tip], x[tip])))
    turned = np.unwrap(angles)
    # the vertical axis points down, so growing angles turn clockwise
    assert turned[-1] - turned[0] > 1.0


def draw_background_only(scene):
    away = [
        type(sprite)(shape=sprite.shape, texture_seed=0, family=None, poses=sprite.poses + torch.tensor([9.0, 0, 0, 0]))
        for sprite in scene.sprites
    ]
    return type(scene)(background_seed=scene.background_seed, sprites=tuple(away))


def test_covering_hides_the_object_at_first_and_shows_it_at_last():
    for seed in range(8):
        scene = sample_motion_scene(np.random.default_rng(seed), "covering", "train", num_frames=9)
        without = type(scene)(background_seed=scene.background_seed, sprites=scene.sprites[1:])
        seen = (render(scene, frame_size=64) != render(without, frame_size=64)).any(1).flatten(1).sum(1)
        assert seen[0] == 0
        assert seen[-1] > 100


@pytest.mark.parametrize("pair", PAIRS)
def test_train_and_test_share_no_texture(pair):
    seeds = {"train": set(), "test": set()}
    for split, found in seeds.items():
        for index in range(50):
            scene = sample_motion_scene(np.random.default_rng(index), pair, split, num_frames=2)
            found |= {scene.background_seed, *(sprite.texture_seed for sprite in scene.sprites)}
    assert seeds["train"] <= set_in(TRAIN_TEXTURES, seeds["train"])
    assert seeds["test"] <= set_in(TEST_TEXTURES, seeds["test"])
    assert not seeds["train"] & seeds["test"]
    assert TRAIN_TEXTURES.stop <= TEST_TEXTURES.start


def set_in(pool, seeds):
    return {seed for seed in seeds if seed in pool}


def test_noise_and_shake_have_the_sizes_asked_for():
    quiet = MotionConfig(**SMALL, noise_levels=0, shake_pixels=0)
    scene = sample_motion_scene(np.random.default_rng(0), "horizontal", "train", num_frames=6)
    still = render_disturbed(scene, np.random.default_rng(1), quiet).float()
    assert torch.equal(still, render(scene, frame_size=32).float())
    noisy = MotionConfig(**SMALL, noise_levels=8, shake_pixels=0)
    difference = render_disturbed(scene, np.random.default_rng(1), noisy).float() - still
    inside = difference[(still > 40) & (still < 215)]
    assert 7.5 < float(inside.std()) < 8.5
    # frame to frame, noise is no more alike forwards than backwards: it is not alike at all
    flat = difference.flatten(1)
    assert abs(float(torch.corrcoef(flat)[0, 1])) < 0.1
    shaken = render_disturbed(scene, np.random.default_rng(1), MotionConfig(**SMALL, noise_levels=0, shake_pixels=3))
    assert not torch.equal(shaken.float(), still)


def test_appearance_classes_are_looks_and_motions_are_drawn_apart_from_them(tmp_path):
    config = AppearanceConfig(
        frame_size=32, num_frames=6, train_per_class=2, test_per_class=1, colours=("red", "blue"), families=("dots",)
    )
    report = make_appearance(tmp_path / "looks", config)
    assert report.classes == ("blue_dots", "red_dots")
    assert (report.num_train, report.num_test) == (4, 2)
    path = tmp_path / "looks" / "train" / "red_dots" / "0001.mp4"
    difference = decoded(path).float() - render_appearance(config, "train", "red_dots", 1).float()
    assert difference.abs().mean() < 12


def test_appearance_covers_colours_times_families():
    looks = AppearanceConfig().looks
    assert len(looks) == 12
    assert list(looks) == sorted(looks)
    assert {(look.hue, look.family) for look in looks.values()} == {
        (hue, family) for hue in COLOURS.values() for family in AppearanceConfig().families
    }
    few = AppearanceConfig(colours=("blue",), families=("holes",)).looks
    assert few["blue_holes"] == looks["blue_holes"]


@pytest.mark.parametrize(("colour", "channels"), [("red", [0]), ("yellow", [0, 1]), ("green", [1]), ("blue", [2])])
def test_object_textures_have_the_hue_asked_for(colour, channels):
    textures = object_textures(list(range(20)), ["holes"] * 20, hues=[COLOURS[colour]] * 20)
    means = textures.mean((0, 2, 3))
    others = [channel for channel in range(3) if channel not in channels]
    assert float(means[channels].min()) > 1.3 * float(means[others].max())


def test_still_batch_targets_say_where_how_large_and_how_turned():
    stills = still_batch(64, noise_levels=0, seed=4)
    assert stills.pixels.dtype == torch.uint8
    assert stills.pixels.shape == (64, 3, 64, 64)
    assert stills.targets.shape == (64, NUM_STILL_TARGETS)
    assert bool((stills.targets.abs() <= 1).all())
    for cosine in (3, 5):
        assert torch.allclose(stills.targets[:, cosine : cosine + 2].square().sum(1), torch.ones(64), atol=1e-5)
    # objects are saturated and backgrounds are not, so their colour's spread finds them
    spread = stills.pixels.float().amax(1) - stills.pixels.float().amin(1)
    weight = (spread > 90).float()
    axis = (torch.arange(64) + 0.5) / 32 - 1
    amount = weight.sum((1, 2)).clamp(min=1)
    found = torch.stack([(weight.sum(1) * axis).sum(1) / amount, (weight.sum(2) * axis).sum(1) / amount], dim=1)
    assert float((found - stills.targets[:, :2]).abs().median()) < 0.1
    assert float(torch.corrcoef(torch.stack([amount.log(), stills.targets[:, 2]]))[0, 1]) > 0.7


def test_still_batch_targets_say_what_the_object_looks_like():
    stills = still_batch(64, noise_levels=0, seed=4)
    pixels = stills.pixels.float() / 255
    # the bright part of an object is the only thing that is both saturated and bright
    bright = ((pixels.amax(1) > 0.85) & (pixels.amax(1) - pixels.amin(1) > 0.6)).float()
    red, green, blue = ((pixels[:, channel] * bright).sum((1, 2)) for channel in range(3))
    hue = torch.atan2(3**0.5 / 2 * (green - blue), red - (green + blue) / 2)
    given = torch.atan2(stills.targets[:, 6], stills.targets[:, 5])
    seen = bright.sum((1, 2)) > 10
    assert int(seen.sum()) > 50
    apart = torch.atan2(torch.sin(hue - given), torch.cos(hue - given)).abs()[seen]
    assert float(apart.quantile(0.9)) < 0.4
    families = stills.targets[:, NUM_POSE_TARGETS + NUM_COLOUR_TARGETS :]
    assert families.sum(1).tolist() == [1.0] * 64
    # "holes" are bright with dark spots, "dots" dark with bright ones
    fraction = bright.sum((1, 2)) / ((pixels.amax(1) - pixels.amin(1)) > 0.2).float().sum((1, 2)).clamp(min=1)
    holes, dots = (families[:, FAMILIES.index(name)] == 1 for name in ("holes", "dots"))
    assert float(fraction[holes].mean()) > 1.5 * float(fraction[dots].mean())


def test_still_clips_are_new_in_every_batch_and_epoch_and_repeat_with_their_seed():
    preprocessing = Preprocessing(size=32)
    stills = StillClips(preprocessing, num_batches=3, batch_size=4)
    epochs = [list(stills.batches(epoch, 0)) for epoch in (0, 1)]
    clips = [batch.clips for batches in epochs for batch in batches]
    assert len(clips) == 6
    assert clips[0].shape == (4, 1, 3, 32, 32)
    assert not any(torch.equal(clips[0], other) for other in clips[1:])
    [last] = StillClips(preprocessing, num_batches=3, batch_size=4).batches(1, 2)
    assert torch.equal(last.clips, clips[5])
    assert torch.equal(last.labels, epochs[1][2].labels)
    assert last.labels.shape == (4, NUM_STILL_TARGETS)
    plain = torch.tensor(preprocessing.std)[:, None, None] * clips[0] + torch.tensor(preprocessing.mean)[:, None, None]
    assert float(plain.min()) >= -1e-6
    assert float(plain.max()) <= 1 + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_object_textures_depend_on_seed_and_family_only(family):
    together = object_textures([1, 2, 3], [family] * 3)
    alone = object_textures([2], [family])
    assert torch.allclose(together[1:2], alone)
    assert not torch.allclose(together[0], together[1])
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1


def test_objects_stand_out_from_backgrounds():
    objects = object_textures(list(range(40)), [None] * 40)
    grounds = background_textures(list(range(40)))
    assert float(objects.std((2, 3)).mean()) > 3 * float(grounds.std((2, 3)).mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_distance_is_negative_inside_and_grows_by_one_a_unit(shape):
    distance = signed_distance(shape)
    share_inside = float((distance < 0).float().mean())
    assert 0.1 < share_inside < 0.7
    assert float(distance[0].min()) > 0
    step = 2 * 1.2 / 63
    assert float(distance.diff(dim=1).abs().max()) <= step * 1.01


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_do_not_look_the_same_turned(shape):
    inside = signed_distance(shape) < 0
    for quarter in (1, 2, 3):
        assert bool((inside != inside.rot90(quarter)).float().mean() > 0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frame_size": 8}, "frame_size.*16.*8"),
        ({"num_frames": 1}, "num_frames.*2.*1"),
        ({"noise_levels": -1}, "noise_levels.*0.*-1"),
        ({"noise_levels": float("nan")}, "noise_levels"),
        ({"fps": 0}, "fps.*0"),
        ({"workers": 0}, "workers.*1.*0"),
        ({"shake_pixels": 40}, "shake_pixels.*frame_size 64.*40"),
        ({"pairs": ()}, "pairs"),
        ({"pairs": ("turning", "turning")}, "each once"),
        ({"pairs": ("horizontl",)}, "'horizontl'.*'horizontal'"),
    ],
)
def test_motion_config_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        MotionConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colours": ()}, "colours"),
        ({"colours": ("gren",)}, "'gren'.*'green'"),
        ({"families": ("dots", "dots")}, "families"),
        ({"families": ("plaid",)}, "families: unknown 'plaid'"),
    ],
)
def test_appearance_config_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        AppearanceConfig(**values)


def test_unknown_shape_and_family_are_named():
    with pytest.raises(ConfigError, match=r"'arow'.*'arrow'"):
        signed_distance("arow")
    with pytest.raises(ConfigError, match=r"'stripe'.*'stripes'"):
        object_textures([0], ["stripe"])
    with pytest.raises(ConfigError, match=r"num_stills.*1.*0"):
        still_batch(0)


def test_make_refuses_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    few = {**SMALL, "pairs": ("horizontal",)}
    with pytest.raises(ConfigError, match="overwrite=True"):
        make_motion(tmp_path, MotionConfig(**few))
    with pytest.raises(ConfigError, match=r"holds no meta\.json"):
        make_motion(tmp_path, MotionConfig(**few, overwrite=True))
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_overwrite_replaces_a_data_set(tmp_path):
    make_motion(tmp_path, MotionConfig(**SMALL, pairs=("horizontal",)))
    make_motion(tmp_path, MotionConfig(**SMALL, pairs=("vertical",), overwrite=True))
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["down", "up"]


def test_make_says_that_a_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/motion"):
        make_motion(tmp_path / "file" / "motion", MotionConfig(**SMALL))
