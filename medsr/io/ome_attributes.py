"""ome_attributes: axes, levels with their scale and translation, and channels, as OME-Zarr 0.5 has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medsr.scan import SPATIAL, Factor, Intensity

if TYPE_CHECKING:
    from medsr.io.omezarr import Level

__all__ = ["ome_attributes"]


def ome_attributes(levels: Sequence[Level], intensity: Intensity, *, name: str, factor: Factor) -> dict[str, Any]:
    """What an image says of itself under the key "ome".

    Args:
        levels, intensity, name, factor: as in `medsr.io.omezarr.metadata`.

    References:
        OME-NGFF 0.5 specification, https://ngff.openmicroscopy.org/0.5/ (multiscales, omero).
    """
    grid = levels[0].grid
    kinds = {"t": "time", "c": "channel"}
    axes: list[dict[str, str]] = []
    for axis in grid.axes:
        entry = {"name": axis, "type": kinds.get(axis, "space")}
        if grid.spacing_of(axis) is not None and axis in SPATIAL:
            entry["unit"] = "micrometer"
        axes.append(entry)
    datasets, cells = [], [1.0 / f for f in factor]
    for level in levels:
        cells = [c * s for c, s in zip(cells, level.step, strict=True)]
        spacing = level.grid.spacing_um or (None,) * len(cells)
        # An axis of unknown spacing counts samples of the input, without a unit.
        scale = [c if s is None else s for c, s in zip(cells, spacing, strict=True)]
        origin = level.grid.origin_um
        move = [(c - 1) / 2 if s is None else o for c, s, o in zip(cells, spacing, origin, strict=True)]
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": move}]
        datasets.append({"path": level.path, "coordinateTransformations": steps})
    channels = levels[0].shape[grid.axes.index("c")] if "c" in grid.axes else 1
    return {
        "version": "0.5",
        "multiscales": [{"name": name, "axes": axes, "datasets": datasets, "type": "area average"}],
        "omero": {
            "channels": [_channel(intensity, index) for index in range(channels)],
            "rdefs": {"model": "greyscale"},
        },
    }


def _channel(intensity: Intensity, index: int) -> dict[str, Any]:
    start, end = intensity.window or sorted((intensity.black, intensity.white))
    if intensity.dtype.kind == "f":
        low, high = min(start, intensity.black), max(end, intensity.white)
    else:
        info = np.iinfo(intensity.dtype)
        low, high = float(info.min), float(info.max)
    return {
        "label": f"channel {index}",
        "color": "FFFFFF",
        "active": True,
        "inverted": intensity.black > intensity.white,
        "window": {"start": start, "end": end, "min": low, "max": high},
    }
