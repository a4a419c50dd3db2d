"""Place: a folder on disk or a prefix of an object store, where whole files are put and found by key."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from medsr.io.bucket import Bucket, as_url, digest_of, public_name

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["Bucket", "Folder", "Place", "as_url", "place", "public_name"]

UNFINISHED = ".part"


class Place(Protocol):
    """Where files are kept by key: a folder on disk, or a prefix of an object store.

    A key is a relative path with "/" between its parts ("0/c/3/1"). Picklable, and cheap to make: nothing is opened
    before it is used. What goes wrong in a place is an OSError with `errno`, and the place in `filename`.
    """

    @property
    def name(self) -> str:
        """The place as a person gave it, for messages and records; never with a password or token."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's file system."""
        ...

    def child(self, name: str, /) -> Place:
        """The place below this one."""
        ...

    def exists(self) -> bool:
        """Whether anything is there."""
        ...

    def get(self, key: str, /) -> bytes | None:
        """All bytes under a key; None where there is none."""
        ...

    def put(self, key: str, data: bytes | memoryview, /) -> None:
        """Store bytes under a key, in the place of older ones: whole or not at all, and lasting when it returns."""
        ...

    def put_new(self, key: str, data: bytes, /) -> bool:
        """Store bytes under a key that is absent; False, and nothing changed, if it is there."""
        ...

    def delete(self, key: str, /) -> None:
        """Remove a key; one that is absent is fine."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix`, sorted; what a writer has not finished is none."""
        ...

    def clear(self) -> None:
        """Remove everything in it."""
        ...

    def digest(self, key: str, /) -> str | None:
        """BLAKE2b (16 bytes, hex) of the stored bytes, read piece by piece; None where there is no such key."""
        ...

    def zarr_store(self) -> Store:
        """The place as a zarr store to read from."""
        ...


def place(location: str | Path) -> Place:
    """The place that a location names: a URL of any file system that fsspec knows ("s3://bucket/folder"), else a
    folder.

    Access rights come from the environment and the configuration of fsspec and of the store's own client
    (AWS_PROFILE, AWS_ENDPOINT_URL, ~/.config/fsspec), never from here.

    Raises:
        ValueError: a URL of a kind that is not known, or whose package is not installed.
    """
    url = as_url(location)
    if url is None:
        return Folder(Path(location))
    if url.startswith(("file://", "local://")):
        return Folder(Path(url.split("://", 1)[1]))
    _known(url)
    return Bucket(url.rstrip("/"))


def _known(url: str) -> None:
    import fsspec

    protocol, name = url.split("://", 1)[0], public_name(url)
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        cure = "pip install 'medsr[s3]'" if protocol in ("s3", "s3a") else str(error)
        raise ValueError(f"{name}: expected the package for {protocol}:// URLs, found none; {cure}") from error
    except ValueError as error:
        raise ValueError(
            f"{name}: expected a folder, or a URL such as s3://bucket/folder, found {protocol}://, which fsspec does "
            "not know; check the name"
        ) from error


@dataclass(frozen=True)
class Folder:
    """A folder on disk. A file is written under a hidden name that ends in ".part", flushed, then renamed.

    The bytes under a key are on the disk when `put` returns; its name in the folder may be lost with the power for the
    few seconds until the system writes the folder, and then the key is absent, never torn.
    """

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def is_local(self) -> bool:
        """True."""
        return True

    def child(self, name: str, /) -> Folder:
        """The folder below this one."""
        return Folder(self.path / name)

    def exists(self) -> bool:
        """Whether anything is there."""
        try:
            with os.scandir(self.path) as entries:
                return any(True for _ in entries)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True

    def get(self, key: str, /) -> bytes | None:
        """All bytes of a file; None where there is none."""
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, data: bytes | memoryview, /) -> None:
        """Write a file: whole or not at all.

        Raises:
            OSError: the disk is full (ENOSPC) or not writable; what was there before is unchanged.
        """
        target = self.path / key
        part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}{UNFINISHED}")
        try:
            with _made(part) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        except BaseException as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(target)) from error
            raise

    def put_new(self, key: str, data: bytes, /) -> bool:
        """Write a file that is absent: of two that do so at the same time one succeeds."""
        whole = f"{key}.{os.getpid()}.{threading.get_ident()}{UNFINISHED}"
        self.put(whole, data)
        try:
            os.link(self.path / whole, self.path / key)
        except FileExistsError:
            return False
        finally:
            self.delete(whole)
        return True

    def delete(self, key: str, /) -> None:
        """Remove a file; one that is absent is fine."""
        (self.path / key).unlink(missing_ok=True)

    def keys(self, prefix: str = "") -> list[str]:
        """Files below, those being written left out."""
        top = self.path / prefix.rpartition("/")[0]
        found = []
        for folder, _, files in os.walk(top):
            inside = Path(folder).relative_to(self.path).as_posix()
            start = "" if inside == "." else f"{inside}/"
            found += [start + file for file in files if not (file[0] == "." and file.endswith(UNFINISHED))]
        return sorted(key for key in found if key.startswith(prefix))

    def clear(self) -> None:
        """Remove the folder with all that is in it."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def digest(self, key: str, /) -> str | None:
        """BLAKE2b of a file; None where there is none."""
        try:
            with (self.path / key).open("rb") as stream:
                return digest_of(stream)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def zarr_store(self) -> Store:
        """A zarr LocalStore to read from."""
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)


def _made(path: Path) -> IO[bytes]:
    """The file opened to write, its folders made where they are absent."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
