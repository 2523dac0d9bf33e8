import ast
from pathlib import Path

import pytest
import torch

import kinescan.profiling
from kinescan.errors import ConfigError
from kinescan.models.zoo import create_model
from kinescan.profiling.cost import Macs, count_cost, training_flops

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 64,
    "embed_dim": 16,
    "insert_after": 2,
    "kinematic_width": 8,
    "num_classes": 5,
}


@pytest.mark.parametrize(
    ("name", "num_frames", "expected"),
    [("pks4_vit_b16", 8, 145.19), ("pks4_vit_b16", 32, 580.77), ("pks4_vit_l14", 16, 1285.62)],
)
def test_count_cost_reproduces_the_published_gmacs(name, num_frames, expected):
    with torch.device("meta"):
        model = create_model(name, num_classes=174)
    macs = count_cost(model, num_frames=num_frames).macs
    assert round(macs.published / 1e9, 2) == expected
    # Norms and full frame products are a convention of that count, under 0.2 % of it.
    assert macs.without_attention == pytest.approx(macs.published, rel=2e-3)
    blocks, tokens, width = (12, 197, 768) if "b16" in name else (24, 257, 1024)
    assert macs.attention == 2 * blocks * num_frames * tokens**2 * width
    assert macs.with_attention == macs.without_attention + macs.attention


def test_count_cost_of_every_part_by_hand():
    cost = count_cost(create_model("pks4_vit_ti16", **TINY), num_frames=4)
    parts = {part.name: part.macs for part in cost.parts}
    frames, patches, width, hidden, inner = 4, 16, 32, 8, 64
    positions = frames * patches
    block = 12 * width**2 - 4 * width**2  # mlp_dim is 2 * width here
    # Two blocks before the module, one after it.
    assert parts["stem"].products == positions * 3 * 8 * 8 * width + 2 * frames * (patches + 1) * block
    assert parts["blocks after"].products == frames * (patches + 1) * block + frames * width * 16
    assert parts["stem"].attention == 2 * frames * 2 * (patches + 1) ** 2 * width
    assert parts["blocks after"].attention == frames * 2 * (patches + 1) ** 2 * width
    assert parts["class_token_routes"] == Macs(temporal=6 * frames * width * 3)
    scanned = positions * (width * 2 * inner + inner * (2 + 2 * 16) + 2 * inner + inner * width)
    assert parts["scanner"].products == scanned
    assert parts["scanner"].scan == 9 * positions * inner * 16
    assert parts["scanner"].temporal == positions * inner * 4
    assert parts["scanner"].norms == 5 * positions * width
    assert parts["kinematic.correlation"].correlation == positions * 5 * 81 * hidden
    assert parts["kinematic.correlation"].dense_correlation == positions * 5 * patches * hidden
    encoded = 9 * width * hidden + 5 * 2 * 9 * hidden**2 + 9 * 5 * hidden**2 + hidden * width
    assert parts["kinematic.variation"].products == positions * encoded
    assert parts["head"] == Macs(products=16 * 5)


def test_count_cost_counts_parameters_by_part_and_by_what_is_trained():
    model = create_model("pks4_vit_ti16", **TINY)
    for parameter in model.vit.parameters():
        parameter.requires_grad_(False)
    cost = count_cost(model)
    assert cost.num_parameters == sum(p.numel() for p in model.parameters())
    assert cost.num_frozen == sum(p.numel() for p in model.vit.parameters())
    assert cost.num_trained + cost.num_frozen == cost.num_parameters
    assert cost.num_frames == model.preprocessing.num_frames
    assert {part.name: part.num_trained for part in cost.parts}["stem"] == 0
    assert {part.name: part.num_trained for part in cost.parts}["blocks after"] == 0


def test_count_cost_leaves_the_model_as_it_was():
    model = create_model("pks4_vit_ti16", **TINY).train()
    model.vit.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count_cost(model, num_frames=2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert model(torch.randn(1, 2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("options", [{"class_token_route": "tsm"}, {"class_token_route": "none", "scanner": False}])
def test_count_cost_of_variants(options):
    macs = count_cost(create_model("pks4_vit_ti16", **TINY, **options), num_frames=4)
    names = [part.name for part in macs.parts]
    if options["class_token_route"] == "tsm":
        assert dict(zip(names, macs.parts, strict=True))["class_token_routes"].macs.temporal == 6 * 4 * 17 * 32 * 3
    else:
        assert names == ["stem", "kinematic.correlation", "kinematic.variation", "blocks after", "head"]


def test_count_cost_does_not_depend_on_the_precision_of_the_weights():
    model = create_model("pks4_vit_ti16", **TINY)
    expected = count_cost(model, num_frames=2).macs
    assert count_cost(model.bfloat16(), num_frames=2).macs == expected


def test_count_cost_refuses_no_frames():
    with pytest.raises(ConfigError, match=r"num_frames.*1.*0"):
        count_cost(create_model("pks4_vit_ti16", **TINY), num_frames=0)


def test_training_flops_of_the_paper_and_of_ours():
    published = training_flops(145.64e9, num_clips=168_913, num_epochs=20)
    assert round(published / 1e18, 3) == 2.952
    with torch.device("meta"):
        macs = count_cost(create_model("pks4_vit_b16", num_classes=174), num_frames=8).macs
    assert round(training_flops(macs.published, num_clips=168_913, num_epochs=20) / 1e18, 3) == 2.943


def test_a_layer_of_ones_own_names_what_no_operation_shows():
    class Halved(torch.nn.Module):
        def filter_macs(self, tokens):
            return 7 * tokens.shape[1]

        def forward(self, tokens, state=None, *, keep_state=True):
            return tokens * 0.5, None

    model = create_model("pks4_vit_ti16", **TINY)
    model.scanner = Halved()
    parts = {part.name: part.macs for part in count_cost(model, num_frames=3).parts}
    assert parts["scanner"] == Macs(temporal=7 * 3)


def test_costs_know_no_layer_and_no_model_by_its_class() -> None:
    """A layer says itself what it costs: profiling imports the base class of models, and no layer."""
    folder = Path(kinescan.profiling.__file__).parent
    known = {
        f"{node.module}.{alias.name}"
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("kinescan.layers", "kinescan.models"))
        for alias in node.names
    }
    assert known == {
        "kinescan.models.classifier.VideoClassifier",
        "kinescan.models.mode.complete_view",
        "kinescan.models.mode.evaluation_view",
        "kinescan.models.mode.training_view",
    }
