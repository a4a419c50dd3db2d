"""The tables of an audit: every structure, every candidate, what was kept, and how well maps tell what was invented."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.scoring import cell, write_table
from medsr.trust.judging import Candidate, Verdict
from medsr.trust.roc import RocArea, roc_area

__all__ = ["AREAS", "DETAIL", "KEPT", "STRUCTURES", "Audit", "Found", "tables_of", "write_tables"]

Row = dict[str, Any]
Floats = NDArray[np.float64]
Spacing = tuple[float | None, float | None]

ALL = "all"
"""Stands for every size, every contrast or every kind in a row of a summary."""

BANDS = ((4.0, 6.0), (6.0, 10.0), (10.0, math.inf))
"""Contrasts of candidates that have an area of their own, in standard deviations of the truth's surroundings."""

STRUCTURES = (
    *("scan", "method", "done", "kind", "size", "unit", "angle", "y", "x", "contrast", "cnr"),
    *("truth", "estimate", "recovered", "outcome"),
)
"""Columns of `structures.csv`, in its order; the table of each structure in each estimate."""

CANDIDATES = (
    *("scan", "method", "kind", "size", "unit", "angle", "y", "x", "contrast", "cnr", "share", "invented", "near"),
)
"""Columns of `candidates.csv` before those of the maps."""

KEPT = (
    *("method", "kind", "size", "unit", "cnr", "planted", "seen", "kept", "lost", "recovered"),
    *("removed", "back", "candidates", "invented", "invented_per_mm2", "invented_per_megasample"),
)
"""Columns of `audit.csv`, in its order."""

AREAS = ("method", "map", "kind", "size", "unit", "cnr", "area", "low", "high", "invented", "real", "reason")
"""Columns of `areas.csv`, in its order."""

DETAIL = ("method", "band", "energy", "agreement")
"""Columns of `detail.csv`, in its order."""


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was found in one scan.

    Attributes:
        scan: its name.
        verdicts: of each structure in each estimate; positions in samples of the plane.
        candidates: that the estimates show, with the scores of the maps.
        detail: for each method and band of the null space the sums of squares of estimate and truth, and of their
            products: (bands, 3).
        bands: their names, finest first.
        samples: fine samples that were judged.
        spacing_um: of them along y and x.
    """

    scan: str
    verdicts: tuple[Verdict, ...]
    candidates: tuple[Candidate, ...]
    detail: Mapping[str, Floats]
    bands: tuple[str, ...]
    samples: int
    spacing_um: Spacing


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found; rows are dictionaries, a figure that does not exist is None.

    Attributes:
        methods: in the order of the tables.
        maps: that scored candidates, by their names.
        structures: a row for each structure and method, with the keys `STRUCTURES`.
        candidates: a row for each thing an estimate shows, with the score of each map by its name.
        kept: by method, kind, size and contrast, "all" among them, with the keys `KEPT`. "kept" and "lost" are shares
            of the structures that can be seen in the truth; "recovered" is the median share of the contrast; "back" is
            the share of the removed that an estimate shows all the same.
        areas: ROC areas by method, map, size and contrast band, with the keys `AREAS`; "invented" and "real" are how
            many candidates there are of each.
        detail: of each method and band of the null space, which no measurement speaks for, with the keys `DETAIL`:
            "energy" is its root mean square in the estimate over that in the truth; "agreement" their correlation: 1 is
            the detail of the truth, 0 is other detail. Noise of the truth counts as its detail.
        failed: (scan, reason) of each scan that could not be audited.
    """

    methods: tuple[str, ...]
    maps: tuple[str, ...]
    structures: tuple[Row, ...]
    candidates: tuple[Row, ...]
    kept: tuple[Row, ...]
    areas: tuple[Row, ...]
    detail: tuple[Row, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """1 when a scan failed, else 0."""
        return int(bool(self.failed))

    def area(self, method: str, name: str) -> RocArea:
        """The area of a map over all candidates of a method.

        Raises:
            KeyError: there is no such method or map.
        """
        for row in self.areas:
            if (row["method"], row["map"]) == (method, name) and {row["kind"], row["size"], row["cnr"]} == {ALL}:
                value, low, high = (math.nan if row[key] is None else row[key] for key in ("area", "low", "high"))
                return RocArea(value, low, high, row["invented"], row["real"], row["reason"])
        raise KeyError(f"expected a method of {self.methods} and a map of {self.maps}, found {method!r} and {name!r}")


def tables_of(found: Sequence[Found], methods: Sequence[str], failed: Sequence[tuple[str, str]] = ()) -> Audit:
    """The tables of what was found in all scans."""
    maps = tuple(dict.fromkeys(name for each in found for one in each.candidates for name in one.scores))
    structures = [_structure(each.scan, verdict) for each in found for verdict in each.verdicts]
    candidates = [_candidate(each.scan, one, maps) for each in found for one in each.candidates]
    kept = [row for method in methods for row in _kept(method, structures, candidates, found)]
    areas = [row for method in methods for name in maps for row in _areas(method, name, candidates)]
    return Audit(
        methods=tuple(methods),
        maps=maps,
        structures=tuple(structures),
        candidates=tuple(candidates),
        kept=tuple(kept),
        areas=tuple(areas),
        detail=tuple(row for method in methods for row in _detail(method, found)),
        failed=tuple(failed),
    )


def write_tables(out: Path, made: Audit) -> None:
    """Write `audit.csv`, `areas.csv`, `detail.csv`, `structures.csv`, `candidates.csv`; `failed.csv` if one failed."""
    tables: tuple[tuple[str, Sequence[str], Iterable[Row]], ...] = (
        ("audit.csv", KEPT, made.kept),
        ("areas.csv", AREAS, made.areas),
        ("detail.csv", DETAIL, made.detail),
        ("structures.csv", STRUCTURES, made.structures),
        ("candidates.csv", (*CANDIDATES, *made.maps), made.candidates),
    )
    for name, columns, rows in tables:
        write_table(out / name, columns, [[cell(row[column]) for column in columns] for row in rows])
    write_table(out / "failed.csv", ("scan", "reason"), made.failed)


def _structure(scan: str, verdict: Verdict) -> Row:
    there = verdict.structure
    return {
        "scan": scan,
        "method": verdict.method,
        "done": verdict.done,
        **{name: getattr(there, name) for name in ("kind", "size", "unit", "angle", "contrast", "cnr")},
        "y": there.position[0],
        "x": there.position[1],
        "truth": verdict.truth,
        "estimate": verdict.estimate,
        "recovered": None if math.isnan(verdict.recovered) else verdict.recovered,
        "outcome": verdict.outcome,
    }


def _candidate(scan: str, one: Candidate, maps: Sequence[str]) -> Row:
    scores = {name: one.scores.get(name, math.nan) for name in maps}
    return {
        "scan": scan,
        **{name: getattr(one, name) for name in ("method", "kind", "size", "unit", "angle", "contrast", "cnr")},
        "y": one.position[0],
        "x": one.position[1],
        "share": one.share,
        "invented": int(one.invented),
        "near": one.near,
        **{name: None if math.isnan(value) else value for name, value in scores.items()},
    }


def _forms(rows: Sequence[Row]) -> Iterator[tuple[str, Any, str]]:
    """All kinds and sizes together, then each kind and size that occurs."""
    yield ALL, ALL, ""
    yield from sorted({(row["kind"], row["size"], row["unit"]) for row in rows})


def _of(form: tuple[str, Any, str]) -> Callable[[Row], bool]:
    return lambda row: form[0] == ALL or (row["kind"], row["size"], row["unit"]) == form


def _kept(method: str, structures: Sequence[Row], candidates: Sequence[Row], found: Sequence[Found]) -> Iterator[Row]:
    mine = [row for row in structures if row["method"] == method]
    shown = [row for row in candidates if row["method"] == method]
    millions = sum(each.samples for each in found) / 1e6
    mm2 = _area_mm2(found)
    for form in _forms(structures):
        same = [row for row in mine if _of(form)(row)]
        planted = [row for row in same if row["done"] == "planted"]
        contrasts = sorted({round(row["cnr"], 6) for row in planted})
        for cnr in (ALL, *contrasts):
            some = [row for row in planted if cnr == ALL or round(row["cnr"], 6) == cnr]
            row: Row = {"method": method, "kind": form[0], "size": form[1], "unit": form[2], "cnr": cnr}
            yield (
                row
                | _counts(some, same if cnr == ALL else ())
                | _inventions([each for each in shown if _of(form)(each)] if cnr == ALL else None, mm2, millions)
            )


def _counts(planted: Sequence[Row], same: Sequence[Row]) -> Row:
    seen = [row for row in planted if row["outcome"] != "unseen"]
    shares = sorted(row["recovered"] for row in planted if row["recovered"] is not None)
    removed = [row for row in same if row["done"] == "removed"]

    def share(rows: Sequence[Row], outcome: str) -> float | None:
        return sum(row["outcome"] == outcome for row in rows) / len(rows) if rows else None

    middle = len(shares) // 2
    return {
        "planted": len(planted),
        "seen": len(seen),
        "kept": share(seen, "kept"),
        "lost": share(seen, "lost"),
        "recovered": (shares[middle] + shares[-1 - middle]) / 2 if shares else None,
        "removed": len(removed) if same else None,
        "back": share(removed, "back"),
    }


def _inventions(shown: Sequence[Row] | None, mm2: float | None, millions: float) -> Row:
    names = ("candidates", "invented", "invented_per_mm2", "invented_per_megasample")
    if shown is None:
        return dict.fromkeys(names)
    count = sum(row["invented"] for row in shown)
    per_mm2 = None if not mm2 else count / mm2
    return dict(zip(names, (len(shown), count, per_mm2, count / millions if millions else None), strict=True))


def _area_mm2(found: Sequence[Found]) -> float | None:
    """Square millimeters that were judged; None where a scan does not say its spacing."""
    total = 0.0
    for each in found:
        rows, columns = each.spacing_um
        if rows is None or columns is None:
            return None
        total += each.samples * rows * columns / 1e6
    return total


def _detail(method: str, found: Sequence[Found]) -> Iterator[Row]:
    for band in dict.fromkeys(name for each in found for name in each.bands):
        sums = [each.detail[method][each.bands.index(band)] for each in found if band in each.bands]
        made, there, both = (math.fsum(float(row[i]) for row in sums) for i in range(3))
        yield {
            "method": method,
            "band": band,
            "energy": math.sqrt(made / there) if there > 0 else None,
            "agreement": both / math.sqrt(made * there) if made > 0 and there > 0 else None,
        }


def _areas(method: str, name: str, candidates: Sequence[Row]) -> Iterator[Row]:
    mine = [row for row in candidates if row["method"] == method]
    if not any(row[name] is not None for row in mine):
        return  # this method has no such map
    for form in _forms(candidates):
        same = [row for row in mine if _of(form)(row)]
        for band in (None, *BANDS):
            some = [row for row in same if band is None or band[0] <= row["cnr"] < band[1]]
            scores = [[row[name] for row in some if row["invented"] == kind] for kind in (1, 0)]
            found = roc_area(*[[math.nan if v is None else v for v in group] for group in scores])
            yield {
                "method": method,
                "map": name,
                "kind": form[0],
                "size": form[1],
                "unit": form[2],
                "cnr": ALL if band is None else _words(band),
                **_figures(found),
            }


def _words(band: tuple[float, float]) -> str:
    return f"{band[0]:g} and more" if math.isinf(band[1]) else f"{band[0]:g} to {band[1]:g}"


def _figures(found: RocArea) -> Mapping[str, Any]:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "area": known(found.value),
        "low": known(found.low),
        "high": known(found.high),
        "invented": found.positives,
        "real": found.negatives,
        "reason": found.reason,
    }
