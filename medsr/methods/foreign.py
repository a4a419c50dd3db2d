"""load_foreign: published networks of ESRGAN's family, and what spandrel knows, as an Upscaler of gray scans."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.rrdb import RRDBNet, published_names
from medsr.scan import Factor

if TYPE_CHECKING:
    from medsr.methods.network import Network
    from medsr.scan import Scan
    from medsr.upscaler import Run, Upscaler

__all__ = ["ForeignFileError", "ForeignUpscaler", "is_foreign", "load_foreign", "load_weights"]

WRAPPERS = ("params_ema", "params-ema", "params", "state_dict")
"""Under which published files keep their weights, the best first."""

COLORS = 3

SIDE = 256
"""Of the noise on which a halo is measured, coarse samples."""

SHIFTS = (1, 2, 3)
"""Samples by which the noise is moved: a network whose answer depends on where a tile begins cannot be tiled."""

SEAM = 0.5 / 2**16
"""Half of a gray level of 65,536, in unit intensity."""

UNKNOWN = SIDE
"""A reach that no noise of `SIDE` can show."""

BORROWED = {"torchvision.transforms.functional": ("InterpolationMode", "normalize", "rotate")}
"""What spandrel wants of torchvision on import: for two networks that fill holes and mend faces, no more."""


class ForeignFileError(ValueError):
    """A file that holds no network that can be used here: the file, the reason, the cure."""


class ForeignUpscaler(nn.Module):
    """A published network for photographs, used on gray scans in two dimensions.

    These networks were trained on colors in 0..1, most on photographs of 8 bits with their compression, and are not
    calibrated: a flat field may come out at another level, and what lies outside of 0..1 they never saw. Nothing is
    clipped. For measurement train a network of your own.

    Attributes:
        factor: the same for both axes.
        halo: coarse samples of context for each axis.
        parts: the network, which an engine may run in its own way.
    """

    def __init__(self, network: nn.Module, factor: Factor, halo: tuple[int, ...], *, name: str) -> None:
        super().__init__()
        self.network, self.factor, self.halo = network, factor, halo
        self._name = name
        self.eval().requires_grad_(False)

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The network alone."""
        return (cast("Upscaler", self.network),)

    def around(self, low: Tensor, runs: Sequence[Run]) -> Tensor:
        """What the network makes of a tile: (n, 1, *size) to (n, 1, *size * factor)."""
        (run,) = runs
        return run(low)

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself: the network needs to know nothing of the scan."""
        return self

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32, not clipped."""
        estimate: Tensor = self.network(low)
        return estimate

    def __repr__(self) -> str:
        return f"ForeignUpscaler({self._name}, {self.factor}, halo={self.halo})"


def load_foreign(path: str | Path, *, halo: tuple[int, int] | Literal["measured"] | None = None) -> ForeignUpscaler:
    """The upscaler of a published file of weights: nothing in the file is executed.

    RRDBNet (ESRGAN, Real-ESRGAN and the many networks trained with their code) is run by `RRDBNet`, as published; a
    gray scan stands for three equal colors, and the three colors of the result are averaged. Other networks for
    super-resolution are run by the package spandrel, where it is installed.

    Args:
        path: `.safetensors`, or a file of torch that holds tensors only.
        halo: coarse samples of context along y and x. None: the exact reach of RRDBNet, 349 for the published size; of
            another network, as "measured": the least on noise with which no seam exceeds half a gray level of 65,536.

    Raises:
        ForeignFileError: no such file; a pickle that would have to run code; an unknown network, or one that does not
            upscale; one whose result depends on where a tile begins.
        ImportError: the network is none of RRDBNet's, and spandrel is not installed.

    References:
        X. Wang et al., "ESRGAN", 2018, doi:10.1007/978-3-030-11021-5_5.
        X. Wang et al., "Real-ESRGAN", 2021, arXiv:2107.10833.
    """
    path = Path(path)
    weights = load_weights(path)
    name = f"weights {_digest(weights)[:12]}"
    known = published_names(weights)
    if "conv_first.weight" in known and "body.0.rdb1.conv1.weight" in known:
        own = _rrdb(path, known)
        reach = _measured(path, own, own.factor) if halo == "measured" else halo or own.halo
        return ForeignUpscaler(own, own.factor, reach, name=f"RRDBNet, {name}")
    other, scale, kind = _by_spandrel(path, weights)
    factor = (scale, scale)
    reach = _measured(path, other, factor) if halo is None or halo == "measured" else halo
    return ForeignUpscaler(other, factor, reach, name=f"{kind}, {name}")


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a published file, float32, under the names they have there; nothing in it is executed.

    Raises:
        ForeignFileError: no such file, or no file of tensors.
    """
    if not path.is_file():
        raise ForeignFileError(f"{path}: expected a file of weights, found none; check the path")
    try:
        found: object = load_file(path) if path.suffix == ".safetensors" else _tensors_only(path)
    except (SafetensorError, OSError) as error:
        raise ForeignFileError(f"{path}: expected whole safetensors, found: {error}; copy it again") from error
    while isinstance(found, Mapping) and (inner := next((w for w in WRAPPERS if w in found), None)) is not None:
        found = found[inner]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ForeignFileError(
            f"{path}: expected weights by name, found {type(found).__name__}; give a published file of weights"
        )
    broken = [str(name) for name, value in found.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ForeignFileError(
            f"{path}: expected finite weights, found NaN or infinity in {broken[0]}; take another copy of the file"
        )
    return {str(name): value.float() if value.is_floating_point() else value for name, value in found.items()}


def is_foreign(path: Path) -> bool:
    """Whether a file is of the kinds that published weights come in, and was not written by medsr."""
    if path.suffix not in (".safetensors", ".pth", ".pt") or not path.is_file():
        return False
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, framework="pt") as stored:
            return "medsr" not in (stored.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _tensors_only(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch guesses aloud what else the file might be
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises anything; all of it means: not tensors only
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ForeignFileError(
            f"{path}: expected tensors only, found a file that would have to run code, or is none of torch: refused, "
            f"nothing was executed ({reason}); get the network as .safetensors, or convert it where you trust its maker"
        ) from error


def _rrdb(path: Path, weights: Mapping[str, Tensor]) -> RRDBNet:
    """The published RRDBNet of a file, for gray: the first kernels added up over the colors, the last averaged.

    Raises:
        ForeignFileError: a variant with other layers.
    """
    weights = dict(weights)
    first, last = weights["conv_first.weight"], weights.get("conv_last.weight")
    colors = first.shape[1]
    if colors not in (1, COLORS):
        raise ForeignFileError(
            f"{path}: expected a network of 1 or 3 colors, found one of {colors}, which takes blocks of samples for "
            "colors, so that its result depends on where a tile begins; take a file for factor 4"
        )
    if last is None or last.shape[0] not in (1, COLORS):
        raise ForeignFileError(f"{path}: expected conv_last of 1 or 3 colors in RRDBNet, found none; it is damaged")
    weights["conv_first.weight"] = first.sum(1, keepdim=True)
    weights["conv_last.weight"] = last.mean(0, keepdim=True)
    if "conv_last.bias" in weights:
        weights["conv_last.bias"] = weights["conv_last.bias"].mean(0, keepdim=True)
    rises = sum(name.startswith("conv_up") and name.endswith(".weight") for name in weights)
    if rises == 0:
        raise ForeignFileError(f"{path}: expected a network that upscales, found RRDBNet of factor 1")
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))
    network = RRDBNet(
        (2**rises, 2**rises),
        features=first.shape[0],
        blocks=blocks,
        growth=weights["body.0.rdb1.conv1.weight"].shape[0],
        published=True,
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ForeignFileError(
            f"{path}: expected the layers of RRDBNet, found others ({' '.join(str(error).split())[:200]}); it is a "
            "variant that is not known here"
        ) from error
    return network.eval()


class _Colored(nn.Module):
    """A network for colors on a gray scan: colors repeated and averaged, sizes filled up as the network needs them."""

    def __init__(self, network: nn.Module, scale: int, *, colors: tuple[int, int], multiple: int, least: int) -> None:
        super().__init__()
        self.network, self.factor, self.halo = network, (scale, scale), (UNKNOWN, UNKNOWN)
        self._colors, self._multiple, self._least = colors, multiple, least

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself."""
        return self

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) to (n, 1, *size * factor), float32."""
        size, scale = tuple(low.shape[2:]), self.factor[0]
        wide = [max(-(-n // self._multiple) * self._multiple, self._least) for n in size]
        low = functional.pad(low.float(), (0, wide[1] - size[1], 0, wide[0] - size[0]), mode="replicate")
        found = self.network(low.expand(-1, self._colors[0], -1, -1))
        fine: Tensor = found[0] if isinstance(found, tuple) else found
        return fine.mean(1, keepdim=True)[..., : size[0] * scale, : size[1] * scale]


def _by_spandrel(path: Path, weights: Mapping[str, Tensor]) -> tuple[nn.Module, int, str]:
    """The network of a file, its scale and its kind, by spandrel.

    Raises:
        ForeignFileError: spandrel does not know it, or it does not upscale.
        ImportError: spandrel is not installed.
    """
    spandrel = _spandrel()
    try:
        model = spandrel.ModelLoader().load_from_state_dict(dict(weights))
    except Exception as error:  # each of its networks checks weights in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ForeignFileError(
            f"{path}: expected a network that spandrel knows, found another ({reason}); see its list of architectures"
        ) from error
    kind = str(model.architecture.name)
    colors = (int(model.input_channels), int(model.output_channels))
    needs = model.size_requirements
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.purpose != "SR" or model.scale < 2:
        raise ForeignFileError(f"{path}: expected a network for super-resolution, found {kind} for {model.purpose}")
    if any(count not in (1, COLORS) for count in colors) or needs.square:
        raise ForeignFileError(
            f"{path}: expected a network of 1 or 3 colors for any size, found {kind} of {colors[0]} to {colors[1]} "
            f"colors{', for squares only' if needs.square else ''}"
        )
    scale = int(model.scale)
    network = _Colored(model.model, scale, colors=colors, multiple=needs.multiple_of, least=needs.minimum)
    return network.eval(), scale, kind


def _spandrel() -> Any:
    """The module spandrel; where torchvision does not import, without the two networks that need it.

    There is no torchvision for every build of torch.

    Raises:
        ImportError: it is not installed, or does not import.
    """
    try:
        with _borrowed():
            return import_module("spandrel")
    except ImportError as error:
        raise ImportError(
            f"expected the package spandrel for a network other than RRDBNet, found none that imports ({error}); "
            "pip install 'medsr[foreign]', or where torchvision has no build for your torch: "
            "pip install --no-deps spandrel einops"
        ) from error


@contextmanager
def _borrowed() -> Iterator[None]:
    """Names of torchvision that exist but do nothing, while spandrel is imported and torchvision cannot be."""
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError):  # RuntimeError: a build for another torch
        placed = []
        for dotted, names in BORROWED.items():
            parts = dotted.split(".")
            for end in range(1, len(parts) + 1):
                whole = ".".join(parts[:end])
                if whole not in sys.modules:
                    sys.modules[whole] = ModuleType(whole)
                    placed.append(whole)
            for name in names:
                setattr(sys.modules[dotted], name, _missing)
        try:
            yield
        finally:
            for whole in placed:
                del sys.modules[whole]
    else:
        yield


def _missing(*_: object, **__: object) -> None:
    raise ImportError("this network needs torchvision, which does not import here")


def _measured(path: Path, network: nn.Module, factor: Factor) -> tuple[int, ...]:
    """The halo of a network, measured on noise.

    Raises:
        ForeignFileError: its result depends on where a tile begins, or on what lies further than can be measured.
    """
    from medsr.methods.seams import measured_halo, with_margin

    noise = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if isinstance(network, _Colored):
        _check_shifts(path, network, noise, factor[0])
    asked = cast("Network", network)
    found = measured_halo(asked, noise)
    if isinstance(network, _Colored) and max(found) >= UNKNOWN:
        raise ForeignFileError(
            f"{path}: expected a network that looks at some {SIDE // 4} coarse samples around, found one that looks "
            "further; give halo, and mind the seams"
        )
    return with_margin(asked, [found])


@torch.no_grad()
def _check_shifts(path: Path, network: Callable[[Tensor], Tensor], noise: Tensor, scale: int) -> None:
    """Refuse a network that gives other results where its tile begins elsewhere.

    Raises:
        ForeignFileError: it does.
    """
    whole = network(noise)
    inner = slice(scale * (SIDE // 2 - SIDE // 16), scale * (SIDE // 2 + SIDE // 16))
    for shift in SHIFTS:
        moved = network(noise[..., shift:, shift:])
        own = slice(inner.start - scale * shift, inner.stop - scale * shift)
        worst = float((moved[..., own, own] - whole[..., inner, inner]).abs().max())
        if worst > SEAM:
            raise ForeignFileError(
                f"{path}: expected a result that does not depend on where a tile begins, found differences of "
                f"{worst:.2g} in unit intensity when it begins {shift} samples later (windows, or a look at the whole "
                "tile); give halo, and mind the seams"
            )


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
