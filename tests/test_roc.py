"""The area is the share of pairs in the right order, and its interval holds the true one as often as it says."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from medsr.trust.roc import roc_area, roc_curve


def brute(positives: np.ndarray, negatives: np.ndarray) -> float:
    return float(np.mean([[1.0 if p > n else 0.5 if p == n else 0.0 for n in negatives] for p in positives]))


@pytest.mark.parametrize("levels", [3, 10, None])
def test_it_is_the_share_of_pairs_in_the_right_order(levels: int | None) -> None:
    generator = np.random.default_rng(1)
    high, low = generator.normal(0.5, 1, 31), generator.normal(0, 1, 57)
    if levels is not None:  # many ties
        high, low = (np.round(v * levels / 4) for v in (high, low))
    found = roc_area(high, low)
    assert found.value == pytest.approx(brute(high, low), abs=1e-12)
    assert (found.positives, found.negatives) == (31, 57)
    assert 0 <= found.low < found.value < found.high <= 1
    turned = roc_area(low, high)
    assert turned.value == pytest.approx(1 - found.value)
    assert (turned.low, turned.high) == (pytest.approx(1 - found.high), pytest.approx(1 - found.low))


@pytest.mark.parametrize(
    ("positives", "negatives", "area"),
    [([3, 4], [1, 2], 1.0), ([1, 2], [3, 4], 0.0), ([1, 1], [1, 1], 0.5), ([2, 4], [1, 3], 0.75)],
)
def test_hand_made_cases(positives: list[float], negatives: list[float], area: float) -> None:
    assert roc_area(positives, negatives).value == area


def test_perfect_order_of_few_is_no_certainty() -> None:
    found = roc_area([5, 6, 7, 8, 9], [0, 1, 2, 3, 4])
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.4 < found.low < 0.75
    many = roc_area(np.arange(500, 1000), np.arange(500))
    assert many.low > 0.99


def test_too_few_give_a_reason_and_holes_are_left_out() -> None:
    found = roc_area([1.0, math.nan], [0.0, 0.5, 0.2])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert "1 positive and 3 negative" in found.reason
    assert str(found).startswith("none")
    assert roc_area([1.0, math.nan, 2.0], [0.0, math.nan, 3.0]).value == 0.5


def test_the_order_alone_counts() -> None:
    generator = np.random.default_rng(3)
    high, low = generator.normal(1, 1, 20), generator.normal(0, 1, 30)
    assert roc_area(np.exp(high), np.exp(low)) == roc_area(high, low)


@pytest.mark.parametrize(("count", "other"), [(5, 5), (5, 200), (20, 20), (20, 300)])
@pytest.mark.parametrize("area", [0.5, 0.7, 0.9, 0.97])
def test_the_interval_holds_the_true_area(count: int, other: int, area: float) -> None:
    generator = np.random.default_rng(7)
    shift = math.sqrt(2) * norm.ppf(area)
    inside = 0
    for _ in range(400):
        found = roc_area(generator.normal(shift, 1, count), generator.normal(0, 1, other))
        inside += found.low <= area <= found.high
    assert inside / 400 > 0.92  # 0.95 less about three standard deviations of this simulation


def test_the_curve_has_that_area() -> None:
    generator = np.random.default_rng(5)
    high, low = (np.round(generator.normal(m, 1, 40), 1) for m in (0.7, 0))
    false, true = roc_curve(high, low)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(roc_area(high, low).value)
    with pytest.raises(ValueError, match="expected scores of both groups"):
        roc_curve([], [1.0])
