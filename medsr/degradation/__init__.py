"""How a fine scan becomes a coarse one: kernels in micrometers, sampling, noise, and the range a method expects."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.degradation.dose import noise_kernel, noise_power_spectrum, simulate_low_dose
    from medsr.degradation.kernels import Airy, FineGrid, Gaussian, Kernel, Part, Weights
    from medsr.degradation.matlab import matlab_imresize
    from medsr.degradation.microscope import confocal_fwhm_um, widefield_fwhm_um
    from medsr.degradation.mtf import DetectorMTF
    from medsr.degradation.noise import Noise, PoissonGaussian
    from medsr.degradation.operator import Degradation
    from medsr.degradation.range import DegradationRange, SecondOrderRange
    from medsr.degradation.scanning import ScanningNoise
    from medsr.degradation.second_order import SecondOrder

__all__ = [
    "Airy",
    "Degradation",
    "DegradationRange",
    "DetectorMTF",
    "FineGrid",
    "Gaussian",
    "Kernel",
    "Noise",
    "Part",
    "PoissonGaussian",
    "ScanningNoise",
    "SecondOrder",
    "SecondOrderRange",
    "Weights",
    "confocal_fwhm_um",
    "matlab_imresize",
    "noise_kernel",
    "noise_power_spectrum",
    "simulate_low_dose",
    "widefield_fwhm_um",
]

_HOMES = {
    "dose": ("noise_kernel", "noise_power_spectrum", "simulate_low_dose"),
    "kernels": ("Airy", "FineGrid", "Gaussian", "Kernel", "Part", "Weights"),
    "matlab": ("matlab_imresize",),
    "microscope": ("confocal_fwhm_um", "widefield_fwhm_um"),
    "mtf": ("DetectorMTF",),
    "noise": ("Noise", "PoissonGaussian"),
    "operator": ("Degradation",),
    "range": ("DegradationRange", "SecondOrderRange"),
    "scanning": ("ScanningNoise",),
    "second_order": ("SecondOrder",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, so that reading a recipe imports no torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
