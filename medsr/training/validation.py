"""Validation: held-out crops are degraded, upscaled, measured and pictured, always with cubic beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsr.methods.interpolation import interpolate
from medsr.metrics import psnr_db, ssim
from medsr.pictures import comparison_png
from medsr.recipe import Recipe
from medsr.training.data import Portion, Shelf
from medsr.training.foreground import ForegroundMap
from medsr.transforms import cut_patch

__all__ = ["Crop", "held_out_crops", "measure", "picture"]

MOST = {2: 256, 3: 48}
"""Fine samples of a crop along each axis, at most, in 2D and 3D."""

BORDER = 4
"""Coarse samples at the edge of a crop that are not measured: there the crop knows less than a scan would."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A held-out crop: (1, 1, *size) each, unit intensity.

    Attributes:
        low: the fine crop, degraded by the middle of the recipe's range.
        cubic: the coarse crop, interpolated.
        high: the truth.
    """

    low: Tensor
    cubic: Tensor
    high: Tensor


def held_out_crops(portions: Sequence[Portion], recipe: Recipe, shelf: Shelf) -> list[Crop]:
    """The crops a run is validated on; from each scan where it shows most, the same in every run of the recipe.

    Raises:
        ValueError: the degradation is in micrometers and a spacing is unknown.
    """
    count = recipe.data.validation_crops
    picks = np.unique(np.linspace(0, len(portions) - 1, min(count, len(portions))).round().astype(int))
    crops: list[Crop] = []
    for order, pick in enumerate(picks):
        share = count // len(picks) + (order < count % len(picks))
        scan = shelf.open(portions[pick])
        size = _crop_size(scan.shape, recipe)
        for place in ForegroundMap(scan, size).places(share):
            crops.append(_crop(cut_patch(scan, place, size, margin=(0,) * len(size)), recipe, seed=len(crops)))
    return crops


@torch.no_grad()
def measure(network: nn.Module, crops: Sequence[Crop], device: torch.device) -> tuple[list[Tensor], dict[str, float]]:
    """Estimates of all crops, and the means of PSNR (dB, of the unit interval) and SSIM, with cubic's beside."""
    estimates = [network(crop.low.to(device)).float().cpu() for crop in crops]
    rows = [_scores(estimate, crop) for estimate, crop in zip(estimates, crops, strict=True)]
    return estimates, {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def picture(path: Path, crop: Crop, estimate: Tensor, *, title: str = "") -> None:
    """A PNG of low, cubic, estimate and truth of a crop with one window, and errors.

    Of a 3D crop the middle plane is shown; where only z is refined, the middle section of z and x, for planes across z
    would show nothing of it.
    """
    refined = [fine > coarse for coarse, fine in zip(crop.low.shape[2:], crop.high.shape[2:], strict=True)]
    axis = 1 if refined == [True, False, False] else 0
    panels = {
        name: _middle_plane(image, axis)
        for name, image in (("low", crop.low), ("cubic", crop.cubic), ("estimate", estimate), ("high", crop.high))
    }
    high = panels["high"]
    notes = {name: f"{psnr_db(panels[name], high, data_range=1.0):.2f} dB" for name in ("cubic", "estimate")}
    comparison_png(path, panels, reference="high", errors=("cubic", "estimate"), notes=notes, title=title)


def _crop_size(shape: tuple[int, ...], recipe: Recipe) -> tuple[int, ...]:
    factor = recipe.method.factor
    most = MOST[len(factor)]
    return tuple(min(n, most) // f * f for n, f in zip(shape[-len(factor) :], factor, strict=True))


def _crop(patch: Tensor, recipe: Recipe, *, seed: int) -> Crop:
    spacing = patch.meta["spacing_um"]  # type: ignore[attr-defined]  # a MetaTensor
    factor = recipe.method.factor
    fine = None if spacing is None else tuple(spacing)[-len(factor) :]
    high = torch.as_tensor(patch).as_subclass(Tensor)[None]
    low = recipe.degradation.center(factor, fine)(high, torch.Generator().manual_seed(seed))
    return Crop(low, interpolate(low, factor, kind="cubic"), high)


def _scores(estimate: Tensor, crop: Crop) -> dict[str, float]:
    scores = {}
    for name, image in (("", estimate), ("_cubic", crop.cubic)):
        inner, true = (_inner(t, crop.low) for t in (image, crop.high))
        scores[f"psnr_db{name}"] = psnr_db(inner, true, data_range=1.0)
        scores[f"ssim{name}"] = ssim(inner, true, data_range=1.0)
    return scores


def _inner(image: Tensor, low: Tensor) -> NDArray[np.float32]:
    """The image without its border, where it is large enough to have one."""
    region: list[slice] = []
    for coarse, fine in zip(low.shape[2:], image.shape[2:], strict=True):
        cut = BORDER * (fine // coarse) if coarse >= 6 * BORDER else 0
        region.append(slice(cut, fine - cut))
    return np.asarray(image[0, 0][tuple(region)].numpy(), np.float32)


def _middle_plane(image: Tensor, axis: int) -> NDArray[np.float32]:
    """The image, or of a 3D one its middle across an axis."""
    plane = image[0, 0]
    return np.asarray((plane.select(axis, plane.shape[axis] // 2) if plane.ndim == 3 else plane).numpy(), np.float32)
