"""Scans in an object store, on a real S3-compatible server: read as if they were on disk, found, named, cleaned up."""

import gc
import logging
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
import zarr

from medsr.data import MAMMOGRAM, NUCLEI, SURFACE
from medsr.io import Source, find_all, find_scans, omezarr, read_scan, versioned
from medsr.io.digest import input_digest
from medsr.io.places import Folder, Place, place
from medsr.scan import Scan, ScanError
from tests.object_store import bucket

__all__ = ["bucket"]


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which copies are made."""
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def put(store: Place, key: str, file: Path) -> str:
    store.put(key, file.read_bytes())
    return f"{store.name}/{key}"


def put_result(target: Place, scan: Scan, *, job: bool = True) -> tuple[omezarr.Level, ...]:
    levels = omezarr.plan_levels(scan.shape, scan.grid, chunk=(8, 64, 64), shard=(16, 128, 128))
    attributes = {"history": ["made"], **({"job": {"by": "a test"}} if job else {})}
    documents = omezarr.metadata(
        levels, intensity=scan.intensity, name="a", factor=(1,) * len(scan.shape), attributes=attributes
    )
    for number, level in enumerate(levels):
        for index, region in omezarr.shard_regions(level):
            data = scan.read(region) if number == 0 else None
            if data is None:
                data = omezarr.averaged_shard(target, levels[number - 1], level, index, intensity=scan.intensity)
            digest = omezarr.write_shard(target, level, index, data)
            assert digest == omezarr.shard_digest(target, level, index)
    for key, document in documents.items():
        target.put(key, document)
    return levels


def same(found: Scan, expected: Scan) -> None:
    assert found.grid == expected.grid
    assert found.intensity == expected.intensity
    assert found.history == expected.history
    assert found.warnings == expected.warnings
    assert found.reader == expected.reader
    np.testing.assert_array_equal(found.read(), expected.read())


def test_an_ome_zarr_written_to_a_store_is_what_is_written_to_disk(bucket, tmp_path):
    scan = read_scan(NUCLEI)
    there, here = place(f"{bucket}/results/nuclei.ome.zarr"), Folder(tmp_path / "nuclei.ome.zarr")
    levels = put_result(there, scan)
    put_result(here, scan)
    assert there.keys() == here.keys()
    assert [there.get(key) for key in there.keys("")] == [here.get(key) for key in here.keys("")]
    assert omezarr.is_whole(there, levels)
    assert omezarr.stored_job(there) == {"by": "a test"}
    array = zarr.open_array(there.zarr_store(), path="0", mode="r")
    np.testing.assert_array_equal(array[...], scan.read())
    there.delete(omezarr.shard_key(levels[0], (0, 0, 0)))
    assert not omezarr.is_whole(there, levels)


def test_an_ome_zarr_is_read_in_place(bucket, tmp_path, private):
    put_result(place(f"{bucket}/a.ome.zarr"), read_scan(NUCLEI))
    put_result(Folder(tmp_path / "a.ome.zarr"), read_scan(NUCLEI))
    found, expected = read_scan(f"{bucket}/a.ome.zarr"), read_scan(tmp_path / "a.ome.zarr")
    same(found, expected)
    np.testing.assert_array_equal(found.data[3:5, 100:180, 7], expected.data[3:5, 100:180, 7])
    assert list(private.iterdir()) == []
    code = "import pickle, sys; print(int(pickle.load(sys.stdin.buffer).data[3, 100:180, 7].astype('int64').sum()))"
    other = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(found), capture_output=True, check=True)
    assert int(other.stdout) == int(expected.data[3, 100:180, 7].astype("int64").sum())


def test_an_ome_zarr_of_another_writer_is_read_in_place(bucket, tmp_path):
    """Version 0.4, plain chunks, in a collection."""
    data = read_scan(NUCLEI).read()[:4]
    root = tmp_path / "a.zarr"
    zarr.create_group(root, zarr_format=2).attrs["bioformats2raw.layout"] = 3
    for number in (0, 1):
        group = zarr.create_group(root / str(number), zarr_format=2)
        axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
        steps = [{"type": "scale", "scale": [0.3, 0.2, 0.2]}]
        multiscale = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
        group.attrs["multiscales"] = [multiscale]
        array = group.create_array("0", shape=data.shape, dtype=data.dtype, chunks=(1, 64, 64))
        array[...] = data + number
    store = place(f"{bucket}/a.zarr")
    for key in Folder(root).keys(""):
        store.put(key, Folder(root).get(key) or b"")
    with pytest.raises(ScanError, match=r"s3://lab-\w+/a\.zarr: expected the number or name of one of 2 images"):
        read_scan(f"{bucket}/a.zarr")
    same(read_scan(f"{bucket}/a.zarr", series=1), read_scan(root, series=1))
    store.delete(store.keys("1/0/")[-1])
    assert any("1 of 64 files of samples are not there" in w for w in read_scan(store.name, series=1).warnings)


@pytest.mark.parametrize("sample", [MAMMOGRAM, NUCLEI, SURFACE])
def test_a_file_is_read_from_a_private_copy(bucket, private, sample):
    url = put(place(bucket), f"in/{sample.name}", sample)
    found, expected = read_scan(url), read_scan(sample)
    same(found, expected)
    (copy,) = private.rglob(sample.name)
    (folder,) = private.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    again = read_scan(url)
    assert list(private.rglob(sample.name)) == [copy]
    travelled = pickle.loads(pickle.dumps(found))
    del found
    gc.collect()
    assert copy.exists()
    del again
    gc.collect()
    assert list(folder.iterdir()) == []
    np.testing.assert_array_equal(travelled.read(), expected.read())
    assert len(list(private.rglob(sample.name))) == 1
    del travelled
    gc.collect()
    assert list(folder.iterdir()) == []


HOLDS = """
import sys, tempfile
tempfile.tempdir = sys.argv[2]
from medsr.io import read_scan
scan = read_scan(sys.argv[1])
print(scan.data[3, 4, 5], flush=True)
sys.stdin.read()
"""


def test_processes_share_a_copy_and_what_a_killed_one_left_is_swept(bucket, private):
    url = put(place(bucket), "a.tif", NUCLEI)
    other = put(place(bucket), "b.tif", NUCLEI)
    ask = [sys.executable, "-c", HOLDS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*ask, url, str(private)], **pipes) for _ in range(3)]
    first = {process.stdout.readline() for process in running}
    (copy,) = private.rglob("a.tif")
    assert first == {f"{read_scan(NUCLEI).data[3, 4, 5]}\n"}
    running[0].communicate()
    assert copy.exists()
    for process in running[1:]:
        process.kill()
        process.communicate()
    assert copy.exists()
    inode = copy.stat().st_ino
    again = subprocess.Popen([*ask, url, str(private)], **pipes)
    again.stdout.readline()
    assert copy.stat().st_ino == inode  # taken over
    again.kill()
    again.communicate()
    assert subprocess.run([*ask, other, str(private)], stdin=subprocess.DEVNULL, check=True, capture_output=True)
    (folder,) = private.iterdir()
    assert list(folder.iterdir()) == []


def test_copies_that_come_and_go_in_many_processes_are_whole(bucket, private):
    """Each fetches, reads and lets go, over and over, while the others do."""
    url = put(place(bucket), "a.tif", NUCLEI)
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[2]; from medsr.io import read_scan\n"
        "print({int(read_scan(sys.argv[1]).read().sum()) for _ in range(6)})"
    )
    ask = [sys.executable, "-c", code, url, str(private)]
    running = [subprocess.Popen(ask, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert {process.communicate()[0] for process in running} == {f"{{{int(read_scan(NUCLEI).read().sum())}}}\n"}
    (folder,) = private.iterdir()
    assert list(folder.iterdir()) == []


def test_a_folder_of_somebody_else_is_not_used(bucket, private):
    url = put(place(bucket), "a.tif", NUCLEI)
    read_scan(url)
    (folder,) = private.iterdir()
    folder.chmod(0o755)
    with pytest.raises(OSError, match=r"expected a folder of your own \(mode 700\).*TMPDIR"):
        read_scan(url)
    folder.rmdir()
    (private / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(private / "elsewhere")
    with pytest.raises(OSError, match=r"expected a folder of your own"):
        read_scan(url)


def test_copies_go_with_the_process(bucket, private):
    url = put(place(bucket), NUCLEI.name, NUCLEI)
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[2]; from medsr.io import read_scan; "
        "scan = read_scan(sys.argv[1]); from pathlib import Path; print(len([*Path(sys.argv[2]).rglob('*.tif')]))"
    )
    ended = subprocess.run([sys.executable, "-c", code, url, str(private)], capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"
    assert ended.stderr == ""
    assert list(private.glob("*/*")) == []


def test_a_file_replaced_under_way_is_not_mixed(bucket, tmp_path):
    store = place(bucket)
    url = put(store, "a.tif", NUCLEI)
    travelled = pickle.loads(pickle.dumps(read_scan(url)))
    tifffile.imwrite(tmp_path / "shorter.tif", read_scan(NUCLEI).read()[:5])
    put(store, "a.tif", tmp_path / "shorter.tif")
    assert read_scan(url).shape == (5, 256, 256)
    with pytest.raises(ScanError, match=rf"{url}: expected .* as .* found .*again"):
        travelled.read()


@pytest.mark.parametrize("name", ["a.tif", "a.ome.zarr"])
def test_a_replaced_scan_of_the_same_form_is_refused(bucket, tmp_path, name):
    """As the workers of a job read it: its source is opened again, or its scan unpickled."""
    store, scan = place(bucket), read_scan(NUCLEI)

    def write(samples: np.ndarray) -> None:
        if name.endswith("tif"):
            tifffile.imwrite(tmp_path / name, samples)
            put(store, name, tmp_path / name)
        else:
            put_result(store.child(name), replace(scan, data=samples))

    samples = scan.read()
    write(samples)
    (found,) = find_scans(f"{bucket}/{name}")
    source = pickle.loads(pickle.dumps(versioned(found)))
    opened = read_scan(source)
    travelled = pickle.dumps(opened)
    assert read_scan(source).intensity == opened.intensity
    time.sleep(1.1)  # times of change are whole seconds there
    write(samples[::-1])
    with pytest.raises(ScanError, match=rf"{bucket}/{name}: expected .* as .* found .*again"):
        read_scan(source, intensity=opened.intensity)
    np.testing.assert_array_equal(read_scan(found).read(), samples[::-1])
    if name.endswith("tif"):
        with pytest.raises(ScanError, match=rf"{bucket}/{name}: expected .* as .* found .*again"):
            pickle.loads(travelled).read()


def test_errors_name_the_url(bucket, tmp_path, private):
    store = place(f"{bucket}/in")
    (tmp_path / "bad.tif").write_bytes(NUCLEI.read_bytes()[:3000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("no image")
    for name in ("bad.tif", "empty.png", "notes.txt"):
        url = put(store, name, tmp_path / name)
        with pytest.raises(ScanError, match=rf"^{url}: ") as caught:
            read_scan(url).read()
        assert str(private) not in str(caught.value)
        del caught  # its traceback holds the copy
    gc.collect()
    assert list(private.glob("*/*")) == []


def test_what_is_not_there_is_named(bucket):
    for url, found in {
        f"{bucket}/gone.tif": "nothing there; check the name, the endpoint",
        f"{bucket}-gone/a.tif": "bucket does not exist; check the name, the endpoint",
        bucket: "none in this folder",
    }.items():
        with pytest.raises(ScanError, match=rf"^{url}: expected .*, found .*{found}"):
            read_scan(url)
    with pytest.raises(ScanError, match="half-written result"):
        find_scans(f"{bucket}/a.ome.zarr.part")


def test_scans_below_a_url_are_found(bucket, caplog, tmp_path):
    store = place(bucket)
    for key, sample in {
        "in/b/scan 10.tif": NUCLEI, "in/b/scan 2.tif": NUCLEI, "in/scan 2.tif": NUCLEI, "in/m/1.dcm": MAMMOGRAM,
        "in/m/2.dcm": MAMMOGRAM, "in/.hidden.tif": NUCLEI, "in/old.czi": NUCLEI, "in/README": NUCLEI,
        "elsewhere/c.tif": NUCLEI, "in/half.ome.zarr.part/x.tif": NUCLEI, "index.html": NUCLEI,
        "in/half.ome.zarr/0/zarr.json": NUCLEI,
    }.items():  # fmt: skip
        put(store, key, sample)
    put_result(store.child("in/volume.ome.zarr"), read_scan(NUCLEI))
    marker = {"Bucket": bucket.removeprefix("s3://"), "Key": "in/m/", "Body": b""}  # as consoles make folders
    fsspec.filesystem("s3", use_listings_cache=False).call_s3("put_object", **marker)
    with caplog.at_level(logging.WARNING):
        found = find_scans(f"{bucket}/in")
    assert [(s.location.removeprefix(f"{bucket}/in/"), s.name) for s in found] == [
        ("b/scan 2.tif", "b_scan 2"),
        ("b/scan 10.tif", "scan 10"),
        ("m/1.dcm", "1"),
        ("m/2.dcm", "2"),
        ("scan 2.tif", "scan 2"),
        ("volume.ome.zarr", "volume"),
    ]
    assert "2 DICOM files, each taken as a scan of its own; copy the slices of one series to disk" in caplog.text
    assert "half.ome.zarr: left out, a half-written OME-Zarr" in caplog.text
    assert "1 (Zeiss CZI)" in caplog.text
    assert "1 (no ending)" in caplog.text  # README, not the marker
    travelled = pickle.loads(pickle.dumps(found))
    assert travelled == found
    assert len({hash(s) for s in found}) == 6
    np.testing.assert_array_equal(read_scan(travelled[0]).read(), read_scan(NUCLEI).read())
    np.testing.assert_array_equal(read_scan(travelled[-1]).read(), read_scan(NUCLEI).read())
    with pytest.raises(ScanError, match=rf"{bucket}/in: expected one scan, found 6"):
        read_scan(f"{bucket}/in")
    same(read_scan(f"{bucket}/elsewhere"), read_scan(NUCLEI))


def test_several_places_give_one_list(bucket, tmp_path):
    url = put(place(bucket), "a.tif", NUCLEI)
    shutil.copy(NUCLEI, tmp_path / "a.tif")
    found = find_all([url, tmp_path], out=tmp_path / "out")
    assert [s.name for s in found] == ["a", "a_2"]
    assert [s.location for s in found] == [url, str(tmp_path / "a.tif")]
    put(place(f"{bucket}/text"), "a.txt", NUCLEI)
    with pytest.raises(ScanError, match=rf"^{bucket}/text: expected DICOM.* found none"):
        find_all(f"{bucket}/text")


def test_results_are_no_input(bucket):
    store = place(bucket)
    url = put(store, "a.tif", NUCLEI)
    put_result(store.child("out/a.ome.zarr"), read_scan(NUCLEI))
    put_result(store.child("out/theirs.ome.zarr"), read_scan(NUCLEI), job=False)
    names = [s.location for s in find_scans(bucket, results=f"{bucket}/out")]
    assert names == [url]
    assert len(find_scans(bucket)) == 3
    assert [s.name for s in find_scans(f"{bucket}/out", results=f"{bucket}/out")] == ["theirs"]


def test_the_digest_tells_a_changed_input(bucket, tmp_path, private):
    store = place(bucket)
    url = put(store, NUCLEI.name, NUCLEI)
    (source,) = find_scans(url)
    assert input_digest(source) == input_digest([NUCLEI])
    gc.collect()
    assert list(private.glob("*/*")) == []
    put_result(store.child("a.ome.zarr"), read_scan(NUCLEI))
    (volume,) = find_scans(f"{bucket}/a.ome.zarr")
    before = input_digest(volume)
    assert before == input_digest(volume)
    key = store.keys("a.ome.zarr/0/c/")[0]
    stored = store.get(key) or b""
    store.put(key, stored[:-1] + bytes([stored[-1] ^ 1]))
    assert input_digest(volume) != before
    store.put(key, stored)
    assert input_digest(volume) == before


def test_a_source_shows_no_secret():
    source = Source(Path("a"), (Path("a"),), "a", url="https://me:secret@host.org/a.tif?token=b")
    assert source.location == "https://host.org/a.tif"
    assert "secret" not in repr(source)
    assert "token" not in repr(source)
