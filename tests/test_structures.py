"""Structures keep their area, templates measure contrast and nothing else, and filters do so everywhere at once."""

import math
from functools import cache

import numpy as np
import pytest

import medsr
from medsr.trust.structures import (
    Kind,
    Responses,
    Structure,
    amplitude,
    bank,
    local_deviation,
    neighborhood,
    rendered,
    template,
)

KINDS: tuple[Kind, ...] = ("speck", "punctum", "filament")
STEPS = [(1.0, 1.0), (0.8, 1.3), (1.5, 0.7)]
PLACES = [(40.0, 50.0), (40.5, 49.5), (39.73, 50.11)]


@cache
def tissue() -> np.ndarray:
    scan = medsr.read_scan(medsr.MAMMOGRAM)
    return scan.intensity.to_unit(scan.read((slice(900, 1080), slice(300, 500))))


def structure(kind: Kind, place: tuple[float, float], size: float = 3.0, angle: float = 0.0) -> Structure:
    return Structure(kind, place, size, "sample", 1.0, 1.0, angle)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("kind", "angle"), [("speck", 0.0), ("punctum", 0.0), ("filament", 37.0)])
def test_a_template_sees_its_structure_and_no_offset_or_slope(
    kind: Kind, angle: float, steps: tuple[float, float], place: tuple[float, float]
) -> None:
    there = structure(kind, place, angle=angle)
    y, x = np.indices((81, 101)).astype(float)
    background = 7 - 0.3 * y + 0.2 * x
    assert amplitude(background, there, steps) == pytest.approx(0, abs=1e-10)
    box, shape, _ = rendered(there, steps)
    plane = background.copy()
    plane[box] += 2.5 * shape
    assert amplitude(plane, there, steps) == pytest.approx(2.5, abs=1e-10)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_filters_give_at_each_sample_what_the_template_gives(kind: Kind, steps: tuple[float, float]) -> None:
    filters = bank(kind, [2.0, 3.5], steps)
    assert len(filters) == (24 if kind == "filament" else 2)
    responses = Responses(tissue(), max(f.reach for f in filters))
    generator = np.random.default_rng(0)
    for each in filters[:: 5 if kind == "filament" else 1]:
        found = responses.by(each)
        assert found.shape == tissue().shape
        for row, column in generator.integers(35, 145, (20, 2)):
            there = structure(each.kind, (row, column), each.size, each.angle)
            assert found[row, column] == pytest.approx(amplitude(tissue(), there, steps), abs=2e-6)


def test_a_pedestal_costs_no_precision() -> None:
    each = bank("speck", [3.0], (1.0, 1.0))[0]
    exact = np.rint(tissue() * 4096) / 4096  # in single precision, with the pedestal too
    plain, raised = (Responses(exact + pedestal, each.reach).by(each) for pedestal in (0, 128))
    assert np.abs(raised - plain).max() < 1e-6
    assert plain.std() > 1e-3


def test_holes_are_filled_and_spoil_nothing_far_off() -> None:
    each = bank("punctum", [3.0], (1.0, 1.0))[0]
    holed = tissue().copy()
    holed[60:80, 90:120] = np.nan
    plain, found = (Responses(plane, each.reach).by(each) for plane in (tissue(), holed))
    assert np.isfinite(found).all()
    far = np.ones(holed.shape, bool)
    far[60 - each.reach : 80 + each.reach, 90 - each.reach : 120 + each.reach] = False
    assert np.abs(found - plain)[far].max() < 1e-5
    assert np.abs(found).max() < 2 * np.abs(plain).max()  # no cliff


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3)])
def test_planes_smaller_than_a_filter_have_responses(shape: tuple[int, int]) -> None:
    each = bank("filament", [4.0], (1.0, 1.0))[3]
    found = Responses(np.full(shape, 0.3), each.reach).by(each)
    assert found.shape == shape
    assert np.abs(found).max() < 1e-6


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("diameter_um", "steps"), [(200, (50, 50)), (100, (50, 50)), (100, (100, 100)), (400, (25, 70)), (150, (85, 85))]
)
def test_a_speck_covers_its_area(diameter_um: float, steps: tuple[float, float], place: tuple[float, float]) -> None:
    there = Structure("speck", place, diameter_um, "um", 1.0, 1.0)
    box, shape, around = rendered(there, steps)
    assert shape.sum() * math.prod(steps) == pytest.approx(math.pi * diameter_um**2 / 4, rel=0.02)
    assert shape.max() <= 1
    assert not shape[~around].any()
    if diameter_um >= 4 * max(steps):
        assert shape.max() == 1
    for axis, center in enumerate(place):  # points lie a tenth apart
        along = np.arange(box[axis].start, box[axis].stop)
        assert (shape.sum(1 - axis) * along).sum() / shape.sum() == pytest.approx(center, abs=0.06)


@pytest.mark.parametrize("steps", STEPS)
def test_puncta_and_filaments_have_the_width_they_say(steps: tuple[float, float]) -> None:
    size = 4.0
    gaussian = math.sqrt(math.pi / (4 * math.log(2))) * size
    punctum, filament = (rendered(structure(k, (0, 0), size), steps)[1] for k in ("punctum", "filament"))
    assert punctum.sum() * math.prod(steps) == pytest.approx(gaussian**2, rel=0.01)
    assert filament.sum() * math.prod(steps) == pytest.approx(gaussian * 7 * size + gaussian**2, rel=0.01)
    assert structure("filament", (0, 0), size).length == 8 * size


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0])
def test_a_filament_runs_where_its_angle_points(angle: float) -> None:
    steps = (1.5, 0.7)
    shape = rendered(structure("filament", (0, 0), 3.0, angle), steps)[1]
    y, x = ((i - n // 2) * s for i, n, s in zip(np.indices(shape.shape), shape.shape, steps, strict=True))
    turn = 0.5 * math.atan2(2 * (shape * x * y).sum(), (shape * (x * x - y * y)).sum())
    assert (math.degrees(turn) - angle + 90) % 180 - 90 == pytest.approx(0, abs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_neighborhood_is_whole_and_that_of_the_template(kind: Kind) -> None:
    for place in PLACES:
        there = structure(kind, place, 2.0, 20.0)
        box, around = neighborhood(there, (1.0, 1.0))
        where, weights = template(there, (1.0, 1.0))
        assert where == box
        assert not weights[~around].any()
        y, x = (np.arange(s.start, s.stop) - p for s, p in zip(box, place, strict=True))
        if kind != "filament":  # round, and not cut off by its box
            far = 1.5 + (2 if kind == "speck" else 3)
            assert np.array_equal(around, np.hypot(*np.ix_(y, x)) <= far)
            assert math.hypot(y[-1] + 1, 0) > far < math.hypot(0, x[0] - 1)


def test_edges_and_holes_have_no_amplitude() -> None:
    plane = tissue().copy()
    there = structure("speck", (50.0, 50.0))
    box, around = neighborhood(there, (1.0, 1.0))
    assert math.isnan(amplitude(plane, structure("speck", (1.0, 50.0)), (1.0, 1.0)))
    assert math.isnan(amplitude(plane, structure("speck", (50.0, plane.shape[1] - 2.0)), (1.0, 1.0)))
    before = amplitude(plane, there, (1.0, 1.0))
    plane[box][~around] = np.nan  # the corners of the box are not looked at
    assert amplitude(plane, there, (1.0, 1.0)) == before
    plane[51, 51] = np.nan
    assert math.isnan(amplitude(plane, there, (1.0, 1.0)))


# ---------------------------------------------------------------- deviations


@pytest.mark.parametrize("kind", KINDS)
def test_the_deviation_of_white_noise_is_that_of_the_weights(kind: Kind) -> None:
    noise = np.random.default_rng(3).normal(0, 0.02, (400, 500)).astype(np.float32)
    noise[:, 250:] *= 3
    each = bank(kind, [3.0], (1.0, 1.0))[0]
    response = Responses(noise, each.reach).by(each)
    found = local_deviation(response, np.ones(noise.shape, bool), block=96, least=0)
    due = 0.02 * math.sqrt(np.square(each.weights).sum())
    assert found.dtype == np.float32
    assert np.median(found[:, :150]) == pytest.approx(due, rel=0.05)
    assert np.median(found[:, 350:]) == pytest.approx(3 * due, rel=0.05)
    assert (np.diff(found[200, 150:350]) >= -1e-9).all()  # linear between, no steps
    assert np.abs(np.diff(found, axis=1)).max() < 0.05 * due


def test_a_few_samples_do_not_decide_about_a_block() -> None:
    noise = np.random.default_rng(3).normal(size=(288, 288)).astype(np.float32)
    known = np.zeros(noise.shape, bool)
    known[96:] = True
    known[:10, :80] = True  # 800 of 9216
    noise[:10, :80] = 0
    found = local_deviation(noise, known, block=96, least=0)
    assert found.min() > 0.9
    known[:20, :80] = True
    noise[:20, :80] = 0
    assert local_deviation(noise, known, block=96, least=0)[48, 48] < 0.1


def test_it_is_robust_and_at_least_what_is_said() -> None:
    noise = np.random.default_rng(3).normal(size=(200, 200)).astype(np.float32)
    known = np.ones(noise.shape, bool)
    plain = local_deviation(noise, known, block=96, least=0)
    noise[::10, ::10] += 1000
    assert np.abs(local_deviation(noise, known, block=96, least=0) / plain - 1).max() < 0.05
    assert np.array_equal(local_deviation(noise, known, block=96, least=2.0), np.full(noise.shape, 2.0, np.float32))
    assert (local_deviation(noise, ~known, block=96, least=0.5) == 0.5).all()
    assert local_deviation(noise[:1, :3], known[:1, :3], block=96, least=0.5).shape == (1, 3)


def test_contrast_to_noise_is_contrast_over_sigma() -> None:
    assert Structure("speck", (0, 0), 2.0, "um", 6.0, 2.0).cnr == 3
    assert Structure("speck", (0, 0), 2.0, "um", 6.0, 0.0).cnr == math.inf
