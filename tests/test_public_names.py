"""Public names stay: what was public once still is, under its own name or as a deprecated alias."""

import inspect
import json
from typing import Any

import pytest
from tests.golden.make_public_names import FILE, public_names

import kinescan as ks
from kinescan.evaluation.temporal.scores import TemporalScores
from kinescan.settings import old_name
from kinescan.training.dry_run import MemoryPlan


def _has(name: str, parameter: str) -> bool:
    """Whether a class takes the parameter as the old name of a field, or a function as that of a parameter."""
    value: Any = ks
    for part in name.split("."):
        value = getattr(value, part)
    if parameter in getattr(value, "old_parameters", ()):
        return True
    return inspect.isclass(value) and hasattr(value, parameter)


def test_public_names_and_parameters_stay() -> None:
    now = public_names()
    stored: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    gone = sorted(stored.keys() - now.keys())
    lost = {name: set(stored[name]) - set(now[name]) for name in stored.keys() & now.keys()}
    lost = {name: {one for one in found if not _has(name, one)} for name, found in lost.items()}
    assert not gone, "keep a deprecated alias (kinescan.settings.old_name)"
    assert not {name: found for name, found in lost.items() if found}


@pytest.mark.parametrize(
    ("cls", "old", "new"),
    [
        (ks.data.Batch, "places", "positions"),
        (ks.vlm.StreamStats, "detailed_bytes", "full_cache_bytes"),
        (ks.vlm.Candidates, "mass", "scores"),
        (ks.vlm.Candidates, "places", "patch_indices"),
        (MemoryPlan, "average", "ema"),
        (TemporalScores, "frame_shares", "frame_fractions"),
        (TemporalScores, "largest_share", "largest_fraction"),
    ],
)
def test_constructors_take_the_old_name_and_it_can_be_read(cls: type[Any], old: str, new: str) -> None:
    values = {name: 1 for name in inspect.signature(cls).parameters if name != new}
    with pytest.warns(DeprecationWarning, match=new) as warned:
        made = cls(**values, **{old: 2})
    with pytest.warns(DeprecationWarning, match=new) as read:
        assert getattr(made, old) == 2 == getattr(made, new)
    assert {one.filename for one in (*warned, *read)} == {__file__}


def test_attribute_can_be_read_and_set_by_its_old_name() -> None:
    class Stream:
        place = old_name("place", "position")

        def __init__(self) -> None:
            self.position = 1

    stream = Stream()
    with pytest.warns(DeprecationWarning, match="position"):
        stream.place += 1
    assert stream.position == 2
    assert isinstance(inspect.getattr_static(ks.vlm.VideoStream, "place"), property)


def test_help_shows_the_fields_of_a_class_that_takes_old_names() -> None:
    fields = list(ks.models.PKS4Config.__dataclass_fields__)
    assert list(inspect.signature(ks.models.PKS4Config).parameters) == fields
