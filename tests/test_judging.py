"""The truth keeps everything, the plain scan loses it, what stands in the estimate alone is invented, and what noise
gives by chance is not called real."""

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
from medsr.trust.structures import Kind, Structure, amplitude, bank, neighborhood, rendered

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


PUNCTA: tuple[Ladder, ...] = (
    Ladder("punctum", (2.0, 3.0, 4.0, 6.0), "sample", (1.0, 1.0)),
    Ladder("filament", (2.0, 3.0, 4.0), "sample", (1.0, 1.0)),
)
SPECKS: tuple[Ladder, ...] = (Ladder("speck", (2.0, 3.0, 4.0, 6.0, 8.0), "sample", (1.0, 1.0)),)


def field_of(truth: np.ndarray) -> Planted:
    """A field in which nothing was done, known but for its border."""
    rows, columns = truth.shape
    known = np.zeros(truth.shape, bool)
    known[40:-40, 40:-40] = True
    plane = truth.astype(np.float32)
    return Planted(Field((), slice(0, rows), slice(0, columns)), (), (), plane, plane, plane, known, 1e-9)


def noise(seed: int, factor: int, size: int = 480) -> np.ndarray:
    """White noise, or where the factor says so that of coarse samples, interpolated linearly."""
    coarse = np.random.default_rng(seed).normal(0.4, 0.01, (size // factor, size // factor))
    return np.asarray(ndimage.zoom(coarse, factor, order=1, mode="nearest", grid_mode=True))


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
            assert each.outcome == "lost"  # also where the place shows nearly as much by itself
        else:
            assert each.outcome == "unseen"
    lost = [each.outcome for each in judged(name, done.plain, done.plain)].count("lost")
    assert lost > len(done.planted) / 2


@both
def test_who_sharpens_the_plain_scan_keeps_nothing(name: str) -> None:
    """Three times the contrast makes much seen that was never shown."""
    done, _ = made(name)
    middle = ndimage.gaussian_filter(done.plain, 8.0)
    sharp = middle + 3 * (done.plain - middle)
    found = judged(name, sharp, sharp)
    assert name == "nuclei" or any(each.estimate >= SEEN for each in found if each.done == "planted")
    assert {each.outcome for each in found if each.done == "planted"} <= {"lost", "unseen"}
    assert {each.outcome for each in found if each.done == "removed"} == {"back"}


@both
@pytest.mark.parametrize("share", [0.45, 0.55])
def test_what_came_and_went_counts_from_half_on(name: str, share: float) -> None:
    done, _ = made(name)
    plain, altered = done.plain.astype(float), done.altered.astype(float)
    # All that stood there is left standing, and more: visible it is either way.
    before = 2 * plain + altered
    seen = judged(name, before, before + share * (altered - plain))
    for each in seen:
        assert each.recovered == pytest.approx(share, abs=1e-3)
        if each.estimate < SEEN:
            assert each.outcome in ("lost", "unseen", "gone")
        elif each.done == "removed":
            assert each.outcome == ("back" if share < 0.5 else "gone")
        elif each.truth >= SEEN:
            assert each.outcome == ("lost" if share < 0.5 else "kept")
    assert {each.outcome for each in seen} >= ({"lost", "back"} if share < 0.5 else {"kept", "gone"})


def test_where_nothing_was_done_the_removed_counts_as_back_if_it_is_seen() -> None:
    done, ladders = made("mammogram")
    same = replace(done, altered=done.plain)
    found = verdicts_of(same, ladders, {"method": (done.plain, done.plain)})
    assert all(math.isnan(each.recovered) for each in found)
    assert {each.outcome for each in found if each.done == "removed"} == {"back"}
    assert "kept" not in {each.outcome for each in found}


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
    assert np.mean([each.found == "real" for each in found]) > 0.95
    for each in found:
        assert not each.invented
        assert each.found != "invented"
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
@pytest.mark.parametrize(("shift", "factor"), [((1, 0), 2), ((1, -1), 2), ((0, -2), 4), ((2, 2), 4)])
def test_what_moved_by_half_a_coarse_sample_is_not_invented(name: str, shift: tuple[int, int], factor: int) -> None:
    done, ladders = made(name)
    moved = np.roll(done.altered, shift, (0, 1))
    found = candidates_of(done, ladders, {"method": moved}, factor=(factor, factor))
    assert [each for each in found if each.invented] == []
    planted = [each for each in found if each.near == "planted" and each.cnr > 6]
    assert len(planted) > 5
    assert all(each.found == "real" for each in planted)


def test_each_axis_has_its_own_half_of_a_coarse_sample() -> None:
    done, ladders = made("mammogram")
    moved = np.roll(done.altered, 4, 1)
    along, across = (
        [each.invented for each in candidates_of(done, ladders, {"method": moved}, factor=factor)]
        for factor in ((1, 8), (8, 1))
    )
    assert not any(along)
    assert np.mean(across) > 0.1


@pytest.mark.parametrize("shift", [0.3, 0.9, 1.9])
@pytest.mark.parametrize("ladders", [SPECKS, PUNCTA])
def test_a_planted_structure_that_moved_a_little_is_real(shift: float, ladders: tuple[Ladder, ...]) -> None:
    factor = max(1, math.ceil(2 * shift))
    truth = noise(0, 1, 320)
    estimate = truth.copy()
    places = [(y, x) for y in range(70, 270, 45) for x in range(70, 270, 45)]
    forms = [(ladder, size) for ladder in ladders for size in ladder.sizes]
    for i, (y, x) in enumerate(places):
        ladder, size = forms[i % len(forms)]
        # The larger the structure the more of the noise it is averaged over.
        each = Structure(ladder.kind, (y, x), size, "sample", 0.3 / size, 1.0)
        for plane, by in ((truth, 0.0), (estimate, shift)):
            box, shape, _ = rendered(replace(each, position=(y + by, x - by)), ladder.steps)
            plane[box] += each.contrast * shape
    found = candidates_of(field_of(truth), ladders, {"method": estimate}, factor=(factor, factor))
    strong = [each for each in found if each.cnr > 10]
    assert len(strong) >= len(places) * 0.7
    assert all(each.found == "real" for each in strong)


@pytest.mark.parametrize(("factor", "scale"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 4)])
@pytest.mark.parametrize(("ladders", "count"), [(SPECKS, 3), (PUNCTA, 1)])
def test_noise_makes_nothing_real(factor: int, scale: int, ladders: tuple[Ladder, ...], count: int) -> None:
    """Truth and estimate have nothing to do with each other: what the estimate shows is real by chance alone."""
    found = [
        each
        for seed in range(count)
        for each in candidates_of(
            field_of(noise(seed, scale)),
            ladders,
            {"method": 0.4 + 1.3 * (noise(seed + 100, scale) - 0.4)},
            factor=(factor, factor),
        )
    ]
    asked = [each.chance == "real" for each in found if each.chance]
    assert len(asked) > 0.8 * len(found) > 100
    assert np.mean([each.found == "real" for each in found]) < 0.07
    assert np.mean(asked) < 0.07
    assert all(each.share >= 0.5 for each in found if each.found == "undecided")
    assert all((each.share < 0.5) == each.invented for each in found)


def test_chance_is_what_another_place_would_say() -> None:
    """Where the truth is full of the like, much is real that has nothing to do with it."""
    y, x = np.indices((400, 400))
    crowd = 0.4 + 0.2 * np.exp(-(((y % 10 - 5) ** 2 + (x % 10 - 5) ** 2) / 4)) + noise(0, 1, 400) / 4
    shares = []
    for truth in (crowd, noise(1, 1, 400)):
        found = candidates_of(field_of(truth), SPECKS, {"method": crowd}, factor=(8, 8))
        shares.append(np.mean([each.chance == "real" for each in found if each.chance]))
    assert shares[0] > 0.5
    assert shares[1] < 0.07


def test_no_chance_is_asked_where_the_displaced_place_is_not_known() -> None:
    truth, estimate = noise(0, 1), noise(1, 1)
    done = field_of(truth)
    assert all(each.chance for each in candidates_of(done, SPECKS, {"method": estimate}, factor=FACTOR))
    half = done.known.copy()
    half[:, 230:] = False
    half[40, 439] = True  # the place is the other side of the field
    found = candidates_of(replace(done, known=half), SPECKS, {"method": estimate}, factor=FACTOR)
    assert found
    assert {each.chance for each in found} == {""}
    small = candidates_of(field_of(truth[:110, :110]), SPECKS, {"method": 3 * estimate[:110, :110]}, factor=FACTOR)
    assert small
    assert {each.chance for each in small} == {""}  # no place is far enough


@pytest.mark.parametrize(
    ("kind", "angle"), [("punctum", 0.0), *(("filament", angle) for angle in (0.0, 37.0, 90.0, 142.5))]
)
@pytest.mark.parametrize("size", [2.0, 3.0, 4.0])
def test_one_structure_is_one_candidate(kind: Kind, size: float, angle: float) -> None:
    """Neither its length nor what it gives to other filters beside it makes more of it."""
    (ladder,) = (each for each in PUNCTA if each.kind == kind)
    weights = bank(kind, (size,), (1.0, 1.0))[0].weights
    for seed, (cnr, grain) in enumerate([(6.0, 0.0), (12.0, 0.0), (12.0, 1.0), (30.0, 0.0)]):
        truth = noise(seed, 1, 240)
        sigma = 0.01 * float(np.sqrt(np.square(weights).sum()))
        each = Structure(kind, (120.3, 119.7), size, "sample", cnr * sigma, sigma, angle)
        box, shape, _ = rendered(each, ladder.steps)
        estimate = 0.4 + grain * (truth - 0.4)
        before = candidates_of(field_of(truth), PUNCTA, {"method": estimate}, factor=FACTOR)
        estimate[box] += each.contrast * shape
        found = candidates_of(field_of(truth), PUNCTA, {"method": estimate}, factor=FACTOR)
        places = {one.position for one in before}
        (new,) = (one for one in found if one.position not in places)
        assert math.dist(new.position, each.position) < 4
        assert new.kind == kind
        assert new.cnr == pytest.approx(cnr, rel=0.3)
        assert new.found != "real"


def test_neighbors_are_apart_where_their_forms_are() -> None:
    truth = np.full((240, 240), 0.4) + noise(0, 1, 240) / 100
    places = [(110.0, 110.0), (110.0, 122.0), (121.0, 110.0)]
    for i, place in enumerate(places):
        each = Structure("speck", place, 4.0, "sample", 0.1 * (1 + i), 1.0)
        box, shape, _ = rendered(each, (1.0, 1.0))
        truth[box] += each.contrast * shape
    found = [
        each
        for each in candidates_of(field_of(truth), SPECKS, {"method": truth}, factor=FACTOR)
        if each.contrast > 0.05
    ]
    assert [each.position for each in found] == sorted(places)


def test_what_moved_far_is_invented() -> None:
    done, _ = made("mammogram")
    found = seen_in(np.roll(done.altered, (13, 13), (0, 1)))
    assert np.mean([each.invented for each in found]) > 0.7


def test_a_faint_filament_beside_a_bright_punctum_is_found() -> None:
    truth = noise(0, 1, 240) / 50
    for kind, place, size, contrast in [
        ("filament", (120.0, 110.0), 3.0, 0.01),
        ("punctum", (122.0, 130.0), 3.0, 0.05),
    ]:
        each = Structure("filament" if kind == "filament" else "punctum", place, size, "sample", contrast, 1.0)
        box, shape, _ = rendered(each, (1.0, 1.0))
        truth[box] += contrast * shape
    found = candidates_of(field_of(truth), PUNCTA, {"method": truth}, factor=FACTOR)
    near = [(each.kind, each.found) for each in found if math.dist(each.position, (120, 118)) < 25 and each.cnr > 10]
    assert near == [("filament", "real"), ("punctum", "real")]


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
