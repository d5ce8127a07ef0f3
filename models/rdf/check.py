"""How far the boxes are from what is published of these glasses: distances and coordination numbers, pair by pair.

    python -m models.rdf.check [--json]

Published: Ge–Se 2.36–2.37 Å and N = 4 over the whole series (tetrahedra persist); silver by isotope substitution
(Zeidler et al., PubMed 29410843): Ag–Se 2.64(1) Å with N = 2.6(3) at x = 5 and 3.3(2) at x = 25, Ag–Ag 3.02(2) Å with
N = 1.9(2) at x = 25.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from models.rdf.shell import parabola
from models.rdf.simulate import COMPOSITIONS, box_of
from models.rdf.structure import STEP_A, Box, R, pair_counts

Floats = NDArray[np.float64]

CUTOFFS_A = {("Ge", "Se"): 3.0, ("Ge", "Ge"): 2.9, ("Se", "Se"): 2.75, ("Ag", "Se"): 3.2, ("Ag", "Ag"): 3.5}
"""Centre and neighbour, and to where neighbours count."""
PUBLISHED: dict[tuple[str, str], dict[int, tuple[float, float | None]]] = {
    ("Ge", "Se"): dict.fromkeys(COMPOSITIONS, (2.365, 4.0)),
    ("Ag", "Se"): {5: (2.64, 2.6), 25: (2.64, 3.3)},
    ("Ag", "Ag"): {25: (3.02, 1.9)},
}
"""Distance in Å and coordination number by atomic percent of silver."""
SMOOTHING_A = 0.04
"""Of the histogram: 50 frames leave a ripple that moves its highest bin by two bins."""
LEAST_N = 0.2
"""Fewer neighbours have no distance worth a number."""


@dataclass(frozen=True)
class Bond:
    """Of one kind of pair in one box; distance is where the smoothed histogram is highest, NaN without neighbours."""

    x: int
    pair: str
    distance_A: float
    N: float
    published_A: float | None
    published_N: float | None

    @property
    def is_longer_by_percent(self) -> float | None:
        return None if self.published_A is None else 100 * (self.distance_A / self.published_A - 1)


def bonds(box: Box, x: int) -> list[Bond]:
    """Every kind of pair that the box has."""
    found = []
    counts = pair_counts(box)
    number = {str(name): int((box.symbols == name).sum()) for name in np.unique(box.symbols)}
    for (centre, neighbour), cutoff in CUTOFFS_A.items():
        if centre not in number or neighbour not in number:
            continue
        histogram = counts[(min(centre, neighbour), max(centre, neighbour))][0]
        inside = np.where(cutoff > R, histogram, 0.0)
        N = inside.sum() * (2 if centre == neighbour else 1) / number[centre]
        smooth = gaussian_filter1d(inside, SMOOTHING_A / STEP_A)[None]
        distance = float(parabola(R, smooth, np.argmax(smooth, axis=1))[0][0]) if N > LEAST_N else float("nan")
        published = PUBLISHED.get((centre, neighbour), {}).get(x, (None, None))
        found.append(Bond(x, f"{centre}-{neighbour}", round(distance, 3), round(float(N), 2), *published))
    return found


def figures() -> dict[str, dict[str, float]]:
    """For the card: by box, how many percent a distance is longer and a number larger than published."""
    found: dict[str, dict[str, float]] = {}
    for x in COMPOSITIONS:
        for bond in bonds(box_of(x), x):
            if bond.is_longer_by_percent is None or bond.published_N is None:
                continue
            name = bond.pair.replace("-", "")
            found.setdefault(f"x_{x}", {})[f"{name}_longer_by_pct"] = bond.is_longer_by_percent
            found[f"x_{x}"][f"{name}_N_more_by_pct"] = 100 * (bond.N / bond.published_N - 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[Bond] = [bond for x in COMPOSITIONS for bond in bonds(box_of(x), x)]
    if arguments.json:
        print(json.dumps([asdict(row) | {"longer_by_percent": row.is_longer_by_percent} for row in rows]))
        return
    print(f"histograms smoothed with {SMOOTHING_A} Å; published values in brackets")
    for row in rows:
        distance = f"{row.distance_A:.2f} Å{_known(row.published_A)}" if row.distance_A > 0 else "too few"
        print(f"x = {row.x:2d}  {row.pair}  {distance}  N = {row.N:.2f}{_known(row.published_N)}")


def _known(value: Any) -> str:
    return "" if value is None else f" ({value:g})"


if __name__ == "__main__":
    main()
