import json
from pathlib import Path

import pytest
from tests.bright_model import bright_model, write_blinking

from kinescan.data.video import VideoReader
from kinescan.errors import ConfigError
from kinescan.runs.cameras import read_cameras, stream_cameras

DOOR = '[[camera]]\nname = "door"\nurl = "rtsp://me:geheim@camera/1"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "cameras.toml"
    path.write_text(text)
    return path


def test_cameras_are_read_with_what_the_top_says(tmp_path):
    text = f"""
        events = ["all.jsonl"]
        {DOOR}
        when_behind = "newest"
        reconnect.limit_seconds = 300
        [[camera]]
        name = "yard 2"
        url = "-"
        events = []
        state = "yard.state"
        every = 2
    """
    door, yard = read_cameras(written(tmp_path, text))
    assert (door.name, door.events, door.when_behind, door.reconnect) == (
        *("door", ["all.jsonl"], "newest"),
        {"limit_seconds": 300},
    )
    assert (yard.name, yard.events, yard.state, yard.every, yard.when_behind) == ("yard 2", [], "yard.state", 2, None)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"\[\[camera\]\]"),
        ("camera = 3", r"\[\[camera\]\]"),
        ("[[cameras]]\nname = 'a'", "'cameras'.*'camera'"),
        ('[[camera]]\nname = "door"', r"camera 1 \(door\): url"),
        ('[[camera]]\nurl = "-"', "camera 1: name"),
        (DOOR + 'uri = "a"', r"camera 1 \(door\).*'uri'.*'url'"),
        (DOOR + 'when_behind = "newset"', r"door.*when_behind.*newest"),
        (DOOR + "reconnect.limit_second = 3", r"door.*limit_second'.*'limit_seconds'"),
        (DOOR + "reconnect.limit_seconds = -3", r"door.*limit_seconds"),
        (DOOR + "every = 0", r"door.*every"),
        (DOOR + 'events = ["a.txt"]', r"door.*a\.txt"),
        (DOOR.replace("rtsp", "rstp"), r"door.*rstp.*rtsp://"),
        (DOOR.replace("door", "../door"), r"name.*\.\./door"),
        (DOOR.replace("door", ""), "name"),
        ('[[camera]]\nname = "door"\nurl = "no.mp4"', r"door.*url.*no\.mp4"),
        ("[[camera]\n", "TOML"),
    ],
)
def test_a_bad_file_of_cameras_is_named_with_camera_and_key(tmp_path, text, match):
    with pytest.raises(ConfigError, match=match) as caught:
        read_cameras(written(tmp_path, text))
    assert "geheim" not in str(caught.value)


def test_two_alike_are_refused_before_anything_is_opened(tmp_path):
    path = written(tmp_path, DOOR + DOOR.replace("camera/1", "camera/2").replace("door", "Door"))
    with pytest.raises(ConfigError, match=r"'door'.*'Door'.*name"):
        stream_cameras(path, targets=[str(tmp_path / "events.jsonl")], model="nowhere")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_of_states_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "states").write_text("")
    with pytest.raises(ConfigError, match="states"):
        stream_cameras(written(tmp_path, DOOR), state=tmp_path / "states", model="nowhere")


@pytest.mark.parametrize("name", ["state", "record"])
def test_nothing_of_cameras_is_written_to_an_address(name, tmp_path, monkeypatch):
    """It would be a folder gs: in the working directory."""
    path = written(tmp_path, DOOR)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="gs://bucket/all cannot be written"):
        stream_cameras(path, model="nowhere", **{name: "gs://bucket/all"})
    assert list(tmp_path.iterdir()) == [path]


def _two(folder: Path, more: str = "") -> Path:
    """Two cameras, each a file in which something is bright from 0.5 to 1.2 s."""
    for name in ("door", "yard"):
        write_blinking(folder / f"{name}.mp4", 5, 7, 6)
    tables = [f'[[camera]]\nname = "{name}"\nurl = "{folder / name}.mp4"\n' for name in ("door", "yard")]
    return written(folder, tables[0] + tables[1] + more)


@pytest.mark.parametrize(
    ("record", "more", "files"),
    [
        ("seen", "", ("seen/door.mp4", "seen/yard.mp4")),
        ("out.mkv", "", ("out-door.mkv", "out-yard.mkv")),
        ("out.mp4", 'record = "{folder}/own.ts"', ("out-door.mp4", "own.ts")),
    ],
)
def test_each_camera_is_recorded_to_a_file_of_its_own(tmp_path, record, more, files):
    bright_model().save_pretrained(tmp_path / "model")
    path = _two(tmp_path, more.format(folder=tmp_path))
    for again in (False, True):
        assert list(stream_cameras(path, model=str(tmp_path / "model"), record=tmp_path / record)) == []
        for name in files:
            written_file = tmp_path / name
            written_file = written_file.with_stem(f"{written_file.stem}-2") if again else written_file
            with VideoReader(written_file) as video:
                assert (video.num_frames, video.width) == (18, 320)


def test_two_cameras_are_not_recorded_to_one_file(tmp_path):
    path = _two(tmp_path, 'record = "out-door.mp4"')
    with pytest.raises(ConfigError, match=r"'door'.*'yard'.*out-door"):
        stream_cameras(path, model="nowhere", record="out.mp4")
    (tmp_path / "folder").write_text("")
    with pytest.raises(ConfigError, match="folder"):
        stream_cameras(_two(tmp_path), model="nowhere", record=tmp_path / "folder")


def test_cameras_share_a_webhook_with_one_queue(tmp_path, serve):
    server = serve(204)
    bright_model().save_pretrained(tmp_path / "model")
    rules = tmp_path / "rules.toml"
    rules.write_text(f'[[webhook]]\nurl = "http://127.0.0.1:{server.port}/hook"\nqueue = "{tmp_path / "queue"}"\n')
    assert list(stream_cameras(_two(tmp_path), targets=[str(rules)], model=str(tmp_path / "model"))) == []
    told = [json.loads(body) for _, _, body in server.requests]
    assert sorted((record["source"], record["kind"]) for record in told) == [
        (name, kind) for name in ("door", "yard") for kind in ("end", "start")
    ]
    assert not list((tmp_path / "queue").glob("*-*.json"))
