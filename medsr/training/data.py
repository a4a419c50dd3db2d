"""Training data: which scans are learned from, patches in an order that can be gone on with at any step."""

from __future__ import annotations

import logging
import os
import signal
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from monai.transforms import MapTransform, RandFlipd, Randomizable, RandRotate90d
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medsr.io import Source, read_scan
from medsr.pairing import cropped, resampled
from medsr.recipe import DataRecipe, IkcRecipe, IntensityRule, Recipe
from medsr.scan import Scan
from medsr.training.pair_patches import RandPairPatchd
from medsr.transforms import RandDegraded, RandPatchd

__all__ = [
    "PatchDataset",
    "PatchLoader",
    "PatchSampler",
    "Portion",
    "Shelf",
    "loader_workers",
    "patch_transforms",
    "window_of",
]

log = logging.getLogger("medsr.training")

Draw = tuple[int, int]
Pair = tuple[Tensor, ...]

MOST_LOADERS = 8
"""Processes that read patches for one GPU, where the recipe names no number."""

WIDEST_MARGIN = 64
"""Coarse samples read around a patch at most; beyond, the kernels of a microscope or detector hold next to nothing."""

WINDOW_BYTES = 2 * 2**30
"""Stored values of the scans that patches are drawn from at a time, where not all scans fit."""


@dataclass(frozen=True, slots=True)
class Portion:
    """A scan, or a band of its rows, that patches are drawn from.

    Attributes:
        source: the scan's files.
        rows: first and last + 1 row of the band; None: all.
        crop: first and last + 1 sample for each axis, before the rows are counted; (): all.
        shift: samples by which it is moved back, for each axis (`resampled`); (): none.
        line: black and white of its intensity line; None: by the recipe's rule.
        low: of a real pair the coarse scan of the same field; None: it is made from this one.
    """

    source: Source
    rows: tuple[int, int] | None = None
    crop: tuple[tuple[int, int], ...] = ()
    shift: tuple[float, ...] = ()
    line: tuple[float, float] | None = None
    low: Portion | None = None

    @property
    def scan(self) -> Portion:
        """What decides its samples: the portion without its partner."""
        return self if self.low is None else replace(self, low=None)

    def band(self, rows: tuple[int, int], step: int) -> Portion:
        """A band of its rows, and of its partner's where it has one; `step` rows make one of the partner's."""
        low = None if self.low is None else self.low.band((rows[0] // step, rows[1] // step), 1)
        return replace(self, rows=rows, low=low)


class Shelf:
    """Scans, opened when asked for; those used last are held in memory as far as they fit.

    A scan too large to be held is read region by region from its files. Each process opens its own, because open
    files cannot be shared by processes; what was held before the process was forked stays shared. What is held changes
    only how fast a patch is read, never which patch it is.

    Args:
        recipe: names the series and the intensity rule.
        budget: bytes of stored values to hold; None: a quarter of the free memory, shared by the loaders' workers of
            all processes of a run on this machine.
    """

    def __init__(self, recipe: Recipe, *, budget: int | None = None) -> None:
        self._series: str | int | None = recipe.data.series
        self._rule: IntensityRule = recipe.intensity
        sharers = max(1, loader_workers(recipe)) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._budget = int(psutil.virtual_memory().available) // 4 // sharers if budget is None else budget
        self._scans: OrderedDict[Portion, Scan] = OrderedDict()
        self._owner = os.getpid()

    def open(self, portion: Portion) -> Scan:
        """The scan of a portion, its intensity line by the recipe's rule.

        Raises:
            ScanError: the files are no scan, or one of the portion's shape no longer.
        """
        if self._owner != os.getpid():
            held = {p: scan for p, scan in self._scans.items() if isinstance(scan.data, np.ndarray)}
            self._scans, self._owner = OrderedDict(held), os.getpid()
        portion = portion.scan
        if portion not in self._scans:
            self._scans[portion] = self._held(_part(self._read(portion.source), portion))
            while len(self._scans) > 1 and sum(map(_bytes, self._scans.values())) > self._budget:
                self._scans.popitem(last=False)
        self._scans.move_to_end(portion)
        return self._scans[portion]

    def _read(self, source: Source) -> Scan:
        whole = Portion(source)
        return self._scans[whole] if whole in self._scans else self._rule.apply(read_scan(source, series=self._series))

    def _held(self, scan: Scan) -> Scan:
        """The scan with its values in memory, unless they are more than half of what may be held."""
        if isinstance(scan.data, np.ndarray) or _stored_bytes(scan) > self._budget // 2:
            return scan
        return replace(scan, data=scan.read())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scans": OrderedDict()}


class PatchSampler(Sampler[list[Draw]]):
    """What each step learns from: for each patch, (index of the portion, seed of all that is random about it).

    The draws are an endless sequence of rounds; a round visits every portion `per_scan` times, in windows of portions
    that are opened together, and is shuffled inside a window. Round r follows from `default_rng([*seed, r])` alone,
    so any step can be gone on with, whatever came before.

    Args:
        portions: how many there are.
        steps: how many steps there are; the length, whatever `start` is.
        batch: patches of a step in this process.
        per_scan: draws from a portion in one round.
        window: portions opened together.
        seed: of everything; a second number tells phases apart.
        rank, world: which of how many processes this is; each takes every `world`-th batch.
    """

    def __init__(
        self,
        portions: int,
        *,
        steps: int,
        batch: int,
        per_scan: int,
        window: int,
        seed: Sequence[int],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.start = 0
        self.steps = steps
        self._portions, self._per_scan, self._window = portions, per_scan, window
        self._batch, self._seed, self._rank, self._world = batch, tuple(seed), rank, world
        self._round: tuple[int, list[Draw]] = (-1, [])

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches from step `start` on."""
        for step in range(self.start, self.steps):
            first = (step * self._world + self._rank) * self._batch
            yield [self._draw(place) for place in range(first, first + self._batch)]

    def _draw(self, place: int) -> Draw:
        number, index = divmod(place, self._portions * self._per_scan)
        if self._round[0] != number:
            self._round = (number, self._round_of(number))
        return self._round[1][index]

    def _round_of(self, number: int) -> list[Draw]:
        random = np.random.default_rng([*self._seed, number])
        order = random.permutation(self._portions)
        windows = [order[i : i + self._window] for i in range(0, len(order), self._window)]
        indices = np.concatenate([random.permutation(np.repeat(window, self._per_scan)) for window in windows])
        seeds = random.integers(2**32, size=len(indices))
        return list(zip(indices.tolist(), seeds.tolist(), strict=True))


class PatchDataset(Dataset[Pair]):
    """Pairs of a coarse and a fine patch, (1, *size) each, float32 in unit intensity; a draw decides all of it.

    Where the transforms leave the blur kernel too, it is the third.
    """

    def __init__(self, portions: Sequence[Portion], shelf: Shelf, transforms: Sequence[MapTransform]) -> None:
        self.portions = tuple(portions)
        self.shelf = shelf
        self.transforms = tuple(transforms)

    def __getitem__(self, draw: Draw) -> Pair:
        index, seed = draw
        random = np.random.default_rng(seed)
        portion = self.portions[index]
        item: dict[str, Any] = {"high": self.shelf.open(portion)}
        if portion.low is not None:
            item["low"] = self.shelf.open(portion.low)
        for transform in self.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(random.integers(2**32)))
            item = transform(item)
        found = (item[key] for key in ("low", "high", "kernel") if key in item)
        return tuple(torch.as_tensor(part).as_subclass(Tensor).contiguous() for part in found)


class PatchLoader(DataLoader[Pair]):
    """The loader of a phase; its state is the number of steps it has delivered."""

    def __init__(self, dataset: PatchDataset, sampler: PatchSampler, *, workers: int, pin: bool = False) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),  # its own: an iterator must not draw from the global one
            worker_init_fn=_ignore_interrupts,
            pin_memory=pin,
        )
        self.patch_sampler = sampler
        self._delivered = 0

    def __iter__(self) -> Any:
        self._delivered = self.patch_sampler.start
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Steps delivered so far."""
        return {"steps": self._delivered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the steps that were delivered."""
        self.patch_sampler.start = int(state["steps"])


def patch_transforms(recipe: Recipe, spacings: Sequence[tuple[float | None, ...] | None]) -> list[MapTransform]:
    """MONAI transforms that turn {"high": a lazy scan} into {"low": coarse patch, "high": fine patch}; of real pairs
    {"low": a lazy scan, "high": a lazy scan}. A method that is told the blur gets {"kernel": the blur kernel} too.

    Args:
        recipe: names patch, foreground, flips, factor and degradation.
        spacings: fine spacing of the factor's axes, of each scan that will come.

    Raises:
        ValueError: the degradation is in micrometers and a spacing is unknown.
    """
    data, factor = recipe.data, recipe.method.factor
    if data.pairs is not None:
        both, none = ["low", "high"], (0,) * len(factor)
        cut: list[MapTransform] = [RandPairPatchd(data.patch, factor, foreground=data.foreground)]
        return cut + (_turns(both, data, factor, none, spacings) if data.flips else [])
    margin = _margin(recipe, spacings)
    fine_margin = tuple(m * f for m, f in zip(margin, factor, strict=True))
    transforms: list[MapTransform] = [RandPatchd("high", data.patch, foreground=data.foreground, margin=fine_margin)]
    if data.flips:
        transforms += _turns(["high"], data, factor, margin, spacings)
    told: dict[str, Any] = {}
    if isinstance(recipe.method, IkcRecipe):
        told = {"kernel_keys": "kernel", "kernel_size": recipe.method.kernel_size}
    transforms.append(RandDegraded("high", recipe.degradation, factor, margin=margin, **told))
    return transforms


def loader_workers(recipe: Recipe) -> int:
    """Processes that read patches: as the recipe says, else none on a CPU, and for a GPU its share of the cores."""
    said = recipe.training.loader_workers
    if said is not None:
        return said
    if recipe.training.device == "cpu" or not torch.cuda.is_available():
        return 0
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_LOADERS, max(1, cores - 1))


def window_of(largest: int) -> int:
    """Portions opened together, from the bytes of the largest; never from the memory of the machine, so that the same
    recipe draws the same patches everywhere."""
    return max(4, min(256, WINDOW_BYTES // max(1, largest)))


def _margin(recipe: Recipe, spacings: Sequence[tuple[float | None, ...] | None]) -> tuple[int, ...]:
    """Coarse samples around a patch that its degradation may look at, whatever is drawn; at most WIDEST_MARGIN, beyond
    which a kernel holds next to nothing."""
    reaches = [recipe.degradation.reach(recipe.method.factor, spacing) for spacing in dict.fromkeys(spacings)]
    return tuple(min(WIDEST_MARGIN, max(axis)) for axis in zip(*reaches, strict=True))


def _turns(
    keys: list[str],
    data: DataRecipe,
    factor: tuple[int, ...],
    margin: tuple[int, ...],
    spacings: Sequence[tuple[float | None, ...] | None],
) -> list[MapTransform]:
    """Flips along every axis and quarter turns in the plane, the same for all keys."""
    turns: list[MapTransform] = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(len(factor))]
    if _square(data, factor, margin, spacings):
        plane = (len(factor) - 2, len(factor) - 1)
        turns.append(RandRotate90d(keys, prob=0.5, max_k=1, spatial_axes=plane))
    return turns


def _square(
    data: DataRecipe,
    factor: tuple[int, ...],
    margin: tuple[int, ...],
    spacings: Sequence[tuple[float | None, ...] | None],
) -> bool:
    """Whether a quarter turn in the plane makes a patch that could have been drawn."""
    if any(s is not None and s[-1] != s[-2] for s in spacings):
        return False
    return factor[-1] == factor[-2] and data.patch[-1] == data.patch[-2] and margin[-1] == margin[-2]


def _part(scan: Scan, portion: Portion) -> Scan:
    """What a portion holds of a scan."""
    if portion.crop:
        scan = cropped(scan, [first for first, _ in portion.crop], [last - first for first, last in portion.crop])
    if portion.shift:
        scan = resampled(scan, portion.shift)
    if portion.rows is not None:
        row = len(scan.shape) - 2
        start = [portion.rows[0] if i == row else 0 for i in range(len(scan.shape))]
        size = [portion.rows[1] - portion.rows[0] if i == row else n for i, n in enumerate(scan.shape)]
        scan = cropped(scan, start, size)
    if portion.line is not None:
        black, white = portion.line
        scan = replace(scan, intensity=replace(scan.intensity, black=black, white=white))
    return scan


def _stored_bytes(scan: Scan) -> int:
    return int(np.prod(scan.shape, dtype=np.int64)) * scan.intensity.dtype.itemsize


def _bytes(scan: Scan) -> int:
    """What a scan on the shelf takes: its values where they are held, else what a lazy reader may keep."""
    return _stored_bytes(scan) if isinstance(scan.data, np.ndarray) else min(_stored_bytes(scan), 256 * 2**20)


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001 (the loader passes it)
    """Ctrl-C reaches all processes of a terminal; the main one ends the run when its step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
