"""Time and peak memory against the size of the result, at one memory budget; and the cost of going on.

    python benchmarks/volumes.py [--gigabytes 0.5 2 8] [--memory 1.5e9] [--rounds 1]

The shipped stack of nuclei, repeated, is upscaled 2 x 2 plane by plane by cubic interpolation, file to OME-Zarr. Memory
is that of the whole process, interpreter and libraries included. "stopped" is the smallest of these runs stopped when
half its shards are committed, and given again: what it took in all, against a run that was not stopped.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from paired import Column, Figures, answer, command_line, finish, own_process, peak_megabytes, report, run_rounds

COLUMNS = (
    Column("seconds", "seconds", ".1f"),
    Column("megabytes_a_second", "MB/s of result"),
    Column("peak_mb", "peak MB", ".0f"),
)


class HaltError(Exception):
    """Ends a run on purpose."""


def stack(path: Path, gigabytes: float) -> None:
    """A stack of real planes whose result has a size."""
    import medsr

    planes = medsr.read_scan(medsr.NUCLEI).read()
    wide = np.tile(planes, (1, 4, 4))
    count = max(1, round(gigabytes * 1e9 / (wide[0].nbytes * 4)))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(
            (wide[i % len(wide)] for i in range(count)),
            shape=(count, *wide.shape[1:]),
            dtype=wide.dtype,
            photometric="minisblack",
            metadata={"axes": "ZYX"},
        )


def one(path: Path, memory: int, *, stopped: bool) -> None:
    """One run in this process."""
    import medsr

    def halfway(_: str, done: int, total: int) -> None:
        if done >= total // 2:
            raise HaltError

    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        job = partial(medsr.upscale_folder, path, medsr.Cubic((2, 2)), out=out, memory=memory, device="cpu")
        if stopped:
            row = job(tick=halfway).rows[0]
            if "HaltError" not in row.reason:
                raise RuntimeError(f"expected a run that is stopped, found {row}")
        row = job().rows[0]
        if row.status != "done":
            raise RuntimeError(row.reason)
        seconds = time.perf_counter() - begun
    answer(seconds=seconds, peak_mb=peak_megabytes())


def measured(path: Path, memory: int, gigabytes: float, *, stopped: bool) -> Figures:
    """One run in a process of its own."""
    figures = own_process(__file__, "--one", path, "--memory", memory, *(["--stopped"] if stopped else []))
    return {**figures, "megabytes_a_second": gigabytes * 1000 / figures["seconds"]}


def main() -> int:
    """Run all sizes in turn and print the table."""
    parser = command_line(__doc__, rounds=1)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 2.0, 8.0], help="of the finest level")
    parser.add_argument("--memory", type=float, default=1.5e9, help="budget in bytes")
    parser.add_argument("--one", type=Path, help="a stack; used by the benchmark itself")
    parser.add_argument("--stopped", action="store_true", help="used by the benchmark itself")
    arguments = parser.parse_args()
    memory = int(arguments.memory)
    if arguments.one is not None:
        one(arguments.one, memory, stopped=arguments.stopped)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        ways = {}
        for size in arguments.gigabytes:
            path = Path(folder) / f"{size}.tif"
            stack(path, size)
            ways[f"{size:g} GB"] = partial(measured, path, memory, size, stopped=False)
        least = min(arguments.gigabytes)
        path = Path(folder) / f"{least}.tif"
        ways[f"{least:g} GB, stopped halfway and gone on"] = partial(measured, path, memory, least, stopped=True)
        results = run_rounds(ways, arguments.rounds)
        title = f"volume size at a budget of {memory / 1e9:g} GB"
        done = report(results, COLUMNS, base=f"{least:g} GB", title=title, settings=arguments)
    return finish([done], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
