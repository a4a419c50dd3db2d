"""Readers: read_scan, find_scans; READERS is a plain tuple, the first that accepts a path reads it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from medsr.io import omezarr_reader, picture, tiff
from medsr.io.dicom import DicomReader
from medsr.io.discover import find_all, find_scans
from medsr.io.lazy import set_cache_limit
from medsr.io.naming import DICOM_SUFFIXES, FOREIGN, PLANE_SUFFIXES, scan_name
from medsr.io.places import Bucket, place
from medsr.io.planes import numbered_planes
from medsr.io.remote import read_fetched
from medsr.io.source import NoImageError, Reader, Source, refuse_replaced, versioned
from medsr.scan import Intensity, Scan, ScanError

__all__ = [
    "READERS",
    "NoImageError",
    "Reader",
    "Source",
    "find_all",
    "find_scans",
    "read_scan",
    "set_cache_limit",
    "versioned",
]


READERS: tuple[Reader, ...] = (
    Reader("ome-zarr", omezarr_reader.accepts, omezarr_reader.read, (".zarr",)),
    replace(DicomReader, suffixes=DICOM_SUFFIXES),
    Reader("tiff", tiff.accepts, tiff.read, tiff.SUFFIXES),
    Reader("picture", picture.accepts, picture.read, picture.SUFFIXES),
)


def read_scan(
    path: str | Path | Source, *, series: str | int | None = None, intensity: Intensity | None = None
) -> Scan:
    """The scan at `path`, lazily: geometry and intensity are read, samples only where they are asked for.

    Args:
        path: a file; a folder that holds one scan (one DICOM series, one OME-Zarr, the numbered planes of one
            stack); the URL of a file or an OME-Zarr group in an object store ("s3://bucket/scan.ome.zarr"); or a
            source of `find_scans`. What a file is, its content says, not its name. An OME-Zarr is read in place, chunk
            by chunk; another file is copied to a private temporary folder for as long as the scan is in use.
        series: name or number of the image where a file holds several.
        intensity: the line to use, of the type of the samples, when it is known already; then no samples are read.

    Raises:
        NoImageError: a sound file without an image, such as a DICOM report.
        ScanError: nothing is there, no reader knows it, it holds several scans, its reader refuses it, or it is not
            the version that its source names; the message names the file, what was expected and found, and the cure.
        OSError: an object store that does not answer, or no room for the copy.
    """
    source, warning = (path, "") if isinstance(path, Source) else _one_source(path)
    if not source.url:
        refuse_replaced(source)
        scan = _read(source, series=series, intensity=intensity)
    elif Bucket(source.url).is_file():
        scan = read_fetched(source, partial(_read, series=series), intensity=intensity)
    else:
        refuse_replaced(source)
        scan = omezarr_reader.read(source, series, intensity=intensity)
    return replace(scan, warnings=(warning, *scan.warnings)) if warning else scan


def _read(source: Source, *, series: str | int | None, intensity: Intensity | None) -> Scan:
    return _reader(source).read(source, series, intensity=intensity)


def _one_source(location: str | Path) -> tuple[Source, str]:
    """The one source at a path or URL, and a warning ("": none) where its files may as well be separate images."""
    where = place(location)
    path = Path(where.name)
    if isinstance(where, Bucket):
        return _only(find_scans(location), where.name), ""
    if not path.is_dir() or omezarr_reader.accepts(path):
        return (Source(path, (path,), scan_name(path)) if path.is_file() else find_scans(path)[0]), ""
    sources = find_scans(path)
    if len(sources) == 1:
        return sources[0], ""
    planes = numbered_planes([s.path for s in sources], PLANE_SUFFIXES)
    if planes and len(planes) == len(sources) and {p.parent for p in planes} == {path}:
        return Source(path, planes, scan_name(path)), (
            f"{len(planes)} files with plain numbers taken as the planes of one stack; find_scans and a batch over the "
            "folder take them as separate images unless told stack=true"
        )
    return _only(sources, str(path)), ""


def _only(sources: list[Source], name: str) -> Source:
    if len(sources) == 1:
        return sources[0]
    if not sources:
        raise ScanError(f"{name}: expected a scan, found none in this folder; {_formats()}")
    first = ", ".join(s.name for s in sources[:3])
    raise ScanError(
        f"{name}: expected one scan, found {len(sources)} ({first}{', ...' if len(sources) > 3 else ''}); name one of "
        "them, or take all: find_scans(path) and `medsr upscale FOLDER`"
    )


def _reader(source: Source) -> Reader:
    probe = source.path if omezarr_reader.accepts(source.path) else source.files[0]
    if not probe.is_file() and not probe.is_dir():
        raise ScanError(f"{probe}: expected a file, found none (a pipe, a device or a link to nothing); check the name")
    if probe.is_file() and probe.stat().st_size == 0:
        raise ScanError(
            f"{probe}: expected an image, found an empty file (0 bytes); copy it again from where it was made"
        )
    for reader in READERS:
        if reader.accepts(probe):
            return reader
    for reader in READERS:
        if probe.suffix.lower() in reader.suffixes:
            return reader  # it says why it cannot read what the name promises
    kind = FOREIGN.get(probe.suffix.lower())
    found = f"{kind} ({probe.suffix})" if kind else "a file of another kind"
    raise ScanError(f"{probe}: expected an image that can be read, found {found}; {_formats()}")


def _formats() -> str:
    return "read are DICOM, TIFF (OME, ImageJ), OME-Zarr 0.4 and 0.5, gray PNG and PGM: save it as OME-TIFF"
