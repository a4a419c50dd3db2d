"""Line: read ahead, compute, write behind, with bounded queues; one shard, one unit of work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsr.engines import EngineChoice, build_engine
from medsr.header import JOB
from medsr.io import Source, omezarr, read_scan
from medsr.io.places import Place
from medsr.locks import TakenError
from medsr.plan import Plan, torch_device
from medsr.scan import Intensity, Scan
from medsr.shards import Room, Task
from medsr.upscaler import Staged, Upscaler
from medsr.upscaling import Estimate, Loaded, TileRunner, batches, read_tiles

__all__ = ["Line", "ShardJob", "fill_shard", "open_scan"]

Note = Callable[[str], None]
Done = Callable[[Task, str | BaseException], None]


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All a process needs to fill any shard of one result; small, and picklable.

    Attributes:
        source, series: what is read.
        intensity: the line used for it.
        upscaler: already adapted to the scan.
        chosen: tiles, halo, factor and batch.
        target: where the result is being written.
        levels: of the pyramid.
        device, engine: where and how the method runs.
        room: how far the stages of a process may run apart.
        token: of the header of the work; what was begun anew or has ended since is not written to. "": not asked.
    """

    source: Source
    series: str | int | None
    intensity: Intensity
    upscaler: Upscaler
    chosen: Plan
    target: Place
    levels: tuple[omezarr.Level, ...]
    device: str
    engine: EngineChoice
    room: Room
    token: str = ""


def open_scan(job: ShardJob) -> Scan:
    """The job's scan, without measuring its intensity again."""
    return read_scan(job.source, series=job.series, intensity=job.intensity)


def _runner(job: ShardJob, scan: Scan, threads: int, note: Note | None) -> TileRunner:
    place = torch_device(job.device)
    engine = build_engine(job.upscaler, job.engine, device=place, threads=threads, strip=job.chosen.strip, note=note)
    return TileRunner(engine, job.chosen, scan, note=note)


def _groups(job: ShardJob, scan: Scan, task: Task) -> Iterator[Loaded]:
    region = omezarr.shard_region(job.levels[0], task.index)
    for tiles in batches(job.chosen.tiles(scan, region), job.chosen.batch):
        yield read_tiles(scan, tiles, dims=len(job.upscaler.factor))


def _averaged(job: ShardJob, task: Task) -> str:
    """Write a shard of a coarser level, the area average of the level below, one image after the other."""
    finer, level = job.levels[task.level - 1], job.levels[task.level]
    digests = []
    for image in level.images:
        place = omezarr.image_place(job.target, image)
        block = omezarr.averaged_shard(place, finer, level, task.index, intensity=job.intensity)
        digests.append(omezarr.write_shard(place, level, task.index, block))
    return omezarr.joint_digest(digests)


def fill_shard(job: ShardJob, task: Task, scan: Scan, *, turn: threading.Lock, note: Note | None = None) -> str:
    """Compute one whole shard and write it, one step after the other; returns the digest of its bytes.

    Several threads of a process may fill shards of one scan; `turn` lets one at a time read and compute.
    """
    if task.level:
        _refuse_ended(job)
        return _averaged(job, task)
    shard = _Shard(job, task)
    with turn:
        runner = _runner(job, scan, torch.get_num_threads(), note)
        for loaded in _groups(job, scan, task):
            for estimate in runner(loaded):
                shard.place(estimate)
    _refuse_ended(job)
    return shard.write()


def _refuse_ended(job: ShardJob) -> None:
    """Nobody waits any more for what a forgotten worker computes, and another job may have taken the place."""
    if job.token and job.target.digest(JOB) != job.token:
        raise TakenError(f"{job.target.name}: the work was ended or begun anew elsewhere; nothing is written")


class _Shard:
    """A shard of the finest level being filled, of all images."""

    def __init__(self, job: ShardJob, task: Task) -> None:
        self.job = job
        self.task = task
        self.region = omezarr.shard_region(job.levels[0], task.index)
        shape = [r.stop - r.start for r in self.region]
        self.data: NDArray[Any] = np.empty([len(job.levels[0].images), *shape], job.intensity.dtype)
        self.failed = False
        self.open = 1
        """Blocks not placed yet, and one for the computation itself."""

    def place(self, estimate: Estimate) -> None:
        target = tuple(
            slice(t.start - r.start, t.stop - r.start) for t, r in zip(estimate.tile.target, self.region, strict=True)
        )
        self.data[(slice(None), *target)] = estimate.stored_values(self.job.intensity)

    def write(self) -> str:
        level = self.job.levels[0]
        places = [omezarr.image_place(self.job.target, image) for image in level.images]
        return omezarr.joint_digest(
            [
                omezarr.write_shard(place, level, self.task.index, data)
                for place, data in zip(places, self.data, strict=True)
            ]
        )


class Line:
    """Fills shards of one result in this process: one thread reads ahead, one computes, some write behind.

    Each queue is bounded by `job.room`: so many batches of tiles wait for the computation, one block more than there
    are writers for them, and so many shards are open.

    Args:
        job: what is filled.
        scan: the job's scan, opened.
        done: receives each task with the digest of its bytes once they are on the disk, or with what went wrong; called
            from the threads of the line.
        note: receives what is worth a user's eye.
    """

    def __init__(self, job: ShardJob, scan: Scan, *, done: Done, note: Note | None = None) -> None:
        self.job = job
        self.scan = scan
        self.busy = {"read": 0.0, "compute": 0.0, "write": 0.0}
        self._done = done
        self._note = note
        self._lock = threading.Lock()
        self._dropped = False
        self._cores = torch.get_num_threads()
        self._inbox: SimpleQueue[Task | None] = SimpleQueue()
        self._loaded: SimpleQueue[tuple[Task, Loaded | BaseException | None] | None] = SimpleQueue()
        self._places = threading.Semaphore(job.room.ahead)
        self._shards = threading.Semaphore(job.room.shards)
        self._blocks = threading.Semaphore(job.room.writers + 1)
        self._writers = ThreadPoolExecutor(job.room.writers, "medsr-write")
        self._threads = [
            threading.Thread(target=stage, name=f"medsr-{stage.__name__}", daemon=True)
            for stage in (self._read, self._compute)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, task: Task) -> None:
        """Begin with a shard; returns at once."""
        if task.level:
            self._writers.submit(self._guarded, task, self._average, task)
        else:
            self._inbox.put(task)

    def close(self, *, drop: bool = False) -> None:
        """Return when all that was put is done; with `drop` what has not begun is left out, unreported."""
        self._dropped = self._dropped or drop
        self._inbox.put(None)
        for thread in self._threads:
            thread.join()
        self._writers.shutdown(wait=True, cancel_futures=drop)
        torch.set_num_threads(self._cores)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.busy[stage] += time.perf_counter() - begun

    def _timed_each(self, estimates: Iterator[Estimate]) -> Iterator[Estimate]:
        while True:
            with self._timed("compute"):
                estimate = next(estimates, None)
            if estimate is None:
                return
            yield estimate

    def _read(self) -> None:
        while (task := self._inbox.get()) is not None:
            if self._dropped:
                continue
            groups = _groups(self.job, self.scan, task)
            try:
                while True:
                    self._places.acquire()
                    with self._timed("read"):
                        loaded = next(groups, None)
                    self._loaded.put((task, loaded))
                    if loaded is None:
                        break
            except BaseException as error:  # noqa: BLE001 - a thread hands on whatever stopped it
                self._loaded.put((task, error))
        self._loaded.put(None)

    def _compute(self) -> None:
        shard: _Shard | None = None
        runner: TileRunner | None = None
        if not isinstance(self.job.upscaler, Staged):  # an interpolation: the writers have more to do
            torch.set_num_threads(max(1, self._cores // 2))
        while (item := self._loaded.get()) is not None:
            task, loaded = item
            try:
                if shard is None:
                    shard = self._begin(task)
                if isinstance(loaded, BaseException):
                    raise loaded
                if isinstance(loaded, Loaded) and not self._dropped and not shard.failed:
                    runner = runner or _runner(self.job, self.scan, self._cores, self._note)
                    for estimate in self._timed_each(runner(loaded)):
                        self._blocks.acquire()
                        with self._lock:
                            shard.open += 1
                        self._writers.submit(self._place, shard, estimate)
            except BaseException as error:  # noqa: BLE001 - a thread hands on whatever stopped it
                self._fail(task, shard, error)
            self._places.release()
            if not isinstance(loaded, Loaded):
                if shard is not None:
                    self._one_less(shard)
                shard = None

    def _begin(self, task: Task) -> _Shard:
        self._shards.acquire()
        try:
            return _Shard(self.job, task)
        except BaseException:
            self._shards.release()
            raise

    def _place(self, shard: _Shard, estimate: Estimate) -> None:
        try:
            with self._timed("write"):
                shard.place(estimate)
        except BaseException as error:  # noqa: BLE001 - a thread hands on whatever stopped it
            self._fail(shard.task, shard, error)
        finally:
            self._blocks.release()
            self._one_less(shard)

    def _one_less(self, shard: _Shard) -> None:
        """A block was placed, or the last was computed: when nothing is open the shard is written."""
        with self._lock:
            shard.open -= 1
            if shard.open:
                return
        if threading.current_thread() in self._threads:
            self._writers.submit(self._finish, shard)
        else:
            self._finish(shard)

    def _finish(self, shard: _Shard) -> None:
        try:
            if not shard.failed and not self._dropped:
                self._guarded(shard.task, self._write, shard)
        finally:
            self._shards.release()

    def _write(self, shard: _Shard) -> str:
        with self._timed("write"):
            return shard.write()

    def _average(self, task: Task) -> str:
        with self._timed("write"):
            return _averaged(self.job, task)

    def _guarded(self, task: Task, work: Callable[[Any], str], argument: Any) -> None:
        try:
            digest = work(argument)
        except BaseException as error:  # noqa: BLE001 - a thread hands on whatever stopped it
            self._done(task, error)
        else:
            self._done(task, digest)

    def _fail(self, task: Task, shard: _Shard | None, error: BaseException) -> None:
        if shard is not None:
            if shard.failed:
                return
            shard.failed = True
        self._done(task, error)
