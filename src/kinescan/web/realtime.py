"""A conversation that stays open: pictures come in, questions are answered, by OpenAI's Realtime protocol."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from kinescan.errors import KinescanError
from kinescan.runtime.escaping import to_json
from kinescan.vlm import VideoStream, Vlm, open_stream
from kinescan.web.chat import AnswerChunk, ask, push_picture
from kinescan.web.engine import Engine
from kinescan.web.problems import KINDS, RequestProblem, problem_of


class Conversation:
    """One session: a stream into the VLM, and the question that was asked last.

    Args:
        engine: whose threads it uses.
        vlm: the model.
        decode: gives the content of a data URL.
        send: sends a text to the client.
    """

    def __init__(self, engine: Engine, vlm: Vlm, decode: Callable[[str], bytes], send: Any) -> None:
        self._engine, self._vlm, self._decode, self._send = engine, vlm, decode, send
        self._limits = engine.config.limits
        self._stream: VideoStream | None = None
        self._opening: str | None = None
        self._question = ""
        self._id = f"sess_{secrets.token_hex(8)}"

    def close(self) -> None:
        """Gives the memory back."""
        if self._stream is not None:
            self._stream.close()

    async def tell(self, kind: str, **values: Any) -> None:
        """Sends one event."""
        event = {"type": kind, "event_id": f"event_{secrets.token_hex(8)}", **values}
        await asyncio.wait_for(self._send(to_json(event)), self._limits.stall_seconds)

    async def greet(self) -> None:
        """The first event of a session."""
        await self.tell("session.created", session=self._session())

    async def take(self, event: Any) -> None:
        """Answers one event of the client; what is wrong with it is sent to the client.

        Raises:
            TimeoutError: the client takes no message for `limits.stall_seconds`.
        """
        kind = event.get("type") if isinstance(event, dict) else None
        known = {
            "session.update": self._update,
            "conversation.item.create": self._create,
            "response.create": self._respond,
        }
        try:
            if not isinstance(kind, str) or kind not in known:
                raise RequestProblem(400, f"events are {', '.join(known)}.", "unknown_event")
            await known[kind](event)
        except KinescanError as error:
            await self._fail(problem_of(error), event)
        except RequestProblem as problem:
            await self._fail(problem, event)

    async def _fail(self, problem: RequestProblem, event: Any) -> None:
        own = event.get("event_id") if isinstance(event, dict) else None
        kind = KINDS.get(problem.status, "server_error")
        error = {"type": kind, "code": problem.code, "message": problem.message, "param": None}
        await self.tell("error", error={**error, "event_id": own if isinstance(own, str) else None})

    async def _update(self, event: dict[str, Any]) -> None:
        session = event.get("session")
        instructions = session.get("instructions") if isinstance(session, dict) else None
        if instructions is not None:
            if not isinstance(instructions, str) or self._stream is not None:
                raise RequestProblem(400, "instructions are a text, given before the first picture.", "bad_event")
            self._opening = instructions
        await self.tell("session.updated", session=self._session())

    async def _create(self, event: dict[str, Any]) -> None:
        item = event.get("item")
        content = item.get("content") if isinstance(item, dict) and item.get("type") == "message" else None
        if not isinstance(item, dict) or not isinstance(content, list) or item.get("role") not in ("user", "system"):
            raise RequestProblem(400, "items are messages of the user with a list of contents.", "bad_event")
        question: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "input_text" and isinstance(part.get("text"), str):
                question.append(part["text"])
            elif kind == "input_image" and isinstance(part.get("image_url"), str):
                picture = self._decode(part["image_url"])
                if len(picture) > self._limits.frame_bytes:
                    raise RequestProblem(413, f"pictures may have {self._limits.frame_bytes} bytes.", "too_large")
                await self._engine.run(partial(self._push, picture))
            else:
                raise RequestProblem(400, "contents are input_text, or input_image with a data URL.", "bad_event")
        if question:
            self._question = "\n".join(question)
        own = item.get("id")
        number = own if isinstance(own, str) else f"item_{secrets.token_hex(8)}"
        # pictures are not sent back
        told = {"id": number, "type": "message", "role": item["role"], "status": "completed", "object": "realtime.item"}
        shown = [{"type": "input_text", "text": text} for text in question]
        await self.tell("conversation.item.added", item={**told, "content": shown}, previous_item_id=None)
        await self.tell("conversation.item.done", item={**told, "content": shown}, previous_item_id=None)

    def _push(self, picture: bytes) -> None:
        if self._stream is None:
            self._stream = open_stream(
                self._vlm.model,
                self._vlm.tokenizer,
                budget=self._engine.config.budget,
                fps=self._engine.config.fps,
                horizon_frames=self._limits.session_frames,
                horizon_text_tokens=self._limits.answer_tokens + 16_384,
                pixels=self._vlm.pixels,
                opening=self._opening,
            )
        if self._stream.stats.num_frames >= self._limits.session_frames:
            raise RequestProblem(429, f"a session takes {self._limits.session_frames} pictures.", "session_full")
        push_picture(self._stream, picture, self._engine.config)

    async def _respond(self, event: dict[str, Any]) -> None:
        stream = self._stream
        if stream is None or not self._question:
            raise RequestProblem(400, "a picture and a question (input_text) come before response.create.", "bad_event")
        wanted = event.get("response")
        most = wanted.get("max_output_tokens") if isinstance(wanted, dict) else None
        limit = most if isinstance(most, int) and not isinstance(most, bool) else self._limits.answer_tokens
        limit = max(1, min(limit, self._limits.answer_tokens))
        number, item = f"resp_{secrets.token_hex(8)}", f"item_{secrets.token_hex(8)}"
        about = {"id": number, "object": "realtime.response", "output_modalities": ["text"]}
        message = {"id": item, "type": "message", "role": "assistant", "object": "realtime.item"}
        address = {"response_id": number, "item_id": item, "output_index": 0, "content_index": 0}
        await self.tell("response.created", response={**about, "status": "in_progress", "output": []})
        started = {**message, "status": "in_progress", "content": []}
        await self.tell("response.output_item.added", response_id=number, output_index=0, item=started)
        text, last = "", AnswerChunk("")
        end = time.monotonic() + self._limits.answer_seconds

        def make() -> Iterator[AnswerChunk]:
            return ask(stream, self._question, limit, end)

        async for chunk in self._engine.iterate(make):
            text, last = text + chunk.text, chunk
            if chunk.text:
                await self.tell("response.output_text.delta", **address, delta=chunk.text)
        await self.tell("response.output_text.done", **address, text=text)
        done = {**message, "status": "completed", "content": [{"type": "output_text", "text": text}]}
        await self.tell("response.output_item.done", response_id=number, output_index=0, item=done)
        tokens = {"input_tokens": last.num_prompt_tokens, "output_tokens": last.num_tokens}
        usage = {**tokens, "total_tokens": last.num_prompt_tokens + last.num_tokens}
        status = "completed" if last.finish == "stop" else "incomplete"
        await self.tell("response.done", response={**about, "status": status, "output": [done], "usage": usage})

    def _session(self) -> dict[str, Any]:
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self._id,
            "model": self._engine.vlm_name,
            "output_modalities": ["text"],
            "instructions": self._opening or "",
        }
