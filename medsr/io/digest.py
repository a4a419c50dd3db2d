"""input_digest: what a scan's files are, in one number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["input_digest"]

SLICE = 1 << 20


def input_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of a scan's files, folders walked, in sorted order.

    Of a file above 1 GB: its size, its time of change and 64 slices of 1 MB, so that an input of many gigabytes is not
    read twice.
    """
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
