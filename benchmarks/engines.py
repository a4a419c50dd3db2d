"""SRResNet x4 from file to OME-Zarr: medsr's engines against a plain float32 tile loop, same weights, same halo.

    python benchmarks/engines.py [--size 1024] [--blocks 16] [--rounds 3]

The plain loop is what one writes by hand: tiles with the exact halo through the eager network, rounded, into a zarr
array with medsr's chunks and codec, one step after the other, without a pyramid. Its tile is that of `--tile`.
Deviation is the largest of the whole result from the plain loop's, in gray levels.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from paired import Column, Figures, answer, command_line, finish, own_process, peak_megabytes, report, run_rounds

COLUMNS = (
    Column("seconds", "seconds", ".2f", ratio=True),
    Column("deviation", "largest deviation", ".1f"),
    Column("peak_mb", "peak MB", ".0f"),
)
WAYS = {
    "plain loop": ("plain", "", 0.0),
    "medsr torch": ("medsr", "torch", 1e9),
    "medsr compiled, exact": ("medsr", "compiled", 0.5),
    "medsr compiled": ("medsr", "compiled", 1e9),
    "medsr openvino, exact": ("medsr", "openvino", 0.5),
    "medsr openvino": ("medsr", "openvino", 1e9),
    "medsr auto, default tolerance": ("medsr", "auto", -1.0),
}
"""Name: kind, engine, tolerance in gray levels (-1: the default). Half a gray level admits float32 only."""


def network(blocks: int, factor: int):
    """SRResNet with weights that add detail worth a deviation."""
    import torch

    import medsr

    torch.manual_seed(0)
    made = medsr.SRResNet((factor, factor), blocks=blocks).eval()
    with torch.no_grad():
        made.tail.weight.mul_(3)
    return made


def scan(path: Path, size: int) -> None:
    """The shipped mammogram, repeated by reflection to the size."""
    import medsr

    film = medsr.read_scan(medsr.MAMMOGRAM).read()
    rows, columns = (max(0, size - n) for n in film.shape)
    tifffile.imwrite(path, np.pad(film, ((0, rows), (0, columns)), mode="symmetric")[:size, :size])


def plain(path: Path, out: Path, made, tile: int) -> None:
    """The loop one writes by hand."""
    import torch
    import zarr
    from zarr.codecs import BloscCodec

    import medsr

    stored = tifffile.imread(path)
    line = medsr.read_scan(path).intensity
    (factor, _), (halo, _) = made.factor, made.halo
    codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2)
    shape = tuple(n * factor for n in stored.shape)
    result = zarr.create_array(str(out), shape=shape, chunks=(256, 256), dtype=stored.dtype, compressors=codec)
    low = torch.from_numpy(((stored.astype("float64") - line.black) / (line.white - line.black)).astype("float32"))
    with torch.inference_mode():
        for y in range(0, stored.shape[0], tile):
            for x in range(0, stored.shape[1], tile):
                top, left = max(0, y - halo), max(0, x - halo)
                bottom, right = (min(n, a + tile + halo) for n, a in zip(stored.shape, (y, x), strict=True))
                fine = made(low[None, None, top:bottom, left:right])[0, 0].numpy()
                high, wide = (factor * (min(n, a + tile) - a) for n, a in zip(stored.shape, (y, x), strict=True))
                y0, x0 = (y - top) * factor, (x - left) * factor
                kept = fine[y0 : y0 + high, x0 : x0 + wide] * (line.white - line.black) + line.black
                kept = np.clip(np.rint(kept), 0, np.iinfo(stored.dtype).max).astype(stored.dtype)
                result[y * factor : y * factor + high, x * factor : x * factor + wide] = kept


def one(name: str, path: Path, kept: Path, arguments) -> None:
    """One way in this process."""
    import zarr

    import medsr

    kind, engine, tolerance = WAYS[name]
    made = network(arguments.blocks, arguments.factor)
    verb = medsr.upscale_folder  # imported before the clock starts
    bare = peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        begun = time.perf_counter()
        if kind == "plain":
            plain(path, out / "plain.zarr", made, arguments.tile)
            array = "plain.zarr"
        else:
            row = verb(
                path,
                made,
                out=out,
                engine=engine,
                tolerance=None if tolerance < 0 else tolerance,
                device="cpu",
                note=lambda line: print(line, file=sys.stderr),
            ).rows[0]
            if row.status != "done":
                raise RuntimeError(row.reason)
            array = f"{path.stem}.ome.zarr/0"
        seconds = time.perf_counter() - begun
        peak = peak_megabytes() - bare
        result = zarr.open_array(str(out / array), mode="r")[:]
    if kind == "plain":
        np.save(kept, result)
    deviation = float(np.abs(result.astype(int) - np.load(kept).astype(int)).max()) if kept.exists() else float("nan")
    answer(seconds=seconds, peak_mb=peak, deviation=deviation)


def measured(name: str, path: Path, kept: Path, options: list[str]) -> Figures:
    """One way in a process of its own."""
    return own_process(__file__, "--one", name, path, kept, *options)


def main() -> int:
    """Run all ways in turn and print the table."""
    parser = command_line(__doc__, rounds=3)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of the scan")
    parser.add_argument("--blocks", type=int, default=16, help="residual blocks")
    parser.add_argument("--factor", type=int, default=4, help="of both axes")
    parser.add_argument("--tile", type=int, default=256, help="of the plain loop")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), metavar="WAY", help="only these")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "SCAN", "FILE"), help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]), Path(arguments.one[2]), arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / "scan.tif", Path(folder) / "plain.npy"
        scan(path, arguments.size)
        options = ["--blocks", str(arguments.blocks), "--factor", str(arguments.factor), "--tile", str(arguments.tile)]
        base = "plain loop"
        names = [base, *(name for name in arguments.ways if name != base)]
        ways = {name: partial(measured, name, path, kept, options) for name in names}
        results = run_rounds(ways, arguments.rounds)
        title = f"SRResNet-{arguments.blocks} x{arguments.factor}, {arguments.size}^2 file to OME-Zarr"
        done = report(results, COLUMNS, base=base, title=title, settings=arguments)
    return finish([done], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
