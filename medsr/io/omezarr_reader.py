"""OME-Zarr 0.4 and 0.5 in: the finest level, its spacing and origin in micrometers, our own intensity and history."""

from __future__ import annotations

import json
import math
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medsr.io.lazy import Arranged, BlockArray
from medsr.io.places import Folder, Place, place
from medsr.io.samples import given_intensity, measured_intensity, refuse_type, unknown_spacing
from medsr.io.source import Source
from medsr.io.tiff_metadata import arrange, channel_notes
from medsr.io.units import micrometers, stated_spacing_um
from medsr.scan import Axis, Grid, Intensity, LazyArray, Scan, ScanError

__all__ = ["MARKERS", "accepts", "read"]

MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
BLOCK = 512
COUNT_CHUNKS_UP_TO = 100_000
COUNT_OBJECTS_UP_TO = 10_000
CURE = "write it as OME-Zarr 0.4 or 0.5 (multiscales with axes and a scale)"


def accepts(path: Path) -> bool:
    """Whether a folder is a zarr array or group that is not half-written (a name that ends in ".part")."""
    try:
        return path.is_dir() and path.suffix != ".part" and any((path / m).is_file() for m in MARKERS)
    except OSError:
        return False


def read(source: Source, series: str | int | None = None, *, intensity: Intensity | None = None) -> Scan:
    """The finest level of an OME-Zarr image as a lazy scan.

    Spacing and origin come from the scale and translation of the level, then of the multiscale; an axis without a
    unit has an unknown spacing. What `upscale` stored (intensity line, history) comes back as it was; else the line
    is the robust one and the omero window is kept for display.

    Args:
        source: the folder of one image, or of a collection as bioformats2raw writes it; on disk or in an object store.
        series: name or number of the image in a collection.
        intensity: taken instead of a stored or measured one.

    Raises:
        ScanError: no image metadata (a plain array, a plate, labels), damaged metadata, several images and none named.
    """
    where: Place = place(source.url) if source.url else Folder(source.path)
    if not (any(where.get(m) is not None for m in MARKERS) if source.url else accepts(source.path)):
        raise ScanError(
            f"{where.name}: expected the folder of an OME-Zarr image, found none or a half-written one; {CURE}"
        )
    root = _choose(where, series)
    ome, ours, version = _attributes(root)
    multiscale, notes = _multiscale(root, ome, version)
    dataset = multiscale["datasets"][0]
    array = _open(root, str(dataset["path"]))
    refuse_type(root.name, array.dtype)
    if len(array.shape) != len(multiscale["axes"]):
        raise ScanError(
            f"{root.name}: expected {len(multiscale['axes'])} axes, found an array of {array.shape}; {CURE}"
        )
    load = _LoadChunks(root, str(dataset["path"]), _block(array))
    notes += _missing_chunks(root, load.name, array)
    letters = "".join(_letter(a) for a in multiscale["axes"])
    try:
        names, order, note = arrange(letters, tuple(array.shape))
    except ValueError as error:
        raise ScanError(f"{root.name}: {error}; {CURE}") from error
    spacing, origin = _geometry(multiscale, dataset, letters)
    if spacing.get("y") == spacing.get("x") == 1.0:
        notes.append("spacing along y and x is exactly 1 um: a placeholder? compare with the microscope")
    data: LazyArray = BlockArray(array.shape, array.dtype, block=load.block, load=load)
    if order != tuple(range(len(array.shape))):
        data = Arranged(data, order)
    axes = cast("tuple[Axis, ...]", tuple(names))
    grid = Grid(axes, tuple(spacing.get(a) for a in axes), tuple(origin.get(a, 0.0) for a in axes))
    if intensity is None:
        intensity, remarks = _intensity(root, data, names, ome, ours)
        notes += remarks
    else:
        given_intensity(root.name, intensity, array.dtype)
    notes += [note] if note else []
    history = [str(line) for line in ours.get("history", ()) if isinstance(line, str)]
    history = history or _lines(ome, multiscale, dataset, letters)  # our own history has them already
    return Scan(
        data,
        grid,
        intensity,
        history=tuple(history),
        warnings=(*notes, *unknown_spacing(names, spacing)),
        reader="ome-zarr",
    )


def _intensity(
    root: Place, data: LazyArray, names: str, ome: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[Intensity, tuple[str, ...]]:
    """The stored line, else the measured one, with what to warn of."""
    window = _window(ome)
    stored = _stored_intensity(ours, np.dtype(data.dtype), window)
    if stored is not None:
        return stored, ()
    spoiled = ("the stored intensity line cannot be used; measured from the samples instead",)
    line, remarks = measured_intensity(root.name, data, axes=names, window=window)
    return line, (*(spoiled if "intensity" in ours else ()), *remarks)


def _lines(
    ome: Mapping[str, Any], multiscale: Mapping[str, Any], dataset: Mapping[str, Any], letters: str
) -> list[str]:
    """Names of the channels and the time increment, for the history."""
    channels = _mapping(ome.get("omero")).get("channels")
    labels = [_mapping(c).get("label") for c in channels] if isinstance(channels, list) else []
    if "T" not in letters:
        return channel_notes(labels)
    at = letters.index("T")
    steps = [t for t in dataset["coordinateTransformations"] if t["type"] == "scale"]
    unit = multiscale["axes"][at].get("unit")
    return channel_notes(labels, steps[0]["scale"][at] if steps and unit else None, str(unit))


def _json(root: Place, key: str) -> dict[str, Any]:
    try:
        stored = root.get(key)
        found = {} if stored is None else json.loads(stored)
    except (OSError, ValueError) as error:
        raise ScanError(f"{root.name}/{key}: expected JSON metadata, found {error}; copy the folder again") from error
    if not isinstance(found, dict):
        raise ScanError(
            f"{root.name}/{key}: expected a JSON object, found {type(found).__name__}; copy the folder again"
        )
    return found


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _attributes(root: Place) -> tuple[dict[str, Any], dict[str, Any], str]:
    """OME metadata, our own, and the layout: "0.5" (zarr 3) or "0.4" (zarr 2)."""
    document = _json(root, "zarr.json")
    if document:
        attributes = _mapping(document.get("attributes"))
        return _mapping(attributes.get("ome")), _mapping(attributes.get("medsr")), "0.5"
    attributes = _json(root, ".zattrs")
    return attributes, _mapping(attributes.get("medsr")), "0.4"


def _choose(root: Place, series: str | int | None) -> Place:
    """The image itself: the folder, or the named one of a bioformats2raw collection."""
    ome, _, _ = _attributes(root)
    if "plate" in ome or "well" in ome:
        raise ScanError(
            f"{root.name}: expected one image, found a plate or well; name the folder of one field, such as A/1/0"
        )
    if "image-label" in ome:
        raise ScanError(f"{root.name}: expected an image, found labels; name the folder of the image they belong to")
    if "multiscales" in ome:
        if series not in (None, 0, "0"):
            raise ScanError(f"{root.name}: expected no series or 0, found {series!r}; this folder is one image")
        return root
    images = list[Place]()
    if "bioformats2raw.layout" in ome:  # its images are numbered from 0 on
        while "multiscales" in _attributes(root.child(str(len(images))))[0]:
            images.append(root.child(str(len(images))))
    if not images:
        kind = "a plain zarr array" if _is_array(root) else "a zarr group without image metadata"
        raise ScanError(
            f"{root.name}: expected an OME-Zarr image, found {kind}: axes and spacing are unknown; {CURE}, "
            "or pass the array through the Python API"
        )
    if series is None and len(images) == 1:
        return images[0]
    named = {str(i): p for i, p in enumerate(images)}
    for i, image in enumerate(images):
        name = _mapping((_attributes(image)[0]["multiscales"] or [{}])[0]).get("name")
        named.setdefault(str(name or i), image)
    if series is None or str(series) not in named:
        raise ScanError(
            f"{root.name}: expected the number or name of one of {len(images)} images, found {series!r}; "
            f"it holds {', '.join(named)}. Say which: series=0"
        )
    return named[str(series)]


def _is_array(root: Place) -> bool:
    return root.get(".zarray") is not None or _json(root, "zarr.json").get("node_type") == "array"


def _multiscale(root: Place, ome: dict[str, Any], version: str) -> tuple[dict[str, Any], list[str]]:
    """The first multiscale, checked against the specification, and what the check warned of."""
    from pydantic import ValidationError
    from yaozarrs import v04, v05

    given = ome["multiscales"]
    try:
        with python_warnings.catch_warnings(record=True) as heard:
            python_warnings.simplefilter("always")
            if version == "0.5":
                v05.Image.model_validate({"version": ome.get("version", "0.5"), "multiscales": given})
            else:
                v04.Image.model_validate({"multiscales": given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ScanError(
            f"{root.name}: expected OME-Zarr {version} metadata, found at {where}: {first['msg']}; {CURE}"
        ) from error
    notes = [str(w.message).split("\n")[0][:200] for w in heard]
    if len(given) > 1:
        notes.append(f"{len(given)} multiscales in one folder: the first is read")
    return dict(given[0]), notes


def _letter(axis: Mapping[str, Any]) -> str:
    by_type = {"time": "T", "channel": "C"}
    name = str(axis["name"])
    return by_type.get(str(axis.get("type")), name.upper() if name.lower() in tuple("tczyx") else "Q")


def _geometry(
    multiscale: Mapping[str, Any], dataset: Mapping[str, Any], letters: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Spacing and origin in micrometers of the spatial axes that have a unit."""
    scale, move = np.ones(len(letters)), np.zeros(len(letters))
    for step in [*dataset["coordinateTransformations"], *(multiscale.get("coordinateTransformations") or ())]:
        if step["type"] == "scale":
            factors = np.asarray(step["scale"], float)
            scale, move = scale * factors, move * factors
        elif step["type"] == "translation":
            move = move + np.asarray(step["translation"], float)
    spacing: dict[str, float] = {}
    origin: dict[str, float] = {}
    for letter, axis, step_um, start in zip(letters, multiscale["axes"], scale, move, strict=True):
        unit_um = micrometers(axis.get("unit"))
        found = stated_spacing_um(step_um, unit_um)
        if letter in "ZYX" and found is not None and unit_um is not None:
            spacing[letter.lower()] = found
            origin[letter.lower()] = float(start) * unit_um if math.isfinite(start) else 0.0
    return spacing, origin


def _open(root: Place, name: str) -> Any:
    import zarr

    try:
        return zarr.open_array(root.zarr_store(), path=name, mode="r")
    except MemoryError:
        raise
    except Exception as error:  # zarr and its codecs raise many types for a damaged array
        raise ScanError(
            f"{root.name}: expected an array {name!r}, found none that opens ({type(error).__name__}: {error}); "
            "copy the folder again"
        ) from error


def _missing_chunks(root: Place, name: str, array: Any) -> list[str]:
    """A warning for chunks (shards where there are) without a file: a half-copied folder reads as a fill value.

    Raises:
        ScanError: no chunk is there at all.
    """
    counts = [math.ceil(n / u) for n, u in zip(array.shape, array.shards or array.chunks, strict=True)]
    total = math.prod(counts)
    if total > (COUNT_CHUNKS_UP_TO if root.is_local else COUNT_OBJECTS_UP_TO):
        return []
    stored = set(root.keys(f"{name}/"))
    keys = (array.metadata.encode_chunk_key(index) for index in product(*map(range, counts)))
    missing = sum(f"{name}/{key}" not in stored for key in keys)
    if missing == total:
        raise ScanError(f"{root.name}: expected {total} files of samples, found none; copy the folder again")
    return [f"{missing} of {total} files of samples are not there; they read as {array.fill_value}"] if missing else []


def _block(array: Any) -> tuple[int, ...]:
    """Whole chunks, enough of them for about 512 x 512 samples of a plane."""
    block = [int(c) for c in array.chunks]
    for axis in (-2, -1):
        block[axis] *= max(1, BLOCK // block[axis])
    return tuple(min(b, int(n)) for b, n in zip(block, array.shape, strict=True))


@dataclass
class _LoadChunks:
    """Decodes one block of whole chunks; picklable, the array is opened where it is needed."""

    root: Place
    name: str
    block: tuple[int, ...]
    _array: list[Any] = field(default_factory=list, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": []}

    def __call__(self, index: tuple[int, ...]) -> NDArray[Any]:
        if not self._array:
            self._array.append(_open(self.root, self.name))
        array = self._array[0]
        region = tuple(
            slice(i * b, min((i + 1) * b, n)) for i, b, n in zip(index, self.block, array.shape, strict=True)
        )
        try:
            return np.asarray(array[region])
        except MemoryError:
            raise
        except Exception as error:  # zarr and its codecs raise many types for a damaged chunk
            raise ScanError(
                f"{self.root.name}: the chunk at {tuple(s.start for s in region)} cannot be decoded "
                f"({type(error).__name__}: {error}); copy the folder again"
            ) from error


def _window(ome: Mapping[str, Any]) -> tuple[float, float] | None:
    """The display window where all channels share one."""
    channels = _mapping(ome.get("omero")).get("channels")
    windows = set()
    for channel in channels if isinstance(channels, list) else ():
        shown = _mapping(_mapping(channel).get("window"))
        low, high = shown.get("start"), shown.get("end")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high:
            windows.add((float(low), float(high)))
    return windows.pop() if len(windows) == 1 else None


def _stored_intensity(
    ours: Mapping[str, Any], dtype: np.dtype[Any], window: tuple[float, float] | None
) -> Intensity | None:
    said = _mapping(ours.get("intensity"))
    try:
        bits, padding = said.get("bits"), said.get("padding")
        return Intensity(
            float(said["black"]),
            float(said["white"]),
            dtype,
            bits=None if bits is None else int(bits),
            slope=float(said.get("slope", 1.0)),
            intercept=float(said.get("intercept", 0.0)),
            units=str(said.get("units", "")),
            window=window,
            padding=None if padding is None else (float(padding[0]), float(padding[1])),
        )
    except (IndexError, KeyError, TypeError, ValueError):
        return None
