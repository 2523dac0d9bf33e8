import json
import os
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError, ShapeError
from kinescan.models.classifier import VideoClassifier
from kinescan.models.vit.vit import VisionTransformer
from kinescan.models.vit.vit_config import ViTConfig
from kinescan.models.zoo import create_model, from_pretrained
from kinescan.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class AverageConfig(ViTConfig):
    num_classes: int = 3


class Average(VideoClassifier):
    """Mean over frames; its head is tied to a second name."""

    config_class = AverageConfig

    def __init__(
        self,
        config: AverageConfig,
        *,
        name: str = "average",
        labels: list[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(config, name=name, labels=labels, preprocessing=preprocessing)
        self.vit = VisionTransformer(config)
        self.head = nn.Linear(config.embed_dim or config.width, config.num_classes)
        self.tied = self.head

    def forward(self, clip: Tensor) -> Tensor:
        self.check_clip(clip)
        frames = self.vit(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
        return self.head(frames.mean(1))

    def layer_depths(self) -> dict[str, int]:
        return self.vit.layer_depths(prefix="vit.")

    @property
    def num_layers(self) -> int:
        return self.vit.num_layers


CONFIG = AverageConfig(image_size=12, patch_size=4, width=24, depth=2, heads=3, mlp_dim=48, embed_dim=12)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Average(CONFIG, labels=["up", "down", "still"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip_keeps_outputs_labels_and_preprocessing(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=12, num_frames=4, mean=(0.5, 0.4, 0.3), sampling="dense")
    labels = ["auf|und ab", "左へ", "a\nb"]
    model = Average(CONFIG, name="mine", labels=labels, preprocessing=preprocessing).eval()
    model.save_pretrained(tmp_path / "deep" / "folder")
    again = Average.from_pretrained(str(tmp_path / "deep" / "folder"))
    clip = torch.randn(2, 4, 3, 12, 12)
    assert torch.equal(again(clip), model(clip))
    assert (again.name, again.labels, again.preprocessing, again.config) == (
        "mine",
        tuple(labels),
        preprocessing,
        CONFIG,
    )
    assert not again.training
    assert again.load_report is not None
    assert again.load_report.layout == "kinescan"
    assert again.load_report.missing == ()


def test_saved_folder_holds_three_files_that_all_may_read(saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    content = json.loads((saved / "config.json").read_text())
    assert set(content) == {"kinescan_version", "model", "config", "labels", "preprocessing", "module"}
    assert content["labels"] == ["up", "down", "still"]
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_tied_tensors_are_saved_apart_and_stay_tied(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    assert torch.equal(tensors["head.weight"], tensors["tied.weight"])
    again = Average.from_pretrained(saved)
    assert again.tied.weight is again.head.weight


def test_saved_dtype_may_be_half(tmp_path: Path) -> None:
    model = Average(CONFIG).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = Average.from_pretrained(tmp_path)
    assert again.head.weight.dtype == torch.float32
    assert torch.equal(again.head.weight, model.head.weight.float())


def test_a_failure_while_saving_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*Choose.*folder"):
        Average(CONFIG).save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="write"):
        Average(CONFIG).save_pretrained(tmp_path / "file" / "model")


def test_labels_are_unknown_or_fit() -> None:
    assert Average(CONFIG).labels is None
    with pytest.raises(ConfigError, match=r"2.*3 classes"):
        Average(CONFIG, labels=["a", "b"])
    with pytest.raises(ConfigError, match="once"):
        Average(CONFIG, labels=["b", "a", "b"])


@pytest.mark.bad_input
def test_labels_must_be_strings() -> None:
    with pytest.raises(ConfigError, match=r"labels.*'abc'"):
        Average(CONFIG, labels="abc")
    with pytest.raises(ConfigError, match=r"labels.*\[1, 2, 3\]"):
        Average(CONFIG, labels=[1, 2, 3])


def test_labels_changed_wrongly_are_not_saved(tmp_path: Path) -> None:
    model = Average(CONFIG)
    model.labels = ("a",)
    with pytest.raises(ConfigError, match=r"1.*3 classes"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_preprocessing_must_make_the_size_that_the_model_takes() -> None:
    assert Average(CONFIG).preprocessing == Preprocessing(size=12)
    with pytest.raises(ConfigError, match=r"16.*12. Set preprocessing.size.*12"):
        Average(CONFIG, preprocessing=Preprocessing(size=16))


def test_missing_damaged_and_foreign_configs_are_errors(saved: Path) -> None:
    config = saved / "config.json"
    text = config.read_text()
    config.write_text(text[:40])
    with pytest.raises(CheckpointError, match=r"config.json.*JSON"):
        Average.from_pretrained(saved)
    config.write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match=r"create_model.*weights=folder"):
        Average.from_pretrained(saved)
    config.write_text(text)
    _edit_config(saved, labels={"up": 0})
    with pytest.raises(CheckpointError, match=r"config.json"):
        Average.from_pretrained(saved)
    config.unlink()
    with pytest.raises(
        CheckpointError, match=r"has no config.json; it holds: README.md, model.safetensors. A saved model"
    ):
        Average.from_pretrained(saved)


def test_models_of_a_newer_version_are_refused(saved: Path) -> None:
    _edit_config(saved, kinescan_version="99.1.0")
    with pytest.raises(CheckpointError, match=r"99.1.0.*-U kinescan"):
        Average.from_pretrained(saved)
    _edit_config(saved, kinescan_version="soon")
    with pytest.raises(CheckpointError, match="kinescan_version 'soon'"):
        Average.from_pretrained(saved)
    _edit_config(saved, kinescan_version="0.0.1")
    assert Average.from_pretrained(saved).labels == ("up", "down", "still")


def test_configs_that_do_not_fit_the_class_are_errors(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    _edit_config(saved, config=content["config"] | {"prompts": 3})
    with pytest.raises(CheckpointError, match=r"'config.prompts'"):
        Average.from_pretrained(saved)
    _edit_config(saved, config=content["config"], labels=["only", "two"])
    with pytest.raises(CheckpointError, match=r"Average.*2.*3 classes"):
        Average.from_pretrained(saved)


def test_missing_and_damaged_weights_are_errors(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model.safetensors.*damaged"):
        Average.from_pretrained(saved)
    extra = {name: tensor for name, tensor in tensors.items() if name != "head.bias"} | {"other": torch.ones(1)}
    save_file(extra | {"head.weight": torch.ones(4, 12)}, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(head.bias\); 1.*other\); 1.*head.w"):
        Average.from_pretrained(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        Average.from_pretrained(saved)


def test_places_that_hold_no_model_are_errors(saved: Path) -> None:
    alone = saved.parent / "alone" / "model.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(b"")
    with pytest.raises(CheckpointError, match="save_pr"):
        Average.from_pretrained(alone)
    with pytest.raises(CheckpointError, match=r"absent.*folder.*of"):
        Average.from_pretrained(saved / "absent")


def test_from_pretrained_reads_from_the_hub(saved: Path, hub) -> None:
    hub("me/average@v1", saved)
    assert Average.from_pretrained("me/average", revision="v1").labels == ("up", "down", "still")
    with pytest.raises(CheckpointError, match="Hugging"):
        Average.from_pretrained("me/other")


def test_push_to_hub_uploads_the_saved_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []

    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            assert (repo_id, private) == ("me/average", False)

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> object:
            uploaded.extend(sorted(file.name for file in Path(folder_path).iterdir()))
            return type("Commit", (), {"commit_url": "https://huggingface.co/me/average/commit/1"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert Average(CONFIG).push_to_hub("me/average").endswith("/commit/1")
    assert uploaded == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(4, 3, 12, 12), r"5 axes, got \[4, 3, 12, 12\]. Allowed: \[B, T, 3, 12, 12\].*clip\[None\]"),
        (torch.zeros(3, 12, 12), r"5 axes, got \[3, 12, 12\]"),
        (torch.zeros(1, 0, 3, 12, 12), "at least 1 frame"),
        (torch.zeros(1, 3, 4, 12, 12), r"3.*2.*\[1, 3, 4, 12, 12\]"),
        (torch.zeros(1, 4, 3, 10, 12), "frames.*12 x 12.*10 x 12"),
        (torch.zeros(1, 4, 3, 12, 12, dtype=torch.uint8), "floating.*uint8"),
    ],
)
def test_other_clips_are_refused(clip: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Average(CONFIG)(clip)


def test_layer_depths_leave_out_new_parameters() -> None:
    model = Average(CONFIG)
    depths = model.layer_depths()
    assert max(depths.values()) == model.num_layers == 3
    assert {name for name, _ in model.named_parameters()} - set(depths) == {"head.weight", "head.bias"}


def test_labels_that_nobody_knows_are_none_before_and_after_saving(tmp_path: Path) -> None:
    model = create_model("vit_ti16", num_classes=3, depth=1, image_size=32)
    assert model.labels is None
    assert model.class_names == ("0", "1", "2")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["labels"] is None
    assert "known" in (tmp_path / "README.md").read_text()
    assert from_pretrained(tmp_path).labels is None
    assert create_model("vit_ti16", weights=tmp_path, num_classes=3, depth=1, image_size=32).labels is None


def _frame_model(labels: list[str], **options: bool) -> VideoClassifier:
    return create_model("vit_ti16", labels=labels, depth=1, output="frames", **options)


def test_probabilities_are_a_softmax_or_of_overlapping_classes_a_sigmoid_each() -> None:
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.bfloat16)
    single = _frame_model(["background", "fall"])
    several = _frame_model(["walk", "fall"], overlapping=True)
    assert (single.answers_frames, single.overlapping, several.overlapping) == (True, False, True)
    assert single.probabilities(logits).dtype == torch.float32
    torch.testing.assert_close(single.probabilities(logits), logits.float().softmax(-1))
    torch.testing.assert_close(several.probabilities(logits), logits.float().sigmoid())
    assert not create_model("vit_ti16", labels=["a", "b"], depth=1).answers_frames


@pytest.mark.parametrize(("labels", "overlapping"), [(["walk", "fall"], False), (["background", "fall"], True)])
def test_background_is_class_0_unless_classes_overlap(labels: list[str], overlapping: bool) -> None:
    with pytest.raises(ConfigError, match="background"):
        _frame_model(labels, overlapping=overlapping)


def test_a_saved_model_of_frames_is_one_when_it_comes_back(tmp_path: Path) -> None:
    _frame_model(["walk", "fall"], overlapping=True, causal=True).save_pretrained(tmp_path)
    model = from_pretrained(tmp_path)
    assert model.answers_frames
    assert model.overlapping
    assert "every frame" in (tmp_path / "README.md").read_text(encoding="utf-8")
