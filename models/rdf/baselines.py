"""What ours is measured against: sine transform, Lorch's window, radial basis functions, a long short-term memory.

RBF and LSTM are tried twice. Given F(q), as regressors to G(r), with the same curves to learn from as ours. And as
the WT-RDF+ paper defines them, from r to G on the points of ONE curve: there they are shown the answer and
interpolate it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from models.rdf.operators import Q_MAXIMA, R_OUT
from models.rdf.simulate import Q_STEP, Curves, Q
from streamer.reduce.pairs import lorch

Floats = NDArray[np.float64]

COARSE = 6
"""Points of F that the LSTM sees as one: 0.12 Å⁻¹ still resolves a sine wave of 20 Å."""
HIDDEN = 64
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
WIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the radial basis functions, in median distances between curves."""


def sine(F: Floats, q_max: float, *, window: str = "none") -> Floats:
    """G: (n, 400) of F: (n, 1226), by the sum alone; window "lorch" with Lorch's."""
    used = q_max + 1e-9 >= Q
    q = Q[used]
    weight = lorch(q, q_max) if window == "lorch" else np.ones_like(q)
    return (2 / np.pi) * Q_STEP * (F[:, used] * weight) @ np.sin(np.outer(q, R_OUT))


class Rbf:
    """Kernel ridge regression from F(q) to G(r) with Gaussian functions; width and ridge by five-fold validation."""

    def __init__(self, F: Floats, G: Floats, q_max: float) -> None:
        self._used = q_max + 1e-9 >= Q
        x = F[:, self._used][:, ::3]
        self._x, self._mean = x, G.mean(axis=0)
        distance = cdist(x, x)
        scale = float(np.median(distance))
        folds = np.arange(len(x)) % 5
        best = (np.inf, 1.0, 1e-3)
        for width in WIDTHS:
            K = np.exp(-((distance / (width * scale)) ** 2))
            for ridge in RIDGES:
                test = folds == 0
                A = np.linalg.solve(K[~test][:, ~test] + ridge * np.eye((~test).sum()), (G - self._mean)[~test])
                error = float(((K[test][:, ~test] @ A - (G - self._mean)[test]) ** 2).mean())
                best = min(best, (error, width, ridge))
        _, self._width, ridge = best
        self._width *= scale
        K = np.exp(-((distance / self._width) ** 2))
        self._A = np.linalg.solve(K + ridge * np.eye(len(x)), G - self._mean)

    def __call__(self, F: Floats) -> Floats:
        """G: (n, 400)."""
        K = np.exp(-((cdist(F[:, self._used][:, ::3], self._x) / self._width) ** 2))
        return self._mean + K @ self._A


class Lstm(nn.Module):
    """Reads F from the smallest q on, says G at the end. Points beyond q_max are 0 and marked so."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(2, HIDDEN, batch_first=True)
        self.head = nn.Sequential(nn.Linear(HIDDEN, 128), nn.ReLU(), nn.Linear(128, len(R_OUT)))

    def forward(self, F: Tensor, q_max: Tensor) -> Tensor:
        """F: (B, 1226), q_max: (B,) → G: (B, 400)."""
        q = torch.from_numpy(Q).float()
        used = (q <= q_max[:, None] + 1e-3).float()
        whole = len(Q) // COARSE * COARSE
        coarse = (F * used)[:, :whole].reshape(len(F), -1, COARSE).mean(2)
        seen = used[:, :whole:COARSE]
        states, _ = self.memory(torch.stack([coarse, seen], dim=2))
        G: Tensor = self.head(states[:, -1])
        return G


def train_lstm(curves: Curves, G: Floats, *, seed: int, steps: int, sigma_S: float) -> Lstm:
    """The LSTM after so many batches of 64, q_max at random, noise drawn anew for each."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    network = Lstm()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    F, truth = torch.from_numpy(curves.F).float(), torch.from_numpy(G).float()
    q, choices = torch.from_numpy(Q).float(), torch.tensor(Q_MAXIMA)
    for _ in range(steps):
        rows = torch.randint(len(F), (64,), generator=g)
        noisy = F[rows] + sigma_S * q * torch.randn(64, len(q), generator=g)
        q_max = choices[torch.randint(len(choices), (64,), generator=g)]
        loss = (network(noisy, q_max) - truth[rows]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return network.eval()


def on_points_rbf(r: Floats, G: Floats, shown: NDArray[np.bool_], *, width: float = 0.12) -> Floats:
    """The paper's RBF: Gaussians on the points shown of one curve, G at all of r."""
    K = np.exp(-((np.subtract.outer(r, r[shown]) / width) ** 2) / 2)
    return K @ np.linalg.solve(K[shown] + 1e-6 * np.eye(int(shown.sum())), G[shown])


def on_points_lstm(r: Floats, G: Floats, shown: NDArray[np.bool_], *, seed: int, steps: int = 1500) -> Floats:
    """The paper's LSTM: from r (in Å) to G along one curve, in both directions, learned where it is shown."""
    torch.manual_seed(seed)
    memory, head = nn.LSTM(1, HIDDEN, batch_first=True, bidirectional=True), nn.Linear(2 * HIDDEN, 1)
    x = torch.from_numpy(r[None, :, None]).float()
    scale = float(np.abs(G).max())
    y, rows = torch.from_numpy(G / scale).float(), torch.from_numpy(shown)
    optimiser = torch.optim.Adam([*memory.parameters(), *head.parameters()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        said = head(memory(x)[0])[0, :, 0]
        loss = (said - y)[rows].square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found: Floats = head(memory(x)[0])[0, :, 0].double().numpy() * scale
    return found
