"""One and two workers at a job in which reading, rounding and compressing take the time.

    python benchmarks/workers.py [--gigabytes 2] [--rounds 3]

The shipped stack of nuclei, repeated, through linear interpolation, file to OME-Zarr. One process overlaps its stages
and so uses more than one core; what workers add is therefore shown against one worker held to one core, beside one
worker that has all cores. "steady" leaves out the processes' start: the time from a tenth to nine tenths of the
shards, by 0.8.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from paired import Column, answer, command_line, finish, own_process, report, run_rounds
from volumes import stack

COLUMNS = (Column("seconds", "seconds", ".1f", ratio=True), Column("steady", "steady", ".1f", ratio=True))


def one(path: Path, workers: int, cores: int) -> None:
    """One run in this process, on the first of the cores it has."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import torch

    import medsr

    torch.set_num_threads(max(1, cores // workers))
    marks: list[float] = []

    def tick(_: str, done: int, total: int) -> None:
        if len(marks) < 1 + (done >= 0.9 * total) and done >= 0.1 * total:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        report = medsr.upscale_folder(
            path, medsr.Linear((2, 2)), out=out, memory=int(3e9), device="cpu", workers=workers, tick=tick
        )
        seconds = time.perf_counter() - begun
    if report.exit_code:
        raise RuntimeError(report.rows[0].reason)
    answer(seconds=seconds, steady=(marks[1] - marks[0]) / 0.8)


def main() -> int:
    """Run all ways in turn and print the table."""
    parser = command_line(__doc__, rounds=3)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the finest level")
    parser.add_argument("--one", nargs=3, metavar=("STACK", "WORKERS", "CORES"), help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.one:
        one(Path(arguments.one[0]), int(arguments.one[1]), int(arguments.one[2]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.tif"
        stack(path, arguments.gigabytes)
        base = "1 worker on 1 core"
        ways = {
            base: partial(own_process, __file__, "--one", path, 1, 1),
            "1 worker on 2 cores": partial(own_process, __file__, "--one", path, 1, 2),
            "2 workers on 2 cores": partial(own_process, __file__, "--one", path, 2, 2),
        }
        results = run_rounds(ways, arguments.rounds)
        done = report(results, COLUMNS, base=base, title="workers", settings=arguments)
    return finish([done], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
