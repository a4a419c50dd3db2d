"""Hoeffding-Bentkus bound: what a mean loss over n scans says about the mean over all, and how many scans it takes."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import bdtr, betaincinv

__all__ = ["hoeffding_bentkus_p", "hoeffding_bentkus_ucb", "largest_risk", "least_alpha", "scans_needed", "smallest_n"]

NEARLY = 1e-9
"""How far a sum of losses may lie above a whole number and be taken for it: rounding of the sum."""
ROOT = 1e-12
"""How far a root may lie above the true one: taken off, so that what certifies does."""
MOST_SCANS = 10**7
"""Where the search for a number of scans ends."""


def hoeffding_bentkus_p(risk: float, n: int, mean: float) -> float:
    """Largest probability that the mean of n losses is `risk` or less although their expectation is `mean` or more.

    Args:
        risk: mean of n independent losses, each within [0, 1].
        n: their number.
        mean: expectation that is doubted.

    Raises:
        ValueError: a risk outside [0, 1], a mean not between 0 and 1, or no loss.

    References:
        A. N. Angelopoulos et al., "Image-to-image regression with distribution-free uncertainty quantification and
        applications in imaging", 2022, algorithm 1, arXiv:2202.05265.
        S. Bates et al., "Distribution-free, risk-controlling prediction sets", 2021, section 3 (Hoeffding-Bentkus),
        doi:10.1145/3478535.
    """
    _check(risk, n, "mean", mean)
    # Hoeffding 1963, theorem 1: exp(-n h1(min(mean, risk), mean)).
    hoeffding = math.exp(-n * _divergence(min(mean, risk), mean))
    if hoeffding == 0.0:
        return 0.0
    # Bentkus 2004 (doi:10.1214/009117904000000360): e P(Binomial(n, mean) <= ceil(n risk)).
    return min(hoeffding, math.e * _binomial_at_most(_count(risk, n), n, mean))


def hoeffding_bentkus_ucb(risk: float, n: int, delta: float) -> float:
    """Upper confidence bound of the expected loss: with probability 1 - delta at least, the expectation is below it.

    It is the largest mean that `hoeffding_bentkus_p` does not put below delta. The published program rounds n * risk
    down; the theorem asks for rounding up, which is done here and gives the larger bound.

    Args:
        risk: mean of n independent losses within [0, 1], as one share of missed samples for each scan.
        n: their number.
        delta: probability with which the bound may fail.

    Raises:
        ValueError: a risk outside [0, 1], a delta not between 0 and 1, or no loss.

    References:
        As `hoeffding_bentkus_p`.
    """
    _check(risk, n, "delta", delta)
    if risk >= 1:
        return 1.0
    count = _count(risk, n)
    # P(Binomial(n, mu) <= k) = delta / e is solved by a quantile of the beta distribution (Clopper, Pearson 1934).
    bentkus = 1.0 if count >= n else float(betaincinv(count + 1, n - count, 1 - delta / math.e))
    if risk <= 0:
        return float(min(1 - delta ** (1 / n), bentkus))  # h1(0, mu) = -log(1 - mu)
    enough = math.log(1 / delta) / n
    if _divergence(risk, 1 - 1e-15) < enough:
        return bentkus
    hoeffding = brentq(lambda mean: _divergence(risk, mean) - enough, risk, 1 - 1e-15, xtol=1e-14)
    return min(float(hoeffding), bentkus)


def largest_risk(n: int, *, alpha: float = 0.1, delta: float = 0.1) -> float | None:
    """Largest mean loss over n scans whose upper confidence bound is alpha or less; None: not even none at all.

    Raises:
        ValueError: an alpha or delta not between 0 and 1, or no scan.
    """
    _check(0.0, n, "alpha", alpha)
    _check(0.0, n, "delta", delta)
    if n < smallest_n(alpha, delta):
        return None
    enough = math.log(1 / delta) / n
    hoeffding = 0.0
    if _divergence(0.0, alpha) > enough:
        hoeffding = max(0.0, brentq(lambda risk: _divergence(risk, alpha) - enough, 0.0, alpha, xtol=1e-14) - ROOT)
    low, high = -1, n  # the most whole losses with e P(Binomial(n, alpha) <= k) <= delta
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if math.e * _binomial_at_most(middle, n, alpha) <= delta else (low, middle)
    return max(float(hoeffding), low / n)


def least_alpha(n: int, *, delta: float = 0.1) -> float:
    """Smallest alpha that n scans can certify at all: the bound where no sample of theirs was missed.

    Raises:
        ValueError: a delta not between 0 and 1, or no scan.
    """
    return hoeffding_bentkus_ucb(0.0, n, delta)


def smallest_n(alpha: float = 0.1, delta: float = 0.1) -> int:
    """Scans below which nothing can be certified: that many are enough only if no sample of theirs is missed.

    Raises:
        ValueError: an alpha or delta not between 0 and 1.
    """
    _check(0.0, 1, "alpha", alpha)
    _check(0.0, 1, "delta", delta)
    # The bound at no loss is 1 - delta**(1 / n): Bentkus' is larger there by its factor e.
    return max(1, math.ceil(math.log(delta) / math.log1p(-alpha) - NEARLY))


def scans_needed(risk: float, *, alpha: float = 0.1, delta: float = 0.1) -> int:
    """Scans with which a mean loss of `risk` certifies alpha; more are needed the nearer it lies to alpha.

    Raises:
        ValueError: a risk outside [0, alpha), an alpha or delta not between 0 and 1, or more than ten million scans.
    """
    if not 0 <= risk < alpha:
        raise ValueError(
            f"risk: expected at least 0 and below alpha {alpha:g}, found {risk:g}; no number of scans does"
        )
    most = max(1, smallest_n(alpha, delta))
    while not _certifies(risk, most, alpha, delta):
        most *= 2
        if most > MOST_SCANS:
            raise ValueError(
                f"risk: expected one that {MOST_SCANS:,} scans certify below {alpha:g}, found {risk:g}; lower it"
            )
    low, high = most // 2, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle > 0 and _certifies(risk, middle, alpha, delta) else (middle, high)
    return max(high, smallest_n(alpha, delta))


def _certifies(risk: float, n: int, alpha: float, delta: float) -> bool:
    largest = largest_risk(n, alpha=alpha, delta=delta)
    return largest is not None and risk <= largest


def _check(risk: float, n: int, name: str, share: float) -> None:
    if not 0 <= risk <= 1:
        raise ValueError(f"risk: expected a mean of losses within 0 and 1, found {risk:g}")
    if n < 1:
        raise ValueError(f"n: expected at least 1 scan, found {n}")
    if not 0 < share < 1:
        raise ValueError(f"{name}: expected a share above 0 and below 1, found {share:g}; 0.1 is usual")


def _count(risk: float, n: int) -> int:
    """n * risk rounded up, which is what the theorem of Bentkus asks for."""
    return math.ceil(n * risk - NEARLY)


def _divergence(a: float, b: float) -> float:
    """h1(a, b) = a log(a / b) + (1 - a) log((1 - a) / (1 - b)), of two Bernoulli variables."""
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + ((1 - a) * (math.log1p(-a) - math.log1p(-b)) if a < 1 else 0.0)


def _binomial_at_most(count: int, n: int, mean: float) -> float:
    """P(Binomial(n, mean) <= count)."""
    return 1.0 if count >= n else float(bdtr(count, n, mean))
