import subprocess
import sys

import torch

from kinescan.models.skeleton import shapes_only
from kinescan.models.zoo import create_model

EVERY_MODEL = """
import sys
from kinescan.models.registry import list_models
from kinescan.models.skeleton import shapes_only
from kinescan.models.zoo import create_model
for name in list_models():
    with shapes_only():
        create_model(name, num_classes=2)
    assert "torch._dynamo" not in sys.modules, name
"""


def test_a_skeleton_has_names_and_shapes_of_the_model_and_no_values() -> None:
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 32, "embed_dim": 32, "image_size": 32}
    model = create_model("pks4_vit_ti16", num_classes=2, **sizes)
    with shapes_only():
        skeleton = create_model("pks4_vit_ti16", num_classes=2, **sizes)
        drawn = torch.nn.init.normal_(torch.empty(3, device="cpu"))
    found, wanted = skeleton.state_dict(), model.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: x.shape for name, x in wanted.items()}
    assert all(tensor.is_meta for tensor in skeleton.parameters())
    # a tensor with values is drawn as ever
    assert drawn.device.type == "cpu"
    assert float(drawn.abs().sum()) > 0


def test_no_model_needs_the_compiler_for_its_skeleton() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY_MODEL], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
