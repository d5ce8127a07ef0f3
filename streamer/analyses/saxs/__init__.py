"""SAXS: what is new in this curve, how sure is that, was anything like it ever seen, and does it change?

What is published of a frame:

    profile        I ± σ on q: counts per pixel, corrected for solid angle, polarisation and flat; no absolute scale
    curve          the same on the model's grid of q
    total          mean counts per pixel in the q range ± σ: falls with the beam
    invalid, saturated   fractions of its pixels not measured in this frame, and above the detector's saturation
    rg, i0, porod  Guinier's Rg (1/unit of q) and I(0), exponent of the power law behind, all ± σ (`reduce.shape`)

    class          number of the likeliest class of the material, in the order below; probability ± σ of it
    normal, void, edge, point, precipitate, separation, order     probability ± σ of each; they add up to 1
    aggregation, repulsion, background, beamstop, beam, saturation, detector     probability ± σ of each fault, any of
                   which may be there; the material's classes hold for an instrument in order
    anomaly        probability ± σ that the material is not normal or a fault is there
    entropy        of the classes, nats; aleatoric: the part that more photons would lower; epistemic: the part that the
                   network owes to what it never saw

    has_reference  1 where the frame was judged beside a reference curve, 0 where by itself
    scale          (1 + s) against the reference ± σ; chi2 of the rest; flux: s as a standard normal score
    novelty        −log10 p: one in 10^novelty frames in order is as strange (conformal; `reduce.conformal`)
    score          the same as a standard normal score, for rules that remember
    unknown        −log10 p for a curve of anything known, in order or not: high where the class should not be believed
    low_q, mid_q, high_q, top_q   what is new in each quarter of ln q, standard scores with their sign
    cormap         −log10 P of the longest run of one sign between this frame and the one before
    changed        probability that the score's mean is no longer that of frames in order (`reduce.changes`)
    detectability  D: √χ² that the likeliest defect explains
    exposure       how many times longer the exposure must be for D to reach 5, if what is seen is real; 1 where it has

What needs a reference is NaN without one. The geometry is that of the `.poni` file, else what the detector's header
tells. With a `.poni` a running series can be joined; without one its frames are refused until a start message has come.

The reference is loaded with what `streamer commission` wrote, or averaged from the first `reference_frames` of every
series, or it slides: the mean of the last `sliding_frames` frames that were in order. The curve is brought onto the
model's q grid by `reduce.curves` and compared by `reduce.reference`, the functions the model was trained with. A curve
with nothing in it is not judged: what the model would say is NaN.

Where the model runs on CUDA, the frame is reduced there, too (`reduce_on`): `reduce` hands in the image as it came from
the detector with the reference of that moment, and `interpret` finds profile and curve among the model's outputs.
Either way the result is the same, but that frames on their way when a reference is ready are still judged without it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from streamer.analyses import Analysis
from streamer.analyses.saxs import said
from streamer.analyses.saxs.said import AGAINST, CLASSES, FAULTS, OUTPUTS, Memory
from streamer.graphs import BESIDE, LIMITS, REFERENCE, Graph, can_draw
from streamer.infer import (
    FRAME,
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
from streamer.reduce import reading
from streamer.reduce.azimuthal import DTYPES, Integrator, Profile, SigmaModel, prepare
from streamer.reduce.curves import Rebinning
from streamer.reduce.detector import Geometry, read_geometry
from streamer.reduce.following import Follower
from streamer.reduce.keeping import Keeper
from streamer.reduce.reading import Reader, Reading
from streamer.reduce.reference import Reference

__all__ = ["CLASSES", "FAULTS", "HandedIn", "Saxs"]

log = structlog.get_logger(__name__)

BINS = (100, 10_000)
"""Fewer leave too many points of the grid, 128 in two decades, without a sample."""

LEAST_COVERAGE = 0.45
"""Fraction of the model's q grid that a geometry must reach: that of the narrowest instrument it was trained on."""

ReduceOn = Literal["auto", "cpu", "device"]
Device = Literal["auto", "cuda", "cpu"]

USUAL_DTYPES = ("uint16", "uint32")
"""Of detectors that count; others are compiled when a series announces them."""

IN_ORDER = 2.0
"""Novelty below which a frame joins the sliding reference."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What frames are reduced with.

    read: what is made of an integrated curve.   nodata, saturation: see `Integrator.integrate`.
    windows: where frames are handed in to be reduced on the device, by dtype and whether it has a hole.
    """

    integrator: Integrator
    rebinning: Rebinning
    read: Reader
    fingerprint: str
    nodata: int | None = None
    saturation: int | None = None
    windows: dict[tuple[np.dtype[Any], bool], Window] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedIn(Reduced):
    """A frame that is reduced on the device.

    integrator: of its series, which may be over when the answer comes. reference: beside which it is judged.
    """

    integrator: Integrator
    reference: Reference | None


class Saxs(Analysis):
    """The table `[analyse.saxs]`.

    poni: pyFAI geometry; None takes the detector's header.   mask, flat, dark: images that belong to it.
    bins, unit, q_range: of the profile; q_range None for all pixels.
    polarization: 1 horizontal … −1 vertical, None for no correction.   solid_angle: whether it is corrected for.
    sigma: "poisson" for photons counted, "azimuthal" from the scatter of the pixels, for detectors that do not count.
    channel: which of a frame's images is analysed; None for the first one.
    model: name or folder.   device, max_batch: where it runs, and frames in one call of it.
    commissioned: what `streamer commission` wrote: reference, flux stability, calibration of novelty.
    reference_frames: so many frames at the beginning of a series become its reference; 0 for none.
    sliding_frames: the reference is the mean of the last so many frames in order; 0 keeps it as it began.
    reduce_on: "cpu" reduces frames where they are decoded, "device" where the model runs, in one graph with it; "auto"
        means the device if that is CUDA. The graph needs the extra `cuda` or `train` when a geometry is new.
    """

    name = "saxs"
    quantities = (
        *("total", "invalid", "saturated", "rg", "i0", "porod"),
        *("class", "probability", *CLASSES, *FAULTS, "anomaly", "entropy", "aleatoric", "epistemic"),
        *("has_reference", "novelty", "score", "unknown", *AGAINST, "cormap", "changed"),
    )
    curves = ("profile", "curve")

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
        commissioned: Path | None = None,
        reference_frames: Annotated[int, msgspec.Meta(ge=0)] = 0,
        sliding_frames: Annotated[int, msgspec.Meta(ge=0)] = 0,
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
        require_tensors(self._card, {"curve": "1"}, dict.fromkeys(OUTPUTS, "1"))
        self._grid = self._card.grid("q")
        self._keeper = Keeper(self._grid, commissioned, reference_frames, sliding_frames)
        self._memory = Memory()
        self._to_grid = UNITS[unit][1] / UNITS[self._card.grids["q"].unit][1]
        self._q = self._grid / self._to_grid
        self._axes = {"q": (self._q, unit)}
        self._read = Reader(Rebinning(self._grid, self._grid), self._q)
        self._ones = np.ones(self._grid.size, np.int64)
        if isinstance(self.model, Model):
            self._compile()
        self._given = read_geometry(poni, mask, flat, dark) if poni is not None else None
        self._opening = threading.Lock()
        self._follower: Follower[Setup] = Follower(self.name, self._given, channel, self._build)

    def _compile(self) -> None:
        """Before the first frame can come: on a machine that never did it, this takes seconds."""
        prepare(USUAL_DTYPES)
        reading.prepare(self._grid.size)
        said.prepare()

    def begin(self, series: SeriesStart) -> None:
        """Take the series' shape, mask and, without a `.poni`, its geometry.

        The integration is prepared anew only if any of these changed. Raises BadInput when the header tells too little
        or does not fit the geometry, BadModel when the geometry does not reach the model's q range.
        """
        self._keeper.start_over()
        self._follower.begin(series)

    @property
    def grid(self) -> NDArray[np.float64]:
        """The model's q, (m,) in the unit of its card."""
        return self._grid

    def accepts(self, frame: Frame) -> bool:
        return self._follower.accepts(frame)

    def reduce(self, frame: Frame) -> Reduced:
        """I(q) ± σ and the model's input. Raises BadFrame with reason "geometry", "shape" or "dtype"."""
        setup = self._follower.prepared_for(frame)
        if isinstance(self.model, RawModel):
            return self._handed_in(frame, setup, self.model)
        profile = setup.integrator.integrate(frame.image, nodata=setup.nodata, saturation=setup.saturation)
        reference = self._keeper.known
        curve = setup.read(profile.intensity, profile.sigma, profile.pixels, reference, self._keeper.stability)
        if reference is None:
            self._keeper.learn_first(curve.I, curve.sigma)
        return Reduced(
            series=frame.series,
            number=frame.number,
            quantities=self._of(profile, curve, has_reference=reference is not None),
            inputs={"curve": curve.seen},
            channel=frame.channel,
            start_s=frame.start_s,
            received_ns=frame.received_ns,
        )

    def interpret(self, reduced: Reduced, outputs: Mapping[str, NDArray[Any]] | None) -> Result:
        quantities = dict(reduced.quantities)
        if isinstance(reduced, HandedIn) and outputs is not None:
            quantities = self._handed_back(reduced, outputs)
        if outputs is not None:
            has_reference = bool(quantities["has_reference"].value)
            quantities |= said.judged(outputs, self._keeper.novelty, has_reference=has_reference)
            quantities |= self._memory.of(quantities)
            if float(quantities["novelty"].value) < IN_ORDER:
                curve = quantities["curve"]
                self._keeper.learn(np.asarray(curve.value), np.asarray(curve.sigma))
        return Result(
            analysis=self.name,
            series=reduced.series,
            number=reduced.number,
            quantities=quantities,
            channel=reduced.channel,
            start_s=None if reduced.start_s is None else float(reduced.start_s),
            received_ns=reduced.received_ns,
        )

    def _build(self, geometry: Geometry, series: SeriesStart | None, previous: Setup | None) -> Setup:
        fingerprint = geometry.fingerprint
        if previous is not None and previous.fingerprint == fingerprint:
            integrator, rebinning, windows = previous.integrator, previous.rebinning, previous.windows
            read = previous.read
        else:
            windows = {}
            integrator = self._integrator(geometry, series)
            rebinning = Rebinning(integrator.q * self._to_grid, self._grid)
            read = Reader(rebinning, self._q)
        nodata, saturation = (series.nodata, series.saturation) if series is not None else (None, None)
        setup = Setup(integrator, rebinning, read, fingerprint, nodata, saturation, windows)
        if series is not None and series.dtype in DTYPES:
            if isinstance(self.model, RawModel):
                self._window(series.dtype, setup, self.model)
            else:
                integrator.warm([series.dtype])
        return setup

    def _of(self, profile: Profile, curve: Reading, *, has_reference: bool) -> dict[str, Quantity]:
        """What physics says of a frame."""
        return said.of_profile(profile, self.sigma) | said.of_curve(curve, self._axes, has_reference=has_reference)

    def _handed_in(self, frame: Frame, setup: Setup, model: RawModel) -> HandedIn:
        """The frame on its way to the device."""
        dtype = frame.image.dtype
        if dtype not in DTYPES:
            raise BadFrame("dtype", f"saxs: the image is {dtype}, expected one of {', '.join(map(str, DTYPES))}")
        with self._opening:
            try:
                window, limits = self._window(dtype, setup, model)
            except BadModel as missing:
                raise BadFrame("dtype", f"saxs: frames of {dtype} cannot be handed in: {missing}") from missing
        reference = self._keeper.known
        return HandedIn(
            series=frame.series,
            number=frame.number,
            quantities={},
            inputs={
                FRAME: window.put(frame.image),
                LIMITS: limits,
                **reduction_graph.reference_rows(reference, self._keeper.stability, self._grid.size),
            },
            channel=frame.channel,
            start_s=frame.start_s,
            received_ns=frame.received_ns,
            integrator=setup.integrator,
            reference=reference,
        )

    def _handed_back(self, reduced: HandedIn, outputs: Mapping[str, NDArray[Any]]) -> dict[str, Quantity]:
        """What `reduce` would have said of a frame that was reduced on the device."""
        I, sigma = (np.ascontiguousarray(outputs[name], np.float64) for name in ("curve.I", "curve.sigma"))
        if reduced.reference is None:
            self._keeper.learn_first(I, sigma)
        curve = self._read(I, sigma, self._ones, reduced.reference, self._keeper.stability)
        return self._of(_profile(outputs, reduced.integrator), curve, has_reference=reduced.reference is not None)

    def _window(self, dtype: np.dtype[Any], setup: Setup, model: RawModel) -> tuple[Window, NDArray[np.float64]]:
        """Where frames of a dtype are handed in, opened with the first of them, and what counts as a measurement."""
        limits = reduction_graph.limits_row(dtype, setup.nodata, setup.saturation)
        key = dtype, reduction_graph.has_hole(limits)
        if key not in setup.windows:
            setup.windows[key] = model.prepare(_reduction(setup, *key, self._grid.size))
        return setup.windows[key], limits

    def _integrator(self, geometry: Geometry, series: SeriesStart | None) -> Integrator:
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
            channel=self.channel or next(iter(series.channels if series is not None else ()), None),
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


def _reduction(setup: Setup, dtype: np.dtype[Any], has_hole: bool, points: int) -> Reduction:
    """From raw frames to the profile and the model's input."""
    integrator, rebinning = setup.integrator, setup.rebinning

    def draw(graph: Graph) -> tuple[dict[str, str], dict[str, str]]:
        bins = reduction_graph.per_bin(graph, integrator.binned, dtype, has_hole=has_hole)
        seen, I, sigma = reduction_graph.channels_graph(graph, bins, rebinning)
        given_out = {f"bins.{name}": tensor for name, tensor in asdict(bins).items()}
        return {"curve": seen}, given_out | {"curve.I": I, "curve.sigma": sigma}

    per_frame = ("invalid", "saturated")
    return Reduction(
        fingerprint=f"{reduction_graph.fingerprint(integrator.binned, rebinning)} {has_hole}",
        shape=integrator.shape,
        dtype=dtype,
        places=reduction_graph.places(integrator.binned.norm.size),
        inputs={LIMITS: (4,), REFERENCE: (2, points), BESIDE: (2,)},
        outputs={
            **{
                f"bins.{one.name}": () if one.name in per_frame else (integrator.bins,)
                for one in fields(reduction_graph.Bins)
            },
            "curve.I": (points,),
            "curve.sigma": (points,),
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
