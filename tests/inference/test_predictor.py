from dataclasses import replace

import pytest
import torch
from PIL import Image

from kinescan.data.sampling import view_indices
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import VideoReader, write_video
from kinescan.errors import CheckpointError, ConfigError, NonFiniteError
from kinescan.inference.predictor import predict
from kinescan.models.classifier import VideoClassifier
from kinescan.models.timing import FrameTiming
from kinescan.preprocessing import Preprocessing


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for index, name in enumerate(("b.mp4", "a.mp4", "c.mkv")):
        write_video(folder / name, torch.randint(0, 256, (12 + index, 3, 40, 56), dtype=torch.uint8), fps=8)
    (folder / "notes.txt").write_text("no video by its name")
    return folder


def test_predict_gives_the_softmax_of_the_middle_clip(model, videos):
    path = videos / "a.mp4"
    [prediction] = predict(model, path, top=2)
    with VideoReader(path) as reader:
        indices = view_indices(reader.num_frames, num_frames=4, num_clips=1, sampling="segments")
        clip = EvalTransform(model.preprocessing, crops=1)(reader.read(indices[0]).pixels)
    with torch.no_grad():
        expected = model(clip)[0].softmax(0)
    best = expected.argsort(descending=True)
    assert prediction.path == str(path)
    assert prediction.labels == tuple(model.labels[index] for index in best[:2])
    assert prediction.scores == pytest.approx(expected[best[:2]].tolist(), abs=1e-5)
    assert prediction.seconds > 0
    assert prediction.error is None
    assert prediction.explanation is None


def test_predict_of_a_dense_model_does_not_depend_on_the_rate_of_a_file(make_model, tmp_path):
    model = make_model()
    model.preprocessing = replace(model.preprocessing, sampling="dense", frame_stride=4)
    pixels = torch.randint(0, 256, (50, 3, 40, 56), dtype=torch.uint8)
    for rate, stride in ((50.0, 1), (25.0, 2), (12.5, 4)):
        # without loss, so that a frame is the same in every file
        write_video(tmp_path / f"{rate:g}.mkv", pixels[::stride], fps=rate, codec="ffv1")
    by_count = {tuple(prediction.scores) for prediction in predict(model, tmp_path)}
    model.timing = FrameTiming(median_seconds=0.16, shortest_seconds=0.16, longest_seconds=0.16)
    slow, medium, fast = predict(model, tmp_path)
    assert len(by_count) == 3
    assert slow.scores == pytest.approx(medium.scores, abs=1e-5)
    assert fast.scores == pytest.approx(medium.scores, abs=1e-5)
    model.timing = FrameTiming(median_seconds=0.16, shortest_seconds=0.08, longest_seconds=0.16)
    assert {tuple(prediction.scores) for prediction in predict(model, tmp_path)} == by_count


def test_predict_expands_folders_in_the_order_of_names(model, videos):
    predictions = predict(model, [videos / "c.mkv", videos])
    assert [p.path.rsplit("/", 1)[-1] for p in predictions] == ["c.mkv", "a.mp4", "b.mp4", "c.mkv"]
    assert predictions[0].scores == predictions[3].scores


def test_predict_averages_the_views_asked_for(model, videos):
    path = videos / "a.mp4"
    [one] = predict(model, path)
    [many] = predict(model, path, views="4x2x3", top=4)
    [again] = predict(model, path, views="4x2x3", top=4, views_per_forward=1)
    assert dict(zip(many.labels, many.scores, strict=True))[one.labels[0]] != pytest.approx(one.scores[0], abs=1e-6)
    assert sum(many.scores) == pytest.approx(1)
    assert again.scores == pytest.approx(many.scores, abs=1e-6)
    assert again.labels == many.labels


def test_predict_lists_an_unreadable_file_and_goes_on(model, videos, caplog):
    (videos / "broken.mp4").write_text("no video")
    (videos / "empty.mp4").write_bytes(b"")
    predictions = predict(model, [videos / "broken.mp4", videos / "a.mp4", videos / "empty.mp4", videos / "none.mp4"])
    assert [p.error is None for p in predictions] == [False, True, False, False]
    assert predictions[0].labels == predictions[0].scores == ()
    assert len(predictions[1].labels) == 4
    assert all(p.error for p in predictions[2:])
    assert "broken.mp4" in caplog.text


def test_predict_draws_what_moved_and_changed(model, videos, tmp_path):
    (videos / "broken.mp4").write_text("no video")
    predictions = predict(model, videos, explain_folder=tmp_path / "deep" / "pictures")
    drawn = [p.explanation for p in predictions]
    assert [None if path is None else path.rsplit("/", 1)[-1] for path in drawn] == [
        "0000_a.png",
        "0001_b.png",
        None,
        "0003_c.png",
    ]
    with Image.open(drawn[0]) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height


def test_predict_takes_a_saved_model_and_leaves_the_mode_of_one_at_hand(model, videos, tmp_path):
    model.save_pretrained(tmp_path / "model")
    [saved] = predict(tmp_path / "model", videos / "a.mp4")
    model.train()
    [at_hand] = predict(model, videos / "a.mp4")
    assert at_hand.scores == pytest.approx(saved.scores, abs=1e-6)
    assert model.training


def test_predict_names_the_file_of_a_logit_that_is_not_finite(model, videos):
    with torch.no_grad():
        model.head.bias[1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"a\.mp4.*NaN"):
        predict(model, videos / "a.mp4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top.*1.*0"),
        ({"views": "8x2"}, "views.*crops.*got '8x2'"),
        ({"device": "tpu9"}, "device 'tpu9'"),
    ],
)
def test_predict_refuses_settings_that_cannot_be(model, videos, options, message):
    with pytest.raises(ConfigError, match=message):
        predict(model, videos / "a.mp4", **options)


def test_predict_wants_a_path(model, tmp_path):
    with pytest.raises(ConfigError, match="predict"):
        predict(model, [])
    with pytest.raises(ConfigError, match=r"video.*mp4"):
        predict(model, tmp_path)


def test_predict_says_that_the_folder_of_pictures_cannot_be_made(model, videos):
    with pytest.raises(ConfigError, match=r"explain_folder .*notes\.txt/pictures"):
        predict(model, videos, explain_folder=videos / "notes.txt" / "pictures")


def test_predict_says_that_there_is_no_model(videos, tmp_path):
    with pytest.raises(CheckpointError, match="folder"):
        predict(tmp_path / "absent", videos)


class AnotherModel(VideoClassifier):
    """A classifier of another kind, such as others may write."""

    num_layers = 0

    def __init__(self, config):
        super().__init__(config, name="another", preprocessing=Preprocessing(size=32, num_frames=4))
        self.head = torch.nn.Linear(3, config.num_classes)

    def forward(self, clip):
        return self.head(clip.mean(dim=(1, 3, 4)))

    def layer_depths(self):
        return {}


def test_predict_with_another_model_works_but_explains_nothing(model, videos, tmp_path):
    another = AnotherModel(model.config)
    [prediction] = predict(another, videos / "a.mp4")
    assert prediction.error is None
    with pytest.raises(ConfigError, match=r"PKS4.*explain_folder"):
        predict(another, videos / "a.mp4", explain_folder=tmp_path)
