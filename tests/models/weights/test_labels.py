import pytest
import torch

from kinescan.errors import CheckpointError
from kinescan.models.zoo import create_model

TINY = {"depth": 2, "width": 24, "heads": 3, "mlp_dim": 24, "embed_dim": 16, "image_size": 32}


def test_weights_of_the_same_classes_in_another_order_keep_their_head(tmp_path: str) -> None:
    saved = create_model("vit_ti16", labels=["a", "b", "c"], **TINY).eval()
    torch.nn.init.normal_(saved.head.bias)
    saved.save_pretrained(tmp_path)
    model = create_model("vit_ti16", labels=["c", "a", "b"], weights=tmp_path, new_head=False).eval()
    clip = torch.randn(2, 8, 3, 32, 32)
    assert torch.equal(model(clip), saved(clip)[:, [2, 0, 1]])
    assert model.labels == ("c", "a", "b")


def test_weights_of_other_classes_are_refused_without_a_new_head(tmp_path: str) -> None:
    saved = create_model("vit_ti16", labels=["a", "b", "c"], **TINY)
    saved.save_pretrained(tmp_path)
    message = (
        r"was trained on other classes: it has 3, the data 5; only it has 'a', 'b', 'c'; only the data have 'v', 'w', "
        r"'x' and 2 more. To keep its backbone and start with a new head, ask for it: model.new_head = true"
    )
    with pytest.raises(CheckpointError, match=message):
        create_model("vit_ti16", labels=list("vwxyz"), weights=tmp_path, new_head=False)
    model = create_model("vit_ti16", labels=list("vwxyz"), weights=tmp_path)
    assert torch.equal(model.vit.conv1.weight, saved.vit.conv1.weight)
    assert model.head.weight.shape == (5, 16)
