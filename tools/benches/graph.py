"""`reduce --device cuda`: raw frames to I(q) ± σ on the GPU, by the graph of `streamer.reduce.graph`.

Two lines for every detector and batch. `alone` is the reduction of frames that are on the device already: what the GPU
does with them, in gigapixels per second. `copied and judged` is what a stream gets: every frame is copied into pinned
memory, crosses the bus, is reduced and judged by the network, and its profile and answers come back; two threads hand
frames in, as the workers of a pipeline do, while the one before is computed. The peer is the compiled kernel on one
core of this machine's processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from streamer.analyses.saxs import HandedIn, Saxs
from streamer.graphs import Graph
from streamer.infer.model import open_session
from streamer.records import Frame
from streamer.reduce.graph import has_hole, limits_row, per_bin, places
from tools.benches.frames import BINS, describe, integrator, q_range, series
from tools.benches.measure import Report, duel, rel_diff, spread, stopwatch

BATCHES = (1, 4, 16)
CALLS = 8
"""Of a round."""
WORKERS = 2
"""Threads that hand frames in."""
AGREEMENT_I, AGREEMENT_SIGMA = 1e-6, 1e-5

Answer = tuple[NDArray[Any], NDArray[Any]]
"""I and σ."""


class OnDevice:
    """The reduction as a graph of its own, with a batch of a detector's images lying on the device."""

    def __init__(self, detector: str, device: str, batch: int) -> None:
        images = series(detector).images
        dtype, pixels = images[0].dtype, images[0].size
        limits = limits_row(dtype, None, None)
        graph = Graph("reduction")
        bins = per_bin(graph, integrator(detector).binned, dtype, has_hole=has_hole(limits))
        for name, tensor in (("intensity", bins.intensity), ("sigma", bins.sigma)):
            graph.output(name, tensor, np.float64, ["batch", BINS])
        self._session = open_session(graph.to_bytes(), "reduction", device, 1, is_deterministic=False)
        frames = np.zeros((len(images), places(pixels)), dtype)
        for row, image in zip(frames, images, strict=True):
            row[:pixels] = image.ravel()
        slots = np.arange(batch) % len(images)
        self._inputs = {"frames": frames, "limits": np.tile(limits, (batch, 1)), "slot": slots}
        self._binding = self._session.io_binding()
        self._values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0) for name, values in self._inputs.items()
        }
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in ("intensity", "sigma"):
            self._binding.bind_output(name, device)

    def __call__(self) -> None:
        """Reduce the batch."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def answer(self, image: int) -> Answer:
        """I and σ of one image, for a batch of one on the CPU."""
        return self.answers(np.array([image]))[0]

    def answers(self, slots: NDArray[np.int64]) -> list[Answer]:
        """I and σ of some images, by their numbers."""
        self._values["slot"].update_inplace(slots)
        self()
        intensity, sigma = self._binding.copy_outputs_to_cpu()
        return list(zip(intensity, sigma, strict=True))


def bench(report: Report, detectors: list[str], rounds: int) -> None:
    """The GPU against the kernel, by batch."""
    for detector in detectors:
        describe(report, detector)
        for batch in BATCHES:
            _alone(report, detector, batch, rounds)
            _copied_and_judged(report, detector, batch, rounds)


def _alone(report: Report, detector: str, batch: int, rounds: int) -> None:
    images, ours = series(detector).images, integrator(detector)
    on_device = OnDevice(detector, "cuda", batch)
    slots = np.arange(batch) % len(images)
    difference = _difference(detector, [(int(slots[i]), *one) for i, one in enumerate(on_device.answers(slots))])
    contest = duel(lambda _: on_device(), lambda i: ours.integrate(images[i]), len(images), rounds)
    ms = contest.ours_ms / batch
    report.line(
        "reduce",
        f"{detector} uint16 {BINS} bins, cuda alone, batch {batch}",
        ours_ms=float(np.median(ms)),
        fps=float(1e3 / np.median(ms)),
        Gpx_per_s=float(images[0].size / np.median(ms) / 1e6),
        peer="streamer kernel, 1 core",
        peer_ms=float(np.median(contest.peer_ms)),
        **spread(contest.peer_ms / ms),
        **difference,
    )


def _copied_and_judged(report: Report, detector: str, batch: int, rounds: int) -> None:
    images, kernel = series(detector).images, integrator(detector)
    saxs = Saxs(bins=BINS, q_range=q_range(detector), device="cuda", max_batch=batch, reduce_on="device")
    saxs.begin(series(detector).start)
    frames = [Frame(image, series(detector).start.series, number) for number, image in enumerate(images)]
    with ThreadPoolExecutor(WORKERS) as workers:
        stream = _stream(saxs, frames, batch, workers)
        first = next(stream)
        times = np.array([[stopwatch(lambda _: next(stream), 0)[0] for _ in range(CALLS)] for _ in range(rounds)])
    difference = _difference(
        detector,
        [(i % len(images), first["bins.intensity"][i], first["bins.sigma"][i]) for i in range(batch)],
    )
    mine = np.median(times, axis=1) / batch
    theirs = np.array([np.median([stopwatch(lambda i: kernel.integrate(images[i]), i)[0] for i in range(len(images))])])
    report.line(
        "reduce",
        f"{detector} uint16 {BINS} bins, cuda copied and judged, batch {batch}",
        ours_ms=float(np.median(mine)),
        fps=float(1e3 / np.median(mine)),
        peer="streamer kernel, 1 core, not judged",
        peer_ms=float(theirs[0]),
        **spread(theirs / mine),
        **difference,
    )


def _stream(saxs: Saxs, frames: list[Frame], batch: int, workers: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
    """The outputs for batch after batch, while the next one is handed in."""

    def handed_in() -> list[Future[HandedIn]]:
        return [workers.submit(saxs.reduce, frames[i % len(frames)]) for i in range(batch)]  # type: ignore[arg-type]

    waiting = handed_in()
    while True:
        ahead = handed_in()
        reduced = [one.result() for one in waiting]
        yield saxs.model.run({name: np.stack([one.inputs[name] for one in reduced]) for name in reduced[0].inputs})
        waiting = ahead


def _difference(detector: str, answers: list[tuple[int, NDArray[Any], NDArray[Any]]]) -> dict[str, float]:
    """How far the GPU is from the kernel, which it may not be."""
    found = {"rel_diff_I": 0.0, "rel_diff_sigma": 0.0}
    for image, intensity, sigma in answers:
        profile = integrator(detector).integrate(series(detector).images[image])
        found["rel_diff_I"] = max(found["rel_diff_I"], rel_diff(intensity, profile.intensity))
        found["rel_diff_sigma"] = max(found["rel_diff_sigma"], rel_diff(sigma, profile.sigma))
    if not (found["rel_diff_I"] <= AGREEMENT_I and found["rel_diff_sigma"] <= AGREEMENT_SIGMA):
        raise SystemExit(f"reduce: the GPU says something else than the kernel ({found})")
    return found
