"""Going on with a run: what its state says, and whether it is the same run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from medsr.card import TrainingInput
from medsr.recipe import Recipe
from medsr.training.errors import TrainingError
from medsr.training.phases import PhaseName

__all__ = ["RESUME", "Notes", "check_inputs", "check_same", "plain_recipe", "read_notes"]

RESUME = "resume.ckpt"

FREE = {"out", "data.folder", "data.pairs", "data.validation_folder", "training.start", "training.loader_workers"}
"""What of a recipe may differ when a run is gone on with: it changes no number. Whether scans are the same is told by
their hashes, wherever they lie."""


class Notes(BaseModel):
    """What stands in the state of a run beside the engine's part.

    Attributes:
        recipe: that made it, as plain data without paths (see `plain_recipe`).
        inputs, held_out: hashes and shapes of the scans it learns from, and of those it is validated on.
        world: processes it runs on.
        phase, step: where it is; `step` steps of the phase are done.
        over: whether the phase is.
        steps: done in each phase so far.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: dict[str, Any]
    inputs: tuple[TrainingInput, ...]
    held_out: tuple[TrainingInput, ...] = ()
    world: int
    phase: PhaseName
    step: int
    over: bool
    steps: dict[str, int]


def read_notes(run: Path) -> Notes | None:
    """The notes of the state in a run folder; None where there is no state yet.

    Raises:
        TrainingError: the file is torn or is no state of a run; nothing in it is executed.
    """
    path = run / RESUME
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Notes.model_validate(state["medsr"])
    except Exception as error:  # noqa: BLE001 (an unpickler raises anything; all of it means: not our state)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{path}: expected the state of a run, found a file that is none ({reason}); remove it to begin anew, "
            "or start from the weights of best.ckpt with training.start"
        ) from None


def check_same(run: Path, notes: Notes, recipe: Recipe, *, world: int) -> None:
    """Refuse to go on with another recipe, or on another number of processes; the numbers would be others.

    A setting that did not exist when the run began counts as its default.

    Raises:
        TrainingError: names each difference.
    """
    old, new = _flat(_completed(notes.recipe, recipe)), _flat(plain_recipe(recipe))
    differ = [
        f"{key}: {old.get(key)!r} became {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE
    ]
    if notes.world != world:
        differ.append(f"processes: {notes.world} became {world}")
    if differ:
        raise TrainingError(
            f"{run}: expected the recipe this run began with, found {'; '.join(differ)}; set it back to go on, or "
            "begin another run with --out (training.start takes over the weights)"
        )


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data. A path is left out, for it can hold a patient's name; of a file that shapes the numbers
    (`content.path`) the hash of what is in it stands instead."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if not isinstance(value, Path):
            return value
        if not value.is_file():
            return None
        with value.open("rb") as stream:
            return f"sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()}"

    flat = recipe.model_dump()
    places = {
        "out": None,
        "data": {**flat["data"], "folder": None, "pairs": None, "validation_folder": None},
        "training": {**flat["training"], "start": None},
    }
    data: dict[str, Any] = json.loads(json.dumps(plain({**flat, **places})))  # lists, as they come back from the file
    return data


def check_inputs(
    run: Path, notes: Notes, inputs: tuple[TrainingInput, ...], held_out: tuple[TrainingInput, ...]
) -> None:
    """Refuse to go on with other scans.

    Raises:
        TrainingError: says how many differ.
    """
    before, now = {*notes.inputs, *notes.held_out}, {*inputs, *held_out}
    if notes.inputs != inputs or (
        notes.held_out and notes.held_out != held_out
    ):  # a run of old did not keep the latter
        raise TrainingError(
            f"{run}: expected the {len(before)} scans this run began with, found {len(now - before)} that are "
            f"new or changed and {len(before - now)} missing; bring them back (their names and order count too), or "
            "begin another run with --out"
        )


def _completed(old: dict[str, Any], model: BaseModel) -> dict[str, Any]:
    """An older recipe as plain data, with the settings it lacks at their defaults."""
    done = dict(old)
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name in old:
            if isinstance(value, BaseModel) and isinstance(old[name], dict):
                done[name] = _completed(old[name], value)
        elif not field.is_required():
            default = field.get_default(call_default_factory=True)
            plain = default.model_dump() if isinstance(default, BaseModel) else default
            done[name] = json.loads(json.dumps(plain, default=str))
    return done


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
