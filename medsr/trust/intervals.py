"""Intervals: lower and upper ends beside an estimate, with what is promised of them; kept beside a checkpoint."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from medsr.checkpoint import CheckpointError, TrainedUpscaler, load_upscaler
from medsr.degradation import Degradation, DegradationRange
from medsr.io import Source, find_all
from medsr.methods.ensemble import Ensemble
from medsr.methods.widths import Widths
from medsr.plan import Device
from medsr.trust.calibration import Calibration, Coverage, calibrate, group_of, measure_curves, pooled
from medsr.trust.curves import SCALINGS, Over
from medsr.trust.distances import Bound, Distances, Interval, LearnedWidths, SpreadWidths, estimating
from medsr.trust.fitting import fit_widths
from medsr.upscaler import Upscaler

__all__ = ["FILE", "Intervals", "calibrate_run", "coverage", "intervals_file", "load_intervals", "save_intervals"]

FILE = "intervals.safetensors"
"""Name of the file beside a checkpoint."""
FORMAT = 1

Note = Callable[[str], None]
Kind = Literal["auto", "trained", "spread"]
"""Which distances are calibrated where no scans to learn from are given."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Calibrated intervals of an upscaler.

    Attributes:
        method: estimate and distances.
        calibration: the scaling and what is promised.

    Raises:
        ValueError: the calibration is of other distances.
    """

    method: Distances
    calibration: Calibration

    def __post_init__(self) -> None:
        if self.calibration.digest != self.method.digest:
            raise ValueError(
                f"Intervals: expected the distances that were calibrated ({self.calibration.kind} "
                f"{self.calibration.digest[:12]}), found {self.method.kind} {self.method.digest[:12]}; calibrate again"
            )

    @property
    def lower(self) -> Bound:
        """The lower end, an upscaler."""
        return Bound(self.method, "lower", scaling=self.calibration.scaling, promise=self.calibration.promise)

    @property
    def upper(self) -> Bound:
        """The upper end, an upscaler."""
        return Bound(self.method, "upper", scaling=self.calibration.scaling, promise=self.calibration.promise)

    @property
    def upscaler(self) -> Upscaler:
        """The upscaler that makes the estimate between the ends."""
        return estimating(self.method)

    @property
    def together(self) -> Interval:
        """Estimate and both ends at once, which `upscale_folder` writes into one result; the network runs once."""
        promised = self.calibration
        terms = {
            "words": promised.promise,
            "share": round(1 - promised.alpha, 12),
            "confidence": round(1 - promised.delta, 12),
            "over": promised.over,
            "scans": promised.coverage.scans,
            "groups": promised.coverage.groups,
            "grouped": promised.grouped,
            "distances": promised.kind,
            "scaling": promised.scaling,
        }
        return Interval(self.method, scaling=promised.scaling, promise=promised.promise, terms=terms)

    def bounds(self, low: Tensor, estimate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper end of a tile, not clipped; the promise holds for them rounded to the stored type.

        Args:
            low: (n, 1, *size), unit intensity.
            estimate: (n, 1, *size * factor) of the single part of the method, to save its work; None: it is run.

        Raises:
            ValueError: an estimate where the method has several parts or needs several views.
        """
        runs: list[Callable[[Tensor], Tensor]] = list(self.method.parts)
        if estimate is not None:
            if self.method.kind != "widths":
                raise ValueError(
                    "bounds: expected no estimate, for the spread needs all members, found one; leave it out"
                )
            runs = [lambda _low: estimate]
        with torch.inference_mode():
            middle, down, up = self.method.distances(low, runs)
        scaling = self.calibration.scaling
        return middle - scaling * down, middle + scaling * up


class _Notes(BaseModel):
    """What is written beside the weights of the widths."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: int
    kind: Literal["widths", "spread"]
    checkpoint: str
    features: int = 0
    blocks: int = 0
    floor: float = 0.0
    calibration: Calibration


def save_intervals(run: Path | str, method: Distances, calibration: Calibration) -> Path:
    """Write distances and calibration beside a run's checkpoint, bound to its weights; whole or not at all.

    Args:
        run: a run folder, or a checkpoint file.
        method: `LearnedWidths` of this run's upscaler, or `SpreadWidths` of its flips.
        calibration: of this method.

    Returns:
        The file.

    Raises:
        ValueError: the method is not made of this checkpoint alone, or the calibration is of another method.
        OSError: the file cannot be written.
    """
    Intervals(method, calibration)
    upscaler = load_upscaler(run)
    inner = method.parts[0]
    if len(method.parts) != 1 or not isinstance(inner, TrainedUpscaler):
        raise ValueError(
            f"save_intervals: expected distances of the one upscaler of {run}, found {method!r}; what is combined of "
            "several cannot be kept in one run"
        )
    if inner.weights_sha256 != upscaler.weights_sha256 or calibration.checkpoints != (upscaler.weights_sha256,):
        raise ValueError(
            f"save_intervals: expected distances of the weights {upscaler.weights_sha256[:12]} of {run}, found those "
            f"of {inner.weights_sha256[:12]}; give the run they were calibrated with"
        )
    notes = _Notes(format=FORMAT, kind="spread", checkpoint=upscaler.weights_sha256, calibration=calibration)
    weights: dict[str, Tensor] = {"scaling": torch.tensor([calibration.scaling], dtype=torch.float64)}
    if isinstance(method, LearnedWidths):
        notes.kind, notes.features, notes.blocks = "widths", method.widths.features, method.widths.blocks
        weights |= {f"widths.{k}": v.detach().cpu().contiguous() for k, v in method.widths.state_dict().items()}
    elif isinstance(method, SpreadWidths):
        notes.floor = method.floor
    path = intervals_file(run)
    data = to_safetensors(weights, metadata={"medsr": notes.model_dump_json()})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load_intervals(run: Path | str) -> Intervals:
    """The calibrated intervals of a run.

    Raises:
        CheckpointError: none were calibrated, the file is damaged or newer, or the checkpoint has other weights.
    """
    path = intervals_file(run)
    upscaler = load_upscaler(run)
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            notes = _read_notes(path, (stored.metadata() or {}).get("medsr", ""))
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: expected calibrated intervals, found no file; make them with medsr calibrate"
        ) from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: expected calibrated intervals, found {error}; calibrate again") from None
    if notes.checkpoint != upscaler.weights_sha256:
        raise CheckpointError(
            f"{path}: expected the intervals of the weights {upscaler.weights_sha256[:12]} of {upscaler.path.name}, "
            f"found those of {notes.checkpoint[:12]}: the checkpoint has changed since; calibrate again"
        )
    method: Distances
    if notes.kind == "spread":
        method = SpreadWidths(Ensemble(upscaler), floor=notes.floor)
    else:
        widths = Widths(upscaler.factor, features=notes.features, blocks=notes.blocks)
        try:
            widths.load_state_dict({k.removeprefix("widths."): v for k, v in weights.items() if k != "scaling"})
        except RuntimeError as error:
            raise CheckpointError(f"{path}: expected weights of {widths!r}, found others ({error})") from None
        method = LearnedWidths(upscaler, widths.eval().requires_grad_(False))
    try:
        return Intervals(method, notes.calibration)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; the file is damaged") from None


def calibrate_run(
    run: Path | str,
    paths: Path | str | Sequence[Path | str],
    *,
    learn_from: Path | str | Sequence[Path | str] = (),
    widths: Kind = "auto",
    alpha: float = 0.1,
    delta: float = 0.1,
    over: Over = "whole",
    steps: int = 1000,
    degradation: Degradation | DegradationRange | None = None,
    group: Callable[[Source], str] | None = None,
    device: Device = "auto",
    memory: int | None = None,
    note: Note | None = None,
) -> Intervals:
    """Calibrate the intervals of a run and keep them beside its checkpoint.

    Args:
        run: a run folder, or a checkpoint file.
        paths: fine scans to calibrate on, seen by no training.
        learn_from: fine scans that widths learn from anew (`fit_widths`), instead of what `widths` says.
        widths: "trained" are those that learned beside the network (`training.widths`); "spread" is that of the run's
            flips and turns, which needs no training, costs 4 to 16 estimates, and follows errors less; "auto" the
            trained ones where the checkpoint has some, else the spread.
        steps: of `fit_widths`.
        alpha, delta, over, degradation, group, device, memory, note: as in `calibrate`.

    Raises:
        CheckpointError: no usable checkpoint, or no widths in it that are asked for.
        ValueError: scans to learn from beside `widths`; and as `calibrate` and `fit_widths`.
        ScanError: as these.
    """
    upscaler = load_upscaler(run)
    names = [learn_from] if isinstance(learn_from, (str, Path)) else list(learn_from)
    if names and widths != "auto":
        raise ValueError(
            f"calibrate: expected scans to learn widths from, or widths that are {widths}, found both; leave one out"
        )
    method: Distances
    learned: tuple[str, ...] = ()
    if names:
        fitted = fit_widths(
            upscaler, names, steps=steps, share=alpha, degradation=degradation, device=device, note=note
        )
        method, learned = LearnedWidths(upscaler, fitted.widths), fitted.learned_from
    else:
        method = _made(upscaler, widths, note)
    calibration = calibrate(
        method,
        paths,
        alpha=alpha,
        delta=delta,
        over=over,
        degradation=degradation,
        group=group,
        learned_from=learned,
        memory=memory,
        device=device,
        note=note,
    )
    save_intervals(run, method, calibration)
    return Intervals(method, calibration)


def _made(upscaler: TrainedUpscaler, widths: Kind, note: Note | None) -> Distances:
    """Distances for which nothing has to be learned any more.

    Raises:
        CheckpointError: trained widths are asked for and there are none.
    """
    if widths != "spread" and upscaler.widths is not None:
        return LearnedWidths(upscaler, copy.deepcopy(upscaler.widths))
    if widths == "trained":
        raise CheckpointError(
            f"{upscaler.path}: expected widths that learned beside the network, found none; train with "
            "training.widths: true, or give scans to learn them from (--learn-from)"
        )
    if widths == "auto" and note is not None:
        note("the checkpoint has no widths of its own: the spread of flips and turns is calibrated")
    return SpreadWidths(Ensemble(upscaler))


def coverage(
    intervals: Intervals,
    paths: Path | str | Sequence[Path | str],
    *,
    degradation: Degradation | DegradationRange | None = None,
    group: Callable[[Source], str] | None = None,
    device: Device = "auto",
    note: Note | None = None,
) -> Coverage:
    """What calibrated intervals do on other scans whose truth is known; arguments as in `calibrate`.

    `Coverage.bound(delta)` says at what share outside these scans are still likely.

    Raises:
        ValueError: a scan that the calibration or a training has seen, or none that can be measured.
        ScanError: no scan was found.
    """
    promised = intervals.calibration
    sources, curves = measure_curves(
        intervals.method,
        find_all(paths),
        over=promised.over,
        degradation=degradation,
        learned_from=promised.coverage.inputs,
        device=device,
        note=note,
    )
    if not curves:
        raise ValueError("coverage: expected at least one scan that can be measured, found none; give others")
    groups = [group_of(source, group) for source in sources]
    index = int(abs(SCALINGS - promised.scaling).argmin())
    return pooled(curves, groups, index, over=promised.over, constant=promised.coverage.constant_width)


def intervals_file(run: Path | str) -> Path:
    """Where the calibrated intervals of a run, or of a checkpoint file, lie."""
    run = Path(run)
    return (run if run.is_dir() else run.parent) / FILE


def _read_notes(path: Path, text: str) -> _Notes:
    try:
        plain = json.loads(text)
        if isinstance(plain.get("format"), int) and plain["format"] > FORMAT:
            raise CheckpointError(
                f"{path}: expected format {FORMAT} or lower, found {plain['format']}; it was written by a newer medsr"
            )
        return _Notes.model_validate(plain)
    except (json.JSONDecodeError, AttributeError, ValidationError) as error:
        raise CheckpointError(
            f"{path}: expected calibrated intervals, found another content ({type(error).__name__}); calibrate again"
        ) from None
