from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinescan.errors import ConfigError
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.models.stream_step import StreamStep

SIZES: dict[str, Any] = {
    "num_classes": 3, "width": 16, "heads": 1, "depth": 2, "image_size": 32, "patch_size": 16, "insert_after": 1,
    "window": 3, "embed_dim": 8, "causal": True,
}  # fmt: skip


def _steps(step: StreamStep, clip: Tensor) -> Tensor:
    state, logits = step.start(len(clip)), []
    for index, frame in enumerate(clip.unbind(dim=1)):
        first = [torch.full((len(clip),), float(index == 0))] if step.repeats_first else []
        scores, *state = step(frame, *first, *state)
        logits.append(scores)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {"border": "zeros"},
        {"border": "replicate"},
        {"difference": True},
        {"difference": True, "changes_only": True, "stem_convolutions": 2},
    ],
)
def test_a_state_of_zeros_is_that_of_no_frames(options: dict[str, Any]) -> None:
    model = PKS4(PKS4Config(**options, **SIZES)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    clip = torch.randn(2, 6, 3, 32, 32)
    step = StreamStep(model)
    with torch.no_grad():
        torch.testing.assert_close(_steps(step, clip), model.stream_frames(clip)[0], atol=1e-5, rtol=1e-5)
    assert step.outputs[0] == "logits"
    assert len(step.outputs) == len(step.states) + 1


def test_packing_is_undone_by_unpacking() -> None:
    model = PKS4(PKS4Config(**SIZES)).eval()
    step = StreamStep(model)
    with torch.no_grad():
        _, state = model.stream_frames(torch.randn(1, 3, 3, 32, 32))
    back = step.unpack(step.pack(state), state.frames_seen)
    assert back.frames_seen == 3
    assert type(back.scanner) is type(state.scanner)
    named = {name: tensor for name, tensor in state.tensors().items() if name != "average"}
    assert back.tensors().keys() == named.keys()
    for name, tensor in named.items():
        torch.testing.assert_close(back.tensors()[name], tensor, atol=0, rtol=0)


@dataclass
class _Shared:
    """A state that is one for all streams."""

    sum: Tensor


class _WithSharedState(PKS4):
    def make_scanner(self, config: PKS4Config) -> nn.Module:
        class Scan(nn.Module):
            def forward(self, tokens: Tensor, state: Any = None, *, keep_state: bool = True) -> tuple[Tensor, Any]:
                return torch.zeros_like(tokens), _Shared(torch.zeros(5))

        return Scan()


def test_a_state_that_is_not_one_for_each_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scanner\.sum"):
        StreamStep(_WithSharedState(PKS4Config(**SIZES)))


def test_a_model_that_looks_ahead_has_no_step() -> None:
    with pytest.raises(ConfigError, match="causal"):
        StreamStep(PKS4(PKS4Config(**{**SIZES, "causal": False})))
