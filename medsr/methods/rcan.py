"""RCAN, residual channel attention, in 2D and 3D; its attention looks over a window, so that tiles fit together."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

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
from medsr.scan import Factor

__all__ = ["RCAN", "ChannelAttention", "RcanRecipe"]


class RcanRecipe(AttentionRecipe):
    """RCAN trained on a pixel loss (Zhang et al. 2018, doi:10.1007/978-3-030-01234-2_18; 3D: Chen et al. 2021,
    doi:10.1038/s41592-021-01155-x)."""

    kind: Literal["rcan"] = "rcan"
    groups: int = Field(10, ge=1, le=64, description="residual groups (paper: 10; 3D: 4 to 5)")
    blocks: int = Field(20, ge=1, le=64, description="blocks with attention in each group (paper: 20; 3D: 3 to 5)")

    def build(self) -> RCAN:
        """The untrained network."""
        return RCAN(
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
        return cls(factor=factor, features=32, groups=2, blocks=2, reduction=8, window=15 if len(factor) == 2 else 7)


class RCAN(AttentionNetwork):
    """Residual groups of blocks whose channels are weighed by attention, then pixel shuffle.

    The paper's attention averages each channel over the whole image; then no tile knows its result. Here each block
    averages over a fixed window around each sample, along every axis: the weights of the channels vary over the image,
    and the reach is finite. The averages are divided by the mean magnitude of all channels over the same window. So the
    weights of the channels do not depend on level nor contrast, and with no bias elsewhere, first kernels that sum to
    zero, and the cubic interpolation around it all, for every gain a > 0 and offset b

        network(a * low + b) == a * network(low) + b

    up to rounding, whatever the weights; a flat field stays flat at its level.

    With `published=True` the layers are the paper's, for comparison: biases, averages over the whole image, no
    interpolation, free first kernels (but repeated edges). 10 groups of 20 blocks, RGB: 15,592,355 parameters for
    factor (4, 4), 15,444,643 for (2, 2). It runs on whole images and patches; `adapt` and `stages` refuse it.

    Args:
        factor: refinement of the last axes; two entries make a 2D network, three a 3D one. Any whole numbers.
        channels: 1 for scientific scans; 3 only to compare with published RGB results.
        features: channels of every layer (paper: 64).
        groups: residual groups (paper: 10).
        blocks: blocks in each group (paper: 20).
        reduction: features for each channel of the bottleneck of attention (paper: 16).
        window: coarse samples, odd, that attention averages over, along each axis; None: the whole image.
        published: the paper's layers, see above; `window` then does not count.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis: the exact reach of the layers, `groups * blocks` windows long. Of
            it a trained network uses far less; see `medsr.methods.seams`.

    Raises:
        ValueError: a factor, count or window that is not valid.

    References:
        Y. Zhang et al., "Image super-resolution using very deep residual channel attention networks", 2018,
        doi:10.1007/978-3-030-01234-2_18.
        J. Chen et al., "Three-dimensional residual channel attention networks denoise and sharpen fluorescence
        microscopy image volumes", 2021, doi:10.1038/s41592-021-01155-x.
    """

    def __init__(
        self,
        factor: Factor,
        *,
        channels: int = 1,
        features: int = 64,
        groups: int = 10,
        blocks: int = 20,
        reduction: int = 16,
        window: int | None = 15,
        published: bool = False,
    ) -> None:
        window = None if published else window
        factor = checked("RCAN", factor, (channels, features, groups, blocks, reduction), window)
        dims = len(factor)
        kernel = (3,) * dims
        of_block = 2 + (0 if window is None else window // 2)
        reach = 1 + groups * (blocks * of_block + 1) + 1
        layers = Layers("RCAN", channels, features, kernel, window, published, not published, (reach,) * dims)

        def around() -> nn.Module:
            return conv(features, features, kernel, bias=published)

        def block() -> Residual:  # equation 9: the residual channel attention block
            attention = ChannelAttention(dims, features, reduction, window)
            return Residual(around(), nn.ReLU(), around(), attention)

        # Equation 5: a residual group; equation 4: the residual in the residual, with the long skip.
        body = Residual(*(Residual(*(block() for _ in range(blocks)), around()) for _ in range(groups)), around())
        super().__init__(
            factor,
            layers,
            head_activation=nn.Identity(),
            body=body,
            rise_activation=nn.Identity(),
            output=nn.Identity(),
        )
        self._settings = (
            f"channels={channels}, features={features}, groups={groups}, blocks={blocks}, reduction={reduction}, "
            f"window={window}, published={published}"
        )

    def __repr__(self) -> str:
        return f"RCAN({self.factor}, {self._settings})"


class ChannelAttention(nn.Module):
    """Weighs each channel by what all channels are on average, over a window or over the whole image.

    Over a window the averages are divided by the mean magnitude, so that the weights do not change with the contrast.
    """

    def __init__(self, dims: int, features: int, reduction: int, window: int | None) -> None:
        super().__init__()
        narrow = max(1, features // reduction)
        self.window = None if window is None else (window,) * dims
        self.squeeze = conv(features, narrow, (1,) * dims, bias=True)
        self.excite = conv(narrow, features, (1,) * dims, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """(n, features, *size) to the same shape."""
        exact = torch.promote_types(features.dtype, torch.float32)
        if self.window is None:
            average = features.mean(dim=tuple(range(2, features.ndim)), keepdim=True).to(exact)  # equation 6
        else:
            precise = features.to(exact)
            size = local_mean(precise.abs().mean(1, keepdim=True), self.window)
            average = local_mean(precise, self.window) / size.clamp(min=torch.finfo(exact).tiny)
        weight = torch.sigmoid(pointwise(torch.relu(pointwise(average, self.squeeze)), self.excite))  # equation 7
        return features * weight.to(features.dtype)  # equation 8
