"""What a result really knows, and where it comes from; names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.trust.before_after import ResolutionRow, resolution_table
    from medsr.trust.decorrelation import Decorrelation, decorrelation_analysis
    from medsr.trust.flat_fields import BandNoise, FlatField, flat_field_curve, noise_power_ratio
    from medsr.trust.independence import Independence, sample_independence
    from medsr.trust.model_card import degradation_text, render_card
    from medsr.trust.provenance import Provenance, provenance_of, verify
    from medsr.trust.quantification import BlandAltman, Line, RegionBias, bias_by_region, bland_altman, deming, ordinary
    from medsr.trust.resolution import OneImageResolution, PowerSpectrum, fsc_sectors, one_image_frc, power_spectrum
    from medsr.trust.sharpness import EdgeSharpness, NoisePower, noise_power, slanted_edge_mtf
    from medsr.trust.specks import Speck, find_specks, speck_contrast

__all__ = [
    "BandNoise",
    "BlandAltman",
    "Decorrelation",
    "EdgeSharpness",
    "FlatField",
    "Independence",
    "Line",
    "NoisePower",
    "OneImageResolution",
    "PowerSpectrum",
    "Provenance",
    "RegionBias",
    "ResolutionRow",
    "Speck",
    "bias_by_region",
    "bland_altman",
    "decorrelation_analysis",
    "degradation_text",
    "deming",
    "find_specks",
    "flat_field_curve",
    "fsc_sectors",
    "noise_power",
    "noise_power_ratio",
    "one_image_frc",
    "ordinary",
    "power_spectrum",
    "provenance_of",
    "render_card",
    "resolution_table",
    "sample_independence",
    "slanted_edge_mtf",
    "speck_contrast",
    "verify",
]

_ROOMS = {
    "BandNoise": "flat_fields",
    "BlandAltman": "quantification",
    "Decorrelation": "decorrelation",
    "EdgeSharpness": "sharpness",
    "FlatField": "flat_fields",
    "Independence": "independence",
    "Line": "quantification",
    "NoisePower": "sharpness",
    "OneImageResolution": "resolution",
    "PowerSpectrum": "resolution",
    "Provenance": "provenance",
    "RegionBias": "quantification",
    "ResolutionRow": "before_after",
    "Speck": "specks",
    "bias_by_region": "quantification",
    "bland_altman": "quantification",
    "decorrelation_analysis": "decorrelation",
    "degradation_text": "model_card",
    "deming": "quantification",
    "find_specks": "specks",
    "flat_field_curve": "flat_fields",
    "fsc_sectors": "resolution",
    "noise_power": "sharpness",
    "noise_power_ratio": "flat_fields",
    "one_image_frc": "resolution",
    "ordinary": "quantification",
    "power_spectrum": "resolution",
    "provenance_of": "provenance",
    "render_card": "model_card",
    "resolution_table": "before_after",
    "sample_independence": "independence",
    "slanted_edge_mtf": "sharpness",
    "speck_contrast": "specks",
    "verify": "provenance",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
