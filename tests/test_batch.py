"""upscale_folder: OME-Zarr on the disk, crash and resume, bad files, many workers; on real scans."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
import zarr
from ome_zarr_models.v05 import Image
from torch import Tensor

from medsr.batch import upscale_folder
from medsr.consistency import consistency_map
from medsr.data import MAMMOGRAM, NUCLEI
from medsr.header import FILE, LOCK
from medsr.io import omezarr, read_scan
from medsr.io.places import Folder, Place
from medsr.job import OutputOptions
from medsr.methods.interpolation import Cubic
from medsr.methods.srresnet import SRResNet
from medsr.scan import Grid, Intensity, Scan
from medsr.upscaling import upscale

SMALL = OutputOptions(chunk=(64, 64), shard=(128, 128))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of two real scans and three bad files."""
    folder = tmp_path / "scans"
    folder.mkdir()
    stack = tifffile.imread(NUCLEI)
    tifffile.imwrite(folder / "plane.tif", stack[3])
    shutil.copy(NUCLEI, folder / "nuclei.ome.tif")
    (folder / "broken.tif").write_bytes(NUCLEI.read_bytes()[:3000])
    (folder / "empty.dcm").write_bytes(b"")
    tifffile.imwrite(folder / "color.tif", np.zeros((32, 32, 3), "uint8"), photometric="rgb")
    (folder / "notes.txt").write_text("not a scan")
    return folder


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def shards(root: Path) -> dict[str, bytes]:
    """The samples of a result, without its documents."""
    return {key: data for key, data in tree(root).items() if not key.endswith("zarr.json")}


def test_one_bad_file_stops_nothing(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = upscale_folder(scans, Cubic((2, 2)), out=out)
    status = {row.scan: row.status for row in report.rows}
    assert status == {"plane": "done", "nuclei": "done", "broken": "failed", "empty": "failed", "color": "failed"}
    assert report.exit_code == 1
    assert sorted(p.name for p in out.iterdir()) == ["batch.csv", "batch.jsonl", "nuclei.ome.zarr", "plane.ome.zarr"]
    lines = [json.loads(line) for line in (out / "batch.jsonl").read_text().splitlines()]
    assert [line["scan"] for line in lines] == [row.scan for row in report.rows]
    for row in report.rows:
        if row.status == "failed":
            assert row.scan in row.reason
            assert len(row.reason) > 40


def test_the_result_is_a_valid_calibrated_pyramid(tmp_path: Path) -> None:
    upscale_folder(NUCLEI, Cubic((2, 2)), out=tmp_path)
    (root,) = tmp_path.glob("*.ome.zarr")
    image = Image.from_zarr(zarr.open_group(root, mode="r"))
    multiscale = image.ome_attributes.multiscales[0]
    assert [a.name for a in multiscale.axes] == ["z", "y", "x"]
    assert {a.unit for a in multiscale.axes} == {"micrometer"}
    first = multiscale.datasets[0].coordinateTransformations
    assert first[0].scale == pytest.approx([0.29, 0.13, 0.13])
    assert first[1].translation == pytest.approx([0, -0.065, -0.065])
    level = zarr.open_array(root, path="0")
    expected = upscale(read_scan(NUCLEI), Cubic((2, 2)))
    np.testing.assert_array_equal(level[:], expected.data[:])
    assert level.dtype == np.uint16
    below = zarr.open_array(root, path="1")
    assert below.shape == (30, 256, 256)  # z is coarser than the plane and is kept
    block = level[2:3, 10:12, 20:22].astype(float)
    assert below[2, 5, 10] == np.rint(block.mean())
    ours = zarr.open_group(root, mode="r").attrs["medsr"]
    assert ours["intensity"]["white"] == expected.intensity.white
    assert "Cubic" in ours["history"][-2]
    assert "consistency with the measured scan: rms 0." in ours["history"][-1]


class _Inventing(Cubic):
    """Cubic interpolation with a bright patch that nothing measured."""

    def forward(self, low: Tensor) -> Tensor:
        estimate = super().forward(low)
        estimate[..., 20:30, 20:30] += 0.5
        return estimate


def test_every_result_says_how_far_it_agrees_with_its_scan(tmp_path: Path) -> None:
    """The line is that of the whole scan and its result at once, whatever shards it was read from."""
    small = OutputOptions(chunk=(4, 64, 64), shard=(8, 128, 128))
    for name, options in (("large", OutputOptions()), ("small", small)):
        upscale_folder(NUCLEI, Cubic((2, 2)), out=tmp_path / name, options=options)
    histories = [read_history(path) for path in sorted(tmp_path.glob("*/*.ome.zarr"))]
    measured = read_scan(NUCLEI)
    expected = consistency_map(measured, upscale(measured, Cubic((2, 2)))).describe()
    assert [history[-1] for history in histories] == [expected, expected]
    off = OutputOptions(consistency=False)
    row = upscale_folder(NUCLEI, Cubic((2, 2)), out=tmp_path / "off", options=off).rows[0]
    assert "Cubic" in read_history(Path(row.output))[-1]
    again = upscale_folder(NUCLEI, Cubic((2, 2)), out=tmp_path / "off").rows[0]
    assert again.status == "failed"
    assert "--overwrite" in again.reason


def test_what_contradicts_its_scan_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    row = upscale_folder(MAMMOGRAM, _Inventing((2, 2)), out=tmp_path, note=said.append).rows[0]
    assert row.status == "done"
    assert any("contradict" in warning for warning in row.warnings)
    assert any("contradict" in line for line in said)
    ours = zarr.open_group(row.output, mode="r").attrs["medsr"]
    assert any("contradict" in warning for warning in ours["warnings"])
    assert "flagged" in ours["history"][-1]


def read_history(root: Path) -> list[str]:
    return list(zarr.open_group(root, mode="r").attrs["medsr"]["history"])


def test_the_result_reads_back_as_a_scan(tmp_path: Path) -> None:
    upscale_folder(NUCLEI, Cubic((2, 2)), out=tmp_path)
    (root,) = tmp_path.glob("*.ome.zarr")
    scan = read_scan(root)
    assert scan.grid.spacing_um == pytest.approx((0.29, 0.13, 0.13))
    assert scan.grid.origin_um == pytest.approx((0, -0.065, -0.065))
    assert scan.intensity.white == read_scan(NUCLEI).intensity.white


def test_unknown_spacing_is_written_without_a_unit(tmp_path: Path) -> None:
    upscale_folder(MAMMOGRAM, Cubic((2, 2)), out=tmp_path)
    (root,) = tmp_path.glob("*.ome.zarr")
    attributes = zarr.open_group(root, mode="r").attrs["ome"]
    assert all("unit" not in axis for axis in attributes["multiscales"][0]["axes"])
    first, second = (d["coordinateTransformations"] for d in attributes["multiscales"][0]["datasets"][:2])
    # In samples of the input: half as far apart, the first a quarter before the input's first.
    assert (first[0]["scale"], first[1]["translation"]) == ([0.5, 0.5], [-0.25, -0.25])
    assert (second[0]["scale"], second[1]["translation"]) == ([1.0, 1.0], [0.0, 0.0])
    assert read_scan(root).grid.spacing_um is None


def test_unknown_spacing_keeps_the_aspect_of_an_uneven_factor(tmp_path: Path) -> None:
    upscale_folder(MAMMOGRAM, Cubic((4, 1)), out=tmp_path)
    (root,) = tmp_path.glob("*.ome.zarr")
    first = zarr.open_group(root, mode="r").attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert (first[0]["scale"], first[1]["translation"]) == ([0.25, 1.0], [-0.375, 0.0])


def test_again_skips_and_other_options_are_refused_by_name(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out)
    before = tree(out / "plane.ome.zarr")
    assert upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out).rows[0].status == "skipped"
    report = upscale_folder(scans / "plane.tif", Cubic((4, 4)), out=out)
    assert report.rows[0].status == "failed"
    assert "--overwrite" in report.rows[0].reason
    assert tree(out / "plane.ome.zarr") == before
    assert upscale_folder(scans / "plane.tif", Cubic((4, 4)), out=out, overwrite=True).rows[0].status == "done"
    assert zarr.open_array(out / "plane.ome.zarr", path="0").shape == (1024, 1024)


class Stop(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("after", [0, 1, 5, 17, 21])
def test_interrupt_anywhere_and_run_again_gives_the_same_bytes(
    after: int, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = tmp_path / "undisturbed"
    upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=undisturbed, options=SMALL)
    out = tmp_path / "out"
    written = 0
    counting = threading.Lock()
    honest = omezarr.write_shard

    def write_shard(*args: object) -> str:
        nonlocal written
        with counting:
            if written == after:
                raise Stop
            written += 1
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(omezarr, "write_shard", write_shard)
    with pytest.raises(Stop):
        upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out, options=SMALL)
    assert not (out / "plane.ome.zarr").exists()
    part = out / "plane.ome.zarr.part"
    if after == 5:  # torn by the crash: half a shard, half a record
        shards = sorted((part / "0" / "c").rglob("*"))
        torn = next(s for s in shards if s.is_file())
        torn.write_bytes(torn.read_bytes()[:100])
        with (part / FILE).open("a") as stream:
            stream.write('{"level": 0, "sha')
    written = -1000
    report = upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out, options=SMALL)
    assert report.rows[0].status == "done", report.rows[0].reason
    assert tree(out / "plane.ome.zarr") == tree(undisturbed / "plane.ome.zarr")
    # Whole shards are kept; made again are the torn one and those that were written beside the fault, unrecorded.
    assert 22 - after + (after == 5) <= written + 1000 <= 22 - after + (after == 5) + 3
    assert not part.exists()


def test_a_file_torn_by_a_kill_does_not_stay(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    honest = omezarr.write_shard

    def write_shard(target: Place, level: omezarr.Level, index: tuple[int, ...], data: np.ndarray) -> str:
        digest = honest(target, level, index, data)
        if index == (1, 1):  # what is left of a write that is killed
            (Path(target.name) / level.path / "c" / "1" / ".0.4711.1.part").write_bytes(b"torn")
            raise Stop
        return digest

    monkeypatch.setattr(omezarr, "write_shard", write_shard)
    with pytest.raises(Stop):
        upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out, options=SMALL)
    assert list(out.rglob(".0.*.part"))
    monkeypatch.setattr(omezarr, "write_shard", honest)
    upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out, options=SMALL)
    upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=tmp_path / "calm", options=SMALL)
    assert tree(out / "plane.ome.zarr") == tree(tmp_path / "calm" / "plane.ome.zarr")


def test_a_result_that_lost_a_shard_is_not_called_complete(scans: Path, tmp_path: Path) -> None:
    upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=tmp_path, options=SMALL)
    (tmp_path / "plane.ome.zarr" / "0" / "c" / "1" / "1").unlink()
    row = upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=tmp_path, options=SMALL).rows[0]
    assert row.status == "failed"
    assert "lost shards" in row.reason


def test_the_old_result_stays_until_the_new_one_is_whole(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=tmp_path, options=SMALL)
    before = tree(tmp_path / "plane.ome.zarr")

    def stop(*_: object) -> str:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(omezarr, "write_shard", stop)
        with pytest.raises(Stop):
            upscale_folder(scans / "plane.tif", Cubic((4, 4)), out=tmp_path, options=SMALL, overwrite=True)
    assert tree(tmp_path / "plane.ome.zarr") == before
    upscale_folder(scans / "plane.tif", Cubic((4, 4)), out=tmp_path, options=SMALL, overwrite=True)
    assert zarr.open_array(tmp_path / "plane.ome.zarr", path="0").shape == (1024, 1024)
    assert sorted(p.name for p in tmp_path.glob("*.zarr*")) == ["plane.ome.zarr"]


class Deadly(Cubic):
    """Kills its process at scans of a certain size, as the kernel does when memory is short; not in the probe."""

    def __call__(self, low: Tensor, /) -> Tensor:
        if low.shape[-1] == 40 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(low)


def test_workers_that_die_at_every_try_cost_their_scan_only(tmp_path: Path) -> None:
    for name, size in (("a", 64), ("b", 40), ("c", 64)):
        tifffile.imwrite(tmp_path / f"{name}.tif", tifffile.imread(NUCLEI)[3, :size, :size])
    report = upscale_folder(sorted(tmp_path.glob("*.tif")), Deadly((2, 2)), out=tmp_path / "out", workers=2)
    assert {row.scan: row.status for row in report.rows} == {"a": "done", "b": "failed", "c": "done"}
    assert "died 3 times at the same shard" in report.rows[1].reason


class DeadlyOnce(Cubic):
    """Kills its process the first time it sees a tile with a certain file absent."""

    def __init__(self, factor: tuple[int, ...], mark: str) -> None:
        super().__init__(factor)
        self.mark = mark

    def __repr__(self) -> str:
        return "Cubic"

    def __call__(self, low: Tensor, /) -> Tensor:
        if multiprocessing.parent_process() is not None:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(low)


def test_a_killed_worker_costs_its_shards_only(scans: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    method = DeadlyOnce((2, 2), str(tmp_path / "mark"))
    report = upscale_folder(
        scans / "plane.tif", method, out=tmp_path / "out", options=SMALL, workers=2, note=notes.append
    )
    assert report.rows[0].status == "done", report.rows[0].reason
    assert any("was killed" in line for line in notes)
    upscale_folder(scans / "plane.tif", method, out=tmp_path / "calm", options=SMALL)
    assert shards(tmp_path / "out" / "plane.ome.zarr") == shards(tmp_path / "calm" / "plane.ome.zarr")


def test_padding_is_neither_interpolated_nor_averaged(tmp_path: Path) -> None:
    stored = tifffile.imread(NUCLEI)[3, :64, :64].astype("int16")
    stored[:, :20] = -2000
    scan = Scan(stored, Grid(("y", "x")), Intensity(0, 3000, np.dtype("int16"), padding=(-2000, -2000)))
    for upscaler in (Cubic((2, 2)), SRResNet((2, 2), features=6, blocks=1)):
        result = upscale(scan, upscaler, tile=(23, 17)).data[:]
        assert (result[:, :40] == -2000).all()
        assert result[:, 40:].min() > -1500
    coarse = omezarr.average(stored, (2, 2), intensity=scan.intensity)
    assert (coarse[:, :10] == -2000).all()
    assert coarse[:, 10:].min() >= 0


def test_infinity_stays_infinity() -> None:
    heights = np.ones((16, 16), "float32")
    heights[3, 4], heights[9, 9] = np.inf, np.nan
    result = upscale(Scan(heights, Grid(("y", "x")), Intensity(0, 2, np.dtype("float32"))), Cubic((2, 2))).data[:]
    assert np.isinf(result).sum() == 4
    assert np.isnan(result).sum() == 4


def test_memory_is_kept_for_a_float_stack(tmp_path: Path) -> None:
    """The peak of a process that upscales a stack whose pyramid would not fit."""
    stack = np.tile(tifffile.imread(NUCLEI)[:16].astype("float32"), (2, 3, 3))
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=False)
    code = (
        "import sys; from pathlib import Path; from medsr.batch import *; from medsr.methods import Cubic;"
        "r = upscale_folder(sys.argv[1], Cubic((1, 2, 2)), out=sys.argv[2], memory=int(9e8));"
        "assert r.exit_code == 0, r.rows; status = Path('/proc/self/status').read_text();"
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1000)"  # ru_maxrss knows the parent's too
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "stack.tif"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) < 900


def test_an_object_without_pixels_is_skipped_in_a_folder_and_fails_by_name(tmp_path: Path) -> None:
    report_file = Path(pydicom.__file__).parent / "data" / "test_files" / "test-SR.dcm"
    shutil.copy(report_file, tmp_path / "report.dcm")
    shutil.copy(MAMMOGRAM, tmp_path / "film.dcm")
    searched = upscale_folder(tmp_path, Cubic((2, 2)), out=tmp_path / "out", dry_run=True)
    assert {row.scan: row.status for row in searched.rows} == {"film": "planned", "report": "skipped"}
    assert searched.exit_code == 0
    named = upscale_folder(tmp_path / "report.dcm", Cubic((2, 2)), out=tmp_path / "out", dry_run=True)
    assert named.exit_code == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_too_little_memory_is_said_before_the_work(scans: Path, tmp_path: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="expected more than 550 MB for each worker"):
        upscale_folder(scans, Cubic((2, 2)), out=tmp_path / "out", memory=int(5.4e8) * workers, workers=workers)
    assert not (tmp_path / "out").exists()


def test_a_file_as_out_folder_is_refused(scans: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder for the results, found a file"):
        upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=scans / "notes.txt")


def test_two_batches_in_one_folder_are_refused(scans: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "batch.jsonl").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process"):
            upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=tmp_path)


def test_unfinished_work_of_other_options_is_refused_with_the_difference(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    honest = omezarr.write_shard

    def stop(*_: object) -> str:
        raise Stop

    monkeypatch.setattr(omezarr, "write_shard", stop)
    with pytest.raises(Stop):
        upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out)
    monkeypatch.setattr(omezarr, "write_shard", honest)
    report = upscale_folder(scans / "plane.tif", Cubic((4, 4)), out=out)
    assert report.rows[0].status == "failed"
    assert "factor: [2, 2] then, [4, 4] now" in report.rows[0].reason


def test_two_processes_on_one_output_are_refused(scans: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    part = tmp_path / "out" / "plane.ome.zarr.part"
    part.mkdir(parents=True)
    with (part / LOCK).open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        report = upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=tmp_path / "out")
    assert "another process" in report.rows[0].reason


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path; from medsr import *;"
        "import torch; torch.set_num_threads(1); torch.manual_seed(0);"
        "n = SRResNet((2, 2), features=8, blocks=2);"
        "upscale_folder(Path(sys.argv[1]), n, out=Path(sys.argv[2]),"
        "options=OutputOptions(chunk=(1, 64, 64), shard=(1, 128, 128)))",
        str(NUCLEI),
    ]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(calm)], check=True, env=environment)
    process = subprocess.Popen([*command, str(killed)], env=environment)
    records = next(iter([killed / f"{NUCLEI.name.removesuffix('.ome.tif')}.ome.zarr.part" / FILE]))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (records.exists() and records.read_text().count("\n") > 40):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert records.exists(), "the run ended before it was killed"
    subprocess.run([*command, str(killed)], check=True, env=environment)
    (one,), (two,) = calm.glob("*.ome.zarr"), killed.glob("*.ome.zarr")
    assert tree(one) == tree(two)


def test_two_workers_write_what_one_writes(scans: Path, tmp_path: Path) -> None:
    network = SRResNet((2, 2), features=6, blocks=1)
    for workers in (1, 2):
        upscale_folder(
            [scans / "plane.tif", scans / "nuclei.ome.tif"],
            network,
            out=tmp_path / str(workers),
            options=OutputOptions(chunk=(128, 128), shard=(256, 256)),
            workers=workers,
        )
    for name in ("plane", "nuclei"):
        assert tree(tmp_path / "1" / f"{name}.ome.zarr") == tree(tmp_path / "2" / f"{name}.ome.zarr")
    assert not list((tmp_path / "2").glob("*.part"))


def test_results_inside_the_input_folder_are_no_input(scans: Path) -> None:
    out = scans / "out"
    upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=out)
    again = upscale_folder(scans, Cubic((2, 2)), out=out, dry_run=True)
    assert "plane.ome.zarr" not in {Path(row.scan).name for row in again.rows}
    assert sorted(row.scan for row in again.rows) == ["broken", "color", "empty", "nuclei", "plane"]


def test_results_beside_their_inputs_are_no_input(scans: Path) -> None:
    for _ in range(2):
        report = upscale_folder(scans, Cubic((2, 2)), out=scans)
        assert sorted(row.scan for row in report.rows) == ["broken", "color", "empty", "nuclei", "plane"]
    assert {row.status for row in report.rows} == {"skipped", "failed"}
    assert sorted(p.name for p in scans.glob("*.zarr")) == ["nuclei.ome.zarr", "plane.ome.zarr"]


def test_a_dry_run_writes_nothing(scans: Path, tmp_path: Path) -> None:
    report = upscale_folder(scans, Cubic((2, 2)), out=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    planned = [row for row in report.rows if row.status == "planned"]
    assert len(planned) == 2
    assert all(row.details["tiles"] >= 1 and row.details["size_mb"] > 0 for row in planned)


def test_a_full_disk_is_named_and_nothing_has_a_final_name(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device", "0/c/0/0")

    monkeypatch.setattr(omezarr, "write_shard", full)
    report = upscale_folder(scans / "plane.tif", Cubic((2, 2)), out=tmp_path / "out")
    assert report.rows[0].status == "failed"
    assert report.rows[0].reason.startswith(f"{tmp_path / 'out'}: No space left on device")
    assert not list((tmp_path / "out").glob("*.ome.zarr"))


@pytest.mark.parametrize(
    ("shape", "step"), [((5, 7), (2, 2)), ((4, 6), (2, 1)), ((3, 5, 8), (1, 2, 2)), ((3, 4, 5), (2, 2, 2))]
)
def test_the_area_average_keeps_the_mean(shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    data = np.random.default_rng(1).uniform(1, 9, shape)
    coarse = omezarr.average(data, step)
    weights = omezarr.average(np.ones(shape), step)
    assert coarse.shape == tuple(-(-n // s) for n, s in zip(shape, step, strict=True))
    assert (weights == 1).all()
    if all(n % s == 0 for n, s in zip(shape, step, strict=True)):
        assert coarse.mean() == pytest.approx(data.mean())
    integers = omezarr.average((data * 1000).astype("uint16"), step)
    assert integers.dtype == np.uint16
    np.testing.assert_allclose(integers / 1000, coarse, atol=2e-3)


def test_the_area_average_leaves_holes_out() -> None:
    data = np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.nan]], "float32")
    line = Intensity(0, 1, np.dtype("float32"))
    np.testing.assert_array_equal(omezarr.average(data, (2, 2), intensity=line), np.array([[2.0, np.nan]], "float32"))


def test_levels_end_when_a_plane_fits_in_a_chunk() -> None:
    grid = Grid(("z", "y", "x"), (8000.0, 646.0, 646.0))
    levels = omezarr.plan_levels((12, 2048, 2048), grid)
    assert [level.shape for level in levels] == [(12, 2048, 2048), (12, 1024, 1024), (12, 512, 512), (12, 256, 256)]
    isotropic = omezarr.plan_levels((512, 512, 512), Grid(("z", "y", "x"), (1.0, 1.0, 1.0)))
    assert isotropic[1].shape == (256, 256, 256)
    with pytest.raises(ValueError, match="whole chunks"):
        omezarr.plan_levels((512, 512), Grid(("y", "x")), chunk=(100, 100), shard=(256, 256))


def test_a_shard_of_zeros_is_written_too(tmp_path: Path) -> None:
    levels = omezarr.plan_levels((64, 64), Grid(("y", "x")))
    target = Folder(tmp_path / "a")
    assert omezarr.shard_digest(target, levels[0], (0, 0)) is None
    digest = omezarr.write_shard(target, levels[0], (0, 0), np.zeros((64, 64), "uint8"))
    assert omezarr.shard_digest(target, levels[0], (0, 0)) == digest
    assert (tmp_path / "a" / "0" / "c" / "0" / "0").stat().st_size > 0


@pytest.mark.parametrize(("dtype", "warned"), [("float64", True), ("float32", False), ("uint16", False)])
def test_values_finer_than_float32_are_named(tmp_path: Path, dtype: str, warned: bool) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tifffile.imread(NUCLEI)[3].astype(dtype))
    (row,) = upscale_folder(tmp_path / "a.tif", Cubic((2, 2)), out=tmp_path / "out", dry_run=True).rows
    assert any("float32" in warning for warning in row.warnings) == warned
