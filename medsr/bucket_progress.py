"""BucketProgress: unfinished work in an object store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from medsr.header import (
    GROUP,
    JOB,
    RECORDS,
    JobChangedError,
    changes,
    drop_leftovers,
    read_header,
    refuse_changed,
    verified_tasks,
)
from medsr.io.omezarr import Level
from medsr.io.places import Place
from medsr.locks import TakenError
from medsr.shards import Task

__all__ = ["BucketProgress"]


class BucketProgress:
    """Unfinished work in an object store, in its final place: it becomes a result when its group document is put.

    Nothing is locked. The header is created by one process only; another that begins at the same time takes over what
    that one has chosen. Each object is put whole, so two processes that put the same shard put the same bytes.
    """

    def __init__(self, target: Place, header: Mapping[str, Any], *, restart: bool) -> None:
        self._target = target
        old = read_header(target, restart=restart)
        if old is not None and refuse_changed(target, header, old, restart=restart):
            old = None
            target.clear()
        elif old is None and restart:
            target.clear()
        elif old is None and (others := target.keys()):
            old = read_header(target)  # begun by another process in the meantime?
            if old is None:
                raise JobChangedError(
                    f"{target.name}: expected an empty place for the result, found {others[0]}; use another --out, or "
                    "--overwrite to remove all that is there"
                )
            refuse_changed(target, header, old, restart=False)
        if old is None and not target.put_new(JOB, json.dumps(header).encode()):
            old = read_header(target)
            if old is None or changes(old["identity"], header["identity"]):
                raise TakenError(f"{target.name}: another process has just begun another job; use another --out")
        self.settings: dict[str, Any] = (old or header)["settings"]
        self._done = self._all_records()

    @property
    def target(self) -> Place:
        """As `Progress.target`."""
        return self._target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Nothing is held open."""

    def verified(self, levels: Sequence[Level], tasks: Iterable[Task]) -> set[Task]:
        """As `Progress.verified`; the shards are read back."""
        return set(verified_tasks(self.target, levels, self._done, tasks))

    def record(self, task: Task, digest: str) -> None:
        """As `Progress.record`."""
        self._done[task] = digest
        self.target.put(f"{RECORDS}{task.level}/{'.'.join(map(str, task.index))}/{digest}", b"")

    def alone(self) -> bool:
        """Others may be at it; then the same bytes are put twice."""
        return True

    def recorded(self) -> set[Task]:
        """As `Progress.recorded`."""
        self._done |= self._all_records()
        return set(self._done)

    def _all_records(self) -> dict[Task, str]:
        found: dict[Task, str] = {}
        for key in self.target.keys(RECORDS):
            level, index, digest = key.removeprefix(RECORDS).split("/")
            found[Task(int(level), tuple(map(int, index.split("."))))] = digest
        return found

    def discard(self) -> None:
        """Nothing: the result is in this very place."""

    def describe(self, documents: Mapping[str, bytes]) -> None:
        """As `Progress.describe`."""
        groups = _groups(documents)
        for key, document in documents.items():
            if key not in groups and self._target.get(key) != document:
                self._target.put(key, document)

    def finish(self, final: Place, documents: Mapping[str, bytes]) -> None:
        """Put the group documents, by the last of which it becomes a result, then drop the records.

        Raises:
            TakenError: another process has thrown away what was written here.
        """
        there, groups = set(final.keys()), _groups(documents)
        written = self._done.keys() | self._all_records().keys()
        shards = ("/".join(map(str, (task.level, "c", *task.index))) for task in written)
        lost = any(key.removesuffix(GROUP) + shard not in there for shard in shards for key in groups)
        header = read_header(final)
        if GROUP not in there and (lost or header is None or header["settings"] != self.settings):
            raise TakenError(f"{final.name}: another process has begun anew here; give the same command again")
        for key in groups:
            final.put(key, documents[key])
        drop_leftovers(final)


def _groups(documents: Mapping[str, bytes]) -> list[str]:
    """The keys of documents that make an image of what is below them; that of the result is the last."""
    return [key for key, document in documents.items() if json.loads(document)["node_type"] == "group"]
