"""Steps: how often one waits for its device, counted on a CPU at the calls that would wait on a GPU."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kinescan.data import LoaderConfig, TrainTransform, VideoDataset, VideoItem
from kinescan.data.loader import Batch
from kinescan.data.transforms import AugmentConfig, finish_clips, mix
from kinescan.data.video import write_video
from kinescan.models.pks4 import PKS4
from kinescan.models.pks4_config import PKS4Config
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.distributed import Processes
from kinescan.runtime.torch_internals import TorchDispatchMode
from kinescan.training import step
from kinescan.training.accelerator import TrainConfig, open_accelerator
from kinescan.training.dataset_clips import DatasetClips
from kinescan.training.frame_task import FrameTask
from kinescan.training.optim import OptimConfig
from kinescan.training.step import Stepper, Task
from kinescan.training.sync_batch_norm import SynchronisedNorms

TINY = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "embed_dim": 16,
        "num_classes": 3, "insert_after": 1, "window": 3, "kinematic_width": 8, "state_size": 4}  # fmt: skip
READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
WAITING_OPS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "is_nonzero", "equal")


class _Calls(TorchFunctionMode):
    """Calls in Python that read a value back, or copy one to the device and wait for it."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READS and isinstance(args[0], Tensor):
            self.found[name] += 1
        if name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            self.found["number copied to the device"] += 1
        ours = str(sys._getframe(1).f_globals.get("__name__", "")).startswith("kinescan")
        to_device = len(args) > 1 and isinstance(args[1], torch.device)
        if name == "to" and ours and to_device and not kwargs.get("non_blocking", False):
            self.found["copy that waits"] += 1
        return func(*args, **kwargs)


class _Ops(TorchDispatchMode):
    """Operations whose result depends on values, so that the host has to know them."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = [index for index in args[1] if index is not None] if name == "index" else []
        if name in WAITING_OPS or any(index.dtype == torch.bool for index in masks):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _waits() -> Iterator[Counter[str]]:
    """Counts what would wait for a GPU."""
    found: Counter[str] = Counter()
    with _Calls(found), _Ops(found):
        yield found


def _batch(labels: Tensor, seed: int = 0) -> Batch:
    clips = torch.randn(4, 4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(clips, labels, list(range(4)), [], starts=[True] * 4)


CLASSES = torch.tensor([0, 1, 2, 1])
FRAMES = torch.tensor([[0, 1, 1, 0], [0, 0, 2, 2], [1, 1, -100, 0], [0, 0, 0, 0]])
SEVERAL = (torch.arange(48).view(4, 4, 3) % 3 == 0).float()


@pytest.mark.parametrize(
    ("options", "labels", "task", "carry_rows"),
    [
        ({}, CLASSES, None, 0),
        ({"output": "frames"}, FRAMES, FrameTask(), 0),
        ({"output": "frames", "overlapping": True}, SEVERAL, FrameTask(overlapping=True), 0),
        ({"output": "frames", "causal": True}, FRAMES, FrameTask(), 4),
    ],
    ids=["classes", "frames", "overlapping", "carried"],
)
@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_step_waits_for_its_device_once(
    options: dict[str, Any],
    labels: Tensor,
    task: Task | None,
    carry_rows: int,
    num_parts: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    names = ("a", "b", "c") if options.get("overlapping") else ("background", "b", "c")
    model = PKS4(PKS4Config(**{**TINY, **options}), labels=names).train()
    with open_accelerator(TrainConfig(device="cpu", trackers=()), tmp_path) as accelerator:
        stepper = Stepper(
            *(model, accelerator, Processes(), SynchronisedNorms(Processes()), OptimConfig(ema_decay=0.9)),
            num_classes=3,
            mix=None,
            task=task,
            seed=0,
            carry_rows=carry_rows,
        )
        parts, counts = [_batch(labels, seed) for seed in range(num_parts)], torch.full((1, num_parts), 4)
        stepper.take(parts, counts, step=0, lr=1e-3)
        # AdamW counts its steps on the CPU, where reading costs nothing.
        monkeypatch.setattr(stepper.optimizer, "step", lambda: None)
        with _waits() as waits:
            result = stepper.take(parts, counts, step=1, lr=1e-3)
    assert result.sums["clips"] == 4 * num_parts
    assert result.problem is None
    # The one read of the step, and the number of its clips, which is known on the CPU.
    assert waits == {"tolist": 1, "__int__": 1, "_local_scalar_dense": 1}


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_mixing_reads_no_value_of_the_clips(alphas: tuple[float, float]) -> None:
    config = AugmentConfig(mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    clips, labels = torch.zeros(4, 2, 3, 8, 8, device="meta"), torch.zeros(4, 3, device="meta")
    mixed, soft = mix(clips, labels, config, torch.Generator().manual_seed(0))
    assert mixed.device == soft.device == torch.device("meta")


class _SeenThere(Exception):
    """Enough was seen: what comes next would need values."""


def test_clips_go_to_the_device_first_and_are_finished_and_mixed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def finish(clips: Tensor, *_: Any) -> Tensor:
        seen.append(("finished", clips.device.type))
        return clips

    def mix_there(clips: Tensor, targets: Tensor, generator: torch.Generator, *_: Any) -> tuple[Tensor, Tensor]:
        seen.extend([("mixed", clips.device.type), ("drawn", generator.device.type)])
        raise _SeenThere

    monkeypatch.setattr(step, "finish_clips", finish)
    model = PKS4(PKS4Config(**TINY), labels=("a", "b", "c")).train()
    batch: Any = _batch(CLASSES)
    batch.left.append("what is left to do")
    with open_accelerator(TrainConfig(device="cpu", trackers=()), tmp_path) as accelerator:
        parts = model, accelerator, Processes(), SynchronisedNorms(Processes()), OptimConfig()
        stepper = Stepper(*parts, num_classes=3, mix=mix_there, task=None, seed=0)
        # a device without values: nothing of the clips could be read back
        monkeypatch.setattr(stepper, "accelerator", SimpleNamespace(device=torch.device("meta")))
        with _waits() as waits, pytest.raises(_SeenThere):
            stepper.take([batch], torch.full((1, 1), 4), step=0, lr=1e-3)
    assert seen == [("finished", "meta"), ("mixed", "meta"), ("drawn", "cpu")]
    assert not waits["copy that waits"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_clips_travel_to_a_gpu_as_bytes_and_are_finished_there(device: str, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8), fps=8)
    settings, augment = Preprocessing(num_frames=4, size=16), AugmentConfig(color_jitter=0.4, erase_rate=1.0)
    items = [VideoItem(tmp_path / "a.mp4", 0, name) for name in "ab"]
    dataset = VideoDataset(items, ["a"], TrainTransform(settings, augment), preprocessing=settings, mode="train")
    loader = LoaderConfig(batch_size=2, num_workers=0)
    # what it is for decides, and no GPU is touched
    [batch] = DatasetClips(dataset, loader, seed=0, processes=Processes(device=device)).batches(0, 0)
    assert batch.clips.dtype == (torch.float32 if device == "cpu" else torch.uint8)
    assert len(batch.left) == (0 if device == "cpu" else 2)
    if device == "cuda":
        # a device without values: what it needs of the clips was sampled before
        finished = finish_clips(batch.clips.to("meta"), batch.left, settings)
        assert (finished.device.type, finished.dtype) == ("meta", torch.float32)


def test_the_count_of_waits_finds_what_it_looks_for() -> None:
    value, mask = torch.arange(3.0), torch.tensor([True, False, True])
    with _waits() as waits:
        value.sum().item()
        value[mask]
        bool(value.sum() > 0)
    assert {"item", "index", "__bool__"} <= set(waits)


def _plain_stepper(model: PKS4, accelerator: Accelerator) -> Stepper:
    parts = (model, accelerator, Processes(), SynchronisedNorms(Processes()), OptimConfig())
    return Stepper(*parts, num_classes=3, mix=None, task=None, seed=0)


def test_fp16_leaves_out_a_step_that_overflows_and_lowers_the_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PKS4(PKS4Config(**TINY), labels=("a", "b", "c")).train()
    with open_accelerator(TrainConfig(device="cpu", trackers=()), tmp_path) as accelerator:
        # What accelerate has with float16 on a GPU: it scales the loss, and the optimizer asks the scaler.
        accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        stepper = _plain_stepper(model, accelerator)
        for parameter in model.parameters():
            # As float16 would: gradients beyond its range are infinite.
            parameter.register_hook(lambda gradient: gradient / (gradient.abs() < 2.0**15))
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        found = []
        for step in range(30):
            result = stepper.take([_batch(CLASSES)], torch.tensor([[4]]), step=step, lr=1e-3)
            assert result.problem is None
            found.append(result.skipped)
            if not result.skipped:
                break
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    assert found == [True] * (len(found) - 1) + [False]
    assert len(found) > 1
    assert scaler.get_scale() < 2.0**20
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_gradients_that_are_broken_at_any_scale_end_the_run(tmp_path: Path) -> None:
    model = PKS4(PKS4Config(**TINY), labels=("a", "b", "c")).train()
    with open_accelerator(TrainConfig(device="cpu", trackers=()), tmp_path) as accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        stepper = _plain_stepper(model, accelerator)
        next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        results = [stepper.take([_batch(CLASSES)], torch.tensor([[4]]), step=i, lr=1e-3) for i in range(4)]
    assert [result.skipped for result in results] == [True, True, True, False]
    assert results[-1].problem is not None
    assert results[-1].problem.what == "gradient norm"
