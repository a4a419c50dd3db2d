"""Source: the files one scan is made of; Reader: what a reader of a format is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from medsr.io.bucket import public_name
from medsr.scan import Intensity, Scan, ScanError

__all__ = ["NoImageError", "Read", "Reader", "Source", "natural_key"]


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
    """

    path: Path
    files: tuple[Path, ...]
    name: str
    subject: str = ""
    url: str = field(default="", repr=False)

    @property
    def location(self) -> str:
        """Where the scan is, for messages: the path, or the URL without its password or token."""
        return public_name(self.url) if self.url else str(self.path)


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
