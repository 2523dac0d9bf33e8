"""The page; needs the extra `web`."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gradio

from kinescan.errors import KinescanError
from kinescan.runtime.escaping import escape_html
from kinescan.runtime.quantities import byte_size
from kinescan.web.analysis import analyse
from kinescan.web.chat import Piece, answer, parse_chat
from kinescan.web.engine import Engine
from kinescan.web.pictures import frames, timeline
from kinescan.web.problems import RequestProblem, problem_of

STYLE = """
.gradio-container { max-width: 1080px !important; margin: auto; }
.ks-head h1 { margin: 0; font-size: 1.6rem; } .ks-head p { margin: .2rem 0 0; opacity: .75; }
.ks-timeline h3 { margin: .2rem 0; font-weight: 500; } .ks-label { font-size: 1.25em; }
.ks-timeline svg, .ks-held { width: 100%; height: auto; display: block; }
.ks-timeline .axis { stroke: currentColor; stroke-width: 1.5; }
.ks-timeline .grid { stroke: currentColor; opacity: .15; }
.tick { fill: currentColor; font-size: 13px; opacity: .75; }
.bar { fill: white; font-size: 12px; font-weight: 600; }
.ks-legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .95rem; }
.ks-key i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em; }
.ks-events { font-size: .9rem; margin: .3rem 0 0; padding-left: 1.2em; opacity: .85; }
.ks-frames { width: 100%; border-radius: 8px; background: white; }
.ks-note { opacity: .75; } .ks-problem { border-left: 4px solid #d1495b; padding: .4rem .8rem; }
.ks-wide { overflow-x: auto; width: 100%; contain: inline-size; }
@media (max-width: 640px) { .ks-wide > * { min-width: 640px; } }
"""
NOTHING = "(none)"
_KEPT_SECONDS = 600
"""An upload is deleted then, and all of them when the service ends."""


def build_page(engine: Engine) -> Any:
    """The page of a service, as Blocks of gradio.

    Args:
        engine: with its models; the page uses its threads and its limits.
    """
    limits = engine.config.limits
    names = list(engine.models)
    said = f"up to {limits.video_seconds:.0f} s and {byte_size(limits.body_bytes)}; deleted after ten minutes"
    with gradio.Blocks(title="kinescan", analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS)) as page:
        gradio.HTML('<header class="ks-head"><h1>kinescan</h1><p>What a model sees in a video.</p></header>')
        if names:
            with gradio.Tab("Video"):
                video = gradio.Video(
                    label=f"A video, or the camera ({said})",
                    sources=["upload", "webcam"],
                    elem_id="ks-video",
                    height=380,
                )
                with gradio.Row():
                    first = gradio.Dropdown(names, value=names[0], label="Model")
                    second = gradio.Dropdown([NOTHING, *names], value=NOTHING, label="Side by side with")
                    look = gradio.Button("Look", variant="primary", elem_id="ks-look")
                shown = gradio.HTML(elem_id="ks-result")
                with gradio.Accordion("What it looks at", open=True):
                    strip = gradio.HTML(elem_id="ks-strip")

                async def look_at(path: str | None, one: str, other: str) -> tuple[str, str]:
                    return await _look(engine, path, one, other)

                look.click(look_at, [video, first, second], [shown, strip], concurrency_limit=2)
        if engine.vlm is not None:
            _questions(engine, said)
    page.queue(max_size=limits.waiting)
    return page


async def _look(engine: Engine, path: str | None, one: str, other: str) -> tuple[str, str]:
    if not path:
        return _problem("Choose a video first, or record one."), ""
    try:
        chosen = [name for name in (one, other) if name != NOTHING]
        timelines, strips = [], []
        for name in dict.fromkeys(chosen):
            model = engine.classifier(name)
            found = await engine.run(partial(analyse, model, path, engine.config.limits))
            timelines.append(timeline(found, name))
            strips.append(f"<h4>{escape_html(name)}</h4>" * (len(chosen) > 1) + frames(found))
        return "".join(timelines), "".join(strips)
    except KinescanError as error:
        return _problem(problem_of(error).message), ""
    except RequestProblem as problem:
        return _problem(problem.message), ""


def _questions(engine: Engine, said: str) -> None:
    from_engine = engine.config

    async def ask(path: str | None, question: str) -> Any:
        if not path or not question.strip():
            yield "Choose a video and write a question first."
            return
        text = ""
        try:
            async for piece in engine.iterate(lambda: _pieces(engine, path, question)):
                text += piece.text
                yield text or f"watching: {piece.num_frames} frames"
        except KinescanError as error:
            yield problem_of(error).message
        except RequestProblem as problem:
            yield problem.message

    with gradio.Tab("Questions"):
        video = gradio.Video(label=f"A video ({said})", sources=["upload", "webcam"], height=320)
        question = gradio.Textbox(label="Question", placeholder="What happens?", max_length=4096)
        button = gradio.Button("Ask", variant="primary")
        answered = gradio.Textbox(label=f"Answer ({from_engine.budget} keys of the past)", lines=3)
        button.click(ask, [video, question], answered, concurrency_limit=1)
        question.submit(ask, [video, question], answered, concurrency_limit=1)


def _pieces(engine: Engine, path: str, question: str) -> Iterator[Piece]:
    message = {
        "role": "user",
        "content": [{"type": "video_url", "video_url": {"url": path}}, {"type": "text", "text": question}],
    }
    request = parse_chat({"messages": [message]}, engine.config)
    assert engine.vlm is not None, "the tab is only there with one"
    return answer(request, engine.vlm, engine.config, lambda place: nullcontext(Path(place)), lambda _: b"")


def _problem(text: str) -> str:
    return f'<p class="ks-problem" role="alert">{escape_html(text[:1].upper() + text[1:])}</p>'


def mount_page(app: Any, engine: Engine) -> Any:
    """The application with the page at its root."""
    return gradio.mount_gradio_app(
        app,
        build_page(engine),
        path="/",
        max_file_size=engine.config.limits.body_bytes,
        show_error=False,
        css=STYLE,
        footer_links=[],
        allowed_paths=[],
    )
