"""A classifier under transformers' Auto classes; see `registration.register_transformers`.

The second module that imports transformers, beside `vlm.families`: its base classes have to be inherited from.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForVideoClassification,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput

# Not from the top: there it is a stand-in that asks for torchvision.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_processing_utils import BaseVideoProcessor

from kinescan.data.clips import read_clips
from kinescan.data.sampling import Views, view_indices
from kinescan.data.transforms import EvalTransform
from kinescan.errors import ConfigError, ShapeError
from kinescan.layers.class_token import ClassTokenShift
from kinescan.models.classifier import VideoClassifier
from kinescan.models.registry import require_model
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.transformers_internals import InitialisedWeights, name_processor, name_video_classifier
from kinescan.settings import build_settings, to_plain

MODEL_TYPE = "kinescan"


class KinescanConfig(PreTrainedConfig):  # type: ignore[misc]
    """What transformers' config.json says of a kinescan classifier.

    Args:
        architecture: its name in the zoo.
        options: every field of its config.
        preprocessing: every field of its `Preprocessing`.
        num_frames: frames of a clip.
        **kwargs: what transformers keeps: id2label, label2id, ...
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        architecture: str = "",
        options: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        num_frames: int = 8,
        **kwargs: Any,
    ) -> None:
        self.architecture = architecture
        self.options = options or {}
        self.preprocessing = preprocessing or {}
        self.num_frames = num_frames
        super().__init__(**kwargs)


class KinescanForVideoClassification(InitialisedWeights, PreTrainedModel):  # type: ignore[misc]
    """A classifier with transformers' names: pixel_values [B, T, 3, H, W] in, `logits` (and `loss`) out.

    Args:
        config: names the model in the zoo.
    """

    config_class = KinescanConfig
    main_input_name = "pixel_values"
    base_model_prefix = "classifier"

    def __init__(self, config: KinescanConfig) -> None:
        super().__init__(config)
        try:
            model = require_model(config.architecture).model
        except ConfigError as error:
            raise ConfigError(f"config.json: {error}") from None
        self.classifier = model(
            build_settings(model.config_class, config.options, where="options"),
            name=config.architecture,
            labels=[config.id2label[index] for index in range(config.num_labels)],
            preprocessing=build_settings(Preprocessing, config.preprocessing, where="preprocessing"),
        )
        self.post_init()

    def after_loading(self, module: nn.Module) -> None:
        """The classifier has initialised its weights; only what is in no checkpoint is made again after loading."""
        if isinstance(module, ClassTokenShift):
            module.reset_buffers()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """Logits [B, K], and the cross entropy where labels [B] are given."""
        logits = self.classifier(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class KinescanVideoProcessor(BaseVideoProcessor):  # type: ignore[misc]
    """Videos to pixel_values [1, T, 3, size, size], by our own decoder and transforms; torchvision is not needed.

    Args:
        preprocessing: every field of the model's `Preprocessing`.
        **kwargs: what transformers keeps.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers' own attribute)

    # Not BaseVideoProcessor's: its settings and its methods are those of torchvision.
    def __init__(self, preprocessing: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.preprocessing = preprocessing or to_plain(Preprocessing())
        name_processor(self, kwargs.pop("processor_class", None))

    def to_dict(self) -> dict[str, Any]:
        """What is saved."""
        return {"video_processor_type": type(self).__name__, "preprocessing": self.preprocessing}

    def __call__(self, videos: Any, num_frames: int | None = None, **kwargs: Any) -> BatchFeature:
        """One clip of each video.

        Args:
            videos: a path, or an array or tensor of bytes [T, H, W, 3] or [T, 3, H, W]; or a list of them.
            num_frames: frames to sample; by default the model's.
            **kwargs: what the pipeline passes; torch tensors are returned in any case.

        Raises:
            ShapeError: an array is something else.
            VideoError: a file cannot be read.
        """
        settings = build_settings(
            Preprocessing,
            self.preprocessing | ({} if num_frames is None else {"num_frames": num_frames}),
            where="preprocessing",
        )
        several = videos if isinstance(videos, list | tuple) else [videos]
        return BatchFeature({"pixel_values": torch.stack([_clip(video, settings) for video in several])})

    preprocess = __call__


def register() -> None:
    """Puts our classes on transformers' lists; more than once changes nothing."""
    AutoConfig.register(MODEL_TYPE, KinescanConfig, exist_ok=True)
    AutoModelForVideoClassification.register(KinescanConfig, KinescanForVideoClassification, exist_ok=True)
    AutoVideoProcessor.register(KinescanConfig, KinescanVideoProcessor, exist_ok=True)
    name_video_classifier(MODEL_TYPE, KinescanForVideoClassification.__name__)


def wrap(model: VideoClassifier, num_frames: int) -> tuple[KinescanForVideoClassification, KinescanVideoProcessor]:
    """The classifier (its own tensors, not copies) and its preprocessing under transformers' classes."""
    labels = dict(enumerate(model.class_names))
    preprocessing = to_plain(model.preprocessing) | {"num_frames": num_frames}
    config = KinescanConfig(
        architecture=model.name,
        options=to_plain(model.config),
        preprocessing=preprocessing,
        num_frames=num_frames,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )
    with torch.device("meta"):
        wrapped = KinescanForVideoClassification(config)
    wrapped.classifier = model
    return wrapped, KinescanVideoProcessor(preprocessing=preprocessing)


def _clip(video: Any, settings: Preprocessing) -> Tensor:
    """One clip [T, 3, size, size]."""
    transform = EvalTransform(settings)
    if isinstance(video, str | Path):
        views = Views(frames=settings.num_frames, clips=1, crops=1)
        return read_clips(Path(video), settings, views, transform)[0][0, 0]
    pixels = torch.from_numpy(np.ascontiguousarray(video)) if isinstance(video, np.ndarray) else video
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or 3 not in (pixels.shape[1], pixels.shape[3]):
        given = f"{list(pixels.shape)}" if isinstance(pixels, Tensor) else type(video).__name__
        raise ShapeError(
            f"a video must be a path, or bytes [T, H, W, 3] or [T, 3, H, W], got {given}. "
            "Give frames as one array; a local file instead of an address."
        )
    if pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2)
    indices = view_indices(
        len(pixels),
        num_frames=settings.num_frames,
        num_clips=1,
        sampling=settings.sampling,
        frame_stride=settings.frame_stride,
        num_windows=settings.num_windows,
        frame_rate=settings.frame_rate,
        # frames of an array come without times: they lie as far apart as the model has them
        pts_seconds=torch.arange(len(pixels), dtype=torch.float64) / (settings.frame_rate or 1.0),
    )
    return transform(pixels[indices[0]])[0]
