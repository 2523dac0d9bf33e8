"""Earlier names of settings are taken wherever the current ones are."""

import json
import logging
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kinescan.config import build_run
from kinescan.errors import ConfigError
from kinescan.models import PKS4Config
from kinescan.models.videomamba.tuners.ssp import SSPConfig
from kinescan.models.videomamba.tuners.st_adapter import STAdapterConfig
from kinescan.models.videomamba.videomamba import VideoMambaConfig
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.settings import build_settings, renamed_parameters

TINY: dict[str, Any] = {"depth": 2, "insert_after": 1, "window": 5, "num_classes": 2}


@pytest.mark.parametrize("config", [PKS4Config, VideoMambaConfig, SSPConfig])
def test_constructors_take_and_read_the_old_name(config: type[Any]) -> None:
    with pytest.warns(DeprecationWarning, match="activation_checkpointing"):
        given = config(recompute=True)
    assert given == config(activation_checkpointing=True) != config()
    with pytest.warns(DeprecationWarning, match="activation_checkpointing"):
        assert given.recompute is True
    with pytest.warns(DeprecationWarning, match="activation_checkpointing"):
        assert replace(given, recompute=False) == config()
    assert build_settings(config, {"recompute": True}) == given


@dataclass(frozen=True, kw_only=True)
class _OwnConfig(PKS4Config):
    gate: bool = False


class _SameFields(_OwnConfig):
    pass


@pytest.mark.parametrize("config", [_OwnConfig, _SameFields])
def test_configs_derived_from_one_take_the_old_name(config: type[_OwnConfig]) -> None:
    assert build_settings(config, {"recompute": True}).activation_checkpointing is True
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match=r"activation_checkpointing") as warned:
            given = config(recompute=True, gate=True)  # type: ignore[call-arg]
        assert [one.filename for one in warned] == [__file__]
        assert (given.activation_checkpointing, given.gate) == (True, True)
    assert (
        replace(given, gate=False)
        == config(activation_checkpointing=True)
        == pickle.loads(pickle.dumps(config(activation_checkpointing=True)))
    )
    with pytest.raises(TypeError, match="recomputed"):
        config(recomputed=True)  # type: ignore[call-arg]


def test_taps_is_the_old_name_of_the_kernel_size() -> None:
    model = create_model("st_adapter_videomamba_tiny", taps=5, depth=1)
    assert isinstance(model.config, STAdapterConfig)
    assert model.config.kernel_size == 5


def test_create_model_takes_the_old_name_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = create_model("pks4_vit_ti16", recompute=True, **TINY)
    assert model.config.activation_checkpointing is True
    assert "recompute" in caplog.text
    assert "activation_checkpointing" in caplog.text


def test_both_names_with_different_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"recompute.*activation_checkpointing"):
        create_model("pks4_vit_ti16", recompute=True, activation_checkpointing=False)
    assert build_settings(PKS4Config, {"recompute": True, "activation_checkpointing": True}).activation_checkpointing


def test_saved_models_with_the_old_name_load(tmp_path: Path) -> None:
    create_model("pks4_vit_ti16", activation_checkpointing=True, **TINY).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["config"]["recompute"] = saved["config"].pop("activation_checkpointing")
    path.write_text(json.dumps(saved), encoding="utf-8")
    assert from_pretrained(tmp_path).config.activation_checkpointing is True
    assert create_model("pks4_vit_ti16", weights=tmp_path).config.activation_checkpointing is True
    off = create_model("pks4_vit_ti16", weights=tmp_path, activation_checkpointing=False)
    assert off.config.activation_checkpointing is False


@pytest.mark.parametrize(
    ("first", "second"), [("recompute", "activation_checkpointing"), ("activation_checkpointing", "recompute")]
)
def test_set_replaces_a_recipe_value_by_either_name(first: str, second: str) -> None:
    recipe = {"model": {"name": "pks4_vit_ti16", "options": {first: True}}}
    assert build_run(recipe, [f"model.options.{second}=false"]).model.options == {second: False}


def test_an_argument_of_a_function_is_not_given_by_its_old_name_and_its_new_one() -> None:
    @renamed_parameters(places="positions")
    def ours(positions: int) -> int:
        return positions

    with pytest.warns(DeprecationWarning, match="positions") as warned:
        assert ours(places=3) == 3  # type: ignore[call-arg]
    assert [one.filename for one in warned] == [__file__]
    with pytest.raises(TypeError, match=r"positions.*places"):
        ours(places=3, positions=4)  # type: ignore[call-arg]
