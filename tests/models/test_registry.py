from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import kinescan as ks
from kinescan.errors import CheckpointError, ConfigError
from kinescan.models import PKS4, PKS4Config, VideoClassifier, registry
from kinescan.models.registry import find_model, list_models, register_model
from kinescan.models.zoo import create_model, from_pretrained

TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "image_size": 32, "insert_after": 1}


@dataclass(frozen=True, kw_only=True)
class OwnConfig(PKS4Config):
    strength: float = 1.0


class Own(PKS4):
    config_class = OwnConfig


@dataclass(frozen=True)
class NoClasses:
    image_size: int = 32


@dataclass
class Loose:
    num_classes: int = 2
    image_size: int = 32


@dataclass(frozen=True, kw_only=True)
class NoDefault(PKS4Config):
    needed: int


def offer(monkeypatch: pytest.MonkeyPatch, *offered: tuple[str, str]) -> None:
    entries = EntryPoints(EntryPoint(name, value, "kinescan.models") for name, value in offered)
    monkeypatch.setattr("kinescan.models.catalog.entry_points", lambda group: entries.select(group=group))


def test_a_registered_model_is_made_saved_and_loaded(tmp_path: Path) -> None:
    ks.register_model("own", OwnConfig(**TINY, window=3, strength=2.0), Own)
    model = create_model("own", labels=["a", "b"], window=5)
    assert (type(model), model.config.width, model.config.window, model.config.strength) == (Own, 16, 5, 2.0)
    model.save_pretrained(tmp_path)
    assert type(from_pretrained(tmp_path)) is Own
    assert "own" in list_models()
    with pytest.raises(ConfigError, match="strength"):
        create_model("own", strengthh=1.0)


def test_a_saved_model_that_nobody_knows_says_its_module(tmp_path: Path) -> None:
    register_model("own", OwnConfig(**TINY, window=3), Own)
    create_model("own", labels=["a", "b"]).save_pretrained(tmp_path)
    assert f"`{Own.__module__}`" in (tmp_path / "README.md").read_text("utf-8")
    registry.REGISTERED.clear()
    with pytest.raises(CheckpointError, match=f"--import {Own.__module__}"):
        from_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text("utf-8").replace(Own.__module__, "x; rm -rf /"), "utf-8")
    with pytest.raises(CheckpointError, match="module"):
        from_pretrained(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "config", "builder", "said"),
    [
        ("pks4_vit_b16", OwnConfig, Own, "pks4_vit_b16"),
        ("", OwnConfig, Own, "name"),
        ("a/b", OwnConfig, Own, "'a/b'"),
        (3, OwnConfig, Own, "3"),
        ("own", OwnConfig, lambda config: None, "VideoClassifier"),
        ("own", OwnConfig, dict, "VideoClassifier"),
        ("own", OwnConfig, VideoClassifier, "VideoClassifier"),
        ("own", PKS4Config, Own, "config_class"),
        ("own", NoClasses, Own, "num_classes"),
        ("own", Loose, Own, "frozen"),
        ("own", {"num_classes": 2}, Own, "frozen"),
        ("own", None, Own, "frozen"),
        ("own", NoDefault, Own, "needed"),
    ],
)
def test_what_cannot_be_registered(name: Any, config: Any, builder: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        register_model(name, config, builder)
    assert registry.REGISTERED == {}


def test_a_name_is_given_once() -> None:
    register_model("own", OwnConfig, Own)
    with pytest.raises(ConfigError, match="own"):
        register_model("own", OwnConfig, Own)


def test_an_installed_package_is_imported_when_its_model_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = "import kinescan as ks\nfrom kinescan.models import PKS4, PKS4Config\n"
    source += "class Plugged(PKS4): pass\nks.register_model('plugged', PKS4Config(depth=2, insert_after=1), Plugged)\n"
    (tmp_path / "plugged_models.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, ("plugged", "plugged_models"), ("empty", "json"), ("broken", "no_such_module_here"))
    assert {"plugged", "empty", "broken"} <= set(list_models())
    assert find_model("nothing") is None
    assert registry.REGISTERED == {}
    found = find_model("plugged")
    assert found is not None
    assert found.settings == {"depth": 2, "insert_after": 1}
    with pytest.raises(ConfigError, match="register_model"):
        find_model("empty")
    with pytest.raises(ConfigError, match="no_such_module_here"):
        find_model("broken")
