"""Progress: the commit records of a result being written, whose result it is, and who may finish it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from medsr.bucket_progress import BucketProgress
from medsr.header import (
    BEGIN,
    FILE,
    GROUP,
    JOB,
    LOCK,
    drop_leftovers,
    old_name,
    read_header,
    refuse_changed,
    verified_tasks,
)
from medsr.io.omezarr import Level
from medsr.io.places import Folder, Place
from medsr.locks import TakenError, lock, lock_shared, release, turn
from medsr.records import drop_torn_files, drop_torn_line, read_records
from medsr.shards import Share, Task

__all__ = ["FolderProgress", "Progress", "open_progress"]


class Progress(Protocol):
    """An unfinished result; a context manager.

    A shard counts as done only if its record is whole and the digest of its bytes is the recorded one.

    Attributes:
        settings: what was chosen when the work was begun; it decides how the rest is computed.
    """

    settings: dict[str, Any]

    @property
    def target(self) -> Place:
        """Where the shards are put."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def verified(self, levels: Sequence[Level], tasks: Iterable[Task]) -> set[Task]:
        """Those of the tasks that are recorded and whose bytes have the recorded digest."""
        ...

    def record(self, task: Task, digest: str) -> None:
        """Commit one shard, durably."""
        ...

    def alone(self) -> bool:
        """Whether no other process is at this result; then none may join any more."""
        ...

    def recorded(self) -> set[Task]:
        """The shards that anyone has recorded by now; their bytes are not looked at."""
        ...

    def discard(self) -> None:
        """Remove what was begun here, for the complete result is elsewhere already."""
        ...

    def describe(self, documents: Mapping[str, bytes]) -> None:
        """Put the metadata that fit the settings, where they are not there yet."""
        ...

    def finish(self, final: Place, documents: Mapping[str, bytes]) -> None:
        """Make the complete result what its final name stands for, with the metadata that are known by now."""
        ...


def open_progress(
    target: Place,
    identity: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    documents: Mapping[str, bytes],
    share: Share,
    restart: bool = False,
) -> Progress:
    """Begin a result, or go on with one.

    Args:
        target: where the unfinished result is: a folder of its own, or for an object store its final place.
        identity: what decides the result's bytes; plain JSON.
        settings: what was chosen for a new result; an old one keeps its own.
        documents: the metadata by key.
        share: which part of the work this process does.
        restart: throw away unfinished work of another identity.

    Raises:
        JobChangedError: the unfinished work has another identity (the differences are named).
        TakenError: another process is at it.
    """
    header = {"identity": dict(identity), "settings": dict(settings)}
    if isinstance(target, Folder):
        return FolderProgress(target, header, documents, share=share, restart=restart)
    return BucketProgress(target, header, restart=restart)


class FolderProgress:
    """Unfinished work in a folder.

    Records are lines of a file, flushed one by one; one torn by a crash is no record. The folder is locked while a
    process is at it: by one that does it all for itself alone, by one that does a share together with other shares.
    """

    def __init__(
        self,
        target: Folder,
        header: Mapping[str, Any],
        documents: Mapping[str, bytes],
        *,
        share: Share,
        restart: bool,
    ) -> None:
        self._target = target
        part = target.path
        part.mkdir(parents=True, exist_ok=True)
        whole = share.parts == 1
        self._lock = (part / LOCK).open("a+")
        if whole:
            lock(self._lock, part)
        else:
            lock_shared(self._lock, part)
        try:
            _refuse_moved(self._lock, part)
            with turn(part / BEGIN):
                old = read_header(target)
                if old is not None and refuse_changed(target, header, old, restart=restart):
                    lock(self._lock, part)  # nobody else may be at what is thrown away
                    old = None
                if old is None:
                    self._begin(header, documents)
            if not whole:
                lock_shared(self._lock, part)
            self.settings: dict[str, Any] = (old or header)["settings"]
            if whole:
                drop_torn_files(part)
            name = FILE if whole else f"medsr-progress-{share.number}-of-{share.parts}.jsonl"
            self._stream = (part / name).open("a+", errors="replace")
            lock(self._stream, part)
            self._done = self._all_records()
            drop_torn_line(self._stream)
        except BaseException:
            release(self._lock)
            raise

    @property
    def target(self) -> Folder:
        """As `Progress.target`."""
        return self._target

    def _begin(self, header: Mapping[str, Any], documents: Mapping[str, bytes]) -> None:
        for item in self.target.path.iterdir():
            if item.name not in (LOCK, BEGIN):
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        for key, document in documents.items():
            self.target.put(key, document)
        self.target.put(JOB, json.dumps(header).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        release(self._stream)
        release(self._lock)

    def verified(self, levels: Sequence[Level], tasks: Iterable[Task]) -> set[Task]:
        """As `Progress.verified`."""
        return set(verified_tasks(self.target, levels, self._done, tasks))

    def record(self, task: Task, digest: str) -> None:
        """As `Progress.record`."""
        self._done[task] = digest
        self._stream.write(json.dumps({"level": task.level, "shard": list(task.index), "digest": digest}) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def alone(self) -> bool:
        """As `Progress.alone`."""
        try:
            lock(self._lock, self.target.path, keep_open=True)
        except TakenError:
            return False
        return True

    def recorded(self) -> set[Task]:
        """As `Progress.recorded`."""
        self._done |= self._all_records()
        return set(self._done)

    def _all_records(self) -> dict[Task, str]:
        found: dict[Task, str] = {}
        for file in sorted(self.target.path.glob("medsr-progress*.jsonl")):
            for record in read_records(file.read_text(errors="replace")):
                found[Task(record["level"], tuple(record["shard"]))] = record["digest"]
        return found

    def discard(self) -> None:
        """As `Progress.discard`."""
        self.target.clear()

    def describe(self, documents: Mapping[str, bytes]) -> None:
        """Nothing: they were written with the header, under the same lock."""

    def finish(self, final: Place, documents: Mapping[str, bytes]) -> None:
        """Give the complete result its final name, in the place of an older one, then drop the records."""
        if not isinstance(final, Folder):
            raise TypeError(f"{final.name}: expected a folder, as the unfinished result is in one")
        self.target.put(GROUP, documents[GROUP])
        drop_torn_files(self.target.path)
        for folder, _, _ in os.walk(self.target.path):
            _sync(folder)
        if os.name == "nt":  # no folder is renamed there while a file in it is open
            release(self._stream)
            release(self._lock)
        if final.path.exists():
            shutil.rmtree(old_name(final.path), ignore_errors=True)
            final.path.rename(old_name(final.path))
        self.target.path.rename(final.path)
        _sync(final.path.parent)
        drop_leftovers(final)


def _refuse_moved(stream: IO[str], part: Path) -> None:
    """Another process may have given the result its final name between our opening and locking it."""
    try:
        same = os.fstat(stream.fileno()).st_ino == (part / LOCK).stat().st_ino
    except FileNotFoundError:
        same = False
    if not same and os.name != "nt":
        raise TakenError(f"{part}: another process has just finished it; give the same command again")


def _sync(path: str | Path) -> None:
    """Flush a folder to the disk (POSIX; Windows opens none)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
