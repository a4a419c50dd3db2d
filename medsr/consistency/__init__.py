"""How far a result agrees with the scan it was made of, in units of the scan's noise; names are imported when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.consistency.map import ConsistencyMap, FlaggedRegion, consistency_map
    from medsr.consistency.noise_curve import NoiseCurve, estimate_noise

__all__ = ["ConsistencyMap", "FlaggedRegion", "NoiseCurve", "consistency_map", "estimate_noise"]

_ROOMS = {
    "ConsistencyMap": "map",
    "FlaggedRegion": "map",
    "NoiseCurve": "noise_curve",
    "consistency_map": "map",
    "estimate_noise": "noise_curve",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
