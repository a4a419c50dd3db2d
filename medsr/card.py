"""TrainingCard: what a network was trained on; check_scan says where a scan lies outside of it."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from medsr.scan import Scan

__all__ = ["TrainingCard", "TrainingInput", "check_scan"]

Range = tuple[float, float]

KINDS = {"i": "integers", "u": "integers", "f": "floats"}


class TrainingInput(BaseModel):
    """One scan a network was trained on, without its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name_hash: str
    sha256: str
    shape: tuple[int, ...]


class TrainingCard(BaseModel):
    """What a network was trained on, and how well it did.

    Attributes:
        black, white: smallest and largest of the training scans' intensity lines, in stored values.
        spacing_um: smallest and largest coarse spacing for each axis of the factor, in micrometers; None: unknown.
        dtype: of the stored values.
        inputs: hashes and shapes of the training scans.
        held_out: the same of the scans it was validated on; with a single scan, of which rows were held out, that one.
        versions: of the software.
        steps: done in each phase.
        validation: figures on the held-out scans, by name.
        pairs: of real pairs: how many, and how they lay on each other (largest shift and residual in coarse samples,
            lowest correlation, gain and offset of `high = gain * low + offset` in stored values); empty: none.
        finished: the training ran to its end.
        halo: coarse samples of context that were measured to be enough, where the exact reach of the layers is far
            more; None: the exact reach.
        parents: SHA-256 of the weights that the training started from, or that were blended.
        blend: share of the second of two parents that were blended; None: it was trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    black: Range
    white: Range
    spacing_um: tuple[Range | None, ...] | None = None
    dtype: str
    inputs: tuple[TrainingInput, ...] = ()
    held_out: tuple[TrainingInput, ...] = ()
    versions: dict[str, str] = {}
    steps: dict[str, int] = {}
    validation: dict[str, float] = {}
    pairs: dict[str, float] = {}
    finished: bool = False
    halo: tuple[int, ...] | None = None
    parents: tuple[str, ...] = ()
    blend: float | None = None

    @field_validator("dtype")
    @classmethod
    def _numbers(cls, value: str) -> str:
        if value not in np.sctypeDict or np.dtype(value).kind not in KINDS:
            raise ValueError(f"expected a type of numbers such as uint16, found {value!r}")
        return value


def check_scan(card: TrainingCard, scan: Scan) -> list[str]:
    """What of a scan lies outside what a network was trained for; one sentence a doubt, none if all is well.

    A spacing counts as outside beyond a tenth of the trained range, an intensity line when its length differs more
    than tenfold.
    """
    doubts = []
    axes = scan.grid.axes[-len(card.spacing_um) :] if card.spacing_um else ()
    for axis, trained in zip(axes, card.spacing_um or (), strict=False):
        spacing = scan.grid.spacing_of(axis)
        if trained is None:
            continue
        if spacing is None:
            doubts.append(f"spacing along {axis} is unknown; the checkpoint was trained for {_range(trained)} um")
        elif not trained[0] / 1.1 <= spacing <= trained[1] * 1.1:
            doubts.append(
                f"spacing along {axis} is {spacing:.4g} um, outside the {_range(trained)} um the checkpoint was "
                "trained for; judge the result with care or train on such scans"
            )
    here, there = KINDS[scan.intensity.dtype.kind], KINDS[np.dtype(card.dtype).kind]
    if here != there:
        doubts.append(f"the scan holds {here} ({scan.intensity.dtype}), the checkpoint was trained on {card.dtype}")
    span = abs(scan.intensity.white - scan.intensity.black)
    spans = sorted(abs(w - b) for w, b in zip(card.white, card.black, strict=True))
    if not spans[0] / 10 <= span <= spans[1] * 10:
        doubts.append(
            f"black to white spans {span:.4g} stored values, more than tenfold off the {_range(spans)} the checkpoint "
            "was trained for; its noise may differ as much"
        )
    return doubts


def _range(values: Range | list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
