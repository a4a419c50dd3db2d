"""upscale, upscaled_blocks: a scan through an upscaler, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsr.holes import fill_holes, refined
from medsr.plan import Device, MemoryTooSmallError, Plan, placed, plan, torch_device
from medsr.scan import Region, Scan
from medsr.tiles import Tile, region_shape, split
from medsr.upscaler import Upscaler, describe

__all__ = ["result_scan", "upscale", "upscaled_blocks"]


def upscale(
    scan: Scan,
    upscaler: Upscaler,
    *,
    memory: int | None = None,
    device: Device = "auto",
    tile: tuple[int, ...] | None = None,
) -> Scan:
    """Upscale a scan in memory.

    Args:
        scan: axes "t", "c", "z", "y", "x" as present; a method acts on the last `len(upscaler.factor)` of them and is
            applied to each index of the others.
        upscaler: the method.
        memory, device, tile: as in `plan`; the result itself is not counted.

    Returns:
        A scan of shape `scan.shape * factor`, same dtype, the grid refined, history extended. Integers are rounded and
        clipped to their dtype. What was not measured (NaN, infinity, padding) stays as it is: each hole covers the
        fine samples of its coarse ones.

    Raises:
        MemoryTooSmallError, ValueError: as `plan`.
        ScanError: the scan cannot be decoded.
    """
    adapted = upscaler.adapt(scan)
    chosen = plan(scan, adapted, memory=memory, device=device, tile=tile)
    result = np.empty(chosen.shape, scan.intensity.dtype)
    for region, block in upscaled_blocks(scan, adapted, chosen=chosen, device=device):
        result[region] = block
    return result_scan(scan, adapted, result)


def result_scan(scan: Scan, upscaler: Upscaler, data: Any) -> Scan:
    """The scan that holds an upscaled array: grid refined, history extended.

    Its intensity names no significant bits: a crisp edge may overshoot the 12 bits of a detector.
    """
    intensity = replace(scan.intensity, bits=None)
    done = replace(scan, data=data, grid=scan.grid.refine(upscaler.factor), intensity=intensity)
    return done.noted(f"upscaled {'x'.join(map(str, upscaler.factor))} by {describe(upscaler)}")


def upscaled_blocks(
    scan: Scan,
    upscaler: Upscaler,
    *,
    chosen: Plan,
    device: Device = "auto",
    target: Region | None = None,
    note: Callable[[str], None] | None = None,
) -> Iterator[tuple[Region, NDArray[Any]]]:
    """Upscale tile by tile: yields (region of the result, stored values), each fine sample exactly once.

    A tile that runs out of memory is halved and tried again; the result is the same. `upscaler` is already adapted.
    """
    place = torch_device(device)
    ready = placed(upscaler, place)
    waiting = [*chosen.tiles(scan, target)][::-1]
    while waiting:
        tile = waiting.pop()
        try:
            block = _upscaled(scan, ready, tile, place)
        except (MemoryError, RuntimeError) as error:
            halves = split(tile, scan.shape, chosen.factor, halo=chosen.halo) if _out_of_memory(error) else None
            if halves is None:
                raise
            if note is not None:
                note(f"out of memory at a tile of {region_shape(tile.read)} samples: halved and tried again")
            if place.type == "cuda":
                torch.cuda.empty_cache()
            waiting += halves[::-1]
            continue
        yield tile.target, block


def _upscaled(scan: Scan, upscaler: Upscaler, tile: Tile, device: torch.device) -> NDArray[Any]:
    """Stored values of the fine samples one tile keeps."""
    dims = len(upscaler.factor)
    stored = scan.read(tile.read)
    unit = scan.intensity.to_unit(stored)
    holes = scan.intensity.holes(stored) if scan.intensity.may_have_holes else None
    if holes is not None and holes.any():
        unit = fill_holes(unit, holes, dims=dims)
    else:
        holes = None
    low = torch.from_numpy(unit.reshape(-1, 1, *unit.shape[-dims:]))
    with torch.inference_mode():
        estimate = torch.cat([upscaler(part.to(device)).float().cpu() for part in torch.split(low, 1)])
    expected = tuple(n * f for n, f in zip(unit.shape[-dims:], upscaler.factor, strict=True))
    if tuple(estimate.shape) != (low.shape[0], 1, *expected):
        raise ValueError(
            f"{describe(upscaler)}: expected an estimate of shape {(low.shape[0], 1, *expected)}, found "
            f"{tuple(estimate.shape)}; a method returns its input's size times its factor"
        )
    fine = estimate.numpy().reshape(*unit.shape[:-dims], *expected)[tile.keep]
    result = scan.intensity.to_stored(fine)
    if holes is not None:
        # What was not measured stays as it was stored: NaN, infinity, each padding value.
        result = np.where(
            refined(holes, upscaler.factor)[tile.keep], refined(stored, upscaler.factor)[tile.keep], result
        )
    return result


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return not isinstance(error, MemoryTooSmallError)
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
