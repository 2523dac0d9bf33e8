"""What a whole training step needs on a GPU, counted on tensors without memory."""

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinescan.models.mode import training_view
from kinescan.profiling.cuda_autocast import cuda_autocast_rules
from kinescan.runtime.torch_internals import FakeTensorMode, TorchDispatchMode, storage_key, tree_leaves


@dataclass(frozen=True)
class StepMemory:
    """What a step needs, in bytes.

    Attributes:
        trained: number of parameters that are trained; the one field that is not in bytes.
        standing: weights, AdamW's moments and the clips, which are there before and after the step.
        kept: what the forward pass leaves for the backward pass.
        peak: the most at any time.
    """

    trained: int
    standing: int
    kept: int
    peak: int


def count_step_memory(
    model: nn.Module,
    *,
    num_clips: int,
    num_frames: int,
    image_size: int,
    precision: torch.dtype = torch.bfloat16,
    fake: bool = True,
) -> StepMemory:
    """What one training step (forward, loss, backward, AdamW) of a batch needs on a GPU.

    Every storage is counted from the operation that makes it until the last reference is gone. Weights, moments and
    gradients are in it; the allocator's rounding and the work space of libraries and kernels are not. What a GPU does
    otherwise than a CPU is done here, too: autocast follows the rules of CUDA (`cuda_autocast_rules`), which keep the
    residual stream in float32, and AdamW takes all parameters at once.

    Args:
        model: from clips [B, T, 3, H, W] to logits; on any device, also "meta". It is not changed; of frozen parameters
            nothing is kept.
        num_clips: clips in the batch.
        num_frames: frames of a clip.
        image_size: side of a frame in pixels.
        precision: float32, or bfloat16 for autocast.
        fake: on tensors without memory; False counts a real step, to check that.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("vit_ti16", num_classes=2, depth=1, image_size=32)
        >>> memory = count_step_memory(model, num_clips=2, num_frames=4, image_size=32)
        >>> memory.standing < memory.standing + memory.kept <= memory.peak
        True
    """
    with cuda_autocast_rules(), FakeTensorMode() if fake else nullcontext(), _Storages() as storages:
        model = training_view(model)
        give_memory(model, "cpu")
        pixels = torch.zeros(num_clips, num_frames, 3, image_size, image_size, device="cpu")
        forward, backward = step_of(model, pixels, precision)
        standing = storages.peak = storages.now
        loss = forward()
        kept = storages.now - standing
        backward(loss)
        peak = storages.peak
    return StepMemory(num_trained(model), standing, kept, peak)


def num_trained(model: nn.Module) -> int:
    """Parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def give_memory(model: nn.Module, device: str) -> None:
    """Replaces parameters and buffers by fresh ones, small and positive; fake ones where that is the mode.

    Args:
        model: changed in place.
        device: where the fresh ones are.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fresh = torch.full(parameter.shape, 0.01, dtype=parameter.dtype, device=device)
            setattr(module, name, nn.Parameter(fresh, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device))


def step_of(
    model: nn.Module, clips: Tensor, precision: torch.dtype
) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """The two halves of a training step: up to the loss, and from it. AdamW's moments are there already.

    Args:
        model: in training mode.
        clips: [B, T, 3, H, W].
        precision: float32, or bfloat16 for autocast.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, foreach=True)  # what torch chooses on CUDA
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    targets = torch.zeros(len(clips), dtype=torch.long, device=clips.device)

    def forward() -> Tensor:
        plain = precision == torch.float32
        with nullcontext() if plain else torch.autocast(clips.device.type, dtype=precision):
            logits: Tensor = model(clips)
        return functional.cross_entropy(logits.float(), targets)

    def backward(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return forward, backward


class _Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are gone.

    Attributes:
        now: bytes at this time.
        peak: the most since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(storage_key(tensor), tensor.untyped_storage())
        return out

    def _add(self, address: int, storage: torch.UntypedStorage) -> None:
        num_bytes = storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self.now += num_bytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, address, num_bytes)

    def _remove(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.now -= num_bytes
