"""Videos that people show the page: how many there may be, and when each is deleted."""

import os
import threading
from collections.abc import MutableSet
from pathlib import Path
from typing import Any

from kinescan.runtime.quantities import byte_size
from kinescan.web.guard import App, Receive, Scope, Send
from kinescan.web.settings import ServeLimits

UPLOAD_PATH = "/gradio_api/upload"


class PageUploads:
    """Counts the files that the page keeps, and deletes one as soon as no tab shows it.

    Args:
        files: paths of all uploads; gradio adds to it.
        limits: on their number and size.
    """

    def __init__(self, files: MutableSet[str], limits: ServeLimits) -> None:
        self._files, self._limits = files, limits
        self._shown: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file that is there."""
        found = []
        for path in list(self._files):
            try:
                found.append(Path(path).stat().st_size)
            except FileNotFoundError:
                self._files.discard(path)
        return found

    def refusal(self, coming: int, others: int = 0) -> str | None:
        """Why one more upload cannot be taken; None where it can.

        Args:
            coming: its bytes, as far as they are known.
            others: uploads that are on their way.
        """
        sizes = self.sizes
        if len(sizes) + others < self._limits.uploads and sum(sizes) + coming <= self._limits.upload_bytes:
            return None
        return (
            f"This page keeps at most {self._limits.uploads} videos of {byte_size(self._limits.upload_bytes)} together "
            "at a time. Try again in a few minutes."
        )

    def show(self, tab: str, player: str, path: str | None) -> bool:
        """A tab shows this file now, and no longer the one before.

        Args:
            tab: of a browser.
            player: which player of it.
            path: the file; None: none.

        Returns:
            Whether the file is there.
        """
        with self._lock:
            before = self._shown.pop((tab, player), None)
            if path is not None:
                self._shown[tab, player] = path
            if before is not None and before != path:
                self._delete(before)
        if path is None:
            return False
        try:
            # gradio deletes by the time of the last change, so what is used stays
            os.utime(path)
        except OSError:
            return False
        return True

    def leave(self, tab: str) -> None:
        """A tab was closed."""
        with self._lock:
            for key in [key for key in self._shown if key[0] == tab]:
                self._delete(self._shown.pop(key))

    def _delete(self, path: str) -> None:
        # the same video, shown in two tabs, is one file
        if path in self._files and path not in self._shown.values():
            Path(path).unlink(missing_ok=True)
            self._files.discard(path)


class LimitedUploads:
    """Refuses an upload to the page before it is read where there are too many (ASGI).

    Args:
        app: with the page.
        uploads: of the page.
    """

    def __init__(self, app: App, uploads: PageUploads) -> None:
        self._app, self._uploads = app, uploads
        self._num_coming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on, or refuses it."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != UPLOAD_PATH:
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        refusal = self._uploads.refusal(int(length) if length.isdigit() else 0, self._num_coming)
        if refusal is not None:
            await _refuse(send, refusal)
            return
        self._num_coming += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_coming -= 1


async def _refuse(send: Any, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close"), (b"retry-after", b"60")]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})
