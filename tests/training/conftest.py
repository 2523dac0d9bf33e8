"""A classifier of a few parameters and clips made of noise, so that the loop's tests take milliseconds."""

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from kinescan.data.loader import Batch
from kinescan.models.classifier import VideoClassifier
from kinescan.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    num_classes: int = 2
    image_size: int = 4
    dropout: float = 0.0


class TinyClassifier(VideoClassifier):
    config_class = TinyConfig

    def __init__(
        self,
        config: TinyConfig,
        *,
        name: str = "tiny",
        labels: tuple[str, ...] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(config, name=name, labels=labels, preprocessing=preprocessing)
        self.backbone = nn.Linear(3, 8)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(8, config.num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.dropout(torch.relu(self.backbone(clip.mean(dim=(1, 3, 4))))))

    def layer_depths(self) -> dict[str, int]:
        return {"backbone.weight": 0, "backbone.bias": 0}

    @property
    def num_layers(self) -> int:
        return 2


@dataclass(frozen=True)
class Problem:
    path: str
    reason: str
    item_index: int


class NoiseClips:
    """Clips whose class is the sign of their first channel's mean; sampled from (epoch, batch) alone."""

    num_classes = 2

    def __init__(self, num_batches: int = 4, batch_size: int = 8) -> None:
        self.num_batches, self.batch_size = num_batches, batch_size
        self.broken: dict[tuple[int, int], Tensor] = {}
        self.unreadable: list[Problem] = []
        self.served: list[tuple[int, int]] = []

    def path(self, item_index: int) -> str:
        return f"videos/{item_index}.mp4"

    def batches(self, epoch: int, first_batch: int) -> Iterable[Batch]:
        for index in range(first_batch, self.num_batches):
            self.served.append((epoch, index))
            yield self._batch(epoch, index)

    def _batch(self, epoch: int, index: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        labels = torch.randint(0, 2, (self.batch_size,), generator=generator)
        clips = torch.randn(self.batch_size, 2, 3, 4, 4, generator=generator)
        clips[:, :, 0] += (2.0 * labels - 1)[:, None, None, None]
        if (epoch, index) in self.broken:
            clips = self.broken[epoch, index].expand_as(clips).clone()
        first = index * self.batch_size
        indices = torch.arange(first, first + self.batch_size)
        return Batch(clips=clips, labels=labels, item_indices=indices, unreadable=list(self.unreadable))


@pytest.fixture
def tiny_model() -> TinyClassifier:
    return TinyClassifier(TinyConfig(), labels=("class_0", "class_1"))


@pytest.fixture
def noise_clips() -> type[NoiseClips]:
    return NoiseClips
