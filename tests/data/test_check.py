import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mentions import mentions

from kinescan.data import check_videos, inspect_video, list_videos
from kinescan.data.file_workers import each_file
from kinescan.data.listing import VideoItem, VideoList
from kinescan.data.video import Inspection


@pytest.fixture
def folder(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Sound, cut, broken and doubled videos of three classes, and an empty folder."""
    make_video("train/run/a.mp4")
    make_video("train/run/b.webm", codec="libvpx-vp9", seed=1)
    whole = make_video("train/walk/whole.avi", 60, 96, 128, codec="mpeg4", seed=2).read_bytes()
    (tmp_path / "train/walk/cut.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/walk/again.avi").write_bytes(whole)
    (tmp_path / "train/run/again.avi").write_bytes(whole)
    (tmp_path / "train/jump").mkdir()
    (tmp_path / "train/jump/text.mp4").write_text("no video")
    (tmp_path / "train/nothing").mkdir()
    make_video("test/run/new.mp4", seed=3)
    (tmp_path / "test/run/seen.mp4").write_bytes((tmp_path / "train/run/a.mp4").read_bytes())
    return tmp_path


def test_everything_wrong_is_found_and_nothing_changed(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train = list_videos(folder / "train")
    steps: list[tuple[int, int]] = []
    parts = {"train": train, "test": list_videos(folder / "test", classes=train.classes)}
    found = check_videos(parts, progress=lambda done, total: steps.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert steps == [(done, 9) for done in range(1, 10)]
    assert not found.is_sound()
    said = found.to_json()
    assert said["parts"]["train"] == {
        **{"videos": 7, "readable": 5, "missing": 0, "unreadable": 1, "short": 1, "gone": 0, "classes": 3},
        **{"frames": 20 + 20 + 3 * 60, "hours": round((2 + 2 + 3 * 6) / 3600, 4)},
    }
    assert [video["id"] for video in said["unreadable"]] == ["jump/text.mp4"]
    assert [(video["id"], video["part"]) for video in said["short"]] == [("walk/cut.avi", "train")]
    assert "bytes are missing" in said["short"][0]["reason"]
    assert said["classes_without_videos"] == {"train": ["jump", "nothing"], "test": ["jump", "walk"]}
    assert [{video["id"] for video in group} for group in said["duplicates"]] == [
        {"run/again.avi", "walk/again.avi", "walk/whole.avi"}
    ]
    assert [[(video["part"], video["id"]) for video in group] for group in said["train_and_test"]] == [
        [("train", "run/a.mp4"), ("test", "run/seen.mp4")]
    ]
    text = found.to_text()
    assert mentions(text, "train: 5", "7", "3 classes, 0.01 h")
    assert "labels" in text
    assert text.endswith("nothing was changed or deleted")


def test_sound_data_is_said_to_be_sound(make_video: Callable[..., Path], tmp_path: Path) -> None:
    for seed, label in enumerate(("run", "walk")):
        make_video(f"{label}/a.mp4", seed=seed)
    found = check_videos({"train": list_videos(tmp_path)}, decode=False)
    assert found.is_sound()
    assert found.to_json()["sound"] is True
    assert found.to_text().splitlines()[1:] == [
        "frames were not decoded: damage inside of files does not show",
        "sound: nothing was found",
    ]


def test_lists_name_missing_and_repeated_videos(make_video: Callable[..., Path], tmp_path: Path) -> None:
    make_video("a.mp4")
    (tmp_path / "list.csv").write_text("a.mp4,run\nlost.mp4,walk\na.mp4,run\n")
    found = check_videos({"train": list_videos(tmp_path / "list.csv")})
    said = found.to_json()
    assert [video["id"] for video in said["missing"]] == ["lost.mp4"]
    assert said["listed_twice"] == {"train": ["a.mp4"]}
    assert said["classes_without_videos"] == {"train": ["walk"]}
    assert mentions(found.to_text(), "listed", "1):\n  a.mp4")


def test_what_is_usually_gone_is_counted_and_sound(make_video: Callable[..., Path]) -> None:
    videos = VideoList([VideoItem(make_video("a.mp4"), 0, "a")], ("run",), missing=("b", "c"))
    found = check_videos({"train": videos})
    assert found.is_sound()
    assert found.to_json()["gone"] == {"train": ["b", "c"]}
    assert mentions(found.to_text(), "2", "listed")


@pytest.mark.parametrize("same_ids", [True, False])
def test_ids_count_on_both_sides_where_they_are_comparable(make_video: Callable[..., Path], same_ids: bool) -> None:
    paths = [make_video(f"{name}.mp4", seed=seed) for seed, name in enumerate("ab")]
    parts = {
        part: VideoList([VideoItem(path, 0, "run/1")], ("run",))
        for part, path in zip(("train", "test"), paths, strict=True)
    }
    assert len(check_videos(parts, same_ids=same_ids).overlap()) == same_ids
    parts["test"] = VideoList([VideoItem(paths[0], 0, "other")], ("run",))
    assert len(check_videos(parts, same_ids=same_ids).overlap()) == 1
    paths[0].write_text("no video any more")
    assert len(check_videos(parts, same_ids=False).overlap()) == 1


def test_long_lists_are_cut_in_the_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("".join(f"{number}.mp4,run\n" for number in range(25)))
    text = check_videos({"train": list_videos(tmp_path / "list.csv")}).to_text()
    assert "missing (25):" in text
    assert "  ... and 15 more" in text
    assert text.count("no such file") == 10


class EndsItsProcess(str):
    """A path that ends the process that it is sent to."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_worker_processes_find_the_same_and_survive_a_file_that_ends_one(folder: Path) -> None:
    parts = {"train": list_videos(folder / "train")}
    alone = check_videos(parts)
    assert check_videos(parts, num_workers=2).to_json() == alone.to_json()
    paths = [str(folder / "train/run/a.mp4"), EndsItsProcess("bad.mp4"), *(str(folder / f"{n}.mp4") for n in range(9))]

    def ended(path: str) -> Inspection:
        return Inspection(path=path, problem="unreadable")

    done = {found.path: found for found in each_file(paths, inspect_video, num_workers=1, crashed=ended)}
    assert set(done) == set(paths)
    assert done["bad.mp4"].problem == "unreadable"
    assert {found.problem for path, found in done.items() if path != "bad.mp4"} <= {None, "missing"}


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_check_and_its_workers(tmp_path: Path) -> None:
    """Also where workers are in the middle of files that take long."""
    script = tmp_path / "check.py"
    script.write_text(
        "import os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from kinescan.data.file_workers import each_file\n"
        "def slow(path):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(each_file([str(number) for number in range(9)], slow, num_workers=2, crashed=str))\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_what_is_unusual_is_noted_and_no_fault(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video("run/a.ts", codec="mpeg2video")
    path.write_bytes(path.read_bytes() + path.read_bytes())
    found = check_videos({"train": list_videos(tmp_path)})
    [noted] = found.to_json()["notes"]
    assert noted["path"] == str(path)
    assert ["clock" in note for note in noted["notes"]] == [True]
    assert f"{path}: {noted['notes'][0]}" in found.to_text()
    assert found.is_sound()
