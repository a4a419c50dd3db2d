"""What the headers of a TIFF say beside the samples: spacing, unit of the values, significant bits, axes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import numpy as np

from medsr.io.units import INCH_UM, micrometers, print_spacing_um, stated_spacing_um

__all__ = ["CALIBRATION_NAMESPACE", "Header", "arrange", "channel_notes", "read_header"]

CALIBRATION_NAMESPACE = "medsr/intensity"
_TAG_UNITS_UM = {2: INCH_UM, 3: 10_000.0}
_NO_DATA = 42113  # GDAL_NODATA: a number as text


@dataclass
class Header:
    """What a file says about one of its series.

    Attributes:
        spacing_um: micrometers along "z", "y", "x" where the file says so.
        bits: significant bits where the file says so; None: those of the dtype.
        slope, intercept, units: quantity = slope * stored + intercept, in units.
        window: stored values proposed for display.
        padding: closed range of stored values that mean "not measured".
        white_is_zero: whether the highest value is black.
        warnings: what a user should know.
        notes: what the history should keep (names of channels, time increment).
        explained: axes of unknown spacing that a warning speaks of.
    """

    spacing_um: dict[str, float] = field(default_factory=dict)
    bits: int | None = None
    slope: float = 1.0
    intercept: float = 0.0
    units: str = ""
    window: tuple[float, float] | None = None
    padding: tuple[float, float] | None = None
    white_is_zero: bool = False
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    explained: set[str] = field(default_factory=set)

    def set_spacing(self, axis: str, value: object, unit: str | None) -> None:
        """Keep a spacing the file states; warn where it states one that cannot be."""
        spacing = stated_spacing_um(value, micrometers(unit))
        if spacing is not None:
            self.spacing_um[axis] = spacing
        elif micrometers(unit) is not None:
            self.warnings.append(f"spacing along {axis}: {value!r} {unit} in the file is not plausible; unknown")
            self.explained.add(axis)


def read_header(tif: Any, series: Any) -> Header:
    """The header of one series of an open tifffile.TiffFile: OME-XML, else ImageJ, else the resolution tags."""
    header = Header()
    page = series.keyframe
    header.white_is_zero = page.photometric == 0
    header.padding = _padding(page)
    stored_bits = 8 * page.dtype.itemsize
    if isinstance(page.bitspersample, int) and page.bitspersample < stored_bits and page.dtype.kind in "iu":
        header.bits = page.bitspersample
    if series.kind == "ome":
        _read_ome(tif.ome_metadata, tif.series, series, header)
    elif tif.is_imagej:
        _read_imagej(tif.imagej_metadata or {}, page, series, header)
    else:
        _read_tags(page, header)
        described = tif.shaped_metadata[0] if series.kind == "shaped" and tif.shaped_metadata else {}
        header.units = str(described.get("units", "")) if isinstance(described, Mapping) else ""
    return header


def _padding(page: Any) -> tuple[float, float] | None:
    """The value GDAL calls no data, as the samples hold it; None where there is none or the type cannot hold it."""
    tag = page.tags.get(_NO_DATA)
    value = None if tag is None else _number(str(tag.value).strip(" \0"))
    if value is None:
        return None
    if page.dtype.kind == "f":
        value = float(page.dtype.type(value)) if abs(value) <= float(np.finfo(page.dtype).max) else None
    elif page.dtype.kind in "iu":
        limits = np.iinfo(page.dtype)
        value = value if limits.min <= value <= limits.max and value == int(value) else None
    return None if value is None else (value, value)


def channel_notes(names: Iterable[object], increment: object = None, unit: str = "s") -> list[str]:
    """Lines for the history: the names of the channels and the time between frames, technical characters only."""
    plain = [re.sub(r"[^\w .,/+()-]", "", str(name or ""))[:40].strip() for name in names]
    step = _number(increment)
    return [
        *([f"channels: {', '.join(n or '?' for n in plain)}"] if any(plain) else []),
        *([f"time increment {step:g} {re.sub(r'[^a-zA-Zµ]', '', unit)[:12]}"] if step and step > 0 else []),
    ]


def _read_tags(page: Any, header: Header) -> None:
    unit_um = _TAG_UNITS_UM.get(int(page.resolutionunit))
    samples = dict(zip("xy", map(float, page.resolution), strict=True))
    _read_print(samples, unit_um if 282 in page.tags else None, header)


def _read_print(samples: Mapping[str, float], unit_um: float | None, header: Header) -> None:
    """Spacing from a print resolution, in samples per unit."""
    found = {axis: print_spacing_um(samples[axis], unit_um) for axis in "yx"}
    header.spacing_um |= {axis: spacing for axis, spacing in found.items() if spacing is not None}
    unknown = [axis for axis, spacing in found.items() if spacing is None]
    if unknown and unit_um is not None:
        values = " and ".join(dict.fromkeys(f"{samples[axis]:.6g}" for axis in unknown))
        per = "inch" if unit_um > 20_000 else "cm"
        header.warnings.append(
            f"spacing along {' and '.join(unknown)}: {values} samples per {per} in the file are a resolution for "
            "print or screen, a placeholder of its writer, or not plausible; unknown"
        )
        header.explained |= set(unknown)


def _read_imagej(meta: Mapping[str, Any], page: Any, series: Any, header: Header) -> None:
    units = {"x": meta.get("unit"), "y": meta.get("yunit", meta.get("unit")), "z": meta.get("zunit", meta.get("unit"))}
    samples = dict(zip("xy", map(float, page.resolution), strict=True))
    uncalibrated = samples["x"] == samples["y"] == 1.0
    if uncalibrated and micrometers(units["x"]) is not None:
        header.warnings.append(
            f"spacing along y and x: exactly 1 {units['x']} in the file is a placeholder of its writer; unknown"
        )
        header.explained |= {"y", "x"}
    if units["x"] is None and not uncalibrated:
        _read_tags(page, header)
    if micrometers(_text(units["x"])) == INCH_UM and not uncalibrated:
        # ImageJ takes over the print resolution of the file it opened and states it in inches.
        _read_print(samples, INCH_UM, header)
        units["x"] = units["y"] = None
    for axis in "yx":
        if not uncalibrated and samples[axis] > 0:
            header.set_spacing(axis, 1.0 / samples[axis], _text(units[axis]))
    if "Z" in series.axes and "spacing" in meta:
        depth = meta["spacing"]
        header.set_spacing("z", abs(depth) if isinstance(depth, (int, float)) else depth, _text(units["z"]))
    if meta.get("cf") == 0 and _number(meta.get("c0")) is not None and _number(meta.get("c1")):
        header.intercept, header.slope = float(meta["c0"]), float(meta["c1"])
        header.units = str(meta.get("vunit", ""))
    header.notes += channel_notes((), meta.get("finterval") if "T" in series.axes else None)
    low, high = _number(meta.get("min")), _number(meta.get("max"))
    if low is not None and high is not None and low < high and "C" not in series.axes:
        header.window = (low, high)


def _read_ome(xml: str, all_series: Iterable[Any], series: Any, header: Header) -> None:
    root = ElementTree.fromstring(xml)  # noqa: S314 - expat refuses entity bombs and fetches nothing
    images = [i for i in root.iter() if _tag(i) == "Image" and any(_tag(p) == "Pixels" for p in i)]
    listed = [s for s in all_series if s.kind == "ome"]
    at = next(i for i, s in enumerate(listed) if s is series)
    if len(images) != len(listed):
        images = [i for i in images if i.get("Name") == series.name]
        at = 0
        if len(images) != 1:
            header.warnings.append("the OME metadata of the series are ambiguous; spacing unknown")
            return
    image = images[at]
    pixels = next(p for p in image if _tag(p) == "Pixels")
    for axis in "zyx":
        value = pixels.get(f"PhysicalSize{axis.upper()}")
        if value is not None and (axis != "z" or int(pixels.get("SizeZ", "1")) > 1):
            header.set_spacing(axis, value, pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm"))
    if header.spacing_um.get("y") == header.spacing_um.get("x") == 1.0:
        header.warnings.append("spacing along y and x is exactly 1 um: a placeholder? compare with the microscope")
    names = [c.get("Name") for c in pixels if _tag(c) == "Channel"]
    header.notes += channel_notes(names, pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    significant = pixels.get("SignificantBits", "")
    if significant.isdigit() and 0 < int(significant) < 8 * series.dtype.itemsize and series.dtype.kind in "iu":
        header.bits = int(significant)
    _read_calibration(root, image, header)


def _read_calibration(root: ElementTree.Element, image: ElementTree.Element, header: Header) -> None:
    """A MapAnnotation of our namespace: K="units" (and "slope", "intercept") of the stored values."""
    wanted = {ref.get("ID") for ref in image.iter() if _tag(ref) == "AnnotationRef"}
    for note in root.iter():
        if _tag(note) != "MapAnnotation" or not note.get("Namespace", "").endswith(CALIBRATION_NAMESPACE):
            continue
        if wanted and note.get("ID") not in wanted:
            continue
        pairs = {m.get("K"): (m.text or "").strip() for m in note.iter() if _tag(m) == "M"}
        header.units = pairs.get("units", header.units)
        header.slope = _number(pairs.get("slope")) or header.slope
        intercept = _number(pairs.get("intercept"))
        header.intercept = header.intercept if intercept is None else intercept


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def arrange(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], str]:
    """Names in the order t, c, z, y, x, for each the axis of the file, and a warning ("" for none).

    Axes of length 1 other than y and x are left out. One axis of planes without a name we know (I, Q, R, ...) is
    taken as z, with a warning; wavelengths (E) and samples of one pixel (S) are channels.

    Raises:
        ValueError: y or x is missing, or more axes than t, c, z, y, x can name.
    """
    found: dict[str, int] = {}
    unnamed: list[int] = []
    for i, (letter, size) in enumerate(zip(axes, shape, strict=True)):
        name = {"E": "c", "S": "c"}.get(letter, letter.lower())
        if size == 1 and name not in "yx":
            continue
        if name in "tczyx" and name not in found:
            found[name] = i
        else:
            unnamed.append(i)
    warning = ""
    if len(unnamed) == 1 and "z" not in found:
        found["z"] = unnamed[0]
        warning = f"the file does not name the axis of its {shape[unnamed[0]]} planes ({axes}): taken as z"
    elif unnamed or "y" not in found or "x" not in found:
        raise ValueError(f"expected axes among t, c, z, y, x, found {axes} of {' x '.join(map(str, shape))}")
    names = "".join(n for n in "tczyx" if n in found)
    return names, tuple(found[n] for n in names), warning
