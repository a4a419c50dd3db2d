"""Widths: a small network that says how far below and above an estimate the truth may lie; the pinball loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medsr.methods.coarse import Skip, checked_factor, convolution, start_
from medsr.methods.layers import convolve
from medsr.methods.shuffle import icnr_, pixel_shuffle
from medsr.scan import Factor

__all__ = ["SHARE", "Widths", "both_ends_loss", "pinball", "pixel_unshuffle"]

SHARE = 0.1
"""Of samples that are to lie outside of the intervals before any calibration, half of them on either side."""


class Widths(nn.Module):
    """Distances from an estimate down to its lower and up to its upper quantile, from the scan and the estimate.

    It sees the coarse scan and, moved to channels, the estimate's samples of each cell; all layers lie on the coarse
    grid. The first kernels sum to zero over all they see and nothing has a bias, so an offset of the scan changes
    nothing and the network's answer d grows with the contrast. Added to it is a floor, in quadrature, as independent
    noise adds:

        distance = sqrt(d**2 + floor**2)

    The two floors are learned and are the only thing that does not grow with the contrast. No distance is ever zero.

    Args:
        factor: refinement of the last axes; two entries make a 2D network, three a 3D one.
        features: channels of every layer.
        blocks: residual blocks of two layers.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.

    Raises:
        ValueError: a factor that is not two or three whole numbers with one above 1, or a count below 1.

    References:
        A. N. Angelopoulos et al., "Image-to-image regression with distribution-free uncertainty quantification and
        applications in imaging", 2022, quantile regression, arXiv:2202.05265.
    """

    def __init__(self, factor: Factor, *, features: int = 16, blocks: int = 2) -> None:
        super().__init__()
        if min(features, blocks) < 1:
            raise ValueError(f"Widths: expected at least 1 feature and 1 block, found {features} and {blocks}")
        self.factor = checked_factor(factor, "Widths")
        self.features, self.blocks = features, blocks
        dims, self.cells = len(self.factor), math.prod(self.factor)
        self.head = convolution(dims, 1 + self.cells, features, 3)
        self.body = nn.Sequential(
            nn.PReLU(),
            *(
                Skip(convolution(dims, features, features, 3), nn.PReLU(), convolution(dims, features, features, 3))
                for _ in range(blocks)
            ),
            nn.PReLU(),
        )
        self.tail = convolution(dims, features, 2 * self.cells, 3)
        self.log_floor = nn.Parameter(torch.full((2,), math.log(1e-3)))
        self.halo: tuple[int, ...] = (2 + 2 * blocks,) * dims
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights; all fine samples of a cell start from the same kernels."""
        start_(self.head.weight)
        for name, layer in self.body.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                start_(layer.weight).mul_(0.1 if name.endswith("layers.2") else 1.0)
        icnr_(self.tail.weight, self.factor, lambda one: start_(one, slope=1.0)).mul_(0.3)

    @property
    def floor(self) -> tuple[float, float]:
        """The smallest distance down and up, in the units of the scan it learned from."""
        down, up = self.log_floor.exp().tolist()
        return down, up

    @torch.no_grad()
    def set_floor(self, level: float) -> None:
        """Start the floors at `level`, above 0."""
        self.log_floor.fill_(math.log(level))

    def forward(self, low: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """Distances down and up, never 0, from the scan and its estimate.

        Args:
            low: (n, 1, *size), unit intensity.
            estimate: (n, 1, *size * factor).

        Returns:
            Two tensors (n, 1, *size * factor), in the units of `low`.
        """
        seen = torch.cat([low, pixel_unshuffle(estimate.to(low.dtype), self.factor)], 1)
        kernel = self.head.weight
        kernel = kernel - kernel.mean(dim=tuple(range(1, kernel.ndim)), keepdim=True)  # blind to the level
        features = self.body(convolve(seen, kernel, None))
        detail = pixel_shuffle(convolve(features, self.tail.weight, None), self.factor)
        floor = self.log_floor.exp().reshape(1, 2, *[1] * (detail.ndim - 2))
        distance = torch.hypot(detail, floor.expand_as(detail))
        return distance[:, :1], distance[:, 1:]

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"Widths({self.factor}, features={self.features}, blocks={self.blocks}), {count:,} parameters"


def pixel_unshuffle(fine: Tensor, factor: Factor) -> Tensor:
    """The inverse of `pixel_shuffle`: (n, c, *size * factor) to (n, c * prod(factor), *size)."""
    dims = len(factor)
    size = [n // f for n, f in zip(fine.shape[2:], factor, strict=True)]
    split = fine.reshape(*fine.shape[:2], *(k for pair in zip(size, factor, strict=True) for k in pair))
    order = (0, 1, *(3 + 2 * d for d in range(dims)), *(2 + 2 * d for d in range(dims)))
    return split.permute(order).reshape(fine.shape[0], fine.shape[1] * math.prod(factor), *size)


def pinball(quantile: Tensor, truth: Tensor, share: float) -> Tensor:
    """Mean pinball loss, least where `share` of the truth lies below `quantile`; tensors of one shape.

    References:
        R. Koenker, G. Bassett, "Regression quantiles", 1978, doi:10.2307/1913643.
    """
    above = truth - quantile
    return torch.maximum(share * above, (share - 1) * above).mean()


def both_ends_loss(widths: Widths, low: Tensor, estimate: Tensor, truth: Tensor, *, share: float = SHARE) -> Tensor:
    """Pinball loss of both ends: least where share / 2 of the truth lies below the lower and above the upper one.

    Args:
        widths: tells the distances of the ends from the estimate.
        low: (n, 1, *size).
        estimate, truth: (n, 1, *size * factor), in its units.
        share: of samples that are to lie outside.

    References:
        A. N. Angelopoulos et al., 2022, quantile regression, arXiv:2202.05265.
    """
    down, up = widths(low, estimate)
    return pinball(estimate - down, truth, share / 2) + pinball(estimate + up, truth, 1 - share / 2)
