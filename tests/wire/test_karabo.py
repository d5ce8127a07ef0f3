"""The Karabo bridge: both versions as the documentation has them, the shapes detectors come in, and what is neither."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.compression import Scratch
from streamer.records import BadConfig, BadFrame, BadInput, Frame, SeriesEnd, SeriesKey, SeriesStart
from streamer.wire.karabo import LARGEST_TRAIN, MAX_PULSES, Karabo
from tests import hostile
from tests.strategies import IMAGE_DTYPES, images, names, numbers, plain, shapes

DETECTOR = "SPB_DET_AGIPD1M-1/CAL/APPEND_CORRECTED"
CAMERA = "SPB_IRU_INLINEMIC_CAM:daqOutput"
TRAIN = 10_000_000_001
METADATA = {
    "source": DETECTOR,
    "timestamp": 1526464869.4109755,
    "timestamp.tid": TRAIN,
    "timestamp.sec": "1526464869",
    "timestamp.frac": "410975500000000000",
    "ignored_keys": ["image.gain"],
}


def main(source: Any = DETECTOR, **changes: Any) -> list[bytes]:
    header = {"source": source, "content": "msgpack", "metadata": METADATA | changes}
    return [msgpack.packb(header), msgpack.packb({"image.passport": ["a", "b"]})]


def array(values: NDArray[Any], source: str = DETECTOR, path: str = "image.data", **changes: Any) -> list[bytes]:
    """A pair as the bridge sends it: NumPy's name of the type, bytes in C order."""
    header = {"source": source, "content": "array", "path": path, "dtype": str(values.dtype), "shape": values.shape}
    return [msgpack.packb(header | changes), values.tobytes()]


def train(values: NDArray[Any], path: str = "image.data") -> list[bytes]:
    return [*main(), *array(values, path=path)]


def nested(values: NDArray[Any], **changes: Any) -> list[bytes]:
    """The same train in version 1.0, as msgpack-numpy packs it."""
    described = {b"nd": True, b"type": values.dtype.str, b"kind": b"", b"shape": values.shape}
    source = {"image.data": described | {b"data": values.tobytes()} | changes, "image.passport": ["a"]}
    return [msgpack.packb({DETECTOR: {**source, "metadata": METADATA}})]


def counted(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    """An array of that shape in which no two elements are equal."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def decoded(parts: Sequence[Any], **options: Any) -> list[Frame]:
    frames = []
    for record in Karabo(**options).decode(parts):
        assert isinstance(record, Frame)
        frames.append(record)
    return frames


def refusal(parts: Sequence[Any], **options: Any) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        Karabo(**options).decode(parts)
    return caught.value


def told(frame: Frame) -> dict[str, Any]:
    """Everything but the image, which is compared by its bytes."""
    return {name: getattr(frame, name) for name in Frame.__dataclass_fields__ if name != "image"}


@st.composite
def trains(draw: st.DrawFn) -> list[Frame]:
    """All pulses of one train, or its only image."""
    series, number = SeriesKey(0, draw(names)), draw(numbers)
    shape, dtype = draw(shapes(12)), draw(st.sampled_from(IMAGE_DTYPES))
    extra = draw(st.fixed_dictionaries({}, optional={"timestamp": st.floats(0, 1e10), "ignored_keys": plain}))
    channels = draw(st.just([""]) | st.integers(1, 5).map(lambda pulses: [f"pulse_{n}" for n in range(pulses)]))
    return [Frame(draw(images(shape, dtype)), series, number, channel, extra=extra) for channel in channels]


def axes_for(frames: list[Frame]) -> st.SearchStrategy[str]:
    axes = ["y", "x", "module"] + (["pulse"] if frames[0].channel else [])
    return st.just("") | st.permutations(axes).map(",".join)


@given(trains(), st.sampled_from(["1.0", "2.2"]), st.data())
def test_decoding_undoes_encoding(frames: list[Frame], version: Any, data: st.DataObject) -> None:
    wire = Karabo(version=version, axes=data.draw(axes_for(frames)))
    parts = wire.encode(frames)
    assert wire.kind(parts) == "image"
    assert wire.identify(parts) == (frames[0].series, frames[0].number)
    found = wire.decode(parts)
    assert len(found) == len(frames)
    for ours, theirs in zip(found, frames, strict=True):
        assert isinstance(ours, Frame)
        assert ours.image.dtype == theirs.image.dtype
        assert ours.image.tobytes() == theirs.image.tobytes()
        assert told(ours) == told(theirs)


def test_a_start_and_an_end_are_not_sent() -> None:
    assert Karabo().encode(SeriesStart(SeriesKey(1))) == Karabo().encode(SeriesEnd(SeriesKey(1))) == []


@pytest.mark.parametrize("build", [train, nested], ids=["2.2", "1.0"])
def test_the_pulses_of_a_train_are_its_channels_and_modules_lie_below_each_other(build: Any) -> None:
    values = counted(3, 2, 4, 5)
    frames = decoded(build(values))
    assert [frame.channel for frame in frames] == ["pulse_0", "pulse_1", "pulse_2"]
    assert {(frame.series, frame.number, frame.start_s) for frame in frames} == {(SeriesKey(0, DETECTOR), TRAIN, None)}
    for pulse, frame in enumerate(frames):
        assert frame.image.shape == (8, 5)
        assert np.array_equal(frame.image[:4], values[pulse, 0])
        assert np.array_equal(frame.image[4:], values[pulse, 1])


@pytest.mark.parametrize("build", [train, nested], ids=["2.2", "1.0"])
def test_what_else_the_metadata_say_is_kept_as_it_was_sent(build: Any) -> None:
    (frame,) = decoded(build(counted(4, 5)))
    assert frame.extra == {name: value for name, value in METADATA.items() if name not in ("source", "timestamp.tid")}


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((4, 5), "y,x", (4, 5)),
        ((2, 4, 5), "module,y,x", (8, 5)),
        ((3, 2, 4, 5), "pulse,module,y,x", (8, 5)),
        ((3, 16, 512, 128), "pulse,module,y,x", (8192, 128)),
        ((2, 128, 512, 3), "module,x,y,pulse", (1024, 128)),
        ((2, 256, 256, 3), "module,x,y,pulse", (512, 256)),
        ((2, 512, 128, 3), "module,x,y,pulse", (256, 512)),
        ((2, 512, 1024), "module,y,x", (1024, 1024)),
        ((4, 256, 256, 256), "pulse,module,y,x", (65536, 256)),
    ],
)
def test_the_usual_axes_are_those_of_calibrated_data_unless_the_modules_say_otherwise(
    shape: tuple[int, ...], axes: str, expected: tuple[int, int]
) -> None:
    values = counted(*shape, dtype="uint16")
    by_default, by_name = decoded(train(values), pulses=":2"), decoded(train(values), axes=axes, pulses=":2")
    assert by_default[0].image.shape == expected
    for ours, named in zip(by_default, by_name, strict=True):
        assert ours.channel == named.channel
        assert np.array_equal(ours.image, named.image)


def test_arrays_as_read_from_the_detector_are_turned() -> None:
    values = counted(2, 5, 40, 3)  # module, x, y, pulse
    frames = decoded(train(values), axes="module,x,y,pulse")
    for pulse, frame in enumerate(frames):
        for module in range(2):
            assert np.array_equal(frame.image[40 * module : 40 * (module + 1)], values[module, :, :, pulse].T)


def test_memory_cells_without_modules_are_pulses() -> None:
    values = counted(3, 4, 5)
    frames = decoded(train(values, "data.adc"), axes="pulse,y,x")
    assert [frame.channel for frame in frames] == ["pulse_0", "pulse_1", "pulse_2"]
    assert np.array_equal(frames[2].image, values[2])


@pytest.mark.parametrize(
    ("pulses", "expected"), [(":", range(6)), ("0:2", [0, 1]), ("1::2", [1, 3, 5]), ("-2:", [4, 5]), ("3:4", [3])]
)
def test_pulses_keep_their_place_in_the_train_when_some_are_chosen(pulses: str, expected: Any) -> None:
    values = counted(6, 1, 4, 5)
    frames = decoded(train(values), pulses=pulses)
    assert [frame.channel for frame in frames] == [f"pulse_{n}" for n in expected]
    for n, frame in zip(expected, frames, strict=True):
        assert np.array_equal(frame.image, values[n, 0])


def test_a_train_that_has_none_of_the_pulses_asked_for_is_refused() -> None:
    error = refusal(train(counted(6, 1, 4, 5)), pulses="8:")
    assert (error.reason, error.number) == ("shape", TRAIN)
    assert "change pulses" in str(error)


@pytest.mark.parametrize(
    "element", ["u1", "<u2", "<u4", "<i4", "<f4", ">u2", ">u4", ">i4", ">f4", "<i2", "<f8", "<f2", "?", "<u8", "<i8"]
)
@pytest.mark.parametrize("build", [train, nested], ids=["2.2", "1.0"])
def test_every_type_of_number_is_read_in_native_byte_order(build: Any, element: str) -> None:
    values = counted(2, 3, 4, 5, dtype="u1").astype(element)
    frames = decoded(build(values))
    for pulse, frame in enumerate(frames):
        assert frame.image.dtype.isnative
        assert frame.image.dtype in IMAGE_DTYPES
        assert np.array_equal(frame.image, values[pulse].reshape(12, 5))


@pytest.mark.parametrize("path", ["image.data", "data.adc", "data.image.data", "data.image.pixels", "data.image"])
def test_the_image_is_found_where_detectors_have_it(path: str) -> None:
    assert len(decoded(train(counted(4, 5), path))) == 1


def test_the_image_is_found_where_it_is_said_to_be() -> None:
    parts = [*main(), *array(counted(4, 5)), *array(counted(4, 5) + 100, path="image.gain")]
    (frame,) = decoded(parts, path="image.gain")
    assert frame.image[0, 0] == 100
    error = refusal(train(counted(4, 5)), path="image.gian")
    assert (error.reason, "image.data" in str(error)) == ("source", True)


def test_image_data_of_a_camera_are_read() -> None:
    """As the first bridges of version 2 sent them, with the parameters in the header."""
    pair = array(counted(4, 5), CAMERA, "data.image", content="ImageData", params={"encoding": "GRAY"})
    (frame,) = decoded([*main(CAMERA), *pair])
    assert frame.series == SeriesKey(0, CAMERA)


def test_the_order_of_keys_and_pairs_does_not_matter() -> None:
    head, body = array(counted(4, 5))
    turned = msgpack.packb(dict(reversed(msgpack.unpackb(head).items())))
    parts = [turned, body, *main()]
    assert Karabo().kind(parts) == "image"
    assert len(decoded(parts)) == 1


def test_slow_sources_beside_the_detector_are_passed_over() -> None:
    slow = [*main("SA1_XTD2_XGM/XGM/DOOCS"), *array(counted(40), "SA1_XTD2_XGM/XGM/DOOCS", "data.intensityTD")]
    (frame,) = decoded([*slow, *train(counted(4, 5))])
    assert frame.series == SeriesKey(0, DETECTOR)


def test_a_train_without_images_holds_no_frames() -> None:
    wire, slow = Karabo(), main("SA1_XTD2_XGM/XGM/DOOCS")
    assert (wire.kind(slow), wire.decode(slow)) == ("image", [])
    with pytest.raises(BadFrame, match="without images"):
        wire.identify(slow)


def test_of_two_detectors_the_one_named_is_taken() -> None:
    parts = [*train(counted(4, 5)), *main(CAMERA, **{"timestamp.tid": 5}), *array(counted(2, 3), CAMERA, "data.adc")]
    error = refusal(parts)
    assert (error.reason, error.series) == ("source", None)
    assert DETECTOR in str(error)
    assert CAMERA in str(error)
    (frame,) = decoded(parts, detector=CAMERA)
    assert (frame.series, frame.number, frame.image.shape) == (SeriesKey(0, CAMERA), 5, (2, 3))


def test_a_train_without_the_detector_named_is_refused() -> None:
    error = refusal(train(counted(4, 5)), detector="SPB_DET_AGIPD1M-1")
    assert (error.reason, DETECTOR in str(error)) == ("source", True)


UNNUMBERED: dict[str, Any] = {"timestamp.tid": None}


def test_a_refused_train_carries_its_number_as_far_as_it_was_read() -> None:
    error = refusal(train(counted(1, 1, 1, 4, 5)))
    assert (error.reason, error.series, error.number) == ("shape", SeriesKey(0, DETECTOR), TRAIN)
    error = refusal([*main(**UNNUMBERED), *array(counted(4, 5))])
    assert (error.reason, error.series, error.number) == ("id", SeriesKey(0, DETECTOR), None)
    error = refusal(train(counted(4, 5))[:3])
    assert (error.reason, error.series, error.number) == ("parts", None, None)


def test_a_pickled_train_is_refused_by_name_and_nothing_is_unpickled() -> None:
    error = refusal([b"\x80\x04\x95cos\nsystem\n(S'false'\ntR."])
    assert (error.reason, "never unpickled" in str(error)) == ("msgpack", True)


def test_axes_that_the_array_does_not_have_are_refused() -> None:
    error = refusal(train(counted(3, 4, 5)), axes="pulse,module,y,x")
    assert (error.reason, error.number) == ("shape", TRAIN)


def test_an_image_larger_than_max_pixels_is_refused() -> None:
    values = counted(3, 2, 4, 5)
    assert len(decoded(train(values), max_pixels=40)) == 3
    assert refusal(train(values), max_pixels=39).reason == "size"


def test_more_pulses_than_a_train_may_have_are_refused_until_some_are_chosen() -> None:
    values = counted(MAX_PULSES + 1, 1, 1, 1, dtype="uint8")
    error = refusal(train(values))
    assert (error.reason, "choose some" in str(error)) == ("size", True)
    assert len(decoded(train(values), pulses=f":{MAX_PULSES}")) == MAX_PULSES


def test_a_train_of_too_many_pixels_is_refused_before_memory_is_taken() -> None:
    side = 1 << 14
    values = np.broadcast_to(np.uint8(0), (LARGEST_TRAIN // side**2 + 1, 1, side, side))
    header, _ = array(values[:1, :, :1, :1], shape=values.shape)
    octets = np.zeros(values.size, np.uint8).data  # pages that are never touched
    tracemalloc.start()
    error = refusal([*main(), header, octets], max_pixels=side**2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (error.reason, peak < 1_000_000) == ("size", True)


def test_images_lie_in_the_scratch() -> None:
    wire, scratch, parts = Karabo(), Scratch(), train(counted(3, 2, 4, 5))
    first = wire.decode(parts, scratch=scratch)[2]
    scratch.reset()
    again = wire.decode(parts, scratch=scratch)[2]
    assert isinstance(first, Frame)
    assert isinstance(again, Frame)
    assert np.shares_memory(first.image, again.image)


def test_a_full_scratch_refuses_the_train_not_the_stream() -> None:
    with pytest.raises(BadFrame) as caught:
        Karabo().decode(train(counted(3, 2, 4, 5)), scratch=Scratch(limit=100))
    assert (caught.value.reason, caught.value.number) == ("size", TRAIN)


def test_images_are_writable_and_do_not_change_the_message() -> None:
    parts = train(counted(4, 5))
    before = bytes(parts[3])
    (frame,) = decoded([bytearray(part) for part in parts])
    frame.image[:] = 0
    assert parts[3] == before


def test_messages_are_read_from_any_buffer() -> None:
    for build in (train, nested):
        for kind in (bytes, bytearray, memoryview):
            (frame,) = decoded([kind(part) for part in build(counted(4, 5))])
            assert np.array_equal(frame.image, counted(4, 5))


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"", b""],
        [b"\x80"],
        [b"\x81"],
        [b"\x81\xa1"],
        [b"\x81\xa1a"],
        [b"\x81\xa1a\x80"],
        [b"\xde\x00"],
        [b'{"htype":"bsr_m-1.1"}', b"{}", b"", b""],
        [b'{"htype":"array-1.0"}', b""],
        [msgpack.packb({"results": 1}), b""],
        [b"result/saxs", msgpack.packb({"schema": "streamer.results/1"})],
        [msgpack.packb({"source": "a"})],
        [*main(), b""],
    ],
)
def test_kind_is_none_for_what_is_no_train(parts: list[bytes]) -> None:
    assert Karabo().kind(parts) is None


def test_other_formats_messages_are_not_claimed() -> None:
    for parts in hostile.good("dectris2"):
        assert Karabo().kind(parts) is None


@pytest.mark.parametrize(
    "options",
    [
        *({"axes": text} for text in ("y", "y,z", "y,x,x", "pulse,module", "yx", ",")),
        *({"pulses": text} for text in ("", "5", "a:b", "::0", "::-1", "0:1:2:3", "1.5:")),
        *({"step": 0}, {"max_pixels": 0}, {"version": "2.1"}),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match="karabo: found"):
        Karabo(**options)


FRAME = Frame(counted(4, 5), SeriesKey(0, DETECTOR), TRAIN, "pulse_0")


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [FRAME, FRAME],
        [FRAME, replace(FRAME, channel="pulse_2")],
        [FRAME, replace(FRAME, channel="pulse_1", number=5)],
        [FRAME, replace(FRAME, channel="pulse_1", image=counted(4, 6))],
        [FRAME, replace(FRAME, channel="pulse_1", image=counted(4, 5, dtype="uint16"))],
        [replace(FRAME, channel="threshold_1"), replace(FRAME, channel="threshold_2")],
        [replace(FRAME, image=counted(4))],
        [replace(FRAME, image=counted(4, 5, dtype="complex64"))],
        [replace(FRAME, extra={"sample": object()})],
        [replace(FRAME, extra={"dose": 2**70})],
    ],
    ids=["none", "twice", "a gap", "two trains", "shapes", "types", "thresholds", "1-D", "complex", "object", "2^70"],
)
def test_what_cannot_be_sent_is_the_callers_error(frames: list[Frame]) -> None:
    with pytest.raises(BadInput, match="karabo: "):
        Karabo().encode(frames)


def test_another_detectors_only_channel_is_the_one_image_of_a_train() -> None:
    karabo = Karabo()
    (frame,) = karabo.decode(karabo.encode([replace(FRAME, channel="threshold_1")]))
    assert isinstance(frame, Frame)
    assert (frame.channel, frame.number) == ("", FRAME.number)
    np.testing.assert_array_equal(frame.image, FRAME.image)


def test_frames_with_pulses_do_not_fit_axes_without() -> None:
    with pytest.raises(BadInput, match="module,y,x"):
        Karabo(axes="module,y,x").encode([FRAME])


def test_numpy_numbers_are_sent_as_numbers() -> None:
    sent = replace(FRAME, extra={"dose": np.float32(0.5), "shot": np.int64(7)})
    (found,) = decoded([bytes(part) for part in Karabo().encode([sent])])
    assert found.extra == {"dose": 0.5, "shot": 7}


def test_what_is_attached_to_a_frame_cannot_change_what_it_is() -> None:
    sent = replace(FRAME, extra={"source": "other", "timestamp.tid": 99})
    (found,) = decoded([bytes(part) for part in Karabo().encode([sent])])
    assert (found.series, found.number, found.extra) == (FRAME.series, FRAME.number, {})


def test_every_truncation_of_a_header_is_refused() -> None:
    for parts in hostile.good("karabo"):
        for at in range(0, len(parts), 2):
            for cut in range(len(parts[at])):
                assert refusal([*parts[:at], parts[at][:cut], *parts[at + 1 :]]).reason == "truncated"
