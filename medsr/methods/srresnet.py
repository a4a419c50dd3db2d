"""SRResNet, the generator of SRGAN, in 2D and 3D: the network and the Upscaler in one."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.interpolation import interpolate, reach
from medsr.methods.layers import Crop, Frozen, Interpolated, Plus, Shuffle, center_repeated, convolve, frozen, leaky
from medsr.methods.network import Network
from medsr.methods.settings import NetworkRecipe
from medsr.methods.shuffle import icnr_, pixel_shuffle, prime_stages
from medsr.methods.tail import FoldedTail
from medsr.precision import float32_only
from medsr.scan import Factor, validate_factor
from medsr.stages import Stages

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = ["SRResNet", "SrresnetRecipe"]

Norm = Literal["none", "batch"]

LOST_AT_ONCE = 8
"""Samples on either side that a cut network drops at a time: fewer would cost more copies than they save layers."""


class SrresnetRecipe(NetworkRecipe):
    """SRResNet trained on a pixel loss only (Ledig et al. 2017, section 2.1.1; doi:10.1109/CVPR.2017.19)."""

    kind: Literal["srresnet"] = "srresnet"
    features: int = Field(64, ge=4, le=1024, description="channels of every layer (paper: 64)")
    blocks: int = Field(16, ge=1, le=256, description="residual blocks (paper: 16)")
    norm: Norm = Field(
        "none",
        description="none: bias-free and exact on flat fields, for quantitative data; batch: the paper's normalization",
    )
    head_kernel: int = Field(9, ge=3, le=15, description="width of the first convolution, odd (paper: 9)")
    tail_kernel: int = Field(9, ge=1, le=15, description="width of the last convolution, odd (paper: 9)")

    @field_validator("head_kernel", "tail_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"expected an odd width, so that the kernel has a center; found {value}")
        return value

    published: bool = Field(
        False,
        description="true: the paper's layers as they stand: no interpolation is added, flat fields are not kept; "
        "needs norm: batch",
    )

    @model_validator(mode="after")
    def _of_the_paper(self) -> Self:
        if self.published and self.norm != "batch":
            raise ValueError(f"published: expected norm: batch, as the paper's layers have; found norm: {self.norm}")
        return self

    def build(self) -> SRResNet:
        """The untrained network."""
        return SRResNet(
            self.factor,
            features=self.features,
            blocks=self.blocks,
            norm=self.norm,
            head_kernel=self.head_kernel,
            tail_kernel=self.tail_kernel,
            residual=not self.published,
        )

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """32 features, 4 blocks, narrow first and last kernels."""
        return cls(factor=factor, features=32, blocks=4, head_kernel=5, tail_kernel=3)


class SRResNet(Network):
    """Residual network with pixel shuffle; it adds detail to a cubic interpolation, in float32.

    Two kinds, both with replicated edges, so that nothing but the samples within `halo` matters:

    * `norm="none"` (default, for quantitative data). No layer has a bias, every activation is a PReLU, and the kernels
      of the first convolution sum to zero. The detail is therefore blind to the level and proportional to the
      contrast, whatever the weights: for every gain a > 0 and offset b

          network(a * low + b) == a * network(low) + b

      up to rounding, at the start and after any training. A flat field stays flat at its level, and a scan whose
      intensity line is off by a factor or an offset gets the same picture.
    * `norm="batch"`: the paper's layers and parameter count. The first kernels sum to zero here too, so the detail is
      blind to the level; in eval mode the network's answer to a flat field, which then is the same for every level,
      is subtracted from the detail, as a dark frame is from a picture. Proportional to the contrast it is not. Batch
      statistics mix all samples of a batch, so only eval mode can be tiled: `adapt` refuses training mode.

    With `residual=False` the output is that of the last convolution alone and the first kernels are free: with
    `norm="batch"` this is the published network as it stands, for comparison with published results; flat fields are
    not kept. 16 blocks of 64 features, RGB and factor (4, 4) have 1,547,350 parameters with or without the residual.

    Under autocast the layers between run in half precision. The first convolution (it reads the stored levels), the
    last one and the sum with the interpolation stay in float32, without TF32 on CUDA (compiled graphs follow the
    global setting, `torch.backends.cudnn.conv.fp32_precision`).

    Args:
        factor: refinement of the last axes; two entries make a 2D network, three a 3D one. Any whole numbers: each
            prime is a stage of its own, (4, 4) = (2, 2) then (2, 2).
        channels: 1 for scientific scans; 3 only to compare with published RGB results.
        features: channels of every layer (paper: 64).
        blocks: residual blocks (paper: 16).
        norm: "none" or "batch", see above.
        head_kernel: width of the first convolution, odd (paper: 9).
        tail_kernel: width of the last convolution, odd (paper: 9).
        residual: add the cubic interpolation of the input (default), see above.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.

    Raises:
        ValueError: a factor that is not two or three whole numbers with one above 1, an even kernel width, an unknown
            norm, or a count below 1.

    References:
        C. Ledig et al., "Photo-realistic single image super-resolution using a generative adversarial network", 2017,
        figure 4, doi:10.1109/CVPR.2017.19.
        S. Mohan et al., "Robust and interpretable blind image denoising via bias-free convolutional neural networks",
        2020, arXiv:1906.05478 (bias-free networks are scale-equivariant).
    """

    def __init__(
        self,
        factor: Factor,
        *,
        channels: int = 1,
        features: int = 64,
        blocks: int = 16,
        norm: Norm = "none",
        head_kernel: int = 9,
        tail_kernel: int = 9,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.factor = _checked(factor, norm, min(channels, features, blocks), (head_kernel, tail_kernel))
        self.norm = norm
        self.residual = residual
        self._settings = (
            f"channels={channels}, features={features}, blocks={blocks}, norm={norm!r}, head_kernel={head_kernel}, "
            f"tail_kernel={tail_kernel}, residual={residual}"
        )
        stages = prime_stages(self.factor)
        self._margin = _margin(self.factor, stages, tail_kernel)
        self.halo = tuple(head_kernel // 2 + 2 * blocks + 1 + m for m in self._margin)
        dims, bias = len(self.factor), norm == "batch"
        self.head = _conv(dims, channels, features, head_kernel, bias=bias)
        self.head_activation = nn.PReLU()
        self.body = nn.Sequential(*(ResidualBlock(dims, features, norm) for _ in range(blocks)))
        self.mid = _normed(dims, features, norm)
        self.upsampling = nn.Sequential(*(UpsamplingStage(stage, features, bias=bias) for stage in stages))
        self.tail = _conv(dims, features, channels, tail_kernel, bias=bias)
        self.reset_parameters()

    def __repr__(self) -> str:
        return f"SRResNet({self.factor}, {self._settings})"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights: He et al. 2015 for each layer, with little detail added at first.

        Without a norm the second convolution of a block is scaled by 0.1, so that 16 blocks do not add up; the last
        convolution is scaled by 0.1, so that training starts near the interpolation. Upsampling starts as repetition.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                _kaiming_(module.weight, slope=0.25)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.PReLU):
                module.weight.fill_(0.25)
            elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                module.reset_parameters()
        for stage in self.upsampling:
            if isinstance(stage, UpsamplingStage):
                icnr_(stage.conv.weight, stage.factor, _kaiming_)
        for block in self.body:
            if self.norm == "none" and isinstance(block, ResidualBlock):
                _kaiming_(block.second.get_parameter("0.weight"), slope=1.0).mul_(0.1)
        _kaiming_(self.mid.get_parameter("0.weight"), slope=1.0)
        _kaiming_(self.tail.weight, slope=1.0).mul_(0.1)

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself: the network needs to know nothing of the scan.

        Raises:
            ValueError: batch normalization in training mode, where a tile would depend on what is beside it.
        """
        self._refuse_batch_statistics()
        return self

    def _refuse_batch_statistics(self) -> None:
        if self.norm == "batch" and self.training:
            raise ValueError(
                "SRResNet: expected eval mode to upscale with norm='batch', found training mode, in which each tile "
                "would be normalized by its own statistics; call network.eval() first"
            )

    def forward(self, low: Tensor) -> Tensor:
        """(n, channels, *size) in unit intensity to (n, channels, *size * factor), float32."""
        low = low.to(torch.promote_types(self.head.weight.dtype, torch.float32))
        detail = self._detail(low)
        if not self.residual:
            return detail
        if self.norm == "batch" and not self.training:
            detail = detail - self._flat_answer(low)
        return detail + interpolate(low, self.factor, kind="cubic")

    def _detail(self, low: Tensor) -> Tensor:
        """What the layers make of `low`: float32, (n, channels, *size * factor)."""
        features: Tensor = self.upsampling(self._features(low))
        with float32_only(low.device):
            return convolve(features.to(low.dtype), self.tail.weight.to(low.dtype), _as(low, self.tail.bias))

    def _features(self, low: Tensor) -> Tensor:
        """What the upsampling starts from: (n, features, *size)."""
        with float32_only(low.device):
            features = convolve(low, self._first_kernel(low.dtype), _as(low, self.head.bias))
            features = functional.prelu(features, self.head_activation.weight.to(low.dtype))
        features = features.to(self.tail.weight.dtype)
        change: Tensor = self.mid(self.body(features))
        return features + change

    def _flat_answer(self, low: Tensor) -> Tensor:
        """Detail of a flat field of the size of `low`: (1, channels, *size * factor).

        It repeats in every cell but those near an edge, so a field just wide enough is asked, and its center repeated.
        """
        wide = [min(n, 2 * m + 1) for n, m in zip(low.shape[2:], self._margin, strict=True)]
        answer = self._detail(low.new_zeros(1, low.shape[1], *wide))
        return center_repeated(answer, tuple(low.shape[2:]), self._margin, self.factor)

    def _first_kernel(self, dtype: torch.dtype) -> Tensor:
        """The first kernels as they are used: blind to the level where an interpolation carries it."""
        kernel = self.head.weight.to(dtype)
        return kernel - kernel.mean(dim=tuple(range(2, kernel.ndim)), keepdim=True) if self.residual else kernel

    @torch.no_grad()
    def stages(self, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:
        """The network as it is now, cut for an engine; batch norms are folded into their convolutions.

        Args:
            edges: as in `medsr.upscaler.Staged`.
            gain, offset: the stages make `(network(low * gain + offset) - offset) / gain`, at the same cost.

        Raises:
            ValueError: batch normalization in training mode, as `adapt`.
        """
        self._refuse_batch_statistics()
        entry, last = self._entry(gain, offset, edges), self._last(gain, offset, edges)
        body = self._body(edges)
        steps = (stage.frozen(edges) for stage in self.upsampling if isinstance(stage, UpsamplingStage))
        # Without the last shuffle: `last` brings it, and one slope for all channels commutes with it.
        rise = nn.Sequential(*[part for step in steps for part in step][:-1])
        base: nn.Module | None = None
        if self.residual and self.norm == "batch":
            flat = self._features(
                self.tail.weight.new_zeros(1, self.head.in_channels, *(1,) * len(self.factor))
            ).float()
            base = Interpolated(self.factor, copy.deepcopy(nn.Sequential(rise, last)), flat, self._margin)
        elif self.residual:
            base = Interpolated(self.factor)
        halo = tuple(map(max, self._margin, reach(self.factor))) if self.residual else self._margin
        return Stages(entry, body, rise, last, base, halo)

    def _body(self, edges: bool) -> nn.Module:
        """Without edges, samples that cannot be right any more are left out every few blocks."""
        layers, lost = list[nn.Module](), 0
        for block in self.body:
            if isinstance(block, ResidualBlock):
                layers.append(Plus(*block.frozen(edges)))
                lost += 2
            if lost >= LOST_AT_ONCE and not edges:
                layers.append(Crop(lost))
                lost = 0
        cropped = sum(layer.count for layer in layers if isinstance(layer, Crop))
        return Plus(*layers, frozen(self.mid, edges=edges), crop=cropped)

    def _entry(self, gain: float, offset: float, edges: bool) -> nn.Module:
        kernel = self._first_kernel(torch.float32)
        bias = None if self.head.bias is None else self.head.bias.float()
        if offset and not self.residual:  # where an interpolation carries the level, the kernels do not see it
            seen = kernel.flatten(1).sum(1) * offset
            bias = seen if bias is None else bias + seen
        return nn.Sequential(Frozen(kernel * gain, bias, edges=edges), leaky(self.head_activation))

    def _last(self, gain: float, offset: float, edges: bool) -> nn.Module:
        kernel = self.tail.weight.float() / gain
        bias = None if self.tail.bias is None else self.tail.bias.float() / gain
        if offset and not self.residual:
            level = kernel.new_full((self.tail.out_channels,), -offset / gain)
            bias = level if bias is None else bias + level
        last = prime_stages(self.factor)[-1]
        multiple = tuple(f // s for f, s in zip(self.factor, last, strict=True))
        return FoldedTail(kernel, bias, last, multiple=multiple, edges=edges)


class ResidualBlock(nn.Module):
    """Convolution, PReLU, convolution, plus the input; each convolution followed by its norm, if any."""

    def __init__(self, dims: int, features: int, norm: Norm) -> None:
        super().__init__()
        self.first = _normed(dims, features, norm)
        self.activation = nn.PReLU()
        self.second = _normed(dims, features, norm)

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        change: Tensor = self.second(self.activation(self.first(features)))
        return features + change

    def frozen(self, edges: bool) -> list[nn.Module]:
        """The layers without the plus, frozen."""
        return [frozen(self.first, edges=edges), leaky(self.activation), frozen(self.second, edges=edges)]


class UpsamplingStage(nn.Module):
    """Convolution to prod(factor) times the features, pixel shuffle, PReLU."""

    def __init__(self, factor: Factor, features: int, *, bias: bool) -> None:
        super().__init__()
        self.factor = factor
        wide = features * math.prod(factor)
        self.conv = _conv(len(factor), features, wide, 3, bias=bias)
        self.activation = nn.PReLU()

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to (n, features, *size * factor)."""
        wide = convolve(features, self.conv.weight, self.conv.bias)
        fine: Tensor = self.activation(pixel_shuffle(wide, self.factor))
        return fine

    def frozen(self, edges: bool) -> list[nn.Module]:
        """The layers, frozen; the shuffle last, with which a shared slope commutes."""
        return [frozen(self.conv, edges=edges), leaky(self.activation), Shuffle(self.factor)]


def _checked(factor: Factor, norm: str, smallest: int, kernels: tuple[int, int]) -> Factor:
    factor = validate_factor(factor)
    if len(factor) not in (2, 3) or max(factor) == 1:
        raise ValueError(
            f"SRResNet: expected a factor of two or three entries with one above 1, such as (2, 2) or (1, 2, 2); "
            f"found {factor}"
        )
    if norm not in ("none", "batch"):
        raise ValueError(f"SRResNet: expected norm 'none' or 'batch', found {norm!r}")
    if smallest < 1 or kernels[0] < 3 or any(k < 1 or k % 2 == 0 for k in kernels):
        raise ValueError(
            "SRResNet: expected counts of at least 1 and odd kernel widths, the head's at least 3; "
            f"found {smallest} and {kernels}"
        )
    return factor


def _margin(factor: Factor, stages: tuple[Factor, ...], tail: int) -> tuple[int, ...]:
    """Coarse samples on either side of a cell that its fine samples depend on through the layers from the first
    upsampling stage on, one an axis: followed back from the output through the tail and each stage."""
    margin = []
    for axis, f in enumerate(factor):
        first, last = -(tail // 2), f - 1 + tail // 2
        for stage in reversed(stages):
            first, last = first // stage[axis] - 1, last // stage[axis] + 1
        margin.append(max(-first, last))
    return tuple(margin)


def _conv(dims: int, into: int, out: int, width: int, *, bias: bool) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(into, out, width, padding=width // 2, padding_mode="replicate", bias=bias)


def _normed(dims: int, features: int, norm: Norm) -> nn.Sequential:
    """A convolution of width 3 without bias, then its norm."""
    layers: list[nn.Module] = [_conv(dims, features, features, 3, bias=False)]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(features) if dims == 2 else nn.BatchNorm3d(features))
    return nn.Sequential(*layers)


def _as(low: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(low.dtype)


def _kaiming_(weight: Tensor, slope: float = 0.25) -> Tensor:
    return nn.init.kaiming_normal_(weight, a=slope)
