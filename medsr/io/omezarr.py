"""OME-Zarr 0.5 out: levels, shards and metadata of one result; written whole shards at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.scan import SPATIAL, Axis, Factor, Grid, Intensity, Region

__all__ = [
    "Level",
    "average",
    "averaged_shard",
    "create",
    "is_whole",
    "plan_levels",
    "shard_digest",
    "shard_region",
    "stored_job",
    "shard_regions",
    "write_shard",
]

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a pyramid.

    Attributes:
        path: name of the array inside the group ("0" is the finest).
        shape, chunk, shard: samples along each axis; a shard is a whole number of chunks.
        grid: where the samples of this level lie.
        step: samples of the finer level averaged into one, for each axis (1 for level 0).
    """

    path: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    grid: Grid
    step: Factor


def plan_levels(
    shape: Sequence[int], grid: Grid, *, chunk: Sequence[int] | None = None, shard: Sequence[int] | None = None
) -> tuple[Level, ...]:
    """Levels of the pyramid, finest first, each the area average of the one before, until a plane fits in one chunk.

    "z" is averaged too where its spacing is not above that of the plane at that level (unknown spacing: never).

    Args:
        shape, grid: of the result.
        chunk, shard: samples along the last axes; None: 256 x 256 planes in shards of 2048 x 2048, for stacks
            8 x 256 x 256 voxels in shards of 16 x 1024 x 1024.

    Raises:
        ValueError: a shard that is no whole number of chunks.
    """
    volume = "z" in grid.axes
    chunks = _fit(chunk or ((8, 256, 256) if volume else (256, 256)), len(shape))
    shards = _fit(shard or ((16, 1024, 1024) if volume else (2048, 2048)), len(shape))
    if any(s % c for s, c in zip(shards, chunks, strict=True)):
        raise ValueError(f"shard: expected whole chunks of {chunks}, found {shards}; make each a multiple of its chunk")
    sizes, levels, step = tuple(shape), list[Level](), (1,) * len(shape)
    while True:
        chunk_here = tuple(min(c, n) for c, n in zip(chunks, sizes, strict=True))
        shard_here = tuple(c * math.ceil(min(s, n) / c) for s, n, c in zip(shards, sizes, chunk_here, strict=True))
        levels.append(Level(str(len(levels)), sizes, chunk_here, shard_here, grid, step))
        plane = [n for n, a in zip(sizes, grid.axes, strict=True) if a in "yx"]
        if max(plane) <= max(chunks[-2:]):
            return tuple(levels)
        step = tuple(_step(grid, axis, n) for axis, n in zip(grid.axes, sizes, strict=True))
        sizes = tuple(math.ceil(n / s) for n, s in zip(sizes, step, strict=True))
        grid = grid.coarsen(step)


def _fit(sizes: Sequence[int], dims: int) -> tuple[int, ...]:
    if min(sizes) < 1 or len(sizes) > dims:
        raise ValueError(f"chunk, shard: expected at most {dims} sizes of at least 1, found {tuple(sizes)}")
    return (1,) * (dims - len(sizes)) + tuple(sizes)


def _step(grid: Grid, axis: Axis, size: int) -> int:
    if axis in "yx":
        return 2 if size > 1 else 1
    z, y = grid.spacing_of("z"), grid.spacing_of("y")
    return 2 if axis == "z" and size > 1 and z is not None and y is not None and z <= 1.5 * y else 1


def create(
    root: Path,
    levels: Sequence[Level],
    *,
    intensity: Intensity,
    name: str,
    factor: Factor,
    attributes: Mapping[str, Any],
) -> None:
    """Make the group and its empty arrays, metadata complete.

    Args:
        root: folder to make.
        levels: of `plan_levels`.
        intensity: of the result; its window (else its black and white) becomes the omero window.
        name: shown by viewers.
        factor: refinement of each axis that led here; an axis of unknown spacing counts samples of the input, so its
            cells are 1 / factor long.
        attributes: what is stored under the key "medsr" beside the intensity; plain JSON.

    References:
        OME-NGFF 0.5 specification, https://ngff.openmicroscopy.org/0.5/ (multiscales, omero).
    """
    import zarr
    from yaozarrs import v05
    from zarr.codecs import BloscCodec

    ome = _ome(levels, intensity, name, factor)
    v05.Image.model_validate(ome)
    ours = {**attributes, "intensity": _intensity(intensity)}
    zarr.create_group(root, attributes={"ome": ome, "medsr": ours}, zarr_format=3)
    codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=intensity.dtype.itemsize)
    for level in levels:
        zarr.create_array(
            root,
            name=level.path,
            shape=level.shape,
            chunks=level.chunk,
            shards=level.shard,
            dtype=intensity.dtype,
            compressors=codec,
            fill_value=0,
            dimension_names=level.grid.axes,
        )


def _intensity(intensity: Intensity) -> dict[str, Any]:
    return {
        "black": intensity.black,
        "white": intensity.white,
        "bits": intensity.bits,
        "slope": intensity.slope,
        "intercept": intensity.intercept,
        "units": intensity.units,
        "padding": intensity.padding,
    }


def _ome(levels: Sequence[Level], intensity: Intensity, name: str, factor: Factor) -> dict[str, Any]:
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


def shard_regions(level: Level) -> Iterator[tuple[Index, Region]]:
    """Index and region of every shard of a level, clipped to its shape, last axis fastest."""
    counts = [math.ceil(n / s) for n, s in zip(level.shape, level.shard, strict=True)]
    for index in product(*map(range, counts)):
        yield index, shard_region(level, index)


def shard_region(level: Level, index: Index) -> Region:
    """The region of one shard, clipped to the level's shape."""
    return tuple(slice(i * s, min((i + 1) * s, n)) for i, s, n in zip(index, level.shard, level.shape, strict=True))


def write_shard(root: Path, level: Level, index: Index, data: NDArray[Any]) -> str:
    """Write one whole shard, to the disk, and return the digest of its bytes.

    Raises:
        ValueError: `data` is not the whole shard.
        OSError: the disk is full or not writable.
    """
    import zarr

    region = shard_region(level, index)
    expected = tuple(s.stop - s.start for s in region)
    if data.shape != expected:
        raise ValueError(f"{root.name}/{level.path}: expected a whole shard of {expected}, found {data.shape}")
    file = _shard_file(root, level, index)
    # zarr would read a torn shard of an earlier run to merge into it.
    file.unlink(missing_ok=True)
    # A shard of zeros is a file too: what is not there was not computed.
    array = zarr.open_array(root, path=level.path, mode="r+")
    array.with_config({"write_empty_chunks": True})[region] = data
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    return shard_digest(root, level, index) or ""


def shard_digest(root: Path, level: Level, index: Index) -> str | None:
    """BLAKE2 of a shard's bytes on disk; None when it is not there."""
    try:
        with _shard_file(root, level, index).open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except FileNotFoundError:
        return None


def _shard_file(root: Path, level: Level, index: Index) -> Path:
    return root.joinpath(level.path, "c", *map(str, index))


def stored_job(root: Path) -> dict[str, Any] | None:
    """What decided the bytes of a complete result, as its writer recorded it; None for anything else."""
    try:
        attributes = json.loads((root / "zarr.json").read_text())["attributes"]
        return dict(attributes["medsr"]["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def averaged_shard(root: Path, finer: Level, level: Level, index: Index, *, intensity: Intensity) -> NDArray[Any]:
    """One shard of `level`, averaged from the level below it chunk by chunk, so that only the shard is in memory."""
    import zarr

    below = zarr.open_array(root, path=finer.path, mode="r")
    region = shard_region(level, index)
    shard = np.empty([r.stop - r.start for r in region], intensity.dtype)
    starts = [range(r.start, r.stop, c) for r, c in zip(region, level.chunk, strict=True)]
    for corner in product(*starts):
        target = [slice(a, min(a + c, r.stop)) for a, c, r in zip(corner, level.chunk, region, strict=True)]
        source = tuple(
            slice(t.start * s, min(t.stop * s, n)) for t, s, n in zip(target, level.step, finer.shape, strict=True)
        )
        place = tuple(slice(t.start - r.start, t.stop - r.start) for t, r in zip(target, region, strict=True))
        shard[place] = average(np.asarray(below[source]), level.step, intensity=intensity)
    return shard


def is_whole(root: Path, levels: Sequence[Level]) -> bool:
    """Whether every shard of every level has its file."""
    return all(_shard_file(root, level, index).is_file() for level in levels for index, _ in shard_regions(level))


def average(data: NDArray[Any], step: Factor, *, intensity: Intensity | None = None) -> NDArray[Any]:
    """Area average over blocks of `step` (1 or 2 for each axis), same dtype; integers are rounded.

    The last block along an axis of odd size is an average over what is there. Holes (NaN, and the padding of
    `intensity`) are left out of an average; a block of holes only keeps the value of its first.
    """
    exact = np.float32 if data.dtype.kind in "iu" and data.dtype.itemsize <= 2 else np.float64
    total = data.astype(exact)
    count = np.ones((1,) * data.ndim, exact)
    if intensity is not None and intensity.may_have_holes:
        holes = intensity.holes(data)
        count = (~holes).astype(exact)
        total[holes] = 0
    for axis, s in enumerate(step):
        if s > 1:
            if count.shape[axis] == 1 and total.shape[axis] > 1:
                count = np.repeat(count, total.shape[axis], axis)
            total, count = _pairs(total, axis), _pairs(count, axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
    first = data[tuple(slice(None, None, s) for s in step)]
    mean = np.where(count > 0, mean, first)
    if data.dtype.kind in "iu":
        np.rint(mean, out=mean)
    result: NDArray[Any] = mean.astype(data.dtype)
    return result


def _pairs(values: NDArray[Any], axis: int) -> NDArray[Any]:
    moved = np.moveaxis(values, axis, 0)
    total = moved[0::2].copy()
    total[: moved.shape[0] // 2] += moved[1::2]
    return np.moveaxis(total, 0, axis)
