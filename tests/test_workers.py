"""Shares, processes and a Dask cluster fill the same bytes; what is killed is done again."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr

from medsr.batch import upscale_folder
from medsr.data import NUCLEI
from medsr.header import FILE, JOB
from medsr.io import omezarr
from medsr.job import OutputOptions
from medsr.locks import TakenError, lock, release
from medsr.methods.interpolation import Cubic
from medsr.methods.srresnet import SRResNet
from medsr.methods.widths import Widths
from medsr.shards import Share
from medsr.trust.distances import Interval, LearnedWidths

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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_cluster_writes_the_ends_of_intervals_beside_the_estimate(
    plane: Path, tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    torch.manual_seed(0)
    made = Interval(LearnedWidths(Cubic((2, 2)), Widths((2, 2), features=4, blocks=1)), scaling=2.0)
    for name, scheduler in (("out", cluster[0]), ("calm", None)):
        row = upscale_folder(plane, made, out=tmp_path / name, options=SMALL, scheduler=scheduler).rows[0]
        assert row.status == "done", row.reason
    assert tree(tmp_path / "out" / "plane.ome.zarr") == tree(tmp_path / "calm" / "plane.ome.zarr")
    assert (tmp_path / "out" / "plane.ome.zarr" / "upper" / "0" / "c").is_dir()


def test_a_scheduler_that_is_not_there_is_named(plane: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(OSError, match=r"tcp://127\.0\.0\.1:9: expected a Dask scheduler"):
        upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out", scheduler="tcp://127.0.0.1:9")


class StopError(Exception):
    """Stands for a crash."""


def stopped_at_once(plane: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
    """Unfinished work of a job."""

    def stop(*_: object) -> str:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(omezarr, "write_shard", stop)
        assert upscale_folder(plane, out=out, **given).rows[0].status == "failed"  # type: ignore[arg-type]


def test_overwrite_takes_nothing_over_from_the_old_job(
    plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    network = SRResNet((2, 2), features=8, blocks=1)
    stopped_at_once(plane, out, monkeypatch, upscaler=network, engine="auto", tolerance=1e9)
    row = upscale_folder(plane, network, out=out, options=SMALL, engine="torch", tolerance=0, overwrite=True).rows[0]
    assert row.status == "done"
    assert row.details["engine"] == "engine torch float32, the reference"
    assert zarr.open_array(out / "plane.ome.zarr", path="0").shards == (64, 64)


def test_an_input_of_other_axes_is_a_named_difference(
    plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(NUCLEI, plane)
    stopped_at_once(plane, tmp_path / "out", monkeypatch, upscaler=Cubic((2, 2)))
    tifffile.imwrite(plane, tifffile.imread(NUCLEI)[3])
    row = upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out").rows[0]
    assert "input_sha256" in row.reason
    assert upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out", overwrite=True).rows[0].status == "done"


def test_a_changed_tile_is_refused_by_name(plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = OutputOptions(tile=(64, 64))
    stopped_at_once(plane, tmp_path / "out", monkeypatch, upscaler=Cubic((2, 2)), options=options)
    row = upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out", options=OutputOptions(tile=(32, 32))).rows[0]
    assert "tile: [64, 64] then, [32, 32] now" in row.reason


def test_less_memory_than_the_begun_tiles_need_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "plane.tif", np.tile(tifffile.imread(NUCLEI)[3], (3, 3)))
    network = SRResNet((2, 2), features=32, blocks=1)
    given = {"upscaler": network, "engine": "torch", "memory": int(4e9)}
    stopped_at_once(tmp_path / "plane.tif", tmp_path / "out", monkeypatch, **given)
    row = upscale_folder(tmp_path / "plane.tif", network, out=tmp_path / "out", engine="torch", memory=int(6e8)).rows[0]
    assert row.status == "failed"
    assert "begun with tiles that need" in row.reason


@pytest.mark.parametrize("lost", [False, True])
def test_the_last_share_does_what_was_torn_of_the_others(plane: Path, tmp_path: Path, lost: bool) -> None:
    out = tmp_path / "out"
    upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(1, 2))
    shard = out / "plane.ome.zarr.part" / "0" / "c" / "0" / "0"
    if lost:
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[20:60] = bytes(40)
        shard.write_bytes(data)
    assert upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(2, 2)).rows[0].status == "done"
    assert tree(out / "plane.ome.zarr") == calm(plane, tmp_path)


def test_shares_of_many_small_scans_at_the_same_time(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number, field in enumerate(tifffile.imread(NUCLEI)[:24]):
        tifffile.imwrite(scans / f"field {chr(97 + number)}.tif", field[:64, :64])
    command = (
        "import sys; from medsr import *;"
        "r = upscale_folder(sys.argv[1], Cubic((2, 2)), out=sys.argv[2], part=Share(int(sys.argv[3]), 3));"
        "sys.exit(r.exit_code)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", command, str(scans), str(out), str(number)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for number in (1, 2, 3)
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert len(list(out.glob("*.ome.zarr"))) == 24
    assert list(out.glob("*.part")) == []


def test_ctrl_c_ends_a_batch_of_more_scans_than_workers(tmp_path: Path) -> None:
    for number in range(4):
        tifffile.imwrite(tmp_path / f"a{chr(97 + number)}.tif", np.tile(tifffile.imread(NUCLEI)[3], (6, 6)))
    command = (
        "import sys; from medsr import *;"
        "upscale_folder(sys.argv[1], Lanczos((3, 3)), out=sys.argv[1] + '/out', workers=2,"
        "tick=lambda *a: print(*a, flush=True), options=OutputOptions(shard=(256, 256)))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert run.stdout is not None
    while " 5 " not in run.stdout.readline():
        pass
    os.killpg(run.pid, signal.SIGINT)
    run.stdout.close()
    assert run.wait(timeout=60) != 0


def test_a_record_of_other_bytes_is_no_record(plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, part=Share(1, 2))
    (records,) = (out / "plane.ome.zarr.part").glob("medsr-progress*.jsonl")
    torn = records.read_bytes() + b'{"level": 0, "shard": 3, "digest": "a"}\n\xff\xfe\x00'
    records.write_bytes(torn)
    (records.parent / FILE).write_bytes(torn)  # its own file, too
    row = upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL).rows[0]
    assert row.status == "done", row.reason
    assert tree(out / "plane.ome.zarr") == calm(plane, tmp_path)


def test_an_engine_that_does_not_run_here_is_named(
    plane: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    network = SRResNet((2, 2), features=8, blocks=1)
    stopped_at_once(plane, tmp_path / "out", monkeypatch, upscaler=network, engine="openvino", tolerance=1e9)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        row = upscale_folder(plane, network, out=tmp_path / "out", engine="openvino", tolerance=1e9).rows[0]
    assert row.status == "failed"
    assert "cannot run here" in row.reason
    assert "medsr[fast]" in row.reason
    row = upscale_folder(plane, network, out=tmp_path / "out", engine="openvino", tolerance=1e9).rows[0]
    assert row.status == "done"
    assert "openvino" in row.details["engine"]


def test_an_input_that_changes_under_the_workers_is_not_mixed_in(plane: Path, tmp_path: Path) -> None:
    def tick(_: str, done: int, total: int) -> None:
        if done == total // 4:
            tifffile.imwrite(plane, tifffile.imread(NUCLEI)[9])
            workers[0].kill()

    from medsr import workers as crews

    workers: list[object] = []
    honest = crews.Processes.start

    def start(self: crews.Processes, number: int) -> object:
        workers.append(honest(self, number).process)
        return self_worker(self)

    def self_worker(self: crews.Processes) -> object:
        return next(w for w in self._all if w.process is workers[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crews.Processes, "start", start)
        row = upscale_folder(plane, Cubic((2, 2)), out=tmp_path / "out", options=SMALL, workers=2, tick=tick).rows[0]
    assert row.status == "failed"
    assert "plane.tif" in row.reason
    assert not (tmp_path / "out" / "plane.ome.zarr").exists()


def test_a_lock_is_given_up_though_another_process_has_its_file(tmp_path: Path) -> None:
    """As a process does that was started by another thread while the lock was held."""
    with (tmp_path / "lock").open("a+") as again:
        held = (tmp_path / "lock").open("a+")
        lock(held, tmp_path)
        other = os.dup(held.fileno())
        try:
            with pytest.raises(TakenError):
                lock(again, tmp_path, keep_open=True)
            release(held)
            lock(again, tmp_path, keep_open=True)
        finally:
            os.close(other)
