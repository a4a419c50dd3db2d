"""The bytes of a zarr v3 shard: chunks of blosc (zstd 3, bitshuffle) and their index; for many threads at once."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "ShardReader", "encode"]

LEVEL = 3
ABSENT = 2**64 - 1
CHECKSUM_BYTES = 4

Array = NDArray[Any]


def encode(data: Array, *, chunk: Sequence[int], shard: Sequence[int]) -> bytes:
    """One shard: its chunks, last axis fastest, then the index of their places with its checksum.

    The codec runs without the interpreter's lock, so several threads encode several shards at once.

    Args:
        data: the samples of the shard, at most `shard` along each axis (fewer at the end of an array); chunks are
            filled up with zeros, chunks that lie wholly beyond `data` are left out.
        chunk, shard: samples of each along each axis; a shard is a whole number of chunks.

    References:
        Zarr v3 sharding-indexed codec, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/.
    """
    if threading.current_thread() is threading.main_thread():
        # There blosc takes threads of its own and stores their blocks as they finish: other bytes each time.
        with ThreadPoolExecutor(1) as aside:
            return aside.submit(_encode, data, tuple(chunk), tuple(shard)).result()
    return _encode(data, tuple(chunk), tuple(shard))


def _encode(data: Array, chunk: tuple[int, ...], shard: tuple[int, ...]) -> bytes:
    counts = tuple(s // c for s, c in zip(shard, chunk, strict=True))
    little = data.dtype.newbyteorder("<")
    places = np.full((*counts, 2), ABSENT, "<u8")
    parts, end = list[bytes](), 0
    for index in product(*(range(math.ceil(n / c)) for n, c in zip(data.shape, chunk, strict=True))):
        piece = data[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))]
        if piece.shape != chunk:
            whole = np.zeros(chunk, little)
            whole[tuple(slice(n) for n in piece.shape)] = piece
            piece = whole
        packed = _pack(np.ascontiguousarray(piece, little))
        places[index] = end, len(packed)
        parts.append(packed)
        end += len(packed)
    listed = places.tobytes()
    return b"".join((*parts, listed, _checksum(listed)))


def _pack(piece: Array) -> bytes:
    from numcodecs import blosc

    return bytes(blosc.compress(piece, b"zstd", LEVEL, blosc.BITSHUFFLE, 0, typesize=piece.dtype.itemsize))


def _checksum(listed: bytes) -> bytes:
    import google_crc32c

    return struct.pack("<I", google_crc32c.value(listed))


class ShardReader:
    """The chunks of one shard, decoded one by one from its bytes.

    Args:
        stored: the bytes of the shard, as `encode` makes them.
        dtype: of its samples.
        chunk, shard: samples of each along each axis.

    Raises:
        ValueError: the bytes are no such shard, or torn.
    """

    def __init__(self, stored: bytes, *, dtype: np.dtype[Any], chunk: Sequence[int], shard: Sequence[int]) -> None:
        self.chunk = tuple(chunk)
        self.dtype = dtype
        counts = tuple(s // c for s, c in zip(shard, chunk, strict=True))
        size = 16 * math.prod(counts)
        listed, checksum = stored[-size - CHECKSUM_BYTES : -CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
        if len(listed) != size or _checksum(listed) != checksum:
            raise ValueError("expected a whole shard, found one with a damaged index")
        self._stored = memoryview(stored)
        self._places = np.frombuffer(listed, "<u8").reshape(*counts, 2)

    def read(self, index: tuple[int, ...]) -> Array:
        """The samples of one whole chunk; zeros where it is left out.

        Raises:
            ValueError: its bytes are damaged.
        """
        from numcodecs import blosc

        start, length = (int(n) for n in self._places[index])
        piece = np.empty(self.chunk, self.dtype.newbyteorder("<"))
        if start == ABSENT:
            piece[...] = 0
        else:
            try:
                blosc.decompress(self._stored[start : start + length], piece)
            except RuntimeError as error:
                raise ValueError(f"expected a whole shard, found a damaged chunk at {index}") from error
        return piece.astype(self.dtype, copy=False)
