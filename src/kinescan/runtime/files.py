"""The one door through which small files are read: whatever is wrong with one becomes an error of `kinescan.errors`."""

import json
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinescan.errors import ConfigError
from kinescan.runtime.addresses import address_of
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import read_whole

MAX_BYTES = 256 * 2**20
"""Of one file that is read as a whole."""

MakeError = Callable[[str], Exception]


def require_regular(path: str | Path, *, error: MakeError = ConfigError) -> None:
    """Refuses what is not a file with an end: folders, named pipes, devices, sockets; and what is not there.

    Raises:
        ConfigError: (or what `error` makes) it is not a regular file.
    """
    require_path(path, error=error)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read ({_why(problem)}). Check the path and its permissions.") from None
    if not stat.S_ISREG(mode):
        raise error(f"{path} is {kind_of(mode)}; a regular file is needed here. Give the path of a file.")


def require_path(path: Any, *, error: MakeError = ConfigError) -> None:
    """Refuses what is not a path: a number, which the system takes for an open file, bytes, None, an empty text.

    Raises:
        ConfigError: (or what `error` makes) it is something else than a text or a path.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise error(
            f"a path must be text or a Path, got {path!r:.60} ({type(path).__name__}). Give the name of a file."
        )
    if not os.fspath(path):
        raise error("a path is empty. Give the name of a file.")


def inside(folder: str | Path, name: str, *, error: MakeError = ConfigError) -> Path:
    """The path of a file that something in a folder names, where it lies in that folder.

    Whoever made the folder chose the name and may have made links: neither may lead out of the folder. The links of a
    snapshot in the Hugging Face cache, into the `blobs` folder of the same repository, are followed.

    Args:
        folder: the folder.
        name: what is named in it: a plain file name.
        error: makes the error to raise.

    Raises:
        ConfigError: (or what `error` makes) the name has a folder in it, or the file is a link that leads out.

    Example:
        >>> inside("exported", "model.onnx").name
        'model.onnx'
    """
    if not name or name in (".", "..") or any(sign in name for sign in "/\\:\0"):
        raise error(f"{folder}: names the file {name!r}; only names of files in that folder itself are taken.")
    path, real = Path(folder) / name, Path(os.path.realpath(Path(folder) / name))
    root = Path(os.path.realpath(folder))
    snapshot = root.parent.name == "snapshots"
    if not (real.is_relative_to(root) or (snapshot and real.parent == root.parent.parent / "blobs")):
        raise error(f"{path} is a link to {real}, which lies outside of its folder. Put the file itself there.")
    return path


def read_bytes(path: str | Path, *, max_bytes: int = MAX_BYTES, error: MakeError = ConfigError) -> bytes:
    """What a regular file holds, or what lies at an address.

    Args:
        path: the file.
        max_bytes: a longer file is refused before it is read.
        error: makes the error to raise.

    Raises:
        ConfigError: (or what `error` makes) it is not a regular file, too long, or cannot be read.
    """
    address = address_of(path)
    if address is None:
        require_regular(path, error=error)
    try:
        if address is not None:
            content = read_whole(address, max_bytes)
        else:
            with open(path, "rb") as file:
                content = file.read(max_bytes + 1)
    except StoreError as problem:
        raise error(f"{address}: {problem.reason}") from None
    except (OSError, MemoryError) as problem:
        raise error(f"{path} cannot be read ({_why(problem)}). Check the path and its permissions.") from None
    if len(content) > max_bytes:
        raise error(f"{path} is longer than {max_bytes:,} bytes, which no file of its kind is. Check what it holds.")
    return content


def read_head(path: str | Path, num_bytes: int, *, error: MakeError = ConfigError) -> bytes:
    """The first bytes of a regular file; fewer where it is shorter.

    Raises:
        ConfigError: (or what `error` makes) it is not a regular file, or cannot be read.
    """
    require_regular(path, error=error)
    try:
        with open(path, "rb") as file:
            return file.read(num_bytes)
    except OSError as problem:
        raise error(f"{path} cannot be read ({_why(problem)}). Check the path and its permissions.") from None


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES, error: MakeError = ConfigError) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ConfigError: (or what `error` makes) it cannot be read, or is not UTF-8.
    """
    content = read_bytes(path, max_bytes=max_bytes, error=error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text ({problem.reason} at byte {problem.start}). Save it as UTF-8.") from None


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES, error: MakeError = ConfigError) -> Any:
    """What a JSON file holds, of any type.

    Raises:
        ConfigError: (or what `error` makes) it cannot be read, or is not UTF-8 or not JSON that can be taken in.
    """
    return parse_json(read_text(path, max_bytes=max_bytes, error=error), path, error=error)


def read_json_object(path: str | Path, *, max_bytes: int = MAX_BYTES, error: MakeError = ConfigError) -> dict[str, Any]:
    """What a JSON file holds that must hold one object.

    Raises:
        ConfigError: (or what `error` makes) as in `read_json`, or it holds something else.
    """
    content = read_json(path, max_bytes=max_bytes, error=error)
    if not isinstance(content, dict):
        raise error(f"{path} must hold a JSON object, not {type(content).__name__}. Write or fetch it again.")
    return content


def parse_json(text: str, name: str | Path, *, error: MakeError = ConfigError) -> Any:
    """The value of a JSON text; `name` says in messages where it stands.

    Raises:
        ConfigError: (or what `error` makes) it is not JSON, nested too deep, or has numbers of absurd length.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise error(
            f"{name} is not valid JSON (line {problem.lineno}: {problem.msg}). Write or fetch it again."
        ) from None
    except (RecursionError, ValueError) as problem:
        raise error(f"{name} is not JSON that can be read ({_why(problem)}). Write or fetch it again.") from None


def read_toml(path: str | Path, *, max_bytes: int = 16 * 2**20, error: MakeError = ConfigError) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ConfigError: (or what `error` makes) it cannot be read, or is not UTF-8 or not TOML.
    """
    text = read_text(path, max_bytes=max_bytes, error=error)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{path} is not valid TOML ({problem}). Correct that line.") from None
    except (RecursionError, ValueError) as problem:
        raise error(f"{path} is not TOML that can be read ({_why(problem)}). Correct it.") from None


def _why(problem: BaseException) -> str:
    if isinstance(problem, RecursionError):
        return "it is nested too deep"
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__


def kind_of(mode: int) -> str:
    """What a path is that is not a regular file, in words, by its `st_mode`."""
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "not a file")
