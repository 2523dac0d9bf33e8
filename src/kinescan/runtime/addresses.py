"""Addresses that stand where a path does: s3://bucket/key, gs://bucket/key, http(s)://host/path.

An address travels as a `Path`, like every other file: "s3://bucket/a.mp4" as `Path("s3:/bucket/a.mp4")`, from which
`address_of` makes the address again. So it can be joined to names, and code that only hands paths on needs no change.
An address holds no secret: what is in a path comes into logs, reports and videos.json.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath

from kinescan.errors import ADDRESS_SCHEMES, ConfigError, with_both_slashes
from kinescan.runtime.urls import mask_url, url_of

OBJECT_STORES = ("s3", "gs", "gcs")
OBJECT_SCHEMES = tuple(f"{scheme}://" for scheme in OBJECT_STORES)
_ADDRESS = re.compile(rf"(?P<scheme>{'|'.join(ADDRESS_SCHEMES)}):/+(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_SECRET = (
    "What stands in an address comes into logs and reports. Let the environment hold what opens the store: "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc for http."
)


def address_of(path: str | PurePath) -> str | None:
    """The address that a path stands for; None for a file of this machine, whatever its name looks like.

    Example:
        >>> address_of(Path("s3:/bucket/a.mp4")), address_of("clips/a.mp4")
        ('s3://bucket/a.mp4', None)
    """
    found = _ADDRESS.fullmatch(text := str(path))
    if found is None or os.path.lexists(text):
        return None
    return f"{found['scheme'].lower()}://{found['rest']}"


def as_path(text: str | Path) -> Path:
    """The path that stands for what somebody typed: an address, or a file of this machine.

    Raises:
        ConfigError: the address holds a user, a password, a query or a fragment, or has an empty part, so that it would
            not come out of a path as it went in.

    Example:
        >>> as_path("s3://bucket/a.mp4").name
        'a.mp4'
    """
    if (address := address_of(text)) is not None:
        check_address(address)
    return Path(text)


def check_address(address: str) -> None:
    """Passes an address that holds no secret and can be a path.

    Raises:
        ConfigError: as for `as_path`.
    """
    scheme, _, rest = address.partition("://")
    host, _, inner = rest.partition("/")
    if "@" in host or "?" in rest or "#" in rest:
        raise ConfigError(
            f"{mask_url(address)}: an address with a user, password, query or fragment is not read. {_SECRET}"
        )
    if not host or "//" in rest or any(part in (".", "..") for part in inner.split("/")):
        raise ConfigError(
            f"{mask_url(address)}: an address is {scheme}://{'BUCKET/KEY' if scheme in OBJECT_STORES else 'HOST/PATH'} "
            "without empty parts, '.' and '..'. Correct it."
        )


def is_read_address(text: str) -> bool:
    """Passes an address that is read.

    Raises:
        ConfigError: it is one that is not read, or holds secrets.
    """
    address = address_of(text)
    if address is None:
        allowed = ", ".join(f"{scheme}://" for scheme in ADDRESS_SCHEMES)
        raise ConfigError(f"{mask_url(text)} is an address that is not read here. Allowed: {allowed}.")
    check_address(address)
    return True


def absolute(path: str | Path) -> str:
    """The path from the root on; of an address, the path that stands for it, as it is."""
    return str(Path(path)) if address_of(path) is not None else os.path.abspath(path)


def shown_path(path: str | PurePath) -> str:
    """How results and logs name a path: an address with both of its slashes, as errors name it.

    Example:
        >>> shown_path(Path("s3://bucket/a.mp4")), shown_path(Path("clips/a.mp4"))
        ('s3://bucket/a.mp4', 'clips/a.mp4')
    """
    return with_both_slashes(str(path))


def is_remote(path: str | PurePath) -> bool:
    """Whether a path stands for an address."""
    return address_of(path) is not None


def require_local(path: str | PurePath, *, error: Callable[[str], Exception] = ConfigError) -> None:
    """Passes a path of this machine, for what is written here alone.

    Raises:
        ConfigError: (or what `error` makes) it stands for an address, of whatever kind.
    """
    address = address_of(path) or url_of(Path(path))
    if address is not None:
        raise error(
            f"{mask_url(address)} cannot be written: runs, reports and models are written to this machine; of what "
            "kinescan writes, only shards (kinescan data pack) go to a store. Name a folder here, and copy it there."
        )


def is_in_object_store(path: str | PurePath) -> bool:
    """Whether a path stands for an address in an object store."""
    return (address_of(path) or "").startswith(OBJECT_SCHEMES)


def is_remote_folder(path: str | PurePath) -> bool:
    """Whether a path stands for an address in an object store that has no ending, as those of folders have none."""
    return not PurePath(path).suffix and is_in_object_store(path)
