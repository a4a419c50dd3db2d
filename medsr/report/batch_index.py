"""write_batch_report: a page for each scan of a folder, and an index of them."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from medsr.io import find_scans
from medsr.io.naming import fit_for_files, scan_name
from medsr.io.omezarr_reader import accepts
from medsr.report.page import Summary, render, summarized, write_text
from medsr.report.reasons import pathless, reason_of
from medsr.report.sections import Table, number
from medsr.scan import ScanError

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange, SecondOrder

__all__ = ["write_batch_report"]

INDEX = "index.html"
PICTURE, THUMBNAIL = 1800, 192
"""Pixels along the longer side of a picture of `evaluate`, and of its thumbnail."""
SCORES = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "nrmse": "NRMSE",
    "frc_um": "FRC, µm",
    "consistency_db": "consistency, dB",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the index."""

    name: str
    link: str = ""
    thumbnail: str = ""
    figures: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    failed: str = ""


def write_batch_report(
    folder: Path | str,
    *,
    out: Path | str,
    low: Path | str | None = None,
    degradation: Degradation | SecondOrder | DegradationRange | None = None,
    checkpoint: Path | str | None = None,
) -> Path:
    """Write a page for each result of a folder, and `index.html` that links them by relative names.

    A result that cannot be shown stops nothing: the index names it with the reason, and so it does scans that the
    batch itself could not do.

    Args:
        folder: results of `upscale_folder`, or the folder that `evaluate` has written.
        out: folder of the pages; made if absent. It can be copied as a whole.
        low: folder or file of the measured scans; each is found by the hash its result records.
        degradation, checkpoint: as in `write_report`, for all.

    Returns:
        the index.

    Raises:
        ScanError: the folder holds neither results nor scores, or `low` is not there.
        OSError: a page cannot be written.
    """
    folder, out = Path(folder), Path(out)
    results = sorted(p for p in folder.iterdir() if accepts(p)) if folder.is_dir() else []
    if results:
        sources = None if low is None else tuple(find_scans(low))
        rows = [_page(p, out, low=sources, degradation=degradation, checkpoint=checkpoint) for p in results]
        rows += _failures(folder, {row.name for row in rows})
    elif (folder / "scores.csv").is_file():
        rows = _evaluated(folder, out)
    else:
        raise ScanError(
            f"{folder}: expected results of medsr upscale (NAME.ome.zarr) or the folder of medsr evaluate "
            "(scores.csv), found neither; give the folder of --out"
        )
    columns: list[str] = []
    for row in rows:
        columns += [name for name in row.figures if name not in columns]
    looked = sum(bool(row.flags or row.failed) for row in rows)
    count = f"{len(rows)} scan{'s' if len(rows) != 1 else ''}"
    said = f"{count}, {looked} with something to look at."
    index = out / INDEX
    title = f"Super-resolution report: {count}"  # a folder may be called as a patient
    write_text(
        index, render("index.html.j2", title=title, index="", subtitle="", rows=rows, columns=columns, said=said)
    )
    return index


def _page(result: Path, out: Path, **given: Any) -> Row:
    name = scan_name(result)
    page = _safe_page(out, name)
    try:
        made: Summary = summarized(result, out=page, index=INDEX, **given)
    except Exception as error:  # noqa: BLE001 - law 6: one bad result costs its own row; its reason is in it
        places = (result, page, given.get("checkpoint"), *(given.get("low") or ()))
        return Row(name, failed=reason_of(error, name, places))
    return Row(made.name, quote(page.name), made.thumbnail, made.figures, made.flags)


def _safe_page(out: Path, name: str) -> Path:
    """The page of a scan; one that is called index is not the index."""
    page = out / f"{name}.html"
    return page if page.name.lower() != INDEX else page.with_name("index_scan.html")


def _failures(folder: Path, known: set[str]) -> list[Row]:
    """Scans that the batch could not do, as its log says."""
    log = folder / "batch.jsonl"
    rows = []
    for line in log.read_text("utf-8").splitlines() if log.is_file() else ():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("status") == "failed" and said.get("scan") not in known:
            name = str(said.get("scan"))
            rows.append(Row(name, failed=pathless(str(said.get("reason", "")), name)))
    return rows


def _evaluated(folder: Path, out: Path) -> list[Row]:
    """A page with the picture and the scores of each scan that `evaluate` measured."""
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
        scores = list(csv.DictReader(stream))
    rows = []
    for name in dict.fromkeys(str(score.get("scan")) for score in scores):
        own = [score for score in scores if score.get("scan") == name]
        picture = folder / f"{name}.png"
        large, small = (_shrunk(picture, most) for most in (PICTURE, THUMBNAIL))
        page = _safe_page(out, fit_for_files(name))
        text = render(
            "evaluated.html.j2",
            title=name,
            index=INDEX,
            subtitle="Degraded, computed again, and measured against the original",
            picture=large,
            scores=_scores(own),
        )
        write_text(page, text)
        figures = {label: _cell(own[-1].get(key)) for key, label in SCORES.items() if own[-1].get(key)}
        rows.append(Row(name, quote(page.name), small, {"method": str(own[-1].get("method")), **figures}))
    failed = folder / "failed.csv"
    if failed.is_file():
        with failed.open(newline="", encoding="utf-8") as stream:
            failures = [(str(r.get("scan")), str(r.get("reason"))) for r in csv.DictReader(stream)]
        rows += [Row(name, failed=pathless(reason, name)) for name, reason in failures]
    return rows


def _scores(scores: Sequence[dict[str, Any]]) -> Table:
    names = [name for name in scores[0] if name not in ("scan", "method")]
    rows = [
        [SCORES.get(n, n.replace("_", " ")), *(_cell(score.get(n)) for score in scores)]
        for n in names
        if any(score.get(n) for score in scores)
    ]
    return Table("Agreement with the original", ["", *(str(score.get("method")) for score in scores)], rows)


def _cell(value: Any) -> str:
    try:
        return number(float(value), 4)
    except (TypeError, ValueError):
        return str(value or "–")


def _shrunk(path: Path, most: int) -> str:
    """A picture as a data URI; "" where there is none that can be read."""
    out = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((most, most), Image.Resampling.LANCZOS)
            image.convert("RGB").save(out, "PNG", optimize=True)
    except (OSError, ValueError):
        return ""
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
