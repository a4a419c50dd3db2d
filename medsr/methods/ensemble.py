"""Ensemble: the mean of several methods, each asked in every way a scan can be flipped and turned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from medsr.methods.consistent import KnowsDegradation, found_by
from medsr.methods.projection import response
from medsr.upscaler import Composed, Placed, Run, Upscaler, describe

if TYPE_CHECKING:
    from medsr.scan import Factor, Scan

__all__ = ["Ensemble"]


class View(NamedTuple):
    """One way to hold a scan: the last two axes exchanged or not, then some axes reversed.

    Attributes:
        turned: exchange the last two axes; with the reversals this makes the quarter turns.
        flipped: axes of the factor that are reversed.
    """

    turned: bool
    flipped: tuple[int, ...]

    def of(self, low: Tensor) -> Tensor:
        """(n, 1, *size) held this way."""
        if self.turned:
            low = low.transpose(-1, -2)
        return low.flip([axis + 2 for axis in self.flipped]).contiguous()

    def back(self, fine: Tensor) -> Tensor:
        """The inverse of `of`."""
        fine = fine.flip([axis + 2 for axis in self.flipped])
        return fine.transpose(-1, -2) if self.turned else fine


class Ensemble(nn.Module):
    """The mean of one or more methods over the flips and quarter turns of a scan.

    Every refined axis is flipped. Quarter turns are added by `adapt` where both axes of the plane have the same factor
    above 1 and the same known spacing. That makes 2 views for (4, 1, 1), 4 for (1, 2, 2) and 8 with turns, 8 for
    (2, 2, 2) and 16 with turns. A view under which a degradation that a method knows (`KnowsDegradation`) would change,
    as a blur at an angle, is left out. The result commutes with every view that is used.

    The mean is summed in float64, one view at a time, so it does not depend on the order of the views.

    Args:
        upscalers: one method, or several of the same factor, such as the last checkpoints of a training.
        flips: False: each method once, as it stands.

    Attributes:
        factor: that of the methods.
        halo: the largest of their halos, in every view.

    Raises:
        ValueError: no method; factors that differ; flips with a method that must know where its tile lies (`Placed`).

    References:
        R. Timofte, R. Rothe, L. Van Gool, "Seven ways to improve example-based single image super resolution", 2016,
        section 3.5 (enhanced prediction), doi:10.1109/CVPR.2016.206.
        B. Lim et al., "Enhanced deep residual networks for single image super-resolution", 2017, section 3.4
        (self-ensemble), doi:10.1109/CVPRW.2017.151.
    """

    def __init__(self, upscalers: Upscaler | Sequence[Upscaler], *, flips: bool = True) -> None:
        super().__init__()
        members = tuple(upscalers) if isinstance(upscalers, Sequence) else (upscalers,)
        _check(members, flips)
        self.factor: Factor = tuple(members[0].factor)
        self.flips = flips
        self._members = members
        self._networks = nn.ModuleList(m for m in members if isinstance(m, nn.Module))  # so that they are moved, named
        self._set_views(square=False)

    def _set_views(self, *, square: bool) -> None:
        self.views = _views(self.parts, self.factor, flips=self.flips, square=square)
        halo = tuple(map(max, zip(*(part.halo for part in self.parts), strict=True)))
        if any(view.turned for view in self.views):
            halo = (*halo[:-2], max(halo[-2:]), max(halo[-2:]))
        self.halo = halo

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The methods."""
        return self._members

    def adapt(self, scan: Scan) -> Self:
        """The methods adapted to the scan, with quarter turns if its spacing allows them."""
        before = self.parts
        parts = tuple(part.adapt(scan) for part in before)
        square = _is_square(scan, self.factor)
        same = all(new is old for new, old in zip(parts, before, strict=True))
        if same and _views(parts, self.factor, flips=self.flips, square=square) == self.views:
            return self
        adapted = type(self)(parts, flips=self.flips)
        adapted._set_views(square=square)
        return adapted.train(self.training)

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32: the mean."""
        return self.around(low, self.parts)

    def around(self, low: Tensor, runs: Sequence[Run]) -> Tensor:
        """The mean of `runs` over all views; shapes as in `forward`."""
        count, total = 0, None
        for fine in self._estimates(low, runs):
            count += 1
            total = fine.double() if total is None else total.add_(fine)
        if total is None:
            raise ValueError("Ensemble: expected one run for each part, found none")
        return (total / count).to(_kept(low))

    def spread(self, low: Tensor, runs: Sequence[Run] | None = None) -> tuple[Tensor, Tensor]:
        """The mean, and beside it the standard deviation of the members (n - 1 in the denominator).

        The deviation says where the members disagree. It is no error bar: what all of them get wrong it does not see.

        Args:
            low: (n, 1, *size), float32, unit intensity.
            runs: how each part is run; None: as it stands.

        Returns:
            Two tensors (n, 1, *size * factor), float32, unit intensity.

        Raises:
            ValueError: there is a single member.
        """
        count, total = 0, torch.zeros((), dtype=torch.float64, device=low.device)
        mean, squares = total, total
        for fine in self._estimates(low, self.parts if runs is None else runs):
            count, fine = count + 1, fine.double()
            step = fine - mean
            mean = mean + step / count  # Welford 1962, doi:10.1080/00401706.1962.10490022
            squares = squares + step * (fine - mean)
            total = total + fine  # the mean is that of `around` to the last bit
        if count < 2:
            raise ValueError(
                f"{self!r}: expected two or more members for a deviation, found {count}; use flips or more checkpoints"
            )
        return (total / count).to(_kept(low)), (squares / (count - 1)).sqrt().to(_kept(low))

    def _estimates(self, low: Tensor, runs: Sequence[Run]) -> Iterator[Tensor]:
        """One estimate at a time, held as the scan is."""
        for run in runs:
            for view in self.views:
                yield view.back(run(view.of(low)))

    def __repr__(self) -> str:
        turns = " with quarter turns" if any(view.turned for view in self.views) else ""
        names = "; ".join(map(describe, self.parts))
        several = f"{len(self.views)} views{turns}" if len(self.views) > 1 else f"{len(self.parts)} methods"
        return f"Ensemble of {several}: {names}"


def _check(members: tuple[Upscaler, ...], flips: bool) -> None:
    if not members:
        raise ValueError("Ensemble: expected at least one method, found none; give one or a list of them")
    for member in members[1:]:
        if tuple(member.factor) != tuple(members[0].factor):
            raise ValueError(
                f"Ensemble: expected methods of one factor, found {describe(members[0])} with {members[0].factor} and "
                f"{describe(member)} with {member.factor}; leave one of them out"
            )
    for member in members:
        if flips and _must_be_placed(member):
            raise ValueError(
                f"Ensemble: expected methods that may be flipped, found {describe(member)}, which must know where in "
                "the scan a tile lies; use flips=False, or leave it out"
            )


def _must_be_placed(upscaler: Upscaler) -> bool:
    if isinstance(upscaler, Composed):
        return any(map(_must_be_placed, upscaler.parts))
    return isinstance(upscaler, Placed)


def _is_square(scan: Scan, factor: Factor) -> bool:
    """Whether the plane's two axes have the same known spacing."""
    spacing = scan.grid.spacing_um
    if len(factor) < 2 or spacing is None or spacing[-1] is None or spacing[-2] is None:
        return False
    return abs(spacing[-1] - spacing[-2]) <= 1e-3 * spacing[-1]


def _views(parts: tuple[Upscaler, ...], factor: Factor, *, flips: bool, square: bool) -> tuple[View, ...]:
    """All views that leave the factor and every known degradation as they are; the first is the scan as it stands."""
    if not flips:
        return (View(False, ()),)
    refined = [axis for axis, f in enumerate(factor) if f > 1]
    turns = (False, True) if square and len(factor) > 1 and factor[-1] == factor[-2] > 1 else (False,)
    asked = [
        View(turned, tuple(axis for axis, on in zip(refined, chosen, strict=True) if on))
        for turned in turns
        for chosen in product((False, True), repeat=len(refined))
    ]
    held = [part.degradation for part in parts if isinstance(part, KnowsDegradation)]
    held += [found_by(part) for part in parts]
    known = [torch.from_numpy(response(each))[None, None] for each in held if each is not None]
    return tuple(view for view in asked if all(_unchanged(shape, view) for shape in known))


def _unchanged(shape: Tensor, view: View) -> bool:
    seen = view.of(shape)
    return seen.shape == shape.shape and bool(np.abs((seen - shape).numpy()).max() < 1e-9)


def _kept(low: Tensor) -> torch.dtype:
    return torch.float64 if low.dtype == torch.float64 else torch.float32
