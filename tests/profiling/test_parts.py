import pytest
import torch

from kinescan.errors import ShapeError
from kinescan.models.zoo import create_model
from kinescan.profiling.parts import Parts, watch_parts

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "heads": 2, "mlp_dim": 64, "embed_dim": 16, "num_classes": 3}
PKS4 = {**TINY, "depth": 3, "insert_after": 2, "kinematic_width": 8}
MAMBA = {"depth": 2, "image_size": 32, "num_frames": 2, "num_classes": 3}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "pks4_vit_ti16",
            PKS4,
            (
                *("stem", "class_token_routes", "kinematic.correlation", "kinematic.variation"),
                *("scanner", "blocks after", "head"),
            ),
        ),
        (
            "pks4_vit_ti16",
            {**PKS4, "correlation": False, "variation": False, "class_token_route": "none"},
            ("stem", "scanner", "blocks after", "head"),
        ),
        ("vit_ti16", {**TINY, "depth": 1}, ("backbone", "head")),
        ("videomamba_tiny", MAMBA, ("backbone", "head")),
        ("vpt_videomamba_tiny", MAMBA, ("backbone", "tuner", "head")),
    ],
)
def test_parts_are_told_apart_and_run_in_their_order(name, options, expected):
    model = create_model(name, **options).eval()
    assert Parts(model).names == expected
    visited = []
    with watch_parts(model) as parts, torch.no_grad():
        parts.on_switch = lambda: visited.append(parts.current)
        model(torch.randn(1, 2, 3, 32, 32))
    first_visits = list(dict.fromkeys(visited))
    assert set(first_visits) == set(expected)
    kept_order = [part for part in expected if part not in ("class_token_routes", "tuner")]
    assert [part for part in first_visits if part in kept_order] == kept_order
    assert parts.current == ("blocks after" if "scanner" in expected else "backbone")


def test_every_parameter_has_one_part():
    model = create_model("pks4_vit_ti16", **PKS4)
    parts = Parts(model)
    owners = {name: parts.owner(name) for name, _ in model.named_parameters()}
    assert set(owners.values()) == set(parts.names)
    assert owners["vit.conv1.weight"] == owners["vit.transformer.resblocks.1.mlp.c_fc.weight"] == "stem"
    assert owners["vit.transformer.resblocks.2.mlp.c_fc.weight"] == owners["vit.ln_post.weight"] == "blocks after"
    assert owners["scanner.mamba.in_proj.weight"] == "scanner"


def test_watch_parts_leaves_model_and_tuner_as_they_were():
    model = create_model("vpt_videomamba_tiny", **MAMBA)
    with watch_parts(model):
        assert "enter" in vars(model.tuner)
    with pytest.raises(ShapeError), watch_parts(model):
        model(torch.randn(1, 2, 3, 31, 31))
    assert not {"begin", "enter", "leave"} & set(vars(model.tuner))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
