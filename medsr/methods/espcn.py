"""EspcnNetwork: three convolutions and a pixel shuffle, for video rates (Shi et al. 2016)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn

from medsr.methods.coarse import CoarseNetwork, SubPixel, checked_factor, convolution, start_
from medsr.methods.settings import NetworkRecipe
from medsr.scan import Factor

__all__ = ["EspcnNetwork", "EspcnRecipe"]


class EspcnRecipe(NetworkRecipe):
    """ESPCN trained on a pixel loss (Shi et al. 2016; doi:10.1109/CVPR.2016.207)."""

    kind: Literal["espcn"] = "espcn"
    features: tuple[int, int] = Field((64, 32), description="channels of the first and second layer (paper: 64, 32)")
    published: bool = Field(
        False, description="true: the paper's layers (tanh, biases, no interpolation); flat fields are not kept"
    )

    def build(self) -> EspcnNetwork:
        """The untrained network."""
        return EspcnNetwork(self.factor, features=self.features, published=self.published)

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """The paper's size, which is small."""
        return cls(factor=factor)


class EspcnNetwork(CoarseNetwork):
    """Kernels 5, 3 and 3 samples wide; the last makes all fine samples of a cell, the shuffle moves them in place.

    By default without biases, with PReLU for the paper's tanh, first kernels that sum to zero, and added to a cubic
    interpolation: gain and offset of the scan pass through (`CoarseNetwork`). The factor is one step, whatever it is.

    Args:
        factor: refinement of the last axes; two entries make a 2D network, three a 3D one.
        features: channels of the first and second layer (paper: 64, 32).
        published: the paper's network as it stands: tanh, biases, free first kernels, no interpolation. With one
            channel 21,284, 22,729 and 24,752 parameters for x2, x3 and x4. Its tanh is neither blind to the level nor
            proportional to the contrast. Edges are replicated here too.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.

    Raises:
        ValueError: a factor that is not two or three whole numbers with one above 1, or a count below 1.

    References:
        W. Shi et al., "Real-time single image and video super-resolution using an efficient sub-pixel convolutional
        neural network", 2016, section 3.1, doi:10.1109/CVPR.2016.207.
    """

    def __init__(self, factor: Factor, *, features: tuple[int, int] = (64, 32), published: bool = False) -> None:
        factor = checked_factor(factor, "EspcnNetwork")
        if len(features) != 2 or min(features) < 1:
            raise ValueError(f"EspcnNetwork: expected two counts of features of at least 1, found {features}")
        dims, (first, second) = len(factor), features
        super().__init__(
            factor,
            head=convolution(dims, 1, first, 5, bias=published),
            body=nn.Sequential(
                nn.Tanh() if published else nn.PReLU(),
                convolution(dims, first, second, 3, bias=published),
                nn.Tanh() if published else nn.PReLU(),
            ),
            tail=SubPixel(factor, second, bias=published),
            residual=not published,
        )
        self._settings = f"features={tuple(features)}, published={published}"
        self.reset_parameters()

    def __repr__(self) -> str:
        return f"EspcnNetwork({self.factor}, {self._settings})"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights: He et al. 2015 for each layer, the last scaled by 0.1 where it adds to an interpolation,
        and the same for all fine samples of a cell."""
        for layer in (self.head, self.body[1]):
            start_(layer.get_parameter("weight"), slope=0.25 if self.residual else 1.0)
            if not self.residual:
                layer.get_parameter("bias").zero_()
        self.tail.start_(0.1 if self.residual else 1.0)
