"""A run's folder from a stranger: what is written into it does not follow links that lead elsewhere."""

from pathlib import Path
from typing import Any

WRITTEN = (
    *("log.jsonl", "report.json", "report.md", "confusion.png", "reliability.png", "predictions.jsonl"),
    *("predictions.unfinished.jsonl", "unreadable.json", ".lock-holder.json", ".log.jsonl.new"),
)


def lay_links(folder: Path, victims: Path) -> None:
    for name in WRITTEN:
        (victims / name).write_text("mine")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victims / name)


def test_resume_and_eval_write_through_no_link(
    kinescan: Any, train_arguments: list[str], videos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "stranger"
    first = kinescan(*train_arguments, "--output", run)
    assert first.exit_code == 0, first.stderr
    victims = tmp_path / "victims"
    victims.mkdir()
    lay_links(run, victims)
    (run / "evaluation").mkdir(exist_ok=True)
    lay_links(run / "evaluation", victims)
    again = kinescan(*train_arguments, "--output", run, "--resume", "--set", "optim.epochs=5")
    assert again.exit_code == 0, again.stderr
    scored = kinescan("eval", run, "--data", videos)
    assert scored.exit_code == 0, scored.stderr
    assert not (run / "report.json").is_symlink()
    assert {(victims / name).read_text() for name in WRITTEN} == {"mine"}
