"""blend_checkpoints: two trained networks become the one between them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from medsr.card import TrainingCard
from medsr.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_upscaler, save_checkpoint
from medsr.methods.widths import Widths
from medsr.version import __version__

__all__ = ["blend_checkpoints"]

log = logging.getLogger("medsr.blending")

Range = tuple[float, float]
Entry = TypeVar("Entry")


def blend_checkpoints(a: str | Path, b: str | Path, *, alpha: float, out: str | Path) -> Path:
    """Write a checkpoint whose weights lie between those of two others: (1 - alpha) A + alpha B.

    Widths that learned beside both networks are blended alike, for those of B went on from A's; the blend has to be
    calibrated for itself. Where only one of them has some, or others, the result has none.

    With A trained on pixels and B trained on from A against an adversary, alpha goes from faithful to crisp without
    training again; the figures go from A's to B's. Between networks that do not come from each other the weights in
    between mean nothing, which is logged as a warning.

    Args:
        a, b: run folder (`best.ckpt`, else `last.ckpt`) or checkpoint file, such as `run/pixel.ckpt` and `run`.
        alpha: share of B, 0..1; 0 and 1 give the weights of A and B, bit for bit.
        out: checkpoint file to write. Its card names both parents, the share, and the scans of both; it has no
            figures, for it was not measured.

    Returns:
        `out`.

    Raises:
        CheckpointError: as `load_checkpoint`; networks of different factors, layers or intensity lines; or `out` is
            there already.
        ValueError: alpha is not within 0..1.
        OSError: the file cannot be written.

    References:
        X. Wang et al., "ESRGAN: Enhanced super-resolution generative adversarial networks", 2018, section 3.4,
        doi:10.1007/978-3-030-11021-5_5.
    """
    out = Path(out)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a share of the second checkpoint within 0..1, found {alpha}")
    if out.exists():
        raise CheckpointError(f"{out}: expected a new file, found one that exists; choose another name")
    paths = tuple(load_upscaler(path).path for path in (a, b))
    first, second = map(load_checkpoint, paths)
    _check_alike(paths, first, second)
    if first.sha256 not in second.card.parents:
        log.warning(
            "%s: expected weights that were trained on from %s (%s), found parents %s; what lies between networks that "
            "do not come from each other means nothing: look at the result, or train B with training.start: A",
            paths[1], paths[0], first.sha256[:12], ", ".join(p[:12] for p in second.card.parents) or "none",
        )  # fmt: skip
    network = second.network
    network.load_state_dict(_between(first.network.state_dict(), second.network.state_dict(), alpha))
    widths = _widths(first, second, alpha)
    card = _card(first, second, alpha).model_copy(update={"widths": None if widths is None else second.card.widths})
    save_checkpoint(out, network, second.recipe, card, widths=widths)
    return out


def _widths(first: Checkpoint, second: Checkpoint, alpha: float) -> Widths | None:
    """The widths at `alpha`, where both have some that mean the same."""
    told = [
        None if each.card.widths is None else each.card.widths.model_dump(exclude={"steps"}) for each in (first, second)
    ]
    widths = second.widths
    if first.widths is None or widths is None or told[0] != told[1]:
        return None
    widths.load_state_dict(_between(first.widths.state_dict(), widths.state_dict(), alpha))
    return widths


def _check_alike(paths: Sequence[Path], first: Checkpoint, second: Checkpoint) -> None:
    """Refuse networks whose weights do not stand for the same things.

    Raises:
        CheckpointError: another factor, network or intensity line.
    """
    networks = (first.network, second.network)
    shapes = [{name: tuple(v.shape) for name, v in network.state_dict().items()} for network in networks]
    rules = [checkpoint.recipe.intensity for checkpoint in (first, second)]
    cure = "blend checkpoints of one recipe, such as pixel.ckpt and best.ckpt of a run with an adversarial phase"
    for what, (one, other) in {
        "factor": [",".join(map(str, network.factor)) for network in networks],
        "network": [repr(network) for network in networks],
        "intensity line": [_line(rule.black, rule.white) for rule in rules],
    }.items():
        if one != other:
            raise CheckpointError(f"{paths[1]}: expected {what} {one}, as {paths[0]} has it, found {other}; {cure}")
    if shapes[0] != shapes[1]:
        differing = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise CheckpointError(
            f"{paths[1]}: expected weights of the shapes of {paths[0]}, found {differing} of shape "
            f"{shapes[1].get(differing)} instead of {shapes[0].get(differing)}; {cure}"
        )


def _line(black: float | None, white: float | None) -> str:
    return "as the file says" if black is None else f"black {black:g} white {white:g}"


def _between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights at `alpha`; of whole numbers, such as counts of batches, those of the nearer network."""
    if alpha in (0, 1):
        return dict(second if alpha else first)
    nearer = second if alpha >= 0.5 else first
    return {
        name: torch.lerp(value.double(), second[name].double(), alpha).to(value.dtype)  # Wang et al. 2018, equation 4
        if value.is_floating_point()
        else nearer[name]
        for name, value in first.items()
    }


def _card(first: Checkpoint, second: Checkpoint, alpha: float) -> TrainingCard:
    """What both were trained on."""
    a, b = first.card, second.card
    halo = None if a.halo is None or b.halo is None else tuple(map(max, zip(a.halo, b.halo, strict=True)))
    return b.model_copy(
        update={
            "black": _hull(a.black, b.black),
            "white": _hull(a.white, b.white),
            "spacing_um": _spacings(a, b),
            "inputs": _once(a.inputs, b.inputs),
            "held_out": _once(a.held_out, b.held_out),
            "versions": {**b.versions, "medsr": __version__},
            "steps": {n: max(a.steps.get(n, 0), b.steps.get(n, 0)) for n in {**a.steps, **b.steps}},
            "validation": {},
            "finished": a.finished and b.finished,
            "halo": halo,
            "parents": (first.sha256, second.sha256),
            "blend": float(alpha),
            "texture": None if a.texture is None or b.texture is None else a.texture.joined(b.texture),
        }
    )


def _once(first: Sequence[Entry], second: Sequence[Entry]) -> tuple[Entry, ...]:
    return tuple(dict.fromkeys([*first, *second]))


def _hull(one: Range, other: Range) -> Range:
    return min(one[0], other[0]), max(one[1], other[1])


def _spacings(a: TrainingCard, b: TrainingCard) -> tuple[Range | None, ...] | None:
    if a.spacing_um is None or b.spacing_um is None:
        return a.spacing_um or b.spacing_um
    pairs = zip(a.spacing_um, b.spacing_um, strict=True)
    return tuple(one and other and _hull(one, other) for one, other in pairs)
