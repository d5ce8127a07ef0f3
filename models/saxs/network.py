"""The SAXS networks: three convolutions and what physics says, a Bayesian head, and what goes into the two exports.

Every learned layer can be variational: Gaussian posterior (mean field), prior N(0, 1), local reparameterisation of
Kingma, Salimans and Welling (arXiv:1506.02557). The *faithful* network is so in all layers, the *fast* one in its last
two. For export the posterior is drawn from once: the draws are constants of the graph, which therefore has no random
operator and gives the same answer to the same curve on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from models.saxs import faults
from models.saxs.bank import Bank, Templates
from models.saxs.defects import CLASSES
from models.saxs.evidence import BANDS, FEATURES, HAS_REFERENCE, SCORES, Evidence
from streamer.reduce.reference import CHANNELS

CLASS_COUNT, FAULT_COUNT = len(CLASSES), len(faults.NAMES)
LOGITS = CLASS_COUNT + FAULT_COUNT + 1
"""Classes, faults, and whether the curve is of no known class."""
PARTS = (CLASS_COUNT, FAULT_COUNT, 1)
"""Of the logits."""
NORMAL, KNOWN = (0, 2, 3), (0, 2, 1)
"""Among the scores, what a normal frame is judged by, density, residual and reference distance; and what anything known
is: density, residual and strangeness."""
SEEN = len(CHANNELS) + 1
"""Rows the convolutions see: those of the curve, and what the bank leaves of it."""


class Layer(nn.Module):
    """A fully connected (kernel None) or convolutional layer, of fixed weights or of weights N(mean, σ²)."""

    def __init__(self, inputs: int, outputs: int, kernel: int | None = None, *, is_bayesian: bool = True) -> None:
        super().__init__()
        self.kernel, self.is_bayesian = kernel, is_bayesian
        shape = (outputs, inputs) if kernel is None else (outputs, inputs, kernel)
        self.mean = nn.Parameter(torch.randn(shape) * math.sqrt(2 / (inputs * (kernel or 1))))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if is_bayesian:
            self.rho = nn.Parameter(torch.full(shape, -5.0))

    def sigma(self) -> Tensor:
        return nn.functional.softplus(self.rho)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        if self.kernel is None:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv1d(x, weight, bias, padding=self.kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """While training one draw per row: the layer's output is Gaussian, so it is drawn rather than the weights.
        Otherwise the posterior's mean."""
        out = self.apply(x, self.mean, self.bias)
        if not (self.is_bayesian and self.training):
            return out
        variance = self.apply(x**2, self.sigma() ** 2, None)
        return out + (variance.clamp(min=0) + 1e-12).sqrt() * torch.randn_like(variance)

    def divergence(self) -> Tensor:
        """KL(posterior ‖ prior N(0, 1)), in nats."""
        if not self.is_bayesian:
            return torch.zeros(())
        sigma = self.sigma()
        return ((sigma**2 + self.mean**2 - 1) / 2 - sigma.log()).sum()

    def draws(self, n: int, g: Generator) -> Tensor:
        """(n, *weights)."""
        noise = torch.randn((n, *self.mean.shape), generator=g)
        return (self.mean + self.sigma() * noise).detach()


@dataclass(frozen=True)
class Widths:
    """Channels of the three convolutions, units of the embedding and of the hidden layer."""

    convolutions: tuple[int, int, int] = (24, 32, 48)
    embedding: int = 64
    hidden: int = 48


FAST = Widths()
FAITHFUL = Widths(convolutions=(16, 32, 32), embedding=48, hidden=32)
KERNELS, POOLS = (9, 5, 5), (4, 4, 2)
CHANNELS_AT_ONCE = 16
"""How many channels ONNX Runtime's fastest convolutions take at a time, and of images only: a curve is one of a single
row. With fewer, the fast graph takes 4 µs longer for one curve, and 6 µs for each of sixteen."""


class Network(nn.Module):
    """Curves (b, SEEN, 128) and features → logits of the classes, of the faults, and of being none of the classes.

    classes: which of CLASSES there are; the others' logits are −∞ in effect. is_faithful: all layers are variational.
    """

    def __init__(self, *, is_faithful: bool = False, classes: tuple[int, ...] = tuple(range(CLASS_COUNT))) -> None:
        super().__init__()
        widths = FAITHFUL if is_faithful else FAST
        self.is_faithful, self.widths, self.classes = is_faithful, widths, classes
        channels = (SEEN, *widths.convolutions)
        self.convolutions = nn.ModuleList(
            Layer(a, b, kernel, is_bayesian=is_faithful)
            for a, b, kernel in zip(channels[:-1], channels[1:], KERNELS, strict=True)
        )
        flat = widths.convolutions[-1] * 128 // math.prod(POOLS)
        self.embed = Layer(flat + FEATURES, widths.embedding, is_bayesian=is_faithful)
        self.hidden = Layer(widths.embedding, widths.hidden)
        self.output = Layer(widths.hidden, LOGITS)
        self.skip = nn.Parameter(torch.tensor(1.0))
        barred = torch.zeros(CLASS_COUNT)
        barred[[k for k in range(CLASS_COUNT) if k not in classes]] = -30.0
        self.register_buffer("barred", barred)
        with torch.no_grad():
            self.output.mean.mul_(0.1)

    def embedding(self, x: Tensor, features: Tensor) -> Tensor:
        for convolution, pool in zip(self.convolutions, POOLS, strict=True):
            x = nn.functional.max_pool1d(torch.relu(convolution(x)), pool)
        return torch.relu(self.embed(torch.cat((x.flatten(1), features), -1)))

    def head(self, embedding: Tensor, features: Tensor) -> Tensor:
        """(b, LOGITS): the physics' own log posterior is there from the start, the layers correct it."""
        out = self.output(torch.relu(self.hidden(embedding)))
        return self.with_physics(out, features)

    def with_physics(self, out: Tensor, features: Tensor) -> Tensor:
        classes = out[..., :CLASS_COUNT] + 4 * self.skip * features[..., :CLASS_COUNT] + self.barred
        return torch.cat((classes, out[..., CLASS_COUNT:]), -1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.head(self.embedding(x, features), features)

    def divergence(self) -> Tensor:
        return sum((layer.divergence() for layer in self.modules() if isinstance(layer, Layer)), torch.zeros(()))


@dataclass(frozen=True)
class Calibration:
    """What is fitted after training, on curves of its own.

    temperature: of the class logits and of the fault logits. means, factors: (k, e) and (k, e, e) of the Gaussians of
    the embedding, one for each class with and without a reference; factors are the inverse Cholesky factors,
    log_weights their log determinants. normal: (4, 2, KNOTS) −log10 p as a function of density, residual and reference
    distance and of their fusion, for normal frames with a reference; alone: (2, KNOTS) of density for those without.
    known: (4, 2, KNOTS) of density, residual, strangeness and their fusion, for curves of any class. bands:
    (BANDS + 1, 2, KNOTS) standard normal score of what is new in a band, and of the scale. See `surprise`.
    """

    temperature: tuple[float, float]
    means: Tensor
    factors: Tensor
    log_weights: Tensor
    normal: Tensor
    alone: Tensor
    known: Tensor
    bands: Tensor


KNOTS = 24


def identity(embedding: int) -> Calibration:
    """Before anything was fitted."""
    ramp = torch.linspace(0, 6, KNOTS)
    return Calibration(
        (1.0, 1.0),
        torch.zeros(1, embedding),
        torch.eye(embedding)[None],
        torch.zeros(1),
        torch.stack((ramp, ramp))[None].repeat(4, 1, 1),
        torch.stack((ramp, ramp)),
        torch.stack((ramp, ramp))[None].repeat(4, 1, 1),
        torch.stack((ramp, ramp))[None].repeat(BANDS + 1, 1, 1),
    )


def surprise(score: Tensor, table: Tensor) -> Tensor:
    """−log10 p of scores (b, n): piecewise linear between the knots of their tables (n, 2, KNOTS), flat outside."""
    return Tables(table)(score)


class Tables(nn.Module):
    """`surprise` by the same tables (n, 2, KNOTS) every time: how far a score is from one knot to the next is linear in
    it, between 0 and 1, and the answer is linear in that.

    asked: (n, m) which of m scores is looked up in each table; None, each its own. sums: (k, n) which sums of the
    tables' answers are wanted; None, each by itself.
    """

    def __init__(self, table: Tensor, asked: Tensor | None = None, sums: Tensor | None = None) -> None:
        super().__init__()
        x, y = table[:, 0], table[:, 1]
        asked, sums = (torch.eye(len(table)) if given is None else given for given in (asked, sums))
        steps = x.diff().clamp(min=1e-9)
        self.register_buffer("slopes", (asked[:, None] / steps[..., None]).flatten(0, 1))
        self.register_buffer("starts", -(x[:, :-1] / steps).flatten())
        self.register_buffer("rises", sums @ torch.block_diag(*y.diff()))
        self.register_buffer("least", sums @ y[:, 0])

    def forward(self, score: Tensor) -> Tensor:
        """(b, m) → (b, k)."""
        done = nn.functional.linear(score, self.slopes, self.starts).clamp(0, 1)
        return nn.functional.linear(done, self.rises, self.least)


def fuse(parts: Tensor) -> Tensor:
    """One surprise of several, (…, n) → (…): Cauchy combination of p-values (Liu and Xie, JASA 115 (2020) 393), which
    needs no independence. For small p, tan(π(½ − p)) = 1/(π p), so that it is the mean of the 1/p: for what any one
    score alone may find. What all of them see a little of is found by Fisher's sum, `add`."""
    return torch.logsumexp(parts * math.log(10), -1) / math.log(10) - math.log10(parts.shape[-1])


def add(parts: Tensor) -> Tensor:
    """Fisher's combination, Σ −log10 p, (…, n) → (…). The scores depend on each other: only its table makes it a p."""
    return parts.sum(-1)


class Exported(nn.Module):
    """What goes into model.onnx: physics, trunk, and `draws` frozen draws of the variational layers.

    (b, 8, 128) → classes, classes_sigma (b, 7): mean and standard deviation of the probabilities over the draws;
    faults, faults_sigma (b, 7); anomaly, anomaly_sigma (b,): that the class is not normal or a fault is there, where
    half of the samples are normal; total, aleatoric,
    epistemic (b,): entropy of the mean, mean of the entropies, their difference, nats; scores (b, 3): density, residual
    and reference distance; bands (b, 5): what is new there, and the scale, as standard
    normal scores; detectability (b,); surprise,
    surprise_known (b,): −log10 of the conformal p that a normal frame, or one of
    anything known, is as strange; embedding (b, e).
    """

    OUTPUTS = (
        "classes",
        "classes_sigma",
        "faults",
        "faults_sigma",
        "anomaly",
        "anomaly_sigma",
        "total",
        "aleatoric",
        "epistemic",
        "scores",
        "bands",
        "detectability",
        "surprise",
        "surprise_known",
        "embedding",
    )

    def __init__(
        self, network: Network, templates: Templates, *, draws: int, seed: int, calibration: Calibration | None = None
    ) -> None:
        super().__init__()
        g = Generator().manual_seed(seed)
        self.evidence, self.network, self.draws = Evidence(Bank(templates)), network.eval(), draws
        self.trunk_draws = network.is_faithful
        for k, layer in enumerate((*network.convolutions, network.embed) if self.trunk_draws else ()):
            drawn = layer.draws(draws, g)
            self.register_buffer(f"trunk_{k}", drawn.flatten(0, 1) if layer.kernel else drawn)
        blank = 0
        for k, layer in enumerate(() if self.trunk_draws else network.convolutions):
            before, blank = blank, -len(layer.bias) % CHANNELS_AT_ONCE
            weight = nn.functional.pad(layer.mean.detach(), (0, 0, 0, before, 0, blank))
            self.register_buffer(f"trunk_{k}", weight[:, :, None].contiguous())
            self.register_buffer(f"bias_{k}", nn.functional.pad(layer.bias.detach(), (0, blank)))
        for name in ("hidden", "output"):
            self.register_buffer(name, getattr(network, name).draws(draws, g).transpose(1, 2).contiguous())
        if not self.trunk_draws:
            # All draws see the same embedding: one product for all of them.
            self.hidden = self.hidden.transpose(0, 1).flatten(1).contiguous()
        self.register_buffer("hidden_bias", network.hidden.bias.detach().repeat(1 if self.trunk_draws else draws))
        # What physics adds to the logits is linear in the features.
        blank, every = torch.zeros(FEATURES, LOGITS), torch.eye(FEATURES)
        with torch.no_grad():
            offset = network.with_physics(blank, torch.zeros_like(every))
            self.register_buffer("physics", (network.with_physics(blank, every) - offset).T.contiguous())
            self.register_buffer("offset", offset[0] + network.output.bias)
        self.calibrate(calibration or identity(network.widths.embedding))

    def calibrate(self, calibration: Calibration) -> None:
        self.temperature = calibration.temperature
        # Of the Gaussians' exponents, −½ |factors (embedding − means)|².
        factors = calibration.factors / math.sqrt(2)
        self.register_buffer("whitening", factors.flatten(0, 1))
        self.register_buffer("centres", -(factors @ calibration.means[..., None]).flatten())
        self.register_buffer("log_weights", calibration.log_weights)
        self.register_buffer("squares", -torch.eye(len(factors)).repeat_interleave(factors.shape[1], 1))
        for name in ("normal", "alone", "known", "bands"):
            self.register_buffer(name, getattr(calibration, name))
        # Asked are density, residual and reference distance of normal frames; density of those without a reference;
        # what is known; bands and scale. `fuse` is done in natural logarithms, and `add` by the tables.
        tables = torch.cat((self.normal[:3], self.alone[None], self.known[:3], self.bands))
        asked = torch.tensor((*NORMAL, 0, *KNOWN, *range(4, 5 + BANDS)))
        sums = torch.block_diag(math.log(10) * torch.eye(3), torch.eye(1), torch.ones(1, 3), torch.eye(BANDS + 1))
        self.each = Tables(tables, nn.functional.one_hot(asked, 2 + SCORES).float(), sums)
        fused, added = self.normal[3], self.known[3]
        fused = torch.stack(((fused[0] + math.log10(3)) * math.log(10), fused[1]))
        self.together = Tables(torch.stack((fused, added)))

    def embeddings(self, x: Tensor, features: Tensor) -> Tensor:
        """(draws, b, e), or (b, e) where the trunk has no posterior."""
        network = self.network
        if not self.trunk_draws:
            x = x[:, :, None]
            for k, (kernel, pool) in enumerate(zip(KERNELS, POOLS, strict=True)):
                weight, bias = getattr(self, f"trunk_{k}"), getattr(self, f"bias_{k}")
                x = torch.relu(nn.functional.conv2d(x, weight, bias, padding=(0, kernel // 2)))
                x = nn.functional.max_pool2d(x, (1, pool))
            return torch.relu(network.embed(torch.cat((x.flatten(1), features), -1)))
        n = self.draws
        for k, (convolution, pool) in enumerate(zip(network.convolutions, POOLS, strict=True)):
            weight = getattr(self, f"trunk_{k}")
            groups = 1 if k == 0 else n
            x = nn.functional.conv1d(
                x, weight, convolution.bias.repeat(n), padding=convolution.kernel // 2, groups=groups
            )
            x = nn.functional.max_pool1d(torch.relu(x), pool)
        flat = x.unflatten(1, (n, -1)).flatten(2).transpose(0, 1)
        both = torch.cat((flat, features[None].expand(n, -1, -1)), -1)
        return torch.relu(both @ self.trunk_3.transpose(1, 2) + network.embed.bias)

    def logits(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """(draws, b, LOGITS)."""
        hidden = torch.relu(embeddings @ self.hidden + self.hidden_bias)
        if not self.trunk_draws:
            hidden = hidden.unflatten(-1, (self.draws, -1)).transpose(0, 1)
        return hidden @ self.output + nn.functional.linear(features, self.physics, self.offset)

    def density(self, embedding: Tensor) -> Tensor:
        """−ln of the Gaussians' density at an embedding, per dimension, (b, 1)."""
        whitened = nn.functional.linear(embedding, self.whitening, self.centres)
        exponents = nn.functional.linear(whitened.square(), self.squares, self.log_weights)
        return torch.logsumexp(exponents, -1, keepdim=True) / -embedding.shape[-1]

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (draws, b, LOGITS), embedding (b, e), scores (b, 2 + SCORES): density, strangeness, and what physics
        says (`Evidence`)."""
        features, left, scores = self.evidence(x)
        return self.judge(torch.cat((x, left), 1), features, scores)

    def judge(self, seen: Tensor, features: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`parts` of curves whose physics is known."""
        embeddings = self.embeddings(seen, features)
        embedding = embeddings.mean(0) if self.trunk_draws else embeddings
        logits = self.logits(embeddings, features)
        strangeness = logits.split(PARTS, -1)[2].mean(0)
        return logits, embedding, torch.cat((self.density(embedding), strangeness, scores), -1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, left, scores = self.evidence(x)
        logits, embedding, scores = self.judge(torch.cat((x, left), 1), features, scores)
        classes, faulty, _ = logits.split(PARTS, -1)
        p, f = torch.softmax(classes / self.temperature[0], -1), torch.sigmoid(faulty / self.temperature[1])
        any_of_it = 1 - half_normal(p[..., :1], (1 - f).prod(-1, keepdim=True))
        drawn = torch.cat((p, f, any_of_it), -1)
        mean = drawn.mean(0)
        spread = torch.linalg.vector_norm(drawn - mean, dim=0) / math.sqrt(self.draws)
        (classes, faulty, anomaly), sigmas = mean.split(PARTS, -1), spread.split(PARTS, -1)
        total, aleatoric = -_logarithm(classes).sum(-1), _logarithm(p).sum((0, 2)) / -self.draws
        normal, alone, known, bands = self.each(scores).split((3, 1, 1, BANDS + 1), -1)
        together = self.together(torch.cat((torch.logsumexp(normal, -1, keepdim=True), known), -1))
        return (
            classes,
            sigmas[0],
            faulty,
            sigmas[1],
            anomaly[:, 0],
            sigmas[2][:, 0],
            total,
            aleatoric,
            (total - aleatoric).clamp(min=0),
            scores.index_select(-1, torch.tensor(NORMAL)),
            bands,
            scores[:, -1],
            torch.where(features[:, HAS_REFERENCE] > 0, together[:, 0], alone[:, 0]),
            together[:, 1],
            embedding,
        )


def half_normal(p: Tensor, others: Tensor) -> Tensor:
    """Probability of the normal class where half of the samples are normal, times others: training draws all classes
    alike."""
    share = torch.tensor(1 / (CLASS_COUNT - 1))
    return others / (1 - share + share / p)


def _logarithm(p: Tensor) -> Tensor:
    """Summed over what p is the probability of, less the entropy."""
    return p * p.clamp(min=1e-12).log()
