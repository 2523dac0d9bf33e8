import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

H264_PAYLOAD = 96
DESCRIPTION = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
)


class RtspCamera:
    """A camera with one client: sends a recording over the client's connection, or by UDP, and hangs up at its end."""

    def __init__(self, recording: Path, *, over_tcp: bool) -> None:
        self._recording = recording
        self._over_tcp = over_tcp
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/1"
        self.transports: list[str] = []
        self._client_port: int | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as requests:
            while request := self._next_request(requests):
                head, extra, body = request, "", ""
                code = "200 OK"
                if head["verb"] == "DESCRIBE":
                    extra = f"Content-Type: application/sdp\r\nContent-Length: {len(DESCRIPTION)}\r\n"
                    body = DESCRIPTION
                elif head["verb"] == "SETUP":
                    code, extra = self._set_up(head["Transport"])
                connection.sendall(f"RTSP/1.0 {code}\r\nCSeq: {head['CSeq']}\r\n{extra}\r\n{body}".encode())
                if head["verb"] == "PLAY":
                    self._play(connection)
                    return

    def _next_request(self, requests: Iterator[bytes]) -> dict[str, str]:
        first = next(requests, b"").decode()
        if not first:
            return {}
        head = {"verb": first.split()[0]}
        while line := next(requests, b"").decode().strip():
            name, _, value = line.partition(": ")
            head[name] = value
        return head

    def _set_up(self, transport: str) -> tuple[str, str]:
        self.transports.append(transport.split(";")[0])
        if "TCP" in transport:
            return ("200 OK", f"Session: 1\r\nTransport: {transport}\r\n") if self._over_tcp else ("461 No", "")
        self._client_port = int(transport.split("client_port=")[1].split("-")[0])
        return "200 OK", f"Session: 1\r\nTransport: {transport};server_port=9000-9001\r\n"

    def _play(self, connection: socket.socket) -> None:
        """FFmpeg packs the recording into RTP packets, which are handed on."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packed:
            packed.bind(("127.0.0.1", 0))
            packed.settimeout(0.5)
            threading.Thread(target=self._pack, args=packed.getsockname()).start()
            while True:
                try:
                    data = packed.recv(1 << 16)
                except TimeoutError:
                    return
                if data[1] & 0x7F != H264_PAYLOAD:
                    continue
                if self._client_port is None:
                    connection.sendall(b"$\0" + len(data).to_bytes(2, "big") + data)
                else:
                    packed.sendto(data, ("127.0.0.1", self._client_port))

    def _pack(self, host: str, port: int) -> None:
        with av.open(str(self._recording)) as source, av.open(f"rtp://{host}:{port}", "w", format="rtp") as sink:
            stream = sink.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    sink.mux(packet)
                    threading.Event().wait(0.005)


@pytest.fixture
def camera() -> Iterator[Callable[..., RtspCamera]]:
    """Starts RTSP cameras; they end with the test."""
    started: list[RtspCamera] = []

    def start(recording: Path, *, over_tcp: bool) -> RtspCamera:
        started.append(RtspCamera(recording, over_tcp=over_tcp))
        return started[-1]

    yield start
    for one in started:
        one.close()
