"""Paired runs: ways to do one thing, in turn, round by round; medians, ratios, and the machine they belong to.

Whatever else a machine does hits neighbors in a round alike, so a ratio is taken inside each round, and its median is
printed. Every round begins with another way, because the first of a round may find colder caches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

Figures = dict[str, float]
Way = Callable[[], Figures]


class WayFailedError(RuntimeError):
    """A way ended in an error; the text is its last line."""


class Column(NamedTuple):
    """A column of the table: a figure, how it is headed and written, and whether its ratio to the base follows."""

    key: str
    title: str
    form: str = ".2f"
    ratio: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """The figures of each way, one for each round, and the reasons of the ways that failed."""

    rounds: dict[str, list[Figures]]
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, way: str, key: str) -> float:
        """Median over the rounds; NaN where a way has no such figure."""
        found = [row[key] for row in self.rounds[way] if key in row]
        return statistics.median(found) if found else math.nan

    def ratio(self, way: str, key: str, base: str) -> float:
        """Median over the rounds of the way's figure by the base's in the same round; NaN where one is missing."""
        pairs = zip(self.rounds[way], self.rounds.get(base, []), strict=False)
        found = [row[key] / other[key] for row, other in pairs if key in row and other.get(key)]
        return statistics.median(found) if found else math.nan


def command_line(text: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"times that each way runs ({rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every figure of every round is written")
    return parser


def own_process(script: str, *arguments: object) -> Figures:
    """Run a Python file with arguments in a process of its own; its last line, which `answer` wrote, is returned.

    Raises:
        WayFailedError: it ended with an error, or did not answer.
    """
    command = [sys.executable, "-W", "ignore", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WayFailedError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    try:
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise WayFailedError(f"expected figures in its last line, found {done.stdout[-80:]!r}") from None
    return figures


def answer(**figures: float) -> None:
    """Hand figures to the process that called `own_process`."""
    print(json.dumps(figures))


def peak_megabytes() -> float:
    """Most memory this process has held so far, in 2**20 bytes; take the difference to a bare one's."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run_rounds(ways: Mapping[str, Way], rounds: int, *, warm: int = 0) -> Results:
    """Every way once a round, after `warm` rounds that are not counted.

    A way that fails is left out from then on, and its figures with it.
    """
    results = Results({way: [] for way in ways})
    names = list(ways)
    for number in range(-warm, rounds):
        first = number % len(names)
        for way in names[first:] + names[:first]:
            if way in results.failed:
                continue
            try:
                figures = ways[way]()
            except WayFailedError as error:
                results.failed[way] = str(error)
                results.rounds[way].clear()
            else:
                results.rounds[way] += [figures] if number >= 0 else []
    return results


def machine(device: str = "cpu") -> str:
    """Processor, cores, threads and versions in a line; the card too where `device` is one."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", str(cores))
    parts = [_processor(), f"{cores} cores, {threads} threads", f"Python {platform.python_version()}"]
    parts += [f"{name} {_version(name)}" for name in ("torch", "zarr")]
    if device != "cpu":
        import torch

        card = torch.cuda.get_device_properties(device)
        parts.append(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    return "; ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def report(
    results: Results,
    columns: Sequence[Column],
    *,
    base: str,
    title: str,
    settings: argparse.Namespace,
    device: str = "cpu",
) -> dict[str, Any]:
    """Print the head line and the table; returns all of it, plain, for `finish`."""
    where = machine(device)
    count = max(map(len, results.rounds.values()), default=0)
    print(f"{title}\n{where}\nmedians of {count} rounds; ratio: to {base}, median inside the rounds\n")
    print("\n".join([*table(results, columns, base=base), ""]), flush=True)
    return {
        "title": title,
        "machine": where,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {name: str(value) for name, value in vars(settings).items()},
        "base": base,
        "rounds": results.rounds,
        "failed": results.failed,
    }


def finish(reports: Sequence[dict[str, Any]], json_file: Path | None) -> int:
    """Write the figures of every round, if a file is given; returns the exit code: 1 where a way failed, else 0."""
    if json_file is not None:
        json_file.write_text(json.dumps(reports, indent=2) + "\n")
    return int(any(report["failed"] for report in reports))


def table(results: Results, columns: Sequence[Column], *, base: str) -> list[str]:
    """The lines of the table, as Markdown has them, so that a page can take them over."""
    heads = ["way", *(text for c in columns for text in ([c.title, "ratio"] if c.ratio else [c.title]))]
    rows, failures = [], []
    for way in results.rounds:
        if way in results.failed:
            failures.append(f"\n{way}: failed: {results.failed[way]}")
            continue
        row = [way]
        for column in columns:
            row.append(_written(results.median(way, column.key), column.form))
            if column.ratio:
                row.append(_written(results.ratio(way, column.key, base), ".2f"))
        rows.append(row)
    widths = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    rule = ["-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)]
    return [_line(heads, widths), f"|{'|'.join(rule)}|", *(_line(row, widths) for row in rows), *failures]


def _written(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "| " + " | ".join(texts) + " |"
