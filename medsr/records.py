"""Commit records in a file: whole lines only, and what a killed process leaves beside the shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any, TypeGuard

__all__ = ["drop_torn_files", "drop_torn_line", "read_records"]


def drop_torn_files(part: Path) -> None:
    """Remove what a killed process left half-written beside the shards: all but metadata, records and shards."""
    for file in part.rglob("*"):
        ours = file.parent == part and file.name.startswith("medsr-")
        if file.is_file() and not ours and file.name != "zarr.json" and not file.name.isdecimal():
            file.unlink(missing_ok=True)


def drop_torn_line(stream: IO[str]) -> None:
    """A torn last line would swallow the record written behind it."""
    stream.seek(0)
    text = stream.read()
    stream.truncate(sum(len(line) for line in text.encode().splitlines(keepends=True)[: len(read_records(text))]))


def read_records(text: str) -> list[dict[str, Any]]:
    """Whole lines only: a line without its end, or that is no JSON, was torn by a crash; so is all behind it."""
    records: list[dict[str, Any]] = []
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            record = None
        if not _is_record(record):
            break
        records.append(record)
    return records


def _is_record(record: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(record, dict):
        return False
    level, shard, digest = (record.get(key) for key in ("level", "shard", "digest"))
    whole = isinstance(shard, list) and all(isinstance(index, int) for index in shard)
    return isinstance(level, int) and whole and isinstance(digest, str)
