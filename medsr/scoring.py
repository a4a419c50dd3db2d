"""Scores of one method on one scan, and the table they are written to."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.frc import FourierRings, Resolution, frc_resolution
from medsr.metrics import Agreement, agreement
from medsr.perceptual import haarpsi
from medsr.plan import Plan
from medsr.trial import Trial, by
from medsr.upscaler import Upscaler, checkpoints_of, describe, fingerprint
from medsr.version import __version__

__all__ = [
    "COLUMNS",
    "PROVENANCE",
    "EvaluationReport",
    "Tally",
    "add_frame",
    "cell",
    "row_of",
    "write_provenance",
    "write_table",
]

Array = NDArray[Any]

PROVENANCE = "provenance.json"
"""Where figures come from, beside `scores.csv`."""

LEAST_SIDE = 16
"""Samples along each axis of a plane below which the perceptual likeness means nothing."""

COLUMNS = (
    "scan",
    "method",
    "psnr_db",
    "ssim",
    "nrmse",
    "frc_um",
    "consistency_db",
    "haarpsi",
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
    "peak_mb",
)
"""Columns of `scores.csv`, in its order."""

MEANS = (*COLUMNS[2:13], "seconds", "peak_mb")


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What was measured.

    Attributes:
        rows: one for each scan and method, with the keys `COLUMNS`; a figure that does not exist is None.
        failed: (scan, reason) of each scan that could not be measured.
        surfaces: of height maps, a row of texture parameters for each map and method, the original first, with the
            keys "scan" and `SURFACE_COLUMNS`.
    """

    rows: tuple[dict[str, Any], ...]
    failed: tuple[tuple[str, str], ...]
    surfaces: tuple[dict[str, Any], ...] = ()

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


@dataclass(slots=True)
class Tally:
    """The sums of one method over a scan."""

    name: str
    upscaler: Upscaler
    plan: Plan
    rings: FourierRings
    whole: Agreement = field(default_factory=Agreement)
    foreground: Agreement = field(default_factory=Agreement)
    coarse: Agreement = field(default_factory=Agreement)
    likeness: list[float] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int | None = None
    plane: Array | None = None


def add_frame(
    tally: Tally, trial: Trial, estimate: Array, frame: tuple[Array, Array, NDArray[np.bool_]], data_range: float
) -> None:
    """Measure one frame: `frame` is the original, the coarse one and the foreground."""
    truth, low, mask = frame
    deep = trial.refined[0] == 0 and truth.ndim == 3 and truth.shape[0] > 10
    whole, foreground = agreement(estimate, truth, data_range=data_range, mask=mask, dims=3 if deep else 2)
    tally.whole += whole
    tally.foreground += foreground
    tally.rings.add(estimate, truth)
    for found, true in zip(_planes(estimate, trial), _planes(truth, trial), strict=True):
        if min(true.shape) >= LEAST_SIDE:
            tally.likeness.append(haarpsi(found, true, data_range=data_range, halve=False))
    to_unit = trial.scan.intensity.to_unit
    again = trial.degraded(to_unit(estimate))
    tally.coarse += agreement(again, to_unit(low), data_range=1.0, similarity=False)[0]


def _planes(frame: Array, trial: Trial) -> Array:
    """The planes of a frame that show what was refined: across z, or where only z is refined, across y."""
    if frame.ndim == 2:
        return frame[None]
    return np.moveaxis(frame, 1, 0) if trial.section else frame


def row_of(scan: str, trial: Trial, tally: Tally, data_range: float) -> dict[str, Any]:
    """The row of one method on one scan, with the keys `COLUMNS`; what does not exist is None."""
    found = frc_resolution(tally.rings.curve())
    share = tally.foreground.samples / max(1, tally.whole.samples)
    row: dict[str, Any] = {
        "scan": scan,
        "method": tally.name,
        "psnr_db": tally.whole.psnr_db(data_range),
        "ssim": tally.whole.ssim,
        "haarpsi": math.fsum(tally.likeness) / len(tally.likeness) if tally.likeness else math.nan,
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
        "peak_mb": math.nan if tally.peak_bytes is None else round(tally.peak_bytes / 1e6, 1),
    }
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _frc_note(found: Resolution) -> str:
    if found.reason:
        return found.reason
    return "" if found.unit == "um" else "spacing unknown: in samples only"


def cell(value: Any) -> str:
    """One entry of the table: six digits, nothing for what does not exist."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The whole table under another name first; none where one of failures or surfaces would be empty."""
    if not rows and path.name != "scores.csv":
        path.unlink(missing_ok=True)
        return
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    _write(path, text.getvalue())


def write_provenance(out: Path, methods: Mapping[str, Upscaler], inputs: Mapping[str, str], **settings: Any) -> None:
    """Say beside the scores where they come from: `out/provenance.json`; no time, no path, no name of a file.

    Args:
        out: the folder of the scores.
        methods: by their names in the table, as they were given: what they are told of a scan is not in their hash.
        inputs: SHA-256 of the files of each scan (`input_digest`), by its name in the table.
        settings: what else decides the figures, plain JSON.
    """
    known = {
        name: {
            "method": describe(each),
            "method_sha256": fingerprint(each),
            "checkpoints": list(checkpoints_of(each)),
            "factor": list(each.factor),
        }
        for name, each in methods.items()
    }
    said = {"version": __version__, **settings, "methods": known, "inputs_sha256": dict(inputs)}
    _write(out / PROVENANCE, json.dumps(said, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    """Under another name first, so that the file is whole whenever it is there."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
