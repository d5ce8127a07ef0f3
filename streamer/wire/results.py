"""The one codec of our own results, schema streamer.result/1: the `zeromq` output sends it, `streamer watch` reads it.

As a Format it makes a streamer's results the source of another one, which applies rules of its own and hands them on to
its own outputs. Results keep their series, number and time; from the status it learns how many frames a series has
and that it is over. Alarms stay where they were raised: whoever wants them downstream writes a rule there.

A message is a ZeroMQ multipart of two parts. Part 0 is the topic, UTF-8, for the subscriber's filter:

    result.<analysis>          one Result              e.g. result.saxs
    alarm.<name>               one Alarm: it began, changed or ended
    status                     one Status: once a second

Part 1 is one msgpack map with string keys. In the tables below `n` is an integer, `x` a float64 (an integer is read as
one; NaN and ±inf are legal), `s` a UTF-8 string, `b` a boolean, `?` may be nil, `[…]` an array, `{s: …}` a map.
Times: `wall_time`, `began`, `ended` are UTC seconds since 1970; `start_s` is seconds after the series date;
`received_ns` is the monotonic clock of the sending machine and means nothing on another one.

    every message   schema s "streamer.result/1"   kind s "result" | "alarm" | "status"
    result          analysis s, series KEY, number n, channel s, start_s x?, received_ns n, wall_time x,
                    quantities {s: QUANTITY}
    alarm           id s, name s, severity s "NO_ALARM" | "MINOR" | "MAJOR" | "INVALID", text s, watch s, began x,
                    series KEY?, number n?, ended x?, ended_number n?, acknowledged b,
                    evidence {s: x | n | s | [x | n]}
    status          state s, is_ready b, source s, wire WIRE, series ACCOUNT?, closed [ACCOUNT], frames_per_second x,
                    latency_ms {s: x}, queues {s: {s: n}}, stages {s: x}, outputs {s: s}, devices {s: s},
                    alarms [alarm, without schema and kind], wall_time x

    KEY             [n number, s unique]: natural, as all numbers of frames and counts; up to 255 printable characters
    QUANTITY        value x | ARRAY, sigma the same?, unit s, axes [[s name, ARRAY values, s unit]]: one per dimension
                    of value, in order; [] for a scalar
    ARRAY           dtype s, shape [n], bytes bin: C order, little-endian, exactly itemsize × product of shape bytes.
                    dtype is one of |b1 |u1 |i1 <u2 <i2 <u4 <i4 <f4 <u8 <i8 <f8; at most 8 dimensions
    WIRE, ACCOUNT   the fields of `records.WireAccount` and `records.Account` under their own names

Versions. The number after the slash is the major version; a minor one may follow a dot. A minor version only adds keys:
unknown keys are ignored, absent keys take the default of the record. Another major version is refused.

Reasons of BadFrame are the keys of REASONS.

Nothing here needs a socket, a thread or a clock. Decoded arrays are read-only views of the message.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from streamer.fields import excerpt, is_natural
from streamer.pixels import Scratch
from streamer.records import (
    Account,
    Alarm,
    BadFrame,
    BadInput,
    Buffer,
    Frame,
    Quantity,
    Result,
    SeriesEnd,
    SeriesKey,
    SeriesStart,
    Severity,
    Status,
    WireAccount,
    WireRecord,
)
from streamer.wire import Format, Kind

__all__ = ["REASONS", "SCHEMA", "Results", "decode", "encode", "plain_account", "plain_alarm", "read_alarm", "topic"]

REASONS: Mapping[str, str] = {
    "parts": "not two parts",
    "topic": "a topic that does not fit the payload",
    "msgpack": "not one well-formed map with distinct string keys, beyond reason, or with an extension type",
    "version": "another schema, or another major version of this one",
    "field": "missing or of the wrong type",
    "dtype": "an element type this schema does not have",
    "size": "bytes ≠ itemsize × shape, or a payload beyond 64 MiB",
    "shape": "sigma or axes do not fit the value",
}

SCHEMA = "streamer.result/1"
MAX_PAYLOAD = 64 * 2**20  # bytes; the largest honest result is a few images of a few megabytes
MAX_ITEMS = 100_000  # in one message; a status has some hundred, and an empty map takes 72 bytes for its one
MAX_DIMENSIONS = 8
MAX_UNIQUE = 255  # characters of a series' unique name, which is kept and printed; a recording's is a file name
DTYPES = {
    code: np.dtype(code) for code in ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8")
}

Record = Result | Alarm | Status
Plain = dict[str, Any]
T = TypeVar("T")


REMEMBERED_SERIES = 64
"""Series of which it is known that they were announced or closed; a status names nine."""


class Results(Format):
    """The results of another streamer. A status becomes a start or an end where it tells of one for the first time."""

    name = "results"
    title = "streamer results"
    default_port = 5556
    usual_socket = "sub"
    carries = "results"

    def __init__(self) -> None:
        self._told: OrderedDict[SeriesKey, Kind] = OrderedDict()
        self._lock = threading.Lock()

    def kind(self, parts: Sequence[Buffer]) -> Kind | None:
        return "image" if self.claims(parts) and bytes(parts[0][:7]) == b"result." else None

    def claims(self, parts: Sequence[Buffer]) -> bool:
        return len(parts) == 2 and SCHEMA[:-1].encode() in bytes(memoryview(parts[1]).cast("B")[:64])

    def identify(self, parts: Sequence[Buffer]) -> tuple[SeriesKey, int]:
        record = decode(parts)
        if not isinstance(record, Result):
            raise BadFrame("field", f"results: a message about {topic(record)[:80]!r} has no frame")
        return record.series, record.number

    def decode(
        self, parts: Sequence[Buffer], *, scratch: Scratch | None = None, received_ns: int = 0
    ) -> list[WireRecord]:
        """One Result, one SeriesStart or SeriesEnd, or nothing. received_ns replaces the clock of the other machine."""
        record = decode(parts)
        if isinstance(record, Result):
            return [dataclasses.replace(record, received_ns=received_ns)]
        return self._news(record, received_ns) if isinstance(record, Status) else []

    def encode(self, record: SeriesStart | SeriesEnd | Sequence[Frame]) -> list[bytes]:
        """A start and an end are no messages here. Raises BadInput for frames: results are made by an analysis."""
        if isinstance(record, SeriesStart | SeriesEnd):
            return []
        raise BadInput("results: frames are not results; analyse them first and publish with [publish.zeromq]")

    def _news(self, status: Status, received_ns: int) -> list[WireRecord]:
        """The first series in a status of whose end, or of whose beginning, nobody was told yet.

        A series may begin again under the key of one that ended: its detector was restarted.
        """
        current = None if status.series is None or status.series.closed_by else status.series
        for account in (*status.closed, *filter(None, [status.series])):
            is_over = account.closed_by and (current is None or account.series != current.series)
            if is_over and self._is_news(account.series, "end"):
                return [SeriesEnd(account.series, received_ns, account.announced)]
        is_told = current is None or not (current.is_announced or current.is_counted)
        if current is not None and not is_told and self._is_news(current.series, "start"):
            return [_start(current, received_ns)]
        return []

    def _is_news(self, series: SeriesKey, kind: Kind) -> bool:
        with self._lock:
            if self._told.get(series) == kind:
                return False
            self._told[series] = kind
            self._told.move_to_end(series)
            while len(self._told) > REMEMBERED_SERIES:
                self._told.popitem(last=False)
            return True


def _start(account: Account, received_ns: int) -> SeriesStart:
    return SeriesStart(
        account.series,
        images=account.announced if account.is_announced else None,
        first=account.first if account.is_counted else None,
        step=max(1, account.step),
        was_running=account.received > 0,
        received_ns=received_ns,
    )


def topic(record: Record) -> str:
    """What a subscriber filters by."""
    match record:
        case Result():
            return f"result.{record.analysis}"
        case Alarm():
            return f"alarm.{record.name}"
        case Status():
            return "status"


def encode(record: Record) -> list[bytes]:
    """The two parts of one message. Raises BadInput on a value the schema has no place for (complex, object, 2⁶⁴)."""
    match record:
        case Result():
            kind, plain = "result", _plain_result(record)
        case Alarm():
            kind, plain = "alarm", plain_alarm(record)
        case Status():
            kind, plain = "status", _plain_status(record)
    try:
        payload = msgpack.packb(
            {"schema": SCHEMA, "kind": kind, **plain}, default=_plain_scalar, unicode_errors="replace"
        )
    except (OverflowError, TypeError, ValueError) as error:
        raise BadInput(f"results: {topic(record)} does not fit schema {SCHEMA}: {error}") from error
    return [topic(record).encode("utf-8", "replace"), payload]


def decode(parts: Sequence[Buffer]) -> Record:
    """The record in one message. Raises BadFrame and nothing else, whatever the bytes."""
    if len(parts) != 2:
        raise BadFrame("parts", f"results: message has {len(parts)} parts, expected a topic and a payload")
    fields = _Fields(_unpack(parts[1]), "message")
    _check_version(fields.text("schema"))
    readers: dict[str, Callable[[_Fields], Record]] = {"result": _result, "alarm": _alarm, "status": _status}
    kind = fields.text("kind")
    if kind not in readers:
        raise BadFrame("field", f"results: kind is {kind[:40]!r}, expected one of {', '.join(readers)}")
    try:
        record = readers[kind](fields)
    except BadInput as error:  # the records check their own shapes
        raise BadFrame("shape", f"results: {error}") from error
    if bytes(parts[0]) != topic(record).encode("utf-8", "replace"):
        raise BadFrame("topic", f"results: topic {bytes(parts[0])[:80]!r} on a message about {topic(record)[:80]!r}")
    return record


# Records to plain values.


def plain_alarm(alarm: Alarm) -> Plain:
    """An alarm as strings, numbers, lists and maps, as the table of this module says."""
    return {
        "id": alarm.id,
        "name": alarm.name,
        "severity": alarm.severity.name,
        "text": alarm.text,
        "watch": alarm.watch,
        "began": alarm.began,
        "series": None if alarm.series is None else _plain_key(alarm.series),
        "number": alarm.number,
        "ended": alarm.ended,
        "ended_number": alarm.ended_number,
        "acknowledged": alarm.acknowledged,
        "evidence": dict(alarm.evidence),
    }


def _plain_result(result: Result) -> Plain:
    return {
        "analysis": result.analysis,
        "series": _plain_key(result.series),
        "number": result.number,
        "channel": result.channel,
        "start_s": result.start_s,
        "received_ns": result.received_ns,
        "wall_time": result.wall_time,
        "quantities": {name: _plain_quantity(quantity) for name, quantity in result.quantities.items()},
    }


def _plain_status(status: Status) -> Plain:
    return {
        "state": status.state,
        "is_ready": status.is_ready,
        "source": status.source,
        "wire": plain_account(status.wire),
        "series": None if status.series is None else plain_account(status.series),
        "closed": [plain_account(account) for account in status.closed],
        "frames_per_second": status.frames_per_second,
        "latency_ms": dict(status.latency_ms),
        "queues": {name: dict(queue) for name, queue in status.queues.items()},
        "stages": dict(status.stages),
        "outputs": dict(status.outputs),
        "devices": dict(status.devices),
        "alarms": [plain_alarm(alarm) for alarm in status.alarms],
        "wall_time": status.wall_time,
    }


def _plain_key(series: SeriesKey) -> list[int | str]:
    return [series.number, series.unique]


def plain_account(account: WireAccount | Account) -> Plain:
    """An account as numbers, words and maps under the names of its fields."""
    plain = {field.name: getattr(account, field.name) for field in dataclasses.fields(account)}
    match account:
        case WireAccount():
            plain["malformed"] = dict(account.malformed)
        case Account():
            plain["series"] = _plain_key(account.series)
    return plain


def _plain_quantity(quantity: Quantity) -> Plain:
    return {
        "value": _plain_value(quantity.value),
        "sigma": None if quantity.sigma is None else _plain_value(quantity.sigma),
        "unit": quantity.unit,
        "axes": [[name, _plain_array(np.asarray(values)), unit] for name, (values, unit) in quantity.axes.items()],
    }


def _plain_value(value: float | NDArray[Any]) -> float | Plain:
    if type(value) is float:  # most of them, and NumPy takes its time to see what a number is
        return value
    return _plain_array(np.asarray(value)) if np.ndim(value) else float(value)


def _plain_array(array: NDArray[Any]) -> Plain:
    name = array.dtype.str
    if name not in DTYPES:
        little = array.dtype.newbyteorder("<")
        name = little.str
        if name not in DTYPES:
            raise BadInput(
                f"results: an array has dtype {array.dtype}, expected one of {', '.join(DTYPES)}; convert it"
            )
        array = array.astype(little)
    return {"dtype": name, "shape": list(array.shape), "bytes": array.tobytes()}


def _plain_scalar(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no place for {type(value).__name__}")


# Bytes to plain values.


def _unpack(payload: Buffer) -> Plain:
    """One msgpack map. Its nesting and every length in it are bounded by the bytes that are there, its items by us."""
    if len(payload) > MAX_PAYLOAD:
        raise BadFrame("size", f"results: payload of {len(payload)} bytes, expected at most {MAX_PAYLOAD}")
    allowance = _Allowance()
    try:
        plain = msgpack.unpackb(
            payload,
            object_pairs_hook=allowance.distinct,
            list_hook=allowance.counted,
            ext_hook=_no_extension,
            strict_map_key=True,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise BadFrame("msgpack", f"results: payload is not one well-formed msgpack map: {error}") from error
    if not isinstance(plain, dict):
        raise BadFrame("msgpack", f"results: payload is a msgpack {type(plain).__name__}, expected a map")
    return plain


class _Allowance:
    """Counts the items of one message while it is read."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def counted(self, items: list[Any]) -> list[Any]:
        self._left -= len(items) + 1
        if self._left < 0:
            raise BadFrame("msgpack", f"results: more than {MAX_ITEMS} items in one message")
        return items

    def distinct(self, pairs: list[tuple[Any, Any]]) -> Plain:
        fields = dict(self.counted(pairs))
        if len(fields) != len(pairs):
            raise BadFrame("msgpack", "results: a map names the same key twice")
        return fields


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise BadFrame("msgpack", f"results: msgpack extension type {code} of {len(data)} bytes; the schema has none")


def _check_version(schema: str) -> None:
    name, _, found = schema.partition("/")
    expected_name, _, expected = SCHEMA.partition("/")
    if name != expected_name or found.partition(".")[0] != expected:
        text = f"results: schema is {schema[:40]!r}, expected {SCHEMA!r}; use the same version on both sides"
        raise BadFrame("version", text)


# Plain values to records.


class _Fields:
    """The fields of one map, read by type. An absent field takes `default`; without one it is an error."""

    def __init__(self, plain: object, where: str) -> None:
        if not isinstance(plain, dict):
            raise _wrong(where, plain, "a map")
        self._plain = plain
        self._where = where

    def text(self, name: str, default: str | None = None) -> str:
        return self.read(name, _text, default)

    def integer(self, name: str, default: int | None = None) -> int:
        return self.read(name, _integer, default)

    def number(self, name: str, default: float | None = None) -> float:
        return self.read(name, _number, default)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        return self.read(name, _boolean, default)

    def read(self, name: str, reader: Callable[[Any, str], T], default: T | None = None) -> T:
        """The field as `reader` reads it from its value and the words that name its place."""
        where = f"{self._where}.{name}"
        if name in self._plain:
            return reader(self._plain[name], where)
        if default is None:
            raise BadFrame("field", f"results: {where} is missing")
        return default

    def optional(self, name: str, reader: Callable[[Any, str], T]) -> T | None:
        """The same for a field that may be nil or absent."""
        return None if self._plain.get(name) is None else self.read(name, reader)

    def map_of(self, name: str, reader: Callable[[Any, str], T]) -> dict[str, T]:
        """A map from names to what `reader` reads; empty when absent."""
        return self.read(name, _map_of(reader), {})

    def list_of(self, name: str, reader: Callable[[Any, str], T]) -> tuple[T, ...]:
        """A list of what `reader` reads; empty when absent."""
        return self.read(name, _list_of(reader), ())


def read_alarm(plain: object, where: str = "alarm") -> Alarm:
    """The alarm that `plain_alarm` made plain. Raises BadFrame."""
    return _alarm(_Fields(plain, where))


def _alarm(fields: _Fields) -> Alarm:
    return Alarm(
        id=fields.text("id"),
        name=fields.text("name"),
        severity=fields.read("severity", _severity),
        text=fields.text("text"),
        watch=fields.text("watch"),
        began=fields.number("began"),
        series=fields.optional("series", _key),
        number=fields.optional("number", _natural),
        ended=fields.optional("ended", _number),
        ended_number=fields.optional("ended_number", _natural),
        acknowledged=fields.boolean("acknowledged", False),
        evidence=fields.map_of("evidence", _evidence),
    )


def _result(fields: _Fields) -> Result:
    return Result(
        analysis=fields.text("analysis"),
        series=fields.read("series", _key),
        number=fields.read("number", _natural),
        quantities=fields.map_of("quantities", _quantity),
        channel=fields.text("channel", ""),
        start_s=fields.optional("start_s", _number),
        received_ns=fields.integer("received_ns", 0),
        wall_time=fields.number("wall_time", 0.0),
    )


def _status(fields: _Fields) -> Status:
    return Status(
        state=fields.text("state"),
        is_ready=fields.boolean("is_ready"),
        source=fields.text("source"),
        wire=fields.read("wire", _wire),
        series=fields.optional("series", _account),
        closed=fields.list_of("closed", _account),
        frames_per_second=fields.number("frames_per_second", 0.0),
        latency_ms=fields.map_of("latency_ms", _number),
        queues=fields.map_of("queues", _map_of(_integer)),
        stages=fields.map_of("stages", _number),
        outputs=fields.map_of("outputs", _text),
        devices=fields.map_of("devices", _text),
        alarms=fields.list_of("alarms", read_alarm),
        wall_time=fields.number("wall_time", 0.0),
    )


def _wire(plain: object, where: str) -> WireAccount:
    fields = _Fields(plain, where)
    return WireAccount(**_counts(fields, WireAccount), malformed=fields.map_of("malformed", _natural))


def _account(plain: object, where: str) -> Account:
    fields = _Fields(plain, where)
    return Account(series=fields.read("series", _key), **_counts(fields, Account))


def _counts(fields: _Fields, record: type[WireAccount] | type[Account]) -> Plain:
    """The fields of an account that are plain numbers, words and yes or no, each of the type of its default."""
    readers: dict[type, Callable[[Any, str], Any]] = {int: _natural, bool: _boolean, str: _text}
    return {
        field.name: fields.read(field.name, readers[type(field.default)], field.default)
        for field in dataclasses.fields(record)
        if type(field.default) in readers
    }


def _quantity(plain: object, where: str) -> Quantity:
    fields = _Fields(plain, where)
    return Quantity(
        value=fields.read("value", _value),
        sigma=fields.optional("sigma", _value),
        unit=fields.text("unit", "1"),
        axes={name: (values, unit) for name, values, unit in fields.list_of("axes", _axis)},
    )


def _axis(plain: object, where: str) -> tuple[str, NDArray[Any], str]:
    if not isinstance(plain, list) or len(plain) != 3:
        raise _wrong(where, plain, "[name, values, unit]")
    values = _array(plain[1], f"{where}.values")
    if values.ndim != 1:
        raise BadFrame("shape", f"results: {where} has {values.ndim} dimensions, expected 1")
    return _text(plain[0], f"{where}.name"), values, _text(plain[2], f"{where}.unit")


def _value(plain: object, where: str) -> float | NDArray[Any]:
    return _array(plain, where) if isinstance(plain, dict) else _number(plain, where)


def _array(plain: object, where: str) -> NDArray[Any]:
    fields = _Fields(plain, where)
    code = fields.text("dtype")
    if code not in DTYPES:
        raise BadFrame("dtype", f"results: {where} has dtype {code[:20]!r}, expected one of {', '.join(DTYPES)}")
    shape, content = fields.list_of("shape", _integer), fields.read("bytes", _bytes)
    dtype = DTYPES[code]
    if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 0:
        raise BadFrame("size", f"results: {where} has shape {shape[:9]}, expected 1 to {MAX_DIMENSIONS} lengths ≥ 0")
    if math.prod(shape) * dtype.itemsize != len(content) or max(shape) > MAX_PAYLOAD:
        raise BadFrame("size", f"results: {where} holds {len(content)} bytes, its shape {shape} of {code} does not")
    return np.frombuffer(content, dtype).reshape(shape)


def _key(plain: object, where: str) -> SeriesKey:
    if not isinstance(plain, list) or len(plain) != 2:
        raise _wrong(where, plain, "[number, unique]")
    number, unique = _natural(plain[0], where), _text(plain[1], where)
    if len(unique) > MAX_UNIQUE or not unique.isprintable():
        text = f"results: {where[:80]} is {excerpt(unique)}, expected up to {MAX_UNIQUE} printable characters"
        raise BadFrame("field", text)
    return SeriesKey(number, unique)


def _severity(plain: object, where: str) -> Severity:
    if not isinstance(plain, str) or plain not in Severity.__members__:
        raise _wrong(where, plain, f"one of {', '.join(Severity.__members__)}")
    return Severity[plain]


def _evidence(plain: object, where: str) -> Any:
    if isinstance(plain, list):
        return [_measure(item, where) for item in plain]
    return plain if isinstance(plain, str) else _measure(plain, where)


def _measure(plain: object, where: str) -> int | float:
    return plain if isinstance(plain, float) else _integer(plain, where)


def _number(plain: object, where: str) -> float:
    return float(_measure(plain, where))


def _integer(plain: object, where: str) -> int:
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise _wrong(where, plain, "a number")
    return plain


def _natural(plain: object, where: str) -> int:
    if not is_natural(plain):
        raise BadFrame("field", f"results: {where[:80]} is {excerpt(plain)}, expected a natural number")
    return _integer(plain, where)


def _text(plain: object, where: str) -> str:
    if not isinstance(plain, str):
        raise _wrong(where, plain, "text")
    return plain


def _boolean(plain: object, where: str) -> bool:
    if not isinstance(plain, bool):
        raise _wrong(where, plain, "true or false")
    return plain


def _bytes(plain: object, where: str) -> bytes:
    if not isinstance(plain, bytes):
        raise _wrong(where, plain, "bytes")
    return plain


def _map_of(reader: Callable[[Any, str], T]) -> Callable[[Any, str], dict[str, T]]:
    def read(plain: object, where: str) -> dict[str, T]:
        if not isinstance(plain, dict):
            raise _wrong(where, plain, "a map")
        return {_text(name, where): reader(value, f"{where}.{name}") for name, value in plain.items()}

    return read


def _list_of(reader: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    def read(plain: object, where: str) -> tuple[T, ...]:
        if not isinstance(plain, list):
            raise _wrong(where, plain, "a list")
        return tuple(reader(value, where) for value in plain)

    return read


def _wrong(where: str, found: object, expected: str) -> BadFrame:
    return BadFrame("field", f"results: {where[:80]} is {type(found).__name__}, expected {expected}")
