"""Each test names what of ours breaks when torch changes the private name behind it."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import kinescan
from kinescan.runtime import torch_internals as internals

SOURCE = Path(kinescan.__file__).parent
PRIVATE = re.compile(r"\b(torch|accelerate|transformers)(\.\w+)*\._(?!_)\w+|from (torch|accelerate)[\w.]*\._\w")
DOORS = {"torch_internals.py", "accelerate_internals.py", "torchscript.py"}
"""`torchscript.py` compares such names with those in other people's files; it calls none of them."""


def test_private_names_stand_in_the_doors_alone() -> None:
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        if path.name not in DOORS and "families" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert found == []


def test_average_of_weights_needs_lerp_all() -> None:
    tensors, ends = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.zeros(3)]
    internals.lerp_all_(tensors, ends, 0.25)
    assert [tensor.tolist() for tensor in tensors] == [[0.25] * 2, [0.75] * 3]


def test_batches_of_workers_need_shared_storage() -> None:
    storage = internals.shared_storage(12)
    assert storage.nbytes() == 12
    assert storage.is_shared()


def test_counting_macs_needs_dispatch_and_fake_modes() -> None:
    class Names(internals.TorchDispatchMode):
        seen: tuple[str, ...] = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen += (func.name(),)
            return func(*args, **(kwargs or {}))

    with internals.FakeTensorMode(), Names() as names:
        assert (torch.empty(10**6, 10**6) @ torch.empty(10**6, 2)).shape == (10**6, 2)
    assert "aten::mm" in names.seen


def test_memory_of_training_on_a_gpu_needs_the_autocast_kernels() -> None:
    x = torch.ones(2, 4, dtype=torch.bfloat16)

    def widened(*args, **kwargs):  # type: ignore[no-untyped-def]
        with internals.without_cpu_autocast():
            return torch.ops.aten.layer_norm.default(args[0].float(), *args[1:], **kwargs)

    with torch.autocast("cpu", torch.bfloat16):
        assert functional.layer_norm(x, (4,)).dtype == torch.bfloat16
        with internals.with_cpu_autocast_kernels({"layer_norm": widened}):
            assert functional.layer_norm(x, (4,)).dtype == torch.float32
        assert functional.layer_norm(x, (4,)).dtype == torch.bfloat16
    assert internals.has_cpu_autocast_rule("mm")
    assert not internals.has_cpu_autocast_rule("abs")


def test_ops_under_torch_func_need_to_know_of_it() -> None:
    seen: list[tuple[str, ...]] = [internals.active_transforms()]

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(internals.active_transforms())
        return x.sum()

    x = torch.ones(2, 3)
    torch.vmap(torch.func.grad(look))(x)
    torch.func.jvp(look, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        look(x)
    assert [set(names) for names in seen] == [set(), {"vmap", "grad"}, {"jvp", "forward"}, {"forward"}]


def test_counting_memory_needs_trees() -> None:
    assert internals.tree_leaves(internals.tree_map(lambda n: n + 1, {"a": [1, (2,)]})) == [2, 3]


@pytest.mark.parametrize("name", internals.__all__)
def test_every_name_has_a_test(name: str) -> None:
    assert name in Path(__file__).read_text(encoding="utf-8")
