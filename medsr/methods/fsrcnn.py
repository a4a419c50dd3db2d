"""FsrcnnNetwork: shrink, map, expand, and a deconvolution (Dong et al. 2016)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn

from medsr.methods.coarse import CoarseNetwork, Deconvolution, checked_factor, convolution, start_
from medsr.methods.settings import NetworkRecipe
from medsr.scan import Factor

__all__ = ["FsrcnnNetwork", "FsrcnnRecipe"]

PAPER_WIDTH = 9
"""Of the paper's deconvolution, for every factor."""


class FsrcnnRecipe(NetworkRecipe):
    """FSRCNN trained on a pixel loss (Dong et al. 2016; arXiv:1608.00367)."""

    kind: Literal["fsrcnn"] = "fsrcnn"
    features: int = Field(56, ge=1, le=1024, description="channels of the first and the last layers (paper: d = 56)")
    shrunk: int = Field(12, ge=1, le=1024, description="channels of the mapping layers between (paper: s = 12)")
    mappings: int = Field(4, ge=0, le=64, description="mapping layers (paper: m = 4)")
    published: bool = Field(
        False, description="true: the paper's layers (biases, no interpolation, width 9); flat fields are not kept"
    )

    def build(self) -> FsrcnnNetwork:
        """The untrained network."""
        return FsrcnnNetwork(
            self.factor,
            features=self.features,
            shrunk=self.shrunk,
            mappings=self.mappings,
            published=self.published,
        )

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """The paper's size, which is small."""
        return cls(factor=factor)


class FsrcnnNetwork(CoarseNetwork):
    """Kernels 5 wide to `features` channels, 1 wide to `shrunk`, `mappings` times 3 wide, 1 wide back, deconvolution.

    By default without biases, with one slope for each PReLU, first kernels that sum to zero, and added to a cubic
    interpolation: gain and offset of the scan pass through (`CoarseNetwork`).

    The paper's deconvolution is 9 wide for every factor, so for an even factor its center lies on a fine sample and
    not on the center of a cell: the picture is half a fine sample off the block-centered grid, which the layers before
    have to undo. Here the width is 9 for an odd factor and 10 for an even one, centered on the cell; for a factor
    above 7 it is the factor plus 2, so that neighbors overlap; an axis that is not refined has 3, as a mapping layer.

    Args:
        factor: refinement of the last axes; two entries make a 2D network, three a 3D one. One step, whatever it is.
        features: channels of the first and the last layers (paper: d = 56).
        shrunk: channels of the mapping layers (paper: s = 12).
        mappings: their count (paper: m = 4).
        published: the paper's network as it stands: biases, a slope for each channel, free first kernels, width 9, no
            interpolation. Its 12,464 parameters are the weights of the convolutions; 173 biases and 172 slopes are
            not among them. Edges are replicated here too.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.

    Raises:
        ValueError: a factor that is not two or three whole numbers with one above 1, or a count too small.

    References:
        C. Dong, C. C. Loy, X. Tang, "Accelerating the super-resolution convolutional neural network", 2016,
        section 3, arXiv:1608.00367.
    """

    def __init__(
        self, factor: Factor, *, features: int = 56, shrunk: int = 12, mappings: int = 4, published: bool = False
    ) -> None:
        factor = checked_factor(factor, "FsrcnnNetwork")
        if min(features, shrunk) < 1 or mappings < 0:
            raise ValueError(
                f"FsrcnnNetwork: expected at least 1 feature, 1 of the shrunk ones and 0 mappings; found "
                f"{features}, {shrunk} and {mappings}"
            )
        dims = len(factor)
        steps = [(features, shrunk, 1), *[(shrunk, shrunk, 3)] * mappings, (shrunk, features, 1)]
        body: list[nn.Module] = [_activation(features, published)]
        for into, out, width in steps:
            body += [convolution(dims, into, out, width, bias=published), _activation(out, published)]
        widths = (PAPER_WIDTH,) * dims if published else tuple(map(_width, factor))
        super().__init__(
            factor,
            head=convolution(dims, 1, features, 5, bias=published),
            body=nn.Sequential(*body),
            tail=Deconvolution(
                factor, features, widths, first=(PAPER_WIDTH // 2,) * dims if published else None, bias=published
            ),
            residual=not published,
        )
        self._settings = f"features={features}, shrunk={shrunk}, mappings={mappings}, published={published}"
        self.reset_parameters()

    def __repr__(self) -> str:
        return f"FsrcnnNetwork({self.factor}, {self._settings})"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights: He et al. 2015 for each layer; the deconvolution starts as repetition of each sample,
        scaled by 0.1 where it adds to an interpolation."""
        for layer in (self.head, *self.body):
            if isinstance(layer, nn.PReLU):
                layer.weight.fill_(0.25)
            else:
                start_(layer.get_parameter("weight"))
                if not self.residual:
                    layer.get_parameter("bias").zero_()
        self.tail.start_(0.1 if self.residual else 1.0)


def _activation(channels: int, published: bool) -> nn.PReLU:
    return nn.PReLU(channels if published else 1)


def _width(factor: int) -> int:
    """Of the deconvolution along an axis: of the parity of the factor, so that a kernel is centered on its cell."""
    return 3 if factor == 1 else max(PAPER_WIDTH + 1 - factor % 2, factor + 2)
