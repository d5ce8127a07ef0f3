"""What must hold of every format and reader, whatever the bytes: tools/fuzz.py looks for bytes for which it does not.

a format        kind, claims and split never raise; identify and decode raise BadFrame only, with a reason that is
                in REASONS and a text that can be logged, and agree on series and number; images are 2-D, of the
                types analyses take, at most max_pixels; what was decoded and is encoded is decoded as the same;
                and after whatever came the good messages are read as ever, and the ledger adds up
a reader        BadFrame only; and what it accepts, another one (cbor2, msgpack, json, LZ4 called through Python)
                reads as the same
"""

from __future__ import annotations

import contextlib
import importlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import cbor2
import msgpack
import numpy as np

from streamer import cbor, compression, config, headers, messagepack
from streamer.ledger import COUNTS, Ledger
from streamer.records import BadFrame, BadInput, Frame, Result, SeriesEnd, SeriesKey, SeriesStart, WireRecord
from streamer.sources import Message as Wrapped
from streamer.sources.wired import Wired
from streamer.wire import Format, results
from tests import hostile
from tests.inputs import Message

MAX_PIXELS = 10_000
SCRATCH_BYTES = 80_000_000
LONGEST_NAME = 255
READERS = ("cbor", "compression", "headers", "messagepack")
_DTYPES = frozenset(map(np.dtype, ("uint8", "uint16", "uint32", "int32", "float32")))


class Broken(Exception):
    """Something that must hold does not."""


class Target(Protocol):
    """What can be fuzzed: `check` reads one message and says in a few words what came of it, or raises Broken."""

    name: str
    seeds: Sequence[Sequence[Message]]

    def renew(self) -> None: ...

    def check(self, parts: Message) -> str: ...

    def end(self) -> None: ...


def target(name: str) -> Target:
    """The format or reader of that name."""
    return ReaderTarget(name) if name in READERS else FormatTarget(name)


WAYS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "array": [{"compression": "bslz4"}, {"compression": "lz4"}],
    "bsread": [{"channel": "CAM:FPICTURE, WAVE", "compression": "lz4"}, {"compression": "none"}],
    "dectris1": [{"compression": "lz4", "header_detail": "basic"}, {"compression": "none", "header_detail": "none"}],
    "dectris2": [{"compression": "lz4"}, {"compression": "none"}],
    "karabo": [
        {"version": "1.0", "detector": "SPB_DET_AGIPD1M-1/CAL/APPEND_CORRECTED", "path": "image.data"},
        {"version": "1.0", "axes": "module,x,y,pulse", "pulses": "::2"},
    ],
}
"""Options that make a format read or write in another way."""

RARELY = 4
"""Of this many messages, one is read in the other ways, too, and goes through a source into the ledger."""


class Fed(Wired):
    """A source that gives what it is given."""

    url = "fuzz:"

    def __init__(self, speaks: Format) -> None:
        super().__init__()
        self.format = speaks
        self.waiting: list[Wrapped] = []

    def _arrivals(self, timeout_s: float) -> Sequence[Wrapped]:
        arrived, self.waiting = self.waiting, []
        return arrived


class FormatTarget:
    """One format, and what its good messages make. Every message is read as usual, and some in its other WAYS."""

    def __init__(self, name: str, speaks: type[Format] | None = None, **options: Any) -> None:
        found = speaks or config.find("wire", name)
        bounds = {"max_pixels": MAX_PIXELS} if found.carries == "frames" else {}
        self.name = name
        self.new: Callable[[], Format] = lambda: found(**bounds, **options)
        self.reasons = importlib.import_module(f"streamer.wire.{name}").REASONS
        self.good = hostile.good(name)
        self.seeds = [[parts] for parts in self.good] + [[case.parts] for case in hostile.corpus(name)] + [self.good]
        self.scratch = compression.Scratch(limit=SCRATCH_BYTES)
        self.others = [] if options else [FormatTarget(name, found, **way) for way in WAYS.get(name, ())]
        self.renew()
        self.whole = self.read_good()
        self.renew()

    def renew(self) -> None:
        """Forget what was read."""
        self.speaks = self.new()
        self.source, self.ledger, self.now = Fed(self.new()), Ledger(), 0.0
        for other in self.others:
            other.renew()

    def check(self, parts: Message) -> str:
        """What comes of one message, in a few words. Raises Broken."""
        if zlib.crc32(b"".join(parts)) % RARELY == 0:
            for other in self.others:
                other.check(parts)
            self.account(parts)
        return self.check_usually(parts)

    def account(self, parts: Message) -> None:
        """Do with a message what sources and pipeline do; half of the frames turn out unusable."""
        self.source.waiting += [Wrapped(one, self.speaks.kind(one), 0, 0) for one in self.speaks.split(parts)]
        while (message := self.source.receive(0.0)) is not None:
            self.now += 1.0
            self.scratch.reset()
            try:
                self.enter(self.source.decode(message, scratch=self.scratch))
            except BadFrame as bad:
                self.ledger.malformed(bad.reason, bad.series, bad.number, self.now)
            self.ledger.tick(self.now)

    def enter(self, records: Sequence[WireRecord]) -> None:
        """Tell the ledger what came."""
        match records:
            case [Frame() | Result() as first, *_]:
                if self.ledger.frame(first.series, first.number, self.now) == "accepted":
                    done = self.ledger.analysed if first.number % 2 else self.ledger.unusable
                    done(first.series, first.number, self.now)
            case [SeriesStart() as start]:
                self.ledger.start(start, self.now)
            case [SeriesEnd() as end]:
                self.ledger.end(end.series, self.now)
            case _:
                self.ledger.control()

    def check_usually(self, parts: Message) -> str:
        if self.speaks.kind(parts) not in (None, "start", "image", "end") or self.speaks.claims(parts) is None:
            raise Broken("a kind of message that does not exist")
        if [part for one in self.speaks.split(parts) for part in one] != [*parts]:
            raise Broken("split lost, changed or moved parts")
        identity, refusal = self.refused(self.speaks.identify, parts)
        self.scratch.reset()
        records, refused = self.refused(self.speaks.decode, [*map(memoryview, parts)], scratch=self.scratch)
        if refused is not None:
            if refusal is None and None not in (refused.series, refused.number):
                self.agree(identity, (refused.series, refused.number))
            return f"refused ({refused.reason}): {refused}"
        for record in records:
            if isinstance(record, Frame):
                self.agree(identity, (record.series, record.number))
                check_frame(record)
            elif isinstance(record, SeriesStart):
                check_start(record)
        frames = [record for record in records if isinstance(record, Frame)]
        if len({frame.channel for frame in frames}) != len(frames):
            raise Broken("two frames of one channel in one message")
        for record in [results.decode(parts)] if self.name == "results" else [frames] if frames else records:
            self.echo(record)
        return ", ".join(type(record).__name__ for record in records) or "read, no record"

    def refused(self, read: Callable[..., Any], parts: Sequence[Any], **options: Any) -> tuple[Any, BadFrame | None]:
        """What comes of reading, or why it is refused."""
        try:
            return read(parts, **options), None
        except BadFrame as bad:
            if bad.reason not in self.reasons:
                raise Broken(f"refused for {bad.reason!r}, which is not in REASONS") from bad
            if len(str(bad).encode()) > 800:
                raise Broken(f"refused with a text of {len(str(bad))} characters") from bad
            return None, bad

    def agree(self, identity: Any, found: Any) -> None:
        """What `identify` said must be what `decode` says."""
        if identity != found:
            raise Broken(f"identified as {identity}, decoded as {found}")

    def echo(self, record: Any) -> None:
        """Encoding and decoding changes nothing, once what the format has no place for is gone."""
        with contextlib.suppress(BadInput):
            sent = self.sent(record)
            again = self.resent(sent)
            if sent and sent != again:
                raise Broken(f"{sent[0][:300]!r} is read and encoded as {again[0][:300] if again else b''!r}")

    def sent(self, record: Any) -> list[bytes]:
        encode = results.encode if self.name == "results" else self.new().encode
        return [bytes(part) for part in encode(record)]

    def resent(self, parts: list[bytes]) -> list[bytes]:
        if not parts:
            return []
        try:
            records = [results.decode(parts)] if self.name == "results" else self.new().decode(parts)
        except BadFrame as bad:
            raise Broken(f"what was encoded is refused: {bad}; {parts[0][:300]!r}") from bad
        return self.sent(records if isinstance(records[0], Frame) else records[0]) if records else []

    def read_good(self) -> list[str]:
        """The good messages as they are read now."""
        return [self.check_usually(parts) for parts in self.good]

    def end(self) -> None:
        """After whatever came the good messages are read as ever; but what is no news to Results makes no record."""
        found = self.read_good()
        for n, (now, before) in enumerate(zip(found, self.whole, strict=True)):
            if now != before and (self.speaks.carries == "frames" or before == "Result"):
                raise Broken(f"good message {n} is now: {now}; it was: {before}")
        check_ledger(self.ledger, self.now)
        for other in self.others:
            other.end()


def check_ledger(ledger: Ledger, now: float) -> None:
    """Raises Broken where a frame or a message has no name, or two, while series are open or when all are closed."""
    for _ in range(2):
        wire = ledger.wire()
        named = wire.control + wire.accepted + wire.duplicate + wire.late + wire.stale + wire.unannounced
        if wire.messages != named + sum(wire.malformed.values()):
            raise Broken(f"messages that do not add up: {wire}")
        for account in ledger.accounts():
            if account.unaccounted or min(getattr(account, name) for name in COUNTS) < 0:
                raise Broken(f"frames that do not add up: {account}")
            if account.closed_by and account.pending:
                raise Broken(f"frames that are still to come when the series is closed: {account}")
        ledger.close(now)


def check_frame(frame: Frame) -> None:
    """Raises Broken for a frame no analysis could take."""
    image = frame.image
    if image.ndim != 2 or image.dtype not in _DTYPES or not image.dtype.isnative or not 0 < image.size <= MAX_PIXELS:
        raise Broken(f"an image of {image.dtype}, shape {image.shape}")
    if type(frame.number) is not int or frame.number < 0 or not isinstance(frame.series, SeriesKey):
        raise Broken(f"frame {frame.number!r} of series {frame.series!r}")
    for name in (frame.channel, frame.series.unique):
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise Broken(f"a name that cannot be printed in a line: {name[:300]!r}")
    json.dumps(dict(frame.extra), allow_nan=False)


def check_start(start: SeriesStart) -> None:
    """Raises Broken for a start that does not fit together."""
    tables = [table.shape for table in (*start.mask.values(), *start.flatfield.values())]
    if start.shape is not None and not 0 < start.shape[0] * start.shape[1] <= MAX_PIXELS:
        raise Broken(f"a start of shape {start.shape}")
    if any(shape != start.shape for shape in tables) or (start.images is not None and start.images < 0):
        raise Broken(f"a start of {start.images} images of {start.shape}, tables of {tables}")
    f"{start.detector}{start.series}".encode()
    json.dumps(dict(start.extra), allow_nan=False)


class ReaderTarget:
    """A reader below the formats, beside another one: what it takes, both read as the same."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.read, formats = _READERS[name]
        parts = [part for one in formats for message in _known(one) for part in message]
        self.seeds = [[[part]] for part in parts] or [[message] for message in _compressed()]

    def renew(self) -> None:
        """A reader remembers nothing."""

    def end(self) -> None:
        """A reader remembers nothing."""

    def check(self, parts: Message) -> str:
        try:
            self.read(parts)
        except BadFrame as bad:
            return f"refused ({bad.reason}): {bad}"
        return "read"


def check_cbor(parts: Message) -> None:
    """Tags become lists here, and dates are not interpreted by either."""
    tags = {tag: (lambda value, tag=tag: [tag, value]) for tag in (0, 40, 69, 1040, 56500)}
    for part in parts:
        found = dict(cbor.entries(part, tags))
        theirs = cbor2.loads(
            part,
            tag_hook=lambda tag, *_: [tag.tag, tag.value] if tag.tag in tags else tag.value,
            semantic_decoders={0: lambda value, *_: [0, value]},
        )
        same(found, theirs)


def check_messagepack(parts: Message) -> None:
    reader = messagepack.Reader()
    for part in parts:
        same(reader.map(part), msgpack.unpackb(part, strict_map_key=False))


def check_headers(parts: Message) -> None:
    for part in parts:
        headers.looks_like(part, b"d", b"array-1.")
        same(headers.read(part), json.loads(part))


def check_compression(parts: Message) -> None:
    """The first part says what the others are: algorithm, element size, whether a header is needed, length."""
    if not parts or len(parts[0]) != 5:
        return
    algorithm, bits = ("lz4", "bslz4")[parts[0][0] & 1], parts[0][1]
    length = int.from_bytes(parts[0][2:], "little") % 200_000
    for part in parts[1:]:
        walks = []
        for is_exported in {compression.LZ4_IS_EXPORTED, False}:
            before, compression.LZ4_IS_EXPORTED = compression.LZ4_IS_EXPORTED, is_exported
            out = np.zeros(length, np.uint8)
            try:
                compression.decompress(algorithm, 1 << (bits & 3), part, out, header_is_optional=bool(bits & 4))
                walks.append(out.tobytes())
            except BadFrame:
                walks.append(b"refused")
            finally:
                compression.LZ4_IS_EXPORTED = before
        same(walks[0], walks[-1])


def same(ours: Any, theirs: Any) -> None:
    """Raises Broken where two readers differ; a NaN is a NaN, and bytes are bytes in whatever they lie."""
    ours, theirs = plain(ours), plain(theirs)
    if ours != theirs:
        raise Broken(f"read as {ours[:300]}, by another reader as {theirs[:300]}")


def plain(value: Any) -> str:
    """A value in a form in which readers agree: map keys in order, byte keys as text, and nothing undefined."""
    match value:
        case Mapping():
            named = {key.decode() if isinstance(key, bytes) else key: plain(item) for key, item in value.items()}
            return f"{{{', '.join(sorted(f'{key!r}: {item}' for key, item in named.items()))}}}"
        case list() | tuple():
            return f"[{', '.join(map(plain, value))}]"
        case bytes() | bytearray() | memoryview():
            return repr(bytes(value))
    return "None" if value is cbor2.undefined else repr(value)


def _known(name: str) -> list[Message]:
    return [*hostile.good(name), *(case.parts for case in hostile.corpus(name))]


def _compressed() -> list[Message]:
    ramp = (np.arange(3003) % 251).astype(np.uint16)
    packed = {0: compression.compress("lz4", 1, ramp), 1: compression.compress("bslz4", 2, ramp)}
    heads = {n: bytes([n, optional | n]) + ramp.nbytes.to_bytes(3, "little") for n in packed for optional in (0, 4)}
    return [[heads[n], octets[cut:]] for n, octets in packed.items() for cut in (0, 12)]


_READERS: Mapping[str, tuple[Callable[[Message], None], tuple[str, ...]]] = {
    "cbor": (check_cbor, ("dectris2",)),
    "messagepack": (check_messagepack, ("karabo", "results")),
    "headers": (check_headers, ("dectris1", "array", "bsread")),
    "compression": (check_compression, ()),
}
"""How a reader is checked, and the formats whose messages it starts from."""
