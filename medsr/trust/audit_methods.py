"""audited_methods: whom an audit asks: a run's method, projected, its parent, cubic; and what maps are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsr.checkpoint import CheckpointError, TrainedUpscaler
from medsr.methods.consistent import Consistent
from medsr.methods.interpolation import Cubic
from medsr.trust.distances import LearnedWidths
from medsr.trust.intervals import Intervals, load_intervals
from medsr.trust.invention import find_parent
from medsr.upscaler import Upscaler

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange

__all__ = ["Audited", "audited_methods"]

Known = Intervals | LearnedWidths

PARENT = "parent"
"""Name of the pixel-trained network that an adversarial one went on from."""


@dataclass(frozen=True, slots=True)
class Audited:
    """A method, and what its maps are made with.

    Attributes:
        upscaler: the method.
        parent: the pixel-trained network it went on from; None: there is none.
        known: intervals or learned widths, its own and its parent's, as far as there are.
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
        ValueError: a name is taken twice.
    """
    parent, why = find_parent(run)
    if parent is None:
        note(f"no map of the departure from a parent: {why}")
    own = _known(run, upscaler, note)
    of_parent = [] if parent is None or parent.widths is None else [LearnedWidths(parent, parent.widths)]
    known = (*of_parent, *own)
    name = upscaler.recipe.method.kind
    made = {"cubic": Audited(Cubic(upscaler.factor), parent, known)}
    if parent is not None:
        made[PARENT] = Audited(parent, None, tuple(of_parent))
    made[name] = Audited(upscaler, parent, known)
    made[f"{name}, projected"] = Audited(Consistent(upscaler, degradation, certain=certain), parent, known)
    for other, each in more.items():
        if other in made:
            raise ValueError(f"audit: expected another name than {other}, which the audit uses itself; rename it")
        made[other] = Audited(each, parent, known)
    return made


def _known(run: Path | str, upscaler: TrainedUpscaler, note: Callable[[str], None]) -> tuple[Known, ...]:
    """The calibrated intervals of a run, else the widths that learned beside its network, else nothing."""
    try:
        return (load_intervals(run),)
    except CheckpointError as error:
        if upscaler.widths is None:
            note(f"no map of the interval: {error}")
            return ()
        note(f"{error}; the widths that learned beside the network are taken, which promise nothing")
        return (LearnedWidths(upscaler, upscaler.widths),)
