"""Exemplars and SelfExemplars: what they gain, where they fall back, and that tiles with their origins agree."""

import pickle
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from medsr.degradation import Degradation, Gaussian
from medsr.library import Library, build_library
from medsr.methods import Cubic, Exemplars, SelfExemplars
from medsr.methods.back_projection import back_projected
from medsr.methods.registration import LARGEST_OVERVIEW
from medsr.plan import BASE_BYTES, MemoryTooSmallError, plan
from medsr.scan import Grid, Intensity, Scan
from medsr.upscaler import Placed, Upscaler, describe, fingerprint
from tests import laws
from tests.methods_asked import mammogram, real_scan

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dev" / "micro" / "allen_cells3d"
PLAIN = Intensity(0, 1, np.dtype(np.float32))


def plane(number: int) -> np.ndarray:
    """192 x 192 samples of a plane of the shipped stack."""
    return real_scan()[0, 0, number, 32:224, 32:224].numpy()


def moved(image: np.ndarray, *, turn: float, size: float, shift: tuple[float, float]) -> np.ndarray:
    """An image turned by degrees, scaled and shifted about its middle, as another acquisition would show it."""
    angle = np.deg2rad(turn)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / size
    middle = (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(image, matrix, middle - matrix @ (middle + shift), order=3, mode="reflect")


def library_of(folder: Path, planes: list[np.ndarray], *, factor: int = 2) -> Library:
    folder.mkdir()
    for number, image in enumerate(planes):
        tifffile.imwrite(folder / f"exam{number}.tif", image.astype(np.float32))
    return build_library(folder, factor=factor, out=folder.parent / f"{folder.name}_index")


def coarse(image: np.ndarray, factor: int = 2) -> torch.Tensor:
    return Degradation((factor, factor)).mean(torch.from_numpy(image)[None, None])


def scan_of(low: torch.Tensor) -> Scan:
    return Scan(low[0, 0].numpy(), Grid(("y", "x")), PLAIN)


def psnr(estimate: torch.Tensor, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((estimate[0, 0].numpy() - truth)[8:-8, 8:-8] ** 2)))


def cubic(low: torch.Tensor, steps: int) -> torch.Tensor:
    factor = (2, 2)
    return back_projected(Cubic(factor)(low), low, Degradation(factor), steps=steps)


@cache
def _others() -> list[np.ndarray]:
    return [
        moved(plane(12), turn=4, size=1.03, shift=(3.3, -5.2)),
        moved(plane(14), turn=-5, size=0.97, shift=(-6, 2.7)),
        plane(2),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """Near planes turned, scaled and shifted, and a far one."""
    return library_of(tmp_path_factory.mktemp("exams") / "fine", _others())


@pytest.fixture(scope="module")
def placed(library) -> tuple[Exemplars, torch.Tensor]:
    low = coarse(plane(13))
    return Exemplars(2, library, references=2).adapt(scan_of(low)), low


def assembled(method, low: torch.Tensor, tile: int) -> torch.Tensor:
    """Tiles with their halos, each run at its origin."""
    size, (fy, fx) = low.shape[2:], method.factor
    fine = torch.full((1, 1, size[0] * fy, size[1] * fx), float("nan"))
    for y, x in product(*(range(0, n, tile) for n in size)):
        y0, x0 = (max(0, s - h) for s, h in zip((y, x), method.halo, strict=True))
        y1, x1 = (min(n, s + tile + h) for s, h, n in zip((y, x), method.halo, size, strict=True))
        part = method.at((y0, x0))(low[..., y0:y1, x0:x1])
        kept = part[..., (y - y0) * fy : (y - y0 + tile) * fy, (x - x0) * fx : (x - x0 + tile) * fx]
        fine[..., y * fy : y * fy + kept.shape[2], x * fx : x * fx + kept.shape[3]] = kept
    return fine


# ---------------------------------------------------------------- a library of other acquisitions


def test_a_near_plane_turned_and_scaled_gives_detail(placed):
    """The same field, 0.29 micrometers off: found by its keypoints, not by its place."""
    method, low = placed
    found = method.found()
    assert {f.scan for f in found} == {0, 1}
    angle = np.rad2deg(np.arctan2(found[0].placement.matrix[1, 0], found[0].placement.matrix[0, 0]))
    assert abs(abs(angle) - (4, 5)[found[0].scan]) < 0.5
    truth = plane(13)
    gained = psnr(method.at((0, 0))(low), truth) - psnr(cubic(low, 4), truth)
    assert gained > 1.0, f"{gained:.2f} dB over cubic with the same back-projection"


def test_tiles_with_their_origins_equal_the_whole(placed):
    """Without back-projection, whose own halo would hide one that is too small."""
    method, low = placed
    method = Exemplars(2, method.library, references=2, steps=0).adapt(scan_of(low))
    whole = method.at((0, 0))(low)
    worst = float((assembled(method, low, 32) - whole).abs().max())
    assert worst <= laws.GRAY_LEVEL, worst
    inner = (slice(None), slice(None), slice(8, 88), slice(8, 88))
    lost = (method.at((0, 0))(low[inner]) - whole[..., 16:176, 16:176])[..., 60:100, 60:100].abs().max()
    assert lost > 100 * laws.GRAY_LEVEL, "where a tile lies must matter, or the law shows nothing"


def test_provenance_names_the_scan_and_agrees_with_the_detail(placed):
    method, low = placed
    source, cost = method.provenance(low, origin=(0, 0))
    assert source.shape == cost.shape == (192, 192)
    assert (source.dtype, cost.dtype) == (np.int16, np.float32)
    assert set(np.unique(source)) <= {-1, 0, 1}
    np.testing.assert_array_equal(source == -1, np.isnan(cost))
    plain = Exemplars(2, method.library, references=2, steps=0).adapt(scan_of(low)).at((0, 0))(low)
    same = (plain == Cubic((2, 2))(low))[0, 0].numpy()
    assert same[source == -1].all(), "exactly cubic where nothing matched"
    assert (source >= 0).mean() > 0.5
    part = method.provenance(low[..., 10:80, 20:90], origin=(10, 20))[0]
    np.testing.assert_array_equal(part[50:90, 50:90], source[70:110, 90:130])


def test_the_true_plane_in_the_library_is_found_and_used(tmp_path):
    library = library_of(tmp_path / "fine", [plane(12), plane(13), plane(14)])
    low = coarse(plane(13))
    method = Exemplars(2, library).adapt(scan_of(low))
    assert psnr(method.at((0, 0))(low), plane(13)) > 60
    assert (method.provenance(low, origin=(0, 0))[0] == 1).mean() > 0.99


def test_noise_in_the_library_changes_nothing(tmp_path):
    generator = np.random.default_rng(0)
    library = library_of(tmp_path / "fine", [generator.random((192, 192)) for _ in range(3)])
    low = coarse(plane(13))
    method = Exemplars(2, library).adapt(scan_of(low))
    assert method.found() == ()
    torch.testing.assert_close(method.at((0, 0))(low), cubic(low, 4), rtol=0, atol=0)
    assert (method.provenance(low, origin=(0, 0))[0] == -1).all()


def test_gain_and_offset_of_the_scan_do_not_matter(placed):
    """A scan of half the contrast finds the same references, and their details at half the contrast."""
    method, low = placed
    weaker = 0.5 * low + 0.25
    again = method.adapt(scan_of(weaker))
    assert [f.plane for f in again.found()] == [f.plane for f in method.found()]
    here = (slice(None), slice(None), slice(30, 90), slice(30, 90))
    left, right = again.at((30, 30))(weaker[here]), 0.5 * method.at((30, 30))(low[here]) + 0.25
    assert float((left - right).square().mean().sqrt()) < 1e-3
    laws.flat_stays_flat(method, (40, 40))


def test_sent_to_another_process_it_gives_the_same(placed):
    method, low = placed
    again = pickle.loads(pickle.dumps(method))
    assert len(pickle.dumps(method)) < 100_000 + low.numel() * 4, "no registration, no samples of the library"
    here = (slice(None), slice(None), slice(40, 80), slice(40, 80))
    torch.testing.assert_close(again.at((40, 40))(low[here]), method.at((40, 40))(low[here]), rtol=0, atol=0)


def test_it_is_a_placed_upscaler(placed):
    method, low = placed
    assert isinstance(method, Upscaler)
    assert isinstance(method, Placed)
    assert method.library.identity in describe(method)
    assert fingerprint(method) == fingerprint(pickle.loads(pickle.dumps(method)))
    assert method(low[..., :20, :24]).shape == (1, 1, 40, 48)
    with pytest.raises(ValueError, match="call adapt"):
        Exemplars(2, method.library).at((0, 0))
    with pytest.raises(ValueError, match="one entry for each axis"):
        method.at((0, 0, 0))


PEAK = """
import sys, numpy as np, torch
from medsr.library import load_library
from medsr.methods import Exemplars
from medsr.scan import Grid, Intensity, Scan
def kilobytes(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])
torch.set_num_threads(1)
low = np.load(sys.argv[2])
library = load_library(sys.argv[1])
before = kilobytes("VmRSS")
method = Exemplars(2, library, references=1).adapt(Scan(low, Grid(("y", "x")), Intensity(0, 1, low.dtype)))
assert method.found()
print((kilobytes("VmHWM") - before) * 1024, method.reserved_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_the_plan_counts_what_retrieval_holds(tmp_path):
    """A plane of the largest overview: the peak of a process of its own stays below the bytes declared."""
    side = LARGEST_OVERVIEW
    stack = real_scan()[0, 0].numpy()
    times = -(-side // stack.shape[1])
    rows = [np.concatenate([stack[times * i + j] for j in range(times)], 1) for i in range(times)]
    large = np.concatenate(rows)[:side, :side]
    library = library_of(tmp_path / "fine", [large])
    np.save(tmp_path / "low.npy", coarse(large)[0, 0].numpy())
    command = [sys.executable, "-c", PEAK, str(library.folder), str(tmp_path / "low.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    peak, declared = map(int, done.stdout.split())
    assert 0.3 * declared < peak <= declared, f"{peak / 1e6:.0f} MB, {declared / 1e6:.0f} declared"
    scan, method = scan_of(coarse(plane(13))), Exemplars(2, library)
    assert plan(scan, method, memory=BASE_BYTES + 2 * declared, device="cpu").bytes_per_tile > declared
    with pytest.raises(MemoryTooSmallError):
        plan(scan, method, memory=BASE_BYTES + declared, device="cpu")


def test_what_does_not_fit_the_library_is_refused(library):
    with pytest.raises(ValueError, match="build a library of this factor"):
        Exemplars(3, library)
    with pytest.raises(ValueError, match="degradation of the library"):
        Exemplars(2, library, degradation=Degradation((2, 2), kernel=Gaussian(fwhm_samples=2.0)))
    with pytest.raises(ValueError, match="references >= 1"):
        Exemplars(2, library, references=0)


def test_each_plane_of_a_stack_retrieves_for_itself(library):
    lows = np.stack([coarse(plane(z))[0, 0].numpy() for z in (13, 25)])
    method = Exemplars(2, library).adapt(Scan(lows, Grid(("z", "y", "x")), PLAIN))
    assert method.found((0,))
    truth = plane(13)
    fine = method.at((0, 0, 0))(torch.from_numpy(lows[:1])[None])
    assert psnr(fine, truth) > psnr(cubic(coarse(truth), 4), truth) + 1
    assert [f.plane for f in method.found((0,))] != [f.plane for f in method.found((1,))]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the development scans are not beside the checkout")
def test_gate_at_factor_4(tmp_path):
    """Registered and consistent: 2.5 dB over cubic with neighbors turned 3-6 degrees, scaled up to 4 %, shifted."""
    stack = tifffile.imread(SHARED / "cells3d_nuclei_60z.tif").astype(np.float32)
    low_end, high_end = (np.float32(v) for v in np.percentile(stack, (0.1, 99.9)))
    unit = (stack - low_end) / (high_end - low_end)
    exams = [
        moved(unit[29], turn=4, size=1.03, shift=(3.3, -5.2)),
        moved(unit[31], turn=-5, size=0.97, shift=(-6, 2.7)),
        moved(unit[27], turn=6, size=0.96, shift=(4, 4)),
        moved(unit[33], turn=-3, size=1.04, shift=(0, 9)),
    ]
    library = library_of(tmp_path / "fine", exams, factor=4)
    low = coarse(unit[30], 4)
    estimate = Exemplars(4, library).adapt(scan_of(low)).at((0, 0))(low)
    gained = psnr(estimate, unit[30]) - psnr(Cubic((4, 4))(low), unit[30])
    assert gained > 2.5, f"{gained:.2f} dB"


# ---------------------------------------------------------------- the scan as its own library


@pytest.mark.parametrize("factor", [(2, 2), (3, 2)])
def test_self_exemplars_in_tiles_equal_the_whole(factor):
    method = SelfExemplars(factor, steps=1)
    low = mammogram()[..., :70, :66]
    for tile in ((17, 23), (40, 40)):
        laws.tiled_equals_whole(method, low, tile)


def test_self_exemplars_gain_over_cubic():
    low, truth = coarse(plane(13)), plane(13)
    assert psnr(SelfExemplars(2)(low), truth) > psnr(cubic(low, 4), truth) + 0.05


def test_self_exemplars_leave_flat_flat_and_obey_gain():
    method = SelfExemplars(2)
    laws.flat_stays_flat(method, (30, 30))
    laws.commutes_with_line(method, mammogram()[..., :40, :40], 3.0, -1.0, tolerance=1e-4)


def test_neighbors_of_a_plane_give_exemplars():
    stack = torch.cat([coarse(plane(z)) for z in (12, 13, 14)]).numpy()[:, 0]
    scan = Scan(stack, Grid(("z", "y", "x")), PLAIN)
    low = torch.from_numpy(stack[1:2])[None]
    method = SelfExemplars(2).adapt(scan)
    assert isinstance(pickle.loads(pickle.dumps(method)), Placed)
    alone, together = method(low), method.at((1, 0, 0))(low)
    assert not torch.equal(alone, together)
    part = method.at((1, 10, 10))(low[..., 10:80, 10:80])
    h = method.halo[0]
    inner = slice(2 * h, 2 * (70 - h))
    whole = together[..., 20:160, 20:160]
    assert float((part - whole)[..., inner, inner].abs().max()) <= laws.GRAY_LEVEL
    unneighborly = SelfExemplars(2, neighbors=0).adapt(scan)
    torch.testing.assert_close(unneighborly.at((1, 0, 0))(low), alone, rtol=0, atol=0)


def test_self_exemplars_refuse_nonsense():
    with pytest.raises(ValueError, match="a factor for y and x"):
        SelfExemplars((1, 2, 2))
    with pytest.raises(ValueError, match="neighbors >= 0"):
        SelfExemplars(2, tolerance=0)
