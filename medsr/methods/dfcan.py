"""DFCAN, Fourier channel attention, plane by plane; its spectra are local, so that tiles fit together."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.attention import (
    AttentionNetwork,
    AttentionRecipe,
    Layers,
    Residual,
    checked,
    conv,
    local_mean,
    pointwise,
)
from medsr.methods.layers import convolve
from medsr.precision import float32_only
from medsr.scan import Factor

__all__ = ["DFCAN", "DfcanRecipe", "FourierAttention", "GlobalFourierAttention"]

TRANSFORM = 5
"""Samples along each axis of one local spectrum; the spectra of all positions in the window are averaged."""

POWER = 0.8
"""Exponent of the magnitudes of a spectrum: weak high frequencies count beside strong low ones (paper's code)."""

SPECTRUM = 128
"""Frequencies along each axis that the published network brings every spectrum to, whatever the image."""

TINY = 1e-30
"""Power of a silent spectrum: keeps the slope of the exponent finite."""

LEAK = 0.1
"""Slope below zero of the activations of the quantitative network."""


class DfcanRecipe(AttentionRecipe):
    """DFCAN with local spectra, trained on a pixel loss (Qiao et al. 2021, doi:10.1038/s41592-020-01048-5)."""

    kind: Literal["dfcan"] = "dfcan"
    groups: int = Field(4, ge=1, le=64, description="residual groups (paper: 4)")
    blocks: int = Field(4, ge=1, le=64, description="blocks with attention in each group (paper: 4)")

    @field_validator("factor")
    @classmethod
    def _in_planes(cls, value: Factor) -> Factor:
        if len(value) == 3 and value[0] != 1:
            raise ValueError(
                f"expected 2 entries, or 3 that start with 1, for this network sees one plane at a time; found "
                f"{value}; use kind: rcan to refine z"
            )
        return value

    def build(self) -> DFCAN:
        """The untrained network."""
        return DFCAN(
            self.factor,
            features=self.features,
            groups=self.groups,
            blocks=self.blocks,
            reduction=self.reduction,
            window=self.window,
        )

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """32 features, 2 groups of 2 blocks."""
        return cls(factor=factor, features=32, groups=2, blocks=2, reduction=8)


class DFCAN(AttentionNetwork):
    """Residual groups of blocks whose channels are weighed by their spectra, then pixel shuffle; 2D.

    The paper transforms each channel of the whole image; then no tile knows its result. Here the channels are mixed to
    a few, and of those the power of small windowed Fourier transforms, one around each sample, is averaged over a fixed
    window and divided by the mean power there. So the reach is finite, the weights of the channels do not depend on
    level nor contrast, and gain and offset pass through as in `RCAN`. The output is linear: no sigmoid, no stretching
    of each image to its least and largest value, after which no count would be left.

    A factor of three entries that starts with 1 upscales a stack plane by plane.

    With `published=True` the layers are the paper's, for comparison: biases, GELU, one spectrum of the whole image, a
    sigmoid at the end (but repeated edges). 1,930,753 parameters for factor (2, 2), 2,115,393 for (3, 3). It runs on
    whole images and patches; `adapt` and `stages` refuse it.

    Args:
        factor: refinement of the last axes: (2, 2), (3, 3), or (1, 2, 2). Any whole numbers.
        channels: of the image, 1 for scientific scans.
        features: channels of every layer (paper: 64).
        groups: residual groups (paper: 4).
        blocks: blocks in each group (paper: 4).
        reduction: features for each channel of the bottleneck of attention (paper: 16).
        window: coarse samples, odd, that attention looks at, along each axis of the plane; None: the whole image, which
            only the published layers do.
        published: the paper's layers, see above; `window` then does not count.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis: the exact reach of the layers. Of it a trained network uses far
            less; see `medsr.methods.seams`.

    Raises:
        ValueError: a factor that refines z, or a factor, count or window that is not valid.

    References:
        C. Qiao et al., "Evaluation and development of deep neural networks for image super-resolution in optical
        microscopy", 2021, doi:10.1038/s41592-020-01048-5.
    """

    def __init__(
        self,
        factor: Factor,
        *,
        channels: int = 1,
        features: int = 64,
        groups: int = 4,
        blocks: int = 4,
        reduction: int = 16,
        window: int = 15,
        published: bool = False,
    ) -> None:
        factor = checked("DFCAN", factor, (channels, features, groups, blocks, reduction), window)
        if len(factor) == 3 and factor[0] != 1:
            raise ValueError(
                f"DFCAN: expected a factor of two entries, or of three that starts with 1, for it sees one plane at a "
                f"time; found {factor}; take RCAN to refine z"
            )
        kernel = (3, 3) if len(factor) == 2 else (1, 3, 3)
        reach = 1 + groups * blocks * (2 + window // 2)
        along = tuple(reach if width > 1 else 0 for width in kernel)
        activation = nn.GELU() if published else nn.LeakyReLU(LEAK)
        seen = None if published else window
        layers = Layers("DFCAN", channels, features, kernel, seen, published, not published, along)

        def block() -> Residual:
            attention = (
                GlobalFourierAttention(kernel, features, reduction)
                if published
                else FourierAttention(kernel, features, reduction, window)
            )
            first, second = (conv(features, features, kernel, bias=published) for _ in range(2))
            return Residual(first, activation, second, activation, attention)

        body = nn.Sequential(*(Residual(*(block() for _ in range(blocks))) for _ in range(groups)))
        super().__init__(
            factor,
            layers,
            head_activation=activation,
            body=body,
            rise_activation=activation,
            output=nn.Sigmoid() if published else nn.Identity(),
        )
        self._settings = (
            f"channels={channels}, features={features}, groups={groups}, blocks={blocks}, reduction={reduction}, "
            f"window={seen}, published={published}"
        )

    def __repr__(self) -> str:
        return f"DFCAN({self.factor}, {self._settings})"


class FourierAttention(nn.Module):
    """Weighs each channel by the local spectra of a few mixtures of all channels; in float32, without autocast.

    Every power is divided by the mean power in the window, so that the weights do not change with the contrast.
    """

    def __init__(self, kernel: tuple[int, ...], features: int, reduction: int, window: int) -> None:
        super().__init__()
        narrow, one = max(1, features // reduction), (1,) * len(kernel)
        filters = spectral_filters()
        self.frequencies = len(filters)
        transforms = torch.cat((filters.real, filters.imag[1:]))[:, None]
        self.transforms: Tensor
        self.register_buffer("transforms", transforms if len(kernel) == 2 else transforms[:, :, None])
        self.window = tuple(window - TRANSFORM + 1 if width > 1 else 1 for width in kernel)
        self.mix = conv(features, narrow, one, bias=False)
        self.spectrum = conv(narrow * self.frequencies, features, one, bias=False)
        self.squeeze = conv(features, narrow, one, bias=True)
        self.excite = conv(narrow, features, one, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        exact = torch.promote_types(features.dtype, torch.float32)
        with float32_only(features.device):
            power = self._power(pointwise(features.to(exact), self.mix))
            seen = torch.relu(pointwise(power, self.spectrum))
            total = local_mean(power.mean(1, keepdim=True), self.window).clamp(min=torch.finfo(exact).tiny)
            descriptor = local_mean(seen, self.window) / total
            squeezed = functional.leaky_relu(pointwise(descriptor, self.squeeze), LEAK)  # never silent everywhere
            weight = torch.sigmoid(pointwise(squeezed, self.excite))
        return features * weight.to(features.dtype)

    def _power(self, mixed: Tensor) -> Tensor:
        """|local Fourier transform|^POWER of each channel: (n, c, *size) to (n, c * frequencies, *size)."""
        n, c, *size = mixed.shape
        parts = convolve(mixed.reshape(n * c, 1, *size), self.transforms.to(mixed.dtype), None).square()
        cosines, sines = parts[:, : self.frequencies], parts[:, self.frequencies :]
        power = torch.cat((cosines[:, :1], cosines[:, 1:] + sines), 1)  # the constant has no sine
        return (power + TINY).pow(POWER / 2).reshape(n, c * self.frequencies, *size)


class GlobalFourierAttention(nn.Module):
    """Weighs each channel by the spectrum of the whole image, as published; of each plane of a stack by its own."""

    def __init__(self, kernel: tuple[int, ...], features: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, features // reduction)
        self.spectrum = conv(features, features, (3, 3), bias=True)
        self.squeeze = conv(features, narrow, (1, 1), bias=True)
        self.excite = conv(narrow, features, (1, 1), bias=True)
        self.planes = len(kernel) == 3

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        image = features.transpose(1, 2).flatten(0, 1) if self.planes else features
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        with float32_only(features.device):
            magnitude = (torch.fft.fft2(image).abs() + math.sqrt(TINY)).pow(POWER)
            magnitude = torch.fft.fftshift(magnitude, dim=(-2, -1))
            magnitude = functional.interpolate(magnitude, (SPECTRUM, SPECTRUM), mode="bilinear", align_corners=False)
            kernel, bias = self.spectrum.weight.to(image.dtype), self.spectrum.get_parameter("bias").to(image.dtype)
            descriptor = torch.relu(convolve(magnitude, kernel, bias)).mean(dim=(2, 3), keepdim=True)
            weight = torch.sigmoid(pointwise(torch.relu(pointwise(descriptor, self.squeeze)), self.excite))
        if self.planes:
            weight = weight.reshape(features.shape[0], features.shape[2], -1, 1, 1).transpose(1, 2)
        return features * weight.to(features.dtype)


def spectral_filters() -> Tensor:
    """Windowed plane waves, (frequencies, TRANSFORM, TRANSFORM), complex: the constant first, then one of each pair of
    opposite frequencies. The window is Hann's, its sum 1."""
    place = torch.arange(TRANSFORM, dtype=torch.float64) - TRANSFORM // 2
    hann = torch.cos(math.pi * place / (TRANSFORM + 1)).square()
    window = hann[:, None] * hann / hann.sum() ** 2
    half = TRANSFORM // 2
    waves = [(ky, kx) for ky in range(half + 1) for kx in range(-half, half + 1) if (ky, kx) >= (0, 0)]
    phases = torch.stack([ky * place[:, None] + kx * place for ky, kx in waves]) * (2 * math.pi / TRANSFORM)
    return (window * torch.polar(torch.ones_like(phases), phases)).to(torch.complex64)
