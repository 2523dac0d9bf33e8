"""The names in a run's folder are part of the format: other programs and older runs use them."""

from pathlib import Path

from kinescan.runtime.run_folder import RunFolder


def test_the_names_in_a_run_folder_stay() -> None:
    run = RunFolder(Path("runs/a"))
    names = {
        name: getattr(run, name).relative_to(run.path).as_posix()
        for name in ("recipe", "videos", "log", "unreadable", "checkpoints", "last", "best", "evaluation")
    }
    assert names == {
        "recipe": "recipe.toml",
        "videos": "videos.json",
        "log": "log.jsonl",
        "unreadable": "unreadable.json",
        "checkpoints": "checkpoints",
        "last": "checkpoints/last",
        "best": "checkpoints/best",
        "evaluation": "evaluation",
    }


def test_a_run_is_known_by_its_recipe_and_its_checkpoints(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.recipe.write_text("", encoding="utf-8")
    assert not run.is_run()
    run.last.mkdir(parents=True)
    assert run.is_run()
