"""The run folder: whose it is, and which weights are kept under which name."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from medsr.card import TrainingCard
from medsr.checkpoint import load_checkpoint, save_checkpoint
from medsr.methods.network import Network
from medsr.methods.widths import Widths
from medsr.recipe import Recipe
from medsr.training.errors import TrainingError
from medsr.training.phases import PhaseName
from medsr.training.resume import RESUME

__all__ = ["BEST", "LAST", "PIXEL", "claim_folder", "finish_folder", "is_finished", "keep_weights"]

log = logging.getLogger("medsr.training")

BEST, LAST, PIXEL = "best.ckpt", "last.ckpt", "pixel.ckpt"

ASTRAY_DB = 3.0
"""An adversarial phase costs some PSNR by design; more than this below cubic is said."""


def claim_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run; it is made once scans and recipe are known to be of use.

    Raises:
        TrainingError: it holds weights of a run already.
    """
    traces = [name for name in (BEST, LAST, RESUME) if (folder / name).exists()]
    if traces and not resume:
        raise TrainingError(
            f"{folder}: expected a new run folder, found {' and '.join(traces)} of a run; go on with it (--resume), or "
            "choose another folder (--out)"
        )
    if resume:
        log.info("%s: no state to go on with yet; beginning", folder)


def keep_weights(
    folder: Path,
    network: Network,
    recipe: Recipe,
    *,
    widths: Widths | None,
    card: TrainingCard,
    phase: PhaseName,
    best: bool,
) -> None:
    """Write weights that can be used, and the widths that learned beside them: `last.ckpt` always; `best.ckpt` where
    they are it, and then in the pixel phase `pixel.ckpt` too, where another phase follows, which starts from it."""
    training = recipe.training
    # The path it started from is nobody else's business.
    recipe = recipe.model_copy(update={"training": training.model_copy(update={"start": None})})
    save_checkpoint(folder / LAST, network, recipe, card, widths=widths)
    if not best:
        return
    save_checkpoint(folder / BEST, network, recipe, card, widths=widths)
    if phase == "pixel" and training.adversarial_steps + training.correction_steps > 0:
        part = folder / f".{PIXEL}.part"
        shutil.copyfile(folder / BEST, part)
        part.replace(folder / PIXEL)


def is_finished(folder: Path) -> bool:
    """Whether the weights are marked as those of a run that came to its end."""
    return all(load_checkpoint(folder / name).card.finished for name in (BEST, LAST))


def finish_folder(folder: Path, *, adversarial: bool) -> None:
    """Mark the weights of a run that came to its end; warn where the game went astray."""
    for name in (BEST, LAST):
        kept = load_checkpoint(folder / name)
        if not kept.card.finished:
            card = kept.card.model_copy(update={"finished": True})
            save_checkpoint(folder / name, kept.network, kept.recipe, card, widths=kept.widths)
    figures = load_checkpoint(folder / BEST).card.validation
    known = {"psnr_db", "psnr_db_cubic"} <= figures.keys()
    behind = figures["psnr_db_cubic"] - figures["psnr_db"] if known else 0.0
    if adversarial and behind > ASTRAY_DB:
        log.warning(
            "%s: the adversarial phase ended %.1f dB below cubic; look at the pictures, lower adversarial_weight or "
            "content.weight, or use %s", folder, behind, PIXEL
        )  # fmt: skip
