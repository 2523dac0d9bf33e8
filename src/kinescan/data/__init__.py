"""Video files as clips: decoding, sampling, transforms, data sets and loaders.

Each name is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.data.check import DataCheck, check_videos
    from kinescan.data.datasets import Sample, Unreadable, VideoDataset, split_items
    from kinescan.data.listing import VideoItem, VideoList, list_videos, read_items
    from kinescan.data.loader import Batch, LoaderConfig, VideoLoader, make_loader
    from kinescan.data.sampling import Views, dense_indices, segment_indices, view_indices
    from kinescan.data.transforms import AugmentConfig, EvalTransform, TrainTransform, mix
    from kinescan.data.video import Frames, Inspection, Limits, VideoReader, inspect_video, write_video

__all__ = [
    "AugmentConfig",
    "Batch",
    "DataCheck",
    "EvalTransform",
    "Frames",
    "Inspection",
    "Limits",
    "LoaderConfig",
    "Sample",
    "TrainTransform",
    "Unreadable",
    "VideoDataset",
    "VideoItem",
    "VideoList",
    "VideoLoader",
    "VideoReader",
    "Views",
    "check_videos",
    "dense_indices",
    "inspect_video",
    "list_videos",
    "make_loader",
    "mix",
    "read_items",
    "segment_indices",
    "split_items",
    "view_indices",
    "write_video",
]

__getattr__ = lazy_names(
    __name__,
    {
        "kinescan.data.check": ["DataCheck", "check_videos"],
        "kinescan.data.datasets": ["Sample", "Unreadable", "VideoDataset", "split_items"],
        "kinescan.data.listing": ["VideoItem", "VideoList", "list_videos", "read_items"],
        "kinescan.data.loader": ["Batch", "LoaderConfig", "VideoLoader", "make_loader"],
        "kinescan.data.sampling": ["Views", "dense_indices", "segment_indices", "view_indices"],
        "kinescan.data.transforms": ["AugmentConfig", "EvalTransform", "TrainTransform", "mix"],
        "kinescan.data.video": ["Frames", "Inspection", "Limits", "VideoReader", "inspect_video", "write_video"],
    },
    ("clips", "readers", "synthetic"),
)
