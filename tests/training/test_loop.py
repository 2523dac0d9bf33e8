import dataclasses
import hashlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mentions import mentions

from kinescan.errors import (
    CheckpointError,
    ConfigError,
    DependencyError,
    NonFiniteError,
    OutOfMemoryError,
    TrainingInterrupted,
    VideoError,
)
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import create_model
from kinescan.training import OptimConfig, TrainConfig, fit
from kinescan.training.checkpoint import load_state
from kinescan.training.run_log import Journal

TRAIN = TrainConfig(device="cpu", log_every=1, trackers=())
OPTIM = OptimConfig(lr=0.05, lr_batch_size=8, epochs=4, warmup_epochs=1, layer_decay=1.0)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _weights(model: VideoClassifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Scores:
    """Gives the top-1 of a list, one after the other."""

    def __init__(self, *top1: float) -> None:
        self.left = list(top1)
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self, model: VideoClassifier) -> dict[str, float]:
        assert not model.training
        self.seen.append(_weights(model))
        return {"top1": self.left.pop(0)}


def test_fit_learns_and_writes_log_checkpoints_and_trackers(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    train = TrainConfig(device="cpu", log_every=2)
    result = fit(
        tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM, evaluate=Scores(0.5, 0.6, 0.7, 0.8)
    )
    assert result.steps == 16
    assert not tiny_model.training
    lines = _log(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(2, 17, 2))
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert epochs[-1]["loss"] < 0.6 * epochs[0]["loss"]
    assert epochs[-1]["accuracy"] > 0.9
    assert [line["top1"] for line in lines if line["kind"] == "evaluation"] == [0.5, 0.6, 0.7, 0.8]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last", "best"}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_fit_keeps_the_best_by_top1_and_the_last(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    scores = Scores(0.2, 0.9, 0.4, 0.5)
    result = fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, evaluate=scores)
    assert (result.best_score, result.best_epoch) == (0.9, 1)
    assert _same(type(tiny_model).from_pretrained(result.best).state_dict(), scores.seen[1])
    assert _same(type(tiny_model).from_pretrained(result.last).state_dict(), _weights(tiny_model))


def test_fit_evaluates_every_few_epochs_and_after_the_last(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    train = TrainConfig(device="cpu", eval_every=3, trackers=())
    fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM, evaluate=Scores(0.5, 0.6))
    assert [line["epoch"] for line in _log(tmp_path) if line["kind"] == "evaluation"] == [3, 4]


def test_fit_uses_mixed_clips_and_soft_labels(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    draws = []

    def mix(
        clips: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, positions: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        draws.append(torch.rand(1, generator=generator).item())
        assert labels.shape == (8, 2)
        return clips, torch.full_like(labels, 0.5)

    optim = OptimConfig(epochs=1, label_smoothing=0.0)
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=optim, mix=mix)
    assert len(set(draws)) == 4
    assert all(line["loss"] > 0.6931 for line in _log(tmp_path) if line["kind"] == "step")


def test_fit_with_a_task_of_its_own_takes_labels_as_they_are(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    seen = []

    def task(outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((outputs.shape, labels.dtype, labels.shape))
        error = (outputs[:, 0] - labels.float()) ** 2
        return error.mean(), error.detach() < 0.25

    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, task=task)
    assert set(seen) == {(torch.Size([8, 2]), torch.int64, torch.Size([8]))}
    epochs = [line for line in _log(tmp_path) if line["kind"] == "epoch"]
    assert epochs[-1]["loss"] < 0.5 * epochs[0]["loss"]
    assert epochs[-1]["accuracy"] > 0.9


def test_fit_refuses_mix_with_a_task_of_its_own(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(ConfigError, match="mix"):
        fit(tiny_model, noise_clips(), output=tmp_path, mix=never, task=never)


def test_fit_clips_gradients(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    sgd_like = OptimConfig(epochs=1, clip_norm=1e-12, weight_decay=0.0, lr=1.0, lr_batch_size=8)
    before = _weights(tiny_model)
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=sgd_like)
    after = _weights(tiny_model)
    # Adam divides by the gradient's size plus eps = 1e-8, so that clipped gradients of 1e-12 move nothing much.
    assert max((after[name] - before[name]).abs().max().item() for name in after) < 1e-3


def test_fit_takes_clips_with_an_exact_first_step(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    clips = noise_clips(num_batches=1)
    batch = next(iter(clips.batches(0, 0)))
    other = type(tiny_model)(tiny_model.config)
    other.load_state_dict(tiny_model.state_dict())
    optim = OptimConfig(
        epochs=1, lr=0.1, lr_batch_size=8, layer_decay=1.0, weight_decay=0.0, clip_norm=0.0, warmup_epochs=0
    )
    fit(tiny_model, clips, output=tmp_path, train=TRAIN, optim=optim)
    loss = torch.nn.functional.cross_entropy(other(batch.clips), batch.labels, label_smoothing=0.1)
    loss.backward()
    torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.0).step()
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tiny_model.state_dict()[name], tensor)


class Halves:
    """The batches of other clips, each cut in two."""

    def __init__(self, whole: Any) -> None:
        self.whole, self.num_classes = whole, whole.num_classes
        self.num_batches, self.batch_size = 2 * whole.num_batches, whole.batch_size // 2
        self.path = whole.path

    def batches(self, epoch: int, first_batch: int) -> Any:
        assert first_batch % 2 == 0
        for batch in self.whole.batches(epoch, first_batch // 2):
            for half in (slice(0, self.batch_size), slice(self.batch_size, None)):
                yield type(batch)(batch.clips[half], batch.labels[half], batch.item_indices[half], batch.unreadable)


def _mix_neighbours(
    clips: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, positions: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    fraction = float(torch.rand((), generator=generator))
    partners = torch.arange(len(clips)) ^ 1
    return clips.lerp(clips[partners], fraction), labels.lerp(labels[partners], fraction)


@pytest.mark.parametrize("mix", [None, _mix_neighbours])
def test_fit_with_accumulated_batches_gives_what_the_large_batch_gives(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, mix: Any
) -> None:
    class Uneven(noise_clips):
        """Leaves clips out, so that the halves weigh differently, and once a whole half."""

        def _batch(self, epoch: int, index: int) -> Any:
            batch = super()._batch(epoch, index)
            keep = slice(4, None) if (epoch, index) == (1, 2) else slice(0, 6)
            if mix is None:
                batch = type(batch)(batch.clips[keep], batch.labels[keep], batch.item_indices[keep], batch.unreadable)
            return batch

    start = _weights(tiny_model)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    optim = OptimConfig(lr=0.05, lr_batch_size=8, epochs=2, layer_decay=1.0, label_smoothing=0.1)
    fit(tiny_model.double(), Doubles(Uneven()), output=whole, train=TRAIN, optim=optim, mix=mix)
    expected = _weights(tiny_model)
    tiny_model.load_state_dict(start)
    train = TrainConfig(device="cpu", log_every=1, trackers=(), accumulate_batches=2)
    result = fit(tiny_model, Halves(Doubles(Uneven())), output=parts, train=train, optim=optim, mix=mix)
    assert result.steps == 8
    for name, tensor in _weights(tiny_model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
    for one, other in zip(_log(whole), _log(parts), strict=True):
        for key in {"loss", "accuracy", "gradient_norm", "lr"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-6), key


class Doubles:
    """Other clips in float64, so that the order of sums does not show."""

    def __init__(self, clips: Any) -> None:
        self.clips, self.num_classes, self.path = clips, clips.num_classes, clips.path
        self.num_batches, self.batch_size = clips.num_batches, clips.batch_size

    def batches(self, epoch: int, first_batch: int) -> Any:
        for batch in self.clips.batches(epoch, first_batch):
            yield type(batch)(batch.clips.double(), batch.labels, batch.item_indices, batch.unreadable)


def test_fit_saves_and_logs_between_steps_of_several_batches(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    train = TrainConfig(device="cpu", log_every=1, trackers=(), accumulate_batches=3, checkpoint_minutes=1e-9)
    result = fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM)
    # 4 batches an epoch are two steps: of three batches, and of the one that is left.
    assert result.steps == 8
    lines = _log(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 9))
    assert max(line["lr"] for line in lines if line["kind"] == "step") == pytest.approx(3 * 0.05)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    norms = [line["gradient_norm"] for line in lines if line["kind"] == "step" and line["epoch"] == 1]
    assert epochs[0]["gradient_norm"] == pytest.approx(sum(norms) / 2)


def test_fit_averages_weights_evaluates_saves_and_returns_them(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    start = _weights(tiny_model)
    optim = OptimConfig(lr=0.05, lr_batch_size=8, epochs=2, layer_decay=1.0, ema_decay=0.5)
    scores = Scores(0.6, 0.5)
    result = fit(tiny_model, noise_clips(num_batches=1), output=tmp_path, train=TRAIN, optim=optim, evaluate=scores)
    state = load_state(result.last)
    # By hand: two steps, of which the averaged weights keep 2 / 11 and 3 / 12.
    plain = type(tiny_model)(tiny_model.config, labels=tiny_model.labels)
    plain.load_state_dict(start)
    expected, raw = {name: tensor.clone() for name, tensor in start.items()}, []
    once = OptimConfig(lr=0.05, lr_batch_size=8, epochs=2, layer_decay=1.0)
    fit(plain, noise_clips(num_batches=1), output=tmp_path / "plain", train=TRAIN, optim=once, evaluate=_keep(raw))
    for step, weights in enumerate(raw, start=1):
        decay = (1 + step) / (10 + step)
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    for found in (_weights(tiny_model), scores.seen[1], type(tiny_model).from_pretrained(result.last).state_dict()):
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name])
    assert result.best_epoch == 0
    assert _same(type(tiny_model).from_pretrained(result.best).state_dict(), scores.seen[0])
    assert _same(state.weights, raw[1])


def _keep(raw: list[dict[str, torch.Tensor]]) -> Any:
    def evaluate(model: VideoClassifier) -> dict[str, float]:
        raw.append(_weights(model))
        return {"top1": 0.5}

    return evaluate


def test_fit_stops_early_and_stays_stopped(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = TrainConfig(device="cpu", trackers=(), early_stop_evaluations=2)
    optim = OptimConfig(lr=0.05, epochs=9)
    clips, scores = noise_clips(), Scores(0.5, 0.7, 0.7, 0.6, 0.9)
    with caplog.at_level("INFO"):
        result = fit(tiny_model, clips, output=tmp_path, train=train, optim=optim, evaluate=scores)
    assert (result.steps, result.best_score, result.best_epoch, scores.left) == (16, 0.7, 2, [0.9])
    assert mentions(caplog.text, "better score", "0.7", "2 evaluations")
    clips = noise_clips()
    again = fit(tiny_model, clips, output=tmp_path, train=train, optim=optim, evaluate=scores, resume=True)
    assert (again.steps, clips.served) == (16, [])


def test_fit_keeps_the_last_checkpoints(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    train = TrainConfig(device="cpu", trackers=(), keep_checkpoints=3)
    scores = Scores(0.5, 0.6, 0.7, 0.8)
    fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM, evaluate=scores)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"best", "last", "step-0000000008", "step-0000000012"}
    assert _same(
        type(tiny_model).from_pretrained(tmp_path / "checkpoints" / "step-0000000008").state_dict(), scores.seen[1]
    )


def test_fit_freezes_by_name(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    before = _weights(tiny_model)
    train = TrainConfig(device="cpu", trackers=(), frozen=("backbone.*", "head.bias"))
    fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM)
    after = _weights(tiny_model)
    assert [name for name in after if not torch.equal(before[name], after[name])] == ["head.weight"]
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())


def test_statistics_of_frozen_norms_do_not_drift(noise_clips: Any, tmp_path: Path) -> None:
    model = create_model(
        "pks4_vit_ti16",
        num_classes=2,
        preprocessing={"num_frames": 2},
        **{"image_size": 4, "patch_size": 2, "width": 8, "depth": 3, "heads": 2, "mlp_dim": 8, "embed_dim": 8},
        **{"insert_after": 1, "window": 3, "kinematic_width": 8},
    )
    before = {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name}
    assert before
    for patterns, moves in ((("head.*",), False), (("*",), True)):
        train = TrainConfig(device="cpu", trackers=(), trainable=patterns)
        fit(model, noise_clips(), output=tmp_path / str(moves), train=train, optim=OptimConfig(epochs=1))
        after = {name: tensor for name, tensor in model.named_buffers() if name in before}
        assert _same(before, after) is not moves


def test_fit_freezes_the_stem_of_a_model_with_a_module(noise_clips: Any, tmp_path: Path) -> None:
    model = create_model(
        "pks4_vit_ti16",
        num_classes=2,
        preprocessing={"num_frames": 2},
        **{"image_size": 4, "patch_size": 2, "width": 8, "depth": 3, "heads": 2, "mlp_dim": 8, "embed_dim": 8},
        **{"insert_after": 1, "window": 3, "kinematic_width": 8},
    )
    before, stem = _weights(model), model.stem_parameters()
    train = TrainConfig(device="cpu", trackers=(), freeze_stem=True)
    fit(model, noise_clips(), output=tmp_path, train=train, optim=dataclasses.replace(OPTIM, epochs=2))
    after = _weights(model)
    trained = {name for name, _ in model.named_parameters()} - set(stem)
    assert {name for name in before if not torch.equal(before[name], after[name])} >= trained
    assert all(torch.equal(before[name], after[name]) for name in stem)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_fit_refuses_a_stem_that_is_not_there(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    train = TrainConfig(device="cpu", trackers=(), freeze_stem=True)
    with pytest.raises(ConfigError, match=r"stem.*in train.frozen"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM)


def test_fit_whose_log_cannot_be_written_says_so(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Journal.__init__

    def full(self: Journal, path: Path, **keywords: Any) -> None:
        original(self, path, **keywords)
        self._file.close()
        self._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    monkeypatch.setattr(Journal, "__init__", full)
    monkeypatch.setattr(Journal, "_keep_file", lambda _: None)
    with pytest.raises(CheckpointError, match=r"log.jsonl.*left.*--resume"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)


def test_fit_stops_at_nan_pixels_and_names_epoch_step_and_video(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    clips = noise_clips()
    pixels = torch.zeros(8, 2, 3, 4, 4)
    pixels[3, 1, 2, 0, 0] = float("nan")
    clips.broken[1, 2] = pixels
    message = (
        r"loss is nan in epoch 2, step 7; pixels hold NaN or infinity; videos: videos/19.mp4. "
        r"The last good checkpoint is .*last"
    )
    with pytest.raises(NonFiniteError, match=message):
        fit(tiny_model, clips, output=tmp_path, train=TRAIN, optim=OPTIM)
    left = type(tiny_model).from_pretrained(tmp_path / "checkpoints" / "last")
    assert all(torch.isfinite(tensor).all() for tensor in left.state_dict().values())


def test_fit_with_accumulated_batches_names_the_part_with_nan(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    clips = noise_clips()
    clips.broken[0, 3] = torch.full((1,), float("nan"))
    train = TrainConfig(device="cpu", trackers=(), accumulate_batches=2)
    before = _weights(tiny_model)
    with pytest.raises(NonFiniteError, match=r"loss.*1, step 2.*NaN.*videos: videos/24.mp4"):
        fit(tiny_model, clips, output=tmp_path, train=train, optim=OPTIM)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert not _same(before, _weights(tiny_model))


def test_fit_stops_at_a_loss_that_overflows(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    clips = noise_clips()
    clips.broken[0, 0] = torch.full((1,), 3e38)
    message = (
        r"loss is (inf|nan) in epoch 1, step 1; pixels are finite; videos: videos/0.mp4, .*There is no checkpoint yet"
    )
    with pytest.raises(NonFiniteError, match=message):
        fit(tiny_model, clips, output=tmp_path, train=TRAIN, optim=OPTIM)


def test_fit_resumes_within_an_epoch_bit_for_bit(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    tiny_model.dropout.p = 0.5
    start, rng = _weights(tiny_model), torch.get_rng_state()
    fit(
        tiny_model,
        noise_clips(),
        output=tmp_path / "whole",
        train=TRAIN,
        optim=OPTIM,
        evaluate=Scores(0.1, 0.2, 0.3, 0.4),
    )
    whole = _weights(tiny_model)

    class Signalling(noise_clips):
        def batches(self, epoch: int, first_batch: int) -> Any:
            for batch in super().batches(epoch, first_batch):
                if self.served[-1] == (2, 1):
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    tiny_model.load_state_dict(start)
    torch.set_rng_state(rng)
    with pytest.raises(TrainingInterrupted, match=r"SIGINT.*3.*4, after 10 steps.*last"):
        fit(tiny_model, Signalling(), output=tmp_path / "cut", train=TRAIN, optim=OPTIM, evaluate=Scores(0.1, 0.2))
    tiny_model.load_state_dict(start)
    torch.manual_seed(123)
    clips, scores = noise_clips(), Scores(0.3, 0.4)
    result = fit(tiny_model, clips, output=tmp_path / "cut", train=TRAIN, optim=OPTIM, evaluate=scores, resume=True)
    assert clips.served[0] == (2, 2)
    assert (result.steps, result.best_score) == (16, 0.4)
    assert _same(_weights(tiny_model), whole)
    timeless = [
        [{k: v for k, v in line.items() if k not in ("clips_per_second", "seconds")} for line in _log(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]


def test_fit_interrupted_while_evaluating_evaluates_again_on_resume(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    def interrupted(model: VideoClassifier) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal came too late")

    with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM in epoch 1 of 4, after 4 steps"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, evaluate=interrupted)
    clips = noise_clips()
    fit(tiny_model, clips, output=tmp_path, train=TRAIN, optim=OPTIM, evaluate=Scores(0.1, 0.2, 0.3, 0.4), resume=True)
    assert clips.served[0] == (1, 0)
    assert [line["top1"] for line in _log(tmp_path) if line["kind"] == "evaluation"] == [0.1, 0.2, 0.3, 0.4]


def test_fit_puts_signal_handlers_back(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(tiny_model, noise_clips(num_batches=1), output=tmp_path, train=TRAIN, optim=OPTIM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_fit_refuses_a_folder_with_a_run(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    fit(tiny_model, noise_clips(num_batches=1), output=tmp_path, train=TRAIN, optim=OPTIM)
    with pytest.raises(ConfigError, match="--resume"):
        fit(tiny_model, noise_clips(num_batches=1), output=tmp_path, train=TRAIN, optim=OPTIM)


def test_fit_resume_lists_changed_settings_unless_harmless(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    before = {"optim": {"lr": 0.1}, "loader": {"num_workers": 0}}
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, settings=before)
    harmless = {"optim": {"lr": 0.1}, "loader": {"num_workers": 4}}
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, settings=harmless, resume=True)
    harmful = {"optim": {"lr": 0.2}, "loader": {"num_workers": 4}}
    with pytest.raises(ConfigError, match=r"optim.lr.*0.1.*0.2"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, settings=harmful, resume=True)


def test_fit_resume_lists_harmless_changes(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {"data": {"train": "a"}, "train": {"log_every": 1}}
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, settings=before)
    now = {"data": {"train": "b"}, "train": {"log_every": 1, "keep_checkpoints": 2}}
    with caplog.at_level("INFO"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, settings=now, resume=True)
    assert mentions(caplog.text, "data.train", "'a'", "'b'; train.keep_checkpoints", "2")


def test_fit_resume_with_more_epochs_follows_the_longer_schedule(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(epochs: int, output: Path, model: Any) -> list[float]:
        optim = dataclasses.replace(OPTIM, epochs=epochs)
        settings = {"optim": {"epochs": epochs}}
        fit(model, noise_clips(), output=output, train=TRAIN, optim=optim, settings=settings, resume=True)
        return [line["lr"] for line in _log(output) if line["kind"] == "step"]

    fresh = type(tiny_model)(tiny_model.config)
    short, whole = run(2, tmp_path / "run", tiny_model), run(4, tmp_path / "whole", fresh)
    longer = run(4, tmp_path / "run", tiny_model)
    assert longer == [*short, *whole[8:]]
    assert "optim.epochs was 2, is 4" in caplog.text
    assert f"{whole[8]:.3g}" in caplog.text
    assert load_state(tmp_path / "run" / "checkpoints" / "last").epoch == 4
    with pytest.raises(ConfigError, match=r"optim.epochs.*4.*3; optim.epochs"):
        run(3, tmp_path / "run", tiny_model)


def test_fit_resume_says_what_changes_the_last_digits(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, resume=True)
    assert "computed otherwise" not in caplog.text
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert f"{threads}, is {threads + 1}" in caplog.text


def test_fit_resume_goes_on_after_an_early_stop_with_more_patience(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(patience: int, *top1: float) -> int:
        train = TrainConfig(device="cpu", trackers=(), early_stop_evaluations=patience)
        return fit(
            tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM, evaluate=Scores(*top1), resume=True
        ).steps

    assert run(1, 0.5, 0.4) == 8
    assert run(1) == 8
    assert "train.early_stop_evaluations" in caplog.text
    assert run(3, 0.4, 0.6) == 16


def test_fit_resume_refuses_other_classes(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)
    other = type(tiny_model)(tiny_model.config, labels=("class_1", "class_0"))
    message = r"belongs to other classes: the same 2 .*index 0 is 'class_0' there and 'class_1'"
    with pytest.raises(CheckpointError, match=message):
        fit(other, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, resume=True)


def test_fit_resume_refuses_a_run_without_averaged_weights(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)
    averaged = dataclasses.replace(OPTIM, ema_decay=0.9)
    with pytest.raises(CheckpointError, match=r"'its.*others'"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=averaged, resume=True)


def test_fit_resume_refuses_a_checkpoint_of_another_optimizer(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)
    head_only = TrainConfig(device="cpu", trackers=(), trainable=("head.*",))
    with pytest.raises(CheckpointError, match="parameters"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=head_only, optim=OPTIM, resume=True)


def test_fit_leaves_frozen_parameters_alone(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    before = _weights(tiny_model)
    train = TrainConfig(device="cpu", trackers=(), trainable=("head.*",))
    fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM)
    after = _weights(tiny_model)
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert changed == ["head.weight", "head.bias"]
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())


def test_fit_counts_and_lists_unreadable_videos(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = noise_clips()
    problem = type("Problem", (), {"path": "videos/cut.mp4", "reason": "no frame can be decoded", "item_index": 3})
    clips.unreadable = [problem]
    result = fit(tiny_model, clips, output=tmp_path, train=TRAIN, optim=OPTIM)
    listed = [{"path": "videos/cut.mp4", "reason": "no frame can be decoded"}]
    assert json.loads((tmp_path / "unreadable.json").read_text()) == listed
    assert result.unreadable == {"videos/cut.mp4": "no frame can be decoded"}
    assert caplog.text.count("left out, cannot be read: videos/cut.mp4: no frame can be decoded") == 1
    assert mentions(caplog.text, "1", "training")


def test_fit_passes_over_a_batch_without_a_readable_clip(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    class Emptied(noise_clips):
        def _batch(self, epoch: int, index: int) -> Any:
            batch = super()._batch(epoch, index)
            if index != 1:
                return batch
            return type(batch)(batch.clips[:0], batch.labels[:0], batch.item_indices[:0], batch.unreadable)

    result = fit(tiny_model, Emptied(), output=tmp_path, train=TRAIN, optim=OPTIM)
    assert result.steps == 16
    assert [line["step"] for line in _log(tmp_path) if line["kind"] == "step"][:3] == [1, 3, 4]


def test_fit_fails_when_no_video_can_be_read(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    clips = noise_clips(batch_size=0)
    clips.unreadable = [type("Problem", (), {"path": "a.mp4", "reason": "holds no video", "item_index": 0})]
    with pytest.raises(VideoError, match=r"a.mp4"):
        fit(tiny_model, clips, output=tmp_path, train=TRAIN, optim=OPTIM)


def test_fit_refuses_an_output_that_cannot_be_written(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output .*file/run'.*directory"):
        fit(tiny_model, noise_clips(), output=tmp_path / "file" / "run", train=TRAIN, optim=OPTIM)


def test_fit_runs_in_bf16_and_gives_the_model_its_own_forward_back(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    train = TrainConfig(device="cpu", mixed_precision="bf16", trackers=())
    fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM)
    assert "forward" not in vars(tiny_model)
    inner = []
    tiny_model.backbone.register_forward_hook(lambda module, args, out: inner.append(out.dtype))
    tiny_model(torch.zeros(1, 2, 3, 4, 4))
    assert inner == [torch.float32]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_fit_refuses_a_device_that_is_not_there(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    train = TrainConfig(device="cuda", trackers=())
    with pytest.raises(ConfigError, match=r"train.device 'cuda'"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM)


def test_fit_refuses_an_unknown_tracker(tiny_model: Any, noise_clips: Any, tmp_path: Path) -> None:
    train = TrainConfig(device="cpu", trackers=("tensorbord",))
    with pytest.raises(ConfigError, match=r"'tensorbord'.*'tensorboard'"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=train, optim=OPTIM)
    missing = TrainConfig(device="cpu", trackers=("clearml",))
    with pytest.raises(DependencyError, match="imported"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=missing, optim=OPTIM)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_every": 0}, "eval_every.*1.*0"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be 0 or more"),
        ({"trainable": ()}, "trainable"),
        ({"accumulate_batches": 0}, "accumulate_batches.*1.*0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints.*1.*0"),
        ({"early_stop_evaluations": -1}, "early_stop_evaluations.*0.*-1"),
    ],
)
def test_train_config_refuses_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


def test_a_model_without_labels_is_refused_before_the_first_step(
    tiny_model: Any, noise_clips: Any, tmp_path: Path
) -> None:
    bare = type(tiny_model)(tiny_model.config)
    with pytest.raises(ConfigError, match=r"labels=\["):
        fit(bare, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, evaluate=lambda model: {"top1": 1.0})
    assert not (tmp_path / "checkpoints").exists()
    fit(bare, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values["optimizer"]["state"][0].update(exp_avg=torch.zeros(7)),
        lambda values: values["optimizer"]["state"].update({0: 3}),
        lambda values: values["optimizer"].update(param_groups=[]),
        lambda values: values["optimizer"].update(param_groups=None),
        lambda values: values.update(optimizer={}),
        lambda values: values.update(rng=[]),
        lambda values: values["rng"][0].update(torch=torch.zeros(3)),
    ],
)
def test_resume_refuses_states_of_other_shapes_and_kinds(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM)
    last = tmp_path / "checkpoints" / "last"
    names = ("training_state.pt", "optimizer.pt")
    keys = {name: set(torch.load(last / name)) for name in names}
    values = {key: value for name in names for key, value in torch.load(last / name).items()}
    damage(values)
    sums = json.loads((last / "checksums.json").read_text())
    for name in names:
        torch.save({key: values[key] for key in keys[name]}, last / name)
        sums[name] = hashlib.sha256((last / name).read_bytes()).hexdigest()
    (last / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError, match="model"):
        fit(tiny_model, noise_clips(), output=tmp_path, train=TRAIN, optim=OPTIM, resume=True)


@pytest.mark.parametrize(
    "full",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.\nmore"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB). Tried to allocate 2.00 GiB on private pool."),
    ],
    ids=["cuda", "mps"],
)
def test_a_device_whose_memory_is_full_is_an_error_of_ours(
    full: RuntimeError, tiny_model: Any, noise_clips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise full

    monkeypatch.setattr(tiny_model, "head", torch.nn.Module())
    monkeypatch.setattr(tiny_model.head, "forward", fail, raising=False)
    tiny_model.head.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(OutOfMemoryError) as met:
        fit(tiny_model, noise_clips(), output=tmp_path / "run", train=TRAIN, optim=OPTIM)
    assert "2.00 GiB" in str(met.value)
    assert "loader.batch_size" in str(met.value)
    assert "activation_checkpointing" in str(met.value)


def test_a_warm_up_that_is_cut_is_said(
    tiny_model: Any, noise_clips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epochs, said in ((2, 1), (4, 0)):
        caplog.clear()
        optim = dataclasses.replace(OPTIM, epochs=epochs, warmup_epochs=2)
        fit(tiny_model, noise_clips(num_batches=1), output=tmp_path / str(epochs), train=TRAIN, optim=optim)
        assert sum("optim.warmup_epochs" in record.message for record in caplog.records) == said
