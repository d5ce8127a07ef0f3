"""Closed forms of small-angle scattering, vectorised over curves: what `simulate` puts together.

q: (m,) nm⁻¹. Parameters: (b,), lengths in nm. Every function returns (b, m), 1 at q = 0 unless it says otherwise.

Sources: Guinier–Porod: Hammouda, J. Appl. Cryst. 43 (2010) 716. Unified level: Beaucage, J. Appl. Cryst. 28 (1995)
717. Teubner and Strey, J. Chem. Phys. 87 (1987) 3195. Percus–Yevick S(q) in closed form: Kinning and Thomas,
Macromolecules 17 (1984) 1712.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def sphere(x: Tensor) -> Tensor:
    """Amplitude 3 (sin x − x cos x) / x³ of a homogeneous sphere, x = qR of any shape."""
    safe = x.clamp(min=0.05)
    closed = 3 * (torch.sin(safe) - safe * torch.cos(safe)) / safe**3
    return torch.where(x < 0.05, 1 - x**2 / 10 + x**4 / 280, closed)


def spheroid(x: Tensor, aspect: Tensor) -> Tensor:
    """⟨F²⟩ of randomly oriented spheroids with half axes (R, R, aspect·R). x: (n,) qR. aspect: (b,)."""
    cosines, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(32))
    cosines, weights = (cosines + 1) / 2, weights / 2
    stretch = torch.sqrt(1 - cosines**2 + (aspect[:, None] * cosines) ** 2)
    return torch.stack([sphere(x[:, None] * s).square() @ weights for s in stretch])


def size_average(x: Tensor, single: Tensor, spread: Tensor) -> Tensor:
    """⟨V²F²⟩/⟨V²⟩ over lognormal sizes: ln(R/R₀) has standard deviation `spread`, R₀ is the median.

    x: (n,) qR₀ equally spaced in log, from where F is constant to where F² falls like x⁻⁴. single: (b, n) F² of one
    size. In log x the average is a correlation with R⁶ times the lognormal density, done by FFT.
    """
    n = len(x)
    t = (torch.arange(2 * n) - n) * (x[1] / x[0]).log()
    density = torch.softmax(6 * t - t**2 / (2 * spread[:, None] ** 2), dim=-1)
    padded = torch.cat((single[:, :1].expand(-1, n), single, single[:, -1:] * (x / x[0]) ** -4), dim=-1)
    return torch.fft.irfft(torch.fft.rfft(padded) * torch.fft.rfft(density, 3 * n).conj(), 3 * n)[:, :n]


def guinier_porod(q: Tensor, rg: Tensor, slope: Tensor) -> Tensor:
    """Guinier up to q₁ = √(3d/2)/Rg, then q⁻ᵈ; value and slope are continuous."""
    rg, d = rg[:, None], slope[:, None]
    q_1 = torch.sqrt(3 * d / 2) / rg
    return torch.where(q < q_1, torch.exp(-((q * rg) ** 2) / 3), torch.exp(-d / 2) * (q / q_1) ** -d)


def unified(q: Tensor, rg: Tensor, slope: Tensor) -> Tensor:
    """Beaucage's unified level with the power-law prefactor that continues its own Guinier part."""
    rg, d = rg[:, None], slope[:, None]
    prefactor = torch.exp(-d / 2) * (3 * d / 2) ** (d / 2) * rg**-d
    knee = torch.erf(q * rg / math.sqrt(6)) ** 3 / q
    return torch.exp(-((q * rg) ** 2) / 3) + prefactor * knee**d


def mass_fractal(q: Tensor, xi: Tensor, dimension: Tensor) -> Tensor:
    """(1 + q²ξ²)^(−D_f/2): aggregates of size ξ and fractal dimension D_f, as radiation damage makes them."""
    return (1 + (q * xi[:, None]) ** 2) ** (-dimension[:, None] / 2)


def teubner_strey(q: Tensor, period: Tensor, xi: Tensor) -> Tensor:
    """(8π/ξ) / (a₂ + c₁q² + q⁴), nm³, of a structure with a period d and a correlation length ξ.

    k = 2π/d, a₂ = (k² + ξ⁻²)², c₁ = −2(k² − ξ⁻²). Times ⟨η²⟩, the mean square of the scattering length density's
    fluctuation, it is dΣ/dΩ; its invariant ∫ q² I dq is 2π².
    """
    k, inverse = 2 * math.pi / period[:, None], 1 / xi[:, None]
    return 8 * math.pi * inverse / ((k**2 + inverse**2) ** 2 - 2 * (k**2 - inverse**2) * q**2 + q**4)


def furukawa(q: Tensor, peak: Tensor, gamma: Tensor) -> Tensor:
    """(1 + γ/2) x² / (γ/2 + x^(2+γ)), x = q/q_m: late stage of phase separation; 1 at its maximum q_m.

    γ is 6 for a critical mixture, whose domains interpenetrate, 4 for droplets. Source: Furukawa, Physica A 123 (1984)
    497.
    """
    x, g = q / peak[:, None], gamma[:, None]
    return (1 + g / 2) * x**2 / (g / 2 + x ** (2 + g))


def pseudo_voigt(q: Tensor, centre: Tensor, fwhm: Tensor, lorentzian: Tensor) -> Tensor:
    """A peak of height 1: a share of a Lorentzian, the rest a Gaussian of the same full width at half maximum."""
    t = ((q - centre[:, None]) / (fwhm[:, None] / 2)) ** 2
    return lorentzian[:, None] / (1 + t) + (1 - lorentzian[:, None]) * torch.exp(-math.log(2) * t)


def hard_spheres(q: Tensor, radius: Tensor, fraction: Tensor) -> Tensor:
    """Percus–Yevick structure factor of hard spheres of a radius and a volume fraction; 1 at large q."""
    f = fraction[:, None]
    x = (2 * q * radius[:, None]).clamp(min=0.05)
    a = (1 + 2 * f) ** 2 / (1 - f) ** 4
    b = -6 * f * (1 + f / 2) ** 2 / (1 - f) ** 4
    c = f * a / 2
    sin, cos = torch.sin(x), torch.cos(x)
    G = (
        a * (sin - x * cos) / x**2
        + b * (2 * x * sin + (2 - x**2) * cos - 2) / x**3
        + c * (-(x**4) * cos + 4 * ((3 * x**2 - 6) * cos + (x**3 - 6 * x) * sin + 6)) / x**5
    )
    return 1 / (1 + 24 * f * G / x)
