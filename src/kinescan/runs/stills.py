"""A ViT that learns from synthetic single pictures: the image weights of the demo and of studies."""

from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F

from kinescan.config import RunConfig
from kinescan.data.synthetic import NUM_COLOUR_TARGETS, NUM_POSE_TARGETS, NUM_STILL_TARGETS, StillClips
from kinescan.models.classifier import VideoClassifier
from kinescan.models.zoo import create_model
from kinescan.settings import to_plain
from kinescan.training.callbacks import Callback
from kinescan.training.loop import fit

STILLS_PER_EPOCH = 3200
FAMILY_WEIGHT = 0.1
FOUND = 0.125
"""A still's centre counts as found within half a patch of 8 in 64 pixels, where the frame is 2 wide."""


def make_still_model(config: RunConfig) -> VideoClassifier:
    """The model that `train_on_stills` trains; its outputs are the targets of a still.

    Raises:
        ConfigError: a setting of the model is wrong.
    """
    return create_model(
        config.model.name, num_classes=NUM_STILL_TARGETS, preprocessing=config.preprocessing, **config.model.options
    )


def train_on_stills(
    config: RunConfig,
    output: Path,
    stills_per_epoch: int = STILLS_PER_EPOCH,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """The folder of a ViT that has learnt from single pictures.

    Args:
        config: of the run; its data is not used.
        output: folder of the run.
        stills_per_epoch: pictures in an epoch.
        resume: continues from the run's last checkpoint, if there is one.
        callbacks: as for `kinescan.training.fit`.

    Raises:
        ConfigError, CheckpointError, NonFiniteError, TrainingInterrupted: as `kinescan.training.fit` raises them.
    """
    set_seed(config.seed)
    model = make_still_model(config)
    batch_size = config.loader.batch_size
    stills = StillClips(
        config.preprocessing,
        num_batches=max(1, stills_per_epoch // batch_size),
        batch_size=batch_size,
        seed=config.seed,
    )
    result = fit(
        model,
        stills,
        output=output,
        train=config.train,
        optim=config.optim,
        task=still_task,
        seed=config.seed,
        resume=resume,
        settings=to_plain(config),
        callbacks=callbacks,
    )
    return result.last


def still_task(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of pose and colour, and a tenth of the texture family's cross-entropy.

    Args:
        outputs: [B, F], the model's.
        targets: [B, F], pose, colour and the texture family one-hot.

    Returns:
        The loss, a scalar; and for each still whether its centre was found, [B] bool.
    """
    numbers = NUM_POSE_TARGETS + NUM_COLOUR_TARGETS
    error = (outputs[:, :numbers] - targets[:, :numbers]) ** 2
    family = F.cross_entropy(outputs[:, numbers:], targets[:, numbers:])
    return error.mean() + FAMILY_WEIGHT * family, error[:, :2].detach().amax(1) < FOUND**2
