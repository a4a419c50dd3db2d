"""ScnNetwork: sparse coding as a network, one stage for each refinement (Wang et al. 2015)."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.interpolation import cubic_kernel, interpolate
from medsr.methods.layers import Shuffle, convolve
from medsr.methods.network import Network
from medsr.methods.settings import NetworkRecipe
from medsr.methods.shuffle import prime_stages
from medsr.precision import float32_only
from medsr.scan import Factor, validate_factor
from medsr.stages import Stages

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = ["ScnNetwork", "ScnRecipe", "SparseCoding"]

PATCH, WINDOW, MARGIN = 5, 9, 6
"""Samples along a side of a patch that is estimated, and of the window it is estimated from; reach of a stage."""
STRONGER = 1.1
"""Norm of an estimated patch by that of the interpolated one (Wang et al. 2015, section 3.2)."""
FAINT = 1e-24
"""Squared norm below which a patch is flat: far below the last digit of any scan, and safe to divide by."""
CELLS = 9
"""Coarse samples along a side of the pictures that new weights are fitted to: a window, and what it depends on."""
RELATIVE = 1e-6
"""Least squared norm of the features by that of the patch: bounds what a patch without gradients is amplified by."""


class ScnRecipe(NetworkRecipe):
    """SCN, and its cascade for factors of several primes (Wang et al. 2015; doi:10.1109/ICCV.2015.50)."""

    kind: Literal["scn"] = "scn"
    atoms: int = Field(128, ge=4, le=1024, description="size of the dictionary of each stage (paper: 128)")
    published: bool = Field(False, description="true: feature kernels that may see the level, as in the paper")

    @field_validator("factor")
    @classmethod
    def _in_plane(cls, value: Factor) -> Factor:
        return _checked(value)

    def build(self) -> ScnNetwork:
        """The untrained network."""
        return ScnNetwork(self.factor, atoms=self.atoms, published=self.published)

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """64 atoms."""
        return cls(factor=factor, atoms=64)


class ScnNetwork(Network):
    """A cubic interpolation to a stage's resolution, then `SparseCoding`; stage after stage.

    Each stage divides what it sees of a patch by its norm and gives the estimate back its norm and its mean, and the
    feature kernels sum to zero. So, whatever the weights, for every gain a and offset b, up to rounding,

        network(a * low + b) == a * network(low) + b

    A flat field stays flat, with `published` too. Works in planes: of a volume, each plane along the last two axes is
    upscaled on its own, and z can not be refined. All of it runs in float32, also under autocast.

    Args:
        factor: (rows, columns), or (1, rows, columns). Each prime is a stage with weights of its own: (4, 4) is the
            paper's cascade of two stages, (3, 3) one stage (the paper takes two of factor 2 and shrinks).
        atoms: size of each dictionary (paper: 128; then a stage has 40,509 parameters).
        published: leave the feature kernels free to see the level, as the paper's are after training; then an offset
            does not pass. The layers and their count are the same.

    Attributes:
        factor: as given.
        halo: coarse samples of context for each axis of the factor: the exact reach of the layers.

    Raises:
        ValueError: a factor that refines z, or is not two or three whole numbers with one above 1; too few atoms.

    References:
        Z. Wang, D. Liu, J. Yang, W. Han, T. Huang, "Deep networks for image super-resolution with sparse prior", 2015,
        doi:10.1109/ICCV.2015.50.
    """

    def __init__(self, factor: Factor, *, atoms: int = 128, published: bool = False) -> None:
        super().__init__()
        self.factor, self.published = _checked(factor), published
        if atoms < 4:
            raise ValueError(f"ScnNetwork: expected at least 4 atoms, found {atoms}")
        self._steps = prime_stages(self.factor[-2:])
        self.halo = (0,) * (len(self.factor) - 2) + tuple(
            _reach([step[axis] for step in self._steps]) for axis in range(2)
        )
        self.coders = nn.ModuleList(SparseCoding(step, atoms, published=published) for step in self._steps)

    def __repr__(self) -> str:
        atoms = self.coders[0].get_parameter("decode").shape[1]
        return f"ScnNetwork({self.factor}, atoms={atoms}, published={self.published})"

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself: the network needs to know nothing of the scan."""
        return self

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32."""
        fine = low.to(torch.promote_types(self.coders[0].get_parameter("decode").dtype, torch.float32))
        planes = _planes(fine)
        with float32_only(low.device):
            for step, coder in zip(self._steps, self.coders, strict=True):
                planes = coder(interpolate(planes, step, kind="cubic"))
        return _volume(planes, fine)

    @torch.no_grad()
    def stages(self, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:  # noqa: ARG002
        """The network as it is now, cut for an engine: all of it is `last`, in float32.

        It starts from an interpolation, so there is nothing to compute on the coarse grid; `body` and `rise` hand on.

        Args:
            edges: makes no difference.
            gain, offset: the stages make `(network(low * gain + offset) - offset) / gain`, at the same cost.
        """
        if not self.published:
            gain, offset = 1.0, 0.0  # they pass through
        steps = zip(self._steps, self.coders, strict=True)
        layers = [layer for step, coder in steps for layer in (_Refined(step), copy.deepcopy(coder).float())]
        last = _InPlanes(nn.Sequential(*layers), gain, offset).requires_grad_(False).eval()
        return Stages(_Thirds(), nn.Identity(), nn.Identity(), last, None, self.halo)


class SparseCoding(nn.Module):
    """One stage: each patch of an interpolated picture as a sparse sum of atoms, and the mean of all patches.

    Args:
        factor: by which the picture was refined, (rows, columns); the weights start from pictures refined by it.
        atoms: size of the dictionary.
        published: leave the feature kernels free, see `ScnNetwork`.

    Attributes:
        gradients: (100, 9 * 9), features of the window of a patch: H.
        encode: (atoms, 100), W.
        inhibit: (atoms, atoms), S.
        decode: (25, atoms), samples of the patch: D.
        weights: (25,), of each sample of a patch in the mean of the patches: G.
        differences: (25, 9 * 9), fixed: the samples of a patch less their mean.
        means: (1, 13 * 13), fixed: the mean, over the patches that a sample is in, of the patch's mean.

    References:
        Wang et al. 2015, figure 2 and section 3, doi:10.1109/ICCV.2015.50.
        K. Gregor, Y. LeCun, "Learning fast approximations of sparse coding", 2010 (LISTA).
        J. Yang, J. Wright, T. Huang, Y. Ma, "Image super-resolution via sparse representation", 2010, section III,
        doi:10.1109/TIP.2010.2050625 (gradient features; norm and mean of the patch).
    """

    differences: Tensor
    means: Tensor

    def __init__(self, factor: Factor, atoms: int, *, published: bool = False) -> None:
        super().__init__()
        self.factor, self.published = factor, published
        features, count = 4 * PATCH**2, PATCH**2
        self.gradients = nn.Parameter(torch.empty(features, WINDOW**2))
        self.encode = nn.Parameter(torch.empty(atoms, features))
        self.inhibit = nn.Parameter(torch.empty(atoms, atoms))
        self.decode = nn.Parameter(torch.empty(count, atoms))
        self.weights = nn.Parameter(torch.empty(count))
        self.register_buffer("differences", _differences())
        self.register_buffer("means", _means())
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights that already sparse-code edges: sampled, with one least-squares fit.

        H: first and second differences along rows and columns (Yang et al. 2010, equation 8, smoothed across), at the
        25 places of a patch. The dictionary of features: those of random edges and lines as an interpolated picture
        shows them, as Yang et al. sample raw patches. From it W and S of one step of iterative shrinkage (Wang et al.
        2015, equations 3 and 4), in units of the threshold. D: fitted to the same edges as they are when sharp.
        """
        self.gradients.copy_(_gradients())
        self.weights.fill_(1 / PATCH**2)
        atoms, count = self.encode.shape[0], 1500
        sharp = _edges(count + atoms, self.factor)
        pool = functional.avg_pool2d(sharp, self.factor)
        seen, spread = self.seen(_middle(interpolate(pool, self.factor, kind="cubic"), WINDOW))
        dictionary = seen[-atoms:, :, 0, 0]
        largest = torch.linalg.matrix_norm(dictionary, 2).square()
        self.encode.copy_(dictionary / 0.1)
        self.inhibit.copy_(torch.eye(atoms) - dictionary @ dictionary.T / largest)
        codes = self.codes(seen[:count])[:, :, 0, 0]
        wanted = _convolved(_middle(sharp, WINDOW), self.differences)[:count, :, 0, 0] / spread[:count, :, 0, 0]
        weight = codes.T @ codes
        weight += 1e-3 * weight.diagonal().mean() * torch.eye(atoms)
        self.decode.copy_(torch.linalg.solve(weight, codes.T @ wanted).T)

    def forward(self, blurred: Tensor) -> Tensor:
        """(n, 1, *size), interpolated, to the same shape."""
        padded = _padded(blurred, MARGIN)
        seen, spread = self.seen(padded)
        patches = _convolved(self.codes(seen), self.decode)
        norm = torch.sqrt(patches.square().sum(1, keepdim=True) + FAINT)
        patches = patches * (STRONGER * spread / norm)
        # Sample i of the patch around c lies at c + i - 2: each output sums one sample of 25 patches.
        places = torch.eye(PATCH**2, dtype=patches.dtype, device=patches.device).flip(1) * self.weights[:, None]
        detail = functional.conv2d(patches, places.reshape(1, PATCH**2, PATCH, PATCH))
        return detail + _convolved(padded, self.means)

    def seen(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        """Features of norm 1 of each window, (n, 100, *size - 8), and the norm of its patch less the mean."""
        kernel: Tensor = self.gradients
        if not self.published:
            kernel = kernel - kernel.mean(dim=1, keepdim=True)
        found = _convolved(padded, torch.cat([kernel, self.differences]))
        features, differences = found[:, : kernel.shape[0]], found[:, kernel.shape[0] :]
        spread = differences.square().sum(1, keepdim=True)
        least = FAINT if self.published else RELATIVE * spread + FAINT
        return features / torch.sqrt(features.square().sum(1, keepdim=True) + least), torch.sqrt(spread + FAINT)

    def codes(self, seen: Tensor) -> Tensor:
        """Sparse codes: z = h(W y + S h(W y)) (Wang et al. 2015, equation 3, with one recurrence)."""
        excited = _convolved(seen, self.encode)
        return _shrunk(excited + _convolved(_shrunk(excited), self.inhibit))


class _Thirds(nn.Module):
    """A picture as three that sum to it, each of 8 significant bits: half precision hands them on without loss."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it without types
    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) to (n, 3, *size); not compiled, for compilers leave out the rounding."""
        first = low.bfloat16().to(low.dtype)
        second = (low - first).bfloat16().to(low.dtype)
        return torch.cat([first, second, low - first - second], 1)


class _InPlanes(nn.Module):
    """Layers for planes, of the sum of the channels."""

    def __init__(self, layers: nn.Module, gain: float, offset: float) -> None:
        super().__init__()
        self.layers, self.gain, self.offset = layers, gain, offset

    def forward(self, thirds: Tensor) -> Tensor:
        """(n, 3, *size) to (n, 1, *size * factor)."""
        low = thirds[:, :1] + (thirds[:, 1:2] + thirds[:, 2:])
        if self.gain == 1 and self.offset == 0:
            return _volume(self.layers(_planes(low)), low)
        fine: Tensor = self.layers(_planes(low * self.gain + self.offset))
        return (_volume(fine, low) - self.offset) / self.gain


class _Refined(nn.Module):
    """The cubic interpolation as a convolution and a shuffle, which an engine can take with any sizes."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        answers = interpolate(torch.eye(25).reshape(25, 1, 5, 5), factor, kind="cubic")  # of one sample each
        rows, columns = factor
        cell = answers[:, 0, 2 * rows : 3 * rows, 2 * columns : 3 * columns].reshape(25, rows * columns)
        self.kernel = nn.Parameter(cell.T.contiguous(), requires_grad=False)
        self.shuffle = Shuffle(factor)

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) to (n, 1, *size * factor)."""
        fine: Tensor = self.shuffle(convolve(low, self.kernel.reshape(-1, 1, 5, 5), None))
        return fine


def _checked(factor: Factor) -> Factor:
    factor = validate_factor(factor)
    if len(factor) not in (2, 3) or max(factor) == 1 or (len(factor) == 3 and factor[0] != 1):
        raise ValueError(
            "method scn: expected a factor that refines planes, such as (2, 2), or (1, 2, 2) for each plane of a "
            f"volume; found {factor}. To refine along z, use another method"
        )
    return factor


def _reach(steps: list[int]) -> int:
    """Coarse samples on either side of a cell that its fine samples depend on along an axis."""
    fine = 1
    for step in steps:
        fine *= step
    first, last = 0, fine - 1
    for step in reversed(steps):
        used = [tap for at in range(first - MARGIN, last + MARGIN + 1) for tap in _taps(at, step)]
        first, last = min(used), max(used)
    return max(-first, last)


def _taps(at: int, step: int) -> list[int]:
    """Coarse samples that fine sample `at` is interpolated from."""
    cell, phase = divmod(at, step)
    place = (phase + 0.5) / step - 0.5
    return [cell + k for k in range(-2, 3) if cubic_kernel(k - place) != 0]


def _convolved(features: Tensor, kernels: Tensor) -> Tensor:
    """Convolution without edges by square kernels, each a row; rows, for they serve in volumes too."""
    width = math.isqrt(kernels.shape[1] // features.shape[1])
    return functional.conv2d(features, kernels.reshape(-1, features.shape[1], width, width))


def _shrunk(codes: Tensor) -> Tensor:
    """Soft threshold of 1: sign(z) * max(|z| - 1, 0)."""
    return codes - codes.clamp(-1, 1)


def _padded(picture: Tensor, count: int) -> Tensor:
    """The first and last sample of each axis repeated; joined slices, which all engines take behind a shuffle."""
    for axis in (2, 3):
        first, last = picture.narrow(axis, 0, 1), picture.narrow(axis, picture.shape[axis] - 1, 1)
        picture = torch.cat([first] * count + [picture] + [last] * count, axis)
    return picture


def _planes(low: Tensor) -> Tensor:
    """(n, 1, *size) to (n * planes, 1, rows, columns)."""
    return low.flatten(0, 2).unsqueeze(1) if low.ndim == 5 else low


def _volume(planes: Tensor, low: Tensor) -> Tensor:
    """The planes as a volume where `low` is one."""
    if low.ndim == 4:
        return planes
    return planes.reshape(low.shape[0], 1, low.shape[2], planes.shape[2], planes.shape[3])


def _middle(pictures: Tensor, width: int) -> Tensor:
    """The window of `width` samples in the middle of each picture."""
    rows, columns = ((n - width) // 2 for n in pictures.shape[2:])
    return pictures[:, :, rows : rows + width, columns : columns + width]


def _differences() -> Tensor:
    count = PATCH**2
    inner = (torch.eye(count) - 1 / count).reshape(count, 1, PATCH, PATCH)
    return functional.pad(inner, [(WINDOW - PATCH) // 2] * 4).reshape(count, -1)


def _means() -> Tensor:
    line = torch.tensor([1.0, 2, 3, 4, 5, 4, 3, 2, 1]) / PATCH**2  # a mean of means
    return functional.pad(torch.outer(line, line), [MARGIN - WINDOW // 2] * 4).reshape(1, -1)


def _gradients() -> Tensor:
    """First and second differences along rows and columns at the 25 places of a patch, each kernel of norm 1."""
    across = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0])
    along = torch.tensor([0.0, -1.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, -2.0, 0.0, 1.0])
    small = [torch.outer(*pair) for line in along for pair in ((line, across), (across, line))]
    kernels = torch.zeros(len(small), PATCH, PATCH, WINDOW, WINDOW)
    for row in range(PATCH):
        for column in range(PATCH):
            for index, kernel in enumerate(small):
                kernels[index, row, column, row : row + 5, column : column + 5] = kernel / kernel.norm()
    return kernels.reshape(-1, WINDOW**2)


def _edges(count: int, factor: Factor) -> Tensor:
    """Random edges and lines, sharp, near the middle: (count, 1, CELLS * rows, CELLS * columns)."""
    rows, columns = (torch.arange(CELLS * f) - (CELLS * f - 1) / 2 for f in factor)
    picture = torch.zeros(count, len(rows), len(columns))
    for _ in range(2):
        angle, shift = torch.rand(2, count, 1, 1) * torch.tensor([2 * torch.pi, 9.0]).reshape(2, 1, 1, 1)
        distance = rows[:, None] * torch.sin(angle) + columns * torch.cos(angle) - (shift - 4.5)
        line = torch.rand(count, 1, 1) < 0.5
        shape = torch.where(line, torch.exp(-0.5 * distance.square()), torch.sigmoid(3 * distance))
        picture += torch.randn(count, 1, 1) * shape
    return picture[:, None]
