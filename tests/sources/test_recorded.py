"""Stored frames: HDF5 stacks, DECTRIS master files, folders of images, and what is neither."""

from __future__ import annotations

from pathlib import Path

import fabio.cbfimage
import fabio.edfimage
import fabio.tifimage
import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from structlog.testing import capture_logs

from streamer.compression import Scratch
from streamer.records import BadConfig, BadFrame, Frame, SeriesEnd, SeriesStart, SourceLost
from streamer.sources import Message
from streamer.sources.recorded import Recorded, as_image, is_bslz4_per_image
from tests.sources.playing import records

STACK = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)


def images(source: Recorded) -> list[np.ndarray]:
    return [record.image for record in records(source) if isinstance(record, Frame)]


def write_hdf5(path: Path, datasets: dict[str, object], **options) -> Path:
    with h5py.File(path, "w") as file:
        for name, content in datasets.items():
            file.create_dataset(name, data=content, **options)
    return path


def write_master(folder: Path, *, nimages: int = 4, files: int = 2) -> Path:
    """A master file and its data files as a DECTRIS file writer lays them out."""
    for index in range(files):
        write_hdf5(
            folder / f"run_data_{index + 1:06d}.h5",
            {"entry/data/data": STACK[index * 2 : index * 2 + 2]},
            chunks=(1, 6, 5),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
    with h5py.File(folder / "run_master.h5", "w") as file:
        entry = file.create_group("entry")
        for index in range(2):
            name = f"data_{index + 1:06d}"
            entry[f"data/{name}"] = h5py.ExternalLink(f"run_{name}.h5", "entry/data/data")
        detector = entry.create_group("instrument/detector")
        for name, value, unit in (
            ("beam_center_x", 2.5, "pixel"),
            ("beam_center_y", 3.25, "pixel"),
            ("x_pixel_size", 75e-6, "m"),
            ("y_pixel_size", 75.0, "um"),
            ("detector_distance", 1500.0, "mm"),
            ("count_time", 0.009, "s"),
            ("frame_time", 0.01, "s"),
        ):
            detector[name] = value
            detector[name].attrs["units"] = unit
        detector["description"] = b"Eiger of the test"
        detector["detectorSpecific/nimages"] = nimages
        detector["detectorSpecific/ntrigger"] = 1
        detector["detectorSpecific/photon_energy"] = 12_400.0
        detector["detectorSpecific/countrate_correction_count_cutoff"] = 21_517
        mask = np.zeros((6, 5), np.uint32)
        mask[0, 1] = 8
        detector["detectorSpecific/pixel_mask"] = mask
        detector["detectorSpecific/flatfield"] = np.ones((3, 3), np.float32)
        entry["instrument/beam/incident_wavelength"] = 0.99987
        entry["instrument/beam/incident_wavelength"].attrs["units"] = "angstrom"
    return folder / "run_master.h5"


def test_a_stack_is_played_as_one_series(tmp_path):
    source = Recorded(write_hdf5(tmp_path / "run.h5", {"entry/data/data": STACK}))
    assert source.announced_frames == 4
    start, *frames, end = records(source)
    assert isinstance(start, SeriesStart)
    assert (start.images, start.shape, start.dtype) == (4, (6, 5), np.uint16)
    assert isinstance(end, SeriesEnd)
    assert {record.series for record in (*frames, end)} == {start.series}
    for number, record in enumerate(frames):
        assert isinstance(record, Frame)
        assert record.number == number
        np.testing.assert_array_equal(record.image, STACK[number])


def test_a_master_file_gives_its_header_and_the_images_of_all_its_data_files(tmp_path):
    with capture_logs() as logs:
        source = Recorded(write_master(tmp_path))
    start = source.start
    assert start.images == 4
    assert start.beam_center == (2.5, 3.25)
    assert start.pixel_size_m == pytest.approx((75e-6, 75e-6))
    assert start.distance_m == pytest.approx(1.5)
    assert start.wavelength_A == pytest.approx(0.99987)
    assert start.energy_eV == 12_400
    assert start.saturation == 21_517
    assert (start.frame_time_s, start.count_time_s) == (0.01, 0.009)
    assert start.detector == "Eiger of the test"
    assert np.argwhere(start.mask[""]).tolist() == [[0, 1]]
    assert start.flatfield == {}
    assert [(entry["event"], entry["shape"]) for entry in logs] == [
        ("a field does not fit the images and is not used", (3, 3))
    ]
    np.testing.assert_array_equal(images(source), STACK)


def test_images_announced_and_not_held_stay_announced(tmp_path):
    with capture_logs() as logs:
        source = Recorded(write_master(tmp_path, nimages=10))
    assert (source.start.images, source.announced_frames) == (10, 4)
    assert "fewer images than their header announces" in logs[-1]["event"]
    source.close()


def test_a_missing_data_file_is_named(tmp_path):
    with pytest.raises(SourceLost, match=r"links to run_data_000002\.h5, which is not there"):
        Recorded(write_master(tmp_path, files=1))


def test_detector_chunks_are_decompressed_into_the_buffer_of_the_worker(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", {"entry/data/data": STACK}, chunks=(1, 6, 5), **hdf5plugin.Bitshuffle())
    with h5py.File(path) as file:
        assert is_bslz4_per_image(file["entry/data/data"])
    source, scratch = Recorded(path), Scratch()
    [record] = source.decode(Message(("image", 2), "image", 0, 0), scratch=scratch)
    assert scratch.nbytes >= record.image.nbytes
    np.testing.assert_array_equal(record.image, STACK[2])
    source.close()


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (2, 6, 5), **hdf5plugin.Bitshuffle()},
        {"chunks": (1, 6, 5), **hdf5plugin.Bitshuffle(cname="zstd")},
        {"chunks": (1, 3, 5), **hdf5plugin.Bitshuffle()},
        {"chunks": (1, 6, 5), "compression": "gzip", "shuffle": True},
        {"chunks": (1, 6, 5), **hdf5plugin.LZ4()},
        {"chunks": (1, 6, 5)},
        {},
    ],
)
def test_other_layouts_are_read_by_the_library(tmp_path, options):
    path = write_hdf5(tmp_path / "a.h5", {"entry/data/data": STACK}, **options)
    with h5py.File(path) as file:
        assert not is_bslz4_per_image(file["entry/data/data"])
    np.testing.assert_array_equal(images(Recorded(path)), STACK)


def test_a_scan_is_played_point_by_point(tmp_path):
    path = write_hdf5(tmp_path / "scan.h5", {"scan/frames": STACK.reshape(2, 2, 6, 5)})
    np.testing.assert_array_equal(images(Recorded(path)), STACK)


def test_the_default_signal_is_found_among_others(tmp_path):
    path = write_hdf5(tmp_path / "a.nxs", {"entry/plot/counts": STACK, "entry/plot/errors": STACK.astype(float)})
    with pytest.raises(SourceLost, match=r"several stacks; it holds .*counts.*errors.*choose with dataset="):
        Recorded(path)
    with h5py.File(path, "a") as file:
        file.attrs["default"] = "entry"
        file["entry"].attrs["default"] = "plot"
        file["entry/plot"].attrs["signal"] = "counts"
    np.testing.assert_array_equal(images(Recorded(path)), STACK)
    assert images(Recorded(path, dataset="/entry/plot/errors"))[0].dtype == np.float32


def test_a_file_without_images_says_what_it_holds(tmp_path):
    path = write_hdf5(tmp_path / "curve.h5", {"sasdata/I": np.ones(7), "sasdata/Q": np.ones(7)})
    with pytest.raises(SourceLost, match=r"no stack of images; it holds /sasdata/I \(7,\), /sasdata/Q \(7,\)"):
        Recorded(path)
    with pytest.raises(SourceLost, match="has no images at 'sasdata/J'"):
        Recorded(path, dataset="sasdata/J")


def test_a_damaged_chunk_costs_one_frame(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60_000, (3, 200, 100), dtype=np.uint16)
    for options in (hdf5plugin.Bitshuffle(), {"compression": "gzip"}):
        path = tmp_path / f"{len(options)}.h5"
        write_hdf5(path, {"entry/data/data": noise}, chunks=(1, 200, 100), **options)
        with h5py.File(path) as file:
            chunk = file["entry/data/data"].id.get_chunk_info(1)
        content = bytearray(path.read_bytes())
        content[chunk.byte_offset + 8 : chunk.byte_offset + 400] = bytes(392)
        path.write_bytes(content)
        source = Recorded(path)
        source.decode(Message(("image", 0), "image", 0, 0))
        with pytest.raises(BadFrame, match="frame 1 of") as bad:
            source.decode(Message(("image", 1), "image", 0, 0))
        assert (bad.value.reason, bad.value.number, bad.value.series) == ("unreadable", 1, source.start.series)
        source.decode(Message(("image", 2), "image", 0, 0))
        source.close()


@pytest.mark.parametrize("size", [0, 40, 700])
def test_a_truncated_file_is_refused_with_its_name(tmp_path, size):
    path = write_hdf5(tmp_path / "run.h5", {"entry/data/data": STACK})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SourceLost, match=r"run\.h5"):
        Recorded(path)


def write_images(folder: Path, count: int, suffix: str = ".tif") -> None:
    for number in range(count):
        image = STACK[number % 4].astype(np.int32) - 2
        fabio.tifimage.TifImage(image).write(str(folder / f"run_{number}{suffix}"))


def test_a_folder_of_images_is_one_series_in_natural_order(tmp_path):
    write_images(tmp_path, 11)
    (tmp_path / "notes.txt").write_text("not an image")
    source = Recorded(tmp_path)
    assert source.start == SeriesStart(
        source.start.series, images=11, shape=(6, 5), dtype=np.dtype(np.int32), received_ns=0
    )
    played = images(source)
    np.testing.assert_array_equal(played[10], STACK[2].astype(np.int32) - 2)
    np.testing.assert_array_equal(played[2], played[10])
    assert played[0].min() == -2  # what negative counts mean is not decided here


def test_a_pattern_and_a_single_file_are_series_too(tmp_path):
    write_images(tmp_path, 3)
    assert len(images(Recorded(tmp_path / "run_[12].tif"))) == 2
    assert len(images(Recorded(tmp_path / "run_1.tif"))) == 1
    with pytest.raises(SourceLost, match="no file matches"):
        Recorded(tmp_path / "walk_*.tif")


@pytest.mark.parametrize(("suffix", "image"), [(".edf", fabio.edfimage.EdfImage), (".cbf", fabio.cbfimage.CbfImage)])
def test_other_image_formats_come_free(tmp_path, suffix, image):
    image(STACK[0].astype(np.int32)).write(str(tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(images(Recorded(tmp_path)), [STACK[0]])


def test_a_folder_that_mixes_formats_or_holds_none_is_refused(tmp_path):
    with pytest.raises(SourceLost, match=r"holds nothing; expected images \(\.tif"):
        Recorded(tmp_path)
    write_images(tmp_path, 1)
    write_images(tmp_path, 1, ".tiff")
    with pytest.raises(SourceLost, match=r"mixes \.tif and \.tiff; choose with a pattern"):
        Recorded(tmp_path)


def test_an_image_of_another_size_costs_one_frame(tmp_path):
    write_images(tmp_path, 3)
    fabio.tifimage.TifImage(np.zeros((2, 2), np.int32)).write(str(tmp_path / "run_1.tif"))
    source = Recorded(tmp_path)
    with pytest.raises(BadFrame, match=r"is \(2, 2\), the first one is \(6, 5\)") as bad:
        source.decode(Message(("image", 1), "image", 0, 0))
    assert bad.value.reason == "shape"
    assert len(source.decode(Message(("image", 2), "image", 0, 0))) == 1
    source.close()


def test_what_is_no_image_is_named(tmp_path):
    with pytest.raises(SourceLost, match="there is no file"):
        Recorded(tmp_path / "nothing.h5")
    (tmp_path / "curve.dat").write_text("0.1 2.0 0.3\n" * 10)
    with pytest.raises(SourceLost, match=r"curve\.dat is no image .*; expected HDF5, TIFF, EDF or CBF"):
        Recorded(tmp_path / "curve.dat")


def test_images_are_repeated_under_new_numbers(tmp_path):
    source = Recorded(write_hdf5(tmp_path / "run.h5", {"entry/data/data": STACK}), repeat=3)
    frames = [record for record in records(source) if isinstance(record, Frame)]
    assert [record.number for record in frames] == list(range(12))
    np.testing.assert_array_equal(frames[9].image, STACK[1])
    assert source.start.images == source.announced_frames == 12


@pytest.mark.parametrize("options", [{"repeat": 0}, {"rate": -5.0}])
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(BadConfig, match="expected"):
        Recorded(write_hdf5(tmp_path / "run.h5", {"entry/data/data": STACK}), **options)


@given(
    hnp.arrays(
        st.sampled_from(["u1", "<u2", ">u2", "<u4", ">u4", "i1", "<i2", ">i4", "<f4", ">f4", "<f8", "<i8", "<u8"]),
        (3, 4),
        elements={"min_value": 0, "max_value": 100},
    )
)
def test_values_survive_the_conversion_to_a_frame(array):
    image = as_image(array)
    np.testing.assert_array_equal(image, array.astype(image.dtype))
    assert image.dtype in [np.dtype(name) for name in ("u1", "u2", "u4", "i4", "f4")]
    assert image.dtype.isnative


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2), complex), np.zeros((2, 2, 3), np.uint8), np.array([[2**33]]), np.array([["text"]])],
)
def test_what_a_frame_cannot_hold_is_refused(array):
    with pytest.raises(ValueError, match=r"an image|do not fit"):
        as_image(array)


def test_real_frames_of_an_eiger2_9m_are_read_and_equal_those_of_the_library(real_data):
    path = real_data / "saxs" / "raw_misc" / "vac_007_data_000001.h5"
    with h5py.File(path) as file:
        assert is_bslz4_per_image(file["entry/data/data"])
        expected = file["entry/data/data"][1]
    first, second = images(Recorded(path))
    np.testing.assert_array_equal(second, expected)
    assert first.shape == (3262, 3108)
    assert np.mean(first == 2**32 - 1) == pytest.approx(0.0656, abs=5e-5)
    assert first[first != 2**32 - 1].max() <= 22


def test_a_real_pilatus_frame_loads_without_a_geometry(real_data):
    source = Recorded(real_data / "saxs" / "raw_misc" / "GI2_A9_19_001_0000.tiff")
    assert source.start.shape == (195, 487)
    assert source.start.beam_center is None
    assert source.start.distance_m is None
    [image] = images(source)
    assert image.min() == -2
