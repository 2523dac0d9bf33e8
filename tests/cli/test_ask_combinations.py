"""Settings of `ask` that contradict each other, or would do nothing: each is refused before a model is read."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from tests.mentions import mentions
from typer.testing import CliRunner

pytest.importorskip("transformers")

from kinescan.cli.main import build_app
from kinescan.data.video import Reconnect, write_video
from kinescan.errors import ConfigError, VideoError
from kinescan.inference.ask import ask
from kinescan.inference.ask_session import Session
from kinescan.inference.ask_settings import AskSettings
from kinescan.vlm import Generation, load_vlm

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "vlm" / "conftest.py")
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm") / "internvl"
    tiny.build("internvl").save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "noise.mkv"
    write_video(path, torch.randint(0, 256, (10, 3, 16, 32), dtype=torch.uint8), fps=2)
    return path


@pytest.fixture(scope="module")
def state(model, clip):
    """A stream saved with other settings than the defaults."""
    path = clip.with_name("one.state")
    options = ["--fps", "2", "--budget", "40", "--memory", "60 tokens", "--memory-policy", "uniform"]
    result = run(clip, "--save", path, *options, "--storage", "int8", model=model)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def unread(monkeypatch):
    """No model may be read."""

    def read(*args, **options):
        raise AssertionError("the model was read")

    monkeypatch.setattr("kinescan.runs.ask.load_vlm", read)


def run(*arguments, model):
    return CliRunner().invoke(build_app("ask"), ["ask", *map(str, arguments), "--model", str(model)])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("CLIP What? --memory-policy none", "memory_policy"),
        ("CLIP What? --memory-policy uniform", "memory_policy"),
        ("CLIP What? --memory-policy redundancy", "memory_policy"),
        ("CLIP What? --memory-policy h20", "h2o"),
        ("CLIP What? --set memory_policy=h2o", "memory_policy"),
        ("CLIP What? --memory 4GiB --memory-policy none", "memory_policy"),
        ("CLIP What? --policy none --budget 100", "--budget"),
        ("CLIP What? --every 5s", "--watch"),
        ("CLIP What? --temperature nan", "temperature"),
        ("CLIP What? --top-p nan", "top_p"),
        ("CLIP What? --repetition-penalty nan", "repetition_penalty"),
        ("CLIP What? --fps nan", "fps"),
        ("CLIP EMPTY", "question"),
        ("CLIP What? EMPTY", "question"),
        ("CLIP What? --device cuda:99", "device"),
        ("CLIP What? --temperature 0 --top-p 0.5", "top_p"),
        ("CLIP What? --set temperature=0 --top-k 5", "top_k"),
        ("CLIP What? --temperature 0.5 --set temperature=0.7", "temperature"),
        ("CLIP What? --stop END --set stop=STOP", "stop"),
        ("CLIP What? --set reconnect.limit_seconds=5", "reconnect"),
        ("What? --load STATE --save new.state", "save"),
        ("What? --load STATE --watch Who?", "watch"),
        ("What? --load STATE --allow-short", "allow_short"),
        ("What? --load STATE --set reconnect.limit_seconds=5", "reconnect"),
        ("What? --load STATE --fps 1", "fps"),
        ("What? --load STATE --budget 41", "budget"),
        ("What? --load STATE --memory 61tokens", "memory_budget"),
        ("What? --load STATE --memory 1KiB", "memory_budget"),
        ("What? --load STATE --memory-policy merging", "memory_policy"),
        ("What? --load STATE --policy recency", "policy"),
        ("What? --load STATE --storage memory", "storage"),
        ("What? --load STATE --set chunk_tokens=8", "chunk_tokens"),
        ("What? --load STATE --set retrieved_chunks=2", "retrieved_chunks"),
        ("What? --load STATE --set hf_compat=true", "hf_compat"),
        ("What? --load STATE --set compiled=true", "compiled"),
        ("What? --load STATE --set horizon_frames=9", "horizon_frames"),
        ("What? --load STATE --pixels 5000", "pixels"),
        ("What? --load STATE --system Short.", "system"),
    ],
)
def test_what_contradicts_or_does_nothing_is_refused(arguments, named, unread, model, clip, state):
    there = {"CLIP": clip, "STATE": state, "EMPTY": " "}
    result = run(*(there.get(one, one) for one in arguments.split()), model=model)
    assert result.exit_code == 2, result.output
    assert mentions(result.stderr, "ConfigError", named)
    assert len(result.stderr.splitlines()) == 1
    assert not Path("new.state").exists()


def test_settings_that_are_those_of_the_saved_stream_are_taken(model, state, clip, tmp_path):
    same = ["--fps", 2, "--budget", 40, "--memory", " 60 TOKENS", "--memory-policy", "uniform", "--storage", "int8"]
    for video in ([], [clip, "--save", tmp_path / "two.state"]):
        result = run(*video, "What?", "--load", state, *same, "--policy", "statekv", "--json", model=model)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["prefill"]["stats"]["num_tokens"] <= 60
    # it may take the place of the one that was loaded
    before = state.read_bytes()
    result = run(clip, "--load", state, "--save", state, model=model)
    try:
        assert result.exit_code == 0, result.output
        assert json.loads(run("What?", "--load", state, "--json", model=model).stdout)["num_frames"] == 20
    finally:
        state.write_bytes(before)


@pytest.mark.bad_input
def test_choice_among_tokens_needs_a_temperature(model, clip):
    """Whether there is one is known to the model: a greedy one would take the likeliest token all the same."""
    for option in (["--top-p", "0.5"], ["--top-k", "5"]):
        result = run(clip, "What?", *option, model=model)
        assert result.exit_code == 2
        assert mentions(result.stderr, "temperature")
        assert run(clip, "What?", *option, "--temperature", 1, "--max-new-tokens", 2, model=model).exit_code == 0
    sampling = transformers.GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, top_k=20)
    assert Generation(top_p=0.5).of_model(sampling).top_p == 0.5
    # its own limits go with its chance
    greedy = Generation(temperature=0).of_model(sampling)
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (0, 1, 0)


@pytest.mark.bad_input
def test_a_horizon_is_that_of_a_file_too(model, clip):
    result = run(clip, "What?", "--fps", 2, "--set", "horizon_frames=9", model=model)
    assert result.exit_code == 2
    assert mentions(result.stderr, "10 frames", "9")
    assert run(clip, "What?", "--fps", 2, "--set", "horizon_frames=10", model=model).exit_code == 0


@pytest.mark.bad_input
@pytest.mark.parametrize("given", ["video", "questions", "other"])
def test_saving_overwrites_no_other_file(given, unread, model, clip, tmp_path):
    (tmp_path / "questions").write_text("What?")
    torch.save({}, tmp_path / "other")
    path = clip if given == "video" else tmp_path / given
    before = path.read_bytes()
    result = run(clip, "What?", "--save", path, model=model)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert path.read_bytes() == before


def test_saving_takes_the_place_of_an_empty_file(model, clip, tmp_path):
    """As `mktemp` makes them."""
    (tmp_path / "new").touch()
    assert run(clip, "--save", tmp_path / "new", model=model).exit_code == 0
    assert (tmp_path / "new").stat().st_size > 1000


@pytest.mark.bad_input
def test_python_callers_are_told_as_well(model, clip, state):
    vlm = load_vlm(model)
    for options in (
        {"settings": AskSettings(memory_policy="uniform")},
        {"settings": AskSettings(top_p=0.5)},
        {"reconnect": Reconnect()},
        {"policy": "recency", "session": Session(load=state)},
        {"memory": "4GiB", "session": Session(load=state)},
        {"settings": AskSettings(system="Short."), "session": Session(load=state)},
        {"video": None, "session": Session(load=state, save="new.state")},
        {"video": None},
    ):
        with pytest.raises(ConfigError):
            ask(**{"video": clip, "questions": ["What?"], "vlm": vlm, **options})
    # its own parameters go before those of the settings
    report = ask(clip, ["What?"], vlm=vlm, policy="recency", storage="int8", settings=AskSettings(policy="h2o"))
    assert report.prefill.policy == "recency"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options",
    [
        {"questions": "What?"},
        {"questions": b"What?"},
        {"questions": ["What?", 3]},
        {"questions": [b"What?"]},
        {"questions": [[]]},
        {"video": 3},
        {"video": b"a.mp4"},
        {"video": "a\0.mp4"},
        {"vlm": None},
        {"vlm": torch.nn.Linear(1, 1)},
        {"settings": "x"},
        {"settings": {}},
        {"session": 3},
        {"session": {}},
        {"allow_short": "yes"},
        {"on_progress": 3},
        {"on_text": "x"},
    ],
    ids=str,
)
def test_arguments_of_other_types_are_refused_before_watching(options, model, clip, monkeypatch):
    vlm = load_vlm(model)

    def open_it(*args, **options):
        raise AssertionError("the video was watched")

    monkeypatch.setattr("kinescan.inference.ask.open_stream", open_it)
    with pytest.raises((ConfigError, VideoError)):
        ask(**{"video": clip, "questions": ["What?"], "vlm": vlm, **options})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Session, {"watch": 3}),
        (Session, {"watch": ["What?"]}),
        (Session, {"load": 3}),
        (Session, {"save": b"a.state"}),
        (Session, {"incoming": 3}),
        (Session, {"on_answer": 3}),
        (Session, {"every_seconds": 1e-320}),
        (AskSettings, {"pixels": "x"}),
        (AskSettings, {"pixels": (1, "x")}),
        (AskSettings, {"pixels": 2**70}),
        (AskSettings, {"dtype": 3}),
        (AskSettings, {"merge_adapter": "x"}),
    ],
    ids=str,
)
def test_fields_of_other_types_are_refused(kind, options):
    with pytest.raises(ConfigError, match=next(iter(options)).removesuffix("_seconds")):
        kind(**options)


def test_each_answer_while_watching_stands_by_itself(model, clip):
    """Question, answer, and up to when it has seen; nothing of an answer on the line of the one before."""
    result = run(clip, "--watch", "What?", "--every", "1s", "--fps", 2, "--max-new-tokens", 4, model=model)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    seen = [line for line in lines if "seen up to" in line]
    assert len(seen) == lines.count("> What?") >= 4
    assert all(line.startswith("[") and line.endswith("]") for line in seen)


def test_lines_of_answers_hold_the_comparison(model, clip):
    result = run(clip, "--watch", "What?", "--compare", "full", "--fps", 2, "--budget", 10, "--json", model=model)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines
    assert all(line["logit_difference"] > 0 and isinstance(line["full_answer"], str) for line in lines)
