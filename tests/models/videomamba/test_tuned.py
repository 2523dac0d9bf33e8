import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.mentions import mentions
from torch import Tensor

from kinescan.data.loader import Batch
from kinescan.errors import CheckpointError
from kinescan.models.registry import TUNERS, list_models
from kinescan.models.saving.base_identity import digest
from kinescan.models.videomamba.tuned import TunedVideoMamba
from kinescan.models.videomamba.videomamba import VideoMamba, VideoMambaConfig
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.training.accelerator import TrainConfig
from kinescan.training.loop import fit
from kinescan.training.optim import OptimConfig

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 8, "depth": 2, "width": 16, "num_frames": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "ssp": {"inner_width": 8, "attention_width": 8, "attention_heads": 2},
    "full": {},
    "linear_probe": {},
    "adapter": {"bottleneck": 4},
    "st_adapter": {"bottleneck": 4},
    "vpt": {"num_prompts": 2},
    "lora": {"rank": 2},
    "state_offset": {},
}
FROZEN = [name for name in TUNERS if name != "full"]
CLIP = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return _write_base(tmp_path / "base.pth", seed=3)


def _write_base(path: Path, *, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    model = VideoMamba(VideoMambaConfig(**{**SIZES, **options}, num_classes=5))
    torch.nn.init.normal_(model.temporal_pos_embedding)
    torch.save({"model": model.state_dict()}, path)
    return path


def _tuned(tuner: str, base: Path, **options: Any) -> TunedVideoMamba:
    model = create_model(f"{tuner}_videomamba_tiny", weights=base, labels=["a", "b"], **{**OPTIONS[tuner], **options})
    assert isinstance(model, TunedVideoMamba)
    return model


class _Clips:
    num_classes, num_batches, batch_size = 2, 3, 4

    def path(self, item_index: int) -> str:
        return f"{item_index}.mp4"

    def batches(self, epoch: int, first_batch: int) -> list[Batch]:
        return [self._batch(10 * epoch + index) for index in range(first_batch, self.num_batches)]

    def _batch(self, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        clips = torch.randn(4, 4, 3, 16, 16, generator=generator)
        return Batch(clips=clips, labels=torch.tensor([0, 1, 0, 1]), item_indices=torch.arange(4), unreadable=[])


def _train(model: TunedVideoMamba, output: Path, *, epochs: int = 2) -> None:
    optim = OptimConfig(lr=0.05, lr_batch_size=4, epochs=epochs, warmup_epochs=0, layer_decay=0.8)
    fit(model, _Clips(), output=output, train=TrainConfig(device="cpu", trackers=()), optim=optim)


@pytest.mark.parametrize("tuner", TUNERS)
def test_training_changes_what_is_trained_and_nothing_else(tuner: str, base: Path, tmp_path: Path) -> None:
    model = _tuned(tuner, base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _train(model, tmp_path / "run")
    for name, tensor in model.state_dict().items():
        if not model.is_trained(name):
            assert torch.equal(tensor, before[name]), name
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    # Prompts of the first block of SSP are never read, nor are the biases of gates that are still shut.
    assert {"head.weight", "head.bias"} <= changed
    assert bool(changed - {"head.weight", "head.bias", "norm_f.weight"}) == (tuner != "linear_probe")


@pytest.mark.parametrize("tuner", FROZEN)
def test_only_the_tuned_part_is_saved_and_comes_back_on_its_base(tuner: str, base: Path, tmp_path: Path) -> None:
    model = _tuned(tuner, base)
    _train(model, tmp_path / "run", epochs=1)
    folder = tmp_path / "run" / "checkpoints" / "last"
    config = json.loads((folder / "config.json").read_text())
    assert config["base"]["source"] == str(base)
    assert f"SHA-256 {config['base']['sha256']}" in (folder / "README.md").read_text()
    frozen = {n: t for n, t in torch.load(base)["model"].items() if not model.is_trained(n)}
    assert config["base"]["sha256"] == digest(frozen)
    saved = sum(t.numel() for t in _weights(folder).values())
    assert saved == model.num_trained
    again = from_pretrained(folder)
    assert again.labels == ("a", "b")
    assert torch.equal(again(CLIP), model.eval()(CLIP))
    assert again.load_report.loaded == tuple(_weights(folder))


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_full_tuning_and_a_base_from_nowhere_are_saved_whole(base: Path, tmp_path: Path) -> None:
    for model in (_tuned("full", base), create_model("ssp_videomamba_tiny", **SIZES, **OPTIONS["ssp"])):
        model.save_pretrained(tmp_path / "whole")
        assert "base" not in json.loads((tmp_path / "whole" / "config.json").read_text())
        base.rename(base.with_suffix(".away")) if base.exists() else None
        assert torch.equal(from_pretrained(tmp_path / "whole")(CLIP), model.eval()(CLIP))


def test_a_base_that_was_changed_is_saved_whole(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = _tuned("ssp", base)
    with torch.no_grad():
        model.layers[0].mixer.D.add_(1)
    model.save_pretrained(tmp_path / "saved")
    assert "weights" in caplog.text
    assert torch.equal(from_pretrained(tmp_path / "saved")(CLIP), model.eval()(CLIP))


def test_a_random_base_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    create_model("ssp_videomamba_tiny", **SIZES, **OPTIONS["ssp"])
    assert "ssp_videomamba_tiny" in caplog.text
    caplog.clear()
    create_model("full_videomamba_tiny", **SIZES)
    assert caplog.text == ""


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    _tuned("ssp", base).save_pretrained(tmp_path / "saved")
    other = _write_base(tmp_path / "other.pth", seed=4)
    with pytest.raises(CheckpointError, match=r"base\.pth \(SHA-256 .*Give"):
        from_pretrained(tmp_path / "saved", base=other)
    with pytest.raises(CheckpointError, match="another"):
        _tuned("ssp", other).load_tuned(tmp_path / "saved")
    larger = _write_base(tmp_path / "larger.pth", seed=3, width=32)
    with pytest.raises(CheckpointError, match="another"):
        from_pretrained(tmp_path / "saved", base=larger)


def test_a_base_that_was_moved_is_found_by_name_or_beside(base: Path, tmp_path: Path) -> None:
    model = _tuned("ssp", base).eval()
    model.save_pretrained(tmp_path / "saved")
    moved = shutil.move(base, tmp_path / "moved.pth")
    with pytest.raises(CheckpointError, match=r"base\.pth"):
        from_pretrained(tmp_path / "saved")
    assert torch.equal(from_pretrained(tmp_path / "saved", base=moved)(CLIP), model(CLIP))
    shutil.move(moved, tmp_path / "saved" / "base.pth")
    assert torch.equal(from_pretrained(tmp_path / "saved")(CLIP), model(CLIP))


def test_a_folder_without_weights_of_the_base_is_no_pretrained_model(base: Path, tmp_path: Path) -> None:
    _tuned("ssp", base).save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"Load.*from_pretrained"):
        create_model("videomamba_tiny", weights=tmp_path / "saved")


def test_base_given_for_a_whole_model_is_refused(base: Path, tmp_path: Path) -> None:
    create_model("videomamba_tiny", **SIZES).save_pretrained(tmp_path / "plain")
    _tuned("full", base).save_pretrained(tmp_path / "full")
    with pytest.raises(CheckpointError, match=r"plain.*base"):
        from_pretrained(tmp_path / "plain", base=base)
    with pytest.raises(CheckpointError, match=r"full.*base"):
        from_pretrained(tmp_path / "full", base=base)
    with pytest.raises(CheckpointError, match="whole"):
        _tuned("ssp", base).load_tuned(tmp_path / "plain")


def test_tuned_part_of_other_sizes_is_refused(base: Path, tmp_path: Path) -> None:
    _tuned("ssp", base).save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"tuner\.inner_prompt"):
        _tuned("ssp", base, inner_width=6).load_tuned(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="adapter_videomamba_tiny"):
        _tuned("adapter", base).load_tuned(tmp_path / "saved")
    random = create_model("ssp_videomamba_tiny", **SIZES, **OPTIONS["ssp"])
    with pytest.raises(CheckpointError, match=r"base\.pth|base came"):
        random.load_tuned(tmp_path / "saved")


def test_another_grid_interpolates_the_kernel_of_the_gate_and_says_so(base: Path, tmp_path: Path) -> None:
    model = _tuned("ssp", base)
    torch.nn.init.ones_(model.tuner.inner_prompt.inter.convs.weight)
    model.save_pretrained(tmp_path / "saved")
    larger = _tuned("ssp", base, image_size=32)
    report = larger.load_tuned(tmp_path / "saved")
    assert report.resized == ("tuner.inner_prompt.inter.convs.weight",)
    assert mentions(str(report), "2 x 2", "4 x 4")
    kernel = larger.tuner.inner_prompt.inter.convs.weight
    torch.testing.assert_close(kernel, torch.full_like(kernel, 0.25))
    assert larger(torch.zeros(1, 4, 3, 32, 32)).isfinite().all()


def test_published_prompts_beside_their_base_are_loaded_by_name(base: Path, tmp_path: Path) -> None:
    model = _tuned("ssp", base).eval()
    torch.nn.init.normal_(model.tuner.inner_prompt.conv.weight)
    published = {name.removeprefix("tuner."): tensor for name, tensor in model.state_dict().items()}
    torch.save({"module": published}, tmp_path / "published.pth")
    again = create_model("ssp_videomamba_tiny", weights=tmp_path / "published.pth", num_classes=2, **OPTIONS["ssp"])
    assert again.load_report.missing == ()
    assert torch.equal(again.eval()(CLIP), model(CLIP))


def test_what_an_image_base_has_nothing_for_is_trained_and_saved(base: Path, tmp_path: Path) -> None:
    state = torch.load(base)["model"]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
    del state["temporal_pos_embedding"]
    torch.save(state, tmp_path / "image.pth")
    model = _tuned("linear_probe", tmp_path / "image.pth", num_frames=4)
    assert model.temporal_pos_embedding.requires_grad
    torch.nn.init.normal_(model.temporal_pos_embedding)
    model.save_pretrained(tmp_path / "saved")
    assert set(_weights(tmp_path / "saved")) == {"head.weight", "head.bias", "temporal_pos_embedding"}
    assert torch.equal(from_pretrained(tmp_path / "saved")(CLIP), model.eval()(CLIP))


def test_frames_other_than_the_base_s_are_interpolated_when_it_comes_back(base: Path, tmp_path: Path) -> None:
    model = _tuned("ssp", base, num_frames=6).eval()
    assert mentions(str(model.load_report), "temporal_pos_embedding: 4", "6, linear")
    model.save_pretrained(tmp_path / "saved")
    clip = torch.randn(1, 6, 3, 16, 16)
    assert torch.equal(from_pretrained(tmp_path / "saved")(clip), model(clip))


def test_resumed_training_ends_where_an_unbroken_one_does(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = _tuned("ssp", base)
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    _train(whole, tmp_path / "whole")
    broken = _tuned("ssp", base)
    broken.load_state_dict(start)
    optim = OptimConfig(lr=0.05, lr_batch_size=4, epochs=2, warmup_epochs=0, layer_decay=0.8)
    clips = _Clips()
    served = clips.batches

    def stop_in_the_second_epoch(epoch: int, first_batch: int) -> list[Batch]:
        if epoch == 1:
            raise KeyboardInterrupt
        return served(epoch, first_batch)

    clips.batches = stop_in_the_second_epoch  # type: ignore[method-assign]
    train = TrainConfig(device="cpu", trackers=())
    with pytest.raises(KeyboardInterrupt):
        fit(broken, clips, output=tmp_path / "broken", train=train, optim=optim)
    resumed = _tuned("ssp", base)
    fit(resumed, _Clips(), output=tmp_path / "broken", train=train, optim=optim, resume=True)
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


def test_the_zoo_names_every_tuner_at_every_size() -> None:
    assert {re.sub(r"_?videomamba_middle", "", name) for name in _names("middle")} == {"", *TUNERS}


def _names(size: str) -> list[str]:
    return [name for name in list_models() if name.endswith(f"videomamba_{size}")]
