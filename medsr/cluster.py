"""Cluster: the shards on the workers of a running Dask cluster (extra `[cluster]`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

from medsr.io import set_cache_limit
from medsr.scan import Scan
from medsr.shards import Agenda, Task
from medsr.streaming import ShardJob, fill_shard, open_scan
from medsr.version import __version__
from medsr.workers import WorkerDiedError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Cluster"]

Note = Callable[[str], None]
Result = TypeVar("Result")

RETRIES = 2
"""How often a shard that failed is begun again by the scheduler; a worker that died is no failure of a shard."""


class Cluster:
    """The workers of a Dask cluster; a context manager.

    A worker that is killed costs the shards it was at: the scheduler gives them to another. What a worker writes is
    whole or not there, and this process commits it.

    Args:
        address: of the scheduler ("tcp://10.0.0.5:8786").
        cache_bytes: what the readers of a worker may keep of decoded samples.

    Raises:
        ValueError: `distributed` is not installed, or workers have another version of medsr.
        OSError: the scheduler cannot be reached.
    """

    processes = 1

    def __init__(self, address: str, *, cache_bytes: int) -> None:
        self._address = address
        self._cache_bytes = cache_bytes
        self._client: Client
        self.at_once = 2
        self.busy: dict[str, float] = {}

    def __enter__(self) -> Self:
        try:
            from distributed import Client
        except ImportError:
            raise ValueError(
                "scheduler: expected the package distributed, found none; pip install 'medsr[cluster]'"
            ) from None
        try:
            self._client = Client(self._address, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise OSError(f"scheduler {self._address}: expected a Dask scheduler there, found none ({error})") from None
        others = {where: found for where, found in self._client.run(_version).items() if found != __version__}
        if others:
            where, found = next(iter(others.items()))
            raise ValueError(
                f"scheduler {self._address}: expected medsr {__version__} on every worker, found {found} on {where}; "
                "install the same version there"
            )
        self.at_once = 1 + max(1, len(self._client.nthreads()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def call(self, function: Callable[..., Result], /, *arguments: Any) -> Result:
        """On one of the workers."""
        key = f"medsr-call-{uuid4().hex}"
        result: Result = self._client.submit(_call, function, *arguments, key=key, pure=False).result()
        return result

    def stop(self) -> None:
        """Let go of all that was asked for: the scheduler drops it."""
        self._client.close(timeout=5)

    def run(self, job: ShardJob, agenda: Agenda, *, scan: Scan, note: Note | None = None) -> Iterator[tuple[Task, str]]:  # noqa: ARG002 the workers open the scan themselves
        """As `Crew.run`."""
        name = f"medsr-{uuid4().hex}"
        # As the result of a task the job is made again by the scheduler when the worker that held it is lost.
        shared = self._client.submit(_keep, job, key=f"{name}-job", pure=False)
        finished: SimpleQueue[Future] = SimpleQueue()
        running: dict[str, tuple[Task, Future]] = {}
        try:
            while agenda.left:
                while len(running) < self._window() and (task := agenda.take()) is not None:
                    key = f"{name}-{task.level}-{'.'.join(map(str, task.index))}"
                    future = self._client.submit(
                        _fill, shared, task, name, self._cache_bytes, key=key, retries=RETRIES, pure=False
                    )
                    running[key] = task, future
                    future.add_done_callback(finished.put)
                task, future = running.pop(finished.get().key)
                yield task, _digest(future)
                agenda.complete(task)
        finally:
            self._client.cancel([future for _, future in running.values()], force=True)
            shared.release()

    def _window(self) -> int:
        """Shards under way at a time: two for each thread of the workers there are now."""
        return 2 * max(1, sum(map(int, self._client.nthreads().values())))


def _digest(future: Future) -> str:
    from distributed import KilledWorker

    try:
        return str(future.result())
    except KilledWorker as error:
        raise WorkerDiedError(
            f"workers died again and again at the same shard, most likely killed for want of memory ({error}); use "
            "less --memory, and give the same command again: it goes on where it stopped"
        ) from None


def _version() -> str:
    return __version__


def _keep(job: ShardJob) -> ShardJob:
    return job


_turn = threading.Lock()
"""An engine serves one thread at a time."""


def _call(function: Callable[..., Result], *arguments: Any) -> Result:
    with _turn:
        return function(*arguments)


KEPT_SCANS = 8
"""Scans a worker keeps open; a run that comes back to one that was closed opens it again."""

_open: dict[str, tuple[Scan, threading.Semaphore]] = {}
_opening = threading.Lock()


def _fill(job: ShardJob, task: Task, run: str, cache_bytes: int) -> str:
    """One shard, on a worker; `run` names the work on one scan."""
    import torch
    from distributed import get_worker

    set_cache_limit(cache_bytes)
    threads = max(1, int(get_worker().state.nthreads))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with _opening:
        if run not in _open:
            while len(_open) >= KEPT_SCANS:
                _open.pop(next(iter(_open)))
            # So many shards are held at a time by the plan, however many threads the worker has.
            _open[run] = open_scan(job), threading.Semaphore(job.room.shards)
        scan, room = _open[run]
    with room:
        return fill_shard(job, task, scan, turn=_turn, note=_tell)


def _tell(line: str) -> None:
    """A line for the log of the worker, and for the client's."""
    from distributed import get_worker

    get_worker().log_event("medsr", line)
