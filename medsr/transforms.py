"""The MONAI face: an ImageReader for scans, dictionary transforms LoadScand, RandPatchd and RandDegraded."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import MapTransform, Randomizable
from numpy.typing import NDArray

from medsr.degradation.range import DegradationRange
from medsr.holes import fill_holes
from medsr.io import READERS, Source, read_scan
from medsr.methods.kernel_code import KERNEL_SIZE, blur_of, render_kernel
from medsr.scan import Factor, Intensity, Scan, ScanError, validate_factor
from medsr.training.foreground import ForegroundMap, patch_region

__all__ = ["LoadScand", "RandDegraded", "RandPatchd", "ScanReader"]


class ScanReader(ImageReader):  # type: ignore[misc]  # MONAI has no types
    """Every format medsr reads, for `monai.transforms.LoadImage(reader=ScanReader())` and `LoadImaged`.

    The array is float32 in unit intensity (0 is black, 1 is white; MONOCHROME1 is turned), axes as in the file,
    slowest first; time and channels, where a scan has them, become one channel axis. The metadata hold `affine` (in
    millimeters, as MONAI has it; 1 along an axis of unknown spacing), `spacing_um` (None where unknown), `origin_um`,
    `axes`, `black`, `white`, `dtype` and `units`, so that stored values can be had again; nothing of a patient.

    Args:
        series: which series of files that hold several.
    """

    def __init__(self, series: str | int | None = None) -> None:
        super().__init__()
        self.series = series

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:
        """Whether some reader takes the file (or all of the files); looks at content, not at the suffix."""
        return all(any(reader.accepts(path) for reader in READERS) for path in _paths(filename))

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> list[Scan]:
        """Scans of the files, lazy.

        Args:
            data: file or files.
            kwargs: `series`, to choose another one than the reader's.

        Raises:
            ScanError: a file is no scan; it is named with the reason.
        """
        return [read_scan(path, series=kwargs.get("series", self.series)) for path in _paths(data)]

    def get_data(self, img: Sequence[Scan] | Scan) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The array and the metadata; several scans of one shape are stacked along a new first axis of channels.

        Raises:
            ScanError: scans of different shapes.
        """
        scans = [img] if isinstance(img, Scan) else list(img)
        units = [_channels(scan, scan.intensity.to_unit(scan.read())) for scan in scans]
        meta = _meta(scans[0])
        if len(units) == 1:
            return units[0], meta
        if len({unit.shape for unit in units}) > 1:
            raise ScanError(f"expected scans of one shape to stack, found {sorted({unit.shape for unit in units})}")
        meta["original_channel_dim"] = 0
        return np.stack(units) if units[0].ndim == len(_spatial(scans[0])) else np.concatenate(units), meta


class LoadScand(MapTransform):  # type: ignore[misc]
    """Open scans by their path, for the start of a pipeline.

    Args:
        keys: where paths (or sources of `find_scans`) are, and where the scans will be.
        lazy: True: a `Scan` that is read where and when it is needed, for RandPatchd; scans larger than memory too.
            False: a MetaTensor (channels, *spatial), float32 in unit intensity, metadata as ScanReader gives them.
        series: which series of files that hold several.
        allow_missing_keys: leave out keys that an item lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        lazy: bool = True,
        series: str | int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lazy = lazy
        self.series = series

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with scans in place of paths."""
        item = dict(data)
        for key in self.key_iterator(item):
            found = item[key]
            source: str | Path | Source = found if isinstance(found, (Source, Path)) else str(found)
            scan = read_scan(source, series=self.series)
            item[key] = scan if self.lazy else _tensor(scan, scan.read())
        return item


class RandPatchd(Randomizable, MapTransform):  # type: ignore[misc]
    """Cut a random patch out of each scan, where there is tissue or signal; only the patch is read.

    The place is drawn on the scan of the first key and used for all, so that scans of one shape stay aligned. Where a
    scan has more axes than the patch, one plane (time point, channel) is drawn. Holes (NaN, padding) are avoided where
    there is room, and filled from their rim.

    Args:
        keys: where lazy scans are (see LoadScand), and where MetaTensors (1, *patch) in unit intensity will be.
        patch: samples of the patch for the last axes.
        foreground: share of the patch that must lie above the scan's threshold, where the scan has such places.
        margin: samples added on each side for each axis of the patch, for a blur to look at; beyond the scan its edge
            samples are repeated.
        allow_missing_keys: leave out keys that an item lacks.

    Raises (when called):
        ScanError: the scan is smaller than the patch, or no lazy scan.
    """

    def __init__(
        self,
        keys: KeysCollection,
        patch: Sequence[int],
        *,
        foreground: float = 0.25,
        margin: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.patch = tuple(int(n) for n in patch)
        self.foreground = foreground
        self.margin = tuple(margin) if margin is not None else (0,) * len(self.patch)
        self.place: tuple[int, ...] = ()
        self._maps: dict[int, tuple[weakref.ref[Any], Intensity, ForegroundMap]] = {}

    def randomize(self, data: Scan) -> None:
        """Draw the first sample of the patch."""
        self.place = self._map(data).draw(self.R, self.foreground)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with patches in place of scans."""
        item = dict(data)
        shape: tuple[int, ...] | None = None
        for key in self.key_iterator(item):
            scan = item[key]
            if not isinstance(scan, Scan):
                raise ScanError(f"RandPatchd: expected a lazy scan at {key!r}, found {type(scan)}; use LoadScand first")
            if shape is None:
                shape = scan.shape
                self.randomize(scan)
            elif scan.shape != shape:
                raise ScanError(f"RandPatchd: expected scans of one shape, found {shape} and {scan.shape} at {key!r}")
            item[key] = cut_patch(scan, self.place, self.patch, margin=self.margin)
        return item

    def _map(self, scan: Scan) -> ForegroundMap:
        """The scan's foreground, found once for as long as its data exist."""
        key = id(scan.data)
        if key in self._maps:
            data, intensity, found = self._maps[key]
            if data() is scan.data and intensity == scan.intensity:
                return found
        found = ForegroundMap(scan, self.patch)
        self._maps = {k: entry for k, entry in self._maps.items() if entry[0]() is not None}
        self._maps[key] = (weakref.ref(scan.data), scan.intensity, found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


class RandDegraded(Randomizable, MapTransform):  # type: ignore[misc]
    """Make the coarse patch of each fine one, by a degradation drawn from a range.

    Args:
        keys: where fine patches (1, *size) in unit intensity are; they are cropped by the margin.
        degradation: what to draw from. Widths in micrometers need the fine spacing: `spacing_um` in the metadata of
            the patch, as RandPatchd and ScanReader leave it.
        factor: fine samples for each coarse one, for the last axes.
        low_keys: where the coarse patches will be, one for each of `keys`.
        margin: coarse samples cut off each side after the degradation, for each axis of the factor; the patch has to
            be that much larger.
        kernel_keys: where the blur kernels that were drawn will be, on a piece of the fine grid as `render_kernel`
            makes them, float32, one for each of `keys`; None: nowhere.
        kernel_size: fine samples of a kernel along each axis, odd; None: 21 in 2D, 15 in 3D.
        allow_missing_keys: leave out keys that an item lacks.

    Raises (when called):
        ValueError: a width is in micrometers and the spacing is unknown, a size is no multiple of the factor, or a
            kernel is asked for and wider than its piece of the grid, or there are two of them.
    """

    def __init__(
        self,
        keys: KeysCollection,
        degradation: DegradationRange,
        factor: Factor,
        *,
        low_keys: KeysCollection = "low",
        margin: Sequence[int] | None = None,
        kernel_keys: KeysCollection | None = None,
        kernel_size: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.degradation = degradation
        self.factor = validate_factor(factor)
        self.low_keys: tuple[Hashable, ...] = (low_keys,) if isinstance(low_keys, str) else tuple(low_keys)
        self.margin = tuple(margin) if margin is not None else (0,) * len(self.factor)
        named = (kernel_keys,) if isinstance(kernel_keys, str) else kernel_keys
        self.kernel_keys: tuple[Hashable, ...] = (None,) * len(self.keys) if named is None else tuple(named)
        self.kernel_size = kernel_size or KERNEL_SIZE.get(len(self.factor), 0)
        self.seed = 0
        for kind, found in (("low", self.low_keys), ("kernel", self.kernel_keys)):
            if len(found) != len(self.keys):
                raise ValueError(f"RandDegraded: expected a {kind} key for each of {self.keys}, found {found}")

    def randomize(self, data: Any = None) -> None:  # noqa: ARG002 (the name MONAI uses)
        """Draw the seed from which degradation and noise follow."""
        self.seed = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with coarse patches added and fine ones cropped."""
        item = dict(data)
        for key, low_key, kernel_key in self.key_iterator(item, self.low_keys, self.kernel_keys):
            self.randomize()
            high = item[key]
            spacing = _meta_spacing(high, len(self.factor))
            generator = torch.Generator().manual_seed(self.seed)
            degradation = self.degradation.sample(generator, self.factor, spacing)
            plain = high.as_tensor() if isinstance(high, MetaTensor) else torch.as_tensor(high)
            low = degradation(plain.float()[None], generator)[0]
            item[low_key] = _cropped(low, self.margin)
            if kernel_key is not None:
                item[kernel_key] = render_kernel(blur_of(degradation), self.factor, spacing, size=self.kernel_size)
            item[key] = _cropped(high, tuple(m * f for m, f in zip(self.margin, self.factor, strict=True)))
        return item


def cut_patch(scan: Scan, first: tuple[int, ...], patch: tuple[int, ...], *, margin: tuple[int, ...]) -> MetaTensor:
    """The patch of a scan that starts at `first`, with a margin around it; (1, *patch + 2 margin), unit intensity.

    Beyond the scan its edge samples are repeated; holes (NaN, padding) are filled from their rim.
    """
    lead = len(first) - len(patch)
    region = list(patch_region(first, patch))
    pads = []
    for axis, m in enumerate(margin, start=lead):
        low, high = region[axis].start - m, region[axis].stop + m
        region[axis] = slice(max(low, 0), min(high, scan.shape[axis]))
        pads.append((max(-low, 0), max(high - scan.shape[axis], 0)))
    stored = scan.read(tuple(region))
    stored = stored.reshape(stored.shape[lead:])
    if any(any(pad) for pad in pads):
        stored = np.pad(stored, pads, mode="edge")
    unit = scan.intensity.to_unit(stored)
    holes = scan.intensity.holes(stored)
    if holes.any():
        unit = fill_holes(unit, holes, dims=len(patch))
    spacing = scan.grid.spacing_um[lead:] if scan.grid.spacing_um is not None else None
    return MetaTensor(torch.from_numpy(unit)[None], meta={"spacing_um": spacing})


def _cropped(patch: Any, margin: tuple[int, ...]) -> Any:
    if not any(margin):
        return patch
    sizes = patch.shape[-len(margin) :]
    return patch[(..., *(slice(m, n - m) for m, n in zip(margin, sizes, strict=True)))]


def _meta_spacing(patch: Any, axes: int) -> tuple[float | None, ...] | None:
    """Fine spacing of the last axes in the metadata of a patch; None where there is none."""
    meta = patch.meta if isinstance(patch, MetaTensor) else {}
    spacing = meta.get("spacing_um")
    if spacing is None or isinstance(spacing, str):  # MONAI writes "none" for None
        return None
    return tuple(None if s is None else float(s) for s in spacing)[-axes:]


def _paths(filename: Sequence[str | Path] | str | Path) -> list[Path]:
    return [Path(filename)] if isinstance(filename, (str, Path)) else [Path(name) for name in filename]


def _spatial(scan: Scan) -> tuple[int, ...]:
    return tuple(i for i, axis in enumerate(scan.grid.axes) if axis in ("z", "y", "x"))


def _channels(scan: Scan, unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Time and channels as one first axis; the array itself where the scan has neither."""
    spatial = _spatial(scan)
    if len(spatial) == unit.ndim:
        return unit
    return unit.reshape(-1, *(unit.shape[i] for i in spatial))


def _meta(scan: Scan) -> dict[str, Any]:
    spatial = _spatial(scan)
    spacing = scan.grid.spacing_um
    affine = np.eye(len(spatial) + 1)
    for i, axis in enumerate(spatial):
        known = None if spacing is None else spacing[axis]
        if known is not None:
            affine[i, i] = known / 1000
            affine[i, -1] = scan.grid.origin_um[axis] / 1000
    return {
        "affine": affine,
        "original_affine": affine.copy(),
        "spatial_shape": np.array([scan.shape[i] for i in spatial]),
        "original_channel_dim": float("nan") if len(spatial) == len(scan.shape) else 0,
        "spacing_um": None if spacing is None else tuple(spacing[i] for i in spatial),
        "origin_um": tuple(scan.grid.origin_um[i] for i in spatial),
        "axes": "".join(scan.grid.axes),
        "black": scan.intensity.black,
        "white": scan.intensity.white,
        "dtype": str(scan.intensity.dtype),
        "units": scan.intensity.units,
    }


def _tensor(scan: Scan, stored: NDArray[Any]) -> MetaTensor:
    unit = _channels(scan, scan.intensity.to_unit(stored))
    meta = _meta(scan)
    meta["original_channel_dim"] = 0
    channels = unit if unit.ndim > len(_spatial(scan)) else unit[None]
    return MetaTensor(torch.from_numpy(channels), meta={**meta, "affine": torch.from_numpy(meta["affine"])})
