"""Arguments to verbs, nothing else."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

import medsr
from medsr.arguments import (
    ArgumentError,
    amount,
    asked_for,
    engine_named,
    need_paths,
    series_of,
    share_of,
    with_intervals,
)
from medsr.commands import audit, blend, calibrate, card, compare, estimate_blur
from medsr.commands import report as report_
from medsr.options import (
    Blur,
    Checkpoints,
    ConsistentOption,
    Debug,
    Device,
    EnsembleOption,
    FactorOption,
    Key,
    Library,
    Memory,
    MethodOption,
    Out,
    OutPlace,
    Paths,
    Places,
    Preset,
    Series,
)
from medsr.screen import (
    FAILED,
    STOPPED,
    facts,
    live,
    manners,
    print_facts,
    print_scores,
    print_table,
    say_where,
)

__all__ = ["app", "main"]

HALF_A_LEVEL = 0.5
"""Largest deviation of an engine in gray levels where a preset asks for measurement: below what rounding does."""

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


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
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
    with manners(debug or ctx.obj):
        need_paths([path])
        found = [path] if path.is_file() else medsr.find_scans(path)
        if not found:
            raise ArgumentError(f"{path}: expected a scan or a folder of scans, found none; check the folder")
        one = path.is_file() or [source.path for source in found] == [path]  # type: ignore[union-attr]
        known = []
        for source in found:
            known.append(facts(source, series_of(series), debug=debug or ctx.obj))
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
    with manners(debug or ctx.obj):
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
    checkpoint: Checkpoints = None,
    method: MethodOption = None,
    factor: FactorOption = None,
    library: Library = None,
    degradation: Blur = None,
    consistent: ConsistentOption = False,
    ensemble: EnsembleOption = False,
    preset: Preset = None,
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
    pseudonymize: Key = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Also lower and upper inside each result, as medsr calibrate promised.")
    ] = False,
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
    with manners(debug or ctx.obj):
        need_paths(paths)
        budget = amount(memory)
        options = medsr.apply_overrides(medsr.OutputOptions, overrides or ())
        share = None if part is None else share_of(part)
        kind = engine_named(engine)
        asked = asked_for(
            checkpoint or (),
            method,
            factor,
            library=library,
            degradation=degradation,
            consistent=consistent,
            ensemble=ensemble,
            preset=preset,
        )
        if preset is not None and tolerance is None:
            tolerance = HALF_A_LEVEL
        hidden = None if pseudonymize is None else medsr.Pseudonyms(pseudonymize)
        upscaler = with_intervals(asked, checkpoint or ()) if intervals else asked.upscaler
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
                check=asked.check,
                pseudonyms=hidden,
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
    checkpoint: Checkpoints = None,
    method: MethodOption = None,
    factor: FactorOption = None,
    library: Library = None,
    degradation: Blur = None,
    consistent: ConsistentOption = False,
    ensemble: EnsembleOption = False,
    preset: Preset = None,
    memory: Memory = None,
    device: Device = "auto",
    series: Series = None,
    pseudonymize: Key = None,
    debug: Debug = False,
) -> None:
    """Degrade scans, upscale them again and measure: DIR/scores.csv and a picture a scan, cubic beside the method.

    A folder with low/ and high/ holds real pairs: the coarse scans are upscaled and compared with the fine ones.
    """
    with manners(debug or ctx.obj):
        need_paths(paths)
        budget = amount(memory)
        asked = asked_for(
            checkpoint or (),
            method,
            factor,
            library=library,
            degradation=degradation,
            consistent=consistent,
            ensemble=ensemble,
            preset=preset,
        )
        with live() as (note, tick):
            if len(paths) == 1 and medsr.is_pairs(paths[0]):
                report = medsr.evaluate_pairs(
                    paths[0],
                    asked.upscaler,
                    out=out,
                    line=asked.line,
                    rule=asked.registration,
                    series=series_of(series),
                    memory=budget,
                    device=device,
                    trained_on=asked.trained_on,
                    pseudonyms=None if pseudonymize is None else medsr.Pseudonyms(pseudonymize),
                    note=note,
                )
            else:
                report = medsr.evaluate(
                    paths,
                    asked.upscaler,
                    out=out,
                    degradation=asked.degradation,
                    trained_on=asked.trained_on,
                    pseudonyms=None if pseudonymize is None else medsr.Pseudonyms(pseudonymize),
                    series=series_of(series),
                    memory=budget,
                    device=device,
                    note=note,
                    tick=tick,
                )
        print_scores(report.rows)
        say_where(out, report.rows)
        raise typer.Exit(report.exit_code)


for verb in (compare, report_, calibrate, audit, card, blend):
    app.command()(verb)
app.command("estimate-blur")(estimate_blur)


@config_app.command()
def schema(ctx: typer.Context, debug: Debug = False) -> None:
    """Print the JSON schema of a config, for editors that complete and check YAML."""
    with manners(debug or ctx.find_root().obj):
        typer.echo(json.dumps(medsr.config_schema(medsr.Recipe), indent=2))
