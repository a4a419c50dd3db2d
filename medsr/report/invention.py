"""found_maps: where a result may have been invented, from the measured scan, the result and the run's parent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsr.report.maps import Map
from medsr.report.material import Material
from medsr.report.reasons import reason_of
from medsr.report.view import Placed
from medsr.scan import Region, Scan

if TYPE_CHECKING:
    from medsr.checkpoint import TrainedUpscaler
    from medsr.trust.invention import Suspicion

__all__ = ["PARENT", "SPACE", "Parent", "computed", "found_maps", "parent_for"]

PARENT, SPACE = "invention: detail beside the parent", "invention: unseen detail"

WHOLE = 1 << 22
"""Fine samples that are computed for the map of a whole plane, at most: what the enlarged region alone may cost, which
meets up to four blocks of a million. Unseen detail takes about two seconds of one core for a million of them, detail
beside a parent what the parent takes to make them."""
DEEP = 101
"""Fine samples of a block along a hidden axis that is computed with the plane: the cube root of a million."""


@dataclass(frozen=True, slots=True)
class Parent:
    """What a run that was given says of the result.

    Attributes:
        upscaler: the pixel-trained one its adversarial training went on from; None where there is none.
        reason: why there is none; "" where there is one.
        doubts: what a reader should know before all else.
    """

    upscaler: TrainedUpscaler | None = None
    reason: str = ""
    doubts: tuple[str, ...] = ()


def parent_for(material: Material, checkpoint: Path | str | None) -> Parent:
    """The parent of the run that made a result.

    Raises:
        CheckpointError: the run is not usable.
    """
    made_by = material.provenance.checkpoints if material.provenance is not None else ()
    if checkpoint is None:
        if made_by:
            return Parent(reason="The run was not given, so a parent of its network is not known (--checkpoint).")
        return Parent(reason="No network that went on from another one is known to have made this result.")
    from medsr.checkpoint import load_upscaler
    from medsr.trust import find_parent

    if made_by and load_upscaler(checkpoint).weights_sha256 not in made_by:
        doubt = "The run that was given has other weights than those that made this result: its card is another one's."
        return Parent(reason="The run that was given did not make this result.", doubts=(doubt,))
    upscaler, why = find_parent(checkpoint)
    return Parent(upscaler, f"No parent: {why}." if why else "")


def found_maps(material: Material, parent: Parent, degradation: Any) -> tuple[dict[str, Map], dict[str, str]]:
    """Maps of suspected inventions that need no truth, by title; and by title why there is none.

    Both are shares of the local detail: of the maps that need no truth they are those that an audit on real scans found
    to tell inventions best. Where more than `WHOLE` samples would have to be computed for
    the plane, a map holds the enlarged region alone.

    Args:
        material: of the page.
        parent: of the run.
        degradation: how the scan became coarse; None: the mean over each coarse sample.
    """
    if material.low is None:
        why = "The measured scan was not given, so what it leaves open is not known."
        return {}, {PARENT: why, SPACE: why}
    absent = {PARENT: parent.reason} if parent.upscaler is None else {}
    from medsr.trust import suspicions

    try:
        # The CPU computes the same numbers each time, wherever the page is written.
        found = suspicions(
            material.low, material.estimate, degradation=degradation, parent=parent.upscaler, device="cpu"
        )
    except ValueError as error:
        why = f"Not computed: {reason_of(error, material.name)}."
        return {}, {PARENT: why, SPACE: why, **absent}
    maps = {}
    if parent.upscaler is not None:
        maps[PARENT] = _held(material, _named(found, "detail beside the parent"))
    maps[SPACE] = _held(material, _named(found, "unseen detail"))
    return maps, absent


def _named(found: Sequence[Suspicion], name: str) -> Suspicion:
    return next(one for one in found if one.name == name)


def _held(material: Material, one: Suspicion) -> Map:
    """A map computed once: for the plane, or for the enlarged region where the plane would be too much."""
    view = material.view
    whole = slice(0, view.size[0]), slice(0, view.size[1])
    plane = view.region(*whole, fine=True)
    region_only = computed(material, plane) > WHOLE and whole != (view.rows, view.columns)
    region = view.region(view.rows, view.columns, fine=True) if region_only else plane
    data = Placed(one.scan.read(region), region, material.estimate.shape)
    note = one.note.replace(" um", " µm")
    return Map(Scan(data, one.scan.grid, one.scan.intensity), limit=1.0, note=note, region_only=region_only)


def computed(material: Material, region: Region) -> int:
    """Fine samples that are computed to read a region: from the first refined axis on, blocks reach into depth."""
    factor, shape = material.view.factor, material.estimate.shape
    first = min((axis for axis, f in enumerate(factor) if f > 1), default=len(factor))
    sizes = [
        min(n, max(r.stop - r.start, DEEP)) if axis >= first and axis not in material.view.shown else r.stop - r.start
        for axis, (n, r) in enumerate(zip(shape, region, strict=True))
    ]
    return math.prod(sizes)
