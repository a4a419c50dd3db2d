"""Widths learn beside the network how far its estimates are off, and leave it as it is."""

# ruff: noqa: ARG002 (the engine names what it passes)

from __future__ import annotations

import copy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from medsr.card import TrainedWidths
from medsr.checkpoint import Checkpoint
from medsr.methods.widths import SHARE, Widths, both_ends_loss
from medsr.precision import float32_only
from medsr.recipe import Recipe, TrainingRecipe
from medsr.training.callbacks import follow_
from medsr.training.phases import Phase, clip_gradient, packed, parts_of, scheduled

__all__ = ["LearnedBeside", "first_widths"]

FEATURES, BLOCKS = 16, 2

RATE = 3e-3
"""Adam's step size at the start of a phase; it falls as the schedule of the recipe says."""

LARGEST = 1.0
"""Norm of a gradient, at most."""

TAKEN = 2
"""One in so many patches of a batch is learned from: so few parameters need no more, and a step costs little."""

BORDER = 4
"""Coarse samples at the edge of a patch that are left out: there the network knows less than it will in a scan."""


def first_widths(before: Checkpoint | None, recipe: Recipe) -> tuple[Widths, int]:
    """Those of the weights a phase starts from, where they have some of the same size, else new ones; and their steps.

    The random numbers of the training are not touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        new = Widths(recipe.method.factor, features=FEATURES, blocks=BLOCKS)
    told = None if before is None else before.card.widths
    if before is None or before.widths is None or told is None:
        return new, 0
    if told.share != SHARE or repr(before.widths) != repr(new):
        return new, 0
    return before.widths.train().requires_grad_(True), told.steps


class LearnedBeside(Callback):
    """Widths that take a step of their own after each step of a phase, on half of its patches and its estimates.

    They learn by the pinball loss of both ends, in float32. What they are given carries no gradient, their optimizer
    and their averaged weights are their own, and no random number is drawn: the network is, bit for bit, what it is
    without them. A step whose gradient is not finite is left out.

    Args:
        first: what they start from, and the steps that took; at 0 the floors start at the median error.
        training: of the recipe.

    Attributes:
        kept: the averaged ones, in evaluation mode.

    References:
        A. N. Angelopoulos et al., 2022, quantile regression, arXiv:2202.05265.
    """

    def __init__(self, first: tuple[Widths, int], training: TrainingRecipe) -> None:
        self._learning, self._steps = packed(first[0]), first[1]
        self._training = training
        self.kept = copy.deepcopy(self._learning).eval().requires_grad_(False)
        self._optimizer = torch.optim.Adam(self._learning.parameters(), RATE)

    @property
    def facts(self) -> TrainedWidths:
        """What a card says of them."""
        return TrainedWidths(features=self.kept.features, blocks=self.kept.blocks, share=SHARE, steps=self._steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move to where the training is."""
        self._learning.to(pl_module.device)
        self.kept.to(pl_module.device)
        self._optimizer.load_state_dict(self._optimizer.state_dict())  # which moves its moments too

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a step."""
        phase: Phase = pl_module  # type: ignore[assignment]
        self._set_rate(batch_idx / phase.steps)
        parts = [
            _without_border(*(patches[: -(-len(low) // TAKEN)].float() for patches in (low, estimate, high)))
            for (low, high, *_), estimate in zip(parts_of(batch, self._training), phase.estimates, strict=True)
        ]
        if self._steps == 0:
            self._set_floors(trainer, parts)
        with float32_only(pl_module.device):
            total = torch.zeros((), device=pl_module.device)
            for low, estimate, high in parts:
                loss = both_ends_loss(self._learning, low, estimate, high) / len(parts)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        if self._agreed(trainer):
            clip_gradient(self._optimizer, LARGEST)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        follow_(self.kept, self._learning, decay=self._training.ema, step=batch_idx)
        self._steps += 1
        phase.figures["widths_loss"] = float(total)

    def state_dict(self) -> dict[str, Any]:
        """Weights, averaged weights, the optimizer's state, steps."""
        return {
            "learning": self._learning.state_dict(),
            "kept": self.kept.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on learning."""
        self._learning.load_state_dict(state_dict["learning"])
        self.kept.load_state_dict(state_dict["kept"])
        self._optimizer.load_state_dict(state_dict["optimizer"])
        self._steps = int(state_dict["steps"])

    def _set_rate(self, done: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * scheduled(self._training.schedule, done)

    def _set_floors(self, trainer: Trainer, parts: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        off = torch.cat([(high - estimate).abs().flatten() for _, estimate, high in parts]).median()
        level = max(float(trainer.strategy.reduce(off, reduce_op="mean")), 1e-6)
        for widths in (self._learning, self.kept):
            widths.set_floor(level)

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether the gradient is finite; that of several processes is first replaced by their mean."""
        gradients = [p.grad for p in self._learning.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        if trainer.world_size > 1:
            flat = torch.as_tensor(trainer.strategy.reduce(flat, reduce_op="mean"))
            pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))
        return bool(torch.isfinite(flat).all())


def _without_border(low: Tensor, estimate: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same without the border of the patch, along axes that are long enough to spare it."""
    coarse: list[slice] = [slice(None)] * low.ndim
    fine = list(coarse)
    for axis in range(2, low.ndim):
        size, factor = low.shape[axis], high.shape[axis] // low.shape[axis]
        cut = BORDER if size >= 6 * BORDER else 0
        coarse[axis], fine[axis] = slice(cut, size - cut), slice(cut * factor, (size - cut) * factor)
    return low[tuple(coarse)], estimate[tuple(fine)], high[tuple(fine)]
