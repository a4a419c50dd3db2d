"""The tables of an audit: every structure and every candidate, and what is said of all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsr.scoring import PROVENANCE, cell, write_table
from medsr.trust.audit_summary import ALL, NATIVE, area_rows, detail_rows, kept_rows
from medsr.trust.judging import Candidate, Verdict
from medsr.trust.roc import RocArea

__all__ = [
    "AREAS",
    "DETAIL",
    "KEPT",
    "STRUCTURES",
    "TABLES",
    "Audit",
    "Found",
    "candidate_row",
    "structure_row",
    "tables_of",
    "write_tables",
]

Row = dict[str, Any]

STRUCTURES = (
    *("scan", "method", "done", "kind", "size", "unit", "angle", "y", "x", "contrast", "cnr"),
    *("truth", "estimate", "recovered", "outcome"),
)
"""Columns of `structures.csv`, in its order: each structure in each estimate."""

CANDIDATES = (
    *("scan", "method", "kind", "size", "unit", "angle", "y", "x", "contrast", "cnr", "share", "found", "chance"),
    "near",
)
"""Columns of `candidates.csv` before those of the maps."""

KEPT = (
    *("method", "kind", "size", "unit", "cnr", "scans", "planted", "seen", "kept", "kept_low", "kept_high", "lost"),
    *("recovered", "removed", "back", "candidates", "real", "undecided", "invented", "real_by_chance"),
    *("invented_per_mm2", "invented_per_megasample"),
)
"""Columns of `audit.csv`, in its order."""

AREAS = (
    *("method", "map", "among", "kind", "size", "unit", "cnr", "area", "low", "high", "invented", "real", "scans"),
    "reason",
)
"""Columns of `areas.csv`, in its order."""

DETAIL = ("method", "band", "energy", "agreement", "samples")
"""Columns of `detail.csv`, in its order."""

TABLES = (
    *("audit.csv", "areas.csv", "detail.csv", "structures.csv", "candidates.csv", "failed.csv", "audit.png"),
    PROVENANCE,
)
"""What is said of all scans together."""


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was found in one scan; plain JSON but for the tuples.

    Attributes:
        scan: its name.
        structures: a row for each structure and method, with the keys `STRUCTURES`.
        candidates: a row for each thing that an estimate shows, with the keys `CANDIDATES` and in "scores" those of the
            maps by their names, None where a map knows nothing.
        detail: for each method and band of the null space the sums of squares of estimate and truth, those of their
            products, and the samples: (bands, 4).
        bands: their names, finest first.
        samples: fine samples that were judged.
        spacing_um: of them along y and x.
        degradation: by which the scan was made coarse.
        group: what it belongs to: its subject, or itself; never written.
    """

    scan: str
    structures: tuple[Row, ...]
    candidates: tuple[Row, ...]
    detail: Mapping[str, Sequence[Sequence[float]]]
    bands: tuple[str, ...]
    samples: int
    spacing_um: tuple[float | None, float | None]
    degradation: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found; rows are dictionaries, a figure that does not exist is None.

    Attributes:
        methods: in the order of the tables.
        maps: that scored candidates, by their names; the first is the baseline, contrast alone.
        structures: a row for each structure and method, with the keys `STRUCTURES`.
        candidates: a row for each thing an estimate shows, with the score of each map by its name.
        kept: by method, kind, size and contrast, "all" among them, with the keys `KEPT`. "kept" and "lost" are shares
            of the structures that can be seen in the truth, "kept_low" and "kept_high" a 95 % interval over scans;
            "recovered" is the median share of the contrast; "back" the share of the removed that an estimate shows all
            the same. Candidates are "real", "undecided" or "invented"; "real_by_chance" is the share that a displaced
            truth calls real.
        areas: ROC areas by method, map, size and contrast band, with the keys `AREAS`; "among" says whether planted and
            removed places are left out ("native") or not ("all"); "invented" and "real" are how many candidates there
            are of each; "low" and "high" a 95 % interval over scans, None where there are fewer than three of them.
        detail: of each method and band of the null space, which no measurement speaks for, with the keys `DETAIL`, in
            the scans as they are: "energy" is its root mean square in the estimate over that in the truth, "agreement"
            their correlation: 1 is the detail of the truth, 0 is other detail. Noise of the truth counts as its detail.
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

    def area(self, method: str, name: str) -> RocArea | None:
        """The area of a map over all candidates of a method where nothing was planted or removed.

        Returns:
            The area; None: the method has no such map.
        """
        for row in self.areas:
            whole = row["among"] == NATIVE and row["kind"] == row["size"] == row["cnr"] == ALL
            if whole and (row["method"], row["map"]) == (method, name):
                value, low, high = (math.nan if row[key] is None else row[key] for key in ("area", "low", "high"))
                why = {"reason": row["reason"]} if row["area"] is None else {"interval_reason": row["reason"]}
                return RocArea(value, low, high, row["invented"], row["real"], clusters=row["scans"], **why)
        return None


def tables_of(found: Sequence[Found], methods: Sequence[str], failed: Sequence[tuple[str, str]] = ()) -> Audit:
    """The tables of what was found in all scans."""
    maps = tuple(dict.fromkeys(name for each in found for one in each.candidates for name in one["scores"]))
    structures = [row for each in found for row in each.structures]
    rows = [row for each in found for row in each.candidates]
    candidates = [
        {**{k: v for k, v in row.items() if k != "scores"}, **{m: row["scores"].get(m) for m in maps}} for row in rows
    ]
    groups = {each.scan: each.group or each.scan for each in found}
    areas = list(area_rows(methods, maps, candidates, groups))
    return Audit(
        methods=tuple(methods),
        maps=tuple(dict.fromkeys(row["map"] for row in areas)),
        structures=tuple(structures),
        candidates=tuple(candidates),
        kept=tuple(kept_rows(methods, structures, candidates, groups, _area_mm2(found), _megasamples(found))),
        areas=tuple(areas),
        detail=tuple(detail_rows(methods, [(each.detail, each.bands) for each in found])),
        failed=tuple(failed),
    )


def write_tables(out: Path, made: Audit) -> None:
    """Write `failed.csv`, `areas.csv`, `detail.csv`, `structures.csv`, `candidates.csv`, and `audit.csv` last."""
    maps = [name for name in made.maps if any(name in row for row in made.candidates)]
    tables: tuple[tuple[str, Sequence[str], Iterable[Row]], ...] = (
        ("areas.csv", AREAS, made.areas),
        ("detail.csv", DETAIL, made.detail),
        ("structures.csv", STRUCTURES, made.structures),
        ("candidates.csv", (*CANDIDATES, *maps), made.candidates),
        ("audit.csv", KEPT, made.kept),
    )
    write_table(out / "failed.csv", ("scan", "reason"), made.failed)
    for name, columns, rows in tables:
        write_table(out / name, columns, [[cell(row[column]) for column in columns] for row in rows])


def structure_row(scan: str, verdict: Verdict) -> Row:
    """A structure in an estimate, with the keys `STRUCTURES`."""
    there = verdict.structure
    return {
        "scan": scan,
        "method": verdict.method,
        "done": verdict.done,
        **{name: _plain(getattr(there, name)) for name in ("kind", "size", "unit", "angle", "contrast", "cnr")},
        "y": float(there.position[0]),
        "x": float(there.position[1]),
        **{name: _plain(getattr(verdict, name)) for name in ("truth", "estimate", "recovered", "outcome")},
    }


def candidate_row(scan: str, one: Candidate) -> Row:
    """Something that an estimate shows, with the keys `CANDIDATES` and "scores"."""
    names = ("method", "kind", "size", "unit", "angle", "contrast", "cnr", "share", "found", "chance", "near")
    return {
        "scan": scan,
        **{name: _plain(getattr(one, name)) for name in names},
        "y": float(one.position[0]),
        "x": float(one.position[1]),
        "scores": {name: _plain(value) for name, value in one.scores.items()},
    }


def _plain(value: Any) -> Any:
    """A number or a text as JSON has it; None for what is no number."""
    if isinstance(value, str):
        return value
    return float(value) if math.isfinite(value) else None


def _area_mm2(found: Sequence[Found]) -> float | None:
    """Square millimeters that were judged; None where a scan does not say its spacing."""
    total = 0.0
    for each in found:
        rows, columns = each.spacing_um
        if rows is None or columns is None:
            return None
        total += each.samples * rows * columns / 1e6
    return total


def _megasamples(found: Sequence[Found]) -> float:
    return sum(each.samples for each in found) / 1e6
