import os
from pathlib import Path

import pytest

from kinescan.errors import CheckpointError, ConfigError
from kinescan.runtime.files import (
    inside,
    read_bytes,
    read_head,
    read_json,
    read_json_object,
    read_text,
    read_toml,
    require_regular,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"[" * 5000 + b"]" * 5000, "nested too deep|not valid JSON"),
        (b"[" * 500_000, "nested too deep|not valid JSON"),
        (b"1" * 5000, "JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "a.json", error=CheckpointError)


def test_json_of_another_type(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ConfigError, match="object"):
        read_json_object(tmp_path / "a.json")


def test_byte_order_mark_is_taken_off(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [b"\xff", b"a = ", b"a = " + b"[" * 100_000, b"a = " + b"1" * 5000])
def test_toml_that_cannot_be_read(tmp_path, content):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.toml"):
        read_toml(tmp_path / "a.toml")


def test_files_without_an_end_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "named pipe"), ("/dev/zero", "device"), (tmp_path, "folder")):
        with pytest.raises(ConfigError, match=kind):
            read_text(path)


@pytest.mark.parametrize("name", ["missing", "a\0b"])
def test_missing_file(tmp_path, name):
    with pytest.raises(ConfigError, match="read"):
        read_bytes(tmp_path / name)


def test_long_file_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "a", max_bytes=11) == b"x" * 11
    with pytest.raises(ConfigError, match="longer than 10 bytes"):
        read_bytes(tmp_path / "a", max_bytes=10)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", "c:a", "a\0b"])
def test_inside_refuses_names_that_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        inside(tmp_path, name)


def test_inside_follows_links_that_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("a")
    (folder / "b").symlink_to("a")
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        assert inside(path, "b").read_text() == "a"
        assert inside(path, "new") == path / "new"
        with pytest.raises(ConfigError, match="elsewhere"):
            inside(path, "out")


def test_read_head_gives_the_first_bytes_of_regular_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_head(tmp_path / "a", 2) == b"ab"
    assert read_head(tmp_path / "a", 9) == b"abc"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="named"):
        read_head(tmp_path / "pipe", 9)


@pytest.mark.parametrize("path", [None, 0, True, b"a.json", "", "a\0b", ["a.json"], 1.5], ids=repr)
def test_what_is_no_path_is_refused(path: object) -> None:
    """0 would be the standard input of the process."""
    with pytest.raises(ConfigError):
        require_regular(path)  # type: ignore[arg-type]
