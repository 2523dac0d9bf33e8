from pathlib import Path

import pytest
import torch

from kinescan.data.datasets import VideoDataset
from kinescan.data.listing import VideoItem
from kinescan.data.sampling import Views
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import write_video
from kinescan.models.zoo import create_model
from kinescan.preprocessing import Preprocessing

CLASSES = ("dark", "bright")


@pytest.fixture
def videos(tmp_path) -> list[VideoItem]:
    """Six videos of two classes."""
    items = []
    for index in range(6):
        label = index % 2
        path = tmp_path / "videos" / CLASSES[label] / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 130 if label else 0
        pixels = torch.randint(low, low + 120, (9 + index, 3, 32, 48), dtype=torch.uint8)
        write_video(path, pixels, fps=8)
        items.append(VideoItem(path, label, path.name))
    return items


@pytest.fixture
def make_dataset(videos):
    def make(*, items=videos, classes=CLASSES, views="4x2x3"):
        preprocessing = Preprocessing(size=16, num_frames=4)
        views = Views.parse(views)
        transform = EvalTransform(preprocessing, crops=views.crops)
        return VideoDataset(items, classes, transform, preprocessing=preprocessing, mode="test", views=views)

    return make


@pytest.fixture
def brightness_model():
    """A frame-averaging ViT whose head is set to tell bright from dark: its right answers are known."""

    def make(labels=CLASSES, **options):
        torch.manual_seed(1)
        model = create_model(
            "vit_ti16",
            labels=labels,
            preprocessing=Preprocessing(size=16, num_frames=4),
            image_size=16,
            patch_size=8,
            width=16,
            depth=1,
            heads=2,
            mlp_dim=32,
            embed_dim=8,
            **options,
        )
        model.eval()
        dark, bright = torch.full((1, 4, 3, 16, 16), -1.5), torch.full((1, 4, 3, 16, 16), 1.5)
        with torch.no_grad():
            frames = torch.stack([model.vit(clip[0]).mean(0) for clip in (dark, bright)])
            direction = frames[1] - frames[0]
            middle = frames.mean(0)
            model.head.weight.zero_()
            model.head.bias.zero_()
            if labels is not None and "bright" in labels:
                row = list(labels).index("bright")
                scale = 8 / direction.dot(direction)
                model.head.weight[row] = scale * direction
                model.head.bias[row] = -scale * direction.dot(middle)
                for other, label in enumerate(labels):
                    if label not in CLASSES:
                        model.head.bias[other] = -9
        return model

    return make


@pytest.fixture
def spoiled(tmp_path) -> Path:
    path = tmp_path / "videos" / "bright" / "broken.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("this is no video")
    return path
