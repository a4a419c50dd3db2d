"""Plan: how one scan is cut for one upscaler, by a memory budget."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medsr.holes import HOLE_REACH
from medsr.scan import Factor, Region, Scan
from medsr.tiles import Tile, plan_tiles
from medsr.upscaler import Upscaler, describe

__all__ = ["Device", "MemoryTooSmallError", "Plan", "default_memory", "placed", "plan", "torch_device"]

Device = str | torch.device

BASE_BYTES = 500_000_000
"""What the interpreter with torch and zarr holds before the first tile (measured: 380-450 MB resident)."""

WORKSPACE = 2
"""Factor on the counted tensors for what convolutions hold besides (layout copies of oneDNN and cuDNN)."""


class MemoryTooSmallError(MemoryError):
    """The memory budget does not hold the smallest tile."""


def default_memory() -> int:
    """Budget in bytes when none is given: half of this machine's memory, at most 4 GB.

    It does not depend on what happens to be free, so that the same command cuts the same tiles on every run.
    """
    return int(min(psutil.virtual_memory().total // 2, 4e9))


@dataclass(frozen=True, slots=True)
class Plan:
    """How one scan is cut for one upscaler.

    Attributes:
        factor, halo: for each axis of the scan.
        tile: coarse samples of a compute tile along each axis, halo not counted.
        shape: samples of the result along each axis.
        bytes_per_tile: estimated memory of one tile with its halo, measured by a probe.
    """

    factor: Factor
    halo: tuple[int, ...]
    tile: tuple[int, ...]
    shape: tuple[int, ...]
    bytes_per_tile: int

    def tiles(self, scan: Scan, target: Region | None = None) -> Iterator[Tile]:
        """The tiles of the result, or of its region `target` in fine samples."""
        return plan_tiles(scan.shape, self.factor, halo=self.halo, tile=self.tile, target=target)


def plan(
    scan: Scan,
    upscaler: Upscaler,
    *,
    memory: int | None = None,
    device: Device = "auto",
    tile: tuple[int, ...] | None = None,
    block: tuple[int, ...] | None = None,
) -> Plan:
    """Choose the compute tile: the largest that fits the budget.

    Args:
        scan: what is to be upscaled.
        upscaler: by what.
        memory: bytes this process may hold in all, of which `BASE_BYTES` are set aside for the interpreter and the
            libraries; None: `default_memory()`. On a GPU: bytes of the card, None: 80 % of what is free.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".
        tile: coarse samples along each axis of `upscaler.factor`, instead of choosing.
        block: largest useful tile in coarse samples along each axis of the scan (a shard's share).

    Raises:
        MemoryTooSmallError: not even a tile of 8 samples a side fits; the message names the bytes needed.
        ValueError: the factor refines an axis that the scan does not have, or `tile` has another length.
    """
    dims = len(upscaler.factor)
    factor = scan.grid.pad_factor(upscaler.factor)
    halo = (0,) * (len(factor) - dims) + tuple(upscaler.halo)
    if scan.intensity.may_have_holes:
        halo = tuple(h + HOLE_REACH if i >= len(factor) - dims else h for i, h in enumerate(halo))
    shape = tuple(n * f for n, f in zip(scan.shape, factor, strict=True))
    lead = (1,) * (len(factor) - dims)
    limit = block if block is not None else scan.shape
    if tile is not None and (len(tile) != dims or min(tile) < 1):
        raise ValueError(f"tile: expected {dims} sizes of at least 1 in coarse samples, found {tile}")
    place = torch_device(device)
    per_sample = _bytes_per_sample(placed(upscaler, place), place)
    # Reading, the unit image and the stored result: 8 + 4 bytes a coarse sample, 8 + dtype bytes a fine one.
    fine = math.prod(upscaler.factor)
    per_sample += 12 + fine * (8 + scan.intensity.dtype.itemsize)

    def cost(size: tuple[int, ...]) -> int:
        spans = [min(n, s + 2 * h) for n, s, h in zip(scan.shape[-dims:], size, halo[-dims:], strict=True)]
        return int(math.prod(spans) * per_sample)

    budget = _free_bytes(memory, place)
    size = (
        tuple(tile)
        if tile is not None
        else tuple(min(a, b) for a, b in zip(scan.shape[-dims:], limit[-dims:], strict=True))
    )
    while tile is None and cost(size) > budget:
        # Halve the axis that is longest beside its halo: that keeps the share of samples computed twice small.
        axis = max(range(dims), key=lambda i: size[i] / (1 + halo[len(halo) - dims + i]))
        if size[axis] <= 8:
            axis = max(range(dims), key=lambda i: size[i])
        if size[axis] <= 8:
            raise MemoryTooSmallError(
                f"memory: expected at least {_megabytes(cost(size) + BASE_BYTES)} for the smallest tile of "
                f"{describe(upscaler)}, found a budget that leaves {_megabytes(max(0, budget))} for it; raise --memory"
            )
        size = tuple(math.ceil(s / 2) if i == axis else s for i, s in enumerate(size))
    return Plan(factor, halo, lead + size, shape, cost(size))


def torch_device(device: Device) -> torch.device:
    """The torch device of a name; "auto" is a GPU where there is one.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f'device: expected "auto", "cpu", "cuda" or "cuda:N"; found {str(device)!r}') from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: expected a CUDA GPU, found none; use --device cpu")
    return place


def placed(upscaler: Upscaler, device: torch.device) -> Upscaler:
    """The upscaler on its device; a network also in evaluation mode."""
    if isinstance(upscaler, nn.Module):
        upscaler.eval()
        if any(p.device != device for p in upscaler.parameters()):
            upscaler.to(device)
    return upscaler


def _free_bytes(memory: int | None, device: torch.device) -> int:
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0] * 0.8)
        return free if memory is None else min(memory, free)
    return (default_memory() if memory is None else memory) - BASE_BYTES


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors alive inside it; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.seen: set[int] = set()

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.seen or size == 0:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(value if value._base is None else value._base, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def _bytes_per_sample(upscaler: Upscaler, device: torch.device) -> float:
    """Peak bytes of tensors a coarse sample costs, by one probe on a small constant image."""
    side = {1: 4096, 2: 64, 3: 16}[len(upscaler.factor)]
    low = torch.zeros(1, 1, *(side,) * len(upscaler.factor), device=device)
    with torch.inference_mode(), _LiveBytes() as live:
        upscaler(low)
    return float(WORKSPACE * live.peak / low.numel())
