"""Task, Agenda: the shards of a result, how large they are, and an order in which each finds what it needs."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from medsr.io.omezarr import Level, plan_levels, shard_region, shard_regions
from medsr.scan import Grid

__all__ = ["Agenda", "Room", "Share", "Task", "all_tasks", "bytes_beside", "fitting_levels"]

MOST_LOSS = 1.25
"""Samples read over samples kept, up to which a shard is large enough for a method's halo."""


class Room(NamedTuple):
    """How far the stages of a process may run apart: all of it is memory.

    Attributes:
        writers: threads that round, compress and write.
        shards: that are filled or written at a time.
        ahead: batches of tiles that are read before their turn.
    """

    writers: int
    shards: int
    ahead: int


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One shard of one level, of all images of the result."""

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


def fitting_levels(
    shape: tuple[int, ...],
    grid: Grid,
    *,
    dtype: np.dtype[Any],
    work: int,
    reach: tuple[int, ...],
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
) -> tuple[Level, ...]:
    """Levels whose shards suit the method and the budget.

    A shard is computed with its halo around it: `reach` fine samples on either side, for each axis. While much is lost
    by that, shards are doubled along the axis that loses most, and halved along the one that loses least where the
    budget allows no larger ones. Where even the first are too large beside the computation they are halved.

    Args:
        shape, grid: of the result.
        dtype: of its samples.
        work: bytes that a process may hold for this work.
        reach: fine samples, for each axis.
        chunk, shard: as in `plan_levels`; a shard that is given is kept.

    Raises:
        ValueError: as `plan_levels`.
    """
    levels = plan_levels(shape, grid, chunk=chunk, shard=shard)
    if shard is not None:
        return levels
    cell, axes = levels[0].chunk, range(len(shape))

    def made(shard: Sequence[int]) -> tuple[Level, ...]:
        return plan_levels(shape, grid, chunk=cell, shard=shard)

    def half(shard: Sequence[int], axis: int) -> tuple[int, ...]:
        chunks = math.ceil(shard[axis] / cell[axis] / 2)
        return tuple(chunks * cell[i] if i == axis else s for i, s in enumerate(shard))

    def losses(shard: Sequence[int]) -> list[float]:
        return [1 + 2 * r / s if s < n else 1.0 for r, s, n in zip(reach, shard, shape, strict=True)]

    while bytes_beside(levels, dtype, Room(1, 1, 1)) > work // 4:
        shard = levels[0].shard
        large = [i for i in axes if shard[i] > cell[i]]
        if not large:
            break
        levels = made(half(shard, large[0]))
    while math.prod(losses(levels[0].shard)) > MOST_LOSS:
        shard, lost = levels[0].shard, losses(levels[0].shard)
        worst = max(axes, key=lambda i: lost[i])
        larger = tuple(2 * s if i == worst else s for i, s in enumerate(shard))
        if bytes_beside(made(larger), dtype, Room(2, 3, 2)) > work // 4:
            cheap = [i for i in axes if i != worst and shard[i] > cell[i]]
            if not cheap:
                break
            larger = half(larger, min(cheap, key=lambda i: (losses(half(larger, i))[i], -shard[i])))
        if math.prod(losses(larger)) >= math.prod(lost):
            break
        levels = made(larger)
    return levels


def bytes_beside(levels: Sequence[Level], dtype: np.dtype[Any], room: Room) -> int:
    """What is held beside the tiles: shards being filled, of all images; in each writer one image's being averaged, and
    its bytes twice."""
    stored = min(math.prod(levels[0].shard), math.prod(levels[0].shape)) * dtype.itemsize
    return (room.shards * len(levels[0].images) + 3 * room.writers) * stored


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
