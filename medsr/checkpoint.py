"""Weights with the recipe that made them; save_checkpoint, load_upscaler."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from medsr.card import TrainingCard, TrainingInput, check_scan
from medsr.degradation import Degradation, DegradationRange
from medsr.methods.ikc import IkcNetwork
from medsr.methods.kernel_code import kernel_of_fwhm
from medsr.methods.network import Network
from medsr.methods.widths import Widths
from medsr.recipe import AdversarialRecipe, IntensityRule, Method, Recipe
from medsr.scan import Factor, Scan, validate_factor
from medsr.stages import Stages

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "TrainedUpscaler",
    "TrainingCard",
    "TrainingInput",
    "build_network",
    "check_scan",
    "load_checkpoint",
    "load_upscaler",
    "save_checkpoint",
]

FORMAT = 2
"""Version of what is written beside the weights; a higher one comes from a newer medsr. It rises with every field or
choice that recipe or card gain, for an older medsr knows none of them; lower ones can be read."""

WIDTHS = "widths."
"""What the names of the weights of widths begin with; they are no weights of the network and not in its SHA-256."""

KEPT_OUT = Path("not-kept")
"""What stands for a path in a checkpoint: folder names can hold a patient's name."""


class CheckpointError(ValueError):
    """A file that is no usable checkpoint: the file, the reason, the cure."""


class _Notes(BaseModel):
    """What is written beside the weights."""

    model_config = ConfigDict(extra="forbid")

    format: int
    factor: Factor
    recipe: Recipe
    card: TrainingCard


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Trained weights in their network, with the recipe and the card.

    Attributes:
        network: in evaluation mode, without gradients, on the CPU.
        recipe: what made it; paths are replaced, for folder names can hold a patient's name.
        card: what it was trained on.
        sha256: of the weights of the network.
        widths: what learned beside the network how far its estimates are off; None: nothing did.
    """

    network: Network
    recipe: Recipe
    card: TrainingCard
    sha256: str
    widths: Widths | None = None


def build_network(method: Method) -> Network:
    """The untrained network of a method."""
    return method.build()


def save_checkpoint(
    path: str | Path, network: nn.Module, recipe: Recipe, card: TrainingCard, *, widths: Widths | None = None
) -> None:
    """Write weights, recipe and card to one safetensors file: data only, nothing in it can be executed.

    The file appears complete or not at all. Paths of the recipe are left out.

    Args:
        path: the file.
        network, recipe, card: as in `Checkpoint`; without widths the card says none.
        widths: as `card.widths` says, which learned beside the network.

    Raises:
        ValueError: widths of which the card says something else.
        OSError: the file cannot be written.
    """
    path = Path(path)
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    if widths is None:
        card = card.model_copy(update={"widths": None})
    elif card.widths is None or repr(card.widths.build(recipe.method.factor)) != repr(widths):
        raise ValueError(f"save_checkpoint: expected {widths!r} on the card, found {card.widths!r}; say them there")
    else:
        weights |= {f"{WIDTHS}{k}": v.detach().cpu().contiguous() for k, v in widths.state_dict().items()}
    notes = _Notes(format=FORMAT, factor=recipe.method.factor, recipe=_without_paths(recipe), card=card)
    data = to_safetensors(weights, metadata={"medsr": notes.model_dump_json()})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed.

    Raises:
        CheckpointError: no such file, no safetensors, torn, made by a newer version, or weights that do not fit the
            recipe or are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint file, found a folder; give a file, or use load_upscaler")
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            notes = _read_notes(path, stored.metadata() or {})
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            with torch.device("meta"):
                network = build_network(notes.recipe.method)
                widths = None if notes.card.widths is None else notes.card.widths.build(notes.factor)
            expected = network.state_dict()
            if widths is not None:
                expected |= {f"{WIDTHS}{k}": v for k, v in widths.state_dict().items()}
            _check_names(path, {k: tuple(v.shape) for k, v in expected.items()}, shapes)
            weights = {name: stored.get_tensor(name) for name in shapes}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected a checkpoint, found no file; check the path") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {_what_instead(path, error)}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable checkpoint, found: {error.strerror or error}") from None
    _check_values(path, expected, weights)
    if widths is not None:
        names = [name for name in weights if name.startswith(WIDTHS)]
        widths.load_state_dict({name.removeprefix(WIDTHS): weights.pop(name) for name in names}, assign=True)
        widths.eval().requires_grad_(False)
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)
    return Checkpoint(network, notes.recipe, notes.card, _digest(weights), widths)


def load_upscaler(run: str | Path, *, factor: Factor | None = None) -> TrainedUpscaler:
    """The upscaler of a run folder or a checkpoint file.

    Args:
        run: a folder in which `best.ckpt`, else `last.ckpt`, is taken; or a file, taken as it is.
        factor: the refinement that is wanted; None: whatever the checkpoint has.

    Raises:
        CheckpointError: as `load_checkpoint`; no checkpoint in the folder; or another factor than wanted.
    """
    run = Path(run)
    path = run
    if run.is_dir():
        found = [run / name for name in ("best.ckpt", "last.ckpt") if (run / name).is_file()]
        if not found:
            raise CheckpointError(f"{run}: expected best.ckpt or last.ckpt in this run folder, found neither")
        path = found[0]
    checkpoint = load_checkpoint(path)
    has = checkpoint.recipe.method.factor
    if factor is not None and has != validate_factor(factor):
        raise CheckpointError(
            f"{path}: expected a checkpoint of factor {_comma(factor)}, found one of {_comma(has)}; "
            f"leave --factor out or train with method.factor: [{_comma(factor)}]"
        )
    return TrainedUpscaler(checkpoint, path=path)


class TrainedUpscaler(nn.Module):
    """An Upscaler from a checkpoint: the network, and the intensity line its recipe fixed.

    Where the recipe fixes black and white, the network saw units of that line; `adapt` keeps it so for a scan with
    another one, and tells the network what it needs to know of the scan. `card` says what it was trained on; ask
    `check_scan`.

    Attributes:
        factor, halo: those of the network; a halo that was measured (`card.halo`) stands for the exact reach.
        recipe, card: those of the checkpoint.
        path: the file the weights came from.
    """

    def __init__(self, checkpoint: Checkpoint, *, path: Path, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.network = checkpoint.network
        self.factor: Factor = checkpoint.network.factor
        self.halo: tuple[int, ...] = checkpoint.card.halo or checkpoint.network.halo
        self.recipe = checkpoint.recipe
        self.card = checkpoint.card
        self.path = path
        self._checkpoint = checkpoint
        self._line = (gain, offset)
        # Decides the numbers as the weights do, hence belongs to what `fingerprint` reads.
        self.register_buffer("line", torch.tensor(self._line, dtype=torch.float64))
        self.eval()

    def adapt(self, scan: Scan) -> Self:
        """Itself, or where the recipe fixes another intensity line, one that converts to it and back."""
        gain, offset = _conversion(self.recipe.intensity, scan)
        network = self.network.adapt(self.recipe.intensity.apply(scan))
        if (gain, offset) == self._line and network is self.network:
            return self
        return type(self)(replace(self._checkpoint, network=network), path=self.path, gain=gain, offset=offset)

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) to (n, 1, *size * factor), float32, in unit intensity of the scan."""
        gain, offset = self._line
        estimate: Tensor
        if (gain, offset) == (1.0, 0.0):
            estimate = self.network(low)
        else:
            estimate = (self.network(low * gain + offset) - offset) / gain
        return estimate

    def stages(self, *, edges: bool = True) -> Stages:
        """The network cut for an engine, the intensity line in its kernels; see `medsr.upscaler.Staged`."""
        gain, offset = self._line
        return self.network.stages(edges=edges, gain=gain, offset=offset)

    @property
    def found_degradation(self) -> Degradation | None:
        """How its scan was made coarse, where `adapt` found that out; None: as its recipe says."""
        widths = self.network.fwhm_samples if isinstance(self.network, IkcNetwork) else ()
        if not widths:
            return None
        if len(widths) == 3 and self.factor[0] == 1:
            widths = (0.0, *widths[1:])
        told = self.recipe.degradation
        kernel, factor, spacing = kernel_of_fwhm(told.psf, widths, self.factor)
        return Degradation(factor, kernel=kernel, sampling=told.sampling, spacing_um=spacing)

    @property
    def expected_degradation(self) -> DegradationRange:
        """What it was trained for."""
        return self.recipe.degradation

    @property
    def widths(self) -> Widths | None:
        """What learned beside the network how far its estimates are off; None: nothing did. No part of the module:
        with or without them an upscaler is the same."""
        return self._checkpoint.widths

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights of the checkpoint's network."""
        return self._checkpoint.sha256

    @property
    def name(self) -> str:
        """What was trained: an srgan whose adversarial phase has not begun is an srresnet."""
        method = self.recipe.method
        if isinstance(method, AdversarialRecipe) and not self.card.steps.get("adversarial", 0):
            return method.pixel_name
        return method.kind

    def __repr__(self) -> str:
        rule = self.recipe.intensity
        line = "" if rule.black is None else f", black {rule.black:g} white {rule.white:g}"
        count = sum(parameter.numel() for parameter in self.network.parameters())
        told = self.network.told
        return (
            f"{self.name} x{_comma(self.factor)}, {count:,} parameters, weights {self._checkpoint.sha256[:12]}{line}"
            f"{', ' + told if told else ''}"
        )


def _conversion(rule: IntensityRule, scan: Scan) -> tuple[float, float]:
    """Gain and offset from units of the scan's intensity line to those of the line a recipe fixed."""
    if rule.black is None or rule.white is None:
        return 1.0, 0.0
    span = rule.white - rule.black
    own = scan.intensity
    return (own.white - own.black) / span, (own.black - rule.black) / span


def _without_paths(recipe: Recipe) -> Recipe:
    """The recipe without the folders and files it was read from and written to."""

    def hidden(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: hidden(v) for k, v in value.items()}
        return KEPT_OUT if isinstance(value, Path) else value

    return Recipe.model_validate(hidden(recipe.model_dump()))


def _read_notes(path: Path, metadata: Mapping[str, str]) -> _Notes:
    if "medsr" not in metadata:
        raise CheckpointError(
            f"{path}: expected a checkpoint of medsr, found weights without a recipe; "
            "give best.ckpt or last.ckpt of a run folder"
        )
    try:
        plain = json.loads(metadata["medsr"])
        version = plain["format"]
        if isinstance(version, int) and version > FORMAT:
            raise CheckpointError(
                f"{path}: expected checkpoint format {FORMAT} or lower, found {version}; "
                "it was written by a newer medsr: upgrade this one"
            )
        notes = _Notes.model_validate(plain)
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError, ValidationError) as error:
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path}: expected the recipe and card of a checkpoint, found another content ({reason}); "
            "it is damaged or was not written by medsr"
        ) from None
    if notes.factor != notes.recipe.method.factor:
        raise CheckpointError(
            f"{path}: expected one factor, found {_comma(notes.factor)} beside a recipe of "
            f"{_comma(notes.recipe.method.factor)}; the file is damaged: train again or take another checkpoint"
        )
    return notes


def _check_names(path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that are missing, left over or of another shape; by names and shapes alone."""
    missing = [f"{k} is missing" for k in expected if k not in found]
    left = [f"{k} is unknown" for k in found if k not in expected]
    shapes = [f"{k} has shape {found[k]}, not {s}" for k, s in expected.items() if found.get(k, s) != s]
    wrong = missing + left + shapes
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path}: expected {len(expected)} weights that fit its recipe, found {len(found)}: "
            f"{'; '.join(wrong[:3])}{more}; the file is damaged or edited: take another checkpoint"
        )


def _check_values(path: Path, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        if value.dtype != expected[name].dtype:
            raise CheckpointError(
                f"{path}: expected {name} in {expected[name].dtype}, found {value.dtype}; take another checkpoint"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: expected finite weights, found NaN or infinity in {name}; the training diverged: "
                "lower training.learning_rate, or take an earlier checkpoint"
            )


def _what_instead(path: Path, error: Exception) -> str:
    """What a file is that is no safetensors file, by its first bytes, and what to do."""
    with path.open("rb") as stream:
        start = stream.read(9)
    size = path.stat().st_size
    if size == 0:
        return "expected a checkpoint, found an empty file; take another checkpoint"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return (
            "expected a checkpoint of medsr (safetensors), found a pickle, which can run code when it is loaded: "
            "refused, nothing was executed; give best.ckpt or last.ckpt of a run folder"
        )
    if start[8:9] == b"{":
        return f"expected a whole checkpoint (safetensors), found only {size} bytes of it; copy it again"
    return f"expected a checkpoint of medsr (safetensors), found another content ({error}); check the path"


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _comma(factor: Factor) -> str:
    return ",".join(map(str, factor))
