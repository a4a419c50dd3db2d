"""Scans in an object store: OME-Zarr is read in place, any other file is copied for as long as its scan is in use."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medsr.io.naming import DICOM_SUFFIXES, FOREIGN, IMAGE_SUFFIXES, scan_name, unique
from medsr.io.omezarr import stored_job
from medsr.io.omezarr_reader import MARKERS
from medsr.io.places import Bucket, Place
from medsr.io.source import Source, natural_key, refuse_replaced
from medsr.scan import Intensity, LazyArray, Scan, ScanError

__all__ = ["Copy", "FetchedArray", "fetched", "find_remote", "read_fetched"]

_log = logging.getLogger(__name__)

LOCK = ".lock"

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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
        if isinstance(results, Bucket):
            found = [source for source in found if not _is_result(source, results, bucket)]
    except OSError as error:
        raise ScanError(
            f"{bucket.name}: expected a file, an OME-Zarr group or a folder of them, found {error.strerror}; check the "
            "name, the endpoint and the rights"
        ) from error
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
    """A copy of one version of an object on disk, one for all processes of the user on this machine.

    Whoever uses it holds a shared lock on a file beside it, which the system drops with the process, however that ends.
    The last to let go removes it; what killed processes left is removed by the next that fetches anything.
    """

    def __init__(self, bucket: Bucket, version: str, changed: float) -> None:
        mine = f" {os.getpid()}" if fcntl is None else ""  # without such locks a copy is not shared
        address = hashlib.sha256(f"{bucket.url} {version}{mine}".encode()).hexdigest()[:32]
        folder = _copies_folder() / address
        self.version, self.path = version, folder / Path(bucket.name).name
        lock = folder.with_suffix(LOCK)
        self._lock = _held(lock, self.path, lambda: self._fetch(bucket, changed))
        weakref.finalize(self, _let_go, self._lock, lock, os.getpid())
        for left in folder.parent.glob(f"*{LOCK}") if fcntl is not None else ():
            _sweep(left)

    def _fetch(self, bucket: Bucket, changed: float) -> None:
        part = self.path.with_name("fetched.part")
        part.parent.mkdir(exist_ok=True)
        bucket.fetch(part)
        if bucket.version()[0] != self.version:
            raise ScanError(f"{bucket.name}: expected a file at rest, found it replaced while it was read; run again")
        os.utime(part, (changed, changed))
        part.replace(self.path)


def _copies_folder() -> Path:
    """The folder of the user's copies, which nobody else may enter.

    Raises:
        PermissionError: somebody else made it, or may enter.
    """
    user = str(os.getuid()) if fcntl is not None else "copies"
    folder = Path(tempfile.gettempdir(), f"medsr-{user}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if fcntl is not None and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077):
        raise PermissionError(
            errno.EACCES, "expected a folder of your own (mode 700); remove it, or set TMPDIR", str(folder)
        )
    return folder


def _held(lock: Path, filled: Path, fill: Callable[[], None]) -> IO[bytes]:
    """A shared lock on a file, once it is there: whoever comes first fills it, alone, and the others wait."""
    while True:
        stream = lock.open("ab")
        try:
            _flock(stream, "LOCK_SH")
            if not (_is(lock, stream) and filled.exists()):
                _flock(stream, "LOCK_EX", "LOCK_NB")
                if _is(lock, stream):
                    fill()
                _flock(stream, "LOCK_SH")
            if _is(lock, stream) and filled.exists():  # not swept meanwhile: locks do not change at once
                return stream
        except BlockingIOError:  # another is about to fill it
            time.sleep(0.01)
        except BaseException:
            _let_go(stream, lock, os.getpid())
            raise
        stream.close()


def _let_go(stream: IO[bytes], lock: Path, owner: int) -> None:
    stream.close()
    if os.getpid() == owner:  # a forked process has the object, but not the file
        _sweep(lock)


def _sweep(lock: Path) -> None:
    """Remove a copy that nobody uses."""
    with suppress(OSError), lock.open("rb") as stream:
        _flock(stream, "LOCK_EX", "LOCK_NB")
        if _is(lock, stream):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()


def _flock(stream: IO[bytes], *how: str) -> None:
    if fcntl is not None:
        fcntl.flock(stream, sum(getattr(fcntl, name) for name in how))


def _is(lock: Path, stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


_copies: weakref.WeakValueDictionary[tuple[int, str, str], Copy] = weakref.WeakValueDictionary()


def fetched(url: str) -> Copy:
    """A copy of an object; the same one while it is in use and the object has not changed.

    Raises:
        ScanError: the object was replaced while it was copied.
        OSError: the object is not there, or there is no room for it.
    """
    bucket = Bucket(url)
    version, changed = bucket.version()
    copy = _copies.get((os.getpid(), url, version))
    if copy is None:
        copy = _copies[os.getpid(), url, version] = Copy(bucket, version, changed)
    return copy


def read_fetched(source: Source, read: ReadLocal, *, intensity: Intensity | None) -> Scan:
    """The scan of a file in an object store, read from a copy.

    Raises:
        ScanError: as `read` does, the URL first.
        OSError: the object is not there, or there is no room for it.
    """
    copy, scan = _open(source, read, intensity)
    source = replace(source, version=copy.version)
    return replace(scan, data=FetchedArray(source, read, scan.intensity, copy=copy, data=scan.data))


def _open(source: Source, read: ReadLocal, intensity: Intensity | None) -> tuple[Copy, Scan]:
    copy = fetched(source.url)
    refuse_replaced(source, copy.version)
    with _named(source, copy):
        return copy, read(replace(source, path=copy.path, files=(copy.path,), url="", version=""), intensity=intensity)


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
                self._opened = copy, scan.data
        copy, data = self._opened
        with _named(self.source, copy):
            return np.asarray(data[region])
