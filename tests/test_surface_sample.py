"""The shipped surface is measured from the shipped nuclei; this file is its provenance and makes it again.

python -m tests.test_surface_sample    # writes medsr/data/surface_allen_cells3d_nuclei.ome.tif
"""

import numpy as np
import tifffile
from scipy import ndimage
from skimage.filters import threshold_otsu

from medsr.data import NUCLEI, SURFACE
from medsr.io import read_scan

SIGMAS_ABOVE_BACKGROUND = 5.0


def measure_surface(stack: np.ndarray, step_um: float) -> np.ndarray:
    """Height of the brightest plane for each (y, x), float32, in the unit of `step_um`; NaN where there is none.

    The stack (z, y, x) is smoothed by a Gaussian of one sample. The height is the vertex of the parabola through the
    brightest sample and its two neighbors in z. It is NaN where that sample is not at least five standard deviations
    above the background (median and MAD of the columns whose brightest sample is below Otsu's threshold), and where
    it is the first or last plane, so that the maximum itself was not seen.
    """
    smooth = ndimage.gaussian_filter(stack.astype(np.float64), 1.0)
    peak, plane = smooth.max(axis=0), smooth.argmax(axis=0)
    background = smooth[:, peak < threshold_otsu(peak)]
    level = np.median(background)
    deviation = 1.4826 * np.median(np.abs(background - level))
    inner = np.clip(plane, 1, len(stack) - 2)
    below, middle, above = (np.take_along_axis(smooth, (inner + d)[None], 0)[0] for d in (-1, 0, 1))
    bend = below - 2 * middle + above
    vertex = inner + 0.5 * (below - above) / np.where(bend < 0, bend, -np.inf)
    seen = (plane == inner) & (bend < 0) & (peak > level + SIGMAS_ABOVE_BACKGROUND * deviation)
    return np.where(seen, vertex * step_um, np.nan).astype(np.float32)


def write_surface() -> None:
    nuclei = read_scan(NUCLEI)
    step = nuclei.grid.spacing_of("z")
    assert step is not None
    metadata = {
        "axes": "YX",
        "PhysicalSizeX": nuclei.grid.spacing_of("x"),
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": nuclei.grid.spacing_of("y"),
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": "height of the brightest plane"},
        "MapAnnotation": {"Namespace": "medsr/intensity", "units": "um"},
    }
    heights = measure_surface(nuclei.read(), step)
    tifffile.imwrite(SURFACE, heights, ome=True, compression="zlib", predictor=3, metadata=metadata)


def test_the_shipped_surface_is_what_the_nuclei_say() -> None:
    nuclei, surface = read_scan(NUCLEI), read_scan(SURFACE)
    expected = measure_surface(nuclei.read(), 0.29)
    np.testing.assert_allclose(surface.read(), expected, rtol=0, atol=1e-5)


def test_the_shipped_surface_is_a_calibrated_height_map_with_holes() -> None:
    surface = read_scan(SURFACE)
    heights = surface.read()
    assert surface.grid.axes == ("y", "x")
    assert surface.grid.spacing_um == (0.26, 0.26)
    assert surface.intensity.dtype == np.float32
    assert surface.intensity.units == "um"
    assert surface.warnings == ()
    assert 0.2 < np.isnan(heights).mean() < 0.7
    assert np.nanmin(heights) >= 0.29 * 0.5
    assert np.nanmax(heights) <= 0.29 * 28.5
    assert surface.intensity.black < surface.intensity.white
    assert SURFACE.stat().st_size < 300_000


if __name__ == "__main__":
    write_surface()
