"""Frames of real detectors, reduced with the geometry their own programs kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - lets h5py read bitshuffle
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from streamer.records import BadInput, SeriesKey, SeriesStart
from streamer.reduce.azimuthal import Integrator, Profile
from streamer.reduce.detector import Geometry, geometry_of, read_geometry
from tools.poni import main

Frame = tuple[Geometry, NDArray[Any], Path]


@pytest.fixture(scope="module")
def frames(real_data: Path) -> Path:
    return real_data / "saxs" / "raw_misc"


@pytest.fixture(scope="module")
def eiger(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Frame:
    """EIGER2 XE 9M: an empty beamline, 0.5 s."""
    folder = tmp_path_factory.mktemp("eiger")
    settings = str(frames / "settings_biocat_eiger.cfg")
    geometry = converted(folder, "raw", settings, "--shape", "3262,3108")
    with h5py.File(frames / "vac_007_data_000001.h5") as file:
        return geometry, file["entry/data/data"][0], folder / "a.poni"


@pytest.fixture(scope="module")
def pilatus(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Frame:
    """Pilatus3 300K of a laboratory instrument, 999 s of silver behenate."""
    folder = tmp_path_factory.mktemp("pilatus")
    geometry = converted(folder, "tiff", str(frames / "saxslab_image.tiff"))
    with Image.open(frames / "saxslab_image.tiff") as tiff:
        return geometry, np.array(tiff), folder / "a.poni"


def converted(folder: Path, *arguments: str) -> Geometry:
    poni, mask = folder / "a.poni", folder / "mask.npy"
    assert main([*arguments, "--out", str(poni), "--mask", str(mask)]) == 0
    return read_geometry(poni, mask=mask)


def mean_around(image: NDArray[Any], row: float, column: float, *, inner: float, outer: float) -> float:
    """Mean count of the valid pixels whose centres lie between two distances (pixels) of a point."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(rows + 0.5 - row, columns + 0.5 - column)
    is_valid = (image >= 0) & (image < 2**32 - 2)
    return float(image[is_valid & (distance > inner) & (distance < outer)].mean())


def assert_equals_pyfai(frame: Frame, integrator: Integrator, unusable: NDArray[np.bool_]) -> Profile:
    """The profile of the frame, once it agrees with pyFAI's for a mask that holds every unusable pixel."""
    _, image, poni = frame
    profile = integrator.integrate(image)
    pyfai = AzimuthalIntegrator()
    pyfai.load(str(poni))
    raw = image.astype(np.float32)
    theirs = pyfai.integrate1d(
        raw,
        len(profile.q),
        variance=raw,
        radial_range=integrator.q_range,
        unit="q_nm^-1",
        mask=unusable,
        method=("no", "histogram", "cython"),
    )
    np.testing.assert_array_equal(profile.pixels, theirs.count)
    counted = profile.counts > 0
    np.testing.assert_allclose(profile.intensity[counted], theirs.intensity[counted], rtol=1e-6)
    np.testing.assert_allclose(profile.sigma[counted], theirs.sigma[counted], rtol=1e-5)
    return profile


def test_the_eigers_beam_is_where_raw_put_it_after_turning_rows_over(eiger: Frame) -> None:
    geometry, image, _ = eiger
    column, row = geometry.beam_center
    assert (row, column) == pytest.approx((823.25, 2449.94), abs=0.01)
    rows, columns = image.shape
    near = mean_around(image, row, column, inner=20, outer=40)
    assert near > 10 * mean_around(image, rows - row, columns - column, inner=20, outer=40)
    assert near > 10 * mean_around(image, rows - row, column, inner=20, outer=40)


def test_the_eigers_mask_covers_every_gap_after_turning_rows_over(eiger: Frame) -> None:
    geometry, image, _ = eiger
    gaps = image >= 2**32 - 2
    assert gaps.mean() == pytest.approx(0.0656, abs=1e-4)
    assert geometry.mask is not None
    assert not (gaps & ~geometry.mask).any()
    assert (gaps & ~geometry.mask[::-1]).any()


def test_the_eigers_frame_reduces_as_pyfai_reduces_it(eiger: Frame) -> None:
    geometry, _, _ = eiger
    assert geometry.mask is not None
    profile = assert_equals_pyfai(eiger, Integrator(geometry, bins=1000, q_range=(0.05, 2.0)), geometry.mask)
    assert (profile.invalid, profile.saturated) == (0, 0)


def test_without_a_mask_the_eigers_gaps_are_found_in_the_frame(eiger: Frame) -> None:
    geometry, image, poni = eiger
    q = geometry.q()
    gaps = image >= 2**32 - 2
    profile = assert_equals_pyfai(eiger, Integrator(read_geometry(poni), bins=1000, q_range=(0.05, 2.0)), gaps)
    assert profile.invalid == (gaps & (q > 0.05) & (q < 2.0)).sum()


def test_the_pilatus_beam_is_where_its_tiff_says(pilatus: Frame) -> None:
    geometry, image, _ = pilatus
    column, row = geometry.beam_center
    assert (row, column) == pytest.approx((359.10, 267.30), abs=1e-6)
    assert geometry.distance_m == pytest.approx(0.48756, abs=1e-5)
    rows, columns = image.shape
    near = mean_around(image, row, column, inner=0, outer=25)
    assert near > 10 * mean_around(image, rows - row, columns - column, inner=0, outer=25)
    assert geometry.mask is not None
    assert ((image == -1).sum(), (image == -2).sum(), geometry.mask.sum()) == (20638, 12, 20650)


def test_the_pilatus_frame_reduces_as_pyfai_reduces_it(pilatus: Frame) -> None:
    geometry, image, poni = pilatus
    assert geometry.mask is not None
    profile = assert_equals_pyfai(pilatus, Integrator(geometry, bins=400, q_range=(0.1, 2.0)), geometry.mask)
    unmasked = Integrator(read_geometry(poni), bins=400, q_range=(0.1, 2.0)).integrate(image)
    np.testing.assert_array_equal(unmasked.counts, profile.counts)
    assert unmasked.invalid > 0


def test_silver_behenate_has_its_first_ring_where_it_belongs(pilatus: Frame) -> None:
    # 5.838 nm is the long spacing of silver behenate (Huang et al. 1993, J. Appl. Cryst. 26, 180).
    geometry, image, _ = pilatus
    profile = Integrator(geometry, bins=400, q_range=(0.7, 1.5)).integrate(image)
    assert profile.q[np.nanargmax(profile.intensity)] == pytest.approx(2 * np.pi / 5.838, rel=0.02)


def test_a_frame_without_geometry_says_so(frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = frames / "GI2_A9_19_001_0000.tiff"
    assert main(["tiff", str(image), "--out", str(tmp_path / "a.poni"), "--mask", str(tmp_path / "a.npy")]) == 1
    assert "no geometry" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"no geometry: .*give a \.poni"):
        geometry_of(SeriesStart(SeriesKey(1), shape=(195, 487), detector=image.name))
