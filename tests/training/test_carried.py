from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinescan.errors import CheckpointError, ConfigError
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.runtime.distributed import Processes
from kinescan.training import resume
from kinescan.training.carried import CarriedState

TINY = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "embed_dim": 16,
        "num_classes": 3, "insert_after": 1, "window": 3, "kinematic_width": 8, "state_size": 4, "output": "frames",
        "causal": True}  # fmt: skip
CPU = torch.device("cpu")


def _model(kind: type[PKS4] = PKS4, **options: Any) -> PKS4:
    torch.manual_seed(0)
    model = kind(PKS4Config(**{**TINY, **options})).eval()
    for name, parameter in model.named_parameters():
        if "expand" in name or "out_proj" in name or "difference" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def _clips(batch: int, num_frames: int = 4) -> Tensor:
    return torch.randn(batch, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(0))


STARTS = pytest.mark.parametrize("options", [{"border": "zeros"}, {"border": "replicate"}, {"difference": True}])
"""Models that know by different means that there was no frame before."""


@STARTS
def test_rows_go_on_and_those_that_start_begin_anew(options: dict[str, Any]) -> None:
    model, clips = _model(**options), _clips(2, 8)
    carried = CarriedState(model, 2)
    _, state = model.forward_stream(clips[:, :4], carried.take(None, [True, True], CPU))
    carried.put(None, state)
    logits, _ = model.forward_stream(clips[:, 4:], carried.take(None, [False, True], CPU))
    torch.testing.assert_close(logits[0], model(clips)[0, 4:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1], model(clips[:, 4:])[1], atol=1e-4, rtol=1e-4)


def test_gradients_stop_between_windows() -> None:
    model, carried = _model().train(), CarriedState(_model(), 1)
    _, state = model.forward_stream(_clips(1), carried.take(None, [True], CPU))
    carried.put(None, state)
    assert not any(tensor.requires_grad for tensor in carried.take(None, [False], CPU).tensors().values())


@STARTS
def test_a_row_that_was_not_there_begins_anew(options: dict[str, Any]) -> None:
    model, clips = _model(**options), _clips(3, 8)
    carried = CarriedState(model, 3)
    _, state = model.forward_stream(clips[:, :4], carried.take(None, [True] * 3, CPU))
    carried.put(None, state)
    _, state = model.forward_stream(clips[[0, 2], :4], carried.take([0, 2], [True, True], CPU))
    carried.put([0, 2], state)
    logits, _ = model.forward_stream(clips[:, 4:], carried.take(None, [False] * 3, CPU))
    torch.testing.assert_close(logits[1], model(clips[:, 4:])[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[[0, 2]], model(clips)[[0, 2], 4:], atol=1e-4, rtol=1e-4)


@STARTS
def test_what_was_saved_is_taken_up_bit_for_bit(options: dict[str, Any]) -> None:
    model, clips = _model(**options), _clips(2)
    first, second = CarriedState(model, 2), CarriedState(model, 2)
    _, state = model.forward_stream(clips, first.take(None, [True, True], CPU))
    first.put(None, state)
    second.restore(first.tensors())
    assert all(torch.equal(first.tensors()[name], tensor) for name, tensor in second.tensors().items())
    with pytest.raises(CheckpointError, match="batch size"):
        CarriedState(model, 3).restore(first.tensors())
    again, _ = model.forward_stream(clips, second.take(None, [False, True], CPU))
    assert torch.equal(again, model.forward_stream(clips, first.take(None, [False, True], CPU))[0])
    first.forget()
    second.restore(first.tensors())
    for forgotten in (first, second):
        logits, _ = model.forward_stream(clips, forgotten.take(None, [False, False], CPU))
        torch.testing.assert_close(logits, model(clips), atol=1e-4, rtol=1e-4)


class Offset(PKS4):
    """Its scanner starts from ones."""

    def make_scanner(self, config: PKS4Config) -> nn.Module:
        class Sum(nn.Module):
            def forward(
                self, tokens: Tensor, state: Tensor | None = None, *, keep_state: bool = True
            ) -> tuple[Tensor, Tensor]:
                start = torch.ones_like(tokens[:, 0]) if state is None else state
                sums = tokens.cumsum(1) + start[:, None]
                return sums, sums[:, -1]

        return Sum()


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (PKS4, {"causal": False}, "causal"),
        (PKS4, {"output": "clip"}, "frames"),
        (Offset, {}, "zeros"),
    ],
)
def test_models_without_such_a_state_are_refused(kind: type[PKS4], options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        CarriedState(_model(kind, **options), 2)


@pytest.mark.parametrize(("index", "count", "expected"), [(0, 1, [0, 1, 2, 3]), (1, 2, [2, 3]), (2, 4, [2])])
def test_states_of_two_processes_are_shared_out_between_any_number(index: int, count: int, expected: list[int]) -> None:
    of_two = [{"scan": torch.tensor([[0.0], [1.0]])}, {"scan": torch.tensor([[2.0], [3.0]])}]
    own = resume._own_rows(of_two, Processes(index, count))
    assert own["scan"].flatten().tolist() == expected
