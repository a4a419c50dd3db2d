"""TIFF in: plain, OME, ImageJ, BigTIFF, a folder of planes; lazy, calibrated, color refused."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medsr.io.lazy import Arranged, BlockArray
from medsr.io.samples import measured_intensity, refuse_type, unknown_spacing
from medsr.io.source import Source, natural_key
from medsr.io.tiff_metadata import Header, arrange, read_header
from medsr.io.tiff_pages import MAGIC, listening, page_array, walk_pages
from medsr.scan import Axis, Grid, Intensity, LazyArray, Scan, ScanError, sample_values

__all__ = ["accepts", "group", "numbered_planes", "plane_sets", "read"]

_log = logging.getLogger(__name__)

SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".stk")
GRAY = {None, 0, 1, 32845, 34892, 51177}  # white or black is zero, linear raw, depth map; LogL apart
PLANE_NAME = re.compile(r"((?:|.*[^a-z])(?:z|slice|plane|section|sec|layer)[ _\-=.]*)(\d+)(\D*)", re.IGNORECASE)
GRAY_CURE = "save one channel as gray (Fiji: Image > Type > 16-bit or 8-bit; or split the channels)"


def accepts(path: Path) -> bool:
    """Whether a file starts as a TIFF does, or a folder holds the numbered planes of one stack."""
    try:
        if path.is_dir():
            return bool(numbered_planes([p for p in path.iterdir() if not p.name.startswith(".")]))
        with path.open("rb") as file:
            return file.read(4) in MAGIC
    except OSError:
        return False


def read(source: Source, series: str | int | None = None) -> Scan:
    """A TIFF file, or the numbered planes of a folder, as a lazy scan.

    Axes come as t, c, z, y, x whatever their order in the file; those of length 1 but y and x are left out. Spacing
    comes from OME-XML or ImageJ in their units, from the resolution tags only where these are in inch or cm and no
    placeholder. The unit of the values (a height map in "um") comes from an OME MapAnnotation of the namespace
    "medsr/intensity" with the key "units" (also "slope", "intercept"), from ImageJ's value unit and straight-line
    calibration, or from the key "units" of tifffile's JSON description. Packed 10, 12 or 14 bits and OME
    SignificantBits fix the intensity line; else it is the robust one. White-is-zero swaps black and white.

    Args:
        source: one file, or the planes of one stack.
        series: name or number of the series where the file holds several.

    Raises:
        ScanError: damaged, cut off, color, 1-bit, complex, all-NaN, or several series and none named.
    """
    if len(source.files) > 1 and source.path.is_dir():
        return _read_planes(source, series)
    path = source.path
    with _opened(path) as (tif, heard):
        chosen = _choose(path, tif, series)
        _refuse_color(path, chosen)
        header = read_header(tif, chosen)
        _refuse_cut_off(path, tif, chosen)
        data, missing = page_array(path, chosen)
        try:
            names, order, note = arrange(chosen.axes, tuple(chosen.shape))
        except ValueError as error:
            raise ScanError(f"{path}: {error}; save it as OME-TIFF with these axes") from error
        if missing:
            header.warnings.append(f"{missing} strips or tiles are not stored; they read as {chosen.keyframe.nodata}")
        page = chosen.keyframe
        header.warnings += [note] if note else []
        header.warnings += [f"tifffile: {line}" for line in heard]
        arranged: LazyArray = (
            data if order == tuple(range(len(order))) == tuple(range(len(data.shape))) else Arranged(data, order)
        )
        white_is_zero = page.photometric == 0
        nodata = page.nodata if 42113 in page.tags else None
    said = _history(chosen, white_is_zero=white_is_zero)
    return _scan(path, arranged, names, header, history=said, white_is_zero=white_is_zero, nodata=nodata)


def _scan(
    path: Path, data: LazyArray, names: str, header: Header, *, history: str, white_is_zero: bool, nodata: float | None
) -> Scan:
    axes = cast("tuple[Axis, ...]", tuple(names))
    grid = Grid(axes, tuple(header.spacing_um.get(axis) for axis in axes))
    header.warnings += unknown_spacing("".join(a for a in names if a not in header.explained), header.spacing_um)
    intensity = _intensity(path, data, header, nodata)
    if white_is_zero:
        intensity = replace(intensity, black=intensity.white, white=intensity.black)
    return Scan(data, grid, intensity, (history,), tuple(dict.fromkeys(header.warnings)), "tiff")


def _intensity(path: Path, data: LazyArray, header: Header, nodata: float | None) -> Intensity:
    said: dict[str, Any] = {
        "slope": header.slope, "intercept": header.intercept, "units": header.units, "window": header.window
    }  # fmt: skip
    if header.bits is not None:
        dtype, values = np.dtype(data.dtype), sample_values(data)
        low, high = (-(1 << header.bits - 1), (1 << header.bits - 1) - 1) if dtype.kind == "i" else (
            0, (1 << header.bits) - 1
        )  # fmt: skip
        if low <= values.min() and values.max() <= high:
            return Intensity(low, high, dtype, bits=header.bits, **said)
        header.warnings.append(f"values reach {values.max()}, beyond the {header.bits} bits the file says; not used")
    return measured_intensity(path, data, nodata=nodata, **said)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """An open tifffile.TiffFile and what tifffile complained about, its errors turned into ScanError."""
    import tifffile

    try:
        walk_pages(path)
        with listening() as heard, tifffile.TiffFile(path) as tif:
            yield tif, heard
    except (ScanError, MemoryError):
        raise
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from error
    except Exception as error:  # a damaged header raises whatever it meets inside tifffile
        raise ScanError(
            f"{path}: expected a TIFF, found a damaged header ({type(error).__name__}: {error}); "
            "copy it again from where it was made, or save it again"
        ) from error


def _choose(path: Path, tif: Any, series: str | int | None) -> Any:
    listed = [s for s in tif.series if s.keyframe.dtype is not None or len(tif.series) == 1]
    real = [s for s in listed if _is_image(s)] or listed
    if not real:
        raise ScanError(f"{path}: expected an image, found none of a type that can be read; save it as 16-bit TIFF")
    lines = "; ".join(
        f"{i} {s.name!r} {s.axes} {' x '.join(map(str, s.shape))} {s.dtype}" for i, s in enumerate(real[:20])
    )
    if series is None:
        if len(real) == 1:
            return real[0]
        raise ScanError(
            f"{path}: expected one series, found {len(real)}: {lines}. Say which by number or name: series=0"
        )
    matches = [s for i, s in enumerate(real) if series in (i, s.name)]
    if not matches and isinstance(series, str) and series.isdigit():
        matches = real[int(series) : int(series) + 1]
    if len(matches) != 1:
        raise ScanError(f"{path}: expected the number or name of one series, found {series!r}; it holds {lines}")
    return matches[0]


def _is_image(series: Any) -> bool:
    """False for thumbnails, masks, labels and other pictures beside the image."""
    page = series.keyframe
    if len(page.treeindex) > 1 or int(page.subfiletype) & 0b101:
        return False
    return str(series.name).casefold() not in {"label", "macro", "thumbnail", "overview", "map"}


def _refuse_color(path: Path, series: Any) -> None:
    page = series.keyframe
    photometric = None if page.photometric is None else int(page.photometric)
    if page.dtype is None:
        raise ScanError(
            f"{path}: expected gray of 2 to 32 bits or floats, found {page.bitspersample} bits of sample format "
            f"{page.sampleformat}; save it as 16-bit TIFF"
        )
    refuse_type(path, np.dtype(bool) if page.bitspersample == 1 else page.dtype)
    if photometric == 3 and _gray_ramp(page.colormap):
        return
    if photometric not in GRAY:
        kind = {2: "RGB color", 3: "a color palette", 5: "CMYK color", 6: "YCbCr color", 32803: "a color mosaic"}
        raise ScanError(
            f"{path}: expected gray, found {kind.get(photometric or 0, str(page.photometric))}; {GRAY_CURE}"
        )
    samples = int(page.samplesperpixel)
    if samples > 1 and ((samples in (3, 4) and not page.extrasamples) or any(int(e) for e in page.extrasamples)):
        raise ScanError(f"{path}: expected gray, found {samples} samples a pixel (color or alpha); {GRAY_CURE}")


def _gray_ramp(colormap: NDArray[Any] | None) -> bool:
    if colormap is None or len(colormap) != 3:
        return False
    red, green, blue = (np.asarray(c, np.int64) for c in colormap)
    return bool((red == green).all() and (red == blue).all() and (np.diff(red) > 0).all())


def _refuse_cut_off(path: Path, tif: Any, series: Any) -> None:
    """ImageJ says how many planes there are; fewer mean that the file was cut off."""
    meta = (tif.imagej_metadata if tif.is_imagej else None) or {}
    sizes = [meta.get(key, 1) for key in ("frames", "slices", "channels")]
    said = int(np.prod([n for n in sizes if isinstance(n, int)]))
    planes = int(np.prod(series.shape)) // max(1, int(series.keyframe.size))
    if series.kind != "ome" and said > planes and int(series.keyframe.samplesperpixel) == 1:
        raise ScanError(
            f"{path}: truncated: expected {said} planes as ImageJ wrote, found {planes}; "
            "copy it again from where it was made"
        )


def _history(series: Any, *, white_is_zero: bool) -> str:
    page = series.keyframe
    packing = getattr(page.compression, "name", str(page.compression)).lower()
    zero = ", white is zero" if white_is_zero else ""
    return f"read by the TIFF reader: {series.kind}, {page.bitspersample}-bit {page.dtype}, compression {packing}{zero}"


@dataclass(frozen=True)
class _LoadPlane:
    planes: tuple[LazyArray, ...]

    def __call__(self, index: tuple[int, ...]) -> NDArray[Any]:
        return np.asarray(self.planes[index[0]][...])[None]


def numbered_planes(files: Iterable[Path]) -> tuple[Path, ...]:
    """The TIFF files in the order of their number, where all their names differ only in one running number without
    gaps and there are at least two; else nothing."""
    found = sorted((f for f in files if f.suffix.lower() in SUFFIXES), key=natural_key)
    parts = [re.split(r"(\d+)", f.name) for f in found]
    if len(found) < 2 or len({len(p) for p in parts}) != 1:
        return ()
    differing = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return ()
    numbers = [int(p[differing[0]]) for p in parts]
    return tuple(found) if numbers == list(range(numbers[0], numbers[0] + len(numbers))) else ()


def plane_sets(files: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Sets of TIFF files of one page each whose names say that a running number without gaps counts planes.

    "z001.tif", "cell3_slice-7.tif", "Section 12.tif": the number after z, slice, plane, section, sec or layer. Names
    with another number only ("img_001.tif") may as well be separate images and make no set.
    """
    sets: dict[tuple[str, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in files:
        match = PLANE_NAME.fullmatch(path.name)
        if match and path.suffix.lower() in SUFFIXES:
            sets[match[1].casefold(), match[3].casefold()].append((int(match[2]), path))
    found = []
    for members in sets.values():
        numbers, paths = zip(*sorted(members), strict=True)
        if len(paths) < 2 or not all(map(_is_single_page, (paths[0], paths[-1]))):
            continue
        if numbers == tuple(range(numbers[0], numbers[0] + len(numbers))):
            found.append(paths)
        else:
            _log.warning(
                "%s ... %s: %d files for the planes %d to %d; taken as separate images",
                paths[0], paths[-1].name, len(paths), numbers[0], numbers[-1],
            )  # fmt: skip
    return found


def _is_single_page(path: Path) -> bool:
    try:
        return accepts(path) and len(walk_pages(path)) == 1
    except (OSError, ScanError):
        return False


def _read_planes(source: Source, series: str | int | None) -> Scan:
    files = sorted(source.files, key=natural_key)
    planes: list[LazyArray] = []
    first: tuple[Header, bool, float | None, tuple[int, ...], np.dtype[Any]] | None = None
    for path in files:
        with _opened(path) as (tif, _):
            chosen = _choose(path, tif, series)
            _refuse_color(path, chosen)
            if len(chosen.pages) != 1 or len(chosen.shape) != 2:
                raise ScanError(
                    f"{path}: expected one plane in each file of the stack {source.path}, found {chosen.axes} of "
                    f"{' x '.join(map(str, chosen.shape))}; read the files one by one"
                )
            data, _ = page_array(path, chosen, keep=0)
            page = chosen.keyframe
            white_is_zero, nodata = page.photometric == 0, page.nodata if 42113 in page.tags else None
            own = (read_header(tif, chosen), white_is_zero, nodata, tuple(data.shape), np.dtype(data.dtype))
        first = first or own
        if (own[1], *own[3:], own[0].bits) != (first[1], *first[3:], first[0].bits):
            raise ScanError(
                f"{path}: expected planes of {first[3]} {first[4]} as in {files[0].name}, found {own[3]} {own[4]}; "
                "take it out of the folder or read the files one by one"
            )
        planes.append(data)
    if first is None:
        raise ScanError(f"{source.path}: expected the planes of a stack, found no TIFF; name a folder of TIFF files")
    header, white_is_zero, nodata, shape, dtype = first
    header.spacing_um.pop("z", None)
    header.window = None
    stack = BlockArray((len(planes), *shape), dtype, block=(1, *shape), load=_LoadPlane(tuple(planes)))
    said = f"{_history(chosen, white_is_zero=white_is_zero)}; {len(planes)} files, one a plane"
    return _scan(source.path, stack, "zyx", header, history=said, white_is_zero=white_is_zero, nodata=nodata)


def group(files: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Files of one multi-file OME-TIFF set together (the one that names the others first); each other file alone."""
    rest = sorted(files, key=natural_key)
    sets: dict[frozenset[str], list[Path]] = defaultdict(list)
    for path in rest:
        named = _named_files(path) if ".ome." in path.name.lower() else frozenset()
        together = {n for n in named if (path.parent / n).is_file()}
        sets[frozenset(str(path.parent / n) for n in together | {path.name})].append(path)
    return [tuple(members) for members in sets.values()]


def _named_files(path: Path) -> frozenset[str]:
    """Names of the files an OME-TIFF says it is spread over; empty where it is whole or cannot be read."""
    from xml.etree import ElementTree

    try:
        with _opened(path) as (tif, _):
            root = ElementTree.fromstring(tif.ome_metadata or "<none/>")  # noqa: S314 - no entities are fetched
    except ScanError:
        return frozenset()
    own = {u.get("FileName", "") for u in root.iter() if str(u.tag).endswith("UUID")} - {""}
    companion = {u.get("MetadataFile", "") for u in root.iter() if str(u.tag).endswith("BinaryOnly")} - {""}
    return frozenset(Path(n).name for n in own | companion)
