"""Calibrated intervals: the promise is kept, the ends obey the laws of methods, and they are bound to their weights."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors

from medsr.checkpoint import CheckpointError, TrainingCard, TrainingInput, load_upscaler, save_checkpoint
from medsr.data import NUCLEI
from medsr.engines import EngineChoice
from medsr.engines.parts import has_openvino
from medsr.io import find_all, read_scan
from medsr.io.digest import input_digest
from medsr.methods import Cubic, Ensemble
from medsr.methods.shuffle import pixel_shuffle
from medsr.methods.widths import Widths, pinball, pixel_unshuffle
from medsr.recipe import DataRecipe, FastRecipe, IntensityRule, Recipe
from medsr.scan import Grid, Intensity, Scan
from medsr.trial import Trial
from medsr.trust.bounds import hoeffding_bentkus_ucb, smallest_n
from medsr.trust.calibration import calibrate, certify, grouped
from medsr.trust.curves import HALF_WIDTHS, SCALINGS, curve_of, needed_scaling, shares
from medsr.trust.distances import Bound, Distances, LearnedWidths, SpreadWidths
from medsr.trust.fitting import fit_widths
from medsr.trust.intervals import FILE, Intervals, calibrate_run, coverage, load_intervals, save_intervals
from medsr.upscaler import Composed, Upscaler, checkpoints_of, describe, fingerprint
from medsr.upscaling import upscale
from tests import laws
from tests.methods_asked import network, noise, real_scan

TINY = FastRecipe(factor=(2, 2), features=4, blocks=1)
CARD = TrainingCard(black=(0, 100), white=(2000, 4000), dtype="uint16")


def widths_of(factor: tuple[int, ...], seed: int = 0) -> Widths:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Widths(factor, features=4, blocks=1).eval().requires_grad_(False)


MADE = {
    "cubic-2": lambda: LearnedWidths(Cubic((2, 2)), widths_of((2, 2))),
    "cubic-3-2": lambda: LearnedWidths(Cubic((3, 2)), widths_of((3, 2))),
    "network-2": lambda: LearnedWidths(network("fast-2", 12), widths_of((2, 2))),
    "network-1-2-2": lambda: LearnedWidths(network("fast-1-2-2", 12), widths_of((1, 2, 2))),
    "network-4-1-1": lambda: LearnedWidths(network("fast-4-1-1", 12), widths_of((4, 1, 1))),
    "spread-2": lambda: SpreadWidths(Ensemble(network("fast-2", 12))),
}
SIZES = {2: (41, 43), 3: (17, 21, 23)}


@pytest.fixture(params=MADE)
def method(request):
    return MADE[request.param]()


@pytest.fixture(params=["lower", "upper"])
def side(request):
    return request.param


@pytest.fixture(scope="module")
def planes(tmp_path_factory) -> list[Path]:
    """Planes of the shipped stack as scans of their own: for the plumbing alone, for they are not exchangeable."""
    folder = tmp_path_factory.mktemp("planes")
    stack = tifffile.imread(NUCLEI)
    paths = []
    for number in range(14):
        path = folder / f"plane_{number:02d}.tif"
        tifffile.imwrite(path, stack[2 * number, 60:156, 60:164])
        paths.append(path)
    return paths


@pytest.fixture
def run(tmp_path) -> Path:
    torch.manual_seed(1)
    made = Recipe.model_validate({"method": TINY, "data": DataRecipe(patch=(32, 32))})
    save_checkpoint(tmp_path / "best.ckpt", TINY.build(), made, CARD)
    return tmp_path


# ---------------------------------------------------------------- the promise


def synthetic(
    scans: int, samples: int, seed: int, *, within: float = 1.2, between: float = 0.7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares outside of synthetic scans whose error differs from sample to sample and from scan to scan: at each
    scaling of distances that follow the first but not the second, and of constant intervals; and mean widths."""
    generator = np.random.default_rng(seed)
    inside = 0.01 * np.exp(generator.normal(0, within, (scans, samples)))
    sigma = inside * np.exp(generator.normal(0, between, (scans, 1)))
    estimate = generator.random((scans, samples))
    truth = estimate + sigma * generator.standard_normal((scans, samples))
    distance = inside * np.exp(generator.normal(0, 0.3, (scans, samples)))
    needed = needed_scaling(truth, estimate, distance, 0.8 * distance)

    def counted(values, grid):
        first = np.searchsorted(grid, values, side="right")
        return shares(np.stack([np.bincount(row, minlength=len(grid) + 1) for row in first]))

    return counted(needed, SCALINGS), counted(np.abs(truth - estimate), HALF_WIDTHS), 1.8 * distance.mean(1)


@pytest.mark.parametrize(("n", "alpha", "delta"), [(50, 0.1, 0.1), (200, 0.1, 0.1), (40, 0.2, 0.2)])
def test_a_thousand_re_splits_break_the_promise_no_more_often_than_stated(n, alpha, delta):
    risks, *_ = synthetic(2000, 300, seed=n)
    generator = np.random.default_rng(1)
    broken, simply = 0, 0
    total = risks.sum(0)
    for _ in range(1000):
        pick = generator.permutation(len(risks))[:n]
        index = certify(risks[pick], alpha=alpha, delta=delta)
        rest = (total - risks[pick].sum(0)) / (len(risks) - n)
        broken += bool(rest[index] > alpha)
        simply += bool(rest[np.flatnonzero(risks[pick].mean(0) <= alpha)[0]] > alpha)
    assert broken / 1000 <= delta + 2 * math.sqrt(delta * (1 - delta) / 1000)
    assert simply / 1000 > delta + 0.1  # without the bound it is broken about every second time


def test_intervals_that_follow_the_error_are_narrower_than_constant_ones():
    """Where errors differ moderately; where a few are huge, constant ones are as narrow by giving those up."""
    risks, constant, widths = synthetic(300, 300, seed=4, within=0.7, between=0.2)
    scaling, half = SCALINGS[certify(risks)], HALF_WIDTHS[certify(constant)]
    assert scaling * widths.mean() < 2 * half


def test_a_scaling_covers_what_it_says_it_covers():
    generator = np.random.default_rng(0)
    truth, estimate, down, up = generator.random((4, 5000)) + np.array([[0], [0], [0.05], [0.05]])
    needed = needed_scaling(truth, estimate, down, up)
    for scaling in (0.3, 1.0, 2.7):
        inside = (truth > estimate - scaling * down) & (truth < estimate + scaling * up)
        assert np.array_equal(needed < scaling, inside)
    counts = np.bincount(np.searchsorted(SCALINGS, needed, side="right"), minlength=len(SCALINGS) + 1)
    risk = shares(counts)
    assert np.all(np.diff(risk) <= 1e-15)
    assert risk[SCALINGS == 1] == pytest.approx(1 - ((needed < 1).mean()))


def test_slack_is_half_a_gray_level_that_rounding_moves_an_end():
    generator = np.random.default_rng(0)
    estimate, down, up = 100 * generator.random((3, 20_000)) * [[1], [0.02], [0.02]] + [[0], [0.1], [0.1]]
    truth = np.round(estimate + generator.normal(0, 1.5, estimate.shape))
    needed = needed_scaling(truth, estimate, down, up, slack=0.5)
    inside = (np.rint(estimate - 1.3 * down) <= truth) & (truth <= np.rint(estimate + 1.3 * up))
    assert np.array_equal(needed < 1.3, inside)


def test_scans_of_one_subject_count_once():
    values = [np.array([k, 2.0 * k]) for k in (1.0, 3.0, 8.0, 4.0)]
    assert grouped(values, ["a", "b", "a", "b"]).tolist() == [[4.5, 9.0], [3.5, 7.0]]


def test_too_few_scans_promise_nothing_and_are_told_how_many_it_takes(planes):
    method = MADE["cubic-2"]()
    with pytest.raises(ValueError, match=r"expected at least 22 scans .* found 14, .* below alpha 0.152; give more"):
        calibrate(method, planes)
    with pytest.raises(ValueError, match=r"expected at least 5 scans .* found 2"):
        calibrate(method, planes, alpha=0.25, delta=0.25, group=lambda source: (source.name[-1:] < "5" and "a") or "b")
    with pytest.raises(ValueError, match="expected at least 22 scans"):
        certify(np.zeros((21, len(SCALINGS))))
    assert certify(np.zeros((22, len(SCALINGS)))) == 0


def test_widths_that_cannot_be_scaled_far_enough_are_refused_with_the_number_of_scans():
    risks = np.full((30, len(SCALINGS)), 0.05)
    with pytest.raises(ValueError, match=r"at most 0.0078 outside, as 30 scans must .* found 0.0500 .* give 134 scans"):
        certify(risks)


# ---------------------------------------------------------------- the widths and the ends


@pytest.mark.parametrize("factor", [(2, 2), (3, 2), (1, 2, 2), (4, 1, 1)])
def test_unshuffle_undoes_shuffle(factor):
    fine = noise(2, 3, *(n * f for n, f in zip((5, 6, 7), factor, strict=False)))
    moved = pixel_unshuffle(fine, factor)
    assert moved.shape == (2, 3 * math.prod(factor), *(5, 6, 7)[: len(factor)])
    assert torch.equal(pixel_shuffle(moved, factor), fine)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_the_pinball_loss_is_least_at_the_quantile(share):
    truth = torch.randn(20_001, generator=torch.Generator().manual_seed(0))
    grid = torch.linspace(-2.5, 2.5, 501)
    losses = [float(pinball(torch.full_like(truth, q), truth, share)) for q in grid.tolist()]
    assert float(grid[int(np.argmin(losses))]) == pytest.approx(float(truth.quantile(share)), abs=0.02)


@pytest.mark.parametrize("factor", [(2, 2), (1, 2, 2)])
def test_widths_ignore_the_offset_grow_with_the_contrast_and_have_a_floor(factor):
    widths = widths_of(factor).double()
    low = noise(1, 1, *(11, 12, 13)[: len(factor)]).double()
    estimate = Cubic(factor)(low)
    before = widths(low, estimate)
    for old, new in zip(before, widths(low + 3, estimate + 3), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-9, atol=1e-12)
    flat = torch.full_like(low, 0.7)
    for old, floor in zip(widths(flat, Cubic(factor)(flat)), widths.floor, strict=True):
        torch.testing.assert_close(old, torch.full_like(old, floor), rtol=1e-4, atol=0)
    widths.set_floor(1e-300)
    for old, new in zip(widths(low, estimate), widths(5 * low, 5 * estimate), strict=True):
        torch.testing.assert_close(new, 5 * old, rtol=1e-9, atol=1e-12)
    assert all(bool((each > 0).all()) for each in before)


def test_an_end_is_an_upscaler_made_of_others(method, side):
    bound = Bound(method, side, scaling=1.5, promise="90 % of whole at confidence 90 %")
    assert isinstance(method, Distances)
    assert isinstance(bound, Upscaler)
    assert isinstance(bound, Composed)
    assert describe(bound).startswith(f"{side} end of intervals, 90 % of whole at confidence 90 %, 1.5 times ")
    low = noise(1, 1, *SIZES[len(bound.factor)])
    assert bound(low).dtype == torch.float32


def test_tiled_ends_equal_whole_ones(method, side):
    bound = Bound(method, side, scaling=2.0)
    dims = len(bound.factor)
    laws.tiled_equals_whole(bound, noise(1, 1, *SIZES[dims]), (16, 15) if dims == 2 else (7, 11, 9))


@pytest.mark.parametrize("name", ["cubic-2", "cubic-3-2"])
def test_the_halo_is_exact(name, side):
    made = MADE[name]()
    made.widths.double()
    laws.halo_is_exact(Bound(made, side), (31, 33))


def test_the_estimate_lies_between_the_ends(method):
    low = noise(1, 1, *SIZES[len(method.factor)])
    estimate, down, up = method.distances(low, method.parts)
    lower, upper = Bound(method, "lower", scaling=2.0)(low), Bound(method, "upper", scaling=2.0)(low)
    assert bool((lower < estimate).all())
    assert bool((estimate < upper).all())
    torch.testing.assert_close(estimate - lower, 2 * down, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(upper - estimate, 2 * up, rtol=1e-4, atol=1e-6)


def test_an_end_commutes_with_the_offset_of_the_scan(method, side):
    bound = Bound(method, side, scaling=2.0)
    low = noise(1, 1, *SIZES[len(bound.factor)])
    torch.testing.assert_close(bound(low + 0.25), bound(low) + 0.25, rtol=0, atol=2e-6)


def test_a_flat_scan_has_flat_ends(method, side):
    bound = Bound(method, side, scaling=2.0)
    with torch.inference_mode():
        fine = bound(torch.full((1, 1, *SIZES[len(bound.factor)]), 0.6))
    assert float(fine.max() - fine.min()) < 1e-5
    assert 0 < abs(float(fine.mean()) - 0.6) < 0.01


def test_the_fingerprint_knows_weights_scaling_and_side():
    made = MADE["network-2"]()
    first = fingerprint(Bound(made, "lower", scaling=2.0))
    assert first == fingerprint(Bound(MADE["network-2"](), "lower", scaling=2.0))
    other = LearnedWidths(made.inner, widths_of((2, 2), seed=1))
    changed = [Bound(made, "upper", scaling=2.0), Bound(made, "lower", scaling=2.0 + 1e-9), Bound(other, "lower")]
    assert len({first, *map(fingerprint, changed)}) == 4
    assert made.digest != other.digest


def scan_of(black: float, white: float) -> Scan:
    stored = (real_scan()[0, 0, 12, 60:124, 60:130].numpy() * 4000).round().clip(0, 4000).astype(np.uint16)
    return Scan(stored, Grid(("y", "x"), (0.3, 0.3)), Intensity(black, white, stored.dtype))


@pytest.mark.parametrize("name", ["network-2", "spread-2"])
def test_written_ends_are_those_of_the_promise_whatever_the_tile(name):
    method = MADE[name]()
    scan = scan_of(0, 4000)
    lower, upper = (Bound(method, side, scaling=1.5) for side in ("lower", "upper"))
    estimate = upscale(scan, method.inner).data.astype(int)
    whole = upscale(scan, lower, device="cpu").data.astype(int)
    tiles = upscale(scan, lower, tile=(20, 17), device="cpu").data.astype(int)
    assert np.abs(whole - tiles).max() <= 1
    assert np.all(whole <= estimate)
    assert np.all(upscale(scan, upper).data.astype(int) >= estimate)


def test_lower_means_lower_stored_values_where_black_is_above_white():
    method = MADE["network-2"]()
    scan = scan_of(4000, 0)
    ends = [upscale(scan, Bound(method, side)).data.astype(int) for side in ("lower", "upper")]
    assert np.all(ends[0] <= ends[1])
    assert (ends[0] < ends[1]).mean() > 0.9


def test_an_engine_runs_the_network_inside():
    method = MADE["network-2"]()
    scan = scan_of(0, 4000)
    bound = Bound(method, "lower").adapt(scan)
    engine = EngineChoice("openvino" if has_openvino() else "compiled", "float32", 0.0, 1.0)
    found = upscale(scan, bound, engine=engine, device="cpu").data.astype(int)
    assert np.abs(found - upscale(scan, bound, device="cpu").data.astype(int)).max() <= 1


# ---------------------------------------------------------------- fitting and calibrating on files


@pytest.fixture(scope="module")
def fitted(planes):
    return fit_widths(Cubic((2, 2)), planes[:4], steps=200, patches=32, features=6, blocks=1, device="cpu")


def test_widths_learn_from_residuals(fitted, planes):
    assert fitted.loss < 0.97 * fitted.loss_before
    assert fitted.learned_from == tuple(sorted(input_digest(source) for source in find_all(planes[:4])))
    again = fit_widths(Cubic((2, 2)), planes[:4], steps=200, patches=32, features=6, blocks=1, device="cpu")
    for name, value in fitted.widths.state_dict().items():
        assert torch.equal(value, again.widths.state_dict()[name]), name


def test_fitting_leaves_the_random_numbers_alone(planes):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    fit_widths(Cubic((2, 2)), planes[:1], steps=1, patches=4, features=2, blocks=1, device="cpu")
    assert torch.equal(torch.rand(2), expected)


def test_a_calibration_keeps_its_own_promise_on_its_own_scans(fitted, planes):
    method = LearnedWidths(Cubic((2, 2)), fitted.widths)
    lines: list[str] = []
    found = calibrate(
        method, planes[4:], alpha=0.25, delta=0.25, learned_from=fitted.learned_from, device="cpu", note=lines.append
    )
    assert len(lines) == found.coverage.scans == found.coverage.groups == 10
    assert found.risk_bound == hoeffding_bentkus_ucb(found.coverage.risk, 10, 0.25) <= 0.25
    one_less = SCALINGS[int(np.abs(SCALINGS - found.scaling).argmin()) - 1]
    risks = np.mean([curve_of(method, read_scan(s)).risk("whole") for s in find_all(planes[4:])], 0)
    assert hoeffding_bentkus_ucb(float(risks[one_less == SCALINGS][0]), 10, 0.25) > 0.25
    assert found.coverage.mean_width < found.coverage.constant_width
    assert sum(stratum.share for stratum in found.coverage.by_intensity) == pytest.approx(1)
    total = sum(stratum.share * stratum.coverage for stratum in found.coverage.by_width)
    assert total == pytest.approx(1 - found.coverage.risk_whole)
    assert "At confidence 75 %, at least 75 % of the samples of the whole lie inside, on average" in str(found)
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert not any(path.stem in found.model_dump_json() for path in planes)


@pytest.mark.parametrize("divided", [1, 400])
def test_the_share_outside_is_that_of_the_written_files(fitted, planes, tmp_path, divided):
    """Counted once more, from stored values of the ends as `upscale` writes them; with few gray levels too."""
    method = LearnedWidths(Cubic((2, 2)), fitted.widths)
    tifffile.imwrite(tmp_path / "one.tif", tifffile.imread(planes[5]) // divided)
    scan = read_scan(find_all(tmp_path)[0])
    trial = Trial(scan, (2, 2), None)
    curve = curve_of(method, scan, device="cpu")
    for index in (400, 512, 560):
        ends = [upscale(trial.low, Bound(method, s, scaling=float(SCALINGS[index]))).data for s in ("lower", "upper")]
        truth = scan.read()
        outside = float(((truth < ends[0]) | (truth > ends[1])).mean())
        assert 0 < outside < 1
        assert curve.risk("whole")[index] == pytest.approx(outside, abs=2e-3)


def test_the_foreground_is_counted_by_itself(fitted, planes):
    method = LearnedWidths(Cubic((2, 2)), fitted.widths)
    both = [
        calibrate(method, planes[4:], alpha=0.25, delta=0.25, over=over, device="cpu")
        for over in ("whole", "foreground")
    ]
    assert [each.over for each in both] == ["whole", "foreground"]
    assert both[0].coverage.risk == both[0].coverage.risk_whole != both[0].coverage.risk_foreground
    assert both[1].coverage.risk == both[1].coverage.risk_foreground


def test_scans_that_were_learned_from_are_refused(fitted, planes, tmp_path):
    method = LearnedWidths(Cubic((2, 2)), fitted.widths)
    with pytest.raises(ValueError, match=r"plane_02.tif: expected a scan that the network, .* have not seen"):
        calibrate(method, planes[2:], alpha=0.25, delta=0.25, learned_from=fitted.learned_from)
    (source,) = find_all(planes[9:10])
    seen = (TrainingInput(name_hash="00" * 8, sha256=input_digest(source), shape=(96, 104)),)
    made = Recipe.model_validate({"method": TINY, "data": DataRecipe(patch=(32, 32))})
    for field in ("inputs", "held_out"):
        card = CARD.model_copy(update={field: seen})
        save_checkpoint(tmp_path / "best.ckpt", TINY.build(), made, card)
        inside = SpreadWidths(Ensemble(load_upscaler(tmp_path)))
        with pytest.raises(ValueError, match=r"plane_09.tif: expected a scan that the network"):
            calibrate(inside, planes[9:], alpha=0.25, delta=0.25)


def test_holes_are_no_samples(fitted, tmp_path):
    values = np.asarray(scan_of(0, 1).data, np.float32)
    whole = values.copy()
    values[11:29, 9:19] = np.nan  # coarse samples with a hole in them have no estimate
    for name, data in (("whole", whole), ("holes", values)):
        tifffile.imwrite(tmp_path / f"{name}.tif", data)
    method = LearnedWidths(Cubic((2, 2)), fitted.widths)
    counts = {s.path.stem: curve_of(method, read_scan(s)).counts("whole") for s in find_all(tmp_path)}
    assert counts == {"whole": values.size, "holes": values.size - 20 * 12}


def test_a_fixed_intensity_line_is_that_of_the_floor(run):
    fixed = {"intensity": IntensityRule(black=0, white=2000)}
    made = Recipe.model_validate({"method": TINY, "data": DataRecipe(patch=(32, 32)), **fixed})
    torch.manual_seed(1)
    save_checkpoint(run / "best.ckpt", TINY.build(), made, CARD)
    method = LearnedWidths(load_upscaler(run), widths_of((2, 2)))
    ends = [upscale(scan_of(0, white), Bound(method, "upper")).data.astype(int) for white in (4000, 1000)]
    assert np.abs(ends[0] - ends[1]).max() <= 1


# ---------------------------------------------------------------- kept beside the checkpoint


def test_a_run_is_calibrated_kept_and_loaded(run, planes):
    made = calibrate_run(run, planes[4:], learn_from=planes[:4], alpha=0.25, delta=0.25, steps=20, device="cpu")
    found = load_intervals(run)
    assert (run / FILE).is_file()
    assert found.calibration == made.calibration
    assert fingerprint(found.lower) == fingerprint(made.lower)
    assert checkpoints_of(found.upper) == (load_upscaler(run).weights_sha256,) == found.calibration.checkpoints
    low = noise(1, 1, 20, 22)
    lower, upper = found.bounds(low)
    assert torch.equal(lower, found.lower(low))
    assert torch.equal(upper, found.upper(low))
    assert torch.equal(found.bounds(low, found.upscaler(low))[1], upper)
    before = (run / FILE).read_bytes()
    save_intervals(run, found.method, found.calibration)
    assert (run / FILE).read_bytes() == before
    assert [p.name for p in run.iterdir() if p.name.endswith(".part")] == []


def test_the_spread_needs_no_scans_to_learn_from(run, planes):
    made = calibrate_run(run, planes[4:], alpha=0.25, delta=0.25, device="cpu")
    found = load_intervals(run)
    assert made.calibration.kind == found.calibration.kind == "spread"
    low = noise(1, 1, 20, 22)
    assert torch.equal(found.lower(low), made.lower(low))
    with pytest.raises(ValueError, match="spread needs all members"):
        found.bounds(low, low)


def test_intervals_are_refused_beside_other_weights(run, planes):
    made = calibrate_run(run, planes[4:], learn_from=planes[:4], alpha=0.25, delta=0.25, steps=2, device="cpu")
    recipe = load_upscaler(run).recipe
    torch.manual_seed(2)
    save_checkpoint(run / "best.ckpt", TINY.build(), recipe, CARD)
    with pytest.raises(CheckpointError, match="the checkpoint has changed since; calibrate again"):
        load_intervals(run)
    with pytest.raises(ValueError, match="expected distances of the weights"):
        save_intervals(run, made.method, made.calibration)


def test_a_calibration_of_other_widths_is_refused(run, planes):
    made = calibrate_run(run, planes[4:], learn_from=planes[:4], alpha=0.25, delta=0.25, steps=2, device="cpu")
    other = copy.deepcopy(made.method)
    with torch.no_grad():
        other.widths.log_floor += 1e-3
    with pytest.raises(ValueError, match="expected the distances that were calibrated"):
        Intervals(other, made.calibration)
    with safe_open(run / FILE, framework="pt") as stored:
        notes = json.loads(stored.metadata()["medsr"])
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    weights["widths.log_floor"] += 1e-3
    (run / FILE).write_bytes(to_safetensors(weights, metadata={"medsr": json.dumps(notes)}))
    with pytest.raises(CheckpointError, match="the file is damaged"):
        load_intervals(run)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "found no file; make them with medsr calibrate"),
        (b"", "calibrate again"),
        (b"no safetensors at all", "calibrate again"),
        (to_safetensors({"a": torch.zeros(1)}), "found another content"),
        (to_safetensors({"a": torch.zeros(1)}, metadata={"medsr": '{"format": 99}'}), "written by a newer medsr"),
    ],
)
def test_what_is_no_calibration_is_refused(run, data, said):
    if data is not None:
        (run / FILE).write_bytes(data)
    with pytest.raises(CheckpointError, match=said):
        load_intervals(run)


def test_coverage_on_other_scans(run, planes):
    found = calibrate_run(run, planes[4:10], learn_from=planes[:4], alpha=0.25, delta=0.25, steps=20, device="cpu")
    seen = coverage(found, planes[10:], device="cpu")
    assert seen.scans == seen.groups == 4
    assert 0 <= seen.risk <= 1
    assert seen.bound(0.25) > seen.risk
    with pytest.raises(ValueError, match="have not seen"):
        coverage(found, planes[9:], device="cpu")


def test_smallest_number_of_the_tests():
    assert smallest_n(0.25, 0.25) == 5
