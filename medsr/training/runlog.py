"""What a run says: rows in log.jsonl, curves for TensorBoard, a progress bar with the time left."""

# ruff: noqa: ARG002 (the engine names what it passes)

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from medsr.training.phases import Phase

__all__ = ["Report", "RunLog"]

log = logging.getLogger("medsr.training")

ROWS_BETWEEN_VALIDATIONS = 10
"""Loss rows written from one validation to the next."""


class RunLog:
    """The log of a run; on a process that is not the first it does nothing.

    A row is one JSON object: "phase", "step" (steps done in it), "seconds" (of training, over all its pieces) and
    figures. Rows after the point a run is gone on from are dropped, so that no step is there twice.

    Args:
        run: run folder.
        begun: (phase, steps done in it) the run goes on from; None: it begins.
        pixel_steps: steps before those of the phase that follows on TensorBoard's axis.
        active: whether this process writes.

    Attributes:
        active: as given.
    """

    def __init__(self, run: Path, *, begun: tuple[str, int] | None, pixel_steps: int, active: bool) -> None:
        self._file = run / "log.jsonl"
        self._offsets = {"pixel": 0, "adversarial": pixel_steps, "correction": pixel_steps}
        self._board: Any = None
        self.active = active
        self._seconds = 0.0
        if active:
            kept = [] if begun is None else self._kept_rows(begun)
            self._seconds = max((float(row["seconds"]) for row in kept), default=0.0)
            part = self._file.with_suffix(".part")
            part.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            part.replace(self._file)
            self._board = _tensorboard(run / "tensorboard", None if begun is None else self._at(*begun))
        self._started = time.monotonic()

    def row(self, phase: str, step: int, **figures: Any) -> None:
        """Add a row; what is not finite becomes null. Numbers go to TensorBoard too."""
        if not self.active:
            return
        seconds = round(self._seconds + time.monotonic() - self._started, 3)
        plain = {name: _plain(value) for name, value in figures.items()}
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"phase": phase, "step": step, "seconds": seconds, **plain}) + "\n")
        for name, value in plain.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{phase}/{name}", value, self._at(phase, step))

    def close(self) -> None:
        """Write what TensorBoard has not yet."""
        if self._board is not None:
            self._board.close()

    def _at(self, phase: str, step: int) -> int:
        return self._offsets[phase] + step

    def _kept_rows(self, begun: tuple[str, int]) -> list[dict[str, Any]]:
        kept = []
        for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # torn by a crash
                continue
            if self._at(row["phase"], row["step"]) <= self._at(*begun):
                kept.append(row)
        return kept


class Report(Callback):
    """Loss rows between validations, and on a terminal a bar with the time left.

    Args:
        runlog: where rows go.
        every: steps between validations.
    """

    def __init__(self, runlog: RunLog, *, every: int) -> None:
        self._runlog = runlog
        self._between = max(1, every // ROWS_BETWEEN_VALIDATIONS)
        self._sums: dict[str, float] = {}
        self._count = 0
        self._bar: Any = None
        self._task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        phase: Phase = pl_module  # type: ignore[assignment]
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(phase.name, total=phase.steps, figures="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the step's figures; write their means now and then."""
        phase: Phase = pl_module  # type: ignore[assignment]
        self._count += 1
        for name, value in phase.figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        done = batch_idx + 1
        if done % self._between == 0:
            means = {name: value / self._count for name, value in self._sums.items()}
            self._runlog.row(phase.name, done, **means)
            self._sums, self._count = {}, 0
        if self._bar is not None:
            figures = " ".join(f"{name} {value:.4g}" for name, value in phase.figures.items() if "loss" in name)
            self._bar.update(self._task, completed=done, figures=figures)

    def say(self, line: str) -> None:
        """A line for the person at the terminal, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        elif self._runlog.active:
            log.info("%s", line)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar down."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar down."""
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        """Sums since the last row."""
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on summing."""
        self._sums, self._count = dict(state_dict["sums"]), int(state_dict["count"])

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[figures]}"), console=Console(stderr=True), transient=True)


def _tensorboard(folder: Path, purge: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter
    return writer(str(folder), purge_step=None if purge is None else purge + 1)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
