"""Video files as clips: decoding, sampling, transforms, data sets and loaders."""

from kinescan.data.check import DataCheck, check_videos
from kinescan.data.datasets import Sample, Unreadable, VideoDataset, VideoItem, read_items, split_items
from kinescan.data.listing import VideoList, list_videos
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
