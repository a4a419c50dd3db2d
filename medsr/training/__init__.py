"""The loops and losses; with transforms.py the only place that imports MONAI and the training engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.training.run import TrainingError, train

__all__ = ["TrainingError", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use: `medsr.transforms` needs a part of this room, not the engine."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
