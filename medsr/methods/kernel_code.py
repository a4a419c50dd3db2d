"""KernelCode: a blur kernel as a few numbers, and back: the kernel and the width that a code stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsr.degradation.kernels import Airy, FineGrid, Gaussian, Kernel
from medsr.degradation.mtf import DetectorMTF
from medsr.degradation.operator import Degradation
from medsr.degradation.shapes import Psf, psf_of_fwhm
from medsr.scan import Factor

if TYPE_CHECKING:
    from medsr.degradation.range import DegradationRange
    from medsr.degradation.second_order import SecondOrder

__all__ = ["KERNEL_SIZE", "KernelCode", "Matched", "blur_of", "kernel_fwhm_samples", "kernel_of_fwhm", "render_kernel"]

Spacing = tuple[float | None, ...]
Array = NDArray[np.float64]

KERNEL_SIZE = {2: 21, 3: 15}
"""Fine samples of a rendered kernel along each axis, in 2D (the paper's) and 3D."""

MEMBERS = 1024
"""Kernels of the family that a code is compared with."""

LEARNED_FROM = 512
"""Kernels of the family that the principal components are taken of."""

FAINTEST = 1e-6
"""Spread of a component, beside that of the first, below which it is rounding."""

LEAST_KEPT = 0.98
"""Share of a kernel that has to lie on the grid it is rendered on."""

NEIGHBORS = 8
"""Members that a code is put together from, to find what lies between them."""


class Matched(NamedTuple):
    """What codes stand for.

    Attributes:
        fwhm_samples: (n, axes), full widths at half maximum in coarse samples.
        codes: (n, length), the codes of the family that come closest.
    """

    fwhm_samples: Tensor
    codes: Tensor


def blur_of(degradation: Degradation | SecondOrder) -> Kernel | None:
    """The one blur kernel of a degradation; None: no blur.

    Raises:
        ValueError: it has two passes, each with its own.
    """
    if isinstance(degradation, Degradation):
        return degradation.kernel
    raise ValueError("kernel: expected a degradation of one pass, found two passes; leave degradation.second out")


def render_kernel(
    kernel: Kernel | None, factor: Factor, spacing_um: Spacing | None = None, *, size: int, least: float = LEAST_KEPT
) -> Tensor:
    """A point spread function on a fixed piece of the fine grid, about its middle sample.

    Args:
        kernel: Gaussian, Airy, DetectorMTF, Weights; None: a point.
        factor: fine samples for each coarse one.
        spacing_um: fine spacing of the factor's axes, needed by kernels in micrometers.
        size: fine samples along each axis, odd; what lies beyond is left out, and the rest has the sum 1.
        least: share of the kernel that has to lie on the grid.

    Returns:
        (size, ...) with one axis for each of the factor, float32.

    Raises:
        ValueError: more of the kernel lies beyond, by default more than 2 %; an unknown spacing that the kernel needs.
    """
    axes = len(factor)
    grid = FineGrid(factor, spacing_um or (None,) * axes, (False,) * axes)
    whole: Array = np.ones((1,) * axes)
    kept = 1.0
    parts = () if kernel is None else kernel.parts(grid)
    for part in parts:
        weights = _fitted(part.weights, size)
        kept *= float(weights.sum() / part.weights.sum())
        whole = whole * np.expand_dims(weights, [a for a in range(axes) if a not in part.axes])
    if kept < least:
        raise ValueError(
            f"kernel: expected a blur that fits on {size} fine samples along each axis, found one of which "
            f"{100 * (1 - kept):.0f} % lie beyond; raise method.kernel_size, or narrow the blur of the degradation"
        )
    whole = _fitted(whole, size)
    return torch.from_numpy(whole / whole.sum()).float()


def kernel_of_fwhm(psf: Psf, fwhm_samples: Sequence[float], factor: Factor) -> tuple[Kernel, Factor, Spacing]:
    """A kernel of a shape and of full widths at half maximum in coarse samples, one for each axis of the factor (0: no
    blur), with the factor and the fine spacing for it, as `render_kernel` takes them.

    Airy and detector know micrometers only: here one micrometer is their width, and the spacing does the rest.
    """
    plane = (fwhm_samples[-2], fwhm_samples[-1])
    axial = fwhm_samples[0] if len(factor) == 3 and fwhm_samples[0] > 0 else None
    if psf == "gaussian" or min(plane) <= 0:
        return Gaussian(fwhm_samples=plane, axial_fwhm_samples=axial), factor, (None,) * len(factor)
    spacing = tuple(1 / (width * f) if width > 0 else 1.0 for width, f in zip(fwhm_samples, factor, strict=True))
    return psf_of_fwhm(psf, 1.0, None if axial is None else 1.0), factor, spacing


def _fitted(weights: Array, size: int) -> Array:
    """The middle `size` samples of each axis longer than 1; or zeros around all of them where they are fewer."""
    for axis, length in enumerate(weights.shape):
        if length % 2 == 0:  # about the gap between two samples: the mean of the two ways to move it onto one
            edge = [(0, 0)] * weights.ndim
            edge[axis] = (0, 1)
            moved = np.pad(weights, edge)
            weights = (moved + np.roll(moved, 1, axis)) / 2
            length += 1
        if length > size:
            first = (length - size) // 2
            weights = weights.take(range(first, first + size), axis)
        else:
            edge = [(0, 0)] * weights.ndim
            edge[axis] = ((size - length) // 2,) * 2
            weights = np.pad(weights, edge)
    return weights


def kernel_fwhm_samples(kernel: Kernel | None, factor: Factor, spacing_um: Spacing | None = None) -> tuple[float, ...]:
    """Full width at half maximum along each axis of the factor, in coarse samples.

    Of a Gaussian that of its projection onto the axis; of an Airy pattern that through its middle; of a detector that
    of the image of a thin line; of any other kernel, and of a detector whose curve is a table, that of its projection
    as the fine grid holds it.

    Raises:
        ValueError: a width in micrometers and an unknown spacing.
    """
    axes = len(factor)
    if kernel is None:
        return (0.0,) * axes
    grid = FineGrid(factor, spacing_um or (None,) * axes, (False,) * axes)
    if isinstance(kernel, (Airy, DetectorMTF)) and kernel.fwhm_um is not None:
        axial = kernel.axial_fwhm_um if isinstance(kernel, Airy) else None
        kernel = Gaussian(kernel.fwhm_um, axial_fwhm_um=axial)
    if not isinstance(kernel, Gaussian):
        return _rendered_fwhm(kernel, grid)
    widths = [0.0] * axes
    if axes == 3 and kernel.axial_fwhm_um is not None:
        widths[0] = kernel.axial_fwhm_um / grid.step_um(0, cure="a width in samples") / factor[0]
    elif axes == 3:
        widths[0] = kernel.axial_fwhm_samples or 0.0
    plane = kernel.fwhm_um if kernel.fwhm_um is not None else kernel.fwhm_samples
    first, second = plane if isinstance(plane, tuple) else (plane or 0.0, plane or 0.0)
    angle = math.radians(kernel.angle_deg)
    projected = (math.hypot(first * math.cos(angle), second * math.sin(angle)),
                 math.hypot(first * math.sin(angle), second * math.cos(angle)))  # fmt: skip
    for axis, width in zip(range(axes - 2, axes), projected, strict=True):
        step = factor[axis] * grid.step_um(axis, cure="fwhm_samples") if kernel.fwhm_um is not None else 1.0
        widths[axis] = width / step
    return tuple(widths)


def _rendered_fwhm(kernel: Kernel, grid: FineGrid) -> tuple[float, ...]:
    """Full widths at half maximum of the projections of a kernel onto the axes, in coarse samples; 0: no blur."""
    widths = [0.0] * len(grid.factor)
    for part in kernel.parts(grid):
        for index, axis in enumerate(part.axes):
            others = tuple(i for i in range(part.weights.ndim) if i != index)
            widths[axis] = _fwhm(part.weights.sum(others)) / grid.factor[axis]
    return tuple(widths)


def _fwhm(line: Array) -> float:
    """Samples between the two places where a line (n,) falls to half its largest value; a single sample is a point."""
    if len(line) == 1:
        return 0.0
    line = np.pad(line, 1)
    half, peak = line.max() / 2, int(line.argmax())
    ends = []
    for side in (line[peak:], line[peak::-1]):
        after = int((side < half).argmax())
        ends.append(after - 1 + float((side[after - 1] - half) / (side[after - 1] - side[after])))
    return sum(ends)


class KernelCode(nn.Module):
    """Kernels of a device as codes of a few numbers: principal components of the blurs that a recipe expects.

    A kernel, rendered on a fixed piece of the fine grid, less the mean of the family, is projected onto the
    components, the first scaled to a spread of one and each other to the root of its spread beside that of the first:
    as they are the faint ones would hardly count, all alike they would drown the first, which tells the width best.
    Mean and components are kept, so that a code can be shown as a kernel again. Codes of many members of the family
    with their widths are kept too: what a code stands for is put together, by least squares, from the members next to
    it.

    Args:
        axes: of the factor, 2 or 3.
        length: numbers of a code (paper: 10).
        size: fine samples of a kernel along each axis, odd; None: 21 in 2D (paper), 15 in 3D.

    Attributes:
        mean: (size ** axes,); basis: (length, size ** axes), the components times their scales.
        members: (1024, length), codes of the family; widths: (1024, axes), theirs in coarse samples.

    References:
        J. Gu et al., "Blind super-resolution with iterative kernel correction", 2019, section 3.2, arXiv:1904.03377
        (isotropic Gaussians only; no mean is taken away, and nothing is scaled).
    """

    mean: Tensor
    basis: Tensor
    members: Tensor
    widths: Tensor

    def __init__(self, axes: int, *, length: int = 10, size: int | None = None) -> None:
        super().__init__()
        self.axes, self.length = axes, length
        self.size = KERNEL_SIZE[axes] if size is None else size
        samples = self.size**axes
        self.register_buffer("mean", torch.zeros(samples))
        self.register_buffer("basis", torch.zeros(length, samples))
        self.register_buffer("members", torch.zeros(MEMBERS, length))
        self.register_buffer("widths", torch.zeros(MEMBERS, axes))

    @property
    def known(self) -> bool:
        """Whether it was told a family of kernels."""
        return bool(self.widths.any())

    def learn(self, blurs: DegradationRange, factor: Factor, spacings: Sequence[Spacing | None], *, seed: int) -> None:
        """Take the family of a range of degradations; it follows from the range, the spacings and the seed.

        Args:
            blurs: what kernels are drawn from; noise does not matter.
            factor: fine samples for each coarse one.
            spacings: fine spacings of the scans to come.
            seed: of the draws.

        Raises:
            ValueError: a kernel that is too wide for the grid, or in micrometers with an unknown spacing; one blur
                only.
        """
        generator = torch.Generator().manual_seed(seed)
        turns = list(dict.fromkeys(spacings)) or [None]
        kernels, widths = [], []
        for number in range(MEMBERS):
            spacing = turns[number % len(turns)]
            kernel = blur_of(blurs.sample(generator, factor, spacing))
            kernels.append(render_kernel(kernel, factor, spacing, size=self.size).flatten())
            widths.append(kernel_fwhm_samples(kernel, factor, spacing))
        family = torch.stack(kernels)
        if float((family - family[0]).norm(dim=1).amax()) <= FAINTEST * float(family[0].norm()):
            raise ValueError(
                f"degradation: expected a range of blurs along a refined axis of the factor {tuple(factor)}, found one "
                "blur only; give fwhm_um, fwhm_samples or, with a z in the factor, axial_fwhm_um [from, to]"
            )
        mean, basis = _components(family[:LEARNED_FROM].double().numpy(), self.length)
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(mean))
            self.basis.copy_(torch.from_numpy(basis))
            self.widths.copy_(torch.tensor(widths))
            self.members.copy_(self.encode(family.to(self.mean)))

    def encode(self, kernels: Tensor) -> Tensor:
        """(n, *size) or (n, samples) as `render_kernel` makes them, to codes (n, length)."""
        away = kernels.to(self.mean).flatten(1) - self.mean
        squares = self.basis.square().sum(1)
        return away @ self.basis.T / squares.clamp(min=torch.finfo(squares.dtype).tiny)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n, length) to kernels (n, *size), as near as the components come."""
        kernels = self.mean + codes.to(self.mean) @ self.basis
        return kernels.reshape(-1, *(self.size,) * self.axes)

    def encode_fwhm(self, fwhm_samples: Sequence[float], factor: Factor) -> Tensor:
        """The code (length,) of a blur of the family's shape and of widths in coarse samples, one for each axis.

        Raises:
            ValueError: it is too wide for the grid.
        """
        told = kernel_of_fwhm(self._shape(fwhm_samples, factor), fwhm_samples, factor)
        return self.encode(render_kernel(*told, size=self.size)[None])[0]

    def _shape(self, fwhm_samples: Sequence[float], factor: Factor) -> Psf:
        """The shape that codes can show best, at the widths of the family that are nearest to these."""
        if not self.known:
            return "gaussian"
        asked = torch.tensor(fwhm_samples).to(self.widths)
        near = torch.minimum(torch.maximum(asked, self.widths.amin(0)), self.widths.amax(0)).tolist()
        shapes = get_args(Psf)
        told = [kernel_of_fwhm(psf, near, factor) for psf in shapes]
        kernels = torch.stack([render_kernel(*each, size=self.size, least=0.0) for each in told]).to(self.mean)
        off = (self.decode(self.encode(kernels)) - kernels).flatten(1).norm(dim=1)
        chosen: Psf = shapes[int(off.argmin())]
        return chosen

    def match(self, codes: Tensor) -> Matched:
        """What codes (n, length) stand for: the mix of members next to each that comes closest, by least squares."""
        codes = codes.to(self.members)
        apart = torch.cdist(codes[None], self.members[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
        near = apart.topk(NEIGHBORS, largest=False).indices
        members, widths = self.members[near].double(), self.widths[near].double()
        off = members - codes[:, None].double()
        gram = off @ off.mT
        size = gram.diagonal(dim1=1, dim2=2).sum(1).clamp(min=torch.finfo(torch.float64).tiny)
        ridge = torch.eye(NEIGHBORS, dtype=gram.dtype, device=gram.device) * 1e-3
        shares = torch.linalg.solve(gram / size[:, None, None] + ridge, torch.ones_like(gram[..., :1]))
        shares = shares / shares.sum(1, keepdim=True)
        found = (shares * widths).sum(1).to(self.widths)
        found = torch.minimum(torch.maximum(found, self.widths.amin(0)), self.widths.amax(0))
        return Matched(found, (shares * members).sum(1).to(self.members))


def _components(family: Array, length: int) -> tuple[Array, Array]:
    """Mean (samples,) and scaled components (length, samples) of kernels (n, samples)."""
    mean = family.mean(0)
    _, spread, axes = np.linalg.svd(family - mean, full_matrices=False)
    spread, axes = spread[:length] / math.sqrt(len(family)), axes[:length]
    # A component may point either way: the largest entry is made positive.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    axes = axes * np.sign(largest)
    return mean, axes * np.sqrt(np.maximum(spread, FAINTEST * spread[0]) * spread[0])[:, None]
