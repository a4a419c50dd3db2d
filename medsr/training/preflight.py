"""What is refused before the first step: paths that are not there, a game that could not be played."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import torch

from medsr.recipe import AdversarialRecipe, Recipe
from medsr.training.content import content_of
from medsr.training.errors import TrainingError
from medsr.training.phases import build_discriminator

__all__ = ["check_game", "check_paths", "is_out_of_memory"]

OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory", "allocate memory", "ALLOC_FAILED")
"""Words of torch where memory is exhausted and the error has no type of its own, as on the CPU."""


def check_paths(recipe: Recipe, *, begun: bool = False) -> None:
    """Refuse paths of a recipe where nothing is; a run that was begun needs its first weights no more.

    Raises:
        TrainingError: names the key and the nearest name that exists.
    """
    method = recipe.method
    named: list[tuple[str, str, Path | None]] = [
        ("data.folder", "a folder or file of scans", recipe.data.folder),
        ("data.pairs", "a folder with low and high", recipe.data.pairs),
        ("data.validation_folder", "a folder or file of scans", recipe.data.validation_folder),
        ("training.start", "a checkpoint or run folder", None if begun else recipe.training.start),
    ]
    if isinstance(method, AdversarialRecipe):
        named.append(("method.content.path", "a file of weights", method.content.path))
    for key, kind, path in named:
        if path is not None and not path.exists():
            raise TrainingError(f"{path}: expected {kind}, found nothing there; check {key}{_nearest(path)}")


def check_game(recipe: Recipe) -> None:
    """Judge a dummy patch and compare its features, so that what the adversarial phase lacks is said at once and not
    after the pixel phase.

    Raises:
        TrainingError: weights of the content loss are not to be had, or patch or batch are too small.
    """
    method = recipe.method
    if not isinstance(method, AdversarialRecipe) or recipe.training.adversarial_steps == 0:
        return
    patches = torch.linspace(0, 1, recipe.data.patch[-1]).expand(min(2, recipe.training.batch), 1, *recipe.data.patch)
    try:
        discriminator = build_discriminator(method, recipe.data.patch)
        content = content_of(method.content, discriminator=discriminator, gray=(0.5, 0.2))
        with torch.no_grad():
            discriminator(patches)
            if content is not None:
                content(patches, patches)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise TrainingError(str(error)) from error
        raise TrainingError(
            f"training.batch: expected at least 2 for a discriminator with batch normalization and patches of "
            f"{list(recipe.data.patch)}, found {recipe.training.batch}; raise it, enlarge data.patch, or set "
            "method.discriminator_norm: spectral"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine is exhausted."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _nearest(path: Path) -> str:
    """The nearest name beside the first part of a path that does not exist."""
    while not path.parent.exists():
        path = path.parent
    names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return f". Did you mean {path.parent / close[0]}?" if close else ""
