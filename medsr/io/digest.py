"""input_digest: what a scan's files are, in one number."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from medsr.io.bucket import Bucket
from medsr.io.remote import fetched
from medsr.io.source import Source

__all__ = ["input_digest"]

SLICE = 1 << 20
SLICES = 64
WHOLE = 1_000_000_000
"""Bytes of a scan up to which all are read."""


def input_digest(files: Source | Iterable[Path]) -> str:
    """SHA-256 over the bytes of a scan's files, folders walked, in sorted order.

    Of files above 1 GB in all: names, sizes, times of change, and 64 slices of 1 MB from all over them, so that an
    input of many gigabytes is not read twice. A file in an object store has the digest of its copy on disk; an OME-Zarr
    there, of which no copy is made, that of the keys, sizes and ETags that the store lists.

    Raises:
        OSError: a file cannot be read, or the store does not answer.
    """
    if isinstance(files, Source) and files.url:
        bucket = Bucket(files.url)
        if not bucket.is_file():
            return hashlib.sha256(repr(sorted(bucket.listing().items())).encode()).hexdigest()
        copy = fetched(files.url)  # it is there as long as this name
        return _of_files((copy.path,))
    return _of_files(files.files if isinstance(files, Source) else files)


def _of_files(files: Iterable[Path]) -> str:
    found = [inside for path in sorted(files) for inside in (_inside(path) if path.is_dir() else [path])]
    stats = [file.stat() for file in found]
    sizes = [stat.st_size for stat in stats]
    whole, digest = sum(sizes) <= WHOLE, hashlib.sha256()
    wanted = {} if whole else _slices(sizes)
    for number, (file, stat) in enumerate(zip(found, stats, strict=True)):
        digest.update(f"{file.name} {stat.st_size};".encode())
        if whole:
            with file.open("rb") as stream:
                while piece := stream.read(SLICE):
                    digest.update(piece)
            continue
        digest.update(str(stat.st_mtime_ns).encode())
        if number in wanted:
            with file.open("rb") as stream:
                for start in wanted[number]:
                    stream.seek(start)
                    digest.update(stream.read(SLICE))
    return digest.hexdigest()


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _slices(sizes: list[int]) -> dict[int, list[int]]:
    """Where slices begin, by the number of the file: evenly over the files laid end to end."""
    ends = list(accumulate(sizes))
    wanted: dict[int, list[int]] = {}
    for number in range(SLICES):
        at = (ends[-1] - SLICE) * number // (SLICES - 1)
        file = bisect_right(ends, at)
        wanted.setdefault(file, []).append(at - ends[file] + sizes[file])
    return wanted
