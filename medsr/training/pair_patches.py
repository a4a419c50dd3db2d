"""RandPairPatchd: a coarse and a fine patch from matching places of an aligned pair."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable

from medsr.scan import Factor, Scan, ScanError
from medsr.training.foreground import ForegroundMap
from medsr.transforms import cut_patch

__all__ = ["RandPairPatchd", "cut_pair"]


class RandPairPatchd(Randomizable, MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Cut a random patch out of the fine scan of an aligned pair, and the coarse patch of the same place out of the
    other; only the patches are read.

    Places are drawn where the fine scan has tissue or signal, and start at whole coarse samples. Holes are filled from
    their rim. The item holds lazy scans at `keys`, and after it MetaTensors (1, *size) in unit intensity.

    Args:
        patch: fine samples for the last axes, multiples of the factor.
        factor: fine samples for each coarse one, for the last axes.
        foreground: share of the patch that must lie above the scan's threshold, where the scan has such places.
        keys: of the coarse and of the fine scan.

    Raises (when called):
        ScanError: the fine scan has not `factor` times the samples of the coarse one, or is smaller than the patch.
    """

    def __init__(
        self, patch: Sequence[int], factor: Factor, *, foreground: float = 0.25, keys: tuple[str, str] = ("low", "high")
    ) -> None:
        super().__init__(keys)
        self.patch, self.factor = tuple(patch), tuple(factor)
        self.foreground = foreground
        self.place: tuple[int, ...] = ()
        self._maps: dict[int, tuple[weakref.ref[Any], float, float, ForegroundMap]] = {}

    def randomize(self, data: Scan) -> None:
        """Draw the first fine sample of the patch."""
        self.place = self._map(data).draw(self.R, self.foreground)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with patches in place of scans."""
        item = dict(data)
        low_key, high_key = self.keys
        self.randomize(item[high_key])
        item[low_key], item[high_key] = cut_pair(
            item[low_key], item[high_key], self.place, self.patch, factor=self.factor
        )
        return item

    def _map(self, scan: Scan) -> ForegroundMap:
        """The scan's foreground, found once for as long as its data exist."""
        key, line = id(scan.data), scan.intensity
        if key in self._maps:
            data, black, white, found = self._maps[key]
            if data() is scan.data and (black, white) == (line.black, line.white):
                return found
        found = ForegroundMap(scan, self.patch)
        self._maps = {k: entry for k, entry in self._maps.items() if entry[0]() is not None}
        self._maps[key] = (weakref.ref(scan.data), line.black, line.white, found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def cut_pair(
    low: Scan, high: Scan, first: tuple[int, ...], patch: tuple[int, ...], *, factor: Factor
) -> tuple[MetaTensor, MetaTensor]:
    """The coarse and the fine patch that start at the fine sample `first`, taken back to a whole coarse sample.

    Args:
        low, high: an aligned pair, the fine scan with exactly `factor` times the samples.
        first: a fine sample, for each axis of the scan.
        patch: fine samples for the last axes, multiples of the factor.
        factor: for the axes of the patch.

    Returns:
        (1, *patch / factor) and (1, *patch), unit intensity.

    Raises:
        ScanError: the sizes of the scans are not those of a pair.
    """
    full = (1,) * (len(first) - len(factor)) + tuple(factor)
    if tuple(n * f for n, f in zip(low.shape, full, strict=True)) != high.shape:
        raise ScanError(f"expected a fine scan of {factor} times the samples of {low.shape}, found {high.shape}")
    coarse = tuple(a // f for a, f in zip(first, full, strict=True))
    fine = tuple(a * f for a, f in zip(coarse, full, strict=True))
    small = tuple(n // f for n, f in zip(patch, factor, strict=True))
    margin = (0,) * len(patch)
    return cut_patch(low, coarse, small, margin=margin), cut_patch(high, fine, patch, margin=margin)
