"""Judging: what a method kept, lost, brought back and invented of small structures; chance decides nothing."""

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
from medsr.trust.structures import Filter, Kind, Responses, Structure, amplitude, neighborhood, rendered

__all__ = ["Candidate", "Finding", "Outcome", "Verdict", "candidates_of", "on_the_plane", "scored", "verdicts_of"]

Array = NDArray[Any]
Box = tuple[slice, slice]

HALF = 0.5
"""Share of a candidate's amplitude that the truth must show near its place for it to be real; share of what was done
that a method must have followed."""
CHANCE = 0.95
"""Quantile of what the truth shows near a place by chance, from which on it says that something is there."""
AWAY = 3
"""Reaches of the largest filter from a candidate to the place where chance is asked, at least."""
WIDER = 2
"""Samples about the form of a candidate in which no weaker one counts; the form is where it has half of its peak."""

Outcome = Literal["kept", "lost", "unseen", "gone", "back"]
Finding = Literal["real", "invented", "undecided"]


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
        outcome: of a planted one "kept" (seen in the truth and in the estimate, and recovered by half or more), "lost"
            (seen in the truth, but not in the estimate, or there by itself: less than half was recovered) or "unseen"
            (not seen in the truth either); of a removed one "back" (seen in the estimate, and less than half of it
            went), or "gone".
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
        share: largest amplitude of the truth within half a coarse sample, over its own.
        found: "real": the truth shows at least half of it, and more than by chance; "invented": it shows less than half
            of it; "undecided": half of it is no more than noise shows near any place.
        chance: what `found` would be if the truth were asked at a place far away, with which the candidate has nothing
            to do; "" where that place is not judged. The share of "real" is how often a candidate is called real by
            chance.
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
    found: Finding
    chance: Finding | Literal[""]
    near: str
    footprint: tuple[Box, NDArray[np.bool_]]
    scores: Mapping[str, float]

    @property
    def invented(self) -> bool:
        """Whether the truth shows less than half of it."""
        return self.found == "invented"


def verdicts_of(
    done: Planted, ladders: Sequence[Ladder], estimates: Mapping[str, tuple[Array, Array]]
) -> tuple[Verdict, ...]:
    """Judge every structure of a field in every estimate.

    Each is measured by its own matched template. The yardstick is the same in the truth and in all estimates: 4
    standard deviations that the template's amplitude has over the surroundings in the plain truth. A smooth estimate
    gains nothing from being smooth. Nor does one gain from being sharp: what is seen in it counts as kept, or as gone,
    only where the estimates of the two scans differ by at least half of what was done.

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
                recovered = change / (after - before) if after != before else math.nan
                followed = recovered >= HALF
                outcome: Outcome = "back" if seen and not followed else "gone"
                if what == "planted":
                    outcome = "unseen" if truth < SEEN else "kept" if seen and followed else "lost"
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
    deviation in the truth, from 4 on. A weaker one belongs to a stronger one where it lies within the form of that,
    widened by 2 samples, and where without what the stronger give to its filter less than half of it, or less than 4,
    is left: a filter that crosses a bright structure answers to it.

    The truth is asked with the same filter within half a coarse sample. Where it has less than half of the candidate's
    amplitude the candidate is invented. Where it has more, the candidate is real only if that is also more than the
    truth shows near 95 % of all places by chance; that is measured in the truth turned upside down, for noise has no
    sign, and dark structures are none that are looked for.

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
    window = [1 + 2 * math.ceil(f / 2) for f in factor]
    away = _Away(done.known, reach=reach, factor=factor)
    levels = []
    for number, (each, _) in enumerate(filters):
        sigma = deviation_of(plain.by(each), done.known, each, least=done.rounding)
        answer = truth.by(each)
        shown, dark = (ndimage.maximum_filter(side, window) / sigma for side in (answer, -answer))
        levels.append(float(np.quantile(dark[done.known], CHANCE)) if done.known.any() else math.inf)
        elsewhere = away.of(shown)
        for search in sought.values():
            search.add(number, search.responses.by(each), sigma, shown, elsewhere)
    marks = _marks(done, ladders)
    found = []
    for name, search in sought.items():
        for place, number in search.tops(done.known, filters):
            found.append(search.candidate(name, place, *filters[number], levels[number], str(marks[place])))
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
        self.shown = np.zeros(shape, np.float32)
        self.elsewhere = np.zeros(shape, np.float32)
        self.best = np.zeros(shape, np.int16)

    def add(self, number: int, response: Array, sigma: Array, shown: Array, elsewhere: Array) -> None:
        """Take one filter's answers where they are the strongest, and what the truth shows to it here and elsewhere."""
        ratio = response / sigma
        where = ratio > self.ratio
        pairs = (self.ratio, ratio), (self.amplitude, response), (self.shown, shown), (self.elsewhere, elsewhere)
        for kept, new in pairs:
            kept[where] = new[where]
        self.best[where] = number

    def tops(
        self, known: NDArray[np.bool_], filters: Sequence[tuple[Filter, Ladder]]
    ) -> list[tuple[tuple[int, int], int]]:
        """Local maxima that count, in the order of their places, with the numbers of their filters.

        From the strongest on each takes its form from all weaker ones, and what it gives to their filters.
        """
        peaks = (self.ratio == ndimage.maximum_filter(self.ratio, 7)) & (self.ratio >= SEEN) & known
        places = np.argwhere(peaks)[np.argsort(-self.ratio[peaks], kind="stable")]
        border = max(f.reach for f, _ in filters) + WIDER
        size = [n + 2 * border for n in known.shape]
        taken, explained = np.zeros(size, bool), np.zeros(size, np.float32)
        forms: dict[int, tuple[NDArray[np.bool_], Array]] = {}
        found = []
        for row, column in ((int(y), int(x)) for y, x in places):
            number, center = int(self.best[row, column]), (row + border, column + border)
            each, ladder = filters[number]
            own = self.amplitude[row, column]
            around = _about(*center, each.weights)
            rest = own - float((explained[around] * each.weights).sum())
            if taken[center] or rest < max(HALF, SEEN / self.ratio[row, column]) * own:
                continue
            if number not in forms:
                widened = ndimage.binary_dilation(np.pad(each.footprint, WIDER), iterations=WIDER)
                alone = Structure(each.kind, (0.0, 0.0), each.size, ladder.unit, 1.0, 1.0, each.angle)
                forms[number] = widened, rendered(alone, ladder.steps)[1]
            widened, shape = forms[number]
            taken[_about(*center, widened)] |= widened
            explained[around] += rest * shape
            found.append(((row, column), number))
        return sorted(found)

    def candidate(
        self, method: str, place: tuple[int, int], each: Filter, ladder: Ladder, level: float, near: str
    ) -> Candidate:
        """What stands at a place, by what the truth shows there and what it shows by chance."""
        ratio, shown, elsewhere = (float(a[place]) for a in (self.ratio, self.shown, self.elsewhere))
        return Candidate(
            method,
            each.kind,
            each.size,
            ladder.unit,
            each.angle,
            (float(place[0]), float(place[1])),
            float(self.amplitude[place]),
            ratio,
            shown / ratio,
            _finding(shown / ratio, shown, level),
            "" if math.isnan(elsewhere) else _finding(elsewhere / ratio, elsewhere, level),
            near,
            (_about(*place, each.footprint), each.footprint),
            {},
        )


class _Away:
    """The same field as seen from places far away: half of what is known of it further along both axes, and round.

    Args:
        known: what is judged.
        reach: of the largest filter.
        factor: the way is no multiple of it, so that no lattice of coarse samples is met again.
    """

    def __init__(self, known: NDArray[np.bool_], *, reach: int, factor: Sequence[int]) -> None:
        lines = [np.flatnonzero(known.any(axis)) for axis in (1, 0)]
        self.box = tuple(slice(int(line[0]), int(line[-1]) + 1) if line.size else slice(0, 0) for line in lines)
        sizes = [s.stop - s.start for s in self.box]
        self.shift = tuple(n // 2 - (f > 1 and n // 2 % f == 0) for n, f in zip(sizes, factor, strict=True))
        # Half the way round is the farthest: where even that is near, nothing is asked.
        far = max(min(s, n - s) for s, n in zip(self.shift, sizes, strict=True)) >= AWAY * reach
        self.known = known & far

    def of(self, shown: Array) -> NDArray[np.float32]:
        """What is shown at the displaced place of each sample; nan where that is not known."""
        seen = np.full(shown.shape, np.nan, np.float32)
        inside = np.where(self.known[self.box], shown[self.box], np.nan)
        seen[self.box] = np.roll(inside, self.shift, (0, 1))
        return seen


def _finding(share: float, shown: float, level: float) -> Finding:
    if share < HALF:
        return "invented"
    return "real" if shown >= level else "undecided"


def _about(row: int, column: int, form: Array) -> Box:
    """Where a form of odd sizes lies that is centered at a sample."""
    down, right = (n // 2 for n in form.shape)
    return slice(row - down, row + down + 1), slice(column - right, column + right + 1)


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
