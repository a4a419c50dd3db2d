"""Methods that need no training, by the name a command line calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from medsr.methods.interpolation import INTERPOLATIONS, InterpolationKind
from medsr.scan import Factor

if TYPE_CHECKING:
    from medsr.degradation import Degradation
    from medsr.upscaler import Upscaler

__all__ = ["UNTRAINED"]


def _interpolation(kind: InterpolationKind) -> Callable[[Factor, Degradation | None], Upscaler]:
    return lambda factor, _degradation: INTERPOLATIONS[kind](factor)


def _edges(factor: Factor, degradation: Degradation | None) -> Upscaler:
    from medsr.methods.edges import Edges

    return Edges(factor, degradation=degradation)


def _exemplars(factor: Factor, degradation: Degradation | None) -> Upscaler:
    from medsr.methods.recurrence import SelfExemplars

    return SelfExemplars(factor, degradation=degradation)


UNTRAINED: Mapping[str, Callable[[Factor, Degradation | None], Upscaler]] = {
    "linear": _interpolation("linear"),
    "cubic": _interpolation("cubic"),
    "lanczos": _interpolation("lanczos"),
    "edges": _edges,
    "exemplars": _exemplars,
}
"""What makes each method from a factor and how scans are made coarse (None: the mean over each coarse sample; an
interpolation does not ask). `exemplars` without a library takes its exemplars from the scan itself."""
