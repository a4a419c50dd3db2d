"""Progress: the commit records of a result being written, and whose result it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from medsr.workers import Task

__all__ = ["JobChangedError", "Progress", "drop_leftovers", "lock"]

FILE = "medsr-progress.jsonl"


class JobChangedError(ValueError):
    """A result or unfinished work of another input, method or option is in the way."""


class Progress:
    """The record file inside an unfinished result: a header, then one line for each shard on the disk.

    A shard counts as done only if its record is whole and the digest of its bytes is the recorded one; a record torn by
    a crash is no record. The file is locked while open, so a second process on the same result is refused.
    """

    def __init__(self, part: Path, stream: IO[str], tile: Sequence[int], *, begun: bool) -> None:
        self.part = part
        self.tile = tuple(tile)
        self.begun = begun
        self._stream = stream
        self._done: dict[Task, str] = {}
        self._header: dict[str, Any] = {}

    @classmethod
    def open(cls, part: Path, identity: dict[str, Any], *, tile: Sequence[int], restart: bool = False) -> Self:
        """Begin a result, or go on with one.

        Args:
            part: the unfinished result.
            identity: what decides its bytes.
            tile: compute tile for a new result; an old one keeps its own, so that its bytes come out the same.
            restart: throw away unfinished work of another identity.

        Raises:
            JobChangedError: the unfinished work has another identity (the differences are named), or another process
                is at it.
        """
        if part.exists() and not (part / FILE).exists():
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        stream = (part / FILE).open("a+")
        lock(stream, part)
        stream.seek(0)
        text = stream.read()
        records = _records(text)
        # A torn last line would swallow the record written behind it.
        stream.truncate(sum(len(line) for line in text.encode().splitlines(keepends=True)[: len(records)]))
        header = records[0] if records else {}
        begun = header.get("complete_metadata") is True
        changed = [k for k in identity if begun and header.get("identity", {}).get(k) != identity[k]]
        if changed and not restart:
            stream.close()
            old = header.get("identity", {})
            differences = "; ".join(f"{k}: {old.get(k)} then, {identity[k]} now" for k in changed)
            raise JobChangedError(
                f"{part}: unfinished work of another job ({differences}); give the old command again, or --overwrite "
                "to start anew"
            )
        if changed or not begun:
            for item in part.iterdir():
                if item.name != FILE:
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
            stream.truncate(0)
            begun, records = False, []
        _drop_torn_files(part)
        progress = cls(part, stream, header["tile"] if begun else tile, begun=begun)
        progress._header = {"complete_metadata": True, "identity": identity, "tile": list(progress.tile)}
        for record in records[1:]:
            progress._done[Task(record["level"], tuple(record["shard"]))] = record["digest"]
        return progress

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def begin(self) -> None:
        """Commit the header: the metadata of all levels is on the disk."""
        self._write(self._header)
        self.begun = True

    def has(self, task: Task, digest: str | None) -> bool:
        """Whether the shard is done: recorded, and `digest`, that of its bytes now, is the recorded one."""
        return digest is not None and self._done.get(task) == digest

    def record(self, task: Task, digest: str) -> None:
        """Commit one shard, to the disk."""
        self._done[task] = digest
        self._write({"level": task.level, "shard": list(task.index), "digest": digest})

    def finish(self, final: Path) -> None:
        """Give the complete result its final name, in the place of an older one, then drop the record file."""
        for folder, _, files in os.walk(self.part):
            for path in [folder, *(os.path.join(folder, f) for f in files if f == "zarr.json")]:
                _sync(path)
        if os.name == "nt":  # no folder is renamed there while a file in it is open
            self._stream.close()
        if final.exists():
            shutil.rmtree(_old(final), ignore_errors=True)
            final.rename(_old(final))
        self.part.rename(final)
        _sync(final.parent)
        drop_leftovers(final)

    def _write(self, record: dict[str, Any]) -> None:
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _sync(path: str | Path) -> None:
    """Flush a file or folder to the disk (POSIX; Windows opens no folder and flushes nothing opened to read)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old.part")


def drop_leftovers(final: Path) -> None:
    """Remove what a crash may have left of a complete result: its record file, and the result it replaced."""
    (final / FILE).unlink(missing_ok=True)
    shutil.rmtree(_old(final), ignore_errors=True)


def _drop_torn_files(part: Path) -> None:
    """Remove what a killed process left half-written beside the shards: all but metadata, records and shards."""
    for file in part.rglob("*"):
        if file.is_file() and file.name not in (FILE, "zarr.json") and not file.name.isdecimal():
            file.unlink()


def _records(text: str) -> list[dict[str, Any]]:
    """Whole lines only: a line without its end, or that is no JSON, was torn by a crash; so is all behind it."""
    records: list[dict[str, Any]] = []
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def lock(stream: IO[str], owned: Path) -> None:
    """Hold a file for this process until it is closed or the process ends (POSIX; elsewhere no lock).

    Raises:
        JobChangedError: another process holds it; the file is closed. `owned` is what the message names.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise JobChangedError(f"{owned}: another process is writing here; wait for it or use another --out") from None
