"""Network: what every trained method's network is, whatever its layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from medsr.scan import Factor
from medsr.stages import Stages

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = ["Network"]


class Network(nn.Module, ABC):
    """A network that is trained, kept in a checkpoint, cut for engines and used as an Upscaler.

    Attributes:
        factor: refinement of the last axes, two or three.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.
        told: what `adapt` told it of the scan, in words for the history; empty if nothing.
    """

    factor: Factor
    halo: tuple[int, ...]
    told: str = ""

    @abstractmethod
    def adapt(self, scan: Scan) -> Network:
        """The network for this scan; itself, unless it has to know something of the whole scan.

        Raises:
            ValueError: it is in a state in which a tile would depend on what lies far from it.
        """

    @abstractmethod
    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32 (float64 for a float64 network)."""

    @abstractmethod
    def stages(self, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:
        """The network as it is now, in float32, cut for an engine.

        Args:
            edges: as in `medsr.upscaler.Staged`.
            gain, offset: the stages make `(network(low * gain + offset) - offset) / gain`, at the same cost.
        """
