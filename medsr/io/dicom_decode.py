"""DICOM frames to planes: decoders one after the other, unused bits cleaned, on demand and once."""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.io.dicom_frames import (
    HTJ2K,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    RLE,
    Frame,
    Layout,
    StreamFacts,
    read_spans,
    stream_facts,
    syntax_name,
)
from medsr.io.lazy import BlockArray
from medsr.scan import ScanError

__all__ = ["PlaneLoader", "lazy_planes", "quiet"]

Array = NDArray[Any]

ROWS_BYTES = 2**19
LARGE_PLANE = 2**30
ALONE_SECONDS = 300

CODECS: dict[str, str] = {
    **dict.fromkeys(JPEG, "jpeg8_decode"),
    **dict.fromkeys(JPEG_LS, "jpegls_decode"),
    **dict.fromkeys(JPEG_2000, "jpeg2k_decode"),
    **dict.fromkeys(HTJ2K, "jpeg2k_decode"),  # its htj2k_decode fills a broken stream with anything
    RLE: "dicomrle_decode",
}
PREFERENCE = ("imagecodecs", "pyjpegls", "gdcm", "pylibjpeg", "pillow", "pydicom")

# What pydicom asks of the module of a decoder plug-in: DECODER_DEPENDENCIES, is_available, and the function itself.
DECODER_DEPENDENCIES = dict.fromkeys(CODECS, ("imagecodecs",))


def is_available(uid: str) -> bool:
    """Whether imagecodecs decodes this transfer syntax (asked by pydicom)."""
    return str(uid) in CODECS


def decode_with_imagecodecs(src: bytes, runner: Any) -> bytes:
    """One encoded gray frame to little-endian bytes: a decoder plug-in of pydicom."""
    import imagecodecs

    if runner.samples_per_pixel != 1:
        raise ValueError("one sample a pixel only")
    name = CODECS[str(runner.transfer_syntax)]
    if name == "dicomrle_decode":
        data = bytes(imagecodecs.dicomrle_decode(src, f"<u{runner.bits_allocated // 8}"))
        if len(data) != runner.frame_length(unit="bytes"):
            raise ValueError(f"expected {runner.frame_length(unit='bytes')} bytes, decoded {len(data)}")
        return data
    plane = getattr(imagecodecs, name)(src)
    if plane.shape != (runner.rows, runner.columns):
        raise ValueError(f"expected {runner.rows} x {runner.columns} samples, decoded {plane.shape}")
    runner.set_option("bits_allocated", 8 * plane.dtype.itemsize)
    return bytes(plane.astype(plane.dtype.newbyteorder("<")).tobytes())


_muted: ContextVar[bool] = ContextVar("_muted", default=False)
_filters = threading.RLock()


class _Mute(logging.Filter):
    """Drops what pydicom logs while this reader calls it: the texts quote header values, even a patient's name."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not _muted.get()


@cache
def _mute_loggers() -> None:
    for name in ("pydicom", "pydicom.pixels.decoders.base", "pydicom.pixels.utils"):
        logging.getLogger(name).addFilter(_Mute())


@contextmanager
def _mute() -> Iterator[None]:
    _mute_loggers()
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Catch every warning and log line of pydicom; yields the list of caught warnings. One thread at a time, because
    Python's warning filters are shared by all."""
    with _filters, _mute(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def _decode(frame: Frame) -> Array:
    """One whole plane (rows, columns), unused bits cleaned."""
    layout = frame.layout
    data = read_spans(frame)
    if layout.encapsulated:
        return _decode_stream(frame, data)
    if layout.swapped:
        data = np.frombuffer(data, np.uint16).byteswap().tobytes()
    shape = (layout.rows, layout.columns)
    if layout.allocated < 8:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[frame.bit :][: math.prod(shape)].reshape(shape)
    samples = np.frombuffer(data, _file_dtype(layout), math.prod(shape), frame.bit // 8)
    return _clean(samples.astype(layout.dtype).reshape(shape), layout, layout.stored)


def _file_dtype(layout: Layout) -> np.dtype[Any]:
    return layout.dtype.newbyteorder("<" if layout.little else ">")


def _read_rows(frame: Frame, top: int, bottom: int) -> Array:
    """Some rows of an uncompressed plane; nothing else of it is read."""
    layout = frame.layout
    ((offset, _),) = frame.spans
    pitch = layout.columns * layout.dtype.itemsize
    part = frame._replace(spans=((offset + top * pitch, (bottom - top) * pitch),))
    samples = np.frombuffer(read_spans(part), _file_dtype(layout)).reshape(-1, layout.columns)
    return _clean(samples.astype(layout.dtype), layout, layout.stored)


def _clean(values: Array, layout: Layout, stored: int, *, shift: int | None = None) -> Array:
    """Keep the `stored` bits below HighBit, sign extended where signed: what lies above them (old overlays, garbage)
    is no part of a value (DICOM PS3.5, 8.1.1)."""
    if layout.floating or stored >= layout.allocated:
        return values
    shift = layout.high + 1 - layout.stored if shift is None else shift
    if layout.signed:
        np.left_shift(values, layout.allocated - stored - shift, out=values)
        np.right_shift(values, layout.allocated - stored, out=values)
        return values
    if shift:
        np.right_shift(values, shift, out=values)
    np.bitwise_and(values, values.dtype.type(2**stored - 1), out=values)
    return values


def _decode_stream(frame: Frame, data: bytes) -> Array:
    from pydicom.encaps import encapsulate

    layout = frame.layout
    facts = _check_stream(frame, data)
    options = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": int(layout.signed),
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "correct_unused_bits": False,
    }
    source = encapsulate([data], has_bot=False)
    reasons = []
    for name in _plugins(frame):
        try:
            values = _decode_with(name, layout, source, options)
        except Exception as error:  # noqa: BLE001  (a decoder may raise anything; the next one is asked)
            reason = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(reason[-1].strip()[:120])
            continue
        return _clean(values, layout, _significant(layout, facts), shift=_shift(layout))
    raise ScanError(
        f"{frame.path}: expected {syntax_name(layout.syntax)} pixel data that a decoder reads, found none that does "
        f"({'; '.join(reasons) or 'no decoder installed'}); get a whole copy or save it uncompressed"
    )


def _decode_with(name: str, layout: Layout, source: bytes, options: dict[str, Any]) -> Array:
    if name != PREFERENCE[0]:
        return _decode_alone(name, layout, source, options)
    from pydicom.pixels.decoders.base import get_decoder

    with _mute():
        values: Array = get_decoder(layout.syntax).as_array(
            source, index=0, raw=True, validate=False, decoding_plugin=name, **options
        )[0]
    return values.astype(layout.dtype)


def _decode_alone(name: str, layout: Layout, source: bytes, options: dict[str, Any]) -> Array:
    """Decode in a process of its own: on damaged data gdcm ends the process it runs in, and others print."""
    dtype = layout.dtype.newbyteorder("<")
    task = {"plugin": name, "syntax": layout.syntax, "dtype": dtype.str, "options": options}
    done = subprocess.run(  # noqa: S603  (this Python and a file of this package)
        [sys.executable, "-P", str(Path(__file__).with_name("dicom_alone.py"))],
        input=json.dumps(task).encode() + b"\n" + source,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=ALONE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(lines[-1] if done.returncode == 1 and lines else f"{name}: crashed on it")
    samples = np.frombuffer(done.stdout, dtype)
    return samples.reshape(layout.rows, layout.columns).astype(layout.dtype)


@cache
def _register() -> None:
    """Make imagecodecs a decoder plug-in of pydicom, once."""
    from pydicom.pixels.decoders.base import get_decoder

    for uid in CODECS:
        decoder = get_decoder(uid)
        if PREFERENCE[0] not in decoder.available_plugins:
            decoder.add_plugin(PREFERENCE[0], (__name__, "decode_with_imagecodecs"))


def _plugins(frame: Frame) -> list[str]:
    from pydicom.pixels.decoders.base import get_decoder

    with _filters:
        _register()
    try:
        names = get_decoder(frame.layout.syntax).available_plugins
    except NotImplementedError:
        return []
    return sorted(names, key=lambda n: PREFERENCE.index(n) if n in PREFERENCE else len(PREFERENCE))


def _check_stream(frame: Frame, data: bytes) -> StreamFacts | None:
    """Refuse what a decoder would fill with gray or zeros, or allocate without need."""
    layout = frame.layout
    plane_bytes = layout.rows * layout.columns * layout.allocated // 8
    factor = 64 if layout.syntax == RLE else 1000
    if plane_bytes > factor * len(data) and (layout.syntax == RLE or plane_bytes > LARGE_PLANE):
        raise ScanError(
            f"{frame.path}: expected {layout.rows} x {layout.columns} samples ({plane_bytes} bytes) as its header "
            f"says, found {len(data)} compressed bytes, too few for them; the file is damaged, get a whole copy"
        )
    if layout.syntax == RLE:
        _check_rle(frame, data)
    if layout.syntax not in CODECS or layout.syntax == RLE:
        return None
    if b"\xff\xd9" not in data.rstrip(b"\0")[-16:]:
        raise ScanError(
            f"{frame.path}: expected the end marker of a {syntax_name(layout.syntax)} frame, found none; "
            "the frame is truncated, get a whole copy"
        )
    return stream_facts(frame, data)


def _check_rle(frame: Frame, data: bytes) -> None:
    """Refuse segments that lie outside the frame, which some decoders would read from other memory (PS3.5 G.5)."""
    count, *starts = struct.unpack_from("<16I", data.ljust(64, b"\0"))
    starts = [*starts[:count], len(data)]
    if count != frame.layout.allocated // 8 or starts[0] != 64 or any(a >= b for a, b in pairwise(starts)):
        raise ScanError(
            f"{frame.path}: expected an RLE frame of {frame.layout.allocated // 8} segments, found a header that says "
            f"{count} of them or places them outside the frame; the file is damaged, get a whole copy"
        )


def _significant(layout: Layout, facts: StreamFacts | None) -> int:
    """Bits of a decoded value that count: a JPEG 2000 stream of more bits than BitsStored says is believed, unless it
    holds the whole container."""
    if facts and layout.syntax in JPEG_2000 + HTJ2K and facts.precision < layout.allocated:
        return max(layout.stored, facts.precision)
    return layout.stored


def _shift(layout: Layout) -> int | None:
    return None if layout.syntax == RLE else 0


@dataclass(frozen=True, slots=True)
class PlaneLoader:
    """Loads a block of a lazy array of planes: rows of an uncompressed plane where they lie, else a whole plane.

    Attributes:
        frames: where the planes lie, slowest axis first.
        lead: lengths of the axes before rows and columns.
        rows: rows of a block.
    """

    frames: tuple[Frame, ...]
    lead: tuple[int, ...]
    rows: int

    def __call__(self, index: tuple[int, ...]) -> Array:
        """Stored values of the block `index`, native byte order.

        Raises:
            ScanError: the frame is truncated or no decoder reads it.
        """
        frame = self.frames[int(np.ravel_multi_index(index[:-2], self.lead)) if self.lead else 0]
        top = index[-2] * self.rows
        try:
            if frame.layout.direct:
                block = _read_rows(frame, top, min(top + self.rows, frame.layout.rows))
            else:
                block = _decode(frame)
        except ScanError:
            raise
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise ScanError(f"{frame.path}: expected pixel data, found them unreadable ({reason})") from error
        return block.reshape(*(1 for _ in self.lead), *block.shape)


def lazy_planes(frames: Sequence[Frame], lead: tuple[int, ...]) -> BlockArray:
    """The planes of a scan as one lazy array of axes `lead`, rows, columns.

    Rows of uncompressed planes are read when asked for and not kept; all other planes are decoded once and kept.
    """
    layout = frames[0].layout
    direct = all(f.layout.direct for f in frames)
    pitch = layout.columns * layout.dtype.itemsize
    rows = max(1, min(layout.rows, ROWS_BYTES // pitch)) if direct else layout.rows
    return BlockArray(
        (*lead, layout.rows, layout.columns),
        layout.dtype,
        block=(*(1 for _ in lead), rows, layout.columns),
        load=PlaneLoader(tuple(frames), lead, rows),
        **({"keep": 0} if direct else {}),
    )
