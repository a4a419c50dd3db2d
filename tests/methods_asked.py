"""The methods that the laws are asked of, and the shipped scans they learn from."""

from functools import cache

import pydicom
import tifffile
import torch
from torch import nn

from medsr.data import MAMMOGRAM, NUCLEI
from medsr.methods import Cubic, Lanczos, Linear
from medsr.methods.network import Network
from medsr.recipe import NetworkRecipe, SrresnetRecipe
from medsr.scan import robust_intensity

INTERPOLATED = {
    "linear-2": Linear((2, 2)),
    "cubic-2": Cubic((2, 2)),
    "cubic-4-1-1": Cubic((4, 1, 1)),
    "lanczos-3": Lanczos((3, 3)),
}
SMALL = {"features": 8, "blocks": 2}
NETWORKS: dict[str, NetworkRecipe] = {
    "srresnet-2": SrresnetRecipe(factor=(2, 2), **SMALL),
    "srresnet-4": SrresnetRecipe(factor=(4, 4), head_kernel=5, tail_kernel=5, **SMALL),
    "srresnet-3-2": SrresnetRecipe(factor=(3, 2), tail_kernel=3, **SMALL),
    "srresnet-1-2-2": SrresnetRecipe(factor=(1, 2, 2), head_kernel=3, tail_kernel=3, **SMALL),
    "srresnet-4-1-1": SrresnetRecipe(factor=(4, 1, 1), head_kernel=3, tail_kernel=5, **SMALL),
    "batch-2": SrresnetRecipe(factor=(2, 2), norm="batch", **SMALL),
    "batch-4": SrresnetRecipe(factor=(4, 4), norm="batch", head_kernel=5, tail_kernel=5, **SMALL),
    "batch-1-2-2": SrresnetRecipe(factor=(1, 2, 2), norm="batch", head_kernel=3, tail_kernel=3, **SMALL),
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
