"""The figures of a page: what noise in the reference, correlated errors and missing spacings must not do to them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from scipy import ndimage

import medsr
from medsr.report.agreement import bland_altman_plot, quantities
from medsr.report.material import Material, material_of
from medsr.report.noise import noise_table
from medsr.report.sections import curves, number, profile, resolutions
from medsr.report.specks import speck_table
from medsr.trust import bland_altman

NOISE = 1000.0


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def scene(side: int = 640) -> np.ndarray:
    """Smooth tissue on a fine grid, values about 20,000 with a deviation of 3,000, and a darker half."""
    smooth = ndimage.gaussian_filter(noise(side, side, seed=1), 24.0, mode="wrap")
    fine = 20_000 + 2_500 * smooth / smooth.std()
    fine[:, : side // 2] -= 4_000
    return np.asarray(fine)


def halved(high: np.ndarray) -> np.ndarray:
    return np.asarray(high.reshape(high.shape[0] // 2, 2, high.shape[1] // 2, 2).mean((1, 3)))


def page_of(folder: Path, low: np.ndarray, spacing: float | None = None) -> Material:
    """A scan and its cubic result."""
    given = {} if spacing is None else {"metadata": {"axes": "YX", "PhysicalSizeX": spacing, "PhysicalSizeY": spacing}}
    name = "scan.tif" if spacing is None else "scan.ome.tif"
    tifffile.imwrite(folder / name, low.round().clip(0, 65535).astype(np.uint16), photometric="minisblack", **given)
    medsr.upscale_folder(folder / name, medsr.Cubic((2, 2)), out=folder / "out")
    return material_of(folder / "out" / "scan.ome.zarr", low=folder / name)


@pytest.fixture(scope="module")
def denoised(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A noisy scan whose estimate is the exact truth; no truth is given."""
    fine = scene()
    shown = page_of(tmp_path_factory.mktemp("denoised"), halved(fine) + NOISE * noise(320, 320, seed=2))
    return replace(shown, crops={**shown.crops, "estimate": fine.astype(np.float32)})


def rows_of(shown: Material) -> dict[str, list[str]]:
    return {row[0].split(" (")[0]: list(row) for row in quantities(shown).rows}


# ---------------------------------------------------------------- slopes


def test_removed_noise_is_not_lost_contrast(denoised: Material) -> None:
    """The scan's noise tilts least squares; the truth itself must come out at 1."""
    rows = rows_of(denoised)
    assert float(rows["all"][-1]) == pytest.approx(1, abs=0.02)
    assert {row[-1] for name, row in rows.items() if name != "all"} == {"–"}
    halfway = replace(denoised, crops={**denoised.crops, "estimate": 0.5 * denoised.crops["estimate"] + 5000})
    assert float(rows_of(halfway)["all"][-1]) == pytest.approx(0.5, abs=0.02)
    note = quantities(denoised).note
    assert "consistency only" in note
    assert "foreground and background" in note.lower()


def test_a_slope_of_noise_alone_is_not_said(denoised: Material) -> None:
    flat = 20_000 + NOISE * noise(*denoised.crops["measured"].shape, seed=3)
    fine = np.full(denoised.crops["estimate"].shape, 20_000.0) + noise(*denoised.crops["estimate"].shape, seed=4)
    drowned = {**denoised.crops, "measured": flat.astype(np.float32), "estimate": fine.astype(np.float32)}
    shown = replace(denoised, crops=drowned)
    assert rows_of(shown)["all"][-1] == "–"


# ---------------------------------------------------------------- Bland-Altman


def correlated(seed: int, *, bent: bool, side: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """Errors as wide as three samples with a mean of 0, of one spread or growing with the intensity; and the truth."""
    truth = 1000 * (1 + np.add.outer(np.sin(np.arange(side) / 9.0), np.cos(np.arange(side) / 7.0)) / 2)
    off = ndimage.gaussian_filter(noise(side, side, seed=seed), 3.0, mode="wrap") * 11
    return truth + off * (20 + (truth / 10 if bent else 0)), truth


def patchy(seed: int, side: int = 320) -> np.ndarray:
    """White errors whose spread wanders, and a weak offset that wanders with them, as the detail of a scan does."""
    spread, offset = (
        ndimage.gaussian_filter(noise(side, side, seed=3 * seed + i), 4.0, mode="wrap") * 14 for i in (0, 1)
    )
    return np.asarray(100 * noise(side, side, seed=3 * seed + 2) * np.exp(0.5 * spread) + 20 * offset)


def test_intervals_hold_for_errors_that_wander() -> None:
    """In most of 100 draws the intervals of bias and limits hold the values that all draws together have.

    They are 92, 85 and 89 (errors wander over 14 samples, nearly half a block); counting independent samples by the
    correlation of neighbors, which sees neither, held 54, 14 and 13.
    """
    found = [bland_altman(off, np.zeros_like(off)) for off in map(patchy, range(100))]
    for name in ("bias", "lower", "upper"):
        true = 0.0 if name == "bias" else float(np.mean([getattr(f, name)[0] for f in found]))
        held = sum(getattr(f, name)[1] <= true <= getattr(f, name)[2] for f in found)
        assert held >= 80, (name, held)
    assert found[0].blocks == 100
    assert found[0].bias == bland_altman(patchy(0), np.zeros((320, 320))).bias


def test_few_blocks_have_no_interval() -> None:
    few = bland_altman(*(v[:96, :96] for v in correlated(0, bent=True)))
    assert np.isfinite(few.bias[0])
    assert np.isnan([*few.bias[1:], *few.lower[1:], *few.upper[1:]]).all()
    assert few.blocks == 9


def test_limits_follow_the_intensity() -> None:
    found = bland_altman(*correlated(0, bent=True))
    assert len(found.fifths) == 5
    assert found.uneven
    assert found.fifths[0].inside > 0.99
    assert found.fifths[-1].inside < 0.9
    for fifth in found.fifths:
        assert fifth.limits[1] - fifth.limits[0] == pytest.approx(2 * 1.96 * fifth.deviation)
    assert found.inside == pytest.approx(np.mean([f.inside for f in found.fifths]), abs=1e-3)
    assert not bland_altman(*correlated(0, bent=False)).uneven


def test_points_come_from_all_columns_and_phases() -> None:
    y, x = np.mgrid[:384, :384].astype(np.float64)
    found = bland_altman(x, x)
    assert len(found.mean) == 20_000
    assert len(np.unique(found.mean)) == 384
    phase = bland_altman(2 * (y % 4) + 8 * (x % 4), np.zeros((384, 384))).difference
    assert np.bincount(phase.astype(int))[::2].min() > 20_000 / 16 * 0.85


def test_drawn_points_come_from_all_columns(denoised: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def draw(mean: np.ndarray, difference: np.ndarray, *given: object, **more: object) -> tuple[str, int]:
        seen.append(mean)
        return "data:", 0

    monkeypatch.setattr("medsr.report.agreement._drawn", draw)
    columns = np.broadcast_to(np.arange(384, dtype=np.float32), (384, 384))
    crops = {"estimate": columns, "truth": columns + noise(384, 384).astype(np.float32) * 1e-3}
    bland_altman_plot(replace(denoised, crops=crops))
    assert len(seen[0]) == 6_000
    assert len(np.unique(seen[0].round())) == 384
    bland_altman_plot(replace(denoised, crops=crops))
    assert np.array_equal(seen[0], seen[1])


def test_the_caption_says_what_lies_inside(denoised: Material) -> None:
    estimate, truth = correlated(0, bent=True)
    crops = {"estimate": estimate.astype(np.float32), "truth": truth.astype(np.float32)}
    figure, _ = bland_altman_plot(replace(denoised, crops=crops))
    assert figure is not None
    found = bland_altman(crops["estimate"].astype(float), crops["truth"].astype(float))
    assert f"{100 * found.inside:.1f} % of the samples lie inside" in figure.caption
    assert "fifths" in figure.caption
    assert f"95 % intervals from {found.blocks} blocks" in figure.caption
    few, _ = bland_altman_plot(replace(denoised, crops={n: p[:96, :96] for n, p in crops.items()}))
    assert few is not None
    assert "No intervals: 9 blocks" in few.caption
    plain, _ = bland_altman_plot(denoised)
    assert plain is not None
    assert "fifths" not in plain.caption
    assert "removed noise" in plain.caption
    assert "0 where contrasts are kept" not in plain.caption


# ---------------------------------------------------------------- resolution, profile, digits


def test_resolutions_without_spacing_are_in_fine_samples(tmp_path: Path) -> None:
    low = halved(halved(scene() + 4000 * ndimage.gaussian_filter(noise(640, 640, seed=5), 2.0)))
    blind, known = tmp_path / "blind", tmp_path / "known"
    blind.mkdir()
    known.mkdir()
    without, with_spacing = (resolutions(page_of(f, low, s)) for f, s in ((blind, None), (known, 2.0)))
    assert without.rows[0][:3] == ["sampling limit, along yx", "4 fine samples", "2 fine samples"]
    assert with_spacing.rows[0][:3] == ["sampling limit, along yx", "4 µm", "2 µm"]
    # A fine sample of the second is 1 um wide: the figures are the same, before and after.
    for one, two in zip(without.rows, with_spacing.rows, strict=True):
        assert [cell.replace("fine samples", "µm") for cell in one] == [*one[:1], *two[1:]]
    assert "all periods are in fine samples" in without.note
    assert "fine samples" not in with_spacing.note


def test_one_resolution_is_said_once(denoised: Material) -> None:
    """Table and caption give one value of one region, in two digits."""
    fine = scene() + 200 * noise(640, 640, seed=6)
    truth = medsr.Scan(fine.astype(np.uint16), denoised.estimate.grid, denoised.estimate.intensity)
    shown = replace(denoised, truth=truth, crops={**denoised.crops, "truth": fine.astype(np.float32)})
    (row,) = [row for row in resolutions(shown).rows if row[0].startswith("FRC with the truth")]
    caption = dict(curves(shown))["Ring correlation with the truth"].caption
    assert f"cubic: {row[1]}; estimate: {row[2]}." in caption
    assert "region" in row[0]


def test_the_profile_says_what_was_measured(denoised: Material) -> None:
    caption = profile(denoised).caption
    assert "only the mean over a step was measured" in caption
    assert "contradicted" not in caption


def test_numbers_have_no_exponents() -> None:
    assert [number(v, 2) for v in (423.4, 99.6, 0.0123, -1234.5, 12345.6)] == [
        "423",
        "100",
        "0.012",
        "−1,234",
        "12,346",
    ]
    assert number(1.234e-6) == "1.23 × 10⁻⁶"
    assert number(0.0) == "0"


def test_bands_are_written_like_other_numbers(denoised: Material) -> None:
    bands = [row[0] for row in quantities(denoised).rows if row[0].startswith("band")]
    assert bands
    assert all("," in band and "e+" not in band for band in bands), bands


# ---------------------------------------------------------------- specks


def film(folder: Path, modality: str = "MG") -> Material:
    """A part of the shipped mammogram with five planted specks, doubled."""
    dataset = pydicom.dcmread(medsr.MAMMOGRAM)
    cut = np.ascontiguousarray(dataset.pixel_array[700:956, 100:420]).astype(np.int64)
    y, x = np.mgrid[: cut.shape[0], : cut.shape[1]]
    for row, column in ((40, 60), (100, 200), (150, 90), (200, 260), (60, 280)):
        cut += (15_000 * np.exp(-(np.hypot(y - row, x - column) ** 2) / 2)).astype(np.int64)
    dataset.Rows, dataset.Columns = cut.shape
    dataset.PixelData = cut.clip(0, 65535).astype(np.uint16).tobytes()
    dataset.Modality = modality
    dataset.ImagerPixelSpacing = [0.05, 0.05]
    dataset.save_as(folder / "film.dcm")
    medsr.upscale_folder(folder / "film.dcm", medsr.Cubic((2, 2)), out=folder / "out")
    return material_of(folder / "out" / "film.ome.zarr", low=folder / "film.dcm")


def parts(cell: str) -> list[float]:
    return [float(part.replace(",", "")) for part in cell.split(" | ")]


def test_a_blurred_peak_is_seen(tmp_path: Path) -> None:
    """The mean within the radius hardly moves, peak and width do."""
    shown = film(tmp_path)
    line = shown.estimate.intensity
    blurred = ndimage.gaussian_filter(shown.estimate.read().astype(float), 1.5).round().astype(line.dtype)
    table = speck_table(replace(shown, estimate=medsr.Scan(blurred, shown.estimate.grid, line)))
    assert table is not None
    assert table.head[5:] == ("peak: cubic | estimate", "width, µm: cubic | estimate")
    for row in table.rows[:5]:
        assert int(row[4].split()[0]) >= 80
        cubic, estimate = parts(row[5])
        assert estimate < 0.85 * cubic
        before, after = parts(row[6])
        assert before == pytest.approx(2.355 * 50, rel=0.15)  # a Gaussian of one coarse sample
        # In quadrature with one and a half fine samples of 25 um.
        assert after == pytest.approx(2.355 * np.hypot(50, 37.5), rel=0.15)
    assert "does not see a peak that is blurred" in table.note


def test_specks_in_flagged_regions_are_marked(tmp_path: Path) -> None:
    shown = film(tmp_path)
    assert shown.low is not None
    stored = shown.estimate.read().copy()
    stored[2 * 40 - 6 : 2 * 40 + 8, 2 * 60 - 6 : 2 * 60 + 8] -= 9_000
    spoilt = replace(shown, estimate=medsr.Scan(stored, shown.estimate.grid, shown.estimate.intensity))
    found = medsr.consistency_map(shown.low, spoilt.estimate)
    table = speck_table(spoilt, found=found)
    assert table is not None
    assert table.head[-1] == "consistency"
    marks = {row[0]: row[-1] for row in table.rows}
    assert marks["y 2.025, x 3.025 mm"].startswith("contradicts: −")
    assert "agrees" in marks.values()
    plain = speck_table(spoilt)
    assert plain is not None
    assert plain.head[-1] != "consistency"


def test_the_modality_says_what_a_radiograph_is(tmp_path: Path) -> None:
    assert speck_table(film(tmp_path, modality="OP")) is None


def test_a_plane_too_large_to_search_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsr.report.specks.SEARCHED", 100)
    table = speck_table(film(tmp_path))
    assert table is not None
    assert "in the enlarged region (the plane is too large to be searched whole)" in table.note


# ---------------------------------------------------------------- noise


def test_noise_is_counted_in_regions_that_do_not_overlap(tmp_path: Path) -> None:
    """The stated precision holds the figures of other draws of the same noise."""
    found = []
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        table = noise_table(page_of(folder, 2000 + 30 * noise(160, 160, seed=seed)))
        said = re.search(r"in (\d+) regions that do not overlap.* within ± (\d+) %", table.note)
        assert said is not None, table.note
        assert 12 <= int(said[1]) <= 25
        assert 1 <= int(said[2]) <= 15
        found.append(([float(row[2]) for row in table.rows], int(said[2])))
    first = np.array([rows for rows, _ in found])
    assert (np.ptp(first, axis=0) / first.mean(0)).max() < 2 * max(w for _, w in found) / 100


def test_few_quiet_regions_are_too_few(tmp_path: Path) -> None:
    """Nine of half overlapping ones hold what four hold."""
    assert "Fewer than 8 regions" in noise_table(page_of(tmp_path, 2000 + 30 * noise(80, 80))).reason
