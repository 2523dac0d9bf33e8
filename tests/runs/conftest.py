"""The videos and settings of a short run are those of the command line's tests."""

from ..cli.conftest import kinescan, tiny, train_arguments, videos

__all__ = ["kinescan", "tiny", "train_arguments", "videos"]
