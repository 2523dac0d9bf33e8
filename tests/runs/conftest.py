"""The videos and settings of a short run are those of the command line's tests."""

from ..cli.conftest import tiny, videos

__all__ = ["tiny", "videos"]
