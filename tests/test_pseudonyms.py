"""Pseudonyms: stable, keyed, without collisions; nothing that is said or written names a file."""

import csv
import json
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

import medsr
from medsr.data import MAMMOGRAM
from medsr.io import find_scans, pseudonyms
from medsr.io.pseudonyms import Pseudonyms, unnamed
from medsr.io.source import Source
from medsr.methods import Cubic

NAME = re.compile(r"scan-[0-9a-f]{10}(-\d+)?")
UNNUMBERED = re.compile(r"scan-[0-9a-f]+")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scans whose files and folders are called by a name."""
    made = tmp_path / "Zyxwinski_Anna"
    made.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 4000, (40, 48)).astype(np.uint16)
        tifffile.imwrite(made / f"Zyxwinski_{'abc'[number]}.tif", values)
    return made


def names(sources: list[Source]) -> dict[str, str]:
    return {source.files[0].name: source.name for source in sources}


def test_a_name_follows_from_content_and_key_alone(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    first = names(Pseudonyms(key).find_all(folder))
    assert all(NAME.fullmatch(name) for name in first.values())
    assert len(set(first.values())) == 3
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (moved / "Zyxwinski_a.tif").rename(moved / "other.tif")
    (moved / "Zyxwinski_b.tif").unlink()
    again = names(Pseudonyms(key).find_all(moved))
    assert again == {"other.tif": first["Zyxwinski_a.tif"], "Zyxwinski_c.tif": first["Zyxwinski_c.tif"]}
    other = names(Pseudonyms(tmp_path / "other-key").find_all(folder))
    assert not set(other.values()) & set(first.values())


def test_a_series_keeps_its_name_whatever_its_files_are_called(tmp_path: Path) -> None:
    key, content = tmp_path / "key", [b"one" * 999, b"two" * 777, b"three"]
    found = []
    for run, order in enumerate(((0, 1, 2), (2, 0, 1))):
        (tmp_path / f"{run}").mkdir()
        files = tuple(tmp_path / f"{run}" / f"{place}.dcm" for place in range(3))
        for file, number in zip(files, order, strict=True):
            file.write_bytes(content[number])
        found += Pseudonyms(key).rename([Source(tmp_path / f"{run}", files, "series")])
    assert found[0].name == found[1].name


def test_large_files_differ_by_any_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudonyms, "WHOLE", 1000)
    monkeypatch.setattr(pseudonyms, "SLICE", 100)
    (tmp_path / "a.tif").write_bytes(bytes(5000))
    (tmp_path / "b.tif").write_bytes(bytes(4999) + b"x")
    (tmp_path / "c.tif").write_bytes(b"x" + bytes(4999))
    found = set(names(Pseudonyms(tmp_path / "key").rename(find_scans(tmp_path))).values())
    assert len(found) == 3
    assert all(UNNUMBERED.fullmatch(name) for name in found)


def test_names_never_collide(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(folder / "Zyxwinski_a.tif", folder / "copy.tif")
    found = names(Pseudonyms(tmp_path / "key").find_all(folder))
    assert len(set(found.values())) == 4
    assert found["Zyxwinski_a.tif"] == f"{found['copy.tif']}-2"  # of exact copies the first in natural order
    (folder / "copy.tif").unlink()
    monkeypatch.setattr(pseudonyms, "SHORT", 0)
    short = set(names(Pseudonyms(tmp_path / "key").find_all(folder)).values())
    assert len(short) == 3
    assert all(UNNUMBERED.fullmatch(name) for name in short)
    assert max(map(len, short)) < len("scan-0123456789")


def test_the_order_of_results_tells_nothing(folder: Path, tmp_path: Path) -> None:
    for number in range(9):
        tifffile.imwrite(folder / f"more_{number}.tif", np.full((9, 9), number, np.uint16))
    found = [source.name for source in Pseudonyms(tmp_path / "key").find_all(folder)]
    assert found == sorted(found)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
def test_a_key_is_made_for_its_owner_and_refused_to_others(tmp_path: Path) -> None:
    key = tmp_path / "key"
    Pseudonyms(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_text()
    assert re.fullmatch("[0-9a-f]{64}\n", secret)
    Pseudonyms(key)
    assert key.read_text() == secret
    assert secret.strip() not in repr(Pseudonyms(key)) + str(vars(Pseudonyms(key))["keyfile"])
    for mode in (0o604, 0o602, 0o644, 0o777):
        key.chmod(mode)
        with pytest.raises(ValueError, match="only its owner may read, found mode 0"):
            Pseudonyms(key)


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a key file, found a folder"):
        Pseudonyms(tmp_path)
    (tmp_path / "short").write_text("short")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(ValueError, match="at least 32 bytes, found 5"):
        Pseudonyms(tmp_path / "short")


def test_the_key_does_not_lie_among_the_results(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match="expected the key of the pseudonyms apart from the results"):
        medsr.upscale_folder(folder, Cubic((2, 2)), out=out, pseudonyms=Pseudonyms(out / "key"))
    with pytest.raises(ValueError, match="expected the mapping of the pseudonyms apart"):
        Pseudonyms(tmp_path / "key", mapping=out / "names.csv").find_all(folder, out=out)


def test_a_mapping_is_written_where_it_is_asked_for_and_nowhere_else(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    Pseudonyms(tmp_path / "key").find_all(folder, out=tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "key"])
    table = tmp_path / "names.csv"
    found = Pseudonyms(tmp_path / "key", mapping=table).find_all(folder / "Zyxwinski_a.tif")
    found += Pseudonyms(tmp_path / "key", mapping=table).find_all(folder / "Zyxwinski_b.tif")
    with table.open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["pseudonym", "path"]
    assert sorted(rows[1:]) == sorted([s.name, str(s.path)] for s in found)
    if os.name == "posix":
        assert stat.S_IMODE(table.stat().st_mode) == 0o600


def test_no_name_is_in_what_a_batch_says_and_writes(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "Zyxwinski_torn.tif").write_bytes((folder / "Zyxwinski_a.tif").read_bytes()[:300])
    (folder / "Zyxwinski_torn.dcm").write_bytes(MAMMOGRAM.read_bytes()[:9000])
    (folder / "Zyxwinski_empty.tif").touch()
    tifffile.imwrite(folder / "Zyxwinski_rgb.tif", np.zeros((9, 9, 3), np.uint8), photometric="rgb")
    (folder / "Zyxwinski.czi").write_bytes(b"0" * 99)
    for number in (1, 2, 4):  # planes that are no stack: the log says so
        tifffile.imwrite(folder / f"Zyxwinski_z{number}.tif", np.full((40, 40), number, np.uint16))
    (folder / "Zyxwinski_deep" / "Zyxwinski.zarr").mkdir(parents=True)
    (folder / "Zyxwinski_deep" / "Zyxwinski.zarr" / "zarr.json").write_text("{")
    said: list[str] = []
    names = Pseudonyms(tmp_path / "key")
    with caplog.at_level(0, "medsr"):
        for _ in range(2):  # the second finds the results there
            report = medsr.upscale_folder(
                folder, Cubic((2, 2)), out=tmp_path / "out", pseudonyms=names, note=said.append
            )
            scores = medsr.evaluate(folder, Cubic((2, 2)), out=tmp_path / "scores", pseudonyms=names, note=said.append)
    assert len([row for row in report.rows if row.status == "failed"]) >= 4
    assert len(scores.failed) >= 4
    assert {row.scan for row in report.rows} == {r["scan"] for r in scores.rows} | {scan for scan, _ in scores.failed}
    assert all(NAME.fullmatch(row.scan) for row in report.rows)
    assert "left out, no reader" in caplog.text
    assert "for the planes 1 to 4" in caplog.text
    everything = "\n".join((caplog.text, *said, repr(report), repr(scores)))
    assert "zyxwinski" not in everything.lower()
    for path in [*(tmp_path / "out").rglob("*"), *(tmp_path / "scores").rglob("*")]:
        assert "zyxwinski" not in path.name.lower()
        assert not path.is_file() or b"zyxwinski" not in path.read_bytes().lower(), path


def test_no_name_is_in_what_a_comparison_says_and_writes(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = tmp_path / "pairs"
    for number, scan in enumerate(sorted(folder.glob("*.tif"))):
        fine = tifffile.imread(scan)
        for side, values in (("low", fine[::2, ::2]), ("high", fine)):
            (pairs / side).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(pairs / side / scan.name, values if number else values[:4])
    tifffile.imwrite(pairs / "high" / "Zyxwinski alone.tif", fine)
    (folder / "Zyxwinski_torn.tif").write_bytes((folder / "Zyxwinski_a.tif").read_bytes()[:300])
    said: list[str] = []
    names = Pseudonyms(tmp_path / "key")
    with caplog.at_level(0, "medsr"):
        report = medsr.compare(folder, ["cubic", "linear"], out=tmp_path / "one", pseudonyms=names, note=said.append)
        paired = medsr.compare(pairs, ["cubic"], out=tmp_path / "two", pseudonyms=names, note=said.append)
    assert len(report.rows) == 6
    assert report.failed
    assert paired.rows or paired.failed
    assert "left out, without a partner: 1" in caplog.text
    assert all(NAME.fullmatch(row["scan"]) for row in (*report.rows, *paired.rows))
    assert all(NAME.fullmatch(scan) for scan, _ in (*report.failed, *paired.failed))
    everything = "\n".join((caplog.text, *said, repr(report), repr(paired)))
    assert "zyxwinski" not in everything.lower()
    for path in [*(tmp_path / "one").rglob("*"), *(tmp_path / "two").rglob("*")]:
        assert "zyxwinski" not in path.name.lower()
        assert not path.is_file() or b"zyxwinski" not in path.read_bytes().lower(), path


def test_every_part_of_a_path_goes_out_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "Anna M" / "study" / "Zyx.ome.tif"
    source = Source(file, (file,), "scan-0123456789", unnamed=True)
    for text in (
        f"{file}: torn",
        "Zyx.ome.tif is torn",
        "of Zyx: torn",
        f"{file.parent}: no rights",
        "in Anna M: torn",
    ):
        assert not re.search(r"Zyx|Anna|study", unnamed(text, source)), unnamed(text, source)
    assert unnamed(f"{file}: torn", source) == "scan-0123456789: torn"
    assert unnamed("series 'Zyxwinski' is none of it", source) == "series (hidden) is none of it"
    assert unnamed("out/scan-0123456789.ome.zarr: full", source) == "out/scan-0123456789.ome.zarr: full"
    assert unnamed(f"{file}: torn", replace(source, unnamed=False)) == f"{file}: torn"


def test_a_batch_under_pseudonyms_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    first = medsr.upscale_folder(folder, Cubic((2, 2)), out=tmp_path / "out", pseudonyms=Pseudonyms(tmp_path / "key"))
    assert [row.status for row in first.rows] == ["done"] * 3
    again = medsr.upscale_folder(folder, Cubic((2, 2)), out=tmp_path / "out", pseudonyms=Pseudonyms(tmp_path / "key"))
    assert [row.status for row in again.rows] == ["skipped"] * 3
    group = json.loads((Path(first.rows[0].output) / "zarr.json").read_text())
    assert group["attributes"]["ome"]["multiscales"][0]["name"] == first.rows[0].scan
