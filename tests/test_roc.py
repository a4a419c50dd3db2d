"""The area is the share of pairs in the right order, and its interval holds the true one as often as it says."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

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


def clustered(
    generator: np.random.Generator, scans: int, *, icc: float, area: float, shared: bool, rare: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """About 60 scores a scan, of random balance; what a scan adds is the same for both groups or drawn for each."""
    sizes = generator.poisson(60, scans)
    positive = generator.binomial(sizes, generator.beta(*((0.6, 10) if rare else (2, 2)), scans))
    first, second = (np.repeat(np.arange(scans), m) for m in (positive, sizes - positive))
    added = generator.normal(0, math.sqrt(icc), scans)
    other = added if shared else generator.normal(0, math.sqrt(icc), scans)
    own = math.sqrt(1 - icc)
    high = math.sqrt(2) * norm.ppf(area) + added[first] + generator.normal(0, own, first.size)
    return high, other[second] + generator.normal(0, own, second.size), first, second


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scans", [5, 10, 20])
@pytest.mark.parametrize("icc", [0.1, 0.3])
@pytest.mark.parametrize("area", [0.6, 0.75, 0.9])
def test_the_interval_holds_the_true_area_of_clustered_scores(
    shared: bool, scans: int, icc: float, area: float
) -> None:
    generator = np.random.default_rng(11)
    inside, naive, repetitions = 0, 0, 200
    for _ in range(repetitions):
        high, low, first, second = clustered(generator, scans, icc=icc, area=area, shared=shared)
        found = roc_area(high, low, groups=(first, second))
        inside += found.low <= area <= found.high
        alone = roc_area(high, low)
        naive += alone.low <= area <= alone.high
        assert (alone.value, found.clusters) == (found.value, scans)
    assert inside / repetitions >= 0.90
    assert naive < inside  # what the groups are for


@pytest.mark.parametrize(("scans", "area"), [(3, 0.75), (5, 0.9), (10, 0.75), (20, 0.9)])
def test_it_holds_where_most_positives_are_of_few_scans(scans: int, area: float) -> None:
    generator = np.random.default_rng(13)
    inside = given = 0
    for _ in range(250):
        high, low, first, second = clustered(generator, scans, icc=0.3, area=area, shared=False, rare=True)
        found = roc_area(high, low, groups=(first, second))
        given += not (found.reason or found.interval_reason)
        inside += found.low <= area <= found.high
    assert given > 150
    assert inside / given >= 0.90


def test_groups_leave_the_area_and_an_example_by_hand() -> None:
    # V10 = 1, 3/4, 5/8, 1 and V01 = 1, 7/8, 1, 1/2: mean 27/32
    scores, groups = ([5, 3, 2, 6], [1, 2, 0, 4]), (["a", "a", "b", "c"], ["a", "b", "b", "c"])
    found = roc_area(*scores, groups=groups)
    area = 27 / 32
    assert found.value == roc_area(*scores).value == area
    positive = np.array([1.75 - 2 * area, 0.625 - area, 1 - area])
    negative = np.array([1 - area, 1.875 - 2 * area, 0.5 - area])
    s10, s01 = (3 / (2 * 4) * (v**2).sum() for v in (positive, negative))
    s11 = 3 / 2 * (positive * negative).sum()
    variance = s10 / 4 + s01 / 4 + 2 * s11 / 16
    reach = t.ppf(0.975, 16 / 6 - 1) * math.sqrt(variance) / (area * (1 - area))  # 2, 1, 1 positives: 16 / 6 scans
    ends = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + sign * reach))) for sign in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(ends)
    assert (found.clusters, found.interval_reason) == (3, "")
    assert str(found) == f"0.84 ({ends[0]:.2f} to {ends[1]:.2f}; 4 against 4 in 3 scans)"


def test_the_names_and_the_turn_of_scans_change_nothing() -> None:
    generator = np.random.default_rng(17)
    high, low, first, second = clustered(generator, 6, icc=0.3, area=0.7, shared=False)
    high, low = np.round(high, 1), np.round(low, 1)  # ties
    found = roc_area(high, low, groups=(first, second))
    assert found.value == pytest.approx(brute(high, low), abs=1e-12)
    names = np.array(["f", "a", "e", "b", "d", "c"])
    assert roc_area(high, low, groups=(names[first].tolist(), names[second].tolist())) == found
    order, other = generator.permutation(high.size), generator.permutation(low.size)
    moved = roc_area(high[order], low[other], groups=(first[order], second[other]))
    assert (moved.low, moved.high) == (pytest.approx(found.low), pytest.approx(found.high))
    turned = roc_area(low, high, groups=(second, first))
    assert (turned.low, turned.high) == (pytest.approx(1 - found.high), pytest.approx(1 - found.low))


@pytest.mark.parametrize(
    ("positives", "negatives", "groups", "clusters", "reason"),
    [
        ([1, 3], [2, 0], ("aa", "aa"), 1, "one scan tells nothing of the next"),
        ([1, 3], [2, 0], ("ab", "ab"), 2, "2 scans, expected at least 3"),
        ([1, 3], [2, 0, 1], ("aa", "abc"), 3, "all positives are of one scan"),
        ([1, 3, 2], [2, 0], ("abc", "bb"), 3, "all negatives are of one scan"),
        ([5, 6, 7], [1, 2, 3], ("abc", "abc"), 3, "an area of exactly 1"),
        ([1, 2, 3], [5, 6, 7], ("abc", "abc"), 3, "an area of exactly 0"),
        ([1, 3] * 3, [2, 0] * 3, ("aabbcc", "aabbcc"), 3, "variance"),
        ([1, 3, math.nan], [2, 0], ("abc", "ab"), 2, "2 scans, expected"),
    ],
)
def test_where_scans_tell_too_little_there_is_a_value_and_no_interval(
    positives: list[float], negatives: list[float], groups: tuple[str, str], clusters: int, reason: str
) -> None:
    found = roc_area(positives, negatives, groups=groups)
    assert found.value == roc_area(positives, negatives).value
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert (found.reason, found.clusters) == ("", clusters)
    assert reason in found.interval_reason
    assert "no interval: " in str(found)


def test_one_scan_says_so_and_too_few_scores_still_do() -> None:
    found = roc_area([1, 3], [2, 0], groups=("aa", "aa"))
    assert str(found) == "0.75 (2 against 2 in 1 scan; no interval: one scan tells nothing of the next)"
    few = roc_area([1], [2, 0], groups=("a", "ab"))
    assert (few.clusters, few.interval_reason) == (2, "")
    assert str(few) == "none: expected at least 2 of each, found 1 positive and 2 negative"


def test_groups_name_a_scan_for_each_score() -> None:
    with pytest.raises(ValueError, match="each of 3 positives, found 2"):
        roc_area([1, 2, 3], [1, 2], groups=(["a", "b"], ["a", "b"]))
    with pytest.raises(ValueError, match="negatives, found None or nan"):
        roc_area([1, 2], [1, 2], groups=(["a", "b"], ["a", None]))
    assert roc_area([1, 2, math.nan], [1, 2], groups=(["a", "b", None], ["a", "b"])).clusters == 2
