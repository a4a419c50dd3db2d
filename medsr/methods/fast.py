"""FastNetwork: a small network for CPUs and live pictures, all of it on the coarse grid."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn

from medsr.methods.coarse import CoarseNetwork, Skip, SubPixel, checked_factor, convolution, start_
from medsr.methods.settings import NetworkRecipe
from medsr.scan import Factor

__all__ = ["FastNetwork", "FastRecipe"]


class FastRecipe(NetworkRecipe):
    """A small residual network on the coarse grid, trained on a pixel loss (after Lim et al. and Shi et al.)."""

    kind: Literal["fast"] = "fast"
    features: int = Field(32, ge=1, le=256, description="channels of every layer: cost grows with their square")
    blocks: int = Field(4, ge=1, le=64, description="residual blocks of two layers: more see further and cost time")

    def build(self) -> FastNetwork:
        """The untrained network."""
        return FastNetwork(self.factor, features=self.features, blocks=self.blocks)

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """The default size, which is small."""
        return cls(factor=factor)


class FastNetwork(CoarseNetwork):
    """A convolution 5 wide, residual blocks 3 wide, and one convolution that makes all fine samples of a cell.

    SRResNet without what costs most: few channels, narrow first and last kernels, no layer at a finer resolution.
    Nothing has a bias and the first kernels sum to zero: gain and offset of the scan pass through, and a flat field
    stays flat (`CoarseNetwork`). The factor is one step, whatever it is.

    Args:
        factor: refinement of the last axes; two entries make a 2D network, three a 3D one.
        features: channels of every layer.
        blocks: residual blocks of two layers.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.

    Raises:
        ValueError: a factor that is not two or three whole numbers with one above 1, or a count below 1.

    References:
        W. Shi et al., "Real-time single image and video super-resolution using an efficient sub-pixel convolutional
        neural network", 2016, doi:10.1109/CVPR.2016.207 (all layers on the coarse grid).
        B. Lim et al., "Enhanced deep residual networks for single image super-resolution", 2017, section 3.1,
        doi:10.1109/CVPRW.2017.151 (residual blocks without a norm).
    """

    def __init__(self, factor: Factor, *, features: int = 32, blocks: int = 4) -> None:
        factor = checked_factor(factor, "FastNetwork")
        if min(features, blocks) < 1:
            raise ValueError(f"FastNetwork: expected at least 1 feature and 1 block, found {features} and {blocks}")
        dims = len(factor)
        inner = (
            Skip(convolution(dims, features, features, 3), nn.PReLU(), convolution(dims, features, features, 3))
            for _ in range(blocks)
        )
        super().__init__(
            factor,
            head=convolution(dims, 1, features, 5),
            body=nn.Sequential(nn.PReLU(), Skip(*inner)),
            tail=SubPixel(factor, features, bias=False),
            residual=True,
        )
        self._settings = f"features={features}, blocks={blocks}"
        self.reset_parameters()

    def __repr__(self) -> str:
        return f"FastNetwork({self.factor}, {self._settings})"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights: He et al. 2015 for each layer; the second one of a block and the last one scaled by 0.1,
        so that training starts near the interpolation, and the last the same for all fine samples of a cell."""
        start_(self.head.weight)
        for name, layer in self.body.named_modules():
            if isinstance(layer, nn.PReLU):
                layer.weight.fill_(0.25)
            elif isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                second = name.endswith("layers.2")
                start_(layer.weight, slope=1.0 if second else 0.25).mul_(0.1 if second else 1.0)
        self.tail.start_(0.1)
