"""Curves made the long way: expected counts of every pixel, Poisson images, `streamer.reduce`, the network's grid.

The shortcut in `simulate` draws one Poisson number per point of the grid. Here every pixel of every frame and of its
reference is one, and the images go through the reduction that runs at the beamline: what the shortcut leaves out (bins
without photons, their σ, the discrete pixels) is in these curves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from models.saxs.instruments import GRID, Instrument, onto_grid, smearing
from models.saxs.samples import Spheroids
from models.saxs.simulate import FLUX_STABILITY, Curves, Mix, Scene, simulate
from streamer.reduce.azimuthal import Integrator
from streamer.reduce.curves import rebin
from streamer.reduce.detector import Geometry

PIXEL_M, SHAPE, BINS = 300e-6, (300, 300), 400


@dataclass(frozen=True)
class Camera:
    """A detector at one distance: its integrator, and q of its pixels in nm⁻¹, (rows, columns)."""

    integrator: Integrator
    q: NDArray[np.float64]
    instrument: Instrument

    @classmethod
    def at(cls, distance_m: float, *, wavelength_A: float = 1.0) -> Camera:
        rows, columns = SHAPE
        geometry = Geometry(
            shape=SHAPE,
            pixel_size_m=(PIXEL_M, PIXEL_M),
            distance_m=distance_m,
            wavelength_A=wavelength_A,
            poni_m=(0.2 * rows * PIXEL_M, 0.3 * columns * PIXEL_M),
        )
        q = geometry.q()
        stop = float(np.hypot(3, 3) * PIXEL_M / distance_m * 20 * np.pi / wavelength_A)
        integrator = Integrator(
            geometry, bins=BINS, q_range=(stop, float(q.max())), polarization=None, solid_angle=False
        )
        profile = integrator.integrate(np.ones(SHAPE, np.uint32))
        response = onto_grid(
            torch.from_numpy(profile.q), torch.from_numpy(profile.pixels.astype(np.float64)), smearing(0.003, 0.002)
        )
        return cls(integrator, q, Instrument(*response))

    def image(self, I: NDArray[np.float32], photons_per_pixel: float, noise: np.random.Generator) -> NDArray[np.uint32]:
        """One exposure of a curve given at the measured points of the grid."""
        known = self.instrument.measured.numpy()
        expected = photons_per_pixel * np.interp(np.log(self.q), np.log(GRID[known]), I[known])
        return noise.poisson(np.maximum(expected, 0)).astype(np.uint32)


@dataclass(frozen=True)
class Photographed(Scene):
    """A scene whose curves are taken by a camera."""

    camera: Camera

    def measure(self, mean: Tensor, taken: Tensor | float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        noise = np.random.default_rng(int(torch.randint(0, 2**31, (), generator=self.g)))
        flux = torch.exp(FLUX_STABILITY * self._normal((len(self),))).numpy()
        point = int(torch.nonzero(self.instrument.measured)[0, 0])
        per_pixel = (self.norm[:, point] / self.instrument.pixels[point]).numpy()
        rows = []
        for k in range(len(self)):
            frame = self._reduced(mean[k].numpy(), per_pixel[k] * flux[k], noise)
            reference = self._reduced(self.truth[k].numpy(), per_pixel[k] * float(self.ratio[k]), noise)
            rows.append(
                [x / per_pixel[k] for x in frame] + [x / per_pixel[k] / float(self.ratio[k]) for x in reference]
            )
        I, sigma, I_ref, sigma_ref = (torch.from_numpy(np.stack(column)).float() for column in zip(*rows, strict=True))
        return I - taken, sigma, I_ref, sigma_ref

    def _reduced(
        self, I: NDArray[np.float32], per_pixel: float, noise: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        profile = self.camera.integrator.integrate(self.camera.image(I, per_pixel, noise))
        return rebin(profile.q, profile.intensity, profile.sigma, GRID, weight=profile.pixels.astype(np.float64))


def photograph(n: int, spheroids: Spheroids, g: Generator, camera: Camera, mix: Mix | None = None) -> Curves:
    """As `simulate.simulate`, pixel by pixel: some 10 ms a curve."""
    return simulate(n, spheroids, g, mix, scene=Photographed.draw(n, spheroids, camera.instrument, g, camera=camera))
