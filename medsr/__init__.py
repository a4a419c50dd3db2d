"""The one door: every public noun and verb by name, imported when first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsr.version import __version__

if TYPE_CHECKING:
    from medsr.batch import upscale_folder
    from medsr.blending import blend_checkpoints
    from medsr.blur import BlurEstimate, BlurReport, estimate_blur, estimate_blurs
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
    from medsr.comparison import KINDS, Budget, compare
    from medsr.config import ConfigError, apply_overrides, config_schema, dump_config, load_config
    from medsr.consistency import ConsistencyMap, consistency_map
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
    from medsr.io.pseudonyms import Pseudonyms
    from medsr.job import OutputOptions
    from medsr.library import Library, build_library, load_library
    from medsr.methods import (
        DFCAN,
        INTERPOLATIONS,
        RCAN,
        UNTRAINED,
        Consistent,
        Cubic,
        Edges,
        EdgesWithDetail,
        Ensemble,
        EspcnNetwork,
        Exemplars,
        FastNetwork,
        FsrcnnNetwork,
        IkcNetwork,
        Lanczos,
        Leveled,
        Linear,
        PatchDiscriminator,
        RRDBNet,
        ScnNetwork,
        SelfExemplars,
        SrganDiscriminator,
        SRResNet,
        UnetDiscriminator,
        interpolate,
        is_foreign,
        load_foreign,
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
    from medsr.paired_evaluation import evaluate_pairs, is_pairs
    from medsr.perceptual import gmsd, haarpsi
    from medsr.plan import MemoryTooSmallError
    from medsr.recipe import (
        AdversarialRecipe,
        ContentLoss,
        DataRecipe,
        DfcanRecipe,
        EspcnRecipe,
        EsrganRecipe,
        FastRecipe,
        FsrcnnRecipe,
        IkcRecipe,
        IntensityRule,
        Method,
        NetworkRecipe,
        RcanRecipe,
        Recipe,
        RrdbRecipe,
        ScnRecipe,
        SrganRecipe,
        SrresnetRecipe,
        TrainingRecipe,
    )
    from medsr.report import write_batch_report, write_report
    from medsr.rows import BatchReport, BatchRow
    from medsr.scan import Axis, Factor, Grid, Intensity, LazyArray, Region, Scan, ScanError
    from medsr.shards import Share
    from medsr.surface import SurfaceParameters, surface_parameters
    from medsr.training import TrainingError, train
    from medsr.transforms import LoadScand, RandDegraded, RandPatchd, ScanReader
    from medsr.trust import (
        STRUCTURE_KINDS,
        Audit,
        Calibration,
        Intervals,
        Provenance,
        StructureKind,
        Suspicion,
        audit,
        calibrate,
        calibrate_run,
        coverage,
        load_intervals,
        provenance_of,
        render_card,
        resolution_table,
        suspicions,
        verify,
    )
    from medsr.upscaler import Upscaler
    from medsr.upscaling import upscale, upscaled_blocks

__all__ = [
    "DFCAN",
    "ENGINES",
    "INTERPOLATIONS",
    "KINDS",
    "MAMMOGRAM",
    "NUCLEI",
    "RCAN",
    "SURFACE",
    "STRUCTURE_KINDS",
    "UNTRAINED",
    "AdversarialRecipe",
    "Airy",
    "Audit",
    "Axis",
    "BatchReport",
    "BatchRow",
    "BlurEstimate",
    "BlurReport",
    "Budget",
    "Calibration",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "ConsistencyMap",
    "Consistent",
    "ContentLoss",
    "Cubic",
    "DataRecipe",
    "Degradation",
    "DegradationRange",
    "DetectorMTF",
    "DfcanRecipe",
    "Edges",
    "EdgesWithDetail",
    "EngineChoice",
    "EngineName",
    "Ensemble",
    "EspcnNetwork",
    "EspcnRecipe",
    "EsrganRecipe",
    "EvaluationReport",
    "Exemplars",
    "Factor",
    "FastNetwork",
    "FastRecipe",
    "FsrcnnNetwork",
    "FsrcnnRecipe",
    "Gaussian",
    "Grid",
    "IkcNetwork",
    "IkcRecipe",
    "Intensity",
    "IntensityRule",
    "Intervals",
    "Lanczos",
    "LazyArray",
    "Leveled",
    "Library",
    "Linear",
    "LoadScand",
    "MemoryTooSmallError",
    "Method",
    "NetworkRecipe",
    "OutputOptions",
    "PatchDiscriminator",
    "PoissonGaussian",
    "Provenance",
    "Pseudonyms",
    "RRDBNet",
    "RandDegraded",
    "RandPatchd",
    "RcanRecipe",
    "Recipe",
    "Region",
    "Resolution",
    "RingCurve",
    "RrdbRecipe",
    "SRResNet",
    "Scan",
    "ScanError",
    "ScanReader",
    "ScnNetwork",
    "ScnRecipe",
    "SelfExemplars",
    "Share",
    "Source",
    "SrganDiscriminator",
    "SrganRecipe",
    "SrresnetRecipe",
    "StructureKind",
    "SurfaceParameters",
    "Suspicion",
    "TrainedUpscaler",
    "TrainingCard",
    "TrainingError",
    "TrainingInput",
    "TrainingRecipe",
    "UnetDiscriminator",
    "Upscaler",
    "__version__",
    "agreement",
    "apply_overrides",
    "audit",
    "blend_checkpoints",
    "build_library",
    "build_network",
    "calibrate",
    "calibrate_run",
    "check_scan",
    "choose_engine",
    "compare",
    "config_schema",
    "confocal_fwhm_um",
    "consistency_db",
    "consistency_map",
    "coverage",
    "dump_config",
    "estimate_blur",
    "estimate_blurs",
    "evaluate",
    "evaluate_pairs",
    "find_scans",
    "foreground_mask",
    "frc_curve",
    "frc_resolution",
    "frc_um",
    "gmsd",
    "haarpsi",
    "interpolate",
    "is_foreign",
    "is_pairs",
    "load_checkpoint",
    "load_config",
    "load_foreign",
    "load_intervals",
    "load_library",
    "load_upscaler",
    "matlab_imresize",
    "nrmse",
    "provenance_of",
    "psnr_db",
    "read_scan",
    "render_card",
    "resolution_table",
    "sample_path",
    "save_checkpoint",
    "simulate_low_dose",
    "ssim",
    "surface_parameters",
    "suspicions",
    "train",
    "upscale",
    "upscale_folder",
    "upscaled_blocks",
    "verify",
    "widefield_fwhm_um",
    "write_batch_report",
    "write_report",
]

_ROOMS = {
    "batch": "upscale_folder",
    "blending": "blend_checkpoints",
    "blur": "BlurEstimate BlurReport estimate_blur estimate_blurs",
    "checkpoint": (
        "Checkpoint CheckpointError TrainedUpscaler TrainingCard TrainingInput build_network check_scan "
        "load_checkpoint load_upscaler save_checkpoint"
    ),
    "comparison": "KINDS Budget compare",
    "consistency": "ConsistencyMap consistency_map",
    "config": "ConfigError apply_overrides config_schema dump_config load_config",
    "data": "MAMMOGRAM NUCLEI SURFACE sample_path",
    "degradation": (
        "Airy Degradation DegradationRange DetectorMTF Gaussian PoissonGaussian confocal_fwhm_um matlab_imresize "
        "simulate_low_dose widefield_fwhm_um"
    ),
    "engines": "ENGINES EngineChoice EngineName choose_engine",
    "evaluation": "EvaluationReport evaluate",
    "io": "Source find_scans read_scan",
    "io.pseudonyms": "Pseudonyms",
    "job": "OutputOptions",
    "library": "Library build_library load_library",
    "methods": (
        "DFCAN INTERPOLATIONS RCAN UNTRAINED Consistent Cubic Edges EdgesWithDetail Ensemble EspcnNetwork "
        "Exemplars FastNetwork FsrcnnNetwork IkcNetwork Lanczos Leveled Linear PatchDiscriminator RRDBNet "
        "SRResNet ScnNetwork SelfExemplars SrganDiscriminator UnetDiscriminator interpolate is_foreign "
        "load_foreign"
    ),
    "metrics": (
        "Resolution RingCurve agreement consistency_db foreground_mask frc_curve frc_resolution frc_um nrmse "
        "psnr_db ssim"
    ),
    "paired_evaluation": "evaluate_pairs is_pairs",
    "perceptual": "gmsd haarpsi",
    "plan": "MemoryTooSmallError",
    "recipe": (
        "AdversarialRecipe ContentLoss DataRecipe DfcanRecipe EspcnRecipe EsrganRecipe FastRecipe FsrcnnRecipe "
        "IkcRecipe IntensityRule Method NetworkRecipe RcanRecipe Recipe RrdbRecipe ScnRecipe SrganRecipe "
        "SrresnetRecipe TrainingRecipe"
    ),
    "report": "write_batch_report write_report",
    "rows": "BatchReport BatchRow",
    "scan": "Axis Factor Grid Intensity LazyArray Region Scan ScanError",
    "shards": "Share",
    "surface": "SurfaceParameters surface_parameters",
    "training": "TrainingError train",
    "transforms": "LoadScand RandDegraded RandPatchd ScanReader",
    "trust": (
        "STRUCTURE_KINDS Audit Calibration Intervals Provenance StructureKind Suspicion audit calibrate calibrate_run "
        "coverage load_intervals provenance_of render_card resolution_table suspicions verify"
    ),
    "upscaler": "Upscaler",
    "upscaling": "upscale upscaled_blocks",
}
"""Which room each name lives in."""

_HOMES = {name: f"medsr.{room}" for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
