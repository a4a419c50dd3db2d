"""Recipe and its parts: the whole schema of a config on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medsr.degradation.range import DegradationRange
from medsr.scan import Factor, Intensity, Scan, validate_factor

__all__ = [
    "ContentLoss",
    "DataRecipe",
    "IntensityRule",
    "Method",
    "Recipe",
    "SrganRecipe",
    "SrresnetRecipe",
    "TrainingRecipe",
]


class Part(BaseModel):
    """A section of a recipe: closed (a key it does not know is an error) and never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SrresnetRecipe(Part):
    """SRResNet trained on a pixel loss only (Ledig et al. 2017, section 2.1.1; doi:10.1109/CVPR.2017.19)."""

    kind: Literal["srresnet"] = "srresnet"
    factor: Factor = Field((2, 2), description="refinement of the last axes, slowest first; its length is 2D or 3D")
    features: int = Field(64, ge=4, le=1024, description="channels of every layer (paper: 64)")
    blocks: int = Field(16, ge=1, le=256, description="residual blocks (paper: 16)")
    norm: Literal["none", "batch"] = Field(
        "none",
        description="none: bias-free and exact on flat fields, for quantitative data; batch: the paper's network",
    )
    head_kernel: int = Field(9, ge=3, le=15, description="width of the first convolution, odd (paper: 9)")
    tail_kernel: int = Field(9, ge=1, le=15, description="width of the last convolution, odd (paper: 9)")
    pixel_loss: Literal["l1", "mse"] = Field("l1", description="l1 keeps edges sharper; mse is the paper's")

    @field_validator("factor")
    @classmethod
    def _whole(cls, value: Factor) -> Factor:
        factor = validate_factor(value)
        if len(factor) not in (2, 3) or max(factor) == 1:
            raise ValueError(f"expected 2 or 3 entries with one above 1, such as [2, 2] or [1, 2, 2]; found {value}")
        return factor

    @field_validator("head_kernel", "tail_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"expected an odd width, so that the kernel has a center; found {value}")
        return value


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


class SrganRecipe(SrresnetRecipe):
    """SRGAN: the pixel phase, then the adversarial phase (Ledig et al. 2017, equations 2-6)."""

    kind: Literal["srgan"] = "srgan"  # type: ignore[assignment]
    adversary: Literal["standard", "least_squares", "hinge", "relativistic"] = Field(
        "relativistic", description="which game the two networks play; standard is the paper's"
    )
    adversarial_weight: float = Field(5e-3, ge=0, description="weight of the adversarial term (paper: 1e-3)")
    pixel_weight: float = Field(1.0, ge=0, description="weight of the pixel loss in the adversarial phase")
    content: ContentLoss = ContentLoss()
    discriminator: Literal["srgan", "patch"] = Field(
        "srgan",
        description="srgan: the paper's layers, one verdict a patch, by features averaged over it (any patch size; the "
        "paper's dense head fits one size only); patch: one verdict for each neighborhood",
    )
    discriminator_norm: Literal["auto", "batch", "spectral", "none"] = Field(
        "auto",
        description="auto: batch for srgan (paper), spectral for patch; spectral is steadier with small batches",
    )
    discriminator_features: int = Field(64, ge=4, le=512, description="channels of its first layer (paper: 64)")


Method = Annotated[SrresnetRecipe | SrganRecipe, Field(discriminator="kind")]


class DataRecipe(Part):
    """Which scans are learned from, and how patches are drawn from them."""

    folder: Path | None = Field(None, description="folder or file of scans; none: the shipped sample below")
    sample: Literal["mammogram", "nuclei", "surface"] = Field("nuclei", description="shipped sample, if no folder")
    series: str | int | None = Field(None, description="which series of files that hold several")
    validation: float = Field(0.2, gt=0, lt=1, description="share of subjects held out; with one scan, of its rows")
    validation_folder: Path | None = Field(None, description="scans to validate on instead of a share")
    group: Literal["subject", "scan", "folder"] = Field(
        "subject", description="what is never split between training and validation"
    )
    patch: tuple[int, ...] = Field((96, 96), description="fine samples of a training patch for each axis")
    foreground: float = Field(0.25, ge=0, le=1, description="share of a patch that must be tissue or signal")
    flips: bool = Field(True, description="random flips along every axis and quarter turns in the plane")
    patches_per_scan: int = Field(16, ge=1, description="patches drawn from a scan while it is open")
    validation_crops: int = Field(8, ge=1, description="held-out crops that are measured, and some of them pictured")


class IntensityRule(Part):
    """Where the intensity line comes from: the file (both None), or fixed for every scan."""

    black: float | None = Field(None, description="stored value of 0; none: as the file or its percentiles say")
    white: float | None = Field(None, description="stored value of 1; none: as the file or its percentiles say")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.black is None) != (self.white is None) or (self.black is not None and self.black == self.white):
            raise ValueError("intensity: expected black and white both set and different, or neither")
        return self

    def apply(self, scan: Scan) -> Scan:
        """The scan with the line this rule fixes; unchanged when the rule leaves it to the file."""
        if self.black is None or self.white is None:
            return scan
        from dataclasses import replace

        intensity: Intensity = replace(scan.intensity, black=self.black, white=self.white)
        return replace(scan, intensity=intensity).noted(f"intensity line fixed: black {self.black} white {self.white}")


class TrainingRecipe(Part):
    """How long and how fast to learn."""

    pixel_steps: int = Field(2000, ge=0, description="steps of the pixel phase")
    adversarial_steps: int = Field(0, ge=0, description="steps of the adversarial phase that follows (srgan only)")
    batch: int = Field(16, ge=1, description="patches of one step, in each process")
    accumulate: int = Field(1, ge=1, description="batches summed before a step, for less memory")
    learning_rate: float = Field(2e-4, gt=0, description="Adam's step size in the pixel phase")
    adversarial_learning_rate: float = Field(1e-4, gt=0, description="Adam's step size in the adversarial phase")
    schedule: Literal["constant", "cosine", "halve"] = Field(
        "cosine", description="how the step size falls; halve: at 1/2, 3/4, 7/8 and 15/16 of the steps"
    )
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights that are kept; 0: none")
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of a gradient; 0: no limit")
    precision: Literal["32", "bf16", "fp16"] = Field("32", description="arithmetic inside the networks")
    validate_every_steps: int = Field(500, ge=1, description="steps between validations")
    patience: int | None = Field(
        None, ge=1, description="validations without a better PSNR before the pixel phase stops early; none: never"
    )
    loader_workers: int | None = Field(
        None,
        ge=0,
        description="processes that read patches; 0: this one; none: 0 on a CPU, up to 8 for a GPU",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU if there is one; for several GPUs or machines start with torchrun"
    )
    start: Path | None = Field(None, description="checkpoint or run folder whose weights to start from; none: new ones")


class Recipe(Part):
    """How to train one Upscaler: what a YAML config holds, key for key."""

    method: Method
    data: DataRecipe = DataRecipe()
    intensity: IntensityRule = IntensityRule()
    degradation: DegradationRange = DegradationRange()
    training: TrainingRecipe = TrainingRecipe()
    seed: int = Field(0, ge=0, description="every random number follows from it")
    out: Path = Field(Path("runs/run"), description="run folder")

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        factor, patch = self.method.factor, self.data.patch
        if len(patch) != len(factor) or any(p % f or p < 4 * f for p, f in zip(patch, factor, strict=True)):
            raise ValueError(
                f"data.patch: expected {len(factor)} sizes, each a multiple of the factor {list(factor)} and at least "
                f"4 times it; found {list(patch)}"
            )
        if self.training.adversarial_steps and not isinstance(self.method, SrganRecipe):
            raise ValueError("training.adversarial_steps: expected 0 with method srresnet; use kind: srgan")
        if self.training.pixel_steps + self.training.adversarial_steps == 0:
            raise ValueError("training: expected pixel_steps or adversarial_steps above 0, found both 0")
        return self
