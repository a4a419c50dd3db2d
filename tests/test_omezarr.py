"""The writer's shards are what zarr reads and writes, byte for byte alike each time; a level averages the one below."""

import errno
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numcodecs.blosc
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from medsr.data import MAMMOGRAM, NUCLEI
from medsr.io import omezarr, read_scan, shard
from medsr.io.places import Folder
from medsr.scan import Grid, Intensity

TYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return read_scan(NUCLEI).read()


def made(
    root: Path, data: np.ndarray, grid: Grid, **sizes: tuple[int, ...]
) -> tuple[Folder, tuple[omezarr.Level, ...]]:
    """A whole pyramid as the writer makes it."""
    line = Intensity(0, 1, data.dtype)
    levels = omezarr.plan_levels(data.shape, grid, **sizes)
    folder = Folder(root)
    documents = omezarr.metadata(levels, intensity=line, name="a", factor=(1,) * data.ndim, attributes={"job": {}})
    for key, document in documents.items():
        folder.put(key, document)
    for number, level in enumerate(levels):
        for index, region in omezarr.shard_regions(level):
            block = data[region]
            if number:
                block = omezarr.averaged_shard(folder, levels[number - 1], level, index, intensity=line)
            digest = omezarr.write_shard(folder, level, index, block)
            assert digest == omezarr.shard_digest(folder, level, index)
    return folder, levels


AXES = {2: ("y", "x"), 3: ("z", "y", "x"), 4: ("c", "z", "y", "x"), 5: ("t", "c", "z", "y", "x")}
CHUNKS = {
    2: ((16, 32), (64, 64)),
    3: ((3, 16, 16), (6, 48, 32)),
    4: ((2, 16, 16), (4, 32, 32)),
    5: ((16, 16), (32, 32)),
}


@pytest.mark.parametrize(("dims", "dtype"), [(2, t) for t in TYPES] + [(d, "uint16") for d in (3, 4, 5)])
def test_zarr_reads_our_shards_clipped_ones_too(tmp_path, nuclei, dims, dtype):
    line = Intensity(0, 1, np.dtype(dtype))
    data = {2: nuclei[3], 3: nuclei, 4: np.stack([nuclei[:7], nuclei[7:14]]), 5: nuclei[None, None, :5]}[dims]
    data = data[..., :101, :90].astype(dtype)
    if data.dtype.kind == "f":
        data[..., 5, 5] = np.nan
        data /= 7
    chunk, size = CHUNKS[dims]
    folder, levels = made(tmp_path / "a", data, Grid(AXES[dims]), chunk=chunk, shard=size)
    assert any(n % s for n, s in zip(levels[0].shape, levels[0].shard, strict=True))
    array = zarr.open_array(tmp_path / "a", path="0", mode="r")
    assert array.dtype == data.dtype
    np.testing.assert_array_equal(array[...], data)
    for number in range(1, len(levels)):
        finer = zarr.open_array(tmp_path / "a", path=levels[number - 1].path, mode="r")[...]
        found = zarr.open_array(tmp_path / "a", path=levels[number].path, mode="r")[...]
        np.testing.assert_array_equal(found, omezarr.average(finer, levels[number].step, intensity=line))
    assert omezarr.is_whole(folder, levels)
    folder.delete(omezarr.shard_key(levels[0], tuple(0 for _ in data.shape)))
    assert not omezarr.is_whole(folder, levels)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_chunks_are_the_bytes_that_zarr_stores(nuclei, dtype):
    """Only their order in the shard differs (ours: last axis fastest; zarr's: along a Morton curve)."""
    data = np.ascontiguousarray(nuclei[3, :128, :192].astype(dtype))
    levels = omezarr.plan_levels(data.shape, Grid(("y", "x")), chunk=(32, 32), shard=(128, 192))
    documents = omezarr.metadata(
        levels, intensity=Intensity(0, 1, data.dtype), name="a", factor=(1, 1), attributes={"job": {}}
    )
    stored = {"zarr.json": zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(documents["0/zarr.json"])}
    array = zarr.open_array(MemoryStore(stored), mode="r+")
    array[...] = data
    theirs, ours = stored["c/0/0"].to_bytes(), omezarr.encode_shard(levels[0], data)
    assert len(theirs) == len(ours)
    assert chunks(theirs, (4, 6)) == chunks(ours, (4, 6))


def chunks(stored: bytes, counts: tuple[int, int]) -> list[bytes]:
    places = np.frombuffer(stored[-16 * counts[0] * counts[1] - 4 : -4], "<u8").reshape(-1, 2)
    return [stored[start : start + length] for start, length in places.tolist()]


def test_a_chunk_beyond_the_end_is_left_out_and_one_of_zeros_is_not(nuclei):
    data = nuclei[3, :40, :70].copy()
    data[:32, :32] = 0
    stored = shard.encode(data, chunk=(32, 32), shard=(128, 128))
    places = np.frombuffer(stored[-16 * 16 - 4 : -4], "<u8").reshape(4, 4, 2)
    there = places[..., 0] != 2**64 - 1
    assert there.tolist() == [[True, True, True, False]] * 2 + [[False] * 4] * 2
    reader = shard.ShardReader(stored, dtype=data.dtype, chunk=(32, 32), shard=(128, 128))
    np.testing.assert_array_equal(reader.read((1, 2))[:8, :6], data[32:, 64:])
    assert not reader.read((1, 2))[8:].any()
    assert not reader.read((0, 0)).any()
    assert not reader.read((3, 3)).any()


def test_the_bytes_are_the_same_from_any_thread(monkeypatch):
    """Blosc, let loose in the main thread, stores the blocks of one chunk in the order its own threads finish."""
    monkeypatch.setattr(numcodecs.blosc, "use_threads", None)  # as it is until zarr is imported
    big = np.random.default_rng(0).normal(1000, 30, (16, 512, 512)).astype("uint16")
    expected = {shard.encode(big, chunk=big.shape, shard=big.shape) for _ in range(8)}
    with ThreadPoolExecutor(2) as pool:
        expected |= set(pool.map(lambda _: shard.encode(big, chunk=big.shape, shard=big.shape), range(4)))
    assert threading.current_thread() is threading.main_thread()
    assert len(expected) == 1


@pytest.mark.parametrize("at", [0.0, 0.5, 0.9, 1.0])
def test_a_torn_or_spoiled_shard_is_never_averaged(tmp_path, nuclei, at):
    grid = Grid(("y", "x"))
    folder, levels = made(tmp_path / "a", nuclei[3], grid, chunk=(64, 64), shard=(128, 128))
    key = omezarr.shard_key(levels[0], (0, 0))
    stored = folder.get(key)
    line = Intensity(0, 1, nuclei.dtype)
    cut = int(at * (len(stored) - 1))
    for broken in (stored[:cut], stored[cut + 1 :]):
        folder.put(key, broken)
        with pytest.raises(OSError, match=rf"expected a whole shard, found .*{key}"):
            omezarr.averaged_shard(folder, levels[0], levels[1], (0, 0), intensity=line)
    end = len(stored) - 4
    swapped = stored[: end - 64] + stored[end - 48 : end - 32] + stored[end - 64 : end - 48] + stored[end - 32 :]
    folder.put(key, swapped)  # chunks that decode, in each other's place
    with pytest.raises(OSError, match="damaged index"):
        omezarr.averaged_shard(folder, levels[0], levels[1], (0, 0), intensity=line)
    folder.delete(key)
    with pytest.raises(FileNotFoundError, match=rf"expected a finished shard, found none: .*{key}"):
        omezarr.averaged_shard(folder, levels[0], levels[1], (0, 0), intensity=line)


@pytest.mark.parametrize(
    ("chunk", "size"),
    [((1, 5, 7), (3, 15, 21)), ((2, 16, 16), (2, 16, 16)), ((8, 64, 64), (8, 64, 64))],
)
def test_shards_of_an_odd_number_of_chunks_are_averaged_across(tmp_path, nuclei, chunk, size):
    data = nuclei[:7, :100, :83]
    grid = Grid(("z", "y", "x"), (1.0, 1.0, 1.0))
    _, levels = made(tmp_path / "a", data, grid, chunk=chunk, shard=size)
    assert levels[1].step == (2, 2, 2)
    found = zarr.open_array(tmp_path / "a", path="1", mode="r")[...]
    np.testing.assert_array_equal(found, omezarr.average(data, (2, 2, 2)))


def test_one_finer_shard_at_a_time_is_held(tmp_path, monkeypatch):
    data = read_scan(MAMMOGRAM).read()
    folder, levels = made(tmp_path / "a", data, Grid(("y", "x")), chunk=(64, 64), shard=(512, 512))
    got: list[str] = []
    held: list[int] = []
    honest = omezarr._FinerChunks.hold
    monkeypatch.setattr(Folder, "get", lambda self, key: (got.append(key), (self.path / key).read_bytes())[1])
    monkeypatch.setattr(
        omezarr._FinerChunks, "hold", lambda self, region: (honest(self, region), held.append(len(self._held)))[0]
    )
    omezarr.averaged_shard(folder, levels[0], levels[1], (0, 0), intensity=Intensity(0, 1, data.dtype))
    assert sorted(got) == sorted(omezarr.shard_key(levels[0], i) for i in product((0, 1), (0, 1)))
    assert set(held) == {1}


def test_what_is_no_whole_shard_is_refused(tmp_path):
    levels = omezarr.plan_levels((300, 300), Grid(("y", "x")), chunk=(64, 64), shard=(256, 256))
    with pytest.raises(ValueError, match=r"a/0: expected a whole shard of \(44, 256\), found \(256, 256\)"):
        omezarr.write_shard(Folder(tmp_path / "a"), levels[0], (1, 0), np.zeros((256, 256), "u2"))
    with pytest.raises(ValueError, match=r"level 0: expected a shard of at most \(256, 256\)"):
        omezarr.encode_shard(levels[0], np.zeros((257, 256), "u2"))
    assert not Folder(tmp_path / "a").exists()


def test_the_metadata_end_with_the_group_and_tell_the_job(tmp_path):
    levels = omezarr.plan_levels((600, 600), Grid(("y", "x"), (0.1, 0.1)))
    line = Intensity(3, 900, np.dtype("uint16"), bits=12)
    documents = omezarr.metadata(levels, intensity=line, name="a", factor=(2, 2), attributes={"job": {"method": "b"}})
    assert list(documents) == ["0/zarr.json", "1/zarr.json", "2/zarr.json", "zarr.json"]
    assert documents == omezarr.metadata(
        levels, intensity=line, name="a", factor=(2, 2), attributes={"job": {"method": "b"}}
    )
    folder = Folder(tmp_path)
    assert omezarr.stored_job(folder) is None
    folder.put("zarr.json", documents["zarr.json"])
    assert omezarr.stored_job(folder) == {"method": "b"}
    codecs = json.loads(documents["0/zarr.json"])["codecs"]
    (blosc,) = (c for c in codecs[0]["configuration"]["codecs"] if c["name"] == "blosc")
    assert blosc["configuration"] == {
        "typesize": 2, "cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 0,
    }  # fmt: skip
    folder.put("zarr.json", b"{")
    assert omezarr.stored_job(folder) is None
    assert omezarr.stored_job(folder.child("zarr.json")) is None  # a file


def test_a_result_that_cannot_be_asked_for_is_not_absent(tmp_path, monkeypatch):
    def failed(_folder, _key):
        raise OSError(errno.EIO, "the store does not answer")

    monkeypatch.setattr(Folder, "get", failed)
    with pytest.raises(OSError, match="does not answer"):
        omezarr.stored_job(Folder(tmp_path))
