"""The DICOM reader on real files: pydicom's own test files, the shipped mammogram, a CT series."""

from __future__ import annotations

import hashlib
import logging
import pickle
import random
import re
import shutil
import threading
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from medsr.data import MAMMOGRAM
from medsr.io import dicom_decode, find_scans
from medsr.io.dicom import DicomReader, accepts, group, read
from medsr.io.source import Source
from medsr.scan import LazyArray, Scan, ScanError, robust_intensity

PYDICOM = Path(pydicom.__file__).parent / "data"
FILES = PYDICOM / "test_files"
CT, MR, OVERLAY = FILES / "CT_small.dcm", FILES / "MR_small.dcm", FILES / "examples_overlay.dcm"
JPEG_LOSSLESS, JPEG_LS, RLE = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"


def scan(*paths: Path) -> Scan:
    return read(Source(paths[0] if len(paths) == 1 else paths[0].parent, tuple(paths), "scan"))


def load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True)


def save(dataset: Any, path: Path, **tags: Any) -> Path:
    """Write a data set with some tags changed (None: removed)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in tags.items():
            if value is not None:
                setattr(dataset, keyword, value)
            elif keyword in dataset:
                delattr(dataset, keyword)
        dataset.save_as(path)
    return path


def edited(source: Path, path: Path, **tags: Any) -> Path:
    return save(load(source), path, **tags)


def compressed(source: Path, path: Path, stream: bytes, syntax: str, **tags: Any) -> Path:
    dataset = load(source)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    return save(dataset, path, **tags)


def pixels(path: Path) -> np.ndarray | None:
    """What pydicom itself makes of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            return np.asarray(pydicom.dcmread(path, force=True).pixel_array)
        except Exception:
            return None
        finally:
            logging.disable(logging.NOTSET)


# --- pydicom's own files, all of them -------------------------------------------------------------------------------


def test_every_file_of_pydicom_reads_as_pydicom_reads_it_or_is_refused_by_name(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [p for folder in ("test_files", "charset_files", "palettes") for p in sorted((PYDICOM / folder).rglob("*"))]
    files = [p for p in files if p.is_file()]
    done: dict[Path, Scan] = {}
    refused: dict[Path, str] = {}
    said = []
    with caplog.at_level(0):
        for path in files:
            caplog.clear()
            try:
                found = scan(path)
                data = found.read()
            except ScanError as error:
                refused[path] = str(error)
            else:
                done[path] = found
                expected = pixels(path)
                assert expected is None or (
                    data.dtype == expected.dtype.newbyteorder("=") and np.array_equal(data, expected)
                ), path.name
            said += [r for r in caplog.records if r.name.startswith("pydicom")]
    assert capfd.readouterr() == ("", "")
    assert not [text for path, text in refused.items() if not text.startswith(f"{path}: expected")]
    assert len(done) > 60
    assert len(refused) > 100
    assert {"MR_truncated.dcm", "examples_palette.dcm", "rtplan.dcm", "badVR.dcm"} <= {p.name for p in refused}
    assert all(accepts(p) for p in done)
    assert not [p.name for p in files if p.suffix == ".dcm" and not accepts(p) and p.name != "no_meta.dcm"]


def test_reading_logs_nothing_of_pydicom(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    with caplog.at_level(0):
        for name in ("badVR.dcm", "MR_small_padded.dcm", "693_J2KI.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"):
            try:
                scan(FILES / name).read()
            except ScanError:
                continue
    assert not [r for r in caplog.records if r.name.startswith("pydicom")]
    assert not recwarn.list


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_every_transfer_syntax_gives_the_same_samples(name: str) -> None:
    found = scan(FILES / f"MR_small_{name}.dcm")
    plain = scan(MR)
    assert np.array_equal(found.read(), plain.read())
    assert found.read().dtype == np.int16
    assert (found.grid, found.intensity) == (plain.grid, plain.intensity)
    assert (name == "padded") == any("128 bytes after the last frame" in w for w in found.warnings)


def test_12_bit_jpeg_extended_reads_although_pydicom_with_its_plug_ins_cannot() -> None:
    found = scan(FILES / "JPGExtended.dcm")
    data = found.read()
    assert pixels(CT) is not None
    assert (data.dtype, data.shape, int(data.max())) == (np.uint16, (1024, 256), 264)
    assert (found.intensity.black, found.intensity.white, found.intensity.bits) == (0, 4095, 12)
    assert any("lossily compressed, ratio 76" in w for w in found.warnings)
    assert found.grid.spacing_um == (2260.0, 2260.0)


@pytest.mark.parametrize(
    ("codec", "syntax", "options"),
    [
        ("jpeg8_encode", JPEG_LOSSLESS, {"lossless": True, "bitspersample": 16, "predictor": 1}),
        ("jpeg8_encode", "1.2.840.10008.1.2.4.57", {"lossless": True, "bitspersample": 16, "predictor": 7}),
        ("htj2k_encode", "1.2.840.10008.1.2.4.201", {"reversible": True}),
        ("jpeg2k_encode", "1.2.840.10008.1.2.4.90", {"reversible": True, "codecformat": "j2k"}),
        ("jpegls_encode", JPEG_LS, {}),
    ],
)
def test_every_lossless_codec_returns_each_sample(
    tmp_path: Path, codec: str, syntax: str, options: dict[str, Any]
) -> None:
    crop = np.ascontiguousarray(load(MAMMOGRAM).pixel_array[900:1000, 300:420])
    stream = getattr(imagecodecs, codec)(crop, **options)
    found = scan(compressed(MAMMOGRAM, tmp_path / "a.dcm", stream, syntax, Rows=100, Columns=120))
    assert np.array_equal(found.read(), crop)


def test_jpeg_2000_of_wrong_sign_and_near_lossless_jpeg_ls() -> None:
    found = scan(FILES / "J2K_pixelrep_mismatch.dcm")
    assert (found.read().min(), found.read().max(), found.intensity.bits) == (-2000, 1896, 13)
    assert (found.intensity.black, found.intensity.white) == (-4096, 4095)
    assert scan(FILES / "JPEGLSNearLossless_16.dcm").read().max() == 65535


def test_big_endian_packed_bits_and_doses() -> None:
    for name in ("liver_1frame.dcm", "liver_expb_1frame.dcm"):
        found = scan(FILES / name)
        assert (found.read().dtype, set(np.unique(found.read()))) == (np.uint8, {0, 1})
        assert (found.intensity.bits, found.intensity.white) == (1, 1)
    for name in ("rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"):
        found = scan(FILES / name)
        assert (found.shape, found.grid.axes) == ((15, 10, 10), ("z", "y", "x"))
        assert found.grid.spacing_um == pytest.approx((5000, 10000, 10000))
        assert (found.intensity.slope, found.intensity.units) == (1e-6, "RELATIVE")
        assert found.read().dtype == np.uint32


def test_the_shipped_mammogram() -> None:
    found = scan(MAMMOGRAM)
    assert (found.shape, found.grid.axes, found.grid.spacing_um) == ((1920, 1472), ("y", "x"), None)
    assert found.intensity.bits == 16
    assert 0 <= found.intensity.black < 1000
    assert 30000 < found.intensity.white < 60000  # not the saturated film edge, not 65535
    assert any("unknown" in w for w in found.warnings)
    assert found.reader == DicomReader.name == "dicom"
    assert isinstance(found.data, LazyArray)


# --- intensity ------------------------------------------------------------------------------------------------------


def test_monochrome1_has_black_above_white_and_its_samples_as_stored() -> None:
    path = next(p for p in sorted(FILES.rglob("6154")) if p.is_file())
    found = scan(path)
    assert (found.intensity.black, found.intensity.white) == (4095, 0)
    assert np.array_equal(found.read(), pixels(path))
    assert (found.intensity.units, found.intensity.slope, found.intensity.intercept) == ("OD", 0.684, 200)


def test_pixel_padding_with_a_range_does_not_move_the_line_in_signed_data(tmp_path: Path) -> None:
    dataset = load(CT)
    values = dataset.pixel_array.copy()
    values[:40], values[40:80] = -2000, -1990
    dataset.PixelData = values.tobytes()
    loose = scan(save(dataset, tmp_path / "loose.dcm", PixelPaddingValue=None))
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    single = scan(save(dataset, tmp_path / "single.dcm"))
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1980)
    padded = scan(save(dataset, tmp_path / "padded.dcm"))
    assert np.array_equal(padded.read(), values)
    assert [s.intensity.padding for s in (loose, single, padded)] == [None, (-2000, -2000), (-2000, -1980)]
    assert loose.intensity.black < -1900
    assert single.intensity.black == -1990
    image = robust_intensity(values[80:], np.int16)
    assert (padded.intensity.black, padded.intensity.white) == (image.black, image.white)
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)  # the same value, written as unsigned
    dataset.add_new("PixelPaddingRangeLimit", "US", 2**16 - 1980)
    assert scan(save(dataset, tmp_path / "unsigned.dcm")).intensity == padded.intensity


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_bits_above_the_stored_ones_are_no_part_of_a_value(tmp_path: Path, signed: bool, high: int) -> None:
    dataset = load(OVERLAY)
    true = dataset.pixel_array.astype(np.int32) - (600 if signed else 0)
    shift = high - 11
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2**16, true.shape) & ~(0xFFF << shift)  # an old overlay, an empty one, garbage
    dataset.PixelData = ((true & 0xFFF) << shift | noise).astype(np.uint16).tobytes()
    path = save(dataset, tmp_path / "high.dcm", HighBit=high, PixelRepresentation=int(signed))
    found = scan(path)
    assert np.array_equal(found.read(), true)
    assert found.read().dtype == (np.int16 if signed else np.uint16)
    line = (found.intensity.black, found.intensity.white, found.intensity.bits)
    assert line == ((-2048, 2047, 12) if signed else (0, 4095, 12))
    rle = load(path)
    rle.compress(RLE, generate_instance_uid=False)
    assert np.array_equal(scan(save(rle, tmp_path / "rle.dcm")).read(), true)


def test_calibration_and_windows_are_recorded_and_never_applied(tmp_path: Path) -> None:
    path = edited(
        CT, tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[40, 400], WindowWidth=[401, 2000]
    )
    found = scan(path)
    assert np.array_equal(found.read(), pixels(path))
    line = found.intensity
    assert (line.slope, line.intercept, line.units) == (2, -1000, "HU")
    assert line.window == ((-160.5 + 1000) / 2, (239.5 + 1000) / 2)
    assert any("2 display windows" in h for h in found.history)
    assert any("recorded, not applied" in h for h in found.history)
    dataset = load(CT)
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [2, 0, 16])
    table.add_new("LUTData", "US", [0, 1])
    dataset.ModalityLUTSequence = Sequence([table])
    found = scan(save(dataset, tmp_path / "lut.dcm", RescaleSlope=None, RescaleIntercept=None))
    assert (found.intensity.slope, found.intensity.units, found.intensity.window) == (1, "", None)
    assert any("lookup table" in w for w in found.warnings)
    assert np.array_equal(found.read(), pixels(CT))


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_float_samples_with_holes(tmp_path: Path, keyword: str, dtype: type) -> None:
    dataset = load(CT)
    values = (dataset.pixel_array / 7).astype(dtype)
    values[:5] = np.nan
    for tag in ("BitsStored", "HighBit", "PixelRepresentation", "PixelData", "PixelPaddingValue"):
        delattr(dataset, tag)
    path = save(dataset, tmp_path / "f.dcm", BitsAllocated=8 * values.itemsize, **{keyword: values.tobytes()})
    found = scan(path)
    assert np.array_equal(found.read(), values, equal_nan=True)
    assert found.read().dtype == dtype
    assert 128 / 7 < found.intensity.black < found.intensity.white < 2191 / 7
    assert found.intensity.bits is None


# --- spacing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected", "words"),
    [
        ({"PixelSpacing": [0.2, 0.3]}, (200, 300), ""),
        ({"ImagerPixelSpacing": [0.1, 0.1]}, (100, 100), "at the detector"),
        (
            {"ImagerPixelSpacing": [0.1, 0.12], "EstimatedRadiographicMagnificationFactor": 1.25},
            (80, 96),
            "divided by the magnification 1.25",
        ),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.1, 0.1]}, (100, 100), "0 x 0 mm is no real spacing"),
        ({"PixelSpacing": [10, 10]}, None, "10 x 10 mm is no real spacing"),
        ({"PixelSpacing": [0.00001, 0.00001]}, None, "no real spacing"),
        ({"PixelSpacing": [-0.1, 0.1]}, None, "-0.1 x 0.1 mm is no real spacing"),
        ({"PixelSpacing": 0.5}, None, "0.5 mm is no real spacing"),
        ({"PixelSpacing": [1, 1]}, None, "1 x 1 mm is no real spacing"),
        ({"NominalScannedPixelSpacing": [0.05, 0.05]}, (50, 50), "film scanner"),
        ({}, None, "spacing of the pixels is unknown"),
    ],
)
def test_spacing_of_a_mammogram(
    tmp_path: Path, tags: dict[str, Any], expected: tuple[float, float] | None, words: str
) -> None:
    found = scan(edited(MAMMOGRAM, tmp_path / "a.dcm", **tags))
    assert found.grid.spacing_um == (None if expected is None else pytest.approx(expected))
    assert words in " / ".join(found.history + found.warnings)


# --- volumes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ct_series(shared_data: Path, tmp_path: Path) -> list[Path]:
    """A real CT series, its files renamed so that neither name nor order tells the position."""
    files = sorted((shared_data / "dev" / "ctmr").rglob("*.dcm"))
    names = [hashlib.sha256(p.name.encode()).hexdigest()[:8] for p in files]
    copies = [Path(shutil.copy(p, tmp_path / f"{n}.dcm")) for p, n in zip(files, names, strict=True)]
    return sorted(copies)


def height(path: Path) -> float:
    return float(load(path).ImagePositionPatient[2])


def test_a_series_lies_in_the_order_of_its_positions(ct_series: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copy(MAMMOGRAM, tmp_path / "other.dcm"))
    (tmp_path / "note.txt").write_text("no image")
    groups = group([*ct_series, other, tmp_path / "note.txt", tmp_path / "absent.dcm"])
    by_height = sorted(ct_series, key=height)
    assert [len(files) for files, _ in groups] == [12, 1, 1, 1]
    assert groups[0][0] == tuple(by_height) != tuple(ct_series)
    subject = hashlib.sha256(b"P_00173").hexdigest()[:16]  # the PatientID without set and view
    assert groups[1] == ((other,), subject)
    assert [s for _, s in groups[2:]] == ["", ""]
    found = scan(*ct_series)
    assert (found.shape, found.grid.axes) == ((12, 512, 512), ("z", "y", "x"))
    assert found.grid.spacing_um == pytest.approx((8000, 646.484375, 646.484375))
    assert found.grid.origin_um == pytest.approx((152000, -294176.7578125, -173176.7578125))
    assert np.array_equal(found.read(), np.stack([pixels(p) for p in by_height]))
    assert (found.intensity.units, found.intensity.bits, found.intensity.white) == ("HU", 12, 4095)
    assert any("12 files in the order of their positions along the normal, step 8 mm" in h for h in found.history)


def test_a_missing_slice_is_refused_with_the_numbers(ct_series: list[Path]) -> None:
    kept = [p for p in ct_series if height(p) != 192]
    assert len(kept) == 11
    with pytest.raises(ScanError, match=r"steps of 8 to 16 mm \(median 8 mm\)") as error:
        scan(*group(kept)[0][0])
    assert str(error.value).startswith(str(kept[0].parent))


def test_a_tilted_gantry_is_flagged_with_its_angle(ct_series: list[Path]) -> None:
    for path in ct_series:
        x, y, z = load(path).ImagePositionPatient
        edited(path, path, ImagePositionPatient=[x, y + (z - 152) * np.tan(np.radians(12)), z])
    found = scan(*group(ct_series)[0][0])
    assert any(
        re.search(r"tilted gantry.* 12\.00 degrees.* 8 mm along the normal, 8\.17872", w) for w in found.warnings
    )
    assert found.grid.spacing_um == pytest.approx((8000, 646.484375, 646.484375))


def test_positions_that_occur_twice_are_split_or_refused(ct_series: list[Path], tmp_path: Path) -> None:
    twins = [darker(p, p.with_name(f"{p.stem}_b.dcm"), SOPInstanceUID=f"1.2.3.{i}") for i, p in enumerate(ct_series)]
    ((files, _),) = group(ct_series + twins)
    lowest = sorted(p.name for p in ct_series + twins if height(p) == 152)
    with pytest.raises(ScanError, match="2 files at each position") as error:
        scan(*files)
    assert all(name in str(error.value) for name in lowest)
    with pytest.raises(ScanError, match="found 11 positions 1 times, 1 position 2 times") as error:
        scan(*group([*ct_series, twins[3]])[0][0])
    named = {p.name for p in ct_series + twins if p.name in str(error.value)}
    assert named == {ct_series[3].name, twins[3].name}
    for i, path in enumerate(ct_series + twins):  # a tag of each file tells nothing
        edited(path, path, TemporalPositionIdentifier=i, AcquisitionNumber=7 if path in twins else 1)
    assert sorted(len(f) for f, _ in group(ct_series + twins)) == [12, 12]
    folder = tmp_path / "copy"
    folder.mkdir()
    copies = [Path(shutil.copy(p, folder)) for p in ct_series]
    assert [f for f, _ in group(ct_series + copies)] == [
        tuple(sorted(ct_series, key=height)), tuple(sorted(copies, key=height)),
    ]  # fmt: skip


def darker(source: Path, path: Path, **tags: Any) -> Path:
    """The same plane with other pixels."""
    dataset = load(source)
    dataset.PixelData = np.maximum(dataset.pixel_array, 3).astype(dataset.pixel_array.dtype).tobytes()
    return save(dataset, path, **tags)


def test_exact_copies_in_a_series_are_left_out_with_a_warning(ct_series: list[Path], tmp_path: Path) -> None:
    plain = scan(*ct_series)
    folder = tmp_path / "again"
    folder.mkdir()
    same_bytes = Path(shutil.copy(ct_series[3], folder / "copy of it.dcm"))
    same_pixels = edited(ct_series[5], ct_series[5].with_name("z.dcm"), SOPInstanceUID="1.2.3")
    same_number = darker(ct_series[7], ct_series[7].with_name("z2.dcm"))
    for extra in ([same_bytes], [same_pixels], [same_number], [same_bytes, same_pixels, same_number]):
        ((files, _),) = group([*ct_series, *extra])
        assert len(files) == 12 + len(extra)
        found = scan(*files)
        assert np.array_equal(found.read(), plain.read())
        assert (found.grid, found.intensity) == (plain.grid, plain.intensity)
        count = len(extra)
        assert f"{count} of {12 + count} files are exact copies of others and left out" in found.warnings
    assert not any("copies" in w for w in plain.warnings)


def test_copies_do_not_hide_the_points_in_time(ct_series: list[Path], tmp_path: Path) -> None:
    later = [darker(p, p.with_name(f"{p.stem}_b.dcm"), SOPInstanceUID=f"1.2.3.{i}") for i, p in enumerate(ct_series)]
    for path in ct_series + later:
        edited(path, path, AcquisitionNumber=7 if path in later else 1)
    copy = Path(shutil.copy(later[3], tmp_path / "zz.dcm"))
    groups = group([*ct_series, *later, copy])
    assert sorted(len(files) for files, _ in groups) == [12, 13]
    for files, _ in groups:
        found = scan(*files)
        assert found.shape == (12, 512, 512)
        assert any("1 of 13 files" in w for w in found.warnings) == (copy in files)


def test_one_number_for_all_objects_makes_no_copies(ct_series: list[Path]) -> None:
    for path in ct_series:
        edited(path, path, SOPInstanceUID="1.2.3")
    assert scan(*group(ct_series)[0][0]).shape == (12, 512, 512)
    twin = darker(ct_series[3], ct_series[3].with_name("z.dcm"))
    with pytest.raises(ScanError, match=r"1 position 2 times \(.*z\.dcm.*remove the extra"):
        scan(*group([*ct_series, twin])[0][0])


def test_padding_is_a_hole_also_where_the_bits_fix_the_line(ct_series: list[Path], tmp_path: Path) -> None:
    dataset = load(ct_series[0])
    dataset.add_new("PixelPaddingValue", "US", 0)
    found = scan(save(dataset, tmp_path / "padded.dcm"))
    assert (found.intensity.bits, found.intensity.white, found.intensity.padding) == (12, 4095, (0, 0))
    assert np.array_equal(found.intensity.holes(found.read()), found.read() == 0)
    assert any("pixel padding 0 to 0: not measured" in h for h in found.history)
    assert scan(ct_series[0]).intensity.padding is None
    (tmp_path / "padded.dcm").replace(ct_series[0])
    mixed = scan(*ct_series)
    assert mixed.intensity.padding is None
    assert any("pixel padding differs from file to file (0 to 0, none)" in w for w in mixed.warnings)
    dataset.add_new("PixelPaddingRangeLimit", "US", 4095)
    whole = scan(save(dataset, tmp_path / "whole.dcm"))
    assert whole.intensity.padding is None
    assert any("covers all values" in w for w in whole.warnings)


def test_a_slope_that_varies_from_slice_to_slice_is_refused_with_the_numbers(ct_series: list[Path]) -> None:
    for i, path in enumerate(ct_series):
        edited(path, path, RescaleSlope=1 + i / 8)
    with pytest.raises(ScanError, match=r"rescale slope for all planes, found 1 to 2\.375 \(median 1\.6875\)"):
        scan(*ct_series)
    assert scan(ct_series[3]).intensity.slope == 1.375


def test_a_localizer_of_the_series_is_a_scan_of_its_own(ct_series: list[Path]) -> None:
    edited(ct_series[0], ct_series[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert sorted(len(f) for f, _ in group(ct_series)) == [1, 11]


def test_slices_that_do_not_fit_together_are_refused(ct_series: list[Path], tmp_path: Path) -> None:
    turned = edited(ct_series[0], tmp_path / "turned.dcm", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    assert len(group([turned, *ct_series[1:]])) == 2
    with pytest.raises(ScanError, match="turned by up to 90 degrees"):
        scan(turned, *ct_series[1:])
    with pytest.raises(ScanError, match="rows 1920 and 512"):
        scan(MAMMOGRAM, *ct_series)


def tomosynthesis_data() -> tuple[Any, np.ndarray]:
    """A multi-frame data set of 9 real crops, frames in a shuffled order, positions in functional groups only."""
    dataset = load(MAMMOGRAM)
    crops = np.stack([dataset.pixel_array[40 * i + 300 : 40 * i + 400, 100:230] for i in range(9)])
    order = np.random.default_rng(1).permutation(9)
    groups = []
    for i in order:
        position, value = Dataset(), Dataset()
        position.ImagePositionPatient = [10, 5.0 * 0.0, 1.5 * float(i)]
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, 0, "US"
        item = Dataset()
        item.PlanePositionSequence = Sequence([position])
        item.PixelValueTransformationSequence = Sequence([value])
        groups.append(item)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.09, 0.085], 4
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 100, 130, 9
    dataset.PixelData = crops[order].tobytes()
    return dataset, crops


def tomosynthesis(path: Path, *, syntax: str | None = None) -> tuple[Path, np.ndarray]:
    dataset, crops = tomosynthesis_data()
    if syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    return save(dataset, path), crops


@pytest.mark.parametrize("syntax", [None, JPEG_LS, RLE])
def test_frames_of_a_tomosynthesis_are_sorted_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str | None
) -> None:
    path, crops = tomosynthesis(tmp_path / "t.dcm", syntax=syntax)
    decoded: list[int] = []
    true = dicom_decode._decode_stream
    monkeypatch.setattr(dicom_decode, "_decode_stream", lambda f, d: decoded.append(f.spans[0][0]) or true(f, d))
    found = scan(path)
    assert (found.grid.axes, found.shape) == (("z", "y", "x"), (9, 100, 130))
    assert found.grid.spacing_um == pytest.approx((1500, 90, 85))  # neither thickness nor a swapped pair
    for z in range(9):
        for y in range(0, 100, 30):
            part = found.data[max(0, z - 1) : z + 2, y : y + 35, 20:90]
            assert np.array_equal(part, crops[max(0, z - 1) : z + 2, y : y + 35, 20:90])
    assert sorted(decoded) == sorted(set(decoded))
    assert len(decoded) == (0 if syntax is None else 9)
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again.read(), crops)
    assert len(pickle.dumps(found)) < 10_000
    path.unlink()
    with pytest.raises(ScanError, match=re.escape(f"{path}: ")):
        pickle.loads(pickle.dumps(again)).read()
    dataset, _ = tomosynthesis_data()
    dataset.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0].ImagePositionPatient[2] += 0.4
    with pytest.raises(ScanError, match=r"found steps of .* \(median 1.5 mm\)"):
        scan(save(dataset, tmp_path / "uneven.dcm"))
    own = Dataset()
    own.PixelSpacing = [0.1, 0.085]
    dataset.PerFrameFunctionalGroupsSequence[7].PixelMeasuresSequence = Sequence([own])
    with pytest.raises(ScanError, match=r"one PixelSpacing for all frames, found 2 \(0.09 x 0.085, 0.1 x 0.085 mm\)"):
        scan(save(dataset, tmp_path / "zoomed.dcm"))


def test_threads_share_the_planes_they_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, crops = tomosynthesis(tmp_path / "t.dcm", syntax=JPEG_LS)
    decoded: list[int] = []
    found = pickle.loads(pickle.dumps(scan(path)))
    true = dicom_decode._decode_stream
    monkeypatch.setattr(dicom_decode, "_decode_stream", lambda f, d: decoded.append(f.spans[0][0]) or true(f, d))
    wrong: list[int] = []

    def sweep(start: int) -> None:
        for i in range(9):
            z = (start + i) % 9
            if not np.array_equal(found.data[z], crops[z]):
                wrong.append(z)

    threads = [threading.Thread(target=sweep, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(decoded) == 9


def test_frames_in_time_are_no_volume(tmp_path: Path) -> None:
    path, _ = tomosynthesis(tmp_path / "t.dcm")
    bare = {"PerFrameFunctionalGroupsSequence": None, "SharedFunctionalGroupsSequence": None}
    cine = scan(edited(path, tmp_path / "cine.dcm", FrameTime=33, FrameIncrementPointer=0x00181063, **bare))
    assert (cine.grid.axes, cine.shape) == (("t", "y", "x"), (9, 100, 130))
    unknown = scan(edited(path, tmp_path / "unknown.dcm", **bare))
    assert (unknown.grid.axes, unknown.grid.spacing_of("z")) == (("z", "y", "x"), None)
    assert any("distance of the planes is unknown" in w for w in unknown.warnings)
    spaced = scan(edited(path, tmp_path / "spaced.dcm", SpacingBetweenSlices=2.5, **bare))
    assert spaced.grid.spacing_um == (2500, None, None)
    dataset = load(path)
    for i, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item.PlanePositionSequence[0].ImagePositionPatient = [0, 0, i % 3]
    repeated = scan(save(dataset, tmp_path / "repeated.dcm"))
    assert (repeated.grid.axes, repeated.shape) == (("c", "z", "y", "x"), (3, 3, 100, 130))
    frames = np.frombuffer(dataset.PixelData, np.uint16).reshape(9, 100, 130)
    assert np.array_equal(repeated.read(), frames.reshape(3, 3, 100, 130))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_region_is_the_region_of_the_whole(data: st.DataObject) -> None:
    found = REGIONS.setdefault("scan", scan(FILES / "rtdose_rle.dcm"))
    whole = REGIONS.setdefault("whole", found.read())
    index = tuple(
        data.draw(st.one_of(st.integers(-n, n - 1), st.slices(n))) for n in found.shape[: data.draw(st.integers(1, 3))]
    )
    assert np.array_equal(found.data[index], whole[index])


REGIONS: dict[str, Any] = {}


# --- refused, with a reason -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("examples_rgb_color.dcm", "found color (RGB, 3 samples a pixel); make it gray"),
        ("examples_palette.dcm", "found color (PALETTE COLOR"),
        ("rtplan.dcm", "expected pixel data, found a DICOM object without any (RTPLAN)"),
        ("MR_truncated.dcm", "expected 8192 bytes of pixel data for 1 x 64 x 64 samples of 16 bits, found 8130"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "senseless number of tiles"),
        ("badVR.dcm", "whole number of frames"),
    ],
)
def test_what_is_no_gray_image_is_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(ScanError, match=re.escape(words)):
        scan(FILES / name)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "JPGExtended.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"]
)
@pytest.mark.parametrize("part", [0.6, 0.99])
def test_truncated_compressed_pixels_are_never_filled_up(tmp_path: Path, name: str, part: float) -> None:
    raw, dataset = (FILES / name).read_bytes(), load(FILES / name)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(raw[: raw.index(frame) + int(part * len(frame))])
    with pytest.raises(ScanError, match="the file is truncated"):
        scan(cut)
    short = compressed(FILES / name, cut, frame[: int(part * len(frame)) // 2 * 2], dataset.file_meta.TransferSyntaxUID)
    with pytest.raises(ScanError, match=r"truncated|none that does \("):
        scan(short).read()


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "JPGExtended.dcm", "MR_small_jp2klossless.dcm"])
def test_an_absurd_header_allocates_nothing(tmp_path: Path, name: str) -> None:
    path = edited(FILES / name, tmp_path / "a.dcm", Rows=65535, Columns=65535, NumberOfFrames=60000)
    single = edited(FILES / name, tmp_path / "b.dcm", Rows=65535, Columns=65535)
    tracemalloc.start()
    for wrong in (path, single):
        with pytest.raises(ScanError, match="found"):
            scan(wrong).read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20


def test_a_second_decoder_reads_what_the_first_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.ascontiguousarray(load(MAMMOGRAM).pixel_array[900:1000, 300:420])
    stream = imagecodecs.jpeg8_encode(small, lossless=True, bitspersample=16, predictor=1)
    lossless = compressed(MAMMOGRAM, tmp_path / "l.dcm", stream, JPEG_LOSSLESS, Rows=100, Columns=120)
    files = [lossless, *(FILES / f"MR_small_{n}.dcm" for n in ("RLE", "jp2klossless", "jpeg_ls_lossless"))]
    first = [scan(p).read() for p in files]
    assert np.array_equal(first[0], small)

    def fail(*_: Any) -> None:
        raise ValueError("not today")

    for name in set(dicom_decode.CODECS.values()):
        monkeypatch.setattr(imagecodecs, name, fail)
    for path, expected in zip(files, first, strict=True):
        assert np.array_equal(scan(path).read(), expected), path.name
    with pytest.raises(ScanError, match=r"JPEG Extended .*none that does \(imagecodecs: not today; gdcm: .*12-bit"):
        scan(FILES / "JPGExtended.dcm").read()


def test_damaged_headers_raise_nothing_but_scan_errors(tmp_path: Path) -> None:
    rng = random.Random(5)
    names = ("MR_small.dcm", "CT_small.dcm", "rtdose.dcm", "image_dfl.dcm", "liver_1frame.dcm", "MR_small_implicit.dcm")
    path, refused = tmp_path / "damaged.dcm", []
    for _ in range(250):
        raw = bytearray((FILES / rng.choice(names)).read_bytes())
        for _ in range(rng.choice((1, 5, 40))):
            raw[rng.randrange(min(len(raw), 2500))] = rng.choice((0, 255, rng.randrange(256)))
        path.write_bytes(raw[: rng.randrange(1, len(raw))] if rng.random() < 0.2 else raw)
        accepts(path)
        assert [f for f, _ in group([path])] == [(path,)]
        try:
            found = scan(path)
            if np.prod(found.shape) < 1e7:
                found.read()
        except ScanError as error:
            refused.append(str(error))
    assert 20 < len(refused) < 230
    assert not [text for text in refused if not text.startswith(f"{path}: ")]


def test_a_series_cannot_be_chosen_inside_a_file() -> None:
    with pytest.raises(ScanError, match="expected no series"):
        read(Source(MR, (MR,), "x"), 3)


@pytest.mark.parametrize(
    "first", [b"", b"II*\x00\x08\x00\x00\x00", b"\x89PNG\r\n\x1a\n", b"plain text, no image", bytes(300)]
)
def test_other_files_are_not_accepted(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "a").write_bytes(first + bytes(100))
    assert not accepts(tmp_path / "a")
    assert not accepts(tmp_path)
    assert not accepts(tmp_path / "absent")


# --- identity -------------------------------------------------------------------------------------------------------


IDENTITY = (
    *("PatientName", "PatientID", "PatientAddress", "OtherPatientNames", "InstitutionName", "InstitutionAddress"),
    *("StationName", "ReferringPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription"),
    *("ProtocolName", "ImageComments", "PatientComments", "AccessionNumber", "StudyID", "DeviceSerialNumber"),
    *("DerivationDescription", "RequestingPhysician"),
)


@pytest.mark.parametrize("source", [CT, MAMMOGRAM, FILES / "MR_small_RLE.dcm", FILES / "JPGExtended.dcm"])
def test_nothing_of_a_patient_comes_out(tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = "XQ7MARKER"
    dataset = load(source)
    for keyword in IDENTITY:
        setattr(dataset, keyword, marker)
    dates = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
    for keyword in dates:
        setattr(dataset, keyword, "19570417")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, "1.2.840.99999.4711")
    block = dataset.private_block(0x0099, marker, create=True)
    block.add_new(1, "LO", marker)
    item = Dataset()
    item.PatientName = marker
    dataset.ReferencedImageSequence = Sequence([item])
    dataset.NominalScannedPixelSpacing = [0, 0]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", marker]
    with caplog.at_level(0):
        found = scan(save(dataset, tmp_path / "a.dcm"))
        found.read()
    said = " ".join((*found.history, *found.warnings, repr(found.grid), repr(found.intensity), caplog.text))
    for secret in (marker, "19570417", "4711", "99999"):
        assert secret not in said
    said = str(found) + repr(pickle.loads(pickle.dumps(found)).data)
    for secret in (marker, "19570417", "4711", "99999"):
        assert secret.encode() not in pickle.dumps(found)
        assert secret not in said
    ((_, subject),) = group([tmp_path / "a.dcm"])
    assert subject == hashlib.sha256(marker.encode()).hexdigest()[:16]
    assert re.fullmatch("[0-9a-f]{16}", subject)


def test_files_all_at_one_position_are_a_scan_each(ct_series: list[Path]) -> None:
    first = ct_series[0]
    twin = edited(first, first.with_name("twin.dcm"), SOPInstanceUID="1.2.3.4")
    assert sorted(files for files, _ in group([first, twin])) == sorted([(first,), (twin,)])


def test_the_views_of_one_woman_are_one_subject(shared_data: Path) -> None:
    found = find_scans(shared_data / "dev" / "mammo" / "cbis-ddsm")
    ids = {str(load(source.path).PatientID) for source in found}
    assert len(found) == len(ids) == 3  # CBIS-DDSM writes the view into the PatientID
    assert {source.subject for source in found} == {hashlib.sha256(b"P_00173").hexdigest()[:16]}


@pytest.mark.parametrize(
    ("written", "person"),
    [
        ("Mass-Test_P_00173_LEFT_CC", "P_00173"),
        ("Calc-Training_P_00173_right_mlo_2", "P_00173"),
        (" P-17-LEFT-XCCL ", "P-17"),
        ("17 right at", "17"),
        ("LEFT_CC", "LEFT_CC"),
        ("17_LEFT", "17_LEFT"),
        ("Mass-Test", "Mass-Test"),
        ("SWIFT_CC", "SWIFT_CC"),
    ],
)
def test_only_the_view_is_taken_off_a_patient_id(tmp_path: Path, written: str, person: str) -> None:
    ((_, subject),) = group([save(load(MAMMOGRAM), tmp_path / "a.dcm", PatientID=written)])
    assert subject == hashlib.sha256(person.encode()).hexdigest()[:16]
