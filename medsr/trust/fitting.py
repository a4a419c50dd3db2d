"""fit_widths: teach a small network how far the estimates of an upscaler lie from the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medsr.degradation import Degradation, DegradationRange
from medsr.engines import REFERENCE, build_engine
from medsr.io import NoImageError, Source, find_all, read_scan
from medsr.io.digest import input_digest
from medsr.io.pseudonyms import unnamed
from medsr.methods.widths import SHARE, Widths, both_ends_loss
from medsr.plan import Device, torch_device
from medsr.scan import ScanError
from medsr.tiles import plan_tiles
from medsr.trial import Trial, survey_of
from medsr.trust.distances import gain_of, trained_in
from medsr.upscaler import Upscaler
from medsr.upscaling import read_tiles

__all__ = ["FittedWidths", "fit_widths"]

Note = Callable[[str], None]

PATCH = {2: (32, 32), 3: (8, 20, 20)}
"""Coarse samples of a patch."""
BATCH = 16
TRIES = 8
"""Places tried for a patch with foreground in it, which most are to have."""
FRONT = 0.1
"""Share of foreground from which on a patch counts as one of foreground."""


@dataclass(frozen=True, slots=True)
class FittedWidths:
    """Widths and what they learned from.

    Attributes:
        widths: the network, in evaluation mode, on the CPU.
        learned_from: SHA-256 of the scans.
        loss_before, loss: pinball loss of both ends over all patches, in unit intensity: at the start and at the end.
    """

    widths: Widths
    learned_from: tuple[str, ...]
    loss_before: float
    loss: float


class _Patches(NamedTuple):
    """Scan, estimate and truth of patches, in the units the upscaler's network works in."""

    low: Tensor
    estimate: Tensor
    truth: Tensor


def fit_widths(
    upscaler: Upscaler,
    paths: Path | str | Sequence[Path | str],
    *,
    steps: int = 1000,
    seed: int = 0,
    share: float = SHARE,
    patches: int = 256,
    features: int = 16,
    blocks: int = 2,
    learning_rate: float = 3e-3,
    degradation: Degradation | DegradationRange | None = None,
    device: Device = "auto",
    note: Note | None = None,
) -> FittedWidths:
    """Learn the lower and the upper quantile of the truth around the estimates of an upscaler, which stays as it is.

    Patches of the scans, made coarse as `evaluate` does, are upscaled once; on them `Widths` learn by the pinball loss
    at share / 2 and 1 - share / 2. Scans the upscaler itself has learned from will do, but its errors there are smaller
    than elsewhere, which the calibration corrects in size and not in place: other scans are better. Scans for the
    calibration must not be among them. On the same machine the same seed gives the same weights.

    Args:
        upscaler: makes the estimates; frozen.
        paths: files and folders with fine scans.
        steps: of Adam, on 16 patches each.
        seed: of the patches, the start and the order.
        share: of samples that are to lie outside the intervals before any calibration.
        patches: in all, as many of each scan.
        features, blocks: of `Widths`.
        learning_rate: at the start; it falls to zero along a cosine.
        degradation: as in `evaluate`; None: that of the checkpoint's recipe, else block means.
        device: where it learns.
        note: receives a line for each event worth a user's eye.

    Raises:
        ValueError: no patch could be cut, or a share not between 0 and 1.
        ScanError: no scan was found.

    References:
        A. N. Angelopoulos et al., 2022, quantile regression, arXiv:2202.05265.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected above 0 and below 1, found {share:g}")
    note = note or _silent
    place = torch_device(device)
    if degradation is None and (found := trained_in(upscaler)):
        degradation = found[0].recipe.degradation
    sources = find_all(paths)
    learned, trials = list[str](), list[tuple[Source, Trial]]()
    for source in sources:
        try:
            trials.append((source, Trial(read_scan(source), tuple(upscaler.factor), degradation)))
        except (NoImageError, ScanError) as error:
            note(f"{source.name}: left out: {unnamed(str(error), source)}")
    generator = torch.Generator().manual_seed(seed)
    cut = list[_Patches]()
    size = _patch_size([trial for _, trial in trials], len(upscaler.factor))
    each = math.ceil(patches / max(1, len(trials)))
    for source, trial in trials:
        cut += _cut(upscaler, trial, size, each, generator, place)
        learned.append(input_digest(source))
    if not cut:
        raise ValueError("fit_widths: expected scans with patches free of holes, found none; give others")
    whole = _Patches(*(torch.cat(part).to(place) for part in zip(*cut, strict=True)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = Widths(tuple(upscaler.factor), features=features, blocks=blocks).to(place)
    off = float((whole.truth - whole.estimate).abs().median())
    widths.set_floor(max(off, 1e-6))
    before = _loss_over(widths, whole, share)
    _learn(widths, whole, steps=steps, share=share, learning_rate=learning_rate, generator=generator)
    after = _loss_over(widths, whole, share)
    note(f"widths: pinball loss {before:.3g} to {after:.3g} over {len(whole.low)} patches of {len(learned)} scans")
    return FittedWidths(widths.cpu().eval().requires_grad_(False), tuple(sorted(learned)), before, after)


def _patch_size(trials: Sequence[Trial], dims: int) -> tuple[int, ...]:
    """Coarse samples of a patch: the usual, or what the smallest scan has."""
    shapes = [trial.low.shape[-dims:] for trial in trials]
    return tuple(min(wanted, *found) for wanted, *found in zip(PATCH[dims], *shapes, strict=True))


def _cut(
    upscaler: Upscaler,
    trial: Trial,
    size: tuple[int, ...],
    count: int,
    generator: torch.Generator,
    device: torch.device,
) -> list[_Patches]:
    """Patches of one scan, with the whole halo of the upscaler around them where the scan has it."""
    adapted = upscaler.adapt(trial.low)
    engine = build_engine(adapted, REFERENCE, device=device)
    survey, gain, dims = survey_of(trial), gain_of(adapted), len(size)
    lead = len(trial.low.shape) - dims
    halo = (0,) * lead + tuple(adapted.halo)
    found = []
    # In the order of the frames, each of which is made coarse once.
    for corner in sorted(_corners(trial, size, count, survey.threshold, generator)):
        target = tuple(
            slice(c * f, (c + s) * f) for c, s, f in zip(corner, (1,) * lead + size, trial.factor, strict=True)
        )
        (tile,) = plan_tiles(trial.low.shape, trial.factor, halo=halo, tile=(1,) * lead + size, target=target)
        loaded = read_tiles(trial.low, [tile], dims=dims)
        estimate = engine(loaded.low, tile.keep[-dims:], [tuple(s.start for s in tile.read)])
        inner = tuple(
            slice(c - r.start, c - r.start + s) for c, r, s in zip(corner[lead:], tile.read[lead:], size, strict=True)
        )
        truth = torch.from_numpy(trial.scan.intensity.to_unit(trial.scan.read(target)).reshape(estimate.shape))
        if loaded.holes[0] is None and bool(torch.isfinite(truth).all()):
            low = loaded.low[(slice(None), slice(None), *inner)]
            found.append(_Patches(low * gain, estimate * gain, truth * gain))
    return found


def _corners(
    trial: Trial, size: tuple[int, ...], count: int, threshold: float, generator: torch.Generator
) -> list[tuple[int, ...]]:
    """First coarse samples of patches along all axes; most have foreground in them."""
    lead = len(trial.low.shape) - len(size)
    room = [n - s + 1 for n, s in zip(trial.low.shape, (1,) * lead + size, strict=True)]
    corners = []
    for number in range(count):
        for _ in range(TRIES if number % 4 else 1):  # each fourth wherever it falls
            corner = tuple(int(torch.randint(r, (1,), generator=generator)) for r in room)
            region = tuple(
                slice(c * f, (c + s) * f) for c, s, f in zip(corner, (1,) * lead + size, trial.factor, strict=True)
            )
            unit = trial.scan.intensity.to_unit(trial.scan.read(region))
            if np.mean(unit > threshold) >= FRONT:
                break
        corners.append(corner)
    return corners


def _learn(
    widths: Widths,
    patches: _Patches,
    *,
    steps: int,
    share: float,
    learning_rate: float,
    generator: torch.Generator,
) -> None:
    # Losses are in unit intensity, where residuals are small; Adam does not mind.
    optimizer = torch.optim.Adam(widths.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    widths.train()
    dims = len(widths.factor)
    for _ in range(steps):
        pick = torch.randint(len(patches.low), (BATCH,), generator=generator)
        flips = [2 + axis for axis in range(dims) if torch.rand(1, generator=generator) < 0.5]
        low, estimate, truth = (part[pick.to(part.device)].flip(flips) for part in patches)
        optimizer.zero_grad()
        loss = both_ends_loss(widths, low, estimate, truth, share=share)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(widths.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _loss_over(widths: Widths, patches: _Patches, share: float) -> float:
    losses = []
    for first in range(0, len(patches.low), BATCH):
        low, estimate, truth = (part[first : first + BATCH] for part in patches)
        losses.append(float(both_ends_loss(widths, low, estimate, truth, share=share)) * len(low))
    return sum(losses) / len(patches.low)


def _silent(_line: str) -> None:
    """The default of `note`."""
