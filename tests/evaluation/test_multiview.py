import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.mentions import mentions

from kinescan.data import loader
from kinescan.data.datasets import VideoDataset
from kinescan.data.listing import VideoItem
from kinescan.data.loader import LoaderConfig
from kinescan.data.transforms import AugmentConfig, TrainTransform
from kinescan.errors import ConfigError, NonFiniteError, ShapeError, VideoError
from kinescan.evaluation import multiview
from kinescan.evaluation.multiview import evaluate_model, known_labels, match_labels, score_videos


def test_evaluate_model_gives_one_prediction_a_video(brightness_model, make_dataset):
    evaluation = evaluate_model(brightness_model(), make_dataset())
    assert evaluation.scores.shape == (6, 2)
    assert evaluation.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert evaluation.metrics.top1 == 1.0
    assert [video.prediction for video in evaluation.videos] == ["dark", "bright"] * 3
    assert all(video.right and video.score == pytest.approx(float(video.scores.max())) for video in evaluation.videos)
    assert str(evaluation.views) == "4x2x3"
    assert evaluation.unreadable == ()


def test_evaluate_model_averages_the_softmax_of_views(brightness_model, make_dataset):
    model, dataset = brightness_model(), make_dataset()
    evaluation = evaluate_model(model, dataset)
    for index in (0, 3):
        views = dataset[index].clip
        assert views.shape[0] == 6
        with torch.no_grad():
            expected = torch.stack([model(view[None])[0].double().softmax(0) for view in views]).mean(0)
        torch.testing.assert_close(evaluation.scores[index], expected, atol=1e-6, rtol=0)


class _OnAppleGpu(torch.Tensor):
    """As an Apple GPU computes: without float64."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return found.as_subclass(torch.Tensor)
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return found


def test_a_device_without_float64_is_asked_for_none(brightness_model, make_dataset, monkeypatch):
    model, dataset = brightness_model(), make_dataset()
    expected = evaluate_model(model, dataset).scores
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, clips: forward(self, clips).as_subclass(_OnAppleGpu))
    with pytest.raises(TypeError, match="float64"):
        model(dataset[0].clip).double()
    assert torch.equal(evaluate_model(model, dataset).scores, expected)
    [scores] = score_videos(model, [dataset[0].clip], names=["a"])
    assert scores.dtype == torch.float64


@pytest.mark.parametrize(("batch_size", "views_per_forward"), [(1, 1), (2, 5), (6, 100)])
def test_evaluate_model_does_not_depend_on_how_views_are_grouped(
    brightness_model, make_dataset, batch_size, views_per_forward
):
    model, dataset = brightness_model(), make_dataset()
    expected = evaluate_model(model, dataset).scores
    loader = LoaderConfig(batch_size=batch_size, num_workers=0)
    scores = evaluate_model(model, dataset, loader=loader, views_per_forward=views_per_forward).scores
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_evaluate_model_matches_classes_by_their_texts(brightness_model, make_dataset):
    """A model that knows the classes in another order, and one more, is as right as before."""
    evaluation = evaluate_model(brightness_model(labels=("bright", "grey", "dark")), make_dataset())
    assert evaluation.labels == ("bright", "grey", "dark")
    assert evaluation.targets.tolist() == [2, 0, 2, 0, 2, 0]
    assert evaluation.metrics.top1 == 1.0
    assert [entry.num_videos for entry in evaluation.metrics.classes] == [3, 0, 3]


def test_evaluate_model_lists_unreadable_files_and_counts_the_others(
    brightness_model, make_dataset, videos, spoiled, caplog
):
    items = [*videos[:2], VideoItem(spoiled, 1, "broken"), *videos[2:]]
    evaluation = evaluate_model(brightness_model(), make_dataset(items=items))
    assert [file.path for file in evaluation.unreadable] == [str(spoiled)]
    assert evaluation.unreadable[0].reason
    assert [item.path for item in evaluation.items] == [item.path for item in videos]
    assert evaluation.metrics.num_videos == 6
    assert mentions(caplog.text, "1", "7", "videos")


def test_evaluate_model_without_any_readable_file(brightness_model, make_dataset, spoiled):
    with pytest.raises(VideoError, match=r"broken\.mp4: .*None.*1"):
        evaluate_model(brightness_model(), make_dataset(items=[VideoItem(spoiled, 1, "broken")]))


def test_evaluate_model_names_the_video_of_a_logit_that_is_not_finite(brightness_model, make_dataset):
    model = brightness_model()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"0\.mp4.*NaN"):
        evaluate_model(model, make_dataset())


def test_score_videos_says_that_pixels_are_not_finite(brightness_model):
    views = torch.full((1, 4, 3, 16, 16), float("nan"))
    with pytest.raises(NonFiniteError, match=r"a\.mp4.*NaN"):
        score_videos(brightness_model(), [views], names=["a.mp4"])


def test_score_videos_wants_the_axis_of_views(brightness_model):
    with pytest.raises(ShapeError, match=r"views.*\[V, T, 3, H, W\].*\[4, 3, 16, 16\]"):
        score_videos(brightness_model(), [torch.zeros(4, 3, 16, 16)], names=["a.mp4"])


def test_evaluate_model_refuses_a_class_that_the_model_does_not_know(brightness_model, make_dataset):
    with pytest.raises(ConfigError, match=r"1.*2.*'brightt'.*'bright'"):
        evaluate_model(brightness_model(), make_dataset(classes=("dark", "brightt")))


def test_match_labels_shows_some_labels_where_none_is_close():
    with pytest.raises(ConfigError, match="'a', 'b'"):
        match_labels(["something else"], ["a", "b"])


def test_evaluate_model_refuses_to_guess_what_a_model_without_labels_means(brightness_model, make_dataset):
    model = brightness_model(labels=None, num_classes=2)
    with pytest.raises(ConfigError, match=r"2.*outputs"):
        evaluate_model(model, make_dataset())
    evaluation = evaluate_model(model, make_dataset(), labels=["bright", "dark"])
    assert evaluation.labels == ("bright", "dark")


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_known_labels_wants_one_for_each_class(brightness_model, labels):
    with pytest.raises(ConfigError, match=f"{len(set(labels))}.*2 classes"):
        known_labels(brightness_model(), labels)


def test_evaluate_model_refuses_training_data(brightness_model, videos, make_dataset):
    preprocessing = make_dataset().preprocessing
    transform = TrainTransform(preprocessing, AugmentConfig())
    dataset = VideoDataset(videos, ("dark", "bright"), transform, preprocessing=preprocessing, mode="train")
    with pytest.raises(ConfigError, match=r'mode="test".*mode="train"'):
        evaluate_model(brightness_model(), dataset)


def test_evaluate_model_leaves_the_model_in_its_mode(brightness_model, make_dataset):
    model = brightness_model().train()
    evaluate_model(model, make_dataset(views="4x1x1"))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("views", "num_views", "frames"), [("8x2x3", 6, 8), ("32x1x3", 3, 32), ("5x4x1", 4, 5)])
def test_evaluate_model_takes_any_views(brightness_model, make_dataset, views, num_views, frames):
    """Also of more frames than the videos have, and of another number than the model was trained with."""
    model, dataset = brightness_model(), make_dataset(views=views)
    assert dataset[0].clip.shape[:2] == (num_views, frames)
    evaluation = evaluate_model(model, dataset)
    assert str(evaluation.views) == views
    assert evaluation.metrics.top1 == 1.0


def test_evaluate_model_keeps_what_the_head_takes_averaged_over_views(brightness_model, make_dataset):
    model, dataset = brightness_model(), make_dataset()
    evaluation = evaluate_model(model, dataset, loader=LoaderConfig(batch_size=4, num_workers=0), with_features=True)
    assert evaluation.features.shape == (6, 8)
    for index in (0, 5):
        with torch.no_grad():
            expected = model.vit(dataset[index].clip.flatten(0, 1)).mean(0)
        torch.testing.assert_close(evaluation.features[index], expected, atol=1e-5, rtol=0)
    assert not model.head._forward_pre_hooks
    assert evaluate_model(model, dataset).features is None


def test_evaluate_model_in_two_processes_gives_what_one_gives(
    brightness_model, make_dataset, videos, spoiled, tmp_path
):
    """Six videos, five, one (nothing is left for the second process), and some that cannot be read."""
    model = brightness_model()
    model.save_pretrained(tmp_path / "model")
    broken = VideoItem(spoiled, 1, "broken")
    lists = [videos, videos[:5], videos[:1], [videos[0], broken, *videos[1:4]]]
    plain = [[(str(item.path), item.label, item.video_id) for item in items] for items in lists]
    (tmp_path / "videos.json").write_text(json.dumps(plain), encoding="utf-8")
    script = str(Path(__file__).with_name("two_processes.py"))
    started = [subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(timeout=200) for process in started] == [0, 0]
    found = [torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for index, items in enumerate(lists):
        alone = evaluate_model(model, make_dataset(items=items), with_features=True)
        for result in (found[0]["results"][index], found[1]["results"][index]):
            assert result["ids"] == [item.video_id for item in alone.items]
            assert torch.equal(result["targets"], alone.targets)
            assert result["unreadable"] == [file.path for file in alone.unreadable]
            torch.testing.assert_close(result["scores"], alone.scores, atol=1e-6, rtol=0)
            torch.testing.assert_close(result["features"], alone.features, atol=1e-5, rtol=0)
            assert torch.equal(result["scores"].argmax(1), alone.scores.argmax(1))
    # Only the second process met the broken model; the first one learns of it instead of waiting for ever.
    assert found[0]["error"] == found[1]["error"]
    assert found[0]["error"].startswith("NonFiniteError: ")


class _OnApple(torch.Tensor):
    """What a model gives there: float64 is an error until it is on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "cpu":
            return args[0].as_subclass(torch.Tensor)
        if name == "double" or torch.float64 in (*args, *kwargs.values()):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return super().__torch_function__(func, types, args, kwargs)


def test_evaluate_model_asks_a_device_for_no_float64(brightness_model, make_dataset, monkeypatch):
    model = brightness_model()
    expected = evaluate_model(model, make_dataset()).scores
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, clip: forward(self, clip).as_subclass(_OnApple))
    with torch.no_grad(), pytest.raises(TypeError, match="float64"):
        model(torch.zeros(1, 4, 3, 16, 16)).double()
    scores = evaluate_model(model, make_dataset()).scores
    assert type(scores) is torch.Tensor
    assert torch.equal(scores, expected)


@pytest.mark.parametrize(("batch_size", "videos_at_once"), [(1, 1), (12, 2), (64, 10)])
def test_batches_of_evaluation_are_sized_by_views(
    batch_size, videos_at_once, brightness_model, make_dataset, monkeypatch
):
    made = []

    def make_loader(dataset, config, **options):
        made.append(config.batch_size)
        return loader.make_loader(dataset, config, **options)

    monkeypatch.setattr(multiview, "make_loader", make_loader)
    evaluate_model(brightness_model(), make_dataset(), loader=LoaderConfig(batch_size=batch_size, num_workers=0))
    assert made == [videos_at_once]


def test_room_for_an_evaluation_is_that_of_its_loader(make_dataset, brightness_model, monkeypatch):
    """What is asked before a run is what the loader asks later."""
    asked = []
    monkeypatch.setattr(loader, "check_shared_memory", lambda *sizes, **_: asked.append(sizes))
    config = LoaderConfig(batch_size=12, num_workers=1, prefetch_batches=2)
    multiview.check_evaluation_room(make_dataset(), config)
    evaluate_model(brightness_model(), make_dataset(), loader=config)
    # two videos of six views of four frames, float32
    assert asked == [(2 * 6 * 4 * 3 * 16 * 16 * 4, 3)] * 2
    multiview.check_evaluation_room(make_dataset(), LoaderConfig(num_workers=0))
    assert len(asked) == 2
