"""Maps that need no truth: null-space bands obey their algebra, and each map shows what it says and nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import medsr
from medsr import Cubic, Degradation, Scan
from medsr.checkpoint import CheckpointError, TrainingCard, load_checkpoint, save_checkpoint
from medsr.methods.consistent import Consistent
from medsr.methods.projection import projection
from medsr.recipe import DataRecipe, FastRecipe, Recipe
from medsr.trust.intervals import Intervals, calibrate_run
from medsr.trust.invention import Suspicion, find_parent, parent_of, suspicions
from medsr.trust.nullspace import NullSpace
from medsr.trust.roc import roc_area
from tests.methods_asked import real_scan

BLURRED = medsr.Gaussian(fwhm_samples=1.2)
DEGRADATIONS = {
    "area 2x2": Degradation((2, 2)),
    "area 4x4 blurred": Degradation((4, 4), kernel=BLURRED),
    "area 3x2 blurred": Degradation((3, 2), kernel=BLURRED),
    "point 2x2 blurred": Degradation((2, 2), kernel=BLURRED, sampling="point"),
    "area 2x2x2 blurred": Degradation((2, 2, 2), kernel=BLURRED),
    "area 4x1x1": Degradation((4, 1, 1)),
    "turned 2x2": Degradation((2, 2), kernel=medsr.Gaussian(fwhm_samples=(1.2, 2.0), angle_deg=30.0)),
}
EXACT = [name for name in DEGRADATIONS if name != "turned 2x2"]
"""Those without a ridge; a kernel that does not separate is inverted by steps that leave a thousandth."""


@pytest.fixture(params=DEGRADATIONS)
def space(request: pytest.FixtureRequest) -> NullSpace:
    return NullSpace(DEGRADATIONS[request.param])


def fine_for(space: NullSpace) -> np.ndarray:
    """Real samples whose size is a multiple of the factor."""
    whole = real_scan()[0, 0].double().numpy()
    if len(space.factor) == 2:
        whole = whole[14]
    sizes = (24, 48, 60)[-len(space.factor) :]
    return np.ascontiguousarray(whole[tuple(slice(40 if s > 24 else 2, (40 if s > 24 else 2) + s) for s in sizes)])


def degraded(space: NullSpace, fine: np.ndarray) -> np.ndarray:
    return np.asarray(space.degradation.mean(torch.from_numpy(fine)[None, None])[0, 0].numpy())


def is_exact(space: NullSpace) -> bool:
    """Whether A A^T is well conditioned, so that no ridge was laid on it."""
    return not any(projection(space.degradation).ridge)


# ---------------------------------------------------------------- the null space


def test_no_measurement_sees_it(space: NullSpace) -> None:
    fine = fine_for(space)
    part = space.part(fine)
    assert np.abs(part).max() > 0.01
    assert np.abs(degraded(space, part)).max() < (1e-10 if is_exact(space) else 0.05 * np.abs(part).max())


def test_what_is_left_of_it_is_itself(space: NullSpace) -> None:
    part = space.part(fine_for(space))
    assert np.abs(space.part(part) - part).max() < (1e-9 if is_exact(space) else 0.2 * np.abs(part).max())


def test_bands_add_up(space: NullSpace) -> None:
    part = space.part(fine_for(space))
    bands = space.split(part)
    assert len(bands) == len(space.bands) >= 2
    assert np.abs(bands.sum(0) - part).max() < 1e-12
    assert [b.longest for b in space.bands[:-1]] == [b.shortest for b in space.bands[1:]]


def test_a_flat_field_and_a_slope_have_none(space: NullSpace) -> None:
    fine = fine_for(space)
    assert space.energies(np.full_like(fine, 0.7)).max() < 1e-6
    inner = tuple(slice(h * f, n - h * f) for h, f, n in zip(space.halo, space.factor, fine.shape, strict=True))
    if all(s.start < s.stop for s in inner):
        slope = np.broadcast_to(np.linspace(0, 1, fine.shape[-1]), fine.shape)
        assert np.abs(space.part(slope)[inner]).max() < 1e-6


def test_a_smooth_scan_with_the_same_measurement_has_none(space: NullSpace) -> None:
    low = torch.from_numpy(degraded(space, fine_for(space)))[None, None]
    smooth = Consistent(Cubic(space.factor), space.degradation, noise=0.0)(low)[0, 0].numpy()
    cubic = Cubic(space.factor)(low)[0, 0].numpy()
    scene = np.sqrt(np.mean(space.part(fine_for(space)) ** 2))
    assert np.sqrt(np.mean(space.part(smooth) ** 2)) < (1e-9 if is_exact(space) else 0.2 * scene)
    assert np.sqrt(np.mean(space.part(cubic) ** 2)) < 0.5 * scene


def test_offset_and_gain_pass_through(space: NullSpace) -> None:
    fine = fine_for(space)
    one, other = space.energies(fine), space.energies(3 * fine - 0.4)
    assert np.allclose(other, 3 * one, atol=1e-6)


def test_a_pattern_falls_into_the_band_of_its_period() -> None:
    space = NullSpace(Degradation((4, 4)))
    said = [str(band) for band in space.bands]
    assert said == [
        "band 1: periods of 0.5 to 1 coarse samples",
        "band 2: periods of 1 to 2 coarse samples",
        "band 3: periods above 2 coarse samples",
    ]
    x = np.arange(256)
    for period, band in ((0.55, 0), (1.4, 1), (4.0, 2)):
        wave = np.broadcast_to(np.sin(2 * np.pi * x / (4 * period)), (64, 256))
        strength = space.split(wave)[:, 16:-16, 32:-32].std((1, 2))
        assert int(strength.argmax()) == band
        assert strength[band] > 1.5 * np.sort(strength)[-2]
    board = np.broadcast_to((-1.0) ** x, (64, 256))  # no block mean sees it: all of it is there, in the finest band
    assert space.energies(board)[0, 16:-16, 32:-32] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", EXACT)
def test_the_halo_is_enough(name: str) -> None:
    space = NullSpace(DEGRADATIONS[name])
    whole = real_scan()[0, 0].double().numpy()
    fine = whole[:28, 30:190, 30:190] if len(space.factor) == 3 else whole[14, :240, :240]
    full = space.energies(fine)
    start = tuple(min(h, n // f // 2 - 1) for h, f, n in zip(space.halo, space.factor, fine.shape, strict=True))
    cut = tuple(slice((s - min(s, h)) * f, None) for s, h, f in zip(start, space.halo, space.factor, strict=True))
    part = space.energies(np.ascontiguousarray(fine[cut]))
    keep = tuple(slice(s * f, None) for s, f in zip(start, space.factor, strict=True))
    rest = tuple(slice(s * f - c.start, None) for s, c, f in zip(start, cut, space.factor, strict=True))
    assert np.abs(full[(slice(None), *keep)] - part[(slice(None), *rest)]).max() < 1e-6


# ---------------------------------------------------------------- the maps


def scans(factor: Sequence[int], *, reversed_line: bool = False) -> tuple[Scan, Scan]:
    """A coarse scan of the shipped stack and the truth it is of; two planes for a 2D factor."""
    scan = medsr.read_scan(medsr.NUCLEI)
    deep = len(factor) == 3
    stored = scan.read((slice(4, 28 if deep else 6), slice(40, 136), slice(30, 126)))
    line = scan.intensity
    if reversed_line:
        line = replace(line, black=line.white, white=line.black)
        stored = (line.black + line.white - stored).clip(0).astype(stored.dtype)
    fine = Scan(stored, scan.grid, line)
    unit = torch.from_numpy(line.to_unit(stored))
    low = Degradation(tuple(factor)).mean(unit).numpy()
    return Scan(line.to_stored(low), scan.grid.coarsen((1,) * (3 - len(factor)) + tuple(factor)), line), fine


def speckled(fine: Scan, places: Sequence[tuple[int, int]], plane: int = 1) -> Scan:
    """The scan with patterns that no 2 x 2 mean sees."""
    values = fine.read().astype(np.int64)
    board = 2500 * (-1) ** np.add.outer(np.arange(6), np.arange(6))
    for y, x in places:
        values[plane, y : y + 6, x : x + 6] += board
    return replace(fine, data=values.clip(0, np.iinfo(fine.intensity.dtype).max).astype(fine.intensity.dtype))


def named(found: Sequence[Suspicion], start: str) -> Suspicion:
    (one,) = [s for s in found if s.name.startswith(start)]
    return one


def test_names_units_and_grids() -> None:
    low, fine = scans((2, 2))
    found = suspicions(low, fine, parent=Cubic((2, 2)))
    assert [s.name for s in found] == [
        "departure from the parent",
        "detail beside the parent",
        "unseen detail",
        "null-space energy, band 1: periods of 1 to 2 coarse samples",
        "null-space energy, band 2: periods above 2 coarse samples",
        "departure from cubic",
    ]
    for one in found:
        assert one.scan.shape == fine.shape
        assert one.scan.grid == fine.grid
        share = "detail" in one.name
        assert one.scan.intensity.units == ("share of the local detail" if share else "sigma of the coarse noise")
        assert one.scan.read().min() >= 0
    assert "0.52 to 1.04 um" in found[3].note
    assert "assumed: the mean" in found[3].note
    # the same upscaler under two names
    assert np.array_equal(found[0].scan.read(), found[-1].scan.read())


@pytest.mark.parametrize("factor", [(2, 2), (2, 2, 2), (4, 1, 1)])
def test_blocks_give_what_the_whole_gives(factor: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    low, fine = scans(factor)
    degradation = Degradation(factor, kernel=BLURRED)
    whole = [s.scan.read() for s in suspicions(low, fine, degradation=degradation, parent=Cubic(factor))]
    monkeypatch.setattr("medsr.trust.pair.WORK", 1 << 12)
    parts = suspicions(low, fine, degradation=degradation, parent=Cubic(factor))
    for one, other in zip(whole, parts, strict=True):
        block: Any = other.scan.data
        assert np.abs(other.scan.read() - one).max() < 1e-4 * max(1.0, float(one.max()))
        region = (slice(0, 2), slice(13, 40), slice(50, 51))
        assert np.array_equal(block[region], other.scan.read()[region])


def test_the_parent_departs_from_itself_nowhere() -> None:
    low, _ = scans((2, 2))
    made = medsr.upscale(low, medsr.Lanczos((2, 2)), device="cpu")
    found = suspicions(low, made, parent=medsr.Lanczos((2, 2)))
    assert named(found, "departure from the parent").scan.read().max() == 0
    assert named(found, "departure from cubic").scan.read().max() > 0


@pytest.mark.parametrize("reversed_line", [False, True])
def test_what_was_added_unseen_stands_out(reversed_line: bool) -> None:
    """Against the result without it; area of added places against places of real structure."""
    low, fine = scans((2, 2), reversed_line=reversed_line)
    smooth = medsr.upscale(low, Cubic((2, 2)), device="cpu")
    places = [(8, 10), (30, 60), (52, 22), (70, 70), (80, 40)]
    added = speckled(smooth, places)
    assert medsr.consistency_map(low, added).rms == pytest.approx(medsr.consistency_map(low, smooth).rms, abs=0.02)
    inside = np.zeros(fine.shape, bool)
    for y, x in places:
        inside[1, y : y + 6, x : x + 6] = True
    for one in suspicions(low, added, parent=Cubic((2, 2))):
        if "band 2" in one.name:
            continue  # a checkerboard has no long periods
        values = one.scan.read()
        assert roc_area(values[inside], values[~inside]).value > 0.95, one.name


def test_a_reversed_line_gives_the_same_maps() -> None:
    there = suspicions(*scans((2, 2)), parent=Cubic((2, 2)))
    back = suspicions(*scans((2, 2), reversed_line=True), parent=Cubic((2, 2)))
    for one, other in zip(there, back, strict=True):
        assert np.median(np.abs(one.scan.read() - other.scan.read())) < 0.03 * np.median(one.scan.read()) + 1e-3


def test_holes_stay_holes_and_blocks_agree_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    low, fine = scans((2, 2))
    line = replace(fine.intensity, padding=(0, 0))
    values, coarse = fine.read().clip(1), low.read().clip(1)
    values[1, 20:50, 30:60] = 0
    coarse[1, 10:25, 15:30] = 0
    coarse[0, 40, 40] = 0
    values[0, 80:82, 80:82] = 0
    low, fine = Scan(coarse, low.grid, line), Scan(values, fine.grid, line)
    whole = suspicions(low, fine, parent=Cubic((2, 2)))
    monkeypatch.setattr("medsr.trust.pair.WORK", 1 << 11)
    parts = suspicions(low, fine, parent=Cubic((2, 2)))
    for one, other in zip(whole, parts, strict=True):
        found = one.scan.read()
        assert np.array_equal(np.isnan(found), values == 0), one.name
        assert np.nanmax(np.abs(other.scan.read() - found)) < 1e-3 * np.nanmax(found), one.name
        around = found[1, 14:56, 24:66]
        assert np.nanmedian(around) < 4 * np.nanmedian(found), one.name  # no cliff at the hole


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    low, fine = scans((2, 2))

    class Counted:
        def __init__(self, values: np.ndarray) -> None:
            self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, 0

        def __getitem__(self, region: Any) -> np.ndarray:
            self.read += self.values[region].size
            return np.asarray(self.values[region])

    counted = Counted(fine.read())
    found = suspicions(low, replace(fine, data=counted), parent=Cubic((2, 2)))
    assert counted.read == 0
    named(found, "null-space energy, band 1").scan.read((slice(0, 1), slice(0, 8), slice(0, 8)))
    assert 0 < counted.read <= fine.read().size // 2  # one plane of two


def test_another_factor_is_refused() -> None:
    low, fine = scans((2, 2))
    with pytest.raises(ValueError, match="expected the factor"):
        suspicions(low, fine, parent=Cubic((4, 4)))
    with pytest.raises(ValueError, match="degradation: expected the factor"):
        suspicions(low, fine, degradation=Degradation((4, 4)))
    with pytest.raises(ValueError, match="whole multiple"):
        suspicions(fine, low)


# ---------------------------------------------------------------- parent and intervals

TINY = FastRecipe(factor=(2, 2), features=4, blocks=1)
CARD = TrainingCard(black=(0, 100), white=(2000, 4000), dtype="uint16")


def saved(path: Path, seed: int, card: TrainingCard = CARD) -> str:
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(
        path, TINY.build(), Recipe.model_validate({"method": TINY, "data": DataRecipe(patch=(32, 32))}), card
    )
    return load_checkpoint(path).sha256


def test_the_parent_of_a_run_is_found_by_its_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved(run / "best.ckpt", 1)
    found, why = find_parent(run)
    assert found is None
    assert "trained in one phase" in why
    sha256 = saved(run / "pixel.ckpt", 0)
    assert parent_of(run) is None  # the card names no parent
    saved(run / "best.ckpt", 1, CARD.model_copy(update={"parents": (sha256,)}))
    for given in (run, run / "best.ckpt"):
        parent = parent_of(given)
        assert parent is not None
        assert parent.weights_sha256 == sha256
    saved(run / "pixel.ckpt", 5)
    found, why = find_parent(run)
    assert found is None
    assert "other weights than those of the pixel.ckpt" in why
    (run / "pixel.ckpt").unlink()
    assert "is not beside it" in find_parent(run)[1]
    with pytest.raises(CheckpointError):
        parent_of(tmp_path / "none")


@pytest.fixture(scope="module")
def intervals(tmp_path_factory: pytest.TempPathFactory) -> Intervals:
    """Calibrated on planes of the shipped stack, for the plumbing alone: they are not exchangeable."""
    folder = tmp_path_factory.mktemp("calibrated")
    stack = tifffile.imread(medsr.NUCLEI)
    for number in range(12):
        tifffile.imwrite(folder / f"plane_{number:02d}.tif", stack[2 * number, 60:124, 60:124])
    saved(folder / "run" / "best.ckpt", 0)
    return calibrate_run(folder / "run", sorted(folder.glob("*.tif")), alpha=0.3, device="cpu")


def test_intervals_of_the_parent_and_of_another(intervals: Intervals) -> None:
    low, _ = scans((2, 2))
    parent = intervals.upscaler
    lower, upper = (medsr.upscale(low, end, device="cpu") for end in (intervals.lower, intervals.upper))
    line = low.intensity
    ends = [line.to_unit(end.read()).astype(float) for end in (lower, upper)]
    half = (ends[1] - ends[0]) / 2
    own = named(suspicions(low, upper, intervals=intervals), "half width of the interval")
    assert own.scan.intensity.units == "sigma of the coarse noise"
    shares = own.scan.read() / half
    assert shares.min() > 0
    assert "70 % of whole at confidence 90 %" in own.note
    wide = half > 3 / (line.white - line.black)  # elsewhere half a gray level is the least
    for at, estimate in ((1.0, upper), (1.0, lower)):
        found = named(suspicions(low, estimate, parent=parent, intervals=intervals), "departure from the parent's")
        assert found.scan.intensity.units == "half widths"
        assert np.allclose(found.scan.read()[wide], at, rtol=1e-3)
    outside = replace(upper, data=(upper.read().astype(np.int64) + 8000).clip(0, 60000).astype(line.dtype))
    found = named(suspicions(low, outside, parent=parent, intervals=intervals), "departure from the parent's")
    assert (found.scan.read()[upper.read() < 50000] > 1).all()
    # the intervals of one upscaler beside another parent are no intervals of that parent
    names = [s.name for s in suspicions(low, upper, parent=Cubic((2, 2)), intervals=intervals)]
    assert "half width of the interval" in names
