"""Each test names what of ours breaks when torch changes the private name behind it."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from kinescan.runtime import torch_internals as internals


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


def test_kernels_without_their_operator_need_to_know_what_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    x, runs_alone = torch.ones(2), internals.runs_alone
    assert not runs_alone((x,))
    with torch.no_grad():
        assert runs_alone((x, None))
        assert not runs_alone((x.to("meta"),))
        assert not torch.vmap(lambda row: torch.tensor(runs_alone((row,))))(torch.ones(3, 2)).any()
        with torch.autograd.forward_ad.dual_level():
            assert not runs_alone((x,))
        monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
        assert not runs_alone((x,))


def test_counting_memory_needs_trees() -> None:
    assert internals.tree_leaves(internals.tree_map(lambda n: n + 1, {"a": [1, (2,)]})) == [2, 3]


def test_cuda_autocast_rules_need_the_names_of_arguments() -> None:
    assert internals.argument_names(torch.ops.aten.sum.dim_IntList) == ["self", "dim", "keepdim", "dtype"]


def test_counting_macs_needs_the_operation_without_its_overload() -> None:
    from torch.utils.flop_counter import flop_registry

    assert internals.overload_packet(torch.ops.aten.mm.default) in flop_registry


def test_counting_memory_needs_one_key_for_one_storage() -> None:
    with internals.FakeTensorMode():
        whole, other = torch.empty(4), torch.empty(4)
        assert internals.storage_key(whole[1:]) == internals.storage_key(whole) != internals.storage_key(other)


def test_two_streams_of_a_vlm_need_the_tensors_and_hooks_of_modules() -> None:
    norm = torch.nn.BatchNorm1d(2)
    norm.extra = torch.ones(1)
    assert len(internals.held_tensors(norm)) == 6
    assert len(internals.held_tensors(torch.nn.Sequential(norm))) == 0
    calls: list[str] = []

    def ours(*_: object) -> None:
        calls.append("ours")

    norm.register_forward_hook(ours)
    norm.register_forward_hook(lambda *_: calls.append("other"))
    internals.remove_forward_hooks(norm, "ours")
    norm(torch.ones(2, 2))
    assert calls == ["other"]


def test_batch_norms_of_several_processes_need_their_base_class() -> None:
    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
    assert all(issubclass(kind, internals.BatchNorm) for kind in kinds)


def test_predicting_while_training_needs_modules_apart_from_the_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    view = internals.view_of_modules(model).eval()
    assert model.training
    assert view[0].weight is model[0].weight
    view[0].register_forward_hook(lambda *_: pytest.fail("a hook of the view ran in the model"))
    assert model(torch.ones(1, 2)).shape == (1, 2)
    compiled = torch.compile(model)
    assert isinstance(internals.view_of_modules(compiled), torch.nn.Module)


class _Killed(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_worker_that_was_killed_is_told_by_the_list_of_workers_of_torch() -> None:
    batches = iter(torch.utils.data.DataLoader(_Killed(), num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(RuntimeError):
        next(batches)
    ended = internals.ended_worker(batches, seconds=0.0)
    assert ended is not None
    assert str(-signal.SIGKILL) in ended


def test_a_worker_that_ended_is_told_by_the_list_of_workers_of_torch() -> None:
    loader = torch.utils.data.DataLoader(range(2), num_workers=1, multiprocessing_context="fork")  # type: ignore[arg-type]
    batches = iter(loader)
    next(batches)
    assert internals.ended_worker(batches, seconds=0.0) is None
    assert internals.ended_worker(iter(torch.utils.data.DataLoader(range(2))), seconds=0.0) is None  # type: ignore[arg-type]
    assert list(batches) != []
    ended = internals.ended_worker(batches, seconds=30.0)
    assert ended is not None
    assert "\n" not in ended


def test_a_full_device_is_told_by_type_or_by_the_text_of_torch() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**62, dtype=torch.uint8)
    assert internals.exhausted_memory(raised.value) is not None
    assert internals.exhausted_memory(torch.OutOfMemoryError("CUDA out of memory.")) == "CUDA out of memory."
    assert internals.exhausted_memory(RuntimeError("shapes do not fit")) is None


class _Layer(torch.nn.Module):
    """A layer that knows its number, as those of transformers do."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.index


def test_compiled_streams_need_compile_shared_layers() -> None:
    torch.compiler.reset()
    compiled = []

    def count(module, inputs):  # type: ignore[no-untyped-def]
        compiled.append(module)
        return module.forward

    layers = [torch.compile(_Layer(index).forward, backend=count) for index in range(1, 12)]
    with internals.compile_shared_layers():
        found = [int(layer(torch.ones(3))[0]) for layer in layers]
    assert found == list(range(1, 12))
    # one is a number of its own, two is the first that differs from it, and then it varies
    assert len(compiled) <= 3
    torch.compiler.reset()


def test_a_compiler_that_fails_is_a_compilation_error() -> None:
    torch.compiler.reset()

    def broken(module, inputs):  # type: ignore[no-untyped-def]
        raise OSError("no compiler")

    layer = torch.compile(_Layer(2).forward, backend=broken)
    with pytest.raises(internals.CompilationError), internals.compile_shared_layers():
        layer(torch.ones(3))
    torch.compiler.reset()


@pytest.mark.parametrize("name", internals.__all__)
def test_every_name_has_a_test(name: str) -> None:
    assert name in Path(__file__).read_text(encoding="utf-8")


def test_answers_that_stand_in_compiled_code_need_the_mark_that_torch_sets() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    torch.compiler.assume_constant_result(theirs)
    assert vars(internals.constant_when_compiled(ours)) == vars(theirs) != {}
