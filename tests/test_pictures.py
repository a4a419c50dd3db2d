"""Figures: one window for all panels, holes, sizes, the detailed region, complete files; on real scans."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medsr import pictures
from medsr.data import NUCLEI
from medsr.pictures import HOLE, comparison_png, gray_window, scan_png


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def colors(path: Path) -> set[tuple[int, ...]]:
    codes = np.unique(pixels(path).astype(np.uint32) @ np.array([65536, 256, 1], np.uint32))
    return {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in codes}


def test_one_window_for_all_panels(tmp_path: Path) -> None:
    truth = np.tile(np.linspace(1000, 2000, 64), (64, 1))
    flats = {"low": np.full((32, 32), 1250.0), "estimate": np.full((64, 64), 1500.0), "truth": truth}
    comparison_png(tmp_path / "a.png", flats, window=(1000, 2000), reference="truth", errors=())
    seen = pixels(tmp_path / "a.png")
    # The middle row of the upper panels: each flat has its own gray of the common window.
    counts = {v: int((seen[120] == v).all(1).sum()) for v in (64, 128)}
    assert min(counts.values()) > 300
    comparison_png(tmp_path / "b.png", flats, window=(2000, 1000), reference="truth", errors=())
    turned = pixels(tmp_path / "b.png")
    assert {v: int((turned[120] == v).all(1).sum()) for v in (191, 128)}[191] == counts[64]


def test_the_window_is_that_of_the_reference(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).normal(100, 10, (64, 64))
    bright = {"estimate": truth * 50, "truth": truth}
    comparison_png(tmp_path / "a.png", bright, errors=())
    comparison_png(tmp_path / "b.png", bright, errors=(), window=gray_window(truth.astype(np.float32)))
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()


def test_no_value_is_slate_and_nothing_else_is(tmp_path: Path) -> None:
    plane = np.tile(np.linspace(0, 1, 80), (60, 1)).astype(np.float32)
    scan_png(tmp_path / "whole.png", plane)
    assert HOLE not in colors(tmp_path / "whole.png")
    assert all(r == g == b for r, g, b in colors(tmp_path / "whole.png"))
    plane[10:20, 30:50] = np.nan
    scan_png(tmp_path / "holed.png", plane)
    assert (pixels(tmp_path / "holed.png") == HOLE).all(2).sum() == 10 * 20
    scan_png(tmp_path / "nothing.png", np.full((9, 9), np.nan))
    assert colors(tmp_path / "nothing.png") == {HOLE}
    comparison_png(tmp_path / "figure.png", {"low": plane[::2, ::2], "estimate": plane, "truth": plane})
    assert HOLE in colors(tmp_path / "figure.png")


def test_stored_values_keep_their_gray(tmp_path: Path) -> None:
    plane = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    scan_png(tmp_path / "ramp.png", plane, (0, 65535))
    assert (pixels(tmp_path / "ramp.png")[..., 0] == np.arange(256).reshape(16, 16)).all()


def test_large_planes_are_averaged(tmp_path: Path) -> None:
    board = (np.indices((4000, 3000)).sum(0) % 2).astype(np.uint8) * 200
    scan_png(tmp_path / "scan.png", board, (0, 200))
    seen = pixels(tmp_path / "scan.png")
    assert seen.shape[:2] == (1600, 1200)
    assert seen.min() > 100
    assert seen.max() < 156
    comparison_png(tmp_path / "figure.png", {"low": board[::2, ::2], "estimate": board, "truth": board})
    assert pixels(tmp_path / "figure.png").shape[1] < 3000


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (24, 25), (700, 900)])
def test_any_size_can_be_drawn(shape: tuple[int, int], tmp_path: Path) -> None:
    plane = np.random.default_rng(0).normal(size=shape)
    comparison_png(
        tmp_path / "a.png", {"estimate": plane, "truth": plane}, spacing_um=(0.3, 0.1), title="title " * 40, units="um"
    )
    assert pixels(tmp_path / "a.png").size


def test_the_same_scans_give_the_same_file(tmp_path: Path) -> None:
    truth = tifffile.imread(NUCLEI)[15]
    low = truth.reshape(128, 2, 128, 2).mean((1, 3))
    panels = {"low": low, "estimate": np.kron(low, np.ones((2, 2))), "truth": truth}
    for name in ("a.png", "b.png"):
        comparison_png(tmp_path / name, panels, spacing_um=(0.26, 0.26), notes={"estimate": "29.90 dB"}, title="nuclei")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_region_has_texture_and_is_no_label() -> None:
    random = np.random.default_rng(0)
    plane = np.zeros((400, 400), np.float32)
    plane[20:60, 20:120] = 5000  # a label with hard edges
    plane[200:300, 220:340] = 300 + random.normal(0, 60, (100, 120))
    top, left, bottom, right = pictures.detailed_region(plane, (80, 80), (4, 4))
    assert top >= 196
    assert left >= 216
    assert bottom <= 304
    assert right <= 344
    assert top % 4 == left % 4 == 0
    plane[200:300, 220:340] = np.nan
    box = pictures.detailed_region(plane, (80, 80), (4, 4))
    assert np.isfinite(plane[box[0] : box[2], box[1] : box[3]]).all()


def test_the_region_of_a_large_plane_lies_on_whole_coarse_samples() -> None:
    random = np.random.default_rng(0)
    plane = np.zeros((4100, 4300), np.float32)
    plane[3900:4100, 4100:4300] = random.normal(0, 60, (200, 200))
    top, left, bottom, right = pictures.detailed_region(plane, (128, 128), (4, 4))
    assert (top % 4, left % 4, bottom - top, right - left) == (0, 0, 128, 128)
    assert top > 3850
    assert left > 4050
    assert bottom <= 4100
    assert right <= 4300


def test_errors_have_one_symmetric_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.zeros((64, 64))
    panels = {"cubic": truth + 4, "estimate": truth - 2, "truth": truth}
    drawn: list[str] = []
    draw = pictures._Figure.draw_column

    def spy(figure: pictures._Figure, index: int, column: pictures._Panel, *rest: object) -> None:
        drawn.append(f"{column.label}: {column.note}")
        draw(figure, index, column, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures._Figure, "draw_column", spy)
    comparison_png(tmp_path / "a.png", panels, errors=("cubic", "estimate"), units="um")
    assert drawn[-2:] == ["cubic - truth: blue -4 to red 4 um", "estimate - truth: blue -4 to red 4 um"]
    seen = colors(tmp_path / "a.png")
    red, blue = (tuple(int(v) for v in c) for c in (pictures.RED, pictures.BLUE))
    assert red in seen
    assert blue not in seen  # the estimate's error is half the scale


def test_mistakes_are_named_and_leave_nothing(tmp_path: Path) -> None:
    plane = np.zeros((12, 12))
    with pytest.raises(ValueError, match=r"panel 'low': expected a size that divides \(12, 12\), found \(5, 5\)"):
        comparison_png(tmp_path / "a.png", {"low": np.zeros((5, 5)), "truth": plane})
    with pytest.raises(ValueError, match="reference: expected one of truth; found 'original'"):
        comparison_png(tmp_path / "a.png", {"truth": plane}, reference="original")
    with pytest.raises(ValueError, match="expected 2D planes"):
        comparison_png(tmp_path / "a.png", {"truth": plane[0]})
    with pytest.raises(ValueError, match="expected 2D planes, found none"):
        comparison_png(tmp_path / "a.png", {})
    blocked = tmp_path / "folder.png"
    (blocked / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"folder\.png"):
        scan_png(blocked, plane)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]
    scan_png(tmp_path / "new" / "a.png", plane)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
