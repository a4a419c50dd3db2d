"""Plan: tiles, strips and batches fit the budget, and the estimate holds in a process of its own."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medsr.engines import EngineChoice
from medsr.methods import Cubic, SRResNet
from medsr.plan import BASE_BYTES, MemoryTooSmallError, plan
from medsr.scan import Grid, Intensity, Scan

FAST = EngineChoice("compiled", "float32", 0.0, 1.0)
NETWORK = SRResNet((4, 4), features=16, blocks=2).eval()


def scan_of(*shape):
    axes = ("z", "y", "x")[-len(shape) :]
    return Scan(np.zeros(shape, "uint16"), Grid(axes), Intensity(0, 1, np.dtype("uint16")))


def planned(scan, upscaler, gigabytes, **settings):
    return plan(scan, upscaler, memory=BASE_BYTES + int(gigabytes * 1e9), device="cpu", **settings)


@pytest.mark.parametrize("gigabytes", [0.1, 0.3, 1, 4, 16])
@pytest.mark.parametrize("engine", [None, FAST, EngineChoice("openvino", "bfloat16", 0.0, 1.0)])
def test_the_plan_fits_the_budget(gigabytes, engine):
    scan = scan_of(3000, 2000)
    if engine is not None and engine.name == "openvino" and gigabytes < 0.3:
        with pytest.raises(MemoryTooSmallError, match=r"found a budget .* raise --memory"):
            planned(scan, NETWORK, 0.15, engine=engine)
        return
    chosen = planned(scan, NETWORK, gigabytes, engine=engine)
    assert chosen.bytes_per_tile <= gigabytes * 1e9
    assert (chosen.strip == ()) == (engine is None)
    assert all(s <= t for s, t in zip(chosen.strip, chosen.tile, strict=False))
    assert math.prod(chosen.strip or (1,)) <= 2**16


def test_stages_allow_larger_tiles_than_the_whole_network():
    scan = scan_of(3000, 2000)
    assert math.prod(planned(scan, NETWORK, 0.5, engine=FAST).tile) > 3 * math.prod(planned(scan, NETWORK, 0.5).tile)


def test_small_tiles_are_batched_and_large_ones_are_not():
    block = (32, 128, 128)
    small = planned(scan_of(1000, 128, 128), NETWORK, 2, engine=FAST, block=block)
    assert (small.tile, small.batch) == ((1, 128, 128), 16)
    assert planned(scan_of(1000, 128, 128), NETWORK, 2, engine=FAST, block=block, most_batch=5).batch == 5
    assert planned(scan_of(7, 128, 128), NETWORK, 2, engine=FAST).batch == 7
    assert planned(scan_of(1000, 128, 128), NETWORK, 2, block=block).batch == 1
    assert planned(scan_of(1000, 128, 128), Cubic((2, 2)), 2, engine=FAST, block=block).strip == ()
    assert planned(scan_of(40, 1000, 1000), NETWORK, 2, engine=FAST).batch == 1
    tight = planned(scan_of(1000, 128, 128), NETWORK, 0.2, engine=FAST, block=block)
    assert 1 <= tight.batch < 16
    assert tight.bytes_per_tile <= 2e8


PEAK = """
import sys, torch
from medsr.engines import EngineChoice, build_engine
from medsr.methods import SRResNet
torch.set_num_threads(2)
def kilobytes(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])
choice = EngineChoice(sys.argv[1], sys.argv[2], 0.0, 1.0)
strip = tuple(map(int, sys.argv[3].split(","))) if sys.argv[3] else ()
network = SRResNet((4, 4)).eval()
before = kilobytes("VmRSS")
low = torch.rand(1, 1, 240, 240)
run = build_engine(network, choice, device=torch.device("cpu"), strip=strip)
corner, inside = (slice(0, 640), slice(0, 640)), (slice(160, 800), slice(160, 800))
for keep in (corner, inside):
    run(low, keep)
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("torch", "float32"),
        ("compiled", "float32"),
        ("compiled", "bfloat16"),
        ("openvino", "float32"),
        ("openvino", "bfloat16"),
    ],
)
def test_the_estimate_is_an_upper_bound_and_not_far_off(name, precision):
    """Peak memory of SRResNet-16 x4 on a tile of 160 with its halo, at an edge and inside."""
    if name == "openvino":
        pytest.importorskip("openvino")
    scan, network = scan_of(2000, 2000), SRResNet((4, 4)).eval()
    choice = EngineChoice(name, precision, 0.0, 1.0)
    chosen = planned(scan, network, 4, tile=(160, 160), engine=choice, most_batch=1)
    command = [sys.executable, "-c", PEAK, name, precision, ",".join(map(str, chosen.strip))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    peak = int(done.stdout)
    assert peak <= chosen.bytes_per_tile <= 1.6 * peak, (
        f"{peak / 1e6:.0f} MB, {chosen.bytes_per_tile / 1e6:.0f} planned"
    )
