"""The shipped scans: a mammogram, a microscopy stack and the surface measured from it."""

from pathlib import Path
from typing import Literal

__all__ = ["MAMMOGRAM", "NUCLEI", "SURFACE", "SampleName", "sample_path"]

SampleName = Literal["mammogram", "nuclei", "surface"]

_HERE = Path(__file__).parent
MAMMOGRAM = _HERE / "mammogram_cbis_ddsm_P_00173_LEFT_CC_crop.dcm"
NUCLEI = _HERE / "microscopy_allen_cells3d_nuclei_30z.ome.tif"
SURFACE = _HERE / "surface_allen_cells3d_nuclei.ome.tif"


def sample_path(name: SampleName) -> Path:
    """File of a shipped sample by its name in a recipe."""
    return {"mammogram": MAMMOGRAM, "nuclei": NUCLEI, "surface": SURFACE}[name]
