"""Blind against told: an IKC run on scans of known blur, told the true width, half, half as much again, and blind.

    python benchmarks/blind.py RUN SCANS --widths 0.8 1.2 1.6

Each scan is blurred by a Gaussian of the width (full width at half maximum in coarse samples), made coarse, and
upscaled four times by the same network. Prints the mean PSNR over the scans, and the widths that were found.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import medsr

TOLD = {"true": 1.0, "half": 0.5, "half more": 1.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of an ikc method whose correction phase is done")
    parser.add_argument("scans", type=Path, help="fine scans it has not learned from")
    parser.add_argument("--widths", type=float, nargs="+", default=[0.8, 1.2, 1.6], help="true widths, coarse samples")
    parser.add_argument("--side", type=int, default=256, help="fine samples of the middle of each scan that are used")
    given = parser.parse_args(argv)
    network = medsr.load_upscaler(given.run).network
    if not isinstance(network, medsr.IkcNetwork):
        print(f"{given.run}: expected a run of an ikc method, found {network!r}", file=sys.stderr)
        return 2
    fields = [middle(medsr.read_scan(source), given.side) for source in medsr.find_scans(given.scans)]
    print(
        f"{'true width':>10} {'cubic':>7} " + "".join(f"{'told ' + name:>15}" for name in TOLD) + f"{'blind':>8}  found"
    )
    for width in given.widths:
        rows, found = [], []
        for high in fields:
            row, seen = measured(network, high, width)
            rows.append(row)
            found.append(seen)
        mean = np.mean(rows, axis=0)
        figures = "".join(f"{value:>15.2f}" for value in mean[1:-1])
        widths = " ".join(f"{seen:.2f}" for seen in found)
        print(f"{width:>10.2f} {mean[0]:>7.2f} {figures}{mean[-1]:>8.2f}  {widths}")
    return 0


def middle(scan: medsr.Scan, side: int) -> torch.Tensor:
    """(1, 1, rows, columns) of the middle plane's middle in unit intensity, even sizes."""
    planes = scan.intensity.to_unit(scan.read()).reshape(-1, *scan.shape[-2:])
    plane = planes[len(planes) // 2]
    sizes = [min(side, n // 2 * 2) for n in plane.shape]
    starts = [(n - size) // 2 for n, size in zip(plane.shape, sizes, strict=True)]
    inner = plane[starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]
    return torch.from_numpy(np.ascontiguousarray(inner))[None, None]


def measured(network: medsr.IkcNetwork, high: torch.Tensor, width: float) -> tuple[list[float], float]:
    """PSNR of cubic, of the network told each width, and blind; and the width it found."""
    factor = network.factor
    degradation = medsr.Degradation(factor, kernel=medsr.Gaussian(fwhm_samples=width))
    low = degradation.mean(high)
    unit = medsr.Intensity(0.0, 1.0, np.dtype(np.float32))
    blind = network.adapt(medsr.Scan(low[0, 0].numpy(), medsr.Grid(("y", "x")), unit))
    told = [network.tell((width * share,) * len(factor)) for share in TOLD.values()]
    truth = high[0, 0].numpy()
    with torch.inference_mode():
        estimates = [upscaler(low)[0, 0].numpy() for upscaler in (medsr.Cubic(factor), *told, blind)]
    return [medsr.psnr_db(estimate, truth, data_range=1.0) for estimate in estimates], blind.fwhm_samples[-1]


if __name__ == "__main__":
    sys.exit(main())
