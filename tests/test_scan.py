"""Grid, Intensity, Scan and the robust intensity line."""

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsr.data import MAMMOGRAM
from medsr.scan import Grid, Intensity, Scan, robust_intensity, sample_values, validate_factor

LINES = [(0, 65535), (97, 242), (242, 97), (89, 312), (0, 893), (1089, 2532), (60000, 60001), (-1024, 3071)]


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint8", "int8"])
@pytest.mark.parametrize(("black", "white"), LINES)
def test_every_stored_value_survives(dtype: str, black: float, white: float) -> None:
    info = np.iinfo(dtype)
    stored = np.arange(info.min, info.max + 1).astype(dtype)
    line = Intensity(black, white, np.dtype(dtype))
    unit = line.to_unit(stored)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(line.to_stored(unit), stored)


@given(st.integers(-32768, 32767), st.integers(-32768, 32767))
def test_every_stored_value_survives_any_line(black: int, white: int) -> None:
    if black == white:
        return
    line = Intensity(black, white, np.dtype("int16"))
    stored = np.arange(-32768, 32768, 37).astype("int16")
    np.testing.assert_array_equal(line.to_stored(line.to_unit(stored)), stored)


def test_to_unit_never_clips_and_to_stored_clips_to_the_dtype_only() -> None:
    line = Intensity(100, 200, np.dtype("uint16"))
    assert line.to_unit(np.array([0, 300], "uint16")).tolist() == [-1.0, 2.0]
    assert line.to_stored(np.array([-5.0, 2.5, 1e9])).tolist() == [0, 350, 65535]


def test_monochrome1_keeps_the_order_of_stored_values() -> None:
    line = Intensity(4095, 0, np.dtype("uint16"))
    assert line.to_unit(np.array([4095, 0], "uint16")).tolist() == [0.0, 1.0]


def test_float_heights_with_holes_come_back() -> None:
    heights = np.array([1e-7, np.nan, 3.25e-7], "float32")
    line = Intensity(0, 5e-7, np.dtype("float32"), units="m")
    np.testing.assert_allclose(line.to_stored(line.to_unit(heights)), heights, rtol=1e-6)


def test_a_nan_meets_an_integer_dtype_loudly() -> None:
    with pytest.raises(ValueError, match="expected finite values for uint16"):
        Intensity(0, 1, np.dtype("uint16")).to_stored(np.array([np.nan]))


@pytest.mark.parametrize("bad", [(1, 1), (float("nan"), 1), (0, float("inf"))])
def test_a_line_without_length_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="two different finite values"):
        Intensity(*bad, np.dtype("uint16"))


@pytest.mark.parametrize("factor", [(2, 2), (4, 4), (1, 2, 2), (4, 1, 1), (3,)])
def test_refine_keeps_the_field_of_view_and_coarsen_undoes_it(factor: tuple[int, ...]) -> None:
    grid = Grid(("z", "y", "x"), (0.29, 0.26, 0.13), (10.0, -3.0, 0.5))
    fine = grid.refine(factor)
    full = grid.pad_factor(factor)
    for i, f in enumerate(full):
        assert fine.spacing_um is not None
        assert grid.spacing_um is not None
        cell, fine_cell = grid.spacing_um[i], fine.spacing_um[i]
        assert cell is not None
        assert fine_cell is not None
        assert fine_cell == pytest.approx(cell / f)
        # The outer edge of the first cell does not move.
        assert fine.origin_um[i] - fine_cell / 2 == pytest.approx(grid.origin_um[i] - cell / 2)
    back = fine.coarsen(factor)
    assert back.spacing_um == pytest.approx(grid.spacing_um)
    assert back.origin_um == pytest.approx(grid.origin_um)


def test_unknown_spacing_stays_unknown() -> None:
    assert Grid(("y", "x")).refine((2, 2)).spacing_um is None
    assert Grid(("y", "x"), (None, None)).spacing_um is None
    assert Grid(("z", "y", "x"), (None, 2.0, 2.0)).refine((2, 2, 2)).spacing_um == (None, 1.0, 1.0)


@pytest.mark.parametrize(
    ("axes", "spacing"),
    [(("x", "y"), None), (("y", "y"), None), (("y", "x"), (1.0,)), (("y", "x"), (0.0, 1.0)), ((), None)],
)
def test_a_grid_that_makes_no_sense_is_refused(axes: tuple[str, ...], spacing: tuple[float, ...] | None) -> None:
    with pytest.raises(ValueError, match="expected"):
        Grid(axes, spacing)  # type: ignore[arg-type]


def test_channels_cannot_be_refined() -> None:
    with pytest.raises(ValueError, match="spatial axis"):
        Grid(("c", "y", "x")).refine((2, 2, 2))


@pytest.mark.parametrize("factor", [0, (2, 0), (1, 2, 2, 2), (1.5, 2), ()])
def test_a_bad_factor_is_refused(factor: object) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        validate_factor(factor)  # type: ignore[arg-type]


def test_scan_refuses_data_that_contradict_grid_or_intensity() -> None:
    grid, line = Grid(("y", "x")), Intensity(0, 1, np.dtype("uint8"))
    with pytest.raises(ValueError, match="axes"):
        Scan(np.zeros((2, 2, 2), "uint8"), grid, line)
    with pytest.raises(ValueError, match="uint8"):
        Scan(np.zeros((2, 2), "uint16"), grid, line)
    with pytest.raises(ValueError, match="at least one sample"):
        Scan(np.zeros((0, 2), "uint8"), grid, line)
    assert Scan(np.zeros((2, 2), ">u2"), grid, Intensity(0, 1, np.dtype("uint16"))).read().dtype == np.dtype("uint16")


def test_neither_a_hot_pixel_nor_a_saturated_edge_moves_the_line() -> None:
    film = pydicom.dcmread(MAMMOGRAM).pixel_array
    honest = robust_intensity(film, film.dtype)
    assert honest.black == 0
    assert 40000 < honest.white < 46000
    hot = film.copy()
    hot[100, 100] = 65535
    edged = film.copy()
    edged[:, :120] = 65535
    blurred_edge = edged.copy()
    blurred_edge[:, 100:120] = np.linspace(65535, 65000, 20).astype("uint16")
    for spoiled in (hot, edged, blurred_edge):
        line = robust_intensity(spoiled, film.dtype)
        assert line.black == honest.black
        assert line.white == pytest.approx(honest.white, rel=0.02)


def test_a_hot_pixel_over_a_signal_of_49() -> None:
    dim = np.random.default_rng(0).poisson(30, (64, 64)).astype("uint16")
    dim[5, 5] = 60028
    assert robust_intensity(dim, dim.dtype).white < 60


def test_padding_is_left_out_of_the_line() -> None:
    values = np.concatenate([np.full(5000, -2000), np.arange(-1000, 1000)]).astype("int16")
    assert robust_intensity(values, values.dtype, padding=(-2000, -1990)).black > -1000


def test_a_constant_scan_gets_a_line_and_nan_alone_none() -> None:
    assert robust_intensity(np.full(9, 7, "uint16"), "uint16") == Intensity(7, 8, np.dtype("uint16"))
    with pytest.raises(ValueError, match="none"):
        robust_intensity(np.full(9, np.nan, "float32"), "float32")


def test_sampling_a_huge_image_reads_little() -> None:
    class Huge:
        shape = (1_000, 100_000, 100_000)
        dtype = np.dtype("uint16")
        read = 0

        def __getitem__(self, region: tuple[slice, ...]) -> np.ndarray:
            sizes = [s.stop - s.start for s in region]
            Huge.read += int(np.prod(sizes))
            return np.ones(sizes, "uint16")

    assert sample_values(Huge()).size > 1e6
    assert Huge.read < 1e8
