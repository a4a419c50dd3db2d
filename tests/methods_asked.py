"""The methods that the laws are asked of, and the shipped scans they learn from."""

from functools import cache

import pydicom
import tifffile
import torch
from torch import nn

from medsr.data import MAMMOGRAM, NUCLEI
from medsr.methods import Cubic, Lanczos, Linear
from medsr.methods.network import Network
from medsr.recipe import (
    DfcanRecipe,
    EspcnRecipe,
    FastRecipe,
    FsrcnnRecipe,
    IkcRecipe,
    NetworkRecipe,
    RcanRecipe,
    RrdbRecipe,
    ScnRecipe,
    SrresnetRecipe,
)
from medsr.scan import robust_intensity

INTERPOLATED = {
    "linear-2": Linear((2, 2)),
    "cubic-2": Cubic((2, 2)),
    "cubic-4-1-1": Cubic((4, 1, 1)),
    "lanczos-3": Lanczos((3, 3)),
}
SMALL = {"features": 8, "blocks": 2}
DENSE = {"features": 4, "blocks": 1, "growth": 2}
TINY_ATTENTION = {"features": 8, "groups": 1, "blocks": 1, "reduction": 2, "window": 7}
BLIND = {"features": 8, "blocks": 2, "tail_kernel": 3, "estimator_features": 4, "kernel_size": 7}
NETWORKS: dict[str, NetworkRecipe] = {
    "srresnet-2": SrresnetRecipe(factor=(2, 2), **SMALL),
    "srresnet-4": SrresnetRecipe(factor=(4, 4), head_kernel=5, tail_kernel=5, **SMALL),
    "srresnet-3-2": SrresnetRecipe(factor=(3, 2), tail_kernel=3, **SMALL),
    "srresnet-1-2-2": SrresnetRecipe(factor=(1, 2, 2), head_kernel=3, tail_kernel=3, **SMALL),
    "srresnet-4-1-1": SrresnetRecipe(factor=(4, 1, 1), head_kernel=3, tail_kernel=5, **SMALL),
    "batch-2": SrresnetRecipe(factor=(2, 2), norm="batch", **SMALL),
    "batch-4": SrresnetRecipe(factor=(4, 4), norm="batch", head_kernel=5, tail_kernel=5, **SMALL),
    "batch-1-2-2": SrresnetRecipe(factor=(1, 2, 2), norm="batch", head_kernel=3, tail_kernel=3, **SMALL),
    "rrdb-2": RrdbRecipe(factor=(2, 2), **DENSE),
    "rrdb-4": RrdbRecipe(factor=(4, 4), **DENSE),
    "rrdb-3-2": RrdbRecipe(factor=(3, 2), **DENSE),
    "rrdb-1-2-2": RrdbRecipe(factor=(1, 2, 2), **DENSE),
    "rrdb-4-1-1": RrdbRecipe(factor=(4, 1, 1), **DENSE),
    "rcan-2": RcanRecipe(factor=(2, 2), **TINY_ATTENTION),
    "rcan-3-2": RcanRecipe(factor=(3, 2), **TINY_ATTENTION),
    "rcan-1-2-2": RcanRecipe(factor=(1, 2, 2), **TINY_ATTENTION),
    "rcan-4-1-1": RcanRecipe(factor=(4, 1, 1), **TINY_ATTENTION),
    "dfcan-2": DfcanRecipe(factor=(2, 2), **TINY_ATTENTION),
    "dfcan-3": DfcanRecipe(factor=(3, 3), **TINY_ATTENTION),
    "dfcan-1-2-2": DfcanRecipe(factor=(1, 2, 2), **TINY_ATTENTION),
    "espcn-2": EspcnRecipe(factor=(2, 2), features=(8, 6)),
    "espcn-3-2": EspcnRecipe(factor=(3, 2), features=(8, 6)),
    "espcn-1-2-2": EspcnRecipe(factor=(1, 2, 2), features=(6, 4)),
    "fsrcnn-2": FsrcnnRecipe(factor=(2, 2), features=8, shrunk=4, mappings=2),
    "fsrcnn-3": FsrcnnRecipe(factor=(3, 3), features=8, shrunk=4, mappings=1),
    "fsrcnn-4-1-1": FsrcnnRecipe(factor=(4, 1, 1), features=6, shrunk=4, mappings=1),
    "fast-2": FastRecipe(factor=(2, 2), features=8, blocks=2),
    "fast-4": FastRecipe(factor=(4, 4), features=8, blocks=2),
    "fast-1-2-2": FastRecipe(factor=(1, 2, 2), features=6, blocks=1),
    "fast-4-1-1": FastRecipe(factor=(4, 1, 1), features=6, blocks=1),
    "scn-2": ScnRecipe(factor=(2, 2), atoms=16),
    "scn-4": ScnRecipe(factor=(4, 4), atoms=8),
    "scn-3-2": ScnRecipe(factor=(3, 2), atoms=8),
    "scn-1-2-2": ScnRecipe(factor=(1, 2, 2), atoms=8),
    "ikc-2": IkcRecipe(factor=(2, 2), **BLIND),
    "ikc-3-2": IkcRecipe(factor=(3, 2), **BLIND),
    "ikc-1-2-2": IkcRecipe(factor=(1, 2, 2), **BLIND),
    "ikc-4-1-1": IkcRecipe(factor=(4, 1, 1), **BLIND),
}
"""Trained methods that all laws are asked of: small, in 2D and 3D, with even and uneven factors."""
GAIN_MATTERS = ("batch",)
"""Those whose detail is not proportional to the contrast of the scan."""
SIZES = {2: (37, 41), 3: (19, 21, 23)}
SPACING = {2: (50.0, 70.0), 3: (0.29, 0.26, 0.31)}


@cache
def real_scan() -> torch.Tensor:
    """Planes of the shipped stack in unit intensity, (1, 1, 30, 256, 256)."""
    stored = tifffile.imread(NUCLEI)
    return torch.from_numpy(robust_intensity(stored, stored.dtype).to_unit(stored))[None, None]


@cache
def mammogram() -> torch.Tensor:
    """Tissue of the shipped mammogram in unit intensity, (1, 1, 256, 256): the window of most variation."""
    stored = pydicom.dcmread(MAMMOGRAM).pixel_array
    unit = torch.from_numpy(robust_intensity(stored, stored.dtype).to_unit(stored))
    windows = unit.unfold(0, 256, 128).unfold(1, 256, 128)
    best = int(windows.std(dim=(2, 3)).flatten().argmax())
    return windows.flatten(0, 1)[best][None, None].contiguous()


def coarse_and_fine(factor: tuple[int, ...], patch: tuple[int, ...], count: int, generator: torch.Generator):
    """Patches of the stack: the fine ones and their block means."""
    scan = real_scan() if len(factor) == 3 else real_scan()[0].movedim(1, 0)
    fine = []
    for _ in range(count):
        room = [n - p + 1 for n, p in zip(scan.shape[2:], patch, strict=True)]
        start = [int(torch.randint(r, (1,), generator=generator)) for r in room]
        plane = int(torch.randint(scan.shape[0], (1,), generator=generator))
        fine.append(scan[(plane, slice(None), *(slice(s, s + p) for s, p in zip(start, patch, strict=True)))])
    high = torch.stack(fine)
    pool = nn.functional.avg_pool2d if len(factor) == 2 else nn.functional.avg_pool3d
    return pool(high, factor), high


def train(network: Network, steps: int) -> Network:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    coarse = {2: (16, 16), 3: (6, 12, 12)}[len(network.factor)]
    patch = tuple(f * n for f, n in zip(network.factor, coarse, strict=True))
    network.train()
    for _ in range(steps):
        low, high = coarse_and_fine(network.factor, patch, 4, generator)
        optimizer.zero_grad()
        (network(low) - high).abs().mean().backward()
        optimizer.step()
    return network.eval()


@cache
def network(name: str, steps: int) -> Network:
    torch.manual_seed(0)
    return train(NETWORKS[name].build(), steps)


def sizes(method) -> tuple[int, ...]:
    return SIZES[len(method.factor)]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def as_method(its_factor, function):
    class Wrapped:
        factor, halo = its_factor, (2,) * len(its_factor)

        def __call__(self, low):
            return function(low)

    return Wrapped()
