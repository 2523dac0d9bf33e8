from pathlib import Path
from typing import Any

import pytest

from kinescan.errors import ConfigError
from kinescan.studies import DataEntry, Preparation, Row, Study, build_study, load_study
from kinescan.studies.study import dump_study

TEXT = """
recipe = "own_videos_cpu"
seeds = [3, 4]
base = "b"
prepare = "stills"

[settings]
optim.lr = 0.5
"model.options.depth" = 2

[[data]]
name = "made"
make = { kind = "motion", train_per_class = 4 }

[[rows]]
name = "a"
settings = { model = "vit_ti16" }
columns = { published = 71.2 }

[[rows]]
name = "b"
prepare = "none"

[[preparations]]
name = "stills"
"""


def test_a_file_is_read_and_written_back(tmp_path: Path) -> None:
    file = tmp_path / "first.toml"
    file.write_text(TEXT, encoding="utf-8")
    study = load_study(file)
    assert (study.name, study.seeds, study.base_row) == ("first", (3, 4), "b")
    assert study.preparation_of(study.rows[0]) == study.preparations[0]
    assert study.preparation_of(study.rows[1]) is None
    (tmp_path / "study.toml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path) == study


def test_a_recipe_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('model = "vit_ti16"\n', encoding="utf-8")
    (tmp_path / "s.toml").write_text('recipe = "mine.toml"\n[[rows]]\nname = "a"\n', encoding="utf-8")
    assert load_study(tmp_path / "s.toml").recipe == str(tmp_path / "mine.toml")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"seeds": (0, 1, 0)}, ["0"]),
        ({"seeds": ()}, ["seed"]),
        ({"seeds": (-1,)}, ["-1"]),
        ({"rows": ()}, ["row"]),
        ({"rows": (Row(name="a"), Row(name="a"))}, ["'a'"]),
        ({"base": "c"}, ["'c'"]),
        ({"prepare": "weights"}, ["'weights'"]),
        ({"data": (DataEntry(name="d"), DataEntry(name="d"))}, ["'d'"]),
        ({"settings": {"seed": 3}}, ["seed"]),
        ({"settings": {"output": "x"}}, ["output"]),
        ({"name": ""}, ["name"]),
        ({"seeds": tuple(range(20_000))}, ["20000"]),
    ],
)
def test_what_no_study_can_be_is_refused(wrong: dict[str, Any], named: list[str]) -> None:
    given: dict[str, Any] = {"name": "s", "recipe": "own_videos_cpu", "rows": (Row(name="a"),)}
    with pytest.raises(ConfigError) as caught:
        Study(**(given | wrong))
    assert all(word in str(caught.value) for word in named)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rows": [{"name": "a"}]}, "'recipe'"),
        ({"recipe": "own_videos_cpu"}, "'rows'"),
        ({"recipe": "own_videos_cpu", "rows": {"name": "a"}}, "[[rows]]"),
        ({"recipe": "own_videos_cpu", "rows": [{"names": "a"}]}, "'name'"),
        ({"recipe": "own_videos_cpu", "rows": [{"name": 3}]}, "rows[0].name"),
        ({"recipe": "own_videos_cpu", "rows": [{"name": "a"}], "seed": [1]}, "'seeds'"),
        ({"recipe": "own_videos_cpu", "rows": [{"name": "a", "columns": {"b": [1]}}]}, "'b'"),
        ({"recipe": "own_videos_cpu", "rows": [{"name": "a"}], "data": [{"name": "d", "make": {"kind": "x"}}]}, "'x'"),
        ({"recipe": "own_videos_cpu", "rows": [{"name": "a"}], "seeds": ["a"]}, "seeds"),
        ({"recipe": "own_videos_cpu", "rows": [{"name": "a"}], "preparations": [{"name": "none"}]}, "none"),
    ],
)
def test_what_a_file_says_wrongly_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_study(values, name="s")
    assert named in str(caught.value)


def test_a_preparation_trains_at_least_one_still() -> None:
    with pytest.raises(ConfigError):
        Preparation(name="p", stills_per_epoch=0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("cls", "wrong", "named"),
    [
        (DataEntry, {"folds": 1}, "folds"),
        (DataEntry, {"folds": 3, "make": {"kind": "motion"}}, "folds"),
        (Preparation, {"make": {"kind": "motion"}}, "make"),
        (Preparation, {"prepare": "other"}, "prepare"),
        (Preparation, {"kind": "train", "make": {"kind": "motionn"}}, "motion"),
    ],
)
def test_what_neither_folds_nor_preparations_can_be_is_refused(cls: Any, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        cls(name="x", **wrong)


@pytest.mark.bad_input
def test_a_preparation_starts_from_one_that_stands_before_it() -> None:
    first, second = (
        Preparation(name=name, kind="train", prepare=before) for name, before in (("first", "second"), ("second", ""))
    )
    with pytest.raises(ConfigError, match="'second'"):
        Study(name="x", recipe="own_videos_cpu", rows=(Row(name="a"),), preparations=(first, second))
    found = Study(name="x", recipe="own_videos_cpu", rows=(Row(name="a"),), preparations=(second, first))
    assert found.preparation("first") == first


def test_a_study_that_comes_with_the_package_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study("own_motion_cpu")
    assert [row.name for row in study.rows] == ["frame averaging", "PKS4"]
    assert [part.settings["data.fold"] for part in study.data_parts] == [1, 2, 3]
    with pytest.raises(ConfigError, match="own_motion_cpu"):
        load_study("own_motion_cpuu")
    (tmp_path / "own_motion_cpu").write_text('recipe = "own_videos_cpu"\n[[rows]]\nname = "mine"\n', encoding="utf-8")
    assert load_study("own_motion_cpu").rows[0].name == "mine"
