"""The engine: where a training runs, and pytorch-lightning's Trainer without its banners."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from medsr.recipe import Recipe, TrainingRecipe
from medsr.training.errors import TrainingError
from medsr.training.phases import PhaseName

__all__ = ["Place", "build_trainer", "find_place", "quiet"]

log = logging.getLogger("medsr.training")

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training runs: on which device, and which of how many processes this is (torchrun says)."""

    device: torch.device
    rank: int
    world: int
    local_world: int


def find_place(training: TrainingRecipe) -> Place:
    """The device a recipe asks for, and what torchrun says of the processes.

    Raises:
        TrainingError: there is no GPU, or the precision needs one.
    """
    if training.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "training.device: expected a CUDA GPU that torch can use, found none; set it to auto or cpu"
        )
    cuda = torch.cuda.is_available() and training.device != "cpu"
    if training.precision == "fp16" and not cuda:
        raise TrainingError("training.precision: expected a CUDA GPU for fp16, found none; use bf16 or 32")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if cuda and world == 1 and torch.cuda.device_count() > 1:
        log.info("one of %d GPUs is used; torchrun --nproc-per-node N uses N", torch.cuda.device_count())
    index = int(os.environ.get("LOCAL_RANK", "0"))
    return Place(torch.device("cuda", index) if cuda else torch.device("cpu"), rank, world, local)


def build_trainer(place: Place, recipe: Recipe, name: PhaseName, *, callbacks: list[Callback], folder: Path) -> Trainer:
    """The Trainer of one phase."""
    strategy = "auto"
    if place.world > 1:  # each player's turn leaves the other's parameters unused
        strategy = "ddp" if name == "pixel" else "ddp_find_unused_parameters_true"
    return Trainer(
        accelerator="gpu" if place.device.type == "cuda" else "cpu",
        devices=place.local_world,
        num_nodes=place.world // place.local_world,
        strategy=strategy,
        precision=PRECISIONS[recipe.training.precision],
        max_epochs=1,  # the loader delivers every step of the phase
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


@contextmanager
def quiet(rank: int = 0) -> Iterator[None]:
    """No banners and tips of the engine; its warnings that do not concern a user are left out by their words.

    Of several processes only the first (rank 0) says what the run does.
    """
    names = ["pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"]
    if rank > 0:
        names.append(log.name)
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for words in (
                ".*does not have many workers.*",  # patches are cheap; the recipe sets the workers
                ".*GPU available but not used.*",  # the recipe says so
                ".*isinstance\\(treespec, LeafSpec\\).*",  # the engine and torch among themselves
            ):
                warnings.filterwarnings("ignore", message=words)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
