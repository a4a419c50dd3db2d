"""OME-Zarr in: geometry in micrometers, what our writer stored comes back, what is no image is refused with a cure."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from medsr.data import NUCLEI
from medsr.io import find_scans, omezarr, read_scan
from medsr.io.lazy import Arranged, BlockArray
from medsr.io.places import Folder
from medsr.scan import Grid, Intensity, ScanError


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return read_scan(NUCLEI).read()


def axis(name: str, unit: str | None = "micrometer") -> dict[str, str]:
    kinds = {"t": "time", "c": "channel"}
    return {"name": name, "type": kinds.get(name, "space")} | ({"unit": unit} if unit and name in "zyx" else {})


def write(
    root: Path,
    data: np.ndarray,
    axes: list[dict[str, str]],
    *,
    scale: list[float],
    move: list[float] | None = None,
    outer: list[dict[str, Any]] | None = None,
    version: str = "0.5",
    more: dict[str, Any] | None = None,
    **array: Any,
) -> Path:
    """An OME-Zarr image of one level, as any other writer might have made it."""
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    steps += [{"type": "translation", "translation": move}] if move else []
    multiscale: dict[str, Any] = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    multiscale |= {"coordinateTransformations": outer} if outer else {}
    options: dict[str, Any] = {"chunks": (16,) * data.ndim} | array
    if version == "0.5":
        group = zarr.create_group(root, zarr_format=3)
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [multiscale]}} | (more or {}))
    else:
        group = zarr.create_group(root, zarr_format=2)
        group.attrs.update({"multiscales": [{**multiscale, "version": "0.4"}]} | (more or {}))
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    stored = group.create_array("0", shape=data.shape, dtype=data.dtype, **options)
    stored[...] = data
    return root


ZYX = [axis("z"), axis("y"), axis("x")]


@pytest.mark.parametrize(
    ("version", "dtype"), [(v, d) for v in ("0.4", "0.5") for d in ("u1", "i2", "u2", "f4")] + [("0.4", ">u2")]
)
def test_both_versions_and_all_types(tmp_path, nuclei, version, dtype):
    values = (nuclei[:9, :50, :70] >> 8).astype(dtype)
    root = write(tmp_path / "a.ome.zarr", values, ZYX, scale=[0.29, 0.26, 0.26], move=[1.0, 2.0, 3.0], version=version)
    scan = read_scan(root)
    assert scan.grid == Grid(("z", "y", "x"), (0.29, 0.26, 0.26), (1.0, 2.0, 3.0))
    assert scan.warnings == ()
    assert scan.data.dtype.isnative
    np.testing.assert_array_equal(scan.read(), values)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scan)).data[2:5, 7:40:3, -1], values[2:5, 7:40:3, -1])


def test_transformations_of_level_and_multiscale_apply_in_turn(tmp_path, nuclei):
    outer = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}, {"type": "translation", "translation": [10.0, 20.0, 30.0]}]
    axes = [axis("z", "nanometer"), axis("y", "millimeter"), axis("x")]
    root = write(tmp_path / "a.zarr", nuclei[:4], axes, scale=[100.0, 1.0, 3.0], move=[7.0, 8.0, 9.0], outer=outer)
    grid = read_scan(root).grid
    assert grid.spacing_um == pytest.approx((0.2, 500.0, 1.5))
    assert grid.origin_um == pytest.approx((24.0e-3, 24.0e3, 34.5))


def test_axes_without_unit_have_unknown_spacing(tmp_path, nuclei):
    root = write(tmp_path / "a.zarr", nuclei[:4], [axis("z", None), axis("y"), axis("x")], scale=[1.0, 0.2, 0.2])
    scan = read_scan(root)
    assert scan.grid.spacing_um == (None, 0.2, 0.2)
    assert scan.warnings == ("the file does not say the spacing along z: unknown",)


def test_axes_of_length_one_are_left_out_and_others_put_in_order(tmp_path, nuclei):
    values = nuclei[:6, :40, :50].reshape(1, 2, 3, 40, 50)
    root = write(tmp_path / "a.zarr", values, [axis(n) for n in "tczyx"], scale=[1.0, 1.0, 0.3, 0.2, 0.1])
    scan = read_scan(root)
    assert scan.grid == Grid(("c", "z", "y", "x"), (None, 0.3, 0.2, 0.1))
    np.testing.assert_array_equal(scan.read(), values[0])
    assert isinstance(scan.data, Arranged)
    root = write(tmp_path / "b.zarr", values[0, 0], [axis(n) for n in "xyz"], scale=[0.1, 0.2, 0.3])
    scan = read_scan(root)
    assert scan.grid == Grid(("z", "y", "x"), (0.3, 0.2, 0.1))
    np.testing.assert_array_equal(scan.read(), values[0, 0].transpose(2, 1, 0))


def test_our_own_intensity_and_history_come_back(tmp_path, nuclei):
    ours = {"intensity": {"black": 4095.0, "white": 7.0, "bits": 12, "slope": 2.0, "intercept": -5.0, "units": "HU"},
            "history": ["read", "upscaled"]}  # fmt: skip
    window = {"omero": {"channels": [{"color": "FFFFFF", "window": {"start": 9, "end": 99, "min": 0, "max": 4095}}]}}
    root = write(tmp_path / "a.zarr", nuclei[:2] >> 4, ZYX, scale=[1, 0.2, 0.2], more={"medsr": ours})
    attributes = zarr.open_group(root).attrs
    attributes["ome"] = attributes["ome"] | window
    scan = read_scan(root)
    assert scan.intensity == Intensity(4095, 7, np.dtype("u2"), 12, 2.0, -5.0, "HU", (9.0, 99.0))
    assert scan.history == ("read", "upscaled")
    attributes["medsr"] = {"intensity": {"black": "x"}}
    scan = read_scan(root)
    assert any("stored intensity line cannot be used" in w for w in scan.warnings)
    assert scan.intensity.black < scan.intensity.white


@pytest.mark.parametrize("spacing", [(0.3, 0.2, 0.1), (None, 0.2, 0.2), None])
def test_what_our_writer_makes_is_read_as_it_was(tmp_path, nuclei, spacing):
    grid = Grid(("z", "y", "x"), spacing, (3.0, 4.0, 5.0) if spacing and spacing[0] else ())
    intensity = Intensity(40000.0, 300.5, np.dtype("u2"), bits=15, slope=0.5, intercept=1.0, units="um", padding=(0, 9))
    levels = omezarr.plan_levels(nuclei.shape, grid)
    root = tmp_path / "a.ome.zarr"
    folder = Folder(root)
    said = {"history": ["made"]}
    documents = omezarr.metadata(levels, intensity=intensity, name="a", factor=(1, 1, 1), attributes=said)
    for key, document in documents.items():
        folder.put(key, document)
    for index, region in omezarr.shard_regions(levels[0]):
        omezarr.write_shard(folder, levels[0], index, nuclei[region])
    scan = read_scan(root)
    assert scan.grid == grid
    assert scan.history == ("made",)
    found = scan.intensity
    assert (found.black, found.white, found.bits) == (40000.0, 300.5, 15)
    assert (found.slope, found.intercept, found.units, found.padding) == (0.5, 1.0, "um", (0, 9))
    np.testing.assert_array_equal(scan.read(), nuclei)


def test_padding_comes_back_and_what_is_none_spoils_the_line(tmp_path, nuclei):
    line = {"black": 1.0, "white": 9.0}
    for padding, expected in (([5, 7.0], (5.0, 7.0)), (None, None)):
        more = {"medsr": {"intensity": line | {"padding": padding}}}
        root = write(tmp_path / f"{expected}.zarr", nuclei[:2], ZYX, scale=[1, 0.2, 0.2], more=more)
        intensity = read_scan(root).intensity
        assert (intensity.black, intensity.white, intensity.padding) == (1, 9, expected)
    more = {"medsr": {"intensity": line | {"padding": [5]}}}
    root = write(tmp_path / "spoiled.zarr", nuclei[:2], ZYX, scale=[1, 0.2, 0.2], more=more)
    assert any("stored intensity line cannot be used" in w for w in read_scan(root).warnings)


def test_uneven_channels_are_told_and_labels_and_time_kept(tmp_path, nuclei):
    values = np.stack([nuclei[:2], nuclei[2:4] // 9], axis=1)
    omero = {
        "channels": [
            {"color": "FF0000", "window": {"start": 0, "end": 9, "min": 0, "max": 9}, "label": "GFP"},
            {"color": "00FF00", "window": {"start": 0, "end": 8, "min": 0, "max": 9}, "label": "RFP"},
        ]
    }
    time = {"name": "t", "type": "time", "unit": "second"}
    root = write(tmp_path / "a.zarr", values, [time, *(axis(n) for n in "cyx")], scale=[2.5, 1, 0.2, 0.2])
    attributes = zarr.open_group(root).attrs
    attributes["ome"] = attributes["ome"] | {"omero": omero}
    scan = read_scan(root)
    assert any("channels have very different ranges (0: " in w for w in scan.warnings)
    assert scan.history == ("channels: GFP, RFP", "time increment 2.5 second")


def test_a_collection_needs_a_choice_only_where_it_has_several(tmp_path, nuclei):
    root = tmp_path / "a.zarr"
    zarr.create_group(root, zarr_format=2).attrs["bioformats2raw.layout"] = 3
    write(root / "0", nuclei[:2], ZYX, scale=[0.3, 0.2, 0.2], version="0.4")
    np.testing.assert_array_equal(read_scan(root).read(), nuclei[:2])
    write(root / "1", nuclei[2:4], ZYX, scale=[0.3, 0.2, 0.2], version="0.4")
    with pytest.raises(ScanError, match=r"a\.zarr: .* one of 2 images, found None; it holds 0, 1\. .*series=0"):
        read_scan(root)
    np.testing.assert_array_equal(read_scan(root, series=1).read(), nuclei[2:4])
    assert len(find_scans(tmp_path)) == 1


def test_what_is_no_image_is_refused_with_the_cure(tmp_path, nuclei):
    zarr.create_array(tmp_path / "plain.zarr", data=nuclei[:2])
    zarr.create_group(tmp_path / "group.zarr")
    zarr.create_group(tmp_path / "plate.zarr").attrs["ome"] = {"version": "0.5", "plate": {}}
    labels = write(tmp_path / "labels.zarr", nuclei[:2], ZYX, scale=[1, 1, 1])
    group = zarr.open_group(labels)
    group.attrs["ome"] = group.attrs["ome"] | {"image-label": {}}
    write(tmp_path / "mask.zarr", nuclei[:2] > 9, ZYX, scale=[1, 1, 1])
    write(tmp_path / "long.zarr", nuclei[:2].astype("i8"), ZYX, scale=[1, 1, 1])
    write(tmp_path / "nan.zarr", np.full((2, 16, 16), np.nan, "f4"), ZYX, scale=[1, 1, 1])
    for name, reason in {
        "plain": "a plain zarr array.*write it as OME-Zarr", "group": "without image metadata", "plate": "a plate",
        "labels": "labels", "mask": "1-bit mask", "long": "int64", "nan": "all NaN",
    }.items():  # fmt: skip
        with pytest.raises(ScanError, match=rf"{name}\.zarr: .*{reason}"):
            read_scan(tmp_path / f"{name}.zarr")
    assert len(find_scans(tmp_path)) == 7


def test_damaged_metadata_and_samples_are_refused(tmp_path, nuclei):
    whole = write(tmp_path / "a.zarr", nuclei[:16, :32, :32], ZYX, scale=[0.3, 0.2, 0.2])
    meta = json.loads((whole / "zarr.json").read_text())

    def broken(name: str, change: Any) -> Path:
        root = tmp_path / name
        shutil.copytree(whole, root)
        document = json.loads(json.dumps(meta))
        change(document["attributes"]["ome"]["multiscales"][0])
        (root / "zarr.json").write_text(json.dumps(document))
        return root

    for name, change, reason in (
        ("axes.zarr", lambda m: m.pop("axes"), "metadata, found at .*axes"),
        ("scale.zarr", lambda m: m["datasets"][0].update(coordinateTransformations=[]), "metadata, found at"),
        ("path.zarr", lambda m: m["datasets"][0].update(path="7"), "expected an array '7'"),
        ("up.zarr", lambda m: m["datasets"][0].update(path="../a.zarr/0"), "not a valid Zarr node name"),
        ("few.zarr", lambda m: (m["axes"].pop(0), m["datasets"][0]["coordinateTransformations"][0]["scale"].pop(0)),
         "expected 2 axes"),
    ):  # fmt: skip
        with pytest.raises(ScanError, match=rf"{name}: .*{reason}"):
            read_scan(broken(name, change))
    text = broken("text.zarr", lambda _: None)
    (text / "zarr.json").write_text("{")
    with pytest.raises(ScanError, match=r"zarr\.json: expected JSON"):
        read_scan(text)
    chunk = broken("chunk.zarr", lambda _: None)
    files = sorted(p for p in (chunk / "0" / "c").rglob("*") if p.is_file())
    files[0].write_bytes(files[0].read_bytes()[:20])
    with pytest.raises(ScanError, match=r"chunk\.zarr: the chunk at .* cannot be decoded"):
        read_scan(chunk).read()
    files[0].unlink()
    assert any("1 of 4 files of samples are not there" in w for w in read_scan(chunk).warnings)
    for file in files[1:]:
        file.unlink()
    with pytest.raises(ScanError, match=r"expected 4 files of samples, found none"):
        read_scan(chunk)


def test_half_written_results_are_no_scans(tmp_path, nuclei):
    write(tmp_path / "a.ome.zarr.part", nuclei[:2], ZYX, scale=[0.3, 0.2, 0.2])
    assert find_scans(tmp_path) == []
    for given in (tmp_path / "a.ome.zarr.part", tmp_path):
        with pytest.raises(ScanError):
            read_scan(given)


@pytest.mark.parametrize("options", [{"chunks": (4, 32, 32)}, {"chunks": (2, 16, 16), "shards": (8, 64, 64)}])
def test_a_sweep_over_tiles_decodes_each_block_once(tmp_path, nuclei, options, monkeypatch):
    root = write(tmp_path / "a.zarr", nuclei[:8], ZYX, scale=[0.3, 0.2, 0.2], **options)
    array = pickle.loads(pickle.dumps(read_scan(root).data))
    assert isinstance(array, BlockArray)
    decoded: list[tuple[int, ...]] = []
    load = array.load
    monkeypatch.setattr(array, "load", lambda index: (decoded.append(index), load(index))[1])
    for y in range(0, 256, 64):
        for x in range(0, 256, 64):
            part = array[:, max(0, y - 8) : y + 72, max(0, x - 8) : x + 72]
            np.testing.assert_array_equal(part, nuclei[:8, max(0, y - 8) : y + 72, max(0, x - 8) : x + 72])
    assert decoded
    assert len(decoded) == len(set(decoded))
