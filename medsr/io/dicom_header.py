"""The header of one DICOM file as plain values: an allow-list of technical tags, no identity, no pydicom objects."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsr.io.dicom_decode import quiet
from medsr.io.dicom_frames import JPEG, JPEG_LS, Layout, PixelElement, syntax_name
from medsr.io.dicom_tags import (
    SPLITTERS,
    Parsed,
    functional_group,
    get_integer,
    get_item,
    get_length,
    get_number,
    get_numbers,
    get_text,
    get_value,
    parse,
)
from medsr.scan import ScanError

__all__ = ["Header", "Plane", "read_header"]

TIME_POINTERS = (0x00181063, 0x00181065, 0x00540070, 0x00540060, 0x00540100)  # frame time, time slot, R-R interval
PLANE_POINTERS = (0x00540080, 0x3004000C)  # slice vector, grid frame offset vector
COARSE = frozenset({"NM", "PT", "RTDOSE"})  # modalities in which a centimeter a sample is real
PROJECTION = frozenset({"", "CR", "DX", "IO", "MG", "OT", "PX", "RG", "SC"})
ALWAYS_LOSSY = frozenset({*JPEG[:2], JPEG_LS[1]})
NO_LAYOUT = Layout(1, 1, 8, 8, 7, signed=False, floating=False, syntax="")


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane: position of its first sample (mm), row and column direction, calibration, place in time."""

    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """What the reader needs of one file. `problem` says why it is no gray image ("" where it is), `imageless` whether
    it was never meant to be one; `series` and `instance` are numbers that never leave the reader; `planes` has one
    entry for each frame, or a single one where frames do not differ; `frame_axis` and `step_um` speak of frames
    without positions; `window` is (low, high) of the calibrated quantity."""

    path: Path
    element: PixelElement
    layout: Layout
    problem: str = ""
    imageless: bool = False
    frames: int = 1
    planes: tuple[Plane, ...] = (Plane(),)
    series: str = ""
    instance: str = ""
    subject: str = ""
    modality: str = ""
    photometric: str = ""
    spacing_um: tuple[float, float] | None = None
    frame_axis: str = "z"
    step_um: float | None = None
    units: str = ""
    lut: bool = False
    window: tuple[float, float] | None = None
    padding: tuple[float, float] | None = None
    phases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_header(path: Path) -> Header:
    """Header of one DICOM file, pixel data untouched.

    Raises:
        ScanError: the file cannot be opened or parsed.
    """
    try:
        with quiet() as remarks:
            header = _header(path, parse(path))
    except ScanError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise ScanError(f"{path}: expected a DICOM file, found one that cannot be parsed ({reason})") from error
    if not remarks or header.problem:
        return header
    return replace(header, warnings=(*header.warnings, "the header departs from the DICOM standard in some values"))


def _header(path: Path, parsed: Parsed) -> Header:
    dataset = parsed.dataset
    warnings: list[str] = []
    layout, problem = _layout(parsed, warnings)
    frames = _frame_count(dataset)
    patient = _person(str(get_value(dataset, "PatientID") or ""))
    header = Header(
        path=path,
        element=parsed.element,
        layout=layout,
        problem=problem or ("" if frames else "expected a whole number of frames in NumberOfFrames, found text"),
        frames=frames or 1,
        imageless=not parsed.element.keyword and not _meant_as_image(dataset),
        series=str(get_value(dataset, "SeriesInstanceUID") or ""),
        instance=str(get_value(dataset, "SOPInstanceUID") or ""),
        subject=hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else "",
        modality=get_text(dataset, "Modality"),
        photometric=get_text(dataset, "PhotometricInterpretation"),
        phases=tuple(get_text(dataset, keyword) for keyword in SPLITTERS),
    )
    return header if header.problem else _with_image(header, dataset, warnings)


VIEW = re.compile(r"[_\- ](LEFT|RIGHT)[_\- ](CC|MLO|XCCL|XCCM|ML|LM|LMO|AT|CV|SIO|FB)([_\- ]\d+)?$", re.IGNORECASE)
"""A mammogram's view at the end of a PatientID."""

DDSM_SET = re.compile(r"^(Calc|Mass)-(Test|Training)_(?=P_\d)", re.IGNORECASE)
"""The set a case of CBIS-DDSM belongs to, at the start of a PatientID."""


def _person(patient_id: str) -> str:
    """A PatientID without what names a picture of the person.

    CBIS-DDSM writes set, side and view into it: Mass-Test_P_00173_LEFT_CC, Mass-Test_P_00173_LEFT_MLO_1. With them one
    woman would be several subjects, and stand on both sides of a split; P_00173 is left.
    """
    return DDSM_SET.sub("", VIEW.sub("", patient_id.strip()))


def _meant_as_image(dataset: Any) -> bool:
    """Whether an object should have pixels: it says how many, or its class is one of images."""
    from pydicom.uid import UID

    name = UID(str(get_value(dataset, "SOPClassUID") or "")).name
    return "Rows" in dataset or name.endswith("Image Storage")


def _with_image(header: Header, dataset: Any, warnings: list[str]) -> Header:
    sizes = _frame_spacings(dataset)
    if len(sizes) > 1:
        text = ", ".join(" x ".join(f"{v:g}" for v in size) for size in sizes[:3])
        problem = f"expected one PixelSpacing for all frames, found {len(sizes)} ({text} mm); split the file"
        return replace(header, problem=problem)
    spacing, notes = _spacing(dataset, warnings)
    axis, step = _frame_axis(dataset)
    lut, windows = get_item(dataset, "ModalityLUTSequence") is not None, _windows(dataset)
    if lut:
        warnings.append("the calibration is a lookup table (ModalityLUTSequence), which is not applied: stored values")
    if get_text(dataset, "LossyImageCompression") == "01" or header.layout.syntax in ALWAYS_LOSSY:
        ratio = get_numbers(dataset, "LossyImageCompressionRatio")
        warnings.append("lossily compressed" + (f", ratio {math.prod(ratio):g}" if ratio else ""))
    if get_number(dataset, "RescaleSlope") == 0:
        warnings.append("RescaleSlope 0 is no calibration and is taken as 1")
    if header.modality == "SEG":
        warnings.append("a segmentation, no measured image")
    maker = " ".join(filter(None, (get_text(dataset, "Manufacturer"), get_text(dataset, "ManufacturerModelName"))))
    count = len(windows) + get_length(dataset, "VOILUTSequence")
    return replace(
        header,
        planes=_planes(dataset, header.frames),
        spacing_um=spacing,
        frame_axis=axis,
        step_um=step,
        units=_units(dataset),
        lut=lut,
        window=windows[0] if windows and not lut else None,
        padding=_padding(dataset, header.layout),
        notes=(
            *([f"made by {maker}"] if maker else []),
            *notes,
            *([f"{count} display windows or tables in the header, none applied"] if count else []),
        ),
        warnings=tuple(warnings),
    )


def _frame_count(dataset: Any) -> int | None:
    """Frames the header speaks of, 1 where it does not; None where it says something else than a number."""
    if "NumberOfFrames" not in dataset or not dataset.get_item("NumberOfFrames").value:
        return 1
    count = get_integer(dataset, "NumberOfFrames")
    return count if count is not None and count >= 1 else None


def _layout(parsed: Parsed, warnings: list[str]) -> tuple[Layout, str]:
    """The layout of the samples, or why there is none that this reader takes."""
    dataset, keyword = parsed.dataset, parsed.element.keyword
    if not keyword:
        kind = get_text(dataset, "Modality") or "of no modality"
        if _meant_as_image(dataset):
            return NO_LAYOUT, (
                f"expected pixel data, found an image header without any ({kind}); the file is truncated or was "
                "stripped of its pixels, get a whole copy"
            )
        return NO_LAYOUT, f"expected pixel data, found a DICOM object without any ({kind}); leave it out"
    photometric = get_text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    samples = get_integer(dataset, "SamplesPerPixel") or 1
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        return NO_LAYOUT, (
            f"expected one gray channel, found color ({photometric}, {samples} samples a pixel); make it gray "
            "yourself, by choosing a channel or with `magick FILE -colorspace Gray OUT.tif`"
        )
    rows, columns = get_integer(dataset, "Rows") or 0, get_integer(dataset, "Columns") or 0
    if min(rows, columns) < 1:
        return NO_LAYOUT, f"expected Rows and Columns of at least 1, found {rows} and {columns}; correct the header"
    floating = keyword != "PixelData"
    allocated = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(keyword, get_integer(dataset, "BitsAllocated"))
    stored = allocated if floating else get_integer(dataset, "BitsStored") or allocated
    if allocated not in (1, 8, 16, 32, 64) or stored is None or not 1 <= stored <= allocated:
        return NO_LAYOUT, (
            "expected BitsAllocated of 1, 8, 16, 32 or 64 and BitsStored of at most that, "
            f"found {allocated} and {stored}; correct the header or convert the file"
        )
    encapsulated = parsed.element.length is None
    if encapsulated != _is_encapsulated(parsed.syntax, found=encapsulated):
        return NO_LAYOUT, (
            f"expected {'plain' if encapsulated else 'encapsulated'} pixel data as its transfer syntax says "
            f"({syntax_name(parsed.syntax)}), found {'encapsulated' if encapsulated else 'plain'} ones; "
            "correct the transfer syntax in the header"
        )
    high = get_integer(dataset, "HighBit")
    if high is not None and not stored - 1 <= high < allocated:
        warnings.append(f"HighBit {high} does not fit {stored} of {allocated} bits; {stored - 1} is taken")
        high = None
    layout = Layout(
        rows=rows,
        columns=columns,
        allocated=allocated,
        stored=stored,
        high=stored - 1 if high is None else high,
        signed=not floating and allocated > 1 and get_integer(dataset, "PixelRepresentation") == 1,
        floating=floating,
        syntax=parsed.syntax,
        little=parsed.little or encapsulated,
        encapsulated=encapsulated,
        swapped=not parsed.little and not encapsulated and allocated == 8 and parsed.vr == "OW",
    )
    return layout, ""


def _is_encapsulated(syntax: str, *, found: bool) -> bool:
    """Whether a transfer syntax means encapsulated pixel data; `found` where it is private."""
    from pydicom.uid import UID, AllTransferSyntaxes

    known = syntax in AllTransferSyntaxes
    return bool(UID(syntax).is_encapsulated) if known else bool(syntax) and found


def _spacing(dataset: Any, warnings: list[str]) -> tuple[tuple[float, float] | None, list[str]]:
    """((row, column) spacing in micrometers or None, lines for the history)."""
    modality = get_text(dataset, "Modality")
    largest = 100.0 if modality in COARSE else 9.999
    measures = functional_group(dataset, 0, "PixelMeasuresSequence")
    magnification = get_number(dataset, "EstimatedRadiographicMagnificationFactor")
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = get_numbers(measures, keyword, 2) or get_numbers(dataset, keyword)
        if not found:
            continue
        text = " x ".join(f"{v:g}" for v in found)
        placeholder = modality in PROJECTION and found == (1.0, 1.0)
        if len(found) != 2 or not all(1e-4 <= v <= largest for v in found) or placeholder:
            warnings.append(f"{keyword} of {text} mm is no real spacing and is taken as unknown")
            continue
        note = f"spacing {text} mm from {keyword}"
        divisor = 1.0
        if keyword == "ImagerPixelSpacing" and magnification and 1 <= magnification <= 20:
            divisor, note = magnification, f"{note} divided by the magnification {magnification:g}"
        elif keyword == "ImagerPixelSpacing":
            note += " (at the detector: no magnification in the header)"
        elif keyword == "NominalScannedPixelSpacing":
            warnings.append(f"the spacing of {text} mm is that of the film scanner (NominalScannedPixelSpacing)")
        return (found[0] * 1000 / divisor, found[1] * 1000 / divisor), [note]
    warnings.append("the spacing of the pixels is unknown: the header has no usable one")
    aspect = get_numbers(dataset, "PixelAspectRatio", 2)
    if aspect and aspect[0] != aspect[1]:
        warnings.append(f"pixels are not square: PixelAspectRatio {aspect[0]:g}:{aspect[1]:g} (vertical:horizontal)")
    return None, []


def _frame_spacings(dataset: Any) -> list[tuple[float, ...]]:
    """The different spacings that frames state of their own."""
    count = get_length(dataset, "PerFrameFunctionalGroupsSequence")
    measures = (functional_group(dataset, i, "PixelMeasuresSequence") for i in range(count))
    return sorted({numbers for m in measures if (numbers := get_numbers(m, "PixelSpacing"))})


def _frame_axis(dataset: Any) -> tuple[str, float | None]:
    """(axis, step in micrometers or None) of frames that have no positions of their own."""
    pointer = get_value(dataset, "FrameIncrementPointer")
    pointers = [int(p) for p in (pointer if isinstance(pointer, Iterable) else [pointer]) if isinstance(p, int)]
    if any(p in PLANE_POINTERS for p in pointers):
        axis = "z"
    elif any(p in TIME_POINTERS for p in pointers) or (not pointers and get_number(dataset, "FrameTime")):
        axis = "t"
    else:
        axis = "c" if pointers else "z"
    step = get_number(functional_group(dataset, 0, "PixelMeasuresSequence"), "SpacingBetweenSlices")
    step = abs(step or get_number(dataset, "SpacingBetweenSlices") or 0.0)
    return axis, step * 1000 if 1e-4 <= step <= 100 else None


def _planes(dataset: Any, frames: int) -> tuple[Plane, ...]:
    per_frame = get_length(dataset, "PerFrameFunctionalGroupsSequence")
    if per_frame:
        return tuple(_plane(dataset, i) for i in range(min(per_frame, frames)))
    plane = _plane(dataset, 0)
    offsets = get_numbers(dataset, "GridFrameOffsetVector", frames) if frames > 1 else None
    if offsets and plane.position and plane.orientation:
        normal = cross(plane.orientation)
        return tuple(
            Plane(
                tuple(p + (offset - offsets[0]) * n for p, n in zip(plane.position, normal, strict=True)),
                plane.orientation,
                plane.slope,
                plane.intercept,
            )
            for offset in offsets
        )
    return (plane,)


def cross(orientation: tuple[float, ...]) -> tuple[float, float, float]:
    """The normal of a plane from its row and column direction (six numbers)."""
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    return b * f - c * e, c * d - a * f, a * e - b * d


def _plane(dataset: Any, frame: int) -> Plane:
    detector = get_item(dataset, "DetectorInformationSequence")
    position = get_numbers(functional_group(dataset, frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
    direction = get_numbers(functional_group(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    for source in (dataset, detector):
        position = position or get_numbers(source, "ImagePositionPatient", 3)
        direction = direction or get_numbers(source, "ImageOrientationPatient", 6)
    if direction and not 0.9 < math.hypot(*cross(direction)) < 1.1:
        direction = None
    values = functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope = get_number(values, "RescaleSlope") or get_number(dataset, "DoseGridScaling") or 1.0
    content = functional_group(dataset, frame, "FrameContentSequence")
    time = get_number(content, "TemporalPositionIndex")
    return Plane(position, direction, slope, get_number(values, "RescaleIntercept") or 0.0, time)


def _units(dataset: Any) -> str:
    values = functional_group(dataset, 0, "PixelValueTransformationSequence") or dataset
    units = get_text(values, "RescaleType") or get_text(dataset, "Units") or get_text(dataset, "DoseUnits")
    calibrated = get_number(values, "RescaleSlope") is not None
    if not units and calibrated and get_text(dataset, "Modality") == "CT":
        return "HU"
    return "" if units == "US" else units  # US: unspecified


def _windows(dataset: Any) -> list[tuple[float, float]]:
    """(low, high) of the calibrated quantity for each window (PS3.3 C.11.2.1.2)."""
    source = functional_group(dataset, 0, "FrameVOILUTSequence") or dataset
    centers, widths = get_numbers(source, "WindowCenter"), get_numbers(source, "WindowWidth")
    exact = get_text(source, "VOILUTFunction") not in ("", "LINEAR")
    pairs = zip(centers or (), widths or (), strict=False)
    return [
        (c - w / 2, c + w / 2) if exact or w <= 1 else (c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2)
        for c, w in pairs
        if w > 0
    ]


def _padding(dataset: Any, layout: Layout) -> tuple[float, float] | None:
    """The closed range of stored values that are no image."""
    prefix = {32: "Float", 64: "DoubleFloat"}[layout.allocated] if layout.floating else ""
    value = get_number(dataset, f"{prefix}PixelPaddingValue")
    if value is None:
        return None
    limit = get_number(dataset, f"{prefix}PixelPaddingRangeLimit")
    pair = [_as_stored(v, layout) for v in (value, value if limit is None else limit)]
    return min(pair), max(pair)


def _as_stored(value: float, layout: Layout) -> float:
    """A padding value as the data hold it: a negative one may be written as unsigned and the other way around."""
    if layout.floating:
        return value
    number = int(value) % 2**layout.stored
    return float(number - 2**layout.stored if layout.signed and number >= 2 ** (layout.stored - 1) else number)
