import pytest
import torch

from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing

LABELS = ("down", "left", "right", "up")


def tiny_model(*, preprocessing_size=32, labels=LABELS, **options):
    """A small PKS4 whose every part shows in the output, zero starts included."""
    torch.manual_seed(0)
    settings = {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "depth": 3,
        "heads": 2,
        "mlp_dim": 64,
        "embed_dim": 16,
        "insert_after": 2,
        "kinematic_width": 8,
        "window": 5,
        "norm": "group",
    }
    model = create_model(
        "pks4_vit_ti16",
        labels=labels,
        preprocessing=Preprocessing(size=preprocessing_size, num_frames=4),
        **(settings | options),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("kinematic", "scanner", "head")) and parameter.ndim > 1 and "A_log" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval()


@pytest.fixture
def make_model():
    return tiny_model


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def causal_model():
    return tiny_model(causal=True)
