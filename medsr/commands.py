"""More arguments to verbs: methods compared, blended, described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import medsr
from medsr.arguments import ArgumentError, amount, exemplars_of, factor_of, folder_of, kind_named, need_paths, series_of
from medsr.options import Blur, ByFolder, Debug, Device, FactorOption, Key, Library, Memory, Out, Paths, Series
from medsr.screen import live, manners, print_audit, print_blurs, print_means, say_where

__all__ = ["audit", "blend", "calibrate", "card", "compare", "estimate_blur", "report"]


def compare(
    ctx: typer.Context,
    paths: Paths,
    methods: Annotated[
        str, typer.Option("--methods", metavar="NAMES", help="Such as cubic,edges,srresnet,srgan; all of one factor.")
    ],
    out: Out,
    factor: FactorOption = "2,2",
    runs: Annotated[
        Path | None, typer.Option("--runs", metavar="DIR", help="Folder of the run folders of trained methods.")
    ] = None,
    train_on: Annotated[
        Path | None,
        typer.Option("--train", metavar="SCANS", help="Train small versions of methods without a run on these scans."),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps of the pixel phase of each such training.")
    ] = 2000,
    degradation: Blur = None,
    library: Library = None,
    memory: Memory = None,
    device: Device = "auto",
    series: Series = None,
    pseudonymize: Key = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the trainings, such as training.batch=16."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure methods side by side: DIR/scores.csv, and for each scan a picture with the same crop of all."""
    with manners(debug or ctx.obj):
        need_paths([*paths, *([] if train_on is None else [train_on])])
        budget = None
        if train_on is not None:
            changes = [f"data.folder={json.dumps(str(train_on))}", f"training.pixel_steps={steps}", *(overrides or ())]
            budget = medsr.apply_overrides(medsr.Budget, changes)
        elif overrides:
            raise ArgumentError("--set: expected --train SCANS beside it, for nothing else is set here")
        names, wanted, bytes_held = methods.replace(" ", "").split(","), factor_of(factor or "2,2"), amount(memory)
        said = None if degradation is None else medsr.load_config(degradation, medsr.DegradationRange)
        if library is not None and "exemplars" not in names:
            raise ArgumentError("--library: expected exemplars among --methods, found none; add it or drop --library")
        more = {} if library is None else {"exemplars": exemplars_of(library, wanted, said)}
        with live() as (note, tick):
            done = medsr.compare(
                paths,
                names,
                out=out,
                factor=wanted,
                runs=runs,
                budget=budget,
                more=more,
                degradation=said,
                series=series_of(series),
                memory=bytes_held,
                device=device,
                pseudonyms=None if pseudonymize is None else medsr.Pseudonyms(pseudonymize),
                note=note,
                tick=tick,
            )
        print_means(done.summary())
        say_where(out, done.rows)
        raise typer.Exit(done.exit_code)


def calibrate(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of medsr train.")],
    paths: Paths,
    learn_from: Annotated[
        list[Path] | None,
        typer.Option("--learn-from", metavar="SCANS", help="Other scans to learn widths from anew."),
    ] = None,
    spread: Annotated[
        bool, typer.Option("--spread", help="Widths from the spread over flips; else those trained with the network.")
    ] = False,
    alpha: Annotated[float, typer.Option("--alpha", help="Share of samples that may lie outside.")] = 0.1,
    delta: Annotated[float, typer.Option("--delta", help="Probability that more lie outside.")] = 0.1,
    foreground: Annotated[bool, typer.Option("--foreground", help="Promise for tissue or signal only.")] = False,
    by_folder: ByFolder = False,
    memory: Memory = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Calibrate intervals of a run on scans it has not learned from, and keep them beside its checkpoint."""
    with manners(debug or ctx.obj):
        need_paths([run, *paths, *(learn_from or ())])
        with live() as (note, _tick):
            made = medsr.calibrate_run(
                run,
                paths,
                learn_from=learn_from or (),
                widths="spread" if spread else "auto",
                alpha=alpha,
                delta=delta,
                over="foreground" if foreground else "whole",
                group=folder_of if by_folder else None,
                device=device,
                memory=amount(memory),
                note=note,
            )
        typer.echo(str(made.calibration))


def audit(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of medsr train, or a checkpoint file.")],
    paths: Paths,
    out: Out,
    kind: Annotated[
        str, typer.Option("--kind", help="speck, punctum or filament; auto: specks in DICOM, the others elsewhere.")
    ] = "auto",
    fields: Annotated[int, typer.Option("--fields", min=1, help="Fields of 1024 x 1024 samples in each scan.")] = 4,
    planted: Annotated[int, typer.Option("--planted", min=1, help="Structures planted in each field, at most.")] = 120,
    removed: Annotated[int, typer.Option("--removed", min=0, help="Structures taken out of each, at most.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other places.")] = 0,
    by_folder: ByFolder = False,
    degradation: Blur = None,
    memory: Memory = None,
    device: Device = "auto",
    series: Series = None,
    pseudonymize: Key = None,
    debug: Debug = False,
) -> None:
    """Plant small structures in scans and take some out: what a run kept, lost, invented, and which maps tell it."""
    with manners(debug or ctx.obj):
        need_paths([run, *paths])
        with live() as (note, tick):
            done = medsr.audit(
                run,
                paths,
                out=out,
                degradation=None if degradation is None else medsr.load_config(degradation, medsr.DegradationRange),
                kind=kind_named(kind),
                fields=fields,
                planted=planted,
                removed=removed,
                seed=seed,
                series=series_of(series),
                group=folder_of if by_folder else None,
                memory=amount(memory),
                device=device,
                pseudonyms=None if pseudonymize is None else medsr.Pseudonyms(pseudonymize),
                note=note,
                tick=tick,
            )
        print_audit(done)
        if done.structures:
            typer.echo(f"audit: {out / 'audit.csv'}, {out / 'areas.csv'}; pictures beside them")
        raise typer.Exit(done.exit_code)


def card(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or checkpoint file.")],
    html: Annotated[bool, typer.Option("--html", help="HTML instead of Markdown.")] = False,
    debug: Debug = False,
) -> None:
    """Print the model card of a run: what it was trained on, how well it did, what it is not for."""
    with manners(debug or ctx.obj):
        need_paths([run])
        typer.echo(medsr.render_card(run, format="html" if html else "markdown"))


def report(
    ctx: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A result, a folder of results, or one of medsr evaluate.")
    ],
    out: Out,
    scans: Annotated[
        Path | None, typer.Option("--scans", metavar="SCANS", help="The scans the results were made from.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="SCAN", help="A finer measurement of the same, for one result.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="RUN", help="The run that made them: its card and blur.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make an HTML page a scan, and an index of a folder: side by side, consistency, profiles, figures, provenance."""
    with manners(debug or ctx.obj):
        need_paths([path, *(given for given in (scans, truth, checkpoint) if given is not None)])
        if path.name.endswith(".ome.zarr"):
            page = medsr.write_report(path, out=out, low=scans, truth=truth, checkpoint=checkpoint)
        elif truth is not None:
            raise ArgumentError("--truth: expected a single result NAME.ome.zarr beside it, found a folder")
        else:
            page = medsr.write_batch_report(path, out=out, low=scans, checkpoint=checkpoint)
        typer.echo(f"report: {page}; opens in any browser, from a file share too")


def blend(
    ctx: typer.Context,
    first: Annotated[Path, typer.Argument(metavar="A", help="Run or checkpoint trained on pixels.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run or checkpoint that went on from A's weights.")],
    alpha: Annotated[float, typer.Option("--alpha", min=0, max=1, help="0: all of A; 1: all of B.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The blended checkpoint, a file.")],
    debug: Debug = False,
) -> None:
    """Blend the weights of two runs: from faithful (A) to crisp (B)."""
    with manners(debug or ctx.obj):
        need_paths([first, second])
        made = medsr.blend_checkpoints(first, second, alpha=alpha, out=out)
        typer.echo(f"checkpoint: {made}")


def estimate_blur(
    ctx: typer.Context,
    paths: Paths,
    checkpoint: Annotated[Path, typer.Option("--checkpoint", metavar="RUN", help="Run of an ikc method.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the table as CSV, beside printing it.")
    ] = None,
    series: Series = None,
    pseudonymize: Key = None,
    debug: Debug = False,
) -> None:
    """Estimate the blur of scans: its width in coarse samples and micrometers, and how far patches agree."""
    with manners(debug or ctx.obj):
        need_paths(paths)
        hidden = None if pseudonymize is None else medsr.Pseudonyms(pseudonymize)
        found = medsr.estimate_blurs(paths, checkpoint, out=out, series=series_of(series), pseudonyms=hidden)
        print_blurs(found.rows)
        for scan, reason in found.failed:
            typer.echo(f"{scan}: failed: {reason}", err=True)
        raise typer.Exit(found.exit_code)
