"""Samples of TIFF pages: the chain of pages checked, segments (strips, tiles) read and decoded one by one."""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medsr.io.lazy import BlockArray, MappedArray
from medsr.scan import LazyArray, ScanError

__all__ = ["MAGIC", "PageBlocks", "Plane", "listening", "page_array", "walk_pages"]

Array = NDArray[Any]
Index = tuple[int, ...]
Storage = tuple[tuple[int, object], ...]

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COPY_AGAIN = "copy it again from where it was made"
VALUE_BYTES = {2: 1, 3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
STORAGE_TAGS = frozenset({256, 257, 258, 259, 262, 266, 277, 284, 317, 322, 323, 339})
SUSPECT_BYTES, SUSPECT_RATIO = 256 * 2**20, 30_000


def walk_pages(path: Path) -> dict[int, Storage]:
    """Offset of each page in the main chain, in file order, with the tags that say how its samples are stored.

    Raises:
        ScanError: the chain is cut off, points outside the file, or runs in a circle.
    """
    size = path.stat().st_size
    pages: dict[int, Storage] = {}
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = len(head) >= 4 and struct.unpack(order + "H", head[2:4])[0] == 43
        count_format, entry_size, next_format = ("Q", 20, "Q") if big else ("H", 12, "I")
        count_size, next_size = struct.calcsize(count_format), struct.calcsize(next_format)
        if len(head) >= 8 and head[:4] not in MAGIC:
            raise ScanError(f"{path}: expected a TIFF file, found other content; give the file its right ending")
        if len(head) < (16 if big else 8):
            raise ScanError(f"{path}: expected a TIFF file, found {size} bytes; {COPY_AGAIN}")
        offset = struct.unpack(order + next_format, head[8:16] if big else head[4:8])[0]
        while offset:
            if offset in pages:
                raise ScanError(f"{path}: its pages point in a circle at byte {offset}; write the file again")
            if offset + count_size > size:
                raise ScanError(
                    f"{path}: truncated: page {len(pages)} should start at byte {offset}, the file has {size}; "
                    + COPY_AGAIN
                )
            file.seek(offset)
            count = struct.unpack(order + count_format, file.read(count_size))[0]
            wanted = count * entry_size + next_size
            if not 1 <= count <= 4096 or offset + count_size + wanted > size:
                raise ScanError(
                    f"{path}: damaged or truncated: page {len(pages)} at byte {offset} says it has {count} tags, "
                    f"the file ends at {size}; {COPY_AGAIN}"
                )
            body = file.read(wanted)
            entries = [body[i * entry_size : (i + 1) * entry_size] for i in range(count)]
            for entry in entries:
                number, end = _value_end(entry, order, big=big)
                if end > size:
                    raise ScanError(
                        f"{path}: truncated: tag {number} of page {len(pages)} ends at byte {end} of {size}; "
                        + COPY_AGAIN
                    )
            pages[offset] = tuple(
                _storage(e, order) for e in entries if struct.unpack(order + "H", e[:2])[0] in STORAGE_TAGS
            )
            offset = struct.unpack(order + next_format, body[-next_size:])[0]
    if not pages:
        raise ScanError(f"{path}: expected at least one page, found none; {COPY_AGAIN}")
    return pages


def _storage(entry: bytes, order: str) -> tuple[int, object]:
    """Number and value of a tag, the same for SHORT and LONG."""
    number, kind = struct.unpack(order + "HH", entry[:4])
    value = entry[8:] if len(entry) == 12 else entry[12:]
    formats = {3: "H", 4: "I", 16: "Q"}
    if kind in formats and int.from_bytes(entry[4 : len(entry) - len(value)], "little" if order == "<" else "big") == 1:
        return number, struct.unpack_from(order + formats[kind], value)[0]
    return number, entry


def _value_end(entry: bytes, order: str, *, big: bool) -> tuple[int, int]:
    """Number of a tag and the byte of the file at which its value ends; 0 where the value lies in the entry."""
    number, kind = struct.unpack(order + "HH", entry[:4])
    word = "Q" if big else "I"
    count, offset = struct.unpack(order + word * 2, entry[4:])
    length = count * VALUE_BYTES.get(kind, 1)
    return number, offset + length if length > struct.calcsize(word) else 0


@contextmanager
def listening() -> Iterator[list[str]]:
    """What tifffile logs in this thread meanwhile, kept from the log."""
    heard: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread == thread:
            heard.append(re.sub(r"^<[^>]*>\s*", "", record.getMessage())[:160])
        return record.thread != thread

    logger = logging.getLogger("tifffile")
    logger.addFilter(keep)
    try:
        yield heard
    finally:
        logger.removeFilter(keep)


@dataclass(frozen=True, slots=True)
class Plane:
    """One page: the file it is in (a number), its own number there, where its segments lie and how long they are."""

    file: int
    page: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass
class PageBlocks:
    """Decodes segments; a block is one segment of one page, or a whole page where segments do not tile the plane.

    Picklable: what tifffile made of the first page of each file is read again where it is needed.

    Attributes:
        files: the files, the first one named in errors unless another is damaged.
        planes: in the order of the leading axes, which have the lengths `lead`.
        page_shape: samples of a page as stored; `block` samples of one block in it; `across` blocks in a row.
        dtype: of the samples, native byte order.
    """

    files: tuple[Path, ...]
    planes: tuple[Plane, ...]
    lead: tuple[int, ...]
    page_shape: tuple[int, ...]
    block: tuple[int, ...]
    dtype: np.dtype[Any]
    _pages: dict[int, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pages": {}}

    def __call__(self, index: Index) -> Array:  # noqa: D102 - the class says it
        at = int(np.ravel_multi_index(index[: len(self.lead)], self.lead)) if self.lead else 0
        plane, inside = self.planes[at], index[len(self.lead) :]
        path, page = self.files[plane.file], self._page(plane.file)
        try:
            with path.open("rb") as file:
                if self.block != self.page_shape or len(plane.offsets) == 1:
                    grid = tuple(math.ceil(n / b) for n, b in zip(self.page_shape, self.block, strict=True))
                    number = int(np.ravel_multi_index(inside, grid))
                    decoded = self._segment(file, page, plane, number)[0]
                    decoded = decoded.reshape(decoded.shape[1:3]) if len(self.page_shape) == 2 else decoded
                    start = tuple(i * b for i, b in zip(inside, self.block, strict=True))
                    room = tuple(slice(0, n - s) for n, s in zip(self.page_shape, start, strict=True))
                    decoded = decoded[room] if decoded.ndim == len(room) else decoded.reshape(self.page_shape)
                else:
                    decoded = self._whole(file, page, plane)
        except (MemoryError, ScanError):
            raise
        except Exception as error:  # codecs raise their own types; all end as one line that names the file
            raise ScanError(
                f"{path}: page {plane.page} cannot be decoded ({type(error).__name__}: {error}); "
                f"the file is damaged or its compression is not supported: {COPY_AGAIN}, or save it as zlib TIFF"
            ) from error
        return np.asarray(decoded, self.dtype).reshape((1,) * len(self.lead) + decoded.shape)

    def _page(self, number: int) -> Any:
        if number not in self._pages:
            import tifffile

            index = next(p.page for p in self.planes if p.file == number)
            with listening(), tifffile.TiffFile(self.files[number]) as tif:
                page = tif.pages.get(index, aspage=True)
                _ = page.decode, page.jpegtables  # both read the file once
                self._pages[number] = page
        return self._pages[number]

    def _segment(self, file: BinaryIO, page: Any, plane: Plane, number: int) -> tuple[Array, Index]:
        """One decoded segment (depth, length, width, samples) and where it goes in (separate sample, z, y, x, s)."""
        count = plane.counts[number]
        file.seek(plane.offsets[number])
        data = file.read(count) if count else None
        if data is not None and len(data) < count:
            raise ScanError(
                f"{file.name}: truncated: expected {count} bytes at {plane.offsets[number]}, found {len(data)}; "
                + COPY_AGAIN
            )
        decoded, where, shape = page.decode(data, number, jpegtables=page.jpegtables)
        if decoded is None:  # a sparse file: nothing was stored here
            decoded = np.full(shape, page.nodata, self.dtype)
        return decoded, where

    def _whole(self, file: BinaryIO, page: Any, plane: Plane) -> Array:
        out = np.empty(page.shaped, self.dtype)
        for number in range(len(plane.offsets)):
            decoded, (s, z, y, x, c) = self._segment(file, page, plane, number)
            room = tuple(min(n, m - k) for n, m, k in zip(decoded.shape, out.shape[1:], (z, y, x, c), strict=True))
            d, h, w, v = room
            out[s, z : z + d, y : y + h, x : x + w, c : c + v] = decoded[:d, :h, :w, :v]
        return out.reshape(self.page_shape)


@dataclass(frozen=True)
class MappedPages:
    """Whole pages of uncompressed samples, mapped from their files; loads one page as one block."""

    files: tuple[Path, ...]
    planes: tuple[Plane, ...]
    lead: tuple[int, ...]
    page_shape: tuple[int, ...]
    stored: np.dtype[Any]

    def __call__(self, index: Index) -> Array:
        at = int(np.ravel_multi_index(index[: len(self.lead)], self.lead)) if self.lead else 0
        plane = self.planes[at]
        mapped: Array = np.memmap(
            self.files[plane.file], self.stored, mode="r", offset=plane.offsets[0], shape=self.page_shape
        )
        return mapped.reshape((1,) * len(self.lead) + self.page_shape)


def page_array(path: Path, series: Any, *, keep: int | None = None) -> tuple[LazyArray, int]:
    """Lazy array of a series, axes as tifffile names them, and the number of segments the file left out (sparse).

    Raises:
        ScanError: samples missing or cut off, pages stored in different ways, a size no file of this length can hold.
    """
    first = series.keyframe
    shape = tuple(int(n) for n in series.shape)
    stored = np.dtype(first.parent.byteorder + first.dtype.char)
    plain = first.compression == 1 and first.predictor == 1 and first.fillorder == 1
    plain = plain and first.bitspersample == 8 * stored.itemsize
    offset = series.dataoffset if plain else None
    if offset is not None and (len(series.pages) == 1 or len(_planes(path, series)[0]) == 1):
        own = Path(first.parent.filehandle.path)
        _demand(own, offset + math.prod(shape) * stored.itemsize, own.stat().st_size, shape)
        return MappedArray(own, offset=offset, shape=shape, dtype=stored), 0

    page_shape = tuple(int(n) for n in first.shape)
    lead = shape[: len(shape) - len(page_shape)]
    if math.prod(lead) != len(series.pages) or shape[len(lead) :] != page_shape:
        raise ScanError(
            f"{path}: expected {len(series.pages)} pages of {page_shape} to fill {shape}; "
            "this layout is not supported: save it as OME-TIFF with one page a plane"
        )
    files, planes = _planes(path, series)
    missing = _check(files, planes, first, math.prod(shape) * stored.itemsize)
    if plain and first.is_contiguous and not missing and all(map(_unbroken, planes)):
        blocks = MappedPages(files, planes, lead, page_shape, stored)
        return BlockArray(shape, stored, block=(1,) * len(lead) + page_shape, load=blocks, **_kept(keep)), 0
    block = page_shape
    if len(page_shape) == 2:
        block = (first.tilelength, first.tilewidth) if first.is_tiled else (first.rowsperstrip, page_shape[1])
        block = tuple(min(b, n) for b, n in zip(block, page_shape, strict=True))
        if len(planes[0].offsets) == 1 and not first.is_tiled:
            block = page_shape
    load = PageBlocks(files, planes, lead, page_shape, block, stored.newbyteorder("="))
    return BlockArray(shape, stored, block=(1,) * len(lead) + block, load=load, **_kept(keep)), missing


def _unbroken(plane: Plane) -> bool:
    ends = [o + c for o, c in zip(plane.offsets, plane.counts, strict=False)]
    return all(end == following for end, following in zip(ends, plane.offsets[1:], strict=False))


def _kept(keep: int | None) -> dict[str, int]:
    return {} if keep is None else {"keep": keep}


def _planes(path: Path, series: Any) -> tuple[tuple[Path, ...], tuple[Plane, ...]]:
    files: dict[Path, int] = {}
    chains: list[dict[int, Storage]] = []
    planes: list[Plane] = []
    for number, page in enumerate(series.pages):
        if page is None:
            raise ScanError(
                f"{path}: plane {number} of {len(series.pages)} is missing: the metadata name a page or a file that is "
                "not there; put all files of the set in one folder, or write the file again"
            )
        own = Path(page.parent.filehandle.path)
        if own not in files:
            files[own] = len(files)
            chains.append(walk_pages(own))
        chain = chains[files[own]]
        same = chain.get(page.keyframe.offset)
        if same is not None and chain.get(page.offset, same) != same:
            raise ScanError(
                f"{own}: page {page.index} is stored in another way than page {series.keyframe.index} (size, type or "
                "compression); write the pages as separate files or all in one way"
            )
        first, key = series.keyframe, page.keyframe
        if (page.parent.byteorder, key.hash) != (first.parent.byteorder, first.hash):
            raise ScanError(
                f"{own}: stored in another way than the other files of the set (byte order, size or compression); "
                "write the set again"
            )
        planes.append(Plane(files[own], int(page.index), tuple(page.dataoffsets), tuple(page.databytecounts)))
    return tuple(files), tuple(planes)


def _check(files: tuple[Path, ...], planes: Iterable[Plane], page: Any, total: int) -> int:
    """Refuse what the files cannot hold; return how many segments were left out."""
    sizes = [file.stat().st_size for file in files]
    expected = math.prod(int(n) for n in page.chunked)
    missing = stored = 0
    for plane in planes:
        path, size = files[plane.file], sizes[plane.file]
        if len(plane.offsets) < expected or len(plane.counts) < expected:
            raise ScanError(
                f"{path}: page {plane.page} of {page.shape} needs {expected} strips or tiles, found "
                f"{min(len(plane.offsets), len(plane.counts))}; the file is damaged: {COPY_AGAIN}"
            )
        end = max((o + c for o, c in zip(plane.offsets, plane.counts, strict=False)), default=0)
        _demand(path, end, size, page.shape)
        missing += sum(c == 0 for c in plane.counts)
        stored += sum(plane.counts)
        if page.compression == 1:
            bits = page.size * page.bitspersample if isinstance(page.bitspersample, int) else 0
            if not missing and sum(plane.counts) < bits // 8:
                _demand(path, plane.offsets[0] + bits // 8, plane.offsets[0] + sum(plane.counts), page.shape)
    if stored == 0 or (total > SUSPECT_BYTES and total > SUSPECT_RATIO * stored):
        raise ScanError(
            f"{files[0]}: the header says {total:,} bytes of samples ({page.shape} a page), the file holds "
            f"{stored:,}; the header is damaged: {COPY_AGAIN}"
        )
    return missing


def _demand(path: Path, needed: int, found: int, shape: tuple[int, ...]) -> None:
    if needed > found:
        raise ScanError(
            f"{path}: truncated: expected {needed:,} bytes for {' x '.join(map(str, shape))} samples, "
            f"found {found:,}; {COPY_AGAIN}"
        )
