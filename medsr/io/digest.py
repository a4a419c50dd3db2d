"""input_digest: what a scan's files are, in one number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from medsr.io.bucket import Bucket
from medsr.io.remote import fetched
from medsr.io.source import Source

__all__ = ["input_digest"]

SLICE = 1 << 20


def input_digest(files: Source | Iterable[Path]) -> str:
    """SHA-256 over the bytes of a scan's files, folders walked, in sorted order.

    Of a file above 1 GB: its size, its time of change and 64 slices of 1 MB, so that an input of many gigabytes is not
    read twice. A file in an object store has the digest of its copy on disk; an OME-Zarr there, of which no copy is
    made, that of the keys, sizes and ETags that the store lists.

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
    digest = hashlib.sha256()
    for path in sorted(files):
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            size = file.stat().st_size
            digest.update(f"{file.name} {size};".encode())
            with file.open("rb") as stream:
                if size <= 1_000_000_000:
                    while piece := stream.read(SLICE):
                        digest.update(piece)
                    continue
                digest.update(str(file.stat().st_mtime_ns).encode())
                for number in range(64):
                    stream.seek((size - SLICE) * number // 63)
                    digest.update(stream.read(SLICE))
    return digest.hexdigest()
