"""The truth keeps everything, the plain scan loses it, and what stands in the estimate alone is invented."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

import medsr
from medsr.scan import Grid
from medsr.trial import Trial, survey_of
from medsr.trust.fields import Field, Ladder, ladders_of
from medsr.trust.judging import Candidate, Verdict, candidates_of, on_the_plane, scored, verdicts_of
from medsr.trust.planting import SEEN, Planted, plant
from medsr.trust.structures import Structure, amplitude, neighborhood, rendered

FACTOR = (2, 2)
FIELD = Field((), slice(4, 400), slice(8, 404))


@cache
def made(name: str) -> tuple[Planted, tuple[Ladder, ...]]:
    """A field of real tissue at 50 um, or one of real nuclei."""
    if name == "mammogram":
        scan = medsr.read_scan(medsr.MAMMOGRAM)
        data = scan.read((slice(1100, 1510), slice(200, 610)))
        scan = replace(scan, data=data, grid=Grid(("y", "x"), (50.0, 50.0)))
        field = FIELD
    else:
        scan = medsr.read_scan(medsr.NUCLEI)
        data = scan.read((slice(8, 9), slice(None), slice(None)))[0]
        scan = replace(scan, data=data, grid=Grid(("y", "x")))
        field = Field((), slice(0, 256), slice(0, 256))
    trial = Trial(scan, FACTOR, None)
    ladders = ladders_of(trial.scan)
    return plant(trial, field, survey_of(trial), ladders, planted=50, removed=8, seed=2), ladders


def judged(name: str, plain: np.ndarray, altered: np.ndarray) -> list[Verdict]:
    done, ladders = made(name)
    return list(verdicts_of(done, ladders, {"method": (plain, altered)}))


def seen_in(altered: np.ndarray, name: str = "mammogram") -> list[Candidate]:
    done, ladders = made(name)
    return list(candidates_of(done, ladders, {"method": altered}, factor=FACTOR))


both = pytest.mark.parametrize("name", ["mammogram", "nuclei"])

# ---------------------------------------------------------------- verdicts


@both
def test_the_truth_keeps_all_that_is_seen(name: str) -> None:
    done, _ = made(name)
    found = judged(name, done.plain, done.altered)
    assert len(found) == len(done.planted) + len(done.removed) > 10
    for each in found:
        assert each.method == "method"
        assert each.recovered == pytest.approx(1)
        assert each.estimate == each.truth
        if each.done == "removed":
            assert each.outcome == "gone"
        else:
            assert each.outcome == ("kept" if each.truth >= SEEN else "unseen")
    assert sum(each.outcome == "kept" for each in found) > len(done.planted) / 2
    assert any(each.outcome == "unseen" for each in found)  # some are planted at 3
    assert sum(each.done == "removed" for each in found) == len(done.removed)


@both
def test_who_returns_the_plain_scan_lost_all_and_brought_all_back(name: str) -> None:
    done, ladders = made(name)
    steps = {ladder.kind: ladder.steps for ladder in ladders}
    for each, there in zip(judged(name, done.plain, done.plain), (*done.planted, *done.removed), strict=True):
        assert each.recovered == 0
        assert each.estimate == pytest.approx(amplitude(done.plain, there, steps[there.kind]) / there.sigma)
        if each.done == "removed":
            assert each.outcome == "back"
        elif each.truth >= SEEN:
            assert each.outcome == ("kept" if each.estimate >= SEEN else "lost")
            assert each.outcome == "lost" or each.estimate < SEEN + 1  # a place that shows nearly as much by itself
        else:
            assert each.outcome == "unseen"
    lost = [each.outcome for each in judged(name, done.plain, done.plain)].count("lost")
    assert lost > len(done.planted) / 2


def test_half_of_the_change_is_half_recovered() -> None:
    done, _ = made("mammogram")
    for each in judged("mammogram", done.plain, (done.plain.astype(float) + done.altered) / 2):
        assert each.recovered == pytest.approx(0.5, abs=1e-3)
    # an error of its own that is in both estimates is no change
    error = np.random.default_rng(0).normal(0, 0.02, done.plain.shape)
    for each in judged("mammogram", done.plain + error, done.altered + error):
        assert each.recovered == pytest.approx(1, abs=1e-6)


def test_smoothness_is_no_advantage() -> None:
    """The yardstick is the truth's: a smooth estimate shows less, however little noise it has."""
    done, _ = made("mammogram")
    plain, altered = (ndimage.gaussian_filter(plane, 2.0) for plane in (done.plain, done.altered))
    sharp, smooth = (judged("mammogram", *pair) for pair in ((done.plain, done.altered), (plain, altered)))
    for one, two in zip(sharp, smooth, strict=True):
        assert two.truth == one.truth
        assert 0 < two.recovered < 0.9
    small = [(a, b) for a, b in zip(sharp, smooth, strict=True) if a.done == "planted" and a.structure.size == 100]
    assert any(a.outcome == "kept" for a, _ in small)
    assert all(b.estimate < a.estimate for a, b in small if a.truth > 6)


def test_places_are_those_of_the_plane() -> None:
    done, _ = made("mammogram")
    for each, there in zip(judged("mammogram", done.plain, done.plain), (*done.planted, *done.removed), strict=True):
        assert each.structure.position == (there.position[0] + 4, there.position[1] + 8)
        assert each.structure.contrast == there.contrast


def test_methods_are_judged_apart() -> None:
    done, ladders = made("mammogram")
    estimates = {"truth": (done.plain, done.altered), "plain": (done.plain, done.plain)}
    found = verdicts_of(done, ladders, estimates)
    for name, pair in estimates.items():
        alone = [replace(each, method=name) for each in judged("mammogram", *pair)]
        assert [each for each in found if each.method == name] == alone


# ---------------------------------------------------------------- candidates


@both
def test_the_truth_invents_nothing(name: str) -> None:
    done, ladders = made(name)
    found = seen_in(done.altered, name)
    assert len(found) > 10
    for each in found:
        assert not each.invented
        assert each.share >= 1
        assert each.cnr >= SEEN
        assert done.known[int(each.position[0]), int(each.position[1])]
    steps = {ladder.kind: ladder.steps for ladder in ladders}
    near = dict.fromkeys(("planted", "removed"), 0)
    for there, what in [(s, "planted") for s in done.planted] + [(s, "removed") for s in done.removed]:
        box, around = neighborhood(there, steps[there.kind])
        inside = np.zeros(done.known.shape, bool)
        inside[box] = around
        beside = [each for each in found if inside[int(each.position[0]), int(each.position[1])]]
        assert {each.near for each in beside} <= {what}
        near[what] += bool(beside)
        if there.cnr > 7 and what == "planted":
            assert beside
    assert near["planted"] >= sum(there.cnr > 4 for there in done.planted) * 0.9
    assert {each.near for each in found} == {"", "planted"} | ({"removed"} if near["removed"] else set())


@both
def test_the_plain_scan_invents_what_was_removed_and_only_that(name: str) -> None:
    done, _ = made(name)
    found = [each for each in seen_in(done.plain, name) if each.invented]
    assert {each.near for each in found} <= {"removed"}
    assert len(done.removed) * 0.7 <= len(found) <= 2 * len(done.removed)


@pytest.mark.parametrize("size", [150.0, 300.0])
def test_a_speck_of_the_estimate_alone_is_invented(size: float) -> None:
    done, ladders = made("mammogram")
    (ladder,) = ladders
    sigma = np.median([there.sigma for there in done.planted if there.size == size])
    marks = np.zeros(done.known.shape, bool)
    for there in (*done.planted, *done.removed):
        box, around = neighborhood(there, ladder.steps)
        marks[box] |= around
    before = seen_in(done.altered)
    for each in before:
        marks[int(each.position[0]), int(each.position[1])] = True
    room = ndimage.distance_transform_edt(done.known & ~marks)
    place = tuple(float(p) for p in np.unravel_index(room.argmax(), room.shape))
    assert room.max() > 12
    speck = Structure("speck", (place[0], place[1]), size, "um", 12 * sigma, sigma)
    estimate = done.altered.astype(float)
    box, shape, _ = rendered(speck, ladder.steps)
    estimate[box] += speck.contrast * shape
    (found,) = [each for each in seen_in(estimate) if each.invented]
    assert found.near == ""
    assert found.position == pytest.approx(place, abs=1)
    assert (found.kind, found.unit) == ("speck", "um")
    assert found.size == pytest.approx(size, abs=50)
    assert 8 < found.cnr < 18
    assert found.share < 0.5
    (rows, columns), footprint = found.footprint
    assert footprint.sum() <= math.pi * (found.size / 100) ** 2 * 1.35
    assert footprint[tuple(n // 2 for n in footprint.shape)]
    assert rows.start + footprint.shape[0] // 2 == found.position[0]
    assert columns.stop - columns.start == footprint.shape[1]


@both
@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (2, 2)])
def test_what_moved_by_less_than_a_coarse_sample_is_not_invented(name: str, shift: tuple[int, int]) -> None:
    done, _ = made(name)
    assert [each for each in seen_in(np.roll(done.altered, shift, (0, 1)), name) if each.invented] == []


def test_what_moved_far_is_invented() -> None:
    done, _ = made("mammogram")
    found = seen_in(np.roll(done.altered, (13, 13), (0, 1)))
    assert np.mean([each.invented for each in found]) > 0.7


def test_a_method_that_shows_nothing_has_no_candidates() -> None:
    done, _ = made("mammogram")
    assert seen_in(np.full(done.plain.shape, 0.4, np.float32)) == []


# ---------------------------------------------------------------- scores


def test_a_score_is_the_mean_under_the_footprint() -> None:
    done, _ = made("mammogram")
    found = seen_in(done.altered)
    y, x = np.indices(done.known.shape).astype(float)
    maps = {"row": y, "column": x, "holed": np.where(x < 200, x, np.nan), "all": np.full(y.shape, np.nan)}
    for before, each in zip(found, scored(found, maps), strict=True):
        assert replace(each, scores={}) == replace(before, scores={})
        assert list(each.scores) == list(maps)
        assert each.scores["row"] == pytest.approx(each.position[0])
        assert each.scores["column"] == pytest.approx(each.position[1])
        (_, columns), footprint = each.footprint
        farthest = columns.start + int(np.nonzero(footprint.any(0))[0][-1])
        assert math.isnan(each.scores["holed"]) == (farthest >= 200)
        assert math.isnan(each.scores["all"])
    widest = max(found, key=lambda each: each.footprint[1].sum())
    for hole in (np.nan, np.inf):  # one sample of many is enough
        y[int(widest.position[0]), int(widest.position[1])] = hole
        assert math.isnan(scored([widest], {"row": y})[0].scores["row"])
    assert scored(found, {})[0].scores == {}
    assert scored((), maps) == ()


@pytest.mark.parametrize("corner", [(0, 0), (0, 395), (395, 0), (395, 395), (1, 394)])
def test_at_a_border_the_part_inside_counts(corner: tuple[int, int]) -> None:
    done, _ = made("mammogram")
    shape = done.known.shape
    each = max(seen_in(done.altered), key=lambda c: c.footprint[1].sum())
    footprint = each.footprint[1]
    half = [n // 2 for n in footprint.shape]
    rows, columns = (slice(c - h, c + h + 1) for c, h in zip(corner, half, strict=True))
    at = replace(each, position=corner, footprint=((rows, columns), footprint))
    values = np.random.default_rng(0).normal(size=shape)
    inside = [
        values[rows.start + i, columns.start + j]
        for i, j in np.argwhere(footprint)
        if 0 <= rows.start + i < shape[0] and 0 <= columns.start + j < shape[1]
    ]
    assert len(inside) < footprint.sum()
    (found,) = scored([at], {"noise": values})
    assert found.scores["noise"] == pytest.approx(np.mean(inside))


def test_on_the_plane_the_place_and_the_footprint_move() -> None:
    done, _ = made("mammogram")
    plane = np.random.default_rng(0).normal(size=(410, 410))
    found = scored(seen_in(done.altered), {"map": plane[FIELD.region]})
    for each in found:
        there = on_the_plane(each, done)
        assert there.position == (each.position[0] + 4, each.position[1] + 8)
        assert scored([there], {"map": plane})[0].scores == each.scores
