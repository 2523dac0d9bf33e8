"""The service's routes; needs the extra `serve`."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import fastapi
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from kinescan.data.video.fetching import spooled
from kinescan.errors import KinescanError
from kinescan.runtime.escaping import to_json
from kinescan.version import __version__
from kinescan.web.chat import AnswerChunk, answer, parse_chat
from kinescan.web.engine import Engine
from kinescan.web.guard import Guard
from kinescan.web.media import Media
from kinescan.web.metrics import Metrics
from kinescan.web.problems import RequestProblem, problem_body, problem_of
from kinescan.web.realtime import Conversation
from kinescan.web.settings import ServeConfig
from kinescan.web.streams import FrameStream, StreamStart, serve_stream
from kinescan.web.uploads import PREFIX, Uploads

_MOST_JSON_BYTES = 64 * 2**20
_MOST_JSON_PARTS = 100_000


class Service:
    """The routes and what they share.

    Args:
        config: of the service.
        engine: with the models.
        metrics: where requests are counted.
    """

    def __init__(self, config: ServeConfig, engine: Engine, metrics: Metrics) -> None:
        self.config, self.engine, self.metrics = config, engine, metrics
        self.media = Media(config.media, config.allow_urls, config.limits)
        self.uploads = Uploads(config.limits)
        self.num_streams = 0
        self.num_sessions = 0

    async def health(self) -> Any:
        """Whether it works, and with what."""
        return {"status": "ok", "version": __version__, "models": list(self.engine.models), "vlm": self.engine.vlm_name}

    async def metrics_text(self) -> Any:
        """Numbers for Prometheus."""
        gauges = {
            "streams": float(self.num_streams),
            "sessions": float(self.num_sessions),
            "waiting_requests": float(self.engine.num_waiting),
            "uploads": float(len(self.uploads.list())),
        }
        return PlainTextResponse(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    async def models(self) -> Any:
        """The models by name."""
        names = [*self.engine.models, *([] if self.engine.vlm_name is None else [self.engine.vlm_name])]
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "kinescan"} for name in names]}

    async def predict(self, request: fastapi.Request) -> Any:
        """Names the classes of a video: a file of a form, the body itself, or JSON with a path or an address.

        Raises:
            RequestProblem: the form has no file, the JSON no video, `top` is out of range, or as `Engine.run`.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        query = request.query_params
        fields: dict[str, Any] = {name: query.get(name) for name in ("model", "top", "views")}
        if kind == "multipart/form-data":
            async with request.form(max_files=1, max_fields=8) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise RequestProblem(400, "the form has no file named file.", "no_file")
                fields |= {name: form[name] for name in fields if isinstance(form.get(name), str)}
                return await self._predict(fields, await run_in_threadpool(spooled, file.file))
        if kind == "application/json":
            body = await _json_of(request)
            source = body.get("video") if isinstance(body, dict) else None
            if not isinstance(source, str):
                raise RequestProblem(400, 'JSON is {"video": PATH or ADDRESS, ...}.', "bad_request")
            fields |= {name: body[name] for name in fields if name in body}
            return await self._predict(fields, self.opened(source))
        with spooled() as (file, path):
            async for part in request.stream():
                await run_in_threadpool(file.write, part)
            await run_in_threadpool(file.flush)
            return await self._predict(fields, nullcontext(path))

    async def _predict(self, fields: dict[str, Any], opened: AbstractContextManager[Any]) -> Any:
        model = self.engine.classifier(fields["model"])
        top, views = _whole_number(fields["top"], 5), fields["views"]
        if not 1 <= top <= 1000:
            raise RequestProblem(400, "top must lie in [1, 1000].", "bad_request")
        if views is not None and not isinstance(views, str):
            raise RequestProblem(400, 'views must be a text, as in "8x4x1".', "bad_request")

        def work() -> Any:
            with opened as found:
                path = found[1] if isinstance(found, tuple) else found
                return self.engine.classify(model, path, top=top, views=views or None)

        return await self.engine.run(work)

    def opened(self, source: str) -> AbstractContextManager[Path]:
        """The file that a request names."""
        if source.startswith(PREFIX):
            return nullcontext(self.uploads.get(source).path)
        return self.media.opened(source)

    async def add_file(self, request: fastapi.Request) -> Any:
        """Keeps the file of a form for a while.

        Raises:
            RequestProblem: the form has no file, or there is no room.
        """
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestProblem(400, "the form has no file named file.", "no_file")
            upload = await run_in_threadpool(self.uploads.add, file.filename or "video", file.file)
        return upload.to_plain()

    async def list_files(self) -> Any:
        """The files that are kept."""
        return {"object": "list", "data": [one.to_plain() for one in self.uploads.list()], "has_more": False}

    async def get_file(self, name: str) -> Any:
        """What is known of one file."""
        return self.uploads.get(name).to_plain()

    async def delete_file(self, name: str) -> Any:
        """Deletes a file."""
        self.uploads.get(name)
        return {"id": name, "object": "file", "deleted": self.uploads.delete(name)}

    async def chat(self, request: fastapi.Request) -> Any:
        """Answers a question about a video."""
        asked = parse_chat(await _json_of(request), self.config)
        vlm = self.engine.require_vlm(asked.model)
        chunks = self.engine.iterate(lambda: answer(asked, vlm, self.config, self.opened, self.media.decoded))
        about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self.engine.vlm_name}
        if asked.is_streamed:
            # what is wrong with the video is an answer of its own, before any token
            first = await anext(chunks)
            return StreamingResponse(_events(first, chunks, about), media_type="text/event-stream")
        text, last = "", AnswerChunk("")
        async for chunk in chunks:
            text, last = text + chunk.text, chunk
            if await request.is_disconnected():
                await chunks.aclose()  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish, "logprobs": None}
        return {**about, "object": "chat.completion", "choices": [choice], "usage": _usage(last)}

    async def stream(self, socket: fastapi.WebSocket) -> None:
        """One stream of frames over a WebSocket: frames in, predictions out.

        Raises:
            RequestProblem: too many streams are open, or the model is unknown.
        """
        if self.num_streams >= self.config.limits.streams:
            raise RequestProblem(429, "as many streams as allowed are open.", "too_many_streams")
        model = self.engine.classifier(socket.query_params.get("model"))
        batcher = self.engine.batcher(model)
        self.num_streams += 1
        try:
            await socket.accept()

            def make(start: StreamStart, tell: Any) -> FrameStream:
                return FrameStream(model, batcher, start, self.config.limits, tell)

            try:
                await serve_stream(socket, make, self.config.limits)
                # its client may have closed it already
                with suppress(RuntimeError):
                    await socket.close()
            except (RequestProblem, KinescanError) as error:
                problem = error if isinstance(error, RequestProblem) else problem_of(error)
                body = problem_body(problem.status, problem.message, problem.code)
                await _farewell(socket, {"type": "error", **body})
            except ConnectionError:
                await _farewell(socket, None)
        finally:
            self.num_streams -= 1

    async def realtime(self, socket: fastapi.WebSocket) -> None:
        """One conversation over a WebSocket, in the messages of OpenAI's realtime interface.

        Raises:
            RequestProblem: too many sessions are open, or no VLM is served.
        """
        limits = self.config.limits
        if self.num_sessions >= limits.sessions:
            raise RequestProblem(429, "as many sessions as allowed are open.", "too_many_sessions")
        vlm = self.engine.require_vlm(socket.query_params.get("model"))
        self.num_sessions += 1
        offered = socket.headers.get("sec-websocket-protocol", "").split(",")
        await socket.accept(subprotocol="realtime" if "realtime" in map(str.strip, offered) else None)
        conversation = Conversation(self.engine, vlm, self.media.decoded, socket.send_text)
        try:
            await conversation.greet()
            while True:
                message = await asyncio.wait_for(socket.receive(), limits.answer_seconds)
                if message["type"] == "websocket.disconnect":
                    return
                await conversation.take(_event_of(message))
        except (TimeoutError, ConnectionError):
            await _farewell(socket, None)
        finally:
            self.num_sessions -= 1
            conversation.close()


def build_app(
    config: ServeConfig, engine: Engine | None = None, *, mount: Callable[[Any, Engine], Any] | None = None
) -> Any:
    """The service as an ASGI application.

    Args:
        config: what is served, and how much.
        engine: with models that are open already; by default they are opened here.
        mount: adds the page to the application.
    """
    metrics = Metrics()

    def on_pass(number: int) -> None:
        metrics.add("stream_frames_total", number)
        metrics.add("stream_passes_total")

    opened = engine or Engine(config, on_pass=on_pass)
    service = Service(config, opened, metrics)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(opened.close)
            service.uploads.close()

    app = fastapi.FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, title="kinescan")
    app.state.service = service
    routes = {
        ("GET", "/health"): service.health,
        ("GET", "/metrics"): service.metrics_text,
        ("GET", "/v1/models"): service.models,
        ("POST", "/v1/predict"): service.predict,
        ("POST", "/v1/files"): service.add_file,
        ("GET", "/v1/files"): service.list_files,
        ("GET", "/v1/files/{name}"): service.get_file,
        ("DELETE", "/v1/files/{name}"): service.delete_file,
        ("POST", "/v1/chat/completions"): service.chat,
    }
    for (method, path), route in routes.items():
        app.add_api_route(path, route, methods=[method], response_model=None)
    app.add_api_websocket_route("/v1/stream", service.stream)
    app.add_api_websocket_route("/v1/realtime", service.realtime)
    app.add_exception_handler(RequestProblem, _answer_problem)
    app.add_exception_handler(KinescanError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unforeseen)
    if mount is not None:
        app = mount(app, opened)
    return Guard(app, config, metrics)


async def _answer_problem(_: Any, problem: Any) -> Any:
    headers = {"retry-after": "1"} if problem.status in (429, 503) else {}
    if problem.status in (408, 413):
        # what else the client may send is not read
        headers["connection"] = "close"
    return JSONResponse(problem_body(problem.status, problem.message, problem.code), problem.status, headers=headers)


async def _answer_error(request: Any, error: Any) -> Any:
    return await _answer_problem(request, problem_of(error))


async def _answer_http(_: Any, error: Any) -> Any:
    return JSONResponse(problem_body(error.status_code, str(error.detail), "http_error"), error.status_code)


async def _answer_unforeseen(_: Any, __: Any) -> Any:
    # the log has the error; its words may say more than a client is to know
    return JSONResponse(problem_body(500, "this request failed; the service's log says why.", "server_error"), 500)


async def _events(first: AnswerChunk, chunks: AsyncIterator[AnswerChunk], about: dict[str, Any]) -> AsyncIterator[str]:
    def event(delta: dict[str, Any], finish: str | None = None, **others: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        body = {**about, "object": "chat.completion.chunk", "choices": [choice], **others}
        return f"data: {to_json(body)}\n\n"

    yield event({"role": "assistant", "content": ""})
    try:
        chunk = first
        while True:
            if chunk.text:
                yield event({"content": chunk.text})
            if chunk.finish is not None:
                yield event({}, chunk.finish, usage=_usage(chunk))
                break
            if not chunk.num_tokens:
                # a comment, while the video is watched
                yield f": {chunk.num_frames} frames\n\n"
            chunk = await anext(chunks)
    except StopAsyncIteration:
        pass
    except (KinescanError, RequestProblem) as error:
        problem = error if isinstance(error, RequestProblem) else problem_of(error)
        yield f"data: {json.dumps(problem_body(problem.status, problem.message, problem.code))}\n\n"
        return
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]
    yield "data: [DONE]\n\n"


def _usage(last: AnswerChunk) -> dict[str, int]:
    prompt, own = last.num_prompt_tokens, last.num_tokens
    return {"prompt_tokens": prompt, "completion_tokens": own, "total_tokens": prompt + own}


async def _json_of(request: fastapi.Request) -> Any:
    # grows in place: to add bytes to bytes copies all of them each time, while nobody else is answered
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _MOST_JSON_BYTES:
            raise RequestProblem(413, "JSON may have 64 MiB. Upload the file first (/v1/files).", "too_large")
    return _parsed(bytes(content))


def _parsed(content: bytes) -> Any:
    """What JSON says; a megabyte of brackets, which would take a hundred in memory, is refused before.

    Raises:
        RequestProblem: it is not JSON, or has too many parts.
    """
    if sum(map(content.count, (b"[", b"{", b","))) > _MOST_JSON_PARTS:
        raise RequestProblem(413, f"JSON may have {_MOST_JSON_PARTS} brackets and commas.", "too_large")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise RequestProblem(400, "the body is not JSON.", "bad_request") from None


def _event_of(message: Any) -> Any:
    text = message.get("text")
    try:
        return _parsed(message.get("bytes") or b"" if text is None else text.encode("utf-8", "surrogatepass"))
    except RequestProblem:
        return None


def _whole_number(value: Any, default: int) -> int:
    if value is None or value == "":
        return default
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,9}\s*", value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestProblem(400, "top must be a whole number.", "bad_request")
    return value


async def _farewell(socket: Any, message: Any) -> None:
    """Says a last thing to a client that may have gone."""
    try:
        if message is not None:
            await asyncio.wait_for(socket.send_json(message), 5)
        await asyncio.wait_for(socket.close(1011 if message is None else 1008), 5)
    # whatever a connection raises that is over
    except Exception:
        return
