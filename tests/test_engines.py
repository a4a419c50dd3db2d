"""Engines: the same numbers as the reference, whatever is kept, cut or batched; chosen by measured deviation."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medsr.data import MAMMOGRAM, NUCLEI, SURFACE
from medsr.engines import (
    ENGINES,
    REFERENCE,
    EngineChoice,
    available,
    build_engine,
    choose_engine,
    measuring,
    parts,
    running,
)
from medsr.io import read_scan
from medsr.methods import Cubic, SRResNet
from medsr.plan import BASE_BYTES
from medsr.scan import Grid, Intensity, Scan
from medsr.stages import Stages
from medsr.tiles import plan_tiles
from medsr.upscaler import Staged
from tests.methods_asked import SMALL, mammogram, network, real_scan
from tests.test_srresnet import trained_like

CPU = torch.device("cpu")
RUNS = [("compiled", "float32"), ("openvino", "float32"), ("compiled", "bfloat16"), ("openvino", "bfloat16")]
KINDS = {
    "4": ((4, 4), {"blocks": 5}),
    "3-2": ((3, 2), {"norm": "batch", "tail_kernel": 5}),
    "plain": ((2, 2), {"residual": False, "norm": "batch", "head_kernel": 5, "tail_kernel": 5}),
    "1-2-2": ((1, 2, 2), {"head_kernel": 3, "tail_kernel": 3}),
}


def engine(upscaler, name="torch", precision="float32", strip=(), **settings):
    if name == "openvino":
        pytest.importorskip("openvino")
    choice = EngineChoice(name, precision, 0.0, math.inf)
    return build_engine(upscaler, choice, device=CPU, strip=strip, **settings)


def asked(kind):
    """A network and two real images for it."""
    factor, settings = KINDS[kind]
    built = trained_like(factor, **settings)
    if len(factor) == 2:
        low = torch.cat([mammogram()[..., 40:103, 60:119], mammogram()[..., 140:203, 100:159]])
    else:
        low = torch.cat([real_scan()[..., 5:24, 80:105, 90:113], real_scan()[..., 2:21, 120:145, 60:83]])
    return built, low


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "precision"), RUNS)
def test_engines_agree_with_the_reference(kind, name, precision):
    built, low = asked(kind)
    expected = engine(built)(low)
    found = engine(built, name, precision)(low)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5 if precision == "float32" else 0.02, rtol=0)
    if precision != "float32":
        assert not torch.equal(found.bfloat16().float(), found), "the last layer or the sum is in half precision"


class Repeated(torch.nn.Module):
    """Stands for an entry of `count` channels."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, low):
        return torch.cat([low] * self.count, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["compiled", "openvino"])
@pytest.mark.parametrize("edges", [True, False])
def test_the_last_layer_is_in_full_precision(kind, name, edges):
    """Alone, of features that half precision holds exactly."""
    built, _ = asked(kind)
    stages, same = built.stages(edges=edges), torch.nn.Identity()
    wide = stages.last.weight.shape[1]
    alone = Stages(Repeated(wide), same, same, stages.last, None, stages.rise_halo)
    found = torch.randn(1, wide, *(12,) * len(built.factor), generator=torch.Generator().manual_seed(0))
    found = found.bfloat16().float()
    expected = stages.last(found)
    if name == "openvino":
        pytest.importorskip("openvino")
        made = parts.openvino_parts(alone, "bfloat16", halo=built.halo)
    else:
        made = parts.torch_parts(alone, precision="bfloat16", device=CPU)
    with torch.inference_mode():
        torch.testing.assert_close(made.detail(found), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["4", "1-2-2"])
@pytest.mark.parametrize(("name", "precision"), [("torch", "float32"), *RUNS])
def test_tiles_strips_and_batches_change_nothing(kind, name, precision):
    """Not a bit where the CPU runs the kernels this was seen with; else, and for the reference, the last one."""
    built, low = asked(kind)
    bits = name != "torch" and parts.runs_bfloat16(openvino=False)
    size, dims = low.shape[2:], len(built.factor)
    whole = engine(built, name, precision)(low)
    for tile, strip in (((7, 21, 17), (5, 8, 6)), ((30, 30, 30), (4, 16, 13))):
        run = engine(built, name, precision, strip=strip[-dims:])
        for part in plan_tiles(size, built.factor, halo=built.halo, tile=tile[-dims:]):
            here = (..., *part.read)
            found = run(low[here].contiguous(), part.keep)
            torch.testing.assert_close(found, whole[(..., *part.target)], atol=0 if bits else 2e-6, rtol=0)
        torch.testing.assert_close(run(low[1:]), whole[1:], atol=2e-6, rtol=0)


def test_tiles_with_a_whole_halo_take_the_cheaper_stages():
    built, low = asked("1-2-2")
    run = engine(built, "compiled", strip=(2, 3, 3))
    keep = tuple(slice(h * f, (n - h) * f) for h, f, n in zip(built.halo, built.factor, low.shape[2:], strict=True))
    torch.testing.assert_close(run(low, keep), run(low)[(..., *keep)], atol=2e-6, rtol=0)
    assert set(run._network._parts) == {False, True}
    only = build_engine(trained_like((1, 2, 2), head_kernel=3, tail_kernel=3, blocks=1),
                        EngineChoice("compiled", "float32", 0.0, 1.0), device=CPU)  # fmt: skip
    halo = only._network.halo
    small = low[(..., *(slice(0, 2 * h + 1) for h in halo))].contiguous()
    only(small, tuple(slice(h * f, (h + 1) * f) for h, f in zip(halo, (1, 2, 2), strict=True)))
    assert set(only._network._parts) == {False}


def test_keep_need_not_fall_on_cells():
    built, low = asked("3-2")
    keep = (slice(5, 77), slice(1, 60))
    found, expected = engine(built, "compiled", strip=(9, 9))(low, keep), engine(built, "compiled")(low)[(..., *keep)]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_networks_are_kept_ready_for_the_same_weights_only():
    running._networks.clear()
    built, low = asked("1-2-2")
    first = engine(built, "compiled")(low)
    assert engine(built, "compiled", strip=(4, 4, 4))._network is engine(built, "compiled")._network
    with torch.no_grad():
        built.tail.weight.mul_(2)
    assert not torch.equal(engine(built, "compiled")(low), first)
    for seed in range(6):
        torch.manual_seed(seed)
        engine(SRResNet((2, 2), features=4, blocks=1).eval(), "compiled")
    assert len(running._networks) == running.KEPT_NETWORKS


def test_a_wrong_size_is_refused():
    class Wrong:
        factor, halo = (2, 2), (1, 1)

        def __call__(self, low):
            return low

    with pytest.raises(ValueError, match=r"expected an estimate of shape \(1, 1, 8, 8\), found \(1, 1, 4, 4\)"):
        engine(Wrong())(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="expected a network with stages"):
        engine(Cubic((2, 2)), "compiled")


# ---------------------------------------------------------------- choice


def chosen(scan, upscaler, **settings):
    notes = []
    return choose_engine(scan, upscaler, device="cpu", note=notes.append, **settings), "\n".join(notes)


@pytest.mark.parametrize("path", [MAMMOGRAM, SURFACE])
def test_the_first_within_tolerance_is_taken(path, monkeypatch):
    monkeypatch.setattr(measuring, "has_openvino", lambda: False)
    monkeypatch.setattr(measuring, "runs_bfloat16", lambda *, openvino: True)
    scan, built = read_scan(path), trained_like((2, 2), tail_kernel=3)
    span = measuring._used_range(scan)
    loose, said = chosen(scan, built, tolerance=span)
    assert (loose.name, loose.precision) == ("compiled", "bfloat16")
    assert 0 < loose.deviation < 0.05 * span
    assert said == str(loose)
    tight, said = chosen(scan, built, tolerance=loose.deviation * 0.99)
    assert (tight.name, tight.precision) == ("compiled", "float32")
    assert tight.deviation < 1e-4 * span
    assert f"compiled bfloat16 deviated by {loose.deviation:.3g}, with its reserve {1.6 * loose.deviation:.3g}" in said
    none, said = chosen(scan, built, tolerance=tight.deviation / 2, engine="compiled")
    assert none == REFERENCE
    assert "the reference, for none other stays within" in said
    assert chosen(scan, built, engine="torch") == (REFERENCE, "")
    assert chosen(scan, built, tolerance=0, engine="torch") == (REFERENCE, "")


def test_an_engine_asked_for_is_not_dropped_in_silence():
    scan, built = read_scan(MAMMOGRAM), trained_like((2, 2))
    choice, said = chosen(scan, built, tolerance=0, engine="compiled")
    assert choice == REFERENCE
    assert said == f"{REFERENCE}, not compiled: the tolerance is 0"


def test_the_range_of_a_sparse_scan_is_not_zero():
    values = np.zeros((128, 128), "uint16")
    scan = Scan(values, Grid(("y", "x")), Intensity(100, 1100, np.dtype("uint16")))
    assert measuring._used_range(scan) == 1000
    values[5, 6] = 300
    assert measuring._used_range(scan) == 300


def test_measured_tiles_fit_the_memory(monkeypatch):
    """A little memory makes the tiles small; too little leaves the reference."""
    built, shapes = SRResNet((2, 2, 2), features=16, blocks=4).eval(), list[tuple[int, ...]]()
    scan = read_scan(NUCLEI)

    def seen(*arguments, **settings):
        run = build_engine(*arguments, **settings)

        def noted(low, keep=None):
            shapes.append((*low.shape[2:], *settings["strip"]))
            return run(low, keep)

        return noted

    monkeypatch.setattr(measuring, "build_engine", seen)
    most = 0
    for memory in (100_000_000, 400_000_000):
        shapes.clear()
        choice, _ = chosen(scan, built, engine="compiled", memory=BASE_BYTES + memory)
        assert choice.name == "compiled"
        assert math.prod(shapes[0][:3]) > most
        most = math.prod(shapes[0][:3])
    choice, said = chosen(scan, built, engine="compiled", memory=BASE_BYTES + 1_000_000)
    assert choice == REFERENCE
    assert "compiled float32 failed (memory: expected at least" in said


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_leaves_the_reference(error, monkeypatch):
    def full(*arguments, **settings):
        raise error("no memory left")

    monkeypatch.setattr(measuring, "build_engine", full)
    choice, said = chosen(read_scan(MAMMOGRAM), trained_like((2, 2), blocks=1), engine="compiled")
    assert choice == REFERENCE
    assert "failed (no memory left)" in said


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_choosing_stays_within_the_memory_of_the_process():
    code = (
        "import numpy as np, torch\n"
        "torch.set_num_threads(1)\n"
        "from medsr.engines import choose_engine\n"
        "from medsr.methods import SRResNet\n"
        "from medsr.scan import Grid, Intensity, Scan\n"
        "values = np.random.default_rng(0).integers(0, 60000, (700, 700), dtype='uint16')\n"
        "scan = Scan(values, Grid(('y', 'x')), Intensity(0, 65535, values.dtype))\n"
        "network = SRResNet((8, 8), blocks=2).eval()\n"
        "print(choose_engine(scan, network, engine='compiled', device='cpu', memory=600_000_000).name)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    name, peak = done.stdout.split()
    assert name == "compiled"
    assert int(peak) * 1024 < 600_000_000


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_what_can_run_here(precision, monkeypatch):
    monkeypatch.setattr(measuring, "has_openvino", lambda: True)
    for here in (True, False):
        monkeypatch.setattr(measuring, "runs_bfloat16", lambda *, openvino, here=here: here)
        for name in ("openvino", "compiled"):
            reason = available(EngineChoice(name, precision, 1.0, 2.0), device="cpu")
            if precision == "float32" or (precision == "bfloat16" and here):
                assert reason == ""
            else:
                assert f"engine {name} {precision}: expected " in reason
    monkeypatch.setattr(measuring, "has_openvino", lambda: False)
    assert available(REFERENCE) == ""
    reason = available(EngineChoice("openvino", precision, 1.0, 2.0))
    assert reason == "engine openvino: expected OpenVINO, found none installed; pip install 'medsr[fast]'"


def test_deviation_is_in_gray_levels_and_what_is_measured_is_true():
    whole, built = read_scan(MAMMOGRAM), network("srresnet-2", 12)
    scan = Scan(whole.read((slice(1500, 1840), slice(1132, 1472))), whole.grid, whole.intensity)
    choice, _ = chosen(scan, built, engine="compiled", tolerance=1e6)
    low = torch.from_numpy(scan.intensity.to_unit(scan.read()))[None, None]
    difference = (engine(built, "compiled", choice.precision)(low) - engine(built)(low)).abs().max()
    gray = float(difference) * abs(scan.intensity.white - scan.intensity.black)
    assert choice.deviation <= gray * 1.0001
    assert choice.deviation > gray / 4, "the tiles say little of the scan"


def test_default_tolerance_is_a_thousandth_of_the_used_range():
    scan, built = read_scan(NUCLEI), network("srresnet-1-2-2", 0)
    choice, _ = chosen(scan, built, engine="compiled")
    values = scan.read()
    low, high = np.percentile(values, [0.1, 99.9])
    assert choice.tolerance == pytest.approx((high - low) / 1000, rel=0.02)
    assert choice.deviation <= choice.tolerance
    assert chosen(scan, built, engine="compiled")[0] == choice
    assert pickle.loads(pickle.dumps(choice)) == choice


def test_holes_are_no_deviation_and_nan_is_an_infinite_one(monkeypatch):
    values = np.sin(np.arange(128 * 128) / 50).reshape(128, 128).astype("float32")
    values[30:60, 20:90] = np.nan
    scan = Scan(values, Grid(("y", "x")), Intensity(-1, 1, np.dtype("float32")))
    built = trained_like((2, 2))
    choice, _ = chosen(scan, built, engine="compiled", tolerance=1)
    assert 0 < choice.deviation < 1
    with torch.no_grad():
        sick = trained_like((2, 2))
        sick.tail.weight.fill_(math.inf)
    choice, said = chosen(scan, sick, engine="compiled")
    assert choice == REFERENCE
    assert "deviated by inf" in said


def test_an_engine_that_fails_is_passed_over(monkeypatch):
    def broken(*arguments, **settings):
        raise RuntimeError("no such primitive")

    running._networks.clear()
    monkeypatch.setattr(running, "torch_parts", broken)
    scan = read_scan(MAMMOGRAM)
    choice, said = chosen(scan, trained_like((2, 2), blocks=1), engine="compiled")
    assert choice == REFERENCE
    assert "compiled float32 failed (no such primitive)" in said
    running._networks.clear()


def test_what_has_no_network_runs_as_it_is():
    scan = read_scan(MAMMOGRAM)
    assert chosen(scan, Cubic((2, 2))) == (REFERENCE, "")
    choice, said = chosen(scan, Cubic((2, 2)), engine="compiled")
    assert choice == REFERENCE
    assert "has no network" in said


def test_what_cannot_be_chosen_is_refused(monkeypatch):
    scan, built = read_scan(MAMMOGRAM), trained_like((2, 2))
    with pytest.raises(ValueError, match="expected one of auto, torch, compiled, openvino; found 'tensorrt'"):
        chosen(scan, built, engine="tensorrt")
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="at least 0"):
            chosen(scan, built, tolerance=wrong)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"found none installed; pip install 'medsr\[fast\]'"):
        chosen(scan, built, engine="openvino")
    assert chosen(scan, built)[0].name == "compiled"
    assert not parts.has_openvino()


def test_names():
    assert ENGINES == ("auto", "torch", "compiled", "openvino")
    assert str(REFERENCE) == "engine torch float32, the reference"
    choice = EngineChoice("openvino", "bfloat16", 3.1415, 65.535)
    assert str(choice) == "engine openvino bfloat16, deviation on tiles of the scan 3.1 gray levels, 65.5 allowed"


def test_openvino_sends_no_telemetry():
    pytest.importorskip("openvino")
    code = (
        "import socket, sys\n"
        "def refuse(*a): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = refuse\n"
        "from medsr.engines import parts\n"
        "assert parts.has_openvino()\n"
        "import openvino\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_small_networks_of_the_suite_are_staged():
    assert isinstance(SRResNet((2, 2), **SMALL), Staged)
    assert not isinstance(Cubic((2, 2)), Staged)
