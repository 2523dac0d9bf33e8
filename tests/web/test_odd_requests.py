"""Whatever JSON a client sends, the answer is one that says what is wrong with it."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from .conftest import Served

pytestmark = pytest.mark.usefixtures("dropped_sockets")

DELETED = object()
ODD = (
    *(None, True, -1, 3.7, 1e400, float("nan"), 10**30, 1e-310),
    *("", "a", "inf", "\0", "\ud800", "x" * 5000, [], [None], {}, {"url": []}),
    DELETED,
)
VIDEO = {"type": "video_url", "video_url": {"url": "inner/a.mp4"}}
REQUESTS = {
    "/v1/predict": {"video": "inner/a.mp4", "model": "small", "top": 2, "views": "2x1x1"},
    "/v1/chat/completions": {
        "model": "vlm",
        "messages": [{"role": "user", "content": [VIDEO, {"type": "text", "text": "a?"}]}],
        **{"max_tokens": 1, "max_completion_tokens": 1, "fps": 1, "n": 1, "tools": [], "stream": False},
    },
}
START = {"type": "start", "format": "rgb24", "width": 8, "height": 8, "fps": 8, "top": 1, "events": True}


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something may be put instead of what is there."""
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*before, key))


def _with(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    if not place:
        return None if odd is DELETED else odd
    copied = json.loads(json.dumps(value))
    holder = copied
    for key in place[:-1]:
        holder = holder[key]
    if odd is DELETED:
        del holder[place[-1]]
    else:
        holder[place[-1]] = odd
    return copied


def _variants(value: Any) -> Iterator[tuple[str, str]]:
    """JSON with one thing changed, and what was changed."""
    for place in _places(value):
        for odd in ODD:
            yield json.dumps(_with(value, place, odd)), f"{place}: {str(odd)[:40]!r}"


@pytest.mark.parametrize("path", REQUESTS)
def test_requests_with_one_odd_value_are_answered_with_200_or_a_reason(
    served: Served, client: httpx.Client, path: str
) -> None:
    for text, what in _variants(REQUESTS[path]):
        answer = client.post(path, content=text.encode(), headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 404, 413, 422), what
        if answer.status_code != 200:
            assert len(answer.json()["error"]["message"]) > 10, what


def test_starts_of_streams_with_one_odd_value_are_taken_or_refused_with_a_reason(served: Served) -> None:
    for text, what in _variants(START):
        with connect(served.socket_url("/v1/stream")) as link:
            # a service that has refused may have gone
            with suppress(ConnectionClosed):
                link.send(text)
                for _ in range(2):
                    link.send(bytes(8 * 8 * 3))
                link.send(json.dumps({"type": "end"}))
            kinds = []
            while not kinds or kinds[-1] not in ("end", "error"):
                answer = json.loads(link.recv(30))
                kinds.append(answer["type"])
            assert kinds[-1] == "end" or len(answer["error"]["message"]) > 10, what


def test_events_of_a_session_with_one_odd_value_leave_it_open(served: Served) -> None:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), (10, 20, 200)).save(file, "JPEG")
    picture = {
        "type": "input_image",
        "image_url": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
    }
    content = [picture, {"type": "input_text", "text": "a?"}]
    events = (
        {"type": "session.update", "session": {"instructions": "b"}, "event_id": "c"},
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": content, "id": "d"},
        },
        {"type": "response.create", "response": {"max_output_tokens": 1}},
    )
    with connect(served.socket_url("/v1/realtime?model=vlm")) as link:
        assert json.loads(link.recv(30))["type"] == "session.created"
        for event in events:
            for text, what in _variants(event):
                link.send(text)
                last = json.loads(link.recv(30))
                while last["type"] not in ("error", "session.updated", "conversation.item.done", "response.done"):
                    last = json.loads(link.recv(30))
                assert last["type"] != "error" or len(last["error"]["message"]) > 10, what
