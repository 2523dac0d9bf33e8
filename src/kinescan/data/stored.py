"""Where the bytes of a video are: a file, a stretch of a shard (a tar), or an address; each is opened alike."""

import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from kinescan.errors import VideoError
from kinescan.runtime.addresses import address_of, shown_path
from kinescan.runtime.http_store import StoreError
from kinescan.runtime.remote import ByteWindow, RangeFile, forget, remote_size
from kinescan.runtime.urls import mask_url

TAR_BLOCK = 512
_MEMBER = re.compile(r"(?P<shard>.+\.tar)/(?P<offset>\d{1,18})\+(?P<size>\d{1,18})/(?P<name>[^/]+)", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w\-]+(\.\w+)?")


@dataclass(frozen=True)
class Member:
    """A video in a shard, as its path says it: SHARD.tar/OFFSET+SIZE/NAME.

    Attributes:
        shard: the tar, a file or an address.
        offset: of its first byte there.
        num_bytes: how many it has.
        name: in the tar.
    """

    shard: str
    offset: int
    num_bytes: int
    name: str

    @property
    def path(self) -> Path:
        """The path that stands for it.

        Example:
            >>> member_of(Member("a/0.tar", 512, 99, "1.mp4").path)
            Member(shard='a/0.tar', offset=512, num_bytes=99, name='1.mp4')
        """
        return Path(self.shard, f"{self.offset}+{self.num_bytes}", self.name)


def member_of(path: str | Path) -> Member | None:
    """The video of a shard that a path stands for; None for other paths."""
    text = str(path)
    found = _MEMBER.fullmatch(text) if ".tar/" in text else None
    if found is None or os.path.lexists(text):
        return None
    return Member(found["shard"], int(found["offset"]), int(found["size"]), found["name"])


def is_plain(path: str | Path) -> bool:
    """Whether a path is that of a file of its own on this machine."""
    return member_of(path) is None and address_of(path) is None


def num_bytes_of(path: str | Path) -> int:
    """The size of a video.

    Raises:
        OSError: it is not there; of addresses, a StoreError.
    """
    member = member_of(path)
    if member is not None:
        return member.num_bytes
    address = address_of(path)
    return os.path.getsize(path) if address is None else remote_size(address)[0]


def stamp_of(path: str | Path) -> tuple[int, int]:
    """The size of a video, and the time of its last change or what stands for it, without reading it.

    Raises:
        OSError: it is not there; of addresses, a StoreError.
    """
    member, address = member_of(path), address_of(path)
    if member is not None:
        return member.num_bytes, 0 if address is not None else os.stat(member.shard).st_mtime_ns
    if address is None:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    size, version = remote_size(address)
    return size, _number(version.encode())


def open_bytes(path: str | Path) -> BinaryIO:
    """The bytes of a video, to be read and sought in.

    Raises:
        VideoError: what should be in a shard is not there.
        OSError: the file is not there; of addresses, a StoreError.
    """
    member = member_of(path)
    if member is not None:
        return _open_member(path, member)
    address = address_of(path)
    if address is None:
        return open(path, "rb")
    size, version = remote_size(address)
    return _as_binary(RangeFile(address, 0, size, version=version, name=_safe_name(Path(path).name)))


def identity_of(path: str | Path, num_probed: int) -> tuple[int, int, int]:
    """Size, time of the last change or what stands for it, and a number for the first and the last bytes.

    Raises:
        OSError: it cannot be read.
    """
    _, changed = stamp_of(path)
    digest = hashlib.blake2b(digest_size=8)
    with open_bytes(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest.update(file.read(num_probed))
        file.seek(max(0, size - num_probed))
        digest.update(file.read(num_probed))
    return size, changed, int.from_bytes(digest.digest()) >> 1


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1


def _as_binary(file: io.RawIOBase) -> BinaryIO:
    return cast(BinaryIO, file)


def _safe_name(name: str) -> str:
    """A name that says nothing but its suffix to FFmpeg."""
    return name if _PLAIN_NAME.fullmatch(name) else "video" + (Path(name).suffix if name.isascii() else "")


def _open_member(path: str | Path, member: Member) -> BinaryIO:
    """A video in a shard, whose head in the tar says that it is this one."""
    address = address_of(member.shard)
    begin, name = member.offset - TAR_BLOCK, _safe_name(member.name)
    if address is not None:
        file: ByteWindow = RangeFile(address, begin, member.num_bytes, name=name, lead=TAR_BLOCK)
    else:
        _require_regular(path, member.shard)
        file = _Stretch(member.shard, begin, member.num_bytes, name=name, lead=TAR_BLOCK)
        end = os.path.getsize(member.shard)
        if end < member.offset + member.num_bytes:
            file.close()
            raise VideoError(
                path,
                f"{member.shard} is cut: it has {end:,} bytes, and this video ends at byte "
                f"{member.offset + member.num_bytes:,}. Fetch it again.",
            )
    try:
        if not _is_head_of(file.head(), member):
            shard = mask_url(shown_path(member.shard))
            raise VideoError(
                path,
                f"{shard} holds something else there: it was written anew since its index, or is damaged. Take both "
                "from where they were packed.",
            )
    except BaseException:
        file.close()
        raise
    return _as_binary(file)


def _require_regular(path: str | Path, shard: str) -> None:
    try:
        mode = os.stat(shard).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(path, f"its shard {shard} cannot be opened: {reason}. Bring it back.") from None
    if not stat.S_ISREG(mode):
        raise VideoError(path, f"its shard {shard} is not a file.")


def _is_head_of(head: bytes, member: Member) -> bool:
    name = head[:100].split(b"\0")[0].decode("utf-8", "replace")
    try:
        size = int(head[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return False
    return head[257:262] == b"ustar" and name == member.name and size == member.num_bytes


class _Stretch(ByteWindow):
    """A stretch of a file of this machine."""

    def __init__(self, file: str, start: int, num_bytes: int, *, name: str, lead: int) -> None:
        super().__init__(num_bytes, name=name, lead=lead)
        self._file, self._start = open(file, "rb", buffering=0), start  # noqa: SIM115

    def _read_at(self, position: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, self._start + position)

    def close(self) -> None:
        self._file.close()
        super().close()


def read_anew(path: str | Path) -> None:
    """Makes the next look at a video at an address, or in a shard there, ask its store."""
    member = member_of(path)
    address = address_of(path if member is None else member.shard)
    if address is not None:
        forget(address)


def why_missing(path: str | Path) -> str | None:
    """Why a video is not there or not given out at all, apart from what it holds; None where it is."""
    try:
        with open_bytes(path) as file:
            file.read(1)
    except StoreError as error:
        return error.reason if error.is_gone else None
    except VideoError as error:
        member = member_of(path)
        is_there = member is None or address_of(member.shard) is not None or os.path.exists(member.shard)
        return None if is_there else error.reason
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None
