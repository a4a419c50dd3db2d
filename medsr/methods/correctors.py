"""Predictor and Corrector: which kernel code a patch shows, and how to change one that made a wrong estimate."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.sftmd import SLOPE

__all__ = ["Corrector", "Predictor"]

FAINT = 1e-8
"""Mean square of a feature, of patches whose spread is 1, below which it counts as none."""

DENSE = 32
"""Width of the predictor's dense layers."""

BANDS = 8
"""Bands of frequencies along each axis that predictor and corrector look at."""


class Predictor(nn.Module):
    """The first guess of a code from a coarse patch.

    The paper's five convolutions, a sixth that makes codes, and their mean over the patch. How wide a blur is shows in
    how much of each band of frequencies is left beside the others, which a mean of local codes finds slowly. Here dense
    layers make a code of the logarithms of mean squares over the patch: of each feature, and of bands of frequencies
    along each axis. Edges are repeated, and patches are standardized, so that neither gain nor offset matters.

    Args:
        dims: axes, 2 or 3.
        channels, features, code: 3, 64 and 10 in the paper.
        published: the paper's layers, 430,730 parameters, zeros beyond the edges, patches as they are.

    References:
        J. Gu et al., 2019, section 3.4 and figure 5, arXiv:1904.03377.
    """

    def __init__(
        self, dims: int, *, channels: int = 1, features: int = 64, code: int = 10, published: bool = False
    ) -> None:
        super().__init__()
        self.published = published
        self.layers = _convolutions(dims, channels, features, (1, 1, 1, 2, 1), zeros=published)
        if published:
            self.last: nn.Module = _wide(dims, features, code, 1, zeros=True)
        else:
            self.last = nn.Sequential(
                nn.Linear(features + BANDS * dims, DENSE), nn.LeakyReLU(SLOPE), nn.Linear(DENSE, DENSE),
                nn.LeakyReLU(SLOPE), nn.Linear(DENSE, code),
            )  # fmt: skip

    def forward(self, low: Tensor) -> Tensor:
        """(n, channels, *size) to (n, code)."""
        codes: Tensor
        if self.published:
            codes = self.last(self.layers(low))
            return codes.flatten(2).mean(2)
        patch = _standardized(low, low)
        codes = self.last(torch.cat([_energies(self.layers(patch)), _bands(patch)], 1))
        return codes


class Corrector(nn.Module):
    """What a code has to be changed by, from the estimate that was made with it: its ringing or blur tells.

    The paper joins features and code at every place, and takes the mean of local changes; here, as in `Predictor`, the
    logarithms of mean squares of features and bands are joined with the code.

    Args:
        dims: axes, 2 or 3.
        channels, features, code: 3, 64 and 10 in the paper.
        published: the paper's layers, 649,930 parameters, zeros beyond the edges, patches as they are.

    References:
        J. Gu et al., 2019, section 3.4 and figure 5, arXiv:1904.03377.
    """

    def __init__(
        self, dims: int, *, channels: int = 1, features: int = 64, code: int = 10, published: bool = False
    ) -> None:
        super().__init__()
        self.published = published
        self.layers = _convolutions(dims, channels, features, (1, 2, 1, 2, 1, 1, 1), zeros=published)
        self.dense = nn.Sequential(
            nn.Linear(code, features), nn.LeakyReLU(SLOPE), nn.Linear(features, features), nn.LeakyReLU(SLOPE)
        )
        one = (nn.Conv2d if dims == 2 else nn.Conv3d) if published else None
        seen = features if published else features + BANDS * dims
        widths = (seen + features, 2 * features, features, code)
        joined: list[nn.Module] = []
        for into, out in pairwise(widths):
            joined += [nn.Linear(into, out) if one is None else one(into, out, 1), nn.LeakyReLU(SLOPE)]
        self.joined = nn.Sequential(*joined[:-1])
        if not published:  # a new one changes little
            with torch.no_grad():
                self.joined[-1].get_parameter("weight").mul_(0.1)
                self.joined[-1].get_parameter("bias").zero_()

    def forward(self, estimate: Tensor, low: Tensor, code: Tensor) -> Tensor:
        """(n, channels, *fine), (n, channels, *size) and the codes (n, length) used, to their change (n, length)."""
        said = self.dense(code)
        change: Tensor
        if self.published:
            seen = self.layers(estimate)
            said = said.reshape(*said.shape, *[1] * (seen.ndim - 2)).expand(-1, -1, *seen.shape[2:])
            change = self.joined(torch.cat([seen, said], 1))
            return change.flatten(2).mean(2)
        patch = _standardized(estimate, low)
        change = self.joined(torch.cat([_energies(self.layers(patch)), _bands(patch), said], 1))
        return change


def _convolutions(dims: int, channels: int, features: int, strides: tuple[int, ...], *, zeros: bool) -> nn.Sequential:
    """Convolutions 5 wide, each with its LeakyReLU."""
    layers: list[nn.Module] = []
    for number, stride in enumerate(strides):
        layer = _wide(dims, features if number else channels, features, stride, zeros=zeros)
        nn.init.kaiming_normal_(layer.weight, a=SLOPE)
        layers += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def _energies(features: Tensor) -> Tensor:
    """Logarithm of the mean square of each feature, float32: (n, c, *size) to (n, c)."""
    return (features.float().square().flatten(2).mean(2) + FAINT).log()


def _bands(patch: Tensor) -> Tensor:
    """Logarithm of the power in bands of frequencies along each axis, float32: (n, c, *size) to (n, axes * BANDS)."""
    patch, bands = patch.float(), []
    for axis in range(2, patch.ndim):
        count = patch.shape[axis]
        window = torch.hann_window(count + 2, periodic=False, device=patch.device)[1:-1]
        window = window.reshape([-1 if a == axis else 1 for a in range(patch.ndim)])
        waves = torch.fft.rfft((patch - patch.mean(axis, keepdim=True)) * window, dim=axis)
        power = waves.abs().square().mean([a for a in range(1, patch.ndim) if a != axis]) / window.square().sum()
        power = functional.pad(power, (0, 1))  # none beyond the highest
        place = (torch.arange(BANDS, device=patch.device) + 0.5) / BANDS * (power.shape[1] - 2)
        first = place.floor().long()
        bands.append((torch.lerp(power[:, first], power[:, first + 1], place - first) + FAINT).log())
    return torch.cat(bands, 1)


def _standardized(image: Tensor, low: Tensor) -> Tensor:
    """The image less the mean of `low`, divided by its standard deviation, patch by patch."""
    axes = tuple(range(1, low.ndim))
    mean = low.mean(axes, keepdim=True)
    spread = (low - mean).square().mean(axes, keepdim=True).sqrt()
    return (image - mean) / spread.clamp(min=torch.finfo(spread.dtype).tiny ** 0.5)


def _wide(dims: int, into: int, out: int, stride: int, *, zeros: bool) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(into, out, 5, stride=stride, padding=2, padding_mode="zeros" if zeros else "replicate")
