"""The pvAccess source: NTNDArrays good and bad, and a server that is read slowly, goes away and starts over."""

from __future__ import annotations

import itertools
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from structlog.testing import capture_logs

from streamer import config
from streamer.decide import Decider
from streamer.pipeline import Limits, Pipeline
from streamer.records import BadConfig, BadFrame, Frame, SeriesKey, SeriesStart, SourceLost
from streamer.sources import Message
from streamer.sources.pva import MAX_ATTRIBUTES, MAX_TEXT, REASONS, Pva

pytest.importorskip("p4p", reason="p4p is not installed: pip install 'streamer[epics]'")

from p4p.client.raw import Finished, RemoteError
from p4p.nt import NTScalar

from tests.sources.ntndarrays import (
    CHANNEL,
    IMAGE,
    MAX_PIXELS,
    ND_DATA_TYPE,
    SCALAR_TYPE,
    UNION,
    Camera,
    Case,
    array,
    compressed,
    damaged,
    packed,
    structure,
)

DEADLINE_S = 60.0  # a client looks for a server that went away every ten seconds
CASES = damaged()

dtypes = st.sampled_from(sorted(set(UNION) - {"i8", "u8"}))
images = dtypes.flatmap(lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
integers = hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32]), st.just((37, 29)))


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Pva]:
    """A source that is only asked to decode."""
    source = Pva(CHANNEL, max_pixels=MAX_PIXELS, name_server="127.0.0.1:1")
    yield source
    source.close()


@pytest.fixture
def camera() -> Iterator[Camera]:
    camera = Camera()
    yield camera
    camera.stop()


@pytest.fixture
def open_pva(camera: Camera) -> Iterator[Callable[..., Pva]]:
    opened: list[Pva] = []

    def open_it(**options: Any) -> Pva:
        opened.append(Pva(CHANNEL, name_server=camera.address, **options))
        return opened[-1]

    yield open_it
    for source in opened:
        source.close()


def decoded(source: Pva, value: Any) -> Frame:
    [frame] = source.decode(Message([value], "image", 0, 5))
    assert isinstance(frame, Frame)
    return frame


def receive(source: Pva) -> Message:
    deadline = time.monotonic() + DEADLINE_S
    while (message := source.receive(0.1)) is None:
        assert time.monotonic() < deadline, "nothing came"
    return message


def joined(source: Pva) -> Pva:
    """The source, once the server's empty array came."""
    message = receive(source)
    assert (message.kind, source.decode(message)) == (None, [])
    return source


def received_up_to(source: Pva, number: int) -> list[SeriesStart | Frame]:
    """Records up to the first frame of that number."""
    records: list[Any] = []
    while not (records and isinstance(records[-1], Frame) and records[-1].number == number):
        records += source.decode(receive(source))
    return records


# One array.


def test_an_image_keeps_its_pixels_its_number_and_its_orientation(nowhere: Pva) -> None:
    frame = decoded(nowhere, array(IMAGE, 17))
    np.testing.assert_array_equal(frame.image, [[0, 1, 2], [3, 4, 5]])
    assert (frame.number, frame.series, frame.channel, frame.received_ns) == (17, SeriesKey(0, CHANNEL), "", 5)


def test_an_image_without_compression_is_not_copied(nowhere: Pva) -> None:
    value = array(IMAGE)
    assert np.shares_memory(decoded(nowhere, value).image, value.value)


@given(image=images)
def test_every_element_type_is_decoded_to_one_that_analyses_take(nowhere: Pva, image: Any) -> None:
    found = decoded(nowhere, array(image)).image
    assert found.dtype in (np.uint8, np.uint16, np.uint32, np.int32, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(found, image.astype(found.dtype))


@given(image=integers, codec=st.sampled_from(["lz4", "bslz4"]), has_header=st.booleans())
def test_compressed_images_are_decoded_with_and_without_a_header(
    nowhere: Pva, image: Any, codec: str, has_header: bool
) -> None:
    octets = packed(image, codec, has_header=has_header)
    frame = decoded(nowhere, structure(compressed(image, codec, octets)))
    np.testing.assert_array_equal(frame.image, image)
    assert frame.image.dtype == image.dtype


@pytest.mark.parametrize("name", sorted(set(SCALAR_TYPE) - {"i1"}))
@pytest.mark.parametrize("numbering", [SCALAR_TYPE, ND_DATA_TYPE], ids=["ScalarType", "NDDataType"])
def test_the_element_type_is_understood_in_either_numbering(nowhere: Pva, numbering: dict, name: str) -> None:
    image = np.arange(12, dtype=name).reshape(3, 4)
    octets = packed(image, "bslz4")
    values = compressed(image, "bslz4", octets) | {"codec.parameters": numbering[name]}
    found = decoded(nowhere, structure(values)).image
    np.testing.assert_array_equal(found, image)
    assert found.dtype.kind == image.dtype.kind


def test_compressed_data_in_a_larger_buffer_end_where_compressed_size_says(nowhere: Pva) -> None:
    octets = packed(IMAGE, "lz4")
    values = compressed(IMAGE, "lz4", octets + bytes(99), compressedSize=len(octets))
    np.testing.assert_array_equal(decoded(nowhere, structure(values)).image, IMAGE)


@pytest.mark.parametrize(("mode", "axis"), [(2, 2), (3, 1), (4, 0)])
def test_the_three_colours_of_an_image_are_three_frames(nowhere: Pva, mode: int, axis: int) -> None:
    planes = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    value = array(np.moveaxis(planes, 0, axis), attribute=[{"name": "ColorMode", "value": mode}])
    frames = nowhere.decode(Message([value], "image", 0, 0))
    assert [frame.channel for frame in frames] == ["red", "green", "blue"]
    np.testing.assert_array_equal([frame.image for frame in frames], planes)
    assert all(frame.image.flags.c_contiguous for frame in frames)


def test_times_and_attributes_are_kept_as_they_were_sent(nowhere: Pva) -> None:
    attributes = {"ColorMode": 0, "Energy": 12.4, "Shutter": "open", "Ready": True}
    sent = [{"name": name, "value": value} for name, value in attributes.items()]
    extra = decoded(nowhere, array(attribute=sent)).extra
    assert extra == {"timeStamp": 1700000000.25, "dataTimeStamp": 1700000000.0, "attributes": attributes}


def test_what_an_attribute_may_not_be_is_left_out(nowhere: Pva) -> None:
    odd = [
        {"name": "curve", "value": np.arange(3.0)},
        {"name": "nothing"},
        {"name": "not a number", "value": float("nan")},
        {"name": "long", "value": "x" * 5000},
        {"name": "structure", "value": array()},
        *({"name": f"a{i}", "value": i} for i in range(1000)),
    ]
    attributes = decoded(nowhere, array(attribute=odd)).extra["attributes"]
    assert attributes["long"] == "x" * MAX_TEXT
    assert attributes["not a number"] is None
    assert attributes.keys().isdisjoint({"curve", "nothing", "structure"})
    assert len(attributes) == MAX_ATTRIBUTES - 3


def test_times_that_were_not_set_are_left_out(nowhere: Pva) -> None:
    values = array(timeStamp={}, dataTimeStamp={})
    assert decoded(nowhere, values).extra.keys() == {"attributes"}


def test_an_array_with_the_fewest_fields_is_enough(nowhere: Pva) -> None:
    rest = ("codec", "compressedSize", "uncompressedSize", "attribute", "timeStamp", "dataTimeStamp", "alarm")
    values = {"value": ("ushortValue", IMAGE.ravel()), "uniqueId": 3, "dimension": [{"size": 3}, {"size": 2}]}
    frame = decoded(nowhere, structure(values, types=dict.fromkeys(rest)))
    np.testing.assert_array_equal(frame.image, IMAGE)


# Damaged arrays.


def test_there_are_enough_damaged_arrays_and_every_reason_has_some() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert {case.reason for case in CASES} == REASONS.keys()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_damaged_array_is_refused_for_its_reason(nowhere: Pva, case: Case) -> None:
    with pytest.raises(BadFrame) as refused:
        nowhere.decode(Message([case.value], "image", 0, 0))
    assert refused.value.reason == case.reason, str(refused.value)
    assert len(str(refused.value)) < 300


def test_good_arrays_among_damaged_ones_all_arrive(open_pva: Callable[..., Pva]) -> None:
    source = open_pva(max_pixels=MAX_PIXELS)
    good = [array(np.full((2, 3), number, np.uint16), number) for number in range(1, len(CASES) + 1)]
    source._monitor = Events(*(value for pair in zip(good, CASES, strict=True) for value in (pair[0], pair[1].value)))
    found: list[int] = []
    refused: list[str] = []
    while message := source.receive(0.0):
        try:
            found += [one.image[0, 0] for one in source.decode(message) if isinstance(one, Frame)]
        except BadFrame as bad:
            refused.append(bad.reason)
    assert sorted(found) == list(range(1, len(CASES) + 1))
    assert refused == [case.reason for case in CASES]


def test_a_damaged_array_is_named_as_far_as_it_tells(nowhere: Pva) -> None:
    key = SeriesKey(3, CHANNEL)
    with pytest.raises(BadFrame) as refused:
        nowhere.decode(Message([array(number=8, dimension=[])], "image", 0, 0, {"series": key}))
    assert (refused.value.series, refused.value.number) == (key, 8)


def test_no_damaged_array_takes_memory(nowhere: Pva) -> None:
    tracemalloc.start()
    try:
        for case in CASES:
            with pytest.raises(BadFrame):
                nowhere.decode(Message([case.value], "image", 0, 0))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * MAX_PIXELS


def test_the_refusal_of_a_codec_says_what_to_set(nowhere: Pva) -> None:
    with pytest.raises(BadFrame, match="'blosc' is not understood; set the Compressor of NDPluginCodec to BSLZ4"):
        decoded(nowhere, array(**{"codec.name": "blosc"}))


# A server.


def test_a_series_starts_with_the_first_array(camera: Camera, open_pva: Callable[..., Pva]) -> None:
    source = joined(open_pva())
    camera.send(41)
    start, frame = received_up_to(source, 41)
    assert isinstance(start, SeriesStart)
    assert (start.series, start.first, start.step) == (SeriesKey(1, CHANNEL), 41, 1)
    assert frame.series == start.series
    assert source.counts == {"connected": 1, "disconnected": 0, "skipped": 0}


def test_a_message_tells_its_number_and_size_without_decoding(camera: Camera, open_pva: Callable[..., Pva]) -> None:
    source = joined(open_pva())
    camera.send(1, np.zeros((100, 200), np.uint16))
    assert receive(source).kind == "start"
    message = receive(source)
    assert (message.kind, message.nbytes) == ("image", 40_000)
    assert source.identify(message) == (SeriesKey(1, CHANNEL), 1)


def test_only_what_changed_is_sent_and_the_rest_is_known(camera: Camera, open_pva: Callable[..., Pva]) -> None:
    source = joined(open_pva())
    camera.send(1)
    received_up_to(source, 1)
    camera.pv.post(structure({"uniqueId": 2}))
    [frame] = received_up_to(source, 2)
    np.testing.assert_array_equal(frame.image, IMAGE)


def test_a_number_that_falls_back_begins_a_new_series(camera: Camera, open_pva: Callable[..., Pva]) -> None:
    source = joined(open_pva())
    for number in (7, 8, 8, 3, 4):
        camera.send(number)
    records = received_up_to(source, 4)
    assert [(type(one).__name__, one.series.number) for one in records] == [
        ("SeriesStart", 1),
        *[("Frame", 1)] * 3,
        ("SeriesStart", 2),
        *[("Frame", 2)] * 2,
    ]
    assert source.counts["skipped"] == 0


def test_what_the_monitor_skips_is_counted_and_said_once(camera: Camera, open_pva: Callable[..., Pva]) -> None:
    source = joined(open_pva(queue_frames=4))
    for number in range(1, 201):
        camera.send(number)
    with capture_logs() as logs:
        numbers = [one.number for one in received_up_to(source, 200) if isinstance(one, Frame)]
    assert len(numbers) < 100
    assert numbers == sorted(set(numbers))
    gaps = [later - earlier - 1 for earlier, later in itertools.pairwise(numbers) if later > earlier + 1]
    assert source.counts["skipped"] == len(gaps) > 0
    [warning] = [log for log in logs if log["log_level"] == "warning"]
    assert warning["event"].startswith("arrays were skipped: pvAccess lets go of older arrays")
    assert warning["arrays"] == gaps[0]


def test_numbers_that_are_sent_by_step_are_not_skipped(camera: Camera, open_pva: Callable[..., Pva]) -> None:
    source = joined(open_pva(step=5))
    for number in (5, 10, 20, 25):
        camera.send(number)
    start, *_ = received_up_to(source, 25)
    assert (start.first, start.step) == (5, 5)
    assert source.counts["skipped"] == 1


def test_every_array_is_analysed_or_missing_however_fast_they_are_sent(
    camera: Camera, open_pva: Callable[..., Pva]
) -> None:
    sent = 2000
    source = open_pva(queue_frames=2)
    pipeline = Pipeline(source, [], Decider([]), [], limits=Limits(queue_frames=8))
    pipeline.start()
    wait_for(lambda: source.connection == "connected")
    for number in range(1, sent + 1):
        camera.send(number, np.full((64, 64), number, np.uint16))
    wait_for(lambda: any(one.announced == sent and not one.pending for one in pipeline.ledger.accounts()))
    pipeline.stop()
    status = pipeline.join()
    [account] = status.closed
    assert account.analysed + account.missing + account.dropped == account.announced == sent
    assert account.unaccounted == account.duplicate == account.malformed == 0
    assert status.wire.malformed == {}
    assert source.counts["skipped"] <= account.missing


def test_a_server_that_goes_away_is_waited_for(camera: Camera, open_pva: Callable[..., Pva]) -> None:
    source = open_pva()
    assert source.connection == "waiting"
    joined(source)
    camera.send(5)
    received_up_to(source, 5)
    with capture_logs() as logs:
        camera.stop()
        wait_for(lambda: source.receive(0.05) is None and source.connection == "disconnected")
    assert [log["event"] for log in logs] == ["the server is gone, waiting for it to come back"]
    camera.start()
    [again] = received_up_to(source, 5)
    assert again.series == SeriesKey(1, CHANNEL)  # the server repeats its last array: a duplicate
    camera.send(1)
    start, _ = received_up_to(source, 1)
    assert start.series == SeriesKey(2, CHANNEL)
    assert source.counts == {"connected": 2, "disconnected": 1, "skipped": 0}


def test_a_channel_that_turns_into_another_is_refused_array_by_array(
    camera: Camera, open_pva: Callable[..., Pva]
) -> None:
    source = joined(open_pva())
    camera.send(1)
    received_up_to(source, 1)
    camera.pv.close()
    camera.pv.open(NTScalar("d").wrap(3.0))
    with pytest.raises(BadFrame, match=r"epics:nt/NTScalar:1\.0") as refused:
        source.decode(receive(source))
    assert refused.value.reason == "type"
    camera.pv.close()
    camera.pv.open(array(IMAGE, 2))
    [frame] = received_up_to(source, 2)
    assert frame.series == SeriesKey(1, CHANNEL)


class Events:
    """A monitor that has these updates and no more."""

    def __init__(self, *updates: Any) -> None:
        self._updates = list(updates)

    def pop(self) -> Any:
        return self._updates.pop(0) if self._updates else None

    def close(self) -> None:
        """Nothing to close."""


def test_a_server_that_refuses_is_lost_and_quoted(open_pva: Callable[..., Pva]) -> None:
    source = open_pva()
    source._monitor = Events(RemoteError("not permitted"))
    with pytest.raises(SourceLost, match=r"refuses to be monitored \(not permitted\)"):
        source.receive(0.1)


def test_the_stream_ends_where_the_server_ends_it(open_pva: Callable[..., Pva]) -> None:
    source = open_pva()
    source._monitor = Events(array(IMAGE, 1), Finished("over"))
    assert [receive(source).kind, receive(source).kind] == ["start", "image"]
    with pytest.raises(EOFError):
        source.receive(0.1)


# Opening.


def test_one_string_opens_a_channel() -> None:
    source = config.open_source(f"pva://{CHANNEL}?step=2&queue_frames=8&max_pixels=99&name_server=127.0.0.1:1")
    assert isinstance(source, Pva)
    assert (source.channel, source.step, source.max_pixels, source.is_exclusive) == (CHANNEL, 2, 99, False)
    assert source.receive(0.01) is None
    source.close()
    source.close()


@pytest.mark.parametrize(
    "options", [{"channel": ""}, {"queue_frames": 1}, {"queue_frames": 5000}, {"step": 0}, {"max_pixels": 0}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match="expected pva://CHANNEL"):
        Pva(**{"channel": CHANNEL, **options})


@pytest.mark.parametrize("where", ["name_server", "address_list"])
def test_an_address_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(BadConfig, match="cannot be resolved; expected host:port"):
        Pva(CHANNEL, **{where: "127.0.0.1:5075,[::1"})


def test_without_p4p_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "p4p.client.raw", None)
    assert "pva" in config.names("sources")
    with pytest.raises(BadConfig, match=r"pip install 'streamer\[epics\]'"):
        Pva(CHANNEL)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.01)
