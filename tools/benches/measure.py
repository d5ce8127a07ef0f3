"""Two contestants in turn, ratios with spread, and the machine's name on every run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Contestant = Callable[[int], Any]
"""Does the work on the image of this index, and returns what it found."""

PACKAGES = ("numpy", "numba", "pyFAI", "scipy", "onnxruntime-gpu", "onnxruntime", "pyzmq", "cbor2", "hdf5plugin")


@dataclass(frozen=True, slots=True)
class Report:
    """Where lines go. as_json: one JSON object per line, and nothing else on standard output."""

    as_json: bool = False

    def line(self, bench: str, case: str, **figures: Any) -> None:
        """One measurement. Figures that do not apply (None) are left out."""
        known = {name: _rounded(value) for name, value in figures.items() if value is not None}
        if self.as_json:
            print(json.dumps({"bench": bench, "case": case, **known}), flush=True)
        else:
            print(f"{bench:<8} {case:<28} {_sentence(known)}", flush=True)

    def machine(self) -> None:
        """Who is measured here."""
        self.line("machine", processor(), **_machine())

    def note(self, bench: str, text: str) -> None:
        """Something that was left out, and why."""
        self.line(bench, "left out", note=text)


@dataclass(frozen=True, slots=True)
class Duel:
    """Milliseconds of two contestants, round by round: (rounds,) each.

    cpu: what the process used of all cores, which other people's work on the machine does not lengthen.
    """

    ours_ms: NDArray[np.float64]
    peer_ms: NDArray[np.float64]
    ours_cpu_ms: NDArray[np.float64]
    peer_cpu_ms: NDArray[np.float64]

    @property
    def figures(self) -> dict[str, float]:
        """Medians over the rounds, and how many times faster ours is, with the smallest and the largest round."""
        return {
            "ours_ms": float(np.median(self.ours_ms)),
            "peer_ms": float(np.median(self.peer_ms)),
            **spread(self.peer_ms / self.ours_ms),
            "ours_cpu_ms": float(np.median(self.ours_cpu_ms)),
            "peer_cpu_ms": float(np.median(self.peer_cpu_ms)),
            "cpu_ratio": float(np.median(self.peer_cpu_ms / self.ours_cpu_ms)),
        }


def spread(ratios: NDArray[np.float64] | Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the rounds' ratios."""
    return {"ratio": float(np.median(ratios)), "ratio_min": float(np.min(ratios)), "ratio_max": float(np.max(ratios))}


def duel(ours: Contestant, peer: Contestant, images: int, rounds: int) -> Duel:
    """Both do every image in turn, one after the other; a round is the median over the images."""
    ours(0), peer(0)
    times = np.empty((rounds, images, 2, 2))
    for turn in times:
        for i, pair in enumerate(turn):
            pair[0] = stopwatch(ours, i)
            pair[1] = stopwatch(peer, i)
    mine, theirs = np.median(times, axis=1).transpose(1, 2, 0)
    return Duel(mine[0], theirs[0], mine[1], theirs[1])


def stopwatch(contestant: Contestant, image: int) -> tuple[float, float]:
    """Milliseconds that one call took, by the clock and of the processor."""
    cpu_s, began = time.process_time(), time.perf_counter()
    contestant(image)
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - cpu_s)


def rel_diff(ours: NDArray[Any], peer: NDArray[Any]) -> float:
    """The largest |ours − peer| / |peer| over the bins where both have a value that is not zero."""
    ours, peer = np.asarray(ours, np.float64), np.asarray(peer, np.float64)
    both = np.isfinite(ours) & np.isfinite(peer) & (ours != 0) & (peer != 0)
    return float(np.max(np.abs(ours[both] - peer[both]) / np.abs(peer[both]))) if both.any() else float("nan")


def processor() -> str:
    """The processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> Mapping[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cores": os.cpu_count(),
        "used_cores": cores(),
        "load_1min": load,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _rounded(value: Any) -> Any:
    """Four digits, and of large numbers one behind the point: a resident set beyond 1000 MB may still grow by one."""
    if not isinstance(value, float):
        return value
    return round(value, 1) if abs(value) >= 1000 else float(f"{value:.4g}")


def _sentence(figures: Mapping[str, Any]) -> str:
    """The figures as a person reads them."""
    figures = dict(figures)
    words = []
    for mine, theirs, unit in (("ours_ms", "peer_ms", "ms"), ("fps", "peer_fps", "frames/s")):
        if mine in figures:
            words.append(f"{figures.pop(mine):>8g} {unit}")
        if theirs in figures:
            words.append(f"{figures.pop('peer', '')} {figures.pop(theirs):g} {unit}")
    if "ratio" in figures:
        ratio, low, high = (figures.pop(name) for name in ("ratio", "ratio_min", "ratio_max"))
        words.append(f"{ratio:g} × ({low:g}–{high:g})")
    return "  ".join([*words, *(f"{name} {value}" for name, value in figures.items())])
