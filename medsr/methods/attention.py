"""Networks with channel attention: what RCAN and DFCAN share, and the local mean that keeps their reach finite."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.interpolation import interpolate, reach
from medsr.methods.layers import Frozen, Interpolated, Plus, Shuffle, convolve, frozen
from medsr.methods.network import Network
from medsr.methods.settings import NetworkRecipe
from medsr.methods.shuffle import icnr_, pixel_shuffle, prime_stages
from medsr.methods.tail import FoldedTail
from medsr.precision import float32_only
from medsr.scan import Factor, validate_factor
from medsr.stages import Stages

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = [
    "AttentionNetwork",
    "AttentionRecipe",
    "Layers",
    "Residual",
    "checked",
    "conv",
    "local_mean",
    "pointwise",
]


class AttentionRecipe(NetworkRecipe):
    """What the recipes of RCAN and DFCAN share."""

    features: int = Field(64, ge=4, le=1024, description="channels of every layer (paper: 64)")
    reduction: int = Field(16, ge=1, le=256, description="features for each channel of the bottleneck (paper: 16)")
    window: int = Field(
        15,
        ge=5,
        le=127,
        description="coarse samples, odd, over which attention looks; the paper's sees the whole image, so that tiles "
        "would not fit together",
    )
    halo: Literal["exact", "measured"] = Field(
        "measured",
        description="context of a tile: exact: whatever the layers can reach; measured: what was found at the end of "
        "training to change a result by half of one of 65,536 gray levels, half as much again for safety",
    )

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"expected an odd width, so that the window has a center; found {value}")
        return value


@dataclass(frozen=True, slots=True)
class Layers:
    """What an AttentionNetwork is told of the network it is.

    Attributes:
        name: of the network, for errors.
        channels: of the image.
        features: channels of every layer.
        kernel: widths of all convolutions, one an axis.
        window: coarse samples over which attention looks; None: the whole image.
        bias: whether the convolutions have biases.
        residual: whether the result is added to a cubic interpolation, and the first kernels sum to zero.
        reach: coarse samples on either side that head and body depend on, one an axis.
    """

    name: str
    channels: int
    features: int
    kernel: tuple[int, ...]
    window: int | None
    bias: bool
    residual: bool
    reach: tuple[int, ...]


class AttentionNetwork(Network):
    """Head, body with attention, pixel shuffle, tail, added to a cubic interpolation; RCAN and DFCAN say which layers.

    Args:
        factor: refinement of the last axes.
        layers: sizes and kind.
        head_activation, rise_activation: after the first convolution, and after each before a shuffle.
        body: (n, features, *size) to the same; made of `Residual`, sequences, convolutions, and layers without edges.
        output: after the last convolution.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis: the exact reach of the layers; where attention looks at the
            whole image, that of the convolutions only.
    """

    def __init__(
        self,
        factor: Factor,
        layers: Layers,
        *,
        head_activation: nn.Module,
        body: nn.Module,
        rise_activation: nn.Module,
        output: nn.Module,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.layers = layers
        stages = prime_stages(factor)
        self._margin = _margin(factor, stages, layers.kernel)
        margin = tuple(map(max, self._margin, reach(factor))) if layers.residual else self._margin
        self._rise_halo = margin
        self.halo = tuple(max(r + m, n) for r, m, n in zip(layers.reach, self._margin, margin, strict=True))
        features, bias = layers.features, layers.bias
        self.head = conv(layers.channels, features, layers.kernel, bias=bias)
        self.head_activation = head_activation
        self.body = body
        self.upsampling = nn.ModuleList(
            conv(features, features * math.prod(stage), layers.kernel, bias=bias) for stage in stages
        )
        self.rise_activation = rise_activation
        self.tail = conv(features, layers.channels, layers.kernel, bias=bias)
        self.output = output
        self.reset_parameters()

    @abstractmethod
    def __repr__(self) -> str:
        """The name, the factor and what decides the layers."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights: He et al. 2015, with little detail added at first; upsampling starts as repetition.

        In a quantitative network the last convolution of every residual is scaled by 0.1, so that many do not add up.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                _kaiming_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        for module, stage in zip(self.upsampling, prime_stages(self.factor), strict=True):
            icnr_(module.get_parameter("weight"), stage, _kaiming_)
        if self.layers.residual:
            for module in self.body.modules():
                if isinstance(module, Residual):
                    module.quiet()
            self.tail.weight.mul_(0.1)

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself: the network needs to know nothing of the scan.

        Raises:
            ValueError: attention looks at the whole image, so that a tile would depend on all others.
        """
        self._refuse_global()
        return self

    def _refuse_global(self) -> None:
        if self.layers.window is None:
            raise ValueError(
                f"{self.layers.name}: expected attention over a window to upscale tile by tile, found the paper's, "
                "which averages over the whole image, so that each tile would get another answer; build it with a "
                "window, such as window=15"
            )

    def forward(self, low: Tensor) -> Tensor:
        """(n, channels, *size) in unit intensity to (n, channels, *size * factor), float32."""
        low = low.to(torch.promote_types(self.head.weight.dtype, torch.float32))
        with float32_only(low.device):
            features = self.head_activation(convolve(low, self._first_kernel(low.dtype), _as(low, self.head.bias)))
        features = self.body(features.to(self.tail.weight.dtype))
        for module, stage in zip(self.upsampling, prime_stages(self.factor), strict=True):
            wide = convolve(features, module.get_parameter("weight"), _bias(module))
            features = pixel_shuffle(self.rise_activation(wide), stage)
        with float32_only(low.device):
            fine = convolve(features.to(low.dtype), self.tail.weight.to(low.dtype), _as(low, self.tail.bias))
            detail: Tensor = self.output(fine)
            return detail + interpolate(low, self.factor, kind="cubic") if self.layers.residual else detail

    def _first_kernel(self, dtype: torch.dtype) -> Tensor:
        """The first kernels as they are used: blind to the level where an interpolation carries it."""
        kernel = self.head.weight.to(dtype)
        blind = self.layers.residual
        return kernel - kernel.mean(dim=tuple(range(2, kernel.ndim)), keepdim=True) if blind else kernel

    @torch.no_grad()
    def stages(self, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:  # noqa: ARG002
        """The network as it is now, cut for an engine.

        Args:
            edges: without effect: the parts are equal everywhere. A halo that was measured is less than the layers
                reach, and holds only for tiles whose edges are repeated.
            gain, offset: the stages make `(network(low * gain + offset) - offset) / gain`, at the same cost; the
                offset is carried by the interpolation, and the layers do not see it.

        Raises:
            ValueError: attention looks at the whole image, as `adapt`.
        """
        self._refuse_global()
        if not self.layers.residual:
            raise ValueError(f"{self.layers.name}: expected a network with the interpolation around it, found none")
        entry = nn.Sequential(
            Frozen(self._first_kernel(torch.float32) * gain, None, edges=True), copy.deepcopy(self.head_activation)
        )
        factors = prime_stages(self.factor)
        rise: list[nn.Module] = []
        for module, stage in zip(self.upsampling, factors, strict=True):
            rise += [_cut(module), copy.deepcopy(self.rise_activation), Shuffle(stage)]
        multiple = tuple(f // s for f, s in zip(self.factor, factors[-1], strict=True))
        last = FoldedTail(self.tail.weight.float() / gain, None, factors[-1], multiple=multiple, edges=True)
        base = Interpolated(self.factor)
        return Stages(entry, _cut(self.body), nn.Sequential(*rise[:-1]), last, base, self._rise_halo)


class Residual(nn.Module):
    """What `layers` make of their input, plus the input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        change: Tensor = self.layers(features)
        return features + change

    def quiet(self) -> None:
        """Let the last of its own convolutions add little."""
        own = [layer for layer in self.layers if isinstance(layer, (nn.Conv2d, nn.Conv3d))]
        if own:
            own[-1].weight.mul_(0.1)


def conv(into: int, out: int, kernel: tuple[int, ...], *, bias: bool) -> nn.Conv2d | nn.Conv3d:
    """A convolution with repeated edges, same size; odd widths, one an axis."""
    kind = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    pads = tuple(width // 2 for width in kernel)
    # the stubs ask for pairs and triples where the class takes either
    return kind(into, out, kernel, padding=pads, padding_mode="replicate", bias=bias)  # type: ignore[arg-type]


def pointwise(features: Tensor, layer: nn.Conv2d | nn.Conv3d) -> Tensor:
    """A convolution of width 1 in the type of `features`, whatever that of its weights."""
    weight = layer.weight.to(features.dtype)
    run = functional.conv2d if weight.ndim == 4 else functional.conv3d
    return run(features, weight, _as(features, layer.bias))


def local_mean(features: Tensor, window: tuple[int, ...]) -> Tensor:
    """Mean over a window of odd widths around each sample; the first and last sample of each axis are repeated.

    Args:
        features: (n, c, *size).
        window: samples along each axis; 1: left as it is.
    """
    pads = [width // 2 for width in reversed(window) for _ in range(2)]
    features = functional.pad(features, pads, mode="replicate")
    for axis, width in enumerate(window, start=2):
        # A box is a box of a prime width, then boxes of the other primes with gaps: 15 samples cost 6 sums, not 14.
        gap = 1
        for (prime,) in prime_stages((width,)):
            count = features.shape[axis] - gap * (prime - 1)
            total = features.narrow(axis, 0, count) + features.narrow(axis, gap, count)
            for step in range(2, prime):
                total += features.narrow(axis, gap * step, count)
            features, gap = total, gap * prime
    return features / math.prod(window)


def checked(name: str, factor: Factor, counts: tuple[int, ...], window: int | None) -> Factor:
    """The factor, where all is as a network needs it.

    Raises:
        ValueError: a factor that is not two or three whole numbers with one above 1, a count below 1, or a window that
            is not odd or below 5.
    """
    factor = validate_factor(factor)
    if len(factor) not in (2, 3) or max(factor) == 1:
        raise ValueError(
            f"{name}: expected a factor of two or three entries with one above 1, such as (2, 2) or (1, 2, 2); "
            f"found {factor}"
        )
    if min(counts) < 1 or (window is not None and (window < 5 or window % 2 == 0)):
        raise ValueError(
            f"{name}: expected counts of at least 1 and an odd window of at least 5; found {counts} and {window}"
        )
    return factor


def _cut(layer: nn.Module) -> nn.Module:
    """The frozen form of a layer, in float32."""
    if isinstance(layer, Residual):
        return Plus(*map(_cut, layer.layers))
    if isinstance(layer, nn.Sequential):
        return nn.Sequential(*map(_cut, layer))
    if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
        return frozen(layer, edges=True)
    return copy.deepcopy(layer).float().requires_grad_(requires_grad=False)


def _margin(factor: Factor, stages: tuple[Factor, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Coarse samples on either side of a cell that its fine samples depend on through upsampling and tail."""
    margin = []
    for axis, (f, width) in enumerate(zip(factor, kernel, strict=True)):
        radius = width // 2
        first, last = -radius, f - 1 + radius
        for stage in reversed(stages):
            first, last = first // stage[axis] - radius, last // stage[axis] + radius
        margin.append(max(-first, last))
    return tuple(margin)


def _bias(layer: nn.Module) -> Tensor | None:
    return layer.get_parameter("bias") if isinstance(layer.bias, Tensor) else None


def _as(like: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(like.dtype)


def _kaiming_(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, a=math.sqrt(2.0))
