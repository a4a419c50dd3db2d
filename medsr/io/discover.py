"""find_scans: which files below a path make which scans, under which names; nothing but headers is read."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medsr.io import dicom, omezarr_reader, picture, tiff
from medsr.io.naming import FOREIGN, IMAGE_SUFFIXES, PLANE_SUFFIXES, fit_for_files, scan_name, unique
from medsr.io.omezarr import stored_job
from medsr.io.places import Bucket, Folder, place
from medsr.io.planes import numbered_planes, plane_sets
from medsr.io.remote import find_remote
from medsr.io.source import Source, natural_key
from medsr.scan import ScanError

__all__ = ["find_all", "find_scans"]

_log = logging.getLogger(__name__)


def find_scans(path: str | Path, *, stack: bool = False, results: str | Path | None = None) -> list[Source]:
    """All scans at or below `path`, in natural order, under names that are unique among them.

    A file is that file alone. In a folder, all folders below it included: the DICOM files of one series are one
    scan; an OME-Zarr folder is one; the files of one multi-file OME-TIFF set are one; TIFF files whose names count
    planes in words ("z001.tif", "slice_7.tif") without gaps are one stack; each other TIFF, PNG or PGM is a scan of
    its own. A folder of TIFFs or PNGs with plain numbers ("img_001.tif") may be planes or separate images: they are
    separate, and the log says so, unless `stack` is true; `read_scan(FOLDER)`, which names one scan, reads them as one
    stack and warns.

    Left out: hidden files, half-written results (".part"), and what is no image. Files that look like an image but
    are broken are kept, so that `read_scan` names the reason; image formats that are not read are named in the log.

    In an object store, where nothing is opened to look inside, an OME-Zarr group is a scan, and so is each file with
    the ending of a TIFF, PNG, PGM or DICOM file: a scan of several files (a series, a stack of planes) must be copied
    to disk first, and the log says so where there are several DICOM files.

    Args:
        path: a file or a folder, or its URL in an object store ("s3://bucket/folder").
        stack: take each folder whose TIFF or PNG files differ in one running number without gaps, and have one size
            and type, as one stack; the log says which folder does not qualify, and why.
        results: folder of a batch's results: what is found in it, in searching a folder above, is no input; nor is
            what a batch wrote, if `path` is that folder itself.

    Raises:
        ScanError: nothing has this name, or the folder cannot be listed.
    """
    where, kept = place(path), None if results is None else place(results)
    if isinstance(where, Bucket):
        return find_remote(where, results=kept)
    path = Path(where.name)
    if path.suffix == ".part":
        raise ScanError(f"{path}: expected a scan, found a half-written result; run the command that wrote it again")
    if omezarr_reader.accepts(path):
        return [Source(path, (path,), scan_name(path))]
    if path.is_dir():
        try:
            os.listdir(path)
        except OSError as error:
            raise ScanError(f"{path}: cannot be listed ({error.strerror}); check the rights of the folder") from error
        found = _in_folder(path, stack=stack)
        if isinstance(kept, Folder):
            found = [source for source in found if not _is_result(source.path, kept.path, path)]
        return unique(found, path)
    if not path.is_file():
        if path.exists() or path.is_symlink():
            return [Source(path, (path,), scan_name(path))]
        raise ScanError(f"{path}: expected a file or folder, found nothing of this name; {_nearest(path)}")
    series = _dicom([path]) if dicom.accepts(path) else []
    return [Source(path, (path,), scan_name(path), *(s.subject for s in series[:1]))]


def _nearest(path: Path) -> str:
    from difflib import get_close_matches

    try:
        near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    except OSError:
        return f"there is no folder {path.parent} either; check the name"
    return f"did you mean {near[0]!r}?" if near else "check the name"


def _in_folder(root: Path, *, stack: bool) -> list[Source]:
    found: list[Source] = []
    dicom_files: list[Path] = []
    foreign: Counter[str] = Counter()
    for folder, zarrs, files in _walk(root):
        found += [Source(z, (z,), scan_name(z)) for z in zarrs]
        tiffs: list[Path] = []
        pictures: list[Path] = []
        for file in files:
            if dicom.accepts(file):
                dicom_files.append(file)
            elif tiff.accepts(file):
                tiffs.append(file)
            elif picture.accepts(file) or file.suffix.lower() in IMAGE_SUFFIXES:
                pictures.append(file)
            elif file.suffix.lower() in FOREIGN:
                foreign[file.suffix.lower()] += 1
        found += _of_planes(folder, tiffs, pictures, stack=stack)
    found += _dicom(dicom_files)
    if foreign:
        counted = ", ".join(f"{n} {suffix} ({FOREIGN[suffix]})" for suffix, n in sorted(foreign.items()))
        _log.warning("%s: left out, no reader: %s; save them as OME-TIFF to include them", root, counted)
    return sorted(found, key=lambda s: (natural_key(s.files[0]), s.name))


def _of_planes(folder: Path, tiffs: list[Path], pictures: list[Path], *, stack: bool) -> list[Source]:
    """The scans that the TIFFs and the pictures of one folder make."""
    found: list[Source] = []
    sets = plane_sets(tiffs, tiff.SUFFIXES, lambda path: tiff.plane_form(path) is not None)
    for planes in sets:
        stem = re.split(r"\d+\D*$", planes[0].name)[0].rstrip(" _-=.")
        short = re.sub(r"(?:^|[ _\-=.]+)(?:z|slice|plane|section|sec|layer)$", "", stem, flags=re.IGNORECASE)
        found.append(Source(folder, planes, fit_for_files(short) if short else scan_name(folder)))
    taken = {file for planes in sets for file in planes}
    rest = [f for f in tiffs if f not in taken]
    groups = tiff.group(rest)
    if stack and len(groups) == len(rest):
        planes = _numbered_stack(folder, [*rest, *pictures])
        if planes:
            return [*found, Source(folder, planes, scan_name(folder))]
    elif not stack and any(len(f) > 2 and numbered_planes(f, PLANE_SUFFIXES) for f in (rest, pictures)):
        _log.info(
            "%s: %d files differ only in one running number: taken as separate images; as planes of one stack they "
            "are read by read_scan(folder), with stack=true, or when their names say so (z001.tif)",
            folder, len(rest) + len(pictures)
        )  # fmt: skip
    return [
        *found,
        *(Source(members[0], members, scan_name(members[0])) for members in groups),
        *(Source(file, (file,), scan_name(file)) for file in pictures),
    ]


def _numbered_stack(folder: Path, files: list[Path]) -> tuple[Path, ...]:
    """The files as the planes of one stack where they can be; else nothing, and the log says why."""
    if len(files) < 2:
        return ()
    planes = numbered_planes(files, PLANE_SUFFIXES)
    reason = ""
    if len(planes) != len(files):
        reason = "their names do not differ in one running number without gaps only"
    else:
        form = tiff.plane_form if planes[0].suffix.lower() in tiff.SUFFIXES else picture.plane_form
        first = form(planes[0])
        odd = next((p for p in planes if form(p) is None or form(p) != first), None)
        if odd is not None:
            reason = f"{odd.name} is no plane of the size and type of the first file"
    if reason:
        _log.warning("%s: %d files are no stack and taken as separate images: %s", folder, len(files), reason)
        return ()
    return planes


def _walk(root: Path) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Each folder with the OME-Zarr folders and the files in it; each real folder once, whatever links say."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            entries = sorted((folder / name for name in os.listdir(folder)), key=natural_key)
        except OSError as error:
            _log.warning("%s: left out, cannot be listed (%s)", folder, error.strerror)
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        zarrs: list[Path] = []
        files: list[Path] = []
        below: list[Path] = []
        for entry in entries:
            if entry.name.startswith(".") or entry.suffix == ".part" or entry.name == "__MACOSX":
                continue
            if omezarr_reader.accepts(entry):
                zarrs.append(entry)
            elif _is_folder(entry):
                below.append(entry)
            elif _is_file(entry) or (entry.is_symlink() and entry.suffix.lower() in IMAGE_SUFFIXES):
                files.append(entry)
        waiting += reversed(below)
        yield folder, zarrs, files


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _dicom(files: Iterable[Path]) -> list[Source]:
    """DICOM files as series; a series is named after its folder, a single file after itself."""
    listed = list(files)
    if not listed:
        return []
    found = []
    for members, subject in dicom.group(listed):
        ordered = tuple(sorted(members, key=natural_key))
        path = ordered[0] if len(ordered) == 1 else Path(os.path.commonpath([str(m.parent) for m in ordered]))
        found.append(Source(path, ordered, scan_name(path), subject))
    return found


def find_all(
    paths: Path | str | Sequence[Path | str], *, out: str | Path | None = None, stack: bool = False
) -> list[Source]:
    """The scans of several files and folders, names made unique.

    Args:
        paths: files and folders, or their URLs.
        out: results in it are no input, as in `find_scans`.
        stack: take folders of plainly numbered planes as one stack each, as in `find_scans`.

    Raises:
        ScanError: a path does not exist, or none of them holds a scan.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: list[Source] = []
    taken: set[str] = set()
    for path in given:
        for source in find_scans(path, stack=stack, results=out):
            name, count = source.name, 2
            while name in taken:
                name, count = f"{source.name}_{count}", count + 1
            taken.add(name)
            found.append(replace(source, name=name))
    if not found:
        raise ScanError(
            f"{', '.join(place(path).name for path in given)}: expected DICOM, TIFF, OME-Zarr, PNG or PGM scans, found "
            "none; check the folder, or ask medsr inspect FILE why a file is not read"
        )
    return found


def _is_result(path: Path, results: Path, searched: Path) -> bool:
    if not _inside(path, results):
        return False
    try:
        return not _inside(searched, results) or stored_job(Folder(path)) is not None
    except OSError:  # kept: its reader names the reason
        return False


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
