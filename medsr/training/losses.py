"""Losses: of pixels, and of the two players in the adversarial game."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

import torch
from torch import Tensor
from torch.nn import functional

from medsr.scan import Factor

__all__ = [
    "Adversary",
    "Hinge",
    "LeastSquares",
    "Relativistic",
    "Standard",
    "adversary_of",
    "pixel_loss_of",
    "slope_loss",
]

Loss = Callable[[Tensor, Tensor], Tensor]


class Adversary(Protocol):
    """A game: what each player wants to be small, from the discriminator's logits of real and fake patches.

    Logits have any shape with the patches first; they are compared in float32 whatever the networks compute in.
    """

    @property
    def compares(self) -> bool:
        """Whether the generator's loss looks at the logits of real patches too."""
        ...

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What the discriminator minimizes; a scalar."""
        ...

    def g_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What the generator minimizes; a scalar."""
        ...


@dataclass(frozen=True, slots=True)
class Standard:
    """Binary cross-entropy, the generator's part non-saturating: max log D(G(z)) in place of min log(1 - D(G(z))).

    At the optimum both logits are 0 and `d_loss` is log 4 = 1.386.

    References:
        I. Goodfellow et al.: Generative adversarial nets, NIPS 2014, arXiv:1406.2661, equation 1 and section 3.
    """

    compares = False

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """-log D(x) - log(1 - D(G(z))), where D = sigmoid(logit)."""
        return _softplus(-real_logits) + _softplus(fake_logits)

    def g_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:  # noqa: ARG002
        """-log D(G(z))."""
        return _softplus(-fake_logits)


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Squared distance of the logits to 1 (real) and 0 (fake).

    References:
        X. Mao et al.: Least squares generative adversarial networks, ICCV 2017, doi:10.1109/ICCV.2017.304, equation 2
        with b = c = 1, a = 0.
    """

    compares = False

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """(D(x) - 1)^2 / 2 + D(G(z))^2 / 2."""
        return 0.5 * ((real_logits.float() - 1).square().mean() + fake_logits.float().square().mean())

    def g_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:  # noqa: ARG002
        """(D(G(z)) - 1)^2 / 2."""
        return 0.5 * (fake_logits.float() - 1).square().mean()


@dataclass(frozen=True, slots=True)
class Hinge:
    """Logits pushed beyond +1 (real) and -1 (fake), no further.

    References:
        J. H. Lim, J. C. Ye: Geometric GAN, 2017, arXiv:1705.02894; T. Miyato et al.: Spectral normalization for
        generative adversarial networks, ICLR 2018, arXiv:1802.05957, equations 16 and 17.
    """

    compares = False

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """max(0, 1 - D(x)) + max(0, 1 + D(G(z)))."""
        return functional.relu(1 - real_logits.float()).mean() + functional.relu(1 + fake_logits.float()).mean()

    def g_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:  # noqa: ARG002
        """-D(G(z))."""
        return -fake_logits.float().mean()


@dataclass(frozen=True, slots=True)
class Relativistic:
    """Whether a real patch looks more real than the average fake one, and the reverse.

    References:
        A. Jolicoeur-Martineau: The relativistic discriminator, ICLR 2019, arXiv:1807.00734, section 4.2; halved as in
        X. Wang et al.: ESRGAN, ECCVW 2018, doi:10.1007/978-3-030-11021-5_5, equations 1 and 2.
    """

    compares = True

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Mean of -log D(x | fakes) and -log(1 - D(G(z) | reals))."""
        real, fake = real_logits.float(), fake_logits.float()
        return 0.5 * (_softplus(fake.mean() - real) + _softplus(fake - real.mean()))

    def g_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Mean of -log D(G(z) | reals) and -log(1 - D(x | fakes)): the discriminator's with the roles exchanged."""
        return self.d_loss(fake_logits, real_logits)


def adversary_of(name: Literal["standard", "least_squares", "hinge", "relativistic"]) -> Adversary:
    """The game a recipe names."""
    match name:
        case "standard":
            return Standard()
        case "least_squares":
            return LeastSquares()
        case "hinge":
            return Hinge()
        case "relativistic":
            return Relativistic()
        case _:
            assert_never(name)


def pixel_loss_of(name: Literal["l1", "mse"], *, factor: Factor = (), slope_weight: float = 0.0) -> Loss:
    """Mean absolute or mean squared difference of two tensors of equal shape, in float32.

    Args:
        name: which.
        factor: of the method; slopes are compared along the axes it refines.
        slope_weight: weight of `slope_loss` beside it; 0: none.
    """
    difference = functional.l1_loss if name == "l1" else functional.mse_loss
    refined = tuple(axis for axis, f in enumerate(factor, start=2) if f > 1)

    def loss(estimate: Tensor, high: Tensor) -> Tensor:
        estimate, high = estimate.float(), high.float()
        pixels: Tensor = difference(estimate, high)
        return pixels + slope_weight * slope_loss(estimate, high, refined) if slope_weight and refined else pixels

    return loss


def slope_loss(estimate: Tensor, high: Tensor, axes: Sequence[int]) -> Tensor:
    """Mean absolute difference of the slopes of two tensors of equal shape, summed over axes.

    A slope is the difference of two neighboring samples, in unit intensity for each fine sample; a constant added to
    either tensor changes nothing. An axis of one sample has no slope.
    """
    off = estimate - high  # the difference of slopes is the slope of the difference
    return torch.stack([off.diff(dim=axis).abs().sum() / max(1, off.diff(dim=axis).numel()) for axis in axes]).sum()


def features_apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of activations, each layer relative to the mean size of the wanted ones.

    References:
        T.-C. Wang et al.: High-resolution image synthesis, CVPR 2018, doi:10.1109/CVPR.2018.00917, equation 4.
    """
    parts = [
        functional.l1_loss(f.float(), w.float()) / w.float().abs().mean().clamp_min(1e-6)
        for f, w in zip(found, wanted, strict=True)
    ]
    return torch.stack(parts).mean()


def _softplus(logits: Tensor) -> Tensor:
    """Mean of log(1 + exp(logits)) = -log(1 - sigmoid(logits)), without overflow."""
    return functional.softplus(logits.float()).mean()
