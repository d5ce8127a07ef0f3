"""The converter of other programs' geometries, on settings made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from streamer.reduce.detector import read_geometry
from tools.poni import main

SETTINGS = {
    "Xcenter": 12.5,
    "Ycenter": 30.25,
    "SampleDistance": 500.0,
    "WaveLength": 1.1,
    "DetectorPixelSizeX": 75.0,
    "DetectorPixelSizeY": 100.0,
    "MaskDimension": [40, 50],
}


def convert(folder: Path, *arguments: str) -> int:
    return main([*arguments, "--out", str(folder / "out.poni"), "--mask", str(folder / "out.npy")])


def settings(folder: Path, **changes: Any) -> str:
    (folder / "raw.cfg").write_text(json.dumps(SETTINGS | changes))
    return str(folder / "raw.cfg")


def test_raw_counts_rows_from_the_bottom(tmp_path: Path) -> None:
    figures = [
        {"type": "rectangle", "negative": False, "first_point": [3, 5], "second_point": [6, 0]},
        {"type": "circle", "negative": False, "center_point": [30, 20], "radius_point": [32, 20]},
        {"type": "polygon", "negative": False, "vertices": [[40, 30], [60, 30], [60, 50], [40, 50]]},
    ]
    masks = {"BeamStopMask": [None, figures, None]}
    assert convert(tmp_path, "raw", settings(tmp_path, Masks=masks), "--shape", "40,50") == 0
    geometry = read_geometry(tmp_path / "out.poni", mask=tmp_path / "out.npy")
    assert geometry.beam_center == pytest.approx((12.5, 39 - 30.25))
    assert geometry.distance_m == pytest.approx(0.5)
    assert geometry.wavelength_A == pytest.approx(1.1)
    assert geometry.pixel_size_m == pytest.approx((75e-6, 100e-6))
    assert geometry.mask is not None
    assert geometry.mask[35:40, 3:6].all()
    assert geometry.mask[39 - 20, 28:33].all()
    assert geometry.mask[39 - 22, 30]
    assert geometry.mask[2, 45]
    assert not geometry.mask[34, 3:6].any()
    assert not geometry.mask[0:5, 3:6].any()


def test_the_shape_may_come_from_the_settings(tmp_path: Path) -> None:
    assert convert(tmp_path, "raw", settings(tmp_path)) == 0
    assert read_geometry(tmp_path / "out.poni").shape == (40, 50)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"Xcenter": 512.0, "Ycenter": 512.0, "SampleDistance": 1000.0, "WaveLength": 1.0}, "no geometry"),
        ({"DetectorTilt": 1.0}, "DetectorTilt"),
        ({"DetectorFlipLR": True}, "DetectorFlipLR"),
        ({"MaskDimension": 1024}, "--shape"),
        ({"Masks": {"BeamStopMask": [None, [{"type": "circle", "negative": True}], None]}}, "negative"),
        ({"Masks": {"BeamStopMask": [None, [{"type": "star", "negative": False}], None]}}, "star"),
    ],
)
def test_settings_that_cannot_be_trusted_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], complaint: str
) -> None:
    assert convert(tmp_path, "raw", settings(tmp_path, **changes)) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out.poni").exists()


def test_a_saxslab_image_carries_its_geometry(tmp_path: Path) -> None:
    image = np.ones((20, 30), dtype=np.int32)
    image[4], image[7, 8] = -1, -2
    values = {
        "beamcenter_actual": "11.50 7.25",
        "det_pixel_size": "172e-6 172e-6",
        "detector_dist": "487.5",
        "wavelength": "1.5418",
    }
    xml = "".join(f'<param name="{name}">{value}</param>' for name, value in values.items())
    Image.fromarray(image).save(tmp_path / "a.tiff", tiffinfo={315: f"<SAXSLABparameters>{xml}</SAXSLABparameters>"})
    assert convert(tmp_path, "tiff", str(tmp_path / "a.tiff")) == 0
    geometry = read_geometry(tmp_path / "out.poni", mask=tmp_path / "out.npy")
    assert geometry.beam_center == pytest.approx((7.25, 11.5))
    assert geometry.distance_m == pytest.approx(0.4875)
    np.testing.assert_array_equal(geometry.mask, image < 0)


def test_a_tiff_without_geometry_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.ones((20, 30), dtype=np.int32)).save(tmp_path / "a.tiff")
    assert convert(tmp_path, "tiff", str(tmp_path / "a.tiff")) == 1
    assert "no geometry" in capsys.readouterr().err
