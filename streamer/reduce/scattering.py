"""What a sample scatters by itself: composition, form factors, Compton, neutron lengths, and the weight of every pair.

Tables. X-ray form factors f(q) are those of Brown, Fox, Maslen, O'Keefe and Willis (International Tables C, 6.1),
Compton intensities those of Hubbell et al. (1975), both from `glassure`; coherent neutron scattering lengths and
atomic masses come from `periodictable` (extra `rdf`). Of the tables at hand, `xraydb` brings no Compton and a
database engine, and `periodictable`'s form factors end at sin θ/λ = 2 Å⁻¹ (q = 25 Å⁻¹). Anomalous dispersion is left
out: do not measure within some hundred eV of an absorption edge of the sample.

⟨f⟩ = Σ cᵢ fᵢ(q), ⟨f²⟩ = Σ cᵢ fᵢ²(q), with atomic fractions cᵢ. The pair i–j weighs
w_ij = (2 − δ_ij) cᵢ cⱼ fᵢ fⱼ / ⟨f⟩² in the Faber–Ziman structure factor. q in Å⁻¹ throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamer.records import BadConfig, BadInput

__all__ = ["Composition", "Radiation", "Scattering", "pair_weights", "scattering_of"]

Floats = NDArray[np.float64]
Radiation = Literal["xray", "neutron"]

TABLE = "brown_hubbell"
AVOGADRO_A3 = 0.602214076
"""Atoms per mole times Å³ per cm³: (g/cm³) · this / (g/mol) = atoms/Å³. Exact in the SI of 2019."""

_FORMULA = re.compile(r"([A-Z][a-z]?)(\d+(?:\.\d+)?|\.\d+)?")


@dataclass(frozen=True)
class Composition:
    """Atomic fractions by element symbol; they sum to 1."""

    fractions: Mapping[str, float]

    @classmethod
    def parse(cls, formula: str | Mapping[str, float]) -> Composition:
        """ "Ge25Se75", "Mg2SiO4", "Ag5Ge23.75Se71.25", or symbol → amount; any scale. Raises BadInput."""
        amounts: dict[str, float] = {}
        if isinstance(formula, str):
            rest = _FORMULA.sub("", formula).strip()
            if rest or not formula:
                raise BadInput(
                    f"composition: found {formula!r}, expected element symbols and amounts such as 'Ge25Se75'"
                )
            for symbol, amount in _FORMULA.findall(formula):
                amounts[symbol] = amounts.get(symbol, 0.0) + float(amount or 1)
        else:
            amounts = {symbol: float(amount) for symbol, amount in formula.items()}
        total = sum(amounts.values())
        if not amounts or min(amounts.values()) < 0 or not 0 < total < np.inf:
            raise BadInput(f"composition: found {formula!r}, expected positive amounts of one element or more")
        table = _periodic_table()
        for symbol in amounts:
            if not hasattr(table, symbol):
                raise BadInput(f"composition: found {symbol!r} in {formula!r}, which is no element symbol")
        return cls({symbol: amount / total for symbol, amount in amounts.items() if amount > 0})

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(self.fractions)

    @cached_property
    def molar_mass(self) -> float:
        """g/mol of atoms."""
        table = _periodic_table()
        return float(sum(c * getattr(table, symbol).mass for symbol, c in self.fractions.items()))

    def number_density(self, g_per_cm3: float) -> float:
        """Atoms per Å³."""
        return g_per_cm3 * AVOGADRO_A3 / self.molar_mass

    def __str__(self) -> str:
        return "".join(f"{symbol}{100 * c:.4g}" for symbol, c in self.fractions.items())


@dataclass(frozen=True)
class Scattering:
    """Of one atom on the average, on q: (n,) each, in electrons² (X-rays) or fm² (neutrons).

    f: (elements, n) in electrons or fm.   mean_squared: ⟨f⟩².   squared_mean: ⟨f²⟩.   compton: inelastic intensity.
    """

    q: Floats
    f: Floats
    mean_squared: Floats
    squared_mean: Floats
    compton: Floats


def scattering_of(composition: Composition, q: Floats, radiation: Radiation) -> Scattering:
    """What the composition scatters. q: (n,) Å⁻¹. For neutrons f is constant and there is no Compton scattering.

    Raises BadInput for an element that the table does not hold, BadConfig when the tables are not installed.
    """
    q = np.asarray(q, dtype=np.float64)
    c = np.array(list(composition.fractions.values()))[:, None]
    if radiation == "neutron":
        table = _periodic_table()
        lengths = [getattr(table, symbol).neutron.b_c for symbol in composition.symbols]
        if None in lengths:
            unknown = composition.symbols[lengths.index(None)]
            raise BadInput(f"scattering: the neutron scattering length of {unknown} is not known")
        f = np.array(lengths, dtype=np.float64)[:, None] * np.ones_like(q)
        compton = np.zeros_like(q)
    else:
        xray = _xray_tables()
        for symbol in composition.symbols:
            if symbol not in xray.elements:
                raise BadInput(f"scattering: no X-ray form factor of {symbol} in {TABLE} (glassure)")
        f = np.array([xray.get_coherent_scattering_factor(symbol, q) for symbol in composition.symbols])
        compton = (c * np.array([xray.get_incoherent_intensity(symbol, q) for symbol in composition.symbols])).sum(
            axis=0
        )
    return Scattering(q, f, (c * f).sum(axis=0) ** 2, (c * f**2).sum(axis=0), compton)


def pair_weights(composition: Composition, q: Floats, radiation: Radiation) -> dict[tuple[str, str], Floats]:
    """Faber–Ziman weight of every kind of pair on q: (i, j) → (n,); they sum to 1 at every q."""
    found = scattering_of(composition, q, radiation)
    f = dict(zip(composition.symbols, found.f, strict=True))
    c = composition.fractions
    return {
        (i, j): (1 if i == j else 2) * c[i] * c[j] * f[i] * f[j] / found.mean_squared
        for i, j in combinations_with_replacement(composition.symbols, 2)
    }


def _xray_tables() -> Any:
    try:
        from glassure.scattering_factors import get_calculator
    except ImportError as error:
        raise BadConfig(f"rdf: the tables need glassure ({error}): pip install 'streamer[rdf]'") from error
    return get_calculator(TABLE)


def _periodic_table() -> Any:
    try:
        import periodictable
    except ImportError as error:
        raise BadConfig(f"rdf: the tables need periodictable ({error}): pip install 'streamer[rdf]'") from error
    return periodictable
