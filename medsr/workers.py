"""Who runs the shards: this process, or a pool of processes; one shard, one commit record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from medsr.io import Source, omezarr, read_scan, set_cache_limit
from medsr.io.lazy import KEEP_BYTES_MOST
from medsr.plan import Plan
from medsr.scan import Intensity, Scan
from medsr.upscaler import Upscaler
from medsr.upscaling import upscaled_blocks

__all__ = ["Crew", "ShardJob", "Task", "WorkerDiedError", "fill_shard"]


class WorkerDiedError(RuntimeError):
    """A worker process was killed from outside."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All a process needs to fill any shard of one result; small, and picklable.

    Attributes:
        source, series: what is read.
        intensity: the line used for it.
        upscaler: already adapted to the scan.
        chosen: tiles, halo and factor.
        root: folder of the result being written.
        levels: of the pyramid.
        device: where the method runs.
    """

    source: Source
    series: str | int | None
    intensity: Intensity
    upscaler: Upscaler
    chosen: Plan
    root: Path
    levels: tuple[omezarr.Level, ...]
    device: str


@dataclass(frozen=True, slots=True)
class Task:
    """One shard of one level."""

    level: int
    index: tuple[int, ...]


def fill_shard(job: ShardJob, task: Task, scan: Scan | None = None) -> str:
    """Compute one whole shard and write it; returns the digest of its bytes.

    A shard of level 0 is upscaled from the scan, one of a coarser level is the area average of the level below.
    """
    level = job.levels[task.level]
    region = omezarr.shard_region(level, task.index)
    if task.level:
        finer = job.levels[task.level - 1]
        block = omezarr.averaged_shard(job.root, finer, level, task.index, intensity=job.intensity)
        return omezarr.write_shard(job.root, level, task.index, block)
    scan = scan if scan is not None else _opened(job)
    shard = np.empty(tuple(r.stop - r.start for r in region), job.intensity.dtype)
    for target, values in upscaled_blocks(scan, job.upscaler, chosen=job.chosen, device=job.device, target=region):
        place = tuple(slice(t.start - r.start, t.stop - r.start) for t, r in zip(target, region, strict=True))
        shard[place] = values
    return omezarr.write_shard(job.root, level, task.index, shard)


_cache: dict[Path, Scan] = {}


def _opened(job: ShardJob) -> Scan:
    """The job's scan, opened once in this process."""
    if job.root not in _cache:
        _cache.clear()
        _cache[job.root] = read_scan(job.source, series=job.series, intensity=job.intensity)
    return _cache[job.root]


_job: dict[Path, ShardJob] = {}


def _in_worker(job_file: Path, task: Task) -> str:
    import pickle

    if job_file not in _job:
        _job.clear()
        # Written by this run's own parent into a private folder; never a user's file.
        _job[job_file] = pickle.loads(job_file.read_bytes())  # noqa: S301
    return fill_shard(_job[job_file], task)


def _start_worker(threads: int, cache_bytes: int) -> None:
    import signal

    import torch

    set_cache_limit(cache_bytes)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)


class Crew:
    """Runs tasks in this process (`workers` of 1) or in a pool of processes; a context manager.

    Args:
        workers: processes; each gets an equal share of the cores.
        cache_bytes: what the readers of a process may keep of decoded samples.
    """

    def __init__(self, workers: int = 1, *, cache_bytes: int = KEEP_BYTES_MOST) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, found {workers}")
        self.workers = workers
        self.cache_bytes = cache_bytes
        self._pool: ProcessPoolExecutor | None = None
        self._jobs = 0

    def __enter__(self) -> Self:
        set_cache_limit(self.cache_bytes)
        if self.workers > 1:
            import tempfile

            self._folder = tempfile.TemporaryDirectory(prefix="medsr-")
            self._pool = self._new_pool()
        return self

    def _new_pool(self) -> ProcessPoolExecutor:
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        return ProcessPoolExecutor(
            self.workers,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(threads, self.cache_bytes),
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._folder.cleanup()
        set_cache_limit(KEEP_BYTES_MOST)

    def run(self, job: ShardJob, tasks: Iterable[Task], *, scan: Scan | None = None) -> Iterator[tuple[Task, str]]:
        """Fill shards; yields (task, digest) as each is on the disk.

        Raises:
            WorkerDiedError: a process was killed; the crew has new ones for the next scan.
        """
        if self._pool is None:
            for task in tasks:
                yield task, fill_shard(job, task, scan)
            return
        import pickle

        self._jobs += 1
        job_file = Path(self._folder.name) / f"{self._jobs}.job"
        job_file.write_bytes(pickle.dumps(job))
        todo, running = iter(tasks), dict[Future[str], Task]()
        try:
            while True:
                for task in islice(todo, 2 * self.workers - len(running)):
                    running[self._pool.submit(_in_worker, job_file, task)] = task
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        except BrokenProcessPool:
            running.clear()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = self._new_pool()
            raise WorkerDiedError(
                "a worker process died, most likely killed for want of memory; use fewer --workers or less --memory, "
                "and give the same command again: it goes on where it stopped"
            ) from None
        finally:
            # The next scan begins when no process writes to this one.
            for left in running:
                left.cancel()
            wait(running)
