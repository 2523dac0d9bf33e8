import pytest

from kinescan.errors import DependencyError
from kinescan.runtime.optional_package import optional_package


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(DependencyError, match=r"no_such_package.*pip install 'kinescan\[export\]'"):
        optional_package("no_such_package")
