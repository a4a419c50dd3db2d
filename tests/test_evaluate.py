"""evaluate: known figures, the same path as upscale, one bad scan stops nothing; on real scans."""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from torch import Tensor

from medsr import evaluate as _verb
from medsr.data import MAMMOGRAM, NUCLEI, SURFACE
from medsr.degradation import Degradation, DegradationRange, PoissonGaussian
from medsr.evaluation import COLUMNS, EvaluationReport, evaluate
from medsr.io import find_all, read_scan
from medsr.io.digest import input_digest
from medsr.methods.interpolation import Cubic, Lanczos, Linear
from medsr.metrics import foreground_mask, frc_curve, frc_resolution, nrmse, psnr_db, ssim
from medsr.scan import Grid, Intensity, Scan, ScanError
from medsr.trial import Trial, survey_of
from medsr.upscaler import fingerprint
from medsr.upscaling import upscale
from medsr.version import __version__

FIXED = "scan,method,psnr_db,ssim,nrmse,frc_um,consistency_db"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small arrays: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def breast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the shipped mammogram with tissue and background."""
    path = tmp_path_factory.mktemp("breast") / "breast.tif"
    tifffile.imwrite(path, pydicom.dcmread(MAMMOGRAM).pixel_array[500:910, 900:1303])
    return path


def stack(path: Path, part: Any = np.s_[4:18, 60:156, 40:137], dtype: str = "uint16") -> Path:
    data = tifffile.imread(NUCLEI)[part].astype(dtype)
    meta = {"axes": "ZYX", "PhysicalSizeX": 0.26, "PhysicalSizeY": 0.26, "PhysicalSizeZ": 0.29}
    tifffile.imwrite(path, data, metadata=meta, ome=True)
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def by_method(report: EvaluationReport) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in report.rows}


def test_figures_are_those_of_degrading_upscaling_and_measuring_by_hand(breast: Path, tmp_path: Path) -> None:
    report = evaluate(breast, Lanczos((4, 4)), out=tmp_path)
    assert (report.exit_code, report.failed) == (0, ())
    assert [row["method"] for row in report.rows] == ["cubic", "lanczos"]
    scan = read_scan(breast)
    truth = scan.read()[:408, :400]
    mean = truth.reshape(102, 4, 100, 4).mean((1, 3))
    low = Scan(np.rint(mean).astype(np.uint16), scan.grid.coarsen((4, 4)), scan.intensity)
    data_range = scan.intensity.white - scan.intensity.black
    mask = foreground_mask(scan.intensity.to_unit(truth))
    for upscaler, row in zip((Cubic((4, 4)), Lanczos((4, 4))), report.rows, strict=True):
        estimate = upscale(low, upscaler).read()
        # A mean that lies halfway between two stored values may round either way in float32.
        assert row["psnr_db"] == pytest.approx(psnr_db(estimate, truth, data_range=data_range), abs=1e-3)
        assert row["ssim"] == pytest.approx(ssim(estimate, truth, data_range=data_range), abs=1e-5)
        assert row["nrmse"] == pytest.approx(nrmse(estimate, truth, data_range=data_range), rel=1e-4)
        inside = psnr_db(estimate, truth, data_range=data_range, mask=mask)
        assert row["psnr_foreground_db"] == pytest.approx(inside, abs=2e-2)
        found = frc_resolution(frc_curve(estimate, truth))
        assert row["frc_samples"] == pytest.approx(found.value, rel=1e-3)
        again = estimate.reshape(102, 4, 100, 4).astype(float).mean((1, 3))
        assert row["consistency_db"] == pytest.approx(psnr_db(again, low.read(), data_range=data_range), abs=1e-2)
        assert (row["data_range"], row["shape"], row["factor"]) == (data_range, "408 x 400", "4 x 4")
        assert row["frc_um"] is None
        assert "spacing unknown" in row["frc_note"]
        assert 0.1 < row["foreground_share"] < 0.5


def test_a_dark_background_flatters_and_the_foreground_does_not(breast: Path, tmp_path: Path) -> None:
    row = evaluate(breast, Cubic((4, 4)), out=tmp_path).rows[0]
    assert row["psnr_db"] - row["psnr_foreground_db"] > 1
    assert row["ssim"] - row["ssim_foreground"] > 0.02


def test_figures_say_where_they_come_from(breast: Path, tmp_path: Path) -> None:
    blur = Degradation((2, 2))
    evaluate(breast, Linear((2, 2)), out=tmp_path / "a", degradation=blur)
    evaluate(breast, Linear((2, 2)), out=tmp_path / "b", degradation=blur)
    text = (tmp_path / "a" / "provenance.json").read_text()
    assert text == (tmp_path / "b" / "provenance.json").read_text()
    assert str(breast.parent) not in text
    known = json.loads(text)
    assert known["version"] == __version__
    assert known["inputs_sha256"] == {"breast": input_digest(find_all(breast)[0])}
    assert list(known["methods"]) == ["cubic", "linear"]
    assert known["methods"]["linear"]["method_sha256"] == fingerprint(Linear((2, 2)))
    assert known["degradation"] == repr(blur)
    (tmp_path / "torn.tif").write_bytes(breast.read_bytes()[:300])
    failed = evaluate(tmp_path / "torn.tif", Linear((2, 2)), out=tmp_path / "c")
    assert failed.exit_code == 1
    assert json.loads((tmp_path / "c" / "provenance.json").read_text())["inputs_sha256"] == {}


def test_the_table_and_the_pictures(breast: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores"
    report = evaluate([breast, breast], Linear((2, 2)), out=out)
    assert sorted(p.name for p in out.iterdir()) == ["breast.png", "breast_2.png", "provenance.json", "scores.csv"]
    assert (out / "scores.csv").read_text().startswith(FIXED + ",")
    rows = table(out)
    assert [r["scan"] for r in rows] == ["breast", "breast", "breast_2", "breast_2"]
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[1]["psnr_db"]) == pytest.approx(report.rows[1]["psnr_db"], rel=1e-5)
    assert rows[0]["frc_um"] == ""
    assert all(float(r["seconds"]) >= 0 for r in rows)


def test_cubic_stands_alone(breast: Path, tmp_path: Path) -> None:
    report = evaluate(breast, Cubic((2, 2)), out=tmp_path)
    assert [row["method"] for row in report.rows] == ["cubic"]


def test_a_method_can_be_named(breast: Path, tmp_path: Path) -> None:
    assert evaluate(breast, Linear((2, 2)), out=tmp_path, method="mine").rows[1]["method"] == "mine"


def test_one_bad_scan_stops_nothing(breast: Path, tmp_path: Path) -> None:
    folder, out, notes = tmp_path / "scans", tmp_path / "out", []
    folder.mkdir()
    good = tifffile.imread(breast)[:120, :120]
    tifffile.imwrite(folder / "a_constant.tif", np.full((64, 64), 700, np.uint16))
    tifffile.imwrite(folder / "b_nothing.tif", np.full((64, 64), np.nan, np.float32))
    tifffile.imwrite(folder / "c_pixel.tif", np.full((1, 1), 7, np.uint16))
    (folder / "d_torn.tif").write_bytes(breast.read_bytes()[:3000])
    tifffile.imwrite(folder / "e_good.tif", good)
    report = evaluate(folder, Linear((2, 2)), out=out, note=notes.append)
    assert report.exit_code == 1
    assert [row["scan"] for row in report.rows] == ["e_good", "e_good"]
    reasons = dict(report.failed)
    assert list(reasons) == ["a_constant", "b_nothing", "c_pixel", "d_torn"]
    for name, reason in reasons.items():
        assert f"{name}.tif" in reason
        assert len(reason) < 400
    assert "found 700 everywhere" in reasons["a_constant"]
    assert "NaN" in reasons["b_nothing"]
    assert "at least 2 x 2 samples" in reasons["c_pixel"]
    assert sorted(p.name for p in out.iterdir()) == ["e_good.png", "failed.csv", "provenance.json", "scores.csv"]
    with (out / "failed.csv").open(newline="") as stream:
        assert [line[0] for line in csv.reader(stream)] == ["scan", *reasons]
    assert sum("failed" in note for note in notes) == 4
    again = evaluate(folder / "e_good.tif", Linear((2, 2)), out=out)
    assert again.exit_code == 0
    assert not (out / "failed.csv").exists()


def test_nothing_to_evaluate_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScanError, match="found none"):
        evaluate(tmp_path / "empty", Cubic((2, 2)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_named(breast: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the factor \(2, 2\) of the method, found \(4, 4\)"):
        evaluate(breast, Cubic((2, 2)), out=tmp_path, degradation=Degradation((4, 4)))
    with pytest.raises(ValueError, match="device"):
        evaluate(breast, Cubic((2, 2)), out=tmp_path, device="abacus")
    report = evaluate(breast, Cubic((2, 2, 2)), out=tmp_path)
    assert "at most one entry for each spatial axis" in dict(report.failed)["breast"]


@pytest.mark.parametrize("factor", [(2, 2), (1, 2, 2), (2, 2, 2), (4, 1, 1), (2,)])
def test_stacks(factor: tuple[int, ...], tmp_path: Path) -> None:
    path = stack(tmp_path / "nuclei.ome.tif")
    ticks: list[tuple[str, int, int]] = []
    report = evaluate(path, Lanczos(factor), out=tmp_path, tick=lambda *seen: ticks.append(seen))
    rows = by_method(report)
    scan = read_scan(path)
    trial = Trial(scan, factor, None)
    truth = scan.read(tuple(slice(0, n) for n in trial.shape))
    low = replace(trial.low, data=trial.low.read())
    estimate = upscale(low, Lanczos(factor)).read()
    data_range = scan.intensity.white - scan.intensity.black
    row = rows["lanczos"]
    assert row["psnr_db"] == pytest.approx(psnr_db(estimate, truth, data_range=data_range))
    deep = factor[0] > 1 and len(factor) == 3
    expected = ssim(estimate, truth, data_range=data_range, dims=3 if deep and trial.shape[0] > 10 else 2)
    assert row["ssim"] == pytest.approx(expected)
    refined = tuple(i - len(factor) for i, f in enumerate(factor) if f > 1)
    spacing = [(0.29, 0.26, 0.26)[a] for a in refined]
    curve = frc_curve(estimate, truth, axes=refined, spacing_um=spacing)
    assert row["frc_um"] == pytest.approx(frc_resolution(curve).value)
    assert row["frc_samples"] == pytest.approx(row["frc_um"] / min(spacing))
    assert row["consistency_db"] > row["psnr_db"]
    frames = 1 if len(factor) == 3 else 14
    assert ticks == [("nuclei", i + 1, frames) for i in range(frames)]
    assert (tmp_path / "nuclei.png").exists()


class Watched:
    """An array that remembers the most samples asked for at once."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape, self.dtype, self.most = data, data.shape, data.dtype, 0

    def __getitem__(self, region: Any) -> np.ndarray:
        part = self.data[region]
        self.most = max(self.most, part.size)
        return part


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, breast: Path) -> Callable[[Scan], Path]:
    """Lets evaluate read a scan that was made here."""

    def read(scan: Scan) -> Path:
        monkeypatch.setattr(sys.modules["medsr.evaluation"], "read_scan", lambda source, series: scan)
        return breast

    return read


def nuclei_scan(data: Any = None, *, black: float = 1944, white: float = 44575, dtype: str = "uint16") -> Scan:
    values = tifffile.imread(NUCLEI)[4:9, 60:156, 40:136].astype(dtype) if data is None else data
    return Scan(values, Grid(("z", "y", "x"), (0.29, 0.26, 0.26)), Intensity(black, white, np.dtype(dtype)))


def test_a_stack_is_never_held_whole(given: Callable[[Scan], Path], tmp_path: Path) -> None:
    watched = Watched(tifffile.imread(NUCLEI)[:, :64, :64])
    scan = Scan(watched, Grid(("z", "y", "x")), Intensity(1944, 44575, np.dtype("uint16")))
    assert evaluate(given(scan), Linear((2, 2)), out=tmp_path).exit_code == 0
    assert watched.most == 64 * 64


def test_dark_is_high_in_monochrome1(given: Callable[[Scan], Path], tmp_path: Path) -> None:
    scan = nuclei_scan()
    turned = nuclei_scan(65_535 - scan.read(), black=65_535 - 1944, white=65_535 - 44575)
    first = evaluate(given(scan), Cubic((2, 2)), out=tmp_path).rows[0]
    second = evaluate(given(turned), Cubic((2, 2)), out=tmp_path).rows[0]
    for name in ("psnr_db", "ssim_foreground", "foreground_share", "consistency_db", "data_range"):
        assert second[name] == pytest.approx(first[name], rel=2e-3), name


def test_holes_are_no_values_and_no_errors(given: Callable[[Scan], Path], tmp_path: Path) -> None:
    data = tifffile.imread(NUCLEI)[15:16, 60:156, 40:136].astype(np.float32)
    hole = np.zeros(data.shape, bool)
    hole[:, 11:13, 30:41] = True  # touches coarse rows 5 and 6, columns 15..20
    holed = np.where(hole, np.float32(np.nan), data)
    trial = Trial(nuclei_scan(holed, dtype="float32"), (2, 2), None)
    low = trial.coarse((0,))
    assert np.argwhere(np.isnan(low)).min(0).tolist() == [5, 15]
    assert np.argwhere(np.isnan(low)).max(0).tolist() == [6, 20]
    whole = Trial(nuclei_scan(data, dtype="float32"), (2, 2), None).coarse((0,))
    np.testing.assert_array_equal(low[np.isfinite(low)], whole[np.isfinite(low)])
    row = evaluate(given(trial.scan), Cubic((2, 2)), out=tmp_path).rows[0]
    full = evaluate(given(nuclei_scan(data, dtype="float32")), Cubic((2, 2)), out=tmp_path).rows[0]
    assert row["psnr_db"] == pytest.approx(full["psnr_db"], abs=0.3)
    assert row["frc_um"] == pytest.approx(full["frc_um"], rel=0.25)
    assert math.isfinite(row["consistency_db"])


def test_a_height_map_with_a_hole_for_background(tmp_path: Path) -> None:
    rows = by_method(evaluate(SURFACE, Lanczos((2, 2)), out=tmp_path))
    assert rows["lanczos"]["psnr_db"] > rows["cubic"]["psnr_db"]
    assert rows["cubic"]["foreground_share"] == 1
    assert rows["cubic"]["psnr_foreground_db"] == rows["cubic"]["psnr_db"]


def test_the_coarse_scan_is_a_measurement(tmp_path: Path) -> None:
    scan = nuclei_scan()
    trial = Trial(scan, (2, 2), None)
    assert trial.low.intensity == scan.intensity
    assert trial.low.grid == scan.grid.coarsen((2, 2))
    assert trial.low.read().dtype == np.uint16
    assert "degraded 2 x 2" in trial.low.history[-1]
    mean = scan.read().reshape(5, 48, 2, 48, 2).mean((2, 4))
    assert np.abs(trial.low.read() - mean).max() <= 0.51


def test_the_degradation_of_a_checkpoint(given: Callable[[Scan], Path], tmp_path: Path) -> None:
    blurred = DegradationRange(fwhm_um=(0.4, 0.8))
    path = given(nuclei_scan())
    plain = evaluate(path, Cubic((2, 2)), out=tmp_path).rows[0]
    row = evaluate(path, Cubic((2, 2)), out=tmp_path, degradation=blurred).rows[0]
    assert row["psnr_db"] < plain["psnr_db"]
    assert "Gaussian" in row["degradation"]
    fixed = blurred.center((2, 2), (0.26, 0.26))
    assert evaluate(path, Cubic((2, 2)), out=tmp_path, degradation=fixed).rows[0]["psnr_db"] == row["psnr_db"]
    unknown = replace(nuclei_scan(), grid=Grid(("z", "y", "x")))
    report = evaluate(given(unknown), Cubic((2, 2)), out=tmp_path, degradation=blurred)
    assert "spacing" in report.failed[0][1]


def test_noise_is_the_same_on_every_run_and_differs_by_plane(given: Callable[[Scan], Path], tmp_path: Path) -> None:
    noisy = Degradation((2, 2), noise=PoissonGaussian(200, 0.01))
    path = given(nuclei_scan())
    first, second = (evaluate(path, Cubic((2, 2)), out=tmp_path, degradation=noisy).rows[0] for _ in range(2))
    assert first["psnr_db"] == second["psnr_db"]
    assert first["psnr_db"] < evaluate(path, Cubic((2, 2)), out=tmp_path).rows[0]["psnr_db"]
    # The estimate is compared without new noise: what cubic misses of the noisy scan, and nothing besides.
    assert first["consistency_db"] > first["psnr_db"]
    trial = Trial(nuclei_scan(np.full((2, 64, 64), 20_000, np.uint16)), (2, 2), noisy)
    assert np.array_equal(trial.coarse((0,)), trial.coarse((0,)))
    assert not np.array_equal(trial.coarse((0,)), trial.coarse((1,)))


class Broken:
    """A method that fails on a stack's third plane."""

    factor, halo = (2, 2), (0, 0)

    def __init__(self) -> None:
        self.calls = 0

    def adapt(self, scan: Scan) -> "Broken":
        return self

    def __call__(self, low: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            raise KeyError("weights")
        return torch.nn.functional.interpolate(low, scale_factor=2.0)


def test_a_method_that_fails_is_a_reason_not_a_crash(given: Callable[[Scan], Path], tmp_path: Path) -> None:
    report = evaluate(given(nuclei_scan()), Broken(), out=tmp_path)
    assert [row["method"] for row in report.rows] == ["cubic"]  # the baseline stays
    assert "KeyError: 'weights'" in report.failed[0][1]
    assert len(table(tmp_path)) == 1


def test_means_are_of_decibels_scan_by_scan() -> None:
    rows = [dict.fromkeys(COLUMNS, None) | {"method": "cubic", "psnr_db": v} for v in (30.0, 40.0, math.inf)]
    (mean,) = EvaluationReport(tuple(rows), ()).summary()
    assert (mean["method"], mean["scans"], mean["psnr_db"], mean["frc_um"]) == ("cubic", 3, 35.0, None)
    assert EvaluationReport((), ()).summary() == ()


def test_the_survey_finds_the_plane_with_detail() -> None:
    data = np.full((40, 64, 64), 2000, np.uint16)
    data[13] = tifffile.imread(NUCLEI)[15, :64, :64]
    found = survey_of(Trial(nuclei_scan(data), (2, 2), None))
    assert found.plane == (13,)
    assert found.known.all()


def test_the_door_gives_the_verb() -> None:
    assert _verb is evaluate


@pytest.mark.shared
def test_real_scans_of_many_kinds(shared_data: Path, tmp_path: Path) -> None:
    dev = shared_data / "dev" / "micro"
    paths = [
        dev / "w2s_widefield_8bit" / "avg400_003_1.tif",
        dev / "neubias_16bit" / "xyc_16bit__cell_dna_mts_actin.tif",
        sorted((dev / "cbmi_er_16bit").glob("*.tif"))[0],
    ]
    report = evaluate(paths, Lanczos((2, 2)), out=tmp_path)
    assert report.failed == ()
    for cubic, lanczos in zip(report.rows[::2], report.rows[1::2], strict=True):
        assert 0.5 < lanczos["psnr_db"] - cubic["psnr_db"] < 1.5  # what is known of these scans
        assert lanczos["consistency_db"] > cubic["consistency_db"]
        assert 2 < lanczos["frc_samples"] < 4
    assert [row["frc_um"] is not None for row in report.rows[1::2]] == [False, True, False]
    means = {m["method"]: m for m in report.summary()}
    assert means["lanczos"]["psnr_db"] > means["cubic"]["psnr_db"] + 0.5


def test_padding_is_measured_nowhere() -> None:
    stored = tifffile.imread(NUCLEI)[3, :64, :64].astype("int16")
    stored[:, :20] = -2000
    line = Intensity(0, 3000, np.dtype("int16"), padding=(-2000, -1990))
    trial = Trial(Scan(stored, Grid(("y", "x")), line), (2, 2), None)
    assert np.isnan(trial.fine(())[:, :20]).all()
    np.testing.assert_array_equal(trial.fine(())[:, 20:], stored[:, 20:])
    assert np.isnan(trial.coarse(())[:, :10]).all()
    assert np.nanmin(trial.coarse(())) >= 0


def test_a_scan_that_was_learned_from_is_measured_with_a_warning(breast: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for known in ({input_digest([breast])}, {"0" * 64}):
        evaluate(breast, Cubic((2, 2)), out=tmp_path, trained_on=known, note=said.append)
    assert sum("has learned from this scan" in line for line in said) == 1
