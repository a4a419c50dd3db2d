"""UnetDiscriminator: Real-ESRGAN's, which gives a verdict for each sample; 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["UnetDiscriminator"]

Norm = Literal["batch", "spectral", "none"]

KINDS: dict[int, Callable[..., nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}

SLOPE = 0.2
"""Of every LeakyReLU below zero."""

DESCENTS = 3
"""Layers of stride 2."""


class UnetDiscriminator(nn.Module):
    """A U-Net: down to an eighth of the size and up again, with skips, and a logit for each sample.

    Each sample is judged by its neighborhood and by the layout around it, so the generator is told where it went
    wrong. 4,376,897 parameters for RGB with 64 features in 2D, as published. Any size, even or odd, and another one
    than the patches of training too.

    Args:
        dims: 2 or 3.
        channels: of the images, 1 for scientific scans.
        features: channels of the first layer, doubled three times (paper: 64).
        patch: smallest patch that will be judged, one size an axis: an axis is halved only while four samples remain
            of it, so that patches of 16, or of 4 planes, work too. None: every axis is halved three times, which needs
            8 samples.
        norm: "spectral" (paper: all layers but the first and the last), "batch" or "none".

    Raises:
        ValueError: `dims` is neither 2 nor 3, `patch` has another length or a size below 1, or an unknown norm.

    References:
        X. Wang et al., "Real-ESRGAN: Training real-world blind super-resolution with pure synthetic data", 2021,
        section 3.4 and figure 6, arXiv:2107.10833.
        T. Miyato et al., "Spectral normalization for generative adversarial networks", 2018, arXiv:1802.05957.
    """

    def __init__(
        self,
        dims: int,
        *,
        channels: int = 1,
        features: int = 64,
        patch: Sequence[int] | None = None,
        norm: Norm = "spectral",
    ) -> None:
        super().__init__()
        _check(dims, patch, norm)
        size = list(patch) if patch is not None else [2 ** (DESCENTS + 3)] * dims
        self.first = _layer(dims, channels, features, norm="none", bias=True)
        down = []
        for stage in range(DESCENTS):
            halved = tuple(n >= 8 for n in size)
            size = [n // 2 if half else n for n, half in zip(size, halved, strict=True)]
            down.append(_layer(dims, features * 2**stage, features * 2 ** (stage + 1), norm=norm, halved=halved))
        self.down = nn.ModuleList(down)
        widths = [features * 2**stage for stage in range(DESCENTS, -1, -1)]
        self.up = nn.ModuleList(_layer(dims, deep, shallow, norm=norm) for deep, shallow in pairwise(widths))
        self.last = nn.ModuleList(_layer(dims, features, features, norm=norm) for _ in range(2))
        self.head = _convolution(dims, features, 1, norm="none", bias=True)
        self._mode = "bilinear" if dims == 2 else "trilinear"

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of each convolution but the last, down and up again: (n, wide, *coarser size) each.

        `images`: (n, channels, *size) in unit intensity, mapped to -1..1 inside.
        """
        found = [self.first(2 * images - 1)]
        for layer in self.down:
            found.append(layer(found[-1]))
        deep, skips = found[-1], found[-2::-1]
        for layer, skip in zip(self.up, skips, strict=True):
            # To the size of the skip, whatever was lost of an odd one on the way down.
            risen = functional.interpolate(deep, tuple(skip.shape[2:]), mode=self._mode, align_corners=False)
            deep = layer(risen) + skip
            found.append(deep)
        for layer in self.last:
            deep = layer(deep)
            found.append(deep)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, *size) in unit intensity to logits (n, 1, *size): above 0 where it looks like a real fine
        patch."""
        return self.verdict(self.features(images))

    def verdict(self, features: list[Tensor]) -> Tensor:
        """The logits that follow from `features`."""
        logits: Tensor = self.head(features[-1])
        return logits


def _check(dims: int, patch: Sequence[int] | None, norm: str) -> None:
    if dims not in (2, 3):
        raise ValueError(f"UnetDiscriminator: expected 2 or 3 dimensions, found {dims}")
    if patch is not None and (len(patch) != dims or min(patch) < 1):
        raise ValueError(f"UnetDiscriminator: expected a patch of {dims} sizes of at least 1, found {tuple(patch)}")
    if norm not in ("batch", "spectral", "none"):
        raise ValueError(f"UnetDiscriminator: expected norm 'batch', 'spectral' or 'none', found {norm!r}")


def _layer(
    dims: int, into: int, out: int, *, norm: Norm, bias: bool = False, halved: tuple[bool, ...] | None = None
) -> nn.Sequential:
    """A convolution, its norm, LeakyReLU; along halved axes of width 4 and stride 2."""
    parts = [_convolution(dims, into, out, norm=norm, bias=bias, halved=halved)]
    if norm == "batch":
        parts.append(nn.BatchNorm2d(out) if dims == 2 else nn.BatchNorm3d(out))
    return nn.Sequential(*parts, nn.LeakyReLU(SLOPE))


def _convolution(
    dims: int, into: int, out: int, *, norm: Norm, bias: bool, halved: tuple[bool, ...] | None = None
) -> nn.Module:
    kernel = tuple(4 if half else 3 for half in halved or (False,) * dims)
    stride = tuple(2 if half else 1 for half in halved or (False,) * dims)
    layer = KINDS[dims](into, out, kernel, stride=stride, padding=1, bias=bias)
    with torch.no_grad():
        nn.init.kaiming_normal_(layer.weight, a=SLOPE)
        if layer.bias is not None:
            layer.bias.zero_()
    return spectral_norm(layer) if norm == "spectral" else layer
