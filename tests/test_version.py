import re

import kinescan
from kinescan.version import __version__


def test_version_is_a_semantic_one_and_the_package_says_it() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", __version__)
    assert kinescan.__version__ == __version__
