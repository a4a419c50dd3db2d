"""upscale, upscaled_blocks: a scan through an upscaler, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsr.engines import REFERENCE, Engine, EngineChoice, build_engine
from medsr.holes import fill_holes, off_padding, refined
from medsr.plan import Device, MemoryTooSmallError, Plan, plan, torch_device
from medsr.scan import Intensity, Region, Scan
from medsr.tiles import Tile, region_shape, split
from medsr.upscaler import Several, Upscaler, describe, makers_of

__all__ = [
    "Estimate",
    "Loaded",
    "TileRunner",
    "batches",
    "read_tiles",
    "result_scan",
    "upscale",
    "upscale_images",
    "upscaled_blocks",
    "upscaled_region",
]

Note = Callable[[str], None]


def upscale(
    scan: Scan,
    upscaler: Upscaler,
    *,
    memory: int | None = None,
    device: Device = "auto",
    tile: tuple[int, ...] | None = None,
    engine: EngineChoice = REFERENCE,
) -> Scan:
    """Upscale a scan in memory.

    Args:
        scan: axes "t", "c", "z", "y", "x" as present; a method acts on the last `len(upscaler.factor)` of them and is
            applied to each index of the others.
        upscaler: the method.
        memory, device, tile: as in `plan`; the result itself is not counted.
        engine: how a network is run, from `choose_engine`; by default as it stands, in float32.

    Returns:
        A scan of shape `scan.shape * factor`, same dtype, the grid refined, history extended. Integers are rounded and
        clipped to their dtype. What was not measured (NaN, infinity, padding) stays as it is: each hole covers the
        fine samples of its coarse ones.

    Raises:
        MemoryTooSmallError, ValueError: as `plan`; or the method makes several images.
        ScanError: the scan cannot be decoded.
    """
    _refuse_several(upscaler)
    return upscale_images(scan, upscaler, memory=memory, device=device, tile=tile, engine=engine)[""]


def upscale_images(
    scan: Scan,
    upscaler: Upscaler,
    *,
    memory: int | None = None,
    device: Device = "auto",
    tile: tuple[int, ...] | None = None,
    engine: EngineChoice = REFERENCE,
) -> dict[str, Scan]:
    """Upscale a scan in memory by a method that makes several images at once, such as `Intervals.together`.

    Args:
        scan, upscaler, memory, device, tile, engine: as in `upscale`.

    Returns:
        For the name of each image a scan as `upscale` returns it; "" is the result itself.

    Raises:
        MemoryTooSmallError, ValueError: as `plan`.
        ScanError: the scan cannot be decoded.
    """
    adapted = upscaler.adapt(scan)
    chosen = plan(scan, adapted, memory=memory, device=device, tile=tile, engine=engine)
    makers = makers_of(adapted)
    result = np.empty((len(makers), *chosen.shape), scan.intensity.dtype)
    for region, block in _blocks(scan, adapted, chosen=chosen, device=device, engine=engine):
        result[(slice(None), *region)] = block
    return {
        name: result_scan(scan, maker, data, engine=engine)
        for (name, maker), data in zip(makers.items(), result, strict=True)
    }


def _refuse_several(upscaler: Upscaler) -> None:
    if isinstance(upscaler, Several):
        raise ValueError(
            f"upscale: expected a method that makes one image, found one that makes {len(upscaler.images)} "
            f"({describe(upscaler)}); use upscale_images or upscale_folder"
        )


def result_scan(scan: Scan, upscaler: Upscaler, data: Any, *, engine: EngineChoice = REFERENCE) -> Scan:
    """The scan that holds an upscaled array: grid refined, history extended.

    Its intensity names no significant bits: a crisp edge may overshoot the 12 bits of a detector.
    """
    intensity = replace(scan.intensity, bits=None)
    done = replace(scan, data=data, grid=scan.grid.refine(upscaler.factor), intensity=intensity)
    how = "" if engine == REFERENCE else f", {engine}"
    return done.noted(f"upscaled {'x'.join(map(str, upscaler.factor))} by {describe(upscaler)}{how}")


def upscaled_blocks(
    scan: Scan,
    upscaler: Upscaler,
    *,
    chosen: Plan,
    device: Device = "auto",
    target: Region | None = None,
    note: Note | None = None,
    engine: EngineChoice = REFERENCE,
) -> Iterator[tuple[Region, NDArray[Any]]]:
    """Upscale tile by tile: yields (region of the result, stored values), each fine sample exactly once.

    A tile that runs out of memory is halved and tried again; the result is the same. `upscaler` is already adapted.

    Raises:
        ValueError: the method makes several images.
    """
    _refuse_several(upscaler)
    yield from _blocks(scan, upscaler, chosen=chosen, device=device, target=target, note=note, engine=engine)


def upscaled_region(
    scan: Scan, upscaler: Upscaler, target: Region, *, chosen: Plan, device: Device = "auto"
) -> NDArray[Any]:
    """A region of the result in memory: stored values of its shape, those of the whole result.

    Args:
        scan, upscaler, chosen, device: as in `upscaled_blocks`; the upscaler is already adapted.
        target: fine samples along every axis.

    Raises:
        ValueError: the method makes several images.
    """
    stored = np.empty(region_shape(target), scan.intensity.dtype)
    for region, values in upscaled_blocks(scan, upscaler, chosen=chosen, device=device, target=target):
        stored[tuple(slice(r.start - t.start, r.stop - t.start) for r, t in zip(region, target, strict=True))] = values
    return stored


def _blocks(
    scan: Scan,
    upscaler: Upscaler,
    *,
    chosen: Plan,
    device: Device,
    target: Region | None = None,
    note: Note | None = None,
    engine: EngineChoice,
) -> Iterator[tuple[Region, NDArray[Any]]]:
    """As `upscaled_blocks`; of several images the values have a leading axis."""
    runner = TileRunner(
        build_engine(upscaler, engine, device=torch_device(device), strip=chosen.strip), chosen, scan, note=note
    )
    for tiles in batches(chosen.tiles(scan, target), chosen.batch):
        for estimate in runner(read_tiles(scan, tiles, dims=len(upscaler.factor))):
            yield estimate.tile.target, estimate.stored_values(scan.intensity)


def batches(tiles: Iterator[Tile], most: int) -> Iterator[tuple[Tile, ...]]:
    """Tiles of equal shape together, at most `most` of them; how they are grouped depends on the tiles alone."""
    waiting: dict[tuple[tuple[int, ...], tuple[tuple[int, int], ...]], list[Tile]] = {}
    for tile in tiles:
        key = region_shape(tile.read), tuple((s.start, s.stop) for s in tile.keep)
        group = waiting.setdefault(key, [])
        group.append(tile)
        if len(group) == most:
            yield tuple(waiting.pop(key))
    for group in waiting.values():
        yield tuple(group)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tiles of equal shape, read and ready to compute.

    Attributes:
        tiles: n of them.
        low: (n, 1, *size), unit intensity, holes filled.
        stored, holes: for each tile the samples as read and where they are holes; None where it has none.
    """

    tiles: tuple[Tile, ...]
    low: Tensor
    stored: tuple[NDArray[Any] | None, ...]
    holes: tuple[NDArray[np.bool_] | None, ...]

    def one(self, index: int) -> Loaded:
        """A single tile of these."""
        here = slice(index, index + 1)
        return Loaded(self.tiles[here], self.low[here], self.stored[here], self.holes[here])

    def cut(self, part: Tile) -> Loaded:
        """A smaller tile inside the only one of these."""
        outer = self.tiles[0].read
        inside = tuple(slice(p.start - o.start, p.stop - o.start) for p, o in zip(part.read, outer, strict=True))
        spatial = inside[len(inside) - self.low.ndim + 2 :]
        stored, holes = self.stored[0], self.holes[0]
        return Loaded(
            (part,),
            self.low[(slice(None), slice(None), *spatial)].contiguous(),
            (None if stored is None else stored[inside],),
            (None if holes is None else holes[inside],),
        )


def read_tiles(scan: Scan, tiles: Sequence[Tile], *, dims: int) -> Loaded:
    """Read tiles of equal shape; `dims` axes at the end are those a method acts on."""
    low, stored, holes = [], list[NDArray[Any] | None](), list[NDArray[np.bool_] | None]()
    for tile in tiles:
        samples = scan.read(tile.read)
        unit = scan.intensity.to_unit(samples)
        missing = scan.intensity.holes(samples) if scan.intensity.may_have_holes else None
        if missing is not None and missing.any():
            unit = fill_holes(unit, missing, dims=dims)
            stored.append(samples)
            holes.append(missing)
        else:
            stored.append(None)
            holes.append(None)
        low.append(torch.from_numpy(unit.reshape(1, 1, *unit.shape[-dims:])))
    return Loaded(tuple(tiles), low[0] if len(low) == 1 else torch.cat(low), tuple(stored), tuple(holes))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one tile keeps of its result: `unit` of the shape of the tile's target, and its holes as read.

    Of several images `unit` and the stored values have a leading axis.
    """

    tile: Tile
    factor: tuple[int, ...]
    unit: NDArray[np.float32]
    stored: NDArray[Any] | None
    holes: NDArray[np.bool_] | None

    def stored_values(self, intensity: Intensity) -> NDArray[Any]:
        """Stored values; what was not measured stays as it was stored (NaN, infinity, each padding value), and nothing
        else has such a value."""
        values = off_padding(intensity.to_stored(self.unit), intensity)
        if self.holes is None or self.stored is None:
            return values
        keep = self.tile.keep
        return np.where(refined(self.holes, self.factor)[keep], refined(self.stored, self.factor)[keep], values)


class TileRunner:
    """Runs read tiles through an engine; what ran out of memory once is cut smaller at once from then on."""

    def __init__(self, engine: Engine, chosen: Plan, scan: Scan, *, note: Note | None = None) -> None:
        self._engine = engine
        self._chosen = chosen
        self._shape = scan.shape
        self._note = note
        self._too_large: int | None = None

    def __call__(self, loaded: Loaded) -> Iterator[Estimate]:
        """Estimates of all that was read, each fine sample exactly once."""
        waiting = [loaded]
        while waiting:
            now = waiting.pop()
            smaller = self._smaller(now) if self._too_large is not None and now.low.numel() >= self._too_large else None
            if smaller is None:
                try:
                    found = self._estimated(now)
                except (MemoryError, RuntimeError) as error:
                    smaller = self._smaller(now) if _out_of_memory(error) else None
                    if smaller is None:
                        raise
                    self._too_large = now.low.numel()
                    if self._note is not None:
                        size = " x ".join(map(str, now.low.shape))
                        self._note(f"out of memory at tiles of {size} samples: halved and tried again")
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                else:
                    yield from found
                    continue
            waiting += smaller[::-1]

    def _smaller(self, loaded: Loaded) -> list[Loaded] | None:
        if len(loaded.tiles) > 1:
            return [loaded.one(i) for i in range(len(loaded.tiles))]
        halves = split(loaded.tiles[0], self._shape, self._chosen.factor, halo=self._chosen.halo)
        return None if halves is None else [loaded.cut(half) for half in halves]

    def _estimated(self, loaded: Loaded) -> list[Estimate]:
        factor = self._chosen.factor
        dims = loaded.low.ndim - 2
        keep = loaded.tiles[0].keep[-dims:]
        origins = [tuple(s.start for s in tile.read) for tile in loaded.tiles]
        fine = self._engine(loaded.low, keep, origins).numpy()
        found = []
        for i, tile in enumerate(loaded.tiles):
            images = fine.shape[1:2] if fine.shape[1] > 1 else ()
            unit = fine[i].reshape(*images, *region_shape(tile.target))
            found.append(Estimate(tile, factor, unit, loaded.stored[i], loaded.holes[i]))
        return found


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return not isinstance(error, MemoryTooSmallError)
    text = str(error).lower()
    return "can't allocate memory" in text or "not enough memory" in text or "bad_alloc" in text
