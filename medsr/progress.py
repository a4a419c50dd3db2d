"""Progress: the commit records of a result being written, whose result it is, and who may finish it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from medsr.io import omezarr
from medsr.io.omezarr import Level
from medsr.io.places import Folder, Place
from medsr.locks import TakenError, lock, turn
from medsr.records import drop_torn_files, drop_torn_line, read_records
from medsr.shards import Share, Task

__all__ = [
    "BucketProgress",
    "FolderProgress",
    "JobChangedError",
    "Progress",
    "begun_settings",
    "changes",
    "drop_leftovers",
    "open_progress",
]

JOB = "medsr-job.json"
"""Whose work it is, and what was chosen for it; there once the metadata of all levels are."""

FILE = "medsr-progress.jsonl"
"""Commit records in a folder; a share of several has a file of its own."""

RECORDS = "medsr-progress/"
"""Commit records in an object store: empty objects, named LEVEL/INDEX/DIGEST below this."""

LOCK, BEGIN = "medsr-lock", "medsr-begin"

GROUP = "zarr.json"
"""The group's own document: a result without it is no result to any reader."""


class JobChangedError(ValueError):
    """A result or unfinished work of another input, method or option is in the way."""


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
        """The shards that anyone has recorded by now; their bytes were durable before."""
        ...

    def finish(self, final: Place) -> None:
        """Make the complete result what its final name stands for."""
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
    return BucketProgress(target, header, documents, restart=restart)


def begun_settings(target: Place) -> dict[str, Any] | None:
    """What was chosen when the unfinished work in `target` was begun; None where none was."""
    header = _read_header(target)
    return None if header is None else dict(header["settings"])


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs, as words; "" if nothing does."""
    return "; ".join(f"{k}: {old.get(k)} then, {new[k]} now" for k in new if old.get(k) != new[k])


def _read_header(target: Place) -> dict[str, Any] | None:
    """The header of unfinished work; None where there is none, or one that was torn."""
    try:
        header = json.loads(target.get(JOB) or b"null")
    except ValueError:
        return None
    return header if isinstance(header, dict) and {"identity", "settings"} <= header.keys() else None


def _refuse_changed(target: Place, header: Mapping[str, Any], old: Mapping[str, Any], *, restart: bool) -> bool:
    """Whether old work is to be thrown away."""
    different = changes(old["identity"], header["identity"])
    if different and not restart:
        raise JobChangedError(
            f"{target.name}: unfinished work of another job ({different}); give the old command again, or --overwrite "
            "to start anew"
        )
    return bool(different)


def _verified(
    target: Place, levels: Sequence[Level], done: Mapping[Task, str], tasks: Iterable[Task]
) -> Iterator[Task]:
    asked = [task for task in tasks if task in done]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        digests = pool.map(lambda task: omezarr.shard_digest(target, levels[task.level], task.index), asked)
        for task, digest in zip(asked, digests, strict=True):
            if digest == done[task]:
                yield task


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
        self._lock = (part / LOCK).open("a")
        lock(self._lock, part, shared=not whole)
        try:
            _refuse_moved(self._lock, part)
            with turn(part / BEGIN):
                old = _read_header(target)
                if old is not None and _refuse_changed(target, header, old, restart=restart):
                    lock(self._lock, part)  # nobody else may be at what is thrown away
                    old = None
                if old is None:
                    self._begin(header, documents)
            if not whole:
                lock(self._lock, part, shared=True)
            self.settings: dict[str, Any] = (old or header)["settings"]
            if whole:
                drop_torn_files(part)
            name = FILE if whole else f"medsr-progress-{share.number}-of-{share.parts}.jsonl"
            self._stream = (part / name).open("a+")
            lock(self._stream, part)
            self._done = self._all_records()
            drop_torn_line(self._stream)
        except BaseException:
            self._lock.close()
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
        self._stream.close()
        self._lock.close()

    def verified(self, levels: Sequence[Level], tasks: Iterable[Task]) -> set[Task]:
        """As `Progress.verified`."""
        return set(_verified(self.target, levels, self._done, tasks))

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
            for record in read_records(file.read_text()):
                found[Task(record["level"], tuple(record["shard"]))] = record["digest"]
        return found

    def finish(self, final: Place) -> None:
        """Give the complete result its final name, in the place of an older one, then drop the records."""
        if not isinstance(final, Folder):
            raise TypeError(f"{final.name}: expected a folder, as the unfinished result is in one")
        drop_torn_files(self.target.path)
        for folder, _, _ in os.walk(self.target.path):
            _sync(folder)
        if os.name == "nt":  # no folder is renamed there while a file in it is open
            self._stream.close()
            self._lock.close()
        if final.path.exists():
            shutil.rmtree(_old(final.path), ignore_errors=True)
            final.path.rename(_old(final.path))
        self.target.path.rename(final.path)
        _sync(final.path.parent)
        drop_leftovers(final)


class BucketProgress:
    """Unfinished work in an object store, in its final place: it becomes a result when its group document is put.

    Nothing is locked: each object is put whole, and two processes that put the same shard put the same bytes.
    """

    def __init__(
        self, target: Place, header: Mapping[str, Any], documents: Mapping[str, bytes], *, restart: bool
    ) -> None:
        self._target = target
        self._group = documents[GROUP]
        old = _read_header(target)
        if old is not None and _refuse_changed(target, header, old, restart=restart):
            old = None
        if old is None:
            target.delete(GROUP)
            target.clear()
            for key, document in documents.items():
                if key != GROUP:
                    target.put(key, document)
            target.put(JOB, json.dumps(header).encode())
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
        return set(_verified(self.target, levels, self._done, tasks))

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

    def finish(self, final: Place) -> None:
        """Put the group document, by which it becomes a result, then drop the records."""
        final.put(GROUP, self._group)
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


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old.part")


def drop_leftovers(final: Place) -> None:
    """Remove what a crash may have left of a complete result: its records, and the result it replaced."""
    if isinstance(final, Folder):
        for file in [*final.path.glob("medsr-progress*.jsonl"), *(final.path / n for n in (JOB, LOCK, BEGIN))]:
            file.unlink(missing_ok=True)
        shutil.rmtree(_old(final.path), ignore_errors=True)
        return
    for key in final.keys(RECORDS):
        final.delete(key)
    final.delete(JOB)
