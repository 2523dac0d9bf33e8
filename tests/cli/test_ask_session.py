"""`ask` over more than one sitting: saved and loaded streams, questions while watching, and settings of answers."""

import importlib.util
import json
import unicodedata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from kinescan.cli.main import build_app
from kinescan.data.video import Reconnect, VideoReader, write_video
from kinescan.errors import CheckpointError, ConfigError, VideoError
from kinescan.inference.ask import ask
from kinescan.inference.ask_session import Session
from kinescan.inference.ask_settings import AskSettings
from kinescan.runs.ask import ask_settings, read_questions
from kinescan.vlm import VideoStream, load_vlm

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "vlm" / "conftest.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm") / "internvl"
    tiny.build("internvl").save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    return folder


def bars(path, first, count):
    x = torch.arange(32)
    shown = [((x + 3 * t) % 16 * 16).to(torch.uint8).expand(3, 16, 32) for t in range(first, first + count)]
    write_video(path, torch.stack(shown), fps=2)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ten seconds, and the two halves."""
    folder = tmp_path_factory.mktemp("video")
    return bars(folder / "all.mkv", 0, 20), bars(folder / "a.mkv", 0, 10), bars(folder / "b.mkv", 10, 10)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr("kinescan.vlm.generation.MAX_NEW_TOKENS", 6)


def run(*arguments, model=None, **options):
    given = ["ask", *map(str, arguments), *(["--model", str(model)] if model else [])]
    return CliRunner().invoke(build_app("ask"), given, **options)


def document(*arguments, **options):
    result = run(*arguments, "--json", **options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("memory", [None, "200 tokens"])
def test_a_saved_stream_is_asked_later_and_continued(saved, clips, tmp_path, memory):
    options = ["--fps", 2, "--budget", 40, *(["--memory", memory] if memory else [])]
    whole = document(clips[0], "What moves?", *options, model=saved)
    half = document(clips[1], "What moves?", *options, "--save", tmp_path / "one.state", model=saved)
    later = document("What moves?", "--load", tmp_path / "one.state", model=saved)
    assert later["asked"][0]["answer"] == half["asked"][0]["answer"]
    assert later["asked"][0]["seen_seconds"] == 4.5
    assert later["video"] == ""
    both = document(clips[2], "What moves?", "--load", tmp_path / "one.state", "--save", tmp_path / "two.state",
                    model=saved)  # fmt: skip
    assert both["num_frames"] == 20
    assert both["asked"][0]["seen_seconds"] == 9.5
    assert both["prefill"]["stats"]["num_seen_tokens"] == whole["prefill"]["stats"]["num_seen_tokens"]
    if memory:
        assert both["prefill"]["stats"]["num_tokens"] <= 200 < both["prefill"]["stats"]["num_seen_tokens"]
    assert (tmp_path / "two.state").exists()


def test_two_frames_a_patch_are_seen_to_the_second(clips, tmp_path):
    """What an answer has seen, and where the next video begins."""
    folder = tmp_path / "qwen3_vl"
    tiny.build("qwen3_vl").save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    options = ["--fps", 2, "--save", tmp_path / "one.state"]
    half = document(clips[1], "What moves?", *options, model=folder)
    assert half["asked"][0]["seen_seconds"] == 4.5
    both = document(clips[2], "What moves?", "--load", tmp_path / "one.state", model=folder)
    assert both["asked"][0]["seen_seconds"] == 9.5


def test_watching_alone_saves(saved, clips, tmp_path):
    result = run(clips[1], "--save", tmp_path / "one.state", model=saved)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "one.state").exists()


def test_what_was_watched_is_saved_where_the_file_breaks_off(saved, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("kinescan.inference.frame_source.FRAMES_AT_ONCE", 2)
    read = VideoReader.read_at
    calls = []

    def breaks(self, times):
        calls.append(1)
        if len(calls) > 3:
            raise VideoError("a.mkv", "is damaged")
        return read(self, times)

    monkeypatch.setattr(VideoReader, "read_at", breaks)
    vlm = load_vlm(saved)
    with pytest.raises(VideoError):
        ask(clips[0], ["What?"], vlm=vlm, fps=2.0, session=Session(save=tmp_path / "one.state"))
    report = ask(None, ["What?"], vlm=vlm, session=Session(load=tmp_path / "one.state"))
    assert report.num_frames == 6


def test_what_was_watched_is_saved_while_watching(saved, clips, tmp_path, monkeypatch):
    """A process that is killed runs nothing more: what it leaves is what it has written before."""
    monkeypatch.setattr("kinescan.inference.frame_source.FRAMES_AT_ONCE", 2)
    path, vlm, found = tmp_path / "one.state", load_vlm(saved), []

    def killed(done, total, stats):
        found.append((done, path.exists()))
        if done == 8:
            path.rename(tmp_path / "left.state")
            path.mkdir()

    session = Session(save=path, save_every_seconds=1e-9)
    monkeypatch.setattr("kinescan.inference.ask.MOST_SAVING", 0)
    with pytest.raises(CheckpointError):
        ask(clips[0], ["What?"], vlm=vlm, fps=2.0, session=session, on_progress=killed)
    assert [there for _, there in found[:4]] == [False, True, True, True]
    # where it could not be written in between, watching went on
    assert len(found) > 4
    report = ask(None, ["What?"], vlm=vlm, session=Session(load=tmp_path / "left.state"))
    assert report.num_frames == 6


def test_watching_is_not_slowed_down_by_saving(saved, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("kinescan.inference.frame_source.FRAMES_AT_ONCE", 2)
    clock, written, save = [0.0], [], VideoStream.save
    monkeypatch.setattr("kinescan.inference.ask.time.monotonic", lambda: clock[0])

    def slow(stream, path):
        written.append((clock[0], stream.stats.num_frames))
        clock[0] += 10.0
        save(stream, path)

    def later(*progress):
        clock[0] += 30.0

    monkeypatch.setattr(VideoStream, "save", slow)
    session = Session(save=tmp_path / "one.state")
    ask(clips[0], ["What?"], vlm=load_vlm(saved), fps=2.0, session=session, on_progress=later)
    # at 60 s; then, since writing took 10 s, not before 200 s more; and at the end
    assert [seconds for seconds, _ in written][:2] == [60.0, 280.0]
    assert written[-1][1] == 20


def test_a_question_is_asked_again_while_watching(saved, clips):
    result = run(clips[0], "--fps", 2, "--watch", "Still there?", "--every", "3s", "--json", model=saved)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["question"] for line in lines] == ["Still there?"] * len(lines)
    times = [line["seen_seconds"] for line in lines]
    assert times == sorted(times)
    assert times[-1] == 9.5
    assert 3 <= len(times) <= 5


def test_a_question_is_asked_at_its_times(saved, clips):
    """Frames are decoded several at a time; answers come between them all the same."""
    result = run(clips[0], "--fps", 2, "--watch", "Still there?", "--every", "2s", "--json", model=saved)
    assert result.exit_code == 0, result.output
    seen = [json.loads(line)["seen_seconds"] for line in result.stdout.splitlines()]
    assert seen == [2.0, 4.0, 6.0, 8.0, 9.5]


def test_questions_are_taken_while_watching_and_afterwards(saved, clips):
    result = run(clips[1], "--interactive", "--json", model=saved, input="What?\n\nAnd then?\n")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["question"] for line in result.stdout.splitlines()] == ["What?", "And then?"]
    result = run(clips[1], "--interactive", model=saved, input="What?\n")
    assert "> What?" in result.stdout
    assert "0:00:0" in result.stdout


def test_questions_of_a_file(saved, clips, tmp_path):
    (tmp_path / "q.txt").write_text("# first\nWhat moves?\n\nWhere to?\n")
    found = document(clips[1], "Who?", "--questions", tmp_path / "q.txt", model=saved)
    assert [asked["question"] for asked in found["asked"]] == ["Who?", "What moves?", "Where to?"]
    (tmp_path / "q.txt").write_text("\n# none\n")
    with pytest.raises(ConfigError, match=r"q\.txt"):
        read_questions(tmp_path / "q.txt")


def test_settings_of_answers(saved, clips):
    def said(*options):
        return document(clips[1], "What?", *options, model=saved)["asked"][0]["answer"]

    greedy = said()
    assert len(said("--max-new-tokens", 2)) <= len(said("--set", "max_new_tokens=12"))
    hot = ["--temperature", 5, "--seed", 3]
    assert said(*hot) == said("--set", "temperature=5.0", "--set", "seed=3") != greedy
    assert said(*hot) != said("--temperature", 5, "--seed", 4)
    assert said("--system", "Answer in one word.") != greedy
    assert said("--repetition-penalty", 5) != greedy
    # frames of this family have one size: a limit of pixels would do nothing
    result = run(clips[1], "What?", "--pixels", 500, model=saved)
    assert result.exit_code == 2
    assert said("--dtype", "bfloat16", "--memory", "4GiB", "--set", "storage=int8")


def test_a_comparison_says_whether_the_budget_was_reached(saved, clips):
    for budget, reached in ((10, True), (4000, False)):
        found = document(clips[1], "What?", "--compare", "full", "--budget", budget, "--fps", 2, model=saved)
        assert found["budget_reached"] is reached
        assert (found["asked"][0]["logit_difference"] > 1e-3) is reached
    shown = run(clips[1], "What?", "--compare", "full", "--budget", 4000, "--fps", 2, model=saved)
    assert "never reached" in shown.stdout


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        (["--memory", "40 tokens"], ["memory"]),
        (["--memory", "4000 tokens"], []),
        (["--storage", "int8"], ["storage"]),
        (["--storage", "offload", "--set", "chunk_tokens=8", "--set", "retrieved_chunks=2"], ["retrieved_chunks"]),
    ],
    ids=["memory", "memory not reached", "int8", "retrieval"],
)
def test_a_comparison_names_what_else_differs(options, limits, saved, clips):
    """Where the budget was not reached, but answers come from less than everything, both sides are not the same."""
    given = ["--compare", "full", "--budget", 4000, "--fps", 2, *options]
    found = document(clips[1], "What?", *given, model=saved)
    assert not found["budget_reached"]
    assert found["other_limits"] == limits
    assert (found["asked"][0]["logit_difference"] > 1e-5) is bool(limits)
    # the other side keeps everything as it was
    sides = found["prefill"]["stats"], found["full_prefill"]["stats"]
    assert (sides[0]["full_cache_bytes"] < sides[1]["full_cache_bytes"]) is (limits not in ([], ["retrieved_chunks"]))


@pytest.mark.parametrize("budget", [10, 4000])
def test_a_comparison_fits_the_terminal(budget, saved, clips, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    question = "Where does the light go, and what was there before it came?"
    result = run(clips[1], question, "--compare", "full", "--budget", budget, "--fps", 2, model=saved)
    lines = [*result.stdout.splitlines(), *(line for line in result.stderr.splitlines() if line.startswith("10 "))]
    assert max(map(len, lines)) <= 80


def test_what_a_model_says_does_not_steer_the_terminal(saved, clips):
    hot = ["--temperature", 9, "--max-new-tokens", 120]
    result = run(clips[1], "What is \x1b[31mred?", *hot, "--compare", "full", model=saved)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\\x1b[31mred?") == 2
    assert result.stdout.count("\\x") > 2
    assert not [one for one in result.stdout if unicodedata.category(one) == "Cc" and one not in "\n\t"]


def test_a_live_source_comes_back(saved, clips, monkeypatch, caplog):
    opened = []

    class Fake:
        ends_by_itself = False
        num_frames = 0

        def __init__(self, source, **options):
            opened.append(1)
            if len(opened) == 2:
                raise VideoError("rtsp://camera/1", "is away")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def __iter__(self):
            size = 16 if len(opened) == 1 else 24
            for index in range(4):
                yield torch.full((3, size, 32), 9, dtype=torch.uint8), 1000.0 * len(opened) + index
            if len(opened) == 1:
                raise VideoError("rtsp://camera/1", "broke off")

    monkeypatch.setattr("kinescan.data.video.reconnecting.LiveVideo", Fake)
    reconnect = Reconnect(limit_seconds=0.3, first_wait_seconds=0.01, longest_wait_seconds=0.05)
    report = ask("rtsp://camera/1", ["What?"], vlm=load_vlm(saved), reconnect=reconnect)
    assert len(opened) > 2
    assert report.num_frames >= 8
    assert report.asked[0].seen_seconds < 100
    assert "is back" in caplog.text


def test_settings_come_from_both_ways():
    settings, reconnect = ask_settings(
        ["stop=END", "reconnect.limit_seconds=5", "pixels=[100, 200]"], {"seed": 4, "top_p": None}
    )
    assert settings == AskSettings(stop=("END",), pixels=(100, 200), seed=4)
    assert reconnect.limit_seconds == 5


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments",
    [
        ["CLIP", "What?", "--set", "warmth=1"],
        ["CLIP", "What?", "--temperature", "-1"],
        ["CLIP", "What?", "--memory", "much"],
        ["CLIP", "What?", "--memory", "3 b"],
        ["CLIP", "--watch", " "],
        ["CLIP", "--watch", "What?", "--every", "soon"],
        ["CLIP", "What?", "--dtype", "int3"],
        ["CLIP", "What?", "--system", ""],
        ["CLIP", "What?", "--set", "reconnect.limit=3"],
        ["-", "--interactive"],
        ["CLIP", "What?", "--load", "nowhere.state", "--compare", "full"],
        ["CLIP"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_named(arguments, saved, clips):
    result = run(*(str(clips[1]) if one == "CLIP" else one for one in arguments), model=saved)
    assert result.exit_code == 2, result.output
    assert "Error: " in result.stderr or "Error: " in result.output
    assert "Traceback" not in result.output


@pytest.mark.bad_input
@pytest.mark.parametrize("where", ["folder", "below a file"])
def test_a_place_where_nothing_can_be_saved_is_refused_before_watching(where, saved, clips, tmp_path, monkeypatch):
    def read(*args, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("kinescan.runs.ask.load_vlm", read)
    (tmp_path / "file").write_text("")
    path = tmp_path if where == "folder" else tmp_path / "file" / "one.state"
    result = run(clips[1], "--save", path, model=saved)
    assert result.exit_code == 1
    assert str(path) in result.stderr


@pytest.mark.bad_input
def test_saved_streams_that_are_none(saved, clips, tmp_path):
    (tmp_path / "junk.state").write_bytes(b"junk")
    for name in ("nowhere.state", "junk.state"):
        result = run("What?", "--load", tmp_path / name, model=saved)
        assert result.exit_code == 1
        assert name in result.output
    result = run("no_such.mp4", "What?", "--load", tmp_path / "junk.state", model=saved)
    assert result.exit_code == 1
    half = tmp_path / "half.state"
    assert run(clips[1], "--save", half, model=saved).exit_code == 0
    for missing in ("no such.mp4", "what?.mkv", f"{tmp_path}/what happened?", f"{tmp_path}/door one"):
        result = run(missing, "What?", "--load", half, model=saved)
        assert result.exit_code == 1
        assert "file not found" in result.output.lower() or "no such file" in result.output.lower()
    assert run("Who left at 10.30?", "--load", half, model=saved).exit_code == 0


def test_a_process_without_standard_input_has_no_questions(saved, clips, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    build_app("ask")(["ask", str(clips[1]), "--interactive", "--model", str(saved)], standalone_mode=False)
    assert ">" not in capsys.readouterr().out


def test_an_answer_that_fails_in_any_way_ends_neither_watching_nor_questions(
    saved, clips, tmp_path, monkeypatch, caplog
):
    """A device without memory, say: the next question is answered, and what was watched is saved."""
    step, calls = VideoStream.ask_stepwise, []

    def fails(stream, question, **options):
        calls.append(question)
        if len(calls) in (1, 3):
            raise RuntimeError("out of memory")
        return step(stream, question, **options)

    monkeypatch.setattr(VideoStream, "ask_stepwise", fails)
    given = ["--interactive", "--json", "--save", tmp_path / "one.state"]
    result = run(clips[1], *given, model=saved, input="One?\nTwo?\nThree?\nFour?\n")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["question"] for line in result.stdout.splitlines()] == ["Two?", "Four?"]
    assert caplog.text.count("RuntimeError: out of memory") == 2
    assert document("What?", "--load", tmp_path / "one.state", model=saved)["num_frames"] == 5
