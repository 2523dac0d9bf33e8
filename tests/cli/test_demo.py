import json
import math
import time
from pathlib import Path

import pytest
import torch

from kinescan.config import load_recipe
from kinescan.data.sampling import segment_indices
from kinescan.data.synthetic import MOTION_PAIRS, NUM_STILL_TARGETS, MotionConfig
from kinescan.data.synthetic.window_paths import WINDOW_PATHS
from kinescan.errors import ConfigError
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.runs.demo import RELATIVE_SECONDS, DemoClock, DemoProgress, clear_output, demo, quick_demo, stills
from kinescan.runs.demo_first import MotionScores
from kinescan.runs.demo_page import opening, write_first_page
from kinescan.runs.stills import still_task
from kinescan.runtime.recipe_files import RECIPES

DEMO_RECIPES = ("stills", "motion_vit", "motion_pks4", "appearance_vit", "appearance_pks4")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole demo with next to no training."""
    output = tmp_path_factory.mktemp("runs") / "demo"
    few = ["optim.epochs=1", "loader.batch_size=8"]
    demo(output, recipes=RECIPES, train_per_class=1, test_per_class=1, stills_per_epoch=16, overrides=few)
    return output


@pytest.mark.slow
def test_demo_writes_a_page_that_opens_with_what_it_shows(small):
    page = (small / "README.md").read_text()
    assert page.startswith("# What the demo shows\n\nWhere only the motion tells the class")
    for picture in ("comparison.png", "explained/0000_0000.png"):
        assert f"({picture})" in page
        assert (small / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_demo_scores_four_models_and_averaging_is_a_coin_within_every_pair(small):
    result = json.loads((small / "demo.json").read_text())
    assert result["scores"]["averaging"]["within_pairs"] == 0.5
    assert set(result["scores"]["averaging"]["pairs"].values()) == {0.5}
    assert set(result["scores"]["pks4"]) == {"motion", "within_pairs", "appearance", "pairs"}
    assert result["num_test"] == {"motion": 12, "appearance": 12}
    for run in ("motion_vit", "motion_pks4", "appearance_vit", "appearance_pks4"):
        assert {path.name for path in (small / run).iterdir()} >= {"recipe.toml", "report.md", "checkpoints"}


@pytest.mark.slow
def test_demo_models_start_from_the_vit_trained_on_stills(small):
    stills = from_pretrained(small / "stills" / "checkpoints" / "last")
    tuned = from_pretrained(small / "motion_pks4" / "checkpoints" / "last")
    assert stills.config.num_classes == NUM_STILL_TARGETS
    assert tuned.config.num_classes == 12
    for name, weight in stills.state_dict().items():
        if name.startswith("vit.") and weight.ndim > 1:
            moved = (tuned.state_dict()[name] - weight).norm() / weight.norm()
            assert float(moved) < 0.5, name


@pytest.mark.slow
def test_demo_refuses_before_it_removes_anything(small, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="earlier"):
        demo(tmp_path, recipes=RECIPES)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    with pytest.raises(ConfigError, match=r"demo_stills\.toml.*no such file"):
        demo(small, recipes=tmp_path)
    assert (small / "motion_pks4" / "report.md").exists()


def test_quick_demo_shows_the_model_that_comes_with_kinescan_and_trains_nothing(tmp_path):
    page = quick_demo(tmp_path / "demo")
    first = json.loads((tmp_path / "demo" / "demo.json").read_text())["first"]
    names = {name for pair in WINDOW_PATHS for name in MOTION_PAIRS[pair]}
    assert [set(first["right"][kind]) for kind in ("objects", "windows")] == [names, names]
    assert len(names) == 12
    # a die of thirteen sides would name 3 or 4 of 48
    assert all(sum(right.values()) >= 24 for right in first["right"].values())
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"README.md", "index.html", "demo.json", "first"}
    text = page.read_text()
    assert text.count("data:image/png;base64,") == len(first["shown"]) == 24
    assert "refresh" not in text


def test_page_in_the_making_says_how_long_it_takes(tmp_path):
    scores = {"clockwise": 3, "left": 4}
    shown = {"kind": "objects", "label": "left", "named": "up", "score": 0.5, "picture": "a.png"}
    first = {
        "right": {"objects": scores, "windows": scores},
        "per_class": 4,
        "mirrored": {"objects": 1.0, "windows": 0.5},
        "source": "photographs",
        "shown": [shown],
    }
    write_first_page(first, folder=tmp_path, done={"motion_vit": 0.417}, left_seconds=125.0)
    text, page = ((tmp_path / name).read_text() for name in ("README.md", "index.html"))
    assert "0:02:05" in text
    assert "| motion_vit | 41.7 % |" in text
    assert "| clockwise | 3 of 4 | 3 of 4 |" in text
    assert "wrong: up" in text
    assert 'http-equiv="refresh"' in page


def test_time_left_follows_the_parts_and_the_epochs_behind(tmp_path):
    clock = DemoClock()
    first = MotionScores(right={"objects": {}, "windows": {}}, per_class=0, mirrored={}, source="", shown=())
    progress = DemoProgress(tmp_path, first, clock)
    clock.seconds = {"first page": 2 * RELATIVE_SECONDS["first page"], "data": 2 * RELATIVE_SECONDS["data"]}
    others = sum(RELATIVE_SECONDS.values()) - RELATIVE_SECONDS["first page"] - RELATIVE_SECONDS["data"]
    assert progress._left() == pytest.approx(2 * others)
    clock.name, clock.start = "stills", time.perf_counter() - RELATIVE_SECONDS["stills"]
    progress._epochs, progress._ended = 4, 2
    assert progress._left() == pytest.approx(2 * (others - RELATIVE_SECONDS["stills"] / 2), rel=0.01)


def test_stills_alone_give_what_the_recipe_of_made_events_starts_from(tmp_path):
    few = ["optim.epochs=1", "loader.batch_size=8", "preprocessing.size=48"]
    weights = stills(tmp_path / "stills", recipes=RECIPES, stills_per_epoch=8, overrides=few)
    config = load_recipe(RECIPES / "made_events_cpu.toml")
    assert Path(config.model.weights).parts[-4:] == weights.relative_to(tmp_path).parts
    options = config.model.options | {"output": "frames"}
    model = create_model(
        config.model.name, labels=["background", "left"], weights=weights, preprocessing=config.preprocessing, **options
    )
    start, tuned = from_pretrained(weights).state_dict(), model.state_dict()
    stem = [name for name in model.stem_parameters() if name in start]
    assert len(stem) > 20
    assert all(torch.equal(start[name], tuned[name]) for name in stem)


def test_demo_clears_an_earlier_demo_out_of_its_way(tmp_path):
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / "motion_vit").mkdir()
    (tmp_path / "motion_vit" / "report.md").write_text("old")
    clear_output(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_demo_says_that_the_output_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/demo"):
        demo(tmp_path / "file" / "demo", recipes=RECIPES)


@pytest.mark.parametrize("name", DEMO_RECIPES)
def test_demo_recipes_agree_on_the_vit(name):
    config, first = (load_recipe(RECIPES / f"demo_{other}.toml") for other in (name, "stills"))
    own = {key: value for key, value in config.model.options.items() if key in first.model.options}
    assert own == first.model.options
    assert config.preprocessing.size == 64


@pytest.mark.parametrize("name", DEMO_RECIPES[1:])
def test_demo_recipes_look_at_frames_that_are_symmetric_in_time(name):
    config = load_recipe(RECIPES / f"demo_{name}.toml")
    num_frames = MotionConfig().num_frames
    indices = segment_indices(num_frames, config.preprocessing.num_frames, position="middle")
    assert torch.equal(indices, num_frames - 1 - indices.flip(0))
    assert (config.views().clips, config.augment.flip_rate) == (1, 0.0)


def test_still_task_counts_centres_found_within_half_a_patch():
    targets = torch.zeros(3, NUM_STILL_TARGETS)
    targets[:, -1] = 1
    outputs = torch.zeros(3, NUM_STILL_TARGETS)
    outputs[0, :2], outputs[1, 0], outputs[2, 2:7] = torch.tensor([0.1, -0.1]), 0.2, 1.0
    loss, right = still_task(outputs, targets)
    assert right.tolist() == [True, False, True]
    num_families = NUM_STILL_TARGETS - 7
    assert float(loss) == pytest.approx((0.01 + 0.01 + 0.04 + 5) / 21 + 0.1 * math.log(num_families))


def test_still_task_learns_the_family_of_a_texture():
    targets = torch.zeros(1, NUM_STILL_TARGETS)
    targets[0, -1] = 1
    sure, wrong = targets.clone(), targets.clone()
    sure[0, -1], wrong[0, -2] = 9.0, 9.0
    assert float(still_task(sure, targets)[0]) < 0.01 < 0.8 < float(still_task(wrong, targets)[0])


@pytest.mark.parametrize(
    ("motion", "appearance", "count"), [(0.9, 0.95, 0), (0.9, 0.9, 1), (0.8, 0.95, 1), (0.8, 0.9, 2)]
)
def test_opening_says_what_was_not_reached(motion, appearance, count):
    averaging = {"motion": 0.4, "within_pairs": 0.5, "appearance": 0.96, "pairs": {}}
    pks4 = {"motion": motion, "within_pairs": 0.99, "appearance": appearance, "pairs": {}}
    scores = {"averaging": averaging, "pks4": pks4 | {"pairs": {}}}
    text = opening({"scores": scores, "num_test": {"motion": 480, "appearance": 480}})
    assert text.count("NOT reached") == count
    assert f"**{100 * motion:.1f} %**" in text


def _result(pairs, num_test=480):
    """As a demo leaves it, with what PKS4 reached within each pair."""
    scores = {"motion": 0.9, "within_pairs": 0.9, "appearance": 0.9}
    averaging = {**scores, "within_pairs": 0.5, "pairs": dict.fromkeys(pairs, 0.5)}
    return {
        "scores": {"averaging": averaging, "pks4": {**scores, "pairs": pairs}},
        "num_test": {"motion": num_test, "appearance": num_test},
    }


def test_page_says_which_pairs_are_at_chance():
    others = {f"a{index} / b{index}": 1.0 for index in range(5)}
    text = opening(_result({**others, "clockwise / counterclockwise": 0.488}))
    assert "Not learnt" in text
    assert "clockwise / counterclockwise (48.8 %)" in text
    assert "a0" not in text
    # 40 of 80 files is luck, 60 are not.
    assert "Not learnt" in opening(_result({**others, "c / d": 0.58}))
    assert "Not learnt" not in opening(_result({**others, "c / d": 0.75}))
    assert "Not learnt" not in opening(_result(others))
