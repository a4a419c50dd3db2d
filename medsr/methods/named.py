"""Methods that need no training, by the name a command line calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from medsr.methods.interpolation import Cubic, Lanczos, Linear
from medsr.scan import Factor

if TYPE_CHECKING:
    from medsr.upscaler import Upscaler

__all__ = ["UNTRAINED"]


def _edges(factor: Factor) -> Upscaler:
    from medsr.methods.edges import Edges

    return Edges(factor)


def _exemplars(factor: Factor) -> Upscaler:
    from medsr.methods.exemplars import SelfExemplars

    return SelfExemplars(factor)


UNTRAINED: Mapping[str, Callable[[Factor], Upscaler]] = {
    "linear": Linear,
    "cubic": Cubic,
    "lanczos": Lanczos,
    "edges": _edges,
    "exemplars": _exemplars,
}
"""What makes each method from a factor; `exemplars` without a library takes its exemplars from the scan itself."""
