"""2048 x 2048 to 8192 x 8192, file to disk: medsr against MONAI, same method, same machine, in turn.

    python benchmarks/tiling.py [--size 2048] [--rounds 3]

Each way runs in a process of its own, one after the other, round by round; printed are the medians of the wall time
and of the peak resident memory above what the bare imports hold, and the ratios to medsr.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

WAYS = ("medsr", "sliding_window", "zarr_merger")


def scan(path: Path, size: int) -> None:
    """The shipped mammogram, repeated by reflection to the size."""
    import medsr

    film = medsr.read_scan(medsr.MAMMOGRAM).read()
    rows, columns = (max(0, size - n) for n in film.shape)
    tifffile.imwrite(path, np.pad(film, ((0, rows), (0, columns)), mode="symmetric")[:size, :size])


def run_medsr(path: Path, out: Path) -> None:
    """medsr: tiles with an exact halo into shards."""
    import medsr

    medsr.upscale_folder(path, medsr.Cubic((4, 4)), out=out, memory=int(1.5e9), device="cpu")


def run_sliding_window(path: Path, out: Path) -> None:
    """MONAI SlidingWindowInferer with Gaussian weights, the result in memory, then to zarr."""
    import torch
    import zarr
    from monai.inferers import SlidingWindowInferer

    import medsr

    low = torch.from_numpy(tifffile.imread(path).astype("float32"))[None, None]
    inferer = SlidingWindowInferer(roi_size=(256, 256), sw_batch_size=1, overlap=0.25, mode="gaussian")
    with torch.inference_mode():
        fine = inferer(low, medsr.Cubic((4, 4)))
    result = np.clip(np.rint(fine[0, 0].numpy()), 0, np.iinfo("uint16").max).astype("uint16")
    zarr.save_array(str(out / "result.zarr"), result)


def run_zarr_merger(path: Path, out: Path) -> None:
    """MONAI PatchInferer with ZarrAvgMerger: the result on the disk, float32.

    Without overlap: where patches do not divide the image, this merger ends in an error (monai 1.6.1).
    """
    import torch
    from monai.inferers import PatchInferer, SlidingWindowSplitter, ZarrAvgMerger

    import medsr

    low = torch.from_numpy(tifffile.imread(path).astype("float32"))[None, None]
    inferer = PatchInferer(
        SlidingWindowSplitter((256, 256), overlap=0.0),
        merger_cls=ZarrAvgMerger,
        merged_shape=(1, 1, *(4 * n for n in low.shape[2:])),
        store=str(out / "result.zarr"),
        value_store=str(out / "values.zarr"),
        count_store=str(out / "counts.zarr"),
    )
    with torch.inference_mode():
        inferer(low, medsr.Cubic((4, 4)))


def one(way: str, path: Path) -> None:
    """One way in this process; prints its seconds and memory."""
    import monai.inferers  # noqa: F401 imported by all, so that the bare process is the same
    import torch  # noqa: F401

    import medsr

    medsr.Cubic((4, 4)), medsr.upscale_folder  # imported before the clock starts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        globals()[f"run_{way}"](path, Path(out))
        seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "megabytes": (peak - before) / 1024}))


def main() -> int:
    """Run all ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]))
        return 0
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.tif"
        scan(path, arguments.size)
        for _ in range(arguments.rounds):
            for way in WAYS:
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--one", way, str(path)], capture_output=True, text=True
                )
                if done.returncode:
                    print(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
                    continue
                figures[way].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        way: {key: statistics.median(f[key] for f in rows) for key in rows[0]} for way, rows in figures.items() if rows
    }
    base = medians["medsr"]
    print(f"{'way':16} {'seconds':>9} {'ratio':>7} {'peak MB':>9} {'ratio':>7}")
    for way, row in medians.items():
        seconds, megabytes = row["seconds"], row["megabytes"]
        print(
            f"{way:16} {seconds:9.2f} {seconds / base['seconds']:7.2f} {megabytes:9.0f} "
            f"{megabytes / base['megabytes']:7.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
