"""build_library, load_library: fine scans on disk, indexed once, for methods that take detail from them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medsr.degradation import Degradation
from medsr.io import find_scans, read_scan
from medsr.io.digest import input_digest
from medsr.io.source import Source, versioned
from medsr.methods.kept import Kept
from medsr.methods.registration import MOST_KEYPOINTS, SCALES, Features, band_overview, find_features
from medsr.methods.retrieval import band_digest, read_plane
from medsr.scan import Factor, Scan, ScanError, validate_factor

__all__ = ["Library", "build_library", "load_library"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

FORMAT = 2
INDEX, CODES = "index.json", "codes.npz"

WORDS = 64
"""Clusters of descriptors a plane is summed up in."""

SAMPLE = 20_000
"""Descriptors the clusters are made of."""

ROUNDS = 12
DIMENSIONS = 128
"""Numbers that are kept of a plane's sum."""

OPEN_SCANS = 4
"""Scans of a library that are held open, and scans whose keypoints are held."""

SLACK = 0.1
"""How much farther than the true nearest a plane found by the tree may be (approximate nearest neighbors)."""

KEYPOINT_BYTES = 2 * 4 + 128
"""Of a position and a descriptor."""

_digests: dict[tuple[Path, str], str] = {}
"""Digests of scans by their path and the version of their files: in a process each scan is read for it once."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A scan of the library; files relative to its root.

    Attributes:
        path, files: of its source.
        sha256: of its files when it was indexed.
        shape: of the scan.
        spacing_um: along y and x.
        first: number of its first plane.
    """

    path: str
    files: tuple[str, ...]
    sha256: str
    shape: tuple[int, ...]
    spacing_um: tuple[float | None, float | None]
    first: int

    @property
    def planes(self) -> int:
        return int(np.prod(self.shape[:-2], dtype=int))


@dataclass(frozen=True, slots=True)
class _ScanPlane:
    """A plane of a scan, cut to whole coarse samples."""

    scan: Scan
    index: tuple[int, ...]
    shape: tuple[int, ...]

    def read(self, rows: slice, columns: slice) -> Floats:
        """A region in unit intensity."""
        return read_plane(self.scan, self.index, rows, columns)


class Library:
    """Fine scans of one kind, indexed for one factor and degradation. The index holds keypoints and descriptors; the
    samples stay in the files of the scans and are read where they are needed. Sent to another process, it is opened
    there again.

    Attributes:
        factor, degradation: how the coarse band, in which planes are compared, was made.
        names: of the scans: their paths relative to the root.
        inputs: SHA-256 of the files of each scan, as `medsr.io.digest.input_digest` gives it.
        held_bytes: memory of the keypoints that are held, at most.
        identity: of the index, 12 hex digits.

    Raises:
        ValueError: as `load_library`.
    """

    def __init__(self, folder: Path, root: Path | None, degradation: Degradation | None) -> None:
        self.folder = folder
        content = _index_of(folder)
        self.root = Path(os.path.normpath(folder / content["root"])) if root is None else root
        self.factor: Factor = tuple(content["factor"])
        self.degradation = _degradation_of(content, folder, degradation)
        self._entries = [
            _Entry(s["path"], tuple(s["files"]), s["sha256"], tuple(s["shape"]), tuple(s["spacing_um"]), s["first"])
            for s in content["scans"]
        ]
        self.names = tuple(entry.path for entry in self._entries)
        self.inputs = frozenset(entry.sha256 for entry in self._entries)
        largest = sorted(entry.planes for entry in self._entries)[-OPEN_SCANS:]
        self.held_bytes = sum(largest) * MOST_KEYPOINTS * KEYPOINT_BYTES
        self.identity = hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()[:12]
        with np.load(folder / CODES, allow_pickle=False) as arrays:
            self._words, self._mean, self._basis = arrays["words"], arrays["mean"], arrays["basis"]
            codes = arrays["codes"]
        self._tree = cKDTree(codes)
        self._firsts = np.array([entry.first for entry in self._entries])
        self._opened: Kept[int, Scan] = Kept(OPEN_SCANS)
        self._keypoints: Kept[int, list[Features]] = Kept(OPEN_SCANS)

    def __repr__(self) -> str:
        return f"Library({self.identity}, factor={self.factor}, scans={len(self.names)}, planes={len(self)})"

    def __len__(self) -> int:
        return int(self._tree.n)

    def __reduce__(self) -> tuple[type[Library], tuple[Path, Path, Degradation]]:
        return Library, (self.folder, self.root, self.degradation)

    def refused(self, spacing_um: tuple[float | None, ...] | None) -> dict[int, str]:
        """Scans whose spacing is known and differs by more than registration bears from the wanted one, with why."""
        found = {}
        for number, entry in enumerate(self._entries):
            pairs = zip(entry.spacing_um, spacing_um or (None, None), strict=True)
            ratios = [own / wanted for own, wanted in pairs if own is not None and wanted is not None]
            if any(not SCALES[0] <= ratio <= SCALES[1] for ratio in ratios):
                found[number] = (
                    f"{entry.path}: expected a spacing within {SCALES[0]:g} to {SCALES[1]:g} times {spacing_um} um, "
                    f"found {entry.spacing_um}; index scans of that spacing"
                )
        return found

    def candidates(self, features: Features, *, most: int, leave_out: frozenset[int] = frozenset()) -> list[int]:
        """Numbers of the planes whose descriptors, summed up, are nearest to these, best first."""
        code = (_vlad(features, self._words) - self._mean) @ self._basis
        skipped = sum(self._entries[scan].planes for scan in leave_out)
        _, near = self._tree.query(code, k=np.arange(1, min(len(self), most + skipped) + 1), eps=SLACK)
        return [int(plane) for plane in near if self.scan_of(int(plane)) not in leave_out][:most]

    def scan_of(self, plane: int) -> int:
        """Number of the scan that a plane belongs to."""
        return int(np.searchsorted(self._firsts, plane, side="right")) - 1

    def features(self, plane: int) -> Features:
        """Keypoints of a plane, in its own fine samples; its scan is not opened."""
        scan = self.scan_of(plane)
        return self._keypoints.get(scan, lambda: _stored(self.folder, scan))[plane - self._entries[scan].first]

    def plane(self, plane: int) -> _ScanPlane:
        """Samples of a plane."""
        scan = self.scan_of(plane)
        opened = self._opened.get(scan, lambda: self._opened_anew(scan))
        return _plane_of(opened, plane - self._entries[scan].first, self.factor)

    def _opened_anew(self, number: int) -> Scan:
        entry = self._entries[number]
        source = Source(self.root / entry.path, tuple(self.root / file for file in entry.files), entry.path)
        missing = [file for file in source.files if not file.exists()]
        if missing or _digest_of(source) != entry.sha256:
            found = f"{missing[0]} missing" if missing else "other content"
            raise ScanError(
                f"{source.path}: expected the scan that the library {self.folder} indexed, found {found}; build the "
                "library again, or say where its scans are now (root)"
            )
        return read_scan(source)


def build_library(
    paths: Path | str | Sequence[Path | str],
    *,
    factor: Factor | int,
    degradation: Degradation | None = None,
    out: Path | str,
) -> Library:
    """Index fine scans once, so that coarse ones can be compared with them.

    Every plane of every scan is brought to the coarse band (degraded, interpolated), its SIFT keypoints are described,
    and their descriptors summed up (VLAD). The folder holds arrays and one JSON file: relative file names, hashes,
    shapes and spacing; no samples, and nothing of a patient. Scans that cannot be used are left out with a warning.

    Args:
        paths: files and folders on this machine.
        factor: of the method, for y and x.
        degradation: how a coarse scan is made of a fine one; None: the mean over each coarse sample.
        out: folder of the index; must not exist.

    Raises:
        ValueError: a URL (a library never leaves the machine), a factor that is not for two axes, a folder that exists,
            or no scan that can be used.
        ScanError: a path holds nothing.

    References:
        H. Jegou, M. Douze, C. Schmid, P. Perez, Aggregating local descriptors into a compact image representation,
        2010, doi:10.1109/CVPR.2010.5540039, equation 1.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    out, factor = Path(out), validate_factor((factor, factor) if isinstance(factor, int) else factor)
    degradation = Degradation(factor) if degradation is None else degradation
    if any("://" in str(path) for path in given) or "://" in str(out):
        raise ValueError(f"library: expected folders and files of this machine, found a URL in {given}; copy the scans")
    if len(factor) != 2 or degradation.factor != factor:
        raise ValueError(f"library: expected one factor for y and x, found {factor} and a degradation of {degradation}")
    if out.exists():
        raise ValueError(f"{out}: expected a new folder for the library, found one that exists; give another name")
    sources = [source for path in given for source in find_scans(path)]
    if not sources:
        raise ValueError(f"library: expected at least one scan, found none in {given}")
    root = Path(os.path.commonpath([file.resolve().parent for source in sources for file in source.files]))
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    entries: list[_Entry] = []
    for source in sources:
        try:
            entries.append(_indexed(source, root, part, entries, degradation))
        except ScanError as error:
            _log.warning("left out of the library: %s", error)
    if not entries:
        raise ValueError(f"library: expected at least one scan that can be used, found none in {given}")
    _write_codes(part, entries)
    _write_index(part, entries, degradation, root=os.path.relpath(root, out.resolve()))
    part.rename(out)
    return Library(out, root, degradation)


def load_library(
    folder: Path | str, *, root: Path | str | None = None, degradation: Degradation | None = None
) -> Library:
    """A library that `build_library` made.

    Args:
        folder: of the index.
        root: folder of its scans, where they were moved; None: where they were, relative to the index.
        degradation: the one it was made with; needed where that has a blur kernel.

    Raises:
        ValueError: no index, one of another version, or another degradation.
    """
    return Library(Path(folder), None if root is None else Path(root), degradation)


def _index_of(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / INDEX).read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: expected a library, found no {INDEX}; make one with build_library") from None
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: expected a library of format {FORMAT}, found {content.get('format')}; build it again"
        )
    return content


def _degradation_of(content: dict[str, Any], folder: Path, given: Degradation | None) -> Degradation:
    """The degradation of an index: the one given, or the one its sampling alone defines."""
    said = content["degradation"]
    known = Degradation(tuple(content["factor"]), sampling=said["sampling"]) if given is None else given
    if known.factor != tuple(content["factor"]) or band_digest(known) != said["sha256"]:
        raise ValueError(
            f"{folder}: expected the degradation it was made with, {said['name']}, found {known}; give that one, or "
            "build a library for yours"
        )
    return known


def _indexed(source: Source, root: Path, out: Path, before: list[_Entry], degradation: Degradation) -> _Entry:
    """Describe the planes of a scan and write their keypoints."""
    scan = read_scan(source)
    factor = degradation.factor
    if scan.grid.axes[-2:] != ("y", "x") or any(n < 16 * f for n, f in zip(scan.shape[-2:], factor, strict=True)):
        raise ScanError(
            f"{source.path}: expected planes of at least 16 coarse samples along y and x, found {scan.shape} with axes "
            f"{''.join(scan.grid.axes)}"
        )
    count = int(np.prod(scan.shape[:-2], dtype=int))
    found = [find_features(band_overview(_plane_of(scan, i, factor), degradation)) for i in range(count)]
    np.savez_compressed(
        out / _keypoints_file(len(before)),
        positions=np.concatenate([f.positions for f in found]),
        descriptors=np.concatenate([f.descriptors for f in found]),
        starts=np.cumsum([0, *(len(f.positions) for f in found)]),
    )
    spacing = (scan.grid.spacing_of("y"), scan.grid.spacing_of("x"))
    path, *files = (os.path.relpath(p.resolve(), root) for p in (source.path, *source.files))
    first = before[-1].first + before[-1].planes if before else 0
    return _Entry(path, tuple(files), _digest_of(source), scan.shape, spacing, first)


def _digest_of(source: Source) -> str:
    """The digest of a scan; its bytes are read again only where names, sizes or times of change are others."""
    key = (source.path.absolute(), versioned(source).version)
    if key not in _digests:
        _digests[key] = input_digest(source)
    return _digests[key]


def _plane_of(scan: Scan, number: int, factor: Factor) -> _ScanPlane:
    index = tuple(int(i) for i in np.unravel_index(number, scan.shape[:-2])) if len(scan.shape) > 2 else ()
    return _ScanPlane(scan, index, tuple(n // f * f for n, f in zip(scan.shape[-2:], factor, strict=True)))


def _keypoints_file(scan: int) -> str:
    return f"keypoints_{scan:05d}.npz"


def _stored(folder: Path, scan: int) -> list[Features]:
    """Keypoints of the planes of a scan."""
    with np.load(folder / _keypoints_file(scan), allow_pickle=False) as arrays:
        positions, descriptors, starts = arrays["positions"], arrays["descriptors"], arrays["starts"]
    return [Features(positions[a:b], descriptors[a:b]) for a, b in pairwise(starts)]


def _all_stored(folder: Path, entries: list[_Entry]) -> Iterator[Features]:
    """Keypoints of all planes in their order."""
    for number in range(len(entries)):
        yield from _stored(folder, number)


def _write_codes(folder: Path, entries: list[_Entry]) -> None:
    """Words, principal directions, and the code of every plane."""
    planes = entries[-1].first + entries[-1].planes
    share = max(1, SAMPLE // planes)
    rows = [f.roots()[np.unique(np.linspace(0, len(f.positions) - 1, share).astype(int))]
            for f in _all_stored(folder, entries) if len(f.positions)]  # fmt: skip
    words = _clustered(np.concatenate(rows) if rows else np.zeros((1, 128), np.float32))
    every = max(1, planes // 1024)
    sample = np.stack([_vlad(f, words) for i, f in enumerate(_all_stored(folder, entries)) if i % every == 0])
    mean = sample.mean(0)
    basis = np.linalg.svd(sample - mean, full_matrices=False)[2][:DIMENSIONS].T
    codes = np.stack([(_vlad(f, words) - mean) @ basis for f in _all_stored(folder, entries)])
    np.savez_compressed(folder / CODES, words=words, mean=mean, basis=basis.astype(np.float32), codes=codes)


def _clustered(rows: Floats) -> Floats:
    """Centers of at most `WORDS` clusters by Lloyd's algorithm, from an even share of the rows; always the same."""
    centers = rows[np.unique(np.linspace(0, len(rows) - 1, min(WORDS, max(1, len(rows) // 8))).astype(int))].copy()
    for _ in range(ROUNDS):
        nearest = cKDTree(centers).query(rows)[1]
        counts = np.bincount(nearest, minlength=len(centers))
        total = np.zeros_like(centers)
        np.add.at(total, nearest, rows)
        centers = np.where(counts[:, None] > 0, total / np.maximum(counts, 1)[:, None], centers)
    return np.asarray(centers, np.float32)


def _vlad(features: Features, words: Floats) -> Floats:
    """Differences of descriptors to their words, summed for each word (Jegou et al. 2010, equation 1), the root of each
    entry taken, of unit length."""
    total = np.zeros_like(words)
    if len(features.positions):
        roots = features.roots()
        nearest = (roots @ words.T - 0.5 * (words**2).sum(1)).argmax(1)
        np.add.at(total, nearest, roots - words[nearest])
    flat = np.sign(total).ravel() * np.sqrt(np.abs(total)).ravel()
    return np.asarray(flat / max(float(np.linalg.norm(flat)), 1e-6), np.float32)


def _write_index(folder: Path, entries: list[_Entry], degradation: Degradation, *, root: str) -> None:
    content = {
        "format": FORMAT,
        "factor": list(degradation.factor),
        "degradation": {
            "name": repr(degradation), "sampling": degradation.sampling, "sha256": band_digest(degradation),
        },
        "root": Path(root).as_posix(),
        "scans": [
            {
                "path": Path(e.path).as_posix(), "files": [Path(f).as_posix() for f in e.files], "sha256": e.sha256,
                "shape": list(e.shape), "spacing_um": list(e.spacing_um), "first": e.first,
            }
            for e in entries
        ],
    }  # fmt: skip
    (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n")
