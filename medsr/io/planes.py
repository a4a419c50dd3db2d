"""Planes in files of their own: which files make a stack, whether they agree, the scan an opened file makes."""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medsr.io.lazy import BlockArray
from medsr.io.samples import (
    given_intensity,
    measured_intensity,
    sampled_channels,
    uneven_channels,
    unknown_spacing,
)
from medsr.io.source import Source, natural_key
from medsr.io.tiff_metadata import Header
from medsr.scan import Axis, Grid, Intensity, LazyArray, Scan, ScanError

__all__ = ["Opened", "make_scan", "numbered_planes", "plane_sets", "read_stack"]

_log = logging.getLogger(__name__)

PLANE_NAME = re.compile(r"((?:|.*[^a-z])(?:z|slice|plane|section|sec|layer)[ _\-=.]*)(\d+)(\D*)", re.IGNORECASE)
SAME = 1e-4  # a resolution is often written as a ratio of rounded numbers


@dataclass(frozen=True, slots=True)
class Opened:
    """A file opened: its lazy samples, the names of their axes ("zyx"), its header, a line for the history ("": none),
    and the highest value there can be where the file fixes the line by it."""

    path: Path
    data: LazyArray
    names: str
    header: Header
    history: str = ""
    highest: int | None = None


def make_scan(image: Opened, *, reader: str, intensity: Intensity | None) -> Scan:
    """The scan of an opened file or stack; its line is `intensity`, else what the header fixes, else measured.

    Raises:
        ScanError: no finite value is in it, or the given intensity is of another type.
    """
    header, names = image.header, image.names
    axes = cast("tuple[Axis, ...]", tuple(names))
    grid = Grid(axes, tuple(header.spacing_um.get(axis) for axis in axes))
    header.warnings += unknown_spacing("".join(a for a in names if a not in header.explained), header.spacing_um)
    if intensity is None:
        intensity = _intensity(image)
    else:
        given_intensity(image.path, intensity, np.dtype(image.data.dtype))
    history = tuple(filter(None, (image.history, *header.notes)))
    return Scan(image.data, grid, intensity, history, tuple(dict.fromkeys(header.warnings)), reader)


def _intensity(image: Opened) -> Intensity:
    header, data = image.header, image.data
    said: dict[str, Any] = {
        "slope": header.slope, "intercept": header.intercept, "units": header.units, "window": header.window
    }  # fmt: skip
    line = None
    if image.highest is not None:
        exact = image.highest & (image.highest + 1) == 0
        line = Intensity(0, image.highest, data.dtype, bits=image.highest.bit_length() if exact else None)
    elif header.bits is not None:
        line = _line_of_bits(image, header.bits)
    if line is None:
        line, remarks = measured_intensity(image.path, data, axes=image.names, padding=header.padding)
        header.warnings += remarks
    line = replace(line, **said)
    return replace(line, black=line.white, white=line.black) if header.white_is_zero else line


def _line_of_bits(image: Opened, bits: int) -> Intensity | None:
    """The line of all values of `bits` bits; None where the samples deny it."""
    header, dtype = image.header, np.dtype(image.data.dtype)
    channels = sampled_channels(image.data, image.names)
    values = np.concatenate(list(channels.values()))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if dtype.kind == "i" else (0, (1 << bits) - 1)
    measured = values
    if header.padding is not None:
        measured = values[(values < header.padding[0]) | (values > header.padding[1])]
    if measured.size and not (low <= measured.min() and measured.max() <= high):
        header.warnings.append(f"values reach {measured.max()}, beyond the {bits} bits the file says; not used")
        return None
    header.warnings += uneven_channels(channels, header.padding)
    return Intensity(low, high, dtype, bits=bits, padding=header.padding)


@dataclass(frozen=True)
class _LoadPlane:
    planes: tuple[LazyArray, ...]

    def __call__(self, index: tuple[int, ...]) -> NDArray[Any]:
        return np.asarray(self.planes[index[0]][:, :])[None]


def read_stack(
    source: Source, open_plane: Callable[[Path], Opened], *, reader: str, intensity: Intensity | None
) -> Scan:
    """The files of a source, one plane each, as one scan of axes z, y, x in the order of the numbers in their names.

    Raises:
        ScanError: a file holds more than a plane, or differs from the first in size, type or calibration.
    """
    files = sorted(source.files, key=natural_key)
    planes: list[LazyArray] = []
    warnings: dict[str, None] = {}
    first: Opened | None = None
    for path in files:
        plane = open_plane(path)
        if plane.names != "yx":
            raise ScanError(
                f"{path}: expected one plane in each file of the stack {source.path}, found "
                f"{plane.names} of {' x '.join(map(str, plane.data.shape))}; read the files one by one"
            )
        first = first or plane
        _refuse_difference(first, plane)
        planes.append(plane.data)
        warnings |= dict.fromkeys(plane.header.warnings)
    if first is None:
        raise ScanError(f"{source.path}: expected the planes of a stack, found no file; name a folder of TIFF files")
    header = first.header
    header.window, header.warnings = None, list(warnings)
    header.spacing_um.pop("z", None)
    shape = tuple(first.data.shape)
    stack = BlockArray(
        (len(planes), *shape), np.dtype(first.data.dtype), block=(1, *shape), load=_LoadPlane(tuple(planes))
    )
    history = "; ".join(filter(None, (first.history, f"{len(planes)} files, one a plane")))
    return make_scan(Opened(source.path, stack, "zyx", header, history), reader=reader, intensity=intensity)


def _refuse_difference(first: Opened, plane: Opened) -> None:
    """Refuse a plane whose samples are not those of the first, or mean something else.

    Raises:
        ScanError: with both values.
    """
    one, own = (first.header, plane.header)
    kinds = [(p.data.shape, np.dtype(p.data.dtype), h.white_is_zero, h.bits) for p, h in ((first, one), (plane, own))]
    if kinds[0] != kinds[1]:
        raise ScanError(
            f"{plane.path}: expected planes of {first.data.shape} {first.data.dtype} as in {first.path.name}, found "
            f"{plane.data.shape} {plane.data.dtype}; take it out of the folder or read the files one by one"
        )
    pairs: list[tuple[str, Any, Any]] = [
        (f"spacing along {a} (um)", one.spacing_um.get(a), own.spacing_um.get(a)) for a in "yx"
    ]
    pairs += [("slope", one.slope, own.slope), ("intercept", one.intercept, own.intercept)]
    pairs += [("units", one.units, own.units), ("no-data value", one.padding, own.padding)]
    differing = [f"{what} {_words(a)} and {_words(b)}" for what, a, b in pairs if not _same(a, b)]
    if differing:
        raise ScanError(
            f"{plane.path}: expected the calibration of {first.path.name} in all planes of the stack, found "
            f"{', '.join(differing)}; correct the header of the file that is wrong, or read the files one by one"
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=SAME)
    return bool(one == other)


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.6g}"
    return f"{value:.6g}" if isinstance(value, float) else str(value or "unknown")


def numbered_planes(files: Iterable[Path], suffixes: Iterable[str]) -> tuple[Path, ...]:
    """The files of these endings in the order of their number, where all their names differ only in one running
    number without gaps and there are at least two; else nothing."""
    endings = frozenset(suffixes)
    found = sorted((f for f in files if f.suffix.lower() in endings), key=natural_key)
    parts = [re.split(r"(\d+)", f.name) for f in found]
    if len(found) < 2 or len({len(p) for p in parts}) != 1:
        return ()
    differing = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return ()
    numbers = [int(p[differing[0]]) for p in parts]
    return tuple(found) if numbers == list(range(numbers[0], numbers[0] + len(numbers))) else ()


def plane_sets(
    files: Iterable[Path], suffixes: Iterable[str], is_plane: Callable[[Path], bool]
) -> list[tuple[Path, ...]]:
    """Sets of files of one plane each whose names say that a running number without gaps counts planes.

    "z001.tif", "cell3_slice-7.tif", "Section 12.tif": the number after z, slice, plane, section, sec or layer. Names
    with another number only ("img_001.tif") may as well be separate images and make no set.
    """
    endings = frozenset(suffixes)
    sets: dict[tuple[str, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in files:
        match = PLANE_NAME.fullmatch(path.name)
        if match and path.suffix.lower() in endings:
            sets[match[1].casefold(), match[3].casefold()].append((int(match[2]), path))
    found = []
    for members in sets.values():
        numbers, paths = zip(*sorted(members), strict=True)
        if len(paths) < 2 or not all(map(is_plane, (paths[0], paths[-1]))):
            continue
        if numbers == tuple(range(numbers[0], numbers[0] + len(numbers))):
            found.append(paths)
        else:
            _log.warning(
                "%s ... %s: %d files for the planes %d to %d; taken as separate images",
                paths[0], paths[-1].name, len(paths), numbers[0], numbers[-1],
            )  # fmt: skip
    return found
