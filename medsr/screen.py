"""What the command line shows: facts of a scan, tables, a running verb."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import typer

import medsr

__all__ = [
    "FAILED",
    "STOPPED",
    "WRONG",
    "manners",
    "Spoken",
    "facts",
    "lines",
    "live",
    "print_facts",
    "print_means",
    "print_scores",
    "print_table",
    "say_where",
]


FAILED, WRONG, STOPPED = 1, 2, 130
"""Exit codes: some scan failed; a mistake in arguments or configuration; Ctrl-C."""


class Spoken(logging.Handler):
    """What medsr logs while it stands, as plain lines on stderr; `last` is the line said last."""

    last = ""

    def __enter__(self) -> Self:
        logger = logging.getLogger("medsr")
        self._level = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_error: object) -> None:
        logger = logging.getLogger("medsr")
        logger.removeHandler(self)
        logger.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        self.last = record.getMessage()
        typer.echo(printable(self.last), err=True)


def lines(error: Exception) -> str:
    """What to say of an error: its own words, which name expected, found and cure."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; check the path, its permissions and the space on the disk"
    return str(error) or type(error).__name__


def facts(source: Any, series: str | int | None, *, debug: bool) -> dict[str, Any]:
    """What a scan is, as plain JSON; or its path and the reason why it cannot be read."""
    path = str(getattr(source, "path", source))
    try:
        scan = medsr.read_scan(source, series=series)
    except (ValueError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        typer.echo(lines(error), err=True)
        return {"path": path, "error": lines(error)}
    line, spacing = scan.intensity, scan.grid.spacing_um
    return {
        "path": path,
        "reader": scan.reader,
        "shape": list(scan.shape),
        "axes": list(scan.grid.axes),
        "spacing_um": None if spacing is None else list(spacing),
        "origin_um": list(scan.grid.origin_um),
        "dtype": str(line.dtype),
        "bits": line.bits if line.bits is not None else 8 * line.dtype.itemsize,
        "black": line.black,
        "white": line.white,
        "slope": _strict(line.slope),
        "intercept": _strict(line.intercept),
        "units": line.units,
        "window": None if line.window is None else [_strict(value) for value in line.window],
        "history": list(scan.history),
        "warnings": list(scan.warnings),
    }


def _strict(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def print_facts(facts: dict[str, Any]) -> None:
    """What a scan is, for a person; nothing for one that failed, whose reason is on stderr."""
    if "error" in facts:
        return
    spacing = facts["spacing_um"]
    steps = "unknown" if spacing is None else " x ".join("?" if s is None else f"{s:g}" for s in spacing) + " um"
    shown = {
        "reader": facts["reader"],
        "shape": f"{' x '.join(map(str, facts['shape']))} ({' '.join(facts['axes'])})",
        "spacing": steps,
        "type": f"{facts['dtype']}, {facts['bits']} bits",
        "intensity": f"black {facts['black']:g}, white {facts['white']:g}",
        "value": f"{facts['slope']} * stored + {facts['intercept']} {facts['units']}".rstrip(),
    }
    typer.echo(printable(facts["path"]))
    for name, value in shown.items():
        typer.echo(printable(f"  {name:<10}{value}"))
    for warning in facts["warnings"]:
        typer.echo(printable(f"  {'warning':<10}{warning}"))


def print_scores(rows: Iterable[Mapping[str, Any]]) -> None:
    """The figures of an evaluation, a line a scan and method; empty where a figure does not exist."""
    names = ["psnr_db", "ssim", "nrmse", "frc_um", "consistency_db"]
    rows = list(rows)
    if any("psnr_fitted_db" in row for row in rows):  # real pairs: nobody knows how the coarse scan was made
        names = ["psnr_db", "psnr_fitted_db", "ssim", "nrmse", "frc_um"]
    cells = [(row["scan"], row["method"], *("" if row[n] is None else f"{row[n]:.4g}" for n in names)) for row in rows]
    print_table(("scan", "method", *names), cells)


def say_where(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Where the scores of an evaluation lie."""
    if rows:
        typer.echo(f"scores: {out / 'scores.csv'}; a picture of each scan beside it")
    else:
        typer.echo("no scan was measured; the reasons are above", err=True)


def print_means(rows: Sequence[Mapping[str, Any]]) -> None:
    """The means of a comparison, a line a method; empty where a figure does not exist."""
    names = ("psnr_db", "ssim", "haarpsi", "frc_um", "consistency_db", "seconds", "peak_mb")
    cells = [
        (row["method"], str(row["scans"]), *("" if row[n] is None else f"{row[n]:.4g}" for n in names)) for row in rows
    ]
    print_table(("method", "scans", *names), cells)


def print_blurs(rows: Iterable[Mapping[str, Any]]) -> None:
    """The blur of scans, a line a scan and axis."""
    names = ("fwhm_um", "fwhm_samples", "spread_samples")
    cells = [
        (row["scan"], row["axis"], *("" if row[n] is None else f"{row[n]:.3g}" for n in names), str(row["patches"]))
        for row in rows
    ]
    print_table(("scan", "axis", *names, "patches"), cells)
    typer.echo("spread: how far patches disagree; it is no error bar")


def print_audit(done: medsr.Audit) -> None:
    """What was kept, lost, back and invented, a line a method; then how well each map tells it."""
    names = ("kept", "kept_low", "kept_high", "recovered", "back", "real_by_chance")
    counts = ("planted", "seen", "real", "undecided", "invented")
    everything = [row for row in done.kept if row["kind"] == "all" and row["cnr"] == "all"]
    if not everything:
        return
    heads = ("method", *(name.replace("_", " ") for name in (*counts, *names)), "invented a megasample")
    print_table(
        heads,
        [
            (
                row["method"],
                *(str(row[name]) for name in counts),
                *("" if row[name] is None else f"{row[name]:.2f}" for name in names),
                f"{row['invented_per_megasample'] or 0:.1f}",
            )
            for row in everything
        ],
    )
    typer.echo("Detail that no measurement speaks for: how much there is of the truth's, and its correlation with it")
    figures = [
        (row["method"], row["band"], *("" if row[n] is None else f"{row[n]:.2f}" for n in ("energy", "agreement")))
        for row in done.detail
    ]
    print_table(("method", "band", "energy", "agreement"), figures)
    typer.echo("ROC area of maps that need no truth: invented against real; 0.5 tells nothing")
    areas = [(name, method, done.area(method, name)) for name in done.maps for method in done.methods]
    print_table(("map", "method", "area"), [(n, m, str(found)) for n, m, found in areas if found is not None])


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of text on stdout, a line a row."""
    cells = [tuple(printable(cell) for cell in row) for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextmanager
def live() -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Where a running verb speaks: lines, and a bar with the time left on a terminal; all on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def tick(scan: str, done: int, total: int) -> None:
            if done >= total:
                if scan in tasks:
                    progress.remove_task(tasks.pop(scan))
                return
            if scan not in tasks:
                tasks[scan] = progress.add_task(printable(scan), total=total)
            progress.update(tasks[scan], completed=done)

        yield lambda line: console.print(printable(line)), tick


def printable(text: str) -> str:
    """Text that any terminal takes, whatever bytes a file name holds."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def manners(debug: bool) -> Iterator[None]:
    """A user's mistake becomes its lines on stderr and an exit code; a traceback only with --debug."""
    try:
        with Spoken() as spoken:
            yield
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped by Ctrl-C; what is complete is kept"
        if said != spoken.last:
            typer.echo(said, err=True)
        raise typer.Exit(STOPPED) from None
    except BrokenPipeError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        typer.echo(lines(error), err=True)
        raise typer.Exit(_code(error)) from None


def _code(error: Exception) -> int:
    """A path that cannot be used is a mistake in the arguments; a full or failing disk is not."""
    asked = (ValueError, MemoryError, PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError)
    return WRONG if isinstance(error, asked) else FAILED
