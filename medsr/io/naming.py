"""Names of scans: which endings files have, and what a result is called."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from medsr.io import picture, tiff
from medsr.io.source import Source

__all__ = [
    "DICOM_SUFFIXES",
    "FOREIGN",
    "IMAGE_SUFFIXES",
    "PLANE_SUFFIXES",
    "fit_for_files",
    "scan_name",
    "unique",
]

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
DOUBLE_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf2", ".ome.tf8", ".ome.zarr")
IMAGE_SUFFIXES = (*tiff.SUFFIXES, *picture.SUFFIXES, *DICOM_SUFFIXES)
PLANE_SUFFIXES = (*tiff.SUFFIXES, ".png")
FOREIGN = {  # images that are not read here: said, not dropped in silence
    ".jpg": "a lossy picture", ".jpeg": "a lossy picture", ".bmp": "a picture", ".gif": "a picture",
    ".czi": "Zeiss CZI", ".nd2": "Nikon ND2", ".lif": "Leica LIF", ".oib": "Olympus OIB", ".oir": "Olympus OIR",
    ".vsi": "Olympus VSI", ".ims": "Imaris", ".dv": "DeltaVision", ".mrc": "MRC", ".nii": "NIfTI",
    ".mha": "MetaImage", ".mhd": "MetaImage", ".nrrd": "NRRD", ".h5": "HDF5", ".hdf5": "HDF5", ".npy": "NumPy",
}  # fmt: skip
LONGEST_NAME = 180


def scan_name(path: Path) -> str:
    """Name of a file or folder without its endings, fit for a file name on any system."""
    name = path.name or path.resolve().name
    lower = name.lower()
    for suffix in (*DOUBLE_SUFFIXES, ".zarr", *IMAGE_SUFFIXES):
        if lower.endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
            break
    return fit_for_files(name)


def fit_for_files(name: str) -> str:
    """A name without what a file system or a shell may not like."""
    readable = os.fsencode(name).decode("utf-8", "replace")
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", readable).strip(" .")[-LONGEST_NAME:] or "scan"


def unique(sources: list[Source], root: Path) -> list[Source]:
    """The same sources with names that differ even where case does not count: the name, else the path from `root`,
    else that with the ending of the file, else a number."""
    names = [s.name for s in sources]
    for form in (_path_name, _full_name):
        for members in _colliding(names):
            for i in members:
                names[i] = form(sources[i], root)
    for members in _colliding(names):
        taken = {n.casefold() for n in names}
        for i in members[1:]:
            number = 2
            while f"{names[i]}_{number}".casefold() in taken:
                number += 1
            names[i] = f"{names[i]}_{number}"
            taken.add(names[i].casefold())
    return [replace(s, name=n) for s, n in zip(sources, names, strict=True)]


def _colliding(names: list[str]) -> list[list[int]]:
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        by_name[name.casefold()].append(i)
    return [members for members in by_name.values() if len(members) > 1]


def _path_name(source: Source, root: Path) -> str:
    inside = source.files[0].relative_to(root) if source.files[0].is_relative_to(root) else source.files[0]
    if len(source.files) > 1 and source.path.is_dir():  # a series or stack: its folder, then its first file
        return fit_for_files("_".join((*inside.parts[:-1], scan_name(inside))))
    return fit_for_files("_".join((*inside.parts[:-1], source.name)))


def _full_name(source: Source, root: Path) -> str:
    inside = source.files[0].relative_to(root) if source.files[0].is_relative_to(root) else source.files[0]
    return fit_for_files("_".join(inside.parts).replace(".", "_"))
