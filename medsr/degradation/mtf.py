"""Detector blur of X-ray imaging: a kernel from its modulation transfer function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from medsr.degradation.kernels import FineGrid, Part

__all__ = ["DetectorMTF"]

Array = NDArray[np.float64]
LONGEST = 64  # fine samples from the center beyond which a kernel is cut
TAPER = 0.4  # cycles per fine sample from which a kernel read between samples is led to 0 at the end of the band
CLOSE = 0.004  # largest departure from the asked curve for which a kernel is not made longer


@dataclass(frozen=True, slots=True)
class DetectorMTF:
    """Isotropic blur with a given modulation transfer function (MTF); separable only where it is a Gaussian.

    The kernel is the inverse Fourier transform of the curve inside the band that the fine grid can hold, so its own
    MTF equals the asked one there (to 0.004, unless the tail is longer than 64 fine samples and is cut). Point
    sampling by an even factor reads between fine samples; there the curve is led to 0 in the last fifth of the band.

    Use `sampling="point"` with a presampled MTF, which holds the detector's aperture already, and `"area"` with the
    MTF of the scintillator alone. The curve is what lies between the fine scan and the coarse one: if the fine scan was
    blurred itself, give the ratio of the two curves.

    Attributes:
        form: "gaussian" exp(-ln 2 (f/f50)**2), "lorentzian" 1 / (1 + (f/f50)**2), "exponential" exp(-ln 2 f/f50), or
            "table".
        f50_per_mm: frequency at which the curve is one half, in cycles per millimeter; not for a table.
        table: pairs (cycles per millimeter, MTF), ascending; linear in between, straight on from (0, 1), and beyond the
            last pair falling by the slope of the last two on a logarithmic scale.

    Raises:
        ValueError: a frequency or MTF out of range, a table of less than two pairs or out of order.
    """

    form: Literal["gaussian", "lorentzian", "exponential", "table"]
    f50_per_mm: float | None = None
    table: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.form not in ("gaussian", "lorentzian", "exponential", "table"):
            raise ValueError(f"form: expected gaussian, lorentzian, exponential or table; found {self.form!r}")
        if self.form != "table":
            if self.f50_per_mm is None or not (math.isfinite(self.f50_per_mm) and self.f50_per_mm > 0) or self.table:
                raise ValueError(f"{self.form}: expected f50_per_mm above 0 and no table; found {self.f50_per_mm}")
            return
        frequency = [f for f, _ in self.table]
        ascending = all(a < b for a, b in pairwise(frequency))
        if len(frequency) < 2 or not ascending or frequency[0] < 0 or any(not 0 < m <= 1.5 for _, m in self.table):
            raise ValueError(
                "table: expected two or more pairs (cycles per mm, MTF), ascending, each MTF above 0 and at most 1.5; "
                f"found {self.table}"
            )

    @classmethod
    def measured(cls, frequency_per_mm: Sequence[float], mtf: Sequence[float]) -> Self:
        """The curve through measured values.

        Raises:
            ValueError: the two differ in length, or the table is not valid.
        """
        pairs = tuple((float(f), float(m)) for f, m in zip(frequency_per_mm, mtf, strict=True))
        return cls("table", table=pairs)

    @classmethod
    def of_fwhm(cls, fwhm_um: float) -> Self:
        """The Lorentzian curve of a scintillator whose image of a thin line has a full width at half maximum.

        Its point spread has a peak without end, and no width. The line spread is exp(-2 pi f50 |x|), of the width
        ln 2 / (pi f50).

        Args:
            fwhm_um: of the line spread, micrometers.

        Raises:
            ValueError: the width is not above 0.
        """
        if not fwhm_um > 0:
            raise ValueError(f"fwhm_um: expected a width above 0, found {fwhm_um}")
        return cls("lorentzian", f50_per_mm=math.log(2) / (math.pi * fwhm_um * 1e-3))

    @property
    def fwhm_um(self) -> float | None:
        """Full width at half maximum of the line spread, micrometers; None: not known for a table."""
        if self.f50_per_mm is None:
            return None
        narrow = math.log(2) / (math.pi * self.f50_per_mm) * 1e3  # of exp(-2 pi f50 |x|), and of 1 / (x**2 + b**2)
        return 2 * narrow if self.form == "gaussian" else narrow

    def at(self, frequency_per_mm: Array) -> Array:
        """The curve at frequencies (any shape) in cycles per millimeter."""
        f = np.abs(np.asarray(frequency_per_mm, np.float64))
        if self.form == "table" or self.f50_per_mm is None:
            known, values = (np.array(column) for column in zip(*self.table, strict=True))
            if known[0] > 0:
                known, values = np.append(0.0, known), np.append(1.0, values)
            fall = min(math.log(values[-1] / values[-2]) / (known[-1] - known[-2]), 0.0)
            return np.asarray(np.interp(f, known, values) * np.exp(fall * np.maximum(f - known[-1], 0)), np.float64)
        ratio = f / self.f50_per_mm
        if self.form == "gaussian":
            return np.asarray(np.exp(-math.log(2) * ratio**2), np.float64)
        if self.form == "lorentzian":
            return np.asarray(1 / (1 + ratio**2), np.float64)
        return np.asarray(np.exp(-math.log(2) * ratio), np.float64)

    def parts(self, grid: FineGrid) -> tuple[Part, ...]:
        """Weights in the plane (along the line, for a factor of one axis).

        Raises:
            ValueError: the spacing in the plane is unknown.
        """
        axes = tuple(range(max(len(grid.factor) - 2, 0), len(grid.factor)))
        steps_mm = [grid.step_um(a, cure="a Gaussian with fwhm_samples") * 1e-3 for a in axes]
        size = 4 * LONGEST
        # A kernel is real: half the frequencies along the last axis tell all.
        lines = [np.fft.fftfreq(size)] * (len(axes) - 1) + [np.fft.rfftfreq(size)]
        shape = tuple(map(len, lines))
        radial = np.zeros(shape)
        phase = np.ones(shape, np.complex128)
        for i, (axis, step) in enumerate(zip(axes, steps_mm, strict=True)):
            line = lines[i].reshape([-1 if j == i else 1 for j in range(len(axes))])
            radial = radial + (line / step) ** 2
            if grid.half[axis]:
                taper = np.cos(math.pi / 2 * np.clip((np.abs(line) - TAPER) / (0.5 - TAPER), 0, 1)) ** 2
                phase = phase * taper * np.exp(1j * math.pi * line)
        asked = self.at(np.sqrt(radial)) * phase
        return (Part(axes, _shortest(asked / asked.flat[0].real, [grid.half[a] for a in axes])),)


def _shortest(asked: NDArray[np.complex128], half: list[bool]) -> Array:
    """The shortest middle part of the inverse real transform of `asked` whose own transform is within `CLOSE` of it."""
    axes = tuple(range(asked.ndim))
    spread = np.fft.irfftn(asked, (4 * LONGEST,) * asked.ndim, axes)
    along = asked.reshape(len(asked), -1)[:, 0]
    for reach in (*range(1, 9), *range(10, 16, 2), *range(16, LONGEST + 1, 4)):
        index = [np.arange(-reach, reach + (0 if h else 1)) for h in half]
        kept = spread[np.ix_(*index)]
        kept = kept / kept.sum()
        line = np.zeros(len(spread))
        line[index[0]] = kept.reshape(len(index[0]), -1).sum(1)
        # A quick look along one axis spares most whole transforms.
        if np.abs(np.fft.fft(line)[: len(along)] - along).max() > CLOSE:
            continue
        own = np.zeros(spread.shape)
        own[np.ix_(*index)] = kept
        if np.abs(np.fft.rfftn(own, axes=axes) - asked).max() <= CLOSE:
            break
    return np.asarray(kept, np.float64)
