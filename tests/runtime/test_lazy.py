import importlib

import pytest

from kinescan.data.readers.source import LabelSource
from kinescan.runtime.lazy import lazy_names


@pytest.mark.parametrize("module", ["kinescan.data.readers", "kinescan.data.readers.source"])
def test_a_class_that_was_renamed_is_found_by_its_old_name(module: str) -> None:
    with pytest.warns(DeprecationWarning, match="LabelSource") as told:
        assert importlib.import_module(module).Source is LabelSource
    assert told[0].filename == __file__
    with pytest.raises(AttributeError, match="Sources"):
        _ = importlib.import_module(module).Sources


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
