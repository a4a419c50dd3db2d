"""Judging: what a method kept, lost, brought back and invented of small structures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.trust.fields import Ladder
from medsr.trust.planting import SEEN, Planted, deviation_of
from medsr.trust.structures import Kind, Responses, Structure, amplitude, neighborhood

__all__ = ["Candidate", "Outcome", "Verdict", "candidates_of", "on_the_plane", "scored", "verdicts_of"]

Array = NDArray[Any]

HALF = 0.5
"""Share of a candidate's amplitude that the truth must show at its place for it to be real."""

Outcome = Literal["kept", "lost", "unseen", "gone", "back"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one structure in one estimate.

    Attributes:
        structure: position in samples of its plane.
        done: "planted" or "removed".
        method: whose estimate.
        truth: standard deviations of the surroundings at which the altered truth shows it.
        estimate: the same of the estimate of the altered scan, by the truth's standard deviation.
        recovered: amplitude in the estimate of the altered scan less that in the estimate of the plain one, over what
            was done to the truth: 1 is all of it. Of a removed structure: the share of it that went.
        outcome: of a planted one "kept" (seen in the truth and in the estimate), "lost" (seen in the truth only) or
            "unseen" (not seen in the truth either); of a removed one "gone", or "back" (seen in the estimate).
    """

    structure: Structure
    done: Literal["planted", "removed"]
    method: str
    truth: float
    estimate: float
    recovered: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Candidate:
    """A structure that an estimate shows.

    Attributes:
        method: whose estimate.
        kind, size, unit, angle: of the filter that answers most.
        position: (y, x) in samples.
        contrast: its amplitude in unit intensity; `cnr`: by the truth's standard deviation of the surroundings.
        share: largest amplitude of the truth near by, over its own.
        invented: the truth shows less than half of it.
        near: "planted" or "removed" within the neighborhood of such a structure, else "".
        footprint: where, and the samples there with at least half of the peak of its form.
        scores: of maps that need no truth, by their names; means over its footprint.
    """

    method: str
    kind: Kind
    size: float
    unit: str
    angle: float
    position: tuple[float, float]
    contrast: float
    cnr: float
    share: float
    invented: bool
    near: str
    footprint: tuple[tuple[slice, slice], NDArray[np.bool_]]
    scores: Mapping[str, float]


def verdicts_of(
    done: Planted, ladders: Sequence[Ladder], estimates: Mapping[str, tuple[Array, Array]]
) -> tuple[Verdict, ...]:
    """Judge every structure of a field in every estimate.

    Each is measured by its own matched template. The yardstick is the same in the truth and in all estimates: 4
    standard deviations that the template's amplitude has over the surroundings in the plain truth. A smooth estimate
    gains nothing from being smooth.

    Args:
        done: the field.
        ladders: what was planted.
        estimates: of the plain and of the altered scan, in unit intensity, in the field, by the method's name.
    """
    steps = {ladder.kind: ladder.steps for ladder in ladders}
    verdicts = []
    for what, structures in (("planted", done.planted), ("removed", done.removed)):
        for each in structures:
            before, after = (amplitude(plane, each, steps[each.kind]) for plane in (done.plain, done.altered))
            truth = after / each.sigma
            for method, (plain, altered) in estimates.items():
                found = amplitude(altered, each, steps[each.kind])
                change = found - amplitude(plain, each, steps[each.kind])
                seen = found / each.sigma >= SEEN
                outcome: Outcome = "back" if seen else "gone"
                if what == "planted":
                    outcome = "unseen" if truth < SEEN else "kept" if seen else "lost"
                recovered = change / (after - before) if after != before else math.nan
                verdicts.append(
                    Verdict(
                        _moved(each, done),
                        "planted" if what == "planted" else "removed",
                        method,
                        truth,
                        found / each.sigma,
                        recovered,
                        outcome,
                    )
                )
    return tuple(verdicts)


def candidates_of(
    done: Planted, ladders: Sequence[Ladder], estimates: Mapping[str, Array], *, factor: Sequence[int]
) -> tuple[Candidate, ...]:
    """What the estimates show, and whether the truth shows it too.

    Candidates are the local maxima, over places, sizes and directions, of the matched amplitude over its standard
    deviation in the truth, from 4 on. The truth is asked with the same filter, at most one coarse sample and half the
    size away: where it has less than half of the candidate's amplitude the candidate is invented.

    Args:
        done: the field; its altered truth is the truth.
        ladders: what is looked for.
        estimates: of the altered scan, in unit intensity, in the field.
        factor: of the methods, along y and x.
    """
    filters = [(f, ladder) for ladder in ladders for f in ladder.filters]
    reach = max(f.reach for f, _ in filters)
    plain, truth = Responses(done.plain, reach), Responses(done.altered, reach)
    sought = {name: _Search(Responses(plane, reach), done.known.shape) for name, plane in estimates.items()}
    for number, (each, ladder) in enumerate(filters):
        sigma = deviation_of(plain.by(each), done.known, each, least=done.rounding)
        spans = [1 + 2 * max(f, math.ceil(each.size / 2 / s)) for f, s in zip(factor, ladder.steps, strict=True)]
        near = ndimage.maximum_filter(truth.by(each), spans)
        for search in sought.values():
            search.add(number, search.responses.by(each), sigma, near)
    marks = _marks(done, ladders)
    found = []
    for name, search in sought.items():
        for row, column in search.tops(done.known):
            each, ladder = filters[search.best[row, column]]
            share = float(search.near[row, column] / search.amplitude[row, column])
            half = [n // 2 for n in each.footprint.shape]
            box = slice(row - half[0], row + half[0] + 1), slice(column - half[1], column + half[1] + 1)
            found.append(
                Candidate(
                    name,
                    each.kind,
                    each.size,
                    ladder.unit,
                    each.angle,
                    (float(row), float(column)),
                    float(search.amplitude[row, column]),
                    float(search.ratio[row, column]),
                    share,
                    share < HALF,
                    str(marks[row, column]),
                    (box, each.footprint),
                    {},
                )
            )
    return tuple(found)


def scored(candidates: Sequence[Candidate], maps: Mapping[str, Array]) -> tuple[Candidate, ...]:
    """The candidates with the mean of each map over their footprints; nan where the map knows nothing there.

    Args:
        candidates: of one field, in its samples.
        maps: on the field, larger is more suspicious.
    """
    made = []
    for each in candidates:
        (rows, columns), footprint = each.footprint
        scores = {}
        for name, values in maps.items():
            inside = values[max(0, rows.start) : rows.stop, max(0, columns.start) : columns.stop]
            shape = footprint[max(0, -rows.start) :, max(0, -columns.start) :][: inside.shape[0], : inside.shape[1]]
            under = inside[shape]
            scores[name] = float(under.mean()) if under.size and np.isfinite(under).all() else math.nan
        made.append(replace(each, scores=scores))
    return tuple(made)


def on_the_plane(candidate: Candidate, done: Planted) -> Candidate:
    """The candidate with its place in the whole plane."""
    top, left = done.field.rows.start, done.field.columns.start
    (rows, columns), footprint = candidate.footprint
    box = slice(rows.start + top, rows.stop + top), slice(columns.start + left, columns.stop + left)
    place = candidate.position[0] + top, candidate.position[1] + left
    return replace(candidate, position=place, footprint=(box, footprint))


class _Search:
    """The strongest answer at each sample so far."""

    def __init__(self, responses: Responses, shape: tuple[int, ...]) -> None:
        self.responses = responses
        self.ratio = np.full(shape, -np.inf, np.float32)
        self.amplitude = np.zeros(shape, np.float32)
        self.near = np.zeros(shape, np.float32)
        self.best = np.zeros(shape, np.int16)

    def add(self, number: int, response: Array, sigma: Array, near: Array) -> None:
        """Take one filter's answers where they are the strongest."""
        ratio = response / sigma
        where = ratio > self.ratio
        for kept, new in ((self.ratio, ratio), (self.amplitude, response), (self.near, near)):
            kept[where] = new[where]
        self.best[where] = number

    def tops(self, known: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Local maxima that count, in the order of their places."""
        peaks = (self.ratio == ndimage.maximum_filter(self.ratio, 7)) & (self.ratio >= SEEN) & known
        return [(int(row), int(column)) for row, column in zip(*np.nonzero(peaks), strict=True)]


def _marks(done: Planted, ladders: Sequence[Ladder]) -> NDArray[Any]:
    """What was done at each sample: "planted", "removed" or ""."""
    marks = np.full(done.known.shape, "", "U7")
    steps = {ladder.kind: ladder.steps for ladder in ladders}
    for name, structures in (("planted", done.planted), ("removed", done.removed)):
        for each in structures:
            box, around = neighborhood(each, steps[each.kind])
            marks[box][around] = name
    return marks


def _moved(each: Structure, done: Planted) -> Structure:
    """With its place in the whole plane."""
    place = each.position[0] + done.field.rows.start, each.position[1] + done.field.columns.start
    return replace(each, position=place)
