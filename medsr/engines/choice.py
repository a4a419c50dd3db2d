"""EngineChoice: which engine runs a network, and how far it may be and is from the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["REFERENCE", "EngineChoice", "EngineFor", "EngineName", "Precision"]

EngineName = Literal["auto", "torch", "compiled", "openvino"]
EngineFor = Literal["torch", "compiled", "openvino"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine runs a network.

    Attributes:
        name: "torch": the upscaler as it stands, in float32, the reference. "compiled": its stages by PyTorch,
            channels last. "openvino": its stages by OpenVINO, on a CPU.
        precision: of the layers between the first and the last, which are float32 always.
        deviation: largest difference from the reference, in gray levels (stored units) before rounding, on the tiles
            it was measured on.
        tolerance: gray levels that were allowed.
    """

    name: EngineFor
    precision: Precision
    deviation: float
    tolerance: float

    def __str__(self) -> str:
        if self.name == "torch":
            return "engine torch float32, the reference"
        seen = f"deviation on tiles of the scan {self.deviation:.2g} gray levels, {self.tolerance:.3g} allowed"
        return f"engine {self.name} {self.precision}, {seen}"


REFERENCE = EngineChoice("torch", "float32", 0.0, 0.0)
"""The upscaler as it stands."""
