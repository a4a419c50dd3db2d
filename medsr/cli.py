"""Arguments to verbs, nothing else."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import medsr
from medsr.screen import Spoken, facts, lines, live, print_facts, print_scores, print_table

if TYPE_CHECKING:
    from medsr import EngineName, Factor, Scan, Share, Upscaler

__all__ = ["app", "main"]

FAILED, WRONG, STOPPED = 1, 2, 130
"""Exit codes: some scan failed; a mistake in arguments or configuration; Ctrl-C."""

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="medsr",
    help="Super-resolution for scientific gray-scale images: DICOM, TIFF, OME-Zarr in, OME-Zarr out.",
    epilog="Exit codes: 0 all done; 1 some scan failed, the rest is written; 2 a mistake in arguments or a config.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
config_app = typer.Typer(no_args_is_help=True, help="About the files that `medsr train` reads.", context_settings=HELP)
app.add_typer(config_app, name="config")


class ArgumentError(ValueError):
    """An argument that makes no sense: expected, found, cure."""


def main() -> None:
    """The console script `medsr`."""
    # Threads of torch that wait for each other would take the cores from those that compress and write.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "--debug" not in sys.argv:
        warnings.simplefilter("ignore")  # what a library says to programmers; medsr's own doubts come as text
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"medsr {medsr.__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
]
Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files or folders of scans.")]
Places = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Files, folders or URLs (s3://bucket/folder) of scans.")
]
OutPlace = Annotated[
    str, typer.Option("--out", metavar="DIR", help="Folder or URL of the results; a folder is made if absent.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the results; made if absent.")]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="RUN", help="Run folder of medsr train, or a checkpoint file.")
]
MethodOption = Annotated[
    str | None, typer.Option("--method", metavar="NAME", help="linear, cubic or lanczos, instead of a checkpoint.")
]
FactorOption = Annotated[
    str | None, typer.Option("--factor", metavar="2,2", help="How much finer each axis gets, slowest first.")
]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda or cuda:1.")]
Series = Annotated[str | None, typer.Option("--series", help="Which series of a file that holds several.")]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="1.5GB", help="Most memory to use; half of the machine's if not said.")
]


@app.callback()
def _all(ctx: typer.Context, _version: Version = False, debug: Debug = False) -> None:
    ctx.obj = debug


@app.command()
def inspect(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A scan, or a folder of scans.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a scan; a list for a folder.")] = False,
    series: Series = None,
    debug: Debug = False,
) -> None:
    """Say what a scan is: reader, shape, axes, spacing, type, intensity line, warnings."""
    with _manners(debug or ctx.obj):
        _need_paths([path])
        found = [path] if path.is_file() else medsr.find_scans(path)
        if not found:
            raise ArgumentError(f"{path}: expected a scan or a folder of scans, found none; check the folder")
        one = path.is_file() or [source.path for source in found] == [path]  # type: ignore[union-attr]
        known = []
        for source in found:
            known.append(facts(source, _series(series), debug=debug or ctx.obj))
            if not as_json:
                print_facts(known[-1])
        if as_json:
            typer.echo(json.dumps(known[0] if one else known, indent=2, allow_nan=False))
        if any("error" in each for each in known):
            raise typer.Exit(FAILED)


@app.command()
def train(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file such as configs/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting that wins over the file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in this folder stopped.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Run folder, instead of the config's.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train an upscaler on your scans, or on the shipped sample."""
    with _manners(debug or ctx.obj):
        recipe = medsr.load_config(config, medsr.Recipe, overrides or ())
        run = medsr.train(recipe, resume=resume, out=out)
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the first speaks
            typer.echo(f"run folder: {run}")
            typer.echo(f"next: medsr upscale SCANS --checkpoint {run} --out OUT")


@app.command()
def upscale(
    ctx: typer.Context,
    paths: Places,
    out: OutPlace,
    checkpoint: CheckpointOption = None,
    method: MethodOption = None,
    factor: FactorOption = None,
    memory: Memory = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that fill shards.")] = 1,
    device: Device = "auto",
    engine: Annotated[
        str, typer.Option("--engine", help="How a network is run: auto, torch (the reference), compiled, openvino.")
    ] = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0,
            metavar="LEVELS",
            help="Largest deviation of an engine from the reference in gray levels; a thousandth of the used range if "
            "not said.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="i/n", help="Do one of n shares, beside other calls that do the others."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="A running Dask cluster fills the shards.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, memory and size; write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results made in another way.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="chunk, shard, tile, series, stack, black, white; [256, 256] a list."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Upscale scans to OME-Zarr: one DIR/NAME.ome.zarr each; the same command goes on after a stop."""
    with _manners(debug or ctx.obj):
        _need_paths(paths)
        budget = _bytes(memory)
        options = medsr.apply_overrides(medsr.OutputOptions, overrides or ())
        share = None if part is None else _share(part)
        kind = _engine(engine)
        upscaler, check = _upscaler(checkpoint, method, factor)
        with live() as (note, tick):
            report = medsr.upscale_folder(
                paths,
                upscaler,
                out=out,
                options=options,
                memory=budget,
                workers=workers,
                device=device,
                engine=kind,
                tolerance=tolerance,
                part=share,
                scheduler=scheduler,
                dry_run=dry_run,
                overwrite=overwrite,
                check=check,
                note=note,
                tick=tick,
            )
        rows = [(r.scan, r.status, f"{r.seconds:.1f}", r.reason or r.output) for r in report.rows]
        print_table(("scan", "status", "seconds", "result"), rows)
        raise typer.Exit(report.exit_code)


@app.command()
def evaluate(
    ctx: typer.Context,
    paths: Paths,
    out: Out,
    checkpoint: CheckpointOption = None,
    method: MethodOption = None,
    factor: FactorOption = None,
    memory: Memory = None,
    device: Device = "auto",
    series: Series = None,
    debug: Debug = False,
) -> None:
    """Degrade scans, upscale them again and measure: DIR/scores.csv and a picture a scan, cubic beside the method."""
    with _manners(debug or ctx.obj):
        _need_paths(paths)
        budget = _bytes(memory)
        upscaler, _ = _upscaler(checkpoint, method, factor)
        trained = upscaler if isinstance(upscaler, medsr.TrainedUpscaler) else None
        with live() as (note, tick):
            report = medsr.evaluate(
                paths,
                upscaler,
                out=out,
                degradation=None if trained is None else trained.recipe.degradation,
                trained_on=() if trained is None else {i.sha256 for i in trained.card.inputs},
                series=_series(series),
                memory=budget,
                device=device,
                note=note,
                tick=tick,
            )
        print_scores(report.rows)
        typer.echo(f"scores: {out / 'scores.csv'}; a picture of each scan beside it")
        raise typer.Exit(report.exit_code)


@config_app.command()
def schema(ctx: typer.Context, debug: Debug = False) -> None:
    """Print the JSON schema of a config, for editors that complete and check YAML."""
    with _manners(debug or ctx.find_root().obj):
        typer.echo(json.dumps(medsr.config_schema(medsr.Recipe), indent=2))


@contextmanager
def _manners(debug: bool) -> Iterator[None]:
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


def _need_paths(paths: Iterable[Path | str]) -> None:
    missing = [Path(path) for path in paths if "://" not in str(path) and not Path(path).exists()]
    if missing:
        raise ArgumentError("\n".join(f"{p}: expected a file or folder, found none.{_near(p)}" for p in missing))


def _near(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(folder / close[0])!r}?" if close else " Check the path."


def _upscaler(
    checkpoint: Path | None, method: str | None, factor: str | None
) -> tuple[Upscaler, Callable[[Scan], Sequence[str]] | None]:
    """The upscaler that is asked for, and how to ask whether a scan suits it."""
    if (checkpoint is None) == (method is None):
        found = "neither" if method is None else "both"
        raise ArgumentError(f"expected --checkpoint RUN or --method NAME --factor 2,2; found {found}; give one of them")
    wanted = None if factor is None else _factor(factor)
    if checkpoint is not None:
        trained = medsr.load_upscaler(checkpoint, factor=wanted)
        if trained.path.name == "last.ckpt" and trained.path != checkpoint:
            typer.echo(f"{trained.path}: taken, for this run has no best.ckpt", err=True)
        return trained, partial(medsr.check_scan, trained.card)
    names = medsr.INTERPOLATIONS
    kind = next((k for k in names if k == str(method).lower()), None)
    if kind is None:
        close = get_close_matches(str(method).lower(), names, n=1)
        near = f" Did you mean {close[0]!r}?" if close else ""
        raise ArgumentError(f"--method: expected {', '.join(names)}; found {method!r}.{near}")
    if wanted is None:
        raise ArgumentError(f"--method {kind}: expected a factor beside it, found none; add --factor 2,2")
    return names[kind](wanted), None


def _factor(text: str) -> Factor:
    """`2,2` as a factor.

    Raises:
        ArgumentError: fewer than two or more than three whole numbers, or none above 1.
    """
    parts = re.split(r"\s*[,x]\s*", text.strip().strip("[]()"))
    entries = tuple(int(p) for p in parts if re.fullmatch(r"[1-9]\d{0,2}", p))
    if len(entries) != len(parts) or not 2 <= len(entries) <= 3 or max(entries) == 1:
        raise ArgumentError(
            f"--factor: expected 2 or 3 whole numbers, one of them above 1, slowest axis first such as 2,2 or 1,2,2; "
            f"found {text!r}"
        )
    return entries


def _share(text: str) -> Share:
    """`3/8` as the third of eight shares.

    Raises:
        ArgumentError: no two whole numbers, or the first is not one of the second.
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if found is None:
        raise ArgumentError(f"--part: expected i/n such as 3/8, found {text!r}")
    return medsr.Share(int(found[1]), int(found[2]))


def _engine(text: str) -> EngineName:
    names = medsr.ENGINES
    for name in names:
        if name == text.lower():
            return name
    close = get_close_matches(text.lower(), names, n=1)
    near = f" Did you mean {close[0]!r}?" if close else ""
    raise ArgumentError(f"--engine: expected {', '.join(names)}; found {text!r}.{near}")


def _series(text: str | None) -> str | int | None:
    """A series by its name, or by its number."""
    return int(text) if text is not None and text.isdigit() else text


def _bytes(text: str | None) -> int | None:
    """`1.5GB`, `800 MB`, `2GiB` as bytes.

    Raises:
        ArgumentError: no such amount.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt])(i?)b?\s*", text, re.IGNORECASE)
    amount = (
        0.0 if found is None else float(found[1]) * (1024 if found[3] else 1000) ** ("kmgt".index(found[2].lower()) + 1)
    )
    if amount < 1 or not math.isfinite(amount):
        raise ArgumentError(f"--memory: expected an amount such as 800MB, 1.5GB or 2GiB; found {text!r}")
    return int(amount)
