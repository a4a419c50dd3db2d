"""Part, NetworkRecipe, AdversarialRecipe: what the recipes of all trained methods share."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medsr.scan import Factor, validate_factor

if TYPE_CHECKING:
    from medsr.methods.network import Network

__all__ = ["AdversarialRecipe", "ContentLoss", "NetworkRecipe", "Part"]


class Part(BaseModel):
    """A section of a recipe: closed (a key it does not know is an error) and never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetworkRecipe(Part):
    """What every trained method is told; each adds `kind` and the sizes of its network."""

    factor: Factor = Field((2, 2), description="refinement of the last axes, slowest first; its length is 2D or 3D")
    pixel_loss: Literal["l1", "mse"] = Field("l1", description="l1 keeps edges sharper; mse is the paper's")
    slope_weight: float = Field(
        0.0, ge=0, description="weight of the difference of slopes between neighbors, for height maps; 0: none"
    )

    @field_validator("factor")
    @classmethod
    def _whole(cls, value: Factor) -> Factor:
        factor = validate_factor(value)
        if len(factor) not in (2, 3) or max(factor) == 1:
            raise ValueError(f"expected 2 or 3 entries with one above 1, such as [2, 2] or [1, 2, 2]; found {value}")
        return factor

    @abstractmethod
    def build(self) -> Network:
        """The untrained network."""

    @classmethod
    @abstractmethod
    def small(cls, factor: Factor) -> Self:
        """A size that a CPU trains in minutes, for comparisons and tests."""


class ContentLoss(Part):
    """The content (feature) loss of the adversarial phase."""

    kind: Literal["discriminator", "vgg19", "lite0", "file", "none"] = Field(
        "discriminator",
        description="discriminator: match the discriminator's own features (off-line, 2D and 3D); vgg19: needs "
        "torchvision and its weights; lite0: ImageNet features from the extra medsr[features]; file: your own",
    )
    weight: float = Field(0.1, ge=0, description="weight beside the pixel loss; vgg19 with the paper's weights: 1")
    layer: tuple[int, int] = Field((5, 4), description="vgg19 and file: (i, j), the j-th convolution before pool i")
    path: Path | None = Field(None, description="file: a torch state dict of VGG19's convolutions")

    @model_validator(mode="after")
    def _file_named(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("content.path: expected a file with kind 'file', and none with any other kind")
        return self


class AdversarialRecipe(NetworkRecipe):
    """What every method with an adversary is told (Ledig et al. 2017, equations 2-6)."""

    pixel_name: ClassVar[str]
    """What the network is called while only its pixel phase is done."""

    adversary: Literal["standard", "least_squares", "hinge", "relativistic"] = Field(
        "relativistic", description="which game the two networks play; standard is the paper's"
    )
    adversarial_weight: float = Field(5e-3, ge=0, description="weight of the adversarial term (paper: 1e-3)")
    pixel_weight: float = Field(1.0, ge=0, description="weight of the pixel loss in the adversarial phase")
    content: ContentLoss = ContentLoss()
    discriminator: Literal["srgan", "patch", "unet"] = Field(
        "srgan",
        description="srgan: the paper's layers, one verdict a patch, by features averaged over it (any patch size; the "
        "paper's dense head fits one size only); patch: one verdict for each neighborhood; unet: one for each sample",
    )
    discriminator_norm: Literal["auto", "batch", "spectral", "none"] = Field(
        "auto",
        description="auto: batch for srgan (paper), spectral for patch and unet; spectral is steadier with small "
        "batches",
    )
    discriminator_features: int = Field(64, ge=4, le=512, description="channels of its first layer (paper: 64)")
