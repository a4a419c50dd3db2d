"""One HTML page a scan, an index a batch; names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.report.batch_index import write_batch_report
    from medsr.report.maps import Map
    from medsr.report.page import write_report

__all__ = ["Map", "write_batch_report", "write_report"]

_ROOMS = {"Map": "maps", "write_batch_report": "batch_index", "write_report": "page"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
