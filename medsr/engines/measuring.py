"""choose_engine: the fastest engine whose result stays within a tolerance of the reference, on tiles of the scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from medsr.engines.choice import REFERENCE, EngineChoice, EngineFor, EngineName, Precision
from medsr.engines.parts import has_openvino, runs_bfloat16
from medsr.engines.running import build_engine
from medsr.holes import fill_holes
from medsr.plan import Device, torch_device
from medsr.scan import Region, Scan, sample_values
from medsr.tiles import plan_tiles
from medsr.upscaler import Staged, Upscaler, describe

__all__ = ["ENGINES", "choose_engine"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
"""The engines by the name a command line calls them."""

DEFAULT_TOLERANCE = 1e-3
"""Share of a scan's used range (0.1 to 99.9 percentile) that an engine may deviate by: a quarter of a gray level where
the scan has 8 bits and uses them."""

RESERVE = 1.6
"""The deviation of a whole scan over that of its measured tiles that is reckoned with (seen: up to 1.54)."""

MEASURED_SHARE = 0.03
"""Share of the scan's samples that the tiles to measure on may have, halo included."""

Note = Callable[[str], None]
Candidate = tuple[EngineFor, Precision]


def choose_engine(
    scan: Scan,
    upscaler: Upscaler,
    *,
    engine: EngineName = "auto",
    tolerance: float | None = None,
    device: Device = "auto",
    note: Note | None = None,
) -> EngineChoice:
    """Choose how a network is run: by the fastest engine that stays within `tolerance` of the reference.

    Each candidate upscales tiles of the scan, the one of highest contrast and a typical one, and is compared with the
    upscaler as it stands in float32, before rounding. The first is taken whose deviation, taken 1.6 times for
    what was not measured, stays within the tolerance; else the reference.

    Args:
        scan: what is to be upscaled.
        upscaler: by what, adapted to the scan. One that is no network of stages is run as it is.
        engine: "auto"; or "torch" (the reference), "compiled", "openvino": tried in half precision where the machine
            has it, then in float32.
        tolerance: largest deviation in gray levels (stored units); 0: only the reference; None: a thousandth of the
            scan's used range, from the 0.1 to the 99.9 percentile of a sample of its values.
        device: as in `plan`.
        note: receives what was tried, with what deviation.

    Raises:
        ValueError: an unknown engine, a tolerance below 0, "openvino" on a GPU or where it is not installed.
    """
    _check(engine, tolerance)
    place = torch_device(device)
    tell = note or (lambda _: None)
    allowed = _used_range(scan) * DEFAULT_TOLERANCE if tolerance is None else tolerance
    if not isinstance(upscaler, Staged):
        if engine not in ("auto", "torch"):
            tell(f"engine {engine}: {describe(upscaler)} has no network to run otherwise; it runs as it is")
        return REFERENCE
    candidates = _candidates(engine, place)
    if allowed == 0 or not candidates:
        return REFERENCE
    tried, tiles = list[str](), [*_measured_tiles(scan, upscaler)]
    expected = list[Tensor]()
    for name, precision in candidates:
        if not expected:
            run = build_engine(upscaler, REFERENCE, device=place)
            expected = [run(tile.low, tile.keep) for tile in tiles]
        choice = EngineChoice(name, precision, math.inf, allowed)
        try:
            run = build_engine(upscaler, choice, device=place, note=note)
            found = [run(tile.low, tile.keep) for tile in tiles]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an engine that cannot run this network is no candidate; the reference is
            tried.append(f"{name} {precision} failed ({(str(error).strip() or type(error).__name__).splitlines()[-1]})")
            continue
        gain = abs(scan.intensity.white - scan.intensity.black)
        choice = replace(choice, deviation=_deviation(found, expected) * gain)
        if RESERVE * choice.deviation <= allowed:
            tell("; ".join([str(choice), *tried]))
            return choice
        tried.append(f"{name} {precision} deviated by {choice.deviation:.3g}")
    tell("; ".join([f"{REFERENCE}, for none other stays within {allowed:.3g} gray levels", *tried]))
    return REFERENCE


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
        raise ValueError("engine openvino: expected OpenVINO, found none installed; pip install 'medsr[fast]'")
    if engine in ("auto", "openvino") and has_openvino():
        found += [("openvino", "bfloat16")] if runs_bfloat16(openvino=True) else []
        found += [("openvino", "float32")]
    if engine in ("auto", "compiled"):
        found += [("compiled", "bfloat16")] if runs_bfloat16(openvino=False) else []
        found += [("compiled", "float32")]
    return found


def _used_range(scan: Scan) -> float:
    """From the 0.1 to the 99.9 percentile of what was measured, in stored units."""
    values = sample_values(scan.data)
    values = values[~scan.intensity.holes(values)]
    if values.size == 0:
        return 0.0
    low, high = np.percentile(values, [0.1, 99.9])
    return float(high) - float(low)


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


def _measured_tiles(scan: Scan, upscaler: Upscaler) -> Iterator[_MeasuredTile]:
    """The window of most contrast, and if the scan is large enough one of median contrast."""
    dims = len(upscaler.factor)
    side = {1: 4096, 2: 64, 3: 16}[dims]
    size = tuple(min(n, side) for n in scan.shape[-dims:])
    windows = sorted(_windows(scan.shape, size), key=lambda w: _contrast(scan, w))
    cost = math.prod(min(n, s + 2 * h) for n, s, h in zip(scan.shape[-dims:], size, upscaler.halo, strict=True))
    typical = windows[len(windows) // 2]
    few = 2 * cost > MEASURED_SHARE * math.prod(scan.shape) or typical == windows[-1]
    factor = scan.grid.pad_factor(upscaler.factor)
    halo = (0,) * (len(factor) - dims) + tuple(upscaler.halo)
    for window in windows[-1:] if few else [windows[-1], typical]:
        target = tuple(slice(s.start * f, s.stop * f) for s, f in zip(window, factor, strict=True))
        tile = next(plan_tiles(scan.shape, factor, halo=halo, tile=scan.shape, target=target))
        stored = scan.read(tile.read)
        unit, holes = scan.intensity.to_unit(stored), scan.intensity.holes(stored)
        if holes.any():
            unit = fill_holes(unit, holes, dims=dims)
        yield _MeasuredTile(torch.from_numpy(unit.reshape(1, 1, *unit.shape[-dims:])), tile.keep[-dims:])


def _windows(shape: tuple[int, ...], size: tuple[int, ...]) -> Iterator[Region]:
    """Windows of `size` along the last axes: 5 along each of the last two, 3 along the others, evenly spaced."""
    full = (1,) * (len(shape) - len(size)) + size
    starts = []
    for axis, (n, s) in enumerate(zip(shape, full, strict=True)):
        count = 5 if axis >= len(shape) - 2 else 3
        starts.append(sorted({round(i * (n - s) / (count - 1)) for i in range(count)}))
    for corner in product(*starts):
        yield tuple(slice(a, a + s) for a, s in zip(corner, full, strict=True))


def _contrast(scan: Scan, window: Region) -> float:
    """Largest less smallest value: one bright speck is where half precision deviates most."""
    stored = scan.read(window)
    measured = stored[~scan.intensity.holes(stored)]
    return float(measured.max()) - float(measured.min()) if measured.size else 0.0
