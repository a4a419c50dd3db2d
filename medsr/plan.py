"""Plan: how one scan is cut for one upscaler, by a memory budget."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medsr.holes import HOLE_REACH
from medsr.scan import Factor, Region, Scan
from medsr.tiles import Tile, plan_tiles
from medsr.upscaler import Composed, Several, Staged, Upscaler, describe, has_stages, reserved_bytes

if TYPE_CHECKING:
    from medsr.engines import EngineChoice

__all__ = ["Device", "MemoryTooSmallError", "Plan", "default_memory", "placed", "plan", "torch_device"]

Device = str | torch.device
Kind = TypeVar("Kind", bound=Upscaler)

BASE_BYTES = 500_000_000
"""What the interpreter with torch and zarr holds before the first tile (measured: 380-450 MB resident)."""

WORKSPACE = {"torch": 1.25, "compiled": 1.25, "openvino": 1.45}
"""Factor on the counted tensors for what an engine holds besides (measured: 1.06, 1.05, 1.3)."""

UNKNOWN_WORKSPACE = 2.0
"""The same for what is no network of stages: the copies inside its operations are not known."""

HALF_WORKSPACE = {"compiled": 1.25, "openvino": 1.9}
"""The same where the layers between are in half precision (measured: 1.05; OpenVINO, whose parts take and return
float32, 1.75 times the tensors of float32)."""

ENGINE_BYTES = {"torch": 0, "compiled": 40_000_000, "openvino": 200_000_000}
"""What an engine holds before its first tile (measured for OpenVINO: 167 MiB)."""

STRIP_SAMPLES = 2**16
"""Coarse samples whose fine ones are made at a time, at most; more are no faster."""

BATCH_SAMPLES = 2**18
"""Coarse samples, halos included, up to which tiles are computed together on a CPU; on a GPU 16 times as many."""


class MemoryTooSmallError(MemoryError):
    """The memory budget does not hold the smallest tile."""


def default_memory(workers: int = 1) -> int:
    """Budget in bytes when none is given: half of this machine's memory, at most 4 GB for each worker.

    It does not depend on what happens to be free, so that the same command cuts the same tiles on every run.
    """
    return int(min(psutil.virtual_memory().total // 2, 4e9 * workers))


@dataclass(frozen=True, slots=True)
class Plan:
    """How one scan is cut for one upscaler.

    Attributes:
        factor, halo: for each axis of the scan.
        tile: coarse samples of a compute tile along each axis, halo not counted.
        shape: samples of the result along each axis.
        bytes_per_tile: estimated memory of one call, halo and batch included, measured by a probe.
        batch: tiles of equal shape that are computed together.
        strip: coarse samples, for each axis of the upscaler, whose fine samples an engine makes at a time; () where the
            upscaler is run as it stands.
    """

    factor: Factor
    halo: tuple[int, ...]
    tile: tuple[int, ...]
    shape: tuple[int, ...]
    bytes_per_tile: int
    batch: int = 1
    strip: tuple[int, ...] = ()

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
    engine: EngineChoice | None = None,
    most_batch: int = 64,
    waiting: int = 0,
    alone: bool = False,
) -> Plan:
    """Choose the compute tile: the largest that fits the budget; where it is small, several at a time.

    Args:
        scan: what is to be upscaled.
        upscaler: by what.
        memory: bytes this process may hold in all, of which `BASE_BYTES` are set aside for the interpreter and the
            libraries; None: `default_memory()`. On a GPU: bytes of the card, None: 80 % of what is free.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".
        tile: coarse samples along each axis of `upscaler.factor`, instead of choosing.
        block: largest useful tile in coarse samples along each axis of the scan (a shard's share).
        engine: how the network is run, from `choose_engine`; None: as it stands.
        most_batch: tiles computed together, at most.
        waiting: estimates of earlier calls that are held beside this one, on a CPU.
        alone: tiles are read without a halo, each as a scan of its own: to measure an engine.

    Raises:
        MemoryTooSmallError: not even a tile of 8 samples a side fits; the message names the bytes needed.
        ValueError: the factor refines an axis that the scan does not have, or `tile` has another length.
    """
    dims = len(upscaler.factor)
    factor = scan.grid.pad_factor(upscaler.factor)
    halo = (0,) * (len(factor) - dims) + tuple(upscaler.halo)
    if alone:
        halo = (0,) * len(factor)
    elif scan.intensity.may_have_holes:
        halo = tuple(h + HOLE_REACH if i >= len(factor) - dims else h for i, h in enumerate(halo))
    shape = tuple(n * f for n, f in zip(scan.shape, factor, strict=True))
    limit = block if block is not None else scan.shape
    if tile is not None and (len(tile) != dims or min(tile) < 1):
        raise ValueError(f"tile: expected {dims} sizes of at least 1 in coarse samples, found {tile}")
    place = torch_device(device)
    budget = _free_bytes(memory, place)
    cost = _cost_of(scan, upscaler, halo[-dims:], place, engine, waiting=waiting)
    size = tile if tile is not None else tuple(map(min, scan.shape[-dims:], limit[-dims:]))
    while tile is None and cost.bytes(size, budget) > budget:
        # Halve the axis that is longest beside its halo: that keeps the share of samples computed twice small.
        axis = max(range(dims), key=lambda i: size[i] / (1 + halo[len(halo) - dims + i]))
        if size[axis] <= 8:
            axis = max(range(dims), key=lambda i: size[i])
        if size[axis] <= 8:
            needed = _megabytes(cost.bytes(size, budget) + BASE_BYTES)
            raise MemoryTooSmallError(
                f"memory: expected at least {needed} for the smallest tile of {describe(upscaler)}, "
                f"found a budget that leaves {_megabytes(max(0, budget))} for it; raise --memory"
            )
        size = tuple(math.ceil(s / 2) if i == axis else s for i, s in enumerate(size))
    chosen = Plan(factor, halo, (1,) * (len(factor) - dims) + tuple(size), shape, cost.bytes(size, budget))
    if cost.strip_halo is None:
        return chosen
    batch = cost.batch(size, budget, most=min(most_batch, _count(limit, chosen.tile)), on_card=place.type == "cuda")
    total = cost.bytes(size, budget, batch=batch)
    return replace(chosen, bytes_per_tile=total, batch=batch, strip=cost.strip(size, budget))


def _count(shape: tuple[int, ...], tile: tuple[int, ...]) -> int:
    return math.prod(math.ceil(n / t) for n, t in zip(shape, tile, strict=True))


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a tile costs in bytes: for each coarse sample it reads, keeps, and has in a strip; and in any case.

    Attributes:
        limit: coarse samples of the scan along the axes of the upscaler, to which a halo is clipped.
        halo: of a tile.
        strip_halo: of a strip; None: there are no strips.
    """

    limit: tuple[int, ...]
    halo: tuple[int, ...]
    strip_halo: tuple[int, ...] | None
    fixed: int
    per_read: float
    per_kept: float
    per_strip: float

    def bytes(self, size: tuple[int, ...], budget: int, *, batch: int = 1) -> int:
        """Bytes of a call of `batch` tiles of `size` coarse samples."""
        strip = 0 if self.strip_halo is None else self._span(self.strip(size, budget), self.strip_halo)
        samples = self._span(size, self.halo) * self.per_read + math.prod(size) * self.per_kept
        return int(self.fixed + batch * (samples + strip * self.per_strip))

    def strip(self, size: tuple[int, ...], budget: int) -> tuple[int, ...]:
        """The strips of a tile: halved until few samples and at most a quarter of the budget."""
        strip = tuple(size)
        halo = self.strip_halo or ()
        most = max(0, budget - self.fixed) // 4
        while max(strip) > 8 and (math.prod(strip) > STRIP_SAMPLES or self._span(strip, halo) * self.per_strip > most):
            axis = max(range(len(strip)), key=lambda i: strip[i])
            strip = tuple(math.ceil(s / 2) if i == axis else s for i, s in enumerate(strip))
        return strip

    def batch(self, size: tuple[int, ...], budget: int, *, most: int, on_card: bool) -> int:
        """Tiles of `size` to compute together: enough to keep a device busy, as far as the budget goes."""
        useful = BATCH_SAMPLES * (16 if on_card else 1) // self._span(size, self.halo)
        one = self.bytes(size, budget) - self.fixed
        return max(1, min(most, useful, (budget - self.fixed) // max(1, one)))

    def _span(self, size: tuple[int, ...], halo: tuple[int, ...]) -> int:
        return math.prod(min(n, s + 2 * h) for n, s, h in zip(self.limit, size, halo, strict=True))


def _cost_of(
    scan: Scan,
    upscaler: Upscaler,
    halo: tuple[int, ...],
    device: torch.device,
    engine: EngineChoice | None,
    *,
    waiting: int,
) -> _Cost:
    fine, limit = math.prod(upscaler.factor), scan.shape[-len(upscaler.factor) :]
    # Reading, the unit image and the stored result: 8 + 4 bytes a coarse sample, 8 + dtype bytes a fine one.
    images = len(upscaler.images) if isinstance(upscaler, Several) else 1
    read, result = 12.0, float(fine * (8 + scan.intensity.dtype.itemsize)) * images
    waits = 4.0 * fine * waiting * images if device.type == "cpu" else 0.0
    reserved = reserved_bytes(upscaler) if device.type == "cpu" else 0  # it is no memory of a card
    if engine is not None and engine.name != "torch" and isinstance(upscaler, Composed) and has_stages(upscaler):
        cost = _cost_around(scan, upscaler, halo, device, engine, waiting=waiting)
        return replace(cost, per_kept=cost.per_kept + (result + waits) * (images - 1) / images)
    if engine is None or engine.name == "torch" or not isinstance(upscaler, Staged):
        run = placed(upscaler, device)
        more = WORKSPACE["torch"] if has_stages(upscaler) else UNKNOWN_WORKSPACE
        per_read = more * _probed(run, _probe(len(limit), device)) + read
        return _Cost(limit, halo, None, reserved, per_read + result, waits, 0.0)
    half = device.type == "cuda" and engine.precision != "float32"
    factors = WORKSPACE if engine.precision == "float32" else HALF_WORKSPACE
    features, detail, strip_halo = _probed_stages(upscaler, device, half=half, twice=engine.name == "openvino")
    more = factors[engine.name]
    # The base, and the room it is computed in, are of float32 at the fine resolution.
    return _Cost(
        limit,
        halo,
        strip_halo,
        ENGINE_BYTES[engine.name] + reserved,
        features * more + read,
        result + 8.0 * fine + waits,
        detail * more,
    )


def _cost_around(
    scan: Scan, upscaler: Composed, halo: tuple[int, ...], device: torch.device, engine: EngineChoice, *, waiting: int
) -> _Cost:
    """What its parts cost, one at a time, and what is done around them."""
    costs = [_cost_of(scan, part, halo, device, engine, waiting=waiting) for part in upscaler.parts]
    strips = [cost.strip_halo for cost in costs if cost.strip_halo is not None]
    runs = [partial(_stand_in, factor=upscaler.factor)] * len(costs)
    made = placed(upscaler, device)
    on_host = device.type == "cpu"
    own = reserved_bytes(upscaler) - sum(map(reserved_bytes, upscaler.parts)) if on_host else 0  # parts count theirs
    around = _probed(lambda low: made.around(low, runs), _probe(len(halo), device))
    return _Cost(
        costs[0].limit,
        halo,
        tuple(map(max, zip(*strips, strict=True))) if strips else None,
        sum(cost.fixed for cost in costs) + own,
        max(cost.per_read for cost in costs) + UNKNOWN_WORKSPACE * around,
        max(cost.per_kept for cost in costs),
        max(cost.per_strip for cost in costs),
    )


def _stand_in(low: Tensor, *, factor: Factor) -> Tensor:
    """A tensor of the size of an estimate."""
    return low.new_zeros(*low.shape[:2], *(n * f for n, f in zip(low.shape[2:], factor, strict=True)))


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


def placed(upscaler: Kind, device: torch.device) -> Kind:
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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """A hook of torch: by default its compiler would be imported, for a second, only to be told to stay away."""
        return False

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


def _probe(dims: int, device: torch.device, *, channels: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    side = {1: 4096, 2: 64, 3: 16}[dims]
    return torch.zeros(1, channels, *(side,) * dims, device=device, dtype=dtype)


def _probed(run: Callable[[Tensor], Tensor], low: Tensor) -> float:
    """Peak bytes of the tensors a sample costs, on a small constant image."""
    with torch.inference_mode(), _LiveBytes() as live:
        run(low)
    return float(live.peak / low[0, 0].numel())


def _probed_stages(
    upscaler: Staged, device: torch.device, *, half: bool, twice: bool
) -> tuple[float, float, tuple[int, ...]]:
    """Bytes of a coarse sample up to the features and from there on, and the halo of the latter.

    Args:
        upscaler: its stages are probed.
        device: where.
        half: the layers between are in half precision.
        twice: the engine keeps its memory, and has one for stages with and one for stages without edges.
    """
    dims, dtype = len(upscaler.factor), torch.bfloat16 if half else torch.float32
    stages = upscaler.stages()
    entry, last = stages.entry.to(device), stages.last.to(device)
    body, rise = stages.body.to(device, dtype), stages.rise.to(device, dtype)
    with torch.inference_mode():
        channels = entry(_probe(dims, device)).shape[1]
    features = _probed(lambda low: body(entry(low).to(dtype)), _probe(dims, device))
    wide = _probe(dims, device, channels=channels, dtype=dtype)
    detail = _probed(lambda found: last(rise(found)), wide)
    if twice:
        inside = upscaler.stages(edges=False)
        detail += _probed(lambda found: inside.last(inside.rise(found)), wide)
        features *= 2
    return features, detail, stages.rise_halo
