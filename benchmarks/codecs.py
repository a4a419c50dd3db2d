"""Write throughput by codec: a real scan, upscaled, into a sharded zarr v3 array, one file a shard.

    python benchmarks/codecs.py [--scan mammogram] [--megabytes 64] [--rounds 5]

The samples are the shipped scan through cubic interpolation, in memory before the clock starts. zarr-python writes them
shard by shard with each codec; medsr's own writer with the codec it uses (blosc, zstd 3, bitshuffle), from one thread
and from as many as there are cores, as a batch does. Each way flushes every shard to the disk before it goes on, and
what it wrote is read again by zarr-python and compared, outside of the clock. MB are 10**6 bytes of samples.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from paired import Column, Figures, WayFailedError, command_line, finish, report, run_rounds
from zarr.codecs import BloscCodec, BloscShuffle, ZstdCodec

import medsr
from medsr.io import omezarr
from medsr.io.places import place

Array = NDArray[Any]

SCANS = {"mammogram": (medsr.MAMMOGRAM, (4, 4)), "nuclei": (medsr.NUCLEI, (1, 4, 4))}
BASE = "medsr, 1 writer"

COLUMNS = (
    Column("megabytes_per_s", "MB/s", ".0f", ratio=True),
    Column("compression", "raw / stored", ".2f"),
)

BIT, BYTE = BloscShuffle.bitshuffle, BloscShuffle.shuffle


def codecs(itemsize: int) -> dict[str, BloscCodec | ZstdCodec | None]:
    """What zarr-python is asked to compress with."""

    def blosc(name: str, level: int, shuffle: BloscShuffle) -> BloscCodec:
        return BloscCodec(cname=name, clevel=level, shuffle=shuffle, typesize=itemsize)

    return {
        "none": None,
        "blosc lz4 5 bitshuffle": blosc("lz4", 5, BIT),
        "blosc zstd 1 bitshuffle": blosc("zstd", 1, BIT),
        "blosc zstd 3 bitshuffle": blosc("zstd", 3, BIT),
        "blosc zstd 5 bitshuffle": blosc("zstd", 5, BIT),
        "blosc zstd 3 byteshuffle": blosc("zstd", 3, BYTE),
        "zstd 3": ZstdCodec(level=3),
    }


def upscaled(name: str, megabytes: float) -> tuple[medsr.Scan, Array, omezarr.Level]:
    """A shipped scan through cubic interpolation, its samples and how they are stored: cut to about a size along the
    first axis, and to whole shards where there are some, so that nothing stored is filling."""
    path, factor = SCANS[name]
    scan = medsr.upscale(medsr.read_scan(path), medsr.Cubic(factor), device="cpu")
    row = math.prod(scan.shape[1:]) * scan.intensity.dtype.itemsize
    size = (min(scan.shape[0], max(1, round(megabytes * 1e6 / row))), *scan.shape[1:])
    size = tuple(
        n - n % s if n > s else n for n, s in zip(size, omezarr.plan_levels(size, scan.grid)[0].shard, strict=True)
    )
    data = np.ascontiguousarray(scan.read(tuple(slice(n) for n in size)))
    return scan, data, omezarr.plan_levels(size, scan.grid)[0]


def with_zarr(root: Path, level: omezarr.Level, data: Array, codec: Any) -> None:
    """zarr-python, shard by shard."""
    array = zarr.create_array(
        root / "0", shape=level.shape, chunks=level.chunk, shards=level.shard, dtype=data.dtype, compressors=codec
    )
    for index, region in omezarr.shard_regions(level):
        array[region] = data[region]
        with root.joinpath(omezarr.shard_key(level, index)).open("rb+") as stream:
            os.fsync(stream.fileno())


def with_medsr(root: Path, level: omezarr.Level, data: Array, scan: medsr.Scan, writers: int) -> None:
    """medsr's writer, from some threads."""
    target = place(root)
    documents = omezarr.metadata(
        [level], intensity=scan.intensity, name="codecs", factor=(1,) * len(level.shape), attributes={}
    )
    for key, document in documents.items():
        target.put(key, document)
    with ThreadPoolExecutor(writers) as threads:
        shards = [
            threads.submit(omezarr.write_shard, target, level, index, data[region])
            for index, region in omezarr.shard_regions(level)
        ]
        for shard in shards:
            shard.result()


def timed(write: Callable[[Path], None], data: Array) -> Figures:
    """Write, then read again and compare."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        begun = time.perf_counter()
        write(root)
        seconds = time.perf_counter() - begun
        stored = sum(path.stat().st_size for path in (root / "0" / "c").rglob("*") if path.is_file())
        found = zarr.open_array(root / "0", mode="r")
        if not np.array_equal(np.asarray(found[...]), data):
            raise WayFailedError("expected to read what was written, found other samples")
    return {"megabytes_per_s": data.nbytes / 1e6 / seconds, "compression": data.nbytes / stored}


def in_turn(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """All ways on one scan; prints the table."""
    scan, data, level = upscaled(name, arguments.megabytes)
    writers = sorted({1, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1})
    ways = {
        f"medsr, {n} writer{'s' * (n > 1)}": partial(
            timed, partial(with_medsr, level=level, data=data, scan=scan, writers=n), data
        )
        for n in writers
    }
    for title, codec in codecs(data.dtype.itemsize).items():
        ways[f"zarr-python, {title}"] = partial(timed, partial(with_zarr, level=level, data=data, codec=codec), data)
    results = run_rounds(ways, arguments.rounds, warm=1)
    title = (
        f"codecs: {name}, {' x '.join(map(str, data.shape))} {data.dtype}, {data.nbytes / 1e6:.0f} MB, shards of "
        f"{' x '.join(map(str, level.shard))}, chunks of {' x '.join(map(str, level.chunk))}"
    )
    return report(results, COLUMNS, base=BASE, title=title, settings=arguments)


def main() -> int:
    """Run all ways in turn on one scan or each, and print the tables."""
    parser = command_line(__doc__, rounds=5)
    parser.add_argument("--scan", choices=tuple(SCANS), help="one scan only")
    parser.add_argument("--megabytes", type=float, default=64, help="samples to write (64)")
    arguments = parser.parse_args()
    names = tuple(SCANS) if arguments.scan is None else (arguments.scan,)
    return finish([in_turn(arguments, name) for name in names], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
