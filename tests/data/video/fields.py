"""H.264 in fields, two packets a frame, as camcorders record it; put together, as no encoder at hand writes it."""

from fractions import Fraction
from pathlib import Path

import av

GREY = 128
FIELD_RATE = 50


class _Bits:
    def __init__(self) -> None:
        self._text = ""

    def put(self, number: int, num_bits: int) -> "_Bits":
        self._text += format(number, f"0{num_bits}b")
        return self

    def golomb(self, *numbers: int) -> "_Bits":
        for number in numbers:
            text = format(number + 1, "b")
            self._text += "0" * (len(text) - 1) + text
        return self

    def align(self) -> "_Bits":
        self._text += "0" * (-len(self._text) % 8)
        return self

    def end(self) -> bytes:
        self._text += "1"
        self.align()
        return int(self._text, 2).to_bytes(len(self._text) // 8)


def luma(frame: int, *, bottom: bool) -> int:
    """What all pixels of a field are."""
    return 40 + 4 * frame + (60 if bottom else 0)


def field_units(num_frames: int) -> list[bytes]:
    """The coded fields of 16x32 frames, top and bottom in turn; each is one macroblock of raw pixels."""
    sequence = _Bits().put(77, 8).put(0, 8).put(30, 8).golomb(0, 0, 0, 4, 1).put(0, 1).golomb(0, 0)
    sequence.put(0, 1).put(0, 1).put(1, 1).put(0, 2)
    picture = _Bits().golomb(0, 0).put(0, 2).golomb(0, 0, 0).put(0, 3).golomb(0, 0, 0).put(0, 3)
    sets = _unit(0x67, sequence.end()) + _unit(0x68, picture.end())
    delimiter = _unit(0x09, b"\x10")
    units = []
    for frame in range(num_frames):
        for bottom in (False, True):
            is_first = frame == 0 and not bottom
            bits = _Bits().golomb(0, 7, 0).put(frame % 16, 4).put(1, 1).put(int(bottom), 1)
            if is_first:
                bits.golomb(0)
            bits.put((2 * frame + int(bottom)) % 256, 8).put(0, 2 if is_first else 1).golomb(0, 25).align()
            for value in 256 * [luma(frame, bottom=bottom)] + 128 * [GREY]:
                bits.put(value, 8)
            start = delimiter + (sets if is_first else b"")
            units.append(start + _unit(0x65 if is_first else 0x61, bits.end()))
    return units


def write_fields(path: Path, num_frames: int) -> None:
    """A video of one packet a field."""
    units = field_units(num_frames)
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(units))
    with av.open(str(raw)) as given, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        stream.time_base = Fraction(1, FIELD_RATE)
        for index, unit in enumerate(units):
            packet = av.Packet(unit)
            packet.stream, packet.time_base = stream, Fraction(1, FIELD_RATE)
            packet.pts = packet.dts = index
            packet.is_keyframe = index == 0
            made.mux(packet)


def _unit(head: int, payload: bytes) -> bytes:
    escaped, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = 0 if byte else zeros + 1
    return b"\0\0\0\1" + bytes([head]) + bytes(escaped)
