"""What a result really knows, and where it comes from; names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.trust.before_after import ResolutionRow, resolution_table
    from medsr.trust.bounds import hoeffding_bentkus_ucb, largest_risk, smallest_n
    from medsr.trust.calibration import Calibration, Coverage, calibrate
    from medsr.trust.consistency import ConsistencyMap, FlaggedRegion, consistency_map
    from medsr.trust.decorrelation import Decorrelation, decorrelation_analysis
    from medsr.trust.distances import Bound, LearnedWidths, SpreadWidths
    from medsr.trust.fitting import FittedWidths, fit_widths
    from medsr.trust.flat_fields import BandNoise, FlatField, flat_field_curve, noise_power_ratio
    from medsr.trust.independence import Independence, sample_independence
    from medsr.trust.intervals import Intervals, calibrate_run, coverage, load_intervals, save_intervals
    from medsr.trust.model_card import degradation_text, render_card
    from medsr.trust.noise_curve import NoiseCurve, estimate_noise
    from medsr.trust.provenance import Provenance, provenance_of, verify
    from medsr.trust.quantification import BlandAltman, Line, RegionBias, bias_by_region, bland_altman, deming, ordinary
    from medsr.trust.resolution import OneImageResolution, PowerSpectrum, fsc_sectors, one_image_frc, power_spectrum
    from medsr.trust.sharpness import EdgeSharpness, NoisePower, noise_power, slanted_edge_mtf
    from medsr.trust.specks import Speck, find_specks, speck_contrast

__all__ = [
    "BandNoise",
    "BlandAltman",
    "Bound",
    "Calibration",
    "Coverage",
    "ConsistencyMap",
    "Decorrelation",
    "EdgeSharpness",
    "FittedWidths",
    "FlaggedRegion",
    "FlatField",
    "Independence",
    "Intervals",
    "LearnedWidths",
    "Line",
    "NoiseCurve",
    "NoisePower",
    "OneImageResolution",
    "PowerSpectrum",
    "Provenance",
    "RegionBias",
    "ResolutionRow",
    "Speck",
    "SpreadWidths",
    "bias_by_region",
    "bland_altman",
    "calibrate",
    "calibrate_run",
    "coverage",
    "consistency_map",
    "decorrelation_analysis",
    "degradation_text",
    "deming",
    "estimate_noise",
    "find_specks",
    "fit_widths",
    "flat_field_curve",
    "fsc_sectors",
    "hoeffding_bentkus_ucb",
    "largest_risk",
    "load_intervals",
    "noise_power",
    "noise_power_ratio",
    "one_image_frc",
    "ordinary",
    "power_spectrum",
    "provenance_of",
    "render_card",
    "resolution_table",
    "sample_independence",
    "save_intervals",
    "slanted_edge_mtf",
    "smallest_n",
    "speck_contrast",
    "verify",
]

_ROOMS = {
    "BandNoise": "flat_fields",
    "BlandAltman": "quantification",
    "Bound": "distances",
    "Calibration": "calibration",
    "Coverage": "calibration",
    "ConsistencyMap": "consistency",
    "Decorrelation": "decorrelation",
    "EdgeSharpness": "sharpness",
    "FittedWidths": "fitting",
    "FlaggedRegion": "consistency",
    "FlatField": "flat_fields",
    "Independence": "independence",
    "Intervals": "intervals",
    "LearnedWidths": "distances",
    "Line": "quantification",
    "NoiseCurve": "noise_curve",
    "NoisePower": "sharpness",
    "OneImageResolution": "resolution",
    "PowerSpectrum": "resolution",
    "Provenance": "provenance",
    "RegionBias": "quantification",
    "ResolutionRow": "before_after",
    "Speck": "specks",
    "SpreadWidths": "distances",
    "bias_by_region": "quantification",
    "bland_altman": "quantification",
    "calibrate": "calibration",
    "calibrate_run": "intervals",
    "coverage": "intervals",
    "consistency_map": "consistency",
    "decorrelation_analysis": "decorrelation",
    "degradation_text": "model_card",
    "deming": "quantification",
    "estimate_noise": "noise_curve",
    "find_specks": "specks",
    "fit_widths": "fitting",
    "flat_field_curve": "flat_fields",
    "fsc_sectors": "resolution",
    "hoeffding_bentkus_ucb": "bounds",
    "largest_risk": "bounds",
    "load_intervals": "intervals",
    "noise_power": "sharpness",
    "noise_power_ratio": "flat_fields",
    "one_image_frc": "resolution",
    "ordinary": "quantification",
    "power_spectrum": "resolution",
    "provenance_of": "provenance",
    "render_card": "model_card",
    "resolution_table": "before_after",
    "sample_independence": "independence",
    "save_intervals": "intervals",
    "slanted_edge_mtf": "sharpness",
    "smallest_n": "bounds",
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
