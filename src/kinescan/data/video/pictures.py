"""What coded packets say of their pictures without being decoded: hidden, B, a second field, a clean start."""

from collections.abc import Iterator
from dataclasses import dataclass

from kinescan.data.video.bits import Bits

# Enough for the start of any slice, and for a parameter set with scaling lists.
_HEADER_BYTES, _SET_BYTES = 40, 600
_START_BYTES = 4096
_START_CODE = b"\x00\x00\x01"
# H.264: slices, the first slice of an instantaneous refresh (a clean start), and the sets that describe them
_SLICES, _H264_REFRESH, _SEQUENCE_SET, _PICTURE_SET = (1, 2, 5), 5, 7, 8
_SEQUENCE_STARTS = tuple(_START_CODE + bytes([_SEQUENCE_SET | importance << 5]) for importance in (1, 2, 3))
_HEVC_REFRESH, _HEVC_SLICES = (19, 20), range(32)
_WITH_CHROMA_FORMAT = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


@dataclass(frozen=True)
class Field:
    """One field of a frame of H.264 that is coded as two pictures.

    Attributes:
        frame_number: the same for both fields of a frame.
        bottom: every second row from the second on; otherwise from the first on.
    """

    frame_number: int
    bottom: bool


@dataclass(frozen=True)
class _SequenceSet:
    """Of a sequence parameter set: what the header of a slice needs to be read."""

    separate_planes: bool
    frame_number_bits: int
    frames_only: bool


class PictureReader:
    """Reads the headers of one stream's packets, in their order.

    Args:
        codec: FFmpeg's name.
        extradata: the stream's own header; it tells how H.264 and HEVC packets are divided.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self.codec = codec
        header = extradata or b""
        self._length_bytes = 0
        self._sequences: dict[int, _SequenceSet] = {}
        self._sequence_of: dict[int, int] = {}
        if codec == "h264" and header[:1] == b"\x01" and len(header) > 6:
            self._length_bytes = (header[4] & 3) + 1
            self._read_sets(_units_of_avcc(header))
        elif codec == "hevc" and header[:1] == b"\x01" and len(header) > 22:
            self._length_bytes = (header[21] & 3) + 1
        elif codec == "h264":
            self._read_sets(self._units(header))
        self._interlaced = self._may_hold_fields()

    def is_b(self, data: memoryview) -> bool:
        """Whether the packet's picture may be shown before one that was decoded earlier; True where nothing tells."""
        if self.codec == "h264":
            # a slice starts with its position, 0 (the bit 1), and its kind: 1 (010) or 6 (00111) is B
            start = self._first_slice(data)
            return start >> 7 == 1 and (start >> 4 & 7 == 0b010 or start >> 2 & 31 == 0b00111)
        if self.codec == "mpeg4":
            found = _after(data, b"\x00\x00\x01\xb6")
            return bool(found) and found[0] >> 6 == 2
        if self.codec in ("mpeg1video", "mpeg2video"):
            found = _after(data, b"\x00\x00\x01\x00")
            return len(found) > 1 and found[1] >> 3 & 7 == 3
        return True

    def starts_clean(self, data: memoryview) -> bool:
        """Whether no frame from this key packet on can refer to one before it, as far as the codec tells."""
        if self.codec == "h264":
            return any(unit[0] & 31 == _H264_REFRESH for unit in self._slices(data))
        if self.codec == "hevc":
            kinds = [unit[0] >> 1 & 63 for unit in self._units(bytes(data[:65536])) if unit]
            return next((kind in _HEVC_REFRESH for kind in kinds if kind in _HEVC_SLICES), False)
        return True

    def lone_field(self, data: memoryview) -> Field | None:
        """The field that a packet of H.264 holds, None where it holds a whole frame."""
        if self.codec != "h264":
            return None
        if not self._length_bytes and any(start in bytes(data[:256]) for start in _SEQUENCE_STARTS):
            # streams without a header of their own repeat it, and may change it
            self._read_sets(self._units(bytes(data[:_START_BYTES])))
            self._interlaced = self._may_hold_fields()
        if not self._interlaced:
            return None
        fields = {self._field(unit) for unit in self._slices(data)}
        return fields.pop() if len(fields) == 1 else None

    def num_pictures(self, data: memoryview) -> int:
        """How many pictures a packet of MPEG-4 holds: some files put two into one ("packed")."""
        return bytes(data).count(b"\x00\x00\x01\xb6")

    def _field(self, unit: bytes) -> Field | None:
        bits = Bits(_unescaped(unit[1:_HEADER_BYTES]))
        bits.golomb()
        bits.golomb()
        sequence = self._sequences.get(self._sequence_of.get(bits.golomb(), -1))
        if sequence is None or sequence.frames_only:
            return None
        bits.take(2 if sequence.separate_planes else 0)
        frame_number = bits.take(sequence.frame_number_bits)
        return Field(frame_number, bool(bits.take(1))) if bits.take(1) else None

    def _may_hold_fields(self) -> bool:
        return any(not sequence.frames_only for sequence in self._sequences.values())

    def _read_sets(self, units: Iterator[bytes]) -> None:
        for unit in units:
            kind, bits = unit[0] & 31 if unit else 0, Bits(_unescaped(unit[1:_SET_BYTES]))
            if kind == _SEQUENCE_SET:
                number, sequence = _read_sequence_set(bits)
                self._sequences[number] = sequence
            elif kind == _PICTURE_SET:
                self._sequence_of[bits.golomb()] = bits.golomb()

    def _first_slice(self, data: memoryview) -> int:
        """The first byte of the first slice in a packet of H.264; 0 where there is none near its start."""
        if not self._length_bytes:
            return next((unit[1] for unit in self._slices(data[:_START_BYTES]) if len(unit) > 1), 0)
        offset, length_bytes, end = 0, self._length_bytes, len(data) - self._length_bytes - 1
        while offset < end:
            unit = offset + length_bytes
            if data[unit] & 31 in _SLICES:
                return data[unit + 1]
            offset = unit + int.from_bytes(data[offset:unit])
        return 0

    def _slices(self, data: memoryview) -> Iterator[bytes]:
        """The starts of the slices in a packet of H.264."""
        return (unit for unit in self._units(bytes(data)) if unit and unit[0] & 31 in _SLICES)

    def _units(self, data: bytes) -> Iterator[bytes]:
        """The starts of the units in a packet of H.264 or HEVC."""
        offset = 0
        if self._length_bytes:
            while offset + self._length_bytes < len(data):
                length = int.from_bytes(data[offset : offset + self._length_bytes])
                offset += self._length_bytes
                yield data[offset : offset + min(length, _SET_BYTES)]
                offset += length
            return
        while (offset := data.find(_START_CODE, offset)) >= 0:
            offset += len(_START_CODE)
            yield data[offset : offset + _SET_BYTES]


def is_hidden(codec: str, data: bytes | memoryview) -> bool:
    """Whether a VP8 or VP9 packet only holds a picture for others to refer to ("alternate reference")."""
    if codec == "vp8":
        return not data[0] & 0x10
    if codec == "vp9":
        # a superframe (marked by its last byte) holds the hidden picture and the shown one
        if data[-1] & 0xE0 == 0xC0:
            return False
        # bits from the top: marker 2, profile 2, [reserved 1 in profile 3], show existing, frame type, show frame
        shift = 2 if data[0] & 0x30 == 0x30 else 3
        return not (data[0] >> shift | data[0] >> (shift - 2)) & 1
    return False


def _read_sequence_set(bits: Bits) -> tuple[int, _SequenceSet]:
    """H.264, section 7.3.2.1.1, up to frame_mbs_only_flag."""
    profile = bits.take(8)
    bits.take(16)
    number, separate_planes = bits.golomb(), False
    if profile in _WITH_CHROMA_FORMAT:
        chroma_format = bits.golomb()
        separate_planes = chroma_format == 3 and bool(bits.take(1))
        bits.golomb()
        bits.golomb()
        bits.take(1)
        if bits.take(1):
            for offset in range(12 if chroma_format == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if offset < 6 else 64)
    frame_number_bits = bits.golomb() + 4
    order_kind = bits.golomb()
    if order_kind == 0:
        bits.golomb()
    elif order_kind == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    return number, _SequenceSet(separate_planes, min(frame_number_bits, 16), bool(bits.take(1)))


def _skip_scaling_list(bits: Bits, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last


def _units_of_avcc(header: bytes) -> Iterator[bytes]:
    """The parameter sets in the header that mp4 and Matroska keep for H.264."""
    offset, count_mask = 5, 31
    for _ in range(2):
        count = header[offset] & count_mask if offset < len(header) else 0
        offset += 1
        for _ in range(count):
            length = int.from_bytes(header[offset : offset + 2])
            yield header[offset + 2 : offset + 2 + length]
            offset += 2 + length
        count_mask = 255


def _unescaped(unit: bytes) -> bytes:
    """Without the bytes that keep start codes from showing up inside of a unit."""
    return unit.replace(b"\x00\x00\x03", b"\x00\x00")


def _after(data: memoryview, code: bytes) -> bytes:
    """The two bytes behind a start code."""
    start = bytes(data[:_START_BYTES]).find(code)
    return b"" if start < 0 else bytes(data[start + len(code) : start + len(code) + 2])
