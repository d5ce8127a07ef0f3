"""A curve beside the reference curve of the same sample: z-scores, the common scale, and what a network sees of both.

The reference is what the sample scattered while it was known to be in order: loaded, or averaged from frames of the
stream. Flux, exposure and thickness scale a whole curve, so the frame's scale against the reference is fitted and taken
out first:

    I = (1 + s)·I_ref + what is new,      s = Σ w (I − I_ref) / Σ w I_ref,      z = (I − (1 + s)·I_ref)/√v

    v = f² (σ² + σ_ref²) + (ε I_ref)²,      v₀ = f² (r + 1) σ_ref² + (ε I_ref)²

w is I_ref/v₀ of the two neighbouring points. v₀ is what v would be if the frame were like its reference, r how much
shorter it was exposed. A point's own counts must not weigh it: where they happen to be few, so is σ; and where the
reference is faint, it would be compared with its own noise. Either pulls s down by several σ.

How far s lies from 0, beside what counting leaves uncertain of it, σ_s = (Σ I_ref²/v)^(−1/2), and the stability of the
flux, is a number of its own (`excess`). What is published as σ of the scale is not less than what the scatter about it
says (White's estimator, Econometrica 48 (1980) 817). f is the noise factor: the frames of the reference scatter by f
times their σ. ε is what flat field, spline and monitor leave behind from frame to frame, which no counting statistics
knows.

Every array may carry leading dimensions; the last is q, on the network's grid. "Not measured" is NaN in I and σ. Bins
are independent here: a bin without a sample of the detector's own curve is not measured, never interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadInput
from streamer.reduce.curves import as_rows, rows_like
from streamer.reduce.loops import channel_rows, compare_rows

__all__ = ["CHANNELS", "FLUX_STABILITY", "Comparison", "Reference", "channels", "compare", "gather"]

Floats = NDArray[np.floating[Any]]

CHANNELS = (
    "log10 I",
    "asinh I/σ",
    "measured",
    "asinh z",
    "reference",
    "log10 √v",
    "log10 I_ref",
    "asinh scale",
)
"""What the rows of `channels` are."""

FLUX_STABILITY = 0.005
"""Standard deviation of ln(scale) from frame to frame of a sample in order. Real synchrotron series: 0.4 %."""

SIGNAL_SCALE = 0.2
"""Brings asinh(I/σ), which is 8 at σ/I = 0.1 %, to the size of the other channels."""

SYSTEMATIC = 0.003
"""ε, relative, per point of the grid."""

LEAST_RATIO = 1e-6
"""Below this fraction of its median a curve's logarithm is cut off: what is so faint is within the noise."""


@dataclass(frozen=True, slots=True)
class Reference:
    """I ± σ, (…, m) on the network's grid, NaN where not measured.

    noise: f, by how much frames scatter more than their σ says. frames: how many it was made of, 0 where unknown.
    """

    I: Floats
    sigma: Floats
    noise: float = 1.0
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A frame against its reference.

    z: (…, m), NaN where either was not measured. sigma: (…, m) √v. scale, sigma_scale: (…) s and its uncertainty.
    excess: (…) s over the uncertainty that counting and the flux's stability give together.
    """

    z: NDArray[np.float64]
    sigma: NDArray[np.float64]
    scale: NDArray[np.float64]
    sigma_scale: NDArray[np.float64]
    excess: NDArray[np.float64]

    @property
    def chi2(self) -> NDArray[np.float64]:
        """Mean z² over the bins, 1 for a frame like its reference."""
        mean: NDArray[np.float64] = np.nansum(self.z**2, axis=-1) / np.maximum(np.isfinite(self.z).sum(axis=-1) - 1, 1)
        return mean


def compare(I: Floats, sigma: Floats, reference: Reference, stability: float = FLUX_STABILITY) -> Comparison:
    """z-scores of I ± σ against the reference once its scale is fitted. All NaN where no bin is known in both.

    stability: standard deviation of ln(scale) that is normal for this beam.
    """
    shape = np.shape(I)
    z, root, s, counted, scattered = compare_rows(
        as_rows(I),
        as_rows(sigma),
        rows_like(reference.I, shape),
        rows_like(reference.sigma, shape),
        reference.noise,
        SYSTEMATIC,
    )
    excess = s / np.hypot(counted, stability)
    scale, sigma_scale, excess = (values.reshape(shape[:-1]) for values in (s, scattered, excess))
    return Comparison(z.reshape(shape), root.reshape(shape), scale, sigma_scale, excess)


def channels(
    I: Floats,
    sigma: Floats,
    reference: Reference | None = None,
    *,
    stability: float = FLUX_STABILITY,
    beside: Comparison | None = None,
) -> NDArray[np.float32]:
    """What the network sees: (…, 8, m) float32, rows as in `CHANNELS`.

    I, sigma: (…, m) on the network's grid (see `curves.rebin`). reference: of the same sample and in the same unit, or
    None. beside: what `compare` says of both, where it is known already.

    log10 I      log10 max(I, σ) minus its median over the measured bins
    asinh I/σ    the significance with its sign, × 0.2
    measured     1 where the curve was measured; elsewhere every other row is 0
    asinh z      see `compare`; 0 without a reference
    reference    1 where z is known
    log10 √v     minus the same median; log10 σ without a reference
    log10 I_ref  minus the same median; 0 without a reference
    asinh scale  `Comparison.excess`, the same in every bin

    Pure numbers: nothing changes when curve and reference are multiplied by one factor. A curve without a photon in any
    bin has nothing to be judged by and is NaN throughout, which `infer` flags.
    """
    shape = np.shape(I)
    if beside is None and reference is not None:
        beside = compare(I, sigma, reference, stability)
    none = np.empty((0, shape[-1]))
    z, root, excess, I_ref = none, none, np.empty(0), none
    if beside is not None and reference is not None:
        z, root, I_ref = as_rows(beside.z), as_rows(beside.sigma), rows_like(reference.I, shape)
        excess = np.ascontiguousarray(beside.excess, dtype=np.float64).reshape(-1)
    rows: NDArray[np.float32] = channel_rows(
        as_rows(I), as_rows(sigma), z, root, excess, I_ref, SIGNAL_SCALE, LEAST_RATIO
    )
    return rows.reshape(*shape[:-1], len(CHANNELS), shape[-1])


def gather(curves: Iterable[tuple[Floats, Floats]], *, noise: float | None = None) -> Reference:
    """One reference from several frames I ± σ, (m,), of one undisturbed sample.

    Frames are brought to the scale of the first, then averaged with equal weights: σ² is estimated from the same counts
    as I. noise: f where it is known; else it is measured from the scatter of the frames about their mean, if there are
    two or more. Raises BadInput without a frame, or where no bin was measured in all of them.
    """
    frames = list(curves)
    if not frames:
        raise BadInput("reference: found no frame, expected at least one of the undisturbed sample")
    I, sigma = (np.stack([np.asarray(frame[k], dtype=np.float64) for frame in frames]) for k in (0, 1))
    known = _measured(I, sigma).all(axis=0)
    if not known.any():
        raise BadInput(f"reference: no bin is measured in all {len(frames)} frames; give frames of one geometry")
    scale = 1 + np.nan_to_num(compare(I, sigma, Reference(I[0], sigma[0])).scale)
    I, sigma = I / scale[:, None], sigma / scale[:, None]
    n = len(frames)
    mean = np.where(known, I.mean(axis=0), np.nan)
    error = np.where(known, np.sqrt((sigma**2).sum(axis=0)) / n, np.nan)
    if noise is None:
        noise = _noise(I[:, known] - mean[known], sigma[:, known]) if n > 1 else 1.0
    return Reference(mean, error, noise, n)


def _noise(residual: Floats, sigma: Floats) -> float:
    """f from residuals about the mean of n frames, (n, m); 1 where they are too few to say otherwise."""
    n, m = residual.shape
    freedom = (n - 1) * (m - 1)
    if freedom < 1:
        return 1.0
    f = float(np.sqrt((residual**2 / sigma**2).sum() / freedom))
    is_one = abs(np.log(max(f, 1e-3))) < 3 / np.sqrt(2 * freedom)  # three standard errors of ln f
    return 1.0 if is_one else f


def _measured(I: Floats, sigma: Floats) -> NDArray[np.bool_]:
    measured: NDArray[np.bool_] = np.isfinite(I) & np.isfinite(sigma) & (np.asarray(sigma) > 0)
    return measured
