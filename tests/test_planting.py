"""What is planted stands as promised, what is taken out is gone, and nothing else of the scan is changed."""

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import medsr
from medsr.scan import Grid, Intensity, Scan
from medsr.trial import Trial, survey_of
from medsr.trust.fields import Field, fields_of, foreground_of, ladders_of
from medsr.trust.filling import filled
from medsr.trust.planting import CONTRASTS, LEFT, MARGIN, SEEN, Planted, altered_scan, deviation_of, plant
from medsr.trust.structures import Responses, Structure, amplitude, neighborhood

FACTOR = (2, 2)


@cache
def mammogram() -> Scan:
    """A dense part of the shipped one; its spacing, which the file does not say, is about 50 um."""
    scan = medsr.read_scan(medsr.MAMMOGRAM)
    data = scan.read((slice(1100, 1612), slice(200, 712)))
    return replace(scan, data=data, grid=Grid(("y", "x"), (50.0, 50.0)))


@cache
def nuclei() -> Scan:
    scan = medsr.read_scan(medsr.NUCLEI)
    return replace(scan, data=scan.read())


def planted_in(scan: Scan, *, planted: int = 50, removed: int = 8, seed: int = 0, count: int = 1) -> list[Planted]:
    trial = Trial(scan, FACTOR, None)
    survey = survey_of(trial)
    ladders = ladders_of(trial.scan)
    return [
        plant(trial, field, survey, ladders, planted=planted, removed=removed, seed=seed)
        for field in fields_of(trial, survey, count=count, seed=0)
    ]


@cache
def done(name: str) -> tuple[Scan, Planted]:
    scan = {"mammogram": mammogram, "nuclei": nuclei}[name]()
    return scan, max(planted_in(scan, count=2), key=lambda found: len(found.removed))


@cache
def many() -> tuple[Planted, ...]:
    """The same field with other seeds."""
    return tuple(planted_in(mammogram(), planted=100, removed=60, seed=seed)[0] for seed in range(4))


def steps_of(each: Structure) -> tuple[float, float]:
    return (50.0, 50.0) if each.unit == "um" else (1.0, 1.0)


both = pytest.mark.parametrize("name", ["mammogram", "nuclei"])

# ---------------------------------------------------------------- what was planted and removed


@both
def test_nothing_else_is_changed(name: str) -> None:
    scan, found = done(name)
    original = scan.read(found.field.region).reshape(found.field.shape)
    assert found.stored.dtype == scan.intensity.dtype
    near = np.zeros(original.shape, bool)
    for each in found.planted:
        box, around = neighborhood(each, steps_of(each))
        near[box] |= around
    y, x = np.indices(original.shape)
    for each in found.removed:
        radius = (0.5 if each.kind == "speck" else 1.0) * each.size / steps_of(each)[0] + 3.5
        near |= np.hypot(y - each.position[0], x - each.position[1]) <= radius
    assert len(found.planted) > 10
    assert len(found.removed) >= 1
    assert np.array_equal(found.stored[~near], original[~near])
    assert (found.stored[near] != original[near]).mean() > 0.2  # most of a neighborhood is for the background
    assert np.array_equal(found.plain, scan.intensity.to_unit(original))
    assert np.array_equal(found.altered, scan.intensity.to_unit(found.stored))


@both
def test_the_change_is_the_contrast_that_was_promised(name: str) -> None:
    _, found = done(name)
    for each in found.planted:
        before, after = (amplitude(plane, each, steps_of(each)) for plane in (found.plain, found.altered))
        assert after - before == pytest.approx(each.contrast, abs=4 * found.rounding)
        assert each.cnr == pytest.approx(min(CONTRASTS[each.kind], key=lambda c: abs(c - each.cnr)), rel=1e-6)


def test_over_many_the_contrast_is_unbiased_and_sigma_its_spread() -> None:
    departures = [
        (amplitude(found.altered, each, steps_of(each)) - each.contrast) / each.sigma
        for found in many()
        for each in found.planted
    ]
    assert len(departures) > 350
    assert abs(np.mean(departures)) < 4 / np.sqrt(len(departures))
    assert 0.8 < np.std(departures) < 1.1  # places above 4 sigma of their own are left out
    assert np.abs(departures).max() < SEEN * 1.3


@both
def test_neighborhoods_lie_apart_in_quiet_foreground(name: str) -> None:
    scan, found = done(name)
    taken = np.zeros(found.known.shape, int)
    for each in (*found.planted, *found.removed):
        box, around = neighborhood(each, steps_of(each))
        assert found.known[box][around].all()
        taken[box] += ndimage.binary_dilation(around)
    assert taken.max() == 1
    trial = Trial(scan, FACTOR, None)
    assert foreground_of(found.plain, survey_of(trial))[found.known].all()
    rim = np.ones(found.known.shape, bool)
    rim[MARGIN:-MARGIN, MARGIN:-MARGIN] = False
    assert not found.known[rim].any()
    assert found.known.mean() > 0.05
    filters = [each for ladder in ladders_of(scan) for each in ladder.filters]
    responses = Responses(found.plain, max(each.reach for each in filters))
    for each in filters:
        response = responses.by(each)
        ratio = response / deviation_of(response, found.known, each, least=found.rounding)
        for there in found.planted:
            box, around = neighborhood(there, steps_of(there))
            assert np.abs(ratio[box][around]).max() < SEEN


def test_every_size_and_contrast_comes_as_often() -> None:
    found = many()[0].planted
    assert set(Counter((each.size, round(each.cnr)) for each in found).values()) == {4}
    assert {each.size for each in found} == {100, 150, 200, 300, 400}
    assert {each.unit for each in found} == {"um"}


def test_few_are_drawn_from_all_sizes_and_contrasts() -> None:
    drawn = [each for seed in range(5) for each in planted_in(mammogram(), planted=6, removed=0, seed=seed)[0].planted]
    assert len(drawn) == 30
    assert {each.size for each in drawn} == {100, 150, 200, 300, 400}
    assert {round(each.cnr) for each in drawn} == {3, 5, 8, 12, 20}


def test_where_room_runs_out_faint_ones_are_dropped_no_sooner() -> None:
    found = planted_in(mammogram(), planted=3000, removed=0)[0].planted
    counts = Counter(round(each.cnr) for each in found if each.size == 400)
    assert sum(counts.values()) < 300  # of 600
    assert min(counts.values()) > 0.5 * max(counts.values())


def test_the_seed_alone_decides() -> None:
    scan, found = done("mammogram")
    again = planted_in(scan)[0]
    assert again.planted == found.planted
    assert again.removed == found.removed
    assert np.array_equal(again.stored, found.stored)
    other = planted_in(scan, seed=1)[0]
    assert not {each.position for each in other.planted} & {each.position for each in found.planted}


def test_the_degradation_does_not_decide() -> None:
    scan, found = done("mammogram")
    trial = Trial(scan, FACTOR, medsr.Degradation(FACTOR, sampling="point"))
    assert repr(trial.degradation) != repr(Trial(scan, FACTOR, None).degradation)
    again = plant(trial, found.field, survey_of(trial), ladders_of(scan), planted=50, removed=8, seed=0)
    assert np.array_equal(again.stored, found.stored)


def test_a_falling_line_gets_the_same_structures() -> None:
    """MONOCHROME1: stored values fall where unit intensity rises."""
    scan, found = done("mammogram")
    line = scan.intensity
    top = np.iinfo(line.dtype).max
    turned = replace(line, black=top - line.black, white=top - line.white)
    assert turned.black > turned.white
    other = planted_in(replace(scan, data=top - scan.read(), intensity=turned))[0]
    assert len(other.planted) == len(found.planted)
    assert len(other.removed) == len(found.removed)
    for one, two in zip((*found.planted, *found.removed), (*other.planted, *other.removed), strict=True):
        assert two.position == one.position
        assert two.contrast == pytest.approx(one.contrast, rel=1e-3)
        assert two.contrast > 0
    assert np.abs(other.altered - found.altered).max() < 10 * found.rounding


# ---------------------------------------------------------------- what can be stored


def twelve_bits(*, signed: bool) -> Scan:
    """The mammogram as 12 of 16 bits, in which the brightest tissue is all but saturated."""
    scan = mammogram()
    values = scan.read().astype(float)
    values = np.clip(np.rint(4095 * values / np.quantile(values, 0.98)), 0, 4090)
    low, dtype = (-2048, np.int16) if signed else (0, np.uint16)
    line = Intensity(low, low + 4095, np.dtype(dtype), bits=12)
    return replace(scan, data=(values + low).astype(dtype), intensity=line)


def test_what_the_file_can_hold_is_never_left() -> None:
    scan = twelve_bits(signed=False)
    found = planted_in(scan, planted=40)[0]
    assert found.stored.max() <= 4095
    assert len(found.planted) > 15
    for each in found.planted:  # none was clipped
        change = amplitude(found.altered, each, (50, 50)) - amplitude(found.plain, each, (50, 50))
        assert change == pytest.approx(each.contrast, abs=4 * found.rounding)
    signed = planted_in(twelve_bits(signed=True), planted=40)[0]
    assert signed.stored.min() >= -2048
    assert signed.stored.max() <= 2047
    assert signed.planted == found.planted
    assert np.array_equal(signed.stored + 2048, found.stored)


@pytest.mark.parametrize(("signed", "padding"), [(False, 0), (True, 0), (False, 3300)])
def test_a_padded_file_holds_no_more_than_its_line_says(*, signed: bool, padding: int) -> None:
    """Padding makes floats of a trial's scan, in which anything can be stored; in the file it cannot."""
    scan = twelve_bits(signed=signed)
    data = scan.read().copy()
    low = int(scan.intensity.black)
    padding += low
    data[data == padding] += 1
    data[100:160, 200:260] = padding
    scan = replace(scan, data=data, intensity=replace(scan.intensity, padding=(padding, padding)))
    trial = Trial(scan, FACTOR, None)
    assert trial.scan.intensity.dtype.kind == "f"
    survey, ladders = survey_of(trial), ladders_of(trial.scan)
    (field,) = fields_of(trial, survey, count=1, seed=0)
    loose, found = (
        plant(trial, field, survey, ladders, planted=60, removed=8, seed=0, line=line)
        for line in (None, scan.intensity)
    )
    assert loose.stored[np.isfinite(loose.stored)].max() > low + 4095  # what went wrong
    assert found.stored.dtype == trial.scan.intensity.dtype
    assert len(found.planted) > 15
    values = found.stored[np.isfinite(found.stored)]
    assert values.min() >= low
    assert not (values == padding).any()  # what is planted is no hole
    assert values.max() <= low + 4095
    assert np.array_equal(values, np.rint(values))
    assert (found.altered != found.plain)[np.isfinite(found.plain)].any()
    assert found.rounding == pytest.approx(1 / 4095 / np.sqrt(12))
    assert np.array_equal(found.altered, trial.scan.intensity.to_unit(found.stored), equal_nan=True)


@pytest.mark.parametrize("kind", ["padding", "nan"])
def test_holes_are_never_touched(kind: str) -> None:
    scan = mammogram()
    data: Any = scan.read().copy()
    hole = np.zeros(data.shape, bool)
    hole[100:330, 200:260] = True
    hole[400:420, 80:600] = True
    hole[500, 500] = True
    if kind == "padding":
        data[hole] = 7
        scan = replace(scan, data=data, intensity=replace(scan.intensity, padding=(7, 7)))
    else:
        data = data.astype(np.float32) * np.float32(1.2345)  # all 24 bits count
        data[hole] = np.nan
        line = replace(scan.intensity, white=1.2345 * scan.intensity.white, dtype=np.dtype(np.float32), bits=None)
        scan = replace(scan, data=data, intensity=line)
    (found,) = planted_in(scan, removed=30)
    assert np.isnan(found.stored[hole]).all()
    assert np.array_equal(np.isnan(found.altered), hole)
    assert np.array_equal(np.isnan(found.plain), hole)
    assert not found.known[ndimage.binary_dilation(hole, iterations=MARGIN // 2)].any()
    assert len(found.planted) == 50
    assert len(found.removed) > 3
    touched = (found.altered != found.plain) & ~hole
    far = ~ndimage.binary_dilation(touched, iterations=15) & ~hole
    assert np.array_equal(found.stored[far], data[far].astype(np.float32))  # floats, too, to their last bit
    distance = ndimage.distance_transform_edt(~hole)
    assert distance[touched].min() > 2


# ---------------------------------------------------------------- removal


def test_what_was_removed_is_gone() -> None:
    gone = [(found, each) for found in many() for each in found.removed]
    assert len(gone) > 30
    left = [amplitude(found.altered, each, (50, 50)) / each.sigma for found, each in gone]
    was = [amplitude(found.plain, each, (50, 50)) for found, each in gone]
    assert np.abs(left).max() < LEFT + 0.01
    assert abs(np.mean(left)) < 0.4
    assert was == pytest.approx([each.contrast for _, each in gone])
    assert min(each.cnr for _, each in gone) > SEEN


def test_a_filling_that_leaves_something_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsr.trust.planting.LEFT", 0.3)
    (found,) = planted_in(mammogram(), planted=1, removed=60)
    left = [amplitude(found.altered, each, (50, 50)) / each.sigma for each in found.removed]
    assert 2 < len(left) < len(many()[0].removed)
    assert np.abs(left).max() < 0.31


def test_the_filling_has_the_grain_of_its_surroundings() -> None:
    inside, outside = [], []
    for found in many():
        plane = found.altered.astype(float)
        fine = plane - ndimage.gaussian_filter(plane, 1.5)
        changed = ndimage.binary_dilation(found.altered != found.plain, iterations=3)
        y, x = np.indices(plane.shape)
        for each in found.removed:
            radius = each.size / 100 + 3.5
            distance = np.hypot(y - each.position[0], x - each.position[1])
            inside.append(np.square(fine[distance < radius - 1]).mean())
            outside.append(np.square(fine[(distance > radius + 3) & (distance < radius + 10) & ~changed]).mean())
    assert np.sqrt(np.mean(inside) / np.mean(outside)) == pytest.approx(1, abs=0.15)
    assert np.sqrt(np.median(np.divide(inside, outside))) == pytest.approx(1, abs=0.15)


def test_a_filling_continues_its_surroundings_without_what_stood_there() -> None:
    y, x = (np.indices((61, 71)) - 30) / 30
    surface = 1 + 0.3 * y - 0.2 * x + 0.5 * y * y - 0.4 * x * y + 0.1 * x * x
    distance = np.hypot(np.indices(y.shape)[0] - 30, np.indices(y.shape)[1] - 35)
    plane = surface + 5.0 * (distance < 3)
    for seed in range(10):  # the noise comes from elsewhere, beside the structure, which must not leak into it
        found = filled(plane, distance > 6, (30, 35), radius=4.5, generator=np.random.default_rng(seed))
        assert found is not None
        assert np.abs(found[1] - surface[found[0]]).max() < 1e-9


def test_noise_is_taken_from_quiet_places_alone() -> None:
    plane = mammogram().intensity.to_unit(mammogram().read()).astype(float)
    quiet = np.zeros(plane.shape, bool)
    generator = np.random.default_rng(0)
    assert filled(plane, quiet, (300, 300), radius=4, generator=generator) is None
    assert filled(plane, ~quiet, (5, 300), radius=4, generator=generator) is None


def test_noise_comes_from_the_tissue_not_from_the_air(monkeypatch: pytest.MonkeyPatch) -> None:
    """Air beside the skin is the quietest of all places and has no grain."""
    scan = mammogram()
    data = scan.read().copy()
    data[:, 280:] = data.min() // 2
    asked = []

    def spy(plane: np.ndarray, quiet: np.ndarray, place: Any, **more: Any) -> Any:
        asked.append(quiet.copy())
        return filled(plane, quiet, place, **more)

    monkeypatch.setattr("medsr.trust.planting.filled", spy)
    (found,) = planted_in(replace(scan, data=data), planted=1, removed=60)
    assert len(found.removed) > 4
    assert found.known[:, :270].any()
    assert not found.known[:, 290:].any()
    for quiet in asked:
        assert quiet.any()
        assert not (quiet & ~found.known).any()


# ---------------------------------------------------------------- the altered scan


@both
def test_the_altered_scan_differs_in_the_fields_alone(name: str) -> None:
    scan, found = done(name)
    altered = altered_scan(scan, [found])
    assert altered.shape == scan.shape
    assert altered.grid == scan.grid
    whole = scan.read().copy()
    whole[found.field.region] = found.stored
    assert np.array_equal(altered.read(), whole)
    assert not np.array_equal(whole, scan.read())
    generator = np.random.default_rng(0)
    for _ in range(30):
        ends = [np.sort(generator.integers(0, n + 1, 2)) for n in scan.shape]
        region = tuple(slice(int(a), int(b)) for a, b in ends)
        assert np.array_equal(altered.read(region), whole[region])
    one = tuple(slice(-9, None) for _ in scan.shape)
    assert np.array_equal(altered.read(one), whole[one])


def test_several_fields_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsr.trust.fields.SIDE", 260)
    scan = mammogram()
    found = planted_in(scan, planted=10, removed=1, count=4)
    assert len({str(each.field) for each in found}) == 4
    whole = scan.read().copy()
    for each in found:
        whole[each.field.region] = each.stored
    altered = altered_scan(scan, found)
    assert np.array_equal(altered.read(), whole)
    middle = (slice(230, 281), slice(240, 270))
    assert np.array_equal(altered.read(middle), whole[middle])


# ---------------------------------------------------------------- fields and ladders


@pytest.mark.parametrize("factor", [(2, 2), (9, 4)])
def test_fields_are_whole_coarse_samples_side_by_side(factor: tuple[int, int]) -> None:
    trial = Trial(medsr.read_scan(medsr.MAMMOGRAM), factor, None)
    survey = survey_of(trial)
    found = fields_of(trial, survey, count=50, seed=0)
    assert fields_of(trial, survey, count=50, seed=0) == found
    assert fields_of(trial, survey, count=2, seed=0) == found[:2]
    assert len({str(fields_of(trial, survey, count=1, seed=seed)) for seed in range(9)}) > 1
    covered = np.zeros(trial.shape, int)
    for each in found:
        covered[each.region] += 1
        assert max(each.shape) <= 1024
        coarse = each.coarse(factor)
        for fine, cells, f in zip(each.region, coarse, factor, strict=True):
            assert (cells.start * f, cells.stop * f) == (fine.start, fine.stop)
    assert covered.max() == 1
    assert covered.mean() > 0.7  # all but those that show nothing


def test_fields_of_a_stack_lie_where_something_is() -> None:
    scan = nuclei()
    data = scan.read().copy()
    data[:11] = data.min()
    data[17:] = data.min()
    trial = Trial(replace(scan, data=data), FACTOR, None)
    survey = survey_of(trial)
    for count in (1, 2, 5):
        found = fields_of(trial, survey, count=count, seed=0)
        assert found
        assert all(11 <= each.index[0] < 17 for each in found)
    empty = plant(
        trial, Field((3,), slice(0, 256), slice(0, 256)), survey, ladders_of(scan), planted=9, removed=9, seed=0
    )
    assert not empty.known.any()
    assert (empty.planted, empty.removed) == ((), ())
    planes = [each.index[0] for each in fields_of(Trial(scan, FACTOR, None), survey, count=4, seed=0)]
    assert len(set(planes)) == 4
    assert max(planes) - min(planes) > 15  # spread over the stack


def test_a_field_in_a_coarse_stack() -> None:
    field = Field((1, 4), slice(8, 24), slice(32, 64))
    assert field.shape == (16, 32)
    assert field.coarse((4, 4)) == (slice(1, 2), slice(4, 5), slice(2, 6), slice(8, 16))
    assert field.coarse((2, 4, 4)) == (slice(1, 2), slice(2, 3), slice(2, 6), slice(8, 16))


@pytest.mark.parametrize(
    ("spacing_um", "unit"),
    [((50.0, 50.0), "um"), ((100.0, 100.0), "um"), ((100.5, 90.0), "sample"), ((25.0, 40.0), "um"), (None, "sample"),
     ((24.0, 50.0), "sample"), ((700.0, 700.0), "sample"), ((50.0, None), "sample")],
)  # fmt: skip
def test_specks_are_micrometers_where_the_spacing_suits(spacing_um: Any, unit: str) -> None:
    scan = replace(mammogram(), grid=Grid(("y", "x"), spacing_um))
    (ladder,) = ladders_of(scan)
    assert (ladder.kind, ladder.unit) == ("speck", unit)
    assert ladder.sizes == ((100, 150, 200, 300, 400) if unit == "um" else (2, 3, 4, 6, 8))
    assert ladder.steps == (spacing_um if unit == "um" else (1, 1))
    assert len(ladder.filters) == 5


def test_the_kind_follows_the_file_unless_it_is_said() -> None:
    assert [a.kind for a in ladders_of(nuclei())] == ["punctum", "filament"]
    assert {a.unit for a in ladders_of(nuclei())} == {"sample"}
    assert [a.kind for a in ladders_of(mammogram(), "filament")] == ["filament"]
    assert [a.kind for a in ladders_of(medsr.read_scan(medsr.NUCLEI), "speck")] == ["speck"]
    assert len(ladders_of(nuclei(), "filament")[0].filters) == 36


@pytest.mark.parametrize("shape", [(2, 2), (3, 40), (8, 8), (30, 44), (90, 90)])
def test_small_scans_have_little_room_and_no_mishap(shape: tuple[int, int]) -> None:
    scan = mammogram()
    scan = replace(scan, data=scan.read()[: shape[0], : shape[1]])
    for found in planted_in(scan, planted=30):
        assert found.known.shape == found.stored.shape == found.field.shape
        assert found.known.any() or not found.planted
        assert len(found.planted) == 0 if max(shape) < 30 else len(found.planted) < 10
