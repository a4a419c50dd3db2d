"""The DICOM reader: single files, multi-frame files and series; stored values, calibration and geometry as they are."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from medsr.io.dicom_decode import lazy_planes
from medsr.io.dicom_frames import Frame, locate_frames, stream_facts, syntax_name
from medsr.io.dicom_header import Header, Plane, read_header
from medsr.io.dicom_series import Arrangement, arrange, group, without_copies
from medsr.io.samples import given_intensity, measured_intensity, sampled_channels, uneven_channels
from medsr.io.source import NoImageError, Reader, Source
from medsr.scan import Axis, Grid, Intensity, LazyArray, Scan, ScanError

__all__ = ["DicomReader", "accepts", "group", "read"]

VALUE_TYPES = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT OB OF OW PN SH SL SQ SS ST TM UI UL UN US UT".split())


def accepts(path: Path) -> bool:
    """Whether a file looks like DICOM: the preamble, or a first element that an old file without one begins with.

    Reads 256 bytes and never raises.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(256)
    except OSError:
        return False
    return head[128:132] == b"DICM" or _bare_data_set(head)


def _bare_data_set(head: bytes) -> bool:
    """A data set without preamble: groups 2 or 8 first, with a value type, or implicit with a second element."""
    if len(head) < 16:
        return False
    for order in "<>":
        tag, number, vr = struct.unpack_from(order + "HH2s", head)
        if tag in (2, 8) and number <= 0x0200 and vr in VALUE_TYPES:
            return True
    tag, number, length = struct.unpack_from("<HHI", head)
    if tag not in (2, 8) or number > 0x0200 or length > len(head) - 16 or length % 2:
        return False
    following, later, _ = struct.unpack_from("<HHI", head, 8 + length)
    return (following, later) > (tag, number) and following in (2, 8, 0x10)


def read(source: Source, series: str | int | None = None, *, intensity: Intensity | None = None) -> Scan:
    """Read one DICOM scan, lazily: axes y, x for a plane, z, y, x for a volume, with t or c before where frames share
    positions. Values are the stored ones; what the header says of them is in `Intensity`, unless one is given. Exact
    copies of a plane are left out with a warning.

    Raises:
        NoImageError: an object that has no pixels by its nature (report, plan, index, waveform).
        ScanError: color, a truncated or damaged file, planes that form no even volume, a calibration that varies from
            plane to plane, a given intensity of another type, or a `series` that does not exist.
    """
    try:
        return _read(source, series, intensity)
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(
            f"{source.path}: expected a DICOM scan, found one that cannot be read ({type(error).__name__}); "
            "get a whole copy"
        ) from error


DicomReader = Reader(name="dicom", suffixes=(".dcm", ".dicom", ".dic", ".ima"), accepts=accepts, read=read)


def _read(source: Source, series: str | int | None, given: Intensity | None) -> Scan:
    if series not in (None, 0):
        raise ScanError(
            f"{source.path}: expected no series for a DICOM scan, found {series!r}; "
            "name the file or the folder of the series instead"
        )
    headers, copies = _headers(source)
    planes = [h.planes[0] for h in headers] if len(headers) > 1 else list(headers[0].planes)
    first = headers[0]
    files = [h.path for h in headers]
    arrangement = arrange(planes, name=source.path, files=files) if len(planes) > 1 or first.frames == 1 else None
    if len(headers) > 1 and (arrangement is None or arrangement.repeats > 1):
        found = "files without positions"
        if arrangement is not None:
            shared = [files[i].name for i in arrangement.order[:: arrangement.depths]]
            found = f"{arrangement.repeats} files at each position ({', '.join(shared[:5])} at the first)"
        raise ScanError(f"{source.path}: expected files at different positions, found {found}; read them one by one")
    frames = [frame for h in headers for frame in _frames(h)]
    if arrangement and len(arrangement.order) == len(frames):
        frames = [frames[i] for i in arrangement.order]
        planes = [planes[i] for i in arrangement.order]
        first = headers[arrangement.order[0]] if len(headers) > 1 else first
    else:
        arrangement = None
    slope, intercept = _calibration(source, planes)
    lead, grid = _geometry(first, arrangement, len(frames), timed=len({p.time for p in planes}) > 1)
    data = lazy_planes(frames, lead)
    facts = stream_facts(frames[0])
    if given is None:
        padding, remarks = _padding(headers)
        line = replace(first, padding=padding)
        intensity, more = _intensity(line, data, grid.axes, slope, intercept, precision=facts.precision if facts else 0)
        remarks += more
    else:
        intensity, remarks = given_intensity(source.path, given, data.dtype), []
    warnings = [*copies, *(w for h in headers for w in h.warnings)]
    warnings += [*(arrangement.warnings if arrangement else ()), *_unknown_step(grid), *remarks]
    warnings += _excess(first)
    return Scan(
        data=data,
        grid=grid,
        intensity=intensity,
        history=_history(first, len(headers), grid, arrangement, intensity),
        warnings=tuple(dict.fromkeys(warnings)),
        reader="dicom",
    )


def _headers(source: Source) -> tuple[list[Header], list[str]]:
    """Headers of the files, all of one series and alike, exact copies left out, and the warning for these."""
    headers = [read_header(path) for path in source.files or (source.path,)]
    for header in headers:
        if header.imageless:
            raise NoImageError(f"{header.path}: {header.problem}")
        if header.problem:
            raise ScanError(f"{header.path}: {header.problem}")
    if len(headers) < 2:
        return headers, []
    _check_alike(source, headers)
    kept = without_copies(headers)
    left_out = len(headers) - len(kept)
    return kept, [f"{left_out} of {len(headers)} files are exact copies of others and left out"] if left_out else []


def _padding(headers: Sequence[Header]) -> tuple[tuple[float, float] | None, list[str]]:
    """The padding of all files, or none where they differ, with the warning for that."""
    first, *others = {h.padding for h in headers}
    if not others:
        return first, []
    text = ", ".join(sorted("{:g} to {:g}".format(*p) if p else "none" for p in (first, *others))[:4])
    return None, [f"the pixel padding differs from file to file ({text}) and is not used"]


def _frames(header: Header) -> tuple[Frame, ...]:
    return locate_frames(header.path, header.layout, header.element, frames=header.frames)


def _check_alike(source: Source, headers: Sequence[Header]) -> None:
    first = headers[0]
    for header in headers:
        if header.frames > 1:
            raise ScanError(
                f"{header.path}: expected one frame a file in a series, found {header.frames}; read it alone"
            )
        same = replace(
            header.layout,
            syntax=first.layout.syntax,
            little=first.layout.little,
            encapsulated=first.layout.encapsulated,
            swapped=first.layout.swapped,
        )
        differs = [
            f"{text} {a} and {b}"
            for text, a, b in (
                ("series", "one", "one" if header.series == first.series else "another"),
                ("rows", first.layout.rows, header.layout.rows),
                ("columns", first.layout.columns, header.layout.columns),
                ("photometric", first.photometric, header.photometric),
                ("bits", first.layout.stored, header.layout.stored),
                ("spacing", first.spacing_um, header.spacing_um),
                ("units", first.units or "none", header.units or "none"),
            )
            if a != b
        ]
        if differs or same != first.layout:
            raise ScanError(
                f"{source.path}: expected files of one series that are alike, found "
                f"{', '.join(differs) or 'samples of another kind'}; read them one by one"
            )


def _calibration(source: Source, planes: Sequence[Plane]) -> tuple[float, float]:
    slopes, intercepts = ([getattr(p, name) for p in planes] for name in ("slope", "intercept"))
    for name, values in (("slope", slopes), ("intercept", intercepts)):
        low, middle, high = min(values), float(np.median(values)), max(values)
        if high - low > 1e-6 * max(abs(low), abs(high)):
            raise ScanError(
                f"{source.path}: expected one rescale {name} for all planes, found {low:.6g} to {high:.6g} "
                f"(median {middle:.6g}), so that stored values mean something else in each plane; "
                "read the planes one by one, or convert the scan to calibrated values with a single slope"
            )
    return slopes[0], intercepts[0]


def _geometry(
    header: Header, arrangement: Arrangement | None, frames: int, *, timed: bool
) -> tuple[tuple[int, ...], Grid]:
    """Lengths of the axes before y and x, and the grid."""
    y, x = header.spacing_um or (None, None)
    lead: list[tuple[str, int, float | None, float]] = []
    if arrangement is None:
        if frames > 1:
            step = header.step_um if header.frame_axis == "z" else None
            lead.append((header.frame_axis, frames, step, 0.0))
        origin_y = origin_x = 0.0
    else:
        origin_z, origin_y, origin_x = arrangement.origin_um
        if arrangement.repeats > 1:
            lead.append(("t" if timed or arrangement.depths == 1 else "c", arrangement.repeats, None, 0.0))
        if arrangement.depths > 1:
            lead.append(("z", arrangement.depths, arrangement.step_um, origin_z))
    axes = cast("tuple[Axis, ...]", (*(a for a, *_ in lead), "y", "x"))
    origin = (*(o for *_, o in lead), origin_y if y else 0.0, origin_x if x else 0.0)
    return tuple(n for _, n, *_ in lead), Grid(axes, (*(s for *_, s, _ in lead), y, x), origin)


def _intensity(
    header: Header, data: LazyArray, axes: Sequence[str], slope: float, intercept: float, *, precision: int
) -> tuple[Intensity, list[str]]:
    """The line from the file where it says it (fewer bits than the container, or 8), else from robust percentiles."""
    layout, remarks, bits = header.layout, [], header.layout.stored
    if not layout.floating and bits < precision < layout.allocated and "JPEG 2000" in syntax_name(layout.syntax):
        remarks.append(f"the stream holds {precision} bits where the header says {bits}; the stream is believed")
        bits = precision
    if layout.floating or (bits == layout.allocated and bits > 8):
        line, uneven = measured_intensity(header.path, data, axes=axes, padding=header.padding)
        remarks += uneven
    else:
        low = -(2 ** (bits - 1)) if layout.signed else 0
        line = Intensity(low, low + 2**bits - 1, data.dtype, padding=header.padding)
        if "c" in axes:
            remarks += uneven_channels(sampled_channels(data, axes), header.padding)
    if line.padding and line.padding[0] <= line.black and line.padding[1] >= line.white:
        remarks.append("the pixel padding, {:g} to {:g}, covers all values and is not used".format(*line.padding))
        line = replace(line, padding=None)
    if header.photometric == "MONOCHROME1":
        line = replace(line, black=line.white, white=line.black)
    window = None
    if header.window:
        at = sorted((v - intercept) / slope for v in header.window)
        window = (at[0], at[1])
    calibrated = not header.lut
    return replace(
        line,
        bits=None if layout.floating else bits,
        slope=slope if calibrated else 1.0,
        intercept=intercept if calibrated else 0.0,
        units=header.units if calibrated else "",
        window=window,
    ), remarks


def _unknown_step(grid: Grid) -> list[str]:
    if "z" in grid.axes and grid.spacing_of("z") is None:
        return ["the distance of the planes is unknown: the header has no positions"]
    return []


def _excess(header: Header) -> list[str]:
    layout = header.layout
    if header.element.length is None or layout.encapsulated:
        return []
    needed = -(-layout.rows * layout.columns * layout.allocated * header.frames // 8)
    extra = header.element.length - needed - needed % 2
    return [f"{extra} bytes after the last frame are left out"] if extra > 0 else []


def _history(
    header: Header, files: int, grid: Grid, arrangement: Arrangement | None, intensity: Intensity
) -> tuple[str, ...]:
    layout = header.layout
    modality = header.modality or "no modality"
    lines = [
        f"read by the DICOM reader: {modality}, {header.photometric or 'MONOCHROME2'}, "
        f"{layout.stored} of {layout.allocated} bits, {syntax_name(layout.syntax)}",
        *header.notes,
    ]
    step = grid.spacing_of("z")
    if arrangement and arrangement.depths > 1 and step:
        what = f"{files} files" if files > 1 else f"{arrangement.depths} planes"
        lines.append(f"{what} in the order of their positions along the normal, step {step / 1000:.6g} mm")
    elif step:
        lines.append(f"step {step / 1000:.6g} mm from SpacingBetweenSlices")
    if (intensity.slope, intensity.intercept) != (1.0, 0.0) or intensity.units:
        units = f" {intensity.units}" if intensity.units else ""
        lines.append(f"calibration {intensity.slope:g} * value {intensity.intercept:+g}{units} recorded, not applied")
    if intensity.padding:
        lines.append("pixel padding {:g} to {:g}: not measured".format(*intensity.padding))
    return tuple(lines)
