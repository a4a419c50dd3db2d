"""choose_engine: the fastest engine whose result stays within a tolerance of the reference, on tiles of the scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from medsr.engines.choice import REFERENCE, EngineChoice, EngineFor, EngineName, Precision
from medsr.engines.parts import has_openvino, runs_bfloat16
from medsr.engines.running import build_engine
from medsr.holes import fill_holes
from medsr.plan import Device, Plan, plan, torch_device
from medsr.scan import Region, Scan, sample_values
from medsr.upscaler import Upscaler, describe, has_stages

__all__ = ["ENGINES", "available", "choose_engine"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
"""The engines by the name a command line calls them."""

DEFAULT_TOLERANCE = 1e-3
"""Share of a scan's used range (0.1 to 99.9 percentile) that an engine may deviate by: a quarter of a gray level where
the scan has 8 bits and uses them."""

RESERVE = 1.6
"""The deviation of a whole scan over that of its measured tiles that is reckoned with (seen: up to 1.54)."""

MEASURED_SHARE = 0.03
"""Share of the scan's samples that the tiles to measure on may have, halo included."""

NO_OPENVINO = "engine openvino: expected OpenVINO, found none installed; pip install 'medsr[fast]'"

SEARCHED_SAMPLES = 2**26
"""Samples of a scan that are looked at to find where it has most contrast."""

Note = Callable[[str], None]
Candidate = tuple[EngineFor, Precision]


def choose_engine(
    scan: Scan,
    upscaler: Upscaler,
    *,
    engine: EngineName = "auto",
    tolerance: float | None = None,
    device: Device = "auto",
    memory: int | None = None,
    note: Note | None = None,
) -> EngineChoice:
    """Choose how a network is run: by the fastest engine that stays within `tolerance` of the reference.

    Each candidate upscales tiles of the scan, the one of highest contrast and a typical one, and is compared with the
    upscaler as it stands in float32, before rounding. The first is taken whose deviation, taken 1.6 times for
    what was not measured, stays within the tolerance; else the reference. The tiles are as small as the memory asks.

    Args:
        scan: what is to be upscaled.
        upscaler: by what, adapted to the scan. One that is no network of stages is run as it is.
        engine: "auto"; or "torch" (the reference), "compiled", "openvino": tried in half precision where the machine
            has it, then in float32.
        tolerance: largest deviation in gray levels (stored units); 0: only the reference; None: a thousandth of the
            scan's used range, from the 0.1 to the 99.9 percentile of a sample of its values.
        device, memory: as in `plan`.
        note: receives what was tried, with what deviation.

    Raises:
        ValueError: an unknown engine, a tolerance below 0, "openvino" on a GPU or where it is not installed.
    """
    _check(engine, tolerance)
    place = torch_device(device)
    tell = note or (lambda _: None)
    allowed = _used_range(scan) * DEFAULT_TOLERANCE if tolerance is None else tolerance
    if not has_stages(upscaler):
        if engine not in ("auto", "torch"):
            tell(f"engine {engine}: {describe(upscaler)} has no network to run otherwise; it runs as it is")
        return REFERENCE
    candidates = _candidates(engine, place)
    if allowed == 0 or not candidates:
        if engine != "torch":
            why = "the tolerance is 0" if allowed == 0 else f"it does not run on {place}"
            tell(f"{REFERENCE}, not {engine}: {why}")
        return REFERENCE
    tried, trial = list[str](), _Trial(scan, upscaler, place, memory)
    for name, precision in candidates:
        choice = EngineChoice(name, precision, math.inf, allowed)
        try:
            choice = replace(choice, deviation=trial.deviation(choice, note))
        # An engine that cannot run this network, or not in this memory, is no candidate; the reference is.
        except (RuntimeError, MemoryError) as error:
            tried.append(f"{name} {precision} failed ({(str(error).strip() or type(error).__name__).splitlines()[-1]})")
            continue
        reckoned = RESERVE * choice.deviation
        if reckoned <= allowed:
            tell("; ".join([str(choice), *tried]))
            return choice
        tried.append(f"{name} {precision} deviated by {choice.deviation:.3g}, with its reserve {reckoned:.3g}")
    tell("; ".join([f"{REFERENCE}, for none other stays within {allowed:.3g} gray levels", *tried]))
    return REFERENCE


def available(choice: EngineChoice, *, device: Device = "auto") -> str:
    """Why the engine of a choice, made elsewhere or earlier, cannot run here as it did, and the cure; "" if it can.

    Args:
        choice: from `choose_engine`.
        device: as in `plan`; OpenVINO runs on the CPU in any case.
    """
    place = torch.device("cpu") if choice.name == "openvino" else torch_device(device)
    if choice.name == "openvino" and not has_openvino():
        return NO_OPENVINO
    if choice.name == "torch" or (choice.name, choice.precision) in _candidates(choice.name, place):
        return ""
    processor = "a CPU that multiplies in bfloat16" if choice.precision == "bfloat16" else "a CUDA GPU"
    return (
        f"engine {choice.name} {choice.precision}: expected {processor}, found another device ({place}); "
        "go on where the engine was chosen, or start anew"
    )


def _check(engine: str, tolerance: float | None) -> None:
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}; found {engine!r}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance: expected gray levels of at least 0, found {tolerance}")


def _candidates(engine: EngineName, device: torch.device) -> list[Candidate]:
    """What is tried before the reference, the fastest first."""
    if engine == "openvino" and device.type != "cpu":
        raise ValueError(f"engine openvino: expected a CPU, on which it runs, found {device}; use --device cpu")
    found: list[Candidate] = []
    if device.type == "cuda" and engine != "torch":
        found += [("compiled", "bfloat16"), ("compiled", "float16"), ("compiled", "float32")]
    if device.type != "cpu":
        return found
    if engine == "openvino" and not has_openvino():
        raise ValueError(NO_OPENVINO)
    if engine in ("auto", "openvino") and has_openvino():
        found += [("openvino", "bfloat16")] if runs_bfloat16(openvino=True) else []
        found += [("openvino", "float32")]
    if engine in ("auto", "compiled"):
        found += [("compiled", "bfloat16")] if runs_bfloat16(openvino=False) else []
        found += [("compiled", "float32")]
    return found


def _used_range(scan: Scan) -> float:
    """From the 0.1 to the 99.9 percentile of what was measured, in stored units; never 0.

    Where these are equal, as in a scan of little but background: from the smallest to the largest value, else from
    black to white.
    """
    values = sample_values(scan.data)
    values = values[~scan.intensity.holes(values)]
    used = 0.0
    for share in (0.1, 0.0) if values.size else ():
        low, high = np.percentile(values, [share, 100 - share])
        used = used or float(high) - float(low)
    return used or abs(scan.intensity.white - scan.intensity.black)


def _deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference; what is not a number counts as infinite."""
    largest = [
        float((f.double() - e.double()).abs().nan_to_num(nan=math.inf).max())
        for f, e in zip(found, expected, strict=True)
    ]
    return max(largest)


@dataclass(frozen=True, slots=True)
class _MeasuredTile:
    low: Tensor
    keep: Region


@dataclass(slots=True)
class _Trial:
    """Tiles of a scan and the reference's result of them, both made when they are first needed.

    The tiles shrink to what fits the memory, first by the halo: then each is taken for a scan of its own, in which the
    engines agree just as well.
    """

    scan: Scan
    upscaler: Upscaler
    device: torch.device
    memory: int | None
    tiles: list[_MeasuredTile] = field(default_factory=list)
    expected: list[Tensor] = field(default_factory=list)

    def deviation(self, choice: EngineChoice, note: Note | None) -> float:
        """Largest difference of an engine from the reference, in stored units.

        Raises:
            MemoryTooSmallError: not the smallest tile fits the memory.
            RuntimeError: the engine cannot run this network, or meets the end of the memory.
        """
        dims = len(self.upscaler.factor)
        before = tuple(self.tiles[0].low.shape[2:]) if self.tiles else ()
        fitting = self._fitting(choice, before or self._fitting(REFERENCE, self._wanted()).tile[-dims:])
        size = fitting.tile[-dims:]
        if size != before:
            tiles = [*_measured_tiles(self.scan, self.upscaler, size)]
            run = build_engine(self.upscaler, REFERENCE, device=self.device, strip=())
            self.tiles, self.expected = tiles, [run(tile.low, tile.keep) for tile in tiles]
        run = build_engine(self.upscaler, choice, device=self.device, strip=fitting.strip, note=note)
        found = [run(tile.low, tile.keep) for tile in self.tiles]
        return _deviation(found, self.expected) * abs(self.scan.intensity.white - self.scan.intensity.black)

    def _wanted(self) -> tuple[int, ...]:
        """Samples of a tile with a whole halo."""
        halo = self.upscaler.halo
        return tuple(min(n, _side(len(halo)) + 2 * h) for n, h in zip(self.scan.shape[-len(halo) :], halo, strict=True))

    def _fitting(self, choice: EngineChoice, extent: tuple[int, ...]) -> Plan:
        return plan(
            self.scan,
            self.upscaler,
            memory=self.memory,
            device=self.device,
            block=(1,) * (len(self.scan.shape) - len(extent)) + extent,
            engine=choice,
            most_batch=1,
            alone=True,
        )


def _side(dims: int) -> int:
    return {1: 4096, 2: 64, 3: 16}[dims]


def _measured_tiles(scan: Scan, upscaler: Upscaler, extent: tuple[int, ...]) -> Iterator[_MeasuredTile]:
    """The window of most contrast, and if the scan is large enough one of median contrast, each in `extent` samples."""
    dims = len(extent)
    size = tuple(min(n, _side(dims)) for n in extent)
    windows = [window for _, window in sorted(_windows(scan, size), key=lambda found: found[0])]
    typical = windows[len(windows) // 2]
    few = 2 * math.prod(extent) > MEASURED_SHARE * math.prod(scan.shape) or typical == windows[-1]
    for window in windows[-1:] if few else [windows[-1], typical]:
        inner = window[-dims:]
        starts = [
            min(max(0, w.start - (e - s) // 2), n - e)
            for w, e, s, n in zip(inner, extent, size, scan.shape[-dims:], strict=True)
        ]
        stored = scan.read((*window[:-dims], *(slice(a, a + e) for a, e in zip(starts, extent, strict=True))))
        unit, holes = scan.intensity.to_unit(stored), scan.intensity.holes(stored)
        if holes.any():
            unit = fill_holes(unit, holes, dims=dims)
        keep = tuple(
            slice((w.start - a) * f, (w.stop - a) * f) for w, a, f in zip(inner, starts, upscaler.factor, strict=True)
        )
        yield _MeasuredTile(torch.from_numpy(unit.reshape(1, 1, *unit.shape[-dims:])), keep)


def _windows(scan: Scan, size: tuple[int, ...]) -> Iterator[tuple[float, Region]]:
    """Windows of `size` along the last axes, side by side, each with its largest less its smallest value: at an edge
    or a bright speck half precision deviates most. In a large scan evenly spaced rows of windows are looked at."""
    full = (1,) * (len(scan.shape) - len(size)) + size
    *counts, along = (math.ceil(n / s) for n, s in zip(scan.shape, full, strict=True))
    rows = math.prod(counts)
    fitting = max(1, SEARCHED_SAMPLES // (math.prod(full[:-1]) * scan.shape[-1]))
    for row in sorted({round(i) for i in np.linspace(0, rows - 1, min(rows, fitting))}):
        cell = (*map(int, np.unravel_index(row, counts)), 0) if counts else (0,)
        starts = [min(c * s, n - s) for c, s, n in zip(cell, full, scan.shape, strict=True)]
        stored = scan.read((*(slice(a, a + s) for a, s in zip(starts[:-1], full, strict=False)), slice(None)))
        holes, around = scan.intensity.holes(stored), tuple(range(stored.ndim - 1))
        highest = np.where(holes, -np.inf, stored).max(axis=around)
        lowest = np.where(holes, np.inf, stored).min(axis=around)
        for index in range(along):
            start = min(index * full[-1], scan.shape[-1] - full[-1])
            here = slice(start, start + full[-1])
            contrast = float(highest[here].max() - lowest[here].min())
            inside = (*(slice(a, a + s) for a, s in zip(starts[:-1], full, strict=False)), here)
            yield (contrast if math.isfinite(contrast) else 0.0), inside
