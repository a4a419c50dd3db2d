"""start_from: the weights of an earlier run in a new network, where all that decides their meaning is the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medsr.checkpoint import TrainedUpscaler, load_upscaler
from medsr.methods.ikc import IkcNetwork
from medsr.methods.network import Network
from medsr.recipe import Recipe
from medsr.training.errors import TrainingError

__all__ = ["expect_blurs", "start_from"]

Spacing = tuple[float | None, ...]

BLUR = (
    "psf", "fwhm_um", "fwhm_samples", "axial_fwhm_um", "anisotropy", "na", "wavelength_um", "refractive_index",
)  # fmt: skip
"""Settings of a degradation that decide which blurs codes are made for."""

APART = 0.02
"""Share of a range of widths by which its ends may differ between two draws of the same family, for each spacing."""

TURNED = 5.0
"""How much further the ends may differ where blurs are turned, for few of them lie along an axis."""


def start_from(run: Path, network: Network, recipe: Recipe, *, spacings: Sequence[Spacing | None]) -> None:
    """Load the weights of `training.start` into a new network.

    Predictor and corrector of an IKC do not count as trained until a correction phase of the new run has begun.

    Args:
        run: checkpoint or run folder.
        network: as the recipe builds it.
        recipe: of the new run.
        spacings: fine spacings of its scans.

    Raises:
        TrainingError: settings of the network, the intensity line, or the blurs, patches and kernels of an IKC differ.
        CheckpointError: no checkpoint there, or one of another factor.
        ValueError: as `KernelCode.learn`.
    """
    start = load_upscaler(run, factor=recipe.method.factor)
    if repr(start.network) != repr(network):
        raise TrainingError(
            f"{run}: training.start: expected weights of the recipe's network, found others "
            f"({_differences(repr(start.network), repr(network))}); set method.kind and its settings as that run had "
            "them, or leave training.start out"
        )
    _check_line(run, start, recipe)
    if isinstance(network, IkcNetwork) and isinstance(start.network, IkcNetwork):
        _check_blurs(run, start.network, start.recipe, network, recipe, spacings)
    try:
        network.load_state_dict(start.network.state_dict())
    except RuntimeError as error:
        raise TrainingError(
            f"{run}: training.start: expected weights of the recipe's network, found others ({start!r}); set "
            "method.kind and the sizes of the network as that run had them"
        ) from error
    if isinstance(network, IkcNetwork):
        network.trained.zero_()


def expect_blurs(network: IkcNetwork, recipe: Recipe, spacings: Sequence[Spacing | None]) -> None:
    """Tell a new IKC the blurs of a recipe; where they are one only, which no correction asks for, it knows none.

    Raises:
        ValueError: as `KernelCode.learn`.
    """
    if recipe.training.correction_steps or recipe.degradation.blur_varies(network.factor):
        network.expect(recipe.degradation, spacings, patch=_coarse_patch(recipe), seed=recipe.seed)


def _coarse_patch(recipe: Recipe) -> list[int]:
    return [p // f for p, f in zip(recipe.data.patch, recipe.method.factor, strict=True)]


def _check_line(run: Path, start: TrainedUpscaler, recipe: Recipe) -> None:
    """Refuse another intensity line: weights and what they learned are in units of it."""
    old, new = start.recipe.intensity, recipe.intensity
    if old != new:
        lines = ["that of each file" if r.black is None else f"black {r.black:g} white {r.white:g}" for r in (old, new)]
        raise TrainingError(
            f"{run}: training.start: expected weights for the recipe's intensity line, found others ({lines[0]}, not "
            f"{lines[1]}); set intensity.black and intensity.white as that run had them, or leave training.start out"
        )


def _check_blurs(
    run: Path, old: IkcNetwork, old_recipe: Recipe, new: IkcNetwork, recipe: Recipe, spacings: Sequence[Spacing | None]
) -> None:
    """Refuse other blurs or patches than the codes of an IKC were made for; kernels of another size are in its repr."""
    before, now = old_recipe.degradation, recipe.degradation
    differ = [
        f"degradation.{name} {_said(getattr(before, name))}, not {_said(getattr(now, name))}"
        for name in BLUR
        if getattr(before, name) != getattr(now, name)
    ]
    expect_blurs(new, recipe, spacings)
    patch = _coarse_patch(recipe)
    if old.coder.known and old.patch.tolist() != patch:
        differ.append(f"patches of {old.patch.tolist()} coarse samples, not {patch}")
    if not differ:  # the same micrometers are other samples where the spacing is another
        tolerance = APART * len(set(spacings)) * (TURNED if now.anisotropy > 1 else 1.0)
        ends = [(c.widths.amin(0), c.widths.amax(0)) for c in (old.coder, new.coder)]
        span = (ends[0][1] - ends[0][0]).maximum(ends[1][1] - ends[1][0])
        for name, before_end, now_end in zip(("narrowest", "widest"), *ends, strict=True):
            if bool(((before_end - now_end).abs() > tolerance * span + 1e-3).any()):
                differ.append(
                    f"{name} blur {_widths(before_end.tolist())} coarse samples, not {_widths(now_end.tolist())}"
                )
    if differ:
        raise TrainingError(
            f"{run}: training.start: expected an ikc that was told the recipe's blurs, found others "
            f"({'; '.join(differ)}); its codes stand for those, so set them as that run had them (and take scans of "
            "its spacing), or leave training.start out"
        )


def _said(value: object) -> str:
    return "none" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


def _widths(widths: list[float]) -> str:
    return " x ".join(f"{width:.3g}" for width in widths)


def _differences(old: str, new: str) -> str:
    """Settings that differ between the descriptions of two networks, such as "window=15, not window=7"."""
    if old.partition("(")[0] != new.partition("(")[0]:
        return f"{old}, not {new}"
    ours, theirs = (dict(re.findall(r"(\w+)=(\([^()]*\)|[^,()]+)", text)) for text in (new, old))
    names = [name for name in theirs if theirs[name] != ours.get(name)] + [name for name in ours if name not in theirs]
    return ", ".join(f"{name}={theirs.get(name)}, not {ours.get(name)}" for name in names) or f"{old}, not {new}"
