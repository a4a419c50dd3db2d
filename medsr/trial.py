"""Trial: a scan and the coarse scan made from it, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsr.degradation import Degradation, DegradationRange, SecondOrder
from medsr.io.lazy import BlockArray
from medsr.metrics import foreground_threshold, smoothed
from medsr.scan import Factor, Region, Scan, ScanError

__all__ = ["Index", "Survey", "Trial", "by", "survey_of"]

Array = NDArray[Any]
Index = tuple[int, ...]

SURVEYED = 16
"""Planes looked at before the work: for the foreground threshold and the plane of the picture."""


class Trial:
    """A scan, cut to whole coarse samples, and the coarse scan made from it; frame by frame.

    A frame is what is degraded and measured at once: the last two axes, or three for a factor of three entries.

    Args:
        scan: the fine one.
        factor: fine samples for each coarse one.
        degradation: a range stands for its middle; None: the mean over each coarse sample.
        seed: of the noise, beside the number of the frame; (): that number alone.
    """

    def __init__(
        self,
        scan: Scan,
        factor: Factor,
        degradation: Degradation | DegradationRange | None,
        *,
        seed: Sequence[int] = (),
    ) -> None:
        self._seed = tuple(seed)
        scan = _with_holes(scan)
        self.scan = scan
        self.axes = len(factor)
        self.factor = scan.grid.pad_factor(factor)
        coarse = tuple(n // f for n, f in zip(scan.shape, self.factor, strict=True))
        if 0 in coarse:
            raise ScanError(
                f"expected at least {by(self.factor)} samples along {''.join(scan.grid.axes)} for one coarse sample, "
                f"found {by(scan.shape)}; use a smaller factor"
            )
        self.shape = tuple(n * f for n, f in zip(coarse, self.factor, strict=True))
        self.lead = len(self.shape) - min(max(2, self.axes), len(self.shape))
        spacing = (scan.grid.spacing_um or (None,) * len(self.shape))[-self.axes :]
        self.degradation: Degradation | SecondOrder
        if isinstance(degradation, DegradationRange):
            self.degradation = degradation.center(factor, spacing)
        else:
            self.degradation = degradation or Degradation(factor)
        grid = scan.grid.coarsen(factor)
        dtype = scan.intensity.dtype
        block = (1,) * self.lead + coarse[self.lead :]
        data = BlockArray(coarse, dtype, block=block, load=self._coarse_frame, keep=math.prod(block) * dtype.itemsize)
        note = f"degraded {by(factor)} by {self.degradation!r}"
        self.low = Scan(data, grid, scan.intensity, (*scan.history, note), reader=scan.reader)

    @property
    def refined(self) -> tuple[int, ...]:
        """Axes of a frame that the factor refines; all of them where it refines none."""
        frame = self.factor[self.lead :]
        return tuple(a for a, f in enumerate(frame) if f > 1) or tuple(range(len(frame)))

    @property
    def section(self) -> bool:
        """True where only z is refined, so that a plane of the stack would show nothing."""
        return len(self.factor) - self.lead == 3 and self.factor[-3] > 1 and max(self.factor[-2:]) == 1

    def frames(self) -> Iterator[Index]:
        """The index of each frame along the leading axes."""
        return product(*map(range, self.shape[: self.lead]))

    def region(self, index: Index, shape: Sequence[int]) -> Region:
        """The frame at `index` in an array of `shape` (fine or coarse)."""
        return (*(slice(i, i + 1) for i in index), *(slice(0, n) for n in shape[self.lead :]))

    def fine(self, index: Index) -> Array:
        """Stored values of a frame of the original."""
        return self.scan.read(self.region(index, self.shape)).reshape(self.shape[self.lead :])

    def coarse(self, index: Index) -> Array:
        """Stored values of a frame of the coarse scan."""
        return self.low.read(self.region(index, self.low.shape)).reshape(self.low.shape[self.lead :])

    def degraded(self, unit: NDArray[np.float32], *, seed: int | None = None) -> NDArray[np.float32]:
        """A frame in unit intensity made coarse; noise only with a seed; coarse samples with a hole in them are NaN."""
        holes = ~np.isfinite(unit)
        if holes.all():
            return np.full(
                [n // f for n, f in zip(unit.shape, self.factor[self.lead :], strict=True)], np.float32(np.nan)
            )
        if holes.any():
            nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
            unit = unit[tuple(nearest)]
        high = torch.from_numpy(unit).reshape(-1, 1, *unit.shape[-self.axes :])
        with torch.inference_mode():
            if seed is None:
                low = self.degradation.mean(high)
            else:
                low = self.degradation(high, torch.Generator().manual_seed(seed))
        coarse = low.numpy().reshape(*unit.shape[: unit.ndim - self.axes], *low.shape[2:])
        if holes.any():
            for axis, f in enumerate(self.factor[self.lead :]):
                holes = np.logical_or.reduceat(holes, range(0, holes.shape[axis], f), axis)
            coarse = np.where(holes, np.float32(np.nan), coarse)
        return coarse

    def _coarse_frame(self, block: Index) -> Array:
        index = block[: self.lead]
        number = int(np.ravel_multi_index(index, self.shape[: self.lead])) if index else 0
        seed = int(np.random.SeedSequence([*self._seed, number]).generate_state(1)[0]) if self._seed else number
        unit = self.degraded(self.scan.intensity.to_unit(self.fine(index)), seed=seed)
        return self.scan.intensity.to_stored(unit).reshape((1,) * self.lead + unit.shape)


class _Unpadded:
    """Samples of a scan as floats, NaN where they are padding."""

    def __init__(self, scan: Scan, dtype: np.dtype[Any]) -> None:
        self._scan = scan
        self.shape = scan.shape
        self.dtype = dtype

    def __getitem__(self, region: Region) -> Array:
        stored = self._scan.read(region)
        return np.where(self._scan.intensity.holes(stored), np.nan, stored).astype(self.dtype)


def _with_holes(scan: Scan) -> Scan:
    """A scan with padding as one of floats with holes, which are measured nowhere."""
    if scan.intensity.padding is None:
        return scan
    dtype = scan.intensity.dtype if scan.intensity.dtype.kind == "f" else np.dtype(np.float32)
    intensity = replace(scan.intensity, dtype=dtype, padding=None)
    return replace(scan, data=_Unpadded(scan, dtype), intensity=intensity)


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first look at some planes says.

    Attributes:
        threshold: unit intensity above which a sample is foreground; minus infinity where more than a tenth is NaN, for
            then the file has marked its background itself (a height map).
        plane: index of the plane with the most detail, along all axes but the last two.
        known: where the first plane with holes has values; without holes all True.
    """

    threshold: float
    plane: Index
    known: NDArray[np.bool_]


def survey_of(trial: Trial) -> Survey:
    """Look at up to SURVEYED planes, evenly spread.

    Raises:
        ScanError: none of them holds a finite value.
    """
    counts = trial.shape[:-2]
    total = math.prod(counts)
    values: list[Array] = []
    best: Index = ()
    detail, known = -1.0, None
    empty, looked = 0.0, 0
    for pick in np.unique(np.linspace(0, total - 1, min(SURVEYED, total)).round().astype(int)):
        index = tuple(int(i) for i in np.unravel_index(pick, counts)) if counts else ()
        region = (*(slice(i, i + 1) for i in index), *(slice(0, n) for n in trial.shape[-2:]))
        unit = trial.scan.intensity.to_unit(trial.scan.read(region)).reshape(trial.shape[-2:])
        smooth = smoothed(unit, 2.0)
        finite = smooth[np.isfinite(smooth)]
        values.append(finite[:: max(1, finite.size // 2**18)])
        slopes = [np.abs(np.diff(smooth, axis=axis)) for axis in (0, 1) if smooth.shape[axis] > 1]
        steep = max((float(s[np.isfinite(s)].mean()) for s in slopes if np.isfinite(s).any()), default=0.0)
        if finite.size and steep > detail:
            best, detail = index, steep
        if known is None or (known.all() and not np.isfinite(unit).all()):
            known = np.isfinite(unit)
        empty += 1 - float(np.isfinite(unit).mean())
        looked += 1
    sample = np.concatenate(values)
    if not sample.size or known is None:
        raise ScanError("expected finite values, found none (all NaN or infinite): nothing to measure")
    marked = empty > 0.1 * looked
    return Survey(-math.inf if marked else foreground_threshold(sample), best, known)


def by(sizes: Sequence[int]) -> str:
    """Sizes as "3 x 4"."""
    return " x ".join(map(str, sizes))
