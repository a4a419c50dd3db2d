"""Real registered pairs: what is matched, refused, cropped and learned from; on planes of the shipped stack."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from medsr.checkpoint import load_checkpoint
from medsr.data import NUCLEI
from medsr.io import read_scan
from medsr.methods import Cubic
from medsr.paired_evaluation import evaluate_pairs
from medsr.pairing import aligned, find_pairs, gray_line, gray_points
from medsr.recipe import Recipe
from medsr.registration import register
from medsr.scan import Grid, Intensity, Scan, ScanError, robust_intensity
from medsr.training import TrainingError, train
from medsr.training.data import PatchDataset, Shelf, patch_transforms
from medsr.training.survey import blank_card, split_scans
from medsr.training.validation import held_out_crops
from tests.test_training import PixelPhase, PowerCutError, at_step, cut_power, same, weights

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dev" / "micro"
SECRET = "JANE_DOE_1961"
MARGIN = 12


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks: one thread adds up in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plane(number: int = 12) -> np.ndarray:
    return np.asarray(tifffile.imread(NUCLEI)[number], np.float64) / 100


def means(fine: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    split = [part for n, f in zip(fine.shape, factor, strict=True) for part in (n // f, f)]
    return fine.reshape(split).mean(axis=tuple(range(1, 2 * len(factor), 2)))


def measured(image: np.ndarray, factor: tuple[int, int] = (2, 2), *, shift: tuple[int, int] = (0, 0), seed: int = 0):
    """A coarse and a fine acquisition of a field: the coarse one of fewer photons and shifted by fine samples."""
    inner = [slice(MARGIN, (n - 2 * MARGIN) // 8 * 8 + MARGIN) for n in image.shape]
    moved = [slice(s.start + d, s.stop + d) for s, d in zip(inner, shift, strict=True)]
    counts = np.random.default_rng(seed).poisson(means(image[tuple(moved)], factor))
    return counts.astype(np.uint16), np.round(image[tuple(inner)]).astype(np.uint16)


def scan_of(stored: np.ndarray, spacing: float | None = 0.26) -> Scan:
    axes = ("z", "y", "x")[-stored.ndim :]
    return Scan(
        stored,
        Grid(axes, None if spacing is None else (spacing,) * stored.ndim),
        robust_intensity(stored, stored.dtype),
    )


def write(folder: Path, name: str, low: np.ndarray, high: np.ndarray) -> None:
    for side, stored in (("low", low), ("high", high)):
        (folder / side / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / side / f"{name}.tif", stored)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs of a patient whose name is in the files' names; the second is shifted."""
    for number, shift in enumerate(((0, 0), (3, -5), (0, 0), (-2, 4))):
        write(tmp_path / "pairs", f"{SECRET}_{number}", *measured(plane(8 + 4 * number), shift=shift, seed=number))
    return tmp_path / "pairs"


def recipe_of(folder: Path, out: Path, **parts: Any) -> Recipe:
    plain: dict[str, Any] = {
        "method": {"kind": "srresnet", "factor": (2, 2), "features": 4, "blocks": 1, "head_kernel": 3,
                   "tail_kernel": 3},
        "data": {"pairs": folder, "patch": (32, 32), "validation": 0.25, "validation_crops": 2, "foreground": 0.1},
        "training": {"pixel_steps": 6, "batch": 2, "ema": 0.9, "validate_every_steps": 3, "device": "cpu"},
        "seed": 3, "out": out,
    }  # fmt: skip
    for name, changes in parts.items():
        plain[name] = {**plain.get(name, {}), **changes}
    return Recipe.model_validate(plain)


# how two scans lie on each other


@pytest.mark.parametrize("factor", [(2, 2), (4, 4)])
@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (7, 2), (-9, 4)])
def test_a_shift_of_fine_samples_is_found_and_cropped(factor: tuple[int, int], shift: tuple[int, int]) -> None:
    low, high = (scan_of(side, None) for side in measured(plane(), factor, shift=shift))
    found = register(low, high, factor)
    assert tuple(b - a * f for a, b, f in zip(found.low_start, found.high_start, factor, strict=True)) == shift
    assert found.shift == pytest.approx([-s / f for s, f in zip(shift, factor, strict=True)], abs=0.1)
    assert max(map(abs, found.residual)) <= 0.1
    assert found.correlation > 0.95
    assert found.quarters >= 2
    coarse, fine = aligned(low, high, found, factor)
    assert fine.shape == tuple(n * f for n, f in zip(coarse.shape, factor, strict=True))
    assert min(coarse.shape) >= min(low.shape) - 5
    # the same sample of the field: what the area mean of the fine one is, up to the noise of photons
    truth, noisy = means(fine.read().astype(float), factor), coarse.read().astype(float)
    z = (noisy - truth) / np.sqrt(np.maximum(truth, 1))
    assert 0.8 < z.std() < 1.2


def test_a_field_in_3d_and_a_stack_of_planes() -> None:
    stack = np.asarray(tifffile.imread(NUCLEI), np.float64)[:24, 40:200, 40:200] / 100
    random = np.random.default_rng(1)
    low = random.poisson(means(stack[2:22, 6:134, 4:132], (1, 2, 2))).astype(np.uint16)
    high = stack[0:20, 4:132, 4:132].round().astype(np.uint16)
    deep = register(scan_of(low, None), scan_of(high, None), (1, 2, 2))
    assert (deep.low_start, deep.high_start) == ((0, 0, 0), (2, 2, 0))
    low = random.poisson(means(stack[:, 6:134, 4:132], (1, 2, 2))).astype(np.uint16)
    flat = register(scan_of(low, None), scan_of(stack[:, 4:132, 4:132].round().astype(np.uint16), None), (2, 2))
    assert flat.high_start == (0, 2, 0)
    assert len(flat.residual) == 3


@pytest.mark.parametrize("angle", [0.0, 0.1, 2.0])
def test_a_turned_field_is_refused(angle: float) -> None:
    image = plane()
    turned = ndimage.rotate(image, angle, reshape=False, mode="nearest")
    low, high = measured(turned)[0], measured(image)[1]
    if angle < 1:
        assert register(scan_of(low, None), scan_of(high, None), (2, 2)).quarters >= 2
        return
    with pytest.raises(ScanError, match="turned, scaled or bent"):
        register(scan_of(low, None), scan_of(high, None), (2, 2))


def test_a_scaled_field_is_refused() -> None:
    image = plane()
    wider = ndimage.affine_transform(image, np.eye(2) * 0.97, offset=np.array(image.shape) * 0.015, mode="nearest")
    with pytest.raises(ScanError, match="turned, scaled or bent"):
        register(scan_of(measured(wider)[0], None), scan_of(measured(image)[1], None), (2, 2))


def test_what_is_no_pair_is_refused_with_the_reason() -> None:
    low, high = measured(plane())
    other = measured(plane(24)[::-1])[0]
    with pytest.raises(ScanError, match="expected the coarse and the fine scan to show the same, found a correlation"):
        register(scan_of(other, None), scan_of(high, None), (2, 2))
    with pytest.raises(ScanError, match=r"expected 348 samples along y in high for 116 in low and a factor of 3"):
        register(scan_of(low, None), scan_of(high, None), (3, 3))
    with pytest.raises(ScanError, match=r"expected a spacing along y in low 2 times that in high"):
        register(scan_of(low, 0.27), scan_of(high, 0.13), (2, 2))
    register(scan_of(low, 0.261), scan_of(high, 0.13), (2, 2))
    with pytest.raises(ScanError, match="expected the same axes"):
        register(scan_of(low[None], None), scan_of(high, None), (2, 2))
    wide = np.roll(plane(), 100, 0)
    with pytest.raises(ScanError, match="correlation|expected a shift of at most"):
        register(scan_of(measured(wide)[0], None), scan_of(high, None), (2, 2))
    empty = np.full(low.shape, 7, np.uint16)
    with pytest.raises(ScanError, match="correlation of 0.00"):
        register(scan_of(empty, None), scan_of(high, None), (2, 2))


def test_a_fine_scan_a_little_larger_is_cropped() -> None:
    low, high = measured(plane())
    found = register(scan_of(low, None), scan_of(np.pad(high, ((0, 1), (0, 1)), mode="edge"), None), (2, 2))
    assert found.shape == low.shape


def test_a_part_of_a_sample_is_refused_or_resampled() -> None:
    """Along an axis that is not refined whole fine samples are coarse ones: up to half of one is left."""
    image = plane()
    moved = ndimage.shift(image, (0.4, 0.0), order=3, mode="nearest")
    inner = (slice(16, 240), slice(16, 240))
    random = np.random.default_rng(0)
    low = scan_of(random.poisson(means(moved[inner], (1, 2))).astype(np.uint16), None)
    high = scan_of(image[inner].round().astype(np.uint16), None)
    with pytest.raises(ScanError, match=r"at most 0.25 coarse samples .* found 0\.(39|4\d)"):
        register(low, high, (1, 2))
    found = register(low, high, (1, 2), rule="resample")
    assert found.residual[0] == pytest.approx(0.4, abs=0.06)
    coarse, fine = aligned(low, high, found, (1, 2))
    assert coarse.intensity.dtype == np.float32
    assert "resampled" in coarse.history[-1]
    again = register(coarse, fine, (1, 2))
    assert max(map(abs, again.residual)) <= 0.06
    holes = Scan(np.where(np.arange(224)[:, None] == 3, np.nan, low.read()).astype(np.float32), low.grid,
                 Intensity(0, 100, np.dtype(np.float32)))  # fmt: skip
    with pytest.raises(ScanError, match="expected no holes"):
        aligned(holes, high, found, (1, 2))


def test_holes_do_not_move_anything() -> None:
    low, high = (side.astype(np.float32) for side in measured(plane(), shift=(2, 0)))
    low[20:30, 40:60] = np.nan
    high[:8, :50] = np.nan
    found = register(scan_of(low, None), scan_of(high, None), (2, 2))
    assert found.high_start == (2, 0)


# gray values


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (8.0, -300.0), (0.2, 40.0)])
def test_one_line_of_gray_values_is_found_under_noise(gain: float, offset: float) -> None:
    points = []
    for number in (8, 12, 16):
        low, high = measured(plane(number), seed=number)
        blurred = ndimage.gaussian_filter(low.astype(np.float32), 0.8)  # another sharpness bends nothing
        points.append(
            gray_points(scan_of(blurred, None), scan_of(gain * high.astype(np.float32) + offset, None), (2, 2))
        )
    found = gray_line(points)
    assert found[0] == pytest.approx(gain, rel=0.02)
    assert found[1] == pytest.approx(offset, abs=0.02 * gain * plane().max())
    with pytest.raises(ScanError, match="one of the two is inverted"):
        gray_line([p * [[1], [-1]] for p in points])
    with pytest.raises(ScanError, match="values that vary"):
        gray_line([np.ones((2, 50))])


# the folder


def test_pairs_are_found_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    low, high = measured(plane())
    for name in ("a", "day1/a", "b"):
        write(tmp_path, name, low, high)
    tifffile.imwrite(tmp_path / "low" / "alone.tif", low)
    tifffile.imwrite(tmp_path / "high" / "lonely.tif", high)
    (tmp_path / "high" / "b.tif").rename(tmp_path / "high" / "b.ome.tif")
    tifffile.imwrite(tmp_path / "low" / "c.tif", low)
    tifffile.imwrite(tmp_path / "low" / "c.ome.tif", low)
    tifffile.imwrite(tmp_path / "high" / "c.tif", high)
    pairs = find_pairs(tmp_path)
    found = [(str(p.low.path.relative_to(tmp_path)), str(p.high.path.relative_to(tmp_path))) for p in pairs]
    assert sorted(found) == [
        ("low/a.tif", "high/a.tif"), ("low/b.tif", "high/b.ome.tif"), ("low/day1/a.tif", "high/day1/a.tif"),
    ]  # fmt: skip
    assert "without a partner: alone" in caplog.text
    assert "several files of one name: c" in caplog.text
    with pytest.raises(ScanError, match="found no low"):
        find_pairs(tmp_path / "high")


# training


def test_patches_of_both_sides_match(folder: Path) -> None:
    recipe = recipe_of(folder, Path("run"))
    shelf = Shelf(recipe)
    split = split_scans(recipe, shelf)
    assert (len(split.training), len(split.validation)) == (3, 1)
    dataset = PatchDataset(split.training, shelf, patch_transforms(recipe, [None]))
    lazy = PatchDataset(split.training, Shelf(recipe, budget=0), patch_transforms(recipe, [None]))
    seen = set()
    for draw in [(index, seed) for index in range(3) for seed in range(12)]:
        low, high = dataset[draw]
        assert (tuple(low.shape), tuple(high.shape)) == ((1, 16, 16), (1, 32, 32))
        both = np.corrcoef(low.numpy().ravel(), means(high[0].numpy(), (2, 2)).ravel())[0, 1]
        turned = np.corrcoef(low.numpy().ravel(), means(high[0].numpy()[::-1], (2, 2)).ravel())[0, 1]
        assert both > 0.5
        seen.add(both > turned)
        assert all(torch.equal(a, b) for a, b in zip((low, high), lazy[draw], strict=True))
    assert seen == {True}


def test_the_card_and_the_log_say_how_the_pairs_lay_and_name_none(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = ndimage.rotate(plane(10), 2, reshape=False, mode="nearest")
    write(folder, f"{SECRET}_turned", measured(turned)[0], measured(plane(10))[1])
    tifffile.imwrite(folder / "low" / f"{SECRET}_alone.tif", measured(plane())[0])
    run = train(recipe_of(folder, tmp_path / "run"))
    assert "turned, scaled or bent" in caplog.text
    assert "without a partner" in caplog.text
    card = load_checkpoint(run / "best.ckpt").card
    assert card.pairs["count"] == 4
    assert card.pairs["largest_shift"] == pytest.approx(2.5, abs=0.1)
    assert card.pairs["largest_residual"] < 0.1
    assert card.pairs["least_correlation"] > 0.9
    assert (card.pairs["gain"], card.pairs["offset"]) == (1, 0)
    assert len(card.inputs) == 6
    assert card.dtype == "uint16"
    assert card.validation["psnr_db"] > 0
    (row,) = [r for r in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if r.get("event") == "pairs"]
    assert len(row["shift"]) == len(row["correlation"]) == 4
    for path in run.rglob("*"):
        if path.is_file() and path.name != "recipe.yaml":
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("data", [{}, {"match_intensity": True, "registration": "resample"}])
def test_killed_and_resumed_equals_never_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> None:
    whole = train(recipe_of(folder, tmp_path / "whole", data=data))
    recipe = recipe_of(folder, tmp_path / "run", data=data, training={"loader_workers": 2})
    with monkeypatch.context() as patch:
        at_step(patch, PixelPhase, 4, cut_power)
        with pytest.raises(PowerCutError):
            train(recipe)
    torch.rand(7)
    moved = folder.rename(tmp_path / "moved")
    recipe = recipe_of(moved, tmp_path / "run", data=data, training={"loader_workers": 2})
    train(recipe, resume=True)
    assert same(weights(tmp_path / "run"), weights(whole))
    low = next((moved / "low").iterdir())
    tifffile.imwrite(low, tifffile.imread(low) + 1)
    again = recipe_of(moved, tmp_path / "again", data=data)
    (tmp_path / "again").mkdir()
    state = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    state["medsr"] |= {"over": False, "step": 3}
    torch.save(state, tmp_path / "again" / "resume.ckpt")
    with pytest.raises(TrainingError, match="1 that are new or changed"):
        train(again, resume=True)


@pytest.mark.parametrize("side", ["low", "high"])
def test_copies_of_either_side_stay_together_and_are_refused_in_the_other_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    """A field acquired once on one side and twice on the other."""
    low, high = measured(plane())
    again = measured(plane(), seed=9)[0], high + np.random.default_rng(9).poisson(3, high.shape).astype(np.uint16)
    twice = (low, again[1]) if side == "low" else (again[0], high)
    write(tmp_path / "pairs", "a", low, high)
    write(tmp_path / "pairs", "z", *twice)
    for number in (8, 20):
        write(tmp_path / "pairs", f"m{number}", *measured(plane(number), seed=number))
    for seed in range(6):
        recipe = recipe_of(tmp_path / "pairs", tmp_path / "run", data={"validation": 0.4})
        recipe = recipe.model_copy(update={"seed": seed})
        split = split_scans(recipe, Shelf(recipe))
        held = {portion.source.path.stem for portion in split.validation}
        assert ("a" in held) == ("z" in held)
        assert 0 < len(held) < 4
    write(tmp_path / "other", "y", *twice)
    (tmp_path / "pairs" / "low" / "z.tif").unlink()
    recipe = recipe_of(tmp_path / "pairs", tmp_path / "run", data={"validation_folder": tmp_path / "other"})
    with pytest.raises(TrainingError, match="that are copies of scans there"):
        split_scans(recipe, Shelf(recipe))


def test_other_gray_values_are_refused_or_matched(tmp_path: Path) -> None:
    for number in range(3):
        low, high = measured(plane(8 + 4 * number), seed=number)
        write(tmp_path, f"p{number}", low, (5 * high + 200).astype(np.uint16))
    with pytest.raises(TrainingError, match=r"found high = (5|4\.9\d*) \* low \+(19|20)\d.*match_intensity: true"):
        train(recipe_of(tmp_path, tmp_path / "run"))
    recipe = recipe_of(tmp_path, tmp_path / "run", data={"match_intensity": True})
    shelf = Shelf(recipe)
    split = split_scans(recipe, shelf)
    card = blank_card(split, recipe)
    assert card.pairs["gain"] == pytest.approx(5, rel=0.02)
    assert card.white[1] < 500  # what a network is given: values of low
    for crop in held_out_crops(split.validation, recipe, shelf):
        assert float(crop.low.mean()) == pytest.approx(float(crop.high.mean()), abs=0.02)


def test_of_one_pair_a_band_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, "only", *measured(plane(), shift=(3, -5)))
    recipe = recipe_of(tmp_path, tmp_path / "run")
    shelf = Shelf(recipe)
    split = split_scans(recipe, shelf)
    for portion in (*split.training, *split.validation):
        low, high = shelf.open(portion.low), shelf.open(portion)
        assert tuple(2 * n for n in low.shape) == high.shape
        coarse = means(high.read().astype(float), (2, 2))
        assert np.corrcoef(coarse.ravel(), low.read().ravel())[0, 1] > 0.8
    assert "one scan only" in split.note
    train(recipe)


def test_what_a_recipe_of_pairs_cannot_ask_for() -> None:
    with pytest.raises(ValueError, match="degradation: expected none with data.pairs"):
        recipe_of(Path("p"), Path("run"), degradation={"read_noise": (0, 0.1)})
    with pytest.raises(ValueError, match="found both"):
        recipe_of(Path("p"), Path("run"), data={"folder": Path("q")})
    with pytest.raises(ValueError, match="data.pairs: expected a folder"):
        recipe_of(Path("p"), Path("run"), data={"pairs": None, "match_intensity": True})


def test_a_folder_without_pairs_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="data.pairs: .*found no low"):
        train(recipe_of(tmp_path, tmp_path / "run"))
    with pytest.raises(TrainingError, match="check data.pairs"):
        train(recipe_of(tmp_path / "none", tmp_path / "run"))


def test_a_network_learns_from_pairs_what_they_hold(tmp_path: Path) -> None:
    """Measured pairs are noisy: a network that saw them is better than cubic on a held-out one."""
    for number in range(5):
        _, high = measured(plane(8 + 3 * number))
        few = np.random.default_rng(number).poisson(means(high / 40, (2, 2)))
        write(tmp_path / "pairs", f"p{number}", (40 * few).astype(np.uint16), high)
    steps = {"pixel_steps": 60, "batch": 8, "learning_rate": 4e-3, "validate_every_steps": 60}
    run = train(recipe_of(tmp_path / "pairs", tmp_path / "run", method={"features": 8}, training=steps))
    figures = load_checkpoint(run / "best.ckpt").card.validation
    assert figures["psnr_db"] > figures["psnr_db_cubic"] + 0.5


# evaluation


def test_pairs_are_evaluated_raw_and_with_the_best_line(folder: Path, tmp_path: Path) -> None:
    """Of a fine scan in other units the raw figure is bad, the fitted one that of the fine scan in the same units."""
    said: list[str] = []
    plain = evaluate_pairs(folder, Cubic((2, 2)), out=tmp_path / "out", note=said.append)
    assert plain.exit_code == 0
    assert [row["method"] for row in plain.rows] == ["cubic"] * 4
    assert (tmp_path / "out" / "scores.csv").read_text().splitlines()[0].startswith("scan,method,psnr_db")
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    for row in plain.rows:
        assert row["psnr_fitted_db"] >= row["psnr_db"] > 15
        assert row["fitted_gain"] == pytest.approx(1, abs=0.1)
        assert row["consistency_db"] is None
    assert max(row["shift_samples"] for row in plain.rows) == pytest.approx(2.5, abs=0.1)
    for path in (folder / "high").iterdir():
        tifffile.imwrite(path, (4 * tifffile.imread(path) + 100).astype(np.uint16))
    other = evaluate_pairs(folder, Cubic((2, 2)), out=tmp_path / "other")
    known = evaluate_pairs(folder, Cubic((2, 2)), out=tmp_path / "known", line=(4.0, 100.0))
    for row, four, right in zip(plain.rows, other.rows, known.rows, strict=True):
        assert four["psnr_db"] < 15
        assert four["psnr_fitted_db"] == pytest.approx(row["psnr_fitted_db"], abs=0.01)
        assert right["psnr_db"] == pytest.approx(row["psnr_db"], abs=0.01)
        assert four["fitted_gain"] == pytest.approx(4 * row["fitted_gain"], rel=0.01)


def test_a_bad_pair_stops_nothing_and_a_learned_one_is_said(folder: Path, tmp_path: Path) -> None:
    from medsr.io import find_scans
    from medsr.io.digest import input_digest

    first = sorted((folder / "low").iterdir())[0]
    tifffile.imwrite(first, plane(24)[::-1][:116, :116].astype(np.uint16))
    learned = {input_digest(find_scans(folder / "high")[1])}
    said: list[str] = []
    report = evaluate_pairs(folder, Cubic((2, 2)), out=tmp_path / "out", trained_on=learned, note=said.append)
    assert len(report.rows) == 3
    assert len(report.failed) == 1
    assert sum("has learned from this pair" in line for line in said) == 1
    assert (tmp_path / "out" / "failed.csv").exists()


def test_the_best_line_is_the_best() -> None:
    from medsr.paired_evaluation import Moments

    random = np.random.default_rng(0)
    truth = random.normal(900, 30, 500)
    estimate = (truth + random.normal(0, 10, 500) - 50) / 7
    gain, offset, left = (Moments.of(estimate[:200], truth[:200], about=400.0)
                          + Moments.of(estimate[200:], truth[200:], about=400.0)).fit()  # fmt: skip
    slope, intercept = np.polyfit(estimate - 400, truth - 400, 1)
    assert (gain, offset) == pytest.approx((slope, intercept))
    assert left == pytest.approx(np.mean((slope * (estimate - 400) + intercept - (truth - 400)) ** 2))


def test_a_confocal_and_widefield_pair_of_the_same_nuclei(tmp_path: Path) -> None:
    """A real pair: the widefield plane with binned pixels, and the confocal one; they are some samples apart."""
    path = SHARED / "neubias_16bit" / "xyzc_16bit__dna_conf_wf.tif"
    if not path.exists():
        pytest.skip("the development data are not here")
    confocal, widefield = read_scan(path).read()[:, 20, :128, :132].astype(np.float64)
    low = scan_of(means(widefield, (2, 2)).astype(np.float32), None)
    high = scan_of(confocal.astype(np.float32), None)
    found = register(low, high, (2, 2))
    assert found.high_start[1] - 2 * found.low_start[1] == -4
    assert found.correlation > 0.9
    coarse, fine = aligned(low, high, found, (2, 2))
    gain, offset = gray_line([gray_points(coarse, fine, (2, 2))])
    assert gain > 2
    assert offset < 0
