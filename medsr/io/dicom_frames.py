"""Where the frames of a DICOM file lie: layout of the samples, byte spans, what a compressed stream says of itself."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from medsr.scan import ScanError

__all__ = [
    "DEFLATED",
    "HTJ2K",
    "JPEG",
    "JPEG_2000",
    "JPEG_LS",
    "RLE",
    "Frame",
    "Layout",
    "PixelElement",
    "StreamFacts",
    "inflate",
    "locate_frames",
    "read_spans",
    "stream_facts",
    "syntax_name",
]

DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
INFLATED_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples of one plane are stored; `swapped`: bytes or bits inside big-endian 16-bit words."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: bool
    floating: bool
    syntax: str
    little: bool = True
    encapsulated: bool = False
    swapped: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples in native byte order; packed bits become uint8."""
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{kind}{max(self.allocated, 8) // 8}")

    @property
    def direct(self) -> bool:
        """Whether rows can be read from the file as they are."""
        return not (self.encapsulated or self.swapped or self.allocated < 8 or self.syntax == DEFLATED)


def syntax_name(syntax: str) -> str:
    """A transfer syntax in words."""
    from pydicom.uid import UID

    return str(UID(syntax).name) if syntax else "none given"


class PixelElement(NamedTuple):
    """Where the pixel data lie: keyword ("" for none), first byte of the value, its length (None: encapsulated) and
    the extended offset table."""

    keyword: str
    offset: int
    length: int | None
    starts: tuple[int, ...] = ()


class Frame(NamedTuple):
    """One frame: its file, its layout, the byte spans of its value, and the first bit inside them."""

    path: Path
    layout: Layout
    spans: tuple[tuple[int, int], ...]
    bit: int = 0


class StreamFacts(NamedTuple):
    """What the header of a compressed stream says of itself."""

    rows: int
    columns: int
    precision: int


def inflate(path: Path) -> bytes:
    """The data set of a deflated file, uncompressed.

    Raises:
        ScanError: no length of the file meta group, a broken stream, or more than 2 GiB.
    """
    raw = path.read_bytes()
    if raw[132:138] != b"\x02\x00\x00\x00UL":
        raise ScanError(f"{path}: expected the length of the file meta information, found none; get a whole copy")
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = engine.decompress(raw[144 + struct.unpack_from("<I", raw, 140)[0] :], INFLATED_LIMIT)
    except zlib.error as error:
        raise ScanError(f"{path}: expected a deflated data set, found a broken one ({error})") from error
    if engine.unconsumed_tail or not engine.eof:
        found = "more than 2 GiB" if engine.unconsumed_tail else "one that ends early"
        raise ScanError(f"{path}: expected a whole deflated data set, found {found}; save it uncompressed")
    return data


def locate_frames(path: Path, layout: Layout, element: PixelElement, *, frames: int) -> tuple[Frame, ...]:
    """Where each of `frames` frames lies; nothing is decoded and nothing of their size is allocated.

    Raises:
        ScanError: fewer bytes or frames than the header promises (a truncated file, an absurd header).
    """
    if layout.encapsulated:
        with path.open("rb") as stream:
            spans = _encapsulated_spans(path, stream, element, frames)
        return tuple(Frame(path, layout, s) for s in spans)
    bits = layout.rows * layout.columns * layout.allocated
    size = len(inflate(path)) if layout.syntax == DEFLATED else path.stat().st_size
    needed, found = -(-bits * frames // 8), size - element.offset
    if element.length is not None:
        found = min(found, element.length)
    if found < needed:
        raise ScanError(
            f"{path}: expected {needed} bytes of pixel data for {frames} x {layout.rows} x {layout.columns} samples "
            f"of {layout.allocated} bits, found {found}; the file is truncated or its header is wrong, get a whole copy"
        )
    located = []
    for start in range(0, bits * frames, bits):
        first = start // 8 & (~1 if layout.swapped else ~0)
        last = -(-(start + bits) // 8)
        last += last % 2 if layout.swapped else 0
        located.append(Frame(path, layout, ((element.offset + first, last - first),), start - 8 * first))
    return tuple(located)


def _encapsulated_spans(
    path: Path, stream: BinaryIO, element: PixelElement, frames: int
) -> list[tuple[tuple[int, int], ...]]:
    items = list(_items(path, stream, element.offset))
    if not items:
        raise ScanError(f"{path}: expected encapsulated pixel data, found none; the file is truncated")
    (table, table_length), fragments = items[0], items[1:]
    stream.seek(table)
    starts = element.starts or struct.unpack(f"<{table_length // 4}I", stream.read(table_length // 4 * 4))
    base = fragments[0][0] - 8 if fragments else 0
    by_start = {offset - 8 - base: i for i, (offset, _) in enumerate(fragments)}
    if len(starts) >= frames and len(set(starts)) == len(starts) and all(s in by_start for s in starts):
        firsts = sorted(by_start[s] for s in starts)
        groups = [fragments[a:b] for a, b in zip(firsts, [*firsts[1:], len(fragments)], strict=True)]
    elif frames == 1:
        groups = [fragments]
    elif len(fragments) == frames:
        groups = [[f] for f in fragments]
    else:
        groups = _groups_by_end_marker(stream, fragments)
    if len(groups) < frames or not all(groups[:frames]):
        raise ScanError(
            f"{path}: expected {frames} frames as its header says, found {len(fragments)} fragments in "
            f"{len(groups)} frames; the file is truncated or its header is wrong, get a whole copy"
        )
    return [tuple(g) for g in groups[:frames]]


def _items(path: Path, stream: BinaryIO, offset: int) -> Iterator[tuple[int, int]]:
    """(first byte, length) of every item of encapsulated pixel data, the offset table first."""
    size = stream.seek(0, os.SEEK_END)
    while offset + 8 <= size:
        stream.seek(offset)
        tag, length = struct.unpack("<II", stream.read(8))
        if tag == 0xE0DDFFFE:
            return
        if tag != 0xE000FFFE:
            raise ScanError(f"{path}: expected an item of encapsulated pixel data at byte {offset}, found {tag:#010x}")
        if offset + 8 + length > size:
            raise ScanError(
                f"{path}: expected {length} bytes of compressed pixel data, found {size - offset - 8}; "
                "the file is truncated, get a whole copy"
            )
        yield offset + 8, length
        offset += 8 + length


def _groups_by_end_marker(stream: BinaryIO, fragments: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    groups: list[list[tuple[int, int]]] = []
    fresh = True
    for offset, length in fragments:
        if fresh:
            groups.append([])
        groups[-1].append((offset, length))
        stream.seek(offset + max(0, length - 10))
        fresh = b"\xff\xd9" in stream.read(min(length, 10))
    return groups


def stream_facts(frame: Frame, data: bytes | None = None) -> StreamFacts | None:
    """Size and precision that a JPEG family stream states itself (None: not found in its first 64 KiB).

    Raises:
        ScanError: they differ from what the header says.
    """
    layout = frame.layout
    if layout.syntax not in JPEG + JPEG_LS + JPEG_2000 + HTJ2K:
        return None
    if data is None:
        data = read_spans(frame, limit=2**16)
    facts = _jpeg_2000_facts(data) if layout.syntax in JPEG_2000 + HTJ2K else _jpeg_facts(data)
    if facts is None:
        return None
    if facts.precision == 0:  # no decoder is asked: some of them print or allocate before they refuse
        raise ScanError(
            f"{frame.path}: expected a {syntax_name(layout.syntax)} stream, found one with a senseless number of "
            "tiles; the file is damaged, get a whole copy"
        )
    if (facts.rows, facts.columns) != (layout.rows, layout.columns) or facts.precision > layout.allocated:
        raise ScanError(
            f"{frame.path}: expected a frame of {layout.rows} x {layout.columns} samples of at most "
            f"{layout.allocated} bits as its header says, found {facts.rows} x {facts.columns} of {facts.precision} "
            f"bits in its {syntax_name(layout.syntax)} stream; the file is damaged, get a whole copy"
        )
    return facts


def _jpeg_facts(data: bytes) -> StreamFacts | None:
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, rows, columns = struct.unpack_from(">BHH", data, at + 4)
            return StreamFacts(rows, columns, precision) if rows and columns else None
        elif marker == 0xDA:
            return None
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def _jpeg_2000_facts(data: bytes) -> StreamFacts | None:
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or at + 43 > len(data):
        return None
    width, height, left, top, tile_width, tile_height = struct.unpack_from(">6I", data, at + 8)
    tiles = math.ceil(width / max(tile_width, 1)) * math.ceil(height / max(tile_height, 1))
    if tiles >= 2**16 or 0 in (tile_width, tile_height):
        return StreamFacts(0, 0, 0)
    return StreamFacts(height - top, width - left, (data[at + 42] & 0x7F) + 1)


def read_spans(frame: Frame, *, limit: int | None = None) -> bytes:
    """The bytes of a frame's value (only about the first `limit`)."""
    parts, total = [], 0
    with BytesIO(inflate(frame.path)) if frame.layout.syntax == DEFLATED else frame.path.open("rb") as stream:
        for offset, length in frame.spans:
            stream.seek(offset)
            part = stream.read(length if limit is None else min(length, limit - total))
            total += len(part)
            parts.append(part)
            if limit is not None and total >= limit:
                return b"".join(parts)
    if total < sum(length for _, length in frame.spans):
        raise ScanError(f"{frame.path}: expected pixel data to the end of the frame, found the end of the file")
    return b"".join(parts)
