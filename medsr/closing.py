"""closing_words: what is said of a result when all of it is written: how far it agrees with the measured scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsr.consistency.map import consistency_map
from medsr.io import omezarr
from medsr.io.places import Place
from medsr.methods.consistent import expected_by
from medsr.scan import Scan
from medsr.upscaling import result_scan

if TYPE_CHECKING:
    from medsr.job import Prepared

__all__ = ["ClosingWords", "closing_words"]

WORK = 1 << 20
"""Fine samples degraded at a time: about 50 MB, for a worker holds no more than it was given."""

ClosingWords = tuple[tuple[str, ...], tuple[str, ...]]
"""Lines for the history, and warnings."""


def closing_words(work: Prepared, target: Place) -> ClosingWords:
    """The consistency of a finished result with its scan in one line of history, and what of it asks for a look.

    The result is degraded again as its method was told, found out or was trained for; a method that knows nothing of
    it by the mean over each coarse sample. See `consistency_map`. The words follow from the bytes of the result alone.

    Args:
        work: the scan and its method, adapted.
        target: where all shards of the result are written; its group document is not asked for.

    Raises:
        OSError: a shard is not there, or damaged.
    """
    if not work.consistency:
        return (), ()
    finest = work.levels[0]
    result = result_scan(work.scan, work.upscaler, work.scan.data, engine=work.engine)
    estimate = Scan(omezarr.finished_level(target, finest, result.intensity), finest.grid, result.intensity)
    try:
        found = consistency_map(work.scan, estimate, degradation=expected_by(work.upscaler), work=WORK)
    except ValueError as error:  # a width in micrometers and a scan without: there is nothing to compare by
        return (f"consistency with the measured scan: not measured: {error}",), ()
    return (found.describe(),), found.doubts()
