import tomllib
from pathlib import Path

import pytest

from kinescan.config import RunConfig, build_run, dump_recipe, load_recipe, parse_overrides
from kinescan.data.sampling import Views
from kinescan.errors import ConfigError

RECIPE = """
model = "pks4_vit_ti16"
seed = 3

[data]
train = "videos"

[optim]
lr = 1e-3
betas = [0.9, 0.98]
"""


def _recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_load_recipe_fills_defaults_and_takes_the_short_model_name(tmp_path: Path) -> None:
    config = load_recipe(_recipe(tmp_path))
    assert (config.model.name, config.seed, config.data.train) == ("pks4_vit_ti16", 3, "videos")
    assert (config.optim.lr, config.optim.betas, config.optim.weight_decay) == (1e-3, (0.9, 0.98), 0.05)


def test_load_recipe_takes_overrides_as_toml_and_bare_words_as_text(tmp_path: Path) -> None:
    overrides = [
        "optim.lr=5e-4",
        "optim.epochs = 3",
        "data.test=/some where/else",
        "model.options.scanner=false",
        "model.options.window=7",
        "evaluation.views=8x2x3",
        'train.trackers=["tensorboard", "wandb"]',
        "model=vit_b16",
        "output=2024",
    ]
    with pytest.raises(ConfigError, match=r"output.*2024"):
        load_recipe(_recipe(tmp_path), overrides)
    config = load_recipe(_recipe(tmp_path), [*overrides[:-1], 'output="2024"'])
    assert (config.optim.lr, config.optim.epochs, config.data.test) == (5e-4, 3, "/some where/else")
    assert config.model.options == {"scanner": False, "window": 7}
    assert config.model.name == "vit_b16"
    assert config.train.trackers == ("tensorboard", "wandb")
    assert config.output == "2024"


def test_dump_recipe_reads_back_to_the_same(tmp_path: Path) -> None:
    config = load_recipe(_recipe(tmp_path), ["model.options.insert_after=3", "train.trainable=['head.*']"])
    again = load_recipe(_recipe(tmp_path, dump_recipe(config)))
    assert again == config
    assert build_run({}) == RunConfig()


def test_dump_recipe_writes_every_setting(tmp_path: Path) -> None:
    written = tomllib.loads(dump_recipe(RunConfig()))
    assert written["preprocessing"]["num_frames"] == 8
    assert written["optim"]["layer_decay"] == 0.7
    assert set(written) == {
        *("output", "seed", "model", "data", "preprocessing"),
        *("augment", "loader", "optim", "train", "evaluation"),
    }


def test_dump_recipe_refuses_what_toml_cannot_hold() -> None:
    with pytest.raises(ConfigError, match=r"model\.options.*TOML"):
        dump_recipe(build_run({"model": {"options": {"embed_dim": None}}}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "'optim.lrr'.*'optim.lr'?"),
        ("optimm.lr=1", "'optimm'.*'optim'?"),
        ("train.epochs=3", "'train.epochs'.*'optim.epochs'?"),
        ("batch_size=3", "'batch_size'.*'loader.batch_size'?"),
        ("qqqqqq.x=3", "'qqqqqq'"),
        ("optim.lr=fast", 'optim.lr.*"fast"'),
        ("optim.epochs=1.5", "optim.epochs: .*integer.*, got 1.5"),
        ("optim.lr=-1", "optim.lr.*-1.0"),
        ("optim=3", "optim: .*, got 3"),
        ("data.held_out_ratio=1.0", "data.held_out_ratio.*0.*1.*1.0"),
        ("optim.lr", "key=value.*optim.lr=1e-3"),
        ("optim..lr=1", "--set takes key=value"),
        ("optim.betas=[0.9, ", "--set optim.betas=.*TOML"),
        ("evaluation.views=8x2", "views"),
    ],
)
def test_load_recipe_refuses_wrong_overrides(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(_recipe(tmp_path), [override])


def test_load_recipe_names_the_recipes_beside_a_missing_one(tmp_path: Path) -> None:
    path = _recipe(tmp_path)
    with pytest.raises(
        ConfigError, match=r"receipt.toml'.*no such file.*Beside it: recipe.toml.*`kinescan list recipes`"
    ):
        load_recipe(path.with_name("receipt.toml"))


def test_load_recipe_says_where_toml_is_broken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe.toml.*TOML .*line 2"):
        load_recipe(_recipe(tmp_path, "seed = 1\nmodel = \n"))


def test_views_follow_the_number_of_frames() -> None:
    config = build_run({"preprocessing": {"num_frames": 16}})
    assert config.views() == Views.parse("16x2x3")
    assert config.views_while_training() == Views.parse("16x1x1")
    assert build_run({"evaluation": {"views": "32x1x3"}}).views() == Views.parse("32x1x3")


def test_parse_overrides_nests() -> None:
    assert parse_overrides(["a.b.c=1", "a.d=x"]) == {"a": {"b": {"c": 1}, "d": "x"}}
