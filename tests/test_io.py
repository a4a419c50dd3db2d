"""The door of the readers: what a path is, which scans a folder holds, their names; PNG and PGM."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medsr.data import MAMMOGRAM, NUCLEI, SURFACE
from medsr.io import READERS, NoImageError, Source, digest, find_all, find_scans, lazy, read_scan, versioned
from medsr.io.naming import scan_name
from medsr.io.source import natural_key
from medsr.scan import Intensity, ScanError


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return tifffile.imread(NUCLEI)


# --- one path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "reader"), [(MAMMOGRAM, "dicom"), (NUCLEI, "tiff"), (SURFACE, "tiff")])
def test_the_shipped_samples_are_read_by_content_whatever_their_name(tmp_path, path, reader):
    for name in (path.name, "renamed", "renamed.png", "renamed.dcm", "renamed.tif"):
        shutil.copy(path, tmp_path / name)
        scan = read_scan(tmp_path / name)
        assert scan.reader == reader
        assert scan.shape == read_scan(path).shape


def test_the_stack_is_calibrated():
    scan = read_scan(str(NUCLEI))
    assert scan.grid.axes == ("z", "y", "x")
    assert scan.grid.spacing_um == pytest.approx((0.29, 0.26, 0.26))
    assert scan.data.dtype == np.uint16
    assert scan.warnings == ()
    assert 1000 < scan.intensity.black < 5000
    assert 20_000 < scan.intensity.white < 65_535


def test_a_missing_path_suggests_the_nearest(tmp_path):
    (tmp_path / "breast.tif").write_bytes(b"")
    for call in (read_scan, find_scans):
        with pytest.raises(ScanError, match=r"brest\.tif: expected a file or folder, found nothing .* 'breast\.tif'"):
            call(tmp_path / "brest.tif")
        with pytest.raises(ScanError, match=r"there is no folder .*nowhere either"):
            call(tmp_path / "nowhere" / "a.tif")


@pytest.mark.parametrize("suffix", [".tif", ".png", ".pgm", ".dcm", ".ome.tiff", ".lsm", ""])
def test_empty_and_foreign_files_name_reason_and_cure(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    with pytest.raises(ScanError, match=r"a[.\w]*: expected an image, found an empty file \(0 bytes\); copy it again"):
        read_scan(path)
    path.write_bytes(b"no image at all, some text that is long enough" * 20)
    with pytest.raises(ScanError, match=r"a[.\w]*: .*expected"):
        read_scan(path)


def test_formats_without_a_reader_are_named(tmp_path):
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE" + bytes(100))
    with pytest.raises(ScanError, match=r"a\.czi: expected an image that can be read, found Zeiss CZI .*OME-TIFF"):
        read_scan(tmp_path / "a.czi")


def test_a_folder_of_one_scan_is_that_scan_and_of_several_says_how_many(tmp_path, nuclei):
    with pytest.raises(ScanError, match="found none in this folder"):
        read_scan(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", nuclei[0])
    (tmp_path / "notes.txt").write_text("x")
    np.testing.assert_array_equal(read_scan(tmp_path).read(), nuclei[0])
    tifffile.imwrite(tmp_path / "b.tif", nuclei[1])
    with pytest.raises(ScanError, match=r"expected one scan, found 2 \(a, b\); .*find_scans"):
        read_scan(tmp_path)


def test_a_series_is_refused_where_there_is_none():
    for path in (MAMMOGRAM, NUCLEI):
        with pytest.raises(ScanError, match=path.name):
            read_scan(path, series="seven")


def test_the_door_opens_fast_and_without_torch():
    code = (
        "import sys, medsr.io; heavy = {'torch', 'monai', 'zarr', 'tifffile', 'imagecodecs', 'pydicom', 'PIL', 'scipy'}"
        "; print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert [r.name for r in READERS] == ["ome-zarr", "dicom", "tiff", "picture"]


# --- many scans ----------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return [s.name for s in find_scans(folder)]


def test_a_file_alone_is_that_file(tmp_path):
    for path in (MAMMOGRAM, NUCLEI):
        (source,) = find_scans(path)
        assert source.path == path
        assert source.files == (path,)
        assert source.name == scan_name(path)
    assert len(find_scans(MAMMOGRAM)[0].subject) == 16
    assert find_scans(NUCLEI)[0].subject == ""


def test_the_sample_folder_holds_three_scans():
    assert names(MAMMOGRAM.parent) == [
        "mammogram_cbis_ddsm_P_00173_LEFT_CC_crop",
        "microscopy_allen_cells3d_nuclei_30z",
        "surface_allen_cells3d_nuclei",
    ]


def test_what_is_no_image_is_left_out_and_what_is_broken_is_kept(tmp_path, nuclei, caplog):
    tifffile.imwrite(tmp_path / "good.tif", nuclei[0])
    for name in ("notes.txt", "table.json", "Thumbs.db", ".hidden.tif", "._good.tif", "a.exe", "half.tif.part"):
        (tmp_path / name).write_bytes(b"something that is no image at all")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "b.czi").write_bytes(b"ZISRAW")
    (tmp_path / "sub.part").mkdir()
    tifffile.imwrite(tmp_path / "sub.part" / "x.tif", nuclei[0])
    assert names(tmp_path) == ["cut", "empty", "good"]
    assert "1 .czi (Zeiss CZI)" in caplog.text
    for source in find_scans(tmp_path)[:2]:
        with pytest.raises(ScanError, match=source.path.name):
            read_scan(source)


def test_dicom_objects_without_pixels_are_told_from_images_that_lost_them(tmp_path):
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("rtplan.dcm", "reportsi.dcm", "dicomdirtests/DICOMDIR", "waveform_ecg.dcm", "CT_small.dcm"):
        shutil.copy(folder / name, tmp_path)
    image = pydicom.dcmread(tmp_path / "CT_small.dcm")
    del image.PixelData
    image.save_as(tmp_path / "lost.dcm")
    (tmp_path / "empty.dcm").touch()
    found = {s.files[0].name: s for s in find_scans(tmp_path)}
    for name in ("rtplan.dcm", "reportsi.dcm", "DICOMDIR", "waveform_ecg.dcm"):
        with pytest.raises(NoImageError, match=rf"{name}: expected pixel data, found a DICOM object without any"):
            read_scan(found[name])
    for name, reason in (("lost.dcm", "found an image header without any"), ("empty.dcm", "found an empty file")):
        with pytest.raises(ScanError, match=reason) as error:
            read_scan(found[name])
        assert not isinstance(error.value, NoImageError)
    assert read_scan(found["CT_small.dcm"]).shape == (128, 128)


def test_order_is_natural_and_names_are_unique(tmp_path, nuclei):
    plane = nuclei[0, :16, :16]
    for name in ("a/img.tif", "b/img.tif", "b/img.ome.tif", "b/IMG.png", "c_10.tif", "c_9.tif", "b_img.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("png"):
            Image.fromarray(plane).save(tmp_path / name)
        else:
            tifffile.imwrite(tmp_path / name, plane)
    found = names(tmp_path)
    assert len({n.casefold() for n in found}) == 7
    assert found == names(tmp_path)
    assert found.index("c_9") < found.index("c_10")
    assert "a_img" in found
    assert "b_img_tif" in found
    for source in find_scans(tmp_path):
        assert read_scan(source).shape == (16, 16)


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30)))
def test_any_file_name_makes_a_name_fit_for_a_file(texts):
    for text in texts:
        name = scan_name(Path("folder") / text)
        assert name
        assert len(name) <= 180
        assert not set(name) & set('\\/:*?"<>|\n\0')
        assert name == name.strip(" .")


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_natural_order_is_by_value(a, b):
    assert (natural_key(f"Plane_{a}.tif") < natural_key(f"plane_{b}.tif")) == (a < b)


@given(st.lists(st.text(min_size=1)))
def test_any_names_can_be_put_in_order(texts):
    assert sorted(sorted(texts), key=natural_key) == sorted(sorted(texts, reverse=True), key=natural_key)


def test_two_files_of_one_number_make_no_stack(tmp_path, nuclei):
    for name in ("z1.tif", "z01.tif", "z2.tif", "z²3.tif"):
        tifffile.imwrite(tmp_path / name, nuclei[0])
    assert sorted(names(tmp_path)) == ["z01", "z1", "z2", "z²3"]


def test_loops_pipes_and_broken_links_stop_nothing(tmp_path, nuclei):
    tifffile.imwrite(tmp_path / "a.tif", nuclei[0])
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone.tif").symlink_to(tmp_path / "nowhere.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    assert names(tmp_path) == ["a", "gone"]
    with pytest.raises(ScanError, match=r"gone\.tif"):
        read_scan(find_scans(tmp_path)[1])
    with pytest.raises(ScanError, match=r"pipe\.tif"):
        read_scan(tmp_path / "pipe.tif")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_folders_that_cannot_be_listed_stop_nothing(tmp_path, nuclei):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0)
    tifffile.imwrite(tmp_path / "a.tif", nuclei[0])
    assert names(tmp_path) == ["a"]
    (tmp_path / "locked").chmod(0o700)


def test_folders_that_fail_to_list_stop_nothing(tmp_path, nuclei, monkeypatch, caplog):
    (tmp_path / "locked").mkdir()
    tifffile.imwrite(tmp_path / "a.tif", nuclei[0])
    listing = os.listdir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert names(tmp_path) == ["a"]
    assert "locked: left out, cannot be listed" in caplog.text
    with pytest.raises(ScanError, match=r"locked: cannot be listed \(Permission denied\)"):
        find_scans(tmp_path / "locked")


def test_plain_numbers_are_separate_scans_and_words_for_planes_a_stack(tmp_path, nuclei):
    for i in range(4):
        words = (f"words/cellA_z{i:02d}.tif", f"words/cellB_z{i:02d}.tif", f"s7/slice_{i}.tif")
        for name in (f"plain/img_{i}.tif", *words, f"gap/z{2 * i}.tif", f"fuzz/{i}.tif"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name, nuclei[i])
    assert names(tmp_path / "plain") == ["img_0", "img_1", "img_2", "img_3"]
    assert names(tmp_path / "fuzz") == ["0", "1", "2", "3"]
    assert names(tmp_path / "words") == ["cellA", "cellB"]
    assert names(tmp_path / "s7") == ["s7"]
    assert names(tmp_path / "gap") == ["z0", "z2", "z4", "z6"]
    assert len(names(tmp_path)) == 4 + 4 + 2 + 1 + 4
    for source in [*find_scans(tmp_path / "words"), *find_scans(tmp_path / "s7")]:
        assert len(source.files) == 4
        np.testing.assert_array_equal(read_scan(source).read(), nuclei[:4])
    for folder in ("plain", "fuzz", "s7"):
        scan = read_scan(tmp_path / folder)
        np.testing.assert_array_equal(scan.read(), nuclei[:4])
        told = "4 files with plain numbers taken as the planes of one stack" in " ".join(scan.warnings)
        assert told == (folder != "s7")
    with pytest.raises(ScanError, match=r"words: expected one scan, found 2 \(cellA, cellB\)"):
        read_scan(tmp_path / "words")


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_plain_numbers_are_a_stack_where_the_caller_says_so(tmp_path, nuclei, suffix):
    def write(name: str, plane: np.ndarray) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if suffix == "png":
            Image.fromarray(plane).save(tmp_path / name)
        else:
            tifffile.imwrite(tmp_path / name, plane)

    for i in range(4):
        write(f"plain/img_{i + 8}.{suffix}", nuclei[i])
        write(f"odd/img_{i}.{suffix}", nuclei[i][: 200 if i == 2 else 256])
        write(f"gap/img_{2 * i}.{suffix}", nuclei[i])
        write(f"extra/img_{i}.{suffix}", nuclei[i])
    write(f"extra/overview.{suffix}", nuclei[0])
    write(f"alone/a1.{suffix}", nuclei[0])
    assert len(find_scans(tmp_path)) == len(find_all(tmp_path)) == 4 + 4 + 4 + 5 + 1
    found = find_scans(tmp_path, stack=True)
    assert found == find_all(tmp_path, stack=True)
    assert len(found) == 1 + 4 + 4 + 5 + 1
    (source,) = [s for s in found if len(s.files) > 1]
    assert (source.name, source.path) == ("plain", tmp_path / "plain")
    assert [s.name for s in find_scans(tmp_path / "plain", stack=True)] == ["plain"]
    scan = read_scan(source)
    assert not any("plain numbers" in w for w in scan.warnings)
    for same in (scan, read_scan(tmp_path / "plain"), pickle.loads(pickle.dumps(scan))):
        assert same.grid.axes == ("z", "y", "x")
        np.testing.assert_array_equal(same.read(), nuclei[:4])


def test_why_a_folder_is_no_stack_is_said(tmp_path, nuclei, caplog):
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", nuclei[i][:100].astype("u1" if i == 1 else "u2"))
    assert len(find_scans(tmp_path, stack=True)) == 3
    assert "3 files are no stack" in caplog.text
    assert "1.tif is no plane of the size and type of the first file" in caplog.text


def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a sample that is asked for is a failure."""

    def refuse(*_: object) -> None:
        raise AssertionError("samples were read")

    for kind in (lazy.BlockArray, lazy.MappedArray):
        monkeypatch.setattr(kind, "__getitem__", refuse)


def test_a_given_intensity_is_taken_and_no_sample_is_read(tmp_path, nuclei, monkeypatch):
    for i in range(3):
        tifffile.imwrite(tmp_path / f"z{i}.tif", nuclei[i])
    Image.fromarray(nuclei[0]).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5 256 256 65535\n" + nuclei[0].astype(">u2").tobytes())
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.5]}]}
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    root.create_array("0", data=nuclei[0])
    sources = [*find_scans(tmp_path), *find_scans(MAMMOGRAM), *find_scans(NUCLEI)]
    assert len(sources) == 6
    line = Intensity(100, 40_000, np.dtype("u2"), units="x", padding=(0, 3))
    measured = [read_scan(s) for s in sources]
    assert {s.reader for s in measured} == {r.name for r in READERS}
    no_samples(monkeypatch)
    for source, before in zip(sources, measured, strict=True):
        scan = read_scan(source, intensity=line)
        assert scan.intensity == line
        assert (scan.grid, scan.reader) == (before.grid, before.reader)
        with pytest.raises(ScanError, match=r"expected samples of float32 as the given intensity says, found u"):
            read_scan(source, intensity=Intensity(0, 1, np.dtype("f4")))
        with pytest.raises((AssertionError, ScanError), match=r"samples were read|\(AssertionError\)"):
            read_scan(source).read()


def test_files_whose_name_says_plane_but_hold_stacks_are_scans(tmp_path, nuclei):
    for i in range(3):
        tifffile.imwrite(tmp_path / f"z{i}.tif", nuclei[:2], photometric="minisblack", compression="zlib")
    assert names(tmp_path) == ["z0", "z1", "z2"]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "count"),
    [("micro/w2s_widefield_8bit", 60), ("micro/cbmi_er_16bit", 40), ("micro/vnc_sstem_8bit", 6), ("ctmr", 1),
     ("mammo", 3), ("micro", 111), ("bench/T91", 91)],
)  # fmt: skip
def test_development_scans_are_counted_right(shared_data, folder, count):
    found = find_scans(shared_data / "dev" / folder)
    assert len(found) == count
    assert len({s.name.casefold() for s in found}) == count
    assert found == find_scans(shared_data / "dev" / folder)


@pytest.mark.shared
def test_a_dicom_series_is_one_scan_by_its_folder(shared_data):
    folder = shared_data / "dev" / "ctmr"
    (source,) = find_scans(folder)
    assert len(source.files) == 12
    assert source.name == "ct_lung_A0002_B40f"
    assert read_scan(folder).shape == (12, 512, 512)
    assert read_scan(source).grid.spacing_of("z") == pytest.approx(8000.0)


@pytest.mark.shared
def test_natural_images_in_color_are_refused(shared_data):
    with pytest.raises(ScanError, match=r"t1\.png: expected gray, found RGB color; save it as gray"):
        read_scan(shared_data / "dev" / "bench" / "T91" / "t1.png")


# --- pictures ------------------------------------------------------------------------------------------------------


def test_png_and_pgm_come_back_exactly(tmp_path, nuclei):
    wide, narrow = nuclei[12, :60, :71], (nuclei[12, :60, :71] >> 8).astype(np.uint8)
    for values, depth in ((wide, 65535), (narrow, 255)):
        Image.fromarray(values).save(tmp_path / "a.png")
        body = values.astype(">u2" if depth > 255 else "u1").tobytes()
        (tmp_path / "a.pgm").write_bytes(b"P5\n# a comment\n71 60 # another\n%d\n" % depth + body)
        for name in ("a.png", "a.pgm"):
            scan = read_scan(tmp_path / name)
            assert scan.data.dtype == values.dtype
            assert scan.grid.axes == ("y", "x")
            assert scan.grid.spacing_um is None
            np.testing.assert_array_equal(scan.read(), values)
            np.testing.assert_array_equal(scan.data[3:50:4, ::-1], values[3:50:4, ::-1])
            assert scan.intensity.bits is None
    assert scan.warnings == ("the file does not say the spacing along y, x: unknown",)


def test_the_highest_value_of_a_pgm_fixes_the_line(tmp_path, nuclei):
    values = nuclei[12, :60, :71] >> 4
    for highest, bits in ((4095, 12), (5000, None)):
        (tmp_path / "a.pgm").write_bytes(b"P5 71 60 %d\n" % highest + values.astype(">u2").tobytes())
        intensity = read_scan(tmp_path / "a.pgm").intensity
        assert (intensity.black, intensity.white, intensity.bits) == (0, highest, bits)


@pytest.mark.parametrize(
    ("dots", "spacing"),
    [((508, 254), (100.0, 50.0)), ((72, 72), None), ((96, 96), None), ((300, 300), None), ((600, 600), None)],
)
def test_png_resolution_counts_only_where_it_can_be_a_measurement(tmp_path, nuclei, dots, spacing):
    Image.fromarray(nuclei[0]).save(tmp_path / "a.png", dpi=dots)
    scan = read_scan(tmp_path / "a.png")
    assert scan.grid.spacing_um == (None if spacing is None else pytest.approx(spacing, rel=1e-3))
    assert any(f"(about {dots[0]} per inch)" in w for w in scan.warnings) == (spacing is None)


def test_pictures_that_are_not_gray_are_refused(tmp_path, nuclei):
    gray = Image.fromarray((nuclei[0] >> 8).astype(np.uint8))
    for mode, reason in (("RGB", "RGB color"), ("RGBA", "transparency"), ("LA", "transparency"), ("P", "palette"),
                         ("1", "8 or 16 bits, found 1")):  # fmt: skip
        gray.convert(mode).save(tmp_path / f"{mode}.png")
        with pytest.raises(ScanError, match=rf"{mode}\.png: expected .*{reason}.*; save it as gray"):
            read_scan(tmp_path / f"{mode}.png")
    for magic, reason in ((b"P6", "RGB"), (b"P2", "text"), (b"P4", "1-bit"), (b"P7", "PAM")):
        (tmp_path / "a.pnm").write_bytes(magic + b" 4 4 255\n" + bytes(48))
        with pytest.raises(ScanError, match=rf"a\.pnm: expected binary gray \(P5\), found .*{reason}"):
            read_scan(tmp_path / "a.pnm")


def test_cut_and_absurd_pictures_are_refused(tmp_path, nuclei):
    Image.fromarray(nuclei[0]).save(tmp_path / "whole.png")
    (tmp_path / "whole.pgm").write_bytes(b"P5 256 256 65535\n" + nuclei[0].astype(">u2").tobytes())
    for kind in ("png", "pgm"):
        raw = (tmp_path / f"whole.{kind}").read_bytes()
        for keep in (3, 9, 40, len(raw) // 2, len(raw) - 13, len(raw) - 1):
            (tmp_path / f"cut.{kind}").write_bytes(raw[:keep])
            with pytest.raises(ScanError, match=rf"cut\.{kind}"):
                read_scan(tmp_path / f"cut.{kind}").read()
    damaged = bytearray((tmp_path / "whole.png").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "bad.png").write_bytes(damaged)
    with pytest.raises(ScanError, match=r"bad\.png: damaged or truncated PNG"):
        read_scan(tmp_path / "bad.png")
    header = struct.pack(">IIBBBBB", 10**6, 10**6, 16, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(900))), (b"IEND", b"")]
    (tmp_path / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    )
    (tmp_path / "huge.pgm").write_bytes(b"P5 1000000 1000000 255\n" + bytes(1000))
    for kind in ("png", "pgm"):
        with pytest.raises(ScanError, match=rf"huge\.{kind}: .*1000000 x 1000000"):
            read_scan(tmp_path / f"huge.{kind}")


def test_several_pictures_in_one_pgm_are_refused(tmp_path):
    (tmp_path / "a.pgm").write_bytes(2 * (b"P5 4 4 255\n" + bytes(16)))
    with pytest.raises(ScanError, match="found several one after the other"):
        read_scan(tmp_path / "a.pgm")


@pytest.mark.parametrize("kind", ["file", "planes", "zarr"])
def test_a_scan_replaced_under_way_is_refused(tmp_path, nuclei, kind):
    """As a worker reads it: the source travels, and is opened again."""
    root = tmp_path / "scan"
    root.mkdir()
    if kind == "zarr":
        group = zarr.create_group(tmp_path / "scan", overwrite=True)
        dataset = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}
        axes = [{"name": n, "type": "space"} for n in "zyx"]
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [dataset]}]}
        group.create_array("0", data=nuclei[:4])
    else:
        for number in range(4 if kind == "planes" else 1):
            tifffile.imwrite(root / f"z{number}.tif", nuclei[number])
    (found,) = find_scans(root)
    source = pickle.loads(pickle.dumps(versioned(found)))
    before = read_scan(source)
    assert read_scan(versioned(source), intensity=before.intensity).shape == before.shape
    if kind == "zarr":
        zarr.open_group(root)["0"][...] = nuclei[4:8]
        (root / "0" / "zarr.json").write_bytes((root / "0" / "zarr.json").read_bytes())
    else:
        tifffile.imwrite(source.files[-1], nuclei[9])
    with pytest.raises(ScanError, match=rf"{source.path}: expected .* as .* found .*; .*again"):
        read_scan(source, intensity=before.intensity)
    assert read_scan(found).shape == before.shape


def test_of_many_gigabytes_the_digest_reads_a_bounded_part(tmp_path, monkeypatch):
    """Planes that are small each and large together."""
    monkeypatch.setattr(digest, "WHOLE", 500_000)
    monkeypatch.setattr(digest, "SLICE", 1000)
    for number in range(40):
        (tmp_path / f"z{number:02}.tif").write_bytes(os.urandom(20_000))
    files, read = sorted(tmp_path.iterdir()), []
    real = Path.open

    class Counted:
        def __init__(self, path):
            self.stream = real(path, "rb")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def seek(self, at):
            self.stream.seek(at)

        def read(self, count):
            read.append(self.stream.read(count))
            return read[-1]

    monkeypatch.setattr(Path, "open", lambda path, _mode: Counted(path))
    first = digest.input_digest(files)
    assert 50_000 < sum(map(len, read)) <= 64_000
    assert digest.input_digest(files) == digest.input_digest([tmp_path]) == first
    stat = files[7].stat()
    os.utime(files[7], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert digest.input_digest(files) != first


def test_sources_are_values(tmp_path):
    one = Source(tmp_path, (tmp_path / "a",), "a")
    assert one == Source(tmp_path, (tmp_path / "a",), "a")
    assert len({one, Source(tmp_path, (tmp_path / "a",), "a", "0123456789abcdef")}) == 2
