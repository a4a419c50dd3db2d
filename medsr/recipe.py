"""Recipe and its parts: the whole schema of a config on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medsr.degradation.range import DegradationRange
from medsr.methods.dfcan import DfcanRecipe
from medsr.methods.espcn import EspcnRecipe
from medsr.methods.esrgan import EsrganRecipe
from medsr.methods.fast import FastRecipe
from medsr.methods.fsrcnn import FsrcnnRecipe
from medsr.methods.ikc import IkcRecipe
from medsr.methods.rcan import RcanRecipe
from medsr.methods.rrdb import RrdbRecipe
from medsr.methods.scn import ScnRecipe
from medsr.methods.settings import AdversarialRecipe, ContentLoss, NetworkRecipe, Part
from medsr.methods.srgan import SrganRecipe
from medsr.methods.srresnet import SrresnetRecipe
from medsr.scan import Intensity, Scan

__all__ = [
    "AdversarialRecipe",
    "ContentLoss",
    "DataRecipe",
    "EspcnRecipe",
    "EsrganRecipe",
    "FastRecipe",
    "FsrcnnRecipe",
    "DfcanRecipe",
    "IkcRecipe",
    "IntensityRule",
    "Method",
    "NetworkRecipe",
    "RcanRecipe",
    "Recipe",
    "RrdbRecipe",
    "ScnRecipe",
    "SrganRecipe",
    "SrresnetRecipe",
    "TrainingRecipe",
]

Method = Annotated[
    SrresnetRecipe
    | SrganRecipe
    | RrdbRecipe
    | EsrganRecipe
    | RcanRecipe
    | DfcanRecipe
    | IkcRecipe
    | EspcnRecipe
    | FsrcnnRecipe
    | FastRecipe
    | ScnRecipe,
    Field(discriminator="kind"),
]  # fmt: skip
"""Every trained method: a new one is a file in `methods/` and its recipe here."""


class DataRecipe(Part):
    """Which scans are learned from, and how patches are drawn from them."""

    folder: Path | None = Field(None, description="folder or file of scans; none: the shipped sample below")
    sample: Literal["mammogram", "nuclei", "surface"] = Field("nuclei", description="shipped sample, if no folder")
    pairs: Path | None = Field(
        None, description="folder with low/ and high/: real pairs by name, in place of folder and degradation"
    )
    registration: Literal["whole", "resample"] = Field(
        "whole", description="pairs: crop whole fine samples only, or interpolate the coarse scan by what is left too"
    )
    match_intensity: bool = Field(
        False, description="pairs: fit one line of gray values, low to high, for the run; off: values are compared"
    )
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

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.pairs is not None and self.folder is not None:
            raise ValueError("data.folder: expected none with data.pairs, found both; keep one of them")
        if self.pairs is None and (self.registration != "whole" or self.match_intensity):
            raise ValueError("data.pairs: expected a folder with registration or match_intensity, found none")
        return self


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
    correction_steps: int = Field(
        0, ge=0, description="steps of the phase that follows and learns to find the blur of a scan (ikc only)"
    )
    batch: int = Field(16, ge=1, description="patches of one step, in each process")
    accumulate: int = Field(1, ge=1, description="batches summed before a step, for less memory")
    learning_rate: float = Field(2e-4, gt=0, description="Adam's step size in the pixel and the correction phase")
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
    widths: bool = Field(
        True, description="also learn how far estimates are off, for medsr calibrate; the network stays the same"
    )


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
        if self.data.pairs is not None and self.degradation != DegradationRange():
            raise ValueError(
                "degradation: expected none with data.pairs, whose coarse scans were measured; leave this section out"
            )
        if self.training.adversarial_steps and not isinstance(self.method, AdversarialRecipe):
            raise ValueError(
                f"training.adversarial_steps: expected 0 with method {self.method.kind}; use kind: srgan or esrgan"
            )
        training = self.training
        if training.pixel_steps + training.adversarial_steps + training.correction_steps == 0:
            raise ValueError("training: expected pixel_steps or adversarial_steps above 0, found both 0")
        return self

    @model_validator(mode="after")
    def _blur_to_find(self) -> Self:
        if not isinstance(self.method, IkcRecipe):
            if self.training.correction_steps:
                raise ValueError(f"training.correction_steps: expected 0 with method {self.method.kind}; use kind: ikc")
            return self
        if self.data.pairs is not None:
            raise ValueError("data.pairs: expected none with method ikc, which learns from blurs that are known")
        if self.degradation.second is not None:
            raise ValueError(
                "degradation.second: expected none with method ikc, which learns to find the blur of one pass"
            )
        if self.training.correction_steps and not self.degradation.blur_varies(self.method.factor):
            raise ValueError(
                "degradation: expected a range of blurs with method ikc, found one blur only; give fwhm_um or "
                "fwhm_samples [from, to]"
            )
        return self
