import json
from typing import Any


def test_list_names_models_recipes_datasets_and_backends(kinescan: Any) -> None:
    said = json.loads(kinescan("list", "--json").stdout)
    assert set(said) == {"models", "recipes", "studies", "datasets", "backends"}
    assert "pks4_vit_b16" in said["models"]
    assert said["recipes"]["own_videos_cpu"].startswith("Your own videos")
    assert "numba" in said["backends"]
    assert "pks4_vit_b16" in kinescan("list").stdout


def test_list_settings_shows_every_key_of_a_recipe(kinescan: Any) -> None:
    keys = json.loads(kinescan("list", "settings", "--json").stdout)
    assert {"key": "data.held_out_ratio", "default": "0.2"}.items() <= next(
        key for key in keys if key["key"] == "data.held_out_ratio"
    ).items()
    assert "optim.lr" in kinescan("list", "settings").stdout
    assert kinescan("list", "settings", "--markdown").stdout.startswith("# Settings")
    refused = kinescan("list", "--markdown")
    assert refused.exit_code == 2
    assert "--markdown" in refused.stderr
    assert "settings" in kinescan("list", "settingx").stderr
