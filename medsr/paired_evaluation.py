"""evaluate_pairs: upscale measured coarse scans, and measure the results against the measured fine ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.evaluation import name_of
from medsr.frc import FourierRings, frc_resolution
from medsr.io import read_scan
from medsr.io.digest import input_digest
from medsr.io.pseudonyms import Pseudonyms, unnamed
from medsr.methods.interpolation import Cubic
from medsr.metrics import Agreement, agreement, foreground_mask, foreground_threshold
from medsr.pairing import Pair, aligned, find_pairs
from medsr.perceptual import haarpsi
from medsr.pictures import comparison_png, gray_window
from medsr.plan import Device, Plan, plan, torch_device
from medsr.registration import Registration, RegistrationRule, register
from medsr.scan import Factor, Intensity, Region, Scan, sample_values
from medsr.scoring import COLUMNS, LEAST_SIDE, EvaluationReport, cell, write_provenance, write_table
from medsr.upscaler import Upscaler
from medsr.upscaling import upscaled_blocks

__all__ = ["PAIR_COLUMNS", "Moments", "evaluate_pairs", "is_pairs"]

Array = NDArray[Any]

PAIR_COLUMNS = (
    "psnr_fitted_db",
    "fitted_gain",
    "fitted_offset",
    "shift_samples",
    "residual_samples",
    "correlation",
)
"""Columns of `scores.csv` beyond those of `evaluate`."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the samples of an estimate and a truth, from which the best line between them follows.

    References:
        M. Weigert et al.: Content-aware image restoration, Nature Methods 2018, doi:10.1038/s41592-018-0216-7,
        supplementary note 2: scale and shift of the estimate that minimize its squared error.
    """

    count: int = 0
    e: float = 0.0
    t: float = 0.0
    ee: float = 0.0
    et: float = 0.0
    tt: float = 0.0

    @classmethod
    def of(cls, estimate: Array, truth: Array, *, about: float) -> Moments:
        """Of two arrays of one shape; NaN is left out. `about` is taken off both, so that no digits are lost."""
        known = np.isfinite(estimate) & np.isfinite(truth)
        e, t = estimate[known].astype(np.float64) - about, truth[known].astype(np.float64) - about
        return cls(e.size, float(e.sum()), float(t.sum()), float(e @ e), float(e @ t), float(t @ t))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.e + other.e, self.t + other.t,
            self.ee + other.ee, self.et + other.et, self.tt + other.tt,
        )  # fmt: skip

    def fit(self) -> tuple[float, float, float]:
        """Gain, offset (about the same value) and the mean squared error that `gain * estimate + offset` has left."""
        if not self.count:
            return math.nan, math.nan, math.nan
        mean_e, mean_t = self.e / self.count, self.t / self.count
        var_e = max(0.0, self.ee / self.count - mean_e**2)
        var_t = max(0.0, self.tt / self.count - mean_t**2)
        covariance = self.et / self.count - mean_e * mean_t
        gain = covariance / var_e if var_e > 0 else 0.0
        return gain, mean_t - gain * mean_e, max(0.0, var_t - gain * covariance)


@dataclass(slots=True)
class _Tally:
    """The sums of one method over a pair."""

    name: str
    upscaler: Upscaler
    plan: Plan
    rings: FourierRings
    whole: Agreement = field(default_factory=Agreement)
    foreground: Agreement = field(default_factory=Agreement)
    moments: Moments = field(default_factory=Moments)
    likeness: list[float] = field(default_factory=list)
    seconds: float = 0.0
    plane: Array | None = None


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is the same for every pair."""

    methods: Mapping[str, Upscaler]
    factor: Factor
    line: tuple[float, float]
    rule: RegistrationRule
    out: Path
    series: str | int | None
    memory: int | None
    device: Device
    note: Callable[[str], None]


def is_pairs(path: Path | str) -> bool:
    """Whether a folder holds real pairs: low/ and high/."""
    return "://" not in str(path) and all((Path(path) / name).is_dir() for name in ("low", "high"))


def evaluate_pairs(
    folder: Path | str,
    upscaler: Upscaler | Mapping[str, Upscaler],
    *,
    out: Path | str,
    line: tuple[float, float] = (1.0, 0.0),
    rule: RegistrationRule = "whole",
    series: str | int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    trained_on: Collection[str] = (),
    pseudonyms: Pseudonyms | None = None,
    note: Callable[[str], None] | None = None,
) -> EvaluationReport:
    """Measure methods on real pairs: `folder/low` is upscaled and compared with `folder/high`; cubic always beside.

    The scans of a pair are registered as in training (`register`), and compared where both show the same. Estimates
    are brought to the stored values of the fine scans by `line`; the range of PSNR, SSIM and NRMSE is the distance of
    black and white of the fine scan. Because the two acquisitions can differ by a gain and an offset that is nobody's
    mistake, PSNR is given a second time, after the line that suits it best (`psnr_fitted_db`): the raw one judges the
    gray values, the fitted one the structure. How the instrument made the coarse scan is not known, so there is no
    consistency.

    Written are `out/scores.csv` with the columns `COLUMNS` and `PAIR_COLUMNS`, `out/<scan>.png`, `out/provenance.json`
    (as `evaluate`), and `out/failed.csv` when a pair failed.

    Args:
        folder: holds `low/` and `high/` with scans of one name each.
        upscaler: the method, or several of one factor by name.
        out: folder, made if absent.
        line: gain and offset from stored values of low to those of high (a card's `pairs`: gain, offset).
        rule: of registration, as in the recipe.
        series: which series of files that hold several.
        memory, device: as in `evaluate`.
        trained_on: SHA-256 of inputs the method has learned from; a pair among them is measured with a warning.
        pseudonyms: names in the table, the pictures and the lines, of the fine scans' content, in which no file's name
            or path stands; None: the files'.
        note: receives a line for each event worth a user's eye.

    Raises:
        ScanError: the folder holds no pairs.
        ValueError: no such device, or methods of different factors.
        OSError: `out` cannot be written.
    """
    torch_device(device)
    folder, out = Path(folder), Path(out)
    methods = dict(upscaler) if isinstance(upscaler, Mapping) else {name_of(upscaler): upscaler}
    factors = {each.factor for each in methods.values()}
    if len(factors) != 1:
        raise ValueError(f"methods: expected methods of one factor, found {sorted(factors)}; compare each by itself")
    (factor,) = factors
    if not any(isinstance(each, Cubic) for each in methods.values()):
        methods = {"cubic": Cubic(factor), **methods}
    if pseudonyms is not None:
        pseudonyms.refuse_named(series)
    pairs = find_pairs(folder) if pseudonyms is None else _renamed(folder, pseudonyms, out)
    out.mkdir(parents=True, exist_ok=True)
    setting = _Setting(methods, factor, line, rule, out, series, memory, device, note or (lambda _: None))
    columns = (*COLUMNS, *PAIR_COLUMNS)
    rows: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    inputs: dict[str, str] = {}
    for pair in pairs:
        name = pair.high.name
        try:
            digests = {f"{name}, {side}": input_digest(s) for side, s in (("low", pair.low), ("high", pair.high))}
            if set(digests.values()) & set(trained_on):
                setting.note(f"{name}: warning: the method has learned from this pair: its figures flatter")
            rows += _evaluated(pair, setting)
            inputs |= digests
        except Exception as error:  # noqa: BLE001 - law 6: one bad pair stops nothing; its reason is in the report
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = unnamed(unnamed(reason, pair.low), pair.high)
            failed.append((name, reason))
            setting.note(f"{name}: failed: {reason}")
        write_table(out / "scores.csv", columns, [[cell(row[column]) for column in columns] for row in rows])
        write_table(out / "failed.csv", ("scan", "reason"), failed)
        measured = {"degradation": "measured", "series": series, "device": torch_device(device).type}
        write_provenance(out, methods, inputs, gain=line[0], offset=line[1], registration=rule, **measured)
    return EvaluationReport(tuple(rows), tuple(failed))


def _renamed(folder: Path, pseudonyms: Pseudonyms, out: Path) -> list[Pair]:
    """The pairs under the pseudonyms of their fine scans, in the order of these."""
    pairs = find_pairs(folder, named=False)
    partners = {pair.high.path: pair.low for pair in pairs}
    high = pseudonyms.rename([pair.high for pair in pairs], out=out)
    return [Pair(replace(partners[each.path], name=each.name, unnamed=True), each) for each in high]


def _evaluated(pair: Pair, setting: _Setting) -> list[dict[str, Any]]:
    """The rows of one pair; its picture is written."""
    scans = read_scan(pair.low, series=setting.series), read_scan(pair.high, series=setting.series)
    registration = register(*scans, setting.factor, rule=setting.rule, name=str(pair.high.path))
    low, high = aligned(*scans, registration, setting.factor)
    lead = len(high.shape) - min(max(2, len(setting.factor)), len(high.shape))
    frame = high.shape[lead:]
    full = high.grid.pad_factor(setting.factor)[lead:]
    axes = tuple(a for a, f in enumerate(full) if f > 1)
    spacing = [high.grid.spacing_of(high.grid.axes[lead + a]) for a in axes]
    tallies = []
    for name, upscaler in setting.methods.items():
        adapted = upscaler.adapt(low)
        chosen = plan(low, adapted, memory=setting.memory, device=setting.device)
        tallies.append(_Tally(name, adapted, chosen, FourierRings(frame, axes=axes, spacing_um=spacing)))
    intensity = high.intensity
    values = sample_values(high.data)
    values = values[~intensity.holes(values)]
    threshold = foreground_threshold(intensity.to_unit(values))
    frames = list(product(*map(range, high.shape[:lead])))
    shown: dict[str, Array] = {}
    for index in frames:
        region: Region = (*(slice(i, i + 1) for i in index), *(slice(0, n) for n in frame))
        stored = high.read(region).reshape(frame)
        truth = np.where(intensity.holes(stored), np.nan, stored.astype(np.float64))
        mask = foreground_mask(intensity.to_unit(truth), threshold=threshold) & np.isfinite(truth)
        for tally in tallies:
            estimate = _estimate(low, tally, region, setting)
            _add(tally, estimate, truth, mask, intensity)
            if index == frames[len(frames) // 2]:
                tally.plane = _plane(estimate)
        if index == frames[len(frames) // 2]:
            coarse = tuple(
                slice(s.start, s.start + n) for s, n in zip(region, (*(1,) * lead, *low.shape[lead:]), strict=True)
            )
            gain, offset = setting.line
            shown = {
                "coarse": _plane(low.read(coarse).reshape(low.shape[lead:]) * gain + offset),
                "original": _plane(truth),
            }
    rows = [_row(pair, tally, high, registration, setting) for tally in tallies]
    _draw(setting.out / f"{pair.high.name}.png", pair, tallies, rows, shown, high)
    for row in rows:
        setting.note(f"{row['scan']}: {row['method']}: {row['psnr_db']:.2f} dB, fitted {row['psnr_fitted_db']:.2f} dB")
    return rows


def _estimate(low: Scan, tally: _Tally, region: Region, setting: _Setting) -> Array:
    """One frame of the result in the stored values of the fine scan, NaN where it has holes; the time is taken."""
    begun = time.perf_counter()
    stored = np.empty([s.stop - s.start for s in region], low.intensity.dtype)
    lead = len(region) - min(max(2, len(setting.factor)), len(region))
    for target, block in upscaled_blocks(low, tally.upscaler, chosen=tally.plan, device=setting.device, target=region):
        stored[(*[slice(None)] * lead, *target[lead:])] = block
    tally.seconds += time.perf_counter() - begun
    gain, offset = setting.line
    values = np.where(low.intensity.holes(stored), np.nan, stored.astype(np.float64) * gain + offset)
    return values.reshape(values.shape[lead:])


def _add(tally: _Tally, estimate: Array, truth: Array, mask: NDArray[np.bool_], intensity: Intensity) -> None:
    """Measure one frame."""
    span = abs(intensity.white - intensity.black)
    deep = tally.upscaler.factor[0] > 1 and truth.ndim == 3 and truth.shape[0] > 10
    whole, foreground = agreement(estimate, truth, data_range=span, mask=mask, dims=3 if deep else 2)
    tally.whole += whole
    tally.foreground += foreground
    tally.moments += Moments.of(estimate, truth, about=intensity.black)
    tally.rings.add(estimate, truth)
    flat = [side.reshape(-1, *side.shape[-2:]) for side in (estimate, truth)]
    if min(flat[0].shape[1:]) >= LEAST_SIDE:
        tally.likeness += [haarpsi(found, true, data_range=span) for found, true in zip(*flat, strict=True)]


def _row(pair: Pair, tally: _Tally, high: Scan, registration: Registration, setting: _Setting) -> dict[str, Any]:
    span = abs(high.intensity.white - high.intensity.black)
    gain, offset, left = tally.moments.fit()
    about = high.intensity.black
    found = frc_resolution(tally.rings.curve())
    known: dict[str, Any] = {
        "scan": pair.high.name,
        "method": tally.name,
        "psnr_db": tally.whole.psnr_db(span),
        "ssim": tally.whole.ssim,
        "haarpsi": math.fsum(tally.likeness) / len(tally.likeness) if tally.likeness else math.nan,
        "nrmse": tally.whole.nrmse(span),
        "frc_um": found.value if found.unit == "um" else math.nan,
        "psnr_foreground_db": tally.foreground.psnr_db(span),
        "ssim_foreground": tally.foreground.ssim,
        "nrmse_foreground": tally.foreground.nrmse(span),
        "foreground_share": tally.foreground.samples / max(1, tally.whole.samples),
        "frc_samples": found.value / min(tally.rings.spacing),
        "frc_note": found.reason or ("" if found.unit == "um" else "spacing unknown: in samples only"),
        "data_range": span,
        "factor": _by(setting.factor),
        "shape": _by(high.shape),
        "degradation": "measured",
        "seconds": round(tally.seconds, 3),
        "psnr_fitted_db": 10 * math.log10(span**2 / left) if left > 0 else math.inf,
        "fitted_gain": gain,
        "fitted_offset": offset + about - gain * about,
        "shift_samples": max(map(abs, registration.shift)),
        "residual_samples": max(map(abs, registration.residual)),
        "correlation": registration.correlation,
    }
    row = {name: known.get(name) for name in (*COLUMNS, *PAIR_COLUMNS)}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _draw(
    path: Path,
    pair: Pair,
    tallies: Sequence[_Tally],
    rows: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Array],
    high: Scan,
) -> None:
    planes = {tally.name: tally.plane for tally in tallies if tally.plane is not None}
    panels = {"coarse": shown["coarse"], **planes, "original": shown["original"]}
    notes = {row["method"]: f"{row['psnr_db']:.2f} dB, fitted {row['psnr_fitted_db']:.2f} dB" for row in rows}
    black, white = gray_window(shown["original"])
    comparison_png(
        path,
        panels,
        window=(black, white) if high.intensity.black < high.intensity.white else (white, black),
        errors=[tallies[-1].name],
        notes={name: notes.get(name, f"{_by(panel.shape)} samples, measured") for name, panel in panels.items()},
        title=f"{pair.high.name}: real pair, {_by(tallies[-1].upscaler.factor)} finer",
        spacing_um=(high.grid.spacing_of("y"), high.grid.spacing_of("x")),
    )


def _plane(frame: Array) -> Array:
    """The frame, or of a stack its middle plane."""
    return frame if frame.ndim == 2 else np.asarray(frame[frame.shape[0] // 2])


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
