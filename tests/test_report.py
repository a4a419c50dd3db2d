"""A page holds what it promises, in one file, escaped, small, and nothing of whose scan it is."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import medsr
from medsr.io.source import Source
from medsr.report import Map, write_batch_report, write_report
from medsr.report.invention import PARENT, SPACE
from medsr.report.layers import label
from medsr.report.reasons import pathless, reason_of
from medsr.scan import Scan, ScanError

VOID = {"meta", "link", "img", "input", "br", "rect"}


class Checked(HTMLParser):
    """Collects tags; every opened one must be closed in order, ids are unique."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [a["id"] for _, a in self.tags if "id" in a]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(page: Path) -> Checked:
    return Checked(page.read_text("utf-8"))


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured scans under scans/, results under results/."""
    root = tmp_path_factory.mktemp("report")
    (root / "scans").mkdir()
    crop = medsr.read_scan(medsr.NUCLEI).read((slice(10, 14), slice(0, 128), slice(64, 192)))
    for name in ("cells", "Müller & Söhne #1"):
        tifffile.imwrite(
            root / "scans" / f"{name}.ome.tif", crop, photometric="minisblack",
            metadata={"axes": "ZYX", "PhysicalSizeX": 0.26, "PhysicalSizeY": 0.26, "PhysicalSizeZ": 0.29},
        )  # fmt: skip
    report = medsr.upscale_folder(root / "scans", medsr.Lanczos((2, 2)), out=root / "results")
    assert report.exit_code == 0
    return root


def picture(uri: str) -> Image.Image:
    kind, data = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_page_holds_everything_in_one_file(batch: Path) -> None:
    page = write_report(batch / "results" / "cells.ome.zarr", out=batch / "pages", low=batch / "scans")
    assert page == batch / "pages" / "cells.html"
    text = page.read_text("utf-8")
    assert len(text) < 3e6
    held = Checked(text)
    # Nothing is loaded from anywhere.
    for tag, attributes in held.tags:
        for name in ("src", "href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), (tag, value)
    assert "url(" not in text
    assert "@import" not in text
    for words in (
        "Not for diagnosis", "4 × 128 × 128", "4 × 256 × 256", "Lanczos", "Consistency", "No calibrated intervals",
        "Line profile", "Power spectrum", "Resolution before and after", "Input SHA-256", "upscaled 2x2",
    ):  # fmt: skip
        assert words in held.text, words
    assert "byte for byte" not in held.text
    assert all(a.get("alt") for a in held.all("img"))


def test_the_same_scans_give_the_same_page(batch: Path) -> None:
    result, low = batch / "results" / "cells.ome.zarr", batch / "scans"
    first = write_report(result, out=batch / "one.html", low=low).read_bytes()
    assert first == write_report(result, out=batch / "two.html", low=low).read_bytes()
    assert not list(batch.glob("*.part"))


def test_the_pictures_show_what_was_measured(batch: Path) -> None:
    """One gray window in one geometry: cells of the coarse picture are the scan, the fine ones their refinement."""
    page = write_report(batch / "results" / "cells.ome.zarr", out=batch / "look.html", low=batch / "scans")
    layers = {a["alt"].split(":")[0]: picture(str(a["src"])) for a in read(page).all("img") if a.get("draggable")}  # type: ignore[union-attr]
    assert list(layers) == ["Measured", "Cubic", "Estimate", "Consistency", label(SPACE)]
    assert layers["Measured"].size == (128, 128)
    assert layers["Cubic"].size == layers["Estimate"].size == (256, 256)
    low = medsr.read_scan(batch / "scans" / "cells.ome.tif").read()
    shown = np.asarray(layers["Measured"], float)
    planes = [np.corrcoef(shown.ravel(), p.ravel().astype(float))[0, 1] for p in low]
    assert max(planes) > 0.97
    for name in ("Cubic", "Estimate"):
        fine = np.asarray(layers[name], float).reshape(128, 2, 128, 2).mean((1, 3))
        assert np.abs(fine - shown).mean() < 4


def test_names_are_escaped_and_linked(batch: Path) -> None:
    index = write_batch_report(batch / "results", out=batch / "all", low=batch / "scans")
    held = read(index)
    links = [str(a["href"]) for a in held.all("a") if a.get("href") != "#main"]
    assert len(links) == 2
    for link in links:
        assert "/" not in link
        assert not re.search(r"[ #&<>\"]", link)
    pages = sorted((batch / "all").glob("*.html"))
    assert len(pages) == 3
    assert "Müller & Söhne #1" in held.text
    assert "Müller & Söhne" not in index.read_text("utf-8")  # the ampersand is written as such


def test_hostile_words_stay_words(batch: Path, tmp_path: Path) -> None:
    result = tmp_path / "bad.ome.zarr"
    shutil.copytree(batch / "results" / "cells.ome.zarr", result)
    document = json.loads((result / "zarr.json").read_text())
    evil = "<script>alert(1)</script>{{ 7 * 7 }}\"'><img src=x onerror=alert(2)>"
    document["attributes"]["medsr"]["history"].append(evil)
    document["attributes"]["medsr"]["warnings"].append(evil)
    (result / "zarr.json").write_text(json.dumps(document))
    held = read(write_report(result, out=tmp_path / "bad.html", low=batch / "scans"))
    assert held.text.count("{{ 7 * 7 }}") == 2
    assert len(held.all("script")) == 1
    assert all(not name.startswith("on") for _, attributes in held.tags for name in attributes)


def test_no_path_and_no_identity_leave(batch: Path) -> None:
    for low in (batch / "scans", None):
        page = write_report(batch / "results" / "cells.ome.zarr", out=batch / "private.html", low=low)
        assert str(batch) not in page.read_text("utf-8")
        assert batch.name not in page.read_text("utf-8")


def test_what_is_missing_is_said(batch: Path) -> None:
    held = read(write_report(batch / "results" / "cells.ome.zarr", out=batch / "alone.html"))
    for words in ("The measured scan was not given", "No finer measurement", "there is no before", "2 × 2 finer"):
        assert words in held.text, words
    layers = [a for a in held.all("img") if a.get("draggable")]
    assert len(layers) == 1


def test_another_scan_is_doubted(batch: Path, tmp_path: Path) -> None:
    other = tmp_path / "cells.tif"
    ramp = np.zeros((4, 128, 128), np.uint16) + np.arange(128, dtype=np.uint16)
    tifffile.imwrite(other, ramp, metadata={"axes": "ZYX"}, photometric="minisblack")
    held = read(write_report(batch / "results" / "cells.ome.zarr", out=tmp_path / "a.html", low=other))
    assert "not, byte for byte, the file" in held.text
    assert "does not reproduce the measured scan" in held.text
    tifffile.imwrite(other, ramp[:3, :100, :100], metadata={"axes": "ZYX"}, photometric="minisblack")
    with pytest.raises(ValueError, match="whose shape divides"):
        write_report(batch / "results" / "cells.ome.zarr", out=tmp_path / "a.html", low=other)


def test_a_truth_and_maps_are_shown(batch: Path, tmp_path: Path) -> None:
    result = batch / "results" / "cells.ome.zarr"
    estimate = medsr.read_scan(result)
    truth = replace(estimate, data=estimate.read())
    width = Scan(
        np.full(estimate.shape, 0.5, np.float32),
        estimate.grid,
        medsr.Intensity(0, 1, np.dtype(np.float32), units="a.u."),
    )
    maps = {"interval width": Map(width, limit=1.0, note="Widths.")}
    page = write_report(result, out=tmp_path, low=batch / "scans", truth=truth, maps=maps)
    held = read(page)
    assert "Interval width" in held.text
    assert "No calibrated intervals" not in held.text
    assert f"{SPACE[:1].upper()}{SPACE[1:]}" in held.text
    assert f"{PARENT[:1].upper()}{PARENT[1:]}" in held.text  # and why there is none
    assert "Ring correlation with the truth" in held.text
    assert "PSNR" in held.text
    assert re.findall(r"\S+e\+0\S*", held.text) == []
    wrong = replace(width, data=np.zeros((2, 3, 3), np.float32))
    with pytest.raises(ValueError, match="map: expected the shape"):
        write_report(result, out=tmp_path, low=batch / "scans", maps={"invention": Map(wrong)})


def test_an_invented_spot_is_flagged_on_page_and_index(batch: Path, tmp_path: Path) -> None:
    result = batch / "results" / "cells.ome.zarr"
    copy = tmp_path / "results" / "cells.ome.zarr"
    scan = medsr.read_scan(result)
    shutil.copytree(result, copy)
    import zarr

    array = zarr.open_group(copy, mode="r+")["0"]
    array[2, 100:112, 80:96] = scan.intensity.white
    index = read(write_batch_report(copy.parent, out=tmp_path / "pages", low=batch / "scans"))
    assert "1 region of the estimate contradicts the measured scan" in index.text
    page = read(tmp_path / "pages" / "cells.html")
    # Places are counted from the edge of the scan in the unit of the map's axes: 50 and 40 coarse samples of 0.26 µm.
    places = re.findall(r"y ([\d.]+) to ([\d.]+), x ([\d.]+) to ([\d.]+) µm", page.text)
    edges = [[float(v) for v in place] for place in places]
    assert any(e == pytest.approx([13, 14.56, 10.4, 12.48], abs=0.3) for e in edges), edges
    assert "where, from the edge of the scan" in page.text
    assert not re.search(r"worst window[^.]*\d µm", page.text)  # of the grid's own zero
    rows = re.findall(r"µm,? (plane z \d of 4|in the frame|in the shown plane)[ .]", page.text)
    assert len(rows) == len(places)
    (alt,) = [str(a["alt"]) for a in page.all("img") if str(a["alt"]).startswith("Map: consistency")]
    assert re.search(r"\d+ flagged region.*peak [+−][\d.]+ sigma", alt)
    shown = re.search(r"z (\d) of 4 the liveliest of 4 planes looked at", page.text)
    assert shown
    if shown[1] != "3":
        assert "The flagged region lies in another plane than the shown one" in page.text


def test_a_stack_refined_in_depth_is_shown_as_a_section(tmp_path: Path) -> None:
    scan = medsr.read_scan(medsr.NUCLEI)
    part = scan.read((slice(0, 12), slice(0, 64), slice(0, 96)))
    tifffile.imwrite(
        tmp_path / "deep.ome.tif", part, photometric="minisblack",
        metadata={"axes": "ZYX", "PhysicalSizeX": 0.26, "PhysicalSizeY": 0.26, "PhysicalSizeZ": 1.16},
    )  # fmt: skip
    medsr.upscale_folder(tmp_path / "deep.ome.tif", medsr.Cubic((4, 1, 1)), out=tmp_path / "out")
    page = read(write_report(tmp_path / "out" / "deep.ome.zarr", out=tmp_path, low=tmp_path / "deep.ome.tif"))
    assert "section along z and x" in page.text
    sizes = {a["alt"].split(":")[0]: (a["width"], a["height"]) for a in page.all("img") if a.get("draggable")}  # type: ignore[union-attr]
    assert sizes["Measured"] == ("96", "12")
    assert sizes["Estimate"] == ("96", "48")


def test_the_folder_of_evaluate_has_pages_too(batch: Path, tmp_path: Path) -> None:
    (tmp_path / "low.tif").write_bytes(b"no image")
    shutil.copy(batch / "scans" / "cells.ome.tif", tmp_path / "cells.ome.tif")
    medsr.evaluate(tmp_path, medsr.Lanczos((2, 2)), out=tmp_path / "scores")
    index = read(write_batch_report(tmp_path / "scores", out=tmp_path / "pages"))
    assert "2 scans, 1 with something to look at" in index.text
    assert "Failed" in index.text
    page = read(tmp_path / "pages" / "cells.html")
    assert "lanczos" in page.text
    assert "PSNR, dB" in page.text
    (tmp_path / "scores" / "cells.png").write_bytes(b"no picture")
    index = read(write_batch_report(tmp_path / "scores", out=tmp_path / "pages"))
    assert "2 scans, 1 with something to look at" in index.text
    assert "cannot be read" in read(tmp_path / "pages" / "cells.html").text


def test_refusals_name_the_cure(batch: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="give the folder of --out"):
        write_batch_report(tmp_path, out=tmp_path / "pages")
    with pytest.raises(ScanError):
        write_report(tmp_path / "none.ome.zarr", out=tmp_path)
    width = medsr.read_scan(batch / "results" / "cells.ome.zarr")
    with pytest.raises(ValueError, match="above 0"):
        Map(width, limit=0.0)


def test_a_damaged_result_stops_nothing(batch: Path, tmp_path: Path) -> None:
    shutil.copytree(batch / "results", tmp_path / "results")
    (tmp_path / "results" / "broken.ome.zarr").mkdir()
    (tmp_path / "results" / "broken.ome.zarr" / "zarr.json").write_text("{")
    index = read(write_batch_report(tmp_path / "results", out=tmp_path / "pages", low=batch / "scans"))
    assert "3 scans" in index.text
    assert "Failed" in index.text
    assert str(tmp_path) not in index.text


def test_a_result_of_another_mind_costs_its_own_row(batch: Path, tmp_path: Path) -> None:
    """Any error: what a result says of itself may be of another type."""
    shutil.copytree(batch / "results", tmp_path / "results")
    stored = tmp_path / "results" / "cells.ome.zarr" / "zarr.json"
    document = json.loads(stored.read_text())
    document["attributes"]["medsr"]["history"] = None
    stored.write_text(json.dumps(document))
    index = read(write_batch_report(tmp_path / "results", out=tmp_path / "pages", low=batch / "scans"))
    assert "2 scans" in index.text
    assert re.search(r"cells .*Failed\. TypeError: ", index.text)
    assert len(list((tmp_path / "pages").glob("*.html"))) == 2


def test_the_index_lists_what_the_page_lists(batch: Path, tmp_path: Path) -> None:
    shutil.copytree(batch / "results" / "cells.ome.zarr", tmp_path / "results" / "cells.ome.zarr")
    stored = tmp_path / "results" / "cells.ome.zarr" / "zarr.json"
    document = json.loads(stored.read_text())
    document["attributes"]["medsr"]["warnings"] = ["spacing outside the range the checkpoint was trained for"]
    stored.write_text(json.dumps(document))
    index = read(write_batch_report(tmp_path / "results", out=tmp_path / "pages", low=batch / "scans"))
    page = read(tmp_path / "pages" / "cells.html")
    for text in (page.text, index.text):
        assert "spacing outside the range the checkpoint was trained for" in text
    assert "nothing flagged" not in index.text
    assert "1 with something to look at" in index.text


def test_no_name_of_a_folder_or_of_a_measured_file_reaches_the_index(batch: Path, tmp_path: Path) -> None:
    """Law 7: planted names around scans, results and pages, in every kind of failure."""
    planted = [
        tmp_path / name / "more" for name in ("DOE^JANE 19600101", "ROE^RICHARD 19700202", "MILLER^ANN 19800303")
    ]
    scans, results, pages = planted
    for folder in (scans, pages):
        folder.mkdir(parents=True)
    whole = (batch / "scans" / "cells.ome.tif").read_bytes()
    (scans / "DOE_JANE.tif").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(batch / "results" / "cells.ome.zarr", results / "cells.ome.zarr")
    logged = [f"{scans}/DOE_JANE.tif: cut short", "DOE^JANE 19600101/x.tif: OSError: cannot read", f"{scans}/lone.tif"]
    lines = [json.dumps({"scan": f"lost{i}", "status": "failed", "reason": r}) for i, r in enumerate(logged)]
    (results / "batch.jsonl").write_text("\n".join(lines))
    forbidden = ("doe", "jane", "1960", "roe", "richard", "miller", "1980", tmp_path.name, "more")

    def said(low: Path | None) -> str:
        text = write_batch_report(results, out=pages, low=low).read_text("utf-8")
        plain = re.sub(r"<style>.*?</style>|data:[^\"]+", "", text, flags=re.DOTALL).lower()
        assert [word for word in forbidden if re.search(rf"\b{re.escape(word)}", plain)] == []
        return Checked(text).text

    text = said(scans)
    assert text.count("Failed.") == 4
    assert "cut short" in text
    assert "OSError: cannot read" in text
    (pages / "cells.html").mkdir()
    assert "Is a directory" in said(None)
    assert "Super-resolution report: 4 scans" in said(None)


def test_a_reason_stays_as_far_as_it_names_no_place() -> None:
    place = Path("/data/scan/DOE JANE/cells.tif")
    said = pathless("cells: expected a scan whose shape divides (2, 3)", "cells", [place])
    assert said == "expected a (hidden) whose shape divides (2, 3)"
    assert pathless(f"{place}: TIFF: cut short", "cells", [place]) == "TIFF: cut short"
    assert pathless("/data/x y.tif: cut short", "cells") == "cut short"
    assert "place" in pathless("cannot open /data/x y.tif", "cells")
    source = Source(place, (place,), "DOE_JANE")
    assert pathless("cells.tif: cut short in DOE JANE", "p1", [source]) == "cut short in (hidden)"
    assert reason_of(PermissionError(13, "Permission denied", str(place)), "cells") == "Permission denied"
    assert reason_of(KeyError("levels"), "cells") == "KeyError: 'levels'"


def test_a_page_that_loads_nothing_sends_nothing_either(batch: Path) -> None:
    page = read(write_report(batch / "results" / "cells.ome.zarr", out=batch / "policy.html"))
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    for rule in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
        assert rule in str(policy).split("; ")


def test_a_cubic_result_is_said_to_be_one(batch: Path, tmp_path: Path) -> None:
    medsr.upscale_folder(batch / "scans" / "cells.ome.tif", medsr.Cubic((2, 2)), out=tmp_path / "out")
    said = "Cubic and estimate are the same here"
    page = read(write_report(tmp_path / "out" / "cells.ome.zarr", out=tmp_path, low=batch / "scans"))
    assert said in page.text
    page = read(write_report(batch / "results" / "cells.ome.zarr", out=tmp_path, low=batch / "scans"))
    assert said not in page.text
    assert "In the gray pictures under the divider" in page.text
