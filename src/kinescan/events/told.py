"""The records of an event, one for its start and one for its end, as every sink gets them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kinescan.errors import CheckpointError
from kinescan.events.detector import Event, EventUpdate

FIELDS = (
    *("kind", "id", "label", "start_seconds", "end_seconds", "peak_score", "mean_score", "told_at_seconds"),
    *("source", "sequence", "start_time", "end_time", "told_at_time"),
)
"""Names of a record's values, in the order in which files have them."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """An update of an event with where it came from.

    Attributes:
        update: what is told.
        source: file or stream, without the secrets that an address may hold.
        sequence: number among all updates of the stream, from 1, also over restarts.
        start_time: wall-clock time of the event's start (ISO 8601, UTC); None for files.
        end_time: when it ended; None for files and at its start.
        told_at_time: when it was told; None for files.
    """

    update: EventUpdate
    source: str
    sequence: int
    start_time: str | None = None
    end_time: str | None = None
    told_at_time: str | None = None

    @property
    def key(self) -> str:
        """Names this record alone, whenever and however often it is sent."""
        return f"{self.update.event.id}-{self.update.kind}"

    @property
    def stream_id(self) -> str:
        """Id of the stream, with which the event's id begins."""
        return stream_of(self.update.event.id)

    def to_plain(self) -> dict[str, Any]:
        """The record: one value for each of FIELDS."""
        values = {
            "kind": self.update.kind,
            **asdict(self.update.event),
            "told_at_seconds": self.update.told_at_seconds,
            "source": self.source,
            "sequence": self.sequence,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "told_at_time": self.told_at_time,
        }
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def told_from(record: Mapping[str, Any]) -> Told:
    """The inverse of `Told.to_plain`.

    Raises:
        CheckpointError: it is not such a record.
    """
    try:
        values = {name: record[name] for name in FIELDS}
        event = Event(**{name: values.pop(name) for name in Event.__dataclass_fields__})
        if not all(isinstance(text, str) for text in (event.id, event.label, values["source"])):
            raise ValueError("id, label and source must be text")
        update = EventUpdate(kind=values.pop("kind"), event=event, told_at_seconds=float(values.pop("told_at_seconds")))
        return Told(update=update, **{**values, "sequence": int(values["sequence"])})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"a record of an event is damaged ({type(error).__name__}: {error}).") from None


def stream_of(event_id: str) -> str:
    """What an event's id begins with.

    Example:
        >>> stream_of("1f2e3d4c-17")
        '1f2e3d4c'
    """
    return event_id.rpartition("-")[0]
