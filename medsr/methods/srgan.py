"""SRGAN: SRResNet trained on pixels, then against a discriminator."""

from __future__ import annotations

from typing import ClassVar, Literal

from medsr.methods.settings import AdversarialRecipe
from medsr.methods.srresnet import SrresnetRecipe

__all__ = ["SrganRecipe"]


class SrganRecipe(SrresnetRecipe, AdversarialRecipe):
    """SRGAN: the pixel phase, then the adversarial phase (Ledig et al. 2017, equations 2-6)."""

    pixel_name: ClassVar[str] = "srresnet"

    kind: Literal["srgan"] = "srgan"  # type: ignore[assignment]
