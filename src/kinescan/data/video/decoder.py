import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.error
from av.format import Flags
from av.stream import Discard, Disposition

from kinescan.data.stored import num_bytes_of, open_bytes
from kinescan.data.video.kept_tables import LEAST_BYTES, FrameTableCache, KeptTables, default_cache
from kinescan.data.video.limits import Clock, Limits
from kinescan.data.video.opening import open_file
from kinescan.data.video.structure import is_animated_webp, is_encrypted_mp4
from kinescan.data.video.table import (
    SKIPPABLE_CODECS,
    FrameTable,
    PacketTable,
    counts_frames,
    lay_out_decoded,
    lay_out_frames,
    read_packets,
)
from kinescan.data.video.timeline import B_COMES_BEFORE
from kinescan.data.video.transport import Continuity
from kinescan.errors import ConfigError, KinescanError, VideoError
from kinescan.runtime.http_store import StoreError

# After a seek the demuxer may land a little before the packet asked for; farther off, the file is read from its start.
_MAX_PACKETS_TO_LAND = 64
_FORMATS_WITH_DURATION = frozenset({"mov", "mp4", "matroska", "webm", "avi", "flv", "asf"})
# Of these, the index tells where the packet of a time lies; of others, FFmpeg searches.
_SEEK_BY_INDEX = frozenset({"mov", "mp4", "matroska", "webm"})
_ENCRYPTED = "is encrypted (DRM): its pictures cannot be decoded without the key. Use a copy without encryption."


class Undecodable(Exception):
    """A packet that is needed cannot be decoded, or not without damage."""


@contextmanager
def only_video_errors(path: str | Path) -> Iterator[None]:
    """Turns whatever reading a file raises into a VideoError of that file: one file never ends a run.

    Raises:
        VideoError: instead of anything that is not an error of `kinescan.errors`.
    """
    try:
        yield
    except (KinescanError, Undecodable):
        raise
    except StoreError as error:
        raise VideoError(path, error.reason) from error
    except Exception as error:
        raise VideoError(
            path,
            f"cannot be read: {type(error).__name__}: {error}. Convert it (ffmpeg -i FILE -c:v libx264 OUT.mp4), or "
            "leave it out.",
        ) from error


class Decoder:
    """The frames of one video stream from any packet on, decoded by one thread.

    Every packet is given its ordinal in the file as its time before it is decoded. Decoders hand that number on to the
    frame, so that a frame is known by its packet even where times are missing, doubled or wrong.

    Attributes:
        limits: on time and pixels.
        clock: of the work under way.
        is_kept: the tables are those of an earlier opening, or are kept for the next one.
        refused_a_size: a packet made the codec lose the frame's size, as one above the limit on pixels does.
    """

    def __init__(self, path: str | Path, *, stream_index: int | None = None, limits: Limits | None = None) -> None:
        self.path = path
        self.limits = limits or Limits()
        self.clock = Clock(path, self.limits)
        self.refused_a_size = False
        self._stream_index = stream_index
        with only_video_errors(path):
            self._open()
            try:
                self._read_tables()
            except BaseException:
                self.close()
                raise

    def _read_tables(self) -> None:
        self.codec: str = self.stream.codec_context.codec.canonical_name
        self.packets: PacketTable
        self.frames: FrameTable
        # packets of MPEG-TS behind a loss; a file whose tables are kept has none
        self._damaged: set[int] = set()
        kept = self._kept_tables()
        self.is_kept = kept is not None
        if kept is None:
            self._read_file()
        else:
            self.packets, self.frames, self.num_lost_at_start = kept.packets, kept.frames, kept.num_lost_at_start
            self._locate()

    def keep_tables(self) -> None:
        """Keeps the tables for the next time that this file is opened; to be called for whole files only."""
        cache = self._table_cache
        if cache is not None and not self.is_kept and not self._damaged:
            self.is_kept = cache.write(
                self.path, self._stream_index, KeptTables(self.packets, self.frames, self.num_lost_at_start)
            )

    def _kept_tables(self) -> KeptTables | None:
        cache = self._table_cache
        return None if cache is None else cache.read(self.path, self._stream_index)

    @property
    def _table_cache(self) -> FrameTableCache | None:
        try:
            return default_cache() if num_bytes_of(self.path) >= LEAST_BYTES else None
        except OSError:
            return None

    def _locate(self) -> None:
        """Notes what tells a packet from the others when it is met again after a seek."""
        locations = zip(self.packets.pts, self.packets.positions, self.packets.sizes, strict=True)
        self._ordinals = {location: ordinal for ordinal, location in enumerate(locations) if location[1] is not None}

    def _read_file(self) -> None:
        """Reads the packets of the whole file."""
        self.packets = read_packets(self._demux(), self.stream)
        if self.packets.encrypted:
            raise VideoError(self.path, _ENCRYPTED)
        self._locate()
        self._find_losses()
        self.frames = self._lay_out(self.packets)
        lost = self._lost_at_start()
        self.num_lost_at_start = len(lost)
        if lost:
            self.packets = self.packets.with_shown(lost, False)
            self.frames = self._lay_out(self.packets)
        if not counts_frames(self.packets):
            self.frames = lay_out_decoded(self.packets, [frame.pts for _, frame in self.decode(0, strict=False)])

    @property
    def num_promised_frames(self) -> int:
        """The header's count, 0 where it has none."""
        return int(self.stream.frames) if self.stores_duration else 0

    @property
    def num_indexed_frames(self) -> int:
        """How many the index has, as the header counts them."""
        found = len(self.packets.pts) + self.packets.num_empty
        if self.format_name != "avi":
            return found
        # AVI counts ticks, and fills those without a frame with empty packets, which FFmpeg may pass over
        return max([found, *(dts + 1 for dts in self.packets.dts if dts is not None)])

    @property
    def promised_seconds(self) -> float:
        """The header's duration of the longest stream, 0 where it has none."""
        duration = self._container.duration
        return 0.0 if duration is None else duration / av.time_base

    @property
    def start_seconds(self) -> float:
        """When the first stream starts, by the header."""
        start = self._container.start_time
        return 0.0 if start is None else start / av.time_base

    @property
    def format_name(self) -> str:
        """FFmpeg's name of the container."""
        return self._container.format.name

    @property
    def stores_duration(self) -> bool:
        """Whether the format's header holds the duration; for others FFmpeg guesses it."""
        return not _FORMATS_WITH_DURATION.isdisjoint(self._container.format.name.split(","))

    def again(self) -> "Decoder":
        """The same stream of the same file, opened once more; the packets are not read again."""
        other = copy.copy(self)
        other.clock = Clock(self.path, self.limits)
        other._open()
        return other

    def end_of_all_streams_seconds(self) -> float:
        """When the last packet of any stream ends: reads the whole file."""
        end = 0.0
        with only_video_errors(self.path), open_file(self.path, self.limits, self.clock) as container:
            try:
                for packet in self.clock.watch(container.demux()):
                    if packet.pts is not None and packet.size and not packet.is_corrupt:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            except av.error.FFmpegError:
                pass
        return end

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._container.close()

    def decode(
        self, start: int, *, wanted: set[int] | None = None, strict: bool = True, anew: bool = False
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their identities (see FrameTable), in the decoder's order, from the packet `start` on.

        Args:
            start: ordinal of a key packet, or 0.
            wanted: identities that matter: others may be left out, and decoding ends after the last of them.
            strict: raise Undecodable at the first damage; otherwise damaged packets and frames are left out.
            anew: open the file once more instead of seeking in it: some demuxers do not get everywhere after a seek.
        """
        with only_video_errors(self.path):
            if anew:
                self._container.close()
                self._open()
            yield from self._decode(start, wanted, strict, seeks=not anew)

    def _decode(
        self, start: int, wanted: set[int] | None, strict: bool, *, seeks: bool
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        table = self.frames
        skippable = wanted is not None and not table.by_rank and self.codec in SKIPPABLE_CODECS
        # the decoder keeps the second picture of a packet for its next call, and loses it where it skips one
        skippable = skippable and max(self.packets.num_pictures, default=1) == 1
        missing = None if wanted is None else set(wanted)
        rank, last_damage = -1, -1
        # a frame needs no packet that comes after its own: draining then gives what the decoder still holds back
        last = None if wanted is None or table.by_rank else self._last_packet(max(wanted))
        for ordinal, packet in self._packets_from(start, last, seeks=seeks):
            # that of the file as it is open now: landing may have opened it once more
            codec = self.stream.codec_context
            if skippable and wanted is not None:
                codec.skip_frame = "DEFAULT" if self._belongs_to(ordinal, wanted) or ordinal == start else "NONREF"
            had_size = codec.width > 0
            images, damaged = _decode_packet(codec, packet)
            if damaged or ordinal in self._damaged:
                last_damage = ordinal
            if damaged and had_size and not codec.width:
                self.refused_a_size = True
            for image in images:
                self.limits.check_size(self.path, image.width, image.height)
                rank += 1
                if image.is_corrupt or (image.pts == start > 0 and not image.key_frame):
                    last_damage = max(last_damage, image.pts)
                if last_damage >= 0 and strict:
                    raise Undecodable
                identity = rank if table.by_rank else image.pts
                if table.starts[image.pts] <= last_damage:
                    # not whole again before the next key packet
                    continue
                if missing is None:
                    yield identity, image
                elif identity in missing:
                    yield identity, image
                    missing.discard(identity)
                    if not missing:
                        return
        if strict and (missing or last_damage >= 0):
            raise Undecodable

    def _last_packet(self, identity: int) -> int:
        """The last packet that a frame's picture is in."""
        return identity + 1 if identity + 1 in self.packets.second_fields else identity

    def _belongs_to(self, ordinal: int, wanted: set[int]) -> bool:
        return ordinal in wanted or (ordinal in self.packets.second_fields and ordinal - 1 in wanted)

    def _packets_from(self, start: int, last: int | None, *, seeks: bool) -> Iterator[tuple[int, av.Packet | None]]:
        """Packets from `start` to `last`, stamped with their ordinals; then None, which drains the decoder."""
        self.stream.codec_context.skip_frame = "DEFAULT"
        ordinal, packets = self._land(start) if seeks else (0, self._demux())
        try:
            for packet in packets:
                if packet.size == 0:
                    continue
                if ordinal >= start:
                    packet.pts = packet.dts = ordinal
                    yield ordinal, packet
                if ordinal == last:
                    break
                ordinal += 1
        except av.error.FFmpegError:
            # the index ended at the same offset: what came before is whole
            pass
        yield ordinal, None

    def _land(self, start: int) -> tuple[int, Iterator[av.Packet]]:
        """Seeks to the packet `start` or somewhat before; opens the file anew where seeking does not get there."""
        times = {time for time in (self.packets.pts[start], self.packets.dts[start]) if time is not None}
        # what comes along with the first packets, such as a palette, comes only once: a seek would lose it
        for time in () if self.packets.lasting else self._in_turn(times):
            try:
                self._container.seek(time, stream=self.stream)
                packets = self._demux()
                for packet in itertools.islice(packets, _MAX_PACKETS_TO_LAND):
                    ordinal = self._ordinals.get((packet.pts, packet.pos, packet.size))
                    if ordinal is not None and ordinal <= start:
                        return ordinal, itertools.chain([packet], packets)
                    if ordinal is not None:
                        break
            except av.error.FFmpegError:
                pass
        self._container.close()
        self._open()
        return 0, self._demux()

    def _in_turn(self, times: set[int]) -> list[int]:
        """At which of a key packet's times to seek: the earlier one always lands before it, often a whole stretch."""
        has_index = not _SEEK_BY_INDEX.isdisjoint(self.format_name.split(","))
        return sorted(times, reverse=True) if has_index else sorted(times)[:1]

    def _lay_out(self, packets: PacketTable) -> FrameTable:
        return lay_out_frames(
            packets,
            codec=self.codec,
            format_name=self._container.format.name,
            has_times=not self._container.format.flags & Flags.no_timestamps.value,
        )

    def _find_losses(self) -> None:
        """Finds packets of MPEG-TS that are damaged, or follow on a loss, whatever FFmpeg marks: see `Continuity`."""
        packets = self.packets
        if self._container.format.name != "mpegts":
            return
        with open_bytes(self.path) as file:

            def read(num_bytes: int, offset: int) -> bytes:
                file.seek(offset)
                return file.read(num_bytes)

            counted, marked = Continuity(self.stream.id, read=read), set(packets.marked)
            for ordinal, position in enumerate(packets.positions):
                missing = counted.of(position, is_marked=ordinal in marked)
                if missing == "inside":
                    self._damaged.add(ordinal)
                elif missing == "behind" and not all(packets.key[ordinal + 1 : ordinal + 2]):
                    # a key frame there is the first of a recording that was joined to this one
                    self._damaged.add(ordinal + 1)
        if marked - self._damaged:
            self.packets = packets.with_shown(marked - self._damaged, True)

    def _lost_at_start(self) -> set[int]:
        """Packets whose frames need something from before the file's first key packet, and do not come out.

        Such are the first frames of a recording that was cut out of another, at a key frame that others before it on
        the screen, but behind it in the file, refer across ("open group of pictures"), or in a gradual refresh.
        """
        packets = self.packets
        if True not in packets.key:
            return set()
        first_key = packets.key.index(True)
        next_key = next((i for i in range(first_key + 1, len(packets.key)) if packets.key[i]), len(packets.key))
        head = [ordinal for ordinal, shown in enumerate(packets.shown[:next_key]) if shown]
        timeless = {ordinal for ordinal in head if packets.pts[ordinal] is None}
        table = self._lay_out(packets.with_shown(timeless, False)) if timeless else self.frames
        index_of = {} if table.by_rank else {ordinal: index for index, ordinal in enumerate(table.identities)}
        early = {i for i in head if i < first_key} | timeless | _before(first_key, index_of)
        if table.by_rank and self.codec in B_COMES_BEFORE:
            early |= set(itertools.takewhile(lambda ordinal: packets.is_b[ordinal], range(first_key + 1, next_key)))
        if packets.clean[first_key] and not early:
            return set()
        seen: set[int] = set()
        for _, frame in self.decode(0, strict=False):
            seen.add(frame.pts)
            if table.by_rank and frame.pts == next_key:
                break
            if not table.by_rank and frame.pts not in early:
                # frames come in the order of display: what comes before this one and is not there yet, does not come
                return (early | _before(frame.pts, index_of)) - seen
        lost = early if table.by_rank and self.codec in B_COMES_BEFORE else set(head)
        return lost - seen if seen else set()

    def _demux(self) -> Iterator[av.Packet]:
        return self.clock.watch(self._container.demux(self.stream))

    def _open(self) -> None:
        self._container = open_file(self.path, self.limits, self.clock)
        if self._container.format.name == "webp_pipe" and is_animated_webp(self.path):
            self._container.close()
            raise VideoError(
                self.path,
                "is an animated webp, which this FFmpeg cannot decode. Convert it to gif, png or mp4 with another "
                "program, such as Pillow or ImageMagick.",
            )
        try:
            self.stream = choose_stream(self.path, self._container, self._stream_index)
        except VideoError as error:
            if "mp4" in self._container.format.name and is_encrypted_mp4(self.path):
                raise VideoError(self.path, _ENCRYPTED) from error
            raise
        for other in self._container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all
        self.stream.thread_type = "NONE"
        self.stream.codec_context.thread_count = 1
        self.header_size = (self.stream.codec_context.width, self.stream.codec_context.height)


def _before(ordinal: int, index_of: dict[int, int]) -> set[int]:
    """The packets that are shown before this one."""
    first = index_of.get(ordinal, 0)
    return {other for other, index in index_of.items() if index < first}


def _decode_packet(codec: av.CodecContext, packet: av.Packet | None) -> tuple[list[av.VideoFrame], bool]:
    """The frames that come out, and whether the packet was damaged."""
    try:
        return codec.decode(packet), False
    except av.error.FFmpegError:
        return [], True


def choose_stream(path: str | Path, container: av.container.InputContainer, stream_index: int | None) -> av.VideoStream:
    """The stream asked for, or the one that FFmpeg thinks best; a cover picture is not a video.

    Args:
        path: the file, for errors.
        container: the open file; closed where no stream can be chosen.
        stream_index: of the file; None leaves the choice to FFmpeg.

    Raises:
        ConfigError: that stream is not a video stream.
        VideoError: the file has no video stream, or no decoder for it.
    """
    streams = container.streams
    videos = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
    reason = ""
    if not videos:
        kinds = ", ".join(sorted({stream.type for stream in streams})) or "none"
        reason = f"has no video stream (streams: {kinds})."
    elif stream_index is not None and stream_index not in [stream.index for stream in videos]:
        allowed = ", ".join(str(stream.index) for stream in videos)
        container.close()
        raise ConfigError(f"{path}: stream_index {stream_index} is not a video stream. Allowed: {allowed}.")
    else:
        index = streams.best("video").index if stream_index is None else stream_index
        chosen = streams[index if index in [s.index for s in videos] else videos[0].index]
        if chosen.codec_context is not None:
            return chosen
        reason = "is coded in a way that this FFmpeg has no decoder for."
    container.close()
    raise VideoError(path, reason)
