"""render_card: what a network was trained on, how well it did, and what it is not for; Markdown or HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from medsr.card import TrainingCard
from medsr.checkpoint import Checkpoint, TrainedUpscaler, load_checkpoint, load_upscaler
from medsr.degradation.range import DegradationRange
from medsr.recipe import AdversarialRecipe, Recipe

__all__ = ["CardFormat", "degradation_text", "render_card"]

CardFormat = Literal["markdown", "html"]

INPUTS_SHOWN = 50
"""Training scans listed by their hashes; of more the rest is counted, and stands in the checkpoint."""

Row = tuple[str, str]

STYLE = (
    "body{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;line-height:1.45}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.25rem .6rem;text-align:left;"
    "overflow-wrap:anywhere}code{font-size:.85em}"
)


def render_card(run: str | Path | Checkpoint, *, format: CardFormat = "markdown") -> str:  # noqa: A002
    """The model card of a run or a checkpoint: data, intended use, training, figures, limits, hashes.

    Nothing in it names a scan, a patient or a folder: scans are counted and listed by their hashes.

    Args:
        run: a run folder (its `best.ckpt`, else `last.ckpt`), a checkpoint file, or one that is loaded.
        format: "markdown", or "html", one page that needs nothing else.

    Raises:
        CheckpointError: as `load_upscaler`.
        ValueError: another format.

    References:
        M. Mitchell et al.: Model cards for model reporting, 2019, section 4, doi:10.1145/3287560.3287596.
    """
    checkpoint = run if isinstance(run, Checkpoint) else load_checkpoint(load_upscaler(run).path)
    name = TrainedUpscaler(checkpoint, path=Path("checkpoint")).name
    factor = " x ".join(map(str, checkpoint.recipe.method.factor))
    title = f"Model card: {name}, {factor} finer"
    sections = (
        ("Data", _data(checkpoint), ""),
        ("Intended use", (), _use(checkpoint)),
        ("Training", _training(checkpoint, name), ""),
        ("Figures", _figures(checkpoint.card), _figures_note(checkpoint.card)),
        ("Limits", (), _limits(checkpoint)),
        ("Hashes", _hashes(checkpoint), ""),
    )
    if format == "markdown":
        return _markdown(title, sections)
    if format == "html":
        return _html(title, sections)
    raise ValueError(f"format: expected markdown or html, found {format!r}")


def degradation_text(recipe: Recipe) -> str:
    """How coarse scans were made of fine ones, in words."""
    if recipe.data.pairs is not None:
        return "none: real pairs of coarse and fine scans"
    return _degraded(recipe.degradation)


def _degraded(degradation: DegradationRange) -> str:
    sampling = {
        "area": "mean over each coarse sample",
        "point": "one fine sample for each coarse one",
        "cubic": "cubic with antialiasing",
    }[degradation.sampling]
    said = degradation.model_dump(exclude_defaults=True, exclude={"sampling", "second"})
    parts = [sampling, *(f"{name} {_ends(value)}" for name, value in said.items())]
    if not any(getattr(degradation, n) for n in ("photons", "read_noise", "local_variance", "salt_pepper")):
        parts.append("no noise")
    if degradation.second is not None:
        second = degradation.second.model_dump(exclude_none=True)
        parts.append("a second pass with " + ", ".join(f"{name} {_ends(value)}" for name, value in second.items()))
    return ", ".join(parts)


def _ends(value: Any) -> str:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        low, high = value
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _data(checkpoint: Checkpoint) -> Iterable[Row]:
    card, recipe = checkpoint.card, checkpoint.recipe
    yield "scans learned from", f"{len(card.inputs)}{_shapes(card)}"
    yield "scans held out", str(len(card.held_out))
    yield "stored values", card.dtype
    yield "black", _ends(card.black)
    yield "white", _ends(card.white)
    if card.spacing_um is None:
        yield "coarse spacing", "unknown"
    else:
        ends = ["unknown" if s is None else _ends(s) for s in card.spacing_um]
        yield "coarse spacing, um (slowest axis first)", "; ".join(ends)
    if card.texture is not None:
        yield "noise of coarse scans, of black to white", _ends(card.texture.noise)
        yield "slope of their spectra", _ends(card.texture.slope)
        yield "share of foreground", _ends(card.texture.foreground)
    yield "made coarse by", card.degradation or degradation_text(recipe)
    for name, value in card.pairs.items():
        yield f"pairs: {name}", f"{value:.4g}"


def _shapes(card: TrainingCard) -> str:
    shapes = dict.fromkeys(" x ".join(map(str, found.shape)) for found in card.inputs)
    shown = ", ".join(list(shapes)[:3]) + (", ..." if len(shapes) > 3 else "")
    return f" (samples: {shown})" if shapes else ""


def _use(checkpoint: Checkpoint) -> Sequence[str]:
    factor = " x ".join(map(str, checkpoint.recipe.method.factor))
    return (
        f"Research: gray-scale scans like those above, {factor} finer along their last axes, to look at and to measure "
        "with the limits below in mind.",
        "For scans outside of the ranges above a warning is given by `medsr upscale`, with the reason.",
    )


def _training(checkpoint: Checkpoint, name: str) -> Iterable[Row]:
    card, recipe = checkpoint.card, checkpoint.recipe
    yield "method", name
    yield "parameters", f"{sum(p.numel() for p in checkpoint.network.parameters()):,}"
    told = recipe.method.model_dump(exclude={"kind"}, mode="json")
    yield "settings", ", ".join(f"{key} {value}" for key, value in told.items())
    yield "steps", ", ".join(f"{phase} {count:,}" for phase, count in card.steps.items()) or "not said"
    yield "came to its end", "yes" if card.finished else "no"
    yield "batch", str(recipe.training.batch * recipe.training.accumulate)
    yield "patch, fine samples", " x ".join(map(str, recipe.data.patch))
    yield "seed", str(recipe.seed)
    if card.blend is not None:
        yield "blend", f"{card.blend:g} of the second parent"
    yield "widths for intervals", _widths_text(card)
    yield "software", ", ".join(f"{package} {version}" for package, version in card.versions.items()) or "not said"


def _widths_text(card: TrainingCard) -> str:
    if card.widths is None:
        return "none learned beside it"
    share = 100 * card.widths.share
    return f"learned beside it over {card.widths.steps:,} steps, for {share:g} % outside before any calibration"


def _figures(card: TrainingCard) -> Iterable[Row]:
    for name, value in card.validation.items():
        yield name, f"{value:.4g}"


def _figures_note(card: TrainingCard) -> Sequence[str]:
    if not card.validation:
        return ("None are known: nothing was measured with these very weights. Run `medsr evaluate`.",)
    same = {found.sha256 for found in card.inputs} & {found.sha256 for found in card.held_out}
    lines = ["Means over held-out crops, made coarse as in training; cubic interpolation of the same crops beside."]
    if same:
        lines.append("The held-out rows belong to a scan that was learned from: the figures flatter.")
    elif len(card.held_out) < 5:
        lines.append(f"Only {len(card.held_out)} held out: the figures say little about other scans.")
    return lines


def _limits(checkpoint: Checkpoint) -> Sequence[str]:
    lines = [
        "Not for diagnosis. Not a medical device; no clinical validation was done.",
        "Detail finer than the coarse sampling is an estimate from training scans, not a measurement: it can be absent "
        "in the object, and what is absent in the training scans can be lost.",
        "Figures hold for scans like the held-out ones and for the degradation above; for others nothing is known.",
    ]
    recipe, card = checkpoint.recipe, checkpoint.card
    if isinstance(recipe.method, AdversarialRecipe) and card.steps.get("adversarial", 0):
        lines.append("Trained against an adversary: it is made to look real, and invents texture. Not for measuring.")
    if card.texture is None:
        lines.append("The texture of the training scans was not measured: scans of another texture are not noticed.")
    if card.spacing_um is None:
        lines.append("The spacing of the training scans is unknown: scans of another spacing are not noticed.")
    if not card.finished:
        lines.append("The training had not come to its end when these weights were kept.")
    return lines


def _hashes(checkpoint: Checkpoint) -> Iterable[Row]:
    card = checkpoint.card
    yield "weights, sha256", checkpoint.sha256
    for parent in card.parents:
        yield "parent weights, sha256", parent
    for kind, inputs in (("learned from", card.inputs), ("held out", card.held_out)):
        for found in inputs[:INPUTS_SHOWN]:
            yield f"{kind}, sha256", found.sha256
        if len(inputs) > INPUTS_SHOWN:
            yield f"{kind}", f"{len(inputs) - INPUTS_SHOWN} more, listed in the checkpoint"


Section = tuple[str, Iterable[Row], Sequence[str] | str]


def _markdown(title: str, sections: Iterable[Section]) -> str:
    parts = [f"# {title}"]
    for heading, rows, lines in sections:
        parts.append(f"## {heading}")
        table = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
        if table:
            parts.append("\n".join(["| | |", "|---|---|", *table]))
        if lines:
            parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _html(title: str, sections: Iterable[Section]) -> str:
    parts = [f"<h1>{escape(title)}</h1>"]
    for heading, rows, lines in sections:
        parts.append(f"<h2>{escape(heading)}</h2>")
        table = [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows]
        if table:
            parts.append("<table>\n" + "\n".join(table) + "\n</table>")
        if lines:
            parts.append("<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )
