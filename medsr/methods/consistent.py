"""Consistent: any method whose result, degraded again, has to return the measured scan."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from medsr.degradation import Degradation, DegradationRange, PoissonGaussian, SecondOrder
from medsr.methods.projection import Known, Projection, projection, response
from medsr.upscaler import Composed, Run, Upscaler, describe

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = ["Consistent", "ExpectsDegradation", "FindsDegradation", "KnowsDegradation", "expected_by", "found_by"]

GRAY = 0.5
"""Unit intensity at which the noise of photons is taken: the middle of the line."""


@runtime_checkable
class KnowsDegradation(Protocol):
    """An upscaler that holds a degradation, told or assumed."""

    @property
    def degradation(self) -> Known | None:
        """What it was told, assumes, or found out; None: nothing yet."""
        ...


@runtime_checkable
class FindsDegradation(Protocol):
    """An upscaler that finds out in `adapt` how its scan was degraded."""

    @property
    def found_degradation(self) -> Known | None:
        """What it found; None: nothing, or not yet."""
        ...


@runtime_checkable
class ExpectsDegradation(Protocol):
    """An upscaler that was trained for a range of degradations."""

    @property
    def expected_degradation(self) -> DegradationRange:
        """The range."""
        ...


def expected_by(upscaler: Upscaler) -> Known | DegradationRange | None:
    """How a method, or what it is made of, takes its scan to have been degraded.

    What it found out, was told or assumes, or was trained for, in this order; None where nothing is known of it, or its
    parts disagree.
    """
    if isinstance(upscaler, FindsDegradation) and (found := upscaler.found_degradation) is not None:
        return found
    if isinstance(upscaler, KnowsDegradation) and (told := upscaler.degradation) is not None:
        return told
    if isinstance(upscaler, ExpectsDegradation):
        return upscaler.expected_degradation
    if not isinstance(upscaler, Composed):
        return None
    known = {repr(each): each for part in upscaler.parts if (each := expected_by(part)) is not None}
    return next(iter(known.values())) if len(known) == 1 else None


def found_by(upscaler: Upscaler) -> Known | None:
    """What a method, or what it is made of, found of the degradation of its scan; None where it found none.

    Raises:
        ValueError: its parts found different ones.
    """
    if isinstance(upscaler, FindsDegradation):
        return upscaler.found_degradation
    if not isinstance(upscaler, Composed):
        return None
    found = {repr(each): each for part in upscaler.parts if (each := found_by(part)) is not None}
    if len(found) > 1:
        raise ValueError(
            f"{describe(upscaler)}: expected parts that found the same degradation, found {' and '.join(found)}; "
            "say which holds"
        )
    return next(iter(found.values()), None)


class Consistent(nn.Module):
    """A method whose result, degraded again, returns the measured scan.

    To the estimate x of the method it adds what the measurement y asks for and no more: the smallest change that
    removes the contradiction,

        x + A^T (A A^T + ridge)^-1 (y - A x),

    A being the mean of the degradation, edges included. What A does not see, the method decides alone. Along each axis
    of its own the inverse is exact; for a kernel that does not separate (turned, Airy, a detector's) a fixed number of
    Chebyshev steps leaves at most a thousandth of the residual. The change is linear, the same for every tile, and
    gain, offset and flat fields pass through. Against the noise-free truth the error never grows.

    A ridge keeps part of the contradiction:

    * for noise. A noisy scan must not be returned to the last grain. With noise of standard deviation s and a method
      that, degraded again, is expected to be off by `doubt` d, a residual of one level is corrected by the share
      d**2 / (d**2 + s**2), the Wiener gain, and less where the degradation saw less; what is left of the residual has
      then no more power than the noise (the discrepancy principle, in the mean).
    * for wide blurs. Where the condition number of A A^T exceeds 100 along an axis (a Gaussian wider than 1.6 coarse
      samples), or for a kernel that does not separate, the ridge holds it there, with or without noise. Without one, a
      Gaussian of 3 coarse samples has 13 million and would amplify noise 3,600 times. `condition` states the number.

    Args:
        upscaler: the method; its factor is the degradation's.
        degradation: a `Degradation` (or `SecondOrder`) holds as it is. With a `DegradationRange`, or None, a method
            that found the degradation of its scan (`FindsDegradation`) is believed first; then the middle of the range,
            with the spacing of the scan. None and nothing found: "area" without blur, as a detector's pixel integrates.
        certain: the range holds even where the method found something else.
        noise: standard deviation in unit intensity; 0: none, return the scan exactly. None: that of the degradation in
            the middle of the gray scale, if it has noise.
        doubt: standard deviation expected between the method, degraded again, and a scan without noise; measured for
            cubic interpolation: 0.002 to 0.009 on widefield fluorescence, 0.011 to 0.02 on photographs.

    Attributes:
        factor: that of the method.
        halo: its halo and how far the correction reaches, in coarse samples.

    Raises:
        ValueError: factors that differ, a noise below 0, or a doubt not above 0.

    References:
        Y. Bahat, T. Michaeli, "Explorable super resolution", 2020, section 3, doi:10.1109/CVPR42600.2020.00279.
        Y. Wang, J. Yu, J. Zhang, "Zero-shot image restoration using denoising diffusion null-space model", 2023,
        section 3, arXiv:2212.00490.
        V. A. Morozov, "On the solution of functional equations by the method of regularization", 1966.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        degradation: Known | DegradationRange | None = None,
        *,
        noise: float | None = None,
        doubt: float = 0.01,
        certain: bool = False,
    ) -> None:
        super().__init__()
        if (noise is not None and not (math.isfinite(noise) and noise >= 0)) or not (
            math.isfinite(doubt) and doubt > 0
        ):
            raise ValueError(f"Consistent: expected noise of at least 0 and doubt above 0, found {noise} and {doubt}")
        if isinstance(degradation, (Degradation, SecondOrder)) and degradation.factor != tuple(upscaler.factor):
            raise ValueError(
                f"Consistent: expected a degradation of the method's factor {tuple(upscaler.factor)}, found "
                f"{degradation!r}; give both the same factor"
            )
        self.inner = upscaler
        self.factor = tuple(upscaler.factor)
        self._asked, self._noise, self._doubt = degradation, noise, doubt
        self._certain = certain and degradation is not None
        self._projection: Projection | None = None
        self._sigma = 0.0
        known = self._known(upscaler)
        if known is None and not (isinstance(degradation, DegradationRange) and degradation.in_micrometers):
            known = self._expected(None)
        self._bind(known)

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The method."""
        return (self.inner,)

    @property
    def degradation(self) -> Known | None:
        """The degradation that is inverted; None: it follows from a scan's spacing, call `adapt` first."""
        return None if self._projection is None else self._projection.degradation

    @property
    def condition(self) -> tuple[float, ...]:
        """Largest by smallest eigenvalue of A A^T for each axis, before any ridge; one number for a kernel that does
        not separate; none before the degradation is known. Its root is how far an exact inverse amplifies noise."""
        return () if self._projection is None else self._projection.condition

    def adapt(self, scan: Scan) -> Self:
        """The method adapted to the scan, and the degradation of this scan.

        Raises:
            ValueError: a width is in micrometers and the scan does not know its spacing.
        """
        inner = self.inner.adapt(scan)
        if inner is self.inner and not isinstance(self._asked, DegradationRange):
            return self
        adapted = type(self)(inner, self._asked, noise=self._noise, doubt=self._doubt, certain=self._certain)
        adapted.train(self.training)
        if adapted._known(inner) is None and isinstance(self._asked, DegradationRange):
            adapted._bind(adapted._expected(scan))
        return adapted

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32.

        Raises:
            ValueError: the degradation is not known yet.
        """
        return self.around(low, [self.inner])

    def around(self, low: Tensor, runs: Sequence[Run]) -> Tensor:
        """The estimate of `runs[0]`, corrected; shapes as in `forward`.

        Raises:
            ValueError: the degradation is not known yet.
        """
        if self._projection is None:
            raise ValueError(
                f"{self!r}: expected to know the spacing of the scan, for a blur in micrometers, and found none; "
                "call adapt(scan) first"
            )
        (run,) = runs
        return self._projection(run(low), low)

    def __repr__(self) -> str:
        if self._projection is None:
            return f"{describe(self.inner)}, consistent with {self._asked!r}"
        return f"{describe(self.inner)}, consistent with {_named(self._projection, self._sigma, self._doubt)}"

    def _known(self, inner: Upscaler) -> Known | None:
        """What is known before a scan: what was given, else what the method found."""
        if isinstance(self._asked, (Degradation, SecondOrder)):
            return self._asked
        return None if self._certain else found_by(inner)

    def _expected(self, scan: Scan | None) -> Known:
        """The middle of the range with a scan's fine spacing; without a range block means."""
        if not isinstance(self._asked, DegradationRange):
            return Degradation(self.factor)
        spacing: tuple[float | None, ...] | None = None
        if scan is not None and scan.grid.spacing_um is not None:
            coarse = scan.grid.spacing_um[-len(self.factor) :]
            spacing = tuple(None if s is None else s / f for s, f in zip(coarse, self.factor, strict=True))
        return self._asked.center(self.factor, spacing)

    def _bind(self, degradation: Known | None) -> None:
        """Make the projection, and know the halo."""
        halo = tuple(self.inner.halo)
        if degradation is not None:
            self._sigma = _noise_of(degradation) if self._noise is None else self._noise
            self._projection = projection(degradation, doubtful=(self._sigma / self._doubt) ** 2)
            halo = tuple(map(sum, zip(halo, degradation.halo, self._projection.reach, strict=True)))
        self.halo = halo


def _noise_of(degradation: Known) -> float:
    """Standard deviation of the noise at gray; drawn where it is not known in closed form."""
    noise = degradation.noise
    if noise is None:
        return 0.0
    if isinstance(noise, PoissonGaussian):
        return math.sqrt(float(noise.variance(torch.tensor(GRAY, dtype=torch.float64))))
    flat = torch.full((1, 1, 256, 256), GRAY, dtype=torch.float64)
    return float(noise(flat, torch.Generator().manual_seed(0)).std())


def _named(made: Projection, sigma: float, doubt: float) -> str:
    """The degradation, noise and ridge in one line; a digest stands for the weights of a kernel."""
    degradation = made.degradation
    text = f"{degradation.sampling} {degradation.factor}"
    if isinstance(degradation, SecondOrder):
        text += f" after a first pass [{hashlib.sha256(response(degradation).tobytes()).hexdigest()[:8]}]"
    elif degradation.kernel is not None:
        digest = hashlib.sha256(response(degradation).tobytes()).hexdigest()[:8]
        text += f" of {_short(degradation.kernel)} [{digest}]"
    if sigma > 0:
        text += f", noise {sigma!r} of doubt {doubt!r}"
    if any(made.ridge):
        text += f", ridge {'x'.join(map(repr, made.ridge))}"
    return text


def _short(kernel: Any) -> str:
    """The kernel by its name and what differs from its defaults, if that is numbers."""
    name = type(kernel).__name__
    if not dataclasses.is_dataclass(kernel):
        return name
    values = [(f.name, getattr(kernel, f.name), f.default) for f in dataclasses.fields(kernel)]
    given = [f"{key}={value!r}" for key, value, default in values if value != default] if name != "Weights" else []
    return f"{name}({', '.join(given)})" if given else name
