"""evaluate: degrade, upscale, measure; one row a scan and method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.degradation import Degradation, DegradationRange
from medsr.footprint import Footprint
from medsr.frc import FourierRings, hole_free_block
from medsr.io import NoImageError, Source, find_all, read_scan
from medsr.io.digest import input_digest
from medsr.io.pseudonyms import Pseudonyms, unnamed
from medsr.methods.interpolation import Cubic
from medsr.metrics import foreground_mask
from medsr.pictures import comparison_png, gray_window
from medsr.plan import Device, plan, torch_device
from medsr.scan import Factor, Grid, Scan, ScanError
from medsr.scoring import COLUMNS, EvaluationReport, Tally, add_frame, cell, row_of, write_provenance, write_table
from medsr.sheet import sheet_png
from medsr.surface import LENGTHS_UM, SURFACE_COLUMNS, surface_rows
from medsr.trial import Index, Survey, Trial, by, survey_of
from medsr.upscaler import Composed, Upscaler, describe, learned_from
from medsr.upscaling import upscaled_blocks

__all__ = ["COLUMNS", "EvaluationReport", "evaluate"]

Array = NDArray[Any]
Measured = tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, str]]]

MOST_PANELS = 3
"""Methods that are pictured in one row; more are shown by the same crop in rows."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is the same for every scan."""

    methods: tuple[tuple[str, Upscaler], ...]
    factor: Factor
    degradation: Degradation | DegradationRange | None
    out: Path
    series: str | int | None
    memory: int | None
    device: Device
    note: Callable[[str], None]
    tick: Callable[[str, int, int], None]


def evaluate(
    paths: Path | str | Sequence[Path | str],
    upscaler: Upscaler | Mapping[str, Upscaler],
    *,
    out: Path | str,
    degradation: Degradation | DegradationRange | None = None,
    method: str | None = None,
    series: str | int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    trained_on: Collection[str] = (),
    pseudonyms: Pseudonyms | None = None,
    note: Callable[[str], None] | None = None,
    tick: Callable[[str, int, int], None] | None = None,
) -> EvaluationReport:
    """Degrade every scan, upscale the result, and measure it against the original; cubic always beside the method.

    A scan is cut to whole coarse samples, degraded in unit intensity, rounded to its stored type as a measurement
    would be, and upscaled by the code that `upscale` runs. Errors are taken over the whole frame and over the
    foreground alone (tissue or signal; all there is where the file itself marks its background by NaN), because a dark
    background flatters every method. The range of PSNR, SSIM and
    NRMSE is the distance of black and white of the scan's intensity line. Errors cover the whole stack; SSIM is
    averaged over planes, or has windows in 3D where the factor refines z; ring correlation runs along the refined axes.

    Written are `out/scores.csv`, `out/<scan>.png`, `out/provenance.json` (hashes of methods, checkpoints and scans),
    and `out/failed.csv` when a scan failed.

    Args:
        paths: files and folders.
        upscaler: the method, or several of one factor by the names they have in the table.
        out: folder, made if absent.
        degradation: how the fine scans become coarse; a range stands for its middle, with the spacing of each scan
            (a checkpoint's is `recipe.degradation`); None: the mean over each coarse sample, no noise. Noise is the
            same on every run.
        method: name of a single method in the table; None: its own.
        series: which series of files that hold several.
        memory: bytes the upscaling may take (`plan`); what is measured, one plane or stack at a time, comes on top.
        device: "auto", "cpu", "cuda", "cuda:N".
        trained_on: SHA-256 of inputs the method has learned from (a card's `inputs`); a scan among them, or in the
            library of exemplars of a method, is measured with a warning that its figures flatter.
        pseudonyms: names in the table, the pictures and the lines, in which no file's name or path stands; None: the
            files'.
        note: receives a line for each event worth a user's eye.
        tick: receives (scan, planes or stacks done, in all).

    Raises:
        ScanError: no scan was found.
        OSError: `out` cannot be written.
        ValueError: no such device, or a degradation of another factor.
    """
    torch_device(device)
    methods = _named(upscaler, method)
    factor = methods[0][1].factor
    if isinstance(degradation, Degradation) and degradation.factor != factor:
        raise ValueError(
            f"degradation: expected the factor {factor} of the method, found {degradation.factor}; use one of the two"
        )
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the scores, found a file; give --out another name")
    known = frozenset(trained_on).union(*(learned_from(one) for _, one in methods))
    if pseudonyms is not None:
        pseudonyms.refuse_named(series)
    sources = find_all(paths, out=out) if pseudonyms is None else pseudonyms.find_all(paths, out=out)
    out.mkdir(parents=True, exist_ok=True)
    setting = _Setting(methods, factor, degradation, out, series, memory, device, note or _silent, tick or _untold)
    rows: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    surfaces: list[dict[str, Any]] = []
    inputs: dict[str, str] = {}
    said = f"{degradation or Degradation(factor)!r}"
    for source in sources:
        try:
            digest = input_digest(source)
            if digest in known:
                setting.note(f"{source.name}: warning: the method has learned from this scan: its figures flatter")
            measured, textures, without = _evaluated(source, setting)
            rows += measured
            surfaces += textures
            failed += without
            inputs[source.name] = digest
        except NoImageError as error:
            setting.note(f"{source.name}: skipped: {_reason(source, error)}")
        except Exception as error:  # noqa: BLE001 - law 6: one bad scan stops nothing; its reason is in the report
            failed.append((source.name, _reason(source, error)))
            setting.note(f"{source.name}: failed: {failed[-1][1]}")
        write_table(out / "scores.csv", COLUMNS, [[cell(row[name]) for name in COLUMNS] for row in rows])
        write_table(out / "failed.csv", ("scan", "reason"), failed)
        write_provenance(out, dict(methods), inputs, degradation=said, series=series, device=torch_device(device).type)
        columns = ("scan", *SURFACE_COLUMNS)
        write_table(out / "surface.csv", columns, [[cell(row[name]) for name in columns] for row in surfaces])
    return EvaluationReport(tuple(rows), tuple(failed), tuple(surfaces))


def _named(upscaler: Upscaler | Mapping[str, Upscaler], method: str | None) -> tuple[tuple[str, Upscaler], ...]:
    """The methods by name, cubic among them.

    Raises:
        ValueError: none, or methods of different factors.
    """
    if isinstance(upscaler, Mapping):
        methods = dict(upscaler)
    else:
        methods = {method or name_of(upscaler): upscaler}
    factors = {name: each.factor for name, each in methods.items()}
    if len(set(factors.values())) != 1:
        found = ", ".join(f"{name} {by(factor)}" for name, factor in factors.items()) or "no method"
        raise ValueError(f"methods: expected methods of one factor, found {found}; compare each factor by itself")
    if not any(isinstance(each, Cubic) for each in methods.values()):
        if "cubic" in methods:
            raise ValueError("methods: expected another name than cubic, which is the baseline beside every method")
        methods = {"cubic": Cubic(next(iter(factors.values()))), **methods}
    return tuple(methods.items())


def name_of(upscaler: Upscaler) -> str:
    """A short name for tables: of a method made of others, what it does and to what."""
    if isinstance(upscaler, Composed):
        inner = "+".join(dict.fromkeys(map(name_of, upscaler.parts)))
        return f"{type(upscaler).__name__.lower()} {inner}"
    return describe(upscaler).split("(")[0].split()[0].lower()


def _silent(_line: str) -> None:
    """The default of `note`."""


def _untold(_scan: str, _done: int, _total: int) -> None:
    """The default of `tick`."""


def _reason(source: Source, error: Exception) -> str:
    return unnamed(_said(source, error), source)


def _said(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or source.path}: {error.strerror}; check the file, its rights and the disk"
    if isinstance(error, (ValueError, MemoryError)):
        return text if source.path.name in text else f"{source.path}: {text}"
    return f"{source.path}: {type(error).__name__}: {text}"


def _evaluated(source: Source, setting: _Setting) -> Measured:
    """The rows of one scan, those of its surfaces if it is a height map, and which methods failed and why; its picture
    is written."""
    scan = read_scan(source, series=setting.series)
    for warning in scan.warnings:
        setting.note(f"{source.name}: warning: {unnamed(warning, source)}")
    trial = Trial(scan, setting.factor, setting.degradation)
    survey = survey_of(trial)
    failed: list[tuple[str, str]] = []
    tallies: list[Tally] = []

    def without(name: str, error: Exception) -> None:
        failed.append((source.name, f"{name}: {_reason(source, error)}"))
        setting.note(f"{source.name}: {failed[-1][1]}")

    for name, upscaler in setting.methods:
        try:
            tallies.append(_tally(name, upscaler, trial, survey, setting))
        except Exception as error:  # noqa: BLE001 - a method that fails does not take the others' rows with it
            without(name, error)
    data_range = abs(scan.intensity.white - scan.intensity.black)
    shown: dict[str, Array] = {}
    surfaces: list[dict[str, Any]] = []
    lowest, highest = math.inf, -math.inf
    frames = list(trial.frames())
    for done, index in enumerate(frames, start=1):
        truth, low = trial.fine(index), trial.coarse(index)
        finite = truth[np.isfinite(truth)]
        if finite.size:
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
        unit = scan.intensity.to_unit(truth)
        mask = foreground_mask(unit, threshold=survey.threshold) if finite.size else np.zeros(truth.shape, bool)
        found: dict[str, Array] = {}
        for tally in list(tallies):
            try:
                estimate = _estimate(trial, tally, index, setting.device)
            except Exception as error:  # noqa: BLE001 - as above
                tallies.remove(tally)
                without(tally.name, error)
                continue
            add_frame(tally, trial, estimate, (truth, low, mask), data_range)
            if index == survey.plane[: trial.lead]:
                tally.plane = _shown(trial, survey, estimate, mask)
            if is_height_map(trial.scan):
                found[tally.name] = estimate
        if found:
            surfaces += _textures(source.name, trial, index, truth, found)
        if index == survey.plane[: trial.lead]:
            shown = {"low": _shown(trial, survey, low, mask), "truth": _shown(trial, survey, truth, mask)}
        setting.tick(source.name, done, len(frames))
    if not lowest < highest:
        raise ScanError(f"expected values that differ, found {lowest:g} everywhere: nothing to measure")
    if not tallies:
        return [], [], failed
    rows = [row_of(source.name, trial, tally, data_range) for tally in tallies]
    _draw(setting.out / f"{source.name}.png", source, trial, survey, tallies, rows, shown)
    for row in rows:
        setting.note(f"{source.name}: {row['method']}: {row['psnr_db']:.2f} dB")
    return rows, surfaces, failed


def is_height_map(scan: Scan) -> bool:
    """Whether its values are heights: floats in a unit of length."""
    return scan.intensity.dtype.kind == "f" and scan.intensity.units in LENGTHS_UM


def _textures(
    scan: str, trial: Trial, index: Index, truth: Array, estimates: Mapping[str, Array]
) -> list[dict[str, Any]]:
    """Rows of texture parameters of the maps of one frame."""
    grid, intensity = trial.scan.grid, trial.scan.intensity
    spacing = (grid.spacing_of(grid.axes[-2]), grid.spacing_of(grid.axes[-1]))
    rows = []
    for number, plane in enumerate(truth.reshape(-1, *truth.shape[-2:])):
        maps = {name: found.reshape(-1, *found.shape[-2:])[number] for name, found in estimates.items()}
        place = [*index, *([number] if truth.ndim == 3 else [])]
        name = scan if not place else f"{scan} {'-'.join(map(str, place))}"
        if np.isfinite(plane).any():
            textures = surface_rows(plane, maps, spacing, units=intensity.units)
            rows += [{"scan": name, **texture} for texture in textures]
    return rows


def _tally(name: str, upscaler: Upscaler, trial: Trial, survey: Survey, setting: _Setting) -> Tally:
    begun = time.perf_counter()
    adapted = upscaler.adapt(trial.low)
    seconds = time.perf_counter() - begun
    chosen = plan(trial.low, adapted, memory=setting.memory, device=setting.device)
    frame, axes = trial.shape[trial.lead :], trial.refined
    grid = trial.scan.grid
    spacing = [grid.spacing_of(grid.axes[trial.lead + a]) for a in axes]
    in_plane = axes == (len(frame) - 2, len(frame) - 1)
    block = hole_free_block(survey.known, (0, 1)) if in_plane and not survey.known.all() else None
    return Tally(
        name, adapted, chosen, FourierRings(frame, axes=axes, spacing_um=spacing, block=block), seconds=seconds
    )


def _estimate(trial: Trial, tally: Tally, index: Index, device: Device) -> Array:
    """Stored values of one frame of the result; time and memory are taken."""
    target = trial.region(index, trial.shape)
    result = np.empty([s.stop - s.start for s in target], trial.scan.intensity.dtype)
    begun = time.perf_counter()
    with Footprint(torch_device(device)) as footprint:
        blocks = upscaled_blocks(trial.low, tally.upscaler, chosen=tally.plan, device=device, target=target)
        for region, values in blocks:
            result[(*[slice(None)] * trial.lead, *region[trial.lead :])] = values
    tally.seconds += time.perf_counter() - begun
    if footprint.peak_bytes is not None:
        tally.peak_bytes = max(tally.peak_bytes or 0, footprint.peak_bytes)
    return result.reshape(trial.shape[trial.lead :])


def _shown(trial: Trial, survey: Survey, frame: Array, mask: NDArray[np.bool_]) -> Array:
    """The plane (or the section along z and x) of a fine or coarse frame that the picture shows."""
    if frame.ndim == 2:
        return frame
    if trial.section:
        row = int(mask.sum((0, 2)).argmax())
        return np.asarray(frame[:, row * frame.shape[1] // mask.shape[1]])
    return np.asarray(frame[survey.plane[-1] * frame.shape[0] // trial.shape[-3]])


def _draw(
    path: Path,
    source: Source,
    trial: Trial,
    survey: Survey,
    tallies: Sequence[Tally],
    rows: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Array],
) -> None:
    low, truth = shown["low"], shown["truth"]
    panels = {"coarse": low, **{t.name: t.plane for t in tallies if t.plane is not None}, "original": truth}
    notes = {"coarse": f"{by(low.shape)} samples", "original": f"{by(truth.shape)} samples"}
    for row in rows:
        similarity = "" if row["ssim"] is None else f", SSIM {row['ssim']:.4f}"
        notes[row["method"]] = f"{row['psnr_db']:.2f} dB{similarity}"
    intensity, grid = trial.scan.intensity, trial.scan.grid
    black, white = gray_window(truth)
    names = tallies[-1].name if len(tallies) <= MOST_PANELS else f"{len(tallies)} methods"
    title = f"{source.name}: {names}, {by(trial.factor[-trial.axes :])} finer"
    if trial.section:
        title += ", section along z and x"
    elif len(trial.shape) > 2:
        places = zip(grid.axes, survey.plane, trial.shape, strict=False)
        title += "".join(f", {axis} {i + 1} of {n}" for axis, i, n in places)
    window = (black, white) if intensity.black < intensity.white else (white, black)
    spacing = _plane_spacing(grid, section=trial.section)
    units = intensity.units if (intensity.slope, intensity.intercept) == (1, 0) else ""
    if len(tallies) > MOST_PANELS:
        sheet_png(path, panels, window=window, notes=notes, title=title, spacing_um=spacing, units=units)
    else:
        errors = [tallies[-1].name]
        comparison_png(
            path, panels, window=window, errors=errors, notes=notes, title=title, spacing_um=spacing, units=units
        )


def _plane_spacing(grid: Grid, *, section: bool) -> tuple[float | None, float | None]:
    rows, columns = (grid.axes[-3], grid.axes[-1]) if section else grid.axes[-2:]
    return grid.spacing_of(rows), grid.spacing_of(columns)
