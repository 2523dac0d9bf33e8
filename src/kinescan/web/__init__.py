"""The page and the service; a module is loaded when it is first used, so that `--help` loads none."""

from typing import TYPE_CHECKING

from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.web import serving as serving

__getattr__ = lazy_names(__name__, {}, ("serving",))
