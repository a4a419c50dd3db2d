"""TIFF in: every type, order, compression and layout comes back exactly; what cannot be honored is refused."""

import pickle
import re
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from medsr.data import NUCLEI, SURFACE
from medsr.io import Source, lazy, read_scan, tiff
from medsr.io.lazy import Arranged, BlockArray
from medsr.io.tiff_metadata import arrange
from medsr.io.units import micrometers, print_spacing_um, stated_spacing_um
from medsr.scan import ScanError

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"]
CODECS = ["none", "zlib", "lzw", "packbits", "zstd", "lzma"]
LAYOUTS = {"whole": {}, "strips": {"rowsperstrip": 7}, "tiles": {"tile": (32, 48)}}


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return tifffile.imread(NUCLEI)


def real_values(nuclei: np.ndarray, dtype: str) -> np.ndarray:
    """Five real planes of 90 x 101 as `dtype`: signed types get values on both sides of zero."""
    planes = nuclei[10:15, 40:130, 30:131].astype(np.float64)
    if dtype[0] == "f":
        return (planes / 65535 - 0.25).astype(dtype)
    info = np.iinfo(dtype)
    return np.rint(planes / 65535 * (float(info.max) - info.min) + info.min).clip(info.min, info.max).astype(dtype)


def write_raw(path: Path, tags: dict[int, tuple[int, list[int]]], data: bytes, *, order: str = "<") -> Path:
    """A one-page classic TIFF of these tags: number -> (type 3 SHORT or 4 LONG or 5 RATIONAL, values); 273 is set."""
    tags = {**tags, 273: (4, [0])}
    head = 8 + 2 + 12 * len(tags) + 4
    extra, entries = b"", b""
    sizes = {3: "H", 4: "I", 5: "I"}
    body: list[tuple[int, int, bytes]] = []
    for number, (kind, values) in sorted(tags.items()):
        packed = struct.pack(order + sizes[kind] * len(values), *values)
        body.append((number, kind, packed))
    outside = sum(len(p) for _, _, p in body if len(p) > 4)
    for number, kind, packed in body:
        count = len(packed) // {3: 2, 4: 4, 5: 8}[kind]
        if number == 273:
            packed = struct.pack(order + "I", head + outside)
        if len(packed) > 4:
            entries += struct.pack(order + "HHII", number, kind, count, head + len(extra))
            extra += packed
        else:
            entries += struct.pack(order + "HHI", number, kind, count) + packed.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    path.write_bytes(start + struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0) + extra + data)
    return path


def gray_tags(shape: tuple[int, int], bits: int, nbytes: int, **more: int) -> dict[int, tuple[int, list[int]]]:
    height, width = shape
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits]), 259: (3, [1]), 262: (3, [1]), 277: (3, [1])}
    tags |= {278: (4, [height]), 279: (4, [nbytes])}
    return tags | {int(k[1:]): (3, [v]) for k, v in more.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_type_order_and_compression_comes_back_exactly(tmp_path, nuclei, dtype, order, codec):
    values = real_values(nuclei, dtype)
    for layout, options in LAYOUTS.items():
        path = tmp_path / f"{layout}.tif"
        big = {"bigtiff": True} if layout == "tiles" else {}
        compression = None if codec == "none" else codec
        metadata = {"axes": "ZYX"}
        tifffile.imwrite(
            path, values, byteorder=order, compression=compression, photometric="minisblack", metadata=metadata,
            **options, **big
        )  # fmt: skip
        scan = read_scan(path)
        assert scan.grid.axes == ("z", "y", "x")
        assert scan.data.dtype == np.dtype(dtype)
        assert scan.data.dtype.isnative
        np.testing.assert_array_equal(scan.read(), values)
        np.testing.assert_array_equal(scan.data[2:4, 5:80:3, -1], values[2:4, 5:80:3, -1])


@pytest.mark.parametrize(
    ("codec", "predictor", "dtype"),
    [("zlib", 2, "u2"), ("lzw", 2, "u1"), ("zstd", 3, "f4"), ("zlib", 3, "f8"), ("jpeg2000", 1, "u2"),
     ("jpegxl", 1, "u2"), ("png", 1, "u2"), ("jpegxr", 1, "u2"), ("lerc", 1, "f4"),
     ("jpeg", 1, "u1")],
)  # fmt: skip
def test_image_codecs_and_predictors(tmp_path, nuclei, codec, predictor, dtype):
    values = real_values(nuclei, dtype)[0]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, compression=codec, predictor=predictor if predictor > 1 else None)
    stored = read_scan(path).read()
    np.testing.assert_array_equal(stored, tifffile.imread(path))
    if codec in ("zlib", "lzw", "zstd", "png", "jpeg2000"):  # the others are lossy as written here
        np.testing.assert_array_equal(stored, values)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_bits_are_unpacked_and_recorded(tmp_path, nuclei, bits, order):
    values = nuclei[15, 60:131, 20:93] >> (16 - bits)  # an odd width: rows are padded to whole bytes
    rows = (values[..., None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(rows.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()
    path = write_raw(tmp_path / "p.tif", gray_tags(values.shape, bits, len(packed)), packed, order=order)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.read(), values)
    assert (scan.intensity.bits, scan.intensity.black, scan.intensity.white) == (bits, 0, 2**bits - 1)
    assert scan.data.dtype == np.uint16


def test_white_is_zero_swaps_the_line_and_leaves_the_samples(tmp_path, nuclei):
    tifffile.imwrite(tmp_path / "a.tif", nuclei[9], photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", nuclei[9], photometric="miniswhite")
    black, white = read_scan(tmp_path / "a.tif"), read_scan(tmp_path / "b.tif")
    np.testing.assert_array_equal(black.read(), white.read())
    assert (black.intensity.black, black.intensity.white) == (white.intensity.white, white.intensity.black)
    assert black.intensity.black < black.intensity.white


def test_five_pages_without_metadata_are_five_planes_with_a_warning(tmp_path, nuclei):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for plane in nuclei[:5]:
            writer.write(plane, metadata=None, compression="lzw", contiguous=False)
    scan = read_scan(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.read(), nuclei[:5])
    assert scan.grid.axes == ("z", "y", "x")
    assert any("taken as z" in w for w in scan.warnings)


@pytest.mark.parametrize("axes", ["TZCYX", "TCZYX", "CZYX", "ZCYX", "TZYX", "QYX", "IYX", "RYX", "TYX"])
def test_axes_of_any_order_come_as_tczyx(tmp_path, nuclei, axes):
    sizes = {"T": 2, "Z": 3, "C": 4, "Y": 20, "X": 31, "Q": 3, "I": 3, "R": 3}
    count = int(np.prod([sizes[a] for a in axes[:-2]]))
    values = nuclei[:count, :20, :31].reshape([sizes[a] for a in axes])
    tifffile.imwrite(tmp_path / "a.tif", values, metadata={"axes": axes}, compression="zlib", photometric="minisblack")
    scan = read_scan(tmp_path / "a.tif")
    letters = axes.translate(str.maketrans("QIR", "ZZZ"))
    wanted = "".join(a for a in "TCZYX" if a in letters)
    assert "".join(scan.grid.axes).upper() == wanted
    np.testing.assert_array_equal(scan.read(), values.transpose([letters.index(a) for a in wanted]))
    np.testing.assert_array_equal(
        scan.data[..., 3:9, ::2], values.transpose([letters.index(a) for a in wanted])[..., 3:9, ::2]
    )


def test_axes_that_cannot_be_named_are_refused():
    with pytest.raises(ValueError, match="expected axes among"):
        arrange("QRYX", (2, 3, 8, 8))
    with pytest.raises(ValueError, match="expected axes among"):
        arrange("ZQYX", (2, 3, 8, 8))
    assert arrange("ZQYX", (2, 1, 8, 1)) == ("zyx", (0, 2, 3), "")


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [("nm", 260, 0.26), ("µm", 0.26, 0.26), ("mm", 0.00026, 0.26), ("in", 1e-5, 0.254), ("Å", 2600, 0.26),
     ("pixel", 0.26, None), ("reference frame", 0.26, None), ("µm", 0, None), ("µm", -1, None), ("km", 5, None)],
)  # fmt: skip
def test_ome_physical_sizes_in_their_units(tmp_path, nuclei, unit, value, expected):
    metadata = {"axes": "ZYX"} | {f"PhysicalSize{a}": value for a in "XYZ"}
    metadata |= {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    tifffile.imwrite(tmp_path / "a.ome.tif", nuclei[:3], metadata=metadata)
    scan = read_scan(tmp_path / "a.ome.tif")
    if expected is None:
        assert scan.grid.spacing_um is None
        assert any("spacing along" in w for w in scan.warnings)
    else:
        assert scan.grid.spacing_um == pytest.approx((expected,) * 3)
        assert scan.warnings == ()


def test_ome_significant_bits_fix_the_line_unless_the_samples_deny_it(tmp_path, nuclei):
    for shift, bits in ((4, 12), (0, None)):
        tifffile.imwrite(tmp_path / "a.ome.tif", nuclei[:2] >> shift, metadata={"axes": "ZYX", "SignificantBits": 12})
        scan = read_scan(tmp_path / "a.ome.tif")
        assert scan.intensity.bits == bits
        assert (scan.intensity.white == 4095) is (bits == 12)
        assert any("beyond the 12 bits" in w for w in scan.warnings) is (bits is None)


@pytest.mark.parametrize(
    ("unit", "per", "expected"),
    [("micron", 4.0, 0.25), ("um", 4.0, 0.25), ("\\u00B5m", 4.0, 0.25), ("nm", 0.004, 0.25), ("pixel", 4.0, None),
     (None, 4.0, None), ("micron", 1.0, None)],
)  # fmt: skip
def test_imagej_units(tmp_path, nuclei, unit, per, expected):
    metadata = {"axes": "ZYX", "spacing": 2.0 / per} | ({"unit": unit} if unit else {})
    tifffile.imwrite(tmp_path / "a.tif", nuclei[:4], imagej=True, resolution=(per, per), metadata=metadata)
    scan = read_scan(tmp_path / "a.tif")
    assert scan.grid.axes == ("z", "y", "x")
    assert (scan.grid.spacing_of("x"), scan.grid.spacing_of("y")) == (
        (None, None) if expected is None else pytest.approx((expected, expected))
    )
    if expected is not None:
        assert scan.grid.spacing_of("z") == pytest.approx(2 * expected)


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [((200_000, 100_000), "CENTIMETER", (0.1, 0.05)), ((72, 72), "INCH", None), ((300, 300), "INCH", None),
     ((37.795, 37.795), "CENTIMETER", None), ((1, 1), "CENTIMETER", None), ((1, 1), "INCH", None),
     ((50_000, 50_000), "NONE", None), ((0, 0), "INCH", None),
     ((508, 508), "INCH", (50.0, 50.0)), ((2, 2), "CENTIMETER", None), ((150, 150), "INCH", None),
     ((600, 600), "INCH", None), ((236.22, 236.22), "CENTIMETER", None), ((59, 59), "CENTIMETER", None),
     ((254, 254), "INCH", (100.0, 100.0)), ((250, 250), "CENTIMETER", (40.0, 40.0))],
)  # fmt: skip
def test_resolution_tags_count_only_where_they_can_be_a_measurement(tmp_path, nuclei, resolution, unit, expected):
    tifffile.imwrite(tmp_path / "a.tif", nuclei[0], resolution=resolution, resolutionunit=unit, metadata=None)
    scan = read_scan(tmp_path / "a.tif")
    if expected is None:
        assert scan.grid.spacing_um is None
        assert any("spacing along" in w for w in scan.warnings)
        if resolution[0] > 1 and unit != "NONE":
            assert any(f"{resolution[0]:g} samples per" in w for w in scan.warnings)
    else:
        assert scan.grid.spacing_um == pytest.approx(expected)


@pytest.mark.parametrize(("per", "expected"), [(72, None), (600, None), (508, 50.0)])
def test_inches_of_imagej_are_a_print_resolution_it_took_over(tmp_path, nuclei, per, expected):
    tifffile.imwrite(tmp_path / "a.tif", nuclei[0], imagej=True, resolution=(per, per), metadata={"unit": "inch"})
    scan = read_scan(tmp_path / "a.tif")
    assert scan.grid.spacing_of("x") == (None if expected is None else pytest.approx(expected))
    assert any(f"{per} samples per inch" in w for w in scan.warnings) == (expected is None)


def test_a_resolution_of_nothing_over_nothing_is_unknown(tmp_path, nuclei):
    plane = nuclei[0, :16, :16] >> 8
    for fraction in ([0, 0], [1, 0], [0, 1]):
        tags = gray_tags((16, 16), 8, 256) | {282: (5, fraction), 283: (5, fraction), 296: (3, [3])}
        path = write_raw(tmp_path / "a.tif", tags, plane.astype("u1").tobytes())
        scan = read_scan(path)
        assert scan.grid.spacing_um is None
        np.testing.assert_array_equal(scan.read(), plane)


@given(st.sampled_from(["um", "µm", "μm", "micron", "Microns", "MICROMETER", "micrometres", " um "]))
def test_spellings_of_a_micrometer(text):
    assert micrometers(text) == 1.0


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([None, 1e4, 25_400.0, 1e6]))
def test_no_resolution_ever_gives_an_impossible_spacing(samples, unit_um):
    for found in (print_spacing_um(samples, unit_um), stated_spacing_um(samples, unit_um)):
        assert found is None or 0 < found < 1e5


def test_several_series_are_named_and_one_is_chosen(tmp_path, nuclei):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(nuclei[0], metadata={"Name": "left", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
        writer.write(nuclei[1:4, :100], metadata={"axes": "ZYX", "Name": "right", "PhysicalSizeX": 250,
                                                  "PhysicalSizeXUnit": "nm"})  # fmt: skip
    with pytest.raises(ScanError, match=r"a\.ome\.tif: expected one series, found 2: 0 'left' .* 1 'right' .*series=0"):
        read_scan(path)
    np.testing.assert_array_equal(read_scan(path, series=0).read(), nuclei[0])
    for name in ("right", 1, "1"):
        right = read_scan(path, series=name)
        np.testing.assert_array_equal(right.read(), nuclei[1:4, :100])
        assert right.grid.spacing_of("x") == pytest.approx(0.25)
    with pytest.raises(ScanError, match="'middle'"):
        read_scan(path, series="middle")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(right)).read(), nuclei[1:4, :100])


def test_pyramid_levels_and_thumbnails_are_no_further_series(tmp_path, nuclei):
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif") as writer:
        writer.write(nuclei[0], subifds=2, tile=(64, 64), compression="zlib")
        writer.write(nuclei[0, ::2, ::2], subfiletype=1, tile=(64, 64))
        writer.write(nuclei[0, ::4, ::4], subfiletype=1, tile=(64, 64))
    with tifffile.TiffWriter(tmp_path / "thumb.tif") as writer:
        writer.write(nuclei[0], metadata=None)
        writer.write(nuclei[0, ::5, ::5], subfiletype=1, metadata=None)
    for name in ("pyramid.ome.tif", "thumb.tif"):
        np.testing.assert_array_equal(read_scan(tmp_path / name).read(), nuclei[0])


def test_color_masks_and_complex_are_refused_with_the_cure(tmp_path, nuclei):
    plane = (nuclei[0] >> 8).astype(np.uint8)
    rgb = np.stack([plane] * 3, -1)
    colormap = np.stack([np.arange(256) * 257, np.zeros(256), np.arange(256) * 257]).astype(np.uint16)
    cases = {
        "rgb": (rgb, {"photometric": "rgb"}, "RGB color"),
        "planar": (rgb.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, "RGB color"),
        "imagej": (rgb, {"imagej": True}, "RGB color"),
        "palette": (plane, {"photometric": "palette", "colormap": colormap}, "palette"),
        "alpha": (rgb[..., :2], {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
                  "2 samples"),
        "mask": (plane > 9, {"photometric": "minisblack"}, "1-bit"),
        "complex": (plane.astype(np.complex64), {}, "complex"),
        "long": (plane.astype(np.int64), {}, "int64"),
        "jpeg": (rgb, {"compression": "jpeg", "photometric": "rgb"}, "color"),
    }  # fmt: skip
    for name, (values, options, reason) in cases.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", values, **options)
        with pytest.raises(ScanError, match=rf"{name}\.tif: expected .* found .*{reason}"):
            read_scan(tmp_path / f"{name}.tif")


def test_a_palette_that_is_a_gray_ramp_is_gray(tmp_path, nuclei):
    plane = (nuclei[0] >> 8).astype(np.uint8)
    ramp = np.tile(np.arange(256) * 257, (3, 1)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", plane, photometric="palette", colormap=ramp)
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif").read(), plane)


def test_unusual_but_legal_layouts(tmp_path, nuclei):
    path = tmp_path / "a.tif"
    options = {"photometric": "minisblack", "compression": "zlib"}
    tifffile.imwrite(path, nuclei[:16], volumetric=True, tile=(16, 64, 64), **options)
    np.testing.assert_array_equal(read_scan(path).read(), nuclei[:16])
    for planar, order in (("contig", (1, 2, 0)), ("separate", (0, 1, 2))):  # samples without meaning are channels
        tifffile.imwrite(path, nuclei[:5, :40].transpose(order), planarconfig=planar, metadata=None, **options)
        scan = read_scan(path)
        assert scan.grid.axes == ("c", "y", "x")
        np.testing.assert_array_equal(scan.read(), nuclei[:5, :40])
    tifffile.imwrite(path, nuclei[0], compression="zlib", tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = list(tif.pages[0].databytecounts)
        tif.pages[0].tags[325].overwrite([0, 0, *counts[2:]])
    scan = read_scan(path)
    assert any("2 strips or tiles are not stored; they read as 0" in w for w in scan.warnings)
    expected = nuclei[0].copy()
    expected[:64, :128] = 0
    np.testing.assert_array_equal(scan.read(), expected)


def test_a_value_for_no_data_does_not_move_the_line(tmp_path, nuclei):
    heights = nuclei[0].astype(np.float32)
    plain = read_scan_of(tmp_path, heights)
    heights[:100] = -9999
    with_holes = read_scan_of(tmp_path, heights, extratags=[(42113, "s", 0, "-9999", True)], metadata=None)
    assert with_holes.intensity.black > 0
    assert with_holes.intensity.white == pytest.approx(plain.intensity.white, rel=0.3)
    assert with_holes.intensity.padding == (-9999, -9999)
    assert with_holes.intensity.holes(with_holes.read()).sum() == 100 * 256
    assert plain.intensity.padding is None


@pytest.mark.parametrize(
    ("dtype", "text", "padding"),
    [("u2", "65535", (65535, 65535)), ("u2", "-9999", None), ("u2", "0.5", None), ("u2", "nan", None),
     ("f4", "-3.4028234663852886e+38", (np.finfo("f4").min,) * 2), ("f4", "nan", None), ("f4", "1e300", None),
     ("u2", "none", None)],
)  # fmt: skip
def test_no_data_is_padding_where_the_type_can_hold_it(tmp_path, nuclei, dtype, text, padding):
    tag = (42113, "s", 0, text, True)
    scan = read_scan_of(tmp_path, nuclei[0].astype(dtype), extratags=[tag], metadata=None)
    assert scan.intensity.padding == padding


def test_no_data_outside_the_significant_bits_leaves_the_line_to_them(tmp_path, nuclei):
    values = nuclei[:2] >> 4
    values[:, :9] = 65535
    tag = (42113, "s", 0, "65535", True)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "ZYX", "SignificantBits": 12}, extratags=[tag])
    scan = read_scan(tmp_path / "a.ome.tif")
    assert (scan.intensity.white, scan.intensity.padding) == (4095, (65535, 65535))


def test_channels_of_very_different_ranges_are_told_with_their_names(tmp_path, nuclei):
    for dim, told in ((8, True), (2, False)):
        values = np.stack([nuclei[:3], nuclei[3:6] // dim], axis=1)
        metadata = {"axes": "ZCYX", "Channel": {"Name": ["DAPI", "GFP"]}}
        tifffile.imwrite(tmp_path / "a.ome.tif", values, photometric="minisblack", metadata=metadata)
        scan = read_scan(tmp_path / "a.ome.tif")
        assert scan.grid.axes == ("c", "z", "y", "x")
        warned = [w for w in scan.warnings if "channels have very different ranges" in w]
        assert bool(warned) is told
        assert "channels: DAPI, GFP" in scan.history
        for w in warned:
            ranges = [np.percentile(values[:, c], (0.1, 99.9)) for c in (0, 1)]
            assert [float(n) for pair in re.findall(r"\d: (\S+) to ([\d.]+)", w) for n in pair] == pytest.approx(
                np.ravel(ranges), rel=1e-4
            )


def test_the_time_increment_is_kept(tmp_path, nuclei):
    metadata = {"axes": "TYX", "TimeIncrement": 2.5, "TimeIncrementUnit": "min"}
    tifffile.imwrite(tmp_path / "a.ome.tif", nuclei[:3], photometric="minisblack", metadata=metadata)
    assert "time increment 2.5 min" in read_scan(tmp_path / "a.ome.tif").history
    tifffile.imwrite(tmp_path / "b.tif", nuclei[:3], imagej=True, metadata={"axes": "TYX", "finterval": 0.5})
    assert "time increment 0.5 s" in read_scan(tmp_path / "b.tif").history


def read_scan_of(folder: Path, values: np.ndarray, **options: object):
    tifffile.imwrite(folder / "a.tif", values, **options)
    return read_scan(folder / "a.tif")


def test_height_maps_keep_holes_and_units(tmp_path):
    heights = read_scan(SURFACE).read()
    tifffile.imwrite(tmp_path / "shaped.tif", heights, metadata={"axes": "YX", "units": "nm"})
    scan = read_scan(tmp_path / "shaped.tif")
    np.testing.assert_array_equal(scan.read(), heights)
    assert scan.intensity.units == "nm"
    tifffile.imwrite(tmp_path / "nan.tif", np.full_like(heights, np.nan))
    with pytest.raises(ScanError, match=r"nan\.tif: expected at least one finite value, found none"):
        read_scan(tmp_path / "nan.tif")


def test_imagej_calibration_of_values_is_recorded_not_applied(tmp_path, nuclei):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, nuclei[0], imagej=True, metadata={"cf": 0, "c0": -32768.0, "c1": 2.0, "vunit": "HU"})
    scan = read_scan(path)
    assert (scan.intensity.slope, scan.intensity.intercept, scan.intensity.units) == (2.0, -32768.0, "HU")
    np.testing.assert_array_equal(scan.read(), nuclei[0])


def test_constant_and_single_pixel_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "flat.tif", np.full((40, 50), 777, np.uint16))
    flat = read_scan(tmp_path / "flat.tif")
    assert flat.intensity.black == 777
    assert flat.intensity.white == 778
    tifffile.imwrite(tmp_path / "one.tif", np.full((1, 1), 9, np.uint8))
    assert read_scan(tmp_path / "one.tif").shape == (1, 1)


# --- damaged files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("ome", [True, False])
def test_any_cut_is_refused_or_whole(tmp_path, nuclei, codec, ome):
    whole = tmp_path / "whole.tif"
    metadata = {"axes": "ZYX"} if ome else None
    with tifffile.TiffWriter(whole, ome=ome) as writer:
        if ome:
            writer.write(nuclei[:6, :64, :64], compression=codec, metadata=metadata)
        else:
            for plane in nuclei[:6, :64, :64]:
                writer.write(plane, compression=codec, metadata=None, contiguous=False)
    raw = whole.read_bytes()
    for keep in [0, 1, 4, 7, 8, 9, 100, *np.linspace(200, len(raw) - 1, 40).astype(int).tolist()]:
        cut = tmp_path / "cut.tif"
        cut.write_bytes(raw[:keep])
        with pytest.raises(ScanError, match=r"cut\.tif"):
            read_scan(cut).read()


def test_imagej_hyperstack_cut_off_is_refused(tmp_path, nuclei):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, nuclei[:6], imagej=True, metadata={"axes": "ZYX"})
    raw = path.read_bytes()
    for keep in (0.4, 0.7, 0.9):
        (tmp_path / "cut.tif").write_bytes(raw[: int(len(raw) * keep)])
        with pytest.raises(ScanError, match=r"cut\.tif: (truncated|damaged)"):
            read_scan(tmp_path / "cut.tif").read()


@pytest.mark.parametrize("size", [(10**6, 10**6), (2**31, 3), (1, 2**32 - 1), (2**32 - 1, 2**32 - 1)])
@pytest.mark.parametrize("compression", [1, 5, 8, 50000])
@pytest.mark.parametrize("tiled", [False, True])
def test_absurd_sizes_allocate_nothing(tmp_path, size, compression, tiled):
    tags = gray_tags(size, 16, 900) | {259: (3, [compression])}
    if tiled:
        tags = {k: v for k, v in tags.items() if k not in (278, 279)}
        tags |= {322: (4, [size[1]]), 323: (4, [size[0]]), 324: (4, [200]), 325: (4, [900])}
    write_raw(tmp_path / "a.tif", tags, bytes(900))
    with pytest.raises(ScanError, match=r"a\.tif"):
        read_scan(tmp_path / "a.tif")


def test_pages_that_point_in_a_circle_are_refused(tmp_path):
    path = write_raw(tmp_path / "a.tif", gray_tags((4, 4), 8, 16), bytes(16))
    raw = bytearray(path.read_bytes())
    count = struct.unpack_from("<H", raw, 8)[0]
    struct.pack_into("<I", raw, 10 + 12 * count, 8)
    path.write_bytes(raw)
    with pytest.raises(ScanError, match=r"a\.tif: its pages point in a circle"):
        read_scan(path)


def test_damaged_samples_name_the_file_and_the_page(tmp_path, nuclei):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, nuclei[:3], compression="zlib", photometric="minisblack", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:
        at = tif.pages[1].dataoffsets[0]
    raw = bytearray(path.read_bytes())
    raw[at : at + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(ScanError, match=r"a\.tif: page 1 cannot be decoded .*: copy it again"):
        read_scan(path).read()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bytes_of_the_header_never_escape_as_another_error(data, tmp_path_factory):
    raw = bytearray(_small_tiff(tmp_path_factory))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 219))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "a.tif"
    path.write_bytes(raw)
    try:
        read_scan(path).read()
    except ScanError as error:
        assert str(path) in str(error)  # noqa: PT017 - most flips are harmless and raise nothing


def _small_tiff(factory) -> bytes:
    path = factory.getbasetemp() / "small.tif"
    if not path.exists():
        tifffile.imwrite(path, tifffile.imread(NUCLEI)[0, :32, :32], compression="lzw", metadata=None)
    return path.read_bytes()


def test_planes_of_a_missing_file_are_refused_not_zero(tmp_path, nuclei):
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="64" SizeY="64" '
        'SizeZ="2" SizeC="1" SizeT="1">'
        '<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", nuclei[0, :64, :64], description=xml, metadata=None)
    with pytest.raises(ScanError, match=r"a\.ome\.tif: plane 1 of 2 is missing"):
        read_scan(tmp_path / "a.ome.tif")
    second = xml.replace('urn:uuid:1"><Image', 'urn:uuid:2"><Image')
    tifffile.imwrite(tmp_path / "b.ome.tif", nuclei[1, :64, :64], description=second, metadata=None)
    scan = read_scan(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scan)).read(), nuclei[:2, :64, :64])
    assert tiff.group([tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"]) == [
        (tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
    ]


# --- folders of planes -------------------------------------------------------------------------------------------


def write_planes(folder: Path, planes: np.ndarray, pattern: str, start: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, plane in enumerate(planes):
        tifffile.imwrite(folder / pattern.format(start + i), plane, compression="lzw" if i % 2 else None)
    return folder


def test_a_folder_of_numbered_planes_is_one_stack_in_the_order_of_numbers(tmp_path, nuclei):
    folder = write_planes(tmp_path / "cell", nuclei[:5], "img_{}.tif")  # 8, 9, 10, 11, 12
    scan = read_scan(folder)
    assert scan.grid.axes == ("z", "y", "x")
    np.testing.assert_array_equal(scan.read(), nuclei[:5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scan)).data[1:4, 7:20, ::9], nuclei[1:4, 7:20, ::9])
    assert "5 files, one a plane" in scan.history[0]


def test_a_plane_that_differs_is_named(tmp_path, nuclei):
    folder = write_planes(tmp_path / "cell", nuclei[:3], "z{:03d}.tif")
    tifffile.imwrite(folder / "z011.tif", nuclei[3, :100])
    with pytest.raises(ScanError, match=r"z011\.tif: expected planes of \(256, 256\)"):
        read_scan(folder)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"resolution": (5.0, 4.0), "metadata": {"unit": "um"}}, r"spacing along x \(um\) 0\.25 and 0\.2"),
     ({"resolution": (4.0, 4.0), "metadata": {"unit": "pixel"}}, r"spacing along y \(um\) 0\.25 and unknown"),
     ({"resolution": (4.0, 4.0), "metadata": {"unit": "um", "cf": 0, "c0": 0.0, "c1": 2.0, "vunit": "nm"}},
      r"slope 1 and 2, units unknown and nm")],
)  # fmt: skip
def test_planes_of_different_calibration_are_refused_with_the_numbers(tmp_path, nuclei, options, reason):
    like = {"imagej": True, "resolution": (4.0, 4.0), "metadata": {"unit": "um"}}
    for i in range(3):
        tifffile.imwrite(tmp_path / f"z{i}.tif", nuclei[i], **like)
    assert read_scan(tmp_path).grid.spacing_um == pytest.approx((None, 0.25, 0.25))
    tifffile.imwrite(tmp_path / "z1.tif", nuclei[1], imagej=True, **options)
    with pytest.raises(ScanError, match=rf"z1\.tif: expected the calibration of z0\.tif .*{reason}.*; correct"):
        read_scan(tmp_path)


def test_a_gap_makes_no_stack(tmp_path, nuclei):
    folder = write_planes(tmp_path / "cell", nuclei[:5], "img_{}.tif")
    (folder / "img_10.tif").unlink()
    with pytest.raises(ScanError, match=r"expected one scan, found 4 \(img_8, img_9, img_11, \.\.\.\)"):
        read_scan(folder)


# --- lazy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 16}, {"tile": (64, 64)}])
def test_a_sweep_over_tiles_decodes_each_segment_once(tmp_path, nuclei, options, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, nuclei[:8], compression="zlib", metadata={"axes": "ZYX"}, **options)
    scan = read_scan(Source(path, (path,), "a"))
    array = scan.data
    assert isinstance(array, BlockArray)
    array = pickle.loads(pickle.dumps(array))  # as a worker gets it: nothing decoded yet
    decoded: list[tuple[int, ...]] = []
    load = array.load
    monkeypatch.setattr(array, "load", lambda index: (decoded.append(index), load(index))[1])
    for y in range(0, 256, 64):
        for x in range(0, 256, 64):
            array[:, max(0, y - 8) : y + 72, max(0, x - 8) : x + 72]
    assert len(decoded) == len(set(decoded))
    blocks = [-(-n // b) for n, b in zip(array.shape, array.block, strict=True)]
    assert len(decoded) == np.prod(blocks)


class Counted:
    """Loads planes and counts how often."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.loads: list[tuple[int, ...]] = []

    def __call__(self, index: tuple[int, ...]) -> np.ndarray:
        self.loads.append(index)
        return np.full((1, *self.size), index[0], np.uint16)


@pytest.fixture
def small_cache(monkeypatch):
    """The cache at 1/1024 of its size, so that 72 x 72 samples stand for a plane of 2300 x 2300."""
    monkeypatch.setattr(lazy, "KEEP_BYTES_MOST", 512 * 2**10)
    lazy.set_cache_limit(512 * 2**10)
    yield 128 * 2**10
    monkeypatch.undo()
    lazy.set_cache_limit(lazy.KEEP_BYTES_MOST)


@pytest.mark.parametrize("whole_depth", [True, False])
def test_shards_of_a_slab_of_planes_decode_each_plane_once(small_cache, whole_depth):
    load = Counted((72, 72))
    array = BlockArray((48, 72, 72), np.dtype("u2"), block=(1, 72, 72), load=load, keep=small_cache)
    most = 0
    for slab in range(0, 48, 16):
        for y, x in np.ndindex(4, 4):  # the xy shards of a slab, then the next slab
            tile = (slice(18 * y, 18 * y + 18), slice(18 * x, 18 * x + 18))
            if whole_depth:
                array[(slice(slab, slab + 16), *tile)]
            else:
                for z in range(slab, slab + 16):
                    assert (array[(z, *tile)] == z).all()
            most = max(most, array._bytes)
    assert len(load.loads) == 48
    assert most <= 512 * 2**10


def test_a_slab_beyond_the_first_size_grows_the_cache_when_blocks_return(small_cache):
    load = Counted((72, 72))
    array = BlockArray((16, 72, 72), np.dtype("u2"), block=(1, 72, 72), load=load, keep=small_cache)
    for z in range(16):
        array[z]
    assert array._bytes <= small_cache  # one pass over whole planes needs no more
    for _ in range(5):
        for z in range(16):
            array[z]
    assert len(load.loads) < 16 + 16 + 1  # the second pass at most, then nothing
    assert array._bytes <= 512 * 2**10


def test_the_limit_of_the_cache_holds_and_one_block_is_always_kept(small_cache):
    lazy.set_cache_limit(30 * 2**10)  # less than three planes
    load = Counted((72, 72))
    array = BlockArray((8, 72, 72), np.dtype("u2"), block=(1, 72, 72), load=load, keep=small_cache)
    for _ in range(3):
        for z in range(8):
            array[z, :9]
            assert array._bytes <= 30 * 2**10
    lazy.set_cache_limit(0)
    for _ in range(4):
        array[7, 9:]
    assert len(load.loads) == 24
    with pytest.raises(ValueError, match="at least 0, found -1"):
        lazy.set_cache_limit(-1)


def test_threads_share_one_array(tmp_path, nuclei):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, nuclei, compression="lzw", rowsperstrip=32, metadata={"axes": "ZYX"})
    array = read_scan(path).data
    wrong: list[int] = []

    def sweep(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            z, y = rng.integers(0, 28), rng.integers(0, 200)
            if not np.array_equal(array[z : z + 2, y : y + 50], nuclei[z : z + 2, y : y + 50]):
                wrong.append(seed)

    threads = [threading.Thread(target=sweep, args=(s,)) for s in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


INDEX = st.one_of(
    st.integers(-6, 5), st.slices(6), st.builds(slice, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9))
)


@given(st.tuples(INDEX, INDEX, INDEX), st.tuples(*[st.integers(1, 6)] * 3), st.permutations([0, 1, 2]))
def test_lazy_arrays_index_as_numpy_does(region, block, order):
    values = np.arange(216).reshape(6, 6, 6)

    def load(index):
        return values[tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, block, strict=True))]

    blocks = BlockArray(values.shape, values.dtype, block=block, load=load)
    np.testing.assert_array_equal(blocks[region], values[region])
    np.testing.assert_array_equal(blocks[region[:2]], values[region[:2]])
    np.testing.assert_array_equal(Arranged(blocks, order)[region], values.transpose(order)[region])


# --- real files of other writers ----------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "axes", "shape", "spacing"),
    [
        ("neubias_16bit/xyz_calibrated_16bit__golgi_bfa.tif", "zyx", (25, 137, 147), (0.3876, 0.351435, 0.351435)),
        ("neubias_16bit/xyzc_16bit__dna_conf_wf.tif", "czyx", (2, 45, 130, 133), (None, 0.499413, 0.511878, 0.511878)),
        ("neubias_16bit/xyc_16bit__cell_dna_mts_actin.tif", "cyx", (3, 350, 350), (None, 0.132492, 0.132492)),
        ("ndev_ometiff/neuron-4Ch.tiff", "cyx", (4, 623, 502), (None, 0.1241, 0.1241)),
        ("allen_cells3d/cells3d_nuclei_60z.tif", "zyx", (60, 256, 256), None),
        ("w2s_widefield_8bit/avg400_001_0.tif", "yx", (512, 512), None),
        ("cbmi_er_16bit/001_frame_01_iter20L_01_h578_w415.tif", "yx", (256, 256), None),
        ("vnc_sstem_8bit/stack1_00.tif", "yx", (1024, 1024), None),
    ],
)
def test_files_of_other_writers(shared_data, name, axes, shape, spacing):
    path = shared_data / "dev" / "micro" / name
    scan = read_scan(path)
    assert "".join(scan.grid.axes) == axes
    assert scan.shape == shape
    if spacing is None:
        assert scan.grid.spacing_um is None
        assert any("spacing" in w for w in scan.warnings)
    else:
        assert scan.grid.spacing_um is not None
        known = [(s, e) for s, e in zip(scan.grid.spacing_um, spacing, strict=True) if e is not None or s is not None]
        assert [s for s, _ in known] == pytest.approx([e for _, e in known], rel=1e-4)
        assert all("channels have very different ranges" in w for w in scan.warnings)
        assert bool(scan.warnings) == ("c" in axes)
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        expected = series.asarray().transpose([series.axes.lower().replace("q", "z").index(a) for a in axes])
    np.testing.assert_array_equal(scan.read(), expected)
    assert expected.min() <= scan.intensity.black < scan.intensity.white <= expected.max()
