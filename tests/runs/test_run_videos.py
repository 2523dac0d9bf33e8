"""What a run knows of its videos, when they were added to, moved, or replaced."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.mentions import mentions

from kinescan.config import load_recipe
from kinescan.data.provenance import read_run_videos
from kinescan.errors import ConfigError
from kinescan.evaluation.report import CHOSEN_ON_THESE
from kinescan.runs.evaluate import evaluate
from kinescan.runs.run_videos import was_chosen
from kinescan.runs.train import train


@pytest.fixture(scope="module")
def original(tiny: list[str], videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on `own`, a folder beside it that is named relative to the working folder."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copytree(videos, folder / "own")
    (folder / "tiny.toml").write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("tiny.toml", overrides=[*tiny, "optim.epochs=2", "train.eval_every=1", "data.train=own"], output="run")
    return folder


@pytest.fixture
def trained(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run, as if it had been trained here."""
    here = tmp_path / "here"
    shutil.copytree(original, here)
    record = here / "run" / "videos.json"
    record.write_text(record.read_text().replace(str(original), str(here)))
    monkeypatch.chdir(here)
    return here / "run"


def scored(report: Any) -> list[str]:
    return sorted(item.video_id for item in report.evaluation.items)


def test_eval_scores_what_was_held_out_whatever_was_added_or_moved(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, first = trained.parent / "own", evaluate(trained)
    recorded = read_run_videos(trained)
    assert recorded is not None
    assert scored(first) == sorted(video.video_id for video in recorded.held_out)
    for index in range(10, 40):
        shutil.copy(own / "dark" / "1.mp4", own / "dark" / f"{index}.mp4")
    # the division by ratio would be another one now
    again = evaluate(trained)
    assert (scored(again), again.data) == (scored(first), first.data)
    # another working folder, with other videos of the same names
    (tmp_path / "there").mkdir()
    shutil.copytree(own, tmp_path / "there" / "own")
    for path in (tmp_path / "there" / "own").rglob("*.mp4"):
        path.write_bytes(path.read_bytes() + b"other")
    monkeypatch.chdir(tmp_path / "there")
    assert {item.path.parent.parent for item in evaluate(trained).evaluation.items} == {own}
    # moved, and found again where the recipe says
    shutil.rmtree("own")
    own.rename(tmp_path / "there" / "own")
    assert {item.path.parent.parent for item in evaluate(trained).evaluation.items} == {Path("own")}


def test_eval_refuses_other_videos_in_the_place_of_those_held_out(trained: Path) -> None:
    own = trained.parent / "own"
    content = {path: path.read_bytes() for path in own.rglob("*.mp4")}
    for path in content:
        path.write_bytes(content[path] + b"other")
    with pytest.raises(ConfigError, match=r"2.*2.*run.*--data"):
        evaluate(trained)
    shutil.rmtree(own)
    with pytest.raises(ConfigError, match=r"2.*run.*--data"):
        evaluate(trained)


def test_a_single_evaluation_chose_nothing(trained: Path) -> None:
    best, log = trained / "checkpoints" / "best", trained / "log.jsonl"
    assert was_chosen(best, trained)
    assert not was_chosen(trained / "checkpoints" / "last", trained)
    assert CHOSEN_ON_THESE in json.loads((trained / "report.json").read_text())["notes"]
    first = [line for line in log.read_text().splitlines() if json.loads(line)["epoch"] == 1]
    # the end of a log may have been cut by a kill
    log.write_text("\n".join([*first, '{"kind": "evalua']))
    assert not was_chosen(best, trained)
    assert CHOSEN_ON_THESE not in evaluate(trained).notes
    log.unlink()
    assert was_chosen(best, trained)


def test_a_lost_test_video_is_not_taken_for_the_training_video_of_its_name(
    tiny: list[str], videos: Path, tmp_path: Path
) -> None:
    shutil.copytree(videos, tmp_path / "train")
    shutil.copytree(videos, tmp_path / "test")
    for path in (tmp_path / "test").rglob("*.mp4"):
        path.write_bytes(path.read_bytes() + b"other")
    data = [f"data.train={tmp_path / 'train'}", f"data.test={tmp_path / 'test'}"]
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")
    train(recipe, overrides=[*tiny, "optim.epochs=1", *data], output=tmp_path / "run")
    assert CHOSEN_ON_THESE not in json.loads((tmp_path / "run" / "report.json").read_text())["notes"]
    (tmp_path / "test" / "dark" / "1.mp4").unlink()
    report = evaluate(tmp_path / "run")
    assert len(report.evaluation.items) == 11
    assert mentions(report.to_markdown(), str(tmp_path / "test" / "dark" / "1.mp4"))


def test_eval_names_training_videos_by_their_content(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained.parent / "own", moved)
    (moved / "dark" / "1.mp4").rename(moved / "dark" / "renamed.mp4")
    shutil.rmtree(trained.parent / "own")
    notes = [note.split(":")[0] for note in evaluate(trained, data=moved).notes]
    assert notes == [
        "10 of the 12 videos are training videos of this run",
        "2 of the 12 videos chose this checkpoint as the best of its run.",
    ]


def test_eval_names_videos_that_the_run_did_not_hold_out(trained: Path, tmp_path: Path) -> None:
    own, mixed = trained.parent / "own", tmp_path / "mixed"
    recorded = read_run_videos(trained)
    assert recorded is not None
    held_out = recorded.held_out[0]
    for label in ("bright", "dark"):
        (mixed / label).mkdir(parents=True)
        # added later, or from elsewhere
        (mixed / label / "new.mp4").write_bytes((own / label / "1.mp4").read_bytes() + label.encode())
    shutil.copy(held_out.path, mixed / held_out.video_id)
    notes = [note.split(",")[0] for note in evaluate(trained, data=mixed).notes]
    assert notes[0].startswith("1 of the 3 videos chose")
    assert notes[1:] == ["2 of the 3 videos are not in the run's list of videos (videos.json)"]
    # copies that were written anew are known by their names
    (mixed / held_out.video_id).unlink()
    trained_on = recorded.train[0]
    (mixed / trained_on.video_id).write_bytes(Path(trained_on.path).read_bytes() + b"anew")
    notes = list(evaluate(trained, data=mixed).notes)
    assert trained_on.video_id in notes[0]
    (mixed / trained_on.video_id).unlink()
    assert ["None of the 2" in note for note in evaluate(trained, data=mixed).notes] == [True]


def test_seeds_share_the_held_out_videos_and_runs_of_before_keep_theirs(
    videos: Path, tiny: list[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('model = "pks4_vit_ti16"\n', encoding="utf-8")

    def held_out(run: str, *settings: str, resume: bool = False) -> set[str]:
        overrides = [*tiny, f"data.train={videos}", *settings]
        train(recipe, overrides=overrides, output=tmp_path / run, resume=resume)
        found = read_run_videos(tmp_path / run)
        assert found is not None
        return {video.video_id for video in found.held_out}

    one = ("optim.epochs=1", "seed=1")
    assert held_out("seed_0", "optim.epochs=1") == held_out("seed_1", *one)
    before = held_out("before", *one, "data.split_seed=-1")
    assert before != held_out("seed_1", *one, resume=True)
    # a version that did not know the setting wrote no line of it
    file = tmp_path / "before/recipe.toml"
    file.write_text(file.read_text().replace("split_seed = -1\n", ""))
    assert held_out("before", "optim.epochs=2", "seed=1", resume=True) == before
    assert load_recipe(file).data.split_seed == -1


def test_eval_of_an_earlier_version_compares_the_digest(trained: Path) -> None:
    own = trained.parent / "own"
    (trained / "videos.json").unlink()
    assert evaluate(trained).evaluation.metrics.num_videos == 2
    for index in range(10, 40):
        shutil.copy(own / "dark" / "1.mp4", own / "dark" / f"{index}.mp4")
    with pytest.raises(ConfigError, match=r"10 videos, SHA-256 .*its.*now.*--data"):
        evaluate(trained)


def test_eval_with_an_empty_recipe_reads_nothing_else(trained: Path, videos: Path, caplog: Any) -> None:
    (trained / "recipe.toml").write_text("")
    assert evaluate(trained, views="4x1x1").evaluation.metrics.num_videos == 2
    assert "recipe.toml is empty" in caplog.text
    (trained / "videos.json").unlink()
    with pytest.raises(ConfigError, match="held"):
        evaluate(trained)
    report = evaluate(trained, data=videos, views="4x1x1")
    assert ["whether" in note for note in report.notes] == [True]


def test_resume_refuses_other_videos_of_the_same_names(trained: Path, tiny: list[str], caplog: Any) -> None:
    own = trained.parent / "own"
    changed = sorted(own.rglob("*.mp4"))

    def resume() -> Any:
        settings = [*tiny, "optim.epochs=2", "data.train=own"]
        return train("tiny.toml", overrides=settings, output="run", resume=True)

    recorded = read_run_videos(trained)
    assert recorded is not None
    one = Path(recorded.train[0].path)
    one.write_bytes(one.read_bytes() + b"other")
    assert resume().fit.steps == 6
    assert mentions(caplog.text, "1", "10", str(one))
    assert load_recipe(trained / "recipe.toml").optim.epochs == 2
    assert read_run_videos(trained) == recorded
    for path in changed:
        path.write_bytes(path.read_bytes() + b"others")
    with pytest.raises(ConfigError, match=r"10.*10"):
        resume()
