"""The pictures of an audit: a field with what became of its structures; what was kept, and which maps tell it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medsr.pictures import (
    FAINT,
    FRAME,
    GAP,
    INK,
    MARGIN,
    PAPER,
    Window,
    draw_scale_bar,
    gray,
    gray_window,
    number,
    resampled,
    save,
    shortened,
)
from medsr.trust.fields import Ladder
from medsr.trust.judging import Candidate, verdicts_of
from medsr.trust.planting import Planted

if TYPE_CHECKING:
    from medsr.trust.audit_tables import Audit

__all__ = ["curves_png", "field_png"]

Array = NDArray[Any]

LEAST = 5
"""Structures that must be seen in the truth for a share of them to be drawn."""
SIDE = 256
"""Fine samples along the side of the part that is shown."""
PANEL = 448
LABEL, FOOT, IN_A_ROW = 62, 64, 4
KEPT, LOST, BACK, INVENTED = (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167)
"""Color-blind safe (Okabe and Ito); in print the shapes tell them apart."""
COLORS = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e6",
    "legend.frameon": False,
}


def field_png(
    path: Path,
    done: Planted,
    ladders: Sequence[Ladder],
    *,
    low: Array,
    estimates: Mapping[str, tuple[Array, Array]],
    candidates: Sequence[Candidate],
    title: str,
    spacing_um: tuple[float | None, float | None],
) -> None:
    """Write the part of a field with most structures: truth before and after, coarse, and each estimate, marked.

    Args:
        path: the file; replaced when it exists, and complete whenever it exists.
        done: the field.
        ladders: what was planted.
        low: the coarse field, (y, x), unit intensity.
        estimates: of the plain and the altered scan in the field, (y, x), unit intensity, by method; the second of
            them is shown.
        candidates: of these estimates, in samples of the field.
        title: headline.
        spacing_um: of fine samples along y and x; None: unknown, no scale bar.
    """
    box = _busiest(done)
    planes: dict[str, Array] = {"truth": done.plain, "truth, altered": done.altered, "coarse": low}
    planes |= {name: altered for name, (_, altered) in estimates.items()}
    window = gray_window(done.altered[box])
    rows = math.ceil(len(planes) / IN_A_ROW)
    columns = min(IN_A_ROW, len(planes))
    shown = _size(box)
    pitch = shown[1] + 2 * FRAME + GAP, shown[0] + 2 * FRAME + GAP + LABEL
    head = MARGIN + 44
    image = Image.new("RGB", (2 * MARGIN + columns * pitch[0] - GAP, head + rows * pitch[1] + FOOT + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    large, medium, small = (ImageFont.load_default(size=s) for s in (28, 22, 17))
    pen.text((MARGIN, MARGIN - 6), shortened(title, large, image.width - 2 * MARGIN), INK, font=large)
    marks = _marks(done, ladders, estimates, candidates)
    for index, (name, plane) in enumerate(planes.items()):
        x, y = MARGIN + index % IN_A_ROW * pitch[0], head + index // IN_A_ROW * pitch[1]
        corner = x + FRAME, y + LABEL + FRAME
        pen.text((x, y), shortened(name, medium, pitch[0] - GAP), INK, font=medium)
        note = _note(name, marks, box)
        pen.text((x, y + 29), shortened(note, small, pitch[0] - GAP), FAINT, font=small)
        panel = _panel(plane, box, done.plain.shape, shown, window)
        for kind, place, radius in marks.get(name, ()):
            _mark(ImageDraw.Draw(panel), kind, place, radius, box, shown)
        image.paste(panel, corner)
        if index == 0 and spacing_um[1] is not None:
            draw_scale_bar(pen, corner, shown, (box[1].stop - box[1].start) * spacing_um[1])
    _legend(pen, (MARGIN, image.height - FOOT - MARGIN // 2), window, box, small)
    save(image, path)


def curves_png(path: Path, made: Audit) -> None:
    """Write share kept by contrast, share back and invented, and ROC areas of the maps by method.

    Args:
        path: the file; replaced when it exists, and complete whenever it exists.
        made: an audit with at least one structure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
        _draw_kept(left, made)
        _draw_areas(right, made)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _draw_kept(axes: Any, made: Audit) -> None:
    for index, method in enumerate(made.methods):
        mine = [row for row in made.kept if row["method"] == method and row["kind"] == "all" and row["cnr"] != "all"]
        rows = drawn_rows(mine)
        x, y = ([row[key] for row in rows] for key in ("cnr", "kept"))
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axes.plot(x, y, marker=marker, color=color, label=method, linewidth=1.5)
    axes.set_xlabel("contrast planted, standard deviations of the surroundings")
    axes.set_ylabel(f"share kept of those seen in the truth (if {LEAST} are)")
    axes.set_ylim(-0.02, 1.02)


def drawn_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a summary whose share of kept structures rests on enough of them to be drawn."""
    return [row for row in rows if row["seen"] >= LEAST]


def _draw_areas(axes: Any, made: Audit) -> None:
    names = list(made.maps)
    drawn = False
    for index, method in enumerate(made.methods):
        offset = 0.7 * ((index + 0.5) / len(made.methods) - 0.5)
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        for at, name in enumerate(names):
            found = made.area(method, name)
            if found is None or found.reason:
                continue
            y = len(names) - 1 - at - offset
            if math.isfinite(found.low):
                axes.plot([found.low, found.high], [y, y], color=color, linewidth=1.5)
            axes.plot(
                found.value, y, marker, color=color, markerfacecolor=color if math.isfinite(found.low) else "none"
            )
            drawn = True
    if not drawn:
        axes.text(0.5, 0.5, "too few were invented to say", ha="center", va="center", transform=axes.transAxes)
    axes.axvline(0.5, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(names)), [_wrapped(name) for name in reversed(names)])
    axes.set_ylim(-0.6, max(0.6, len(names) - 0.4))
    axes.set_xlim(0, 1)
    axes.set_xlabel("ROC area, invented against real: 0.5 tells nothing\n95 % interval over scans; hollow: none")


def _wrapped(name: str) -> str:
    return name.replace(": ", ":\n", 1)


def _busiest(done: Planted) -> tuple[slice, slice]:
    """The part of a field, at most 256 x 256 samples, with most structures."""
    high, wide = (min(SIDE, n) for n in done.plain.shape)
    places = [each.position for each in (*done.planted, *done.removed)]
    best, most = (0, 0), -1
    for y, x in places:
        top = int(np.clip(y - high / 2, 0, done.plain.shape[0] - high))
        left = int(np.clip(x - wide / 2, 0, done.plain.shape[1] - wide))
        count = sum(top <= a < top + high and left <= b < left + wide for a, b in places)
        if count > most:
            best, most = (top, left), count
    return slice(best[0], best[0] + high), slice(best[1], best[1] + wide)


def _size(box: tuple[slice, slice]) -> tuple[int, int]:
    high, wide = (s.stop - s.start for s in box)
    scale = PANEL / max(high, wide)
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _panel(
    plane: Array, box: tuple[slice, slice], size: Sequence[int], shown: tuple[int, int], window: Window
) -> Image.Image:
    """The part of a plane that is shown; a coarse one with its samples as blocks."""
    cells = [n // m for n, m in zip(size, plane.shape, strict=True)]
    crop = np.repeat(np.repeat(plane, cells[0], 0), cells[1], 1)[box] if max(cells) > 1 else plane[box]
    return Image.fromarray(gray(resampled(np.asarray(crop, np.float32), shown), window))


Marks = list[tuple[str, tuple[float, float], float]]


def _marks(
    done: Planted,
    ladders: Sequence[Ladder],
    estimates: Mapping[str, tuple[Array, Array]],
    candidates: Sequence[Candidate],
) -> dict[str, Marks]:
    """What is drawn on each panel: (what, place in the field, radius in samples)."""
    steps = {ladder.kind: min(ladder.steps) for ladder in ladders}
    marks: dict[str, Marks] = {name: [] for name in ("truth", "truth, altered", *estimates)}
    for name, structures in (("planted", done.planted), ("removed", done.removed)):
        for each in structures:
            radius = 0.5 * each.length / steps[each.kind] + 4
            marks["truth, altered" if name == "planted" else "truth"].append((name, each.position, radius))
    corner = done.field.rows.start, done.field.columns.start
    for verdict in verdicts_of(done, ladders, estimates):
        if verdict.outcome in ("kept", "lost", "back"):
            there = verdict.structure
            place = there.position[0] - corner[0], there.position[1] - corner[1]
            marks[verdict.method].append((verdict.outcome, place, 0.5 * there.length / steps[there.kind] + 4))
    for one in candidates:
        if one.invented:
            marks[one.method].append(("invented", one.position, 0.5 * one.size / steps[one.kind] + 4))
    return marks


def _note(name: str, marks: Mapping[str, Marks], box: tuple[slice, slice]) -> str:
    inside = [kind for kind, (y, x), _ in marks.get(name, ()) if _holds(box, y, x)]
    if name == "truth":
        return f"{inside.count('removed')} to be removed (squares)"
    if name == "truth, altered":
        return f"{inside.count('planted')} planted (circles)"
    if name == "coarse":
        return "what the methods are given"
    words = [f"{inside.count(kind)} {kind}" for kind in ("kept", "lost", "back", "invented")]
    return ", ".join(words)


def _holds(box: tuple[slice, slice], y: float, x: float) -> bool:
    return bool(box[0].start <= y < box[0].stop and box[1].start <= x < box[1].stop)


def _mark(
    pen: ImageDraw.ImageDraw,
    kind: str,
    place: tuple[float, float],
    radius: float,
    box: tuple[slice, slice],
    shown: tuple[int, int],
) -> None:
    if not _holds(box, *place):
        return
    scale = shown[0] / (box[0].stop - box[0].start)
    y, x = ((p + 0.5 - s.start) * scale for p, s in zip(place, box, strict=True))
    _shape(pen, kind, x, y, max(7.0, radius * scale))


def _shape(pen: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float) -> None:
    around = (x - r, y - r, x + r, y + r)
    if kind in ("kept", "planted"):
        pen.ellipse(around, outline=KEPT, width=2)
    elif kind == "lost":
        pen.ellipse(around, outline=LOST, width=2)
        pen.line((x - r * 0.7, y + r * 0.7, x + r * 0.7, y - r * 0.7), fill=LOST, width=2)
    elif kind in ("back", "removed"):
        pen.rectangle(around, outline=BACK, width=2)
    else:
        pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], outline=INVENTED, width=2)


def _legend(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], window: Window, box: tuple[slice, slice], font: Any
) -> None:
    x, y = place
    words = {
        "kept": "planted and kept",
        "lost": "planted, lost",
        "back": "taken out of the truth, and back",
        "invented": "invented: the truth shows less than half of it",
    }
    for kind, text in words.items():
        _shape(pen, kind, x + 9, y + 10, 8)
        pen.text((x + 26, y), text, INK, font=font)
        x += 50 + round(font.getlength(text))
    high, wide = (s.stop - s.start for s in box)
    legend = (
        f"{high} x {wide} fine samples; {number(window[0])} is black and {number(window[1])} white (unit intensity)."
    )
    pen.text((place[0], y + 28), legend, FAINT, font=font)
