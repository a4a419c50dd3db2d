"""Which types of samples a scan may have, and the intensity line measured from the samples themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.scan import Intensity, LazyArray, ScanError, robust_intensity, sample_values

__all__ = [
    "given_intensity",
    "measured_intensity",
    "refuse_type",
    "sampled_channels",
    "uneven_channels",
    "unknown_spacing",
]

Array = NDArray[Any]

SEARCH_SAMPLES = 2**28
PLANES = 16
UNEVEN = 4


def refuse_type(path: Path | str, dtype: np.dtype[Any]) -> None:
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


def given_intensity(path: Path | str, intensity: Intensity, dtype: np.dtype[Any]) -> Intensity:
    """`intensity` as it is, where it fits samples of `dtype`.

    Raises:
        ScanError: it is of another type.
    """
    if intensity.dtype != np.dtype(dtype).newbyteorder("="):
        raise ScanError(
            f"{path}: expected samples of {intensity.dtype} as the given intensity says, found {np.dtype(dtype)}; "
            "the file was changed, or the intensity is that of another scan: read it without one"
        )
    return intensity


@dataclass(frozen=True, slots=True)
class _Channel:
    """One entry of an axis of a lazy array, as an array in which this axis has the length 1."""

    base: LazyArray
    axis: int
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(1 if i == self.axis else int(n) for i, n in enumerate(self.base.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.base.dtype)

    def __getitem__(self, region: Any, /) -> Array:
        region = [slice(None)] * len(self.shape) if region is Ellipsis else list(region)
        region[self.axis] = slice(self.number, self.number + 1)
        return np.asarray(self.base[tuple(region)])


def sampled_channels(data: LazyArray, axes: Sequence[str]) -> dict[int, Array]:
    """A sample of the values of each channel (at most 16 of them, evenly chosen), flat; {0: ...} without channels."""
    if "c" not in axes or data.shape[axes.index("c")] < 2:
        return {0: sample_values(data)}
    axis = axes.index("c")
    count = data.shape[axis]
    chosen = np.unique(np.linspace(0, count - 1, min(count, PLANES)).round().astype(int)).tolist()
    return {c: sample_values(_Channel(data, axis, c), planes=max(1, PLANES // len(chosen))) for c in chosen}


def uneven_channels(values: dict[int, Array], padding: tuple[float, float] | None = None) -> tuple[str, ...]:
    """The warning for channels that share one line although the range of one is less than a quarter of another's."""
    ranges: dict[int, tuple[float, float]] = {}
    for channel, sample in values.items():
        kept = sample[np.isfinite(sample)]
        if padding is not None:
            kept = kept[(kept < padding[0]) | (kept > padding[1])]
        if kept.size:
            low, high = np.percentile(kept.astype(np.float64), (0.1, 99.9))
            ranges[channel] = (float(low), float(high))
    spans = [high - low for low, high in ranges.values()]
    if len(spans) < 2 or UNEVEN * min(spans) >= max(spans):
        return ()
    text = ", ".join(f"{c}: {low:.6g} to {high:.6g}" for c, (low, high) in ranges.items())
    return (
        f"the channels have very different ranges ({text}) and share one intensity line; "
        "for lines of their own save each channel as a file",
    )


def measured_intensity(
    path: Path | str,
    data: LazyArray,
    *,
    axes: Sequence[str] = (),
    padding: tuple[float, float] | None = None,
    **said: Any,
) -> tuple[Intensity, tuple[str, ...]]:
    """The robust line of `data` with what the file says beside it (slope, intercept, units, window), and warnings.

    Args:
        path: named in errors.
        data: the samples.
        axes: names of its axes; the ranges of channels ("c") are compared.
        padding: closed range of stored values that mean "not measured".
        said: further fields of the intensity.

    Raises:
        ScanError: no finite value is in it.
    """
    dtype = np.dtype(data.dtype)
    channels = sampled_channels(data, axes)
    values = np.concatenate(list(channels.values()))
    if dtype.kind == "f" and not np.isfinite(values).any() and values.size < math.prod(data.shape) <= SEARCH_SAMPLES:
        values = np.asarray(data[(slice(None),) * len(data.shape)])
    try:
        line = robust_intensity(values, dtype, padding=padding)
    except ValueError as error:
        raise ScanError(f"{path}: {error}; there is nothing in it to upscale") from error
    return replace(line, **said), uneven_channels(channels, padding)


def unknown_spacing(axes: str, spacing_um: dict[str, float]) -> tuple[str, ...]:
    """The warning for spatial axes whose spacing the file does not say; none where all are known."""
    unknown = [a for a in axes if a in "zyx" and a not in spacing_um]
    return (f"the file does not say the spacing along {', '.join(unknown)}: unknown",) if unknown else ()
