from collections.abc import Callable
from typing import Literal

import pytest

from kinescan.events.detector import Event, EventUpdate
from kinescan.events.told import Told

MakeTold = Callable[..., Told]


@pytest.fixture
def make_told() -> MakeTold:
    """A record of the stream "s": one start or end of event `number`."""

    def make(
        number: int, kind: Literal["start", "end"] = "start", *, stream: str = "s", sequence: int | None = None
    ) -> Told:
        event = Event(
            id=f"{stream}-{number}",
            label="fall, down\nstairs",
            start_seconds=number / 3,
            end_seconds=None if kind == "start" else number + 0.5,
            peak_score=0.9,
            mean_score=0.8,
        )
        update = EventUpdate(kind=kind, event=event, told_at_seconds=number + 1.0)
        return Told(update=update, source="rtsp://***@camera", sequence=number if sequence is None else sequence)

    return make
