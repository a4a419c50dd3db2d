"""ESRGAN: RRDBNet trained on pixels, then against a relativistic discriminator."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from medsr.methods.rrdb import RrdbRecipe
from medsr.methods.settings import AdversarialRecipe, ContentLoss

__all__ = ["EsrganRecipe"]


class EsrganRecipe(RrdbRecipe, AdversarialRecipe):
    """ESRGAN: the pixel phase, then the adversarial phase (Wang et al. 2018, equations 1-3).

    The weights are the paper's. Its content loss is that of VGG19, which not every machine has: the default matches
    the features of the discriminator.
    """

    pixel_name: ClassVar[str] = "rrdb"

    kind: Literal["esrgan"] = "esrgan"  # type: ignore[assignment]
    pixel_weight: float = Field(1e-2, ge=0, description="weight of the pixel loss in the adversarial phase")
    content: ContentLoss = ContentLoss(weight=1.0)
