"""Whose work an unfinished result is: its header, how two are compared, and what a crash leaves of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medsr.io import omezarr
from medsr.io.omezarr import Level
from medsr.io.places import Folder, Place
from medsr.shards import Task

__all__ = [
    "BEGIN",
    "FILE",
    "GROUP",
    "JOB",
    "LOCK",
    "RECORDS",
    "JobChangedError",
    "changes",
    "drop_leftovers",
    "old_name",
    "read_header",
    "refuse_changed",
    "verified_tasks",
]

JOB = "medsr-job.json"
"""Whose work it is, and what was chosen for it. In a folder it is put behind the metadata; in an object store first,
for only one process can create it."""

FILE = "medsr-progress.jsonl"
"""Commit records in a folder; a share of several has a file of its own."""

RECORDS = "medsr-progress/"
"""Commit records in an object store: empty objects, named LEVEL/INDEX/DIGEST below this."""

LOCK, BEGIN = "medsr-lock", "medsr-begin"

GROUP = "zarr.json"
"""The group's own document: a result without it is no result to any reader."""


class JobChangedError(ValueError):
    """A result or unfinished work of another input, method or option is in the way."""


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs, as words; "" if nothing does."""
    return "; ".join(f"{k}: {old.get(k)} then, {new[k]} now" for k in new if old.get(k) != new[k])


def read_header(target: Place, *, restart: bool = True) -> dict[str, Any] | None:
    """The header of unfinished work; None where there is none, or with `restart` one that cannot be read.

    Raises:
        JobChangedError: it cannot be read.
    """
    stored = target.get(JOB)
    if stored is None:
        return None
    try:
        header = json.loads(stored)
    except ValueError:
        header = None
    if isinstance(header, dict) and {"identity", "settings"} <= header.keys():
        return header
    if restart:
        return None
    raise JobChangedError(f"{target.name}: {JOB} cannot be read; use --overwrite to start anew, or another --out")


def refuse_changed(target: Place, header: Mapping[str, Any], old: Mapping[str, Any], *, restart: bool) -> bool:
    """Whether old work is to be thrown away."""
    different = changes(old["identity"], header["identity"])
    if different and not restart:
        raise JobChangedError(
            f"{target.name}: unfinished work of another job ({different}); give the old command again, or --overwrite "
            "to start anew"
        )
    return bool(different)


def verified_tasks(
    target: Place, levels: Sequence[Level], done: Mapping[Task, str], tasks: Iterable[Task]
) -> Iterator[Task]:
    """Those of the tasks whose bytes have the recorded digest."""
    asked = [task for task in tasks if task in done]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        digests = pool.map(lambda task: omezarr.shard_digest(target, levels[task.level], task.index), asked)
        for task, digest in zip(asked, digests, strict=True):
            if digest == done[task]:
                yield task


def old_name(final: Path) -> Path:
    """Where a result is kept until the one that replaces it has its name."""
    return final.with_name(final.name + ".old.part")


def drop_leftovers(final: Place) -> None:
    """Remove what a crash may have left of a complete result: its records, and the result it replaced."""
    if isinstance(final, Folder):
        for file in [*final.path.glob("medsr-progress*.jsonl"), *(final.path / n for n in (JOB, LOCK, BEGIN))]:
            file.unlink(missing_ok=True)
        shutil.rmtree(old_name(final.path), ignore_errors=True)
        return
    for key in final.keys(RECORDS):
        final.delete(key)
    final.delete(JOB)
