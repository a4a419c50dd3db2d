"""Exemplars: detail from fine scans of the same kind, retrieved, registered and matched patch by patch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsr.degradation import Degradation
from medsr.methods.back_projection import back_projected
from medsr.methods.interpolation import interpolate, reach
from medsr.methods.kept import Kept
from medsr.methods.patch_transfer import REACH, SEARCH, Reference, transfer
from medsr.methods.recurrence import SelfExemplars
from medsr.methods.registration import sampled
from medsr.methods.retrieval import ExemplarLibrary, Found, band_digest, read_plane, retrieve
from medsr.scan import Factor, Scan, validate_factor
from medsr.tiles import plan_tiles

__all__ = ["Exemplars", "SelfExemplars"]

_log = logging.getLogger(__name__)

Image = NDArray[np.float64]

BLOCK = 192
"""Fine samples a side that are matched at a time: memory stays the same however large a tile is."""

KEPT_PLANES = 8
"""Planes whose registration is kept; a stack goes through its planes one after the other."""


RETRIEVAL_BYTES = 300_000_000
"""What retrieval, registration and a block hold at most, however large a plane is (measured: 262 MB)."""

LOOKED_AT = 3
"""Planes of a scan for which `adapt` says whether the library knows them."""


class Exemplars:
    """An Upscaler that takes detail from similar fine scans of a library on disk.

    Each plane is searched for in the library by local descriptors in the band both share; candidates are verified by
    geometry, registered, and give detail where their patches resemble the plane. Where nothing matches the result is
    cubic interpolation. A 2D method: in a stack every plane retrieves for itself. Nothing leaves the machine.

    Attributes:
        factor: refinement of y and x.
        halo: coarse samples of context for each of them.
        library: where exemplars come from.
        learned_from: SHA-256 of the inputs of the library.
        reserved_bytes: what the search for exemplars holds beside a tile.

    Args:
        factor: refinement of y and x; that of the library.
        library: from `medsr.load_library` or `medsr.build_library`.
        degradation: how the coarse scan was made from the fine one; None: that of the library.
        references: exemplars a plane takes detail from, at most.
        tolerance: cost of a patch, in parts of its variance, at which a match becomes poor.
        steps: of back-projection, which brings the result's coarse version back to the measured one; 0: none.

    Raises:
        ValueError: the library was made for another factor or degradation, or a setting out of range.

    References:
        H. Yue, X. Sun, J. Yang, F. Wu, Landmark image super-resolution by retrieving web images, 2013,
        doi:10.1109/TIP.2013.2279315.
    """

    def __init__(
        self,
        factor: Factor | int,
        library: ExemplarLibrary,
        *,
        degradation: Degradation | None = None,
        references: int = 3,
        tolerance: float = 0.5,
        steps: int = 4,
    ) -> None:
        self.factor = validate_factor((factor, factor) if isinstance(factor, int) else factor)
        self.library = library
        self.degradation = library.degradation if degradation is None else degradation
        if len(self.factor) != 2 or self.factor != tuple(library.factor) or self.factor != self.degradation.factor:
            raise ValueError(
                f"Exemplars: expected one factor for y and x, that of the library {library.factor}, found {factor} "
                f"with a degradation of {self.degradation.factor}; build a library of this factor"
            )
        if band_digest(self.degradation) != band_digest(library.degradation):
            raise ValueError(
                f"Exemplars: expected the degradation of the library, {library.degradation}, found {degradation}; "
                "build a library for yours"
            )
        if references < 1 or tolerance <= 0 or steps < 0:
            raise ValueError(
                "Exemplars: expected references >= 1, tolerance > 0 and steps >= 0, "
                f"found {references}, {tolerance} and {steps}"
            )
        self.references, self.tolerance, self.steps = references, tolerance, steps
        around = tuple(math.ceil(REACH / f) + r for f, r in zip(self.factor, reach(self.factor), strict=True))
        self._context = around
        back = [h + r for h, r in zip(self.degradation.halo, reach(self.factor), strict=True)]
        self.halo = tuple(a + steps * b for a, b in zip(around, back, strict=True))
        self._scan: Scan | None = None
        self._leave_out: frozenset[int] = frozenset()
        self._kept: Kept[tuple[int, ...], tuple[Found, ...]] = Kept(KEPT_PLANES)

    def __repr__(self) -> str:
        return (
            f"Exemplars({self.factor}, library={self.library.identity}, degradation={self.degradation}, "
            f"references={self.references}, tolerance={self.tolerance:g}, steps={self.steps})"
        )

    @property
    def learned_from(self) -> frozenset[str]:
        """SHA-256 of the scans of the library, which an evaluation must not measure."""
        return self.library.inputs

    @property
    def reserved_bytes(self) -> int:
        """Memory that retrieval holds beside the tiles, at most."""
        return RETRIEVAL_BYTES + self.library.held_bytes

    def adapt(self, scan: Scan) -> Exemplars:
        """The upscaler for this scan: each plane is retrieved for and registered when its first tile is asked for.

        Raises:
            ValueError: no scan of the library has a spacing near the wanted one.
        """
        spacing = scan.grid.refine(self.factor).spacing_um
        refused = self.library.refused(None if spacing is None else spacing[-2:])
        for reason in refused.values():
            _log.warning("exemplar left out: %s", reason)
        if refused and len(refused) == len(self.library.names):
            raise ValueError(
                f"library: expected scans of about the fine spacing {spacing} um, found: {'; '.join(refused.values())}"
            )
        adapted = Exemplars(
            self.factor, self.library, degradation=self.degradation, references=self.references,
            tolerance=self.tolerance, steps=self.steps,
        )  # fmt: skip
        adapted._scan, adapted._leave_out = scan, frozenset(refused)
        adapted._say_what_matches()
        return adapted

    def _say_what_matches(self) -> None:
        """Look at a few planes, evenly spread, and say for how many the library has an exemplar."""
        planes = self._adapted().shape[:-2]
        count = math.prod(planes)
        picks = sorted({round(i * (count - 1) / max(1, LOOKED_AT - 1)) for i in range(min(LOOKED_AT, count))})
        matched = sum(bool(self.found(tuple(int(i) for i in np.unravel_index(pick, planes)))) for pick in picks)
        rest = "" if matched == len(picks) else "; where none matches, detail is interpolated"
        _log.info("library: %d of %d planes looked at have an exemplar%s", matched, len(picks), rest)

    def at(self, origin: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """How a tile of the adapted scan is run whose first sample, halo included, is `origin`.

        Raises:
            ValueError: it was not adapted to a scan, or `origin` has not one entry for each axis.
        """
        place = self._placed(origin)
        return lambda low: self._estimate(low, place)[0]

    def __call__(self, low: Tensor, /) -> Tensor:
        """(n, 1, *size) to (n, 1, *size * factor), float32: each image taken as a whole plane of its own."""
        return torch.cat([self._estimate(one, _Place.alone(self, one))[0] for one in torch.split(low, 1)])

    def provenance(
        self, low: Tensor, *, origin: tuple[int, ...] | None = None
    ) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Where the detail of a tile comes from.

        Args:
            low: (1, 1, *size), unit intensity.
            origin: as in `at`; None: a whole plane of its own.

        Returns:
            of the fine tile: the number of the scan in `library.names` that counts most, -1 where it was interpolated;
            and the mean cost of the patches, in squared unit intensity, NaN where it was interpolated.
        """
        _, source, cost = self._estimate(low, _Place.alone(self, low) if origin is None else self._placed(origin))
        return source, cost

    def found(self, index: tuple[int, ...] = ()) -> tuple[Found, ...]:
        """The references of one plane of the adapted scan, best first; `index` along the axes before y and x."""
        scan = self._adapted()
        size = (scan.shape[-2], scan.shape[-1])
        return self._kept.get(index, lambda: self._retrieved(partial(read_plane, scan, index), size))

    def _retrieved(self, low: Callable[[slice, slice], Any], size: tuple[int, int]) -> tuple[Found, ...]:
        return retrieve(low, size, self.library, most=self.references, leave_out=self._leave_out)

    def _adapted(self) -> Scan:
        if self._scan is None:
            raise ValueError("Exemplars: expected an upscaler adapted to a scan, found none; call adapt(scan) first")
        return self._scan

    def _placed(self, origin: tuple[int, ...]) -> _Place:
        scan = self._adapted()
        if len(origin) != len(scan.shape):
            raise ValueError(f"origin: expected one entry for each axis of a scan of {scan.shape}, found {origin}")
        return _Place((origin[-2], origin[-1]), (scan.shape[-2], scan.shape[-1]), self.found(tuple(origin[:-2])))

    def _estimate(self, low: Tensor, place: _Place) -> tuple[Tensor, NDArray[np.int16], NDArray[np.float32]]:
        fine = interpolate(low, self.factor)
        source = np.full(fine.shape[2:], -1, np.int16)
        cost = np.full(fine.shape[2:], np.nan, np.float32)
        size = (low.shape[2], low.shape[3])
        if place.found:
            plane = low[0, 0].detach().cpu().double()
            side = tuple(max(1, BLOCK // f) for f in self.factor)
            for block in plan_tiles(size, self.factor, halo=self._context, tile=side):
                part = self._matched(plane[block.read], [s.start for s in block.read], place)
                fine[0, 0, block.target[0], block.target[1]] += torch.from_numpy(part.detail[block.keep]).to(fine)
                source[block.target], cost[block.target] = part.source[block.keep], part.cost[block.keep]
        if self.steps:
            fine = back_projected(fine, low, self.degradation, steps=self.steps)
        return fine.float(), source, cost

    def _matched(self, low: Tensor, start: Sequence[int], place: _Place) -> Any:
        """Detail of a block of coarse samples that begins at `start` in its tile."""
        coarse = [slice(o + s, o + s + n) for o, s, n in zip(place.origin, start, low.shape, strict=True)]
        region = tuple(slice(c.start * f, c.stop * f) for c, f in zip(coarse, self.factor, strict=True))
        estimate = interpolate(low[None, None], self.factor)[0, 0].numpy()
        found = [self._reference(f, region, place.size) for f in place.found]
        used = [(f, r) for f, r in zip(place.found, found, strict=True) if r.valid.any()]
        if not used:
            return transfer(estimate, [], first=(region[0].start, region[1].start), tolerance=self.tolerance)
        part = transfer(
            estimate, [r for _, r in used], first=(region[0].start, region[1].start), tolerance=self.tolerance
        )
        scans = np.array([f.scan for f, _ in used] + [-1], np.int16)
        return type(part)(part.detail, scans[part.source], part.cost)

    def _reference(self, found: Found, region: tuple[slice, ...], size: tuple[int, int]) -> Reference:
        """A reference around a fine region, in the band of the plane and beyond it."""
        halo = [h + r for h, r in zip(self.degradation.halo, reach(self.factor), strict=True)]
        read, keep, outside = [], [], []
        for s, n, f, h in zip(region, size, self.factor, halo, strict=True):
            first, last = max(0, s.start - SEARCH), min(n * f, s.stop + SEARCH)
            outside.append((first - s.start + SEARCH, s.stop + SEARCH - last))
            a, b = max(0, first // f - h), min(n, -(-last // f) + h)
            read.append(slice(a * f, b * f))
            keep.append(slice(first - a * f, last - a * f))
        high, inside = sampled(self.library.plane(found.plane), found.placement.at(read[0], read[1]))
        high = np.where(inside, found.gain * high + found.offset, 0.0)
        tensor = torch.from_numpy(high)[None, None]
        band = interpolate(self.degradation.mean(tensor), self.factor)[0, 0].numpy()
        valid = _inner(inside, [h * f + f for h, f in zip(halo, self.factor, strict=True)])
        here = tuple(keep)
        return Reference(
            np.pad(band[here], outside), np.pad((high - band)[here], outside), np.pad(valid[here], outside)
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tile lies, and what its plane found."""

    origin: tuple[int, int]
    size: tuple[int, int]
    found: tuple[Found, ...] = field(default=())

    @classmethod
    def alone(cls, method: Exemplars, low: Tensor) -> _Place:
        """Of an image that is a plane of its own."""
        plane = low[0, 0].detach().cpu().numpy()
        size = (plane.shape[0], plane.shape[1])
        return cls((0, 0), size, method._retrieved(lambda rows, columns: plane[rows, columns], size))


def _inner(inside: NDArray[np.bool_], reach_: Sequence[int]) -> NDArray[np.bool_]:
    """True where everything within `reach_` samples is inside; beyond the array nothing is asked."""
    sizes = [2 * r + 1 for r in reach_]
    return np.asarray(ndimage.minimum_filter(inside.astype(np.uint8), sizes, mode="nearest") > 0)
