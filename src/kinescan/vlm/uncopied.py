"""Objects that exist once."""

from typing import NoReturn, SupportsIndex

from kinescan.errors import ConfigError


class Uncopied:
    """Base of what holds memory and a lock of its own: a copy would share one of them, and be out of step with it."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """What copy, deepcopy and pickle ask for.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"a {type(self).__name__} cannot be copied, pickled or sent to another process. Save it to a file, and "
            "load that where it is needed."
        )
