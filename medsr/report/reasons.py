"""pathless: why something failed, without where it lies and what its files are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsr.io.pseudonyms import HIDDEN, SHORTEST, unnamed
from medsr.io.source import Source

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = ["pathless", "reason_of"]

UNSAID = "the reason names a place, and is not repeated here"


def reason_of(error: Exception, name: str, places: Iterable[Path | str | Source | Scan | None] = ()) -> str:
    """Why a page failed, in a line that may leave the house.

    Args:
        error: what was raised.
        name: of the scan, as the page calls it.
        places: what was read or written: paths and sources.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or "no reason given"
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return pathless(text if known else f"{type(error).__name__}: {text}", name, places)


def pathless(text: str, name: str, places: Iterable[Path | str | Source | Scan | None] = ()) -> str:
    """A text without the names of places, and without the parts of it that look like a path all the same.

    Args:
        text: parts of it are parted by ": ".
        name: stands where a file was named.
        places: whose names must not stay.
    """
    for place in places:
        if isinstance(place, Source):
            source = replace(place, name=name, unnamed=True)
        elif isinstance(place, (str, Path)):
            source = Source(Path(place), (), name, unnamed=True)
        else:
            continue
        if _named(source, text):
            text = unnamed(text, source)
    kept = [part for part in text.split(": ") if part != HIDDEN and "/" not in part and "\\" not in part]
    if len(kept) > 1 and kept[0] == name:  # the row is named already
        kept = kept[1:]
    return ": ".join(kept) if kept != [name] and kept else UNSAID


def _named(source: Source, text: str) -> bool:
    """Whether any name of a source may stand in a text; asked of thousands of sources."""
    files: Sequence[Path] = (source.path, *source.files[:1])
    parts = (part for path in files for part in (*path.absolute().parts, path.stem))
    return any(len(part) >= SHORTEST and part in text for part in parts) or str(source.path) in text
