"""2048 x 2048 to 8192 x 8192, file to disk: medsr against a plain tile loop and MONAI, same method, in turn.

    python benchmarks/tiling.py [--size 2048] [--rounds 3]

A trivial method (cubic interpolation by 4), so that what is measured is the tiling, the writing and the memory. Only
medsr writes a pyramid and flushes what it wrote; the plain loop writes medsr's chunks and codec, MONAI's results are
written as their users write them. Memory is the peak above what the bare imports hold.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from paired import Column, answer, command_line, finish, own_process, peak_megabytes, report, run_rounds

WAYS = ("medsr", "plain_loop", "sliding_window", "zarr_merger")
COLUMNS = (Column("seconds", "seconds", ".2f", ratio=True), Column("megabytes", "peak MB", ".0f", ratio=True))


def scan(path: Path, size: int) -> None:
    """The shipped mammogram, repeated by reflection to the size."""
    import medsr

    film = medsr.read_scan(medsr.MAMMOGRAM).read()
    rows, columns = (max(0, size - n) for n in film.shape)
    tifffile.imwrite(path, np.pad(film, ((0, rows), (0, columns)), mode="symmetric")[:size, :size])


def run_medsr(path: Path, out: Path) -> None:
    """medsr: tiles with an exact halo into shards, with a pyramid."""
    import medsr

    row = medsr.upscale_folder(path, medsr.Cubic((4, 4)), out=out, memory=int(1.5e9), device="cpu").rows[0]
    if row.status != "done":
        raise RuntimeError(row.reason)


def run_plain_loop(path: Path, out: Path) -> None:
    """What one writes by hand: tiles of 256 with the halo, one step after the other, into a zarr array."""
    import torch
    import zarr
    from zarr.codecs import BloscCodec

    import medsr

    method, tile, factor = medsr.Cubic((4, 4)), 256, 4
    low = torch.from_numpy(tifffile.imread(path).astype("float32"))
    rows, columns = low.shape
    codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2)
    shape = (rows * factor, columns * factor)
    result = zarr.create_array(str(out / "r.zarr"), shape=shape, chunks=(256, 256), dtype="uint16", compressors=codec)
    halo = method.halo[0]
    for y in range(0, rows, tile):
        for x in range(0, columns, tile):
            top, left = max(0, y - halo), max(0, x - halo)
            with torch.inference_mode():
                fine = method(low[None, None, top : y + tile + halo, left : x + tile + halo])[0, 0].numpy()
            high, wide = factor * (min(rows, y + tile) - y), factor * (min(columns, x + tile) - x)
            kept = fine[(y - top) * factor :, (x - left) * factor :][:high, :wide]
            kept = np.clip(np.rint(kept), 0, np.iinfo("uint16").max).astype("uint16")
            result[y * factor : y * factor + high, x * factor : x * factor + wide] = kept


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
    """One way in this process; answers its seconds and memory."""
    import monai.inferers  # noqa: F401 imported by all, so that the bare process is the same
    import torch  # noqa: F401

    import medsr

    run = {"medsr": run_medsr, "plain_loop": run_plain_loop, "sliding_window": run_sliding_window}
    chosen = run.get(way, run_zarr_merger)
    method, verb = medsr.Cubic, medsr.upscale_folder  # imported before the clock starts
    before = peak_megabytes()
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        chosen(path, Path(out))
        seconds = time.perf_counter() - begun
    answer(seconds=seconds, megabytes=peak_megabytes() - before)
    del method, verb


def main() -> int:
    """Run all ways in turn and print the table."""
    parser = command_line(__doc__, rounds=3)
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the scan")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FILE"), help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.tif"
        scan(path, arguments.size)
        ways = {way: partial(own_process, __file__, "--one", way, path) for way in WAYS}
        results = run_rounds(ways, arguments.rounds)
        size = arguments.size
        title = f"{size}^2 to {4 * size}^2 by cubic interpolation, file to disk"
        done = report(results, COLUMNS, base="medsr", title=title, settings=arguments)
    return finish([done], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
