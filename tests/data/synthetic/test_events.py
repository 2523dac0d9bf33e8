import csv
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.synthetic import TEST_TEXTURES, TRAIN_TEXTURES, EventsConfig, make_events
from kinescan.data.synthetic.event_scene import DISTRACTOR, EVENT_PAIRS
from kinescan.data.synthetic.events import EventScene, render_events, sample_event_scene
from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError

SMALL = {"frame_size": 32, "seconds": 20.0, "train_videos": 3, "test_videos": 2}
STILL = {"noise_levels": 0.0, "shake_pixels": 0.0, "light_ratio": 0.0}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scenes(config: EventsConfig, number: int = 40) -> list[EventScene]:
    return [sample_event_scene(config, "train", index) for index in range(number)]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "events"
    make_events(folder, EventsConfig(**SMALL, quiet_ratio=0.5))
    return folder


def test_lists_name_every_video_and_hold_what_happens_in_it(events):
    meta = json.loads((events / "meta.json").read_text())
    assert (meta["kind"], meta["complete"]) == ("events", True)
    config = EventsConfig(**SMALL, quiet_ratio=0.5)
    for split, number in (("train", 3), ("test", 2)):
        rows = rows_of(events / f"{split}.csv")
        assert list(rows[0]) == ["path", "start", "end", "label"]
        paths = [f"{split}/{index:04d}.mp4" for index in range(number)]
        assert sorted({row["path"] for row in rows}) == paths
        for index, path in enumerate(paths):
            found = [row for row in rows if row["path"] == path]
            expected = sample_event_scene(config, split, index).intervals(path)
            if index == 1:
                assert [(row["start"], row["end"], row["label"]) for row in found] == [("", "", "")]
                assert expected == ()
            else:
                times = [(float(row["start"]), float(row["end"]), row["label"]) for row in found]
                assert times == [(event.start_seconds, event.end_seconds, event.label) for event in expected]
            with VideoReader(events / path) as video:
                assert video.num_frames == 200
                last = video.read(torch.tensor([199]))
            assert (last.pixels[0].float() - render_events(config, split, index)[199].float()).abs().mean() < 12


def test_what_is_labelled_is_what_moves():
    config = EventsConfig(**STILL, frame_size=32, seconds=30, distractors=0, fps=20)
    for index in range(3):
        scene = sample_event_scene(config, "train", index)
        pixels = render_events(config, "train", index).float()
        changes = pixels.diff(dim=0).abs().amax((1, 2, 3)).numpy()  # [T - 1]: from frame t to frame t + 1
        times = np.arange(1, len(pixels)) / config.fps
        busy = np.zeros(len(times), bool)
        for event in scene.intervals("a"):
            # The first frame after the onset shows the movement, and the first one after the end is the last that does.
            inside = (times > event.start_seconds + 1e-9) & (times - 1 / config.fps < event.end_seconds - 1e-9)
            assert (changes[inside] > 0).all()
            busy |= inside
        for life in scene.lives:
            for edge in (life.comes, life.goes - 0.3):
                busy |= (times > edge) & (times < edge + 0.3 + 1.5 / config.fps)
        assert (changes[~busy] == 0).all()
        assert busy.any()
        assert not busy.all()


@pytest.mark.parametrize(
    ("label", "column", "sign"),
    [
        *(("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)),
        *(("growing", 2, 1), ("shrinking", 2, -1), ("clockwise", 3, 1), ("counterclockwise", 3, -1)),
    ],
)
def test_objects_move_as_their_labels_say_and_only_so(label, column, sign):
    seen = 0
    for scene in scenes(EventsConfig(pairs=tuple(EVENT_PAIRS)), 12):
        for life in scene.lives:
            for stroke in life.strokes:
                if stroke.label == label:
                    change = np.diff(life.poses_at(np.array([stroke.start, stroke.end])), axis=0)[0]
                    assert change[column] * sign > 0.02
                    assert np.abs(np.delete(change, column)).max() < 1e-9
                    seen += 1
    assert seen > 5


def test_events_keep_apart_in_time_and_space_and_within_the_video():
    for scene in scenes(EventsConfig(objects=3, distractors=0), 25):
        found = scene.intervals("a")
        for event, following in pairwise(found):
            assert following.start_seconds - event.end_seconds > 0.9
        for event in found:
            assert 1 <= event.end_seconds - event.start_seconds + 0.006 <= 2.012
            assert 0 < event.start_seconds < event.end_seconds <= scene.seconds
        acting = [life for life in scene.lives if life.shape != DISTRACTOR]
        times = np.arange(0, scene.seconds, 0.5)
        for first, life in enumerate(acting):
            for other in acting[:first]:
                both = (life.opacity_at(times) > 0) & (other.opacity_at(times) > 0)
                here, there = life.poses_at(times)[both], other.poses_at(times)[both]
                apart = np.linalg.norm(here[:, :2] - there[:, :2], axis=1)
                assert (apart >= 0.85 * (here[:, 2] + there[:, 2])).all()


def test_overlapping_events_are_made_when_asked_for():
    def overlaps(config: EventsConfig) -> int:
        found = [scene.intervals("a") for scene in scenes(config, 10)]
        return sum(b.start_seconds < a.end_seconds for events in found for a, b in pairwise(events))

    assert overlaps(EventsConfig()) == 0
    assert overlaps(EventsConfig(overlaps=True)) > 10


def test_where_an_object_is_does_not_tell_the_direction():
    config = EventsConfig(pairs=("horizontal",), distractors=0)
    places: dict[str, list[float]] = {"right": [], "left": []}
    for scene in scenes(config, 80):
        for life in scene.lives:
            for stroke in life.strokes:
                places[stroke.label].append(float(life.poses_at(np.array([(stroke.start + stroke.end) / 2]))[0, 0]))
    right, left = (np.array(places[label]) for label in ("right", "left"))
    assert min(len(right), len(left)) > 150
    spread = math.sqrt(right.var() / len(right) + left.var() / len(left))
    assert abs(right.mean() - left.mean()) < 4 * spread
    assert abs(len(right) - len(left)) < 4 * math.sqrt(len(right) + len(left))


def test_distractors_move_and_are_not_labelled():
    quiet = EventsConfig(quiet_ratio=1.0, distractors=2)
    for scene in scenes(quiet, 5):
        assert scene.intervals("a") == ()
        assert any(life.shape == DISTRACTOR and life.strokes for life in scene.lives)
        assert any(life.shape != DISTRACTOR for life in scene.lives)


def test_the_scene_is_the_same_at_every_rate_and_size():
    slow, fast = (EventsConfig(**STILL, frame_size=32, seconds=10, fps=fps) for fps in (10, 20))
    one, two = sample_event_scene(slow, "test", 3), sample_event_scene(fast, "test", 3)
    assert one.intervals("a") == two.intervals("a")
    difference = render_events(slow, "test", 3).float() - render_events(fast, "test", 3)[::2].float()
    assert float(difference.abs().max()) <= 1


def test_train_and_test_share_no_texture():
    config = EventsConfig()
    for split, pool in (("train", TRAIN_TEXTURES), ("test", TEST_TEXTURES)):
        for index in range(5):
            scene = sample_event_scene(config, split, index)
            assert all(seed in pool for seed in (scene.background_seed, *scene.texture_seeds))
            assert len(scene.texture_seeds) == len(scene.lives)


def test_light_and_shake_and_noise_disturb():
    plain = {"frame_size": 32, "seconds": 20, "quiet_ratio": 1.0, "distractors": 0}
    still = render_events(EventsConfig(**plain, **STILL), "train", 0).float()
    for name, value in (("light_ratio", 0.3), ("shake_pixels", 2.0), ("noise_levels", 5.0)):
        disturbed = render_events(EventsConfig(**plain, **STILL | {name: value}), "train", 0).float()
        assert float((disturbed - still).abs().mean()) > 1, name
    level = render_events(EventsConfig(**plain, **STILL | {"light_ratio": 0.3}), "train", 0).float().mean((1, 2, 3))
    assert float(level.max() / level.min()) > 1.1


def test_render_events_repeats_itself_and_changes_with_seed_split_and_index():
    config = EventsConfig(**SMALL)
    pixels = render_events(config, "train", 0)
    assert pixels.shape == (200, 3, 32, 32)
    assert torch.equal(pixels, render_events(config, "train", 0))
    others = [(EventsConfig(**SMALL, seed=1), "train", 0), (config, "test", 0), (config, "train", 1)]
    assert not any(torch.equal(pixels, render_events(*other)) for other in others)


def test_workers_do_not_change_the_files(tmp_path):
    small = {**SMALL, "seconds": 6.0, "frame_size": 16}
    for workers in (1, 3):
        make_events(tmp_path / str(workers), EventsConfig(**small, workers=workers))
    files = sorted(
        path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*") if path.name != "meta.json"
    )
    assert len(files) == 7
    assert all((tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes() for file in files)


def test_overwrite_leaves_no_list_of_before(tmp_path):
    small = {**SMALL, "seconds": 5.0, "frame_size": 16}
    make_events(tmp_path, EventsConfig(**small))
    with pytest.raises(ConfigError, match="empty"):
        make_events(tmp_path, EventsConfig(**small))
    make_events(tmp_path, EventsConfig(**{**small, "test_videos": 0}, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "train", "train.csv"]


def test_classes_are_about_as_frequent_as_each_other():
    counts = Counter(event.label for scene in scenes(EventsConfig(distractors=0), 60) for event in scene.intervals("a"))
    assert set(counts) == set(EventsConfig().classes)
    assert min(counts.values()) > 0.6 * max(counts.values())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"seconds": 2}, "seconds"),
        ({"objects": 0}, "objects"),
        ({"train_videos": -1}, "train_videos"),
        ({"quiet_ratio": 1.5}, "quiet_ratio"),
        ({"shortest_seconds": 0.1}, "shortest_seconds"),
        ({"shortest_seconds": 2.5, "longest_seconds": 1.0}, "longest_seconds"),
        ({"longest_seconds": 3.0}, "longest_seconds"),
        ({"pairs": ()}, "pairs"),
        ({"pairs": ("meeting",)}, "meeting"),
        ({"fps": 0}, "fps"),
        ({"light_ratio": float("nan")}, "light_ratio"),
        ({"objects": True}, "objects"),
    ],
)
def test_events_config_refuses(values, named):
    with pytest.raises(ConfigError, match=named):
        EventsConfig(**values)
