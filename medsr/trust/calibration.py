"""calibrate: the scaling of intervals that keeps a promise, from scans whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from medsr.degradation import Degradation, DegradationRange
from medsr.io import NoImageError, Source, find_all, read_scan
from medsr.io.digest import input_digest
from medsr.io.pseudonyms import unnamed
from medsr.plan import Device
from medsr.scan import Factor, ScanError
from medsr.trust.bounds import hoeffding_bentkus_ucb, largest_risk, least_alpha, scans_needed, smallest_n
from medsr.trust.curves import HALF_WIDTHS, INTENSITIES, SCALINGS, SPANS, Curve, Over, curve_of
from medsr.trust.distances import Distances, trained_in
from medsr.upscaler import checkpoints_of, describe

__all__ = ["Calibration", "Coverage", "Stratum", "calibrate", "certify", "group_of", "measure_curves", "pooled"]

Note = Callable[[str], None]
Group = Callable[[Source], str]


class Stratum(BaseModel):
    """Samples of one kind.

    Attributes:
        low, high: of the estimate or of the interval's width, in unit intensity; None: open.
        share: of all samples.
        coverage: of these, the share inside their interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float | None
    high: float | None
    share: float
    coverage: float


class Coverage(BaseModel):
    """What intervals of one scaling did on scans whose truth is known; means over groups of scans, each counted alike.

    Attributes:
        groups: subjects, or whatever was told to belong together.
        scans: of them.
        risk: share of samples outside, over what the promise is about.
        risks: the same of each group, largest first.
        risk_whole, risk_foreground: the same over all samples, and over tissue or signal.
        mean_width: of the intervals, in unit intensity.
        constant_width: of intervals of one width everywhere, calibrated alike; None: no such width is certified.
        by_intensity, by_width: coverage by the estimate and by the width, samples of all scans together.
        inputs: SHA-256 of the scans.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    groups: int
    scans: int
    risk: float
    risks: tuple[float, ...]
    risk_whole: float
    risk_foreground: float
    mean_width: float
    constant_width: float | None
    by_intensity: tuple[Stratum, ...] = ()
    by_width: tuple[Stratum, ...] = ()
    inputs: tuple[str, ...] = ()

    def bound(self, delta: float) -> float:
        """Upper confidence bound of the expected share outside, at confidence 1 - delta."""
        return hoeffding_bentkus_ucb(min(1.0, self.risk), self.groups, delta)


class Calibration(BaseModel):
    """What is promised of intervals, and what it rests on.

    Attributes:
        alpha: share of samples that may lie outside, on average over scans.
        delta: share of calibrations in which the promise may be broken.
        over: what the samples are: the whole scan, or its foreground.
        scaling: what distances are multiplied by.
        risk_bound: upper confidence bound of the expected share outside; alpha or less.
        grouped: what the groups are that count as one each.
        kind, digest: of the distances; checkpoints: SHA-256 of the weights of the upscaler.
        method: the upscaler in words.
        factor: of the upscaler.
        degradation: how scans were made coarse, in words.
        coverage: on the calibration scans themselves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    alpha: float
    delta: float
    over: Over
    scaling: float
    risk_bound: float
    grouped: str
    kind: str
    digest: str
    checkpoints: tuple[str, ...]
    method: str
    factor: Factor
    degradation: str
    coverage: Coverage

    @property
    def promise(self) -> str:
        """In a few words, for histories."""
        return f"{100 * (1 - self.alpha):g} % of {self.over} at confidence {100 * (1 - self.delta):g} %"

    def __str__(self) -> str:
        """The promise in a sentence, with its conditions."""
        c = self.coverage
        constant = "" if c.constant_width is None else f" (one width everywhere: {c.constant_width:.4g})"
        return (
            f"At confidence {100 * (1 - self.delta):g} %, at least {100 * (1 - self.alpha):g} % of the samples of the "
            f"{self.over} lie inside, on average over new scans that are made and degraded as these {c.scans} "
            f"({c.groups} {self.grouped}) were; not in each scan, nor at each sample. Outside here: "
            f"{100 * c.risk:.2f} %, bound {100 * self.risk_bound:.2f} %; widths times {self.scaling:.4g}, mean "
            f"{c.mean_width:.4g}{constant} of black to white."
        )


def calibrate(
    method: Distances,
    paths: Path | str | Sequence[Path | str],
    *,
    alpha: float = 0.1,
    delta: float = 0.1,
    over: Over = "whole",
    degradation: Degradation | DegradationRange | None = None,
    group: Group | None = None,
    learned_from: Collection[str] = (),
    series: str | int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    note: Note | None = None,
) -> Calibration:
    """Choose the scaling of intervals so that at confidence 1 - delta at most a share alpha of samples lies outside.

    Each scan is made coarse as `evaluate` does and upscaled; a scan's loss is its share of samples outside the
    intervals as they are written, which falls as the scaling grows. Taken is the smallest scaling from which on the
    Hoeffding-Bentkus bound of the mean loss is alpha or less. What counts is not samples but scans: those of one
    subject, or of one group, are one. The scans must be exchangeable with those to come (same device, protocol, kind
    of sample), and neither network nor widths may have learned from them.

    Args:
        method: estimate and distances, such as `LearnedWidths` or `SpreadWidths`.
        paths: files and folders with fine scans.
        alpha, delta: see above.
        over: the samples that are counted: "whole", or "foreground" (tissue or signal), which is the harder promise
            where a dark background is easy.
        degradation: as in `evaluate`; None: that of the checkpoint's recipe, else block means.
        group: names what a scan belongs to; None: its subject, where its file says so, else itself.
        learned_from: SHA-256 of scans that the widths learned from.
        series, memory, device, note: as in `evaluate`.

    Raises:
        ValueError: fewer groups than `smallest_n(alpha, delta)`, with the number needed; a scan that the network, its
            validation or the widths have seen; widths that cannot be scaled far enough.
        ScanError: no scan was found.

    References:
        A. N. Angelopoulos et al., 2022, algorithm 1, arXiv:2202.05265.
    """
    smallest_n(alpha, delta)
    sources = find_all(paths)
    names = [group_of(source, group) for source in sources]
    _refuse_few(len(set(names)), alpha, delta)
    sources, curves = measure_curves(
        method,
        sources,
        over=over,
        degradation=degradation,
        learned_from=learned_from,
        series=series,
        memory=memory,
        device=device,
        note=note,
    )
    groups = [group_of(source, group) for source in sources]
    risks = grouped([curve.risk(over) for curve in curves], groups)
    index = certify(risks, alpha=alpha, delta=delta)
    constant = grouped([curve.constant(over) for curve in curves], groups)
    limit = largest_risk(len(constant), alpha=alpha, delta=delta) or 0.0
    flat = first_within(constant.mean(0), limit)
    coverage = pooled(curves, groups, index, over=over, constant=None if flat is None else 2 * float(HALF_WIDTHS[flat]))
    known = degradation_of(method, degradation)
    return Calibration(
        alpha=alpha,
        delta=delta,
        over=over,
        scaling=float(SCALINGS[index]),
        risk_bound=coverage.bound(delta),
        grouped="groups" if group is not None else "subjects" if any(s.subject for s in sources) else "scans",
        kind=method.kind,
        digest=method.digest,
        checkpoints=tuple(found for part in method.parts for found in checkpoints_of(part)),
        method=describe(method.parts[0]),
        factor=tuple(method.factor),
        degradation="block means" if known is None else repr(known),
        coverage=coverage.model_copy(update={"inputs": tuple(sorted(input_digest(source) for source in sources))}),
    )


def measure_curves(
    method: Distances,
    sources: Sequence[Source],
    *,
    over: Over = "whole",
    degradation: Degradation | DegradationRange | None = None,
    learned_from: Collection[str] = (),
    series: str | int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    note: Note | None = None,
) -> tuple[list[Source], list[Curve]]:
    """The scans that can be measured, and for each its share outside as the scaling grows; arguments of `calibrate`.

    A scan that cannot be read is left out with a note, as is one without the samples that count.

    Raises:
        ValueError: a scan that the network, its validation or the widths have seen.
    """
    note = note or _silent
    known = degradation_of(method, degradation)
    seen = set(learned_from)
    for upscaler in (found for part in method.parts for found in trained_in(part)):
        seen |= {each.sha256 for each in (*upscaler.card.inputs, *upscaler.card.held_out)}
    kept, curves = list[Source](), list[Curve]()
    for source in sources:
        if seen and input_digest(source) in seen:
            raise ValueError(
                f"{unnamed(str(source.path), source)}: expected a scan that the network, its validation and the widths "
                "have not seen, found one that they have: its errors flatter and nothing could be promised; "
                "calibrate on others"
            )
        try:
            curve = curve_of(method, read_scan(source, series=series), degradation=known, memory=memory, device=device)
        except (NoImageError, ScanError) as error:
            note(f"{source.name}: left out: {unnamed(str(error), source)}")
            continue
        if not curve.counts(over):
            note(f"{source.name}: left out: no sample of its {over} can be measured")
            continue
        kept.append(source)
        curves.append(curve)
        note(f"{source.name}: {100 * float(curve.risk(over)[SCALINGS == 1][0]):.1f} % outside before calibration")
    return kept, curves


def certify(risks: NDArray[np.float64], *, alpha: float = 0.1, delta: float = 0.1) -> int:
    """Index of the smallest scaling from which on the mean risk is certified to be alpha or less.

    Args:
        risks: (groups, scalings) shares outside, falling along the last axis.

    Raises:
        ValueError: too few groups, or no scaling is certified; the message says how many it takes.
    """
    _refuse_few(len(risks), alpha, delta)
    limit = largest_risk(len(risks), alpha=alpha, delta=delta)
    mean = np.asarray(risks.mean(0))
    index = None if limit is None else first_within(mean, limit)
    if index is None:
        least = float(mean[-1])
        more = "" if least >= alpha else f" or give {scans_needed(least, alpha=alpha, delta=delta)} scans"
        raise ValueError(
            f"calibrate: expected a scaling that leaves at most {limit or 0.0:.4f} outside, as {len(risks)} scans must "
            f"for alpha {alpha:g} at delta {delta:g}, found {least:.4f} outside at the largest; use other widths{more}"
        )
    return index


def first_within(mean: NDArray[np.float64], limit: float) -> int | None:
    """Index from which on a falling curve is `limit` or less; None: it never is."""
    above = np.flatnonzero(mean > limit)
    first = 0 if not above.size else int(above[-1]) + 1
    return first if first < len(mean) else None


def pooled(
    curves: Sequence[Curve], groups: Sequence[Hashable], index: int, *, over: Over, constant: float | None = None
) -> Coverage:
    """Coverage at one scaling over measured scans; `constant` is the width of a calibrated constant interval."""
    scaling = float(SCALINGS[index])
    risks = grouped([curve.risk(over) for curve in curves], groups)[:, index]
    whole = grouped([curve.risk("whole") for curve in curves], groups)[:, index]
    inside = [curve.risk("foreground") if curve.counts("foreground") else curve.risk("whole") for curve in curves]
    widths = grouped([np.array([curve.width(over)]) for curve in curves], groups)
    return Coverage(
        groups=len(risks),
        scans=len(curves),
        risk=float(risks.mean()),
        risks=tuple(sorted((round(float(risk), 6) for risk in risks), reverse=True)),
        risk_whole=float(whole.mean()),
        risk_foreground=float(grouped(inside, groups)[:, index].mean()),
        mean_width=scaling * float(widths.mean()),
        constant_width=constant,
        by_intensity=_strata(np.sum([c.by_intensity for c in curves], 0), index, INTENSITIES),
        by_width=_strata(np.sum([c.by_width for c in curves], 0), index, SPANS * scaling),
    )


def grouped(values: Sequence[NDArray[np.float64]], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """Mean of the rows of each group, (groups, ...)."""
    order = list(dict.fromkeys(groups))
    where = np.array([order.index(each) for each in groups])
    rows = np.stack(list(values))
    return np.stack([rows[where == number].mean(0) for number in range(len(order))])


def degradation_of(
    method: Distances, given: Degradation | DegradationRange | None
) -> Degradation | DegradationRange | None:
    """How scans are made coarse: as given, else as the recipe of the checkpoint says."""
    found = [upscaler for part in method.parts for upscaler in trained_in(part)]
    return given if given is not None or not found else found[0].recipe.degradation


def _strata(counts: NDArray[np.int64], index: int, edges: NDArray[np.float64]) -> tuple[Stratum, ...]:
    """Shares and coverage of strata (strata, scalings + 1) between edges; empty ones are left out."""
    totals, inside = counts.sum(1), counts[:, : index + 1].sum(1)
    ends = [None, *map(float, edges), None]
    return tuple(
        Stratum(low=low, high=high, share=float(n / totals.sum()), coverage=float(k / n))
        for low, high, n, k in zip(ends[:-1], ends[1:], totals, inside, strict=True)
        if n
    )


def group_of(source: Source, group: Group | None) -> Hashable:
    """What a scan belongs to: as `group` says, else its subject, else itself."""
    if group is not None:
        return group(source)
    return ("subject", source.subject) if source.subject else ("scan", source.name)


def _refuse_few(count: int, alpha: float, delta: float) -> None:
    needed = smallest_n(alpha, delta)
    if count < needed:
        least = math.ceil(1000 * least_alpha(max(1, count), delta=delta)) / 1000
        raise ValueError(
            f"calibrate: expected at least {needed} scans of different subjects to promise alpha {alpha:g} at delta "
            f"{delta:g} (more where samples are missed: {scans_needed(alpha / 2, alpha=alpha, delta=delta)} at a "
            f"measured {alpha / 2:g}), found {count}, which promise nothing below alpha {least:g}; give more scans, "
            "or a larger alpha; patches or planes of one scan do not count"
        )


def _silent(_line: str) -> None:
    """The default of `note`."""
