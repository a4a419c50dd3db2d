"""Shares, processes and a Dask cluster fill the same bytes; what is killed is done again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tifffile

from medsr.batch import upscale_folder
from medsr.data import NUCLEI
from medsr.io import omezarr
from medsr.job import OutputOptions
from medsr.methods.interpolation import Cubic
from medsr.progress import JOB
from medsr.shards import Share

SMALL = OutputOptions(chunk=(32, 32), shard=(64, 64))


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    """A real plane of 256 x 256: 64 shards of the finest level."""
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, tifffile.imread(NUCLEI)[3])
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def calm(plane: Path, tmp_path: Path) -> dict[str, bytes]:
    upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "calm", options=SMALL)
    return tree(tmp_path / "calm" / "plane.ome.zarr")


def test_shares_one_after_the_other(plane: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status = []
    for number in (2, 1, 3):
        row = upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(number, 3)).rows[0]
        status.append(row.status)
        assert (out / "plane.ome.zarr").exists() == (number == 3)
    assert status == ["waiting", "waiting", "done"]
    assert tree(out / "plane.ome.zarr") == calm(plane, tmp_path)
    again = upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(1, 3)).rows[0]
    assert again.status == "skipped"
    assert sorted(p.name for p in out.glob("*.ome.zarr*")) == ["plane.ome.zarr"]


def test_shares_at_the_same_time(plane: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        "import sys; from medsr import *;"
        "r = upscale_folder(sys.argv[1], Cubic((2, 2)), out=sys.argv[2],"
        "options=OutputOptions(chunk=(32, 32), shard=(64, 64)), part=Share(int(sys.argv[3]), 3));"
        "print(r.rows[0].status, r.rows[0].reason)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", command, str(plane), str(out), str(number)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for number in (1, 2, 3)
    ]
    said = [run.communicate()[0] for run in runs]
    assert sum(line.startswith("done") for line in said) == 1, said
    assert tree(out / "plane.ome.zarr") == calm(plane, tmp_path)


def test_the_same_share_twice_is_refused(plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    inside, go_on = threading.Event(), threading.Event()
    honest = omezarr.write_shard

    def write_shard(*args: object) -> str:
        inside.set()
        assert go_on.wait(60)
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(omezarr, "write_shard", write_shard)
    first = threading.Thread(
        target=upscale_folder,
        args=(plane, Cubic((2, 2))),
        kwargs={"out": tmp_path / "out", "options": SMALL, "part": Share(1, 2)},
    )
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(ValueError, match="another process"):
            upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out", options=SMALL, part=Share(1, 2))
        whole = upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out", options=SMALL)
        assert "another process" in whole.rows[0].reason
    finally:
        go_on.set()
        first.join()


def test_a_share_that_was_lost_is_asked_for(plane: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    row = upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(1, 2)).rows[0]
    assert row.status == "waiting"
    assert "32 shards of other shares are not" in row.reason
    # Without --part the same command does what is left.
    assert upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL).rows[0].status == "done"
    assert tree(out / "plane.ome.zarr") == calm(plane, tmp_path)


def test_a_changed_input_is_refused_by_a_share(plane: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(1, 2))
    assert (out / "plane.ome.zarr.part" / JOB).exists()
    tifffile.imwrite(plane, tifffile.imread(NUCLEI)[4])
    row = upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(2, 2)).rows[0]
    assert row.status == "failed"
    assert "input_sha256" in row.reason


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A real scheduler and three workers, each a process of its own."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("dask")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
    file = folder / "scheduler.json"
    common = {"env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    processes = [
        subprocess.Popen([*dask, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], **common)  # type: ignore[call-overload]
    ]
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    import json

    address = json.loads(file.read_text())["address"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    workers = [
        subprocess.Popen([*worker, "--no-nanny", "--local-directory", str(folder)], **common)  # type: ignore[call-overload]
        for _ in range(3)
    ]
    try:
        yield address, workers
    finally:
        for process in (*workers, *processes):
            process.kill()
            process.wait()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_cluster_whose_worker_is_killed_writes_the_same_bytes(
    plane: Path, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = cluster
    out = tmp_path / "out"

    def tick(_: str, done: int, total: int) -> None:
        if done == total // 4:
            workers[0].send_signal(signal.SIGKILL)

    report = upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, scheduler=address, tick=tick)
    assert report.rows[0].status == "done", report.rows[0].reason
    assert workers[0].wait(30) == -signal.SIGKILL
    assert tree(out / "plane.ome.zarr") == calm(plane, tmp_path)


def test_a_scheduler_that_is_not_there_is_named(plane: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(OSError, match=r"tcp://127\.0\.0\.1:9: expected a Dask scheduler"):
        upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out", scheduler="tcp://127.0.0.1:9")
