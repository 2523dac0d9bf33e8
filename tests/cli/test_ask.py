import importlib.util
import itertools
import json
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from kinescan.cli.main import build_app
from kinescan.data.video import LiveVideo, VideoReader, write_video
from kinescan.errors import CheckpointError, ConfigError, CutVideoError, NonFiniteError, ShapeError, VideoError
from kinescan.inference.ask import ask
from kinescan.inference.frame_source import FitToFirst, sample_times
from kinescan.vlm import PixelSettings, VideoStream, load_vlm, open_stream

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "vlm" / "conftest.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="session", params=["internvl", "qwen3_vl"])
def saved(request, tmp_path_factory):
    """A small random VLM as its folder on disk."""
    folder = tmp_path_factory.mktemp("vlm") / request.param
    tiny.build(request.param).save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    sizes = {"min_pixels": 64, "max_pixels": 4096, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Five and a half seconds of moving bars."""
    path = tmp_path_factory.mktemp("video") / "bars.mp4"
    x = torch.arange(32)
    frames = torch.stack([((x + 3 * t) % 16 * 16).to(torch.uint8).expand(3, 16, 32) for t in range(55)])
    write_video(path, frames, fps=10)
    return path


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr("kinescan.vlm.generation.MAX_NEW_TOKENS", 6)


def run(*arguments):
    return CliRunner().invoke(build_app("ask"), ["ask", *map(str, arguments)])


def test_answers_are_those_of_a_stream(saved, clip):
    vlm = load_vlm(saved)
    assert vlm.pixels == PixelSettings(mean=(0.5,) * 3, std=(0.5,) * 3, min_pixels=64, max_pixels=4096)
    texts = []
    report = ask(clip, ["What moves?", "Where?"], vlm=vlm, budget=20, fps=2.0, max_new_tokens=6,
                 on_text=lambda question, text: texts.append((question, text)))  # fmt: skip
    with VideoReader(clip) as reader:
        frames = reader.read(range(0, 55, 5)).pixels
    with open_stream(vlm.model, vlm.tokenizer, budget=20, fps=2.0, horizon_frames=11, pixels=vlm.pixels) as stream:
        stream.push(frames)
        assert report.num_frames == 11
        assert report.prefill.stats == stream.stats
        for asked in report.asked:
            assert asked.answer == stream.ask(asked.question, max_new_tokens=6).text
            said = "".join(text for question, text in texts if question == asked.question)
            assert asked.answer.startswith(said)


def test_the_command_prints_answers_and_costs(saved, clip, monkeypatch):
    monkeypatch.setattr("kinescan.inference.frame_source.FRAMES_AT_ONCE", 3)
    result = run(clip, "What moves?", "Where?", "--model", saved, "--budget", 12, "--fps", 2, "--compare", "full",
                 "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.index("> What moves?") < result.stdout.index("> Where?")
    for text in ("full attention", "largest difference of logits:", "prefill ", "query-key pairs"):
        assert text in result.stdout
    # as wide as the terminal allows
    assert "/s, state " in result.stderr
    assert "state 12 tokens" in result.stderr


def test_json_is_one_document(saved, clip):
    result = run(clip, "What moves?", "--model", saved, "--budget", 10000, "--compare", "full", "--json",
                 "--storage", "offload", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["num_frames"] == 5
    asked = report["asked"][0]
    assert asked["logit_difference"] < 1e-4
    assert asked["answer"] == asked["full_answer"]
    assert report["prefill"]["stats"]["query_key_pairs"] == report["full_prefill"]["stats"]["query_key_pairs"]


def test_a_live_source_is_answered_as_its_recording(saved, clip, tmp_path):
    vlm = load_vlm(saved)
    path = tmp_path / "bars.ts"
    with VideoReader(clip) as reader:
        write_video(path, reader.read(range(55)).pixels, fps=10)
    with VideoReader(path) as reader:
        frames = reader.read(range(0, 55, 5)).pixels
    seen = []
    report = ask(f"file://{path}", ["What moves?"], vlm=vlm, budget=20, fps=2.0, max_new_tokens=6,
                 on_progress=lambda *progress: seen.append(progress[:2]))  # fmt: skip
    assert seen[-1] == (11, None)
    with open_stream(vlm.model, vlm.tokenizer, budget=20, fps=2.0, pixels=vlm.pixels) as stream:
        stream.push(frames)
        assert report.prefill.stats == stream.stats
        assert report.asked[0].answer == stream.ask("What moves?", max_new_tokens=6).text


def test_a_live_source_that_breaks_off_is_asked_about_what_came(saved, clip, monkeypatch, caplog):
    whole = LiveVideo.__iter__

    def breaks_off(self):
        for index, frame in enumerate(whole(self)):
            if index == 20:
                raise VideoError(self.source, "broke off after 20 frames: nothing came for 30 s.")
            yield frame

    monkeypatch.setattr(LiveVideo, "__iter__", breaks_off)
    report = ask(f"file://{clip}", ["What moves?"], vlm=load_vlm(saved), budget=20, fps=2.0, max_new_tokens=6)
    assert report.num_frames == 4
    assert "30" in caplog.text


def joined_transport_streams(path, *clips, **options):
    """One file of several streams of MPEG-TS, one behind the other."""
    parts = []
    for index, clip in enumerate(clips):
        part = path.with_name(f"part{index}.ts")
        write_video(part, clip, fps=10, **options)
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("size", [(48, 64), (16, 64), (64, 16)])
def test_a_live_source_that_changes_its_size_is_watched_on(saved, tmp_path, caplog, size):
    first = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    path = joined_transport_streams(tmp_path / "a.ts", first, torch.randint(0, 256, (40, 3, *size), dtype=torch.uint8))
    with caplog.at_level(logging.WARNING):
        report = ask(f"file://{path}", ["What moves?"], vlm=load_vlm(saved), budget=20, fps=2.0, max_new_tokens=4,
                     compare="full")  # fmt: skip
    assert 13 <= report.num_frames <= 15
    assert len(report.asked) == 1
    assert caplog.text.count(f"frames change from 32 x 32 to {size[1]} x {size[0]}") == 1


@pytest.mark.parametrize("changes", [1, 3])
def test_frames_of_every_size_get_the_first_one(changes):
    fitted = FitToFirst("camera")
    first = torch.full((3, 12, 16), 50, dtype=torch.uint8)
    assert fitted(first) is first
    for height, width in ((24, 32), (6, 8), (16, 12), (1, 1), (12, 400))[: changes + 2]:
        frame = fitted(torch.full((3, height, width), 200, dtype=torch.uint8))
        assert frame.shape == (3, 12, 16)
        assert frame.dtype == torch.uint8
        assert set(frame.unique().tolist()) <= {0, 200}
        assert (frame == 200).any()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of memory"),
        NonFiniteError("NaN"),
        ShapeError("other"),
        ConfigError("horizon"),
        OSError("gone"),
    ],
)
@pytest.mark.parametrize("where", ["push", "encode", "frames"])
def test_whatever_happens_what_was_watched_is_asked_about(saved, clip, monkeypatch, caplog, error, where):
    owner, name = {"push": (VideoStream, "push"), "encode": (VideoStream, "encode"), "frames": (LiveVideo, "__iter__")}[
        where
    ]
    whole, calls = getattr(owner, name), []

    def fails(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return whole(self, *args, **options)

    def breaks_off(self):
        for index, frame in enumerate(whole(self)):
            if index == 25:
                raise error
            yield frame

    monkeypatch.setattr(owner, name, breaks_off if where == "frames" else fails)
    report = ask(f"file://{clip}", ["What moves?"], vlm=load_vlm(saved), budget=20, fps=2.0, max_new_tokens=4)
    assert 2 <= report.num_frames <= 5
    assert report.asked[0].question == "What moves?"
    assert str(error) in caplog.text
    assert "questions" in caplog.text


def test_a_clock_that_jumps_forward_adds_no_frames(saved, tmp_path, caplog):
    """24 s at 10 fps, with two hours in the middle."""
    path = tmp_path / "jump.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(240):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index, np.uint8), format="rgb24")
            frame.pts = index
            for packet in stream.encode(frame):
                if index >= 120:
                    packet.pts += int(7200 / packet.time_base)
                    packet.dts += int(7200 / packet.time_base)
                container.mux(packet)
        for packet in stream.encode():
            packet.pts += int(7200 / packet.time_base)
            packet.dts += int(7200 / packet.time_base)
            container.mux(packet)
    with caplog.at_level(logging.WARNING):
        report = ask(f"file://{path}", ["What moves?"], vlm=load_vlm(saved), budget=20, fps=1.0, max_new_tokens=4)
    assert report.num_frames == 24
    assert caplog.text.count("its clock jumps by +7200") == 1


def test_a_live_source_is_watched_until_ctrl_c(saved, clip, monkeypatch, caplog):
    def endless(self):
        with VideoReader(clip) as reader:
            frames = [pixels for pixels, _ in reader]
        for index in itertools.count():
            assert index < 40
            if index == 33:  # between two frames that are shown to the model
                os.kill(os.getpid(), signal.SIGINT)
            self.num_frames += 1
            yield frames[index % len(frames)], index / 10

    monkeypatch.setattr(LiveVideo, "__iter__", endless)
    handler = signal.getsignal(signal.SIGINT)
    result = run(f"file://{clip}", "What moves?", "--model", saved, "--budget", 20, "--fps", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "> What moves?" in result.stdout
    assert "watched until SIGINT" in caplog.text
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_cut_recording_is_refused_unless_short_is_allowed(saved, tmp_path):
    path = tmp_path / "noise.avi"
    write_video(path, torch.randint(0, 256, (60, 3, 16, 32), dtype=torch.uint8), fps=10, codec="mpeg4")
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    vlm = load_vlm(saved)
    with pytest.raises(CutVideoError, match="allow_short=True"):
        ask(path, ["What moves?"], vlm=vlm, budget=20, fps=2.0, max_new_tokens=6)
    report = ask(path, ["What moves?"], vlm=vlm, budget=20, fps=2.0, max_new_tokens=6, allow_short=True)
    assert 4 <= report.num_frames <= 8
    with VideoReader(path, allow_short=True) as reader:
        times = sample_times(reader, 2.0)
        frames = reader.read_at(times).pixels
    assert report.num_frames == len(times)
    with open_stream(vlm.model, vlm.tokenizer, budget=20, fps=2.0, horizon_frames=len(times), pixels=vlm.pixels) as it:
        it.push(frames)
        assert report.prefill.stats == it.stats
        assert report.asked[0].answer == it.ask("What moves?", max_new_tokens=6).text


def test_a_video_that_breaks_off_leaves_the_model_as_it_was(saved, clip, monkeypatch):
    vlm = load_vlm(saved)
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in vlm.model.modules()]
    closed = []
    close = VideoStream.close
    monkeypatch.setattr("kinescan.inference.frame_source.FRAMES_AT_ONCE", 2)

    def watched(stream):
        closed.append(stream)
        close(stream)

    monkeypatch.setattr(VideoStream, "close", watched)

    def break_off(done, total, stats):
        raise VideoError(clip, "the file is cut")

    with pytest.raises(VideoError, match="file"):
        ask(clip, ["What moves?"], vlm=vlm, budget=20, compare="full", on_progress=break_off)
    assert len(closed) == 2
    assert hooks == [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in vlm.model.modules()]


@pytest.mark.bad_input
def test_a_terminal_is_refused_before_the_model_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("kinescan.data.video.live.sys", SimpleNamespace(stdin=None))
    result = run("-", "Q?", "--model", tmp_path / "none", "--device", "cpu")
    assert result.exit_code == 2
    assert "standard" in result.stderr


@pytest.mark.bad_input
def test_settings_are_checked_before_the_model_is_read(clip, tmp_path):
    result = run(clip, "Q?", "--model", tmp_path, "--policy", "stat", "--device", "cpu")
    assert result.exit_code == 2
    assert "unknown policy 'stat'" in result.stderr


def test_the_video_is_looked_at_before_the_model_is_read(tmp_path):
    result = run(tmp_path / "none.mp4", "Q?", "--model", tmp_path / "no_model", "--device", "cpu")
    assert result.exit_code == 1
    assert "none.mp4" in result.stderr
    assert "no_model" not in result.stderr


def test_times_are_evenly_spaced(clip):
    with VideoReader(clip) as reader:
        assert sample_times(reader, 2.0) == pytest.approx([0.5 * k for k in range(11)])
        assert sample_times(reader, 0.1) == [0.0]


def test_help_ends_with_lines_to_copy():
    result = run("--help")
    assert result.exit_code == 0
    assert "--compare" in result.stdout
    assert "kinescan ask a.mp4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["Q?", "--fps", "0"], "fps"),
        (["Q?", "--compare", "half"], "compare"),
        (["Q?", "--policy", "stat"], "unknown policy 'stat'"),
        (["Q?", "--storage", "tape"], "unknown storage 'tape'"),
        (["Q?", "--budget", "0"], "budget"),
        ([" "], "question"),
    ],
)
@pytest.mark.bad_input
def test_wrong_usage_exits_with_two(arguments, match, saved, clip):
    result = run(clip, *arguments, "--model", saved, "--device", "cpu")
    assert result.exit_code == 2
    assert match in result.stderr


@pytest.mark.bad_input
def test_no_question_is_named(clip):
    with pytest.raises(ConfigError, match="question"):
        ask(clip, [], vlm=None)


@pytest.mark.bad_input
def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="VLM"):
        load_vlm(tmp_path)
