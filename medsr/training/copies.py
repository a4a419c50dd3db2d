"""Scans that are copies of each other, and folders that share a scan or a subject."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medsr.io import Source
from medsr.training.errors import TrainingError

__all__ = ["check_apart", "copies"]

log = logging.getLogger("medsr.training")

SLICE = 2**20
"""Bytes read at a time."""

SLICES = 64
"""Slices that are compared of a file that has more of them, evenly spread."""


def copies(sources: Sequence[Source]) -> list[list[Source]]:
    """Scans whose files hold the same bytes, whatever their names; lists of two or more.

    Only files of equal size are read; of one above 64 MB only 64 slices of 1 MB.
    """
    by_size: dict[tuple[int, ...], list[Source]] = defaultdict(list)
    for source in sources:
        by_size[tuple(sorted(path.stat().st_size for path in _files(source)))].append(source)
    found: list[list[Source]] = []
    for candidates in by_size.values():
        if len(candidates) == 1:
            continue
        by_content: dict[tuple[str, ...], list[Source]] = defaultdict(list)
        for source in candidates:
            by_content[tuple(sorted(map(_content, _files(source))))].append(source)
        found += [same for same in by_content.values() if len(same) > 1]
    return found


def check_apart(
    folder: Path, other: Path, training: Sequence[Source], validation: Sequence[Source], *, by_subject: bool
) -> None:
    """Refuse scans to validate on that are learned from too.

    Args:
        folder, other: `data.folder` and `data.validation_folder`.
        training, validation: their scans.
        by_subject: whether other scans of the same subjects are refused as well; else a warning says it.

    Raises:
        TrainingError: a file is in both, copies of one are, or scans of one subject are.
    """
    shared = {f.resolve() for s in training for f in s.files} & {f.resolve() for s in validation for f in s.files}
    if shared:
        raise TrainingError(
            f"{sorted(shared)[0]}: expected other scans in data.validation_folder than in data.folder, found this "
            "file in both; separate them"
        )
    learned = set(training)
    same = [group for group in copies([*training, *validation]) if 0 < len(learned & set(group)) < len(group)]
    if same:
        count = sum(len(set(group) - learned) for group in same)
        raise TrainingError(
            f"{other}: expected other scans in data.validation_folder than in {folder}, found {count} of "
            f"{len(validation)} that are copies of scans there (the same bytes); remove them from one"
        )
    subjects, held = ({s.subject for s in part if s.subject} for part in (training, validation))
    both = subjects & held
    if not both:
        return
    found = f"{len(both)} of {len(held)} subjects that are in {folder} too"
    if by_subject:
        raise TrainingError(
            f"{other}: expected scans of other subjects in data.validation_folder, found {found}; separate them, or "
            "set data.group: scan to compare scans only (the figures then flatter)"
        )
    log.warning("data.validation_folder holds %s, so the figures may flatter", found)


def _files(source: Source) -> list[Path]:
    """All files of a scan; folders (Zarr) are walked."""
    return [
        file
        for path in source.files
        for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
    ]


def _content(file: Path) -> str:
    """SHA-256 of a file's bytes, or of slices spread over it; its name has no part in it."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= SLICE * SLICES:
            while piece := stream.read(SLICE):
                digest.update(piece)
        else:
            for number in range(SLICES):
                stream.seek((size - SLICE) * number // (SLICES - 1))
                digest.update(stream.read(SLICE))
    return digest.hexdigest()
