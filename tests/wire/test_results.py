"""Our own results on the wire: nothing changes on the way, and nothing hostile gets in."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from streamer.records import (
    Account,
    Alarm,
    BadFrame,
    BadInput,
    Quantity,
    Result,
    SeriesEnd,
    SeriesKey,
    SeriesStart,
    Severity,
    Status,
    WireAccount,
)
from streamer.wire import results
from streamer.wire.results import Results

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(0, 2**40)
numbers = st.floats(allow_nan=True, allow_infinity=True)
series_keys = st.builds(SeriesKey, st.integers(0, 2**63 - 1), words.filter(str.isprintable))
dtypes = st.sampled_from([*results.DTYPES, ">f8", ">u2"])


@st.composite
def quantities(draw: st.DrawFn) -> Quantity:
    if draw(st.booleans()):
        return Quantity(draw(numbers), draw(st.none() | numbers), draw(words))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    value = draw(npst.arrays(draw(dtypes), shape))
    sigma = draw(st.none() | npst.arrays(np.float64, shape))
    names = draw(st.lists(words, min_size=len(shape), max_size=len(shape), unique=True))
    axes = {name: (np.arange(n, dtype=np.float32), draw(words)) for name, n in zip(names, shape, strict=True)}
    return Quantity(value, sigma, draw(words), axes if draw(st.booleans()) else {})


scalars = numbers | st.integers(-(2**63), 2**63) | words
evidence = st.dictionaries(words, scalars | st.lists(numbers, max_size=3) | st.lists(counts, max_size=3), max_size=3)
alarms = st.builds(
    Alarm,
    id=words,
    name=words,
    severity=st.sampled_from(Severity),
    text=words,
    watch=words,
    began=numbers,
    series=st.none() | series_keys,
    number=st.none() | counts,
    ended=st.none() | numbers,
    ended_number=st.none() | counts,
    acknowledged=st.booleans(),
    evidence=evidence,
)
measured = st.builds(
    Result,
    analysis=words,
    series=series_keys,
    number=counts,
    quantities=st.dictionaries(words, quantities(), max_size=3),
    channel=words,
    start_s=st.none() | numbers,
    received_ns=counts,
    wall_time=numbers,
)
accounts = st.builds(
    Account,
    series=series_keys,
    announced=counts,
    is_announced=st.booleans(),
    analysed=counts,
    pending=counts,
    joined_late=st.booleans(),
    closed_by=words,
)
statuses = st.builds(
    Status,
    state=words,
    is_ready=st.booleans(),
    source=words,
    wire=st.builds(WireAccount, messages=counts, malformed=st.dictionaries(words, counts, max_size=3)),
    series=st.none() | accounts,
    closed=st.lists(accounts, max_size=2).map(tuple),
    frames_per_second=numbers,
    latency_ms=st.dictionaries(words, numbers, max_size=2),
    queues=st.dictionaries(words, st.dictionaries(words, counts, max_size=2), max_size=2),
    stages=st.dictionaries(words, numbers, max_size=2),
    outputs=st.dictionaries(words, words, max_size=2),
    devices=st.dictionaries(words, words, max_size=2),
    alarms=st.lists(alarms, max_size=2).map(tuple),
    wall_time=numbers,
)
records = measured | alarms | statuses


def same(a: Any, b: Any) -> bool:
    """Equality in which NaN equals NaN and an array is its values, shape and type but not its byte order."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a)
        )
    if isinstance(a, Quantity):
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in a.__struct_fields__)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (
            a.dtype.newbyteorder("<") == b.dtype and a.shape == b.shape and a.astype(b.dtype).tobytes() == b.tobytes()
        )
    return bool(a == b or (a != a and b != b))


def example_result(**changes: Any) -> Result:
    q = np.linspace(0.05, 5.0, 64)
    profile = Quantity(1 / q, 0.01 / q, "1/cm", {"q": (q, "1/nm")})
    result = Result("saxs", SeriesKey(7, "ab"), 1042, {"profile": profile, "anomaly": Quantity(0.93, 0.04)})
    return dataclasses.replace(result, **changes)


def example_alarm() -> Alarm:
    return Alarm(
        id="damage#1@5",
        name="damage",
        severity=Severity.MAJOR,
        text="the sample changes",
        watch="saxs.anomaly",
        began=5.0,
        series=SeriesKey(7),
        number=1042,
        evidence={"value": 0.93, "limit": 0.9, "frames": [1038, 1042], "unit": "1"},
    )


def example_status() -> Status:
    account = Account(SeriesKey(7), announced=10, analysed=4, pending=6)
    wire = WireAccount(messages=5, control=1, accepted=4, malformed={"size": 1})
    return Status("running", True, "sim:saxs", wire, account, (account,), alarms=(example_alarm(),), wall_time=6.0)


def changed(record: Any, change: Any) -> list[bytes]:
    """The message of a record after `change` has worked on its plain payload."""
    topic, payload = results.encode(record)
    plain = msgpack.unpackb(payload)
    change(plain)
    return [topic, msgpack.packb(plain)]


def reason_of(parts: list[bytes]) -> str:
    with pytest.raises(BadFrame) as caught:
        results.decode(parts)
    return caught.value.reason


@given(records)
def test_a_record_comes_out_of_the_wire_as_it_went_in(record: results.Record) -> None:
    assert same(record, results.decode(results.encode(record)))


@pytest.mark.parametrize(
    ("record", "topic"),
    [(example_result(), b"result.saxs"), (example_alarm(), b"alarm.damage"), (example_status(), b"status")],
)
def test_the_topic_says_what_a_message_is_about(record: results.Record, topic: bytes) -> None:
    assert results.encode(record)[0] == topic


def test_the_bytes_of_an_array_are_where_the_documentation_says() -> None:
    plain = msgpack.unpackb(results.encode(example_result())[1])
    axis = plain["quantities"]["profile"]["axes"][0]
    assert plain["schema"] == "streamer.result/1"
    assert (axis[0], axis[2]) == ("q", "1/nm")
    assert axis[1]["dtype"] == "<f8"
    assert axis[1]["shape"] == [64]
    np.testing.assert_array_equal(np.frombuffer(axis[1]["bytes"], "<f8"), np.linspace(0.05, 5.0, 64))


def test_numpy_scalars_travel_as_numbers() -> None:
    alarm = dataclasses.replace(example_alarm(), evidence={"value": np.float32(0.5), "frames": [np.int64(3)]})
    decoded = results.decode(results.encode(alarm))
    assert isinstance(decoded, Alarm)
    assert decoded.evidence == {"value": 0.5, "frames": [3]}


@pytest.mark.parametrize(
    "value",
    [np.array([1j]), np.array([object()]), np.array(["a"]), np.array([1.0], dtype=np.float16)],
    ids=["complex", "object", "text", "float16"],
)
def test_an_array_the_schema_has_no_place_for_is_refused_on_the_way_out(value: Any) -> None:
    with pytest.raises(BadInput, match="dtype"):
        results.encode(example_result(quantities={"x": Quantity(value)}))


@pytest.mark.parametrize("found", [2**64, {1, 2}], ids=["beyond 64 bits", "a set"])
def test_evidence_the_schema_has_no_place_for_is_refused_on_the_way_out(found: Any) -> None:
    with pytest.raises(BadInput, match="does not fit"):
        results.encode(dataclasses.replace(example_alarm(), evidence={"x": found}))


@pytest.mark.parametrize("schema", ["streamer.result/1", "streamer.result/1.7"])
def test_a_newer_minor_version_is_read_without_its_new_fields(schema: str) -> None:
    parts = changed(example_alarm(), lambda plain: plain.update(schema=schema, shelved_until=[1, {"a": None}]))
    assert results.decode(parts) == example_alarm()


@pytest.mark.parametrize("schema", ["streamer.result/2", "streamer.result/11", "streamer.result", "hello/1", ""])
def test_another_major_version_is_refused(schema: str) -> None:
    assert reason_of(changed(example_alarm(), lambda plain: plain.update(schema=schema))) == "version"


def test_an_absent_field_takes_the_default_of_its_record() -> None:
    decoded = results.decode(changed(example_alarm(), lambda plain: plain.pop("acknowledged")))
    assert isinstance(decoded, Alarm)
    assert decoded.acknowledged is False


def test_a_field_without_default_must_be_there() -> None:
    assert reason_of(changed(example_alarm(), lambda plain: plain.pop("severity"))) == "field"


def profile_of(plain: dict[str, Any]) -> dict[str, Any]:
    return plain["quantities"]["profile"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.update(number="7"), "field"),
        (lambda plain: plain.update(number=True), "field"),
        (lambda plain: plain.update(number=1.5), "field"),
        (lambda plain: plain.update(series=[1]), "field"),
        (lambda plain: plain.update(series=["1", 1]), "field"),
        (lambda plain: plain.update(kind="order"), "field"),
        (lambda plain: plain.update(quantities=[1]), "field"),
        (lambda plain: plain.update(quantities={"x": 1}), "field"),
        (lambda plain: plain.update(analysis="walls"), "topic"),
        (lambda plain: profile_of(plain).update(axes=[["q", 1]]), "field"),
        (lambda plain: profile_of(plain)["value"].update(bytes="text"), "field"),
        (lambda plain: profile_of(plain)["value"].update(dtype="|O"), "dtype"),
        (lambda plain: profile_of(plain)["value"].update(dtype="|V1000000000"), "dtype"),
        (lambda plain: profile_of(plain)["value"].update(shape=[]), "size"),
        (lambda plain: profile_of(plain)["value"].update(shape=[65]), "size"),
        (lambda plain: profile_of(plain)["value"].update(shape=[-64]), "size"),
        (lambda plain: profile_of(plain)["value"].update(shape=[-8, -8]), "size"),
        (lambda plain: profile_of(plain)["value"].update(shape=[2**63]), "size"),
        (lambda plain: profile_of(plain)["value"].update(shape=[0, 2**63], bytes=b""), "size"),
        (lambda plain: profile_of(plain)["value"].update(shape=[1] * 40 + [64]), "size"),
        (lambda plain: profile_of(plain)["value"].update(shape=[8, 8]), "shape"),
        (lambda plain: profile_of(plain).update(sigma=0.5), "shape"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_by_name(change: Any, reason: str) -> None:
    assert reason_of(changed(example_result(), change)) == reason


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1" * 100_000,
        msgpack.packb({"schema": "streamer.result/1"}) + b"\x00",
        msgpack.packb({1: 2}),
        b"\x81\xa1\xff\x01",
        b"\x82\xa1a\x01\xa1a\x02",
        msgpack.packb({"schema": msgpack.ExtType(5, b"x")}),
    ],
)
def test_what_is_not_one_plain_map_is_refused_as_msgpack(payload: bytes) -> None:
    assert reason_of([b"status", payload]) == "msgpack"


def test_a_payload_beyond_the_limit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MAX_PAYLOAD", 100)
    assert reason_of(results.encode(example_result())) == "size"


@pytest.mark.parametrize("parts", [[], [b"status"], [b"status", b"", b""]])
def test_a_message_of_other_than_two_parts_is_refused(parts: list[bytes]) -> None:
    assert reason_of(parts) == "parts"


KEY = SeriesKey(7, "seven")


def status(*, open_series: Account | None = None, closed: tuple[Account, ...] = ()) -> list[bytes]:
    return results.encode(Status("running", True, "sim:saxs", WireAccount(), open_series, closed))


def test_a_result_is_the_frame_of_a_stream_with_the_clock_of_this_machine() -> None:
    sent = Result("saxs", KEY, 5, {"anomaly": Quantity(0.5, 0.1)}, received_ns=123, wall_time=1.5)
    parts = results.encode(sent)
    assert Results().kind(parts) == "image"
    assert Results().identify(parts) == (KEY, 5)
    assert Results().decode(parts, received_ns=9) == [dataclasses.replace(sent, received_ns=9)]


def test_a_status_is_a_start_and_an_end_once() -> None:
    stream = Results()
    announced = Account(KEY, announced=10, is_announced=True)
    assert stream.kind(status()) is None
    assert stream.decode(status(open_series=announced), received_ns=3) == [SeriesStart(KEY, images=10, received_ns=3)]
    assert stream.decode(status(open_series=announced)) == []
    over = dataclasses.replace(announced, closed_by="end")
    assert stream.decode(status(open_series=over), received_ns=4) == [SeriesEnd(KEY, 4, images=10)]
    assert stream.decode(status(closed=(over,))) == []


def test_a_series_of_unknown_length_is_ended_but_not_announced() -> None:
    stream = Results()
    assert stream.decode(status(open_series=Account(KEY, announced=4))) == []
    assert stream.decode(status(closed=(Account(KEY, announced=4, closed_by="stall"),))) == [SeriesEnd(KEY, images=4)]


def test_a_series_that_begins_again_under_its_key_is_a_start_once_more() -> None:
    stream = Results()
    running = Account(KEY, announced=10, is_announced=True, received=3)
    over = dataclasses.replace(running, closed_by="end")
    assert stream.decode(status(open_series=running)) == [SeriesStart(KEY, images=10, was_running=True)]
    assert stream.decode(status(open_series=over)) == [SeriesEnd(KEY, images=10)]
    assert stream.decode(status(open_series=running, closed=(over,))) == [SeriesStart(KEY, images=10, was_running=True)]
    assert stream.decode(status(open_series=running, closed=(over,))) == []


def test_a_running_number_keeps_its_first_one_and_its_step() -> None:
    counted = Account(KEY, announced=4, is_counted=True, first=5000, step=4)
    assert Results().decode(status(open_series=counted)) == [SeriesStart(KEY, first=5000, step=4)]


def test_alarms_of_another_streamer_are_read_and_go_no_further() -> None:
    alarm = Alarm("a#1", "a", Severity.MAJOR, "", "saxs.anomaly", 1.0)
    assert Results().claims(results.encode(alarm))
    assert Results().decode(results.encode(alarm)) == []
    with pytest.raises(BadFrame, match="has no frame"):
        Results().identify(results.encode(alarm))


def test_frames_are_no_results() -> None:
    assert Results().encode(SeriesStart(KEY)) == []
    with pytest.raises(BadInput, match="analyse them first"):
        Results().encode([])
