"""One DICOM file parsed up to its pixel data: an allow-list of technical tags and guarded access to their values."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Sized
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from medsr.io.dicom_frames import DEFLATED, PixelElement, inflate

__all__ = [
    "SPLITTERS",
    "Parsed",
    "functional_group",
    "get_integer",
    "get_item",
    "get_length",
    "get_number",
    "get_numbers",
    "get_text",
    "get_value",
    "parse",
]

ODD_VALUE = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
PIXEL_TAGS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
LONG_VR = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

# What tells apart the files of one series that lie at the same positions.
SPLITTERS = (
    *("TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers", "EchoTime", "DiffusionBValue"),
    *("TriggerTime", "FrameReferenceTime", "ImageType", "ConvolutionKernel"),
)

# All that is ever read of a header. PatientID only becomes a hash; the numbers of series and object stay inside.
TAGS = (
    *("SOPClassUID", "SOPInstanceUID"),
    *("SeriesInstanceUID", "PatientID", "Modality", "Manufacturer", "ManufacturerModelName"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"),
    *("NominalScannedPixelSpacing", "EstimatedRadiographicMagnificationFactor", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient", "FrameIncrementPointer", "FrameTime"),
    *("GridFrameOffsetVector", "DetectorInformationSequence", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "RescaleSlope", "RescaleIntercept", "RescaleType", "Units"),
    *("DoseGridScaling", "DoseUnits", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("VOILUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue"),
    *("FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "ExtendedOffsetTable"),
    *SPLITTERS,
)


class Parsed(NamedTuple):
    """A data set (allow-listed tags only), its pixel element with its VR, its transfer syntax ("" for none) and byte
    order."""

    dataset: Any
    element: PixelElement
    vr: str
    syntax: str
    little: bool


@cache
def _tag_numbers() -> list[int]:
    from pydicom.datadict import tag_for_keyword

    return [tag for tag in map(tag_for_keyword, TAGS) if tag is not None]


def parse(path: Path) -> Parsed:
    """Read the header of a file up to its pixel data.

    Raises:
        ScanError: a deflated file is broken. Other errors are pydicom's.
    """
    from pydicom import dcmread
    from pydicom.filereader import read_dataset

    with path.open("rb") as stream:
        head = stream.read(2048)
        if head[128:132] == b"DICM" and DEFLATED.encode() in head:
            data = BytesIO(inflate(path))
            dataset = read_dataset(
                data, False, True, stop_when=lambda tag, *_: tag in PIXEL_TAGS, specific_tags=_tag_numbers()
            )
            return Parsed(dataset, *_pixel_element(data, dataset, implicit=False, little=True), DEFLATED, little=True)
        stream.seek(0)
        dataset = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=_tag_numbers())
        implicit, little = map(bool, dataset.original_encoding)
        meta = getattr(dataset, "file_meta", None)
        syntax = str(get_value(meta, "TransferSyntaxUID") or "")
        element, vr = _pixel_element(stream, dataset, implicit=implicit, little=little)
    return Parsed(dataset, element, vr, syntax, little)


def _pixel_element(stream: BinaryIO, dataset: Any, *, implicit: bool, little: bool) -> tuple[PixelElement, str]:
    order = "<" if little else ">"
    start = stream.read(8)
    if len(start) < 8:
        return PixelElement("", 0, 0), ""
    group, number, vr, short = struct.unpack(order + "HH2sH", start)
    keyword = PIXEL_TAGS.get(group << 16 | number, "")
    if implicit or not vr.isalpha():
        vr, length = b"", struct.unpack(order + "I", start[4:])[0]
    else:
        length = struct.unpack(order + "I", stream.read(4))[0] if vr in LONG_VR else short
    table = get_value(dataset, "ExtendedOffsetTable")
    starts = struct.unpack(f"<{len(table) // 8}Q", table[: len(table) // 8 * 8]) if isinstance(table, bytes) else ()
    return PixelElement(keyword, stream.tell(), None if length == 0xFFFFFFFF else length, starts), vr.decode("ascii")


def get_value(dataset: Any, keyword: str) -> Any:
    """A value, or None where it is absent, empty or cannot be converted."""
    try:
        value = None if dataset is None else dataset.get(keyword)
    except (*ODD_VALUE, struct.error):
        return None
    return None if isinstance(value, str) and not value else value


def _values(dataset: Any, keyword: str) -> list[Any]:
    value = get_value(dataset, keyword)
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]


def get_numbers(dataset: Any, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Finite numbers of a value; None where it is absent, holds no number, or not `count` of them."""
    try:
        found = tuple(float(v) for v in _values(dataset, keyword))
    except (TypeError, ValueError):
        return None
    if not found or not all(map(math.isfinite, found)) or count not in (None, len(found)):
        return None
    return found


def get_number(dataset: Any, keyword: str) -> float | None:
    """The first number of a value."""
    found = get_numbers(dataset, keyword)
    return found[0] if found else None


def get_integer(dataset: Any, keyword: str) -> int | None:
    """The first number of a value where it is whole."""
    found = get_number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def get_text(dataset: Any, keyword: str) -> str:
    """A technical text: at most 40 plain characters."""
    return re.sub(r"[^A-Za-z0-9 _./%^+()\\-]", "", "\\".join(map(str, _values(dataset, keyword))))[:40].strip()


def get_length(dataset: Any, keyword: str) -> int:
    """Number of items of a sequence."""
    value = get_value(dataset, keyword)
    return len(value) if isinstance(value, Sized) else 0


def get_item(dataset: Any, keyword: str, index: int = 0) -> Any:
    """One item of a sequence; None where there is none."""
    from pydicom.dataset import Dataset

    value = get_value(dataset, keyword)
    try:
        found = None if value is None else value[index]
    except (IndexError, KeyError, TypeError):
        return None
    return found if isinstance(found, Dataset) else None


def functional_group(dataset: Any, frame: int, keyword: str) -> Any:
    """A functional group of one frame: its own, else the shared one, else None."""
    own = get_item(get_item(dataset, "PerFrameFunctionalGroupsSequence", frame), keyword)
    return own if own is not None else get_item(get_item(dataset, "SharedFunctionalGroupsSequence"), keyword)
