import importlib

import pytest

from kinescan.runtime.lazy import lazy_names


@pytest.mark.parametrize("package", ["kinescan", "kinescan.data", "kinescan.models"])
def test_every_name_of_a_lazy_package_is_there(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_names_come_from_their_modules_and_others_are_refused() -> None:
    get = lazy_names("json", {"json.decoder": ["JSONDecoder"]}, ["tool"])
    assert get("JSONDecoder") is importlib.import_module("json.decoder").JSONDecoder
    assert get("decoder") is importlib.import_module("json.decoder")
    assert get("tool") is importlib.import_module("json.tool")
    for name in ("encoder", "nothing"):
        with pytest.raises(AttributeError, match=name):
            get(name)


def test_runs_names_its_modules() -> None:
    runs = importlib.import_module("kinescan.runs")
    assert runs.recipe is importlib.import_module("kinescan.runs.recipe")
    with pytest.raises(AttributeError, match="no_such_verb"):
        _ = runs.no_such_verb
