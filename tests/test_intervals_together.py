"""Estimate, lower and upper in one result and one pass: the same bytes as alone, whatever stops it, wherever it is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from ome_zarr_models.v05 import Image

from medsr.batch import upscale_folder
from medsr.data import NUCLEI
from medsr.engines import choose_engine
from medsr.header import FILE, RECORDS
from medsr.holes import off_padding
from medsr.io import find_scans, omezarr, read_scan
from medsr.io.places import Bucket, Folder, place
from medsr.job import OutputOptions, Prepared, Setting, documents, prepare
from medsr.methods import Cubic, Ensemble
from medsr.methods.widths import Widths
from medsr.plan import plan
from medsr.scan import Grid, Intensity, Scan
from medsr.shards import Room, Share, bytes_beside
from medsr.trust.distances import Bound, Interval, LearnedWidths, SpreadWidths
from medsr.trust.provenance import provenance_of, verify
from medsr.upscaler import Composed, Several, Upscaler, checkpoints_of, describe, fingerprint, makers_of
from medsr.upscaling import upscale, upscale_images, upscaled_blocks
from tests.methods_asked import network, noise
from tests.object_store import bucket

__all__ = ["bucket"]

SMALL = OutputOptions(chunk=(64, 64), shard=(128, 128))
PROMISE = "90 % of whole at confidence 90 %"
TERMS = {"words": PROMISE, "share": 0.9, "confidence": 0.9, "over": "whole", "scans": 30}
NAMES = ("", "lower", "upper")
TASKS = 22
"""Shards of each image of a plane at SMALL: 16, 4, 1 and 1."""


def widths_of(factor: tuple[int, ...]) -> Widths:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Widths(factor, features=4, blocks=1).eval().requires_grad_(False)


MADE = {
    "cubic-2": lambda: LearnedWidths(Cubic((2, 2)), widths_of((2, 2))),
    "network-2": lambda: LearnedWidths(network("fast-2", 12), widths_of((2, 2))),
    "network-1-2-2": lambda: LearnedWidths(network("fast-1-2-2", 12), widths_of((1, 2, 2))),
    "spread-2": lambda: SpreadWidths(Ensemble(network("fast-2", 12))),
}


def together(name: str, scaling: float = 1.5) -> Interval:
    return Interval(MADE[name](), scaling=scaling, promise=PROMISE, terms=TERMS)


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, tifffile.imread(NUCLEI)[3])
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def shards(root: Path, image: str = "") -> dict[str, bytes]:
    start = f"{image}/" if image else ""
    found = {key.removeprefix(start): data for key, data in tree(root).items() if key.startswith(start)}
    return {key: data for key, data in found.items() if key[0].isdigit() and "/c/" in key}


@pytest.fixture
def calm(plane: Path, tmp_path: Path) -> dict[str, bytes]:
    upscale_folder(plane, together("cubic-2"), out=tmp_path / "calm", options=SMALL)
    return tree(tmp_path / "calm" / "plane.ome.zarr")


def scan_of(black: float, white: float, **more: object) -> Scan:
    stored = tifffile.imread(NUCLEI)[3, :64, :70].astype(np.uint16)
    return Scan(stored, Grid(("y", "x"), (0.3, 0.3)), Intensity(black, white, stored.dtype, **more))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the method


@pytest.mark.parametrize("name", MADE)
def test_each_image_is_what_makes_it_alone_makes(name: str) -> None:
    made = together(name)
    assert isinstance(made, Several)
    assert isinstance(made, Composed)
    assert isinstance(made, Upscaler)
    assert tuple(makers_of(made)) == NAMES
    low = noise(1, 1, *((20, 22) if len(made.factor) == 2 else (5, 16, 18)))
    with torch.inference_mode():
        found = made(low)
        for index, maker in enumerate(makers_of(made).values()):
            assert torch.equal(found[:, index : index + 1], maker(low)), describe(maker)


def test_a_method_of_one_image_makes_it_alone() -> None:
    cubic = Cubic((2, 2))
    assert makers_of(cubic) == {"": cubic}
    assert not isinstance(cubic, Several)


def test_the_fingerprint_knows_scaling_promise_and_weights() -> None:
    first = fingerprint(together("network-2"))
    assert first == fingerprint(together("network-2"))
    method = MADE["network-2"]()
    other = Interval(method, scaling=1.5, promise=PROMISE, terms={**TERMS, "scans": 31})
    lower = Bound(method, "lower", scaling=1.5, promise=PROMISE)
    changed = [other, together("network-2", 1.5 + 1e-9), together("spread-2"), lower, method.inner]
    assert len({first, *map(fingerprint, changed)}) == 6
    assert "\n" not in describe(other)


@pytest.mark.parametrize("name", ["network-2", "spread-2"])
@pytest.mark.parametrize(("black", "white"), [(0, 4000), (4000, 0)])
def test_images_in_memory_are_those_of_each_alone_and_in_order(name: str, black: float, white: float) -> None:
    made, scan = together(name), scan_of(black, white)
    found = upscale_images(scan, made, tile=(23, 19), device="cpu")
    assert tuple(found) == NAMES
    for image, maker in makers_of(made.adapt(scan)).items():
        alone = upscale(scan, maker, tile=(40, 33), device="cpu")
        np.testing.assert_array_equal(found[image].data, alone.data)
        assert found[image].history == alone.history
    lower, estimate, upper = (found[image].data for image in ("lower", "", "upper"))
    assert (lower <= estimate).all()
    assert (estimate <= upper).all()
    assert (lower < upper).mean() > 0.9


def test_what_returns_one_image_refuses_several() -> None:
    made, scan = together("cubic-2"), scan_of(0, 4000)
    with pytest.raises(ValueError, match="expected a method that makes one image, found one that makes 3 .*upscale_im"):
        upscale(scan, made)
    with pytest.raises(ValueError, match="expected a method that makes one image"):
        next(upscaled_blocks(scan, made, chosen=plan(scan, made)))
    with pytest.raises(ValueError, match="expected an estimate of shape"):
        upscale(scan, Ensemble(made))


def test_an_engine_is_measured_on_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # bfloat16 also where the processor has no unit for it: in float32 an engine may deviate by nothing
    monkeypatch.setattr("medsr.engines.measuring._candidates", lambda _engine, _place: [("compiled", "bfloat16")])
    made, scan = together("network-2", scaling=40.0), scan_of(0, 4000)
    alone, all_three = (
        choose_engine(scan, each, engine="compiled", tolerance=1e9, device="cpu").deviation
        for each in (makers_of(made)[""], made)
    )
    assert all_three > 1.5 * alone > 0


def test_the_memory_of_three_results_is_reckoned_with() -> None:
    scan, made = scan_of(0, 4000), together("network-2")
    inner = makers_of(made)[""]
    fine = 4 * 60 * 60
    one, three = (plan(scan, each, tile=(60, 60), waiting=3).bytes_per_tile for each in (inner, made))
    assert three - one > 2 * fine * (8 + 2 + 4 * 3)
    levels = [omezarr.plan_levels((512, 512), Grid(("y", "x")), images=images) for images in (("",), NAMES)]
    dtype, room = np.dtype(np.uint16), Room(2, 3, 2)
    held = [bytes_beside(each, dtype, room) for each in levels]
    assert held[1] - held[0] == 2 * room.shards * 512 * 512 * 2


# ---------------------------------------------------------------- holes and padding


@pytest.mark.parametrize(
    ("dtype", "padding", "values", "expected"),
    [
        ("uint16", (0, 0), [0, 1, 9], [1, 1, 9]),
        ("uint16", (65530, 65535), [65529, 65530, 65535], [65529, 65529, 65529]),
        ("int16", (10, 14), [9, 10, 11, 12, 13, 14, 15], [9, 9, 9, 15, 15, 15, 15]),
        ("int16", (9.5, 10.5), [9, 10, 11], [9, 11, 11]),
        ("uint8", (0, 255), [0, 7, 255], [0, 7, 255]),
        ("float32", (0.0, 1.0), [-1.0, 0.25, 1.0, 2.0], [-1.0, -1e-45, np.nextafter(np.float32(1), np.float32(2)), 2]),
    ],
)
def test_what_was_measured_has_no_value_of_the_padding(dtype: str, padding, values: list, expected: list) -> None:
    line = Intensity(0, 1, np.dtype(dtype), padding=padding)
    found = off_padding(np.array(values, dtype), line)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, np.array(expected, dtype))


@pytest.mark.parametrize(("black", "white"), [(1000, 4000), (4000, 1000)])
def test_holes_are_the_same_in_all_images_and_nothing_else_is_one(tmp_path: Path, black: float, white: float) -> None:
    """Where the padding is the lowest value of the type, and ends of intervals are clipped there."""
    scan = scan_of(black, white, padding=(0, 0))
    scan.data[5:21, 9:30] = 0
    found = upscale_images(scan, together("network-2", scaling=60.0), device="cpu")
    holes = {image: scan.intensity.holes(each.data) for image, each in found.items()}
    assert holes[""].sum() == 4 * 16 * 21
    for image, each in found.items():
        np.testing.assert_array_equal(holes[image], holes[""])
        assert (each.data[holes[""]] == 0).all()
    assert (found["lower"].data == 1).any()
    coarse = [omezarr.average(found[i].data, (2, 2), intensity=scan.intensity) for i in ("lower", "", "upper")]
    assert (coarse[0] <= coarse[1]).all()
    assert (coarse[1] <= coarse[2]).all()


def test_a_scan_of_floats_keeps_its_holes_in_all_images() -> None:
    stored = np.asarray(scan_of(0, 1).data, np.float32)
    stored[3, 4], stored[30:40, 30:44] = np.inf, np.nan
    scan = Scan(stored, Grid(("y", "x")), Intensity(0, 4000, stored.dtype))
    found = [upscale_images(scan, together("cubic-2"), device="cpu")[image].data for image in NAMES]
    for each in found:
        assert np.isinf(each).sum() == 4
        assert np.isnan(each).sum() == 4 * 140
    inside = np.isfinite(found[0])
    assert (found[1][inside] < found[0][inside]).all()
    assert (found[0][inside] < found[2][inside]).all()


# ---------------------------------------------------------------- the result


@pytest.mark.parametrize(("name", "memory"), [("network-2", 4e9), ("network-2", 6.5e8), ("spread-2", 4e9)])
def test_the_estimate_has_the_bytes_it_has_without_intervals(
    plane: Path, tmp_path: Path, name: str, memory: float
) -> None:
    made = together(name)
    for folder, upscaler in (("three", made), *((f"one-{k}", m) for k, m in makers_of(made).items())):
        given = {"engine": "torch", "memory": int(memory), "device": "cpu"}
        row = upscale_folder(plane, upscaler, out=tmp_path / folder, **given).rows[0]  # type: ignore[arg-type]
        assert row.status == "done", row.reason
    root = tmp_path / "three" / "plane.ome.zarr"
    for image in NAMES:
        assert shards(root, image) == shards(tmp_path / f"one-{image}" / "plane.ome.zarr")
    alone = zarr.open_group(tmp_path / "one-" / "plane.ome.zarr", mode="r").attrs
    both = zarr.open_group(root, mode="r").attrs
    assert both["ome"] == alone["ome"]
    assert both["medsr"]["history"] == alone["medsr"]["history"]


@pytest.mark.parametrize("name", ["network-1-2-2", "network-2"])
def test_each_image_is_a_valid_pyramid_in_order_at_every_level(tmp_path: Path, name: str) -> None:
    upscale_folder(NUCLEI, together(name), out=tmp_path, options=OutputOptions(chunk=(64, 64)))
    (root,) = tmp_path.glob("*.ome.zarr")
    scans = {image: read_scan(root / image) for image in NAMES}
    count = len(Image.from_zarr(zarr.open_group(root, mode="r")).ome_attributes.multiscales[0].datasets)
    assert count > 2
    for image in NAMES[1:]:
        found = Image.from_zarr(zarr.open_group(root / image, mode="r"))
        assert found.ome_attributes.multiscales[0].name.endswith(f" {image}")
        assert scans[image].grid == scans[""].grid
        assert scans[image].intensity == scans[""].intensity
        assert scans[image].history[-1].split(" by ")[1].startswith(f"{image} end of intervals, {PROMISE}, 1.5 times")
        assert not scans[image].warnings
    for level in map(str, range(count)):
        lower, estimate, upper = (zarr.open_array(root / i, path=level, mode="r")[...] for i in ("lower", "", "upper"))
        assert (lower <= estimate).all()
        assert (estimate <= upper).all()
        assert (lower < upper).mean() > 0.5


def test_the_attributes_say_what_is_promised(plane: Path, tmp_path: Path) -> None:
    upscale_folder(plane, together("cubic-2"), out=tmp_path / "out", options=SMALL)
    root = tmp_path / "out" / "plane.ome.zarr"
    ours = {image: zarr.open_group(root / image, mode="r").attrs["medsr"] for image in NAMES}
    assert ours[""]["intervals"] == {"lower": "lower", "upper": "upper", "promise": TERMS}
    assert ours["lower"]["intervals"] == {"end": "lower", "promise": TERMS}
    assert ours["upper"]["intervals"] == {"end": "upper", "promise": TERMS}
    assert [source.path for source in find_scans(tmp_path / "out")] == [root]
    assert [source.path for source in find_scans(root)] == [root]
    assert provenance_of(root).method.startswith("estimate with intervals")
    assert verify(root, plane)
    assert checkpoints_of(together("cubic-2")) == ()


def test_with_and_without_intervals_are_different_jobs(plane: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "out", together("cubic-2")
    upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL)
    for other in (made, Interval(MADE["cubic-2"](), scaling=1.6)):
        row = upscale_folder(plane, other, out=out, options=SMALL).rows[0]
        assert row.status == "failed"
        assert "--overwrite" in row.reason
    assert upscale_folder(plane, made, out=out, options=SMALL, overwrite=True).rows[0].status == "done"
    assert upscale_folder(plane, made, out=out, options=SMALL).rows[0].status == "skipped"
    (out / "plane.ome.zarr" / "upper" / "0" / "c" / "1" / "1").unlink()
    assert "lost shards" in upscale_folder(plane, made, out=out, options=SMALL).rows[0].reason
    assert upscale_folder(plane, Cubic((2, 2)), out=out, options=SMALL, overwrite=True).rows[0].status == "done"
    assert not (out / "plane.ome.zarr" / "lower").exists()


def prepared(path: Path, upscaler: Upscaler) -> Prepared:
    work = prepare(find_scans(path)[0], Setting(upscaler, OutputOptions(), int(2e9), 1, "cpu", "torch", None, None))
    assert work is not None
    return work


def test_the_shards_are_those_of_the_estimate_alone_though_the_halo_is_larger(tmp_path: Path) -> None:
    path, made = tmp_path / "deep.ome.tif", together("network-1-2-2")
    tifffile.imwrite(path, np.tile(tifffile.imread(NUCLEI)[:, :32, :32], (7, 1, 1)), metadata={"axes": "ZYX"})
    alone, far = (prepared(path, each).levels[0].shard for each in (makers_of(made)[""], Beyond(made)))
    assert far != alone, "the halo decides"
    assert prepared(path, made).levels[0].shard == alone


class Beyond(Cubic):
    """A method of one image that reaches as far as another."""

    def __init__(self, other: Upscaler) -> None:
        super().__init__(other.factor)
        self.halo = tuple(other.halo)


def test_the_documents_end_with_the_result_itself() -> None:
    keys = list(documents(prepared(NUCLEI, together("network-1-2-2"))))
    groups = [key for key in keys if key.count("/") == key.count("er/")]
    assert groups == ["upper/zarr.json", "lower/zarr.json", "zarr.json"]
    assert keys[-1] == "zarr.json"
    assert all(keys.index(key) < keys.index("zarr.json") for key in keys[:-1])


def test_a_dry_run_counts_the_size_of_all_images(plane: Path, tmp_path: Path) -> None:
    made = together("cubic-2")
    sizes = [
        upscale_folder(plane, each, out=tmp_path / "out", dry_run=True).rows[0].details["size_mb"]
        for each in (makers_of(made)[""], made)
    ]
    assert sizes[1] == pytest.approx(3 * sizes[0], abs=0.2)


# ---------------------------------------------------------------- stopped anywhere, shared, elsewhere


class Stop(BaseException):
    """Stands for a signal."""


def stopped_after(count: int, patch: pytest.MonkeyPatch) -> None:
    honest, written = omezarr.write_shard, []

    def write_shard(*args: object) -> str:
        if len(written) >= count:
            raise Stop
        written.append(args)
        return honest(*args)  # type: ignore[arg-type]

    patch.setattr(omezarr, "write_shard", write_shard)


@pytest.mark.parametrize("after", [0, 1, 2, 17, 50, 3 * TASKS - 1])
def test_interrupt_anywhere_and_run_again_gives_the_same_bytes(
    plane: Path, tmp_path: Path, calm: dict[str, bytes], after: int
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(after, patch)
        with pytest.raises(Stop):
            upscale_folder(plane, together("cubic-2"), out=out, options=SMALL)
    assert not (out / "plane.ome.zarr").exists()
    part = out / "plane.ome.zarr.part"
    if after == 17:  # torn by a crash: half a shard of one end, a temporary file, half a record
        torn = next(p for p in sorted((part / "lower" / "0" / "c").rglob("*")) if p.is_file())
        torn.write_bytes(torn.read_bytes()[:100])
        (torn.parent / ".0.4711.1.part").write_bytes(b"torn")
        with (part / FILE).open("a") as stream:
            stream.write('{"level": 0, "sha')
    kept = len((part / FILE).read_text().splitlines()) - (after == 17)
    row, written = None, 0
    with pytest.MonkeyPatch.context() as patch:
        honest = omezarr.write_shard

        def write_shard(*args: object) -> str:
            nonlocal written
            written += 1
            return honest(*args)  # type: ignore[arg-type]

        patch.setattr(omezarr, "write_shard", write_shard)
        row = upscale_folder(plane, together("cubic-2"), out=out, options=SMALL).rows[0]
    assert row.status == "done", row.reason
    assert tree(out / "plane.ome.zarr") == calm
    again = 3 * (TASKS - kept)
    assert again <= written <= again + 3  # the torn one beside it, if it was recorded
    assert not part.exists()


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1); torch.manual_seed(0);"
        "from medsr import FastNetwork, OutputOptions, upscale_folder; from medsr.methods.widths import Widths;"
        "from medsr.trust.distances import Interval, LearnedWidths;"
        "m = LearnedWidths(FastNetwork((2, 2), features=8, blocks=2), Widths((2, 2), features=4, blocks=1));"
        "upscale_folder(Path(sys.argv[1]), Interval(m, scaling=2.0), out=Path(sys.argv[2]), engine='torch',"
        "options=OutputOptions(chunk=(1, 128, 128), shard=(1, 256, 256)))"
    )
    tifffile.imwrite(tmp_path / "stack.ome.tif", tifffile.imread(NUCLEI)[:10], metadata={"axes": "ZYX"})
    command = [sys.executable, "-c", code, str(tmp_path / "stack.ome.tif")]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(calm)], check=True, env=environment)
    process = subprocess.Popen([*command, str(killed)], env=environment)
    records = killed / "stack.ome.zarr.part" / FILE
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (records.exists() and records.read_text().count("\n") > 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert records.exists(), "the run ended before it was killed"
    subprocess.run([*command, str(killed)], check=True, env=environment)
    (one,), (two,) = calm.glob("*.ome.zarr"), killed.glob("*.ome.zarr")
    assert tree(one) == tree(two)
    assert shards(one, "lower")


def test_two_workers_write_what_one_writes(plane: Path, tmp_path: Path, calm: dict[str, bytes]) -> None:
    row = upscale_folder(plane, together("cubic-2"), out=tmp_path / "out", options=SMALL, workers=2).rows[0]
    assert row.status == "done", row.reason
    found = tree(tmp_path / "out" / "plane.ome.zarr")
    assert {k: d for k, d in found.items() if "/c/" in k} == {k: d for k, d in calm.items() if "/c/" in k}
    assert found.keys() == calm.keys()


def test_shares_meet(plane: Path, tmp_path: Path, calm: dict[str, bytes]) -> None:
    rows = [
        upscale_folder(plane, together("cubic-2"), out=tmp_path / "out", options=SMALL, part=Share(n, 3)).rows[0].status
        for n in (3, 1, 2)
    ]
    assert rows == ["waiting", "waiting", "done"]
    assert tree(tmp_path / "out" / "plane.ome.zarr") == calm


@pytest.mark.parametrize("lost", [False, True])
def test_the_last_share_does_what_was_torn_in_one_image(
    plane: Path, tmp_path: Path, calm: dict[str, bytes], lost: bool
) -> None:
    out, made = tmp_path / "out", together("cubic-2")
    upscale_folder(plane, made, out=out, options=SMALL, part=Share(1, 2))
    shard = out / "plane.ome.zarr.part" / "upper" / "0" / "c" / "0" / "0"
    if lost:
        shard.unlink()
    else:
        shard.write_bytes(bytes(40) + shard.read_bytes()[40:])
    assert upscale_folder(plane, made, out=out, options=SMALL, part=Share(2, 2)).rows[0].status == "done"
    assert tree(out / "plane.ome.zarr") == calm


def in_store(url: str) -> dict[str, bytes]:
    there = place(url)
    return {key: there.get(key) or b"" for key in there.keys()}  # noqa: SIM118 - a place, not a dict


@pytest.mark.parametrize("after", [None, 0, 20, 3 * TASKS - 1])
def test_a_result_in_a_bucket_is_whole_or_absent_and_equals_that_on_disk(
    bucket: str, plane: Path, calm: dict[str, bytes], after: int | None
) -> None:
    out, made = f"{bucket}/out", together("cubic-2")
    unfinished = Bucket(f"{out}/plane.ome.zarr")
    if after is not None:
        with pytest.MonkeyPatch.context() as patch:
            stopped_after(after, patch)
            with pytest.raises(Stop):
                upscale_folder(plane, made, out=out, options=SMALL)
        assert find_scans(out) == []
        for image in NAMES:
            assert omezarr.image_place(unfinished, image).get("zarr.json") is None, "no reader takes it for an image"
            with pytest.raises(ValueError, match="expected"):
                read_scan(omezarr.image_place(unfinished, image).name)
    if after == 20:
        unfinished.put(unfinished.keys("lower/0/c/")[0], b"something else")
    assert upscale_folder(plane, made, out=out, options=SMALL).rows[0].status == "done"
    assert in_store(f"{out}/plane.ome.zarr") == calm
    assert unfinished.keys(RECORDS) == []
    assert upscale_folder(plane, made, out=out, options=SMALL).rows[0].status == "skipped"
    assert len(find_scans(out)) == 1
    lower, estimate = (read_scan(f"{out}/plane.ome.zarr{image}").read() for image in ("/lower", ""))
    assert (lower <= estimate).all()


def test_one_record_stands_for_the_shards_of_all_images(plane: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(7, patch)
        with pytest.raises(Stop):
            upscale_folder(plane, together("cubic-2"), out=tmp_path, options=SMALL)
    part = tmp_path / "plane.ome.zarr.part"
    records = [json.loads(line) for line in (part / FILE).read_text().splitlines()]
    assert 0 < len(records) <= 2
    (level, *_) = omezarr.plan_levels((512, 512), Grid(("y", "x")), chunk=(64, 64), shard=(128, 128), images=NAMES)
    for record in records:
        index = tuple(record["shard"])
        assert omezarr.shard_digest(Folder(part), level, index) == record["digest"]
        (part / "upper" / omezarr.shard_key(level, index)).unlink()
        assert omezarr.shard_digest(Folder(part), level, index) is None
