"""estimate_blur: how wide the blur of a scan is, as a trained IKC finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsr.checkpoint import TrainedUpscaler, load_upscaler
from medsr.io import find_all, read_scan
from medsr.io.pseudonyms import Pseudonyms, unnamed
from medsr.methods.ikc import IkcNetwork
from medsr.scan import Scan
from medsr.scoring import cell, write_table

__all__ = ["BlurEstimate", "BlurReport", "estimate_blur", "estimate_blurs"]


@dataclass(frozen=True, slots=True)
class BlurEstimate:
    """The blur of a scan beyond the reading of its samples: full widths at half maximum, one for each refined axis.

    It is what lies between the scan and the fine scans the checkpoint was trained on, for those were blurred too.

    Attributes:
        axes: names of the axes, slowest first.
        fwhm_samples: in samples of the scan.
        fwhm_um: in micrometers; None along an axis of unknown spacing.
        spread_samples: half the range that the middle half of the patches covers, in samples: what patches disagree by,
            which is no bound of the error.
        patches: number of patches that had a say.
        history: widths in samples as predicted, and after each correction.
        range_samples: smallest and largest width that the checkpoint was trained for, for each axis.
        doubts: sentences on why the estimate may be off.
    """

    axes: tuple[str, ...]
    fwhm_samples: tuple[float, ...]
    fwhm_um: tuple[float | None, ...]
    spread_samples: tuple[float, ...]
    patches: int
    history: tuple[tuple[float, ...], ...]
    range_samples: tuple[tuple[float, float], ...]
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for axis, samples, um, spread in zip(
            self.axes, self.fwhm_samples, self.fwhm_um, self.spread_samples, strict=True
        ):
            size = "spacing unknown" if um is None else f"{um:.3g} um"
            lines.append(f"{axis}: {size}, {samples:.2f} +- {spread:.2f} samples")
        return f"blur {'; '.join(lines)} ({self.patches} patches, {len(self.history) - 1} corrections)"


def estimate_blur(scan: Scan, upscaler: TrainedUpscaler | str | Path) -> BlurEstimate:
    """Estimate the blur of a scan, which may be larger than memory: only patches of it are read.

    Args:
        scan: of the kind the checkpoint was trained on.
        upscaler: of method ikc, or its run folder or checkpoint file.

    Raises:
        CheckpointError: no checkpoint there.
        ValueError: it is of another method, or was not trained to find a blur; or the scan shows nothing.
    """
    if not isinstance(upscaler, TrainedUpscaler):
        upscaler = load_upscaler(upscaler)
    network = _network_of(upscaler)
    found = network.find(upscaler.recipe.intensity.apply(scan))
    if found is None:
        raise ValueError("expected a scan that shows something, found every patch flat or with holes; blur is unknown")
    axes = scan.grid.axes[-len(network.factor) :]
    widths = tuple(found.fwhm_samples.tolist())
    steps = [scan.grid.spacing_of(axis) for axis in axes]
    low, high = found.patches.quantile(0.25, 0), found.patches.quantile(0.75, 0)
    trained = network.coder.widths.cpu()
    ranges = tuple(zip(trained.amin(0).tolist(), trained.amax(0).tolist(), strict=True))
    doubts = [
        f"along {axis} the blur lies at the {end} end of what the checkpoint was trained for "
        f"({least:.2f} to {most:.2f} samples); it may be {word}"
        for axis, width, (least, most) in zip(axes, widths, ranges, strict=True)
        for end, word, at in (("lower", "narrower", least), ("upper", "wider", most))
        if most > least and abs(width - at) < 0.02 * (most - least)
    ]
    return BlurEstimate(
        axes=tuple(axes),
        fwhm_samples=widths,
        fwhm_um=tuple(None if step is None else width * step for width, step in zip(widths, steps, strict=True)),
        spread_samples=tuple(((high - low) / 2).tolist()),
        patches=len(found.patches),
        history=tuple(tuple(row) for row in found.history.tolist()),
        range_samples=ranges,
        doubts=tuple(doubts),
    )


def _network_of(upscaler: TrainedUpscaler) -> IkcNetwork:
    """The network that finds blur.

    Raises:
        ValueError: it is of another method, or was not trained to find a blur.
    """
    network = upscaler.network
    if not isinstance(network, IkcNetwork):
        raise ValueError(
            f"{upscaler.path}: expected a checkpoint that finds blur, found method {upscaler.recipe.method.kind}; "
            "train one with method.kind: ikc"
        )
    if not network.trained:
        raise ValueError(
            f"{upscaler.path}: expected a checkpoint that learned to find blur, found one of the pixel phase only; "
            "train it with training.correction_steps above 0"
        )
    return network


COLUMNS = ("scan", "axis", "fwhm_um", "fwhm_samples", "spread_samples", "patches", "doubts")
"""Columns of the table of blurs."""


@dataclass(frozen=True, slots=True)
class BlurReport:
    """The blur of several scans.

    Attributes:
        rows: one for each scan and refined axis, with the keys `COLUMNS`; a width that is unknown is None.
        failed: (scan, reason) of each scan whose blur could not be estimated.
    """

    rows: tuple[dict[str, Any], ...]
    failed: tuple[tuple[str, str], ...]

    @property
    def exit_code(self) -> int:
        """1 when a scan failed, else 0."""
        return int(bool(self.failed))


def estimate_blurs(
    paths: Path | str | Sequence[Path | str],
    upscaler: TrainedUpscaler | str | Path,
    *,
    out: Path | str | None = None,
    series: str | int | None = None,
    pseudonyms: Pseudonyms | None = None,
    note: Callable[[str], None] | None = None,
) -> BlurReport:
    """Estimate the blur of every scan; one that cannot be read or shows nothing is named and stops nothing.

    Args:
        paths: files and folders.
        upscaler: as in `estimate_blur`.
        out: CSV file of the table, if wanted.
        series: which series of files that hold several.
        pseudonyms: names in the table and the lines, in which no file's name or path stands; None: the files'.
        note: receives each doubt.

    Raises:
        CheckpointError, ValueError: as `estimate_blur`, of the checkpoint.
        ScanError: no scan was found.
        OSError: `out` cannot be written.
    """
    if not isinstance(upscaler, TrainedUpscaler):
        upscaler = load_upscaler(upscaler)
    _network_of(upscaler)
    rows: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    for source in find_all(paths) if pseudonyms is None else pseudonyms.find_all(paths, out=out):
        try:
            found = estimate_blur(read_scan(source, series=series), upscaler)
        except Exception as error:  # noqa: BLE001 - law 6: one bad scan stops nothing; its reason is in the report
            failed.append((source.name, unnamed(" ".join(str(error).split()) or type(error).__name__, source)))
            continue
        for index, axis in enumerate(found.axes):
            figures = (found.fwhm_um[index], found.fwhm_samples[index], found.spread_samples[index], found.patches)
            doubts = "; ".join(found.doubts)
            rows.append(dict(zip(COLUMNS, (source.name, axis, *figures, doubts), strict=True)))
        for doubt in found.doubts:
            (note or (lambda _: None))(f"{source.name}: warning: {doubt}")
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_table(Path(out), COLUMNS, [[cell(row[name]) for name in COLUMNS] for row in rows])
    return BlurReport(tuple(rows), tuple(failed))
