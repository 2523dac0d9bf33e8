import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest

from kinescan.config import RunConfig, build_run
from kinescan.models.registry import MODELS
from kinescan.runs.recipe_keys import KEYS_FILE, stored_keys
from kinescan.runs.recipe_reference import keys_file, recipe_keys, reference_page


def test_every_key_has_a_meaning_and_a_default_that_a_recipe_takes() -> None:
    keys = {key.key: key for key in recipe_keys() if not key.models}
    assert {"seed", "data.train", "optim.lr", "train.device", "evaluation.views"} <= keys.keys()
    for key in keys.values():
        assert key.meaning
        assert key.kind
        assert key.default
    values = [f"{key.key}={key.default}" for key in keys.values() if not key.default.startswith("{")]
    assert build_run({}, values) == RunConfig()


@pytest.mark.parametrize("name", ["pks4_vit_b16", "ssp_videomamba_tiny", "st_adapter_videomamba_tiny"])
def test_options_of_models_are_the_fields_of_their_configs(name: str) -> None:
    own = {key.key.removeprefix("model.options.") for key in recipe_keys() if name in key.models}
    assert own == {field.name for field in dataclasses.fields(MODELS[name].model.config_class)}


def test_the_page_has_a_row_for_each_key() -> None:
    rows = [line for line in reference_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(recipe_keys())
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_the_page_in_docs_is_the_generated_one() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == reference_page(), (
        "run: kinescan list settings --markdown > docs/settings.md"
    )


def test_the_keys_written_down_are_those_of_the_classes() -> None:
    written = (files("kinescan.runs") / KEYS_FILE).read_text(encoding="utf-8")
    assert written == keys_file(), (
        f"run: python -m kinescan.runs.recipe_reference > keys && mv keys src/kinescan/runs/{KEYS_FILE}"
    )
    assert stored_keys() == recipe_keys()
