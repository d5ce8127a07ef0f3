"""RDF: what distances and coordination numbers does this glass or liquid have? I(q) → S(q) → G(r) ± σ from every frame.

What is published of a frame:

    G, g, structure_factor, wavelet     curves: G(r) ± σ and g(r) of the amplitude branch, S(q) ± σ, G(r) of WT-RDF+
    peak_position, peak_height, peak_width, peak_coordination      of every peak of G, by position, ± σ
    first_position, first_coordination  of the first shell, ± σ; first_height, first_limit; wavelet_position of WT-RDF+
    peaks           how many peaks G has: a new one is what crystallisation looks like
    order           root mean square of G between 12 and 18 Å in units of what its noise makes: 1 for a glass, more
                    where order reaches far
    family          probability that it is one of the glasses the model knows best (its card says which)
    novelty         above 1 the curve is unlike anything learned from; `distance_shift` is how far, in σ, the first
                    distance lies from the one declared
    chi2            of the back-transform: 1 where the model explains what was measured
    noise           σ of one point of S; noise_found, the same from wavelets of S itself
    q_max           to where F was used, Å⁻¹;  scale, of the normalisation;  artefacts, spikes and dips that were
                    bridged
    frames, exposure     how many frames the answer is the average of, and their time in seconds (NaN where unknown)

Averaging. A single frame is often too noisy: with `window` the counts of up to so many frames are added up, those that
were reduced before this one and are numbered at most `window` − 1 below it. `frames` says how many it was.

The chain is `reduce.pairs`; background and container are patterns measured with the same detector and bins.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.infer import load_model, require_coverage, require_tensors
from streamer.records import BadFrame, BadInput, Frame, Quantity, Reduced, Result, SeriesStart
from streamer.reduce.azimuthal import Integrator, Profile, SigmaModel
from streamer.reduce.detector import Geometry, read_geometry
from streamer.reduce.following import Follower
from streamer.reduce.pairs import Normalisation, PairChain, Sample, StructureFactor, read_pattern
from streamer.reduce.peaks import find_peaks
from streamer.reduce.regrid import Regrid
from streamer.reduce.scattering import Composition, Radiation
from streamer.reduce.sine import SineTransform
from streamer.reduce.wavelets import noise_of

log = structlog.get_logger(__name__)

Floats = NDArray[np.float64]

LEAST_COVERAGE = 0.4
"""Of the model's q grid: to 12 Å⁻¹ from below 1.5."""
FAR_A = np.arange(12.0, 18.0, 0.05)
"""Where a glass has no order left and a crystal has."""
LEAST_Q_MAX = 12.0

INPUTS = {"F": "1/A", "noise": "1", "density": "1/A3", "q_max": "1/A"}
OUTPUTS = {
    "G": "1/A2",
    "sigma": "1/A2",
    "g": "1",
    "rdf": "1/A",
    "wavelet": "1/A2",
    "position": "A",
    "position_sigma": "A",
    "height": "1/A2",
    "wavelet_position": "A",
    "coordination": "1",
    "coordination_sigma": "1",
    "limit": "A",
    "chi2": "1",
    "novelty": "1",
    "family": "1",
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What frames are reduced with."""

    integrator: Integrator
    chain: PairChain
    regrid: Regrid
    far: SineTransform
    fingerprint: str
    nodata: int | None = None
    saturation: int | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """What one frame adds to an average. counts: Σ intensity·norm, variance of it, norm; exposure in seconds."""

    counts: Floats
    variance: Floats
    norm: Floats
    exposure: float


class Rdf(Analysis):
    """The table `[analyse.rdf]`.

    composition: "Ge25Se75".   density: atoms/Å³; or g_per_cm3.   radiation: "xray" or "neutron".
    poni: pyFAI geometry; None takes the detector's header.   mask, flat, dark: images that belong to it.
    bins: of the pattern.   q_max: Å⁻¹, None for what the detector reaches.   polarization: 1 horizontal … −1 vertical.
    sigma: "poisson" for photons counted, "azimuthal" from the scatter of the pixels.
    background, container: patterns (columns q, I under a header with the unit), measured with these bins; their scales.
    normalisation: see `reduce.pairs`.   hole_A: no two atoms are nearer.   bridge: whether artefacts are bridged.
    window: frames that are averaged at most.
    first_distance: [Å, σ], what is expected; a curve that is off by more than 2.5 σ is strange.
    channel: which of a frame's images is analysed; None for the first one.
    model: name or folder.   device, max_batch: where it runs, and frames in one call of it.
    """

    name = "rdf"
    quantities = (
        "first_position",
        "first_coordination",
        "first_height",
        "first_limit",
        "wavelet_position",
        "peaks",
        "order",
        "family",
        "novelty",
        "distance_shift",
        "chi2",
        "noise",
        "noise_found",
        "q_max",
        "scale",
        "artefacts",
        "frames",
        "exposure",
        "total",
    )
    curves = (
        "G",
        "g",
        "wavelet",
        "structure_factor",
        "peak_position",
        "peak_height",
        "peak_width",
        "peak_coordination",
    )

    def __init__(
        self,
        *,
        composition: str,
        density: float | None = None,
        g_per_cm3: float | None = None,
        radiation: Radiation = "xray",
        poni: Path | None = None,
        mask: Path | None = None,
        flat: Path | None = None,
        dark: Path | None = None,
        bins: int = 1500,
        q_max: float | None = None,
        polarization: float | None = 0.99,
        sigma: SigmaModel = "poisson",
        background: Path | None = None,
        background_scale: float = 1.0,
        container: Path | None = None,
        container_scale: float = 1.0,
        normalisation: Normalisation = "high-q",
        hole_A: float = 1.3,
        bridge: bool = True,
        window: int = 1,
        first_distance: tuple[float, float] | None = None,
        channel: str | None = None,
        model: str = "rdf",
        device: Literal["auto", "cuda", "cpu"] = "auto",
        max_batch: int = 16,
    ) -> None:
        if poni is None and (mask or flat or dark):
            raise BadInput("rdf: found mask, flat or dark without poni; they belong to a geometry, give its .poni too")
        if (density is None) == (g_per_cm3 is None):
            raise BadInput("rdf: expected either density (atoms/Å³) or g_per_cm3")
        if not 200 <= bins <= 10_000:
            raise BadInput(f"rdf: bins is {bins}, expected 200 to 10000: F(q) needs a step of 0.1 Å⁻¹ or less")
        if window < 1:
            raise BadInput(f"rdf: window is {window}, expected 1 frame or more")
        if q_max is not None and q_max < LEAST_Q_MAX:
            raise BadInput(f"rdf: q_max is {q_max}, expected {LEAST_Q_MAX} Å⁻¹ or more")
        if first_distance is not None and not (first_distance[0] > 0 and first_distance[1] > 0):
            raise BadInput(f"rdf: first_distance is {list(first_distance)}, expected a distance and its σ in Å")
        if normalisation == "polynomial":
            raise BadInput(
                "rdf: normalisation 'polynomial' has no absolute scale, and N would have none: choose another"
            )
        of = Composition.parse(composition)
        self.sample = Sample(of, density or of.number_density(g_per_cm3 or 0.0), radiation, hole_A)
        self.model = load_model(model, device=device, max_batch=max_batch)
        self._card = self.model.card
        require_tensors(self._card, INPUTS, OUTPUTS)
        self._q, self._r = self._card.grid("q"), self._card.grid("r")
        self.bins, self.q_max, self.polarization = bins, q_max, polarization
        self.sigma: SigmaModel = sigma
        self.window, self.first_distance, self.channel = window, first_distance, channel
        self._empties = {
            "background": (background, background_scale),
            "container": (container, container_scale),
        }
        self._normalisation: Normalisation = normalisation
        self._bridge = bridge
        self._adding = threading.Lock()
        self._sums: dict[int, Sum] = {}
        given = read_geometry(poni, mask, flat, dark) if poni is not None else None
        self._follower: Follower[Setup] = Follower(self.name, given, channel, self._build)

    def begin(self, series: SeriesStart) -> None:
        """Take the series' shape, mask and, without a `.poni`, its geometry. What was averaged before is forgotten.

        Raises BadInput when the header tells too little or does not fit, BadModel when the geometry does not reach far
        enough in q.
        """
        self._sums.clear()
        self._follower.begin(series)

    def accepts(self, frame: Frame) -> bool:
        return self._follower.accepts(frame)

    def reduce(self, frame: Frame) -> Reduced:
        """S(q) ± σ of the average, and the model's input. Raises BadFrame "geometry", "shape", "dtype" or "empty"."""
        setup = self._follower.prepared_for(frame)
        profile = setup.integrator.integrate(frame.image, nodata=setup.nodata, saturation=setup.saturation)
        average, frames = self._averaged(frame, profile)
        with np.errstate(invalid="ignore", divide="ignore"):
            intensity = np.where(average.norm > 0, average.counts / average.norm, np.nan)
            sigma = np.where(average.norm > 0, np.sqrt(average.variance) / average.norm, np.nan)
        if np.isfinite(intensity).sum() < self.bins // 2 or not np.nansum(intensity) > 0:
            raise BadFrame("empty", f"rdf: frame {frame.number} has no intensity in half of its bins or more")
        factor = setup.chain.structure_factor(intensity, sigma)
        inputs, noise = self._model_input(setup, factor)
        return Reduced(
            series=frame.series,
            number=frame.number,
            quantities=self._measured(setup, factor, profile, average, frames, noise),
            inputs=inputs,
            channel=frame.channel,
            start_s=frame.start_s,
            received_ns=frame.received_ns,
        )

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        quantities = dict(reduced.quantities)
        if outputs is not None:
            quantities |= self._said(outputs, float(reduced.inputs["q_max"]))
        return Result(
            analysis=self.name,
            series=reduced.series,
            number=reduced.number,
            quantities=quantities,
            channel=reduced.channel,
            start_s=None if reduced.start_s is None else float(reduced.start_s),
            received_ns=reduced.received_ns,
        )

    def _averaged(self, frame: Frame, profile: Profile) -> tuple[Sum, int]:
        """The sum over the frames of the window that have been reduced, this one included, and how many they are."""
        norm = np.where(np.isfinite(profile.norm), profile.norm, 0.0)
        counts = np.nan_to_num(profile.intensity) * norm
        if self.sigma == "poisson":
            variance = np.maximum(profile.counts.astype(np.float64), 1.0) * (norm > 0)
        else:
            variance = np.nan_to_num(profile.sigma * norm) ** 2
        own = Sum(counts, variance, norm, _exposure(frame))
        if self.window == 1:
            return own, 1
        with self._adding:
            self._sums[frame.number] = own
            for number in [one for one in self._sums if one <= max(self._sums) - 2 * self.window]:
                del self._sums[number]
            within = [one for n, one in self._sums.items() if frame.number - self.window < n <= frame.number]
        return (
            Sum(
                np.sum([one.counts for one in within], axis=0),
                np.sum([one.variance for one in within], axis=0),
                np.sum([one.norm for one in within], axis=0),
                sum(one.exposure for one in within),
            ),
            len(within),
        )

    def _model_input(self, setup: Setup, factor: StructureFactor) -> tuple[dict[str, NDArray[np.float32]], float]:
        """F on the model's grid, led to S(0) = 0 below what was measured, and the noise of a point of S."""
        q, inside = self._q, setup.regrid.is_inside
        F = setup.regrid(factor.F)
        first = int(np.argmax(inside))
        if first:
            S = (1 + F[first] / q[first]) * (q[:first] / q[first]) ** 2
            F[:first] = q[:first] * (S - 1)
        used = inside & (q <= setup.chain.q[-1] + 1e-6)
        sigma = np.zeros_like(q) if factor.sigma_F is None else setup.regrid.sigma(factor.sigma_F) / q
        noise = float(np.sqrt(np.mean(sigma[used] ** 2)))
        reach = float(q[used][-1])
        F[q > reach] = 0.0
        return {
            "F": F.astype(np.float32),
            "noise": np.array(noise, dtype=np.float32),
            "density": np.array(self.sample.density, dtype=np.float32),
            "q_max": np.array(reach, dtype=np.float32),
        }, noise

    def _measured(
        self,
        setup: Setup,
        factor: StructureFactor,
        profile: Profile,
        average: Sum,
        frames: int,
        noise: float,
    ) -> dict[str, Quantity]:
        far = setup.far(factor.F)
        expected = setup.far.sigma(factor.sigma_F) if factor.sigma_F is not None else np.full_like(far, np.nan)
        pixels = profile.total_pixels
        total = profile.total_counts
        return {
            "structure_factor": Quantity(factor.S, factor.sigma_S, axes={"q": (factor.q, "1/A")}),
            "total": Quantity(total / max(pixels, 1), math.sqrt(max(total, 1)) / max(pixels, 1)),
            "scale": Quantity(factor.scale),
            "artefacts": Quantity(float(len(factor.artefacts))),
            "noise": Quantity(noise),
            "noise_found": Quantity(noise * _noise_ratio(factor)),
            "order": Quantity(float(np.sqrt(np.mean(far**2) / np.mean(expected**2)))),
            "frames": Quantity(float(frames)),
            "exposure": Quantity(average.exposure, unit="s"),
        }

    def _said(self, outputs: Mapping[str, NDArray[Any]], q_max: float) -> dict[str, Quantity]:
        """What the model answered, and the peaks of it."""
        r = {"r": (self._r, "A")}
        G, sigma = outputs["G"].astype(np.float64), outputs["sigma"].astype(np.float64)
        position, uncertainty = float(outputs["position"]), float(outputs["position_sigma"])
        novelty, shift = float(outputs["novelty"]), math.nan
        if self.first_distance is not None:
            expected, tolerance = self.first_distance
            shift = (position - expected) / math.hypot(tolerance, uncertainty)
            novelty = max(novelty, abs(shift) / STRANGE_SIGMAS)
        used = self._card.calibration.get("q_maxima", [q_max])
        found = {
            "G": Quantity(G, sigma, unit="1/A2", axes=r),
            "g": Quantity(outputs["g"].astype(np.float64), axes=r),
            "wavelet": Quantity(outputs["wavelet"].astype(np.float64), unit="1/A2", axes=r),
            "first_position": Quantity(position, uncertainty, unit="A"),
            "first_coordination": Quantity(float(outputs["coordination"]), float(outputs["coordination_sigma"])),
            "first_height": Quantity(float(outputs["height"]), unit="1/A2"),
            "first_limit": Quantity(float(outputs["limit"]), unit="A"),
            "wavelet_position": Quantity(float(outputs["wavelet_position"]), unit="A"),
            "chi2": Quantity(float(outputs["chi2"])),
            "novelty": Quantity(novelty),
            "distance_shift": Quantity(shift),
            "family": Quantity(float(outputs["family"])),
            "q_max": Quantity(max([one for one in used if one <= q_max + 1e-3], default=q_max), unit="1/A"),
        }
        return found | self._peaks(G, sigma, outputs["rdf"].astype(np.float64), q_max)

    def _peaks(self, G: Floats, sigma: Floats, rdf: Floats, q_max: float) -> dict[str, Quantity]:
        if not np.isfinite(G).all():
            return {"peaks": Quantity(math.nan)}
        peaks = find_peaks(self._r, G, sigma, rdf, q_max)
        index = {"peak": (np.arange(1.0, peaks.position.size + 1), "1")}
        return {
            "peaks": Quantity(float(peaks.position.size)),
            "peak_position": Quantity(peaks.position, peaks.sigma_position, unit="A", axes=index),
            "peak_height": Quantity(peaks.height, unit="1/A2", axes=index),
            "peak_width": Quantity(peaks.width, unit="A", axes=index),
            "peak_coordination": Quantity(peaks.N, peaks.sigma_N, axes=index),
        }

    def _build(self, geometry: Geometry, series: SeriesStart | None, previous: Setup | None) -> Setup:
        fingerprint = geometry.fingerprint
        nodata, saturation = (series.nodata, series.saturation) if series is not None else (None, None)
        if previous is not None and previous.fingerprint == fingerprint:
            setup = replace(previous, nodata=nodata, saturation=saturation)
        else:
            integrator = Integrator(
                geometry, bins=self.bins, unit="1/A", polarization=self.polarization, sigma=self.sigma
            )
            low, high = integrator.q_range
            require_coverage(self._card, "q", low, min(high, self.q_max or high), "1/A", at_least=LEAST_COVERAGE)
            chain = self._chain(integrator.q)
            setup = Setup(
                integrator,
                chain,
                Regrid(chain.q, self._q),
                SineTransform(chain.q, FAR_A),
                fingerprint,
                nodata,
                saturation,
            )
            log.info(
                "rdf geometry",
                sample=str(self.sample.composition),
                density_per_A3=round(self.sample.density, 5),
                q_range=[round(low, 3), round(float(chain.q[-1]), 3)],
                model=self._card.name,
            )
        if series is not None and series.dtype is not None:
            setup.integrator.warm([series.dtype])
        return setup

    def _chain(self, q: Floats) -> PairChain:
        """The chain on the integrator's bins, to just beyond the model's grid."""
        empty: dict[str, Any] = {}
        for name, (path, scale) in self._empties.items():
            if path is not None:
                pattern = read_pattern(path)
                own = pattern.q * (0.1 if pattern.unit == "1/nm" else 1.0)
                empty[name], empty[f"{name}_scale"] = np.interp(q, own, pattern.intensity), scale
        reach = min(float(q[-1]), self.q_max or float(q[-1]), float(self._q[-1]) + 2 * float(q[1] - q[0]))
        return PairChain(
            q,
            "1/A",
            self.sample,
            self._r,
            q_max=reach,
            normalisation=self._normalisation,
            bridge=self._bridge,
            **empty,
        )


STRANGE_SIGMAS = 2.5
"""How far a first distance may lie from the one that is declared."""


def _noise_ratio(factor: StructureFactor) -> float:
    """Noise that wavelets find in S, in units of the one that was propagated."""
    if factor.sigma_S is None:
        return math.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        pull = (factor.S - 1) / factor.sigma_S
    return noise_of(pull[np.isfinite(pull)])


def _exposure(frame: Frame) -> float:
    if frame.real_s is not None:
        return float(frame.real_s)
    if frame.start_s is not None and frame.stop_s is not None:
        return float(Fraction(frame.stop_s) - Fraction(frame.start_s))
    return math.nan
