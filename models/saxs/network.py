"""The first SAXS network: three convolutions find features in a curve, a Bayesian head says how sure it is.

The head's weights have a Gaussian posterior (mean field, prior N(0, 1)), learned with the local reparameterisation of
Kingma, Salimans and Welling (arXiv:1506.02557). For export the posterior is drawn from once: the draws are constants of
the graph, which therefore has no random operator and gives the same answer to the same curve on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from streamer.reduce.curves import CHANNELS, SIGNAL_SCALE


class BayesianLinear(nn.Module):
    """A fully connected layer whose weights are N(mean, σ²), σ = softplus(rho)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.rho = nn.Parameter(torch.full((outputs, inputs), -5.0))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def sigma(self) -> Tensor:
        return nn.functional.softplus(self.rho)

    def forward(self, x: Tensor) -> Tensor:
        """One draw per row: the layer's output is Gaussian, so it is drawn rather than the weights."""
        variance = nn.functional.linear(x**2, self.sigma() ** 2)
        return nn.functional.linear(x, self.mean, self.bias) + (variance + 1e-12).sqrt() * torch.randn_like(variance)

    def divergence(self) -> Tensor:
        """KL(posterior ‖ prior N(0, 1)), in nats."""
        sigma = self.sigma()
        return ((sigma**2 + self.mean**2 - 1) / 2 - sigma.log()).sum()

    def draws(self, n: int, g: Generator) -> Tensor:
        """(n, outputs, inputs)."""
        noise = torch.randn((n, *self.mean.shape), generator=g)
        return (self.mean + self.sigma() * noise).detach()


class Curvature(nn.Module):
    """(b, 5, 256) → (b, 9, 256): adds how significantly log I is curved at four widths.

    At a width of k bins, log I is averaged over k bins with weights 1/σ², and the second difference of neighbouring
    averages is divided by its uncertainty: asinh z × 0.3, 0 where one of the three averages was not measured. Whether a
    bend is real is a matter of σ, and dividing by it is what convolutions learn slowly; nothing here is learned.
    """

    WIDTHS = (1, 3, 9, 27)

    def forward(self, x: Tensor) -> Tensor:
        log_I, measured = x[:, 0:1], x[:, 2:3]
        significance = torch.sinh(x[:, 1:2] / SIGNAL_SCALE).clamp(1e-2, 3e3)
        weight = measured * (significance * math.log(10)) ** 2
        return torch.cat((x, *(self._at(width, log_I, weight) for width in self.WIDTHS)), dim=1)

    def _at(self, width: int, log_I: Tensor, weight: Tensor) -> Tensor:
        total = _box(weight, width)
        mean = _box(weight * log_I, width) / total.clamp(min=1e-9)
        variance = 1 / total.clamp(min=1e-6)
        left, middle, right = slice(None, -2 * width), slice(width, -width), slice(2 * width, None)
        bend = mean[..., left] - 2 * mean[..., middle] + mean[..., right]
        error = (variance[..., left] + 4 * variance[..., middle] + variance[..., right]).sqrt()
        lowest = torch.minimum(torch.minimum(total[..., left], total[..., middle]), total[..., right])
        z = torch.where(lowest > 1e-6, torch.asinh(bend / error), 0.0)
        return 0.3 * nn.functional.pad(z, (width, width))


def _box(x: Tensor, width: int) -> Tensor:
    """Sum over `width` bins, an odd number."""
    padded = nn.functional.pad(x, (width // 2, width // 2))
    return nn.functional.avg_pool1d(padded, width, stride=1) * width


class Network(nn.Module):
    """(b, 5, 256) → (b,) logit of "anomalous"."""

    HIDDEN = 32

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            Curvature(),
            *_block(len(CHANNELS) + len(Curvature.WIDTHS), 32, kernel=9, pool=4),
            *_block(32, 64, kernel=5, pool=4),
            *_block(64, 64, kernel=5, pool=2),
            nn.Flatten(),
        )
        self.hidden = BayesianLinear(64 * 8, self.HIDDEN)
        self.output = BayesianLinear(self.HIDDEN, 1)
        with torch.no_grad():  # the reference channels are not learned yet: what they say must change nothing
            self.trunk[1].weight[:, 3:5] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.relu(self.hidden(self.trunk(x))))[:, 0]

    def divergence(self) -> Tensor:
        return self.hidden.divergence() + self.output.divergence()


def _block(inputs: int, outputs: int, *, kernel: int, pool: int) -> list[nn.Module]:
    convolution = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
    return [convolution, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(pool)]


class Exported(nn.Module):
    """What goes into model.onnx: the trunk and `draws` frozen draws of the head.

    (b, 5, 256) → anomaly (b,): mean probability over the draws; sigma (b,): its standard deviation over the draws, the
    uncertainty of the network about itself; entropy (b,): −Σ p ln p of the mean probability, nats, the whole
    uncertainty. temperature: divides the logits.
    """

    def __init__(self, network: Network, *, draws: int, seed: int, temperature: float = 1.0) -> None:
        super().__init__()
        g = Generator().manual_seed(seed)
        self.trunk = network.trunk
        hidden = network.hidden.draws(draws, g)
        self.register_buffer("hidden", hidden.flatten(0, 1).T.contiguous())
        self.register_buffer("hidden_bias", network.hidden.bias.detach().clone())
        self.register_buffer("output", network.output.draws(draws, g)[:, 0])
        self.register_buffer("output_bias", network.output.bias.detach().clone())
        self.draws, self.temperature = draws, temperature

    def logits(self, x: Tensor) -> Tensor:
        """(b, draws), before they are divided by the temperature."""
        features = (self.trunk(x) @ self.hidden).unflatten(-1, (self.draws, -1)) + self.hidden_bias
        return (torch.relu(features) * self.output).sum(-1) + self.output_bias

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = torch.sigmoid(self.logits(x) / self.temperature)
        mean = p.mean(-1)
        sigma = (p - mean[:, None]).square().mean(-1).sqrt()
        safe = mean.clamp(1e-7, 1 - 1e-7)
        return mean, sigma, -safe * safe.log() - (1 - safe) * (1 - safe).log()
