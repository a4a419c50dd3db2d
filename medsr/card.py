"""TrainingCard: what a network was trained on; check_scan says where a scan lies outside of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from medsr.methods.widths import Widths
from medsr.scan import Factor, Scan
from medsr.texture import Texture, texture_of

__all__ = ["TextureRange", "TrainingCard", "TrainingInput", "TrainedWidths", "check_scan"]

Range = tuple[float, float]

KINDS = {"i": "integers", "u": "integers", "f": "floats"}

NOISE_TIMES, SLOPE_OFF, SHARE_TIMES = 2.0, 0.6, 4.0
"""How far the texture of a scan may lie outside the trained range. With five training scans of one kind, 2 to 18 of 100
others of that kind were flagged, and with mammograms 82 to 100 of 100 microscopy images; narrower ones flag more."""


class TextureRange(BaseModel):
    """Smallest and largest of the figures of `medsr.texture.Texture` over coarse training scans."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    noise: Range
    slope: Range
    foreground: Range

    @classmethod
    def over(cls, textures: Sequence[Texture]) -> Self:
        """The range of at least one texture."""
        noises, slopes, shares = zip(*((t.noise, t.slope, t.foreground) for t in textures), strict=True)
        return cls(
            noise=(min(noises), max(noises)), slope=(min(slopes), max(slopes)), foreground=(min(shares), max(shares))
        )

    def joined(self, other: Self) -> Self:
        """The range that holds both."""
        ends = {name: (*getattr(self, name), *getattr(other, name)) for name in type(self).model_fields}
        return type(self)(**{name: (min(values), max(values)) for name, values in ends.items()})


class TrainingInput(BaseModel):
    """One scan a network was trained on, without its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name_hash: str
    sha256: str
    shape: tuple[int, ...]


class TrainedWidths(BaseModel):
    """Widths that learned beside a network.

    Attributes:
        features, blocks: of `medsr.methods.widths.Widths`.
        share: of samples that were to lie outside of the intervals, before any calibration.
        steps: they learned over, those of the weights they started from included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    features: int = Field(ge=1)
    blocks: int = Field(ge=1)
    share: float = Field(gt=0, lt=1)
    steps: int = Field(ge=0)

    def build(self, factor: Factor) -> Widths:
        """New ones of this size."""
        return Widths(factor, features=self.features, blocks=self.blocks)


class TrainingCard(BaseModel):
    """What a network was trained on, and how well it did.

    Attributes:
        black, white: smallest and largest of the training scans' intensity lines, in stored values.
        spacing_um: smallest and largest coarse spacing for each axis of the factor, in micrometers; None: unknown.
        dtype: of the stored values.
        inputs: hashes and shapes of the training scans.
        held_out: the same of the scans it was validated on; with a single scan, of which rows were held out, that one.
        versions: of the software.
        steps: done in each phase.
        validation: figures on the held-out scans, by name.
        pairs: of real pairs: how many, and how they lay on each other (largest shift and residual in coarse samples,
            lowest correlation, gain and offset of `high = gain * low + offset` in stored values); empty: none.
        finished: the training ran to its end.
        halo: coarse samples of context that were measured to be enough, where the exact reach of the layers is far
            more; None: the exact reach.
        parents: SHA-256 of the weights that the training started from, or that were blended.
        blend: share of the second of two parents that were blended; None: it was trained.
        texture: of coarse training scans, made coarse as in training; None: not measured.
        degradation: how coarse scans were made of fine ones, in words; "": not said.
        fixed_line: black and white are those of the recipe, whatever a scan says; texture is measured in that line.
        widths: of the checkpoint, which learned beside the network; None: it has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    black: Range
    white: Range
    spacing_um: tuple[Range | None, ...] | None = None
    dtype: str
    inputs: tuple[TrainingInput, ...] = ()
    held_out: tuple[TrainingInput, ...] = ()
    versions: dict[str, str] = {}
    steps: dict[str, int] = {}
    validation: dict[str, float] = {}
    pairs: dict[str, float] = {}
    finished: bool = False
    halo: tuple[int, ...] | None = None
    parents: tuple[str, ...] = ()
    blend: float | None = None
    texture: TextureRange | None = None
    degradation: str = ""
    fixed_line: bool = False
    widths: TrainedWidths | None = None

    @field_validator("dtype")
    @classmethod
    def _numbers(cls, value: str) -> str:
        if value not in np.sctypeDict or np.dtype(value).kind not in KINDS:
            raise ValueError(f"expected a type of numbers such as uint16, found {value!r}")
        return value


def check_scan(card: TrainingCard, scan: Scan) -> list[str]:
    """What of a scan lies outside what a network was trained for; one sentence a doubt, none if all is well.

    A spacing counts as outside beyond a tenth of the trained range, an intensity line when its length differs more
    than tenfold; noise beyond twice the range, the slope of the spectrum beyond 0.6, the shares of foreground and
    background beyond four times. For the texture a few crops of the scan are read.
    """
    doubts = []
    axes = scan.grid.axes[-len(card.spacing_um) :] if card.spacing_um else ()
    for axis, trained in zip(axes, card.spacing_um or (), strict=False):
        spacing = scan.grid.spacing_of(axis)
        if trained is None:
            continue
        if spacing is None:
            doubts.append(f"spacing along {axis} is unknown; the checkpoint was trained for {_range(trained)} um")
        elif not trained[0] / 1.1 <= spacing <= trained[1] * 1.1:
            doubts.append(
                f"spacing along {axis} is {spacing:.4g} um, outside the {_range(trained)} um the checkpoint was "
                "trained for; judge the result with care or train on such scans"
            )
    here, there = KINDS[scan.intensity.dtype.kind], KINDS[np.dtype(card.dtype).kind]
    if here != there:
        doubts.append(f"the scan holds {here} ({scan.intensity.dtype}), the checkpoint was trained on {card.dtype}")
    span = abs(scan.intensity.white - scan.intensity.black)
    spans = sorted(abs(w - b) for w, b in zip(card.white, card.black, strict=True))
    if not spans[0] / 10 <= span <= spans[1] * 10:
        doubts.append(
            f"black to white spans {span:.4g} stored values, more than tenfold off the {_range(spans)} the checkpoint "
            "was trained for; its noise may differ as much"
        )
    return [*doubts, *_texture_doubts(card, scan)]


def _texture_doubts(card: TrainingCard, scan: Scan) -> list[str]:
    trained, line = card.texture, scan.intensity
    if trained is None:
        return []
    if card.fixed_line:
        line = replace(line, black=card.black[0], white=card.white[0])
    found = texture_of(scan, line=line)
    if found is None:
        return []
    doubts = []
    if not trained.noise[0] / NOISE_TIMES <= found.noise <= trained.noise[1] * NOISE_TIMES:
        kind = "less noisy or more blurred" if found.noise < trained.noise[0] else "noisier or sharper"
        doubts.append(
            f"its finest detail has a standard deviation of {found.noise:.3g} of black to white, more than twofold "
            f"off the {_range(trained.noise)} the checkpoint was trained for: it is {kind}; judge the result with care"
        )
    if not trained.slope[0] - SLOPE_OFF <= found.slope <= trained.slope[1] + SLOPE_OFF:
        kind = "rougher" if found.slope < trained.slope[0] else "smoother or more blurred"
        doubts.append(
            f"its spectrum falls as frequency to the power -{found.slope:.2f}, the training scans' as "
            f"-{_range(trained.slope)}: its texture is {kind} than what the checkpoint knows"
        )
    low, high = trained.foreground
    if found.foreground < low / SHARE_TIMES or 1 - found.foreground < (1 - high) / SHARE_TIMES:
        doubts.append(
            f"its foreground takes {found.foreground:.2g} of it, the training scans' {_range(trained.foreground)}; it "
            "may show something else"
        )
    return doubts


def _range(values: Range | list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
