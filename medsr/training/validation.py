"""Validation: held-out crops are degraded (or real pairs), upscaled, measured and pictured, with cubic beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsr.methods.ikc import IkcNetwork
from medsr.methods.interpolation import interpolate
from medsr.methods.kernel_code import KERNEL_SIZE, blur_of, render_kernel
from medsr.metrics import psnr_db, ssim
from medsr.pictures import comparison_png
from medsr.recipe import IkcRecipe, Recipe
from medsr.scan import Scan
from medsr.training.data import Portion, Shelf
from medsr.training.foreground import ForegroundMap
from medsr.training.pair_patches import cut_pair
from medsr.transforms import cut_patch
from medsr.upscaler import Run

__all__ = ["Crop", "held_out_crops", "measure", "picture"]

MOST = {2: 256, 3: 48}
"""Fine samples of a crop along each axis, at most, in 2D and 3D."""

BORDER = 4
"""Coarse samples at the edge of a crop that are not measured: there the crop knows less than a scan would."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A held-out crop: (1, 1, *size) each, unit intensity.

    Attributes:
        low: the fine crop, degraded by the middle of the recipe's range, or, for a method that is told the blur, by
            one drawn from it; of a real pair what was measured.
        cubic: the coarse crop, interpolated.
        high: the truth.
        kernel: (1, *kernel size), the blur, for a method that is told it.
    """

    low: Tensor
    cubic: Tensor
    high: Tensor
    kernel: Tensor | None = None


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
        portion = portions[pick]
        scan = shelf.open(portion)
        coarse = None if portion.low is None else shelf.open(portion.low)
        size = _crop_size(scan.shape, recipe)
        for place in ForegroundMap(scan, size).places(share):
            if coarse is not None:
                crops.append(_paired_crop(coarse, scan, place, size, recipe))
                continue
            crops.append(_crop(cut_patch(scan, place, size, margin=(0,) * len(size)), recipe, seed=len(crops)))
    return crops


@torch.no_grad()
def measure(network: Run, crops: Sequence[Crop], device: torch.device) -> tuple[list[Tensor], dict[str, float]]:
    """Estimates of all crops, and the means of PSNR (dB, of the unit interval) and SSIM, with cubic's beside.

    An `IkcNetwork` is told the true blur; a function that finds it for itself (`blindly`) is not.
    """
    estimates = [_estimate(network, crop, device).float().cpu() for crop in crops]
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


def _estimate(network: Run, crop: Crop, device: torch.device) -> Tensor:
    low = crop.low.to(device)
    if isinstance(network, IkcNetwork) and crop.kernel is not None:
        return network.told_kernels(low, crop.kernel.to(device))
    return network(low)


def _crop(patch: Tensor, recipe: Recipe, *, seed: int) -> Crop:
    spacing = patch.meta["spacing_um"]  # type: ignore[attr-defined]  # a MetaTensor
    factor = recipe.method.factor
    fine = None if spacing is None else tuple(spacing)[-len(factor) :]
    high = torch.as_tensor(patch).as_subclass(Tensor)[None]
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(recipe.method, IkcRecipe):
        low = recipe.degradation.center(factor, fine)(high, generator)
        return Crop(low, interpolate(low, factor, kind="cubic"), high)
    degradation = recipe.degradation.sample(generator, factor, fine)
    size = recipe.method.kernel_size or KERNEL_SIZE[len(factor)]
    kernel = render_kernel(blur_of(degradation), factor, fine, size=size)[None]
    low = degradation(high, generator)
    return Crop(low, interpolate(low, factor, kind="cubic"), high, kernel)


def _paired_crop(low: Scan, high: Scan, place: tuple[int, ...], size: tuple[int, ...], recipe: Recipe) -> Crop:
    factor = recipe.method.factor
    both = cut_pair(low, high, place, size, factor=factor)
    coarse, fine = (torch.as_tensor(patch).as_subclass(Tensor)[None] for patch in both)
    return Crop(coarse, interpolate(coarse, factor, kind="cubic"), fine)


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
