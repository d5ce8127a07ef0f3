"""A heavy library has one room: whoever replaces it knows where to go."""

from __future__ import annotations

import grimp
import pytest

ROOMS = {
    "onnxruntime": {"streamer.infer"},
    "onnx": {"streamer.graphs"},
    "numba": {
        "streamer.compression",
        "streamer.reduce.kernel",
        "streamer.reduce.loops",
        "streamer.reduce.paths",
        "streamer.reduce.waves",
    },
    "llvmlite": {"streamer.compression", "streamer.reduce.kernel"},
    "pyFAI": {"streamer.reduce"},
    "prometheus_client": {"streamer.metrics", "streamer.outputs.prometheus"},
    "cbor2": {"streamer.wire.dectris2"},
    "msgpack": {"streamer.wire.results", "streamer.wire.karabo"},
    "p4p": {"streamer.sources.pva"},
    "glassure": {"streamer.reduce.scattering"},
    "periodictable": {"streamer.reduce.scattering"},
    "pywt": {"streamer.reduce.wavelets"},
    "h5py": {"streamer.sources.recorded"},
    "fabio": {"streamer.sources.recorded", "streamer.reduce.detector"},
    "typer": {"streamer.__main__"},
}


@pytest.fixture(scope="module")
def house() -> grimp.ImportGraph:
    """Every import of the package."""
    return grimp.build_graph("streamer", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_a_heavy_library_stays_in_its_room(house: grimp.ImportGraph, library: str) -> None:
    importers = house.find_modules_that_directly_import(library) if library in house.modules else set()
    assert importers, f"nothing imports {library}: take it off the list and out of pyproject.toml"
    strangers = {
        one for one in importers if not any(one == room or one.startswith(f"{room}.") for room in ROOMS[library])
    }
    assert not strangers
