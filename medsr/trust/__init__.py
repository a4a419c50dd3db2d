"""What a result really knows, and where it comes from; names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.trust.model_card import degradation_text, render_card
    from medsr.trust.provenance import Provenance, provenance_of, verify

__all__ = ["Provenance", "degradation_text", "provenance_of", "render_card", "verify"]

_ROOMS = {
    "Provenance": "provenance",
    "degradation_text": "model_card",
    "provenance_of": "provenance",
    "render_card": "model_card",
    "verify": "provenance",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
