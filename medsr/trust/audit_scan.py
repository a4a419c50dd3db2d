"""audited_scan: one scan planted, made coarse, upscaled by every method, judged and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.consistency.noise_curve import NoiseCurve, estimate_noise
from medsr.io import Source, read_scan
from medsr.io.pseudonyms import unnamed
from medsr.plan import Device, plan
from medsr.scan import Factor, Region, Scan, ScanError
from medsr.trial import Trial, by, survey_of
from medsr.trust.audit_figures import field_png
from medsr.trust.audit_methods import Audited
from medsr.trust.audit_tables import Found, candidate_row, structure_row
from medsr.trust.distances import LearnedWidths
from medsr.trust.fields import Field, Kinds, Ladder, fields_of, ladders_of
from medsr.trust.invention import suspicions
from medsr.trust.judging import Candidate, candidates_of, on_the_plane, scored, verdicts_of
from medsr.trust.nullspace import NullSpace
from medsr.trust.pair import in_unit
from medsr.trust.planting import Planted, altered_scan, plant
from medsr.upscaler import Upscaler
from medsr.upscaling import upscaled_region

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange

__all__ = ["Setting", "audited_scan"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Box = tuple[slice, slice]

BOXES = 2
"""Coarse samples that the boxes of the shares of detail reach beyond what they are taken of."""
STREAMS = 1 << 16
"""Keeps the random numbers of one seed's fields apart from those of the next seed's."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for every scan of an audit.

    Attributes:
        methods: whom to ask, by name.
        factor: of all of them.
        degradation: how the fine scans become coarse; a range stands for its middle.
        pictures: folder of the pictures.
        kind, fields, planted, removed, seed, series, memory, device, note, tick: as in `audit`.
    """

    methods: Mapping[str, Audited]
    factor: Factor
    degradation: Degradation | DegradationRange
    pictures: Path
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


@dataclass(frozen=True, slots=True)
class _Scene:
    """A scan as it is and altered, what was done to it, and what is the same in all of its fields."""

    plain: Trial
    altered: Trial
    ladders: tuple[Ladder, ...]
    done: tuple[Planted, ...]
    noise: NoiseCurve
    space: NullSpace


def audited_scan(source: Source, digest: str, setting: Setting) -> Found:
    """Everything found in one scan; its picture is written.

    Args:
        source: of the scan.
        digest: of its files, hexadecimal (`input_digest`); with the seed it decides the noise of the coarse scan.
        setting: of the audit.

    Raises:
        ScanError: no room for a structure, or the scan cannot be decoded.
    """
    scene = _scene(source, digest, setting)
    plain, altered = scene.plain, scene.altered
    adapted = {
        name: (each.upscaler.adapt(plain.low), each.upscaler.adapt(altered.low))
        for name, each in setting.methods.items()
    }
    detail = {name: np.zeros((len(scene.space.bands), 4)) for name in adapted}
    structures: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for number, each in enumerate(scene.done, start=1):
        window = _window(each.field, altered, scene.space, setting)
        inner = _inside(each.field, window, altered.factor)
        truth = _unit(plain, plain.scan.read(_fine(window, plain.factor)))
        planes: dict[str, tuple[Array, Array]] = {}
        shown: list[Candidate] = []
        for name, (before, after) in adapted.items():
            estimate = _unit(plain, _estimate(plain, before, window, setting))
            stored = _estimate(altered, after, window, setting)
            planes[name] = estimate[inner], _unit(altered, stored)[inner]
            seen = candidates_of(each, scene.ladders, {name: planes[name][1]}, factor=altered.factor[-2:])
            maps = field_maps(setting.methods[name], scene, stored, window, setting)
            shown += scored(seen, {title: values[inner] for title, values in maps.items()})
            detail[name] += _detail(scene.space, estimate, truth, inner, each.known)
        structures += [structure_row(source.name, v) for v in verdicts_of(each, scene.ladders, planes)]
        candidates += [candidate_row(source.name, on_the_plane(one, each)) for one in shown]
        if number == 1:
            _draw(source, scene, planes, shown, setting)
        setting.tick(source.name, number, len(scene.done))
    return Found(
        scan=source.name,
        structures=tuple(structures),
        candidates=tuple(candidates),
        detail={name: sums.tolist() for name, sums in detail.items()},
        bands=tuple(map(str, scene.space.bands)),
        samples=sum(int(each.known.sum()) for each in scene.done),
        spacing_um=_spacing(plain),
        degradation=repr(plain.degradation),
    )


def _scene(source: Source, digest: str, setting: Setting) -> _Scene:
    """Plant and remove.

    Raises:
        ScanError: there is no room for a structure, or the scan cannot be decoded.
    """
    scan = read_scan(source, series=setting.series)
    for warning in scan.warnings:
        setting.note(f"{source.name}: warning: {unnamed(warning, source)}")
    seed = setting.seed, int(digest[:16], 16)
    trial = Trial(scan, setting.factor, setting.degradation, seed=seed)
    survey = survey_of(trial)
    ladders = ladders_of(trial.scan, setting.kind)
    counts = {"planted": setting.planted, "removed": setting.removed}
    fields = fields_of(trial, survey, count=setting.fields, seed=setting.seed)
    done = [
        plant(trial, field, survey, ladders, seed=STREAMS * setting.seed + number, line=scan.intensity, **counts)
        for number, field in enumerate(fields)
    ]
    done = [each for each in done if each.planted or each.removed]
    if not done:
        raise ScanError(
            "expected room for structures in quiet foreground, found none; give larger scans, or another --kind"
        )
    there, gone = (sum(len(getattr(each, what)) for each in done) for what in ("planted", "removed"))
    asked = f"of {len(done) * setting.planted} asked" if there < len(done) * setting.planted else "as asked"
    setting.note(f"{source.name}: {len(done)} fields, {there} structures planted ({asked}), {gone} removed")
    altered = Trial(altered_scan(trial.scan, done), setting.factor, setting.degradation, seed=seed)
    return _Scene(trial, altered, ladders, tuple(done), estimate_noise(altered.low), NullSpace(trial.degradation))


def _spacing(trial: Trial) -> tuple[float | None, float | None]:
    """Micrometers between fine samples along y and x."""
    grid = trial.scan.grid
    return grid.spacing_of(grid.axes[-2]), grid.spacing_of(grid.axes[-1])


def _window(field: Field, trial: Trial, space: NullSpace, setting: Setting) -> Region:
    """The field in the coarse scan, with the context that maps need to give what the whole scan gives."""
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


def _inside(field: Field, window: Region, factor: Sequence[int]) -> Box:
    """The field in the plane of its window."""
    top, left = (s.start * f for s, f in zip(window[-2:], factor[-2:], strict=True))
    rows, columns = field.rows, field.columns
    return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


def _estimate(trial: Trial, upscaler: Upscaler, window: Region, setting: Setting) -> Array:
    """Stored values of a part of the result, with the leading axes of the scan."""
    target = _fine(window, trial.factor)
    chosen = plan(trial.low, upscaler, memory=setting.memory, device=setting.device)
    return upscaled_region(trial.low, upscaler, target, chosen=chosen, device=setting.device)


def _unit(trial: Trial, stored: Array) -> Floats:
    """A plane of stored values in unit intensity, holes NaN."""
    return in_unit(trial.scan.intensity, stored).reshape(stored.shape[-2:])


def field_maps(method: Audited, scene: _Scene, stored: Array, window: Region, setting: Setting) -> dict[str, Array]:
    """The maps that need no truth of a part of a result, by their names, (y, x)."""
    trial = scene.altered
    low = _cut(trial.low, window)
    target = _fine(window, trial.factor)
    grid = trial.scan.grid.crop(tuple(t.start for t in target))
    estimate = Scan(stored, grid, replace(trial.scan.intensity, bits=None))
    maps: dict[str, Array] = {}
    for known in method.known or (None,):
        for each in suspicions(
            low,
            estimate,
            degradation=setting.degradation,
            noise=scene.noise,
            parent=method.parent,
            intervals=known,
            device=setting.device,
        ):
            if each.name not in maps:
                maps[each.name] = each.scan.read().reshape(stored.shape[-2:])
    return maps


def _detail(space: NullSpace, estimate: Floats, truth: Floats, inner: Box, known: Bools) -> Floats:
    """For each band the sums of squares of estimate and truth and of their products, and the samples: (bands, 4).

    Samples nearer to a hole than the null space reaches are left out.
    """
    holes = np.isnan(truth) | np.isnan(estimate)
    if holes.any():
        reach = [2 * h * f + 1 for h, f in zip(space.halo, space.factor, strict=True)]
        near = ndimage.maximum_filter(holes, reach)
        known = known & ~near[inner]
        if holes.all() or not known.any():
            return np.zeros((len(space.bands), 4))
        nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
        estimate, truth = (plane[tuple(nearest)] for plane in (np.where(holes, 0.0, estimate), truth))
    made, there = (space.split(space.part(plane))[(slice(None), *inner)][:, known] for plane in (estimate, truth))
    samples = np.full(len(space.bands), float(known.sum()))
    return np.stack([np.square(made).sum(1), np.square(there).sum(1), (made * there).sum(1), samples], 1)


def _cut(scan: Scan, region: Region) -> Scan:
    """A part of a scan in memory."""
    grid = scan.grid.crop(tuple(s.start for s in region))
    return Scan(scan.read(region), grid, scan.intensity)


def _draw(
    source: Source,
    scene: _Scene,
    planes: Mapping[str, tuple[Array, Array]],
    candidates: Sequence[Candidate],
    setting: Setting,
) -> None:
    trial, done = scene.altered, scene.done[0]
    field_png(
        setting.pictures / f"{source.name}.png",
        done,
        scene.ladders,
        low=_unit(trial, trial.low.read(done.field.coarse(trial.factor))),
        estimates=planes,
        candidates=candidates,
        title=f"{source.name}: what became of small structures, {by(trial.factor[-2:])} finer",
        spacing_um=_spacing(trial),
    )
