"""The service as its clients meet it, over real sockets."""

import asyncio
import base64
import io
import json
import re
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from kinescan.data.video import VideoReader, write_video
from kinescan.data.video.still_picture import decode_picture
from kinescan.errors import ConfigError, VideoError
from kinescan.inference.predictor import predict
from kinescan.inference.stream import stream
from kinescan.web.serving import bound_socket, make_config
from kinescan.web.settings import ServeConfig, ServeLimits

from .conftest import LIMITS, Running, Served

pytestmark = pytest.mark.usefixtures("dropped_sockets")


def _video(served: Served) -> bytes:
    return (served.folder / "media" / "inner" / "a.mp4").read_bytes()


def _jpeg(value: int, size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 20, 200 - value)).save(file, "JPEG")
    return file.getvalue()


def _code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def _raw(served: Served, request: bytes, *, wait: float = 10.0) -> bytes:
    """What a server says to bytes that no client would send."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as opened:
        opened.sendall(request)
        answer = b""
        while part := opened.recv(4096):
            answer += part
    return answer


def test_a_video_is_classified_however_it_is_sent(served: Served, client: httpx.Client) -> None:
    content = _video(served)
    [expected] = predict(served.folder / "model", content, top=2)
    answers = [
        client.post("/v1/predict", files={"file": ("a.mp4", content)}, params={"top": 2}),
        client.post("/v1/predict?top=2", content=content),
        client.post("/v1/predict", json={"video": "inner/a.mp4", "top": 2}),
        client.post(
            "/v1/predict", json={"video": "data:video/mp4;base64," + base64.b64encode(content).decode(), "top": 2}
        ),
    ]
    for answer in answers:
        body = answer.json()
        assert answer.status_code == 200
        assert body["labels"] == list(expected.labels)
        assert body["scores"] == pytest.approx(expected.scores, abs=1e-6)
        assert body["video"]["num_frames"] == 16


def test_files_elsewhere_and_addresses_are_not_read(served: Served, client: httpx.Client) -> None:
    for name in (
        "../secret.mp4",
        "link.mp4",
        "loop/secret.mp4",
        "/etc/passwd",
        "inner/../../secret.mp4",
        "",
        "inner",
        "inner//a.mp4",
        "..%2fsecret.mp4",
        "%2e%2e/secret.mp4",
        "inner\\a.mp4",
        "a\0b",
        "x" * 5000,
    ):
        assert _code(client.post("/v1/predict", json={"video": name})) == (404, "no_such_file"), name
    for address in (
        "http://127.0.0.1:1/a.mp4",
        "https://example.org/a.mp4",
        "file:///etc/passwd",
        "rtsp://127.0.0.1/a",
    ):
        assert _code(client.post("/v1/predict", json={"video": address})) == (403, "address_not_allowed")


def test_what_is_no_video_is_a_clear_4xx(served: Served, client: httpx.Client, tmp_path: Path) -> None:
    bomb = zlib.compress(b"\0" * 10_000_000)
    write_video(tmp_path / "long.mp4", torch.zeros(40, 3, 32, 32, dtype=torch.uint8), fps=1)
    cases = {
        (422, "unreadable_video"): [b"no video", bomb, _video(served)[:-300], b""],
        (413, "video_too_long"): [(tmp_path / "long.mp4").read_bytes()],
    }
    for expected, contents in cases.items():
        for content in contents:
            answer = client.post("/v1/predict", content=content)
            assert _code(answer) == expected
            assert "kinescan-" not in answer.text
    assert _code(client.post("/v1/predict", json=[])) == (400, "bad_request")
    assert _code(client.post("/v1/predict", content=_video(served), params={"top": "x"})) == (400, "bad_request")
    assert _code(client.post("/v1/predict?model=other", content=b"x")) == (404, "model_not_found")
    assert client.post("/v1/predict", content=_video(served), params={"views": "8xx"}).status_code == 400
    assert client.get("/v1/nothing").status_code == 404
    assert client.post("/v1/predict", files={"other": b"x"}).status_code == 400


def test_huge_pictures_are_refused_before_memory_is_taken(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert len(file.getvalue()) < LIMITS.body_bytes
    assert _code(client.post("/v1/predict", content=file.getvalue())) == (422, "unreadable_video")


def test_bodies_without_end_and_wrong_lengths(served: Served, client: httpx.Client) -> None:
    def endless():
        while True:
            yield b"\0" * 65_536

    begun = time.monotonic()
    # it may hang up while the client is still sending
    with suppress(httpx.WriteError):
        assert _code(client.post("/v1/predict", content=endless())) == (413, "too_large")
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 413 " in _raw(served, head + b"Content-Length: 99999999999\r\n\r\n")
    assert b" 408 " in _raw(served, head + b"Content-Length: 1000\r\n\r\nabc")
    for wrong in (
        b"Content-Length: -5\r\n\r\n",
        b"Content-Length: abc\r\n\r\n",
        b"Content-Length: 3\r\nContent-Length: 9\r\n\r\nabc",
    ):
        assert b" 400 " in _raw(served, head + wrong)
    # silence, and a head that never ends
    assert _raw(served, b"") == b""
    assert _raw(served, b"GET /health HTTP/1.1\r\nHost:") == b""
    assert time.monotonic() - begun < 40
    assert client.get("/health").json()["status"] == "ok"


def test_an_answer_before_the_whole_body_closes_the_connection(served: Served) -> None:
    head = b"Host: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n"
    begun = time.monotonic()
    for path in (b"/v1/files", b"/v1/predict", b"/v1/nothing", b"/health"):
        answer = _raw(served, b"POST " + path + b" HTTP/1.1\r\n" + head + b"5\r\nwrong\r\n")
        assert b"connection: close" in answer
    # not the end of its patience
    assert time.monotonic() - begun < LIMITS.stall_seconds * 4
    # a whole one leaves it open
    with httpx.Client(base_url=served.url) as client:
        for _ in range(2):
            assert "connection" not in client.post("/v1/predict", content=b"wrong").headers
            assert "connection" not in client.get("/health").headers


def test_a_client_that_hangs_up_is_no_error_of_the_service(
    served: Served, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = served.url.removeprefix("http://").split(":")

    def counted(status: int) -> int:
        found = re.findall(rf'requests_total\{{.*status="{status}"\}} (\d+)', client.get("/metrics").text)
        return sum(map(int, found))

    before, gone = counted(500), counted(499)
    with caplog.at_level("INFO"):
        for path in (b"/v1/predict", b"/v1/files", b"/v1/chat/completions"):
            with socket.create_connection((host, int(port))) as opened:
                kind = b"Content-Type: multipart/form-data; boundary=x\r\n" if path == b"/v1/files" else b""
                opened.sendall(
                    b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + kind + b"Content-Length: 99\r\n\r\n--x"
                )
                time.sleep(0.2)
        deadline = time.monotonic() + 30
        while counted(499) < gone + 3 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert counted(499) == gone + 3
    assert counted(500) == before
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_json_of_a_million_brackets_is_refused_before_memory_is_taken(served: Served, client: httpx.Client) -> None:
    nested = b"[" + b"[]," * 500_000 + b"[]]"
    for path in ("/v1/predict", "/v1/chat/completions"):
        answer = client.post(path, content=nested, headers={"content-type": "application/json"})
        assert _code(answer) == (413, "too_large")
    with connect(served.socket_url("/v1/realtime")) as opened:
        opened.recv(10)
        opened.send("[" + "[]," * 200_000 + "[]]")
        assert json.loads(opened.recv(10))["type"] == "error"


def test_stalling_clients_cost_others_nothing_and_make_room_for_others(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(LIMITS.connections + 40)
        ]
        with httpx.Client(base_url=served.url) as client:
            assert client.get("/health").status_code == 200
        # those that have been silent for longest had to go
        idle[0].settimeout(10)
        assert idle[0].recv(100).startswith(b"HTTP/1.1 503")
        deadline = time.monotonic() + 20
        for one in idle[-10:]:
            one.settimeout(max(0.1, deadline - time.monotonic()))
            assert one.recv(10) == b""
    with httpx.Client(base_url=served.url) as client:
        assert client.get("/health").status_code == 200


def test_a_client_that_does_not_take_its_answers_is_left(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        opened.connect((host, int(port)))
        opened.setblocking(False)
        deadline, is_left = time.monotonic() + 120, False
        while not is_left and time.monotonic() < deadline:
            try:
                opened.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            except BlockingIOError:
                time.sleep(0.05)
            except (ConnectionResetError, BrokenPipeError):
                is_left = True
    assert is_left


def test_answers_do_not_wait_for_a_clients_acknowledgement() -> None:
    # 40 ms of each request, where asyncio does not see that it is TCP
    async def delays() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def note(_: Any, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bound_socket("localhost", 0) as bound:
            async with await asyncio.start_server(note, sock=bound):
                _, writer = await asyncio.open_connection(*bound.getsockname()[:2])
                try:
                    return await accepted
                finally:
                    writer.close()

    assert asyncio.run(delays()) == 1


def test_without_a_key_only_localhost_is_answered(served: Served, client: httpx.Client) -> None:
    assert _code(client.get("/health", headers={"Host": "evil.example"})) == (403, "host_not_allowed")
    assert _code(client.get("/health", headers={"Origin": "https://evil.example"})) == (403, "origin_not_allowed")
    assert client.get("/health", headers={"Origin": "http://localhost:9000"}).status_code == 200


def test_a_key_is_needed_where_others_can_reach_the_service(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    models = {"small": str(served.folder / "model")}
    with pytest.raises(ConfigError):
        ServeConfig(models=models, host="0.0.0.0")
    with pytest.raises(ConfigError):
        ServeConfig(models=models, api_key="short")
    key = "k" * 24
    config = ServeConfig(models=models, host="0.0.0.0", api_key=key, device="cpu", page=False, limits=LIMITS)
    with caplog.at_level("INFO"), Running(config) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": f"Bearer {key}x"}, {"Authorization": "Bearer"}, {"Authorization": key}):
            answer = client.get("/v1/models", headers=headers)
            assert _code(answer) == (401, "invalid_api_key")
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/v1/models", auth=("anyone", key)).status_code == 200
        with pytest.raises(InvalidStatus), connect(url.replace("http", "ws") + "/v1/stream"):
            pass
    lines = [json.loads(record.message) for record in caplog.records if record.name == "kinescan.web.requests"]
    assert {line["status"] for line in lines} >= {200, 401}
    assert key not in caplog.text


def test_a_stream_gives_what_a_stream_in_python_gives(served: Served) -> None:
    with VideoReader(served.folder / "media" / "inner" / "a.mp4") as reader:
        frames = reader.read(range(16)).pixels
    expected = list(stream(served.folder / "model", ((frame, index / 8) for index, frame in enumerate(frames))))
    with connect(served.socket_url("/v1/stream")) as opened:
        opened.send(json.dumps({"type": "start", "format": "rgb24", "width": 48, "height": 32, "fps": 8, "top": 2}))
        for frame in frames:
            opened.send(frame.permute(1, 2, 0).contiguous().numpy().tobytes())
        opened.send(json.dumps({"type": "end"}))
        messages = [json.loads(message) for message in opened]
    predictions = [message for message in messages if message["type"] == "prediction"]
    assert [p["frame_index"] for p in predictions] == [p.frame_index for p in expected]
    for one, other in zip(predictions, expected, strict=True):
        assert one["scores"] == pytest.approx(other.scores[:2], abs=1e-4)
    assert messages[-1] == {"type": "end", "num_frames": 16, "num_predictions": 16}
    assert {message["kind"] for message in messages if message["type"] == "event"} == {"start", "end"}


def test_a_slow_stream_lives_as_long_as_frames_come(served: Served) -> None:
    with connect(served.socket_url("/v1/stream")) as opened:
        opened.send(json.dumps({"type": "start", "fps": 8, "events": False}))
        begun = time.monotonic()
        while time.monotonic() - begun < 1.7 * LIMITS.stall_seconds:
            opened.send(_jpeg(50))
            assert json.loads(opened.recv())["type"] == "prediction"
            time.sleep(0.4)


def test_streams_are_apart_and_share_passes(served: Served, client: httpx.Client) -> None:
    def run(value: int) -> list[list[float]]:
        with connect(served.socket_url("/v1/stream")) as opened:
            opened.send(json.dumps({"type": "start", "fps": 8, "top": 2, "events": False}))
            for _ in range(12):
                opened.send(_jpeg(value))
            opened.send(json.dumps({"type": "end"}))
            found = [json.loads(message) for message in opened]
        return [one["scores"] for one in found if one["type"] == "prediction"]

    alone = [run(value) for value in (10, 120, 190)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(run, (10, 120, 190)))
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-4)
    assert "kinescan_stream_passes_total" in client.get("/metrics").text


def test_a_broken_stream_is_told_why_and_too_many_are_refused(served: Served) -> None:
    def last(start: object, *frames: bytes | str) -> dict:
        with connect(served.socket_url("/v1/stream")) as opened:
            opened.send(start if isinstance(start, str) else json.dumps(start))
            for frame in frames:
                opened.send(frame)
            found: list[dict] = []
            with suppress(ConnectionClosed):
                found.extend(json.loads(message) for message in opened)
            return found[-1]

    start = {"type": "start", "fps": 8}
    codes = [
        last("no json"),
        last({"type": "start", "speed": 3}),
        last({"type": "start", "format": "rgb24", "width": 10**9, "height": 10**9}),
        last(start, b"no picture"),
        last({**start, "format": "rgb24", "width": 4, "height": 4}, b"short"),
        last(start, _jpeg(3), '{"type": "pause"}'),
        last(start),
    ]
    wanted = ["bad_message", "bad_start", "bad_start", "unreadable_video", "invalid_value", "bad_message", "too_slow"]
    assert [message["error"]["code"] for message in codes] == wanted
    with ExitStack() as opened:
        for _ in range(LIMITS.streams):
            opened.enter_context(connect(served.socket_url("/v1/stream")))
        with pytest.raises(InvalidStatus), connect(served.socket_url("/v1/stream")):
            pass
    deadline = time.monotonic() + 10
    while served.service.num_streams and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.service.num_streams == 0


def test_the_openai_client_asks_about_a_video(served: Served) -> None:
    client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
    assert {model.id for model in client.models.list()} == {"small", "vlm"}
    url = "data:video/mp4;base64," + base64.b64encode(_video(served)).decode()
    upload = client.files.create(file=("a.mp4", _video(served)), purpose="user_data")
    answers = []
    for source in (url, "inner/a.mp4", upload.id):
        content = [{"type": "video_url", "video_url": {"url": source}}, {"type": "text", "text": "a b c?"}]
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model="vlm", messages=messages, max_tokens=4)
        parts = client.chat.completions.create(model="vlm", messages=messages, max_tokens=4, stream=True)
        streamed = "".join(part.choices[0].delta.content or "" for part in parts)
        assert answer.choices[0].message.content == streamed
        assert answer.usage.completion_tokens <= 4
        answers.append(streamed)
    assert len(set(answers)) == 1
    assert client.files.delete(upload.id).deleted
    assert list(client.files.list()) == []
    for source, error in (
        ("../secret.mp4", openai.NotFoundError),
        ("https://example.org/a", openai.PermissionDeniedError),
    ):
        content = [{"type": "video_url", "video_url": {"url": source}}, {"type": "text", "text": "?"}]
        with pytest.raises(error):
            client.chat.completions.create(model="vlm", messages=[{"role": "user", "content": content}])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="vlm", messages=[{"role": "user", "content": "no video"}])
    client.close()


# the client's own use of websockets
@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")
def test_the_openai_client_keeps_a_session_open(served: Served) -> None:
    address = served.url.replace("http://", "ws://") + "/v1"
    client = openai.OpenAI(base_url=served.url + "/v1", websocket_base_url=address, api_key="none", max_retries=0)
    with client.realtime.connect(model="vlm") as connection:
        assert connection.recv().type == "session.created"
        connection.response.create()
        assert connection.recv().type == "error"
        for value in (10, 100):
            picture = "data:image/jpeg;base64," + base64.b64encode(_jpeg(value)).decode()
            part = {"type": "input_image", "image_url": picture}
            connection.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
            assert [connection.recv().type for _ in range(2)] == ["conversation.item.added", "conversation.item.done"]
        part = {"type": "input_text", "text": "a b?"}
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
        connection.response.create(response={"max_output_tokens": 4})
        kinds, text = [], ""
        while not kinds or kinds[-1] != "response.done":
            event = connection.recv()
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
        assert event.response.output[0].content[0].text == text
        with pytest.raises(InvalidStatus), connect(served.socket_url("/v1/realtime")):
            pass
    client.close()


def test_files_are_few_and_expire(served: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [client.post("/v1/files", files={"file": ("a", b"abc")}).json()["id"] for _ in range(LIMITS.uploads)]
    assert _code(client.post("/v1/files", files={"file": ("a", b"abc")})) == (429, "too_many_files")
    monkeypatch.setattr("kinescan.web.uploads.time.time", lambda: time.monotonic() + 1e10)
    assert client.get("/v1/files").json()["data"] == []
    monkeypatch.undo()
    assert _code(client.get(f"/v1/files/{kept[0]}")) == (404, "no_such_file")
    assert _code(client.get("/v1/files/..%2f..%2fetc%2fpasswd"))[0] == 404


def test_requests_beyond_the_queue_are_told_to_wait(served: Served, client: httpx.Client) -> None:
    engine = served.service.engine
    gate = threading.Event()
    futures = [engine._pool.submit(gate.wait) for _ in range(2)]
    engine._num_waiting += engine.config.limits.waiting
    try:
        answer = client.post("/v1/predict", content=_video(served))
        assert _code(answer) == (429, "busy")
        assert answer.headers["retry-after"] == "1"
    finally:
        engine._num_waiting -= engine.config.limits.waiting
        gate.set()
        for future in futures:
            future.result()


def test_pictures_are_decoded_within_limits() -> None:
    assert decode_picture(_jpeg(100)).shape == (3, 32, 48)
    for content in (b"", b"no picture", _jpeg(1)[:40]):
        with pytest.raises(VideoError):
            decode_picture(content)


def test_settings_of_the_command_line_are_checked(served: Served) -> None:
    place = str(served.folder / "model")
    assert list(make_config([place, f"b={place}"]).models) == ["model", "b"]
    for wrong in (
        {"port": 70_000},
        {"limits": {"streams": 0}},
        {"limits": {"speed": 1}},
        {"media": Path("nowhere")},
        {"allow_urls": ["https://example.org"]},
    ):
        with pytest.raises(ConfigError):
            make_config([place], **wrong)
    with pytest.raises(ConfigError):
        make_config([place, place])
    assert ServeLimits().body_bytes == 256 * 2**20
