"""Bucket: a prefix of an object store by fsspec, as a Place; URLs and what of them may be shown."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["Bucket", "as_url", "digest_of", "public_name"]

CACHED = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "http", "https")
"""Kinds of store whose client keeps listings unless told not to; others may hand the option on, and fail."""

TIMES = ("LastModified", "last_modified", "Last-Modified", "mtime", "created")
"""Where the clients of stores tell the time of change."""

WHOLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
"""Kinds of store where an object that is put is there whole or not at all."""


def as_url(location: str | Path) -> str | None:
    """The URL that a location is, also where it went through a Path ("s3:/bucket"); None for a path.

    One letter before the colon is a Windows drive.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+):/{1,3}(?=[^/]|$)", str(location))
    if found is None:
        return None
    slashes = 3 if found[1].lower() in ("file", "local") else 2
    return f"{found[1].lower()}:{'/' * slashes}{str(location)[found.end() :]}"


def public_name(url: str) -> str:
    """A URL without its user, password, query and (http) fragment."""
    parts = urlsplit(url, allow_fragments=url.startswith("http"))  # a key of an object may hold "#"
    host = parts.netloc if parts.scheme in ("abfs", "abfss") else parts.netloc.rpartition("@")[2]  # container@account
    return f"{parts.scheme}://{host}{parts.path}"


@dataclass(frozen=True)
class Bucket:
    """A prefix of an object store, by fsspec. A file is one object, written whole or not at all.

    Written is to S3 (tested), Google Cloud Storage and Azure (not tested here, by their own word): one request, or by
    s3fs from 100 MB on several parts that become the object with the last request; parts that a killed writer left are
    no object, and a rule of the bucket should clear them. Read is from any store that fsspec knows.

    Listings are asked for anew each time, so that what another writer has just put is seen.
    """

    url: str = field(repr=False)

    @property
    def name(self) -> str:
        """The URL without user, password and query."""
        return public_name(self.url)

    def __repr__(self) -> str:
        return f"Bucket({self.name!r})"

    @property
    def is_local(self) -> bool:
        """False."""
        return False

    def child(self, name: str, /) -> Bucket:
        """The prefix below this one.

        Raises:
            OSError: the URL has a query (a signed one), which holds for one file.
        """
        self._refuse_query()
        return Bucket(f"{self.url}/{name}")

    def exists(self) -> bool:
        """Whether an object is there, or below."""
        with self._errors():
            return bool(self._files.exists(self._root))

    def get(self, key: str, /) -> bytes | None:
        """All bytes of an object; None where there is none."""
        with self._errors(key):
            try:
                return bytes(self._files.cat_file(self._at(key)))
            except FileNotFoundError:
                return None

    def put(self, key: str, data: bytes | memoryview, /) -> None:
        """Store an object.

        Raises:
            OSError: no such bucket, no right to write, no way to the store; a store where a file may be torn.
        """
        scheme = urlsplit(self.url).scheme
        if scheme not in WHOLE:
            raise OSError(
                errno.EOPNOTSUPP,
                f"expected a store where a file is there whole or not at all, found {scheme}://, where an interrupted "
                "writer leaves a torn one; write to a folder, or to s3://, gs:// or abfs://",
                self.name,
            )
        with self._errors(key):
            self._files.pipe_file(self._at(key), data if isinstance(data, bytes) else bytes(data))

    def put_new(self, key: str, data: bytes, /) -> bool:
        """Store an object that is absent (a conditional PUT): of two that do so at the same time one succeeds."""
        with self._errors(key):
            try:
                self._files.pipe_file(self._at(key), data, mode="create")
            except FileExistsError:
                return False
        return True

    def delete(self, key: str, /) -> None:
        """Remove an object; one that is absent is fine."""
        with self._errors(key), suppress(FileNotFoundError):
            self._files.rm_file(self._at(key))

    def keys(self, prefix: str = "") -> list[str]:
        """Keys of the objects below."""
        return sorted(self.listing(prefix))

    def listing(self, prefix: str = "") -> dict[str, str]:
        """For each key that begins with `prefix`: size and version (ETag, else time of change) as the store lists
        them."""
        self._refuse_query()
        top = self._at(prefix.rpartition("/")[0]).rstrip("/")
        with self._errors(prefix):
            try:
                found = self._files.find(top, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._root) + 1
        listed = {path[start:]: info for path, info in found.items() if path.startswith(f"{self._root}/")}
        return {key: _version(info) for key, info in listed.items() if key.startswith(prefix) and not key.endswith("/")}

    def entries(self) -> tuple[list[str], list[str]]:
        """Names of the prefixes and of the objects directly below.

        Raises:
            OSError: there are none, or no such bucket.
        """
        self._refuse_query()
        with self._errors():
            found = self._files.ls(self._root, detail=True)
        paths = {info["name"].rstrip("/"): info["type"] == "directory" for info in found}
        paths.pop(self._root, None)  # an empty object that marks the folder
        named = {path.rpartition("/")[2]: below for path, below in paths.items()}
        return sorted(n for n, below in named.items() if below), sorted(n for n, below in named.items() if not below)

    def is_file(self) -> bool:
        """Whether the URL names an object itself."""
        with self._errors():
            return bool(self._files.isfile(self._root))

    def version(self) -> tuple[str, float]:
        """Of the object that the URL names itself: size and ETag in words, and the time of change in seconds (0:
        unknown)."""
        with self._errors():
            info = self._files.info(self._root)
        return _version(info), _changed(info)

    def documents(self) -> list[tuple[str, str, float]]:
        """Of the objects at most two levels below, as the metadata of an OME-Zarr are: path, and as `version`."""
        self._refuse_query()
        with self._errors():
            found = self._files.find(self._root, maxdepth=2, detail=True)
        return sorted((path, _version(info), _changed(info)) for path, info in found.items())

    def clear(self) -> None:
        """Remove all objects below; the bucket itself stays."""
        keys = self.keys()
        with self._errors():
            if keys:
                self._files.rm([self._at(key) for key in keys])

    def digest(self, key: str, /) -> str | None:
        """BLAKE2b of an object; None where there is none."""
        with self._errors(key):
            try:
                with self._files.open(self._at(key), "rb") as stream:
                    return digest_of(stream)
            except FileNotFoundError:
                return None

    def fetch(self, target: Path) -> None:
        """Copy the object that the URL names itself to a file."""
        with self._errors():
            self._files.get_file(self._root, str(target))

    def zarr_store(self) -> Store:
        """A zarr FsspecStore to read from."""
        from zarr.storage import FsspecStore

        self._refuse_query()
        with self._errors():
            return FsspecStore.from_url(self.url, storage_options=_options(self.url), read_only=True)

    @property
    def _files(self) -> Any:
        parts = urlsplit(self.url)
        return _file_system(f"{parts.scheme}://{parts.netloc}", os.getpid())

    @property
    def _root(self) -> str:
        return str(self._files._strip_protocol(self.url)).rstrip("/")

    def _refuse_query(self) -> None:
        if urlsplit(self.url).query:
            raise OSError(
                errno.EINVAL,
                "a URL with a query (a signed one), which holds for one file that is there, not for a folder; give the "
                "rights by the environment",
                self.name,
            )

    def _at(self, key: str) -> str:
        if key:
            self._refuse_query()
        return f"{self._root}/{key}" if key else self._root

    @contextmanager
    def _errors(self, key: str = "") -> Iterator[None]:
        where = f"{self.name}/{key}" if key else self.name
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  each store's client raises types of its own
            reason, hidden = _reason(error, self)
            raise OSError(_number(error), reason, where) from (None if hidden else error)


@cache
def _file_system(host: str, _process: int) -> Any:
    """The fsspec file system of a host: one for all threads of a process, since its connections are its own, and none
    for a forked one."""
    import fsspec

    return fsspec.url_to_fs(host, **_options(host))[0]


def _options(url: str) -> dict[str, Any]:
    return {"use_listings_cache": False} if urlsplit(url).scheme in CACHED else {}


def _version(info: dict[str, Any]) -> str:
    marks = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", *TIMES)
    return f"{info.get('size')} {next((info[mark] for mark in marks if info.get(mark)), '')}"


def _changed(info: dict[str, Any]) -> float:
    """Time of change in seconds; 0: unknown."""
    changed = next((info[mark] for mark in TIMES if isinstance(info.get(mark), (datetime, float, int))), 0.0)
    return changed.timestamp() if isinstance(changed, datetime) else float(changed)


def _number(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    for kind, number in ((FileNotFoundError, errno.ENOENT), (PermissionError, errno.EACCES)):
        if isinstance(error, kind):
            return number
    return errno.EIO


def _reason(error: Exception, bucket: Bucket) -> tuple[str, bool]:
    """What a client says without secrets, and whether there were any, in its message or its traceback.

    Queries and users go from whatever looks like a URL. What then still holds a part of the URL's own secrets, as
    clients word them anew, is left out.
    """
    kind, words = type(error).__name__, str(error)
    secrets = _secrets(bucket.url)
    if isinstance(error, FileNotFoundError) and " " not in words.strip():  # a mere key
        return "nothing there", bool(secrets)
    said = " ".join((error.strerror if isinstance(error, OSError) and error.strerror else f"{kind}: {words}").split())
    shown = re.sub(r"\?[^\s?=]+=\S*", "", re.sub(r"(?<=://)[^/\s?#@]*@", "", said))
    if any(secret in shown for secret in secrets):
        shown = f"{kind} (its words would show a secret of the URL)"
    return shown, bool(secrets) or shown != said


def _secrets(url: str) -> set[str]:
    """The password of a URL and the values of its query, as they are and decoded."""
    parts = urlsplit(url)
    found = {value for _, _, value in (pair.partition("=") for pair in parts.query.split("&"))}
    if parts.scheme not in ("abfs", "abfss"):
        found.add(parts.netloc.rpartition("@")[0].partition(":")[2])
    return {text for value in found if len(value) > 3 for text in (value, unquote(value))}


def digest_of(stream: BufferedIOBase) -> str:
    """BLAKE2b (16 bytes, hex) of a file open to read, piece by piece."""
    return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
