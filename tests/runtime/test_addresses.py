"""Addresses where paths stand: they come out as they went in, and hold no secrets."""

import pickle
from pathlib import Path

import pytest

from kinescan.errors import ConfigError, VideoError
from kinescan.runtime.addresses import absolute, address_of, as_path, is_read_address, is_remote, shown_path
from kinescan.runtime.atomic_write import atomic_files, atomic_folder, atomic_write
from kinescan.runtime.output_folder import prepare_output


@pytest.mark.parametrize(
    "address", ["s3://bucket/a/b c.mp4", "gs://b/x.mp4", "http://h:80/ä.mp4", "https://h/a=1/b.mp4"]
)
def test_an_address_survives_being_a_path(address: str) -> None:
    path = as_path(address)
    assert address_of(path) == address_of(str(path)) == address
    assert address_of(path.parent / path.name) == address
    assert absolute(path) == str(path)
    assert is_remote(path)


@pytest.mark.parametrize("name", ["a.mp4", "/s3/a", "s3", "concat:a.mp4", "s4://x/y", "rtsp://camera/1"])
def test_other_names_are_files(name: str) -> None:
    assert address_of(name) is None


def test_a_file_of_such_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "b").mkdir(parents=True)
    (tmp_path / "s3:" / "b" / "a.mp4").touch()
    assert not is_remote("s3:/b/a.mp4")
    assert is_remote("s3:/b/c.mp4")


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter2@host/a.mp4",
        "https://host/a.mp4?X-Amz-Signature=hunter2",
        "https://host/a.mp4#hunter2",
        "s3://hunter2@bucket/a",
    ],
)
def test_addresses_with_secrets_are_refused_without_showing_them(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        as_path(address)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("address", ["s3://b//a.mp4", "s3://b/../a.mp4", "s3://", "http://h/./a"])
def test_addresses_that_no_path_can_hold_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"://"):
        as_path(address)


def test_only_some_addresses_are_read() -> None:
    assert is_read_address("s3://b/a.mp4")
    with pytest.raises(ConfigError, match="ftp"):
        is_read_address("ftp://h/a.mp4")


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "http://host/run", "https://host/run"])
def test_what_is_written_on_this_machine_alone_refuses_addresses(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=address):
        prepare_output(Path(address))
    with pytest.raises(ConfigError, match=address), atomic_write(Path(address) / "a.json"):
        pytest.fail("entered")
    with pytest.raises(ConfigError, match=address), atomic_files(Path(address)):
        pytest.fail("entered")
    with pytest.raises(ConfigError, match=address), atomic_folder(Path(address), is_whole=lambda _: True):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_messages_show_addresses_with_both_slashes() -> None:
    path = Path("s3://bucket/a/0.tar/512+9/1.mp4")
    assert str(path).startswith("s3:/b")
    assert shown_path(path) == "s3://bucket/a/0.tar/512+9/1.mp4"
    error = pickle.loads(pickle.dumps(VideoError(path, "is cut.")))
    assert (error.path, str(error)) == (shown_path(path), f"{shown_path(path)}: is cut.")
    assert (
        str(ConfigError(f"{path}, line 2; {Path('http://h/b.csv')}: no"))
        == f"{shown_path(path)}, line 2; http://h/b.csv: no"
    )
    assert str(ConfigError("clips/a.mp4: no")) == "clips/a.mp4: no"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (Path("s3://b/a.mp4"), "s3://b/a.mp4"),
        (Path("HTTPS://h/a.mp4"), "https://h/a.mp4"),
        (Path("clips/s3:/a.mp4"), "clips/s3:/a.mp4"),
        (Path("/x/gs:/a.mp4"), "/x/gs:/a.mp4"),
        (Path("my-s3:/a.mp4"), "my-s3:/a.mp4"),
    ],
)
def test_results_and_errors_name_a_path_alike(path: Path, shown: str) -> None:
    assert shown_path(path) == VideoError(path, "is cut.").path == shown
    assert str(ConfigError(f"'{path}' ({path}): no")) == f"'{shown}' ({shown}): no"
