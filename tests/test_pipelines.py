"""The jobs a lab copies: each runs whole on the shipped samples, sees only the door, and stays short."""

import ast
import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
import tifffile

import medsr
from medsr.checkpoint import build_network, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "pipelines").glob("*.py"))
TINY = [
    "method.factor=[2, 2]", "method.features=4", "method.blocks=1", "method.head_kernel=3",
    "method.tail_kernel=3", "data.patch=[32, 32]", "training.batch=1", "training.pixel_steps=2",
    "training.adversarial_steps=0", "training.validate_every_steps=2",
]  # fmt: skip


def pipeline(name: str) -> ModuleType:
    """A pipeline as a module, as a copy of it in a lab's own folder would be."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "pipelines" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def crop_of_the_mammogram(path: Path) -> None:
    """256 x 256 samples of tissue from the shipped sample, as DICOM."""
    dataset = pydicom.dcmread(medsr.MAMMOGRAM)
    dataset.PixelData = dataset.pixel_array[800:1056, 300:556].tobytes()
    dataset.Rows = dataset.Columns = 256
    dataset.save_as(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run folder of an untrained 2D network."""
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = medsr.Recipe(
        method=medsr.SrresnetRecipe(features=4, blocks=1, head_kernel=3, tail_kernel=3),
        degradation=medsr.DegradationRange(fwhm_samples=(0.4, 0.4)),
    )
    card = medsr.TrainingCard(black=(0, 0), white=(1000, 1000), dtype="uint16")
    save_checkpoint(folder / "best.ckpt", build_network(recipe.method), recipe, card)
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_pipeline_is_short_and_sees_only_the_door(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    tree = ast.parse(text)
    assert f"pipelines/{path.name}" in (ast.get_docstring(tree) or ""), "its docstring says how to call it"
    imported = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    imported += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert [name for name in imported if name.startswith("medsr.")] == []


def test_mammo_batch_trains_upscales_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans, out = tmp_path / "patient's scans: 2", tmp_path / "out"
    scans.mkdir()
    crop_of_the_mammogram(scans / "mammogram.dcm")
    call = [str(scans), str(out), "--config", str(ROOT / "configs" / "mammo.yaml")]
    call += [word for setting in TINY for word in ("--set", setting)]
    assert pipeline("mammo_batch").main(call) == 0
    fine = medsr.read_scan(out / "finer" / "mammogram.ome.zarr")
    assert fine.shape == (512, 512)
    rows = list(csv.DictReader((out / "scores" / "scores.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["cubic", "srresnet"]
    assert "on tissue only" in capsys.readouterr().out

    weights = (out / "run" / "last.ckpt").read_bytes()
    written = (out / "finer" / "mammogram.ome.zarr" / "zarr.json").stat().st_mtime_ns
    (scans / "broken.dcm").write_bytes((scans / "mammogram.dcm").read_bytes()[:5000])
    assert pipeline("mammo_batch").main([*call, "--run", str(out / "run")]) == 1, "one bad file: the rest is done"
    said = capsys.readouterr().out
    assert "broken: failed" in said
    assert "mammogram: skipped" in said
    assert (out / "finer" / "mammogram.ome.zarr" / "zarr.json").stat().st_mtime_ns == written
    (scans / "broken.dcm").unlink()
    assert pipeline("mammo_batch").main(call) == 0, "the same command again: nothing is trained or written twice"
    assert (out / "run" / "last.ckpt").read_bytes() == weights


def test_stack_axial_writes_the_finer_spacing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline("stack_axial").main([str(medsr.NUCLEI), str(tmp_path), "--axial", "2"]) == 0
    said = capsys.readouterr().out
    assert "spacing (0.29, 0.26, 0.26)" in said
    assert "spacing (0.145, 0.26, 0.26)" in said
    (result,) = tmp_path.glob("*.ome.zarr")
    assert medsr.read_scan(result).shape == (60, 256, 256)


def test_stack_axial_finds_the_factor_that_makes_cubes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = medsr.read_scan(medsr.NUCLEI).read()[::4, :64, :64]
    told = {"axes": "ZYX", "PhysicalSizeZ": 1.16, "PhysicalSizeY": 0.29, "PhysicalSizeX": 0.29}
    tifffile.imwrite(tmp_path / "thick.ome.tif", stack, ome=True, metadata=told)
    assert pipeline("stack_axial").main([str(tmp_path / "thick.ome.tif"), str(tmp_path / "out")]) == 0
    assert medsr.read_scan(tmp_path / "out" / "thick.ome.zarr").grid.spacing_um == pytest.approx((0.29, 0.29, 0.29))

    assert pipeline("stack_axial").main([str(medsr.NUCLEI), str(tmp_path / "out")]) == 2
    assert "cubic already" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "bare.tif", stack)
    assert pipeline("stack_axial").main([str(tmp_path / "bare.tif"), str(tmp_path / "out")]) == 2
    assert "--axial" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_cluster_batch_on_processes_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    stack = tifffile.imread(medsr.NUCLEI)
    for plane in (3, 9):
        tifffile.imwrite(tmp_path / f"plane{plane}.tif", stack[plane, :128, :128])
    call = [str(tmp_path), str(tmp_path / "out"), "--method", "cubic", "--on", "here"]
    assert pipeline("cluster_batch").main(call) == 0
    expected = medsr.upscale(medsr.read_scan(tmp_path / "plane9.tif"), medsr.Cubic((2, 2))).read()
    np.testing.assert_array_equal(medsr.read_scan(tmp_path / "out" / "plane9.ome.zarr").read(), expected)
