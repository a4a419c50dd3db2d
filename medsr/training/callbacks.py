"""What happens beside the steps: averaged weights, random numbers, validation, and what is kept on disk."""

# ruff: noqa: ARG002 (the engine names what it passes)

from __future__ import annotations

import copy
import math
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from medsr.methods.ikc import IkcNetwork
from medsr.methods.network import Network
from medsr.training.correction import blindly
from medsr.training.phases import Phase
from medsr.training.runlog import Report, RunLog
from medsr.training.validation import Crop, measure, picture
from medsr.upscaler import Run

__all__ = ["Averaged", "Keeper", "RandomNumbers", "Validation", "follow_"]

PICTURED = 3
"""Held-out crops that are pictured, at most; a new validation replaces the pictures of the one before."""


@torch.no_grad()
def follow_(kept: nn.Module, learned: nn.Module, *, decay: float, step: int) -> None:
    """Move averaged weights towards those of step `step` (from 0).

    The average starts short and grows to `decay`, so that a short training is not held back by its first steps:
    after step n the decay is min(decay, (1 + n) / (10 + n)).
    """
    now = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    for average, weight in zip(kept.parameters(), learned.parameters(), strict=True):
        average.lerp_(weight, 1 - now)
    for held, buffer in zip(kept.buffers(), learned.buffers(), strict=True):
        held.copy_(buffer)


class Averaged(Callback):
    """The network whose weights are the exponential moving average of the training's (`follow_`); the one that is kept.

    Attributes:
        network: in eval mode, without gradients.
    """

    def __init__(self, network: Network, *, decay: float) -> None:
        self._decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move to where the training is."""
        self.network.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average towards the weights of this step."""
        phase: Phase = pl_module  # type: ignore[assignment]
        follow_(self.network, phase.network, decay=self._decay, step=batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return {"network": self.network.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the averaged weights over."""
        self.network.load_state_dict(state_dict["network"])


class RandomNumbers(Callback):
    """Saves and restores the states of the random generators, as plain lists that load without code."""

    def state_dict(self) -> dict[str, Any]:
        """The states of Python, NumPy, torch and each GPU."""
        version, numbers, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (others may use it)
        return {
            "python": [version, list(numbers), gauss],
            "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state().tolist(),
            "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        version, numbers, gauss = state_dict["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, position, has_gauss, cached = state_dict["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(torch.tensor(state_dict["torch"], dtype=torch.uint8))
        if torch.cuda.is_available() and len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([torch.tensor(state, dtype=torch.uint8) for state in state_dict["cuda"]])


class Validation(Callback):
    """Measures the averaged network on held-out crops, every so many steps and at the last.

    The first process measures; all of them hear the figures, so that they stop alike.

    Args:
        averaged: what is measured.
        crops: held-out crops.
        every: steps between validations.
        patience: validations without a better PSNR before the phase stops; None: never.
        runlog, report: where figures and lines go.
        pictures: folder of the PNGs.

    Attributes:
        figures: of the latest validation.
        best: highest mean PSNR of the phase so far, dB.
        is_best: whether the latest validation is that one.
        fresh: whether a validation belongs to the step that was just done.
    """

    def __init__(
        self,
        averaged: Averaged,
        crops: list[Crop],
        *,
        every: int,
        patience: int | None,
        runlog: RunLog,
        report: Report,
        pictures: Path,
    ) -> None:
        self._averaged, self._crops, self._every, self._patience = averaged, crops, every, patience
        self._runlog, self._report, self._pictures = runlog, report, pictures
        self._without_better = 0
        self.figures: dict[str, float] = {}
        self.best = -math.inf
        self.is_best = False
        self.fresh = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate, where it is time to."""
        phase: Phase = pl_module  # type: ignore[assignment]
        done = batch_idx + 1
        self.fresh = done % self._every == 0 or done == phase.steps
        if not self.fresh:
            return
        figures: dict[str, float] = {}
        if trainer.is_global_zero:
            network = self._averaged.network
            run: Run = network
            if phase.name == "correction" and isinstance(network, IkcNetwork):
                run = blindly(network)
            estimates, figures = measure(run, self._crops, pl_module.device)
            for number, crop in enumerate(self._crops[:PICTURED]):
                path = self._pictures / f"{phase.name}_{number}.png"
                picture(path, crop, estimates[number], title=f"{phase.name} step {done}, held-out crop {number}")
            self._runlog.row(phase.name, done, event="validation", **figures)
            self._report.say(_line(phase, done, figures))
        self.figures = trainer.strategy.broadcast(figures)
        psnr = self.figures["psnr_db"]
        self.is_best = psnr > self.best  # never where it is NaN
        self.best = psnr if self.is_best else self.best
        self._without_better = 0 if self.is_best else self._without_better + 1
        if self._patience is not None and self._without_better >= self._patience and done < phase.steps:
            self._report.say(f"{phase.name} phase stops at step {done}: no better validation in {self._patience}")
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What deciding needs."""
        return {"figures": self.figures, "best": self.best, "without_better": self._without_better}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on deciding."""
        self.figures, self.best = dict(state_dict["figures"]), float(state_dict["best"])
        self._without_better = int(state_dict["without_better"])


class Keeper(Callback):
    """Keeps what a run needs to be used and to be gone on with: at each validation, and when it is interrupted.

    Ctrl-C (and SIGTERM, which a scheduler sends) lets the step at work end, then keeps everything and stops. A second
    Ctrl-C stops at once; then the run is gone on with from what was kept last.

    Args:
        resume: file of the training's whole state.
        notes: what else belongs into that file, given the steps done and whether the phase is.
        keep: writes the weights that can be used, after a validation or an interruption.
        validation: tells whether there was one.

    Attributes:
        interrupted: whether the run was stopped from outside.
    """

    def __init__(
        self,
        resume: Path,
        *,
        notes: Callable[[int, bool], dict[str, Any]],
        keep: Callable[[int], None],
        validation: Validation,
    ) -> None:
        self._resume, self._notes, self._keep, self._validation = resume, notes, keep, validation
        self._before: dict[int, Any] = {}
        self._asked = False
        self._writing: dict[str, Any] = {}
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for interruptions."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in self._before:
                signal.signal(number, self._ask)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep everything, where it is time to."""
        phase: Phase = pl_module  # type: ignore[assignment]
        self.interrupted = trainer.strategy.reduce_boolean_decision(self._asked, all=False)
        done = batch_idx + 1
        if not (self._validation.fresh or self.interrupted):
            return
        if trainer.is_global_zero:
            self._keep(done)
        over = done == phase.steps or (trainer.should_stop and not self.interrupted)
        self._writing = self._notes(done, over)
        part = self._resume.with_suffix(".part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self._resume)
        if self.interrupted:
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the notes."""
        checkpoint["medsr"] = self._writing

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


def _line(phase: Phase, done: int, figures: dict[str, float]) -> str:
    return (
        f"{phase.name} step {done}/{phase.steps}: PSNR {figures['psnr_db']:.2f} dB (cubic "
        f"{figures['psnr_db_cubic']:.2f}), SSIM {figures['ssim']:.4f} (cubic {figures['ssim_cubic']:.4f})"
    )
