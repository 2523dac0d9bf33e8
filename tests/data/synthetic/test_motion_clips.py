import numpy as np
import pytest
import torch

from kinescan.data.mirroring import mirrored_labels
from kinescan.data.synthetic.motion_clips import MIRRORED, MOTION_NAMES, REVERSED, MotionClips, MotionClipsConfig
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing

SMALL = Preprocessing(size=48, num_frames=6)


def _clips(grid: int = 0, batch_size: int = 64, **settings: object) -> MotionClips:
    config = MotionClipsConfig(num_pictures=8, **settings)  # type: ignore[arg-type]
    return MotionClips(SMALL, num_batches=2, batch_size=batch_size, grid=grid, config=config)


def test_motion_names_have_reversals_and_mirror_images() -> None:
    assert all(REVERSED[REVERSED[index]] == index for index in range(len(MOTION_NAMES)))
    assert mirrored_labels(MOTION_NAMES) == MIRRORED


def test_half_of_a_batch_is_the_other_half_backwards() -> None:
    pixels, labels, fields = _clips(grid=4).draw(np.random.default_rng(0))
    assert torch.equal(pixels[32:], pixels[:32].flip(1))
    assert labels[32:].tolist() == [REVERSED[label] for label in labels[:32].tolist()]
    assert torch.allclose(fields[32:, 1:], -fields[:32, 1:].flip(1))


def test_batches_depend_on_seed_epoch_and_place_alone() -> None:
    clips = _clips(batch_size=4)
    first, second = clips.batches(0, 0)
    assert torch.equal(next(iter(clips.batches(0, 1))).clips, second.clips)
    assert torch.equal(next(iter(_clips(batch_size=4).batches(0, 0))).clips, first.clips)
    assert not torch.equal(next(iter(clips.batches(1, 0))).clips, first.clips)


@pytest.mark.parametrize("camera_fraction", [0.0, 1.0])
def test_fields_point_where_the_names_say(camera_fraction: float) -> None:
    _, labels, fields = _clips(grid=6, batch_size=192, camera_fraction=camera_fraction).draw(np.random.default_rng(1))
    axis = torch.arange(6) - 2.5
    across, down = axis.repeat(6), axis.repeat_interleave(6)
    x, y = fields[:, 1:, :, 0], fields[:, 1:, :, 1]
    means = {
        "right": x.mean((1, 2)),
        "down": y.mean((1, 2)),
        "down-right": (x + y).mean((1, 2)),
        "up-right": (x - y).mean((1, 2)),
        "clockwise": (across * y - down * x).mean((1, 2)),
        "growing": (across * x + down * y).mean((1, 2)),
    }
    if not camera_fraction:
        # objects turn and grow about their own middles
        means = {name: means[name] for name in ("right", "down", "down-right", "up-right")}
    for name, amounts in means.items():
        index = MOTION_NAMES.index(name)
        own, other = amounts[labels == index], amounts[labels == REVERSED[index]]
        # the camera shakes
        assert (own > 0).float().mean() > 0.8, name
        assert (other < 0).float().mean() > 0.8, name
        assert own.mean() > 3 * amounts[labels == MOTION_NAMES.index("still")].abs().mean(), name


def test_pixels_move_as_the_field_says() -> None:
    settings = {"camera_fraction": 1.0, "noise_levels": 0.0, "travel": (0.04, 0.04), "tilt_degrees": 0.0}
    clips = _clips(batch_size=32, shown=("right", "left"), **settings)
    pixels, labels, _ = clips.draw(np.random.default_rng(3))
    grey = pixels.float().mean(2)
    found = []
    for clip in grey:
        errors = [
            sum(float((clip[t + 2][:, 8:-8] - clip[t][:, 8 - shift : 40 - shift]).abs().mean()) for t in range(3))
            for shift in (-4, 4)
        ]
        found.append(int(errors[1] > errors[0]))
    # at 0.04 of 48 pixels from frame to frame, two frames are about 4 pixels apart; some clips pause
    assert sum(place == label for place, label in zip(found, labels.tolist(), strict=True)) >= 28


def test_given_pictures_are_among_the_textures() -> None:
    red = torch.zeros(3, 80, 100, dtype=torch.uint8)
    red[0] = 255
    clips = MotionClips(SMALL, num_batches=1, config=MotionClipsConfig(num_pictures=8, given_fraction=0.5), given=[red])
    pictures = clips._pictures
    assert [bool((picture[0] == 1).all() and (picture[1:] == 0).all()) for picture in pictures].count(True) == 4


@pytest.mark.parametrize(
    ("batch_size", "settings"),
    [(7, {}), (8, {"names": ("right", "down")}), (8, {"names": ("sideways",)}), (8, {"num_pictures": 1})],
)
def test_clips_that_cannot_be_drawn_are_refused(batch_size: int, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MotionClips(SMALL, num_batches=1, batch_size=batch_size, config=MotionClipsConfig(**settings))  # type: ignore[arg-type]
