"""CoarseNetwork: convolutions on the coarse grid, then one step to the fine one; what the small networks share."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.interpolation import interpolate, reach
from medsr.methods.layers import Frozen, Interpolated, Plus, Shuffle, convolve, frozen, leaky
from medsr.methods.network import Network
from medsr.methods.shuffle import icnr_, pixel_shuffle
from medsr.precision import float32_only
from medsr.scan import Factor, validate_factor
from medsr.stages import Stages

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = [
    "CoarseNetwork",
    "Convolution",
    "Deconvolution",
    "Skip",
    "SubPixel",
    "checked_factor",
    "convolution",
    "start_",
]

Convolution = nn.Conv2d | nn.Conv3d


class CoarseNetwork(Network):
    """A first convolution, layers, and the step to the fine grid; all but that step at the coarse resolution.

    With `residual` the result is added to a cubic interpolation and the kernels of the first convolution sum to zero.
    If no layer has a bias and each activation is proportional to its input, then for every gain a > 0 and offset b

        network(a * low + b) == a * network(low) + b

    up to rounding, whatever the weights. Edges are replicated. Under autocast the layers between run in half
    precision; the first convolution, the last one and the sum stay in float32.

    Args:
        factor: refinement of the last axes, two or three.
        head: the first convolution, odd widths.
        body: what follows: activations, convolutions and `Skip`; its input and output have the channels of head and
            tail.
        tail: the step to the fine grid.
        residual: see above; False: the output is that of the tail alone, and the first kernels are free.
    """

    def __init__(
        self, factor: Factor, *, head: Convolution, body: nn.Sequential, tail: SubPixel | Deconvolution, residual: bool
    ) -> None:
        super().__init__()
        self.factor, self.residual = factor, residual
        self.head, self.body, self.tail = head, body, tail
        within = sum(_reach(layer) for layer in body)
        self.halo = tuple(head.kernel_size[0] // 2 + within + r for r in tail.reach)

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself: the network needs to know nothing of the scan."""
        return self

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32."""
        low = low.to(torch.promote_types(self.head.weight.dtype, torch.float32))
        with float32_only(low.device):
            bias = None if self.head.bias is None else self.head.bias.to(low.dtype)
            features = convolve(low, self._first_kernel(low.dtype), bias)
        features = self.body(features)
        with float32_only(low.device):
            detail = pixel_shuffle(convolve(features.to(low.dtype), *self.tail.folded(low.dtype)), self.factor)
        return detail + interpolate(low, self.factor, kind="cubic") if self.residual else detail

    def _first_kernel(self, dtype: torch.dtype) -> Tensor:
        """The first kernels as they are used: blind to the level where an interpolation carries it."""
        kernel = self.head.weight.to(dtype)
        return kernel - kernel.mean(dim=tuple(range(2, kernel.ndim)), keepdim=True) if self.residual else kernel

    @torch.no_grad()
    def stages(self, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:
        """The network as it is now, cut for an engine.

        The layers are its body; where they change the number of channels, which a body does not, they are its rise.

        Args:
            edges: as in `medsr.upscaler.Staged`.
            gain, offset: the stages make `(network(low * gain + offset) - offset) / gain`, at the same cost.
        """
        kernel, bias = self._first_kernel(torch.float32), self.head.bias
        if offset and not self.residual:  # where an interpolation carries the level, the kernels do not see it
            seen = kernel.flatten(1).sum(1) * offset
            bias = seen if bias is None else bias + seen
        first, *rest = self.body  # an activation, which the entry takes so that half precision meets less of the level
        entry = nn.Sequential(Frozen(kernel * gain, bias, edges=edges), _still(first, edges=edges))
        layers = nn.Sequential(*(_still(layer, edges=edges) for layer in rest))
        kernel, bias = self.tail.folded(torch.float32)
        bias = None if bias is None else bias / gain
        if offset and not self.residual:
            level = kernel.new_full(kernel.shape[:1], -offset / gain)
            bias = level if bias is None else bias + level
        last = nn.Sequential(Frozen(kernel / gain, bias, edges=edges), Shuffle(self.factor))
        base = Interpolated(self.factor) if self.residual else None
        halo = tuple(map(max, self.tail.reach, reach(self.factor))) if self.residual else self.tail.reach
        if self.head.out_channels == kernel.shape[1]:
            return Stages(entry, layers, nn.Identity(), last, base, halo)
        within = sum(_reach(layer) for layer in rest)  # a body keeps the channels; these are few layers
        wide = tuple(max(r + within, h) for r, h in zip(self.tail.reach, halo, strict=True))
        return Stages(entry, nn.Identity(), layers, last, base, wide)


class Skip(nn.Module):
    """What `layers` make of their input, plus the input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(n, c, *size) to the same shape."""
        change: Tensor = self.layers(features)
        return features + change


class SubPixel(nn.Module):
    """A convolution to one channel for each fine sample of a cell, for the shuffle that follows.

    Args:
        factor: of the shuffle.
        features: channels of the input.
        width: of the kernel, odd.
        bias: one for each fine sample of a cell.

    Attributes:
        reach: coarse samples of context, one an axis.

    References:
        W. Shi et al., 2016, equations 3 and 4, doi:10.1109/CVPR.2016.207.
    """

    def __init__(self, factor: Factor, features: int, width: int = 3, *, bias: bool) -> None:
        super().__init__()
        self.factor, self.reach = factor, (width // 2,) * len(factor)
        cells = math.prod(factor)
        self.weight = nn.Parameter(torch.empty(cells, features, *(width,) * len(factor)))
        self.bias = nn.Parameter(torch.zeros(cells)) if bias else None

    @torch.no_grad()
    def start_(self, scale: float) -> None:
        """Draw new weights: all fine samples of a cell from the same kernel."""
        icnr_(self.weight, self.factor, lambda one: start_(one, slope=1.0)).mul_(scale)

    def folded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Kernel (prod(factor), features, *widths) and bias (prod(factor),) of the convolution before the shuffle."""
        return self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)


class Deconvolution(nn.Module):
    """A transposed convolution with a stride of the factor: each coarse sample adds its kernel to the fine grid.

    Fine sample s * n + p gets, of coarse sample n + d, the tap c + p - s * d of the kernel, where tap c falls on the
    first fine sample of the cell. That is a convolution over cells, to a channel for each p, and a shuffle: the same
    sums, without the zeros between samples.

    Args:
        factor: stride, one an axis.
        features: channels of the input.
        widths: of the kernel, one an axis.
        first: the tap c, one an axis; None: the kernel's center lies on the center of its cell. Then the samples lie
            where the grid says, for which kernel and factor must both be odd or both even.
        bias: one for all.

    Attributes:
        reach: coarse samples of context, one an axis.

    Raises:
        ValueError: a kernel that cannot be centered on a cell, or that leaves out fine samples.

    References:
        C. Dong et al., 2016, section 3.2, arXiv:1608.00367.
    """

    def __init__(
        self,
        factor: Factor,
        features: int,
        widths: tuple[int, ...],
        *,
        first: tuple[int, ...] | None = None,
        bias: bool,
    ) -> None:
        super().__init__()
        if first is None and any(k < s or (k - s) % 2 for k, s in zip(widths, factor, strict=True)):
            raise ValueError(
                f"Deconvolution: expected widths of at least the factor, odd where it is odd and even where it is "
                f"even, so that kernels are centered on cells; found widths {widths} and factor {factor}"
            )
        self.factor = factor
        self.first = first or tuple((k - s) // 2 for k, s in zip(widths, factor, strict=True))
        each = list(zip(self.first, widths, factor, strict=True))
        self.reach = tuple(max((c + s - 1) // s, (k - 1 - c) // s) for c, k, s in each)
        self.weight = nn.Parameter(torch.empty(features, 1, *widths))
        self.bias = nn.Parameter(torch.zeros(1)) if bias else None

    @torch.no_grad()
    def start_(self, scale: float) -> None:
        """Draw new weights: each coarse sample is repeated over its cell."""
        self.weight.zero_()
        cell = self.weight.detach()  # the taps that fall on the cell of the coarse sample itself
        for axis, (c, s) in enumerate(zip(self.first, self.factor, strict=True), start=2):
            cell = cell.narrow(axis, c, s)
        one = start_(torch.empty(1, self.weight.shape[0], *(1,) * len(self.factor)), slope=1.0)
        cell.copy_(one.movedim(0, 1) * scale)

    def folded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Kernel (prod(factor), features, *widths) and bias (prod(factor),) of the convolution before the shuffle."""
        kernel = self.weight.to(dtype)
        pads, split = list[int](), list[int]()
        for c, k, s, r in zip(self.first, self.weight.shape[2:], self.factor, self.reach, strict=True):
            pads = [s * r - c, s * (r + 1) + c - k, *pads]
            split += [2 * r + 1, s]
        dims = len(self.factor)
        taps = functional.pad(kernel, pads).reshape(kernel.shape[0], *split)  # (features, cell, p, cell, p, ...)
        cells = taps.flip([1 + 2 * a for a in range(dims)])  # tap c + p - s * d: cells in the order of -d
        order = [*(2 + 2 * a for a in range(dims)), 0, *(1 + 2 * a for a in range(dims))]
        wide = cells.permute(order).flatten(0, dims - 1)
        return wide, None if self.bias is None else self.bias.to(dtype).expand(wide.shape[0])


def checked_factor(factor: Factor, name: str) -> Factor:
    """The factor of a network in 2D or 3D.

    Raises:
        ValueError: it is not two or three whole numbers with one above 1.
    """
    factor = validate_factor(factor)
    if len(factor) not in (2, 3) or max(factor) == 1:
        raise ValueError(
            f"{name}: expected a factor of two or three entries with one above 1, such as (2, 2) or (1, 2, 2); "
            f"found {factor}"
        )
    return factor


def convolution(dims: int, into: int, out: int, width: int, *, bias: bool = False) -> Convolution:
    """A convolution with replicated edges, same size; odd width."""
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(into, out, width, padding=width // 2, padding_mode="replicate", bias=bias)


def start_(weight: Tensor, slope: float = 0.25) -> Tensor:
    """Fill kernels in place by the variance of He et al. 2015, equation 15, for a PReLU of that slope after them."""
    return nn.init.kaiming_normal_(weight, a=slope)


def _reach(layer: nn.Module) -> int:
    """Samples on either side that a layer of the body depends on."""
    if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
        return layer.kernel_size[0] // 2
    return sum(_reach(part) for part in layer.children())


def _still(layer: nn.Module, *, edges: bool) -> nn.Module:
    """The frozen form of a layer of the body."""
    if isinstance(layer, Skip):
        return Plus(*(_still(part, edges=edges) for part in layer.layers))
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return leaky(layer)
    if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
        return frozen(layer, edges=edges)
    return copy.deepcopy(layer).float().requires_grad_(False)
