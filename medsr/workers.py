"""Who runs the shards: this process, or processes of this machine."""

from __future__ import annotations

import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import wait
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from medsr.io import set_cache_limit
from medsr.io.lazy import KEEP_BYTES_MOST
from medsr.scan import Scan
from medsr.serving import serve
from medsr.shards import Agenda, Task
from medsr.streaming import Line, ShardJob

__all__ = ["Crew", "Here", "Processes", "WorkerDiedError"]

Note = Callable[[str], None]
Result = TypeVar("Result")

MOST_DEATHS = 3
"""How often a shard may be begun by processes that die before the scan is given up."""


class WorkerDiedError(RuntimeError):
    """Processes were killed again and again at the same shard."""


class Crew(Protocol):
    """Runs the shards of results.

    Attributes:
        at_once: scans it can work on at the same time, each run by a thread of the caller.
        processes: among which memory and cores are shared.
        busy: seconds that each stage worked at the last result; empty where other processes did.
    """

    at_once: int
    processes: int
    busy: dict[str, float]

    def run(self, job: ShardJob, agenda: Agenda, *, scan: Scan, note: Note | None = None) -> Iterator[tuple[Task, str]]:
        """Fill what the agenda holds; yields (task, digest) as each shard is durable, in the order of completion.

        Raises what a shard failed with; then none of the job's shards is being written any more.
        """
        ...

    def call(self, function: Callable[..., Result], /, *arguments: Any) -> Result:
        """Call a function where the shards are filled: it sees the same files and devices."""
        ...

    def stop(self) -> None:
        """End all that runs, from another thread."""
        ...


class Here:
    """This process alone: reading, computing and writing overlap in its threads."""

    at_once = 1
    processes = 1

    def __init__(self, *, cache_bytes: int = KEEP_BYTES_MOST) -> None:
        self._cache_bytes = cache_bytes
        self.busy: dict[str, float] = {}

    def __enter__(self) -> Self:
        set_cache_limit(self._cache_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_cache_limit(KEEP_BYTES_MOST)

    def call(self, function: Callable[..., Result], /, *arguments: Any) -> Result:
        """Here."""
        return function(*arguments)

    def stop(self) -> None:
        """Nothing runs but in the caller's own thread."""

    def run(self, job: ShardJob, agenda: Agenda, *, scan: Scan, note: Note | None = None) -> Iterator[tuple[Task, str]]:
        """As `Crew.run`."""
        finished: SimpleQueue[tuple[Task, str | BaseException]] = SimpleQueue()
        line = Line(job, scan, done=lambda task, result: finished.put((task, result)), note=note)
        window, flying = _window(job), 0
        whole = False
        try:
            while agenda.left:
                while flying < window and (task := agenda.take()) is not None:
                    line.put(task)
                    flying += 1
                task, result = finished.get()
                flying -= 1
                if isinstance(result, BaseException):
                    raise result
                yield task, result
                agenda.complete(task)
            whole = True
        finally:
            line.close(drop=not whole)
            self.busy = {stage: round(seconds, 3) for stage, seconds in line.busy.items()}


def _window(job: ShardJob) -> int:
    """Shards a process is given at a time: enough that no stage waits for the next."""
    return job.room.shards + 2


class _Worker:
    """A process and what it was given."""

    def __init__(self, number: int, threads: int, cache_bytes: int) -> None:
        context = get_context("spawn")
        self.number = number
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, number, threads, cache_bytes), name=f"medsr-{number}", daemon=True
        )
        self.process.start()
        theirs.close()
        self.tasks: set[Task] = set()

    def send(self, kind: str, content: Any = None) -> bool:
        """Whether the process is there to receive."""
        try:
            self.connection.send((kind, content))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def received(self) -> list[tuple[Task | None, str | BaseException | None]] | None:
        """What it said since; None if it died."""
        said = []
        try:
            while self.connection.poll():
                said.append(self.connection.recv())
        except (EOFError, OSError, pickle.UnpicklingError):
            return said or None
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Processes:
    """Processes of this machine, each with an equal share of the cores, and of the GPUs where there are several.

    A process that is killed costs the shards it was at: another takes its place, and they are done again.

    Args:
        workers: how many.
        cache_bytes: what the readers of a process may keep of decoded samples.
    """

    def __init__(self, workers: int, *, cache_bytes: int = KEEP_BYTES_MOST) -> None:
        self.processes = self.at_once = workers
        self.busy: dict[str, float] = {}
        self._cache_bytes = cache_bytes
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._idle: SimpleQueue[_Worker | int | None] = SimpleQueue()
        self._all: set[_Worker] = set()
        self._stopped = threading.Event()
        self._calling = threading.Lock()

    def __enter__(self) -> Self:
        set_cache_limit(0)  # this process only opens the scans
        for number in range(self.processes):
            self._idle.put(number)  # started when first needed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in tuple(self._all):
            worker.send("stop")
        for worker in tuple(self._all):
            worker.process.join(timeout=10)
            worker.kill()
        set_cache_limit(KEEP_BYTES_MOST)

    def call(self, function: Callable[..., Result], /, *arguments: Any) -> Result:
        """Here: the processes are on this machine. One call at a time, for an engine serves one thread."""
        with self._calling:
            return function(*arguments)

    def stop(self) -> None:
        """Kill the processes: every shard is written whole or not at all."""
        self._stopped.set()
        for worker in tuple(self._all):
            worker.process.kill()
        for _ in range(self.at_once):
            self._idle.put(None)  # wakes those who wait for a worker

    def run(self, job: ShardJob, agenda: Agenda, *, scan: Scan, note: Note | None = None) -> Iterator[tuple[Task, str]]:  # noqa: ARG002 the processes open the scan themselves
        """As `Crew.run`."""
        lease = _Lease(self, job, agenda, note)
        try:
            yield from lease.results()
        finally:
            lease.end()

    def lend(self, *, block: bool) -> _Worker | None:
        """A worker nobody uses; None if there is none and `block` is not set."""
        try:
            free = self._idle.get(block=block)
        except Empty:
            return None
        if self._stopped.is_set() or free is None:
            raise WorkerDiedError("stopped")
        return free if isinstance(free, _Worker) else self.start(free)

    def start(self, number: int) -> _Worker:
        """A new process in the place of `number`."""
        try:
            worker = _Worker(number, self._threads, self._cache_bytes)
        except BaseException:
            self._idle.put(number)  # another try is free to start it
            raise
        self._all.add(worker)
        return worker

    def take_back(self, worker: _Worker) -> None:
        """The worker is free for another scan."""
        self._idle.put(worker)

    def bury(self, worker: _Worker) -> int:
        """Forget a dead worker; its number is free."""
        self._all.discard(worker)
        worker.kill()
        if self._stopped.is_set():
            raise WorkerDiedError("stopped")
        return worker.number


class _Lease:
    """The workers that one scan has at a time."""

    def __init__(self, crew: Processes, job: ShardJob, agenda: Agenda, note: Note | None) -> None:
        self._crew = crew
        self._job = job
        self._agenda = agenda
        self._note = note
        self._workers: list[_Worker] = []
        self._deaths: Counter[Task] = Counter()

    def results(self) -> Iterator[tuple[Task, str]]:
        """(task, digest) until the agenda is done."""
        while self._agenda.left:
            self._hand_out()
            wait([w.connection for w in self._workers] + [w.process.sentinel for w in self._workers])
            for worker in tuple(self._workers):
                said = worker.received()
                if said is None or (not said and not worker.process.is_alive()):
                    self._replace(worker)
                    continue
                for task, result in said:
                    if isinstance(result, BaseException):
                        raise result
                    if task is None and result is not None and self._note is not None:
                        self._note(result)
                    if task is not None and result is not None:
                        worker.tasks.discard(task)
                        yield task, result
                        self._agenda.complete(task)
            self._give_back_idle()

    def _give_back_idle(self) -> None:
        """Workers without a shard are free for other scans, but one."""
        idle = [w for w in self._workers if not w.tasks][: len(self._workers) - 1]
        if idle and (task := self._agenda.take()) is not None:
            self._agenda.give_back(task)
            return
        for worker in idle:
            self._workers.remove(worker)
            self._part(worker)

    def _hand_out(self) -> None:
        """Give every worker what it can hold, evenly; borrow more workers while there are tasks for them."""
        if not self._workers:
            self._borrow(block=True)
        for depth in range(_window(self._job)):
            for worker in tuple(self._workers):
                if len(worker.tasks) > depth:
                    continue
                task = self._agenda.take()
                if task is None:
                    return
                if not worker.send("task", task):
                    self._agenda.give_back(task)
                    continue
                worker.tasks.add(task)
            if depth == 0:
                while (task := self._agenda.take()) is not None:
                    self._agenda.give_back(task)
                    if not self._borrow(block=False):
                        break
                    task = self._agenda.take()
                    if task is not None and self._workers[-1].send("task", task):
                        self._workers[-1].tasks.add(task)
                    elif task is not None:
                        self._agenda.give_back(task)

    def _borrow(self, *, block: bool) -> bool:
        worker = self._crew.lend(block=block)
        if worker is None:
            return False
        self._begin(worker)
        return True

    def _begin(self, worker: _Worker) -> None:
        worker.tasks.clear()
        worker.send("job", self._job)
        self._workers.append(worker)

    def _replace(self, worker: _Worker) -> None:
        """A process died: another does what it was at."""
        self._workers.remove(worker)
        number = self._crew.bury(worker)
        for task in sorted(worker.tasks, reverse=True):
            self._deaths[task] += 1
            self._agenda.give_back(task)
        fresh = self._crew.start(number)
        worst = max((self._deaths[task] for task in worker.tasks), default=0)
        if worst >= MOST_DEATHS:
            self._crew.take_back(fresh)
            raise WorkerDiedError(
                f"a worker process died {worst} times at the same shard, most likely killed for want of memory; use "
                "fewer --workers or less --memory, and give the same command again: it goes on where it stopped"
            )
        if self._note is not None:
            self._note(f"a worker process was killed; the {len(worker.tasks)} shards it was at are done again")
        self._begin(fresh)

    def end(self) -> None:
        """Give the workers back, each when it writes no more."""
        for worker in self._workers:
            worker.send("end")
        while self._workers:
            self._part(self._workers.pop(), told=True)

    def _part(self, worker: _Worker, *, told: bool = False) -> None:
        """Give a worker back once it writes no more, or another in its place."""
        if not told:
            worker.send("end")
        alive = self._ended(worker)
        self._crew.take_back(worker if alive else self._crew.start(self._crew.bury(worker)))

    @staticmethod
    def _ended(worker: _Worker) -> bool:
        try:
            while worker.connection.recv() != (None, None):
                pass
        except (EOFError, OSError, pickle.UnpicklingError):
            return False
        return True
