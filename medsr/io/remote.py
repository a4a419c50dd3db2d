"""Scans in an object store: OME-Zarr is read in place, any other file is copied for as long as its scan is in use."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medsr.io.naming import DICOM_SUFFIXES, FOREIGN, IMAGE_SUFFIXES, scan_name, unique
from medsr.io.omezarr import stored_job
from medsr.io.omezarr_reader import MARKERS
from medsr.io.places import Bucket, Place
from medsr.io.source import Source, natural_key
from medsr.scan import Intensity, LazyArray, Scan, ScanError

__all__ = ["Copy", "FetchedArray", "fetched", "find_remote", "read_fetched"]

_log = logging.getLogger(__name__)


class ReadLocal(Protocol):
    """Makes a scan of a source on disk."""

    def __call__(self, source: Source, /, *, intensity: Intensity | None) -> Scan:
        """The scan."""
        ...


def find_remote(bucket: Bucket, *, results: Place | None = None) -> list[Source]:
    """The scans at or below a URL, by the rules of `find_scans`; nothing is fetched.

    Raises:
        ScanError: there is nothing, or it cannot be listed.
    """
    if bucket.name.endswith(".part"):
        raise ScanError(
            f"{bucket.name}: expected a scan, found a half-written result; run the command that wrote it again"
        )
    try:
        if bucket.is_file():
            return [_source(bucket)]
        found = _below(bucket)
    except OSError as error:
        raise ScanError(
            f"{bucket.name}: expected a file, an OME-Zarr group or a folder of them, found {error.strerror}; check the "
            "name, the endpoint and the rights"
        ) from error
    if isinstance(results, Bucket):
        found = [source for source in found if not _is_result(source, results, bucket)]
    return unique(sorted(found, key=lambda source: natural_key(source.path)), Path(bucket.name))


def _source(bucket: Bucket) -> Source:
    path = Path(bucket.name)
    return Source(path, (path,), scan_name(path), url=bucket.url)


def _below(bucket: Bucket) -> list[Source]:
    found, waiting = list[Source](), [bucket]
    left_out: Counter[str] = Counter()
    while waiting:
        here = waiting.pop()
        folders, files = here.entries()
        if any(marker in files for marker in MARKERS):
            found.append(_source(here))
            continue
        if here.name.endswith(".zarr"):
            _log.warning("%s: left out, a half-written OME-Zarr (no metadata of its group)", here.name)
            continue
        waiting += [here.child(name) for name in folders if not _hidden(name)]
        endings = {name: Path(name).suffix.lower() for name in files if not _hidden(name)}
        found += [_source(here.child(name)) for name, ending in endings.items() if ending in IMAGE_SUFFIXES]
        left_out.update(FOREIGN[ending] for ending in endings.values() if ending in FOREIGN)
        left_out.update("no ending" for ending in endings.values() if not ending)
        slices = sum(ending in DICOM_SUFFIXES for ending in endings.values())
        if slices > 1:
            _log.warning(
                "%s: %d DICOM files, each taken as a scan of its own; copy the slices of one series to disk first",
                here.name, slices
            )  # fmt: skip
    if left_out:
        counted = ", ".join(f"{count} ({kind})" for kind, count in sorted(left_out.items()))
        _log.warning("%s: files left out: %s; a file without an ending is read when it is named", bucket.name, counted)
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(".part") or name == "__MACOSX"


def _is_result(source: Source, results: Bucket, searched: Bucket) -> bool:
    if not f"{source.location}/".startswith(f"{results.name}/"):
        return False
    return not f"{searched.name}/".startswith(f"{results.name}/") or stored_job(Bucket(source.url)) is not None


class Copy:
    """A private copy of an object on disk, removed when nothing uses it any more, at the latest when the process ends
    (unless it is killed)."""

    def __init__(self, bucket: Bucket, address: str, changed: float) -> None:
        folder = tempfile.mkdtemp(prefix=f"medsr-{address[:16]}-")
        self._remove = weakref.finalize(self, _remove, folder, os.getpid())
        self.path = Path(folder, Path(bucket.name).name)
        try:
            bucket.fetch(self.path)
        except BaseException:
            self._remove()
            raise
        os.utime(self.path, (changed, changed))


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has the object, but not the file
        shutil.rmtree(folder, ignore_errors=True)


_copies: weakref.WeakValueDictionary[str, Copy] = weakref.WeakValueDictionary()


def fetched(url: str) -> Copy:
    """A copy of an object; the same one while it is in use and the object has not changed.

    Raises:
        OSError: the object is not there, or there is no room for it.
    """
    bucket = Bucket(url)
    version, changed = bucket.version()
    address = hashlib.sha256(f"{os.getpid()} {url} {version}".encode()).hexdigest()
    copy = _copies.get(address)
    if copy is None:
        copy = _copies[address] = Copy(bucket, address, changed)
    return copy


def read_fetched(source: Source, read: ReadLocal, *, intensity: Intensity | None) -> Scan:
    """The scan of a file in an object store, read from a copy.

    Raises:
        ScanError: as `read` does, the URL first.
        OSError: the object is not there, or there is no room for it.
    """
    copy, scan = _open(source, read, intensity)
    return replace(scan, data=FetchedArray(source, read, scan.intensity, copy=copy, data=scan.data))


def _open(source: Source, read: ReadLocal, intensity: Intensity | None) -> tuple[Copy, Scan]:
    copy = fetched(source.url)
    with _named(source, copy):
        return copy, read(replace(source, path=copy.path, files=(copy.path,), url=""), intensity=intensity)


@contextmanager
def _named(source: Source, copy: Copy) -> Iterator[None]:
    """Errors that name the URL, not the copy."""
    try:
        yield
    except ScanError as error:
        raise type(error)(str(error).replace(str(copy.path), source.location)) from error


class FetchedArray:
    """The samples of a file in an object store; holds its copy. Pickled without it: another process makes its own."""

    def __init__(self, source: Source, read: ReadLocal, intensity: Intensity, *, copy: Copy, data: LazyArray) -> None:
        self.source, self.read, self.intensity = source, read, intensity
        self.shape, self.dtype = tuple(data.shape), np.dtype(data.dtype)
        self._opened: tuple[Copy, LazyArray] | None = copy, data
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opened = None
        self._lock = threading.Lock()

    def __getitem__(self, region: Any, /) -> NDArray[Any]:
        with self._lock:
            if self._opened is None:
                copy, scan = _open(self.source, self.read, self.intensity)
                if tuple(scan.shape) != self.shape:
                    raise ScanError(
                        f"{self.source.location}: expected {self.shape} samples as before, found {scan.shape}; the "
                        "file was replaced, read it anew"
                    )
                self._opened = copy, scan.data
        copy, data = self._opened
        with _named(self.source, copy):
            return np.asarray(data[region])
