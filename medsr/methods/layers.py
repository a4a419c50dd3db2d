"""Convolutions with repeated edges, and the frozen layers that a network is cut into for an engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.interpolation import interpolate
from medsr.methods.shuffle import pixel_shuffle
from medsr.scan import Factor

__all__ = [
    "Crop",
    "Frozen",
    "Interpolated",
    "Plus",
    "Shuffle",
    "center_repeated",
    "convolve",
    "frozen",
    "leaky",
]


def convolve(low: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution in 2D or 3D with repeated edges, same size; odd widths."""
    padded = _with_edges(low, [width // 2 for width in kernel.shape[2:]])
    return functional.conv2d(padded, kernel, bias) if kernel.ndim == 4 else functional.conv3d(padded, kernel, bias)


def _with_edges(low: Tensor, radii: list[int]) -> Tensor:
    """The first and last sample of each axis repeated `radii` times."""
    if not torch.compiler.is_compiling():
        return functional.pad(low, [r for r in reversed(radii) for _ in range(2)], mode="replicate")
    # the compiler of torch 2.13 fails where a replicating pad follows a pixel shuffle; joined slices it takes
    for axis, radius in enumerate(radii, start=2):
        if radius:
            shape = list(low.shape)
            shape[axis] = radius
            first, last = low.narrow(axis, 0, 1), low.narrow(axis, low.shape[axis] - 1, 1)
            low = torch.cat([first.expand(shape), low, last.expand(shape)], axis)
    return low


class Frozen(nn.Module):
    """A convolution that is not trained any more: same size, edges repeated, or zeros beyond them (cheaper)."""

    def __init__(self, kernel: Tensor, bias: Tensor | None, *, edges: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.edges = edges
        self.pads = tuple(width // 2 for width in kernel.shape[2:])

    def forward(self, features: Tensor) -> Tensor:
        """(n, into, *size) to (n, out, *size)."""
        if self.edges:
            return convolve(features, self.kernel, self.bias)
        same = functional.conv2d if self.kernel.ndim == 4 else functional.conv3d
        return same(features, self.kernel, self.bias, padding=self.pads)


def frozen(layer: nn.Module, *, edges: bool) -> Frozen:
    """The frozen form, in float32, of a convolution, or of a sequence of a convolution and its batch norm.

    In eval mode a batch norm is a gain and an offset of each channel, which the convolution before it can carry.

    Raises:
        TypeError: it is another layer.
    """
    layer, *norms = layer if isinstance(layer, nn.Sequential) else (layer,)
    if not isinstance(layer, (nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"frozen: expected a convolution in 2D or 3D, found {type(layer).__name__}")
    kernel, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
    for norm in norms:
        kernel, bias = _folded(kernel, bias, norm)
    return Frozen(kernel.float(), None if bias is None else bias.float(), edges=edges)


def _folded(kernel: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that equals a convolution and its batch norm in eval mode."""
    if not isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
        raise TypeError(f"frozen: expected a batch norm behind the convolution, found {type(norm).__name__}")
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    gain = norm.weight.to(kernel) / torch.sqrt(variance.to(kernel) + norm.eps)
    shift = norm.bias.to(kernel) - mean.to(kernel) * gain
    return kernel * gain.reshape(-1, *[1] * (kernel.ndim - 1)), shift if bias is None else shift + gain * bias


def leaky(activation: nn.PReLU) -> nn.LeakyReLU:
    """The frozen form of a PReLU of one slope."""
    return nn.LeakyReLU(float(activation.weight), inplace=True)


class Crop(nn.Module):
    """Leaves out `count` samples at either end of every axis."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, features: Tensor) -> Tensor:
        """(n, c, *size) to (n, c, *size - 2 * count)."""
        kept = slice(self.count, -self.count)
        return features[:, :, kept, kept] if features.ndim == 4 else features[:, :, kept, kept, kept]


class Plus(nn.Module):
    """What `layers` make of their input, plus the input, of which they leave out `crop` samples at either end."""

    def __init__(self, *layers: nn.Module, crop: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.crop = Crop(crop) if crop else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(n, c, *size) to the same shape, or that less the crop."""
        change: Tensor = self.layers(features)
        change += self.crop(features)
        return change


class Shuffle(nn.Module):
    """A pixel shuffle along any axes."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        """(n, c * prod(factor), *size) to (n, c, *size * factor)."""
        return pixel_shuffle(features, self.factor)


class Interpolated(nn.Module):
    """The cubic interpolation, less a network's answer to a flat field where it has one.

    Args:
        factor: refinement of the last axes.
        after: the layers that make detail of features; None: the answer is zero.
        flat: (1, c, ...1), features of a flat field, the same everywhere.
        margin: coarse samples on either side that a sample depends on through `after`.
    """

    def __init__(
        self,
        factor: Factor,
        after: nn.Module | None = None,
        flat: Tensor | None = None,
        margin: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.factor, self.after, self.margin = factor, after, margin
        self.flat = None if flat is None else nn.Parameter(flat.detach(), requires_grad=False)

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) to (n, 1, *size * factor)."""
        fine = interpolate(low, self.factor, kind="cubic")
        if self.after is None or self.flat is None:
            return fine
        wide = [min(n, 2 * m + 1) for n, m in zip(low.shape[2:], self.margin, strict=True)]
        answer = self.after(self.flat.expand(*self.flat.shape[:2], *wide))
        return fine - center_repeated(answer, tuple(low.shape[2:]), self.margin, self.factor)


def center_repeated(answer: Tensor, size: tuple[int, ...], margin: tuple[int, ...], factor: Factor) -> Tensor:
    """A fine field of `size` coarse samples from one of at most 2 * margin + 1 of which all but `margin` samples at
    either edge repeat the center: (n, c, *min(size, 2 * margin + 1) * factor) to (n, c, *size * factor)."""
    for axis, (n, m, f) in enumerate(zip(size, margin, factor, strict=True), start=2):
        if n > 2 * m + 1:
            cell = torch.arange(n, device=answer.device)
            cell = cell.clamp(max=m) + (cell - (n - 1 - m)).clamp(min=0)
            answer = answer.index_select(axis, (cell[:, None] * f + cell.new_tensor(range(f))).flatten())
    return answer
