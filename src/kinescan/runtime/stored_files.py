"""Files that are written, listed and removed alike in a folder of this machine and in an object store."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinescan.errors import ConfigError, KinescanError
from kinescan.runtime.addresses import address_of, check_address, is_remote_folder
from kinescan.runtime.atomic_write import atomic_write
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import ObjectStore, forget, sizes_below, store_of, tried_again


@contextmanager
def write_file(path: str | Path) -> Iterator[Path]:
    """A new file that takes its name when the block ends well, on this machine or in an object store.

    For an address the block writes a file of this machine, in the system's folder for temporary files; it is uploaded
    when it is whole. Whoever reads the address sees the old object or the new one.

    Yields:
        the path to write to; it ends as `path` does.

    Raises:
        ConfigError: it cannot be written, the store refuses, or the address is that of a web server.
        DependencyError: the package for this store is not installed.
    """
    address = address_of(path)
    if address is None:
        with atomic_write(path) as aside:
            yield aside
        return
    store = _object_store(address)
    try:
        with tempfile.TemporaryDirectory(prefix="kinescan-") as folder:
            aside = Path(folder, Path(path).name)
            yield aside
            tried_again(address, lambda: store.write(aside, address))
    except StoreError as error:
        reason = (
            "there is no such bucket (404). Make it, or correct the address." if error.status == 404 else error.reason
        )
        raise ConfigError(f"{address} cannot be written: {reason}") from None
    except KinescanError:
        raise
    except OSError as error:
        raise ConfigError(
            f"what goes to {address} cannot be written in {tempfile.gettempdir()} ({error.strerror or error}). Free "
            "space there, or set TMPDIR to another folder."
        ) from error
    forget(address)


def sizes_in(folder: str | Path) -> dict[str, int]:
    """The names of the files right in a folder, with their bytes; none where there is no such folder.

    Raises:
        ConfigError: it cannot be listed.
    """
    address = address_of(folder)
    try:
        if address is None:
            with os.scandir(folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        within = address.rstrip("/") + "/"
        names = {name.removeprefix(within): size for name, size in sizes_below(address).items()}
        return {name: size for name, size in names.items() if "/" not in name}
    except FileNotFoundError:
        return {}
    except StoreError as error:
        if error.status == 404:
            return {}
        raise ConfigError(f"{address}: {error.reason}") from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be listed ({error.strerror or error}). Choose another folder.") from None


def require_file_taker(folder: str | Path) -> None:
    """Passes a folder of this machine, and an address of a store that takes files, as far as can be known unasked.

    Raises:
        ConfigError: the address is that of a web server, or ends as a file does.
        DependencyError: the package for this store is not installed.
    """
    address = address_of(folder)
    if address is None:
        return
    _object_store(address)
    if not is_remote_folder(folder):
        raise ConfigError(f"{address} ends as a file does, and would not be read as a folder. Leave its ending out.")


def remove_file(path: str | Path) -> None:
    """Takes a file away.

    Raises:
        OSError: it cannot be removed; of addresses, a StoreError.
    """
    address = address_of(path)
    if address is None:
        os.unlink(path)
    else:
        store = _object_store(address)
        tried_again(address, lambda: store.remove(address))
        forget(address)


def _object_store(address: str) -> ObjectStore:
    check_address(address)
    store = store_of(address)
    if not isinstance(store, ObjectStore):
        raise ConfigError(
            f"{address}: a web server takes no files. Name a folder of this machine, or one of an object store "
            "(s3://, gs://)."
        )
    return store
