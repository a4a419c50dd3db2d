"""What a result really knows, and where it comes from; names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.trust.auditing import STRUCTURE_KINDS, Audit, StructureKind, audit
    from medsr.trust.before_after import ResolutionRow, resolution_table
    from medsr.trust.bounds import hoeffding_bentkus_ucb, largest_risk, smallest_n
    from medsr.trust.calibration import Calibration, Coverage, calibrate
    from medsr.trust.decorrelation import Decorrelation, decorrelation_analysis
    from medsr.trust.distances import Bound, Interval, LearnedWidths, SpreadWidths
    from medsr.trust.fitting import FittedWidths, fit_widths
    from medsr.trust.flat_fields import BandNoise, FlatField, flat_field_curve, noise_power_ratio
    from medsr.trust.independence import Independence, sample_independence
    from medsr.trust.intervals import Intervals, calibrate_run, coverage, load_intervals, save_intervals
    from medsr.trust.invention import Suspicion, find_parent, parent_of, suspicions
    from medsr.trust.model_card import degradation_text, render_card
    from medsr.trust.nullspace import NullSpace
    from medsr.trust.provenance import Provenance, provenance_of, verify
    from medsr.trust.quantification import BlandAltman, Line, RegionBias, bias_by_region, bland_altman, deming, ordinary
    from medsr.trust.resolution import OneImageResolution, PowerSpectrum, fsc_sectors, one_image_frc, power_spectrum
    from medsr.trust.roc import RocArea, roc_area, roc_curve
    from medsr.trust.sharpness import EdgeSharpness, NoisePower, noise_power, slanted_edge_mtf
    from medsr.trust.specks import Speck, find_specks, speck_contrast

__all__ = [
    "STRUCTURE_KINDS",
    "Audit",
    "BandNoise",
    "BlandAltman",
    "Bound",
    "Calibration",
    "Coverage",
    "Decorrelation",
    "EdgeSharpness",
    "FittedWidths",
    "FlatField",
    "Independence",
    "Interval",
    "Intervals",
    "LearnedWidths",
    "Line",
    "NoisePower",
    "NullSpace",
    "OneImageResolution",
    "PowerSpectrum",
    "Provenance",
    "RegionBias",
    "ResolutionRow",
    "RocArea",
    "Speck",
    "SpreadWidths",
    "StructureKind",
    "Suspicion",
    "audit",
    "bias_by_region",
    "bland_altman",
    "calibrate",
    "calibrate_run",
    "coverage",
    "decorrelation_analysis",
    "degradation_text",
    "deming",
    "find_parent",
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
    "parent_of",
    "power_spectrum",
    "provenance_of",
    "render_card",
    "resolution_table",
    "roc_area",
    "roc_curve",
    "sample_independence",
    "save_intervals",
    "slanted_edge_mtf",
    "smallest_n",
    "speck_contrast",
    "suspicions",
    "verify",
]

_ROOMS = {
    "STRUCTURE_KINDS": "auditing",
    "Audit": "auditing",
    "BandNoise": "flat_fields",
    "BlandAltman": "quantification",
    "Bound": "distances",
    "Calibration": "calibration",
    "Coverage": "calibration",
    "Decorrelation": "decorrelation",
    "EdgeSharpness": "sharpness",
    "FittedWidths": "fitting",
    "FlatField": "flat_fields",
    "Independence": "independence",
    "Interval": "distances",
    "Intervals": "intervals",
    "LearnedWidths": "distances",
    "Line": "quantification",
    "NoisePower": "sharpness",
    "NullSpace": "nullspace",
    "OneImageResolution": "resolution",
    "PowerSpectrum": "resolution",
    "Provenance": "provenance",
    "RegionBias": "quantification",
    "ResolutionRow": "before_after",
    "RocArea": "roc",
    "Speck": "specks",
    "SpreadWidths": "distances",
    "StructureKind": "auditing",
    "Suspicion": "invention",
    "audit": "auditing",
    "bias_by_region": "quantification",
    "bland_altman": "quantification",
    "calibrate": "calibration",
    "calibrate_run": "intervals",
    "coverage": "intervals",
    "decorrelation_analysis": "decorrelation",
    "degradation_text": "model_card",
    "deming": "quantification",
    "find_parent": "invention",
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
    "parent_of": "invention",
    "power_spectrum": "resolution",
    "provenance_of": "provenance",
    "render_card": "model_card",
    "resolution_table": "before_after",
    "roc_area": "roc",
    "roc_curve": "roc",
    "sample_independence": "independence",
    "save_intervals": "intervals",
    "slanted_edge_mtf": "sharpness",
    "smallest_n": "bounds",
    "speck_contrast": "specks",
    "suspicions": "invention",
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
