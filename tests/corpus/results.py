"""Results as no streamer should send them."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from streamer.records import Account, Alarm, Quantity, Result, SeriesKey, Severity, Status, WireAccount
from streamer.wire import results
from tests.hostile import Case, Parts

_KEY = SeriesKey(7, "seven")
_Q = np.linspace(0.1, 1.0, 5)
_PROFILE = Quantity(np.arange(5.0), np.ones(5), "1/cm", {"q": (_Q, "1/nm")})
_RESULT = Result("saxs", _KEY, 3, {"anomaly": Quantity(0.5, 0.1), "profile": _PROFILE}, "threshold_1", wall_time=1.0)
_ALARM = Alarm("damage#1@5", "damage", Severity.MAJOR, "move the sample", "saxs.anomaly", 5.0, _KEY, 3)
_ACCOUNT = Account(_KEY, announced=4, is_announced=True, received=4, decoded=4, analysed=4)
_STATUS = Status("running", True, "sim:saxs", WireAccount(messages=5), _ACCOUNT, alarms=(_ALARM,))


def good() -> list[Parts]:
    """A status that announces the series, results, an alarm, and a status with its end."""
    over = Status("waiting", True, "sim:saxs", WireAccount(messages=5), None, (_closed(),))
    return [results.encode(record) for record in (_STATUS, _RESULT, _ALARM, over)]


def damaged() -> list[Case]:
    """Every message that must be refused, with the reason."""
    return [*_malformed(), *_misnamed(), *_mismeasured()]


def _closed() -> Account:
    return Account(_KEY, announced=4, is_announced=True, received=4, decoded=4, analysed=4, closed_by="end")


def _payload(**changes: Any) -> bytes:
    plain = msgpack.unpackb(results.encode(_RESULT)[1])
    changed = {name: value for name, value in (plain | changes).items() if value is not ...}
    return bytes(msgpack.packb(changed))


def _message(**changes: Any) -> Parts:
    return [b"result.saxs", _payload(**changes)]


def _status(**changes: Any) -> Parts:
    plain = msgpack.unpackb(results.encode(_STATUS)[1])
    return [b"status", bytes(msgpack.packb(plain | changes))]


def _alarm(**changes: Any) -> Parts:
    plain = msgpack.unpackb(results.encode(_ALARM)[1])
    return [b"alarm.damage", bytes(msgpack.packb(plain | changes))]


def _measured(**changes: Any) -> Parts:
    """A result whose only quantity is a curve that differs in this."""
    curve = msgpack.unpackb(results.encode(_RESULT)[1])["quantities"]["profile"]
    return _message(quantities={"profile": curve | changes})


def _curve(**changes: Any) -> Parts:
    """A result whose only quantity has an array that differs in this."""
    array = {"dtype": "<f8", "shape": [5], "bytes": bytes(40)}
    return _measured(sigma=None, axes=[], value=array | changes)


def _malformed() -> list[Case]:
    topic, payload = results.encode(_RESULT)
    maps = b"\xdc\x27\x10" + b"\x80" * 10_000
    head = b"\x82\xa6schema\xb1streamer.result/1\xa4kind"
    cases = [
        Case("no part", [], "parts"),
        Case("a topic alone", [topic], "parts"),
        Case("a payload alone", [payload], "parts"),
        Case("three parts", [topic, payload, b""], "parts"),
        Case("the parts swapped", [payload, topic], "msgpack"),
        Case("an empty payload", [topic, b""], "msgpack"),
        Case("JSON", [topic, b'{"schema":"streamer.result/1"}'], "msgpack"),
        Case("a list at the top", [topic, msgpack.packb([1, 2])], "msgpack"),
        Case("a number at the top", [topic, b"\x07"], "msgpack"),
        Case("nothing but nil", [topic, b"\xc0"], "msgpack"),
        Case("a byte that msgpack never uses", [topic, b"\xc1"], "msgpack"),
        Case("two messages in one", [topic, payload + payload], "msgpack"),
        Case("bytes left over", [topic, payload + b"\x00"], "msgpack"),
        Case("a map of 2^32 - 1 entries", [topic, b"\xdf" + b"\xff" * 4], "msgpack"),
        Case("a list of 2^32 - 1 items", [topic, head + b"\xdd" + b"\xff" * 4], "msgpack"),
        Case("bytes of 2^32 - 1", [topic, head + b"\xc6" + b"\xff" * 4], "msgpack"),
        Case("text of 2^32 - 1", [topic, head + b"\xdb" + b"\xff" * 4], "msgpack"),
        Case("100,000 lists deep", [topic, head + b"\x91" * 100_000], "msgpack"),
        Case("100,000 maps deep", [topic, b"\x81\xa1a" * 100_000], "msgpack"),
        Case("a million empty lists", [topic, head + b"\xdd\x00\x0f\x42\x40" + b"\x90" * 10**6], "msgpack"),
        Case("a million empty maps in lists", [topic, head + b"\xdc\x00\x64" + maps * 100], "msgpack"),
        Case("a key twice", [topic, b"\x82\xa4kind\xa1a\xa4kind\xa1b"], "msgpack"),
        Case("a key that is a number", [topic, b"\x81\x05\x05"], "msgpack"),
        Case("a key that is a list", [topic, b"\x81\x90\x05"], "msgpack"),
        Case("text that is not UTF-8", [topic, b"\x81\xa4kind\xa3\xff\xfe\xfd"], "msgpack"),
        Case("an extension type", _message(number=msgpack.ExtType(5, b"x")), "msgpack"),
        Case("a timestamp", _message(number=msgpack.Timestamp(5)), "field"),
    ]
    cases += [
        Case(f"the payload cut after {percent} %", [topic, payload[: len(payload) * percent // 100]], "msgpack")
        for percent in (1, 20, 50, 80, 99)
    ]
    return cases


def _misnamed() -> list[Case]:
    payload = _payload()
    return [
        Case("a topic of another analysis", [b"result.rdf", payload], "topic"),
        Case("a topic of another kind", [b"status", payload], "topic"),
        Case("a topic that is empty", [b"", payload], "topic"),
        Case("a topic that is not UTF-8", [b"\xff\xfe", payload], "topic"),
        Case("a topic of a megabyte", [b"result.saxs" + bytes(10**6), payload], "topic"),
        Case("no schema", _message(schema=...), "field"),
        Case("another schema", _message(schema="another/1"), "version"),
        Case("another major version", _message(schema="streamer.result/2"), "version"),
        Case("a schema that is a number", _message(schema=1), "field"),
        Case("no kind", _message(kind=...), "field"),
        Case("a kind nobody knows", _message(kind="frame"), "field"),
        Case("a kind of a megabyte", _message(kind="x" * 10**6), "field"),
        Case("a result called a status", _message(kind="status"), "field"),
        Case("no series", _message(series=...), "field"),
        Case("a series that is a number", _message(series=7), "field"),
        Case("a series of three", _message(series=[7, "a", "b"]), "field"),
        Case("a series turned round", _message(series=["seven", 7]), "field"),
        Case("no number", _message(number=...), "field"),
        Case("a number that is text", _message(number="3"), "field"),
        Case("a number that is a float", _message(number=3.5), "field"),
        Case("a number that is true", _message(number=True), "field"),
        Case("a number that is nil", _message(number=None), "field"),
        Case("a negative number", _message(number=-7), "field"),
        Case("a number of 64 bits", _message(number=2**64 - 1), "field"),
        Case("a negative series", _message(series=[-7, "seven"]), "field"),
        Case("a series of a long name", _message(series=[7, "x" * 10_000]), "field"),
        Case("a series that clears the screen", _message(series=[7, "\x1b[2J"]), "field"),
        Case("a negative number of images", _status(series={"series": [7, ""], "announced": -4}), "field"),
        Case("a negative count", _status(wire={"messages": -5}), "field"),
        Case("a negative reason", _status(wire={"malformed": {"size": -5}}), "field"),
        Case("an alarm of a negative frame", _alarm(number=-3), "field"),
        Case("an analysis that is bytes", _message(analysis=b"saxs"), "field"),
        Case("a channel that is a number", _message(channel=1), "field"),
        Case("a time that is text", _message(wall_time="now"), "field"),
        Case("quantities that are a list", _message(quantities=[1, 2]), "field"),
        Case("a quantity that is a number", _message(quantities={"anomaly": 0.5}), "field"),
        Case("an alarm of no severity", _alarm(severity="CRITICAL"), "field"),
        Case("an alarm of severity 3", _alarm(severity=3), "field"),
        Case("an alarm whose evidence is a map of maps", _alarm(evidence={"a": {"b": 1}}), "field"),
        Case("an alarm that began with nil", _alarm(began=None), "field"),
        Case("a status without an account", _status(wire=None), "field"),
        Case("a status whose account is a list", _status(series=[1]), "field"),
        Case("a status whose count is text", _status(wire={"messages": "5"}), "field"),
        Case("a status with an alarm that is a number", _status(alarms=[5]), "field"),
    ]


def _mismeasured() -> list[Case]:
    return [
        Case("a value that is text", _measured(value="high", sigma=None, axes=[]), "field"),
        Case("a value that is nil", _measured(value=None, sigma=None, axes=[]), "field"),
        Case("a unit that is a number", _measured(unit=1), "field"),
        Case("one σ for five values", _measured(sigma=1.0), "shape"),
        Case("an axis too many", _measured(axes=[["q", _array(5), "1/nm"], ["r", _array(5), "nm"]]), "shape"),
        Case("an axis too short", _measured(axes=[["q", _array(4), "1/nm"]]), "shape"),
        Case("an axis of two dimensions", _measured(axes=[["q", _array(5, 1), "1/nm"]]), "shape"),
        Case("an axis of two entries", _measured(axes=[["q", _array(5)]]), "field"),
        Case("an array of objects", _curve(dtype="|O"), "dtype"),
        Case("an array of text", _curve(dtype="<U4"), "dtype"),
        Case("an array of complex numbers", _curve(dtype="<c16"), "dtype"),
        Case("big-endian floats", _curve(dtype=">f8"), "dtype"),
        Case("an array of no type", _curve(dtype=""), "dtype"),
        Case("no dimensions", _curve(shape=[]), "size"),
        Case("a thousand dimensions", _curve(shape=[1] * 1000), "size"),
        Case("2^40 values", _curve(shape=[2**40]), "size"),
        Case("2^126 values", _curve(shape=[2**63 - 1, 2**63 - 1]), "size"),
        Case("2^40 times nothing", _curve(shape=[2**40, 0], bytes=b""), "size"),
        Case("a negative length", _curve(shape=[-5]), "size"),
        Case("a value too few", _curve(bytes=bytes(32)), "size"),
        Case("a byte too many", _curve(bytes=bytes(41)), "size"),
        Case("bytes that are text", _curve(bytes="x" * 40), "field"),
        Case("a shape that is a number", _curve(shape=5), "field"),
        Case("a shape of floats", _curve(shape=[5.0]), "field"),
    ]


def _array(*shape: int) -> dict[str, Any]:
    return {"dtype": "<f8", "shape": list(shape), "bytes": bytes(8 * int(np.prod(shape)))}
