import json

import pytest
from tests.events.conftest import MakeTold

from kinescan.errors import CheckpointError
from kinescan.events.told import FIELDS, told_from


def test_a_record_holds_every_field_and_comes_back(make_told: MakeTold) -> None:
    told = make_told(3, "end")
    record = told.to_plain()
    assert tuple(record) == FIELDS
    again = told_from(json.loads(json.dumps(record)))
    assert again.to_plain() == record
    assert (again.key, again.stream_id) == ("s-3-end", "s")


@pytest.mark.parametrize("change", [{"sequence": "x"}, {"told_at_seconds": None}])
def test_a_damaged_record_is_refused(make_told: MakeTold, change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        told_from(make_told(3).to_plain() | change)
    with pytest.raises(CheckpointError):
        told_from({"id": "s-3"})
