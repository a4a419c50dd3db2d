"""Which scans are learned from and which are held out; what the training card says of them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from medsr.card import TrainingCard, TrainingInput
from medsr.data import sample_path
from medsr.io import Source, find_scans
from medsr.io.digest import input_digest
from medsr.pairing import Pair, find_pairs
from medsr.recipe import DataRecipe, Recipe
from medsr.scan import Scan, ScanError
from medsr.training.copies import check_apart, copies
from medsr.training.data import Portion, Shelf
from medsr.training.errors import TrainingError
from medsr.training.foreground import ForegroundMap
from medsr.training.pairs import Match, figures_of, match_pair, rows_of, tied
from medsr.training.texture import training_texture
from medsr.trust.model_card import degradation_text
from medsr.version import __version__

__all__ = ["Facts", "Split", "blank_card", "split_scans"]

log = logging.getLogger("medsr.training")

LEAST_ROWS = 32
"""Rows held out of a single scan, at least, where it has them."""

SECONDS_BETWEEN_LINES = 10.0
"""A folder of thousands takes a while to open: a line says how far it is."""

PACKAGES = ("torch", "monai", "pytorch-lightning", "numpy", "pydicom", "tifffile", "zarr")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a scan once it was opened.

    Attributes:
        shape: samples along each axis.
        dtype: of the stored values; of a real pair those of the coarse scan, as black and white are.
        black, white: ends of its intensity line, stored values.
        spacing_um: fine spacing of the factor's axes; None: unknown.
        stored_bytes: of all its values.
    """

    shape: tuple[int, ...]
    dtype: str
    black: float
    white: float
    spacing_um: tuple[float | None, ...] | None
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Split:
    """What is learned from and what is held out; never patches of one scan in both, but for the bands of a single one.

    Attributes:
        training, validation: the portions.
        facts, held_facts: of the scans, in the order of `training` and of `validation`.
        note: how it was split, in a sentence without names.
        pairs: figures of real pairs for the training card; empty: none.
        rows: the same pair by pair, for the log.
    """

    training: tuple[Portion, ...]
    validation: tuple[Portion, ...]
    facts: tuple[Facts, ...]
    held_facts: tuple[Facts, ...]
    note: str
    pairs: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A scan that can be learned from: as a portion, what is known of it, and of a pair how its scans lie."""

    portion: Portion
    facts: Facts
    match: Match | None = None


def split_scans(recipe: Recipe, shelf: Shelf) -> Split:
    """Open every scan of the recipe once, and hold some out.

    Scans that cannot be used are named in a warning and left out.

    Raises:
        TrainingError: no scan can be used, a scan or a subject is in both folders, all scans are copies of one, or
            a single scan is too small to hold rows out of it.
    """
    data = recipe.data
    folder = data.pairs or data.folder or sample_path(data.sample)
    found = _usable(folder, recipe, shelf)
    known = dict(found)
    if data.validation_folder is not None:
        held_out = _usable(data.validation_folder, recipe, shelf)
        apart = _both_sides(found), _both_sides(held_out)
        check_apart(folder, data.validation_folder, *apart, by_subject=data.group == "subject")
        known |= held_out
        training, validation = list(map(Portion, found)), list(map(Portion, held_out))
        note = "validated on the scans of data.validation_folder"
    elif len(found) == 1:
        ((source, seen),) = found.items()
        training, validation, note = _bands(source, recipe, shelf.open(seen.portion))
        banded = _with_partner(training[0], seen.portion, recipe)
        found = {source: replace(seen, facts=_facts(source, shelf.open(banded), recipe, low=_low_of(banded, shelf)))}
    else:
        training, validation, note = _groups(found, data, recipe.seed)
    facts = tuple(found[portion.source].facts for portion in training)
    held_facts = tuple(known[portion.source].facts for portion in validation)
    note = f"{note}: {len(training)} to learn, {len(validation)} out"
    if data.pairs is None:
        return Split(tuple(training), tuple(validation), facts, held_facts, note)
    matches = {source: seen.match for source, seen in known.items() if seen.match is not None}
    portions = [_with_partner(part, known[part.source].portion, recipe) for part in (*training, *validation)]
    learned = {portion.source for portion in training}
    portions, line = tied(portions, matches, learned=learned, recipe=recipe, shelf=shelf)
    count, order = len(training), [matches[source] for source in known]
    split = Split(tuple(portions[:count]), tuple(portions[count:]), facts, held_facts, f"real pairs, {note}")
    return replace(split, pairs=figures_of(order, line), rows=rows_of(order))


def blank_card(split: Split, recipe: Recipe, shelf: Shelf | None = None) -> TrainingCard:
    """The card of a training that has not begun: its inputs by hashes, its ranges, the software; with a shelf, from
    which scans are read, their texture."""
    facts, factor = split.facts, recipe.method.factor
    spacing = []
    for axis, f in enumerate(factor):
        known = [s for s in (fact.spacing_um[axis] for fact in facts if fact.spacing_um is not None) if s is not None]
        spacing.append((min(known) * f, max(known) * f) if known else None)
    inputs, held_out = (
        tuple(entry for pair in zip(portions, their_facts, strict=True) for entry in _inputs(*pair, recipe))
        for portions, their_facts in ((split.training, facts), (split.validation, split.held_facts))
    )
    return TrainingCard(
        black=(min(f.black for f in facts), max(f.black for f in facts)),
        white=(min(f.white for f in facts), max(f.white for f in facts)),
        spacing_um=tuple(spacing) if any(spacing) else None,
        dtype=facts[0].dtype,
        inputs=inputs,
        held_out=held_out,
        pairs=split.pairs,
        texture=None if shelf is None else training_texture(split.training, recipe, shelf),
        degradation=degradation_text(recipe),
        fixed_line=recipe.intensity.black is not None,
        versions={"medsr": __version__} | {name: found for name in PACKAGES if (found := _version(name)) is not None},
    )


def _inputs(portion: Portion, facts: Facts, recipe: Recipe) -> Iterator[TrainingInput]:
    """The files of a portion: the scan, and of a pair the coarse one too."""
    yield _input(portion.source, facts.shape)
    if portion.low is not None:
        lead = len(facts.shape) - len(recipe.method.factor)
        full = (1,) * lead + recipe.method.factor
        yield _input(portion.low.source, tuple(n // f for n, f in zip(facts.shape, full, strict=True)))


def _input(source: Source, shape: tuple[int, ...]) -> TrainingInput:
    content = input_digest(source)
    # With the content in it, nobody who lacks the scan can try names until one fits.
    name = hashlib.sha256(f"{content} {source.path.name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return TrainingInput(name_hash=name, sha256=content, shape=shape)


def _usable(folder: Path, recipe: Recipe, shelf: Shelf) -> dict[Source, _Seen]:
    """The scans of a folder that can be learned from, with what is known of them; of pairs the fine ones."""
    sources: Sequence[Pair | Source] = _pairs(folder) if recipe.data.pairs is not None else find_scans(folder)
    found: dict[Source, _Seen] = {}
    reasons: list[str] = []
    said = time.monotonic()
    for number, source in enumerate(sources):
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            log.info("looked at %d of %d scans", number, len(sources))
        try:
            if isinstance(source, Pair):
                match = match_pair(source, recipe, shelf)
                portion, high = match.portion, source.high
                facts = _facts(high, shelf.open(portion), recipe, low=_low_of(portion, shelf))
                found[high] = _Seen(portion, facts, match)
            else:
                portion = Portion(source)
                found[source] = _Seen(portion, _facts(source, shelf.open(portion), recipe))
        except ScanError as error:
            reasons.append(str(error))
            log.warning("left out: %s", error)
    if not found:
        more = "; ".join(reasons[:3]) or "no file that looks like one"
        raise TrainingError(f"{folder}: expected at least one scan to learn from, found none of use: {more}")
    return found


def _pairs(folder: Path) -> list[Pair]:
    try:
        return find_pairs(folder)
    except ScanError as error:
        raise TrainingError(f"data.pairs: {error}") from error


def _low_of(portion: Portion, shelf: Shelf) -> Scan | None:
    return None if portion.low is None else shelf.open(portion.low)


def _with_partner(part: Portion, base: Portion, recipe: Recipe) -> Portion:
    """A portion of the split as one of the pair that `base` is."""
    return base if part.rows is None else base.band(part.rows, recipe.method.factor[-2])


def _facts(source: Source, scan: Scan, recipe: Recipe, *, low: Scan | None = None) -> Facts:
    """What is known of a scan; `low` is its partner in a real pair.

    Raises:
        ScanError: a patch does not fit in, or an axis that is to be refined is none of space.
    """
    patch, factor = recipe.data.patch, recipe.method.factor
    if len(scan.shape) < len(patch) or any(n < p for n, p in zip(scan.shape[-len(patch) :], patch, strict=True)):
        raise ScanError(
            f"{source.path}: expected at least {list(patch)} samples along the last axes as data.patch says, found a "
            f"scan of shape {scan.shape}; choose a smaller patch"
        )
    try:
        scan.grid.pad_factor(factor)
    except ValueError as error:
        raise ScanError(f"{source.path}: {error}") from error
    spacing, given = scan.grid.spacing_um, (low or scan).intensity
    if spacing is None and low is not None:
        spacing = low.grid.refine(factor).spacing_um
    return Facts(
        shape=scan.shape,
        dtype=given.dtype.name,
        black=given.black,
        white=given.white,
        spacing_um=None if spacing is None else spacing[-len(factor) :],
        stored_bytes=int(np.prod(scan.shape, dtype=np.int64)) * scan.intensity.dtype.itemsize,
    )


def _both_sides(found: Mapping[Source, _Seen]) -> list[Source]:
    """The scans, and of pairs the coarse ones too."""
    lows = [seen.portion.low.source for seen in found.values() if seen.portion.low is not None]
    return [*found, *lows]


def _groups(found: Mapping[Source, _Seen], data: DataRecipe, seed: int) -> tuple[list[Portion], list[Portion], str]:
    """Whole groups held out, drawn by the seed; copies of one file are in one group, and so are pairs that share a
    copy on either side."""
    sources = list(found)
    owner = {seen.portion.low.source: source for source, seen in found.items() if seen.portion.low is not None}
    alike = [[owner.get(source, source) for source in same] for same in copies(_both_sides(found))]
    keys = _joined({source: _key(source, data.group) for source in sources}, alike)
    names, unit = sorted(set(keys.values())), data.group
    known = unit != "subject" or any(source.subject for source in sources)
    note = f"split by {unit}" if known else "split by scan, for no file names its subject"
    if len(names) == 1:
        keys = _joined({source: _key(source, "scan") for source in sources}, alike)
        names = sorted(set(keys.values()))
        note = f"all scans are of one {unit}, so whole scans are held out and the figures may flatter"
        log.warning("%s; set data.validation_folder to scans of another %s", note, unit)
    if len(names) == 1:
        raise TrainingError(
            f"data.folder: expected different scans, found {len(sources)} copies of one; keep one of them, or set "
            "data.validation_folder"
        )
    count = min(len(names) - 1, max(1, round(data.validation * len(names))))
    held = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]}
    training = [Portion(source) for source in sources if keys[source] not in held]
    return training, [Portion(source) for source in sources if keys[source] in held], note


def _joined(keys: dict[Source, str], alike: list[list[Source]]) -> dict[Source, str]:
    """The groups, with those that hold copies of one file made one."""
    for same in alike:
        theirs = {keys[source] for source in same}
        keys = {source: min(theirs) if key in theirs else key for source, key in keys.items()}
    return keys


def _key(source: Source, group: str) -> str:
    if group == "folder":
        return str(source.path.parent)
    if group == "subject" and source.subject:
        return f"subject {source.subject}"
    return f"scan {source.path}"


def _bands(source: Source, recipe: Recipe, scan: Scan) -> tuple[list[Portion], list[Portion], str]:
    """Rows of a single scan held out at its edge that shows more, with a gap as wide as a patch."""
    rows, patch, step = scan.shape[-2], recipe.data.patch[-2], recipe.method.factor[-2]
    least = max(LEAST_ROWS, 4 * step)
    out = max(least, round(recipe.data.validation * rows)) // step * step
    out = min(out, (rows - 2 * patch) // step * step)
    if out < min(least, 4 * step):
        raise TrainingError(
            f"{source.path}: expected a scan of at least {2 * patch + least} rows, so that some can be held out with a "
            f"gap as wide as a patch, found {rows}; choose a smaller data.patch, or set data.validation_folder"
        )
    share = ForegroundMap(scan, recipe.data.patch).share
    near = max(1, share.shape[-2] * out // rows)
    if share[..., :near, :].mean() > share[..., -near:, :].mean():
        held, learned = (0, out), (out + patch, rows)
    else:
        held, learned = (rows - out, rows), (0, rows - out - patch)
    band = f"rows {held[0]}..{held[1] - 1}"
    note = f"one scan only: {band} are held out with a gap of {patch}, so the figures may flatter"
    return [Portion(source, learned)], [Portion(source, held)], note


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
