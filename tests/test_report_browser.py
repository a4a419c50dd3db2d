"""The page in a real browser, from a file: by mouse, by keyboard, narrow, and on paper."""

import io
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import tifffile
from PIL import Image

import medsr
from medsr.report import write_report
from medsr.report.figures import map_svg
from medsr.report.invention import SPACE
from medsr.report.layers import label
from tests.test_interval_images import interval
from tests.test_report_trust import saved

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install 'medsr[dev]')")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("a share with spaces")
    part = medsr.read_scan(medsr.NUCLEI).read((slice(14, 16), slice(0, 128), slice(0, 192)))
    tifffile.imwrite(
        root / "cells.ome.tif", part, photometric="minisblack",
        metadata={"axes": "ZYX", "PhysicalSizeX": 0.26, "PhysicalSizeY": 0.26, "PhysicalSizeZ": 0.29},
    )  # fmt: skip
    medsr.upscale_folder(root / "cells.ome.tif", interval(medsr.Lanczos((2, 2))), out=root / "out")
    return write_report(root / "out" / "cells.ome.zarr", out=root, low=root / "cells.ome.tif").as_uri()


@pytest.fixture(params=[(1280, 900), (420, 900)], ids=["wide", "narrow"])
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height = request.param
    shown = browser.new_page(viewport={"width": width, "height": height})
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda wanted: asked.append(wanted.url))
    shown.goto(address)
    yield shown
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    shown.close()


def box(page: Any, selector: str) -> dict[str, float]:
    return dict(page.locator(selector).first.bounding_box())


def at(page: Any) -> str:
    return str(page.evaluate("document.querySelector('.stage').style.getPropertyValue('--at')"))


def move(page: Any) -> str:
    return str(page.evaluate("document.querySelector('.stage').style.getPropertyValue('--move')"))


def test_nothing_overflows_overlaps_or_is_tiny(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    small = page.evaluate(
        """[...document.querySelectorAll('body *')].filter(e => e.children.length === 0 && e.textContent.trim()
           && e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 13).map(e => e.textContent)"""
    )
    assert small == []
    blocks = page.evaluate(
        """[...document.querySelectorAll('header, .banner, main > section, footer')]
           .map(e => e.getBoundingClientRect()).map(r => [r.top, r.bottom])"""
    )
    assert all(first[1] <= second[0] + 1 for first, second in pairwise(blocks))
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert page.evaluate(loaded)


def test_the_picture_keeps_its_proportions(page: Any) -> None:
    stage = box(page, ".stage")
    assert stage["width"] / stage["height"] == pytest.approx(192 / 128, rel=0.01)
    for side in ("left", "right"):
        layer = box(page, f".layer.{side} img")
        assert layer["width"] == pytest.approx(stage["width"], abs=1)
        assert layer["height"] == pytest.approx(stage["height"], abs=1)


def test_everything_can_be_done_by_keyboard(page: Any) -> None:
    names = []
    for _ in range(20):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                """(() => { const e = document.activeElement; const s = getComputedStyle(e);
                return [e.matches('input[type=range]') ? 'range' : e.className || e.tagName,
                        s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2]; })()"""
            )
        )
        if names[-1][0] == "range":
            break
    order = [name for name, _ in names]
    assert order == ["skip", "SELECT", "SELECT", "BUTTON", "BUTTON", "BUTTON", "stage", "range"]
    assert all(seen for _, seen in names)  # the focus is visible
    assert at(page) == "50%"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert at(page) == "52%"
    page.keyboard.press("Home")
    assert at(page) == "0%"
    text = page.locator(".slide input").get_attribute("aria-valuetext")
    assert text == "0 % Measured, 100 % Estimate"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.locator(".zoom output").text_content() == "2.3×"
    before = move(page)
    page.keyboard.press("ArrowRight")
    assert move(page) != before
    page.keyboard.press("0")
    assert move(page).startswith("scale(1)")


def test_another_pair_is_chosen(page: Any) -> None:
    page.locator("select[data-side=left]").select_option("cubic")
    assert page.locator(".tag.left").text_content() == "Cubic"
    assert page.locator(".layer.left").get_attribute("data-name") == "cubic"
    shown = page.evaluate("[...document.querySelectorAll('.layer')].filter(e => e.getClientRects().length).length")
    assert shown == 2


def test_maps_are_layers_too_and_their_names_do_not_meet(page: Any) -> None:
    for side, name in (("left", "interval width"), ("right", SPACE)):
        page.locator(f"select[data-side={side}]").select_option(name)
        assert page.locator(f".layer.{side} img").evaluate("i => i.naturalWidth") == 384
    left, right, stage = box(page, ".tag.left"), box(page, ".tag.right"), box(page, ".stage")
    assert left["x"] + left["width"] < right["x"]
    assert right["x"] + right["width"] <= stage["x"] + stage["width"]
    assert page.locator(".tag.right").text_content() == label(SPACE)


def test_tables_are_seen_whole_where_there_is_room(page: Any) -> None:
    hidden = page.evaluate(
        """[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
           .map(e => e.getAttribute('aria-label'))"""
    )
    assert hidden == [] or page.viewport_size["width"] < 500
    # Plots are never hidden, and keep their proportions.
    plots = page.evaluate(
        """[...document.querySelectorAll('.plot img')].map(i => [i.clientWidth / i.clientHeight,
           i.naturalWidth / i.naturalHeight, i.getBoundingClientRect().right <= document.body.clientWidth + 40])"""
    )
    assert len(plots) >= 6
    assert all(shown == pytest.approx(own, rel=0.02) and seen for shown, own, seen in plots)


def test_the_divider_and_the_picture_are_dragged(page: Any) -> None:
    page.locator(".stage").scroll_into_view_if_needed()
    stage = box(page, ".stage")
    middle = stage["y"] + stage["height"] / 2
    page.mouse.move(stage["x"] + stage["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 4, middle)
    page.mouse.up()
    assert at(page) == "25%"
    page.locator("[data-zoom=in]").click()
    before = move(page)
    assert before.startswith("scale(1.5) translate(-16.66")  # the middle stays in the middle
    page.mouse.move(stage["x"] + stage["width"] * 0.8, middle)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.7, middle + 10)
    page.mouse.up()
    assert move(page) != before
    assert at(page) == "25%"


def test_a_wheel_that_does_nothing_scrolls_the_page(page: Any) -> None:
    page.evaluate("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    stage = box(page, ".stage")
    page.mouse.click(stage["x"] + stage["width"] * 0.7, stage["y"] + stage["height"] / 2)
    assert page.evaluate("document.activeElement.className") == "stage"
    before = page.evaluate("window.scrollY")
    page.mouse.wheel(0, -40)  # zooms in, and the page stays
    page.wait_for_timeout(300)
    assert page.locator(".zoom output").text_content() == "1.1×"
    assert page.evaluate("window.scrollY") == before
    page.mouse.wheel(0, 100)  # zooms out again
    page.wait_for_timeout(300)
    assert page.locator(".zoom output").text_content() == "1×"
    assert page.evaluate("window.scrollY") == before
    page.mouse.wheel(0, 100)  # now it cannot
    page.wait_for_timeout(300)
    assert page.evaluate("window.scrollY") > before


def test_the_scale_bar_tells_the_truth(page: Any) -> None:
    for _ in range(3):
        stage, bar = box(page, ".stage"), box(page, ".bar i")
        length, unit = str(page.locator(".bar span").text_content()).split()
        zoom = float(str(page.locator(".zoom output").text_content()).rstrip("×"))
        assert unit == "µm"
        assert float(length) / (192 * 0.26 / zoom) == pytest.approx(bar["width"] / stage["width"], rel=0.04)
        page.locator("[data-zoom=in]").click()


def test_left_and_right_of_the_divider_are_different_pictures(page: Any, tmp_path: Path) -> None:
    def seen(value: int) -> Any:
        page.locator(".slide input").fill(str(value))
        image = Image.open(io.BytesIO(page.locator(".stage").screenshot())).convert("L")
        return np.asarray(image, float)[60:-60]

    estimate, measured, half = seen(0), seen(100), seen(50)
    middle = half.shape[1] // 2
    assert np.abs(half[:, : middle - 20] - measured[:, : middle - 20]).mean() < 0.5
    assert np.abs(half[:, middle + 20 :] - estimate[:, middle + 20 :]).mean() < 0.5
    assert np.abs(estimate - measured).mean() > 1


def test_paper_shows_all_pictures_and_no_controls(page: Any) -> None:
    page.emulate_media(media="print")
    shown = page.evaluate("[...document.querySelectorAll('.layer')].map(e => e.getClientRects().length)")
    assert shown == [1] * 3 + [0] * 3  # the maps stand again below
    places = page.evaluate("[...document.querySelectorAll('.layer:not(.map)')].map(e => e.getBoundingClientRect().top)")
    assert len(set(places)) > 1 or len(places) <= 2
    assert not page.locator(".controls").is_visible()
    assert page.locator(".banner").is_visible()
    assert page.locator(".layer figcaption").first.is_visible()
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 less its margins
    wide = page.evaluate(
        """[...document.querySelectorAll('table')].map(t => [t.getBoundingClientRect().right,
           t.closest('.plots > div, section').getBoundingClientRect().right])"""
    )
    assert all(table <= room + 1 for table, room in wide)  # paper cannot be scrolled
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_without_scripts_the_pictures_stand_side_by_side(browser: Any, address: str) -> None:
    shown = browser.new_page(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    shown.goto(address)
    assert shown.locator(".layer figcaption").nth(2).is_visible()
    assert not shown.locator(".controls").is_visible()
    shown.close()


def test_the_model_card_is_on_paper(browser: Any, address: str, tmp_path: Path) -> None:
    folder = Path(unquote(urlsplit(address).path)).parent
    saved(tmp_path / "run" / "best.ckpt", 1)
    made = write_report(folder / "out" / "cells.ome.zarr", out=tmp_path, checkpoint=tmp_path / "run")
    for script in (True, False):
        shown = browser.new_page(java_script_enabled=script)
        shown.goto(made.as_uri())
        assert not shown.locator("details pre").is_visible()
        if script:
            shown.evaluate("window.dispatchEvent(new Event('beforeprint'))")
            assert shown.locator("details").get_attribute("open") is not None
            shown.evaluate("window.dispatchEvent(new Event('afterprint'))")
            assert shown.locator("details").get_attribute("open") is None
        shown.emulate_media(media="print")
        card = shown.locator("details pre")
        assert card.is_visible()
        place, footer = card.bounding_box(), shown.locator("footer").bounding_box()
        assert place["height"] > 100
        assert place["y"] + place["height"] <= footer["y"] + 1
        shown.close()


def test_the_data_show_inside_a_flagged_box(browser: Any) -> None:
    """A small region of -15 sigma is blue on the map, whatever is drawn about it."""
    plane = np.zeros((240, 320), np.float32)
    plane[100:103, 150:153] = -15
    uri = map_svg(
        plane,
        limit=5,
        diverging=True,
        extent=(0, 0, 240, 320),
        labels=("y", "x", "sigma"),
        boxes=[(100, 150, 103, 153)],
    )
    shown = browser.new_page(viewport={"width": 600, "height": 500}, device_scale_factor=4)
    shown.set_content(f'<body style="margin:0"><img src="{uri}" style="width:560px">')
    shown.wait_for_function("document.images[0].complete && document.images[0].naturalWidth > 0")
    image = np.asarray(Image.open(io.BytesIO(shown.screenshot())).convert("RGB")).astype(int)
    shown.close()
    red, green, blue = image[:, :1600].transpose(2, 0, 1)  # without the color bar
    deep = (blue > 60) & (blue > red + 40) & (blue > green + 40)
    rows, columns = np.nonzero(deep)
    assert 0.5 * 12 <= np.ptp(rows) + 1 <= 3 * 12  # all three samples, as one square
    # The box: green, beyond the region on all sides, with paper between.
    drawn = (green > red + 30) & (green > blue + 20)
    for axis, inner in ((0, rows), (1, columns)):
        outer = np.nonzero(drawn)[axis]
        assert outer.min() < inner.min() - 4
        assert outer.max() > inner.max() + 4
    assert not drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].any()
    assert not ((red > 120) & (green < 80)).any()  # nothing reads as plus
