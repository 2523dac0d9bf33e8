"""What a training step keeps in memory for its backward pass, counted without doing one."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.func import functional_call

from kinescan.models.classifier import VideoClassifier
from kinescan.models.mode import training_view
from kinescan.profiling.cuda_autocast import cuda_autocast_rules
from kinescan.profiling.parts import watch_parts
from kinescan.runtime.torch_internals import FakeTensorMode, storage_key


def activation_bytes(
    model: VideoClassifier,
    *,
    num_clips: int,
    num_frames: int | None = None,
    precision: torch.dtype = torch.float32,
    device: str = "cpu",
) -> int:
    """Bytes of what autograd keeps of a forward pass in training for its backward pass; parameters do not count.

    The pass runs on tensors without memory, so that the largest batch can be asked for.

    Args:
        model: on any device; it is not changed. What is frozen of it keeps nothing.
        num_clips: clips in the batch.
        num_frames: frames of a clip; by default as many as the model's preprocessing takes.
        precision: float32, or bfloat16 for autocast.
        device: type of the device that will train: autocast keeps more in float32 on "cuda" than on others.

    Example:
        >>> from kinescan.models.zoo import create_model
        >>> model = create_model("vit_ti16", num_classes=2, depth=1)
        >>> activation_bytes(model, num_clips=4) == 2 * activation_bytes(model, num_clips=2)
        True
    """
    kept = activation_bytes_by_part(
        model, num_clips=num_clips, num_frames=num_frames, precision=precision, device=device
    )
    return sum(kept.values())


def activation_bytes_by_part(
    model: VideoClassifier,
    *,
    num_clips: int,
    num_frames: int | None = None,
    precision: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, int]:
    """The same, part by part: memory that two parts keep counts for the first.

    Args:
        model: as for `activation_bytes`.
        num_clips: clips in the batch.
        num_frames: frames of a clip.
        precision: float32, or bfloat16 for autocast.
        device: as for `activation_bytes`.

    Returns:
        Part -> bytes, for every part of the model.
    """
    frames = model.preprocessing.num_frames if num_frames is None else num_frames
    size = model.config.image_size
    model = training_view(model)
    with FakeTensorMode(), torch.enable_grad(), watch_parts(model) as parts:
        state = {name: _without_memory(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        clip = torch.empty(num_clips, frames, 3, size, size, device="cpu")
        with _kept_storages(state.values(), lambda: parts.current) as kept, _autocast(device, precision):
            functional_call(model, state, (clip,))
    found = dict.fromkeys(parts.names, 0)
    for part, storage in kept:
        found[part] += storage.nbytes()
    return found


def kept_bytes(run: Callable[[], object], *, without: Iterable[Tensor] = ()) -> int:
    """Bytes of what autograd keeps of a call for its backward pass, for any call, counted while it runs.

    Memory that several kept tensors share counts once.

    Args:
        run: the call; what it returns is held until the count is done.
        without: tensors whose memory does not count, such as a model's parameters.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> kept_bytes(lambda: x.exp()), kept_bytes(lambda: x * x), kept_bytes(lambda: x * x, without=[x])
        (4000, 4000, 0)
    """
    with _kept_storages(without, lambda: "") as kept:
        result = run()
    total = sum(storage.nbytes() for _, storage in kept)
    del result
    return total


@contextmanager
def _kept_storages(
    without: Iterable[Tensor], label: Callable[[], str]
) -> Iterator[Collection[tuple[str, torch.UntypedStorage]]]:
    """Collects the distinct storages that autograd keeps, each with what `label` said when it was kept first."""
    own = {storage_key(tensor) for tensor in without}
    # The storages are held on to, since the address of one that is gone would be used again.
    kept: dict[int, tuple[str, torch.UntypedStorage]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if storage_key(tensor) not in own:
            kept.setdefault(storage_key(tensor), (label(), tensor.untyped_storage()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, _same):
        yield kept.values()


def _same(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _autocast(device: str, precision: torch.dtype) -> Iterator[None]:
    """As on that device; the tensors are those of a CPU."""
    if precision == torch.float32:
        yield
        return
    with cuda_autocast_rules() if device == "cuda" else nullcontext(), torch.autocast("cpu", dtype=precision):
        yield


def _without_memory(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="cpu").requires_grad_(tensor.requires_grad)
