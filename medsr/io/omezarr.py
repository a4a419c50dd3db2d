"""OME-Zarr 0.5 out: levels, shards and metadata of a result's images; whole shards at a time, to any place."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.io import shard as codec
from medsr.io.averaging import average
from medsr.io.lazy import BlockArray
from medsr.io.ome_attributes import ome_attributes
from medsr.io.places import Place
from medsr.scan import Axis, Factor, Grid, Intensity, Region

__all__ = [
    "Level",
    "average",
    "averaged_shard",
    "encode_shard",
    "finished_level",
    "image_place",
    "is_whole",
    "joint_digest",
    "metadata",
    "plan_levels",
    "shard_digest",
    "shard_key",
    "shard_region",
    "shard_regions",
    "stored_job",
    "write_shard",
]

Index = tuple[int, ...]

HELD = 4
"""Shards of a finished level whose compressed bytes a reader holds."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a pyramid.

    Attributes:
        path: name of the array inside the group ("0" is the finest).
        shape, chunk, shard: samples along each axis; a shard is a whole number of chunks.
        grid: where the samples of this level lie.
        step: samples of the finer level averaged into one, for each axis (1 for level 0).
        images: names of the images of the result that have this level, each in its own `image_place`; their shards lie
            alike and are written together.
    """

    path: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    grid: Grid
    step: Factor
    images: tuple[str, ...] = ("",)


def plan_levels(
    shape: Sequence[int],
    grid: Grid,
    *,
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
    images: tuple[str, ...] = ("",),
) -> tuple[Level, ...]:
    """Levels of the pyramid, finest first, each the area average of the one before, until a plane fits in one chunk.

    "z" is averaged too where its spacing is not above that of the plane at that level (unknown spacing: never).

    Args:
        shape, grid: of the result.
        chunk, shard: samples along the last axes; None: 256 x 256 planes in shards of 2048 x 2048, for stacks
            8 x 256 x 256 voxels in shards of 16 x 1024 x 1024.
        images: names of the images of the result.

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
        levels.append(Level(str(len(levels)), sizes, chunk_here, shard_here, grid, step, images))
        plane = [n for n, a in zip(sizes, grid.axes, strict=True) if a in "yx"]
        if max(plane) <= max(chunks[-2:]):
            return tuple(levels)
        step = tuple(_step(grid, axis, n) for axis, n in zip(grid.axes, sizes, strict=True))
        sizes = tuple(math.ceil(n / s) for n, s in zip(sizes, step, strict=True))
        grid = grid.coarsen(step[-3:])  # "t" and "c" are never averaged


def _fit(sizes: Sequence[int], dims: int) -> tuple[int, ...]:
    if min(sizes) < 1 or len(sizes) > dims:
        raise ValueError(f"chunk, shard: expected at most {dims} sizes of at least 1, found {tuple(sizes)}")
    return (1,) * (dims - len(sizes)) + tuple(sizes)


def _step(grid: Grid, axis: Axis, size: int) -> int:
    if axis in "yx":
        return 2 if size > 1 else 1
    z, y = grid.spacing_of("z"), grid.spacing_of("y")
    return 2 if axis == "z" and size > 1 and z is not None and y is not None and z <= 1.5 * y else 1


def metadata(
    levels: Sequence[Level], *, intensity: Intensity, name: str, factor: Factor, attributes: Mapping[str, Any]
) -> dict[str, bytes]:
    """The metadata of one image, its group and its arrays, as JSON documents by key: "0/zarr.json", ..., "zarr.json".

    Put in this order, a group is there only when all its arrays are.

    Args:
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
    from zarr.storage import MemoryStore

    ome = ome_attributes(levels, intensity, name=name, factor=factor)
    v05.Image.model_validate(ome)
    ours = {**attributes, "intensity": _intensity(intensity)}
    zstd = BloscCodec(cname="zstd", clevel=codec.LEVEL, shuffle="bitshuffle", typesize=intensity.dtype.itemsize)
    documents: dict[str, Any] = {}
    store = MemoryStore(documents)
    zarr.create_group(store, attributes={"ome": ome, "medsr": ours}, zarr_format=3)
    for level in levels:
        zarr.create_array(
            store,
            name=level.path,
            shape=level.shape,
            chunks=level.chunk,
            shards=level.shard,
            dtype=intensity.dtype,
            compressors=zstd,
            fill_value=0,
            dimension_names=level.grid.axes,
        )
    return {key: documents[key].to_bytes() for key in sorted(documents, key=lambda key: (key == "zarr.json", key))}


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


def shard_regions(level: Level) -> Iterator[tuple[Index, Region]]:
    """Index and region of every shard of a level, clipped to its shape, last axis fastest."""
    counts = [math.ceil(n / s) for n, s in zip(level.shape, level.shard, strict=True)]
    for index in product(*map(range, counts)):
        yield index, shard_region(level, index)


def shard_region(level: Level, index: Index) -> Region:
    """The region of one shard, clipped to the level's shape."""
    return tuple(slice(i * s, min((i + 1) * s, n)) for i, s, n in zip(index, level.shard, level.shape, strict=True))


def image_place(target: Place, image: str) -> Place:
    """Where an image of a result is kept: the result itself, or a group inside it that has the image's name."""
    return target.child(image) if image else target


def shard_key(level: Level, index: Index) -> str:
    """Where a shard is stored in the group of its image."""
    return "/".join((level.path, "c", *map(str, index)))


def encode_shard(level: Level, data: NDArray[Any]) -> bytes:
    """The bytes of one shard, compressed; several threads encode several shards at once.

    Args:
        level: whose shard it is.
        data: its samples, clipped to the level's shape as `shard_region` is.

    Raises:
        ValueError: `data` is larger than a shard.
    """
    if len(data.shape) != len(level.shard) or any(n > s for n, s in zip(data.shape, level.shard, strict=True)):
        raise ValueError(f"level {level.path}: expected a shard of at most {level.shard}, found {data.shape}")
    return codec.encode(data, chunk=level.chunk, shard=level.shard)


def write_shard(target: Place, level: Level, index: Index, data: NDArray[Any]) -> str:
    """Write one whole shard of one image, to last, and return the digest of its bytes.

    A shard of zeros is stored too: what is not there was not computed.

    Args:
        target: the place of the image.
        level, index: which shard it is.
        data: its samples.

    Raises:
        ValueError: `data` is not the whole shard.
        OSError: the disk is full or not writable.
    """
    expected = tuple(s.stop - s.start for s in shard_region(level, index))
    if data.shape != expected:
        raise ValueError(f"{target.name}/{level.path}: expected a whole shard of {expected}, found {data.shape}")
    stored = encode_shard(level, data)
    target.put(shard_key(level, index), stored)
    return hashlib.blake2b(stored, digest_size=16).hexdigest()


def joint_digest(digests: Sequence[str]) -> str:
    """One digest for the shards of all images, in their order; of one image it is that of its shard."""
    return digests[0] if len(digests) == 1 else hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def shard_digest(target: Place, level: Level, index: Index) -> str | None:
    """`joint_digest` of the stored bytes, as BLAKE2, of a shard of all images; None when one of them is not there."""
    key, found = shard_key(level, index), list[str]()
    for image in level.images:
        digest = image_place(target, image).digest(key)
        if digest is None:
            return None
        found.append(digest)
    return joint_digest(found)


def stored_job(target: Place) -> dict[str, Any] | None:
    """What decided the bytes of a complete result, as its writer recorded it; None for anything else.

    Raises:
        OSError: it cannot be asked for; whether there is a result is not known.
    """
    stored = target.get("zarr.json")
    try:
        return dict(json.loads(stored or b"")["attributes"]["medsr"]["job"])
    except (ValueError, KeyError, TypeError):
        return None


def averaged_shard(target: Place, finer: Level, level: Level, index: Index, *, intensity: Intensity) -> NDArray[Any]:
    """One shard of `level` of the image at `target`, averaged from the level below it chunk by chunk.

    In memory are the shard and the compressed bytes of one shard of the finer level (of a few where a shard is an odd
    number of chunks).

    Raises:
        OSError: a shard of the finer level is not there, or is damaged.
    """
    chunks = _FinerChunks(target, finer, intensity.dtype)
    below = BlockArray(finer.shape, intensity.dtype, block=finer.chunk, load=chunks, keep=0)
    region = shard_region(level, index)
    shard = np.empty([r.stop - r.start for r in region], intensity.dtype)
    starts = [range(r.start, r.stop, c) for r, c in zip(region, level.chunk, strict=True)]
    sources = {}
    for corner in product(*starts):
        here = tuple(slice(a, min(a + c, r.stop)) for a, c, r in zip(corner, level.chunk, region, strict=True))
        sources[corner] = tuple(
            slice(h.start * s, min(h.stop * s, n)) for h, s, n in zip(here, level.step, finer.shape, strict=True)
        )
    for corner in sorted(sources, key=lambda corner: chunks.shards(sources[corner])):
        chunks.hold(sources[corner])
        piece = average(below[sources[corner]], level.step, intensity=intensity)
        into = tuple(slice(a - r.start, a - r.start + n) for a, r, n in zip(corner, region, piece.shape, strict=True))
        shard[into] = piece
    return shard


class _FinerChunks:
    """The chunks of a finished level by their index, out of the shards that are held."""

    def __init__(self, target: Place, level: Level, dtype: np.dtype[Any]) -> None:
        self._target, self._level, self._dtype = target, level, dtype
        self._held: dict[Index, codec.ShardReader] = {}

    def shards(self, region: Region) -> list[Index]:
        """The shards that a region touches."""
        return list(
            product(*(range(r.start // s, -(-r.stop // s)) for r, s in zip(region, self._level.shard, strict=True)))
        )

    def hold(self, region: Region) -> None:
        """Have the shards that a region touches, and no other."""
        self._held = {index: self._held.get(index) or self._open(index) for index in self.shards(region)}

    def open(self, index: Index) -> None:
        """Have the shard that a chunk is in; of the others the few that were asked for last stay."""
        shard = tuple(i * c // s for i, c, s in zip(index, self._level.chunk, self._level.shard, strict=True))
        reader = self._held.pop(shard, None) or self._open(shard)
        self._held = dict([*self._held.items()][1 - HELD :]) | {shard: reader}

    def _open(self, index: Index) -> codec.ShardReader:
        key = shard_key(self._level, index)
        stored = self._target.get(key)
        if stored is None:
            raise FileNotFoundError(errno.ENOENT, "expected a finished shard, found none", f"{self._target.name}/{key}")
        try:
            return codec.ShardReader(stored, dtype=self._dtype, chunk=self._level.chunk, shard=self._level.shard)
        except ValueError as error:
            raise OSError(errno.EIO, str(error), f"{self._target.name}/{key}") from error

    def __call__(self, index: Index) -> NDArray[Any]:
        counts = [s // c for s, c in zip(self._level.shard, self._level.chunk, strict=True)]
        shard = tuple(i // n for i, n in zip(index, counts, strict=True))
        try:
            return self._held[shard].read(tuple(i % n for i, n in zip(index, counts, strict=True)))
        except ValueError as error:
            raise OSError(errno.EIO, str(error), f"{self._target.name}/{shard_key(self._level, shard)}") from error


def finished_level(target: Place, level: Level, intensity: Intensity) -> BlockArray:
    """A level whose shards are all written, as a lazy array; no metadata is asked for.

    In memory are the compressed bytes of the shards that the last region touched, and the last chunks.

    Raises:
        OSError: when it is read: a shard is not there, or is damaged.
    """
    chunks = _FinerChunks(target, level, intensity.dtype)
    keep = math.prod(level.chunk) * intensity.dtype.itemsize

    def load(index: Index) -> NDArray[Any]:
        chunks.open(index)
        return chunks(index)

    return BlockArray(level.shape, intensity.dtype, block=level.chunk, load=load, keep=keep)


def is_whole(target: Place, levels: Sequence[Level]) -> bool:
    """Whether every shard of every level is stored, of all images."""
    stored = set(target.keys())
    return all(
        (f"{image}/" if image else "") + shard_key(level, index) in stored
        for level in levels
        for image in level.images
        for index, _ in shard_regions(level)
    )
