"""One file = one method of the literature, network and inference together; names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.methods.discriminators import PatchDiscriminator, SrganDiscriminator
    from medsr.methods.interpolation import INTERPOLATIONS, Cubic, Lanczos, Linear, interpolate
    from medsr.methods.srresnet import SRResNet

__all__ = [
    "INTERPOLATIONS",
    "Cubic",
    "Lanczos",
    "Linear",
    "PatchDiscriminator",
    "SRResNet",
    "SrganDiscriminator",
    "interpolate",
]

_ROOMS = {
    "INTERPOLATIONS": "interpolation",
    "Cubic": "interpolation",
    "Lanczos": "interpolation",
    "Linear": "interpolation",
    "interpolate": "interpolation",
    "SRResNet": "srresnet",
    "PatchDiscriminator": "discriminators",
    "SrganDiscriminator": "discriminators",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
