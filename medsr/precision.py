"""What keeps a computation in true float32: no autocast, no TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

__all__ = ["float32_only"]


def float32_only(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside, and no TF32 on CUDA: both keep 11 bits of a level, and a scan has up to 16."""
    if device.type == "cuda" and not torch.compiler.is_compiling():
        return _without_tf32()
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def _without_tf32() -> Iterator[None]:
    modern = getattr(torch.backends.cudnn, "conv", None)  # torch 2.9 and later; its old switch must not be mixed in
    switch, name, off = (modern, "fp32_precision", "ieee") if modern else (torch.backends.cudnn, "allow_tf32", False)
    before = getattr(switch, name)
    setattr(switch, name, off)
    try:
        with torch.autocast("cuda", enabled=False):
            yield
    finally:
        setattr(switch, name, before)
