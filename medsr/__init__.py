"""The one door: every public noun and verb by name, imported when first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsr.version import __version__

if TYPE_CHECKING:
    from medsr.batch import upscale_folder
    from medsr.checkpoint import (
        Checkpoint,
        CheckpointError,
        TrainedUpscaler,
        TrainingCard,
        TrainingInput,
        build_network,
        check_scan,
        load_checkpoint,
        load_upscaler,
        save_checkpoint,
    )
    from medsr.config import ConfigError, apply_overrides, config_schema, dump_config, load_config
    from medsr.data import MAMMOGRAM, NUCLEI, SURFACE, sample_path
    from medsr.degradation import (
        Airy,
        Degradation,
        DegradationRange,
        DetectorMTF,
        Gaussian,
        PoissonGaussian,
        confocal_fwhm_um,
        matlab_imresize,
        simulate_low_dose,
        widefield_fwhm_um,
    )
    from medsr.engines import ENGINES, EngineChoice, EngineName, choose_engine
    from medsr.evaluation import EvaluationReport, evaluate
    from medsr.io import Source, find_scans, read_scan
    from medsr.job import OutputOptions
    from medsr.methods import (
        INTERPOLATIONS,
        Cubic,
        Lanczos,
        Linear,
        PatchDiscriminator,
        SrganDiscriminator,
        SRResNet,
        interpolate,
    )
    from medsr.metrics import (
        Resolution,
        RingCurve,
        agreement,
        consistency_db,
        foreground_mask,
        frc_curve,
        frc_resolution,
        frc_um,
        nrmse,
        psnr_db,
        ssim,
    )
    from medsr.plan import MemoryTooSmallError
    from medsr.recipe import (
        ContentLoss,
        DataRecipe,
        IntensityRule,
        Method,
        Recipe,
        SrganRecipe,
        SrresnetRecipe,
        TrainingRecipe,
    )
    from medsr.rows import BatchReport, BatchRow
    from medsr.scan import Axis, Factor, Grid, Intensity, LazyArray, Region, Scan, ScanError
    from medsr.shards import Share
    from medsr.training import TrainingError, train
    from medsr.transforms import LoadScand, RandDegraded, RandPatchd, ScanReader
    from medsr.upscaler import Upscaler
    from medsr.upscaling import upscale, upscaled_blocks

__all__ = [
    "ENGINES",
    "INTERPOLATIONS",
    "MAMMOGRAM",
    "NUCLEI",
    "SURFACE",
    "Airy",
    "Axis",
    "BatchReport",
    "BatchRow",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "ContentLoss",
    "Cubic",
    "DataRecipe",
    "Degradation",
    "DegradationRange",
    "DetectorMTF",
    "EngineChoice",
    "EngineName",
    "EvaluationReport",
    "Factor",
    "Gaussian",
    "Grid",
    "Intensity",
    "IntensityRule",
    "Lanczos",
    "LazyArray",
    "Linear",
    "LoadScand",
    "MemoryTooSmallError",
    "Method",
    "OutputOptions",
    "PatchDiscriminator",
    "PoissonGaussian",
    "RandDegraded",
    "RandPatchd",
    "Recipe",
    "Region",
    "Resolution",
    "RingCurve",
    "SRResNet",
    "Scan",
    "ScanError",
    "ScanReader",
    "Share",
    "Source",
    "SrganDiscriminator",
    "SrganRecipe",
    "SrresnetRecipe",
    "TrainedUpscaler",
    "TrainingCard",
    "TrainingError",
    "TrainingInput",
    "TrainingRecipe",
    "Upscaler",
    "__version__",
    "agreement",
    "apply_overrides",
    "build_network",
    "check_scan",
    "choose_engine",
    "config_schema",
    "confocal_fwhm_um",
    "consistency_db",
    "dump_config",
    "evaluate",
    "find_scans",
    "foreground_mask",
    "frc_curve",
    "frc_resolution",
    "frc_um",
    "interpolate",
    "load_checkpoint",
    "load_config",
    "load_upscaler",
    "matlab_imresize",
    "nrmse",
    "psnr_db",
    "read_scan",
    "sample_path",
    "save_checkpoint",
    "simulate_low_dose",
    "ssim",
    "train",
    "upscale",
    "upscale_folder",
    "upscaled_blocks",
    "widefield_fwhm_um",
]

_ROOMS = {
    "batch": ("upscale_folder",),
    "checkpoint": (
        "Checkpoint",
        "CheckpointError",
        "TrainedUpscaler",
        "TrainingCard",
        "TrainingInput",
        "build_network",
        "check_scan",
        "load_checkpoint",
        "load_upscaler",
        "save_checkpoint",
    ),
    "config": ("ConfigError", "apply_overrides", "config_schema", "dump_config", "load_config"),
    "data": ("MAMMOGRAM", "NUCLEI", "SURFACE", "sample_path"),
    "degradation": (
        "Airy",
        "Degradation",
        "DegradationRange",
        "DetectorMTF",
        "Gaussian",
        "PoissonGaussian",
        "confocal_fwhm_um",
        "matlab_imresize",
        "simulate_low_dose",
        "widefield_fwhm_um",
    ),
    "engines": ("ENGINES", "EngineChoice", "EngineName", "choose_engine"),
    "evaluation": ("EvaluationReport", "evaluate"),
    "io": ("Source", "find_scans", "read_scan"),
    "job": ("OutputOptions",),
    "methods": (
        "INTERPOLATIONS",
        "Cubic",
        "Lanczos",
        "Linear",
        "PatchDiscriminator",
        "SRResNet",
        "SrganDiscriminator",
        "interpolate",
    ),
    "metrics": (
        "Resolution",
        "RingCurve",
        "agreement",
        "consistency_db",
        "foreground_mask",
        "frc_curve",
        "frc_resolution",
        "frc_um",
        "nrmse",
        "psnr_db",
        "ssim",
    ),
    "plan": ("MemoryTooSmallError",),
    "recipe": (
        "ContentLoss",
        "DataRecipe",
        "IntensityRule",
        "Method",
        "Recipe",
        "SrganRecipe",
        "SrresnetRecipe",
        "TrainingRecipe",
    ),
    "rows": ("BatchReport", "BatchRow"),
    "scan": ("Axis", "Factor", "Grid", "Intensity", "LazyArray", "Region", "Scan", "ScanError"),
    "shards": ("Share",),
    "training": ("TrainingError", "train"),
    "transforms": ("LoadScand", "RandDegraded", "RandPatchd", "ScanReader"),
    "upscaler": ("Upscaler",),
    "upscaling": ("upscale", "upscaled_blocks"),
}
"""Which room each name lives in."""

_HOMES = {name: f"medsr.{room}" for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
