"""SFTMD, the network of IKC that is told the blur: residual blocks whose features the kernel's code transforms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.interpolation import interpolate, reach
from medsr.methods.layers import Frozen, Interpolated, Plus, convolve, frozen
from medsr.methods.shuffle import icnr_, pixel_shuffle, prime_stages
from medsr.methods.srresnet import UpsamplingStage
from medsr.methods.tail import FoldedTail
from medsr.precision import float32_only
from medsr.scan import Factor, validate_factor
from medsr.stages import Stages

__all__ = ["SFTMD", "PublishedSFTMD"]

SLOPE = 0.2
"""Of LeakyReLU (paper)."""

HIDDEN = 32
"""Channels inside a transform (paper: 32)."""


class SFTMD(nn.Module):
    """A residual network told a kernel's code; it adds detail to a cubic interpolation, in float32.

    The paper's transform scales and shifts features by maps that a small network makes of features and code. A shift
    and biases answer a flat field with a pattern, and a scale that depends on features bends the contrast. Here the
    scale is made of the code alone, and the shift is proportional to the magnitude of the features, channel by
    channel:

        features * scale(code) + |features| * shift(code)

    which is an activation with two slopes. No layer has a bias and the first kernels sum to zero, so that for every
    code, every gain a > 0 and every offset b

        network(a * low + b, code) == a * network(low, code) + b

    up to rounding, whatever the weights. For a code that stands, the slopes are numbers: it runs at the cost of a plain
    residual network.

    Args:
        factor: refinement of the last axes, two or three; each prime is a stage of its own.
        features: channels of every layer (paper: 64).
        blocks: residual blocks (paper: 16).
        code: numbers of a code (paper: 10).
        tail_kernel: width of the last convolution, odd (paper: 9).

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.

    References:
        J. Gu et al., "Blind super-resolution with iterative kernel correction", 2019, section 3.3 and equation 4,
        arXiv:1904.03377.
    """

    def __init__(
        self, factor: Factor, *, features: int = 64, blocks: int = 16, code: int = 10, tail_kernel: int = 9
    ) -> None:
        super().__init__()
        self.factor = validate_factor(factor)
        stages = prime_stages(self.factor)
        dims = len(self.factor)
        self._margin = _margin(self.factor, stages, tail_kernel)
        self.halo = tuple(max(2 * blocks + 4 + m, r) for m, r in zip(self._margin, reach(self.factor), strict=True))
        self.head = _conv(dims, 1, features, 3)
        self.second = _conv(dims, features, features, 3)
        self.third = _conv(dims, features, features, 3)
        self.body = nn.ModuleList(TransformedBlock(dims, features, code) for _ in range(blocks))
        self.transform = Transform(features, code)
        self.mid = _conv(dims, features, features, 3)
        self.upsampling = nn.ModuleList(UpsamplingStage(stage, features, bias=False) for stage in stages)
        self.tail = _conv(dims, features, 1, tail_kernel)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights: He et al. 2015, the second convolution of a block and the last one scaled by 0.1, so that
        training starts near the interpolation; upsampling starts as repetition."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
        for stage in self.upsampling:
            if isinstance(stage, UpsamplingStage):
                icnr_(stage.conv.weight, stage.factor, lambda w: nn.init.kaiming_normal_(w, a=SLOPE))
        for block in self.body:
            if isinstance(block, TransformedBlock):
                block.second.weight.mul_(0.1)
        self.tail.weight.mul_(0.1)

    def forward(self, low: Tensor, code: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity and codes (n, length) or (length,) to (n, 1, *size * factor), float32."""
        low = low.to(torch.promote_types(self.head.weight.dtype, torch.float32))
        code = code.to(low).expand(low.shape[0], -1)
        with float32_only(low.device):
            features = functional.leaky_relu(convolve(low, self._first_kernel(low.dtype), None), SLOPE)
        features = self.third(functional.leaky_relu(self.second(features.to(self.tail.weight.dtype)), SLOPE))
        change = features
        for block in self.body:
            change = block(change, code)
        features = self.mid(self.transform(features + change, code))
        for stage in self.upsampling:
            features = stage(features)
        with float32_only(low.device):
            detail = convolve(features.to(low.dtype), self.tail.weight.to(low.dtype), None)
        return detail + interpolate(low, self.factor, kind="cubic")

    def _first_kernel(self, dtype: torch.dtype) -> Tensor:
        """The first kernels as they are used: blind to the level, which the interpolation carries."""
        kernel = self.head.weight.to(dtype)
        return kernel - kernel.mean(dim=tuple(range(2, kernel.ndim)), keepdim=True)

    @torch.no_grad()
    def stages(self, code: Tensor, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:
        """The network with one code (length,), cut for an engine; the transforms become slopes of each channel.

        Args:
            code: bound for good.
            edges: as in `medsr.upscaler.Staged`.
            gain, offset: the stages make `(network(low * gain + offset) - offset) / gain`; the offset is the
                interpolation's, for the detail does not see it.
        """
        del offset
        code = code.detach().to(self.head.weight.dtype)[None]
        entry = nn.Sequential(Frozen(self._first_kernel(torch.float32) * gain, None, edges=edges), nn.LeakyReLU(SLOPE))
        blocks = [block.frozen(code, edges) for block in self.body if isinstance(block, TransformedBlock)]
        body = nn.Sequential(
            frozen(self.second, edges=edges), nn.LeakyReLU(SLOPE, inplace=True), frozen(self.third, edges=edges),
            Plus(*blocks), *self.transform.before(self.mid, code, edges),
        )  # fmt: skip
        rising = [part for s in self.upsampling if isinstance(s, UpsamplingStage) for part in s.frozen(edges)]
        last = prime_stages(self.factor)[-1]
        multiple = tuple(f // s for f, s in zip(self.factor, last, strict=True))
        tail = FoldedTail(self.tail.weight.float() / gain, None, last, multiple=multiple, edges=edges)
        halo = tuple(map(max, self._margin, reach(self.factor)))
        # Without the last shuffle: the tail brings it, and one slope for all channels commutes with it.
        return Stages(entry, body, nn.Sequential(*rising[:-1]), tail, Interpolated(self.factor), halo)


class Transform(nn.Module):
    """Scale and shift of features by a code (equation 4), both proportional to the features: two slopes a channel."""

    def __init__(self, features: int, code: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(code, HIDDEN)
        self.out = nn.Linear(HIDDEN, 2 * features)
        with torch.no_grad():  # a new one is nearly a LeakyReLU, whatever the code
            self.out.weight.mul_(0.3)
            self.out.bias.zero_()

    def slopes(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (n, length) to the slope above zero, positive, and the ratio of the one below to it: (n, c) each.

        In float64, rounded at the end: a float32 product of matrices depends on where in memory they happen to lie.
        """
        hidden = functional.leaky_relu(_precise(self.hidden, code), SLOPE)
        above, below = _precise(self.out, hidden).chunk(2, 1)
        return (2 * torch.sigmoid(above)).to(code.dtype), (SLOPE + below).to(code.dtype)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """(n, c, *size) and (n, length) to the shape of the features."""
        above, ratio = (s.reshape(*s.shape, *[1] * (features.ndim - 2)).to(features.dtype) for s in self.slopes(code))
        positive = functional.relu(features)
        return above * (positive + ratio * (features - positive))

    def before(self, layer: nn.Module, code: Tensor, edges: bool) -> list[nn.Module]:
        """The transform by one code (1, length) and the convolution after it, frozen: the scale goes into its kernel,
        the ratio becomes a PReLU."""
        above, ratio = (s[0].float() for s in self.slopes(code))
        convolution = frozen(layer, edges=edges)
        convolution.kernel.mul_(above.reshape(1, -1, *[1] * (convolution.kernel.ndim - 2)))
        activation = nn.PReLU(len(ratio)).requires_grad_(False)
        activation.weight.copy_(ratio)
        return [activation.to(ratio.device), convolution]


class TransformedBlock(nn.Module):
    """Transform, convolution, transform, convolution, plus the input."""

    def __init__(self, dims: int, features: int, code: int) -> None:
        super().__init__()
        self.first_transform = Transform(features, code)
        self.first = _conv(dims, features, features, 3)
        self.second_transform = Transform(features, code)
        self.second = _conv(dims, features, features, 3)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """(n, c, *size) and (n, length) to the shape of the features."""
        change: Tensor = self.second(self.second_transform(self.first(self.first_transform(features, code)), code))
        return features + change

    def frozen(self, code: Tensor, edges: bool) -> Plus:
        """The block with one code (1, length)."""
        first = self.first_transform.before(self.first, code, edges)
        return Plus(*first, *self.second_transform.before(self.second, code, edges))


class PublishedSFTMD(nn.Module):
    """SFTMD with the paper's layers and parameter count, to compare with published results and weights.

    Its transforms make scale and shift of features and code together; it has biases, adds no interpolation and does
    not keep flat fields. 16 blocks of 64 features, RGB, factor (4, 4): 4,234,691 parameters.

    Args:
        factor: two entries, each the same.
        channels: 3 for published results.
        features, blocks, code: as `SFTMD`.

    References:
        J. Gu et al., "Blind super-resolution with iterative kernel correction", 2019, section 3.3 and figure 4,
        arXiv:1904.03377.
    """

    def __init__(
        self, factor: Factor, *, channels: int = 3, features: int = 64, blocks: int = 16, code: int = 10
    ) -> None:
        super().__init__()
        self.factor = validate_factor(factor)
        self.head = nn.Sequential(
            _zeros(channels, features, 3), nn.LeakyReLU(SLOPE), _zeros(features, features, 3), nn.LeakyReLU(SLOPE),
            _zeros(features, features, 3),
        )  # fmt: skip
        self.body = nn.ModuleList(PublishedBlock(features, code) for _ in range(blocks))
        self.transform = PublishedTransform(features, code)
        self.mid = _zeros(features, features, 3)
        self.stages = prime_stages(self.factor)
        self.rises = nn.ModuleList(_zeros(features, features * math.prod(stage), 3) for stage in self.stages)
        self.tail = _zeros(features, channels, 9)

    def forward(self, low: Tensor, code: Tensor) -> Tensor:
        """(n, channels, *size) and codes (n, length) to (n, channels, *size * factor)."""
        features: Tensor = self.head(low)
        change = features
        for block in self.body:
            change = block(change, code)
        features = self.mid(self.transform(features + change, code))
        for rise, stage in zip(self.rises, self.stages, strict=True):
            features = functional.leaky_relu(pixel_shuffle(rise(features), stage), SLOPE)
        estimate: Tensor = self.tail(features)
        return estimate


class PublishedTransform(nn.Module):
    """The paper's transform: features * sigmoid(scale) + shift, each from features and code by two convolutions."""

    def __init__(self, features: int, code: int) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Sequential(_zeros(features + code, HIDDEN, 3), nn.LeakyReLU(SLOPE), _zeros(HIDDEN, features, 3))
            for _ in range(2)
        )

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """(n, c, *size) and (n, length) to the shape of the features."""
        spread = code[:, :, None, None].expand(-1, -1, *features.shape[2:])
        both = torch.cat([features, spread], 1)
        transformed: Tensor = features * torch.sigmoid(self.scale(both)) + self.shift(both)  # equation 4
        return transformed


class PublishedBlock(nn.Module):
    """Transform, ReLU, convolution, transform, ReLU, convolution, plus the input."""

    def __init__(self, features: int, code: int) -> None:
        super().__init__()
        self.first_transform = PublishedTransform(features, code)
        self.first = _zeros(features, features, 3)
        self.second_transform = PublishedTransform(features, code)
        self.second = _zeros(features, features, 3)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """(n, c, *size) and (n, length) to the shape of the features."""
        inner = self.first(functional.relu(self.first_transform(features, code)))
        change: Tensor = self.second(functional.relu(self.second_transform(inner, code)))
        return features + change


def _precise(layer: nn.Linear, values: Tensor) -> Tensor:
    return functional.linear(values.double(), layer.weight.double(), layer.bias.double())


def _margin(factor: Factor, stages: tuple[Factor, ...], tail: int) -> tuple[int, ...]:
    """Coarse samples on either side of a cell that its fine samples depend on from the first upsampling stage on."""
    margin = []
    for axis, f in enumerate(factor):
        first, last = -(tail // 2), f - 1 + tail // 2
        for stage in reversed(stages):
            first, last = first // stage[axis] - 1, last // stage[axis] + 1
        margin.append(max(-first, last))
    return tuple(margin)


def _conv(dims: int, into: int, out: int, width: int) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(into, out, width, padding=width // 2, padding_mode="replicate", bias=False)


def _zeros(into: int, out: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, width, padding=width // 2)
