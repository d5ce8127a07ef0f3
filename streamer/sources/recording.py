"""The raw wire on disk: every message as it came, with the time it came at.

A recording (suffix `.wire`) is append-only. All integers are little-endian:

    file     MAGIC, record(header), record(message), record(message), …
    record   u64 length of the payload, u32 CRC-32 of that length and the payload, payload
    header   JSON: {"format": name in streamer.wire, "created": UTC seconds since 1970, "streamer": version}
    message  i64 monotonic_ns, i64 wall_ns (since 1970, UTC), u32 number of parts, u64 length of each part, the parts

Each message is handed to the kernel before the next one is taken, so a killed process loses nothing that it recorded;
the file is synced to the disk every SYNC_S seconds and when it is closed, so a power cut loses at most that. A file cut
at any byte plays up to its last whole message, and what is lost is logged in bytes. A damaged record in the middle is
skipped, counted and logged.

Messages that others captured one per file (`start.cbor`, `image.cbor`, `end.cbor`) are played by the same source: give
their folder, or a comma-separated list of files. In a folder the start comes first and the end last, with the images
between them in natural order of their names. They carry no times, so rate "real" plays them like "max".
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import structlog

from streamer.records import BadConfig, OutputDown, SeriesKey, SourceLost, WireRecord
from streamer.sources import Message
from streamer.sources.playback import Cue, Playback, Rate, natural_order
from streamer.wire import Buffer, Format, Kind, Scratch

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


class Recorder:
    """Writes a recording; close it, or use it as a context manager. One thread.

    messages, nbytes: what the file holds so far. Raises BadConfig when the file exists or its folder does not,
    OutputDown when the disk takes no more: the file then ends with the last whole message.
    """

    def __init__(self, path: Path | str, format_name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
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
        header = {"format": format_name, "created": time.time(), "streamer": _version()}
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


class Recording(Playback):
    """Plays a recording, or messages that were captured one per file.

    path: a `.wire` file, a folder of single messages, or one or several of these separated by commas.
    find_format: a wire format by name. format: its name for single messages; by default their suffix tells it.
    rate: "real" keeps the recorded times, "max" is as fast as it can be read, a number is messages per second.

    damaged: records skipped so far. lost_bytes: what a cut tail holds and cannot be played.
    Raises SourceLost for what is missing or no recording, BadConfig for a rate that is none.
    """

    def __init__(
        self,
        path: Path | str,
        find_format: Callable[[str], Format],
        *,
        format: str = "",  # noqa: A002
        rate: Literal["real", "max"] | float = "max",
    ) -> None:
        super().__init__(str(path), 1.0 if rate == "real" else rate)
        self._is_real_time = rate == "real"
        self._tape: _Tape | _Sheets
        if _is_recording(Path(path)):
            self._tape = _Tape(Path(path), find_format)
        else:
            self._tape = _Sheets(_message_files(self.url), format, find_format)
        self.format = self._tape.format
        self.announced_frames = self._tape.images
        self._play(self._script())

    @property
    def damaged(self) -> int:
        return self._tape.damaged

    @property
    def lost_bytes(self) -> int:
        return self._tape.lost_bytes

    def play_at(self, rate: Rate) -> None:
        super().play_at(rate)
        self._is_real_time = False

    def decode(self, message: Message, *, scratch: Scratch | None = None) -> list[WireRecord]:
        return self.format.decode(message.parts, scratch=scratch, received_ns=message.received_ns)

    def identify(self, message: Message) -> tuple[SeriesKey, int]:
        return self.format.identify(message.parts)

    def close(self) -> None:
        super().close()
        self._tape.close()

    def _script(self) -> Iterator[Cue]:
        began_ns = None
        for place, captured in enumerate(self._tape.messages()):
            began_ns = captured.monotonic_ns if began_ns is None else began_ns
            yield Cue(
                place=(captured.monotonic_ns - began_ns) / 1e9 if self._is_real_time else place,
                parts=captured.parts,
                kind=self.format.kind(captured.parts),
                nbytes=sum(part.nbytes for part in captured.parts),
                extra={"wall_ns": captured.wall_ns},
            )


@dataclass(frozen=True, slots=True)
class _Captured:
    """One message and when it was received."""

    parts: list[memoryview]
    monotonic_ns: int = 0
    wall_ns: int = 0


class _Tape:
    """A `.wire` file: opening it walks over the lengths of all records; the pixels are read when they are played."""

    def __init__(self, path: Path, find_format: Callable[[str], Format]) -> None:
        self.path = path
        self.damaged = 0
        self.images = 0
        self._file = path.open("rb")
        self._records, self.lost_bytes = self._walk()
        header = self._payload(0) if self._records else None
        if header is None:
            self.close()
            raise SourceLost(f"recording: the header of {path} is cut or damaged; nothing in it can be told apart")
        if self.lost_bytes:
            log.warning("the recording is cut", file=str(path), lost_bytes=self.lost_bytes)
        try:
            name = str(json.loads(bytes(header))["format"])
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise SourceLost(f"recording: the header of {path} names no format ({error})") from error
        self.format = find_format(name)
        self.images = sum(self._kind(index) == "image" for index in range(1, len(self._records)))

    def messages(self) -> Iterator[_Captured]:
        for index in range(1, len(self._records)):
            payload = self._payload(index)
            if payload is not None:
                yield _split(payload)
                continue
            self.damaged += 1
            log.warning("a record is damaged and was skipped", file=str(self.path), damaged=self.damaged)

    def close(self) -> None:
        self._file.close()

    def _walk(self) -> tuple[list[tuple[int, int]], int]:
        """(offset, length of payload) of every whole record, and the bytes that follow the last of them."""
        size = self._file.seek(0, os.SEEK_END)
        records = []
        offset = len(MAGIC)
        while offset + _RECORD.size <= size:
            self._file.seek(offset)
            length, _ = _RECORD.unpack(self._file.read(_RECORD.size))
            if length > size - offset - _RECORD.size:
                break
            records.append((offset, length))
            offset += _RECORD.size + length
        return records, max(0, size - offset)

    def _payload(self, index: int) -> memoryview | None:
        """None if it is damaged."""
        offset, length = self._records[index]
        self._file.seek(offset)
        _, checksum = _RECORD.unpack(self._file.read(_RECORD.size))
        payload = self._file.read(length)
        return memoryview(payload) if _checksum([payload], length) == checksum else None

    def _kind(self, index: int) -> Kind | None:
        offset, length = self._records[index]
        self._file.seek(offset + _RECORD.size)
        try:
            return self.format.kind(_split(memoryview(self._file.read(min(length, _PEEK)))).parts)
        except struct.error:
            return None


class _Sheets:
    """Single messages, one per file."""

    damaged = 0
    lost_bytes = 0

    def __init__(self, files: list[Path], format_name: str, find_format: Callable[[str], Format]) -> None:
        name = format_name or FORMAT_OF_SUFFIX.get(files[0].suffix, "")
        if not name:
            raise BadConfig(f"recording: nothing tells the format of {files[0]}; name it (format=dectris2)")
        self.format = find_format(name)
        kinds = {file: self._kind(file) for file in files}
        self.images = sum(kind == "image" for kind in kinds.values())
        self._files = sorted(files, key=lambda file: {"start": 0, "end": 2}.get(kinds[file] or "", 1))

    def messages(self) -> Iterator[_Captured]:
        for file in self._files:
            yield _Captured([memoryview(file.read_bytes())])

    def close(self) -> None:
        """Nothing is held open."""

    def _kind(self, path: Path) -> Kind | None:
        with path.open("rb") as file:
            return self.format.kind([file.read(_PEEK)])


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
