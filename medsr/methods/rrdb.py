"""RRDBNet, the generator of ESRGAN, in 2D and 3D: the network and the Upscaler in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.interpolation import interpolate, reach
from medsr.methods.layers import Frozen, Interpolated, convolve, frozen
from medsr.methods.network import Network
from medsr.methods.settings import NetworkRecipe
from medsr.methods.shuffle import prime_stages
from medsr.precision import float32_only
from medsr.scan import Factor, validate_factor
from medsr.stages import Stages

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = ["RRDBNet", "RrdbRecipe", "published_names"]

SLOPE = 0.2
"""Of every LeakyReLU below zero (BasicSR's networks; the paper does not say)."""

RESIDUAL = 0.2
"""What a block's change is scaled by before it is added (Wang et al. 2018, section 3.1, beta)."""

SMALL_START = 0.1
"""Initial weights of the dense blocks, relative to He et al. 2015 (Wang et al. 2018, section 3.1)."""

CONVOLUTIONS = 5
"""Of a dense block."""


class RrdbRecipe(NetworkRecipe):
    """RRDBNet trained on a pixel loss only (Wang et al. 2018; doi:10.1007/978-3-030-11021-5_5)."""

    kind: Literal["rrdb"] = "rrdb"
    features: int = Field(64, ge=4, le=512, description="channels between the blocks (paper: 64)")
    blocks: int = Field(23, ge=1, le=64, description="residual-in-residual dense blocks (paper: 23)")
    growth: int = Field(32, ge=2, le=256, description="channels each convolution of a dense block adds (paper: 32)")

    def build(self) -> RRDBNet:
        """The untrained network."""
        return RRDBNet(self.factor, features=self.features, blocks=self.blocks, growth=self.growth)

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """24 features, 2 blocks, growth of 8."""
        return cls(factor=factor, features=24, blocks=2, growth=8)


class RRDBNet(Network):
    """Network of residual-in-residual dense blocks; it adds detail to a cubic interpolation, in float32.

    Two kinds:

    * The default, for quantitative data. No layer has a bias, every activation is a LeakyReLU, and the kernels of the
      first convolution sum to zero. The detail is therefore blind to the level and proportional to the contrast,
      whatever the weights: network(a * low + b) == a * network(low) + b for every gain a > 0 and offset b, up to
      rounding. Edges are repeated.
    * `published=True`: the paper's layers, parameter count and zeros beyond the edges, without interpolation; what
      published weights (`published_names`) fit. Flat fields are not kept. 23 blocks, RGB and factor (4, 4) have
      16,697,987 parameters.

    Under autocast the layers between run in half precision. The first convolution, the last one and the sum with the
    interpolation stay in float32.

    Args:
        factor: refinement of the last axes; two entries make a 2D network, three a 3D one. Any whole numbers: each
            prime is a stage of repetition and convolution, (4, 4) = (2, 2) then (2, 2).
        channels: 1 for scientific scans; 3 only to compare with published RGB results.
        features: channels between the blocks (paper: 64).
        blocks: residual-in-residual dense blocks (paper: 23).
        growth: channels each convolution of a dense block adds (paper: 32).
        published: the network of the paper, see above.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers, 15 for each block
            and a few more. What lies far contributes next to nothing, so a measured halo can be much smaller.

    Raises:
        ValueError: a factor that is not two or three whole numbers with one above 1, or a count below 1.

    References:
        X. Wang et al., "ESRGAN: Enhanced super-resolution generative adversarial networks", 2018, section 3.1 and
        figure 4, doi:10.1007/978-3-030-11021-5_5.
        S. Mohan et al., "Robust and interpretable blind image denoising via bias-free convolutional neural networks",
        2020, arXiv:1906.05478 (bias-free networks are scale-equivariant).
    """

    def __init__(
        self,
        factor: Factor,
        *,
        channels: int = 1,
        features: int = 64,
        blocks: int = 23,
        growth: int = 32,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.factor = _checked(factor, min(channels, features, blocks, growth))
        self.published = published
        self._settings = f"channels={channels}, features={features}, blocks={blocks}, growth={growth}"
        self._ups = prime_stages(self.factor)
        self._margin = _margin(self.factor, self._ups)
        self.halo = tuple(2 + 3 * CONVOLUTIONS * blocks + m for m in self._margin)
        if not published:
            self.halo = tuple(map(max, self.halo, reach(self.factor)))
        dims = len(self.factor)
        # The names are those of the published files.
        self.conv_first = _conv(dims, channels, features, published=published)
        self.body = nn.Sequential(*(Rrdb(dims, features, growth, published=published) for _ in range(blocks)))
        self.conv_body = _conv(dims, features, features, published=published)
        for number in range(1, len(self._ups) + 1):
            self.add_module(f"conv_up{number}", _conv(dims, features, features, published=published))
        self.conv_hr = _conv(dims, features, features, published=published)
        self.conv_last = _conv(dims, features, channels, published=published)
        self.reset_parameters()

    def __repr__(self) -> str:
        return f"RRDBNet({self.factor}, {self._settings}, published={self.published})"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights: He et al. 2015, a tenth of it in the dense blocks and the last convolution, so that
        training starts near the interpolation."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    module.bias.zero_()
        for name, weight in self.named_parameters():
            if name.endswith("weight") and name.startswith(("body.", "conv_last.")):
                weight.mul_(SMALL_START)

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself: the network needs to know nothing of the scan."""
        return self

    def forward(self, low: Tensor) -> Tensor:
        """(n, channels, *size) in unit intensity to (n, channels, *size * factor), float32."""
        low = low.to(torch.promote_types(self.conv_first.weight.dtype, torch.float32))
        with float32_only(low.device):
            first = _applied(self.conv_first, low, kernel=self._first_kernel(low.dtype))
        first = first.to(self.conv_last.weight.dtype)
        features = first + _applied(self.conv_body, self.body(first))
        for conv, stage in self._upsampling():
            features = functional.leaky_relu(_applied(conv, repeated(features, stage)), SLOPE)
        features = functional.leaky_relu(_applied(self.conv_hr, features), SLOPE)
        with float32_only(low.device):
            detail = _applied(self.conv_last, features.to(low.dtype), kernel=self.conv_last.weight.to(low.dtype))
        return detail if self.published else detail + interpolate(low, self.factor, kind="cubic")

    def _upsampling(self) -> list[tuple[nn.Conv2d | nn.Conv3d, Factor]]:
        """The convolution of each stage and the repetition before it."""
        found = []
        for number, stage in enumerate(self._ups, start=1):
            conv = self.get_submodule(f"conv_up{number}")
            if isinstance(conv, (nn.Conv2d, nn.Conv3d)):
                found.append((conv, stage))
        return found

    def _first_kernel(self, dtype: torch.dtype) -> Tensor:
        """The first kernels as they are used: blind to the level where an interpolation carries it."""
        kernel = self.conv_first.weight.to(dtype)
        return kernel if self.published else kernel - kernel.mean(dim=tuple(range(2, kernel.ndim)), keepdim=True)

    @torch.no_grad()
    def stages(self, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:
        """The network as it is now, cut for an engine.

        Args:
            edges: as in `medsr.upscaler.Staged`; samples are never left out, so that a measured halo will do.
            gain, offset: the stages make `(network(low * gain + offset) - offset) / gain`, at the same cost.
        """
        edges = edges and not self.published  # the published network has zeros beyond its edges, as cut ones have
        kernel, bias = self._first_kernel(torch.float32), _bias(self.conv_first)
        if self.published and (gain, offset) != (1.0, 0.0):  # zeros beyond the edges are zeros of the network's line
            entry: nn.Module = nn.Sequential(Line(gain, offset), Frozen(kernel, bias, edges=edges))
        else:
            entry = Frozen(kernel * gain, bias, edges=edges)
        blocks = [block.frozen(edges) for block in self.body if isinstance(block, Rrdb)]
        body = Scaled(1.0, *blocks, frozen(self.conv_body, edges=edges))
        rise = list[nn.Module]()
        for conv, stage in self._upsampling():
            rise += [Repeated(stage), frozen(conv, edges=edges), nn.LeakyReLU(SLOPE, inplace=True)]
        rise += [frozen(self.conv_hr, edges=edges), nn.LeakyReLU(SLOPE, inplace=True)]
        after = _bias(self.conv_last)
        if after is not None:
            after = (after - offset) / gain
        last = Frozen(self.conv_last.weight.float() / gain, after, edges=edges)
        if self.published:
            return Stages(entry, body, nn.Sequential(*rise), last, None, self._margin)
        halo = tuple(map(max, self._margin, reach(self.factor)))
        return Stages(entry, body, nn.Sequential(*rise), last, Interpolated(self.factor), halo)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the features of all before it; its change, scaled, plus its input.

    References:
        Wang et al. 2018, figure 4.
    """

    def __init__(self, dims: int, features: int, growth: int, *, published: bool) -> None:
        super().__init__()
        for number in range(CONVOLUTIONS):
            out = features if number == CONVOLUTIONS - 1 else growth
            self.add_module(f"conv{number + 1}", _conv(dims, features + number * growth, out, published=published))

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        seen = features
        for number, conv in enumerate(self.children(), start=1):
            new: Tensor = _applied(conv, seen)
            if number < CONVOLUTIONS:
                seen = torch.cat([seen, functional.leaky_relu(new, SLOPE)], 1)
        return features + RESIDUAL * new


class Rrdb(nn.Module):
    """Three dense blocks; their change, scaled, plus the input.

    References:
        Wang et al. 2018, figure 4.
    """

    def __init__(self, dims: int, features: int, growth: int, *, published: bool) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(dims, features, growth, published=published)
        self.rdb2 = DenseBlock(dims, features, growth, published=published)
        self.rdb3 = DenseBlock(dims, features, growth, published=published)

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        change: Tensor = self.rdb3(self.rdb2(self.rdb1(features)))
        return features + RESIDUAL * change

    def frozen(self, edges: bool) -> nn.Module:
        """The block, frozen."""
        parts = (FrozenDense(block, edges=edges) for block in (self.rdb1, self.rdb2, self.rdb3))
        return Scaled(RESIDUAL, *parts)


class FrozenDense(nn.Module):
    """A dense block that is not trained any more."""

    def __init__(self, block: DenseBlock, *, edges: bool) -> None:
        super().__init__()
        *layers, last = (frozen(conv, edges=edges) for conv in block.children())
        self.layers, self.last = nn.ModuleList(layers), last

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        seen = features
        for layer in self.layers:
            seen = torch.cat([seen, functional.leaky_relu(layer(seen), SLOPE)], 1)
        return torch.add(features, self.last(seen), alpha=RESIDUAL)


class Scaled(nn.Module):
    """What `layers` make of their input, times `share`, plus the input."""

    def __init__(self, share: float, *layers: nn.Module) -> None:
        super().__init__()
        self.share, self.layers = share, nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(n, c, *size) to the same shape."""
        return torch.add(features, self.layers(features), alpha=self.share)


class Line(nn.Module):
    """A gain, then an offset."""

    def __init__(self, gain: float, offset: float) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset

    def forward(self, low: Tensor) -> Tensor:
        """(n, c, *size) to the same shape."""
        return low * self.gain + self.offset


class Repeated(nn.Module):
    """Each sample repeated to fill its cell of the finer grid."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        """(n, c, *size) to (n, c, *size * factor)."""
        return repeated(features, self.factor)


def repeated(features: Tensor, factor: Factor) -> Tensor:
    """Nearest-neighbor upsampling by whole numbers: (n, c, *size) to (n, c, *size * factor)."""
    return functional.interpolate(features, scale_factor=[float(f) for f in factor], mode="nearest")


def published_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a published RRDBNet under the names they have in `RRDBNet`; others are returned as they are.

    Two layouts are in use: `conv_first`, `body.0.rdb1.conv1`, ..., which are the names here, and the older `model.0`,
    `model.1.sub.0.RDB1.conv1.0`, ..., where each layer counts, activations and repetitions included.
    """
    numbers = {name.split(".")[1] for name in weights if name.startswith("model.")}
    if "model.1.sub.0.RDB1.conv1.0.weight" not in weights or not all(n.isdecimal() for n in numbers):
        return dict(weights)
    blocks = max(int(name.split(".")[3]) for name in weights if name.startswith("model.1.sub."))
    *ups, hr, last = sorted(map(int, numbers - {"0", "1"}))
    renamed = {"model.0": "conv_first", f"model.1.sub.{blocks}": "conv_body"}
    renamed |= {f"model.{layer}": f"conv_up{number}" for number, layer in enumerate(ups, start=1)}
    renamed |= {f"model.{hr}": "conv_hr", f"model.{last}": "conv_last"}
    for block in range(blocks):
        for dense in (1, 2, 3):
            for conv in range(1, CONVOLUTIONS + 1):
                renamed[f"model.1.sub.{block}.RDB{dense}.conv{conv}.0"] = f"body.{block}.rdb{dense}.conv{conv}"
    found = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        found[f"{renamed.get(layer, layer)}.{kind}"] = value
    return found


def _checked(factor: Factor, smallest: int) -> Factor:
    factor = validate_factor(factor)
    if len(factor) not in (2, 3) or max(factor) == 1:
        raise ValueError(
            f"RRDBNet: expected a factor of two or three entries with one above 1, such as (2, 2) or (1, 2, 2); "
            f"found {factor}"
        )
    if smallest < 1:
        raise ValueError(f"RRDBNet: expected channels, features, blocks and growth of at least 1, found {smallest}")
    return factor


def _margin(factor: Factor, stages: tuple[Factor, ...]) -> tuple[int, ...]:
    """Coarse samples on either side of a cell that its fine samples depend on through the layers from the first
    repetition on, one an axis: followed back from the output through two convolutions and each stage."""
    margin = []
    for axis, f in enumerate(factor):
        first, last = -2, f + 1
        for stage in reversed(stages):
            first, last = (first - 1) // stage[axis], (last + 1) // stage[axis]
        margin.append(max(-first, last))
    return tuple(margin)


def _conv(dims: int, into: int, out: int, *, published: bool) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(into, out, 3, padding=1, padding_mode="zeros" if published else "replicate", bias=published)


def _applied(conv: nn.Module, features: Tensor, *, kernel: Tensor | None = None) -> Tensor:
    """A convolution, with its own kernel or another; zeros or repeated samples beyond the edges, as it says."""
    if not isinstance(conv, (nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"expected a convolution in 2D or 3D, found {type(conv).__name__}")
    kernel = conv.weight if kernel is None else kernel
    bias = None if conv.bias is None else conv.bias.to(kernel.dtype)
    if conv.padding_mode == "replicate":
        return convolve(features, kernel, bias)
    same = functional.conv2d if kernel.ndim == 4 else functional.conv3d
    return same(features, kernel, bias, padding=1)


def _bias(conv: nn.Conv2d | nn.Conv3d) -> Tensor | None:
    return None if conv.bias is None else conv.bias.float()
