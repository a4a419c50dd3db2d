"""Source: the files one scan is made of; Reader: what a reader of a format is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from medsr.io.bucket import Bucket, public_name
from medsr.scan import Intensity, Scan, ScanError

__all__ = ["NoImageError", "Read", "Reader", "Source", "natural_key", "refuse_replaced", "versioned"]


class NoImageError(ScanError):
    """A sound file that holds no image and was never meant to (a DICOM report, plan, index or waveform)."""


@dataclass(frozen=True, slots=True)
class Source:
    """The files one scan is made of; small and picklable, nothing is read.

    Attributes:
        path: file or folder as a person would name it; of an object store a mere name, nothing opens it.
        files: all files the scan is made of, in no particular order (a reader sorts by content).
        name: name of the output, unique inside one `find_scans`.
        subject: "" unknown (always so in an object store); else 16 hex digits of the SHA-256 of the patient's id,
            never the id.
        url: of the OME-Zarr group or the file in an object store; "" for files on disk.
        version: of the files when a job began, by `versioned`: `read_scan` refuses others. "": any.
        unnamed: its name is a pseudonym: no text that leaves says where it lies or what its files are called.
    """

    path: Path
    files: tuple[Path, ...]
    name: str
    subject: str = ""
    url: str = field(default="", repr=False)
    version: str = ""
    unnamed: bool = field(default=False, kw_only=True)

    @property
    def location(self) -> str:
        """Where the scan is, for messages: the path, or the URL without its password or token."""
        return public_name(self.url) if self.url else str(self.path)


def versioned(source: Source) -> Source:
    """The source with the version of its files as they are now: by names, sizes and times of change.

    Of a file in an object store by size and ETag. Of an OME-Zarr the files at most two levels
    deep count: its documents, which whoever writes it anew writes too.

    Raises:
        OSError: a file is not there, or the store does not answer.
    """
    return replace(source, version=_version(source))


def refuse_replaced(source: Source, version: str | None = None) -> None:
    """Raise a ScanError if the files, or their `version` where it is known, are not those of `source.version`."""
    if not source.version:
        return
    try:
        found = _version(source) if version is None else version
    except OSError as error:
        found = f"none that can be asked for ({error.strerror})"
    if found != source.version:
        raise ScanError(
            f"{source.location}: expected the files as they were when the work began ({source.version}), found "
            f"{found}; they were replaced: begin again"
        )


def _version(source: Source) -> str:
    if source.url:
        bucket = Bucket(source.url)
        return bucket.version()[0] if bucket.is_file() else _of_marks(bucket.documents())
    files = [file for path in source.files for file in (_documents(path) if path.is_dir() else (path,))]
    stats = [(file, file.stat()) for file in files]
    # In microseconds: some network file systems round the time.
    return _of_marks([(str(file), str(s.st_size), s.st_mtime_ns // 1000) for file, s in stats])


def _documents(folder: Path) -> list[Path]:
    return [file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.is_file()]


def _of_marks(marks: Sequence[tuple[str, str, float]]) -> str:
    return f"{len(marks)} files, {hashlib.sha256(repr(sorted(marks)).encode()).hexdigest()[:16]}"


class Read(Protocol):
    """Makes a scan of a source. With an `intensity` given, no samples are read to measure one: it is the scan's."""

    def __call__(self, source: Source, series: str | int | None = None, *, intensity: Intensity | None = None) -> Scan:
        """The scan, lazily; raises ScanError with the file first."""
        ...


@dataclass(frozen=True, slots=True)
class Reader:
    """One format: its name, whether a path looks like it, how a source becomes a scan, the endings its files have.

    `accepts` looks at content and never raises. `read` raises ScanError with the file first.
    """

    name: str
    accepts: Callable[[Path], bool]
    read: Read
    suffixes: tuple[str, ...] = ()


def natural_key(path: Path | str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which "plane_2" comes before "plane_10" (digits by value, text without case)."""
    parts = re.split(r"(\d+)", str(path))
    return tuple((1, int(p), p) if p.isdecimal() else (0, 0, p.casefold()) for p in parts)
