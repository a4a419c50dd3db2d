"""What is said of all structures and candidates of an audit together: shares, inventions, ROC areas, detail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from medsr.trust.roc import RocArea, roc_area

__all__ = ["ALL", "CONTRAST", "NATIVE", "area_rows", "detail_rows", "kept_rows"]

Row = dict[str, Any]
Form = tuple[str, Any, str]
Detail = tuple[Mapping[str, Sequence[Sequence[float]]], Sequence[str]]

ALL, NATIVE = "all", "native"
"""Every size, contrast, kind or place in a row of a summary; places where nothing was planted or removed."""

CONTRAST = "faintness (contrast alone)"
"""The baseline that a map has to beat: the fainter, the more suspicious."""

BANDS = ((4.0, 6.0), (6.0, 10.0), (10.0, math.inf))
"""Contrasts of candidates that have an area of their own, in standard deviations of the truth's surroundings."""

LEAST = 3
"""Scans from which on there is an interval."""


def kept_rows(
    methods: Sequence[str],
    structures: Sequence[Row],
    candidates: Sequence[Row],
    groups: Mapping[str, str],
    mm2: float | None,
    megasamples: float,
) -> Iterator[Row]:
    """What was kept, lost, back and invented, with the keys of `audit.csv`.

    Args:
        methods: in the order of the rows.
        structures, candidates: their rows.
        groups: what a scan belongs to, by its name.
        mm2, megasamples: that were judged.
    """
    forms = list(_forms(structures))
    for method in methods:
        mine = [row for row in structures if row["method"] == method]
        shown = [row for row in candidates if row["method"] == method]
        for form in forms:
            same = [row for row in mine if _of(form)(row)]
            planted = [row for row in same if row["done"] == "planted"]
            row = {"method": method, "kind": form[0], "size": form[1], "unit": form[2], "cnr": ALL}
            found = _inventions([each for each in shown if _of(form)(each)], mm2, megasamples)
            yield row | _counts(planted, groups) | _removed(same) | found
            for cnr in sorted({round(each["cnr"], 6) for each in planted}):
                some = [each for each in planted if round(each["cnr"], 6) == cnr]
                yield row | {"cnr": cnr} | _counts(some, groups) | _removed(()) | _inventions(None, mm2, megasamples)


def area_rows(
    methods: Sequence[str], maps: Sequence[str], candidates: Sequence[Row], groups: Mapping[str, str]
) -> Iterator[Row]:
    """ROC areas of maps, and of contrast alone, with the keys of `areas.csv`; undecided candidates are left out."""
    forms = list(_forms(candidates))
    for method in methods:
        mine = [row for row in candidates if row["method"] == method]
        if not mine:
            continue
        for name in (CONTRAST, *maps):
            if name != CONTRAST and all(row[name] is None for row in mine):
                continue  # this method has no such map
            for among in (NATIVE, ALL):
                for form in forms:
                    same = [row for row in mine if _of(form)(row) and (among == ALL or not row["near"])]
                    for band in (None, *BANDS):
                        some = [row for row in same if band is None or band[0] <= row["cnr"] < band[1]]
                        yield {
                            "method": method,
                            "map": name,
                            "among": among,
                            "kind": form[0],
                            "size": form[1],
                            "unit": form[2],
                            "cnr": ALL if band is None else _words(band),
                            **_figures(_area(name, some, groups)),
                        }


def detail_rows(methods: Sequence[str], found: Sequence[Detail]) -> Iterator[Row]:
    """Energy and agreement of each band of the null space, with the keys of `detail.csv`."""
    for method in methods:
        for band in dict.fromkeys(name for _, bands in found for name in bands):
            sums = [detail[method][list(bands).index(band)] for detail, bands in found if band in bands]
            made, there, both, samples = (math.fsum(row[i] for row in sums) for i in range(4))
            yield {
                "method": method,
                "band": band,
                "energy": math.sqrt(made / there) if there > 0 else None,
                "agreement": both / math.sqrt(made * there) if made > 0 and there > 0 else None,
                "samples": int(samples),
            }


def share_interval(counts: Sequence[tuple[int, int]]) -> tuple[float | None, float | None]:
    """95 % interval of a share over scans: its ratio estimator, t quantile, held to 0..1.

    Args:
        counts: (how many, of how many) in each scan.

    Returns:
        Low and high; None for fewer than three scans, or where all scans agree to the last one.

    References:
        W. G. Cochran: Sampling Techniques, 3rd edition, 1977, equation 3.34 (proportions in clusters).
    """
    known = [(k, n) for k, n in counts if n]
    if len(known) < LEAST:
        return None, None
    total = sum(n for _, n in known)
    share = sum(k for k, _ in known) / total
    spread = math.fsum((k - share * n) ** 2 for k, n in known) * len(known) / (len(known) - 1)
    if spread == 0:
        return None, None
    reach = float(student.ppf(0.975, len(known) - 1)) * math.sqrt(spread) / total
    return max(0.0, share - reach), min(1.0, share + reach)


def _forms(rows: Sequence[Row]) -> Iterator[Form]:
    """All kinds and sizes together, then each kind and size that occurs."""
    yield ALL, ALL, ""
    yield from sorted({(row["kind"], row["size"], row["unit"]) for row in rows})


def _of(form: Form) -> Callable[[Row], bool]:
    return lambda row: form[0] == ALL or (row["kind"], row["size"], row["unit"]) == form


def _share(rows: Sequence[Row], outcome: str) -> float | None:
    return sum(row["outcome"] == outcome for row in rows) / len(rows) if rows else None


def _counts(planted: Sequence[Row], groups: Mapping[str, str]) -> Row:
    seen = [row for row in planted if row["outcome"] != "unseen"]
    shares = [row["recovered"] for row in planted if row["recovered"] is not None]
    by_group: dict[str, list[int]] = {}
    for row in seen:
        count = by_group.setdefault(groups[row["scan"]], [0, 0])
        count[0] += row["outcome"] == "kept"
        count[1] += 1
    low, high = share_interval([(k, n) for k, n in by_group.values()])
    return {
        "scans": len(by_group),
        "planted": len(planted),
        "seen": len(seen),
        "kept": _share(seen, "kept"),
        "kept_low": low,
        "kept_high": high,
        "lost": _share(seen, "lost"),
        "recovered": float(np.median(shares)) if shares else None,
    }


def _removed(same: Sequence[Row]) -> Row:
    removed = [row for row in same if row["done"] == "removed"]
    return {"removed": len(removed) if same else None, "back": _share(removed, "back")}


def _inventions(shown: Sequence[Row] | None, mm2: float | None, megasamples: float) -> Row:
    names = ("real", "undecided", "invented")
    per = ("invented_per_mm2", "invented_per_megasample")
    if shown is None:
        return dict.fromkeys(("candidates", *names, "real_by_chance", *per))
    counts = {name: sum(row["found"] == name for row in shown) for name in names}
    asked = [row["chance"] for row in shown if row["chance"]]
    return {
        "candidates": len(shown),
        **counts,
        "real_by_chance": asked.count("real") / len(asked) if asked else None,
        "invented_per_mm2": counts["invented"] / mm2 if mm2 else None,
        "invented_per_megasample": counts["invented"] / megasamples if megasamples else None,
    }


def _area(name: str, rows: Sequence[Row], groups: Mapping[str, str]) -> RocArea:
    scores: list[list[float]] = []
    belongs: list[list[str]] = []
    for kind in ("invented", "real"):
        some = [row for row in rows if row["found"] == kind and (name == CONTRAST or row[name] is not None)]
        scores.append([-row["cnr"] if name == CONTRAST else row[name] for row in some])
        belongs.append([groups[row["scan"]] for row in some])
    return roc_area(scores[0], scores[1], groups=(belongs[0], belongs[1]))


def _words(band: tuple[float, float]) -> str:
    return f"{band[0]:g} and more" if math.isinf(band[1]) else f"{band[0]:g} to {band[1]:g}"


def _figures(found: RocArea) -> Row:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "area": known(found.value),
        "low": known(found.low),
        "high": known(found.high),
        "invented": found.positives,
        "real": found.negatives,
        "scans": found.clusters,
        "reason": found.reason or found.interval_reason,
    }
