import io
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image

from kinescan.data.sampling import view_indices
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import VideoReader, write_video
from kinescan.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError
from kinescan.inference.predictor import predict, predict_iter
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


def test_a_video_is_the_same_however_it_is_given(model, videos):
    path = videos / "a.mp4"
    with VideoReader(path) as reader:
        pixels = reader.read(range(reader.num_frames)).pixels
    content = path.read_bytes()
    given = [
        path,
        str(path),
        content,
        bytearray(content),
        io.BytesIO(content),
        pixels,
        pixels.permute(0, 2, 3, 1).numpy(),
    ]
    predictions = predict(model, given)
    assert {prediction.scores for prediction in predictions} == {predictions[0].scores}
    assert [p.path for p in predictions[2:]] == ["bytes 2", "bytes 3", "file object 4", "frames 5", "frames 6"]
    assert predict(model, content)[0].scores == predictions[0].scores
    assert predict(model, pixels)[0].scores == predictions[0].scores


def test_predictions_come_one_after_the_other_and_arguments_are_checked_at_once(model, videos):
    read = []

    class Watched(io.BytesIO):
        def read(self, *arguments):
            read.append(self)
            return super().read(*arguments)

    content = (videos / "a.mp4").read_bytes()
    first, second = Watched(content), Watched(content)
    predictions = predict_iter(model, [first, second])
    assert read == []
    assert next(predictions).path == "file object 0"
    assert second not in read
    for wrong in ({"top": 0}, {"videos_per_batch": 0}, {"precision": "float8"}, {"precision": "float16"}, {"fps": 0}):
        with pytest.raises(ConfigError):
            predict_iter(model, content, **wrong)
    with pytest.raises(ShapeError):
        predict_iter(model, torch.zeros(4, 5, 6, 7, dtype=torch.uint8))


def test_batches_of_videos_give_what_each_gives_alone(model, videos):
    (videos / "broken.mp4").write_text("no video")
    alone = predict(model, videos, views="4x2x1")
    for size in (2, 3, 8):
        together = predict(model, videos, views="4x2x1", videos_per_batch=size)
        assert [p.path for p in together] == [p.path for p in alone]
        assert [p.error is None for p in together] == [p.error is None for p in alone]
        for one, other in zip(alone, together, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_bfloat16_is_near_and_not_the_same(model, videos):
    [exact] = predict(model, videos / "a.mp4", top=4)
    [rounded] = predict(model, videos / "a.mp4", top=4, precision="bfloat16")
    by_label = dict(zip(rounded.labels, rounded.scores, strict=True))
    assert exact.scores != rounded.scores
    assert [by_label[label] for label in exact.labels] == pytest.approx(exact.scores, abs=0.05)


def test_predicting_from_threads_changes_nothing_of_a_model_in_training(make_model, videos):
    model = make_model(norm="batch").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    found: list[tuple[float, ...]] = []

    def work():
        found.extend(prediction.scores for prediction in predict(model, [videos / "a.mp4"] * 3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []
    assert len(found) == 12
    assert len(set(found)) == 1
    assert all(module.training for module in model.modules())


def test_a_file_object_that_gives_text_is_refused(model):
    with pytest.raises(ConfigError, match="binary"):
        predict(model, io.StringIO("no bytes"))


def test_a_file_object_that_cannot_be_read_is_refused(model, tmp_path):
    closed = io.BytesIO(b"no video")
    closed.close()
    with pytest.raises(ConfigError):
        predict(model, closed)
    with open(tmp_path / "out.mp4", "wb") as written, pytest.raises(ConfigError):
        predict(model, written)


def test_compiled_and_wrapped_models_are_refused(model, videos):
    with pytest.raises(ConfigError):
        predict(torch.compile(model), videos)
    with pytest.raises(ConfigError):
        predict(torch.nn.DataParallel(model), videos)
