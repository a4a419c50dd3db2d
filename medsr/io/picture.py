"""PNG and PGM in: gray of 8 or 16 bits, exactly as stored; color, palette and transparency refused."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.io.lazy import KEEP_BYTES, BlockArray, MappedArray
from medsr.io.planes import Opened, make_scan, numbered_planes, read_stack
from medsr.io.source import Source
from medsr.io.tiff_metadata import Header
from medsr.io.units import INCH_UM, print_spacing_um
from medsr.scan import Intensity, Scan, ScanError

__all__ = ["accepts", "plane_form", "read"]

SUFFIXES = (".png", ".pgm", ".pnm")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNM_MAGIC = re.compile(rb"P[1-7][\s#]")
PNM_KIND = {b"P1": "a 1-bit mask", b"P2": "gray written as text", b"P3": "RGB color", b"P4": "a 1-bit mask",
            b"P6": "RGB color", b"P7": "a PAM picture"}  # fmt: skip
PNG_KIND = {2: "RGB color", 3: "a color palette", 4: "gray with transparency", 6: "RGB color with transparency"}
COPY_AGAIN = "copy it again from where it was made"
DEFLATE_RATIO = 1100  # deflate cannot pack more than 1032 bytes into one
METER_UM = 1e6
CURE = "save it as gray of 8 or 16 bits without transparency"


def accepts(path: Path) -> bool:
    """Whether a file starts as a PNG or a netpbm picture does, or a folder holds the numbered PNGs of one stack."""
    try:
        if path.is_dir():
            return bool(numbered_planes((p for p in path.iterdir() if not p.name.startswith(".")), (".png",)))
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return head == PNG_MAGIC or PNM_MAGIC.match(head) is not None


def read(source: Source, series: str | int | None = None, *, intensity: Intensity | None = None) -> Scan:
    """A gray PNG or binary PGM (P5) of 8 or 16 bits as a scan with axes y, x; numbered planes of a folder as z, y, x.

    A PGM whose highest value is below that of its type (4095 in 16 bits) fixes the intensity line from 0 to that
    value; else the line is the robust one. Spacing comes from the pHYs chunk of a PNG where it is in meters and no
    resolution for print or screen.

    Args:
        source: one file, or the planes of one stack.
        series: nothing or 0.
        intensity: taken instead of a measured one.

    Raises:
        ScanError: damaged, cut off, color, palette, transparency, fewer than 8 bits, or a series other than 0.
    """
    path = source.path
    if series not in (None, 0, "0"):
        raise ScanError(f"{path}: expected no series or 0, found {series!r}; a picture is one image")
    if len(source.files) > 1 and path.is_dir():
        return read_stack(source, partial(_open, keep=0), reader="picture", intensity=intensity)
    return make_scan(_open(path), reader="picture", intensity=intensity)


def plane_form(path: Path) -> tuple[object, ...] | None:
    """Size and type of the samples of a PNG, comparable; None where it is another file or damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return None
    return struct.unpack(">IIBB", head[16:26]) if head[:8] == PNG_MAGIC and len(head) == 26 else None


def _open(path: Path, *, keep: int = KEEP_BYTES) -> Opened:
    try:
        with path.open("rb") as file:
            magic = file.read(8)
        if magic == PNG_MAGIC:
            return _open_png(path, keep)
        if PNM_MAGIC.match(magic):
            return _open_pgm(path)
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from error
    raise ScanError(f"{path}: expected a PNG or PGM picture, found other content; {COPY_AGAIN}")


@dataclass(frozen=True)
class _DecodePng:
    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def __call__(self, _: tuple[int, ...]) -> NDArray[Any]:
        import imagecodecs

        try:
            decoded = imagecodecs.png_decode(self.path.read_bytes())
        except MemoryError:
            raise
        except Exception as error:  # the codec's own error type; one line that names the file
            raise ScanError(f"{self.path}: damaged or truncated PNG ({error}); {COPY_AGAIN}") from error
        if decoded.shape != self.shape or decoded.dtype != self.dtype:
            raise ScanError(
                f"{self.path}: expected {self.shape} {self.dtype}, found {decoded.shape} {decoded.dtype}; {CURE}"
            )
        return np.asarray(decoded)


def _open_png(path: Path, keep: int) -> Opened:
    size = path.stat().st_size
    chunks = dict(_png_chunks(path))
    if len(chunks.get(b"IHDR", b"")) != 13 or b"IDAT" not in chunks or b"IEND" not in chunks:
        raise ScanError(f"{path}: truncated: expected a PNG that ends with IEND, found {size} bytes; {COPY_AGAIN}")
    width, height, bits, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    if kind != 0 or b"tRNS" in chunks:
        raise ScanError(f"{path}: expected gray, found {PNG_KIND.get(kind, 'gray with transparency')}; {CURE}")
    if bits not in (8, 16):
        raise ScanError(f"{path}: expected 8 or 16 bits, found {bits}; {CURE}")
    if 0 in (width, height) or width * height * bits // 8 > DEFLATE_RATIO * size:
        raise ScanError(f"{path}: the header says {width} x {height}, the file has {size} bytes; {COPY_AGAIN}")
    dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
    load = _DecodePng(path, (height, width), dtype)
    data = BlockArray((height, width), dtype, block=(height, width), load=load, keep=keep)
    header = Header()
    if len(chunks.get(b"pHYs", b"")) == 9 and chunks[b"pHYs"][8] == 1:
        per_x, per_y = struct.unpack(">II", chunks[b"pHYs"][:8])
        for axis, samples in (("y", per_y), ("x", per_x)):
            found = print_spacing_um(samples, METER_UM)
            if found is not None:
                header.spacing_um[axis] = found
            else:
                header.explained.add(axis)
                inch = f"{samples * INCH_UM / METER_UM:.0f}"
                header.warnings.append(
                    f"spacing along {axis}: {samples} samples per meter (about {inch} per inch) in the file "
                    "are a resolution for print or screen, or not plausible; unknown"
                )
    return Opened(path, data, "yx", header)


def _png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Whole chunks of a PNG up to and with IEND; the content of long ones is left out."""
    size = path.stat().st_size
    chunks = []
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            body = file.read(length) if length <= 1024 else file.read(0)
            file.seek(length - len(body) + 4, 1)
            if file.tell() > size:
                break
            chunks.append((name, body))
            if name == b"IEND":
                break
    return chunks


def _open_pgm(path: Path) -> Opened:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:2] != b"P5":
        raise ScanError(f"{path}: expected binary gray (P5), found {PNM_KIND[head[:2]]}; {CURE}")
    token = rb"(?:\s|#[^\n]*\n)+(\d{1,9})"
    match = re.match(rb"P5" + 3 * token + rb"\s", head)
    if match is None:
        raise ScanError(f"{path}: expected width, height and highest value after P5, found other text; {COPY_AGAIN}")
    width, height, highest = (int(n) for n in match.groups())
    if not 1 <= highest <= 65535 or 0 in (width, height):
        raise ScanError(
            f"{path}: expected a size and a highest value of 1 to 65535, found {width} x {height} x {highest}"
        )
    if highest < 2:
        raise ScanError(f"{path}: expected gray, found a 1-bit mask; {CURE}")
    dtype = np.dtype(">u2" if highest > 255 else "u1")
    needed = match.end() + width * height * dtype.itemsize
    if size < needed:
        raise ScanError(
            f"{path}: truncated: expected {needed} bytes for {width} x {height}, found {size}; {COPY_AGAIN}"
        )
    with path.open("rb") as file:
        file.seek(needed)
        if PNM_MAGIC.match(file.read(64).lstrip()):
            raise ScanError(f"{path}: expected one picture, found several one after the other; split them into files")
    data = MappedArray(path, offset=match.end(), shape=(height, width), dtype=dtype)
    return Opened(path, data, "yx", Header(), highest=None if highest == np.iinfo(dtype).max else highest)
