"""The raw wire on disk: every message as it came, with the time it came at.

A recording (suffix `.wire`) is append-only. All integers are little-endian:

    file     MAGIC, record(header), record(message), record(message), …
    record   u64 length of the payload, u32 CRC-32 of that length and the payload, payload
    header   JSON: {"format": name in streamer.wire, "step": of its running numbers, "created": UTC seconds since 1970,
             "streamer": version}
    message  i64 monotonic_ns, i64 wall_ns (since 1970, UTC), u32 number of parts, u64 length of each part, the parts

Each message is handed to the kernel before the next one is taken, so a killed process loses nothing that it recorded;
the file is synced to the disk every SYNC_S seconds and when it is closed, so a power cut loses at most that. A file cut
at any byte plays up to its last whole message, and what is lost is logged in bytes.

A damaged record in the middle is skipped, counted and logged. The length of a record says again what the lengths of its
parts say: where the two disagree nothing can be believed, and the next record is searched for, byte by byte, until one
is found whose lengths agree and whose CRC fits. That takes a few seconds per gigabyte, and ends after MOST_CANDIDATES
places that only looked like a record; the rest of the file is then given up and counted in bytes. Where the header of
the file itself is damaged, the format has to be named.

Messages that others captured one per file (`start.cbor`, `image.cbor`, `end.cbor`) are played by the same source: give
their folder, or a comma-separated list of files. In a folder the start comes first and the end last, with the images
between them in natural order of their names. They carry no times, so rate "real" plays them like "max".
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.records import BadConfig, Buffer, OutputDown, SourceLost
from streamer.sources import Message
from streamer.sources.playback import Cue, Playback, Rate, natural_order
from streamer.sources.standing import Standing
from streamer.sources.wired import Wired
from streamer.wire import Format, Kind

log = structlog.get_logger(__name__)

MAGIC = b"streamer wire 1\n"
SUFFIX = ".wire"
SYNC_S = 5.0

FORMAT_OF_SUFFIX = {".cbor": "dectris2"}
"""The format of messages that were captured one per file, by the file's suffix."""

_RECORD = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_MESSAGE = struct.Struct("<qqI")
_PEEK = 4096
"""Bytes of a message that are read to tell its kind; formats look at far fewer."""
_STRIDE = 2**20
"""Offsets looked at in one go when the next record is searched for."""

MOST_PARTS = 4096
"""Parts of one message. Karabo's largest detectors send some tens of pairs; where more are claimed, it is noise."""
MOST_CANDIDATES = 10_000
"""Places that may look like a record in one search before it is given up. By chance there are none; somebody could
write a file in which every byte is one."""


class Recorder:
    """Writes a recording; close it, or use it as a context manager. One thread.

    step: the distance between two running numbers, for formats that count (see `wire.Format`).
    messages, nbytes: what the file holds so far. Raises BadConfig when the file exists or its folder does not,
    OutputDown when the disk takes no more: the file then ends with the last whole message.
    """

    def __init__(
        self, path: Path | str, format_name: str, *, step: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = Path(path)
        self.messages = 0
        self.nbytes = 0
        self._clock = clock
        self._synced = clock()
        try:
            self._file = self.path.open("xb", buffering=0)
        except FileExistsError as error:
            raise BadConfig(f"recording: {self.path} exists and is never overwritten; choose another name") from error
        except OSError as error:
            raise BadConfig(f"recording: cannot create {self.path} ({error.strerror})") from error
        header = {"format": format_name, "step": step, "created": time.time(), "streamer": _version()}
        self._append([MAGIC, *_record([json.dumps(header).encode()])])

    def write(self, parts: Sequence[Buffer], monotonic_ns: int, wall_ns: int | None = None) -> None:
        """Append one message. wall_ns: UTC, now if it is not given."""
        head = _MESSAGE.pack(monotonic_ns, time.time_ns() if wall_ns is None else wall_ns, len(parts))
        lengths = (_LENGTH.pack(memoryview(part).nbytes) for part in parts)
        self._append(_record([head, *lengths, *parts]))
        self.messages += 1
        if self._clock() - self._synced >= SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = self._clock()

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, chunks: Sequence[Buffer]) -> None:
        try:
            for chunk in chunks:
                left = memoryview(chunk).cast("B")
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(self.nbytes)
            raise OutputDown(
                f"recording: {self.path} takes no more after {self.messages} messages and {self.nbytes} bytes "
                f"({error.strerror}); free space and record to a new file"
            ) from error
        self.nbytes += sum(memoryview(chunk).nbytes for chunk in chunks)


class Recording(Wired, Playback):
    """Plays a recording, or messages that were captured one per file.

    path: a `.wire` file, a folder of single messages, or one or several of these separated by commas.
    find_format: a wire format by name. format: its name where nothing else tells it: for single messages without a
    known suffix, and for a recording whose header is damaged.
    rate: "real" keeps the recorded times, "max" is as fast as it can be read, a number is messages per second.
    begin_s, end_s: the part to play, in recorded seconds after the first message; the start of the series that was
    running at begin_s is played first. loop: how many times, 0 for ever; the next one begins a mean interval after the
    last message of the one before, and series ids come again as they are.

    damaged: records skipped so far, skipped_bytes: what they held where not even their length was known.
    lost_bytes: what a cut tail holds and cannot be played.
    Raises SourceLost for what is missing or no recording, BadConfig for a rate, a part or a number that is none.
    """

    def __init__(
        self,
        path: Path | str,
        find_format: Callable[[str], Format],
        *,
        format: str = "",  # noqa: A002
        rate: Literal["real", "max"] | float = "max",
        begin_s: float = 0.0,
        end_s: float | None = None,
        loop: int = 1,
    ) -> None:
        Wired.__init__(self)
        Playback.__init__(self, str(path), 1.0 if rate == "real" else rate)
        self._is_real_time = rate == "real"
        self._loop = loop
        if not (0 <= begin_s < (math.inf if end_s is None else end_s)) or loop < 0:
            raise BadConfig(
                f"recording: found begin_s {begin_s:g}, end_s {end_s}, loop {loop}; expected 0 ≤ begin_s < end_s and a"
                " natural number (0 for ever)"
            )
        self._tape: _Tape | _Sheets
        if _is_recording(Path(path)):
            self._tape = _Tape(Path(path), format, find_format)
        else:
            self._tape = _Sheets(_message_files(self.url), format, find_format)
        self.format = self._tape.format
        records = self._tape.records
        while records and self._tape.read(records[0]) is None:
            del records[0]  # the time of the first message is where all others are counted from
        self._records = _cut(records, begin_s, end_s, self.format)
        if records and not self._records:
            self._tape.close()
            lasts_s = (records[-1].monotonic_ns - records[0].monotonic_ns) / 1e9
            raise BadConfig(f"recording: {path} lasts {lasts_s:.1f} s, and nothing is in it from {begin_s:g} s on")
        images = sum(record.kind == "image" for record in self._records)
        self.announced_frames = images * loop if loop else None
        self._play(self._script())

    @property
    def damaged(self) -> int:
        return self._tape.damaged

    @property
    def skipped_bytes(self) -> int:
        return self._tape.skipped_bytes

    @property
    def lost_bytes(self) -> int:
        return self._tape.lost_bytes

    def play_at(self, rate: Literal["real"] | Rate) -> None:
        super().play_at(1.0 if rate == "real" else rate)
        self._is_real_time = rate == "real"

    def _arrivals(self, timeout_s: float) -> Sequence[Message]:
        message = Playback.receive(self, timeout_s)
        return () if message is None else (message,)

    def close(self) -> None:
        super().close()
        self._tape.close()

    def _script(self) -> Iterator[Cue]:
        """Every message with its place: in seconds if the recorded times are kept, else in turns."""
        times = [record.monotonic_ns for record in self._records]
        lap_s = (times[-1] - times[0]) / 1e9 * len(times) / max(1, len(times) - 1) if times else 0.0
        turn = 0
        for lap in count() if not self._loop else range(self._loop):
            for record in self._records:
                captured = self._tape.read(record)
                if captured is None:
                    continue
                since_s = lap * lap_s + (record.monotonic_ns - times[0]) / 1e9
                yield Cue(
                    place=since_s if self._is_real_time else turn,
                    parts=captured.parts,
                    kind=self.format.kind(captured.parts),
                    nbytes=sum(part.nbytes for part in captured.parts),
                    extra={"wall_ns": captured.wall_ns},
                )
                turn += 1
            if not turn:
                return


@dataclass(frozen=True, slots=True)
class _Captured:
    """One message and when it was received."""

    parts: list[memoryview]
    monotonic_ns: int = 0
    wall_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Record:
    """Where a message lies: at which byte of the recording, or in which of the single files."""

    place: int
    length: int
    kind: Kind | None
    monotonic_ns: int = 0


class _Tape:
    """A `.wire` file: opening it walks over the lengths of all records; the pixels are read when they are played."""

    def __init__(self, path: Path, format_name: str, find_format: Callable[[str], Format]) -> None:
        self.path = path
        self.damaged = 0
        self.skipped_bytes = 0
        self.lost_bytes = 0
        self.records: list[_Record] = []
        self._file = path.open("rb")
        self._size = self._file.seek(0, os.SEEK_END)
        try:
            self.format, begin = self._opened(format_name, find_format)
        except (SourceLost, BadConfig):
            self.close()
            raise
        self._walk(begin)

    def read(self, record: _Record) -> _Captured | None:
        """A message, or None if its record is damaged."""
        payload = self._payload(record.place, record.length)
        if payload is None:
            self.damaged += 1
            log.warning("a record is damaged and was skipped", file=str(self.path), damaged=self.damaged)
            return None
        return _split(payload)

    def close(self) -> None:
        self._file.close()

    def _opened(self, format_name: str, find_format: Callable[[str], Format]) -> tuple[Format, int]:
        """The format, and where the messages begin."""
        length, _ = _RECORD.unpack(self._bytes(len(MAGIC), _RECORD.size).ljust(_RECORD.size, b"\0"))
        header = self._payload(len(MAGIC), length) if length <= self._size else None
        if header is None:
            if not format_name:
                raise SourceLost(
                    f"recording: the header of {self.path} is cut or damaged; if the rest is whole, name its format"
                    " (?format=dectris2)"
                )
            return find_format(format_name), len(MAGIC)
        try:
            fields = json.loads(bytes(header))
            format = find_format(format_name or str(fields["format"]))  # noqa: A001
            if format.is_counted:
                format.step = max(1, int(fields.get("step", format.step)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceLost(f"recording: the header of {self.path} names no format ({error})") from error
        return format, len(MAGIC) + _RECORD.size + length

    def _walk(self, begin: int) -> None:
        """Note every record whose lengths agree; what lies between is skipped, what follows the last is lost."""
        place = begin
        while place < self._size:
            record = self._record(place)
            if record is None:
                place = self._last_sure(place)
                found = self._search(place + 1)
                if found is None:
                    self.lost_bytes = self._size - place
                    log.warning("the recording is cut", file=str(self.path), lost_bytes=self.lost_bytes)
                    return
                self.damaged += 1
                self.skipped_bytes += found - place
                log.warning(
                    "the length of a record is damaged, went on at the next one",
                    file=str(self.path),
                    damaged=self.damaged,
                    skipped_bytes=self.skipped_bytes,
                )
                place = found
                continue
            self.records.append(record)
            place += _RECORD.size + record.length

    def _last_sure(self, place: int) -> int:
        """Where to search from: a record with too few or too many bytes reaches into the next one, or falls short."""
        if self.records and self._payload(self.records[-1].place, self.records[-1].length) is None:
            return self.records.pop().place
        return place

    def _record(self, place: int) -> _Record | None:
        """The record there, if its length is that of its parts."""
        head = self._bytes(place, _RECORD.size + _PEEK)
        if len(head) < _RECORD.size + _MESSAGE.size:
            return None
        length, _ = _RECORD.unpack_from(head)
        monotonic_ns, _, n = _MESSAGE.unpack_from(head, _RECORD.size)
        if length > self._size - place - _RECORD.size or n > MOST_PARTS:
            return None
        lengths_end = _RECORD.size + _MESSAGE.size + n * _LENGTH.size
        if lengths_end > len(head):
            head = self._bytes(place, lengths_end + _PEEK)
        if lengths_end > len(head):
            return None
        lengths = struct.unpack_from(f"<{n}Q", head, _RECORD.size + _MESSAGE.size)
        if length != _MESSAGE.size + n * _LENGTH.size + sum(lengths):
            return None
        payload = memoryview(head)[_RECORD.size : _RECORD.size + length]
        return _Record(place, length, self.format.kind(_split(payload).parts), monotonic_ns)

    def _search(self, begin: int) -> int | None:
        """The next place where there is a whole record."""
        summed = 0
        for tried, place in enumerate(self._candidates(begin)):
            if tried >= MOST_CANDIDATES or summed > 4 * self._size:
                log.warning("too many places look like a record", file=str(self.path), looked_up_to=place)
                return None
            record = self._record(place)
            if record is None:
                continue
            summed += record.length
            if self._payload(place, record.length) is not None:
                return place
        return None

    def _candidates(self, begin: int) -> Iterator[int]:
        """Places where the lengths of a record agree with each other and fit into the file."""
        reach = _RECORD.size + _MESSAGE.size + _LENGTH.size * (MOST_PARTS + 1)
        for base in range(begin, self._size, _STRIDE):
            n = min(_STRIDE, self._size - base)
            octets = np.frombuffer(self._bytes(base, n + reach).ljust(n + reach, b"\0"), np.uint8)
            yield from (base + _agreeing(octets, n, self._size - base - _RECORD.size)).tolist()

    def _payload(self, place: int, length: int) -> memoryview | None:
        """None if it is cut or damaged."""
        octets = memoryview(self._bytes(place, _RECORD.size + length))
        if len(octets) < _RECORD.size + length:
            return None
        _, checksum = _RECORD.unpack_from(octets)
        payload = octets[_RECORD.size :]
        return payload if _checksum([payload], length) == checksum else None

    def _bytes(self, place: int, length: int) -> bytes:
        """Fewer at the end of the file."""
        self._file.seek(place)
        return self._file.read(length)


class _Sheets:
    """Single messages, one per file."""

    damaged = 0
    skipped_bytes = 0
    lost_bytes = 0

    def __init__(self, files: list[Path], format_name: str, find_format: Callable[[str], Format]) -> None:
        name = format_name or FORMAT_OF_SUFFIX.get(files[0].suffix, "")
        if not name:
            raise BadConfig(f"recording: nothing tells the format of {files[0]}; name it (format=dectris2)")
        self.format = find_format(name)
        kinds = {file: self._kind(file) for file in files}
        self._files = sorted(files, key=lambda file: {"start": 0, "end": 2}.get(kinds[file] or "", 1))
        self.records = [_Record(place, 0, kinds[file]) for place, file in enumerate(self._files)]

    def read(self, record: _Record) -> _Captured:
        return _Captured([memoryview(self._files[record.place].read_bytes())])

    def close(self) -> None:
        """Nothing is held open."""

    def _kind(self, path: Path) -> Kind | None:
        with path.open("rb") as file:
            return self.format.kind([file.read(_PEEK)])


def _agreeing(octets: NDArray[np.uint8], n: int, room: int) -> NDArray[np.int64]:
    """The first n offsets at which a record of at most `room` bytes less the offset could begin.

    The upper bytes of a length and of a number of parts are 0, and a length is not: that rules out nearly everything at
    little cost.
    """
    is_zero = octets == 0
    upper = [5, 6, 7, _RECORD.size + _MESSAGE.size - 2, _RECORD.size + _MESSAGE.size - 1]
    is_small = np.logical_and.reduce([is_zero[byte : byte + n] for byte in upper])
    is_nothing = np.logical_and.reduce([is_zero[byte : byte + n] for byte in range(5)])
    at = np.flatnonzero(is_small & ~is_nothing)
    at = at[at < room]
    lengths = np.ndarray((octets.size - 7,), "<u8", octets, 0, (1,))
    length, parts = lengths[at], lengths[at + _RECORD.size + _MESSAGE.size - 8] >> np.uint64(32)
    least = _MESSAGE.size + _LENGTH.size * parts
    may_be = (parts <= MOST_PARTS) & (length >= least) & (length <= (room - at).astype(np.uint64))
    at, left, parts = at[may_be], (length - least)[may_be], parts[may_be]
    agreeing = []
    for index in range(MOST_PARTS + 1):
        is_all = parts == index
        agreeing.append(at[is_all & (left == 0)])
        at, left, parts = at[~is_all], left[~is_all], parts[~is_all]
        if not at.size:
            break
        part = lengths[at + _RECORD.size + _MESSAGE.size + index * _LENGTH.size]
        fits = part <= left
        at, left, parts = at[fits], (left - part)[fits], parts[fits]
    return np.sort(np.concatenate(agreeing))


def _cut(records: list[_Record], begin_s: float, end_s: float | None, format: Format) -> list[_Record]:  # noqa: A002
    """The records of a part, with the start that stood at its beginning."""
    if not records or (begin_s == 0 and end_s is None):
        return records
    first_ns = records[0].monotonic_ns
    standing: Standing[_Record] = Standing(format.is_one_part)
    part = []
    for record in records:
        since_s = (record.monotonic_ns - first_ns) / 1e9
        if since_s < begin_s:
            standing.note(record.kind, record)
        elif end_s is None or since_s < end_s:
            part.append(record)
    begin_ns = part[0].monotonic_ns if part else first_ns
    return [replace(start, monotonic_ns=begin_ns) for start in standing.messages] + part


def _version() -> str:
    try:
        return version("streamer")
    except PackageNotFoundError:
        return "not installed"


def _is_recording(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == SUFFIX


def _message_files(path: str) -> list[Path]:
    """The files of single messages behind a path. Raises SourceLost naming what is missing."""
    folder = Path(path)
    if folder.is_dir():
        files = natural_order(entry for entry in folder.iterdir() if entry.suffix in FORMAT_OF_SUFFIX)
        if not files:
            found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise SourceLost(f"recording: {folder} holds {found}; expected messages as {', '.join(FORMAT_OF_SUFFIX)}")
        return files
    files = [Path(name) for name in path.split(",")]
    for file in files:
        if not file.is_file():
            raise SourceLost(f"recording: there is no file {file}; give a {SUFFIX} file or captured messages")
    return files


def _record(payload: Sequence[Buffer]) -> list[Buffer]:
    length = sum(memoryview(chunk).nbytes for chunk in payload)
    return [_RECORD.pack(length, _checksum(payload, length)), *payload]


def _checksum(payload: Sequence[Buffer], length: int) -> int:
    crc = zlib.crc32(_LENGTH.pack(length))
    for chunk in payload:
        crc = zlib.crc32(chunk, crc)
    return crc


def _split(payload: memoryview) -> _Captured:
    """The message in a payload; of one that is cut, the parts are cut too. Raises struct.error without its lengths."""
    monotonic_ns, wall_ns, n = _MESSAGE.unpack_from(payload)
    lengths = struct.unpack_from(f"<{n}Q", payload, _MESSAGE.size)
    parts = []
    offset = _MESSAGE.size + n * _LENGTH.size
    for length in lengths:
        parts.append(payload[offset : offset + length])
        offset += length
    return _Captured(parts, monotonic_ns, wall_ns)
