"""A camera for tests: RTSP over TCP with H.264, which breaks off and comes back as it is told."""

import base64
import itertools
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import av

_PAYLOAD_BYTES = 1200
_CLOCK = 90_000


class RtspCamera:
    """Sends a recording to one client at a time, frame by frame at its rate; then it is away.

    Args:
        path: H.264 in MPEG-TS.
        fps: of the recording.
        sessions: for each client in turn, for how many seconds nobody listens before, and how many frames it gets. The
            recording is repeated as often as needed. After the last one the port stays closed.
        goes_silent: after the last frame of a session nothing comes, and the connection stays open.
    """

    def __init__(
        self, path: Path, fps: float, sessions: Sequence[tuple[float, int]], *, goes_silent: bool = False
    ) -> None:
        self._frames = list(_access_units(path))
        self._fps, self._sessions, self._goes_silent = fps, sessions, goes_silent
        with socket.create_server(("127.0.0.1", 0)) as found:
            self._port = found.getsockname()[1]
        self.address = f"rtsp://127.0.0.1:{self._port}/live"
        self.requests: list[str] = []
        self._is_over, self._is_ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._is_ready.wait(10)

    def close(self) -> None:
        """Ends the connection and the thread."""
        self._is_over.set()
        self._thread.join(20)

    def _serve(self) -> None:
        for pause, num_frames in self._sessions:
            if self._is_over.wait(pause):
                return
            with socket.create_server(("127.0.0.1", self._port)) as listener:
                self._is_ready.set()
                listener.settimeout(0.2)
                while not self._is_over.is_set():
                    try:
                        connection, _ = listener.accept()
                        break
                    except TimeoutError:
                        continue
                else:
                    return
            with connection:
                try:
                    self._talk(connection, num_frames)
                except OSError:
                    # the client has gone
                    continue

    def _talk(self, connection: socket.socket, num_frames: int) -> None:
        connection.settimeout(10)
        text = b""
        while not self._is_over.is_set():
            while b"\r\n\r\n" not in text:
                got = connection.recv(4096)
                if not got:
                    return
                text += got
            request, text = text.split(b"\r\n\r\n", 1)
            lines = request.decode().split("\r\n")
            method = lines[0].split()[0]
            fields = dict(line.split(": ", 1) for line in lines[1:])
            self.requests.append(method)
            answer = self._answer(method, fields)
            connection.sendall(f"{answer[0]}\r\nCSeq: {fields['CSeq']}\r\n{answer[1]}\r\n{answer[2]}".encode())
            if method == "PLAY":
                self._send(connection, num_frames)
                return

    def _answer(self, method: str, fields: dict[str, str]) -> tuple[str, str, str]:
        """First line, further lines, and the body of an answer."""
        fine = "RTSP/1.0 200 OK"
        if method == "DESCRIBE":
            sets = ",".join(base64.b64encode(unit).decode() for unit in self._frames[0][1] if unit[0] & 31 in (7, 8))
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\na=control:*\r\n"
                f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/{_CLOCK}\r\n"
                f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\na=control:track1\r\n"
            )
            return fine, f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n", body
        if method == "SETUP" and "RTP/AVP/TCP" not in fields["Transport"]:
            return "RTSP/1.0 461 Unsupported transport", "", ""
        session = "Session: 7;timeout=60\r\n"
        if method == "SETUP":
            return fine, f"{session}Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", ""
        if method == "OPTIONS":
            return fine, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", ""
        return fine, session, ""

    def _send(self, connection: socket.socket, num_frames: int) -> None:
        sequence = itertools.count()
        for index in range(num_frames):
            # a camera that starts anew has a clock that starts anew
            repeat, at = divmod(index, len(self._frames))
            shown, units = self._frames[at]
            stamp = 1000 + round((shown + repeat * len(self._frames) / self._fps) * _CLOCK)
            for packet in _packets(units, sequence, stamp):
                connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            if self._is_over.wait(1 / self._fps):
                return
        # the client gives up and closes
        while self._goes_silent and not self._is_over.is_set() and connection.recv(4096):
            continue


def _access_units(path: Path) -> Iterator[tuple[float, list[bytes]]]:
    """When each frame is shown, since the first, and its units (NAL), in the order of the file."""
    begin: float | None = None
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            data = bytes(packet)
            if data:
                parts = data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
                shown = float(packet.pts * packet.time_base)
                begin = shown if begin is None else begin
                yield shown - begin, [part.rstrip(b"\0") for part in parts if part and part[0] & 31 != 9]


def _packets(units: Sequence[bytes], sequence: Iterator[int], stamp: int) -> Iterator[bytes]:
    """RTP packets of a frame: units that are too long are cut into pieces (FU-A)."""
    payloads: list[bytes] = []
    for unit in units:
        if len(unit) <= _PAYLOAD_BYTES:
            payloads.append(unit)
            continue
        pieces = [unit[at : at + _PAYLOAD_BYTES] for at in range(1, len(unit), _PAYLOAD_BYTES)]
        for number, piece in enumerate(pieces):
            mark = (number == 0) << 7 | (number == len(pieces) - 1) << 6 | (unit[0] & 31)
            payloads.append(bytes([(unit[0] & 0x60) | 28, mark]) + piece)
    for number, payload in enumerate(payloads):
        is_last = number == len(payloads) - 1
        yield struct.pack(">BBHII", 0x80, is_last << 7 | 96, next(sequence) & 0xFFFF, stamp, 1) + payload
