"""The amplitude branch: linear operators from F(q) to G(r), learned from curves, each with its posterior.

A set of curves gives means and covariances of y = (F/q, c·ρ₀) and of G. In y, counting noise is the same everywhere:
σ_S. With the principal directions P of y and their variances S²,

    E[G | y]   = m_G + Γ (Pᵀ(y − m_y)) / (S² + s²)           Γ = Cov(G, Pᵀy),  s = σ_S
    Var[G | y] = Var[G] − Γ² / (S² + s²)
    log p(y)   = −½ [ Σ z²/(S² + s²) + |rest|²/s² + Σ log(1 + S²/s²) ] + …

which is the linear minimum-mean-square-error estimate and, for Gaussian curves, the posterior: exact at every noise
level with one set of matrices. One Gaussian cannot be both narrow enough to be accurate and broad enough to be safe, so
there are several: the family the boxes are of, and the broad prior cut by the distance of its first shell. They are
weighed by p(y).

All of it is of one q_max; `network.Bank` holds several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.rdf.simulate import Curves, Q
from models.rdf.structure import R, sines

Floats = NDArray[np.float64]

R_OUT = np.round(np.arange(0.025, 10.0 + 0.0125, 0.025), 10)
"""(400,) Å, what the model answers on: a quarter of the narrowest peak's width."""
Q_MAXIMA = (12.0, 16.0, 20.0, 25.0)
"""Å⁻¹: a measurement is cut at the largest of these that it reaches."""
DENSITY_GAIN = 25.0
"""Brings ρ₀ beside F/q: with σ_S = 0.01 it counts as known to 0.0004 atoms/Å³, one percent, as densities are."""
BASIS_A = 11.0
"""The basis holds every sine wave of F up to this distance, so that nothing below 10 Å is lost in it."""
NULL = 1e-3
"""Part of the largest eigenvalue below which a direction of the basis does not exist on a shorter q range."""
LEAST_SIGNAL = 4e-3
"""Standard deviation in S below which a direction of the curves is left out: less than half the noise of a frame."""
EDGES_A = (1.45, 1.9, 2.35, 2.8, 3.3)
"""Of the broad prior's classes, by the distance of the first shell."""


@dataclass(frozen=True)
class Gaussian:
    """One operator at one q_max.

    mean_y: (M_Q,).   mean_G: (400,).   P: (M_Q, m).   S2: (m,).   gamma: (400, m).
    spread: (400, L), spread·spreadᵀ = Cov(G).
    """

    mean_y: Floats
    mean_G: Floats
    P: Floats
    S2: Floats
    gamma: Floats
    spread: Floats


@cache
def basis() -> Floats:
    """(1227, M), orthonormal: all sine waves of y up to `BASIS_A`, and the density."""
    waves = sines(Q)[:, R <= BASIS_A] / Q[:, None]
    waves /= np.linalg.norm(waves, axis=0)
    U, S, _ = np.linalg.svd(waves, full_matrices=False)
    found = np.zeros((Q.size + 1, int((NULL * S[0] < S).sum()) + 1))
    found[:-1, :-1] = U[:, : found.shape[1] - 1]
    found[-1, -1] = 1
    return found


@cache
def to_range(q_max: float) -> Floats:
    """(M, M_Q): from coordinates in `basis` of a y that is 0 beyond q_max to orthonormal ones."""
    B = basis()[_inside(q_max)]
    L, V = np.linalg.eigh(B.T @ B)
    kept = NULL * L[-1] < L
    found: Floats = V[:, kept] / np.sqrt(L[kept])
    return found


def _inside(q_max: float) -> NDArray[np.bool_]:
    """Which elements of y belong to a measurement up to q_max."""
    return np.append(q_max + 1e-9 >= Q, True)


def data_vector(F: Floats, density: Floats, q_max: float) -> Floats:
    """y: (n, 1227), 0 beyond q_max."""
    return np.concatenate([F / Q, DENSITY_GAIN * density[:, None]], axis=1) * _inside(q_max)


def fit_gaussian(one: Curves, q_max: float) -> Gaussian:
    """The operator that the curves of one set make."""
    y = data_vector(one.F, one.density, q_max) @ basis() @ to_range(q_max)
    G = on_output(one.G)
    n = len(y)
    mean_y, mean_G = y.mean(axis=0), G.mean(axis=0)
    U, S, V = np.linalg.svd((y - mean_y) / np.sqrt(n - 1), full_matrices=False)
    kept = S > LEAST_SIGNAL
    gamma = ((G - mean_G).T / np.sqrt(n - 1)) @ U[:, kept] * S[kept]
    T2, W = np.linalg.eigh((G - mean_G).T @ (G - mean_G) / (n - 1))
    strong = 1e-4 * T2[-1] < T2
    return Gaussian(mean_y, mean_G, V[kept].T, S[kept] ** 2, gamma, W[:, strong] * np.sqrt(T2[strong]))


def on_output(G: Floats) -> Floats:
    """Curves on `structure.R` at the points of `R_OUT`: (n, 1000) → (n, 400), cubic between points."""
    index = np.clip((R_OUT / R[0] - 1).astype(int), 1, R.size - 3)
    t = (R_OUT - R[index]) / R[0]
    a, b, c, d = (G[..., index + k] for k in (-1, 0, 1, 2))
    value = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    # Below the second point there is nothing before: G is odd and straight there.
    return np.where(2 * R[0] > R_OUT, G[..., :1] * (R_OUT / R[0]), value)


@dataclass(frozen=True)
class Estimate:
    """Of n curves by K operators: mixed G and σ (n, 400), weights (n, K), and what each operator finds unlikely (n, K):

    surprise: Σ z²/(S² + s²), with its degrees of freedom m.   rest: |what no curve of the set has|²/s², with its own.
    """

    G: Floats
    sigma: Floats
    weight: Floats
    surprise: Floats
    rest: Floats


def estimate(gaussians: Sequence[Gaussian], F: Floats, density: Floats, sigma_S: float, q_max: float) -> Estimate:
    """In float64 what `network.Bank` does in float32."""
    y = data_vector(F, density, q_max)
    coordinates = y @ basis() @ to_range(q_max)
    outside = (y**2).sum(axis=1) - (coordinates**2).sum(axis=1)
    s2 = sigma_S**2
    means, variances, evidence, surprise, rests = [], [], [], [], []
    for one in gaussians:
        centred = coordinates - one.mean_y
        z = centred @ one.P
        shrink = 1 / (one.S2 + s2)
        means.append(one.mean_G + (z * shrink) @ one.gamma.T)
        variances.append(np.maximum((one.spread**2).sum(axis=1) - one.gamma**2 @ shrink, 0) * np.ones((len(y), 1)))
        rests.append(((centred**2).sum(axis=1) - (z**2).sum(axis=1) + outside) / s2)
        surprise.append((z**2) @ shrink)
        evidence.append(-0.5 * (surprise[-1] + rests[-1] + np.log1p(one.S2 / s2).sum()))
    log_p = np.stack(evidence, axis=1)
    weight = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    weight *= weight >= np.sort(weight, axis=1)[:, -2:-1]  # two are mixed, as in the network
    weight /= weight.sum(axis=1, keepdims=True)
    mean = sum(weight[:, k, None] * means[k] for k in range(len(means)))
    second = sum(weight[:, k, None] * (variances[k] + means[k] ** 2) for k in range(len(means)))
    sigma = np.sqrt(np.maximum(second - mean**2, 0))
    return Estimate(mean, sigma, weight, np.stack(surprise, axis=1), np.stack(rests, axis=1))
