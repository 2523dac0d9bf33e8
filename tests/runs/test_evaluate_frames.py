import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from kinescan.config import build_run, dump_recipe
from kinescan.data.interval_listing import read_intervals
from kinescan.data.provenance import record_videos
from kinescan.data.video import write_video
from kinescan.errors import ConfigError, NonFiniteError, VideoError
from kinescan.evaluation.temporal.report import TemporalReport
from kinescan.events.predictions import FramePredictions
from kinescan.events.rules import EventRules, load_rules, save_rules
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing
from kinescan.runs.compare import compare_reports
from kinescan.runs.evaluate import evaluate
from kinescan.runs.frame_evaluation import AnsweredVideos, answer_videos, looks_ahead
from kinescan.runtime.distributed import Processes
from kinescan.runtime.fingerprint import fingerprint_of

from ..evaluation.temporal.made_up import predictions

LABELS = ("background", "fall", "run")
SIZES = {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "embed_dim": 16, "image_size": 32}
ROWS = {
    "0.mp4": ["0.5,1.5,fall"],
    "1.mp4": ["1,2,run"],
    "2.mp4": ["0.5,1,fall", "1.5,2.5,run"],
    "3.mp4": [",,"],
    "4.mp4": ["1,2,fall"],
    "5.mp4": ["2,2.5,run"],
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of 3 s and labels.csv."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    for name in ROWS:
        write_video(
            folder / name, torch.randint(0, 255, (24, 3, 32, 32), generator=generator, dtype=torch.uint8), fps=8
        )
    write_labels(folder / "labels.csv", ROWS)
    return folder


def write_labels(file: Path, rows: dict[str, list[str]]) -> Path:
    lines = [f"{name},{row}" for name, own in rows.items() for row in own]
    file.write_text("\n".join(["path,start,end,label", *lines]) + "\n", encoding="utf-8")
    return file


def save_model(folder: Path, *, labels: tuple[str, ...] = LABELS, seed: int = 0, **options: Any) -> Path:
    torch.manual_seed(seed)
    model = create_model(
        "vit_ti16",
        labels=labels,
        preprocessing=Preprocessing(size=32, num_frames=4, frame_rate=8.0),
        output="frames",
        **SIZES,
        **options,
    )
    torch.nn.init.normal_(model.get_submodule("head").weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def make_run(recordings: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run's folder as `train` leaves it: trained on 0 and 1, chosen on 2 and 3, holding out 4 and 5."""

    def make(*, validation: bool = True) -> Path:
        run = tmp_path / "run"
        save_model(run / "checkpoints" / "best")
        recipe = build_run({"model": "vit_ti16"}, [f"data.train={recordings / 'labels.csv'}", "preprocessing.size=32"])
        (run / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
        videos = read_intervals(recordings / "labels.csv").videos
        record_videos(
            videos[:2], videos[4:], ("fall", "run"), origin="held out", validation=videos[2:4] if validation else []
        ).save(run)
        return run

    return make


@pytest.fixture
def right_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every model answers what is true, with falls at 0.3 and runs at 0.8; the list gets the ids asked for."""
    asked: list[str] = []

    def answer(model: object, path: Path, *, video_id: str, **_: object) -> FramePredictions:
        asked.append(video_id)
        events = [
            (float(start), float(end), label, 0.3 if label == "fall" else 0.8)
            for start, end, label in (row.split(",") for row in ROWS[video_id] if row != ",,")
        ]
        return predictions(*events, video=video_id, length=3.0)

    monkeypatch.setattr("kinescan.runs.frame_evaluation.predict_frames", answer)
    return asked


def _evaluate(model: Path, **options: Any) -> TemporalReport:
    report = evaluate(model, **options)
    assert isinstance(report, TemporalReport)
    return report


def test_eval_scores_what_the_run_held_out_and_says_who_chose(make_run: Any, right_answers: list[str]) -> None:
    run = make_run()
    report = _evaluate(run)
    assert right_answers == ["4.mp4", "5.mp4"]
    assert report.data == "held out"
    assert report.scores.frames.mean == 1.0
    assert "thresholds=choose" in " ".join(report.notes)
    assert (run / "evaluation" / "timelines").is_dir()


def test_thresholds_are_chosen_on_validation_videos_alone_and_saved(make_run: Any, right_answers: list[str]) -> None:
    run = make_run()
    report = _evaluate(run, overrides=["thresholds=choose"])
    assert right_answers == ["2.mp4", "3.mp4", "4.mp4", "5.mp4"]
    assert "2 validation videos" in report.rules_from
    assert report.scores.rules.of("fall").on <= 0.3
    assert report.scores.alarms.num_missed == report.scores.alarms.num_false == 0
    best = run / "checkpoints" / "best"
    saved = load_rules(best, classes=LABELS, weights=fingerprint_of(from_pretrained(best)))
    assert saved == report.scores.rules
    again = _evaluate(run)
    assert again.scores.rules == saved
    assert "events.json" in again.rules_from


def test_without_validation_videos_thresholds_come_from_training_ones(make_run: Any, right_answers: list[str]) -> None:
    report = _evaluate(make_run(validation=False), overrides=["thresholds=choose"])
    assert set(right_answers[:2]) == {"0.mp4", "1.mp4"}
    assert right_answers[2:] == ["4.mp4", "5.mp4"]
    assert "2 training videos" in report.rules_from
    assert "data.validation_ratio" in report.rules_from


def test_a_model_without_a_run_chooses_on_the_named_videos_and_says_so(
    recordings: Path, tmp_path: Path, right_answers: list[str]
) -> None:
    model = save_model(tmp_path / "model")
    report = _evaluate(model, data=recordings / "labels.csv", overrides=["thresholds=choose"])
    assert any("thresholds" in note for note in report.notes)
    assert (model / "events.json").is_file()
    assert len(right_answers) == 6


def test_thresholds_of_another_model_are_refused(recordings: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    save_rules(model, EventRules(), classes=LABELS, weights="0" * 64)
    with pytest.raises(ConfigError, match=r"events\.json"):
        evaluate(model, data=recordings / "labels.csv")


def test_a_real_model_answers_and_unreadable_videos_are_named(recordings: Path, tmp_path: Path, kinescan: Any) -> None:
    (recordings / "broken.mp4").write_bytes(b"nothing")
    labels = write_labels(recordings / "with_broken.csv", {**ROWS, "broken.mp4": ["0,1,fall"]})
    result = kinescan(
        "eval", save_model(tmp_path / "model"), "--data", labels, "--output", tmp_path / "report", "--json"
    )
    assert result.exit_code == 0, result.stderr
    plain = json.loads(result.stdout)
    assert (plain["task"], plain["num_videos"], plain["num_unreadable"]) == ("intervals", 6, 1)
    assert plain["unreadable"][0]["path"].endswith("broken.mp4")
    assert plain["num_intervals"] == 6
    assert plain["hours"] == pytest.approx(6 * 3 / 3600)
    assert not list((tmp_path / "report").glob("predictions.unfinished*"))


def test_nothing_that_can_be_read_is_an_error(recordings: Path, tmp_path: Path) -> None:
    (recordings / "broken.mp4").write_bytes(b"nothing")
    labels = write_labels(recordings / "only_broken.csv", {"broken.mp4": ["0,1,fall"]})
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        evaluate(save_model(tmp_path / "model"), data=labels)


def test_predictions_are_kept_when_the_evaluation_is_ended(
    recordings: Path, tmp_path: Path, right_answers: list[str], monkeypatch: pytest.MonkeyPatch, kinescan: Any
) -> None:
    from kinescan.runs import frame_evaluation

    answer = frame_evaluation.predict_frames

    def ended(model: Any, path: Path, *, video_id: str, **options: Any) -> FramePredictions:
        if video_id == "4.mp4":
            raise KeyboardInterrupt
        return answer(model, path, video_id=video_id, **options)

    monkeypatch.setattr(frame_evaluation, "predict_frames", ended)
    model, report = save_model(tmp_path / "model"), tmp_path / "report"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data=recordings / "labels.csv", output=report)
    left = report / "predictions.unfinished.jsonl"
    assert [json.loads(line)["video_id"] for line in left.read_text().splitlines()] == [f"{i}.mp4" for i in range(4)]
    result = kinescan("eval", left, "--data", recordings / "labels.csv", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["detection"]["0.3:0.1:0.7"]["average_map"] > 0.4


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ({"0.mp4": ["0.5,1.5,jump"]}, "'jump'"),
        ({"0.mp4": ["8,9,fall"]}, "0.mp4"),
        ({"0.mp4": ["1,2,fall", "1.5,2.5,run"]}, "overlaps"),
        ({"absent.mp4": ["1,2,fall"]}, "absent.mp4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    recordings: Path, tmp_path: Path, rows: dict[str, list[str]], named: str
) -> None:
    labels = write_labels(recordings / "wrong.csv", rows)
    with pytest.raises(ConfigError, match=named):
        evaluate(save_model(tmp_path / "model"), data=labels)


def test_overlapping_labels_are_scored_when_asked(
    recordings: Path, tmp_path: Path, right_answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = write_labels(recordings / "overlapping.csv", {"0.mp4": ["1,2,fall", "1.5,2.5,run"]})
    report = _evaluate(save_model(tmp_path / "model"), data=labels, overrides=["data.overlaps=true"])
    assert report.scores.segmentation is None


@pytest.mark.parametrize(
    "options",
    [
        {"views": "4x1x1"},
        {"features": "features.safetensors"},
        {"num_workers": 2},
        {"overrides": ["thresholds=best"]},
        {"overrides": ["data.train=x"]},
        {"overrides": ["false_alarms_per_hour=-1"]},
        {"overrides": ["false_alarms_per_hour=2"]},
        {"overrides": ["thresholds=choose", "told_within_seconds=0.5"]},
        {"overrides": ["thresholds=choose", "false_alarms_per_hour=2", "told_within_seconds=-1"]},
        {"overrides": ["threshold=choose"]},
        {"overrides": ["grace_seconds=-1"]},
    ],
)
def test_options_that_make_no_sense_are_refused(recordings: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        evaluate(save_model(tmp_path / "model"), data=recordings / "labels.csv", **options)


def test_labels_and_model_are_of_one_kind(recordings: Path, tmp_path: Path, videos: Path) -> None:
    frames = save_model(tmp_path / "frames")
    with pytest.raises(ConfigError, match=r"path,start,end,label"):
        evaluate(frames, data=videos)
    with pytest.raises(ConfigError, match="--data"):
        evaluate(frames)
    clips = create_model(
        "vit_ti16", labels=["fall", "run"], preprocessing=Preprocessing(size=32, num_frames=4), **SIZES
    )
    clips.save_pretrained(tmp_path / "clips")
    with pytest.raises(ConfigError, match=r"labels\.csv"):
        evaluate(tmp_path / "clips", data=recordings / "labels.csv")
    with pytest.raises(ConfigError, match="--set"):
        evaluate(tmp_path / "clips", data=videos, overrides=["thresholds=choose"])


class _Together(Processes):
    """One of several processes that are threads here."""

    def __init__(self, index: int, told: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(index, barrier.parties)
        self._told, self._barrier = told, barrier

    def gather(self, value: Any) -> list[Any]:
        self._told[self.index] = value
        self._barrier.wait(timeout=60)
        return list(self._told)


def _answer_together(recordings: Path, count: int) -> list[AnsweredVideos]:
    videos = read_intervals(recordings / "labels.csv").videos
    told: list[Any] = [None] * count
    barrier = threading.Barrier(count)
    with ThreadPoolExecutor(count) as threads:
        jobs = [
            threads.submit(answer_videos, None, videos, processes=_Together(index, told, barrier))  # type: ignore[arg-type]
            for index in range(count)
        ]
        return [job.result(timeout=60) for job in jobs]


@pytest.mark.parametrize("count", [2, 4, 7])
def test_several_processes_share_the_videos(recordings: Path, right_answers: list[str], count: int) -> None:
    for whole in _answer_together(recordings, count):
        assert [one.video_id for one in whole.predictions] == [video.video_id for video in whole.videos]
        assert [one.video_id for one in whole.predictions] == sorted(ROWS)
    assert sorted(right_answers) == sorted(ROWS)


def test_an_error_of_one_process_is_raised_in_all(
    recordings: Path, right_answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, video_id: str, **__: object) -> FramePredictions:
        raise NonFiniteError(f"{video_id}: NaN") if video_id == "3.mp4" else VideoError(video_id, "it is cut.")

    monkeypatch.setattr("kinescan.runs.frame_evaluation.predict_frames", broken)
    with pytest.raises(NonFiniteError, match=r"3\.mp4"):
        _answer_together(recordings, 2)


def test_two_evaluations_are_compared_video_by_video(
    recordings: Path, tmp_path: Path, right_answers: list[str], kinescan: Any
) -> None:
    model = save_model(tmp_path / "model")
    for name, on in (("strict", 0.9), ("loose", 0.2)):
        save_rules(model, EventRules(on=on), classes=LABELS, weights=fingerprint_of(from_pretrained(model)))
        evaluate(model, data=recordings / "labels.csv", output=tmp_path / name)
    result = kinescan(
        "eval", "--compare", tmp_path / "strict", tmp_path / "loose", "--json", "--output", tmp_path / "c"
    )
    assert result.exit_code == 0, result.stderr
    plain = json.loads(result.stdout)
    gaps = {gap["score"]: gap for gap in plain["gaps"]}
    assert plain["num_videos"] == 6
    assert gaps["missed events"]["difference"] == 1.0
    assert gaps["per-frame mAP"]["difference"] == 0.0
    assert any("events.json" in note for note in plain["notes"])
    assert (tmp_path / "c" / "comparison.md").is_file()
    for name in ("strict", "loose"):
        report = json.loads((tmp_path / name / "report.json").read_text())
        (tmp_path / name / "report.json").write_text(json.dumps({**report, "grace_seconds": 1.5}))
    notes = compare_reports(tmp_path / "strict", tmp_path / "loose").notes
    assert any("1.5 s" in note for note in notes)
    (tmp_path / "loose" / "report.json").write_text(json.dumps({**report, "grace_seconds": "long"}))
    with pytest.raises(ConfigError, match=r"report.json: grace_seconds"):
        compare_reports(tmp_path / "strict", tmp_path / "loose")
    (tmp_path / "loose" / "report.json").write_text(json.dumps(report))
    assert (
        kinescan(
            "eval",
            tmp_path / "loose" / "results.json",
            "--data",
            recordings / "labels.csv",
            "--output",
            tmp_path / "bare",
        ).exit_code
        == 0
    )
    result = kinescan("eval", "--compare", tmp_path / "bare", tmp_path / "loose", "--json")
    assert [gap["difference"] for gap in json.loads(result.stdout)["gaps"]] == [0.0, 0.0]


def test_reports_of_two_kinds_or_in_pieces_are_not_compared(
    recordings: Path, tmp_path: Path, right_answers: list[str], videos: Path
) -> None:
    evaluate(save_model(tmp_path / "model"), data=recordings / "labels.csv", output=tmp_path / "frames")
    clips = create_model(
        "vit_ti16", labels=["bright", "dark"], preprocessing=Preprocessing(size=32, num_frames=4), **SIZES
    )
    clips.save_pretrained(tmp_path / "clips")
    evaluate(tmp_path / "clips", data=videos, views="4x1x1", output=tmp_path / "whole")
    with pytest.raises(ConfigError, match="frames"):
        compare_reports(tmp_path / "frames", tmp_path / "whole")
    for name in ("frames.safetensors", "truth.json", "results.json"):
        copy = tmp_path / f"without_{name}"
        shutil.copytree(tmp_path / "frames", copy)
        (copy / name).unlink()
        with pytest.raises(ConfigError, match=name):
            compare_reports(tmp_path / "frames", copy)


def test_a_report_of_whole_videos_moves_aside_for_one_of_frames(
    recordings: Path, tmp_path: Path, right_answers: list[str], videos: Path
) -> None:
    clips = create_model(
        "vit_ti16", labels=["bright", "dark"], preprocessing=Preprocessing(size=32, num_frames=4), **SIZES
    )
    clips.save_pretrained(tmp_path / "clips")
    evaluate(tmp_path / "clips", data=videos, views="4x1x1", output=tmp_path / "report")
    evaluate(save_model(tmp_path / "model"), data=recordings / "labels.csv", output=tmp_path / "report")
    assert (tmp_path / "report" / "earlier-1" / "confusion.png").is_file()
    assert not (tmp_path / "report" / "confusion.png").exists()


def test_true_intervals_without_length_are_left_out_and_counted(tmp_path: Path, kinescan: Any) -> None:
    annotations = [{"segment": segment, "label": "fall"} for segment in ([1, 2], [3, 3], [5, 4])]
    (tmp_path / "truth.json").write_text(json.dumps({"database": {"a": {"annotations": annotations}}}))
    results = {"results": {"a": [{"label": "fall", "score": 1, "segment": [1, 2]}]}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    result = kinescan("eval", tmp_path / "results.json", "--data", tmp_path / "truth.json", "--json")
    assert result.exit_code == 0, result.stderr
    plain = json.loads(result.stdout)
    assert plain["num_intervals"] == 1
    assert plain["detection"]["0.5:0.05:0.95"]["average_map"] == 1.0
    assert plain["notes"][0].startswith("2 ")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit_ti16", {}, []),
        ("pks4_vit_ti16", {"causal": True}, []),
        ("pks4_vit_ti16", {"causal": False}, ["0.88 s"]),
        ("vit_ti16", {"class_token_route": "tsm"}, ["0.88 s"]),
    ],
)
def test_delays_of_a_model_that_looks_ahead_are_explained(name: str, options: dict[str, Any], said: list[str]) -> None:
    settings = Preprocessing(size=32, num_frames=8, frame_rate=8.0)
    sizes = {**SIZES, "depth": 2, "insert_after": 1, "output": "frames"}
    model = create_model(name, labels=LABELS, preprocessing=settings, **sizes, **options)
    notes = list(looks_ahead(model))
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))


def test_answers_for_frames_are_computed_in_the_precision_of_the_training(make_run: Callable[..., Path]) -> None:
    run = make_run()
    best = run / "checkpoints" / "best"
    model = from_pretrained(best)
    model.trained_in = "bf16"
    model.save_pretrained(best)
    as_trained, wide = _evaluate(run), _evaluate(run, precision="float32")
    assert (as_trained.to_json()["precision"], wide.to_json()["precision"]) == ("bf16", "float32")
    gap = max(
        abs(first.scores - second.scores).max()
        for first, second in zip(as_trained.predictions, wide.predictions, strict=True)
    )
    assert 0 < gap < 0.1
    # the report of another precision is kept
    assert (run / "evaluation" / "earlier-1" / "report.json").is_file()
