"""audit: plant and remove small structures in real scans, and say what a method kept, lost or invented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from medsr.checkpoint import load_upscaler
from medsr.consistency.noise_curve import NoiseCurve, estimate_noise
from medsr.degradation import Degradation
from medsr.io import NoImageError, Source, find_all, read_scan
from medsr.io.digest import input_digest
from medsr.io.pseudonyms import Pseudonyms, unnamed
from medsr.plan import Device, plan, torch_device
from medsr.scan import Factor, Region, Scan, ScanError
from medsr.scoring import write_provenance
from medsr.trial import Trial, by, survey_of
from medsr.trust.audit_figures import curves_png, field_png
from medsr.trust.audit_methods import Audited, audited_methods
from medsr.trust.audit_tables import Audit, Found, tables_of, write_tables
from medsr.trust.distances import LearnedWidths
from medsr.trust.fields import Field, Kinds, Ladder, fields_of, ladders_of
from medsr.trust.invention import suspicions
from medsr.trust.judging import Candidate, Verdict, candidates_of, on_the_plane, scored, verdicts_of
from medsr.trust.nullspace import NullSpace
from medsr.trust.planting import Planted, altered_scan, plant
from medsr.upscaler import Upscaler
from medsr.upscaling import upscaled_blocks

if TYPE_CHECKING:
    from medsr.degradation import DegradationRange, SecondOrder

__all__ = ["STRUCTURE_KINDS", "Audit", "StructureKind", "audit"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
StructureKind = Kinds
STRUCTURE_KINDS: tuple[Kinds, ...] = get_args(Kinds)
BOXES = 2
"""Coarse samples that the boxes of the shares of detail reach beyond what they are taken of."""
STREAMS = 1 << 16
"""Keeps the random numbers of one seed's fields apart from those of the next seed's."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is the same for every scan."""

    methods: Mapping[str, Audited]
    factor: Factor
    degradation: Degradation | DegradationRange | None
    out: Path
    kind: Kinds
    fields: int
    planted: int
    removed: int
    seed: int
    series: str | int | None
    memory: int | None
    device: Device
    note: Callable[[str], None]
    tick: Callable[[str, int, int], None]


def audit(
    run: Path | str,
    paths: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    more: Mapping[str, Upscaler] | None = None,
    degradation: Degradation | DegradationRange | None = None,
    kind: Kinds = "auto",
    fields: int = 4,
    planted: int = 120,
    removed: int = 40,
    seed: int = 0,
    series: str | int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    pseudonyms: Pseudonyms | None = None,
    note: Callable[[str], None] | None = None,
    tick: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """What a run's method keeps, loses and invents of small structures, and which maps tell it without the truth.

    In fields of real fine scans small structures are planted and real ones taken out (`plant`). The scans are made
    coarse as the run was trained for and upscaled, once as they are and once altered, by the method, by the method
    made consistent with its scan, by the pixel-trained network it went on from (where there is one), and by cubic.
    Every structure is measured by its matched filter in the truth and in each estimate (`verdicts_of`); whatever else
    an estimate shows is looked for in the truth too (`candidates_of`). Each candidate is scored by the maps that need
    no truth (`suspicions`); the area under their receiver operating characteristic says how well a map tells what was
    invented from what is there.

    Beside structures the detail that no measurement speaks for is compared as a whole: how much of it an estimate has,
    and how far it is that of the truth, by octave (`NullSpace`).

    Written to `out`: `audit.csv` (kept, lost, back and invented by method, kind, size and contrast), `areas.csv` (ROC
    areas by method, map, size and contrast), `detail.csv` (the null space by octave), `structures.csv` and
    `candidates.csv` (each of them), `audit.png`, for each scan `SCAN.png` (a field with what became of its structures),
    `provenance.json`, and `failed.csv` when a scan failed.

    What it does not show: structures of other forms, sizes and places than those planted; inventions fainter than 4
    standard deviations of the truth's own surroundings, of which nobody can say whether the truth has them (a faint
    lattice shows as detail that does not agree); a diagnosis. Places are drawn where the truth is quiet, so that
    structures on top of others are not asked about.

    Args:
        run: a run folder, or a checkpoint file.
        paths: fine scans that no training has seen; one that the run learned from is audited with a warning.
        out: folder, made if absent.
        more: further methods of the same factor, by the names they have in the tables.
        degradation: how the fine scans become coarse; None: as the run was trained for.
        kind: "auto": specks in DICOM scans, puncta and filaments in others; or one of the three.
        fields: of at most 1024 x 1024 fine samples, in each scan.
        planted, removed: structures in each field, at most.
        seed: places and noise follow from it; never from a method.
        series: which series of files that hold several.
        memory: bytes the upscaling may take (`plan`).
        device: "auto", "cpu", "cuda", "cuda:N".
        pseudonyms: names in tables, pictures and lines, in which no file's name or path stands; None: the files'.
        note: receives a line for each event worth a user's eye.
        tick: receives (scan, fields done, in all).

    Raises:
        CheckpointError: the run has no usable checkpoint.
        ScanError: no scan was found.
        ValueError: counts below 1, a factor that refines depth, methods of another factor, or `out` is a file.
        OSError: `out` cannot be written.
    """
    torch_device(device)
    upscaler = load_upscaler(run)
    _check(upscaler.factor, more or {}, fields=fields, planted=planted, removed=removed)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the audit, found a file; give --out another name")
    say = note or _silent
    asked = degradation if degradation is not None else upscaler.recipe.degradation
    methods = audited_methods(run, upscaler, asked, more or {}, certain=degradation is not None, note=say)
    setting = _Setting(
        methods, upscaler.factor, asked, out, kind, fields, planted, removed, seed, series, memory, device, say,
        tick or _untold,
    )  # fmt: skip
    sources = find_all(paths, out=out) if pseudonyms is None else pseudonyms.find_all(paths, out=out)
    out.mkdir(parents=True, exist_ok=True)
    learned = frozenset(found.sha256 for found in upscaler.card.inputs)
    found: list[Found] = []
    failed: list[tuple[str, str]] = []
    inputs: dict[str, str] = {}
    for source in sources:
        try:
            digest = input_digest(source)
            if digest in learned:
                say(f"{source.name}: warning: the method has learned from this scan: its figures flatter")
            found.append(_audited(source, setting))
            inputs[source.name] = digest
        except NoImageError as error:
            say(f"{source.name}: skipped: {_reason(source, error)}")
        except Exception as error:  # noqa: BLE001 - law 6: one bad scan stops nothing; its reason is in the report
            failed.append((source.name, _reason(source, error)))
            say(f"{source.name}: failed: {failed[-1][1]}")
    made = tables_of(found, tuple(methods), failed)
    write_tables(out, made)
    if made.structures:
        curves_png(out / "audit.png", made)
    write_provenance(
        out,
        {name: each.upscaler for name, each in methods.items()},
        inputs,
        degradation=f"{asked!r}",
        kind=kind,
        fields=fields,
        planted=planted,
        removed=removed,
        seed=seed,
        series=series,
        device=torch_device(device).type,
    )
    return made


def _check(factor: Factor, more: Mapping[str, Upscaler], **counts: int) -> None:
    if len(factor) > 2 and factor[0] > 1:
        raise ValueError(
            f"audit: expected a method that refines y and x, found the factor {by(factor)}; structures are planted in "
            "planes, a method that refines depth cannot be asked about them yet"
        )
    for name, each in more.items():
        if tuple(each.factor) != tuple(factor):
            raise ValueError(f"audit: expected methods of the factor {by(factor)}, found {name} of {by(each.factor)}")
    for name, count in counts.items():
        if count < (0 if name == "removed" else 1):
            raise ValueError(f"audit: expected {name} of at least {0 if name == 'removed' else 1}, found {count}")


@dataclass(frozen=True, slots=True)
class _Scene:
    """A scan as it is and altered, and what was done to it."""

    plain: Trial
    altered: Trial
    ladders: tuple[Ladder, ...]
    done: tuple[Planted, ...]


def _scene(source: Source, setting: _Setting) -> _Scene:
    """Plant and remove.

    Raises:
        ScanError: there is no room for a structure, or the scan cannot be decoded.
    """
    scan = read_scan(source, series=setting.series)
    for warning in scan.warnings:
        setting.note(f"{source.name}: warning: {unnamed(warning, source)}")
    trial = Trial(scan, setting.factor, setting.degradation)
    survey = survey_of(trial)
    ladders = ladders_of(trial.scan, setting.kind)
    counts = {"planted": setting.planted, "removed": setting.removed}
    fields = fields_of(trial, survey, count=setting.fields, seed=setting.seed)
    done = [
        plant(trial, field, survey, ladders, seed=STREAMS * setting.seed + number, **counts)
        for number, field in enumerate(fields)
    ]
    done = [each for each in done if each.planted or each.removed]
    if not done:
        raise ScanError(
            "expected room for structures in quiet foreground, found none; give larger scans, or another --kind"
        )
    there, gone = (sum(len(getattr(each, what)) for each in done) for what in ("planted", "removed"))
    setting.note(f"{source.name}: {len(done)} fields, {there} structures planted, {gone} removed")
    altered = Trial(altered_scan(trial.scan, done), setting.factor, setting.degradation)
    return _Scene(trial, altered, ladders, tuple(done))


def _audited(source: Source, setting: _Setting) -> Found:
    """Everything found in one scan; its picture is written."""
    scene = _scene(source, setting)
    plain, altered = scene.plain, scene.altered
    adapted = {
        name: [each.upscaler.adapt(low) for low in (plain.low, altered.low)] for name, each in setting.methods.items()
    }
    noise = estimate_noise(altered.low)
    space = NullSpace(altered.degradation)
    detail = {name: np.zeros((len(space.bands), 3)) for name in adapted}
    verdicts: list[Verdict] = []
    candidates: list[Candidate] = []
    for number, each in enumerate(scene.done, start=1):
        window = _window(each.field, altered, setting)
        inner = _inside(each.field, window, altered.factor)
        truth = _unit(altered, altered.scan.read(_fine(window, altered.factor)))
        planes: dict[str, tuple[Array, Array]] = {}
        shown: list[Candidate] = []
        for name, pair in adapted.items():
            before, after = (_estimate(t, u, window, setting) for t, u in zip((plain, altered), pair, strict=True))
            estimate = _unit(altered, after)
            planes[name] = _unit(plain, before)[inner], estimate[inner]
            seen = candidates_of(each, scene.ladders, {name: estimate[inner]}, factor=altered.factor[-2:])
            maps = _maps(setting.methods[name], altered, after, window, noise, setting)
            shown += scored(seen, {title: values[inner] for title, values in maps.items()})
            detail[name] += _detail(space, estimate, truth, inner, each.known)
        verdicts += verdicts_of(each, scene.ladders, planes)
        candidates += [on_the_plane(one, each) for one in shown]
        if number == 1:
            _draw(source, scene, planes, shown, setting)
        setting.tick(source.name, number, len(scene.done))
    area = sum(int(each.known.sum()) for each in scene.done)
    bands = tuple(map(str, space.bands))
    return Found(source.name, tuple(verdicts), tuple(candidates), detail, bands, area, _spacing(plain))


def _spacing(trial: Trial) -> tuple[float | None, float | None]:
    """Micrometers between fine samples along y and x."""
    grid = trial.scan.grid
    return grid.spacing_of(grid.axes[-2]), grid.spacing_of(grid.axes[-1])


def _window(field: Field, trial: Trial, setting: _Setting) -> Region:
    """The field in the coarse scan, with the context that methods and maps need to give what the whole scan gives."""
    space = NullSpace(trial.degradation)
    reaches = [space.halo, *(tuple(k.halo) for m in setting.methods.values() for k in _all(m))]
    halo = [BOXES + max(reach[axis] for reach in reaches) for axis in (-2, -1)]
    inner = field.coarse(trial.factor)
    spans = [
        slice(max(0, s.start - h), min(n, s.stop + h))
        for s, h, n in zip(inner[-2:], halo, trial.low.shape[-2:], strict=True)
    ]
    return (*inner[:-2], *spans)


def _all(method: Audited) -> list[Any]:
    """All that is run for a method and its maps."""
    widths = [k if isinstance(k, LearnedWidths) else k.method for k in method.known]
    return [method.upscaler, *([] if method.parent is None else [method.parent]), *widths]


def _fine(window: Region, factor: Sequence[int]) -> Region:
    return tuple(slice(s.start * f, s.stop * f) for s, f in zip(window, factor, strict=True))


def _inside(field: Field, window: Region, factor: Sequence[int]) -> tuple[slice, slice]:
    """The field in the plane of its window."""
    top, left = (s.start * f for s, f in zip(window[-2:], factor[-2:], strict=True))
    rows, columns = field.rows, field.columns
    return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


def _estimate(trial: Trial, upscaler: Upscaler, window: Region, setting: _Setting) -> Array:
    """Stored values of a part of the result, with the leading axes of the scan."""
    target = _fine(window, trial.factor)
    chosen = plan(trial.low, upscaler, memory=setting.memory, device=setting.device)
    stored = np.empty([s.stop - s.start for s in target], trial.scan.intensity.dtype)
    for region, values in upscaled_blocks(trial.low, upscaler, chosen=chosen, device=setting.device, target=target):
        stored[tuple(slice(r.start - t.start, r.stop - t.start) for r, t in zip(region, target, strict=True))] = values
    return stored


def _unit(trial: Trial, stored: Array) -> Floats:
    """A plane of stored values in unit intensity, holes NaN."""
    intensity = trial.scan.intensity
    unit = intensity.to_unit(stored).astype(np.float64)
    if intensity.may_have_holes:
        unit[intensity.holes(stored)] = np.nan
    return unit.reshape(unit.shape[-2:])


def _maps(
    method: Audited, trial: Trial, stored: Array, window: Region, noise: NoiseCurve, setting: _Setting
) -> dict[str, Array]:
    """The maps of a part of a result by their names, (y, x)."""
    low = _cut(trial.low, window)
    target = _fine(window, trial.factor)
    grid = trial.scan.grid.crop(tuple(t.start for t in target))
    estimate = Scan(stored, grid, replace(trial.scan.intensity, bits=None))
    said: Degradation | SecondOrder | DegradationRange | None = setting.degradation
    maps: dict[str, Array] = {}
    for known in method.known or (None,):
        for each in suspicions(
            low, estimate, degradation=said, noise=noise, parent=method.parent, intervals=known, device=setting.device
        ):
            if each.name not in maps:
                maps[each.name] = each.scan.read().reshape(stored.shape[-2:])
    return maps


def _detail(
    space: NullSpace, estimate: Floats, truth: Floats, inner: tuple[slice, slice], known: NDArray[np.bool_]
) -> Floats:
    """For each band of the null space the sums of squares of estimate and truth, and of their products: (bands, 3)."""
    if np.isnan(truth).any() or np.isnan(estimate).any():
        return np.zeros((len(space.bands), 3))  # next to a hole a band is made up: nothing to compare
    made, there = (space.split(space.part(plane))[(slice(None), *inner)][:, known] for plane in (estimate, truth))
    return np.stack([np.square(made).sum(1), np.square(there).sum(1), (made * there).sum(1)], 1)


def _cut(scan: Scan, region: Region) -> Scan:
    """A part of a scan in memory."""
    grid = scan.grid.crop(tuple(s.start for s in region))
    return Scan(scan.read(region), grid, scan.intensity)


def _draw(
    source: Source,
    scene: _Scene,
    planes: Mapping[str, tuple[Array, Array]],
    candidates: Sequence[Candidate],
    setting: _Setting,
) -> None:
    trial, done = scene.altered, scene.done[0]
    field_png(
        setting.out / f"{source.name}.png",
        done,
        scene.ladders,
        low=_unit(trial, trial.low.read(done.field.coarse(trial.factor))),
        estimates={name: altered for name, (_, altered) in planes.items()},
        candidates=candidates,
        title=f"{source.name}: what became of small structures, {by(trial.factor[-2:])} finer",
        spacing_um=_spacing(trial),
    )


def _reason(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return unnamed(text if known else f"{type(error).__name__}: {text}", source)


def _silent(_line: str) -> None:
    """The default of `note`."""


def _untold(_scan: str, _done: int, _total: int) -> None:
    """The default of `tick`."""
