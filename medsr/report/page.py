"""write_report: one self-contained HTML page of a result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medsr.report import sections
from medsr.report.agreement import bland_altman_plot, quantities
from medsr.report.figures import gray_png
from medsr.report.intervals import mean_width, width_map
from medsr.report.invention import found_maps, parent_for
from medsr.report.layers import NO_INTERVALS, by, geometry, layers, overview, shown_maps, thumbnail
from medsr.report.maps import Map
from medsr.report.material import Given, Material, material_of
from medsr.report.noise import noise_table
from medsr.report.specks import speck_table
from medsr.scan import Scan
from medsr.version import __version__

if TYPE_CHECKING:
    from medsr.consistency.map import ConsistencyMap
    from medsr.degradation import Degradation, DegradationRange, SecondOrder

__all__ = ["Summary", "page_path", "render", "write_report"]

LIMIT = 5.0
"""Sigma at the ends of the color bar."""
WIDTH = "interval width"


@dataclass(frozen=True, slots=True)
class Summary:
    """What an index says of a page.

    Attributes:
        name: of the scan.
        path: of the page.
        thumbnail: of the estimate's region, a data URI.
        figures: by name, as text.
        flags: what needs a look, in words.
    """

    name: str
    path: Path
    thumbnail: str
    figures: dict[str, str]
    flags: tuple[str, ...] = field(default=())


def write_report(
    result: Path | str,
    *,
    out: Path | str,
    low: Given = None,
    truth: Scan | Path | str | None = None,
    degradation: Degradation | SecondOrder | DegradationRange | None = None,
    checkpoint: Path | str | None = None,
    maps: Mapping[str, Map] | None = None,
) -> Path:
    """Write a page that shows what a result holds, and how far the measured scan supports it.

    The page is one file without scripts or pictures from elsewhere: it opens from a file share, works by keyboard and
    prints. It names the scan as the result does, and shows of its history what the result records; no path, and
    nothing of a file's header.

    Args:
        result: NAME.ome.zarr of `upscale_folder`.
        out: the page, a name that ends in ".html"; or a folder, for NAME.html in it. Complete whenever it exists.
        low: the measured scan, its file, or a folder that holds it, where it is found by the hash that the result
            records; None: the page shows the result alone and says what is missing.
        truth: a finer measurement on the grid of the result.
        degradation: how the scan became coarse, for the consistency map; None: as the checkpoint says, else the mean.
        checkpoint: run or file of the method's weights: its degradation, and its model card for the page.
        maps: by title, such as "interval width" and "invention"; on the grid of the scan or of the result.

    Returns:
        the page.

    Raises:
        ScanError: the result, or a scan that was given, cannot be read.
        ValueError: shapes that do not fit.
        OSError: the page cannot be written.
    """
    return summarized(
        result, out=out, low=low, truth=truth, degradation=degradation, checkpoint=checkpoint, maps=maps
    ).path


def summarized(
    result: Path | str,
    *,
    out: Path | str,
    low: Given = None,
    truth: Scan | Path | str | None = None,
    degradation: Degradation | SecondOrder | DegradationRange | None = None,
    checkpoint: Path | str | None = None,
    maps: Mapping[str, Map] | None = None,
    index: str = "",
) -> Summary:
    """Write a page and say what an index needs of it; arguments as in `write_report`.

    Args:
        index: relative link back to the index; "": none.
    """
    material = material_of(result, low=low, truth=truth)
    card, known = _of_checkpoint(checkpoint, material)
    found = _consistency(material, degradation or known)
    parent = parent_for(material, checkpoint)
    doubts = found.doubts() if found is not None else ()
    made = material.provenance
    recorded = made.warnings if made else material.estimate.warnings
    said = "Recorded with the result: " if made else ""
    flags = [*material.notes, *parent.doubts, *map(_sentence, doubts), *_elsewhere(material, found)]
    flags += [f"{said}{line}" for line in recorded if line not in doubts]
    shown, absent = _maps(material, found, maps or {}, found_maps(material, parent, degradation or known))
    width = None if material.ends is None else mean_width(width_map(material.ends, material.values), material.view)
    page = page_path(out, material.name)
    text = render(
        "page.html.j2",
        title=material.name,
        index=index,
        material=material,
        subtitle=_subtitle(material),
        facts=_facts(material, found, width),
        warnings=flags,
        layers=layers(material, shown),
        overview=overview(material),
        geometry=geometry(material, found),
        maps=shown_maps(material, shown, found, absent),
        regions=sections.consistency_table(found, material) if found is not None else None,
        describe=_described(material, found),
        plots=[("Line profile", sections.profile(material)), *sections.curves(material)],
        agreement=bland_altman_plot(material),
        tables=_tables(material, found),
        provenance=_provenance(material),
        card=card,
    )
    write_text(page, text)
    small = gray_png(thumbnail(material.crops["estimate"]), material.close)
    return Summary(material.name, page, small, _figures(material, found, width), tuple(flags))


def _maps(
    material: Material,
    found: ConsistencyMap | None,
    given: Mapping[str, Map],
    suspected: tuple[Mapping[str, Map], Mapping[str, str]],
) -> tuple[dict[str, Map], dict[str, str]]:
    """Maps by title, those of the caller before those that were found; and by title why there is none."""
    shown, absent = dict[str, Map](), dict[str, str]()
    if found is not None:
        shown["consistency"] = _sigma(found)
    else:
        absent["consistency"] = "The measured scan was not given, so nothing can be compared."
    if material.ends is not None:
        shown[WIDTH] = width_map(material.ends, material.values)
    else:
        absent[WIDTH] = NO_INTERVALS
    return {**shown, **suspected[0], **given}, {**absent, **suspected[1]}


def _tables(material: Material, found: ConsistencyMap | None) -> dict[str, sections.Table | None]:
    """By name; None where a table is of no meaning."""
    return {
        "accuracy": sections.accuracy(material),
        "resolution": sections.resolutions(material),
        "quantities": quantities(material),
        "specks": speck_table(material, found=found),
        "noise": noise_table(material),
    }


def page_path(out: Path | str, name: str) -> Path:
    """The file of a page."""
    out = Path(out)
    return out if out.suffix.lower() in (".html", ".htm") else out / f"{name}.html"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medsr.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["version"] = __version__
    return environment


def render(template: str, **values: Any) -> str:
    """A page as text; everything is escaped, style and script stand in it."""
    here = Path(__file__).parent
    return (
        _environment()
        .get_template(template)
        .render(style=(here / "style.css").read_text("utf-8"), script=(here / "slider.js").read_text("utf-8"), **values)
    )


def write_text(path: Path, text: str) -> None:
    """Under another name first, so that the file is complete whenever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _consistency(material: Material, degradation: Any) -> ConsistencyMap | None:
    if material.low is None:
        return None
    from medsr.consistency.map import consistency_map

    return consistency_map(material.low, material.estimate, degradation=degradation)


def _of_checkpoint(checkpoint: Path | str | None, material: Material) -> tuple[str, Any]:
    """The model card as text, and the degradation that the method expects."""
    if checkpoint is None:
        return "", None
    from medsr.checkpoint import load_upscaler
    from medsr.trust.model_card import render_card

    upscaler = load_upscaler(checkpoint)
    known = None
    if material.low is not None:
        known = upscaler.adapt(material.low).found_degradation
    return render_card(checkpoint), known or upscaler.recipe.degradation


def _sigma(found: ConsistencyMap) -> Map:
    note = (
        "The estimate, degraded again, less the measured scan, in units of the expected noise. White agrees. Blue and "
        "red beyond 3 sigma contradict the measurement. Detail finer than the coarse samples never shows here."
    )
    return Map(found.z, diverging=True, limit=LIMIT, note=note)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _elsewhere(material: Material, found: ConsistencyMap | None) -> list[str]:
    """Said where no flagged region meets the shown plane."""
    if found is None or not found.regions or any(material.view.crosses(r.start, r.stop) for r in found.regions):
        return []
    if found.found == 1:
        return ["The flagged region lies in another plane than the shown one; the table says where."]
    which = "All" if found.found == len(found.regions) else f"The {len(found.regions)} worst"
    return [f"{which} flagged regions lie in other planes than the shown one; the table says where."]


def _described(material: Material, found: ConsistencyMap | None) -> str:
    """The figures of the whole scan; places as the axes of the maps count."""
    if found is None:
        return ""
    said = _sentence(replace(found, worst=None).describe())
    if found.worst is not None:
        where = sections.place_of(found.worst, material), sections.plane_said(found.worst, found, material)
        said += f" The window of greatest rms, {found.worst.z:.2f} sigma: {', '.join(where)}."
    return said


def _factor(material: Material) -> str:
    factor = material.view.factor
    if material.low is None and material.provenance is not None:
        factor = material.provenance.factor
    return " × ".join(map(str, factor))


def _method(material: Material) -> str:
    return material.provenance.method if material.provenance is not None else "an unknown method"


def _subtitle(material: Material) -> str:
    axes = "".join(material.estimate.grid.axes)[-len(_factor(material).split(" × ")) :]
    return f"{_factor(material)} finer along {', '.join(axes)}, by {_method(material)}"


def _spacing(scan: Scan) -> str:
    pairs = zip(scan.grid.axes, scan.grid.spacing_um or (), strict=False)
    said = [f"{a} {sections.number(s, 4)}" for a, s in pairs if s is not None]
    return f"{', '.join(said)} µm" if said else "spacing unknown"


def _facts(material: Material, found: ConsistencyMap | None, width: float | None) -> list[tuple[str, str, str]]:
    """(name, figure, small print)."""
    facts = []
    if material.low is not None:
        facts.append(("Measured", by(material.low.shape), _spacing(material.low)))
    facts.append(("Estimate", by(material.estimate.shape), _spacing(material.estimate)))
    if found is not None and found.samples:
        facts.append(("Consistency", f"{found.rms:.2f} σ rms", "1 for the true scene, less follows the noise"))
        facts.append(("Beyond 3 σ", sections.percent(found.beyond), "0.27 % expected of noise"))
        facts.append(("Flagged regions", f"{found.found:,}", "contradict the measured scan"))
    if width is not None and material.ends is not None:
        said = material.ends.words or "promise unknown"
        facts.append(("Interval, mean width", _width_said(material, width), f"mean over the shown plane; {said}"))
    scan = material.low or material.estimate
    place, looked = material.view.place(scan), material.view.looked_at(scan)
    if place:
        facts.append(
            ("Shown", place, f"the liveliest of {looked} planes looked at" if looked > 1 else "the only plane")
        )
    return facts


def _width_said(material: Material, width: float) -> str:
    return f"{sections.number(width)} {material.estimate.intensity.units or 'stored values'}"


def _figures(material: Material, found: ConsistencyMap | None, width: float | None) -> dict[str, str]:
    figures = {"size": by(material.estimate.shape), "finer": _factor(material)}
    if found is not None and found.samples:
        figures["rms, σ"] = f"{found.rms:.2f}"
        figures["beyond 3 σ"] = sections.percent(found.beyond)
        figures["flagged"] = f"{found.found:,}"
    if width is not None:
        figures["interval, mean width in the plane"] = _width_said(material, width)
    for row in sections.accuracy(material).rows:
        if row[0] == "estimate":
            figures["PSNR, dB"] = row[1]
    return figures


def _provenance(material: Material) -> list[tuple[str, str]]:
    known = material.provenance
    if known is None:
        return [("History", line) for line in material.estimate.history]
    options = ", ".join(f"{k} {v}" for k, v in known.options.items() if v is not None) or "none"
    return [
        ("Made by", f"medsr {known.version} on {known.device}"),
        ("Method", known.method),
        ("Method SHA-256", known.method_sha256),
        *(("Checkpoint SHA-256", sha256) for sha256 in known.checkpoints),
        ("Input SHA-256", known.input_sha256),
        ("Engine", str(known.engine).removeprefix("engine ")),
        ("Options", options),
        *((f"History {i}", line) for i, line in enumerate(known.history, start=1)),
    ]
