"""Pseudonyms: short stable names for scans by a secret key, and texts without their files' names."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE

from medsr.io.discover import find_all
from medsr.io.naming import scan_name
from medsr.io.places import as_url
from medsr.io.source import Source, natural_key, versioned
from medsr.scan import ScanError

__all__ = ["Pseudonyms", "unnamed"]

SHORT = 10
"""Hex digits of a name: two of a thousand scans share them once in two million batches, and then have more digits."""

LEAST_KEY = 32
"""Bytes of a key file; a new one holds 64 hex digits, 256 random bits."""

WHOLE, SLICE = 64_000_000, 1 << 20
"""Bytes of a scan up to which all decide its name; of a larger file slices of 1 MB, evenly over it, do."""

SHORTEST = 3
"""Letters of a folder's or file's name from which on it is taken out of a text, wherever it stands there."""

HIDDEN = "(hidden)"


class Pseudonyms:
    """Names such as `scan-3f9a1c2b7d` for scans: HMAC-SHA256 of their content by a secret key.

    The name follows from the bytes of the files and the key alone: the same scan has the same name in every batch, in
    whatever folder, under whatever file name. Without the key nobody can tell the name of a scan, not even one who has
    the scan; with it, one who has the scan can. Exact copies of a scan in one batch are numbered (`-2`), in natural
    order of their paths. In an object store the store's own mark of the content (size and ETag) stands for the bytes.

    Args:
        keyfile: the secret; made, readable by its owner only, where it is absent. Keep it apart from the results.
        mapping: table that says which name is which path, written by `rename`; rows that are in it already stay.
            It undoes the protection: nothing is written where it is None.

    Raises:
        ValueError: the key can be read by others, is too short, or is no file.
        OSError: it cannot be read or made.

    References:
        H. Krawczyk, M. Bellare, R. Canetti: HMAC: keyed-hashing for message authentication, RFC 2104, 1997,
        doi:10.17487/RFC2104.
    """

    def __init__(self, keyfile: Path | str, *, mapping: Path | str | None = None) -> None:
        self.keyfile = Path(keyfile)
        self.mapping = None if mapping is None else Path(mapping)
        self._key = _key(self.keyfile)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.keyfile)!r})"

    def rename(self, sources: Sequence[Source], *, out: Path | str | None = None) -> list[Source]:
        """The same sources, in the order of their new names (theirs might tell who they are), marked `unnamed`.

        Args:
            sources: of one batch.
            out: where results go: neither the key nor the mapping may lie there.

        Raises:
            ValueError: they do.
            OSError: the mapping cannot be written.
        """
        self._refuse_beside(out)
        full = {source: self._name_of(_content(source)) for source in sources}
        digits = _digits(set(full.values()))
        names, taken = {}, dict[str, int]()
        for source in sorted(sources, key=lambda s: (natural_key(s.path), natural_key(s.files[0]), s.url)):
            name = f"scan-{full[source][:digits]}"
            taken[name] = taken.get(name, 0) + 1
            names[source] = name if taken[name] == 1 else f"{name}-{taken[name]}"
        if self.mapping is not None:
            self._write_mapping(self.mapping, {name: source.location for source, name in names.items()})
        renamed = [replace(source, name=names[source], unnamed=True) for source in sources]
        return sorted(renamed, key=lambda source: source.name)

    def find_all(
        self, paths: Path | str | Sequence[Path | str], *, out: Path | str | None = None, stack: bool = False
    ) -> list[Source]:
        """As `find_all`, under pseudonyms; what is logged names no file.

        Raises:
            ScanError: a path does not exist, or none of them holds a scan.
            ValueError, OSError: as `rename`.
        """
        with self.quiet():
            return self.rename(find_all(paths, out=out, stack=stack), out=out)

    def refuse_named(self, series: str | int | None) -> None:
        """Refuse a series that is asked for by name: what is asked for is recorded, and a name may say who it is.

        Raises:
            ValueError: it is no number.
        """
        if isinstance(series, str) and not series.isdigit():
            raise ValueError(
                "series: expected its number with pseudonyms, found a name, which would be recorded with the results; "
                "give the number (medsr inspect names what a file holds)"
            )

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """While it lasts, what the readers log names no file or folder."""
        loggers = [logging.getLogger(f"medsr.io.{name}") for name in ("discover", "planes", "remote")]
        mask = _Nameless()
        for logger in loggers:
            logger.addFilter(mask)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(mask)

    def _name_of(self, content: bytes) -> str:
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()

    def _refuse_beside(self, out: Path | str | None) -> None:
        if out is None or as_url(out) is not None:
            return
        for path, what in ((self.keyfile, "key"), (self.mapping, "mapping")):
            if path is not None and path.resolve().is_relative_to(Path(out).resolve()):
                raise ValueError(
                    f"{path}: expected the {what} of the pseudonyms apart from the results, found it in {out}, with "
                    "which it would be passed on; keep it in another folder"
                )

    def _write_mapping(self, path: Path, names: dict[str, str]) -> None:
        kept: dict[str, str] = {}
        if path.exists():
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                kept = {row[0]: row[1] for row in csv.reader(stream) if len(row) == 2 and row[0] != "pseudonym"}
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(["pseudonym", "path"])
        table.writerows(sorted((kept | names).items()))
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
        part.replace(path)


def unnamed(text: str, source: Source) -> str:
    """A text about a scan without the paths and names of its files, where the scan has a pseudonym; else the text.

    Names of three letters and more are taken out as whole words wherever they stand, the folders' above the scan too:
    a word too many may go, never one too few. What stands in quotes goes too: it is what a file says of itself.
    """
    if not source.unnamed:
        return text
    files = dict.fromkeys((source.path, *source.files))
    spelled = dict.fromkeys(form for path in files for form in (path, path.absolute(), path.resolve()))
    whole = {str(path): source.name for path in spelled} | {source.url: source.name, source.location: source.name}
    above = {str(parent): HIDDEN for path in spelled for parent in path.parents if len(parent.parts) > 1}
    parts = {part: HIDDEN for path in spelled for part in path.parts[:-1] if part != path.anchor}
    words = parts | {word: source.name for path in files for word in (path.name, path.stem, scan_name(path))}
    words = {word: new for word, new in words.items() if len(word) >= SHORTEST}
    known = {**words, **above, **whole, source.name: source.name}
    forms = [re.escape(source.name)]
    forms += [re.escape(old) + r"(?!\w)" for old in sorted(filter(None, whole), key=len, reverse=True)]
    forms += [re.escape(old) + r"(?!\w)" for old in sorted(above, key=len, reverse=True)]
    forms += [rf"(?<![A-Za-z0-9]){re.escape(w)}(?![A-Za-z0-9])" for w in sorted(words, key=len, reverse=True)]
    text = re.sub("|".join(forms), lambda found: known[found[0]], text)
    return re.sub(r"(?<!\w)(['\"])[^'\"]*\1(?!\w)", HIDDEN, text)


class _Nameless(logging.Filter):
    """Takes paths out of what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without its paths; texts that look like a path or a file's name count as one."""
        if isinstance(record.args, tuple):
            record.args = tuple(HIDDEN if _is_path(value) else value for value in record.args)
        return True


def _is_path(value: object) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and re.search(r"[/\\]|\S\.\w", value) is not None)


def _key(path: Path) -> bytes:
    """The secret of a key file; a new one where there is none.

    Raises:
        ValueError: others may read it, it is too short, or is no file.
        OSError: it cannot be read or made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with open(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(LEAST_KEY) + "\n")
            stream.flush()
            os.fsync(descriptor)
    if not path.is_file():
        raise ValueError(f"{path}: expected a key file, found a folder or a device; name a file, made if absent")
    mode = S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o007:
        raise ValueError(f"{path}: expected a key only its owner may read, found mode {mode:04o}; chmod 600 {path}")
    for _ in range(20):  # another process may just be writing it
        secret = path.read_bytes().strip()
        if len(secret) >= LEAST_KEY:
            return secret
        time.sleep(0.05)
    raise ValueError(
        f"{path}: expected a key of at least {LEAST_KEY} bytes, found {len(secret)}; name a file that does not exist, "
        "and it is made"
    )


def _digits(names: set[str]) -> int:
    """Digits by which different contents have different names: SHORT, unless chance has it otherwise."""
    count = SHORT
    while len({name[:count] for name in names}) < len(names):
        count += 2
    return count


def _content(source: Source) -> bytes:
    """What decides a name: the bytes of the files, whatever they are called and however they are sorted."""
    try:
        if source.url:
            return f"store {versioned(source).version}".encode()
        files = [f for path in source.files for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file()]
        most = max(2 * SLICE, WHOLE // max(1, len(files)))
        return repr(sorted(_digest(file, most) for file in files)).encode()
    except (OSError, ScanError):  # what cannot be read fails later, with its reason
        return b"path " + os.fsencode(source.url or str(source.path.resolve()))


def _digest(file: Path, most: int) -> str:
    """SHA-256 of a file's size and of at most about `most` of its bytes."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{size};".encode())
    count = most // SLICE
    starts = range(0, size, SLICE) if size <= most else [(size - SLICE) * i // (count - 1) for i in range(count)]
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(SLICE))
    return digest.hexdigest()
