"""BatchRow, BatchReport, BatchLog: what became of each scan of a batch."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Literal

from medsr.io.places import Folder, Place
from medsr.locks import lock, release
from medsr.shards import Share

__all__ = ["BatchLog", "BatchReport", "BatchRow"]


@dataclass(frozen=True, slots=True)
class BatchRow:
    """What became of one scan: a line of `batch.jsonl`.

    `status` "waiting": this process's share is written, other shares are not; the last one to end completes the result.
    `details` of a planned scan: the plan; of one that is done: the engine, and for how long each stage was busy where
    this process did it all.
    """

    scan: str
    status: Literal["done", "skipped", "failed", "planned", "waiting"]
    seconds: float
    reason: str = ""
    output: str = ""
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The rows of a batch, in the order of its scans."""

    rows: tuple[BatchRow, ...]

    @property
    def exit_code(self) -> int:
        """1 when a scan failed, else 0."""
        return int(any(row.status == "failed" for row in self.rows))


class BatchLog:
    """`batch.jsonl`, a line as each scan is done, and `batch.csv` at the end."""

    SECONDS = 30.0
    """How often the lines are put to an object store, which knows no appending."""

    def __init__(self, out: Place, name: str, stream: IO[str] | None) -> None:
        self._out = out
        self._name = name
        self._stream = stream
        self._rows: list[BatchRow] = []
        self._put = time.monotonic()

    @classmethod
    @contextmanager
    def open(cls, out: Place, share: Share) -> Iterator[BatchLog]:
        """The log of a batch; the folder is this batch's (or this share's) alone while it runs."""
        name = "batch" if share.parts == 1 else f"batch-{share.number}-of-{share.parts}"
        with ExitStack() as stack:
            stream = None
            if isinstance(out, Folder):
                out.path.mkdir(parents=True, exist_ok=True)
                stream = stack.enter_context((out.path / f"{name}.jsonl").open("a+"))
                lock(stream, out.path)
                stack.callback(release, stream)
                stream.truncate(0)
            log = cls(out, name, stream)
            if stream is None:
                log._put_lines()  # a place that cannot be written is said before the work
            try:
                yield log
            finally:
                log._write_table()

    def add(self, row: BatchRow) -> None:
        """A line more."""
        self._rows.append(row)
        if self._stream is not None:
            self._stream.write(json.dumps(asdict(row)) + "\n")
            self._stream.flush()
        elif time.monotonic() - self._put > self.SECONDS:
            self._put_lines()

    def _put_lines(self) -> None:
        self._out.put(f"{self._name}.jsonl", "".join(json.dumps(asdict(row)) + "\n" for row in self._rows).encode())
        self._put = time.monotonic()

    def _write_table(self) -> None:
        if self._stream is None:
            self._put_lines()
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(["scan", "status", "seconds", "reason", "output"])
        table.writerows([row.scan, row.status, row.seconds, row.reason, row.output] for row in self._rows)
        self._out.put(f"{self._name}.csv", text.getvalue().encode())
