"""Which types of samples a scan may have, and the intensity line measured from the samples themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsr.scan import Intensity, LazyArray, ScanError, robust_intensity, sample_values

__all__ = ["measured_intensity", "refuse_type", "unknown_spacing"]

SEARCH_SAMPLES = 2**28


def refuse_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse samples that are no gray values a float64 line can carry exactly.

    Raises:
        ScanError: a mask, complex numbers, text, or integers of 64 bits.
    """
    if dtype.kind == "b":
        raise ScanError(f"{path}: expected gray levels, found a 1-bit mask; a mask has no gray levels to upscale")
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: expected integers or floats, found {dtype}; save it as one of these")
    if dtype.kind in "iu" and dtype.itemsize > 4:
        raise ScanError(
            f"{path}: expected integers of at most 32 bits, found {dtype}; save it as int32, uint32 or float64"
        )
    if dtype.kind == "f" and dtype.itemsize > 8:
        raise ScanError(f"{path}: expected floats of at most 64 bits, found {dtype}; save it as float64")


def measured_intensity(path: Path, data: LazyArray, *, nodata: float | None = None, **said: Any) -> Intensity:
    """The robust line of `data`, with what the file says beside it (slope, intercept, units, window).

    Raises:
        ScanError: no finite value is in it.
    """
    dtype = np.dtype(data.dtype)
    values = sample_values(data)
    if dtype.kind == "f" and not np.isfinite(values).any() and values.size < math.prod(data.shape) <= SEARCH_SAMPLES:
        values = np.asarray(data[...])
    padding = None if nodata is None or not math.isfinite(nodata) else (float(nodata), float(nodata))
    try:
        return replace(robust_intensity(values, dtype, padding=padding), **said)
    except ValueError as error:
        raise ScanError(f"{path}: {error}; there is nothing in it to upscale") from error


def unknown_spacing(axes: str, spacing_um: dict[str, float]) -> tuple[str, ...]:
    """The warning for spatial axes whose spacing the file does not say; none where all are known."""
    unknown = [a for a in axes if a in "zyx" and a not in spacing_um]
    return (f"the file does not say the spacing along {', '.join(unknown)}: unknown",) if unknown else ()
