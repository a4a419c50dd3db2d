"""Detail from earlier fine scans: an indexed library, one coarse scan, and a map of where every detail comes from.

    python pipelines/exemplars.py SCAN OUT --fine FOLDER --factor 2      index FOLDER into OUT/library, then upscale
    python pipelines/exemplars.py SCAN OUT --library OUT/library         use the index again

Writes OUT/<scan>_fine.tif, OUT/<scan>_sources.tif (int16, -1 where interpolated), OUT/<scan>_sources.csv (its legend)
and OUT/<scan>_sources.png of the middle plane. Nothing is fetched. Exit code 0: done; 2: a mistake.
"""

import argparse
import csv
import sys
from itertools import product
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image

import medsr

COLORS = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (204, 121, 167)])


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="the coarse scan")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--fine", type=Path, help="fine scans of the same kind, to be indexed")
    parser.add_argument("--library", type=Path, help="an index made before")
    parser.add_argument("--factor", type=int, default=2, help="how much finer along y and x, for a new index")
    given = parser.parse_args(argv)
    try:
        if (given.fine is None) == (given.library is None):
            raise ValueError("name the fine scans with --fine, or an index with --library: one of the two")
        if given.fine:
            library = medsr.build_library(given.fine, factor=given.factor, out=given.out / "library")
        else:
            library = medsr.load_library(given.library)
        scan = medsr.read_scan(given.scan)
        method = medsr.Exemplars(library.factor, library).adapt(scan)
    except ValueError as error:  # what medsr says of a mistake names the file and the cure
        print(error, file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    refined = (n * f for n, f in zip(scan.shape[-2:], library.factor, strict=True))
    fine = np.empty((*scan.shape[:-2], *refined), scan.intensity.dtype)
    sources = np.full(fine.shape, -1, np.int16)
    for index in product(*(range(n) for n in scan.shape[:-2])):  # plane by plane
        stored = scan.read((*(slice(i, i + 1) for i in index), slice(None), slice(None)))
        low = torch.from_numpy(scan.intensity.to_unit(stored).reshape(1, 1, *scan.shape[-2:]))
        origin = (*index, 0, 0)
        fine[index] = scan.intensity.to_stored(method.at(origin)(low)[0, 0].numpy())
        sources[index] = method.provenance(low, origin=origin)[0]
    write(given.out, given.scan.name.split(".")[0], fine, sources, names=library.names)
    return 0


def write(out: Path, name: str, fine: np.ndarray, sources: np.ndarray, *, names: tuple[str, ...]) -> None:
    """The result, the map, its legend, and a picture of the middle plane with the sources in color."""
    tifffile.imwrite(out / f"{name}_fine.tif", fine)
    tifffile.imwrite(out / f"{name}_sources.tif", sources)
    with (out / f"{name}_sources.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("index", "scan", "share"))
        for number, scan in ((-1, "interpolated"), *enumerate(names)):
            table.writerow((number, scan, f"{(sources == number).mean():.4f}"))
    middle = tuple(n // 2 for n in fine.shape[:-2])
    low, high = np.percentile(fine[middle], (0.5, 99.5))
    gray = np.clip((fine[middle] - low) / max(high - low, 1), 0, 1)[..., None] * np.full(3, 0xFF)
    tint = np.where((sources[middle] >= 0)[..., None], COLORS[sources[middle] % len(COLORS)], gray)
    Image.fromarray(np.hstack([gray, 0.6 * gray + 0.4 * tint]).astype(np.uint8)).save(out / f"{name}_sources.png")


if __name__ == "__main__":
    sys.exit(main())
