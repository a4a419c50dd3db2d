"""TIFF in: plain, OME, ImageJ, BigTIFF, a folder of planes; lazy, calibrated, color refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.io.lazy import Arranged
from medsr.io.planes import Opened, make_scan, numbered_planes, read_stack
from medsr.io.samples import refuse_type
from medsr.io.source import Source, natural_key
from medsr.io.tiff_metadata import arrange, read_header
from medsr.io.tiff_pages import MAGIC, listening, page_array, walk_pages
from medsr.scan import Intensity, Scan, ScanError

__all__ = ["accepts", "group", "plane_form", "read"]

SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".stk")
GRAY = {None, 0, 1, 32845, 34892, 51177}  # white or black is zero, linear raw, depth map; LogL apart
FORM_TAGS = frozenset({256, 257, 258, 262, 277, 339})
GRAY_CURE = "save one channel as gray (Fiji: Image > Type > 16-bit or 8-bit; or split the channels)"


def accepts(path: Path) -> bool:
    """Whether a file starts as a TIFF does, or a folder holds the numbered planes of one stack."""
    try:
        if path.is_dir():
            return bool(numbered_planes((p for p in path.iterdir() if not p.name.startswith(".")), SUFFIXES))
        with path.open("rb") as file:
            return file.read(4) in MAGIC
    except OSError:
        return False


def read(source: Source, series: str | int | None = None, *, intensity: Intensity | None = None) -> Scan:
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
        intensity: taken instead of a measured one.

    Raises:
        ScanError: damaged, cut off, color, 1-bit, complex, all-NaN, or several series and none named.
    """
    if len(source.files) > 1 and source.path.is_dir():
        return read_stack(source, partial(_open, series=series, keep=0), reader="tiff", intensity=intensity)
    return make_scan(_open(source.path, series=series), reader="tiff", intensity=intensity)


def _open(path: Path, *, series: str | int | None, keep: int | None = None) -> Opened:
    """One series of a file: its samples and what the header says; `keep` bytes of decoded blocks."""
    with _opened(path) as (tif, heard):
        chosen = _choose(path, tif, series)
        _refuse_color(path, chosen)
        header = read_header(tif, chosen)
        _refuse_cut_off(path, tif, chosen)
        data, missing = page_array(path, chosen, keep=keep)
        try:
            names, order, note = arrange(chosen.axes, tuple(chosen.shape))
        except ValueError as error:
            raise ScanError(f"{path}: {error}; save it as OME-TIFF with these axes") from error
        if missing:
            header.warnings.append(f"{missing} strips or tiles are not stored; they read as {chosen.keyframe.nodata}")
        header.warnings += [note] if note else []
        header.warnings += [f"tifffile: {line}" for line in heard]
        if order != tuple(range(len(order))) or len(order) != len(data.shape):
            data = Arranged(data, order)
    return Opened(path, data, names, header, _history(chosen, white_is_zero=header.white_is_zero))


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


def plane_form(path: Path) -> tuple[object, ...] | None:
    """Size and type of the samples of a file of one page, comparable; None where there are more or it is damaged."""
    try:
        pages = walk_pages(path) if accepts(path) else {}
    except (OSError, ScanError):
        return None
    # width, length, bits, photometric, samples, sample format
    return tuple(t for t in next(iter(pages.values())) if t[0] in FORM_TAGS) if len(pages) == 1 else None


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
