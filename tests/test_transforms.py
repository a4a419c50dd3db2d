"""The MONAI face: readers and transforms of ours in a pipeline of theirs, on the shipped scans and on made ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, DeleteItemsd, LoadImage, LoadImaged, RandFlipd, RandRotate90d, ToTensord

from medsr.data import MAMMOGRAM, NUCLEI
from medsr.degradation.range import DegradationRange
from medsr.io import read_scan
from medsr.recipe import Recipe
from medsr.scan import Grid, Intensity, Scan, ScanError
from medsr.training.data import patch_transforms
from medsr.training.foreground import ForegroundMap
from medsr.transforms import LoadScand, RandDegraded, RandPatchd, ScanReader


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads that wait for each other only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scan_of(stored: np.ndarray, spacing: tuple[float, ...] | None = None) -> Scan:
    axes = ("z", "y", "x")[-stored.ndim :]
    return Scan(stored, Grid(axes, spacing), Intensity(0, 1000, stored.dtype))


class Endless:
    """A scan far larger than memory: its values follow from their place; counts what is read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, np.dtype(np.uint16)
        self.read = self.largest = 0

    def __getitem__(self, region: Any) -> np.ndarray:
        rows = [np.arange(*part.indices(n)) for part, n in zip(region, self.shape, strict=True)]
        grid = np.meshgrid(*rows, indexing="ij", sparse=True)
        values = np.broadcast_to(sum((g // 7) % 50 for g in grid), [len(r) for r in rows])
        self.read += values.size
        self.largest = max(self.largest, values.size)
        return values.astype(np.uint16)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # a reader of MONAI itself
def test_reader_gives_unit_intensity_and_millimeters() -> None:
    scan = read_scan(NUCLEI)
    image = LoadImage(reader=ScanReader())(NUCLEI)
    assert isinstance(image, MetaTensor)
    np.testing.assert_array_equal(image.numpy(), scan.intensity.to_unit(scan.read()))
    np.testing.assert_allclose(np.diag(image.affine)[:3], np.array(scan.grid.spacing_um) / 1000)
    assert image.meta["spacing_um"] == scan.grid.spacing_um
    assert (image.meta["black"], image.meta["white"]) == (scan.intensity.black, scan.intensity.white)
    assert image.meta["axes"] == "zyx"


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_reader_reads_dicom_with_channel_first() -> None:
    item = LoadImaged("image", reader=ScanReader, ensure_channel_first=True)({"image": str(MAMMOGRAM)})
    scan = read_scan(MAMMOGRAM)
    assert tuple(item["image"].shape) == (1, *scan.shape)
    assert item["image"].dtype == torch.float32
    named = {k for k in item["image"].meta if "patient" in k.lower()}
    assert not named


def test_unknown_spacing_is_none_and_files_stack(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.tif")
        tifffile.imwrite(paths[-1], np.full((8, 6), 100 * number + 1, np.uint16))
    reader = ScanReader()
    assert reader.verify_suffix(paths)
    assert not reader.verify_suffix(__file__)
    array, meta = reader.get_data(reader.read(paths))
    assert array.shape == (2, 8, 6)
    assert meta["spacing_um"] is None
    assert np.diag(meta["affine"]).tolist() == [1, 1, 1]
    tifffile.imwrite(paths[1], np.full((8, 7), 1, np.uint16))
    with pytest.raises(ScanError, match="one shape"):
        reader.get_data(reader.read(paths))


def test_load_scand_is_lazy_or_not() -> None:
    lazy = LoadScand("scan")({"scan": NUCLEI})["scan"]
    assert isinstance(lazy, Scan)
    assert not isinstance(lazy.data, np.ndarray)
    tensor = LoadScand("scan", lazy=False)({"scan": str(NUCLEI)})["scan"]
    assert tuple(tensor.shape) == (1, *lazy.shape)
    np.testing.assert_array_equal(tensor[0].numpy(), lazy.intensity.to_unit(lazy.read()))
    assert LoadScand(["scan", "other"], allow_missing_keys=True)({"scan": NUCLEI}).keys() == {"scan"}


def test_patch_reads_only_what_it_needs() -> None:
    data = Endless((3_000, 2_000_000, 1_000_000))  # 12 petabytes
    scan = Scan(data, Grid(("z", "y", "x")), Intensity(0, 150, data.dtype))
    cut = RandPatchd("scan", (4, 32, 32)).set_random_state(seed=1)
    patch = cut({"scan": scan})["scan"]
    assert tuple(patch.shape) == (1, 4, 32, 32)
    assert data.largest <= 4 * 256 * 256
    surveyed = data.read
    cut({"scan": scan})
    assert data.read - surveyed == 4 * 32 * 32  # the foreground was found once


def test_patch_follows_from_the_seed_and_is_the_scan_s() -> None:
    scan = read_scan(NUCLEI)
    cut = RandPatchd("scan", (8, 32, 48))
    patches = [cut.set_random_state(seed=5)({"scan": scan})["scan"] for _ in range(2)]
    assert torch.equal(patches[0], patches[1])
    z, y, x = cut.place
    unit = scan.intensity.to_unit(scan.read((slice(z, z + 8), slice(y, y + 32), slice(x, x + 48))))
    np.testing.assert_array_equal(patches[0][0].numpy(), unit)
    assert patches[0].meta["spacing_um"] == scan.grid.spacing_um
    assert not torch.equal(patches[0], cut.set_random_state(seed=6)({"scan": scan})["scan"])


def test_patches_lie_where_there_is_signal() -> None:
    stored = np.random.default_rng(0).poisson(20, (600, 800)).astype(np.uint16)
    stored[100:300, 500:760] += 600
    scan = scan_of(stored)
    random = np.random.RandomState(0)
    places = ForegroundMap(scan, (64, 64))
    bright = [
        stored[y : y + 64, x : x + 64].mean() > 0.2 * 600 for y, x in (places.draw(random, 0.25) for _ in range(100))
    ]
    assert np.mean(bright) > 0.95
    anywhere = [stored[y : y + 64, x : x + 64].mean() > 120 for y, x in (places.draw(random, 0.0) for _ in range(300))]
    assert 0.05 < np.mean(anywhere) < 0.4  # 0 means: wherever
    first = {places.draw(random, 0.25) for _ in range(200)}
    assert len(first) > 100  # places between those probed are drawn too
    best = places.places(3)
    assert all(abs(a[0] - b[0]) >= 64 or abs(a[1] - b[1]) >= 64 for i, a in enumerate(best) for b in best[:i])


def test_bright_background_of_monochrome1_is_background() -> None:
    stored = np.full((256, 256), 4000, np.uint16)
    stored[:, :100] = 500  # tissue is dark as stored
    scan = Scan(stored, Grid(("y", "x")), Intensity(4000, 500, stored.dtype))
    random = np.random.RandomState(0)
    places = ForegroundMap(scan, (32, 32))
    assert all(places.draw(random, 0.9)[1] < 100 for _ in range(50))


def test_every_corner_can_be_drawn() -> None:
    scan = scan_of(np.arange(40 * 33, dtype=np.uint16).reshape(40, 33))
    random = np.random.RandomState(0)
    places = ForegroundMap(scan, (32, 32))
    drawn = {places.draw(random, 0.0) for _ in range(600)}
    assert drawn == {(y, x) for y in range(9) for x in range(2)}
    with pytest.raises(ScanError, match="at least"):
        ForegroundMap(scan, (41, 32))


def test_holes_are_avoided_and_filled() -> None:
    stored = np.random.default_rng(0).normal(500, 50, (200, 200)).astype(np.float32)
    stored[:, :120] = np.nan
    scan = scan_of(stored)
    cut = RandPatchd("scan", (48, 48)).set_random_state(seed=0)
    whole = 0
    for _ in range(40):
        patch = cut({"scan": scan})["scan"]
        assert torch.isfinite(patch).all()
        whole += cut.place[1] >= 120
    assert whole >= 30
    patch = RandPatchd("scan", (200, 200)).set_random_state(seed=0)({"scan": scan})["scan"]
    assert torch.isfinite(patch).all()


def test_padding_is_a_hole() -> None:
    stored = np.random.default_rng(0).integers(400, 600, (120, 120)).astype(np.uint16)
    stored[:, :60] = 65535
    intensity = Intensity(0, 1000, stored.dtype, padding=(65535, 65535))
    scan = Scan(stored, Grid(("y", "x")), intensity)
    cut = RandPatchd("scan", (32, 32)).set_random_state(seed=0)
    for _ in range(30):
        assert float(cut({"scan": scan})["scan"].max()) < 0.7
        assert cut.place[1] >= 40
    whole = RandPatchd("scan", (120, 120)).set_random_state(seed=0)({"scan": scan})["scan"]
    assert float(whole.max()) < 0.7


def test_planes_of_a_stack_are_drawn_for_flat_patches() -> None:
    stored = np.repeat(np.arange(1, 31, dtype=np.uint16)[:, None, None] * 30, 64, 1).repeat(64, 2)
    cut = RandPatchd("scan", (32, 32), foreground=0.0).set_random_state(seed=0)
    planes = set()
    for _ in range(400):
        patch = cut({"scan": scan_of(stored)})["scan"]
        assert tuple(patch.shape) == (1, 32, 32)
        assert float(patch.std()) < 1e-6
        planes.add(cut.place[0])
    assert planes == set(range(30))


@pytest.mark.parametrize("factor", [(2, 2), (3, 3), (1, 2, 2), (4, 1, 1), (2, 2, 2)])
def test_degraded_patch_is_the_patch_of_the_degraded_scan(factor: tuple[int, ...]) -> None:
    """With a margin as wide as the kernel, it does not matter that only a patch was read."""
    spacing = (0.4, 0.1, 0.1)[-len(factor) :]
    shape = tuple(12 * f * (3 if f == 1 else 1) for f in factor)
    stored = np.random.default_rng(1).integers(0, 1000, shape).astype(np.uint16)
    scan = scan_of(stored, spacing)
    degradation = DegradationRange(fwhm_um=(0.3, 0.3))
    operator = degradation.center(factor, spacing)
    margin = operator.halo
    fine = tuple(m * f for m, f in zip(margin, factor, strict=True))
    patch = tuple(4 * f for f in factor)
    cut = RandPatchd("high", patch, foreground=0.0, margin=fine).set_random_state(seed=3)
    cut.randomize(scan)
    first = tuple(p // f * f for p, f in zip(cut.place, factor, strict=True))
    from medsr.transforms import cut_patch

    item = {"high": cut_patch(scan, first, patch, margin=fine)}
    item = RandDegraded("high", degradation, factor, margin=margin).set_random_state(seed=0)(item)
    whole = operator.mean(torch.from_numpy(scan.intensity.to_unit(stored))[None, None])[0]
    region = tuple(slice(p // f, p // f + 4) for p, f in zip(first, factor, strict=True))
    torch.testing.assert_close(torch.as_tensor(item["low"]).as_subclass(torch.Tensor), whole[(slice(None), *region)])
    inner = tuple(slice(p, p + n) for p, n in zip(first, patch, strict=True))
    np.testing.assert_array_equal(item["high"][0].numpy(), scan.intensity.to_unit(stored[inner]))


def test_degradation_in_micrometers_needs_the_spacing() -> None:
    degrade = RandDegraded("high", DegradationRange(fwhm_um=(0.2, 0.4)), (2, 2))
    with pytest.raises(ValueError, match="spacing"):
        degrade({"high": torch.zeros(1, 16, 16)})
    with pytest.raises(ValueError, match="low key"):
        RandDegraded(["a", "b"], DegradationRange(), (2, 2))


def test_noise_follows_from_the_seed() -> None:
    degrade = RandDegraded("high", DegradationRange(read_noise=(0.1, 0.1)), (2, 2))
    high = torch.rand(1, 16, 16)
    lows = [degrade.set_random_state(seed=s)({"high": high})["low"] for s in (1, 1, 2)]
    assert torch.equal(lows[0], lows[1])
    assert not torch.equal(lows[0], lows[2])


@pytest.mark.parametrize(
    ("factor", "patch", "spacing", "turned"),
    [
        ((2, 2), (32, 32), None, True),
        ((2, 2), (32, 32), (0.1, 0.1), True),
        ((2, 2), (32, 32), (0.1, 0.2), False),
        ((2, 4), (32, 32), None, False),
        ((2, 2), (32, 64), None, False),
        ((4, 1, 1), (16, 32, 32), (0.3, 0.1, 0.1), True),
        ((1, 2, 1), (16, 32, 32), None, False),
    ],
)
def test_quarter_turns_only_where_the_plane_is_square(factor: Any, patch: Any, spacing: Any, turned: bool) -> None:
    recipe = Recipe(method={"kind": "srresnet", "factor": factor}, data={"patch": patch})
    transforms = patch_transforms(recipe, [spacing])
    assert any(isinstance(t, RandRotate90d) for t in transforms) == turned
    assert sum(isinstance(t, RandFlipd) for t in transforms) == len(factor)
    still = Recipe(method={"kind": "srresnet", "factor": factor}, data={"patch": patch, "flips": False})
    assert len(patch_transforms(still, [spacing])) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_pipeline_of_monai(workers: int) -> None:
    """Compose, flips, turns and DataLoader of MONAI around readers and transforms of ours, 3D and anisotropic."""
    factor = (1, 2, 2)
    pipeline = Compose(
        [
            LoadScand("high"),
            RandPatchd("high", (8, 32, 32)),
            RandFlipd("high", prob=0.5, spatial_axis=0),
            RandRotate90d("high", prob=0.5, spatial_axes=(1, 2)),
            RandDegraded("high", DegradationRange(fwhm_um=(0.3, 0.6)), factor),
            ToTensord(["low", "high"], track_meta=False),
            DeleteItemsd("unused"),
        ]
    )
    pipeline.set_random_state(seed=0)
    loader = DataLoader(Dataset([{"high": NUCLEI}] * 4, pipeline), batch_size=2, num_workers=workers)
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        assert tuple(batch["low"].shape) == (2, 1, 8, 16, 16)
        assert tuple(batch["high"].shape) == (2, 1, 8, 32, 32)
        block_mean = torch.nn.functional.avg_pool3d(batch["high"], factor)
        both = torch.stack([block_mean.flatten(), batch["low"].flatten()])
        assert float(torch.corrcoef(both)[0, 1]) > 0.9  # the coarse patch is of this very fine one
    again = Compose(pipeline.transforms)
    first = [again.set_random_state(seed=9)({"high": NUCLEI}) for _ in range(2)]
    assert torch.equal(first[0]["low"], first[1]["low"])
