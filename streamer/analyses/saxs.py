"""SAXS: is this the curve of an undisturbed sample? I(q) ± σ from every frame, and what the model makes of it.

What is published of a frame:

    profile    I ± σ on q: counts per pixel, corrected for solid angle, polarisation and flat; no absolute scale
    total      mean counts per pixel in the q range ± σ: falls with the beam
    invalid    fraction of its pixels that the detector marked as not measured in this frame
    saturated  fraction of its pixels above the detector's saturation
    anomaly    probability ± σ that the curve is none of a normal sample (the model's card says what that means)
    entropy    of that probability, nats: the whole uncertainty

The geometry is that of the `.poni` file, else what the detector's header tells. With a `.poni` a running series can be
joined; without one its frames are refused until a start message has come.

The curve is brought onto the model's q grid by `reduce.curves`, the functions the model was trained with. A curve with
nothing in it is not judged: its `anomaly` is NaN.

Where the model runs on CUDA, the frame is reduced there, too (`reduce_on`): `reduce` hands in the image as it came from
the detector, and `interpret` finds the profile among the model's outputs. Either way the result is the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.graphs import Graph, can_draw
from streamer.infer import (
    FRAME,
    LIMITS,
    Model,
    RawModel,
    Reduction,
    Window,
    load_model,
    load_raw_model,
    require_coverage,
    require_tensors,
)
from streamer.records import UNITS, BadFrame, BadInput, BadModel, Frame, Quantity, Reduced, Result, SeriesStart
from streamer.reduce import graph as reduction_graph
from streamer.reduce.azimuthal import DTYPES, Integrator, Profile, SigmaModel, prepare
from streamer.reduce.curves import Rebinning, channels
from streamer.reduce.detector import Geometry, geometry_of, read_geometry

log = structlog.get_logger(__name__)

BINS = (100, 10_000)
"""On a healthy simulated sample the median anomaly is 0.02 with 200 bins, 0.04 with 100, 0.17 with 50, 0.34 with 20."""

LEAST_COVERAGE = 0.45
"""Fraction of the model's q grid that a geometry must reach: that of the narrowest instrument it was trained on."""

ReduceOn = Literal["auto", "cpu", "device"]
Device = Literal["auto", "cuda", "cpu"]

USUAL_DTYPES = ("uint16", "uint32")
"""Of detectors that count; others are compiled when a series announces them."""

WAVELENGTH_TOLERANCE = 1e-3
"""Relative. A monochromator is calibrated to 10⁻⁴; more than ten times that is another energy."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What frames are reduced with.

    nodata, saturation: see `Integrator.integrate`.
    windows: where frames are handed in to be reduced on the device, by dtype and whether it has a hole.
    """

    integrator: Integrator
    rebinning: Rebinning
    fingerprint: str
    nodata: int | None = None
    saturation: int | None = None
    windows: dict[tuple[np.dtype[Any], bool], Window] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedIn(Reduced):
    """A frame that is reduced on the device. integrator: of its series, which may be over when the answer comes."""

    integrator: Integrator


class Saxs(Analysis):
    """The table `[analyse.saxs]`.

    poni: pyFAI geometry; None takes the detector's header.   mask, flat, dark: images that belong to it.
    bins, unit, q_range: of the profile; q_range None for all pixels.
    polarization: 1 horizontal … −1 vertical, None for no correction.   solid_angle: whether it is corrected for.
    sigma: "poisson" for photons counted, "azimuthal" from the scatter of the pixels, for detectors that do not count.
    channel: which of a frame's images is analysed; None for the first one.
    model: name or folder.   device, max_batch: where it runs, and frames in one call of it.
    reduce_on: "cpu" reduces frames where they are decoded, "device" where the model runs, in one graph with it; "auto"
        means the device if that is CUDA. The graph needs the extra `cuda` or `train` when a geometry is new.
    """

    name = "saxs"
    quantities = ("total", "invalid", "saturated", "anomaly", "entropy")
    curves = ("profile",)

    def __init__(
        self,
        *,
        poni: Path | None = None,
        mask: Path | None = None,
        flat: Path | None = None,
        dark: Path | None = None,
        bins: int = 1000,
        unit: Literal["1/nm", "1/A"] = "1/nm",
        q_range: tuple[float, float] | None = None,
        polarization: float | None = None,
        solid_angle: bool = True,
        sigma: SigmaModel = "poisson",
        channel: str | None = None,
        model: str = "saxs",
        device: Device = "auto",
        max_batch: int = 16,
        reduce_on: ReduceOn = "auto",
    ) -> None:
        if poni is None and (mask or flat or dark):
            raise BadInput("saxs: found mask, flat or dark without poni; they belong to a geometry, give its .poni too")
        if not BINS[0] <= bins <= BINS[1]:
            raise BadInput(
                f"saxs: bins is {bins}, expected {BINS[0]} to {BINS[1]}: the model sees less in a coarser curve"
            )
        if q_range is not None and not 0 <= q_range[0] < q_range[1] < math.inf:
            raise BadInput(f"saxs: q_range is {list(q_range)}, expected two ascending numbers in {unit}")
        if polarization is not None and not -1 <= polarization <= 1:
            raise BadInput(f"saxs: polarization is {polarization}, expected -1 (vertical) to 1 (horizontal)")
        self.model: Model | RawModel = _load(model, device, max_batch, reduce_on)
        self.bins, self.unit, self.q_range = bins, unit, q_range
        self.polarization, self.solid_angle = polarization, solid_angle
        self.sigma: SigmaModel = sigma
        self.channel = channel
        self._card = self.model.card
        require_tensors(self._card, {"curve": "1"}, {"anomaly": "1", "sigma": "1", "entropy": "1"})
        self._grid = self._card.grid("q")
        self._to_grid = UNITS[unit][1] / UNITS[self._card.grids["q"].unit][1]
        self._chosen_channel = channel
        if isinstance(self.model, Model):
            self._compile()
        self._given = read_geometry(poni, mask, flat, dark) if poni is not None else None
        self._geometry = self._given
        self._misfit = "no start message that tells one has come; wait for the next series, or give a .poni (--poni)"
        self._series: SeriesStart | None = None
        self._setup: Setup | None = None
        self._building = threading.Lock()
        if self._given is not None and self._given.shape is not None:
            self._build(self._given)

    def _compile(self) -> None:
        """Before the first frame can come: on a machine that never did it, this takes seconds."""
        prepare(USUAL_DTYPES)
        flat = np.ones(self._grid.size)
        channels(*Rebinning(self._grid, self._grid)(flat, flat, flat))

    def begin(self, series: SeriesStart) -> None:
        """Take the series' shape, mask and, without a `.poni`, its geometry.

        The integration is prepared anew only if any of these changed. Raises BadInput when the header tells too little
        or does not fit the geometry, BadModel when the geometry does not reach the model's q range.
        """
        previous, self._setup, self._geometry = self._setup, None, None
        self._series = series
        self._chosen_channel = self.channel or next(iter(series.channels), None)
        geometry = self._of_header(series) if self._given is None else self._of_file(self._given, series)
        if geometry.shape is not None:
            self._build(geometry, previous)
        self._geometry = geometry

    def accepts(self, frame: Frame) -> bool:
        if self._chosen_channel is None:
            self._chosen_channel = frame.channel
        return frame.channel == self._chosen_channel

    def reduce(self, frame: Frame) -> Reduced:
        """I(q) ± σ and the model's input. Raises BadFrame with reason "geometry", "shape" or "dtype"."""
        setup = self._setup or self._first_shape(frame)
        self._require_shape(frame, setup)
        if isinstance(self.model, RawModel):
            return self._handed_in(frame, setup, self.model)
        profile = setup.integrator.integrate(frame.image, nodata=setup.nodata, saturation=setup.saturation)
        I, sigma = setup.rebinning(profile.intensity, profile.sigma, profile.pixels)
        return Reduced(
            series=frame.series,
            number=frame.number,
            quantities=_quantities(profile, self.sigma),
            inputs={"curve": channels(I, sigma)},
            channel=frame.channel,
            start_s=frame.start_s,
            received_ns=frame.received_ns,
        )

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        quantities = dict(reduced.quantities)
        if isinstance(reduced, HandedIn) and outputs is not None:
            quantities = _quantities(_profile(outputs, reduced.integrator), self.sigma)
        if outputs is not None:
            quantities["anomaly"] = Quantity(float(outputs["anomaly"]), float(outputs["sigma"]))
            quantities["entropy"] = Quantity(float(outputs["entropy"]))
        return Result(
            analysis=self.name,
            series=reduced.series,
            number=reduced.number,
            quantities=quantities,
            channel=reduced.channel,
            start_s=None if reduced.start_s is None else float(reduced.start_s),
            received_ns=reduced.received_ns,
        )

    def _of_header(self, series: SeriesStart) -> Geometry:
        geometry = geometry_of(series, self._chosen_channel or "")
        return geometry.with_shape(series.shape) if series.shape is not None else geometry

    def _of_file(self, given: Geometry, series: SeriesStart) -> Geometry:
        """The configured geometry, with the series' shape and mask."""
        geometry = given.with_shape(series.shape) if series.shape is not None else given
        _warn_of_another_wavelength(geometry, series)
        mask = series.mask.get(self._chosen_channel or "")
        if mask is None or geometry.shape is None:
            return geometry
        if mask.shape != geometry.shape:
            raise BadInput(
                f"saxs: the mask of series {series.series} has shape {mask.shape}, the geometry {geometry.shape}; "
                "give the geometry of this detector"
            )
        return replace(geometry, mask=mask if geometry.mask is None else geometry.mask | mask)

    def _first_shape(self, frame: Frame) -> Setup:
        """Prepare the integration with the first frame, where nothing before it told the shape."""
        rows, columns = frame.image.shape
        with self._building:
            if self._setup is None and self._geometry is not None:
                try:
                    self._build(self._geometry.with_shape((rows, columns)))
                except (BadInput, BadModel) as misfit:
                    self._geometry, self._misfit = None, str(misfit)
            if self._setup is None:
                raise BadFrame("geometry", f"saxs: no geometry for these frames: {self._misfit}")
            return self._setup

    def _require_shape(self, frame: Frame, setup: Setup) -> None:
        """Where no start tells the shape, a frame of another one says that the geometry is of another detector."""
        is_announced = self._series is not None and self._series.shape is not None
        if not is_announced and frame.image.shape != setup.integrator.shape:
            raise BadFrame(
                "geometry",
                f"saxs: the images have shape {frame.image.shape}, the geometry {setup.integrator.shape}; "
                "give the geometry of this detector",
            )

    def _build(self, geometry: Geometry, previous: Setup | None = None) -> Setup:
        series, fingerprint = self._series, geometry.fingerprint
        if previous is not None and previous.fingerprint == fingerprint:
            integrator, rebinning, windows = previous.integrator, previous.rebinning, previous.windows
        else:
            windows = {}
            integrator = self._integrator(geometry)
            rebinning = Rebinning(integrator.q * self._to_grid, self._grid)
        nodata, saturation = (series.nodata, series.saturation) if series is not None else (None, None)
        setup = Setup(integrator, rebinning, fingerprint, nodata, saturation, windows)
        if series is not None and series.dtype in DTYPES:
            if isinstance(self.model, RawModel):
                self._window(series.dtype, setup, self.model)
            else:
                integrator.warm([series.dtype])
        self._setup = setup
        return setup

    def _handed_in(self, frame: Frame, setup: Setup, model: RawModel) -> HandedIn:
        """The frame on its way to the device."""
        dtype = frame.image.dtype
        if dtype not in DTYPES:
            raise BadFrame("dtype", f"saxs: the image is {dtype}, expected one of {', '.join(map(str, DTYPES))}")
        with self._building:
            try:
                window, limits = self._window(dtype, setup, model)
            except BadModel as missing:
                raise BadFrame("dtype", f"saxs: frames of {dtype} cannot be handed in: {missing}") from missing
        return HandedIn(
            series=frame.series,
            number=frame.number,
            quantities={},
            inputs={FRAME: window.put(frame.image), LIMITS: limits},
            channel=frame.channel,
            start_s=frame.start_s,
            received_ns=frame.received_ns,
            integrator=setup.integrator,
        )

    def _window(self, dtype: np.dtype[Any], setup: Setup, model: RawModel) -> tuple[Window, NDArray[np.float64]]:
        """Where frames of a dtype are handed in, opened with the first of them, and what counts as a measurement."""
        limits = reduction_graph.limits_row(dtype, setup.nodata, setup.saturation)
        key = dtype, reduction_graph.has_hole(limits)
        if key not in setup.windows:
            setup.windows[key] = model.prepare(_reduction(setup, *key))
        return setup.windows[key], limits

    def _integrator(self, geometry: Geometry) -> Integrator:
        integrator = Integrator(
            geometry,
            bins=self.bins,
            unit=self.unit,
            q_range=self.q_range,
            polarization=self.polarization,
            solid_angle=self.solid_angle,
            sigma=self.sigma,
        )
        low, high = integrator.q_range
        covered = require_coverage(self._card, "q", low, high, self.unit, at_least=LEAST_COVERAGE)
        log.info(
            "saxs geometry",
            source="header" if self._given is None else ".poni",
            shape=geometry.shape,
            q_range=[round(low, 4), round(high, 4)],
            unit=self.unit,
            bins=self.bins,
            channel=self._chosen_channel,
            model=self._card.name,
            model_range_covered=round(covered, 2),
        )
        return integrator


def _load(name: str, device: Device, max_batch: int, reduce_on: ReduceOn) -> Model | RawModel:
    """The model, to be asked with curves or with frames."""
    model = load_model(name, device=device, max_batch=max_batch)
    if reduce_on == "cpu" or (reduce_on == "auto" and model.device == "cpu"):
        return model
    if reduce_on == "auto" and not can_draw():
        log.warning("frames are reduced on the CPU: the package 'onnx' is missing; pip install 'streamer[cuda]'")
        return model
    return load_raw_model(name, device=model.device, max_batch=max_batch)


def _reduction(setup: Setup, dtype: np.dtype[Any], has_hole: bool) -> Reduction:
    """From raw frames to the profile and the model's input."""
    integrator, rebinning = setup.integrator, setup.rebinning

    def draw(graph: Graph) -> tuple[dict[str, str], dict[str, str]]:
        bins = reduction_graph.per_bin(graph, integrator.binned, dtype, has_hole=has_hole)
        curve = reduction_graph.channels_graph(graph, bins, rebinning)
        return {"curve": curve}, {f"bins.{name}": tensor for name, tensor in asdict(bins).items()}

    per_frame = ("invalid", "saturated")
    return Reduction(
        fingerprint=f"{reduction_graph.fingerprint(integrator.binned, rebinning)} {has_hole}",
        shape=integrator.shape,
        dtype=dtype,
        places=reduction_graph.places(integrator.binned.norm.size),
        outputs={
            f"bins.{one.name}": () if one.name in per_frame else (integrator.bins,)
            for one in fields(reduction_graph.Bins)
        },
        draw=draw,
    )


def _profile(outputs: Mapping[str, NDArray[Any]], integrator: Integrator) -> Profile:
    """What the device made of a frame, as the integrator would have said it."""
    return Profile(
        intensity=outputs["bins.intensity"],
        sigma=outputs["bins.sigma"],
        counts=outputs["bins.counts"],
        pixels=outputs["bins.pixels"].astype(np.int64),
        norm=outputs["bins.norm"],
        invalid=int(outputs["bins.invalid"]),
        saturated=int(outputs["bins.saturated"]),
        q=integrator.q,
        unit=integrator.unit,
    )


def _quantities(profile: Profile, sigma: SigmaModel) -> dict[str, Quantity]:
    counts, pixels = float(profile.counts.sum()), int(profile.pixels.sum())
    # Bins are independent, and σ · norm is the uncertainty of the counts in one.
    uncertainty = math.sqrt(max(counts, 1)) if sigma == "poisson" else _root_sum_square(profile.sigma * profile.norm)
    looked_at = max(pixels + profile.invalid + profile.saturated, 1)
    return {
        "profile": Quantity(profile.intensity, profile.sigma, axes={"q": (profile.q, profile.unit)}),
        "total": Quantity(counts / max(pixels, 1), uncertainty / max(pixels, 1)),
        "invalid": Quantity(profile.invalid / looked_at),
        "saturated": Quantity(profile.saturated / looked_at),
    }


def _root_sum_square(values: NDArray[np.float64]) -> float:
    return math.sqrt(float(np.nansum(values**2)))


def _warn_of_another_wavelength(geometry: Geometry, series: SeriesStart) -> None:
    announced = series.photon_wavelength_A
    if announced is not None and abs(announced / geometry.wavelength_A - 1) > WAVELENGTH_TOLERANCE:
        log.warning(
            "the detector announces another wavelength than the .poni, which is used",
            series=str(series.series),
            header_A=round(announced, 5),
            poni_A=round(geometry.wavelength_A, 5),
        )
