"""evaluate: degrade, upscale, measure; one row a scan and method."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.degradation import Degradation, DegradationRange
from medsr.frc import FourierRings, Resolution, frc_resolution, hole_free_block
from medsr.io import NoImageError, Source, find_all, read_scan
from medsr.io.digest import input_digest
from medsr.methods.interpolation import Cubic
from medsr.metrics import Agreement, agreement, foreground_mask
from medsr.pictures import comparison_png, gray_window
from medsr.plan import Device, Plan, plan, torch_device
from medsr.scan import Factor, Grid, ScanError
from medsr.trial import Index, Survey, Trial, by, survey_of
from medsr.upscaler import Upscaler, describe
from medsr.upscaling import upscaled_blocks

__all__ = ["COLUMNS", "EvaluationReport", "evaluate"]

Array = NDArray[Any]

COLUMNS = (
    "scan",
    "method",
    "psnr_db",
    "ssim",
    "nrmse",
    "frc_um",
    "consistency_db",
    "psnr_foreground_db",
    "ssim_foreground",
    "nrmse_foreground",
    "foreground_share",
    "frc_samples",
    "frc_note",
    "data_range",
    "factor",
    "shape",
    "degradation",
    "seconds",
)
"""Columns of `scores.csv`, in its order."""

MEANS = COLUMNS[2:12]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What was measured.

    Attributes:
        rows: one for each scan and method, with the keys `COLUMNS`; a figure that does not exist is None.
        failed: (scan, reason) of each scan that could not be measured.
    """

    rows: tuple[dict[str, Any], ...]
    failed: tuple[tuple[str, str], ...]

    @property
    def exit_code(self) -> int:
        """1 when a scan failed, else 0."""
        return int(bool(self.failed))

    def summary(self) -> tuple[dict[str, Any], ...]:
        """Means over scans, one dictionary for each method: "method", "scans" and the figures.

        Decibels are averaged as decibels, scan by scan (not the decibels of a mean error). Figures that do not exist
        or are infinite are left out of their mean.
        """
        methods = dict.fromkeys(row["method"] for row in self.rows)
        means = []
        for method in methods:
            rows = [row for row in self.rows if row["method"] == method]
            mean: dict[str, Any] = {"method": method, "scans": len(rows)}
            for name in MEANS:
                values = [row[name] for row in rows if row[name] is not None and math.isfinite(row[name])]
                mean[name] = math.fsum(values) / len(values) if values else None
            means.append(mean)
        return tuple(means)


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
    upscaler: Upscaler,
    *,
    out: Path | str,
    degradation: Degradation | DegradationRange | None = None,
    method: str | None = None,
    series: str | int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    trained_on: Collection[str] = (),
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

    Written are `out/scores.csv`, `out/<scan>.png`, and `out/failed.csv` when a scan failed.

    Args:
        paths: files and folders.
        upscaler: the method.
        out: folder, made if absent.
        degradation: how the fine scans become coarse; a range stands for its middle, with the spacing of each scan
            (a checkpoint's is `recipe.degradation`); None: the mean over each coarse sample, no noise. Noise is the
            same on every run.
        method: name of the method in the table; None: its own.
        series: which series of files that hold several.
        memory: bytes the upscaling may take (`plan`); what is measured, one plane or stack at a time, comes on top.
        device: "auto", "cpu", "cuda", "cuda:N".
        trained_on: SHA-256 of inputs the method has learned from (a card's `inputs`); a scan among them is measured
            with a warning that its figures flatter.
        note: receives a line for each event worth a user's eye.
        tick: receives (scan, planes or stacks done, in all).

    Raises:
        ScanError: no scan was found.
        OSError: `out` cannot be written.
        ValueError: no such device, or a degradation of another factor.
    """
    torch_device(device)
    factor = upscaler.factor
    if isinstance(degradation, Degradation) and degradation.factor != factor:
        raise ValueError(
            f"degradation: expected the factor {factor} of the method, found {degradation.factor}; use one of the two"
        )
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the scores, found a file; give --out another name")
    sources = find_all(paths, out=out)
    own = method or describe(upscaler).split("(")[0].split()[0].lower()
    methods: tuple[tuple[str, Upscaler], ...] = ((own, upscaler),)
    if not isinstance(upscaler, Cubic):
        methods = (("cubic", Cubic(factor)), *methods)
    out.mkdir(parents=True, exist_ok=True)
    setting = _Setting(methods, factor, degradation, out, series, memory, device, note or _silent, tick or _untold)
    rows: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    for source in sources:
        try:
            if trained_on and input_digest(source) in trained_on:
                setting.note(f"{source.name}: warning: the method has learned from this scan: its figures flatter")
            rows += _evaluated(source, setting)
        except NoImageError as error:
            setting.note(f"{source.name}: skipped: {_reason(source, error)}")
        except Exception as error:  # noqa: BLE001 - law 6: one bad scan stops nothing; its reason is in the report
            failed.append((source.name, _reason(source, error)))
            setting.note(f"{source.name}: failed: {failed[-1][1]}")
        _write_table(out / "scores.csv", COLUMNS, [[_cell(row[name]) for name in COLUMNS] for row in rows])
        _write_table(out / "failed.csv", ("scan", "reason"), failed)
    return EvaluationReport(tuple(rows), tuple(failed))


def _silent(_line: str) -> None:
    """The default of `note`."""


def _untold(_scan: str, _done: int, _total: int) -> None:
    """The default of `tick`."""


def _reason(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or source.path}: {error.strerror}; check the file, its rights and the disk"
    if isinstance(error, (ValueError, MemoryError)):
        return text if source.path.name in text else f"{source.path}: {text}"
    return f"{source.path}: {type(error).__name__}: {text}"


@dataclass(slots=True)
class _Tally:
    """The sums of one method over a scan."""

    name: str
    upscaler: Upscaler
    plan: Plan
    rings: FourierRings
    whole: Agreement = field(default_factory=Agreement)
    foreground: Agreement = field(default_factory=Agreement)
    coarse: Agreement = field(default_factory=Agreement)
    seconds: float = 0.0
    plane: Array | None = None


def _evaluated(source: Source, setting: _Setting) -> list[dict[str, Any]]:
    """The rows of one scan; its picture is written."""
    scan = read_scan(source, series=setting.series)
    for warning in scan.warnings:
        setting.note(f"{source.name}: warning: {warning}")
    trial = Trial(scan, setting.factor, setting.degradation)
    survey = survey_of(trial)
    tallies = [_tally(name, upscaler, trial, survey, setting) for name, upscaler in setting.methods]
    data_range = abs(scan.intensity.white - scan.intensity.black)
    shown: dict[str, Array] = {}
    lowest, highest = math.inf, -math.inf
    frames = list(trial.frames())
    for done, index in enumerate(frames, start=1):
        truth, low = trial.fine(index), trial.coarse(index)
        finite = truth[np.isfinite(truth)]
        if finite.size:
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
        unit = scan.intensity.to_unit(truth)
        mask = foreground_mask(unit, threshold=survey.threshold) if finite.size else np.zeros(truth.shape, bool)
        for tally in tallies:
            estimate = _estimate(trial, tally, index, setting.device)
            _add(tally, trial, estimate, (truth, low, mask), data_range)
            if index == survey.plane[: trial.lead]:
                tally.plane = _shown(trial, survey, estimate, mask)
        if index == survey.plane[: trial.lead]:
            shown = {"low": _shown(trial, survey, low, mask), "truth": _shown(trial, survey, truth, mask)}
        setting.tick(source.name, done, len(frames))
    if not lowest < highest:
        raise ScanError(f"expected values that differ, found {lowest:g} everywhere: nothing to measure")
    rows = [_row(source, trial, tally, data_range) for tally in tallies]
    _draw(setting.out / f"{source.name}.png", source, trial, survey, tallies, rows, shown)
    for row in rows:
        setting.note(f"{source.name}: {row['method']}: {row['psnr_db']:.2f} dB")
    return rows


def _tally(name: str, upscaler: Upscaler, trial: Trial, survey: Survey, setting: _Setting) -> _Tally:
    adapted = upscaler.adapt(trial.low)
    chosen = plan(trial.low, adapted, memory=setting.memory, device=setting.device)
    frame, axes = trial.shape[trial.lead :], trial.refined
    grid = trial.scan.grid
    spacing = [grid.spacing_of(grid.axes[trial.lead + a]) for a in axes]
    in_plane = axes == (len(frame) - 2, len(frame) - 1)
    block = hole_free_block(survey.known, (0, 1)) if in_plane and not survey.known.all() else None
    return _Tally(name, adapted, chosen, FourierRings(frame, axes=axes, spacing_um=spacing, block=block))


def _estimate(trial: Trial, tally: _Tally, index: Index, device: Device) -> Array:
    """Stored values of one frame of the result; the time is taken."""
    begun = time.perf_counter()
    target = trial.region(index, trial.shape)
    result = np.empty([s.stop - s.start for s in target], trial.scan.intensity.dtype)
    for region, values in upscaled_blocks(trial.low, tally.upscaler, chosen=tally.plan, device=device, target=target):
        result[(*[slice(None)] * trial.lead, *region[trial.lead :])] = values
    tally.seconds += time.perf_counter() - begun
    return result.reshape(trial.shape[trial.lead :])


def _add(
    tally: _Tally, trial: Trial, estimate: Array, frame: tuple[Array, Array, NDArray[np.bool_]], data_range: float
) -> None:
    """Measure one frame: `frame` is the original, the coarse one and the foreground."""
    truth, low, mask = frame
    deep = trial.refined[0] == 0 and truth.ndim == 3 and truth.shape[0] > 10
    whole, foreground = agreement(estimate, truth, data_range=data_range, mask=mask, dims=3 if deep else 2)
    tally.whole += whole
    tally.foreground += foreground
    tally.rings.add(estimate, truth)
    to_unit = trial.scan.intensity.to_unit
    again = trial.degraded(to_unit(estimate))
    tally.coarse += agreement(again, to_unit(low), data_range=1.0, similarity=False)[0]


def _row(source: Source, trial: Trial, tally: _Tally, data_range: float) -> dict[str, Any]:
    found = frc_resolution(tally.rings.curve())
    share = tally.foreground.samples / max(1, tally.whole.samples)
    row: dict[str, Any] = {
        "scan": source.name,
        "method": tally.name,
        "psnr_db": tally.whole.psnr_db(data_range),
        "ssim": tally.whole.ssim,
        "nrmse": tally.whole.nrmse(data_range),
        "frc_um": found.value if found.unit == "um" else math.nan,
        "consistency_db": tally.coarse.psnr_db(1.0),
        "psnr_foreground_db": tally.foreground.psnr_db(data_range),
        "ssim_foreground": tally.foreground.ssim,
        "nrmse_foreground": tally.foreground.nrmse(data_range),
        "foreground_share": share,
        "frc_samples": found.value / min(tally.rings.spacing),
        "frc_note": _frc_note(found),
        "data_range": data_range,
        "factor": by(trial.factor[-trial.axes :]),
        "shape": by(trial.shape),
        "degradation": repr(trial.degradation),
        "seconds": round(tally.seconds, 3),
    }
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _frc_note(found: Resolution) -> str:
    if found.reason:
        return found.reason
    return "" if found.unit == "um" else "spacing unknown: in samples only"


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
    tallies: Sequence[_Tally],
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
    title = f"{source.name}: {tallies[-1].name}, {by(trial.factor[-trial.axes :])} finer"
    if trial.section:
        title += ", section along z and x"
    elif len(trial.shape) > 2:
        places = zip(grid.axes, survey.plane, trial.shape, strict=False)
        title += "".join(f", {axis} {i + 1} of {n}" for axis, i, n in places)
    comparison_png(
        path,
        panels,
        window=(black, white) if intensity.black < intensity.white else (white, black),
        errors=[tallies[-1].name],
        notes=notes,
        title=title,
        spacing_um=_plane_spacing(grid, section=trial.section),
        units=intensity.units if (intensity.slope, intensity.intercept) == (1, 0) else "",
    )


def _plane_spacing(grid: Grid, *, section: bool) -> tuple[float | None, float | None]:
    rows, columns = (grid.axes[-3], grid.axes[-1]) if section else grid.axes[-2:]
    return grid.spacing_of(rows), grid.spacing_of(columns)


def _cell(value: Any) -> str:
    """One entry of the table: six digits, nothing for what does not exist."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The whole table under another name first; none where `failed.csv` would be empty."""
    if not rows and path.name == "failed.csv":
        path.unlink(missing_ok=True)
        return
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text.getvalue(), encoding="utf-8", newline="")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
