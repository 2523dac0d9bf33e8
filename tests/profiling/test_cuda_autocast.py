import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kinescan.profiling import cuda_autocast

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"


def _listed(macro: str) -> list[str]:
    """The operations that a list of torch's header names."""
    body = re.search(rf"#define {macro}\(_\)(.*?)\n\n", HEADER.read_text(), re.DOTALL)
    assert body is not None
    return [".".join(entry.replace(" ", "").split(",")) for entry in re.findall(r"_\(([\w, ]+)\)", body[1])]


@pytest.mark.skipif(not HEADER.exists(), reason="this build of torch has no headers")
@pytest.mark.parametrize(
    ("table", "macro"),
    [
        ("IN_FLOAT32", "AT_FORALL_FP32"),
        ("TO_FLOAT32", "AT_FORALL_FP32_SET_OPT_DTYPE"),
        ("IN_THE_WIDEST", "AT_FORALL_PROMOTE"),
    ],
)
def test_tables_are_those_of_torch(table: str, macro: str) -> None:
    assert sorted(getattr(cuda_autocast, table)) == sorted(_listed(macro))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: functional.layer_norm(x, (4,)),
        lambda x: functional.group_norm(x, 2),
        functional.softplus,
        torch.exp,
        torch.square,
        lambda x: x.softmax(-1),
        torch.sum,
        lambda x: torch.addcmul(x, x, x.float()),
        lambda x: functional.cross_entropy(x, torch.zeros(2, dtype=torch.long)),
    ],
    ids=["layer_norm", "group_norm", "softplus", "exp", "square", "softmax", "sum", "addcmul", "cross_entropy"],
)
def test_what_cuda_computes_in_float32_is_float32(operation: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    with cuda_autocast.cuda_autocast_rules():
        with torch.autocast("cpu", torch.bfloat16):
            assert operation(x).dtype == torch.float32
        assert functional.layer_norm(x, (4,)).dtype == torch.bfloat16


def test_what_cuda_lowers_or_leaves_stays_in_bfloat16() -> None:
    x, weight = torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 4)
    with cuda_autocast.cuda_autocast_rules(), torch.autocast("cpu", torch.bfloat16):
        results = [functional.linear(x.float(), weight), torch.addcmul(x, x, x), functional.silu(x), x.mean()]
        results += [torch.cat([x, x]), x.sum(dtype=torch.bfloat16), x + x]
    assert {result.dtype for result in results} == {torch.bfloat16}


def test_rules_hold_in_a_backward_pass_that_computes_again() -> None:
    dtypes = []

    def part(x: Tensor) -> Tensor:
        normed = functional.layer_norm(x, (4,))
        dtypes.append(normed.dtype)
        return normed.sin()

    x = torch.ones(2, 4, dtype=torch.bfloat16, requires_grad=True)
    with cuda_autocast.cuda_autocast_rules():
        with torch.autocast("cpu", torch.bfloat16):
            out = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)
        out.sum().backward()
    assert dtypes == [torch.float32, torch.float32]


def test_a_cpu_has_its_own_rules_again_afterwards() -> None:
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    with cuda_autocast.cuda_autocast_rules():
        pass
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.layer_norm(x, (4,)).dtype == torch.bfloat16
        assert torch.cat([x, x.float()]).dtype == torch.float32
