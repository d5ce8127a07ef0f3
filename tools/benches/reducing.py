"""`reduce`: one image to I(q) ± σ on one core, against everything else that does it.

All contestants get the same counts, mask, bins and radial range, correct for the solid angle and give σ with the counts
as variance. `rel_diff_I` and `rel_diff_sigma` are the largest relative differences over the bins that hold counts. A
peer that splits pixels between bins answers another question; it is timed, and its difference printed.

`numpy img.sum` answers nothing: it is what one pass over the pixels costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.graphs import can_draw
from tools.benches import graph
from tools.benches.frames import BINS, describe, integrator, mask, q_range, series
from tools.benches.measure import Contestant, Report, cores, duel, rel_diff

COMPARED = 2
"""Images on which answers are compared."""

SPLITS = ("no", "bbox", "full")
ALGORITHMS = ("csc", "csr", "histogram", "lut")
IMPLEMENTATIONS = ("cython", "python")

Answer = tuple[NDArray[Any], NDArray[Any]]
"""I and σ."""


def bench(report: Report, detectors: list[str], rounds: int, wanted: list[str]) -> None:
    """Every peer against ours, on every detector. wanted: parts of peers' names; none for all of them."""
    for detector in detectors:
        describe(report, detector)
        case = f"{detector} uint16 {BINS} bins, {cores()} core{'s' if cores() > 1 else ''}"
        for name, peer in _peers(detector, report):
            if wanted and not any(part in name for part in wanted):
                continue
            contest = duel(_ours(detector), peer, len(series(detector).images), rounds)
            report.line("reduce", case, peer=name, **contest.figures, **_difference(detector, peer))


def _ours(detector: str) -> Contestant:
    ours, images = integrator(detector), series(detector).images
    return lambda i: ours.integrate(images[i])


def _difference(detector: str, peer: Contestant) -> dict[str, float]:
    """How far the answers of a peer lie from ours; nothing for one that gives none."""
    found: dict[str, float] = {}
    for i, image in enumerate(series(detector).images[:COMPARED]):
        theirs = peer(i)
        if not isinstance(theirs, tuple):
            return {}
        profile = integrator(detector).integrate(image)
        counted = profile.counts > 0
        for name, mine, other in zip(
            ("rel_diff_I", "rel_diff_sigma"), (profile.intensity, profile.sigma), theirs, strict=True
        ):
            found[name] = max(found.get(name, 0.0), rel_diff(mine[counted], np.asarray(other)[counted]))
    return found


def _peers(detector: str, report: Report) -> Iterator[tuple[str, Contestant]]:
    images = series(detector).images
    yield "numpy img.sum", lambda i: images[i].sum()
    yield from _sparse(detector)
    yield from _graph(detector, report)
    yield from _midas(detector, report)
    for split in SPLITS:
        for algorithm in ALGORITHMS:
            for implementation in IMPLEMENTATIONS:
                yield from _pyfai(detector, (split, algorithm, implementation))


def azimuthal_integrator(detector: str) -> Any:
    """pyFAI's integrator for the same geometry."""
    import pyFAI

    with tempfile.TemporaryDirectory() as folder:
        poni = Path(folder) / "detector.poni"
        series(detector).geometry.write(poni)
        return pyFAI.load(str(poni))


def pyfai_answer(ai: Any, image: NDArray[Any], detector: str, method: tuple[str, str, str], bins: int = BINS) -> Answer:
    """I and σ by `integrate1d`. safe=False spares it the check that neither mask nor geometry changed."""
    found = ai.integrate1d(
        image,
        bins,
        variance=image,
        radial_range=q_range(detector),
        unit="q_nm^-1",
        mask=mask(detector),
        method=method,
        safe=False,
    )
    return found.intensity, found.sigma


def _pyfai(detector: str, method: tuple[str, str, str]) -> Iterator[tuple[str, Contestant]]:
    from pyFAI.method_registry import IntegrationMethod

    split, algorithm, implementation = method
    if not IntegrationMethod.select_method(1, split, algorithm, implementation, degradable=False):
        return
    ai, images = azimuthal_integrator(detector), series(detector).images
    yield f"pyFAI {algorithm} {split} {implementation}", lambda i: pyfai_answer(ai, images[i], detector, method)


def _matrix(detector: str) -> Any:
    """pyFAI's own matrix without pixel splitting, as scipy's: (bins, pixels)."""
    from scipy.sparse import csr_matrix

    ai, image = azimuthal_integrator(detector), series(detector).images[0]
    pyfai_answer(ai, image, detector, ("no", "csr", "cython"))
    (engine,) = (found.engine for key, found in ai.engines.items() if key.algorithm == "CSR")
    return csr_matrix((engine.data, engine.indices, engine.indptr), shape=(BINS, image.size))


def _sparse(detector: str) -> Iterator[tuple[str, Contestant]]:
    images = series(detector).images
    matrix = _matrix(detector)
    norm = matrix @ series(detector).geometry.solid_angle().ravel()
    bin_of = np.full(images[0].size, BINS, np.intp)
    bin_of[matrix.indices] = np.repeat(np.arange(BINS), np.diff(matrix.indptr))

    def answer(counts: NDArray[Any]) -> Answer:
        return counts / norm, np.sqrt(counts) / norm

    with np.errstate(invalid="ignore", divide="ignore"):
        yield "scipy csr product", lambda i: answer(matrix @ images[i].ravel())
        yield (
            "numpy bincount",
            lambda i: answer(np.bincount(bin_of, weights=images[i].ravel(), minlength=BINS + 1)[:BINS]),
        )


def _graph(detector: str, report: Report) -> Iterator[tuple[str, Contestant]]:
    """What a GPU is given, on the CPU: the reference for its answers."""
    if not can_draw():
        report.note("reduce", "onnxruntime graph: the package 'onnx' is missing; pip install 'streamer[cuda]'")
        return
    on_cpu = graph.OnDevice(detector, "cpu", batch=1)
    yield "onnxruntime graph", lambda i: on_cpu.answer(i)


def _midas(detector: str, report: Report) -> Iterator[tuple[str, Contestant]]:
    """midas-integrate on the same map from pixels to bins; its sums are those of torch's sparse product."""
    try:
        import torch
        from midas_integrate import bin_io, kernels
    except ImportError as missing:
        report.note("reduce", f"midas-integrate: {missing}; pip install midas-integrate to have it measured")
        return
    torch.set_num_threads(cores())
    images, matrix = series(detector).images, _matrix(detector)
    rows, columns = images[0].shape
    pixels = np.zeros(matrix.nnz, bin_io.PXLIST_DTYPE)
    pixels["z"], pixels["y"] = np.divmod(matrix.indices, columns)
    pixels["frac"] = 1
    pixels["areaWeight"] = series(detector).geometry.solid_angle().ravel()[matrix.indices]
    counts = np.diff(matrix.indptr).astype(np.int32)
    pixel_map = bin_io.PixelMap(pixels, counts, matrix.indptr[:-1].astype(np.int32), None, None)
    geometry = kernels.build_csr(
        pixel_map, n_r=BINS, n_eta=1, n_pixels_y=columns, n_pixels_z=rows, build_modes=("floor",), compute_variance=True
    )

    def answer(i: int) -> Answer:
        intensity, variance = kernels.integrate_with_variance(torch.from_numpy(images[i]), geometry)
        return intensity[:, 0].numpy(), np.sqrt(variance[:, 0].numpy())

    yield "midas-integrate floor", answer
