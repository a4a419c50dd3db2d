"""Lazy arrays: blocks decoded once and kept for a while, raw samples mapped from a file, axes put in order."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.scan import LazyArray

__all__ = ["KEEP_BYTES", "KEEP_BYTES_MOST", "Arranged", "BlockArray", "MappedArray", "set_cache_limit"]

Array = NDArray[Any]
Index = tuple[int, ...]

KEEP_BYTES = 128 * 2**20
KEEP_BYTES_MOST = 512 * 2**20
REMEMBERED_BLOCKS = 2**16

_limit = KEEP_BYTES_MOST


def set_cache_limit(limit_bytes: int) -> None:
    """Let each lazy array of this process keep at most `limit_bytes` of decoded blocks (default 512 MiB), from its
    next request on; 0 keeps only the block in use.

    Raises:
        ValueError: below 0.
    """
    global _limit
    if limit_bytes < 0:
        raise ValueError(f"set_cache_limit: expected bytes of at least 0, found {limit_bytes}")
    _limit = int(limit_bytes)


def _boxed(region: Any, shape: tuple[int, ...]) -> tuple[list[range], tuple[slice | int, ...]]:
    """The box of samples a NumPy basic index touches, and the index that picks the answer out of that box."""
    parts = list(region) if isinstance(region, tuple) else [region]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > len(shape):
        raise IndexError(f"expected at most {len(shape)} indices for shape {shape}, found {region!r}")
    at = dots[0] if dots else len(parts)
    missing = len(shape) - (len(parts) - len(dots))
    parts[at : at + len(dots)] = [slice(None)] * missing
    box: list[range] = []
    pick: list[slice | int] = []
    for part, size in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            wanted = range(*part.indices(size))
            low, high = (min(wanted), max(wanted) + 1) if len(wanted) else (0, 0)
            box.append(range(low, high))
            pick.append(slice(None, None, wanted.step))  # the box ends where the wanted samples end
        elif isinstance(part, (int, np.integer)) and -size <= part < size:
            box.append(range(int(part) % size, int(part) % size + 1))
            pick.append(0)
        else:
            raise IndexError(f"expected slices and whole numbers within shape {shape}, found {part!r}")
    return box, tuple(pick)


class BlockArray:
    """An array cut into equal blocks; each is decoded when first asked for and kept while it is likely to return.

    A block of which only a part was asked for so far (a plane of which tiles are taken) is likely to return: such
    blocks are kept up to the limit of `set_cache_limit` (512 MiB). Of the blocks that were handed out whole, those
    used last are kept, up to `keep` bytes; `keep` doubles, up to that limit, when a block that was dropped returns.
    So a sweep over tiles, or over the shards of a slab of planes, decodes each block once, and a reader of whole
    planes holds little. Threads may share one; a block that two ask for is decoded by one. Pickled without its blocks.

    Args:
        shape, dtype: of the whole array; the dtype in native byte order.
        block: samples of a block along each axis; blocks at the end may be shorter.
        load: decodes the block of an index (one whole number for each axis); picklable.
        keep: bytes of blocks handed out whole that stay, at first; 0 keeps nothing at all.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        *,
        block: Sequence[int],
        load: Callable[[Index], Array],
        keep: int = KEEP_BYTES,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.block = tuple(max(1, min(int(b), n)) for b, n in zip(block, self.shape, strict=True))
        self.load = load
        self.keep = keep
        self._forget()

    def _forget(self) -> None:
        self._partly: OrderedDict[Index, Array] = OrderedDict()  # samples of them are still to be asked for
        self._wholly: OrderedDict[Index, Array] = OrderedDict()
        self._due: dict[Index, int] = {}  # how many samples of a kept block were not asked for yet
        self._dropped: set[Index] = set()
        self._pending: dict[Index, Future[Array]] = {}
        self._bytes = 0
        self._wholly_bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __getitem__(self, region: Any, /) -> Array:
        box, pick = _boxed(region, self.shape)
        out = np.empty([len(r) for r in box], self.dtype)
        if out.size:
            spans = [range(r[0] // b, r[-1] // b + 1) for r, b in zip(box, self.block, strict=True)]
            for index in product(*spans):
                target, within = self._overlap(index, box)
                out[target] = self._get(index, math.prod(w.stop - w.start for w in within))[within]
        return out[pick]

    def _overlap(self, index: Index, box: list[range]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a block's samples go in the answer, and which they are inside the block."""
        target, within = [], []
        for i, b, r in zip(index, self.block, box, strict=True):
            low, high = max(r.start, i * b), min(r.stop, (i + 1) * b)
            target.append(slice(low - r.start, high - r.start))
            within.append(slice(low - i * b, high - i * b))
        return tuple(target), tuple(within)

    def _get(self, index: Index, taken: int) -> Array:
        """A whole block, of which the caller takes `taken` samples."""
        with self._lock:
            found = self._wholly.get(index)
            if found is not None:
                self._wholly.move_to_end(index)
                return found
            found = self._partly.pop(index, None)
            if found is not None:
                self._put(index, found, taken)
                self._make_room(index)
                return found
            waiting = self._pending.get(index)
            if waiting is None:
                mine: Future[Array] = Future()
                self._pending[index] = mine
        if waiting is not None:
            return waiting.result()
        try:
            decoded = self.load(index)
        except BaseException as error:
            with self._lock:
                del self._pending[index]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._pending[index]
            if self.keep:
                if index in self._dropped:
                    self._dropped.discard(index)
                    self.keep = max(self.keep, min(2 * self.keep, _limit))
                self._bytes += decoded.nbytes
                self._due[index] = decoded.size
                self._put(index, decoded, taken)
                self._make_room(index)
        mine.set_result(decoded)
        return decoded

    def _put(self, index: Index, block: Array, taken: int) -> None:
        """Place a block, new or partly handed out, as the one used last."""
        self._due[index] -= taken
        if self._due[index] > 0:
            self._partly[index] = block
        else:
            self._wholly[index] = block
            self._wholly_bytes += block.nbytes

    def _make_room(self, newest: Index) -> None:
        """Drop the blocks used longest ago beyond what may be kept; the newest stays, however large."""
        while self._wholly and (self._wholly_bytes > self.keep or self._bytes > _limit):
            if next(iter(self._wholly)) == newest:
                break
            index, dropped = self._wholly.popitem(last=False)
            self._wholly_bytes -= dropped.nbytes
            self._drop(index, dropped)
        while self._partly and self._bytes > _limit and next(iter(self._partly)) != newest:
            self._drop(*self._partly.popitem(last=False))

    def _drop(self, index: Index, block: Array) -> None:
        del self._due[index]
        self._bytes -= block.nbytes
        if len(self._dropped) >= REMEMBERED_BLOCKS:
            self._dropped.clear()
        self._dropped.add(index)


class MappedArray:
    """Uncompressed samples that lie in a file one after the other, mapped and not read; pickled by its path.

    Args:
        path, offset: the file and the byte of the first sample.
        dtype: of the samples in the file, its byte order included; answers come in native byte order.
    """

    def __init__(self, path: Path, *, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.path = path
        self.offset = offset
        self.shape = tuple(int(n) for n in shape)
        self.stored = np.dtype(dtype)
        self.dtype = self.stored.newbyteorder("=")

    def __getitem__(self, region: Any, /) -> Array:
        # Mapped for this request only: what a mapping has touched counts as memory of the process until it is closed.
        mapped = np.memmap(self.path, self.stored, mode="r", offset=self.offset, shape=self.shape)
        return np.array(mapped[region], dtype=self.dtype)


class Arranged:
    """A view of a lazy array with its axes in another order and those of length 1 left out.

    Args:
        base: the array.
        order: for each axis of the view the axis of `base`; an axis of `base` not named must have length 1.
    """

    def __init__(self, base: LazyArray, order: Sequence[int]) -> None:
        dropped = [n for i, n in enumerate(base.shape) if i not in order]
        if any(n != 1 for n in dropped) or len(set(order)) != len(order):
            raise ValueError(f"Arranged: expected axes left out to have length 1, found shape {base.shape} as {order}")
        self.base = base
        self.order = tuple(order)
        self.shape = tuple(int(base.shape[i]) for i in order)
        self.dtype = np.dtype(base.dtype).newbyteorder("=")

    def __getitem__(self, region: Any, /) -> Array:
        box, pick = _boxed(region, self.shape)
        part = [slice(0, 1)] * len(self.base.shape)
        for axis, span in zip(self.order, box, strict=True):
            part[axis] = slice(span.start, span.stop)
        lengths = [len(r) for r in box]
        if 0 in lengths:
            return np.empty(lengths, self.dtype)[pick]
        found = np.asarray(self.base[tuple(part)])
        rest = [i for i in range(found.ndim) if i not in self.order]
        return found.transpose(*self.order, *rest).reshape(lengths)[pick]
