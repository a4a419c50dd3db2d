"""What one CUDA card gives: matrix rate, network rate by engine, file to OME-Zarr, training steps; one table each.

    python benchmarks/gpu.py                         # where torch sees a card
    python benchmarks/gpu.py --device cpu --small    # the same code at toy size, to test it

The measure is the card's own: the rate of a large bfloat16 matrix product, taken in the same rounds; the ratio behind
each FLOP rate is the share of it. A network's FLOP are those of SRResNet as published (`flop`), two for each weight and
position, whatever cheaper algebra an engine finds. `network` calls an engine on a tile with its halo, from the host's
memory and back to it; `in kernels` leaves out those copies and whatever else keeps the card idle. `file to OME-Zarr` is
`upscale_folder` from a TIFF to a finished pyramid. `read`, `compute` and `write` are what the stages were busy, each in
threads of its own: they overlap, and writers add up.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import training
from paired import Column, Figures, Way, WayFailedError, command_line, finish, report, run_rounds

import medsr
from medsr.engines import EngineChoice, build_engine

MATRIX = "matrix product, bfloat16"

COLUMNS = (
    Column("seconds", "seconds", ".4g"),
    Column("tflop_per_s", "TFLOP/s", ".3g", ratio=True),
    Column("in_kernels", "in kernels", ".3g", ratio=True),
    Column("megapixels_per_s", "Mpixel/s out", ".1f"),
    Column("read", "read s", ".2f"),
    Column("compute", "compute s", ".2f"),
    Column("write", "write s", ".2f"),
)

ENGINES = {
    "cuda": (("torch", "float32"), ("compiled", "bfloat16"), ("compiled", "float16")),
    "cpu": (("torch", "float32"),),
}


def flop(network: medsr.SRResNet, size: tuple[int, ...], kept: tuple[int, ...] | None = None) -> int:
    """Floating-point operations of one tile: two for each weight of a convolution at each position; activations, edges
    and the interpolation are not counted.

    Args:
        network: what runs.
        size: coarse samples that go in.
        kept: coarse samples whose fine ones are made, fewer by the halo; None: all.
    """
    convolutions = (torch.nn.Conv2d, torch.nn.Conv3d)
    coarse = [network.head, *(p for p in (*network.body.modules(), *network.mid) if isinstance(p, convolutions))]
    weights = sum(part.weight.numel() for part in coarse)
    finer, fine_weights = 1, 0
    for stage in network.upsampling:
        fine_weights += finer * stage.conv.weight.numel()
        finer *= math.prod(stage.factor)
    fine_weights += finer * network.tail.weight.numel()
    return 2 * (math.prod(size) * weights + math.prod(kept or size) * fine_weights)


def large_scan(path: Path, side: int) -> None:
    """The shipped mammogram, continued by reflection to a square."""
    film = medsr.read_scan(medsr.MAMMOGRAM).read()
    rows, columns = (max(0, side - n) for n in film.shape)
    whole = np.pad(film, ((0, rows), (0, columns)), mode="symmetric")[:side, :side]
    tifffile.imwrite(path, whole, tile=(512, 512))


def rates(call: Callable[[], Any], work: float, device: str, *, calls: int) -> Figures:
    """Seconds of one call and the rate of its `work` (FLOP), by the clock and in the card's kernels alone."""
    wait: Callable[[], None] = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    seconds = (time.perf_counter() - begun) / calls
    busy = seconds if device == "cpu" else kernel_seconds(call)
    return {"seconds": seconds, "tflop_per_s": work / seconds / 1e12, "in_kernels": work / busy / 1e12}


def kernel_seconds(call: Callable[[], Any]) -> float:
    """Time of one call's kernels on the card; copies from and to the host are left out."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    kernels = [event for event in profile.key_averages() if not event.key.startswith(("Memcpy", "Memset"))]
    return sum(float(event.self_device_time_total) for event in kernels) / 1e6


def matrix_way(side: int, device: str, calls: int) -> Way:
    """A product of two square matrices."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: rates(lambda: one @ other, 2 * side**3, device, calls=calls)


def network_ways(scan: medsr.Scan, network: medsr.SRResNet, arguments: argparse.Namespace) -> dict[str, Way]:
    """The network by each engine, on a tile inside the scan with its halo."""
    size = tuple(min(n, arguments.tile + 2 * h) for n, h in zip(scan.shape, network.halo, strict=True))
    low = torch.from_numpy(scan.intensity.to_unit(scan.read(tuple(slice(n) for n in size))))[None, None]
    choices = [EngineChoice(*engine, deviation=0.0, tolerance=math.inf) for engine in ENGINES[arguments.device]]
    return {
        f"network, {choice.name} {choice.precision}": partial(engine_figures, network, choice, low, arguments)
        for choice in choices
    }


def engine_figures(
    network: medsr.SRResNet, choice: EngineChoice, low: torch.Tensor, arguments: argparse.Namespace
) -> Figures:
    """One engine, from and to the host's memory; the first calls, which may compile, are not counted."""
    size, halo = tuple(low.shape[2:]), network.halo
    tile = tuple(n - 2 * h for n, h in zip(size, halo, strict=True))
    keep = tuple(slice(h * f, (h + n) * f) for h, n, f in zip(halo, tile, network.factor, strict=True))
    work, fine = flop(network, size, tile), math.prod(tile) * math.prod(network.factor)
    try:
        engine = build_engine(network, choice, device=torch.device(arguments.device))
        for _ in range(2):
            engine(low, keep)
        figures = rates(lambda: engine(low, keep), work, arguments.device, calls=arguments.calls)
    except (RuntimeError, ValueError) as error:
        raise WayFailedError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    return figures | {"megapixels_per_s": fine / figures["seconds"] / 1e6}


def file_figures(path: Path, network: medsr.SRResNet, arguments: argparse.Namespace) -> Figures:
    """`upscale_folder`, TIFF to a finished OME-Zarr pyramid."""
    shape = medsr.read_scan(path).shape
    with tempfile.TemporaryDirectory(dir=arguments.folder) as out:
        begun = time.perf_counter()
        done = medsr.upscale_folder(path, network, out=out, device=arguments.device, engine=arguments.engine)
        seconds = time.perf_counter() - begun
    if done.exit_code:
        raise WayFailedError(done.rows[0].reason)
    figures = {
        "seconds": seconds,
        "tflop_per_s": flop(network, shape) / seconds / 1e12,
        "megapixels_per_s": math.prod(shape) * math.prod(network.factor) / seconds / 1e6,
    }
    busy = done.rows[0].details.get("busy_s", {})
    return figures | {stage: float(busy[stage]) for stage in ("read", "compute", "write") if stage in busy}


def trained(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Training steps a second against the plain eager loop, both phases."""
    options = ["--device", arguments.device, "--precision", "bf16", "--workers", str(arguments.workers)]
    if arguments.small:
        options += ["--features", "8", "--blocks", "1", "--batch", "2", "--patch", "32", "--steps", "3"]
    else:
        options += ["--features", "64", "--blocks", "16", "--batch", "16", "--steps", "200"]
    parser = command_line(None, rounds=arguments.rounds)
    training.add_settings(parser)
    settings = parser.parse_args([*options, "--rounds", str(arguments.rounds)])
    return [training.in_turn(settings, phase) for phase in training.PHASES]


def settings_of(text: str | None) -> argparse.Namespace:
    """The options; `--small` is a size at which a CPU needs seconds."""
    parser = command_line(text, rounds=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--engine", default="auto", help="of the run from file to OME-Zarr (auto)")
    parser.add_argument("--side", type=int, help="coarse samples of the large scan along each axis (8192)")
    parser.add_argument("--tile", type=int, help="coarse samples of the tiles of `network` along each axis (512)")
    parser.add_argument("--workers", type=int, help="processes of the training's loader (8)")
    parser.add_argument("--folder", type=Path, help="fast disk for the results; else the system's folder")
    arguments = parser.parse_args()
    usual = {"side": 192, "tile": 64, "workers": 0} if arguments.small else {"side": 8192, "tile": 512, "workers": 8}
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    arguments.calls = 1 if arguments.small else 10
    return arguments


def main() -> int:
    """Run all ways in turn and print the tables."""
    arguments = settings_of(__doc__)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: nothing measured: torch sees no CUDA card on this machine. Run it where there is one, or try the "
            "same code at toy size with --device cpu --small"
        )
        return 0
    torch.manual_seed(0)
    size = {"features": 8, "blocks": 1} if arguments.small else {"features": 64, "blocks": 16}
    network = medsr.build_network(medsr.SrresnetRecipe(factor=(4, 4), **size)).eval()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "large.tif"
        large_scan(path, arguments.side)
        ways = {MATRIX: matrix_way(512 if arguments.small else 8192, arguments.device, 4 * arguments.calls)}
        ways |= network_ways(medsr.read_scan(path), network, arguments)
        ways[f"file to OME-Zarr, {arguments.engine}"] = partial(file_figures, path, network, arguments)
        results = run_rounds(ways, arguments.rounds, warm=1)
        title = (
            f"SRResNet x4, {size['blocks']} blocks of {size['features']} features; {arguments.side}^2 to "
            f"{4 * arguments.side}^2; a ratio is the share of the matrix rate"
        )
        done = [report(results, COLUMNS, base=MATRIX, title=title, settings=arguments, device=arguments.device)]
    return finish([*done, *trained(arguments)], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
