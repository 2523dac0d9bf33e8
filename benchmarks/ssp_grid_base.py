"""The VideoMamba with a real grid of patches that `ssp_grid.py` tunes, and the clips that it is tuned on.

7 x 7 patches, 8 frames, 8 blocks. It learns from stills first (where, how large, how turned, what it looks like), then
three pairs of motions and half of the looks; the other motions and looks are what its tuners get.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinescan.data.synthetic import NUM_STILL_TARGETS, StillClips
from kinescan.data.synthetic.appearance import AppearanceConfig, render_appearance
from kinescan.data.synthetic.motion import MotionConfig
from kinescan.models.videomamba.videomamba import VideoMamba
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing
from kinescan.runs.stills import still_task
from kinescan.training.accelerator import TrainConfig
from kinescan.training.loop import fit
from memory_clips import (
    MEAN,
    STD,
    MemoryClips,
    of_one_kind,
    optim,
    render_motion_pairs,
    start_like_mamba,
    to_clips,
    two_kinds,
)

SIZES: dict[str, Any] = {"image_size": 28, "patch_size": 4, "width": 48, "depth": 8, "state_size": 8}
NUM_FRAMES = 8
SEEN_PAIRS, UNSEEN_PAIRS = ("vertical", "turning", "scaling"), ("horizontal", "meeting", "covering")
LOOKS = tuple(AppearanceConfig().looks)
SEEN_LOOKS, UNSEEN_LOOKS = LOOKS[::2], LOOKS[1::2]
NUM_SEEN_MOTIONS = 2 * len(SEEN_PAIRS)
STILLS, STILL_EPOCHS, STILL_BATCH = 6400, 4, 64
MOTIONS_PER_CLASS, LOOKS_PER_CLASS, EPOCHS, BATCH, RATE = 800, 200, 1, 32, 2e-3
PIXELS = Preprocessing(size=SIZES["image_size"], num_frames=1, mean=(MEAN,) * 3, std=(STD,) * 3)

Clips = tuple[Tensor, Tensor]
"""Pixels [n, T, 3, S, S] uint8 and labels [n]."""


def render_motions(pairs: tuple[str, ...], split: Any, per_class: int, first: int = 0) -> Clips:
    config = MotionConfig(frame_size=SIZES["image_size"], num_frames=NUM_FRAMES)
    return render_motion_pairs(config, pairs, split, per_class, first)


def render_looks(names: tuple[str, ...], split: Any, per_class: int, first: int = 0) -> Clips:
    """Clips whose look is the class, however they move."""
    config = AppearanceConfig(frame_size=SIZES["image_size"], num_frames=NUM_FRAMES)
    pixels = [render_appearance(config, split, name, first + index) for name in names for index in range(per_class)]
    return torch.stack(pixels), torch.arange(len(names)).repeat_interleave(per_class)


TARGETS: Mapping[str, Callable[[Any, int, int], Clips]] = {
    "motions": lambda split, per_class, first: render_motions(UNSEEN_PAIRS, split, per_class, first),
    "looks": lambda split, per_class, first: render_looks(UNSEEN_LOOKS, split, per_class, first),
}
"""What the tuners get: split, clips of a class, index of the first -> clips of six classes."""


def kept(file: Path, render: Callable[[], Clips]) -> Clips:
    """Clips that are rendered once and read afterwards."""
    if not file.exists():
        aside = file.with_suffix(".part")
        torch.save(render(), aside)
        aside.replace(file)
    pixels, labels = torch.load(file)
    return pixels, labels


def make_base(work: Path) -> tuple[Path, dict[str, float]]:
    """Trains the base; continues an interrupted run.

    Returns:
        The file of its weights, and its accuracies on test clips of what it was taught.
    """
    file = work / "base.pth"
    train = TrainConfig(device="cpu", trackers=(), checkpoint_minutes=0.5)
    stills = work / "stills" / "checkpoints" / "last"
    if not (work / "stills.done").exists():
        torch.manual_seed(0)
        image = create_model(
            "videomamba_tiny", num_classes=NUM_STILL_TARGETS, num_frames=1, preprocessing=PIXELS, **SIZES
        )
        assert isinstance(image, VideoMamba)
        start_like_mamba(image)
        source = StillClips(PIXELS, num_batches=STILLS // STILL_BATCH, batch_size=STILL_BATCH)
        schedule = optim(RATE, STILL_EPOCHS, batch=STILL_BATCH)
        fit(image, source, output=work / "stills", train=train, optim=schedule, task=still_task, resume=stills.exists())
        (work / "stills.done").touch()
    torch.manual_seed(0)
    motions = kept(work / "motions.pt", lambda: render_motions(SEEN_PAIRS, "train", MOTIONS_PER_CLASS))
    looks = kept(work / "looks.pt", lambda: render_looks(SEEN_LOOKS, "train", LOOKS_PER_CLASS))
    pixels, labels = torch.cat([motions[0], looks[0]]), torch.cat([motions[1], looks[1] + NUM_SEEN_MOTIONS])
    num_classes = int(labels.max()) + 1
    model = create_model("videomamba_tiny", num_classes=num_classes, weights=stills, num_frames=NUM_FRAMES)
    clips = MemoryClips(pixels, labels, num_classes=num_classes, seed=0, batch_size=BATCH)
    folder = work / "pretraining"
    fit(
        model,
        clips,
        output=folder,
        train=train,
        optim=optim(RATE, EPOCHS, batch=BATCH, warmup=0.2),
        task=partial(two_kinds, num_motions=NUM_SEEN_MOTIONS),
        resume=(folder / "checkpoints" / "last").exists(),
    )
    torch.save({"model": model.state_dict()}, file)
    test_motions, test_looks = render_motions(SEEN_PAIRS, "test", 60), render_looks(SEEN_LOOKS, "test", 60)
    return file, {
        "seen_motions_of_6": _accuracy(model, *test_motions),
        "seen_looks_of_6": _accuracy(model, test_looks[0], test_looks[1] + NUM_SEEN_MOTIONS),
    }


@torch.inference_mode()
def _accuracy(model: VideoMamba | Any, pixels: Tensor, labels: Tensor) -> float:
    hits = [
        of_one_kind(model(to_clips(some)), true, NUM_SEEN_MOTIONS).argmax(dim=1) == true
        for some, true in zip(pixels.split(50), labels.split(50), strict=True)
    ]
    return torch.cat(hits).float().mean().item()
