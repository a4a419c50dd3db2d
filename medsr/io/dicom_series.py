"""Which DICOM planes form a volume, in which order along the normal, and how far apart they lie."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsr.io.dicom_frames import locate_frames, read_spans
from medsr.io.dicom_header import Header, Plane, read_header
from medsr.io.source import natural_key
from medsr.scan import ScanError

__all__ = ["Arrangement", "arrange", "group", "without_copies"]

Array = NDArray[np.float64]

SAME_MM = 1e-4
STEP_TOLERANCE = 0.01
TILT_DEGREES = 0.1
MOST_DEGREES = 45.0
BESIDE_MM = 0.01
CURE = "read its files one by one, or resample it to even planes"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Planes put in order.

    Attributes:
        order: index of each plane, slowest first: for every repeat all depths.
        depths: number of different positions along the normal.
        repeats: how often each position occurs (points in time, echoes).
        step_um: distance of neighboring planes along the normal; None for a single depth.
        origin_um: first sample of the first plane along normal, column direction (y) and row direction (x).
        warnings: a tilted gantry, planes that shift sideways; with the numbers.
    """

    order: tuple[int, ...]
    depths: int
    repeats: int
    step_um: float | None
    origin_um: tuple[float, float, float]
    warnings: tuple[str, ...] = ()


def arrange(planes: Sequence[Plane], *, name: Path, files: Sequence[Path] = ()) -> Arrangement | None:
    """Order planes by position along the normal of their orientation; None where positions are unknown.

    Args:
        planes: in any order.
        name: named first in errors.
        files: the file of each plane where each has its own: a refusal names those to blame.

    Raises:
        ScanError: planes not parallel, positions that occur unequally often, or a step that varies by more than 1 %.
    """
    if any(p.position is None or p.orientation is None for p in planes):
        return None
    positions = np.array([p.position for p in planes], float)
    directions = np.array([p.orientation for p in planes], float)
    normals = np.cross(directions[:, :3], directions[:, 3:])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    apart = math.degrees(math.acos(float(np.clip((normals @ normals[0]).min(), -1, 1))))
    if apart > 0.5 or np.abs(directions - directions[0]).max() > 0.01:
        raise ScanError(f"{name}: expected parallel planes, found planes turned by up to {apart:.3g} degrees; {CURE}")
    depth = positions @ normals[0]
    stacks = _stacks(depth, [p.time or 0.0 for p in planes], name=name, files=files)
    repeats = len(stacks[0])
    firsts = [s[0] for s in stacks]
    beside = max(float(np.abs(positions[s] - positions[s[0]]).max()) for s in stacks)
    if beside > BESIDE_MM:
        raise ScanError(
            f"{name}: expected planes one above the other, found planes beside each other at the same depth, "
            f"{beside:.3g} mm apart; {CURE}"
        )
    step = _uniform_step(depth[firsts], name=name)
    row, column = directions[0, :3], directions[0, 3:]
    first = positions[firsts[0]]
    return Arrangement(
        order=tuple(s[r] for r in range(repeats) for s in stacks),
        depths=len(stacks),
        repeats=repeats,
        step_um=None if step is None else 1000 * step,
        origin_um=(1000 * float(depth[firsts[0]]), 1000 * float(first @ column), 1000 * float(first @ row)),
        warnings=_slant(positions[firsts], normals[0], name=name),
    )


def _stacks(depth: Array, times: Sequence[float], *, name: Path, files: Sequence[Path]) -> list[list[int]]:
    """Indices of the planes at each depth, deepest last, those of one depth by time."""
    stacks: list[list[int]] = []
    for i in (int(i) for i in np.argsort(depth, kind="stable")):
        if stacks and depth[i] - depth[stacks[-1][0]] <= SAME_MM:
            stacks[-1].append(i)
        else:
            stacks.append([i])
    counts = Counter(map(len, stacks))
    if len(counts) > 1:
        text = ", ".join(f"{n} position{'s' if n > 1 else ''} {k} times" for k, n in sorted(counts.items()))
        usual = counts.most_common(1)[0][0]
        odd = [files[i].name for s in stacks if len(s) != usual for i in s] if len(files) == len(depth) else []
        named = f" ({', '.join(odd[:6])}{', ...' if len(odd) > 6 else ''})" if odd else ""
        raise ScanError(
            f"{name}: expected each position of a volume equally often, found {text}{named}; remove the extra planes"
        )
    return [sorted(s, key=lambda i: (times[i], i)) for s in stacks]


def _uniform_step(depths: Array, *, name: Path) -> float | None:
    if len(depths) < 2:
        return None
    steps = np.diff(depths)
    low, middle, high = float(steps.min()), float(np.median(steps)), float(steps.max())
    if high - low > STEP_TOLERANCE * middle:
        raise ScanError(
            f"{name}: expected {len(depths)} planes at even steps, found steps of {low:.6g} to {high:.6g} mm "
            f"(median {middle:.6g} mm); a plane may be missing: {CURE}"
        )
    return float(depths[-1] - depths[0]) / (len(depths) - 1)


def _slant(positions: Array, normal: Array, *, name: Path) -> tuple[str, ...]:
    """Warnings where the planes are not stacked straight along their normal."""
    if len(positions) < 2:
        return ()
    run = positions[-1] - positions[0]
    along = float(run @ normal)
    angle = math.degrees(math.atan2(float(np.linalg.norm(run - along * normal)), along))
    if angle > MOST_DEGREES:
        raise ScanError(
            f"{name}: expected planes one above the other, found them stacked {angle:.1f} "
            f"degrees off their normal; {CURE}"
        )
    warnings = []
    if angle > TILT_DEGREES:
        warnings.append(
            f"tilted gantry: the planes are stacked {angle:.2f} degrees off their normal and taken as if upright; "
            f"the step is {along / (len(positions) - 1):.6g} mm along the normal, "
            f"{np.linalg.norm(run) / (len(positions) - 1):.6g} mm along the stack"
        )
    even = positions[0] + np.linspace(0, 1, len(positions))[:, None] * run
    off = positions - even
    shift = float(np.linalg.norm(off - (off @ normal)[:, None] * normal, axis=1).max())
    if shift > 0.05:
        warnings.append(f"planes are shifted sideways against each other by up to {shift:.3g} mm")
    return tuple(warnings)


def group(files: Sequence[Path]) -> list[tuple[tuple[Path, ...], str]]:
    """Sort DICOM files into scans: (files in the order along the slice normal, hashed subject) for each.

    Single-frame files of one series with the same size and orientation and with positions form one scan; files of it
    that share positions (points in time, echoes, acquisitions) are split where a tag tells them apart. Everything
    else is a scan of its own. Headers only; a file that cannot be read is a scan of its own, without a subject.
    """
    stacks: dict[object, list[Header]] = {}
    for path in files:
        try:
            header = read_header(path)
        except ScanError:
            stacks[path] = []
            continue
        stacks.setdefault(_volume_key(header) or path, []).append(header)
    groups: list[tuple[tuple[Path, ...], str]] = []
    for key, headers in stacks.items():
        if not headers:
            groups.append(((key,) if isinstance(key, Path) else (), ""))
        groups += [(tuple(h.path for h in _by_depth(part)), part[0].subject) for part in _split(headers)]
    return groups


def _volume_key(header: Header) -> object:
    """What the planes of one volume share; None for a file that is a scan of its own."""
    plane, layout = header.planes[0], header.layout
    if header.problem or not header.series or header.frames > 1 or not (plane.position and plane.orientation):
        return None
    if "LOCALIZER" in "".join(header.phases):
        return None
    size = (layout.rows, layout.columns, layout.allocated, layout.stored, layout.signed, header.photometric)
    turned = tuple(round(v, 2) + 0.0 for v in plane.orientation)
    return header.series, header.subject, header.modality, size, turned, header.spacing_um


def _by_depth(headers: list[Header]) -> list[Header]:
    return [headers[i] for _, i in sorted(zip(_depths(headers), range(len(headers)), strict=True))]


def _depths(headers: list[Header]) -> list[float]:
    first = headers[0].planes[0].orientation
    if len(headers) < 2 or first is None:
        return [0.0] * len(headers)
    normal = np.cross(first[:3], first[3:])
    return [float(np.dot(h.planes[0].position or (0.0, 0.0, 0.0), normal)) for h in headers]


def _shared_positions(headers: list[Header]) -> bool:
    return any(b - a <= SAME_MM for a, b in pairwise(sorted(_depths(headers))))


def without_copies(headers: Sequence[Header]) -> list[Header]:
    """The headers without exact copies: files at one position, alike in all that tells planes apart, that hold the
    same bytes of pixels or bear the same SOPInstanceUID (unless that number stands at several positions, as where a
    careless anonymizer gave all files the same). The first file by name is kept."""
    alike: defaultdict[object, list[Header]] = defaultdict(list)
    positions: defaultdict[str, set[object]] = defaultdict(set)
    for header in sorted(headers, key=lambda h: natural_key(h.path)):
        plane = header.planes[0]
        if header.frames == 1 and plane.position is not None:
            alike[plane, header.phases, header.layout.rows, header.layout.columns].append(header)
            positions[header.instance].add(plane.position)
    copies: set[Path] = set()
    for members in alike.values():
        seen: set[object] = set()
        for header in members if len(members) > 1 else ():
            own: set[object] = {_pixel_digest(header)}
            if header.instance and len(positions[header.instance]) == 1:
                own.add(header.instance)
            if own & seen:
                copies.add(header.path)
            seen |= own
    return [h for h in headers if h.path not in copies]


def _pixel_digest(header: Header) -> str:
    """Digest of the bytes of the pixels as stored, with how they are stored."""
    digest = hashlib.sha256(repr(header.layout).encode())
    for frame in locate_frames(header.path, header.layout, header.element, frames=header.frames):
        digest.update(read_spans(frame))
    return digest.hexdigest()


def _split(headers: list[Header]) -> list[list[Header]]:
    """Split files that share positions by the folder, or the first tag, that tells them apart into volumes; files all
    at one depth are a scan each; else leave them together, for the reader to refuse with the numbers."""
    if len(headers) < 2 or not _shared_positions(headers):
        return [headers] if headers else []
    depths = sorted(_depths(headers))
    if depths[-1] - depths[0] <= SAME_MM:
        return [[header] for header in headers]
    folders = _parts(headers, lambda header: header.path.parent)
    if folders:
        return folders
    unique = _unique(headers)
    if len(unique) == len(headers):
        parts = next(filter(None, (_parts(headers, _phase(i)) for i in range(len(headers[0].phases)))), [])
        return parts or [headers]
    # A copy stays with the scan of its original, where reading drops it with a warning.
    scans = _split(unique)
    home = {_twin(header): scan for scan in scans for header in scan}
    for header in headers:
        if all(header is not other for other in unique):
            home.get(_twin(header), scans[0]).append(header)
    return scans


def _phase(number: int) -> Callable[[Header], object]:
    return lambda header: header.phases[number]


def _twin(header: Header) -> object:
    return header.planes[0], header.phases


def _unique(headers: list[Header]) -> list[Header]:
    try:
        return without_copies(headers)
    except (OSError, ScanError):
        return headers  # reading names the file and the reason


def _parts(headers: list[Header], key: Callable[[Header], object]) -> list[list[Header]]:
    """The headers apart by a key that makes volumes of them, none of which repeats a position; else nothing."""
    parts: defaultdict[object, list[Header]] = defaultdict(list)
    for header in headers:
        parts[key(header)].append(header)
    if len(parts) < 2 or min(map(len, parts.values())) < 2:
        return []  # also a tag of each plane, such as a trigger time
    return [] if any(_shared_positions(p) for p in parts.values()) else list(parts.values())
