"""The parameter table of the method, to the digit (PKS4, Tables 5 and 7; 174 classes)."""

import pytest
import torch

from kinescan.models.zoo import create_model

_KS4_ONLY = {"correlation": False, "variation": False}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("pks4_vit_b16", _KS4_ONLY | {"scanner": False}, 86_337_198),
        ("pks4_vit_b16", _KS4_ONLY, 90_109_614),
        ("pks4_vit_b16", {"correlation": False}, 90_859_694),
        ("pks4_vit_b16", {}, 91_693_550),
        ("pks4_vit_b16", {"bidirectional": True}, 95_464_430),
        ("pks4_vit_l14", {}, 312_827_374),
        # The paper's baseline without its class-token route: the bare encoder and the head.
        ("vit_b16", {}, 86_192_640 + 174 * 513),
        ("vit_l14", {}, 303_966_208 + 174 * 769),
        ("vit_b16", {"class_token_route": "conv"}, 86_337_198),
        ("pks4_vit_b16", {"norm": "group"}, 91_693_550),
        ("pks4_vit_b16", {"causal": True}, 91_693_550),
    ],
)
def test_parameter_table(name: str, options: dict[str, object], expected: int) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=174, **options)
    assert model.num_parameters == expected
