"""Map: a quantity at each sample of a scan or its result, to be shown in a report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medsr.scan import Scan

__all__ = ["Map"]


@dataclass(frozen=True, slots=True)
class Map:
    """A quantity at each sample, such as the width of an interval.

    Attributes:
        scan: its values on the grid of the measured scan or of the result, stored as they are; `intensity.units` names
            their unit.
        diverging: shown blue, white and red around 0; else from dark to bright.
        limit: value at the end of the color bar (of both ends where diverging); None: the 99.5 percentile.
        note: what it says and does not say, in a sentence or two.
        region_only: only the enlarged region is read and shown, for a map that is dear to compute.

    Raises:
        ValueError: a limit that is not above 0.
    """

    scan: Scan
    diverging: bool = False
    limit: float | None = None
    note: str = ""
    region_only: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"Map.limit: expected a value above 0 or None, found {self.limit}")
