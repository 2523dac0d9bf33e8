"""The videos and settings of a short run are those of the command line's tests."""

from ..cli.conftest import kinescan, tiny, train_arguments, videos
from ..events.test_webhook import serve

__all__ = ["kinescan", "serve", "tiny", "train_arguments", "videos"]
