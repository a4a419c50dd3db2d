"""Projection: how far a run's results, degraded again, are from the scan they came from; plain and projected.

    python benchmarks/projection.py SCANS RUN [RUN ...]

Each scan is made coarse as the run was trained for, in floats and without noise, and upscaled by the run as it stands
and inside `Consistent`. Prints root mean squares of the re-degraded error in gray levels of 65,536, their ratio, and
the PSNR of both.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import medsr

LEVELS = 2**16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="fine scans the runs have not learned from")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--side", type=int, default=256, help="fine samples of the middle of each scan that are used")
    given = parser.parse_args(argv)
    fields = [middle(medsr.read_scan(source), given.side) for source in medsr.find_scans(given.scans)]
    print(f"{'run':<14}{'error':>10}{'projected':>12}{'ratio':>9}{'PSNR':>9}{'projected':>12}")
    for run in given.runs:
        plain = medsr.load_upscaler(run)
        rows = np.array([measured(plain, high) for high in fields])
        errors, psnr = np.sqrt((rows[:, :2] ** 2).mean(axis=0)) * LEVELS, rows[:, 2:].mean(axis=0)
        figures = f"{errors[0]:>10.2f}{errors[1]:>12.4f}{errors[0] / errors[1]:>9.0f}{psnr[0]:>9.2f}{psnr[1]:>12.2f}"
        print(f"{run.name:<14}{figures}")
    return 0


def middle(scan: medsr.Scan, side: int) -> medsr.Scan:
    """The middle of the middle plane, in floats of unit intensity."""
    planes = scan.intensity.to_unit(scan.read()).reshape(-1, *scan.shape[-2:])
    plane = planes[len(planes) // 2]
    cut = [slice((n - m) // 2, (n - m) // 2 + m) for n in plane.shape for m in [min(side, n) // 4 * 4]]
    unit = medsr.Intensity(0.0, 1.0, np.dtype(np.float32))
    return medsr.Scan(np.ascontiguousarray(plane[tuple(cut)]), medsr.Grid(("y", "x")), unit)


def measured(upscaler: medsr.TrainedUpscaler, high: medsr.Scan) -> tuple[float, float, float, float]:
    """Root mean square of the re-degraded error, plain and projected, in unit intensity; PSNR in dB of both."""
    degradation = replace_noise(upscaler.recipe.degradation).center(upscaler.factor)
    truth = torch.from_numpy(high.read())[None, None]
    low = degradation.mean(truth)
    coarse = replace(high, data=low[0, 0].numpy())
    errors, psnr = [], []
    for way in (upscaler, medsr.Consistent(upscaler, degradation, noise=0.0)):
        estimate = medsr.upscale(coarse, way).read()
        again = degradation.mean(torch.from_numpy(estimate)[None, None])
        errors.append(float((again - low).square().mean().sqrt()))
        psnr.append(medsr.psnr_db(estimate, high.read(), data_range=1.0))
    return (*errors, *psnr)  # type: ignore[return-value]  # two of each


def replace_noise(degradation: medsr.DegradationRange) -> medsr.DegradationRange:
    """The degradation without noise, so that the truth itself has no error."""
    return degradation.model_copy(update={"photons": None, "read_noise": None, "local_variance": None})


if __name__ == "__main__":
    sys.exit(main())
