"""upscale_folder to and from a real S3-compatible server: the same bytes as on disk, whatever stops it."""

import shutil
from pathlib import Path

import pytest
import tifffile

from medsr.batch import upscale_folder
from medsr.data import NUCLEI
from medsr.header import JOB, RECORDS
from medsr.io import omezarr, read_scan
from medsr.io.places import Bucket, place
from medsr.job import OutputOptions
from medsr.methods.interpolation import Cubic
from medsr.shards import Share
from tests.object_store import bucket

__all__ = ["bucket"]

SMALL = OutputOptions(chunk=(64, 64), shard=(128, 128))


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, tifffile.imread(NUCLEI)[3])
    return path


def on_disk(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def in_store(url: str) -> dict[str, bytes]:
    there = place(url)
    return {key: there.get(key) or b"" for key in there.keys()}  # noqa: SIM118 - a place, not a dict


@pytest.fixture
def calm(plane: Path, tmp_path: Path) -> dict[str, bytes]:
    upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "calm", options=SMALL)
    return on_disk(tmp_path / "calm" / "plane.ome.zarr")


def test_a_result_in_a_bucket_equals_that_on_disk(bucket: str, plane: Path, calm: dict[str, bytes]) -> None:
    out = f"{bucket}/out"
    assert upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL).rows[0].status == "done"
    assert in_store(f"{out}/plane.ome.zarr") == calm
    assert upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL).rows[0].status == "skipped"
    assert b"plane" in (place(out).get("batch.jsonl") or b"")
    other = upscale_folder(plane, Cubic((4, 4)), out=out, options=SMALL).rows[0]
    assert "--overwrite" in other.reason
    assert upscale_folder(plane, Cubic((4, 4)), out=out, options=SMALL, overwrite=True).rows[0].status == "done"
    assert read_scan(f"{out}/plane.ome.zarr").shape == (1024, 1024)


def test_scans_in_a_bucket_are_read_there(bucket: str, plane: Path, tmp_path: Path, calm: dict[str, bytes]) -> None:
    scans = place(f"{bucket}/scans")
    scans.put("plane.tif", plane.read_bytes())
    scans.put("broken.tif", plane.read_bytes()[:3000])
    report = upscale_folder(f"{bucket}/scans", Cubic((2, 2)), out=tmp_path / "out", options=SMALL)
    assert {row.scan: row.status for row in report.rows} == {"plane": "done", "broken": "failed"}
    shards = {key: data for key, data in calm.items() if "/c/" in key}
    found = on_disk(tmp_path / "out" / "plane.ome.zarr")
    assert {key: data for key, data in found.items() if "/c/" in key} == shards
    # What was written there is read there, chunk by chunk, by workers, too.
    upscale_folder(plane, Cubic((2, 2)), out=f"{bucket}/once", options=SMALL)
    report = upscale_folder(
        f"{bucket}/once/plane.ome.zarr", Cubic((1, 2)), out=f"{bucket}/twice", options=SMALL, workers=2
    )
    assert report.rows[0].status == "done", report.rows[0].reason
    assert read_scan(f"{bucket}/twice/plane.ome.zarr").shape == (512, 1024)


class StopError(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("after", [0, 7, 21])
def test_a_stopped_job_goes_on(
    bucket: str, plane: Path, calm: dict[str, bytes], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = f"{bucket}/out{after}", 0
    honest = omezarr.write_shard

    def write_shard(*args: object) -> str:
        nonlocal written
        if written >= after:
            raise StopError
        written += 1
        return honest(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(omezarr, "write_shard", write_shard)
        assert upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL).rows[0].status == "failed"
    unfinished = Bucket(f"{out}/plane.ome.zarr")
    assert unfinished.get("zarr.json") is None, "no reader takes it for a result"
    assert unfinished.get(JOB) is not None
    if after == 7:  # one object was replaced by something else
        key = next(key for key in unfinished.keys("0/c/"))
        unfinished.put(key, b"something else")
    row = upscale_folder(plane, Cubic((4, 4)), out=out, options=SMALL).rows[0]
    assert "factor: [2, 2] then, [4, 4] now" in row.reason
    assert upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL).rows[0].status == "done"
    assert in_store(f"{out}/plane.ome.zarr") == calm
    assert unfinished.keys(RECORDS) == []


def test_shares_meet_in_a_bucket(bucket: str, plane: Path, calm: dict[str, bytes]) -> None:
    out = f"{bucket}/shares"
    rows = [
        upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(n, 3)).rows[0].status for n in (3, 1, 2)
    ]
    assert rows == ["waiting", "waiting", "done"]
    assert in_store(f"{out}/plane.ome.zarr") == calm


def test_a_bucket_that_is_not_there_is_named(bucket: str, plane: Path) -> None:
    with pytest.raises(OSError, match="bucket does not exist") as caught:
        upscale_folder(plane, Cubic((2, 2)), out="s3://no-such-bucket/out", options=SMALL)
    assert "s3://no-such-bucket/out" in str(caught.value.filename)


def test_the_grid_survives_the_way_through_a_bucket(bucket: str, tmp_path: Path) -> None:
    shutil.copy(NUCLEI, tmp_path / "nuclei.ome.tif")
    upscale_folder(tmp_path / "nuclei.ome.tif", Cubic((1, 2)), out=bucket + "/n")
    assert read_scan(f"{bucket}/n/nuclei.ome.zarr").grid.spacing_um == pytest.approx((0.29, 0.26, 0.13))


def test_what_is_not_ours_is_not_removed(bucket: str, plane: Path) -> None:
    there = place(f"{bucket}/out/plane.ome.zarr")
    there.put("notes.txt", b"somebody's")
    row = upscale_folder(plane, Cubic((2, 2)), out=f"{bucket}/out", options=SMALL).rows[0]
    assert row.status == "failed"
    assert "expected an empty place for the result, found notes.txt" in row.reason
    assert there.get("notes.txt") == b"somebody's"
    assert upscale_folder(plane, Cubic((2, 2)), out=f"{bucket}/out", options=SMALL, overwrite=True).exit_code == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_scan_is_never_replaced_by_its_result(bucket: str, plane: Path, tmp_path: Path, overwrite: bool) -> None:
    upscale_folder(plane, Cubic((2, 2)), out=f"{bucket}/raw", options=SMALL)
    upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "raw", options=SMALL)
    for raw in (f"{bucket}/raw", str(tmp_path / "raw")):
        before = in_store(f"{raw}/plane.ome.zarr")
        report = upscale_folder(f"{raw}/plane.ome.zarr", Cubic((4, 4)), out=raw, options=SMALL, overwrite=overwrite)
        assert report.rows[0].status == "failed", report
        assert "take the place of the scan" in report.rows[0].reason
        assert in_store(f"{raw}/plane.ome.zarr") == before


def test_a_store_that_does_not_answer_costs_no_result(
    bucket: str, plane: Path, calm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    upscale_folder(plane, Cubic((2, 2)), out=bucket, options=SMALL)
    honest = Bucket.get

    def get(self: Bucket, key: str, /) -> bytes | None:
        if key == "zarr.json":
            raise OSError(5, "Input/output error", key)
        return honest(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "get", get)
        row = upscale_folder(plane, Cubic((4, 4)), out=bucket, options=SMALL).rows[0]
    assert row.status == "failed"
    assert in_store(f"{bucket}/plane.ome.zarr") == calm


def test_two_jobs_that_begin_together_end_as_one(
    bucket: str, plane: Path, calm: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds no header, and then one that the first has put in the meantime, with shards behind it."""
    honest = Bucket.put_new
    inside: list[str] = []

    def put_new(self: Bucket, key: str, data: bytes, /) -> bool:
        if not inside:
            inside.append(key)
            first = upscale_folder(plane, Cubic((2, 2)), out=f"{bucket}/out", options=SMALL, part=Share(1, 2)).rows[0]
            assert first.status == "waiting"
        return honest(self, key, data)

    monkeypatch.setattr(Bucket, "put_new", put_new)
    row = upscale_folder(plane, Cubic((2, 2)), out=f"{bucket}/out", options=SMALL, part=Share(2, 2)).rows[0]
    assert row.status == "done", row.reason
    assert in_store(f"{bucket}/out/plane.ome.zarr") == calm
