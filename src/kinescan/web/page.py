"""The page; needs the extra `web`."""

from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gradio

from kinescan.errors import KinescanError
from kinescan.runtime.escaping import escape_html
from kinescan.runtime.quantities import byte_size
from kinescan.web.analysis import analyse
from kinescan.web.chat import AnswerChunk, HeldTokens, answer, parse_chat
from kinescan.web.engine import Engine
from kinescan.web.frame_strip import frame_strip
from kinescan.web.held_seconds import held_seconds
from kinescan.web.page_uploads import LimitedUploads, PageUploads
from kinescan.web.problems import RequestProblem, problem_of
from kinescan.web.style import SCRIPT, STYLE
from kinescan.web.timeline import timeline

NOTHING = "(none)"
_KEPT_SECONDS = 600
"""An upload is deleted so long after its last use, and all of them when the service ends."""
_HEAD = '<header class="ks-head"><h1>kinescan</h1><p>What a model sees in a video, moment by moment.</p></header>'
_SOURCES = ["upload", "webcam"]
_CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_GONE = "The video is no longer here: it is deleted ten minutes after its last use. Choose it again."


class Page:
    """What the page does when somebody presses a button.

    Args:
        engine: with its models; the page uses its threads and its limits.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._limits = engine, engine.config.limits
        self.blocks = gradio.Blocks(title="kinescan", analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS))
        self.uploads = PageUploads(self.blocks.upload_file_set, self._limits)
        self._counts: list[Any] = []
        with self.blocks:
            gradio.HTML(_HEAD, padding=False)
            if engine.models:
                self._video_tab()
            if engine.vlm is not None:
                self._question_tab()
            # the script presses it when what is kept may have changed without an event of this tab
            recount = gradio.Button(elem_id="ks-recount")
            recount.click(self._recount, outputs=self._counts, show_progress="hidden", queue=False)
            self.blocks.unload(self._leave)
        self.blocks.queue(max_size=self._limits.waiting)

    def _video_tab(self) -> None:
        names = list(self._engine.models)
        with gradio.Tab("Video"):
            video, kept = self._player("ks-video", "A video, or the camera")
            with gradio.Row(equal_height=True):
                first = gradio.Dropdown(names, value=names[0], label="Model", min_width=140)
                second = gradio.Dropdown([NOTHING, *names], value=NOTHING, label="Side by side with", min_width=140)
                look = gradio.Button("Look", variant="primary", elem_id="ks-look", min_width=140)
            shown = gradio.HTML(elem_id="ks-result", padding=False)
            look.click(self.look, [video, first, second], [shown, kept], concurrency_limit=2)

    def _question_tab(self) -> None:
        with gradio.Tab("Questions"):
            video, kept = self._player("ks-asked", "A video to ask about, or the camera")
            with gradio.Row(equal_height=True):
                question = gradio.Textbox(
                    label="Question", placeholder="What happens?", max_length=4096, scale=4, elem_id="ks-question"
                )
                button = gradio.Button("Ask", variant="primary", elem_id="ks-ask", min_width=140)
            answered = gradio.HTML(elem_id="ks-answered", padding=False)
            for event in (button.click, question.submit):
                event(self.ask, [video, question], [answered, kept], concurrency_limit=1)

    def _player(self, name: str, label: str) -> tuple[Any, Any]:
        # not mirrored: left on the page is left for the model
        camera = gradio.WebcamOptions(mirror=False, constraints=_CAMERA)
        video = gradio.Video(label=label, sources=_SOURCES, elem_id=name, webcam_options=camera)
        kept = gradio.HTML(self._kept, padding=False)
        self._counts.append(kept)

        def changed(path: str | None, request: gradio.Request) -> str:
            self.uploads.show(str(request.session_hash), name, path)
            return self._kept()

        for event in (video.upload, video.clear, video.stop_recording):
            event(changed, [video], [kept], show_progress="hidden", concurrency_limit=None)
        return video, kept

    def _kept(self) -> str:
        limits, number = self._limits, len(self.uploads.sizes)
        return (
            f'<p class="ks-kept">Up to {limits.video_seconds:.0f} s and {byte_size(limits.body_bytes)}. '
            f"<b>{number} of {limits.uploads}</b> videos are kept. A video is deleted when you choose another, close "
            "the page, or leave it alone for ten minutes.</p>"
        )

    def _recount(self) -> Any:
        texts = [self._kept()] * len(self._counts)
        return texts if len(texts) > 1 else texts[0]

    def _leave(self, request: gradio.Request) -> None:
        self.uploads.leave(str(request.session_hash))

    async def look(self, path: str | None, one: str, other: str, request: gradio.Request) -> tuple[str, str]:
        """What one or two models see in a video.

        Args:
            path: the file; None where none was chosen.
            one: name of a model.
            other: name of the one beside it, or `NOTHING`.
            request: of the tab.
        """
        if not path:
            return _problem("Choose a video first, or record one."), self._kept()
        if not self.uploads.show(str(request.session_hash), "ks-video", path):
            return _problem(_GONE), self._kept()
        names = list(dict.fromkeys(name for name in (one, other) if name != NOTHING))
        lines, strips = [], []
        try:
            for name in names:
                model = self._engine.classifier(name)
                found = await self._engine.run(partial(analyse, model, path, self._limits))
                lines.append(timeline(found, name))
                strips.append(frame_strip(found, name if len(names) > 1 else ""))
        except (KinescanError, RequestProblem) as error:
            return _problem(_words(error)), self._kept()
        kind = "ks-pair ks-two" if len(names) > 1 else "ks-pair"
        return "".join(f'<div class="{kind}">{"".join(part)}</div>' for part in (lines, strips)), self._kept()

    async def ask(self, path: str | None, question: str, request: gradio.Request) -> AsyncIterator[tuple[str, str]]:
        """The answer to a question, as it comes, and what the compressed state holds of the video.

        Args:
            path: the file; None where none was chosen.
            question: a text.
            request: of the tab.
        """
        kept = self._kept()
        if not path or not question.strip():
            yield _problem("Choose a video and write a question first."), kept
            return
        if not self.uploads.show(str(request.session_hash), "ks-asked", path):
            yield _problem(_GONE), kept
            return
        text, held = "", ""
        try:
            async for chunk in self._engine.iterate(lambda: self._chunks(path, question)):
                text += chunk.text
                held = self._held(chunk.held) or held
                if chunk.finish is None and not text:
                    yield f'<p class="ks-note" role="status">Watching: {chunk.num_frames} frames</p>', kept
                else:
                    yield f'<p class="ks-answer" role="status">{_lines(text) or "(no words)"}</p>{held}', kept
        except (KinescanError, RequestProblem) as error:
            yield _problem(_words(error)), kept

    def _held(self, held: tuple[HeldTokens, ...]) -> str:
        return held_seconds(held, self._engine.config.budget)

    def _chunks(self, path: str, question: str) -> Iterator[AnswerChunk]:
        video = {"type": "video_url", "video_url": {"url": path}}
        message = {"role": "user", "content": [video, {"type": "text", "text": question}]}
        config, vlm = self._engine.config, self._engine.vlm
        assert vlm is not None, "the tab is only there with one"
        request = parse_chat({"messages": [message]}, config)
        return answer(request, vlm, config, lambda file: nullcontext(Path(file)), lambda _: b"")


def _words(error: KinescanError | RequestProblem) -> str:
    return error.message if isinstance(error, RequestProblem) else problem_of(error).message


def _lines(text: str) -> str:
    return "<br>".join(map(escape_html, text.strip().splitlines()))


def _problem(text: str) -> str:
    return f'<p class="ks-problem" role="alert">{escape_html(text[:1].upper() + text[1:])}</p>'


def mount_page(app: Any, engine: Engine) -> Any:
    """The application with the page at its root."""
    page = Page(engine)
    mounted = gradio.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        max_file_size=engine.config.limits.body_bytes,
        show_error=False,
        # fonts of the user's own machine: nothing is fetched from elsewhere
        theme=gradio.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=["monospace"]),
        css=STYLE,
        js=SCRIPT,
        footer_links=[],
        allowed_paths=[],
    )
    return LimitedUploads(mounted, page.uploads)
