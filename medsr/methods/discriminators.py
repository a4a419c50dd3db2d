"""Discriminators: the SRGAN paper's for any patch size, and PatchGAN's; 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["PatchDiscriminator", "SrganDiscriminator"]

Norm = Literal["batch", "spectral", "none"]

_KINDS: dict[int, Callable[..., nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


class SrganDiscriminator(nn.Module):
    """The SRGAN paper's discriminator: eight convolutions, four of them with stride 2, then one verdict a patch.

    With `patch` the paper's dense head is sized for it: exactly 23,563,649 parameters for RGB patches of 96 x 96 and 64
    features. Without, features are averaged over the patch before the dense head, and any size can be judged. An axis
    is halved only while at least two samples remain of it, so that patches of 16, or of 4 planes, work too.

    Args:
        dims: 2 or 3.
        channels: of the images, 1 for scientific scans.
        features: channels of the first layer; doubled three times (paper: 64).
        patch: fine samples of a patch for each axis; None: any, pooled.
        norm: "batch" (paper), "spectral" (Miyato et al. 2018; steadier with small batches) or "none".

    Attributes:
        patch: as given.

    Raises:
        ValueError: `dims` is neither 2 nor 3, or `patch` has another length or a size below 1.

    References:
        C. Ledig et al., "Photo-realistic single image super-resolution using a generative adversarial network", 2017,
        figure 4, doi:10.1109/CVPR.2017.19.
        T. Miyato et al., "Spectral normalization for generative adversarial networks", 2018, arXiv:1802.05957.
    """

    def __init__(
        self,
        dims: int,
        *,
        channels: int = 1,
        features: int = 64,
        patch: Sequence[int] | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.patch = _checked("SrganDiscriminator", dims, patch, norm)
        size = list(self.patch) if self.patch else [2**5] * dims
        layers: list[nn.Module] = []
        width = channels
        for stage in range(4):
            wide = features * 2**stage
            stride = tuple(2 if n >= 4 else 1 for n in size)
            size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
            layers.append(_layer(dims, width, wide, norm=norm if stage else _without_batch(norm)))
            layers.append(_layer(dims, wide, wide, stride=stride, norm=norm))
            width = wide
        self.layers = nn.ModuleList(layers)
        self.head = nn.Sequential(
            _dense(width * math.prod(size) if self.patch else width, 16 * features, norm),
            nn.LeakyReLU(0.2),
            _dense(16 * features, 1, norm),
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of each convolution, shallow to deep: (n, wide, *coarser size) each.

        `images`: (n, channels, *size) in unit intensity, mapped to -1..1 inside as in the paper.

        Raises:
            ValueError: the patch is not of the size given at the start.
        """
        if self.patch is not None and tuple(images.shape[2:]) != self.patch:
            raise ValueError(
                f"SrganDiscriminator: expected patches of {self.patch}, found {tuple(images.shape[2:])}; "
                "give the patch size, or None for any"
            )
        return _activations(self.layers, images)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, *size) in unit intensity to logits (n, 1): above 0 for what looks like a real fine patch.

        Raises:
            ValueError: the patch is not of the size given at the start.
        """
        return self.verdict(self.features(images))

    def verdict(self, features: list[Tensor]) -> Tensor:
        """The logits that follow from `features`."""
        deep = features[-1]
        logits: Tensor = self.head(deep.flatten(1) if self.patch else deep.flatten(2).mean(2))
        return logits


class PatchDiscriminator(nn.Module):
    """PatchGAN: a verdict for each neighborhood, about 70 samples wide, so that texture is judged and layout is not.

    Convolutional throughout: any size, and one that is larger than the patches of training too. 2,765,633 parameters
    for RGB with 64 features and norm "batch" in 2D, as published.

    Args:
        dims: 2 or 3.
        channels: of the images, 1 for scientific scans.
        features: channels of the first layer, doubled with each further layer up to eightfold (paper: 64).
        stages: layers of stride 2 (paper: 3, a neighborhood of 70).
        patch: smallest patch that will be judged, one size an axis: an axis is halved only while four samples remain
            of it, so that patches of 16, or of 4 planes, work too. None: every axis is halved at every stage.
        norm: "spectral" (default; steadier with small batches), "batch" (paper) or "none".

    Raises:
        ValueError: `dims` is neither 2 nor 3, or `patch` has another length or a size below 1.

    References:
        P. Isola et al., "Image-to-image translation with conditional adversarial networks", 2017, appendix 6.1.2,
        doi:10.1109/CVPR.2017.632.
    """

    def __init__(
        self,
        dims: int,
        *,
        channels: int = 1,
        features: int = 64,
        stages: int = 3,
        patch: Sequence[int] | None = None,
        norm: Norm = "spectral",
    ) -> None:
        super().__init__()
        self.patch = _checked("PatchDiscriminator", dims, patch, norm)
        size = list(self.patch) if self.patch else [2 ** (stages + 3)] * dims
        layers: list[nn.Module] = []
        width = channels
        for stage in range(stages + 1):
            wide = features * 2 ** min(stage, 3)
            halved = [stage < stages and n >= 8 for n in size]
            shrinks = [half or (stage == stages and n >= 4) for half, n in zip(halved, size, strict=True)]
            kernel = tuple(4 if shrink else 3 for shrink in shrinks)
            stride = tuple(2 if half else 1 for half in halved)
            size = [(n + 2 - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True)]
            first = norm if stage else _without_batch(norm)
            layers.append(_layer(dims, width, wide, kernel=kernel, stride=stride, norm=first))
            width = wide
        self.layers = nn.ModuleList(layers)
        kernel = tuple(4 if n >= 3 else 3 for n in size)
        self.head = _convolution(dims, width, 1, kernel=kernel, bias=True, norm=norm)

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of each convolution but the last, shallow to deep: (n, wide, *coarser size) each.

        `images`: (n, channels, *size) in unit intensity, mapped to -1..1 inside.
        """
        return _activations(self.layers, images)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, *size) in unit intensity to logits (n, 1, *coarser size), one for each neighborhood."""
        return self.verdict(self.features(images))

    def verdict(self, features: list[Tensor]) -> Tensor:
        """The logits that follow from `features`."""
        logits: Tensor = self.head(features[-1])
        return logits


def _checked(who: str, dims: int, patch: Sequence[int] | None, norm: str) -> tuple[int, ...] | None:
    if dims not in (2, 3):
        raise ValueError(f"{who}: expected 2 or 3 dimensions, found {dims}")
    if patch is not None and (len(patch) != dims or min(patch) < 1):
        raise ValueError(f"{who}: expected a patch of {dims} sizes of at least 1, found {tuple(patch)}")
    if norm not in ("batch", "spectral", "none"):
        raise ValueError(f"{who}: expected norm 'batch', 'spectral' or 'none', found {norm!r}")
    return None if patch is None else tuple(int(n) for n in patch)


def _activations(layers: nn.ModuleList, images: Tensor) -> list[Tensor]:
    deep = 2 * images - 1
    found = []
    for layer in layers:
        deep = layer(deep)
        found.append(deep)
    return found


def _without_batch(norm: Norm) -> Norm:
    """The first layer has no batch normalization."""
    return "none" if norm == "batch" else norm


def _layer(
    dims: int,
    into: int,
    out: int,
    *,
    norm: Norm,
    kernel: tuple[int, ...] | None = None,
    stride: tuple[int, ...] | None = None,
) -> nn.Sequential:
    """A convolution (without bias before a batch norm), its norm, LeakyReLU 0.2."""
    parts = [_convolution(dims, into, out, kernel=kernel, stride=stride, bias=norm != "batch", norm=norm)]
    if norm == "batch":
        parts.append(nn.BatchNorm2d(out) if dims == 2 else nn.BatchNorm3d(out))
    return nn.Sequential(*parts, nn.LeakyReLU(0.2))


def _convolution(
    dims: int,
    into: int,
    out: int,
    *,
    bias: bool,
    norm: Norm,
    kernel: tuple[int, ...] | None = None,
    stride: tuple[int, ...] | None = None,
) -> nn.Module:
    """Padding 1 with zeros, as in both papers; He et al. 2015 at the start."""
    layer = _KINDS[dims](into, out, kernel or (3,) * dims, stride=stride or (1,) * dims, padding=1, bias=bias)
    return _started(layer, norm)


def _dense(into: int, out: int, norm: Norm) -> nn.Module:
    return _started(nn.Linear(into, out), norm)


def _started(layer: nn.Conv2d | nn.Conv3d | nn.Linear, norm: Norm) -> nn.Module:
    with torch.no_grad():
        nn.init.kaiming_normal_(layer.weight, a=0.2)
        if layer.bias is not None:
            layer.bias.zero_()
    return spectral_norm(layer) if norm == "spectral" else layer
