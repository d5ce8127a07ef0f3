"""Geometries: read, written, taken from a header, and refused in words that help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyFAI.detectors
import pytest
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from streamer.records import BadInput, SeriesKey, SeriesStart
from streamer.reduce.detector import Geometry, geometry_of, read_geometry

PIXEL_M = 75e-6


def flat_on(shape: tuple[int, int] | None = (60, 80), **changes: object) -> Geometry:
    fields = {
        "shape": shape,
        "pixel_size_m": (PIXEL_M, PIXEL_M),
        "distance_m": 0.5,
        "wavelength_A": 1.0,
        "poni_m": (30.5 * PIXEL_M, 20.5 * PIXEL_M),
    }
    return Geometry(**(fields | changes))  # type: ignore[arg-type]


def start(**fields: object) -> SeriesStart:
    complete = {
        "shape": (60, 80),
        "beam_center": (20.5, 30.5),
        "pixel_size_m": (PIXEL_M, PIXEL_M),
        "distance_m": 0.5,
        "wavelength_A": 1.0,
    }
    return SeriesStart(SeriesKey(7), **(complete | fields))  # type: ignore[arg-type]


def test_q_is_that_of_braggs_law() -> None:
    column = 60
    tan_2theta = (column - 20) * PIXEL_M / 0.5
    q_A = 4 * np.pi / 1.0 * np.sin(np.arctan(tan_2theta) / 2)
    assert flat_on().q("1/A")[30, column] == pytest.approx(q_A, rel=1e-12)
    assert flat_on().q("1/nm")[30, column] == pytest.approx(10 * q_A, rel=1e-12)
    assert flat_on().q()[30, 20] == pytest.approx(0, abs=1e-12)


def test_the_solid_angle_falls_with_the_cube_of_the_cosine() -> None:
    cosine = 0.5 / np.hypot(0.5, 40 * PIXEL_M)
    assert flat_on().solid_angle()[30, 60] == pytest.approx(cosine**3, rel=1e-9)


def test_rectangular_pixels_keep_their_axes() -> None:
    geometry = flat_on(pixel_size_m=(50e-6, 100e-6), poni_m=(10 * 100e-6, 20 * 50e-6))
    assert geometry.beam_center == pytest.approx((20, 10))
    assert geometry.q()[10, 40] < geometry.q()[30, 20]


def test_a_written_poni_file_reads_back_as_the_same_geometry(tmp_path: Path) -> None:
    geometry = flat_on(rotations=(0.02, -0.01, 0.3), wavelength_A=1.0332)
    geometry.write(tmp_path / "a.poni")
    geometry.write(tmp_path / "a.poni")
    again = read_geometry(tmp_path / "a.poni")
    assert again.shape == geometry.shape
    np.testing.assert_array_equal(again.q(), geometry.q())
    assert again.beam_center == pytest.approx(geometry.beam_center)


def test_a_poni_file_of_pyfai_gives_pyfais_q_and_the_gaps_of_its_detector(tmp_path: Path) -> None:
    detector = pyFAI.detectors.detector_factory("pilatus100k", {"orientation": 2})
    pyfai = AzimuthalIntegrator(dist=0.3, poni1=0.01, poni2=0.02, rot1=0.1, detector=detector, wavelength=1.2e-10)
    pyfai.save(str(tmp_path / "p.poni"))
    geometry = read_geometry(tmp_path / "p.poni")
    assert geometry.shape == (195, 487)
    np.testing.assert_array_equal(geometry.q(), pyfai.center_array(unit="q_nm^-1"))
    gaps = pyFAI.detectors.detector_factory("eiger2_1m").mask
    AzimuthalIntegrator(dist=1, detector="eiger2_1m", wavelength=1e-10).save(str(tmp_path / "e.poni"))
    np.testing.assert_array_equal(read_geometry(tmp_path / "e.poni").mask, gaps != 0)


def test_the_parallax_of_a_thick_sensor_survives_reading_and_writing(tmp_path: Path) -> None:
    sensor = {"material": "Si", "thickness": 450e-6}
    detector = pyFAI.detectors.detector_factory("pilatus100k", {"orientation": 3, "sensor": sensor})
    pyfai = AzimuthalIntegrator(dist=0.05, poni1=0.01, poni2=0.02, detector=detector, wavelength=1e-10)
    without = pyfai.center_array(unit="q_nm^-1").copy()
    pyfai.enable_parallax()
    pyfai.save(str(tmp_path / "p.poni"))
    read_geometry(tmp_path / "p.poni").write(tmp_path / "again.poni")
    q = read_geometry(tmp_path / "again.poni").q()
    np.testing.assert_array_equal(q, pyfai.center_array(unit="q_nm^-1"))
    assert np.abs(q - without).max() > 0


def test_mask_flat_and_dark_are_read_from_npy_and_from_what_fabio_reads(tmp_path: Path) -> None:
    import fabio.edfimage

    flat_on().write(tmp_path / "a.poni")
    mask = np.zeros((60, 80), dtype=np.int8)
    mask[3, 4] = -1
    np.save(tmp_path / "mask.npy", mask)
    fabio.edfimage.edfimage(np.full((60, 80), 2, dtype=np.int32)).write(str(tmp_path / "flat.edf"))
    geometry = read_geometry(tmp_path / "a.poni", mask=tmp_path / "mask.npy", flat=tmp_path / "flat.edf")
    assert geometry.mask is not None
    assert np.argwhere(geometry.mask).tolist() == [[3, 4]]
    assert geometry.flat is not None
    assert geometry.flat.dtype == np.float32
    assert (geometry.flat == 2).all()


def test_a_detector_without_a_shape_gets_it_from_the_first_image(tmp_path: Path) -> None:
    flat_on(None).write(tmp_path / "a.poni")
    geometry = read_geometry(tmp_path / "a.poni")
    assert geometry.shape is None
    with pytest.raises(BadInput, match="with_shape"):
        geometry.q()
    np.testing.assert_array_equal(geometry.with_shape((60, 80)).q(), flat_on().q())


def test_a_detector_without_a_shape_takes_that_of_its_mask(tmp_path: Path) -> None:
    flat_on(None).write(tmp_path / "a.poni")
    np.save(tmp_path / "mask.npy", np.zeros((60, 80), dtype=bool))
    assert read_geometry(tmp_path / "a.poni", mask=tmp_path / "mask.npy").shape == (60, 80)


def test_images_of_another_shape_are_refused() -> None:
    geometry = flat_on()
    assert geometry.with_shape((60, 80)) is geometry
    with pytest.raises(BadInput, match=r"\(60, 80\).*\(30, 40\)"):
        geometry.with_shape((30, 40))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file"),
        ("hello\n", "Distance, Poni1, Poni2, Wavelength, pixel size"),
        ("PixelSize1: 1e-4\nPixelSize2: 1e-4\nDistance: 1\nPoni1: 0\nPoni2: 0\n", "found no Wavelength"),
        ("Distance: far\n", "could not convert"),
        ("poni_version: 2\nDetector: Nonsense\nDetector_config: {}\n", "nonsense is unknown"),
        ("poni_version: 2\nDetector: Detector\nDetector_config: {bad\n", "not a readable"),
        ("poni_version: 99\nDetector: Detector\nDetector_config: {}\n", "too recent"),
    ],
)
def test_a_poni_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    poni = tmp_path / "a.poni"
    if text is not None:
        poni.write_text(text)
    with pytest.raises(BadInput, match=complaint) as caught:
        read_geometry(poni)
    assert str(poni) in str(caught.value)


def test_a_mask_of_another_detector_is_refused(tmp_path: Path) -> None:
    flat_on().write(tmp_path / "a.poni")
    np.save(tmp_path / "mask.npy", np.zeros((80, 60), dtype=bool))
    with pytest.raises(BadInput, match=r"mask\.npy: found \(80, 60\).*expected \(60, 80\)"):
        read_geometry(tmp_path / "a.poni", mask=tmp_path / "mask.npy")


@pytest.mark.parametrize("name", ["mask.npy", "mask.edf"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, name: str) -> None:
    flat_on().write(tmp_path / "a.poni")
    (tmp_path / name).write_bytes(b"no image at all" * 100)
    with pytest.raises(BadInput, match=f"{name}: not a readable image"):
        read_geometry(tmp_path / "a.poni", mask=tmp_path / name)


def test_a_pickled_mask_is_never_loaded(tmp_path: Path) -> None:
    flat_on().write(tmp_path / "a.poni")
    np.save(tmp_path / "mask.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="not a readable image"):
        read_geometry(tmp_path / "a.poni", mask=tmp_path / "mask.npy")


@pytest.mark.parametrize(
    ("field", "value"),
    [("distance_m", 0.0), ("wavelength_A", -1.0), ("pixel_size_m", (0.0, 1e-4)), ("distance_m", float("nan"))],
)
def test_a_geometry_without_extent_is_refused(field: str, value: object) -> None:
    with pytest.raises(BadInput, match="expected a positive number"):
        flat_on(**{field: value})


def test_a_header_gives_a_detector_square_to_the_beam() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    mask[5] = True
    geometry = geometry_of(start(mask={"threshold_1": mask}), "threshold_1")
    np.testing.assert_array_equal(geometry.q(), flat_on().q())
    assert geometry.beam_center == pytest.approx((20.5, 30.5))
    np.testing.assert_array_equal(geometry.mask, mask)
    assert geometry_of(start(mask={"threshold_1": mask}), "threshold_2").mask is None


def test_a_header_may_give_the_energy_instead_of_the_wavelength() -> None:
    geometry = geometry_of(start(wavelength_A=None, energy_eV=12398.419843320026))
    assert geometry.wavelength_A == pytest.approx(1.0, rel=1e-15)


def test_a_header_that_lacks_fields_is_refused_with_all_their_names() -> None:
    with pytest.raises(BadInput) as caught:
        geometry_of(SeriesStart(SeriesKey(3), shape=(195, 487)))
    text = str(caught.value)
    assert "no geometry" in text
    assert "give a .poni" in text
    for field in ("beam_center", "pixel_size_m", "distance_m", "wavelength_A"):
        assert field in text
    with pytest.raises(BadInput, match="the header lacks distance_m;"):
        geometry_of(start(distance_m=0.0))


def test_the_fingerprint_tells_geometries_apart_and_equal_ones_together() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    flat = np.ones((60, 80), dtype=np.float32)
    different = [
        flat_on(),
        flat_on(distance_m=0.5001),
        flat_on(rotations=(1e-6, 0.0, 0.0)),
        flat_on(mask=mask),
        flat_on(mask=~mask),
        flat_on(flat=flat),
        flat_on(dark=flat),
        flat_on(None),
    ]
    assert len({geometry.fingerprint for geometry in different}) == len(different)
    assert flat_on(mask=mask.copy()).fingerprint == flat_on(mask=mask).fingerprint
