"""Pages with intervals, maps of suspected inventions, and figures that say whether the numbers survive."""

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image

import medsr
from medsr import Degradation
from medsr.checkpoint import TrainingCard, load_checkpoint, load_upscaler, save_checkpoint
from medsr.methods.widths import Widths
from medsr.recipe import DataRecipe, FastRecipe, Recipe
from medsr.report import Map, write_batch_report, write_report
from medsr.report.agreement import quantities
from medsr.report.figures import map_png
from medsr.report.intervals import inside, mean_width, width_map
from medsr.report.invention import DEEP, PARENT, SPACE, WHOLE, Parent, computed, found_maps, parent_for
from medsr.report.layers import label
from medsr.report.material import Material, material_of
from medsr.report.noise import noise_table
from medsr.report.specks import speck_table
from medsr.scan import Scan
from medsr.trust import Interval, LearnedWidths, bland_altman, suspicions
from tests.test_report import Checked, picture, read

TINY = FastRecipe(factor=(2, 2), features=4, blocks=1)
TERMS = {"words": "70 % of whole at confidence 90 %", "share": 0.7, "confidence": 0.9, "over": "whole", "groups": 12}


def saved(path: Path, seed: int, parents: tuple[str, ...] = ()) -> str:
    """A checkpoint that was trained by nobody, for the plumbing alone."""
    torch.manual_seed(seed)
    card = TrainingCard(black=(0, 100), white=(2000, 4000), dtype="uint16", parents=parents)
    recipe = Recipe.model_validate({"method": TINY, "data": DataRecipe(patch=(32, 32))})
    path.parent.mkdir(exist_ok=True, parents=True)
    save_checkpoint(path, TINY.build(), recipe, card)
    return load_checkpoint(path).sha256


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A truth, its coarse scan, a run with a parent, and a result with intervals."""
    root = tmp_path_factory.mktemp("trusted")
    scan = medsr.read_scan(medsr.NUCLEI)
    fine = scan.read((slice(12, 14), slice(0, 192), slice(32, 224)))
    line = scan.intensity
    low = line.to_stored(Degradation((2, 2)).mean(torch.from_numpy(line.to_unit(fine))[:, None])[:, 0].numpy())
    for name, values, spacing in (("truth", fine, 0.26), ("cells", low, 0.52)):
        tifffile.imwrite(
            root / f"{name}.ome.tif", values, photometric="minisblack",
            metadata={"axes": "ZYX", "PhysicalSizeX": spacing, "PhysicalSizeY": spacing, "PhysicalSizeZ": 0.29},
        )  # fmt: skip
    saved(root / "run" / "best.ckpt", 1, parents=(saved(root / "run" / "pixel.ckpt", 0),))
    torch.manual_seed(3)
    widths = Widths((2, 2))
    widths.set_floor(0.004)
    distances = LearnedWidths(load_upscaler(root / "run"), widths.eval())
    method = Interval(distances, scaling=1.7, promise=TERMS["words"], terms=TERMS)  # type: ignore[arg-type]
    assert medsr.upscale_folder(root / "cells.ome.tif", method, out=root / "results").exit_code == 0
    return root


def result(job: Path) -> Path:
    return job / "results" / "cells.ome.zarr"


@pytest.fixture(scope="module")
def whole(job: Path) -> Checked:
    """A page with everything."""
    made = write_report(
        result(job), out=job / "whole.html", low=job / "cells.ome.tif", truth=job / "truth.ome.tif",
        checkpoint=job / "run",
    )  # fmt: skip
    return read(made)


def layers(page: Checked) -> dict[str, Image.Image]:
    return {str(a["alt"]).split(":")[0]: picture(str(a["src"])) for a in page.all("img") if a.get("draggable")}


# ---------------------------------------------------------------- intervals


def test_intervals_are_found_in_the_result(job: Path, whole: Checked) -> None:
    for words in (
        "Interval, mean width", "70 % of whole at confidence 90 %", "Interval width",
        "at confidence 90 %, at least 70 % of the samples of the whole scan lie inside",
        "like those 12 of the calibration", "The area is the calibrated interval", "truth inside the interval",
    ):  # fmt: skip
        assert words in whole.text, words
    assert "No calibrated intervals" not in whole.text
    lower, upper = (medsr.read_scan(result(job) / side).read().astype(float) for side in ("lower", "upper"))
    shown = material_of(result(job), low=job / "cells.ome.tif")
    assert shown.ends is not None
    plane = shown.view.index[0]
    width = width_map(shown.ends, "")
    assert mean_width(width, shown.view) == pytest.approx((upper - lower)[plane].mean())
    assert f"{(upper - lower)[plane].mean():,.0f}" in whole.text
    assert np.array_equal(width.scan.read(), (upper - lower).astype(np.float32))
    truth = medsr.read_scan(job / "truth.ome.tif").read().astype(float)
    share = ((lower <= truth) & (truth <= upper))[plane].mean()
    assert shown.band is not None
    assert inside(shown.band, truth[plane].astype(np.float32)) == pytest.approx(share)
    assert f"{100 * share:.2f} %" in whole.text


def test_the_index_says_how_wide_intervals_are(job: Path, tmp_path: Path) -> None:
    index = read(write_batch_report(job / "results", out=tmp_path, low=job / "cells.ome.tif"))
    assert "interval, mean width in the plane" in index.text
    said = r"[\d,.]+ stored values"
    assert re.search(said, index.text)
    page = read(tmp_path / "cells.html")
    assert re.search(rf"Interval, mean width {said} mean over the shown plane; 70 % of whole", page.text)
    assert "largest" in str(next(a["alt"] for a in page.all("img") if str(a["alt"]).startswith("Map: interval width")))


def test_holes_and_falling_calibrations_have_widths_too(job: Path) -> None:
    shown = material_of(result(job)).ends
    assert shown is not None
    line = replace(shown.lower.intensity, slope=-2.0, intercept=5.0, units="HU", padding=(0, 0))
    ends = []
    for end, value in ((shown.lower, 100), (shown.upper, 130)):
        stored = np.full(end.shape, value, end.intensity.dtype)
        stored[..., :3] = 0
        ends.append(Scan(stored, end.grid, line))
    turned = replace(shown, lower=ends[0], upper=ends[1])
    width = width_map(turned, "HU").scan.read()
    assert np.isnan(width[..., :3]).all()
    assert (width[..., 3:] == 60).all()
    lower, upper = turned.planes(material_of(result(job)).view)
    assert np.nanmax(lower) < np.nanmin(upper)


def test_damaged_intervals_are_said(job: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cells.ome.zarr"
    shutil.copytree(result(job), copy)
    (copy / "upper" / "zarr.json").write_text("{")
    page = read(write_report(copy, out=tmp_path, low=job / "cells.ome.tif"))
    assert "calibrated intervals stand in it, but they cannot be read" in page.text
    assert "Interval, mean width" not in page.text
    assert str(tmp_path) not in page.text
    document = json.loads((result(job) / "zarr.json").read_text())
    shutil.copy(result(job) / "upper" / "zarr.json", copy / "upper" / "zarr.json")
    document["attributes"]["medsr"]["intervals"]["promise"] = "<b>mine</b>"
    (copy / "zarr.json").write_text(json.dumps(document))
    ends = material_of(copy).ends
    assert ends is not None
    assert "does not say what its intervals promise" in ends.promise


# ---------------------------------------------------------------- suspected inventions


def test_maps_of_inventions_are_found(job: Path, whole: Checked) -> None:
    assert f"{PARENT[:1].upper()}{PARENT[1:]}" in whole.text
    assert "1 detail it has nothing of" in whole.text
    assert "True detail finer than the measurement counts as much as invented detail" in whole.text
    assert list(layers(whole)) == [
        "Measured", "Cubic", "Estimate", "Truth", "Consistency", "Interval width", label(PARENT), label(SPACE),
    ]  # fmt: skip
    low, estimate = medsr.read_scan(job / "cells.ome.tif"), medsr.read_scan(result(job))
    line = replace(low.intensity, black=estimate.intensity.black, white=estimate.intensity.white)
    known = load_upscaler(job / "run").recipe.degradation
    found = suspicions(
        replace(low, intensity=line), estimate, degradation=known, parent=load_upscaler(job / "run" / "pixel.ckpt"),
        device="cpu",
    )  # fmt: skip
    plane = material_of(result(job), low=low).view.index[0]
    for title in (label(PARENT), label(SPACE)):
        (one,) = [each for each in found if each.name == title.lower()]
        values = one.scan.read()[plane]
        assert values.max() > 0
        expected = picture(map_png(values, 1.0, diverging=False))
        assert np.array_equal(np.asarray(layers(whole)[title].convert("RGB")), np.asarray(expected.convert("RGB")))


def test_maps_that_are_given_win(job: Path, tmp_path: Path) -> None:
    estimate = medsr.read_scan(result(job))
    flat = Scan(np.full(estimate.shape, 0.5, np.float32), estimate.grid, medsr.Intensity(0, 1, np.dtype(np.float32)))
    mine = {SPACE: Map(flat, note="Mine.", limit=1.0), "interval width": Map(flat, note="Mine too.")}
    page = read(write_report(result(job), out=tmp_path, low=job / "cells.ome.tif", maps=mine))
    assert "Mine." in page.text
    assert "Mine too." in page.text
    assert "Local root mean square" not in page.text
    assert "Upper less lower" not in page.text


def test_why_there_is_no_parent_is_said(job: Path, tmp_path: Path) -> None:
    shown = material_of(result(job), low=job / "cells.ome.tif")
    assert parent_for(shown, job / "run").upscaler is not None
    assert "The run was not given" in parent_for(shown, None).reason
    assert "No network" in parent_for(replace(shown, provenance=None), None).reason
    shutil.copy(job / "run" / "best.ckpt", tmp_path / "alone.ckpt")
    assert "pixel.ckpt is not beside it" in parent_for(shown, tmp_path / "alone.ckpt").reason
    saved(tmp_path / "other" / "best.ckpt", 7)
    page = read(write_report(result(job), out=tmp_path, low=job / "cells.ome.tif", checkpoint=tmp_path / "other"))
    assert "other weights than those that made this result" in page.text
    assert "The run that was given did not make this result." in page.text
    assert label(PARENT) not in layers(page)
    assert label(SPACE) in layers(page)
    assert str(tmp_path) not in page.text


def test_maps_that_cannot_be_computed_say_why(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError(f"{job}/cells.ome.tif: cut short")

    monkeypatch.setattr("medsr.trust.suspicions", refuse, raising=False)
    shown = material_of(result(job), low=job / "cells.ome.tif")
    maps, absent = found_maps(shown, parent_for(shown, job / "run"), None)
    assert maps == {}
    assert absent == dict.fromkeys((PARENT, SPACE), "Not computed: cut short.")
    _, absent = found_maps(shown, Parent(reason="none"), None)
    assert absent == {PARENT: "none", SPACE: "Not computed: cut short."}


def test_of_a_large_plane_the_region_alone_is_computed(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsr.report.view.CROP", 64)
    shown = material_of(result(job), low=job / "cells.ome.tif")
    region = shown.view.region(shown.view.rows, shown.view.columns, fine=True)
    maps, absent = found_maps(shown, Parent(reason="none"), None)
    assert absent == {PARENT: "none"}
    assert not maps[SPACE].region_only
    full = maps[SPACE].scan.read(region)
    monkeypatch.setattr("medsr.report.invention.WHOLE", 1000)
    maps, _ = found_maps(shown, Parent(reason="none"), None)
    assert maps[SPACE].region_only
    assert np.array_equal(maps[SPACE].scan.read(region), full)
    with pytest.raises(IndexError):  # it stands for its region only
        maps[SPACE].scan.read()
    page = read(write_report(result(job), out=tmp_path, low=job / "cells.ome.tif"))
    assert page.text.count("Of the enlarged region alone: the whole plane would take too long to compute.") == 1
    assert layers(page)[label(SPACE)].size == (64, 64)


def test_depth_that_is_computed_too_counts(job: Path) -> None:
    """A result finer in depth is computed in blocks: a plane of it costs what they hold."""
    low = medsr.read_scan(job / "cells.ome.tif")
    assert 2 * 128 * 128 < WHOLE < 160 * 256 * 256 * 4
    deep = Scan(np.zeros((160, 16, 16), np.uint16), low.grid, low.intensity)
    shown = material_of(result(job), low=low)
    view = replace(shown.view, factor=(2, 2, 2), size=(8, 8), index=(0, 0, 0))
    region = (slice(9, 10), slice(0, 16), slice(0, 16))
    assert computed(replace(shown, estimate=deep, view=view), region) == DEEP * 16 * 16
    flat = replace(view, factor=(1, 2, 2))
    assert computed(replace(shown, estimate=deep, view=flat), region) == 16 * 16


def test_the_page_with_everything_is_the_same_again_and_holds_no_path(
    job: Path, whole: Checked, tmp_path: Path
) -> None:
    given = {"low": job / "cells.ome.tif", "truth": job / "truth.ome.tif", "checkpoint": job / "run"}
    page = write_report(result(job), out=tmp_path / "again.html", **given)  # type: ignore[arg-type]
    assert whole.text
    assert page.read_bytes() == (job / "whole.html").read_bytes()
    text = page.read_text("utf-8")
    assert len(text) < 3e6
    drawn = " ".join(
        base64.b64decode(found).decode("utf-8") for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)
    )
    for words in (str(job), job.name, str(tmp_path)):
        assert words not in text
        assert words not in drawn


# ---------------------------------------------------------------- do the numbers survive


def alternative(whole: Checked, start: str) -> str:
    (one,) = [str(a["src"]) for a in whole.all("img") if str(a["alt"]).startswith(start)]
    return base64.b64decode(one.partition(",")[2]).decode("utf-8")


def test_the_bland_altman_plot_says_its_figures(job: Path, whole: Checked) -> None:
    shown = material_of(result(job), low=job / "cells.ome.tif", truth=job / "truth.ome.tif")
    found = bland_altman(shown.crops["estimate"].astype(float), shown.crops["truth"].astype(float))
    assert f"n = {found.samples:,} samples" in whole.text
    for value in (*found.bias, *found.lower, *found.upper):
        text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
        assert text.replace("-", "−") in whole.text, text
    assert "Estimate minus the truth" in whole.text
    svg = alternative(whole, "Bland-Altman plot of the estimate against the truth")
    assert svg.count("data:image/png") == 1  # points are a picture
    assert len(svg) < 400_000


def test_without_a_truth_block_means_meet_the_measured_scan(job: Path) -> None:
    page = read(write_report(result(job), out=job / "measured.html", low=job / "cells.ome.tif"))
    assert "Block means of the estimate minus the measured scan" in page.text
    alone = read(write_report(result(job), out=job / "alone.html"))
    assert "Neither a truth nor the measured scan was given to compare with." in alone.text
    assert "what it leaves open is not known" in alone.text


def test_slopes_stand_beside_the_bias(job: Path) -> None:
    shown = material_of(result(job), low=job / "cells.ome.tif", truth=job / "truth.ome.tif")
    halved = {**shown.crops, "estimate": (shown.crops["truth"] * 0.5).astype(np.float32)}
    table = quantities(replace(shown, crops=halved))
    assert table.head[-1] == "slope"
    assert {row[-1] for row in table.rows} == {"0.500"}
    known = {name: plane for name, plane in shown.crops.items() if name != "truth"}
    rows = {row[0].split(" ")[0]: row[-1] for row in quantities(replace(shown, crops=known)).rows}
    assert rows["band"] == "–"  # sorted by what is compared
    assert rows["all"] != "–"


# ---------------------------------------------------------------- specks and noise


def film(folder: Path, *, reversed_line: bool = False, spacing: float | None = None) -> Material:
    """A part of the shipped mammogram with five planted specks, doubled."""
    dataset = pydicom.dcmread(medsr.MAMMOGRAM)
    cut = np.ascontiguousarray(dataset.pixel_array[700:956, 100:420]).astype(np.int64)
    y, x = np.mgrid[: cut.shape[0], : cut.shape[1]]
    for row, column in ((40, 60), (100, 200), (150, 90), (200, 260), (60, 280)):
        cut[np.hypot(y - row, x - column) <= 2] += 9000
    if reversed_line:
        dataset.PhotometricInterpretation = "MONOCHROME1"
        cut = 65535 - cut
    cut = cut.clip(0, 65535).astype(np.uint16)
    dataset.Rows, dataset.Columns = cut.shape
    dataset.PixelData = cut.tobytes()
    if spacing is not None:
        dataset.ImagerPixelSpacing = [spacing, spacing]
    folder.mkdir()
    dataset.save_as(folder / "film.dcm")
    medsr.upscale_folder(folder / "film.dcm", medsr.Cubic((2, 2)), out=folder / "out")
    return material_of(folder / "out" / "film.ome.zarr", low=folder / "film.dcm")


def test_contrast_of_specks_before_and_after(tmp_path: Path) -> None:
    shown = film(tmp_path / "a")
    table = speck_table(shown)
    assert table is not None
    assert table.head[:5] == ("where", "measured", "cubic", "estimate", "kept")
    places = [row[0] for row in table.rows[:5]]
    # From the edge in fine samples: the center of coarse sample 40 lies at 81.
    assert sorted(places) == sorted(
        f"y {2 * r + 1}, x {2 * c + 1} samples" for r, c in ((40, 60), (100, 200), (150, 90), (200, 260), (60, 280))
    )
    for row in table.rows[:5]:
        measured, cubic, estimate = (float(cell.replace(",", "")) for cell in row[1:4])
        assert measured == pytest.approx(9000, rel=0.25)
        assert cubic == estimate  # it is the cubic one
        assert row[4] == f"{100 * estimate / measured:.0f} %"
    turned = speck_table(film(tmp_path / "b", reversed_line=True))
    assert turned is not None
    assert turned.rows[:5] == table.rows[:5]


def test_specks_are_looked_for_in_radiographs_only(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert speck_table(material_of(result(job), low=job / "cells.ome.tif")) is None
    shown = film(tmp_path / "a", spacing=0.05)
    assert shown.low is not None
    assert shown.low.grid.spacing_um == (50, 50)
    table = speck_table(shown)
    assert table is not None
    assert "y 2.025, x 3.025 mm" in [row[0] for row in table.rows]
    assert "about 200 µm" in table.note
    monkeypatch.setattr("medsr.report.specks.SEARCHED", 100)
    monkeypatch.setattr("medsr.trust.find_specks", lambda *a, **k: (), raising=False)
    none = speck_table(shown)
    assert none is not None
    assert "No speck stands out from its surroundings in the enlarged region" in none.reason


def test_noise_is_compared_where_there_is_noise_alone(tmp_path: Path, job: Path) -> None:
    random = np.random.default_rng(0)
    flat = random.normal(2000, 30, (160, 160)).round().astype(np.uint16)
    tifffile.imwrite(tmp_path / "flat.tif", flat)
    medsr.upscale_folder(tmp_path / "flat.tif", medsr.Cubic((2, 2)), out=tmp_path / "out")
    shown = material_of(tmp_path / "out" / "flat.ome.zarr", low=tmp_path / "flat.tif")
    table = noise_table(shown)
    assert table.head == ("cycles per sample", "cubic", "estimate")
    ends = [[float(end) for end in row[0].split(" to ")] for row in table.rows]
    assert ends == [pytest.approx([0, 0.125], abs=0.003), pytest.approx([0.125, 0.25], abs=0.003)]
    low, high = (float(row[2]) for row in table.rows)
    assert low == pytest.approx(0.95, abs=0.15)
    assert high < 0.8 * low  # cubic interpolation smooths
    structured = noise_table(material_of(result(job), low=job / "cells.ome.tif"))
    assert "hold noise alone" in structured.reason
    assert "no noise to compare with" in noise_table(material_of(result(job))).reason
