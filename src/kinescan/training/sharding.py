"""A model whose parameters are divided between the processes (FSDP2), beside the whole one that it was made of."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from kinescan.models.classifier import VideoClassifier
from kinescan.runtime.distributed import Processes
from kinescan.runtime.torch_internals import tree_map


def whole(tensor: Tensor) -> Tensor:
    """The full tensor [rows, ...]; a sharded one (DTensor) is gathered, for which every process calls this."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def own_part(tensor: Tensor) -> Tensor:
    """This process's shard [own rows, ...] of a tensor, without a copy; of one that is not sharded, all of it."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part


def divided_like(full: Tensor, like: Tensor) -> Tensor:
    """`full` [rows, ...] sharded as `like` is. Every process has all of `full`; nothing is sent."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    divided: Tensor = distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    return divided


@torch.no_grad()
def fill(tensor: Tensor, full: Tensor) -> None:
    """Writes `full` [rows, ...], which every process has, into a tensor, sharded or not."""
    own_part(tensor).copy_(own_part(full if isinstance(full, DTensor) else divided_like(full, tensor)))


class ShardedModel:
    """A copy of a model of which each process holds a part, and the whole model, which is evaluated and saved.

    Each block's parameters are gathered when it runs and freed behind it; gradients and optimizer states are divided as
    the parameters are. The first dimension is what is divided. Buffers, such as the statistics of batch norms, are
    not divided.

    Args:
        model: left as it is until `gather`; it moves to the CPU.
        processes: that train together, each on its device.

    Attributes:
        model: the copy, to be trained.
        plain: the whole model.

    Source: PyTorch FSDP2, `torch.distributed.fsdp.fully_shard`.
    """

    def __init__(self, model: VideoClassifier, processes: Processes) -> None:
        self.plain, self._processes = model.to("cpu"), processes
        self.model = copy.deepcopy(self.plain)

    def shard(self, root: nn.Module) -> nn.Module:
        """Divides the parameters of the copy.

        Args:
            root: what is called in a step: the copy, or a module around it.

        Returns:
            `root`.
        """
        device = self._processes.device
        mesh = init_device_mesh(device.type, (self._processes.count,))
        for block, methods in self.model.sharded_blocks():
            fully_shard(block, mesh=mesh)
            for method in methods:
                register_fsdp_forward_method(block, method)
        fully_shard(root, mesh=mesh, reshard_after_forward=False)
        for module in root.modules():
            if isinstance(module, FSDPModule) and device.type == "cpu":
                # gloo sums and does not average.
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(float(self._processes.count))
        return root

    def gather(self, instead: Mapping[str, Tensor]) -> None:
        """Gives the whole model the copy's weights; every process calls this.

        Args:
            instead: tensors to take instead of the copy's, such as their EMA, by name.
        """
        targets = self.plain.state_dict()
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                targets[name].copy_(whole(instead.get(name, tensor)))

    def spread(self) -> None:
        """Gives the copy the whole model's weights, which are the same in every process."""
        full = self.plain.state_dict()
        for name, tensor in self.model.state_dict().items():
            fill(tensor, full[name])

    @contextmanager
    def evaluated(self, instead: Mapping[str, Tensor]) -> Iterator[VideoClassifier]:
        """The whole model on the device, with the copy's weights; every process calls this.

        Args:
            instead: as for `gather`.
        """
        self.gather(instead)
        self.plain.to(self._processes.device)
        try:
            yield self.plain
        finally:
            self.plain.to("cpu")


def divided_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer, divided as its parameters are.

    Args:
        state: of whole tensors, the same in every process.
        optimizer: of the divided parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = {
        index: {
            name: divided_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in own.items()
        }
        for index, own in state["state"].items()
    }
    return {**state, "state": kept}


def copied(values: Any) -> Any:
    """Nested dicts, lists and tuples with tensors of their own memory."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)
