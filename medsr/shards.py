"""Task, Agenda: the shards of a result, handed out in an order in which each finds what it needs."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from medsr.io.omezarr import Level, shard_region, shard_regions

__all__ = ["Agenda", "Share", "Task", "all_tasks"]


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One shard of one level."""

    level: int
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """Part `number` (from 1) of `parts` equal shares of a batch, each done by a process of its own.

    Raises:
        ValueError: a number outside 1 to `parts`.
    """

    number: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.parts:
            raise ValueError(f"part: expected i/n with i from 1 to n, found {self}; SLURM counts arrays from 0: add 1")

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def owns(self, place: int, count: int, name: str) -> bool:
        """Whether the finest shard number `place` of `count` is of this share; `name` of the scan.

        Shards side by side belong to one share, so that it can build most of the pyramid above them. A scan of fewer
        shards than there are shares is done by one of them, drawn by its name.
        """
        if count < self.parts:
            return zlib.crc32(name.encode()) % self.parts == self.number - 1
        return place * self.parts // count == self.number - 1


def all_tasks(levels: Sequence[Level]) -> Iterator[Task]:
    """Every shard of every level, finest first."""
    for number, level in enumerate(levels):
        for index, _ in shard_regions(level):
            yield Task(number, index)


class Agenda:
    """What is left to do of one result.

    A shard of a coarser level is handed out as soon as the finer shards it averages are written. With a share of
    several, the coarser shards above its own finest ones are its work too; what lies above the shards of several
    shares is left to the one that comes last (`rest=True`).

    Args:
        levels: of the pyramid.
        done: shards that are written already.
        mine: whether a finest shard (its number, how many there are) is this process's work.

    Attributes:
        tasks: all that are this process's, done or not.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        done: Iterable[Task] = (),
        mine: Callable[[int, int], bool] = lambda _place, _count: True,
    ) -> None:
        self._levels = tuple(levels)
        self._mine = mine
        self._done = set(done)
        self.tasks = self._owned(mine)
        self._left = self.tasks - self._done
        self._ready = deque(sorted(task for task in self._left if task.level == 0))
        self._coarse = deque[Task]()
        self._missing: dict[Task, int] = {}
        for task in sorted(t for t in self._left if t.level > 0):
            self._missing[task] = sum(finer not in self._done for finer in self._finer(task))
            if self._missing[task] == 0:
                self._coarse.append(task)

    def _owned(self, mine: Callable[[int, int], bool]) -> set[Task]:
        finest = list(shard_regions(self._levels[0]))
        own = {Task(0, index) for place, (index, _) in enumerate(finest) if mine(place, len(finest))}
        for number in range(1, len(self._levels)):
            level = self._levels[number]
            tasks = [Task(number, index) for index, _ in shard_regions(level)]
            own |= {task for task in tasks if all(finer in own for finer in self._finer(task))}
        return own

    def _finer(self, task: Task) -> Iterator[Task]:
        """The shards of the level below that a shard averages."""
        level, below = self._levels[task.level], self._levels[task.level - 1]
        spans = []
        for axis, s in enumerate(shard_region(level, task.index)):
            first = s.start * level.step[axis] // below.shard[axis]
            last = math.ceil(min(s.stop * level.step[axis], below.shape[axis]) / below.shard[axis])
            spans.append(range(first, last))
        return (Task(task.level - 1, index) for index in product(*spans))

    def without(self, done: Iterable[Task]) -> Agenda:
        """The same work with some of it done."""
        return Agenda(self._levels, done=done, mine=self._mine)

    @property
    def total(self) -> int:
        """How many shards are this process's, done or not."""
        return len(self.tasks)

    @property
    def finest_left(self) -> int:
        """How many shards of the finest level are not written yet."""
        return sum(task.level == 0 for task in self._left)

    @property
    def left(self) -> int:
        """How many shards are not written yet."""
        return len(self._left)

    def take(self) -> Task | None:
        """A shard that can be written now, coarser ones first; None while none can."""
        if self._coarse:
            return self._coarse.popleft()
        return self._ready.popleft() if self._ready else None

    def give_back(self, task: Task) -> None:
        """A shard that was taken and not written: it is handed out again, first."""
        (self._coarse if task.level else self._ready).appendleft(task)

    def complete(self, task: Task) -> None:
        """A shard is written: what waited for it alone becomes ready."""
        self._left.discard(task)
        self._done.add(task)
        if task.level + 1 == len(self._levels):
            return
        for coarser in self._coarser(task):
            if coarser in self._missing:
                self._missing[coarser] -= 1
                if self._missing[coarser] == 0:
                    self._coarse.append(coarser)

    def _coarser(self, task: Task) -> Iterator[Task]:
        """The shards of the level above that average a shard: their spans are the inverse of `_finer`."""
        level, above = self._levels[task.level], self._levels[task.level + 1]
        spans = []
        for axis, s in enumerate(shard_region(level, task.index)):
            first = s.start // above.step[axis] // above.shard[axis]
            last = math.ceil(math.ceil(s.stop / above.step[axis]) / above.shard[axis])
            spans.append(range(first, last))
        return (Task(task.level + 1, index) for index in product(*spans))
