"""material_of: what a page is made of: the scans, the plane, the enlarged region, and where the scan was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsr.io import find_scans, read_scan
from medsr.io.digest import input_digest
from medsr.io.naming import scan_name
from medsr.io.places import place
from medsr.pictures import Window, close_window
from medsr.report.intervals import Ends, ends_of
from medsr.report.view import Placed, View, plane_of, reduced, view_of, window_of
from medsr.scan import Scan, ScanError

if TYPE_CHECKING:
    from medsr.io import Source
    from medsr.trust.provenance import Provenance

__all__ = ["Material", "crops_of", "material_of"]

Plane = NDArray[np.float32]
Given = Scan | Path | str | Sequence["Source"] | None
LARGE_UM = 2000.0
"""Width from which lengths are said in millimeters."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a page is made of.

    Attributes:
        name: of the scan.
        low: the measured scan; None where it was not given.
        estimate: the result.
        truth: a finer measurement of the same field, if there is one.
        provenance: of the result; None where it was not made by medsr.
        view: plane and region.
        overview, share: the whole plane at reduced size, and how many of its samples make one.
        whole, close: gray windows of the whole plane and of the region.
        crops: planes of the region by "measured", "cubic", "estimate", "truth"; "measured" on the coarse grid.
        ends: of calibrated intervals inside the result; None where there are none.
        band: their planes of the region, lower and upper; None where there are none.
        notes: what a reader should know before all else.
    """

    name: str
    low: Scan | None
    estimate: Scan
    truth: Scan | None
    provenance: Provenance | None
    view: View
    overview: Plane
    share: int
    whole: Window
    close: Window
    crops: dict[str, Plane]
    ends: Ends | None
    band: tuple[Plane, Plane] | None
    notes: tuple[str, ...]

    @property
    def spacing(self) -> tuple[float | None, float | None]:
        """Micrometers between fine samples along rows and columns; None where unknown."""
        grid = self.estimate.grid
        return grid.spacing_of(self.view.axes[0]), grid.spacing_of(self.view.axes[1])

    @property
    def steps(self) -> tuple[float, float]:
        """Distance of fine samples along rows and columns in `unit`."""
        rows, columns = self.spacing
        if rows is None or columns is None:
            return 1.0, 1.0
        return (rows / 1000, columns / 1000) if self.unit == "mm" else (rows, columns)

    @property
    def unit(self) -> str:
        """Of lengths: "µm", "mm", or "samples" where the spacing is unknown."""
        rows, columns = self.spacing
        if rows is None or columns is None:
            return "samples"
        width = columns * self.view.size[1] * self.view.fine[1]
        return "mm" if width >= LARGE_UM else "µm"

    def extent(self, rows: slice, columns: slice) -> tuple[float, float, float, float]:
        """Top, left, bottom and right of a part of the plane, in `unit` from the edge of the scan.

        Args:
            rows, columns: coarse samples.
        """
        high, wide = (f * s for f, s in zip(self.view.fine, self.steps, strict=True))
        return rows.start * high, columns.start * wide, rows.stop * high, columns.stop * wide

    @property
    def values(self) -> str:
        """What the gray values are."""
        return self.estimate.intensity.units or "stored value"


def material_of(result: Path | str, *, low: Given = None, truth: Scan | Path | str | None = None) -> Material:
    """Open a result and what belongs to it.

    Args:
        result: OME-Zarr of an upscaled scan.
        low: the measured scan, its file, a folder that holds it, or sources found before; None: it is not shown.
        truth: on the grid of the result.

    Raises:
        ScanError: the result or a given scan cannot be read.
        ValueError: shapes that do not fit.
    """
    estimate = read_scan(result)
    recorded, notes = _provenance(result)
    found, doubts = _measured(low, result, recorded)
    ends, more = ends_of(result, estimate)
    notes += doubts + more
    true = read_scan(truth) if isinstance(truth, (str, Path)) else truth
    _check(_named(result), found, estimate, true)
    if found is not None:  # the line the result was stored with
        line = replace(found.intensity, black=estimate.intensity.black, white=estimate.intensity.white)
        found = replace(found, intensity=line)
    seen = estimate if found is None else found
    factor = tuple(e // n for e, n in zip(estimate.shape, seen.shape, strict=True))
    view = view_of(seen, factor)
    overview, share = reduced(seen, view, fine=False)
    whole = window_of(overview, seen.intensity)
    crops = crops_of(found, estimate, true, view)
    first = next(iter(crops.values()))
    close = close_window(first, (0, 0, *first.shape), whole)
    return Material(
        _named(result),
        found,
        estimate,
        true,
        recorded,
        view,
        overview=overview,
        share=share,
        whole=whole,
        close=close,
        crops=crops,
        ends=ends,
        band=None if ends is None else ends.planes(view),
        notes=tuple(notes),
    )


def _check(name: str, low: Scan | None, estimate: Scan, truth: Scan | None) -> None:
    """Raise ValueError where the scans do not lie on each other."""
    if low is not None and (
        low.grid.axes != estimate.grid.axes or any(e % n for e, n in zip(estimate.shape, low.shape, strict=True))
    ):
        raise ValueError(
            f"{name}: expected a scan whose shape divides {estimate.shape}, found {low.shape}; give the scan the "
            "result was made of"
        )
    if truth is not None and truth.shape != estimate.shape:
        raise ValueError(f"{name}: expected a truth of shape {estimate.shape}, found {truth.shape}")


def _named(result: Path | str) -> str:
    return scan_name(Path(place(result).name))


def _provenance(result: Path | str) -> tuple[Provenance | None, list[str]]:
    from medsr.trust.provenance import provenance_of

    try:
        return provenance_of(result), []
    except ScanError:
        return None, ["The result says nothing of how it was made: it was not written by medsr, or was edited since."]


def _measured(low: Given, result: Path | str, recorded: Provenance | None) -> tuple[Scan | None, list[str]]:
    """The measured scan among what was given, and doubts about it."""
    if low is None or isinstance(low, Scan):
        return low, []
    sources = list(find_scans(low)) if isinstance(low, (str, Path)) else list(low)
    name = _named(result)
    sources.sort(key=lambda s: s.name != name)  # the likely one first: each is read whole to know it
    series = recorded.options.get("series") if recorded is not None else None
    for source in sources:
        if recorded is not None and input_digest(source) == recorded.input_sha256:
            return read_scan(source, series=series), []
    if len(sources) == 1 or (recorded is None and sources and sources[0].name == name):
        doubt = "The measured scan shown here is not, byte for byte, the file that the result was made of."
        return read_scan(sources[0], series=series), [doubt]
    return None, ["The scan that the result was made of is not among those given; it is not shown."]


def crops_of(low: Scan | None, estimate: Scan, truth: Scan | None, view: View) -> dict[str, Plane]:
    """Planes of the view's region by "measured" (coarse), "cubic", "estimate", "truth", as far as they are given."""
    crops = {}
    if low is not None:
        crops["measured"] = plane_of(low, view, view.rows, view.columns, fine=False)
        crops["cubic"] = _cubic(low, view)
    crops["estimate"] = plane_of(estimate, view, view.rows, view.columns, fine=True)
    if truth is not None:
        crops["truth"] = plane_of(truth, view, view.rows, view.columns, fine=True)
    return crops


def _cubic(low: Scan, view: View) -> Plane:
    """The region by cubic interpolation, stored as a result would be."""
    from medsr.methods.interpolation import Cubic
    from medsr.plan import plan
    from medsr.upscaling import upscaled_region

    used = [i for i, f in enumerate(view.factor) if f > 1]
    axes = max(2, len(view.factor) - used[0] if used else 0)
    cubic = Cubic(view.factor[-axes:])
    target = view.region(view.rows, view.columns, fine=True)
    stored = upscaled_region(low, cubic, target, chosen=plan(low, cubic, device="cpu"), device="cpu")
    shape = tuple(n * f for n, f in zip(low.shape, view.factor, strict=True))
    whole = Scan(Placed(stored, target, shape), low.grid.refine(cubic.factor), low.intensity)
    return plane_of(whole, view, view.rows, view.columns, fine=True)
