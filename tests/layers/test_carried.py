from typing import Any, NamedTuple

import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.layers.carried import named_tensors, shaped_like
from kinescan.layers.mamba import MambaState


class Two(NamedTuple):
    hidden: torch.Tensor
    cell: torch.Tensor


@pytest.mark.parametrize(
    "state",
    [
        None,
        torch.ones(2),
        {"a": torch.ones(1), "b": torch.zeros(2)},
        (torch.ones(1), torch.zeros(2)),
        Two(torch.ones(1), torch.zeros(2)),
        MambaState(torch.ones(1), torch.zeros(2)),
    ],
)
def test_a_state_comes_back_as_what_it_was(state: Any) -> None:
    tensors = named_tensors(state, "scanner")
    back = shaped_like(state, tensors, "scanner")
    assert type(back) is type(state)
    again = named_tensors(back, "scanner")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("state", [3, "text", [torch.ones(1)], {"a": 1}, (torch.ones(1), None)])
def test_other_states_are_refused(state: Any) -> None:
    with pytest.raises(ConfigError, match="scanner"):
        named_tensors(state, "scanner")
