"""The Hoeffding-Bentkus bound: its table, its inverse functions, and that it fails no more often than it says."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from medsr.trust.bounds import (
    hoeffding_bentkus_p,
    hoeffding_bentkus_ucb,
    largest_risk,
    least_alpha,
    scans_needed,
    smallest_n,
)

TABLE = {30: 0.008, 50: 0.023, 100: 0.042, 200: 0.060, 500: 0.074, 1000: 0.082, 10_000: 0.095}
"""Largest mean loss that certifies alpha 0.1 at delta 0.1, by the number of scans."""


@pytest.mark.parametrize(("n", "risk"), TABLE.items())
def test_largest_risks_are_those_of_the_table(n: int, risk: float) -> None:
    assert largest_risk(n) == pytest.approx(risk, abs=5.1e-4)


def test_a_mean_loss_of_a_tenth_over_ten_thousand_scans() -> None:
    assert hoeffding_bentkus_ucb(0.1, 10_000, 0.1) == pytest.approx(0.1055, abs=5e-5)


@pytest.mark.parametrize("n", [22, 30, 57, 100, 333])
@pytest.mark.parametrize("risk", [0.0, 0.001, 0.013, 0.1, 0.37, 0.9, 0.999])
def test_the_bound_is_where_the_probability_is_delta(n: int, risk: float) -> None:
    """By the formula, written once more: g = min(exp(-n h1(min(R, mu), mu)), e P(Bin(n, mu) <= ceil(n R)))."""

    def g(mu: float) -> float:
        a = min(risk, mu)
        h1 = (a * math.log(a / mu) if a else 0.0) + (1 - a) * math.log((1 - a) / (1 - mu))
        return min(math.exp(-n * h1), math.e * binom.cdf(math.ceil(n * risk - 1e-9), n, mu))

    for delta in (0.05, 0.1):
        bound = hoeffding_bentkus_ucb(risk, n, delta)
        assert risk < bound <= 1
        if bound < 1 - 1e-9:
            assert g(bound) == pytest.approx(delta, rel=1e-5)
            assert hoeffding_bentkus_p(risk, n, bound) == pytest.approx(delta, rel=1e-5)
        if bound < 1 - 1e-3:
            assert g(bound + 1e-4) < delta
        assert g(bound - 1e-4 * (bound - risk)) > delta


def test_rounding_goes_up_where_the_published_program_rounds_down() -> None:
    """Down would promise more than the theorem does."""
    n, risk = 400, 0.0499
    down = math.e * binom.cdf(math.floor(n * risk), n, 0.09)
    up = math.e * binom.cdf(math.ceil(n * risk), n, 0.09)
    assert down < up
    hoeffding = math.exp(-n * (risk * math.log(risk / 0.09) + (1 - risk) * math.log((1 - risk) / 0.91)))
    assert hoeffding_bentkus_p(risk, n, 0.09) == pytest.approx(min(hoeffding, up))
    assert hoeffding_bentkus_p(risk, n, 0.09) > down


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.2])
def test_one_scan_less_than_the_smallest_number_certifies_nothing(alpha: float, delta: float) -> None:
    n = smallest_n(alpha, delta)
    assert hoeffding_bentkus_ucb(0.0, n, delta) <= alpha
    assert largest_risk(n, alpha=alpha, delta=delta) is not None
    if n > 1:
        assert hoeffding_bentkus_ucb(0.0, n - 1, delta) > alpha
        assert largest_risk(n - 1, alpha=alpha, delta=delta) is None
        assert least_alpha(n - 1, delta=delta) > alpha >= least_alpha(n, delta=delta)


def test_the_usual_promise_takes_22_scans() -> None:
    assert smallest_n() == 22
    assert smallest_n(0.05, 0.05) == 59


@pytest.mark.parametrize("n", [30, 41, 100, 1000])
@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_the_largest_risk_certifies_and_a_larger_one_does_not(n: int, alpha: float) -> None:
    risk = largest_risk(n, alpha=alpha)
    assert risk is not None
    assert hoeffding_bentkus_ucb(risk, n, 0.1) <= alpha + 1e-12
    assert hoeffding_bentkus_ucb(risk + 2e-3, n, 0.1) > alpha


@pytest.mark.parametrize("risk", [0.0, 0.01, 0.05, 0.08])
def test_the_scans_needed_are_enough(risk: float) -> None:
    n = scans_needed(risk)
    assert hoeffding_bentkus_ucb(risk, n, 0.1) <= 0.1 + 1e-12
    assert hoeffding_bentkus_ucb(risk, int(n * 0.9), 0.1) > 0.1


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Losses of the worst kind, 0 or 1, and softer ones: the bound lies below the truth in at most delta of draws."""
    generator = np.random.default_rng(0)
    for mean, draws in ((0.1, generator.binomial(1, 0.1, (4000, 60))), (0.25, generator.beta(1, 3, (4000, 60)))):
        found, counts = np.unique(np.round(draws.mean(1), 3), return_counts=True)
        below = np.array([hoeffding_bentkus_ucb(float(r), 60, 0.1) < mean for r in found])
        assert counts[below].sum() / 4000 <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 4000)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hoeffding_bentkus_ucb(1.2, 10, 0.1), "within 0 and 1, found 1.2"),
        (lambda: hoeffding_bentkus_ucb(0.2, 0, 0.1), "at least 1 scan, found 0"),
        (lambda: hoeffding_bentkus_ucb(0.2, 10, 0.0), "delta: expected a share above 0"),
        (lambda: smallest_n(1.0, 0.1), "alpha: expected a share above 0 and below 1, found 1"),
        (lambda: scans_needed(0.1, alpha=0.1), "below alpha 0.1, found 0.1; no number of scans"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
