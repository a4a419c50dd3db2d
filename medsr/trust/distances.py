"""How far an estimate may be off, sample by sample: widths that were learned, or the spread of an ensemble."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from medsr.checkpoint import TrainedUpscaler
from medsr.methods.ensemble import Ensemble
from medsr.methods.widths import Widths
from medsr.upscaler import Composed, Run, Upscaler, describe

if TYPE_CHECKING:
    from medsr.scan import Factor, Scan

__all__ = ["Bound", "Distances", "Interval", "LearnedWidths", "SpreadWidths", "estimating", "gain_of", "trained_in"]

Side = Literal["lower", "upper"]


@runtime_checkable
class Distances(Protocol):
    """An upscaler with distances down and up from its estimate, which a calibration scales.

    Attributes:
        kind: what the distances are.
        factor, halo: as of an `Upscaler`; the halo is that of estimate and distances together.
        parts: the upscalers it runs.
    """

    kind: str

    @property
    def factor(self) -> Factor:
        """Refinement of the last axes."""
        ...

    @property
    def halo(self) -> tuple[int, ...]:
        """Context in coarse samples for each axis of `factor`."""
        ...

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The upscalers whose runs `distances` is given."""
        ...

    def adapt(self, scan: Scan) -> Distances:
        """The same for this scan; mostly itself."""
        ...

    def distances(self, low: Tensor, runs: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor]:
        """Estimate, distance down and distance up.

        Args:
            low: (n, 1, *size), float32, unit intensity.
            runs: how each of `parts` is run.

        Returns:
            Three tensors (n, 1, *size * factor); the distances are above 0, in unit intensity.
        """
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the distances."""
        ...


class LearnedWidths(nn.Module):
    """Any upscaler with distances that a network learned from its residuals (`fit_widths`).

    The distances are in the units of the intensity line the upscaler's network was trained in, where its recipe fixes
    one; else in the scan's.

    Args:
        upscaler: makes the estimate.
        widths: the learned network, of the same factor.

    Raises:
        ValueError: factors that differ.
    """

    kind = "widths"

    def __init__(self, upscaler: Upscaler, widths: Widths) -> None:
        super().__init__()
        if tuple(upscaler.factor) != widths.factor:
            raise ValueError(
                f"LearnedWidths: expected widths of the factor {tuple(upscaler.factor)} of {describe(upscaler)}, found "
                f"{widths.factor}; fit them to this upscaler"
            )
        self.inner, self.widths = upscaler, widths
        self.factor: Factor = widths.factor
        self.halo: tuple[int, ...] = tuple(map(sum, zip(upscaler.halo, widths.halo, strict=True)))
        self.eval()

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The upscaler."""
        return (self.inner,)

    def adapt(self, scan: Scan) -> Self:
        """The upscaler adapted to the scan, with the same widths."""
        inner = self.inner.adapt(scan)
        return self if inner is self.inner else type(self)(inner, self.widths)

    def distances(self, low: Tensor, runs: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Distances`."""
        (run,) = runs
        estimate = run(low)
        gain = gain_of(self.inner)
        down, up = self.widths(low * gain, estimate * gain)
        return estimate, down / gain, up / gain

    @property
    def digest(self) -> str:
        """SHA-256 of the weights of the widths."""
        return _digest_of(self.widths)

    def __repr__(self) -> str:
        return f"learned widths of {describe(self.inner)}"


class SpreadWidths(nn.Module):
    """An ensemble with the standard deviation of its members as the distance; nothing is learned.

    To the deviation a floor is added in quadrature: where all members agree they may still be wrong together.

    Args:
        ensemble: makes the estimate, its mean.
        floor: smallest distance, above 0, in unit intensity.

    Raises:
        ValueError: a floor that is not above 0, or an ensemble of one member.
    """

    kind = "spread"

    def __init__(self, ensemble: Ensemble, *, floor: float = 1e-3) -> None:
        super().__init__()
        if not (math.isfinite(floor) and floor > 0):
            raise ValueError(f"SpreadWidths: expected a floor above 0, found {floor}; 0.001 is usual")
        if len(ensemble.parts) * len(ensemble.views) < 2:
            raise ValueError("SpreadWidths: expected an ensemble of two or more members, found 1; use flips=True")
        self.inner, self.floor = ensemble, floor
        self.factor: Factor = ensemble.factor
        self.halo: tuple[int, ...] = tuple(ensemble.halo)

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The members."""
        return self.inner.parts

    def adapt(self, scan: Scan) -> Self:
        """The ensemble adapted to the scan."""
        inner = self.inner.adapt(scan)
        return self if inner is self.inner else type(self)(inner, floor=self.floor)

    def distances(self, low: Tensor, runs: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Distances`; both distances are the same."""
        estimate, spread = self.inner.spread(low, runs)
        distance = torch.hypot(spread, torch.full_like(spread, self.floor))
        return estimate, distance, distance

    @property
    def digest(self) -> str:
        """SHA-256 of the floor."""
        return hashlib.sha256(f"spread {self.floor!r}".encode()).hexdigest()

    def __repr__(self) -> str:
        return f"spread above {self.floor:g} of {describe(self.inner)}"


class Bound(nn.Module):
    """The lower or the upper end of the intervals, as an upscaler of its own.

    Lower means the lower stored value: where a scan's black is above its white (MONOCHROME1), that is the brighter end.

    Args:
        method: estimate and distances.
        side: which end.
        scaling: what the distances are multiplied by, from a calibration.
        promise: what is promised, in words, for the history.

    Attributes:
        factor, halo: those of the method.
    """

    def __init__(self, method: Distances, side: Side, *, scaling: float = 1.0, promise: str = "not calibrated") -> None:
        super().__init__()
        self.method, self.side, self.promise = method, side, promise
        self.factor: Factor = tuple(method.factor)
        self.halo: tuple[int, ...] = tuple(method.halo)
        self.reversed = False
        # Decides the numbers as weights do, hence belongs to what `fingerprint` reads.
        self.register_buffer("scaling", torch.tensor(float(scaling), dtype=torch.float64))
        self._scaling = float(scaling)
        self.eval()

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """Those of the method."""
        return self.method.parts

    def adapt(self, scan: Scan) -> Self:
        """The method adapted to the scan."""
        method = self.method.adapt(scan)
        turned = scan.intensity.black > scan.intensity.white
        if method is self.method and turned == self.reversed:
            return self
        adapted = type(self)(method, self.side, scaling=self._scaling, promise=self.promise)
        adapted.reversed = turned
        return adapted

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32."""
        return self.around(low, self.parts)

    def around(self, low: Tensor, runs: Sequence[Run]) -> Tensor:
        """The end of the intervals from `runs` of the parts; shapes as in `forward`."""
        estimate, down, up = self.method.distances(low, runs)
        if (self.side == "lower") != self.reversed:
            return estimate - self._scaling * down
        return estimate + self._scaling * up

    def __repr__(self) -> str:
        turned = " (reversed)" if self.reversed else ""
        return f"{self.side}{turned} end of intervals, {self.promise}, {self._scaling:.6g} times {self.method!r}"


class Interval(nn.Module):
    """The estimate with the lower and the upper end of its intervals, at once: the method is run once for all three.

    Lower means lower stored values, as of `Bound`.

    Args:
        method: estimate and distances.
        scaling: what the distances are multiplied by, from a calibration.
        promise: what is promised, in words, for the history.
        terms: the same and what it rests on, kept beside each image; plain JSON.

    Attributes:
        images: "" is the estimate.
        factor, halo: those of the method.
    """

    images = ("", "lower", "upper")

    def __init__(
        self,
        method: Distances,
        *,
        scaling: float = 1.0,
        promise: str = "not calibrated",
        terms: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.method, self.promise = method, promise
        self.terms: dict[str, Any] = {"words": promise} if terms is None else dict(terms)
        self.factor: Factor = tuple(method.factor)
        self.halo: tuple[int, ...] = tuple(method.halo)
        self.reversed = False
        # Decides the numbers as weights do, hence belongs to what `fingerprint` reads.
        self.register_buffer("scaling", torch.tensor(float(scaling), dtype=torch.float64))
        self._scaling = float(scaling)
        self.eval()

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """Those of the method."""
        return self.method.parts

    def adapt(self, scan: Scan) -> Self:
        """The method adapted to the scan."""
        method = self.method.adapt(scan)
        turned = scan.intensity.black > scan.intensity.white
        if method is self.method and turned == self.reversed:
            return self
        adapted = type(self)(method, scaling=self._scaling, promise=self.promise, terms=self.terms)
        adapted.reversed = turned
        return adapted

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 3, *size * factor), float32: estimate, lower and upper end."""
        return self.around(low, self.parts)

    def around(self, low: Tensor, runs: Sequence[Run]) -> Tensor:
        """Estimate and ends from `runs` of the parts; shapes as in `forward`."""
        estimate, down, up = self.method.distances(low, runs)
        ends = [estimate - self._scaling * down, estimate + self._scaling * up]
        return torch.cat([estimate, *(reversed(ends) if self.reversed else ends)], 1)

    def alone(self) -> tuple[Upscaler, ...]:
        """The upscaler that makes the estimate, and each `Bound`."""
        sides: tuple[Side, Side] = ("lower", "upper")
        ends = [Bound(self.method, side, scaling=self._scaling, promise=self.promise) for side in sides]
        for end in ends:
            end.reversed = self.reversed
        return estimating(self.method), *ends

    def attributes(self, image: str) -> dict[str, Any]:
        """The promise, and which end an image is; beside the estimate, where its ends are."""
        place = {"end": image} if image else {name: name for name in self.images if name}
        return {"intervals": {**place, "promise": self.terms}}

    def __repr__(self) -> str:
        turned = " (reversed)" if self.reversed else ""
        line = f"estimate with intervals{turned}, {self.promise}, {self._scaling:.6g} times {self.method!r}"
        return f"{line}\n{json.dumps(self.terms, sort_keys=True)}"


def estimating(method: Distances) -> Upscaler:
    """The upscaler that makes the estimate the distances are of."""
    if isinstance(method, (LearnedWidths, SpreadWidths)):
        return method.inner
    return method.parts[0]


def trained_in(upscaler: Upscaler) -> tuple[TrainedUpscaler, ...]:
    """The trained upscalers it is or is made of."""
    if isinstance(upscaler, TrainedUpscaler):
        return (upscaler,)
    if isinstance(upscaler, Composed):
        return tuple(found for part in upscaler.parts for found in trained_in(part))
    return ()


def gain_of(upscaler: Upscaler) -> float:
    """What a scan's units are multiplied by where the recipe of the upscaler fixes its intensity line; else 1."""
    found = trained_in(upscaler)
    return abs(float(found[0].get_buffer("line")[0])) if found else 1.0


def _digest_of(widths: Widths) -> str:
    """SHA-256 of the weights of widths and of their shape."""
    digest = hashlib.sha256(repr(widths).encode())
    for name, value in widths.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
