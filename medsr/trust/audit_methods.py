"""audited_methods: whom an audit asks: a run's method, projected, its parent, cubic; and what maps are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsr.checkpoint import TrainedUpscaler
from medsr.methods.consistent import Consistent
from medsr.methods.interpolation import Cubic
from medsr.trust.distances import LearnedWidths, trained_in
from medsr.trust.intervals import Intervals, intervals_file, load_intervals
from medsr.trust.invention import find_parent
from medsr.upscaler import Upscaler, learned_from

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange

__all__ = ["Audited", "audited_methods", "known_digest", "learned_by", "promise_of"]

Known = Intervals | LearnedWidths

PARENT = "parent"
"""Name of the pixel-trained network that an adversarial one went on from."""


@dataclass(frozen=True, slots=True)
class Audited:
    """A method, and what its maps are made with.

    Attributes:
        upscaler: the method.
        parent: the pixel-trained network it went on from; None: there is none.
        known: intervals or learned widths as far as there are: its parent's, and of the run's method its own.
    """

    upscaler: Upscaler
    parent: Upscaler | None = None
    known: tuple[Known, ...] = ()


def audited_methods(
    run: Path | str,
    upscaler: TrainedUpscaler,
    degradation: Degradation | DegradationRange,
    more: Mapping[str, Upscaler],
    *,
    certain: bool,
    note: Callable[[str], None],
) -> dict[str, Audited]:
    """The methods that an audit asks, by name, in the order of its tables.

    Cubic, the pixel-trained network the run went on from ("parent", where there is one), the run's method by its kind,
    the same made consistent with its scan, and those that are given.

    Args:
        run: run folder or checkpoint file.
        upscaler: of it.
        degradation: what a result is made consistent with.
        more: further methods, by name.
        certain: the degradation holds even where the method finds another one.
        note: receives why a map is missing.

    Raises:
        CheckpointError: calibrated intervals that are damaged, or of other weights.
        ValueError: a name is taken twice.
    """
    parent, why = find_parent(run)
    if parent is None:
        note(f"no map of the departure from a parent: {why}")
    own = _known(run, upscaler, note)
    beside: tuple[Known, ...] = ()
    if parent is not None and parent.widths is not None:
        beside = (LearnedWidths(parent, parent.widths),)
    name = upscaler.recipe.method.kind
    made = {"cubic": Audited(Cubic(upscaler.factor), parent, beside)}
    if parent is not None:
        made[PARENT] = Audited(parent, None, beside)
    made[name] = Audited(upscaler, parent, (*beside, *own))
    made[f"{name}, projected"] = Audited(Consistent(upscaler, degradation, certain=certain), parent, beside)
    for other, each in more.items():
        if other in made:
            raise ValueError(f"audit: expected another name than {other}, which the audit uses itself; rename it")
        made[other] = Audited(each, parent, beside)
    return made


def _known(run: Path | str, upscaler: TrainedUpscaler, note: Callable[[str], None]) -> tuple[Known, ...]:
    """The calibrated intervals of a run, else the widths that learned beside its network, else nothing.

    Raises:
        CheckpointError: intervals that are damaged, or of other weights.
    """
    if intervals_file(run).is_file():
        return (load_intervals(run),)
    if upscaler.widths is None:
        note("no map of the interval: the run has neither calibrated intervals nor widths that learned beside it")
        return ()
    note("the run has no calibrated intervals (medsr calibrate): the widths that learned beside it promise nothing")
    return (LearnedWidths(upscaler, upscaler.widths),)


def promise_of(known: Known) -> str:
    """What is promised of intervals or widths, in words."""
    return known.calibration.promise if isinstance(known, Intervals) else "not calibrated"


def known_digest(known: Known) -> str:
    """SHA-256 of what decides intervals or widths, with their scaling."""
    if isinstance(known, Intervals):
        return f"{known.method.digest} {known.calibration.scaling!r}"
    return known.digest


def learned_by(methods: Mapping[str, Audited]) -> dict[str, str]:
    """What was known of a scan before the audit, in words, by the SHA-256 of its files."""
    found: dict[str, str] = {}
    for name, each in methods.items():
        for sha256 in learned_from(each.upscaler):
            found.setdefault(sha256, f"{name} has learned from this scan")
        for known in each.known:
            if isinstance(known, Intervals):
                for sha256 in known.calibration.coverage.inputs:
                    found.setdefault(sha256, f"the intervals of {name} were calibrated on this scan")
        for trained in trained_in(each.upscaler):
            for one in trained.card.held_out:
                found.setdefault(one.sha256, f"{name} was validated on this scan, which chose its weights")
            for one in trained.card.inputs:
                found[one.sha256] = f"{name} has learned from this scan"
    return found
