"""Start-up: wall time of short commands of medsr, beside those of a bare interpreter and of torch.

    python benchmarks/startup.py [--rounds 7]

Each command is a process of its own; one round before the first is not counted, because it compiles and reads files
for the first time. `python -c pass` is what no command can be faster than, `import torch` what none that computes can.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paired import Column, Figures, Way, WayFailedError, command_line, finish, report, run_rounds

import medsr

BASE = "python -c pass"
MEDSR = "from medsr.cli import main; main()"
"""What the console script `medsr` runs."""

COLUMNS = (Column("seconds", "seconds", ".3f", ratio=True),)


def smallest_scan() -> Path:
    """The shipped scan with the fewest samples."""
    return min((medsr.MAMMOGRAM, medsr.NUCLEI, medsr.SURFACE), key=lambda path: path.stat().st_size)


def timed(code: str, *arguments: str) -> Figures:
    """Wall time of an interpreter that runs some code."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise WayFailedError(((done.stderr + done.stdout).strip().splitlines() or ["no reason given"])[-1])
    return {"seconds": seconds}


def upscaled() -> Figures:
    """The smallest scan through cubic interpolation, to OME-Zarr."""
    with tempfile.TemporaryDirectory() as out:
        options = ("--method", "cubic", "--factor", "2,2", "--device", "cpu", "--out", out)
        return timed(MEDSR, "upscale", str(smallest_scan()), *options)


WAYS: dict[str, Way] = {
    BASE: lambda: timed("pass"),
    "import medsr": lambda: timed("import medsr"),
    "medsr --version": lambda: timed(MEDSR, "--version"),
    "medsr --help": lambda: timed(MEDSR, "--help"),
    "import torch": lambda: timed("import torch"),
    "medsr upscale, smallest scan": upscaled,
}


def main() -> int:
    """Run all ways in turn and print the table."""
    parser = command_line(__doc__, rounds=7)
    parser.add_argument("--warm", type=int, default=1, help="rounds before the first that counts (1)")
    arguments = parser.parse_args()
    results = run_rounds(WAYS, arguments.rounds, warm=arguments.warm)
    done = report(results, COLUMNS, base=BASE, title="start-up", settings=arguments)
    return finish([done], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
