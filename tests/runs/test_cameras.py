from pathlib import Path

import pytest

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
