"""How cost grows with pixels, bins, workers and batch: measured, said line by line, and drawn.

What one thread does is given in time of the processor, which other work on the machine does not lengthen; what several
do together, by the clock.

Dashed vertical lines mark what fits the caches of this processor, where a curve may bend: an image with its map from
pixels to bins (4 bytes per pixel), the sums of all bins (16 bytes per bin).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer import compression
from streamer.doctor.capacity import rehearse
from streamer.infer import Model, load_model
from tools.benches.frames import integrator, saxs, series
from tools.benches.measure import Contestant, Report, cores, processor, stopwatch
from tools.benches.models import random_inputs
from tools.benches.reducing import azimuthal_integrator, pyfai_answer

DETECTORS = ("128k", "500k", "1M", "4M")
BIN_COUNTS = (100, 250, 500, 1000, 2000, 4000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
METHOD = ("no", "csc", "cython")
RUN_S = 5.0
BYTES_PER_BIN = 16
"""Four interleaved sums of 32 bits."""


@dataclass(eq=False)
class Curve:
    """One line in a plot. low, y, high: the fastest, the median and the slowest round."""

    label: str
    x: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, x: float, values: Sequence[float]) -> None:
        """Measured at x, in so many rounds."""
        self.x.append(x)
        for row, figure in zip((self.low, self.y, self.high), np.percentile(values, [0, 50, 100]), strict=True):
            row.append(float(figure))


@dataclass
class Plot:
    """One file. marks: x → what happens there."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    curves: list[Curve]
    marks: Mapping[float, str] = field(default_factory=dict)
    is_log: bool = True


def plot(report: Report, folder: Path, detectors: Sequence[str], rounds: int) -> None:
    """Measure everything and write one PNG each into a folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    compression.warm()
    for made in (
        over_pixels(rounds),
        over_bins(detectors[-1], rounds),
        over_workers(detectors),
        over_batch(rounds),
    ):
        for curve in made.curves:
            for x, low, y, high in zip(curve.x, curve.low, curve.y, curve.high, strict=True):
                report.line("growth", f"{made.name} {x:g}", what=curve.label, median=y, low=low, high=high)
        _draw(made, folder / f"{made.name}.png")


def over_pixels(rounds: int) -> Plot:
    """Milliseconds per image."""
    reduce, decode, single, pyfai = (
        Curve(label) for label in ("reduce", "decode (bslz4)", "numpy img.sum", "pyFAI csc, no splitting")
    )
    for detector in DETECTORS:
        images, ours, ai = series(detector).images, integrator(detector), azimuthal_integrator(detector)
        packed = [compression.compress("bslz4", 2, image) for image in images]
        out = np.empty(images[0].nbytes, np.uint8)
        contestants = {
            reduce: lambda i: ours.integrate(images[i]),  # noqa: B023 — called before the loop goes on
            decode: lambda i: compression.decompress("bslz4", 2, packed[i], out),  # noqa: B023
            single: lambda i: images[i].sum(),  # noqa: B023
            pyfai: lambda i: pyfai_answer(ai, images[i], detector, METHOD),  # noqa: B023
        }
        _race(contestants, images[0].size, len(images), rounds)
    marks = {size / 4: f"image + bin map = {name}" for size, name in caches()}
    return Plot(
        "pixels", "Cost of an image", "pixels", "ms of one core per image", [reduce, decode, single, pyfai], marks
    )


def over_bins(detector: str, rounds: int) -> Plot:
    """Milliseconds per image."""
    reduce, pyfai = Curve(f"reduce, {detector}"), Curve(f"pyFAI csc, no splitting, {detector}")
    images, ai = series(detector).images, azimuthal_integrator(detector)
    for bins in BIN_COUNTS:
        ours = integrator(detector, bins)
        contestants = {
            reduce: lambda i: ours.integrate(images[i]),  # noqa: B023
            pyfai: lambda i: pyfai_answer(ai, images[i], detector, METHOD, bins),  # noqa: B023
        }
        _race(contestants, bins, len(images), rounds)
    marks = {size / (BYTES_PER_BIN): f"sums = {name}" for size, name in caches()}
    return Plot("bins", "Cost of an image", "bins", "ms of one core per image", [reduce, pyfai], marks)


def over_workers(detectors: Sequence[str]) -> Plot:
    """Frames per second of the whole chain, from memory."""
    curves = []
    for detector in detectors:
        curve, analysis = Curve(f"chain from memory, {detector}"), saxs(detector)
        for workers in range(1, 2 * cores() + 1):
            curve.add(workers, [rehearse(series(detector), analysis, workers, RUN_S).fps for _ in range(2)])
        curves.append(curve)
    marks = {float(cores()): f"{cores()} cores"}
    return Plot("workers", "Frames per second of the chain", "workers", "frames/s", curves, marks, is_log=False)


def over_batch(rounds: int) -> Plot:
    """Milliseconds per frame of the network."""
    curves = []
    for threads in sorted({1, cores()}):
        curve = Curve(f"saxs network, {threads} thread{'s' if threads > 1 else ''}")
        for batch in BATCHES:
            model = load_model("saxs", device="cpu", max_batch=batch, threads=threads)
            times = _calls_ms(model, list(random_inputs(model.card, batch)), rounds)
            curve.add(batch, np.median(times, axis=1) / batch)
        curves.append(curve)
    most = float(load_model("saxs", device="cpu").max_batch)
    marks = {most: "the card's largest batch"}
    return Plot("batch", "Cost of the network", "frames in a batch", "ms per frame", curves, marks)


def _calls_ms(model: Model, inputs: Sequence[Mapping[str, NDArray[Any]]], rounds: int) -> list[list[float]]:
    return [[stopwatch(lambda i: model.run(inputs[i]), i)[0] for i in range(len(inputs))] for _ in range(rounds)]


def _race(contestants: Mapping[Curve, Contestant], x: float, images: int, rounds: int) -> None:
    """All of them in turn, image by image; a round is the median over the images."""
    times: dict[Curve, list[list[float]]] = {curve: [[] for _ in range(rounds)] for curve in contestants}
    for contestant in contestants.values():
        contestant(0)
    for turn in range(rounds):
        for i in range(images):
            for curve, contestant in contestants.items():
                times[curve][turn].append(stopwatch(contestant, i)[1])
    for curve in contestants:
        curve.add(x, np.median(times[curve], axis=1))


def caches() -> list[tuple[int, str]]:
    """Bytes and names of this core's data caches, as Linux tells them."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, size, level = ((folder / name).read_text().strip() for name in ("type", "size", "level"))
        number = re.match(r"\d+", size)
        if kind != "Instruction" and number:
            found.append((int(number[0]) * 1024, f"L{level}"))
    return found


def _draw(made: Plot, file: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for curve in made.curves:
        (line,) = axes.plot(curve.x, curve.y, marker="o", label=curve.label)
        axes.fill_between(curve.x, curve.low, curve.high, color=line.get_color(), alpha=0.2)
    if made.is_log:
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    else:
        axes.set_ylim(bottom=0)
    xs = [x for curve in made.curves for x in curve.x]
    axes.set_xticks(sorted(set(xs)), [_tick(x) for x in sorted(set(xs))])
    axes.minorticks_off()
    for x, text in made.marks.items():
        if min(xs) <= x <= max(xs):
            axes.axvline(x, color="grey", linestyle="--", linewidth=1)
            axes.text(x, 0.98, f" {text}", transform=axes.get_xaxis_transform(), va="top", color="grey", fontsize=8)
    axes.set(xlabel=made.xlabel, ylabel=made.ylabel, title=f"{made.title} — {processor()}, {cores()} cores")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _tick(x: float) -> str:
    return f"{x / 1e6:.2g}M" if x >= 1e6 else f"{x / 1e3:.3g}k" if x >= 10_000 else f"{x:g}"
