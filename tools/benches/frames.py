"""The input of every bench: the simulated SAXS frame with gaps and beamstop, eight different ones, fixed seed."""

from __future__ import annotations

import functools

import numpy as np

from streamer.analyses.saxs import Saxs
from streamer.doctor.rehearsal import Series, simulated
from streamer.reduce.azimuthal import Integrator
from tools.benches.measure import Report

BINS = 1000


@functools.cache
def series(detector: str) -> Series:
    """The images of a detector, "128k" to "4M", and their messages."""
    return simulated(detector)


@functools.cache
def q_range(detector: str) -> tuple[float, float]:
    """1/nm: one explicit range for all contestants, from the smallest to the largest q of a pixel in use."""
    geometry = series(detector).geometry
    q = geometry.q("1/nm")[~mask(detector)]
    return float(q.min()), float(q.max())


def mask(detector: str) -> np.ndarray:
    """(rows, columns), True = not used."""
    found = series(detector).geometry.mask
    return np.zeros(series(detector).images[0].shape, np.bool_) if found is None else found


@functools.cache
def integrator(detector: str, bins: int = BINS) -> Integrator:
    """Ours, on the common q range."""
    made = Integrator(series(detector).geometry, bins=bins, q_range=q_range(detector))
    made.warm([np.uint16])
    return made


def saxs(detector: str, device: str = "cpu") -> Saxs:
    """The analysis of the chain, prepared for the series."""
    analysis = Saxs(bins=BINS, q_range=q_range(detector), device=device)  # type: ignore[arg-type]
    analysis.begin(series(detector).start)
    return analysis


def describe(report: Report, detector: str) -> None:
    """Say what the input is."""
    images = series(detector).images
    good = ~mask(detector)
    report.line(
        "input",
        detector,
        shape=list(images[0].shape),
        dtype=str(images[0].dtype),
        frames=len(images),
        mean_counts=float(np.mean([image[good].mean() for image in images])),
        zero_pixels=float(np.mean([(image[good] == 0).mean() for image in images])),
        compressed_MB=series(detector).nbytes / 1e6,
        compression=float(images[0].nbytes / series(detector).nbytes),
    )


__all__ = ["BINS", "describe", "integrator", "mask", "q_range", "saxs", "series"]
