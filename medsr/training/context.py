"""measure_halos: at the end of a run, how much context its weights need; kept on their card."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medsr.checkpoint import load_checkpoint, save_checkpoint
from medsr.methods.attention import AttentionRecipe
from medsr.methods.network import Network
from medsr.methods.seams import MARGIN, measured_halo, with_margin
from medsr.recipe import Recipe
from medsr.training.data import Portion, Shelf
from medsr.training.foreground import ForegroundMap
from medsr.training.runfolder import BEST, LAST, PIXEL
from medsr.training.survey import Split
from medsr.training.validation import Crop
from medsr.transforms import cut_patch

__all__ = ["asks_for_a_measured_halo", "measure_halos"]

log = logging.getLogger("medsr.training")

LARGEST = {2: 256, 3: 64}
"""Coarse samples of a crop to measure on along each axis, at most, in 2D and 3D."""

COUNT = 2
"""Crops of scans that were learned from, and as many of those held out."""


def asks_for_a_measured_halo(recipe: Recipe) -> bool:
    """Whether the halo of the weights is measured at the end of the run."""
    return isinstance(recipe.method, AttentionRecipe) and recipe.method.halo != "exact"


def measure_halos(
    folder: Path, recipe: Recipe, shelf: Shelf, split: Split, crops: Sequence[Crop], *, device: torch.device
) -> None:
    """Measure the halo of the weights of a run that came to its end, where its method asks for it.

    Measured on crops of scans that were learned from and of those held out, degraded by the middle of the recipe's
    range, where they show most; with real pairs on the held-out crops. Weights that are marked as finished are left
    alone; those of a run that was stopped before this have the exact reach of the layers until it is gone on with.
    """
    if not asks_for_a_measured_halo(recipe):
        return
    lows: list[Tensor] = []
    for name in (BEST, LAST, PIXEL):
        if not (folder / name).exists():
            continue
        kept = load_checkpoint(folder / name)
        if kept.card.finished:
            continue
        network = kept.network.to(device)
        lows = lows or _largest(list(_lows(network, recipe, shelf, split, crops)))
        halos = [measured_halo(network, low.to(device)) for low in lows]
        halo = with_margin(network, halos)
        if name == BEST:
            log.info("%s", _line(network, halos, halo))
        card = kept.card.model_copy(update={"halo": halo})
        save_checkpoint(folder / name, network, kept.recipe, card, widths=kept.widths)


def _line(network: Network, halos: Sequence[tuple[int, ...]], halo: tuple[int, ...]) -> str:
    found = [max(along) for along in zip(*halos, strict=True)]
    return (
        f"halo measured on {len(halos)} crops: {found} coarse samples change a result by less than half a gray level "
        f"of 65,536; used: {list(halo)} (times {MARGIN:g}), the layers reach {list(network.halo)}"
    )


def _largest(lows: list[Tensor]) -> list[Tensor]:
    """Those of the most samples: a smaller crop could not tell, and then asks for the exact reach."""
    most = max(low.numel() for low in lows)
    return [low for low in lows if low.numel() == most]


def _lows(network: Network, recipe: Recipe, shelf: Shelf, split: Split, crops: Sequence[Crop]) -> Iterator[Tensor]:
    """Coarse crops, (1, 1, *size)."""
    if recipe.data.pairs is not None:
        yield from (crop.low for crop in crops[: 2 * COUNT])
        return
    for portions in (split.validation, split.training):
        picks = [portions[i * (len(portions) - 1) // max(1, COUNT - 1)] for i in range(min(COUNT, len(portions)))]
        for pick in picks:
            yield from _crops_of(pick, network, recipe, shelf, COUNT // len(picks))


def _crops_of(portion: Portion, network: Network, recipe: Recipe, shelf: Shelf, count: int) -> Iterator[Tensor]:
    scan, factor = shelf.open(portion), network.factor
    shape = scan.shape[-len(factor) :]
    # Four times the reach tells it, however far it is; no scan need be larger.
    size = tuple(
        min(n // f, LARGEST[len(factor)], 4 * h + 16) * f for n, f, h in zip(shape, factor, network.halo, strict=True)
    )
    for number, place in enumerate(ForegroundMap(scan, size).places(count)):
        patch = cut_patch(scan, place, size, margin=(0,) * len(size))
        spacing = patch.meta["spacing_um"]
        degradation = recipe.degradation.center(factor, None if spacing is None else tuple(spacing)[-len(factor) :])
        yield degradation(torch.as_tensor(patch).as_subclass(Tensor)[None], torch.Generator().manual_seed(number))
