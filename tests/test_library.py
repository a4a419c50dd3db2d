"""The index of fine scans: what it keeps, what it refuses, and that nothing of a patient is in it."""

import csv
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile

import medsr
import medsr.library
import medsr.methods
from medsr.degradation import Degradation, Gaussian
from medsr.io.digest import input_digest
from medsr.library import OPEN_SCANS, Library, build_library, load_library
from medsr.methods.registration import band_overview, find_features
from medsr.scan import Grid, Intensity, Scan, ScanError
from medsr.upscaler import Composed, Upscaler
from tests.methods_asked import real_scan
from tests.test_pipelines import pipeline


@dataclass
class Combined:
    """The first of several methods."""

    parts: tuple[Upscaler, ...]
    factor: tuple[int, ...] = (2, 2)
    halo: tuple[int, ...] = (40, 40)

    def adapt(self, scan):
        return Combined(tuple(part.adapt(scan) for part in self.parts))

    def around(self, low, runs):
        return runs[0](low)

    def __call__(self, low):
        return self.around(low, self.parts)


CROPS = ((2, slice(0, 128)), (9, slice(64, 192)), (17, slice(128, 256)), (25, slice(100, 228)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four fields: two as single planes with their spacing, two as a stack of two planes without."""
    folder = tmp_path_factory.mktemp("scans") / "exams"
    folder.mkdir()
    stored = tifffile.imread(medsr.NUCLEI)
    fields = [stored[z, part, part] for z, part in CROPS]
    told = {"axes": "YX", "PhysicalSizeY": 0.26, "PhysicalSizeX": 0.26}
    for number, field in enumerate(fields[:2]):
        tifffile.imwrite(folder / f"field{number}.ome.tif", field, ome=True, metadata=told)
    tifffile.imwrite(folder / "pair.tif", np.stack(fields[2:]))
    return folder


@pytest.fixture(scope="module")
def library(folder) -> Library:
    return build_library(folder, factor=2, out=folder.parent / "index")


def test_a_plane_is_found_by_what_it_shows(library):
    """Each plane's own band, a little weaker, has itself as the first candidate."""
    assert len(library) == 4
    assert library.names == ("field0.ome.tif", "field1.ome.tif", "pair.tif")
    assert [library.scan_of(plane) for plane in range(4)] == [0, 1, 2, 2]
    for number in range(4):
        seen = find_features(band_overview(library.plane(number), library.degradation))
        np.testing.assert_array_equal(seen.descriptors, library.features(number).descriptors)
        assert library.candidates(seen, most=2)[0] == number
    assert 1 not in library.candidates(library.features(1), most=4, leave_out=frozenset({1}))


def test_samples_stay_in_the_files(library, folder):
    expected = real_scan()[0, 0, 2, 10:20, 30:50].numpy()
    found = library.plane(0).read(slice(10, 20), slice(30, 50))
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    kept = sum(file.stat().st_size for file in library.folder.iterdir())
    assert sorted(p.suffix for p in library.folder.iterdir()) == [".json", ".npz", ".npz", ".npz", ".npz"]
    assert kept < 2_000_000


def test_the_same_scans_give_the_same_index(library, folder, tmp_path):
    again = build_library(folder, factor=2, out=tmp_path / "deep" / "again", degradation=Degradation((2, 2)))
    for name in ("codes.npz", "keypoints_00000.npz"):
        with np.load(library.folder / name) as one, np.load(again.folder / name) as other:
            assert set(one) == set(other)
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])


def test_it_opens_again_here_and_in_another_process(library):
    for again in (load_library(library.folder), pickle.loads(pickle.dumps(library))):
        assert again.identity == library.identity
        np.testing.assert_array_equal(again.features(3).descriptors, library.features(3).descriptors)
        assert again.root == library.root
    assert len(pickle.dumps(library)) < 20_000


def test_nothing_of_a_patient_is_in_the_index(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    dataset = pydicom.dcmread(medsr.MAMMOGRAM)
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET-17"
    dataset.PixelData = dataset.pixel_array[800:960, 300:460].tobytes()
    dataset.Rows = dataset.Columns = 160
    dataset.save_as(scans / "a.dcm")
    build_library(scans, factor=2, out=tmp_path / "index")
    for file in (tmp_path / "index").iterdir():
        content = file.read_bytes()
        assert b"Doe" not in content
        assert b"SECRET" not in content
    text = (tmp_path / "index" / "index.json").read_text()
    assert str(tmp_path) not in text, "file names are relative"
    assert json.loads(text)["scans"][0]["files"] == ["a.dcm"]


def test_spacings_that_registration_cannot_bear_are_refused(library):
    assert library.refused(None) == {}
    assert library.refused((0.26, 0.26)) == {}
    assert library.refused((0.29, 0.29)) == {}, "12 % is a matter of registration"
    refused = library.refused((0.52, 0.52))
    assert set(refused) == {0, 1}, "a scan without spacing may serve"
    assert "field0.ome.tif" in refused[0]
    assert "0.26" in refused[0]


def test_a_changed_or_missing_scan_is_named(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    field = tifffile.imread(medsr.NUCLEI)[4, :96, :96]
    tifffile.imwrite(scans / "a.tif", field)
    build_library(scans, factor=2, out=tmp_path / "index")
    tifffile.imwrite(scans / "a.tif", field + 1)
    with pytest.raises(ScanError, match=r"a\.tif: expected the scan that the library .* other content"):
        load_library(tmp_path / "index").plane(0)
    scans.rename(tmp_path / "elsewhere")
    with pytest.raises(ScanError, match="missing"):
        load_library(tmp_path / "index").plane(0)
    assert len(load_library(tmp_path / "index").features(0).positions), "keypoints are in the index"
    tifffile.imwrite(tmp_path / "elsewhere" / "a.tif", field)
    assert load_library(tmp_path / "index", root=tmp_path / "elsewhere").plane(0).shape == (96, 96)


def test_a_scan_is_read_for_its_digest_once(tmp_path, monkeypatch):
    """However many planes ask for it, and in whatever order: more scans than are held open."""
    read = []
    monkeypatch.setattr(medsr.library, "input_digest", lambda source: read.append(source.name) or input_digest(source))
    (tmp_path / "scans").mkdir()
    for z in range(OPEN_SCANS + 2):
        tifffile.imwrite(tmp_path / "scans" / f"{z}.tif", tifffile.imread(medsr.NUCLEI)[z, :96, :96])
    build_library(tmp_path / "scans", factor=2, out=tmp_path / "index")
    library = load_library(tmp_path / "index")
    for _ in range(3):
        for plane in range(len(library)):
            library.features(plane)
            library.plane(plane).read(slice(0, 8), slice(0, 8))
    assert len(read) == len(library) == OPEN_SCANS + 2


def test_a_scan_of_the_library_is_measured_with_a_warning(folder, library, tmp_path):
    said = []
    method = Combined((medsr.methods.Exemplars(2, library), medsr.methods.Cubic((2, 2))))
    assert isinstance(method, Composed)
    for name, upscaler in (("direct", method.parts[0]), ("part", method), ("cubic", method.parts[1])):
        medsr.evaluate(folder / "field0.ome.tif", upscaler, out=tmp_path / name, note=said.append)
        warned = [line for line in said if "the method has learned from this scan" in line]
        assert len(warned) == (name != "cubic"), name
        said.clear()


def test_one_bad_scan_stops_nothing(tmp_path, caplog):
    scans = tmp_path / "scans"
    scans.mkdir()
    tifffile.imwrite(scans / "good.tif", tifffile.imread(medsr.NUCLEI)[4, :96, :97])
    tifffile.imwrite(scans / "tiny.tif", np.arange(64, dtype=np.uint16).reshape(8, 8))
    (scans / "broken.tif").write_bytes((scans / "good.tif").read_bytes()[:500])
    library = build_library(scans, factor=2, out=tmp_path / "index")
    assert library.names == ("good.tif",)
    assert library.plane(0).shape == (96, 96)
    assert "tiny.tif" in caplog.text
    assert "broken.tif" in caplog.text


def test_what_is_refused(library, folder, tmp_path):
    with pytest.raises(ValueError, match="found a URL"):
        build_library("s3://bucket/scans", factor=2, out=tmp_path / "x")
    with pytest.raises(ValueError, match="one factor for y and x"):
        build_library(folder, factor=(1, 2, 2), out=tmp_path / "x")
    with pytest.raises(ValueError, match="found one that exists"):
        build_library(folder, factor=2, out=library.folder)
    with pytest.raises(ValueError, match="make one with build_library"):
        load_library(tmp_path)
    with pytest.raises(ValueError, match="degradation it was made with"):
        load_library(library.folder, degradation=Degradation((2, 2), kernel=Gaussian(fwhm_samples=2.0)))


def test_a_library_with_a_kernel_asks_for_it(folder, tmp_path):
    blurred = Degradation((2, 2), kernel=Gaussian(fwhm_samples=2.0))
    build_library(folder / "field0.ome.tif", factor=2, degradation=blurred, out=tmp_path / "index")
    with pytest.raises(ValueError, match=r"Gaussian.*give that one"):
        load_library(tmp_path / "index")
    assert load_library(tmp_path / "index", degradation=blurred).degradation is blurred


def test_the_pipeline_writes_result_map_legend_and_picture(folder, tmp_path, capsys):
    stack = tifffile.imread(medsr.NUCLEI)[9, 64:192, 64:192].astype(np.float64)
    coarse = stack.reshape(64, 2, 64, 2).mean((1, 3)).round().astype(np.uint16)
    tifffile.imwrite(tmp_path / "coarse.tif", coarse)
    call = [str(tmp_path / "coarse.tif"), str(tmp_path / "out")]
    assert pipeline("exemplars").main([*call, "--fine", str(folder)]) == 0
    fine = tifffile.imread(tmp_path / "out" / "coarse_fine.tif")
    assert fine.shape == (128, 128)
    assert np.abs(fine - stack).mean() < 0.01 * np.ptp(stack), "its own fine scan is in the library"
    sources = tifffile.imread(tmp_path / "out" / "coarse_sources.tif")
    rows = list(csv.DictReader((tmp_path / "out" / "coarse_sources.csv").read_text().splitlines()))
    assert [row["scan"] for row in rows] == ["interpolated", "field0.ome.tif", "field1.ome.tif", "pair.tif"]
    assert float(rows[2]["share"]) == pytest.approx((sources == 1).mean(), abs=1e-4)
    assert float(rows[2]["share"]) > 0.9
    assert (tmp_path / "out" / "coarse_sources.png").is_file()
    assert pipeline("exemplars").main([*call, "--library", str(tmp_path / "out" / "library")]) == 0
    assert pipeline("exemplars").main(call) == 2
    assert "one of the two" in capsys.readouterr().err


def test_a_scan_of_another_spacing_finds_no_exemplars(folder, tmp_path):
    library = build_library(folder / "field0.ome.tif", factor=2, out=tmp_path / "index")
    method = medsr.methods.Exemplars(2, library)
    stored = np.zeros((64, 64), np.uint16)
    scan = Scan(stored, Grid(("y", "x"), (1.0, 1.0)), Intensity(0, 1, stored.dtype))
    with pytest.raises(ValueError, match=r"field0.ome.tif: expected a spacing within 0.8 to 1.25 times \(0.5, 0.5\)"):
        method.adapt(scan)
    assert method.adapt(Scan(stored, Grid(("y", "x"), (0.52, 0.52)), scan.intensity)).found() == ()
