"""Footprint: the most memory that a piece of work held beyond what was held before."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch

__all__ = ["Footprint"]

STATUS = Path("/proc/self/status")
"""Where Linux says what a process holds, and what it held at most."""

RESET = Path("/proc/self/clear_refs")
"""Where it is told to forget the most; "5" means that."""


class Footprint:
    """Measures the work inside its `with`: on a GPU the card's memory, else that of this process.

    Attributes:
        peak_bytes: most held at a time, less what was held at the beginning; None where the system does not tell
            (other systems than Linux, without a GPU).
    """

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes: int | None = None
        self._device = device
        self._before: int | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            gc.collect()
            _trim()
            with suppress(OSError):
                RESET.write_text("5")
                self._before = _held("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        most = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _held("VmHWM")
        self.peak_bytes = None if most is None else max(0, most - self._before)


def _trim() -> None:
    """Give memory that was freed back to the system, so that it counts again when it is taken again."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _held(name: str) -> int | None:
    """A figure of the status of this process in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
