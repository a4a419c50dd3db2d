"""roc_area: how well a score tells two groups apart, with an interval for few and unequal numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import rankdata

__all__ = ["RocArea", "roc_area", "roc_curve"]

Floats = NDArray[np.float64]

LEAST = 2
"""Scores of a group below which no area is given."""
NORMAL = 1.959963984540054
"""Quantile 0.975 of the normal distribution."""


@dataclass(frozen=True, slots=True)
class RocArea:
    """The probability that a positive scores higher than a negative, ties counted half.

    Attributes:
        value: 0 to 1; 0.5 tells nothing; nan: there is none.
        low, high: 95 % interval.
        positives, negatives: how many scores there are of each.
        reason: why there is no value; empty where there is one.
    """

    value: float
    low: float
    high: float
    positives: int
    negatives: int
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"none: {self.reason}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}; {self.positives} against {self.negatives})"


def roc_area(positives: ArrayLike, negatives: ArrayLike) -> RocArea:
    """Area under the receiver operating characteristic of a score, with a 95 % interval.

    The area is the Mann-Whitney statistic. The interval holds all areas t that are no further from it than 1.96 of
    their own standard deviations; their variance is that of exponential scores, made symmetric in both groups. It
    exists where the groups are told apart without an error, and never leaves 0 to 1. Scores of one scan are not
    independent: with many candidates of few scans the interval is too narrow.

    Args:
        positives: scores of the group that should score high, any shape; not-a-number is left out.
        negatives: those of the other.

    References:
        J. A. Hanley, B. J. McNeil: The meaning and use of the area under a receiver operating characteristic (ROC)
        curve, 1982, doi:10.1148/radiology.143.1.7063747.
        R. G. Newcombe: Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
        2006, method 5, doi:10.1002/sim.2324.
    """
    high, low = _known(positives), _known(negatives)
    count, other = high.size, low.size
    if min(count, other) < LEAST:
        reason = f"expected at least {LEAST} of each, found {count} positive and {other} negative"
        return RocArea(math.nan, math.nan, math.nan, count, other, reason)
    ranks = rankdata(np.concatenate([high, low]))
    value = float((ranks[:count].sum() - count * (count + 1) / 2) / (count * other))
    ends = _end(value, count, other, upper=False), _end(value, count, other, upper=True)
    return RocArea(value, *ends, count, other)


def roc_curve(positives: ArrayLike, negatives: ArrayLike) -> tuple[Floats, Floats]:
    """Shares of negatives and of positives at or above each score, from (0, 0) to (1, 1); equal scores make one step.

    Raises:
        ValueError: a group without a score.
    """
    high, low = _known(positives), _known(negatives)
    if not (high.size and low.size):
        raise ValueError(f"roc_curve: expected scores of both groups, found {high.size} and {low.size}")
    levels = np.unique(np.concatenate([high, low]))[::-1]
    shares = [1 - np.searchsorted(np.sort(group), levels, side="left") / group.size for group in (low, high)]
    false, true = (np.concatenate([[0.0], share]) for share in shares)
    return false, true


def _known(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, np.float64).ravel()
    return values[~np.isnan(values)]


def _variance(area: float, count: int, other: int) -> float:
    """Hanley and McNeil 1982, equation 2, each group's number replaced by their mean (Newcombe 2006)."""
    mean = (count + other) / 2 - 1
    spread = 1 + mean * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * spread / (count * other)


def _end(value: float, count: int, other: int, *, upper: bool) -> float:
    """The area at 1.96 of its own standard deviations from the one that was found."""
    limit = 1.0 if upper else 0.0
    if value == limit:
        return limit

    def apart(area: float) -> float:
        return (value - area) ** 2 - NORMAL**2 * _variance(area, count, other)

    near = min(max(value, 1e-9), 1 - 1e-9)  # at 0 and 1 themselves the variance is 0 too
    found: Any = brentq(apart, limit, near)
    return float(found)
