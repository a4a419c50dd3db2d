"""IKC: a network that is told the blur of a scan by a predictor and a corrector, which find it from the scan itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from medsr.methods.correctors import Corrector, Predictor
from medsr.methods.kernel_code import KernelCode, Spacing
from medsr.methods.network import Network
from medsr.methods.patches import signal_patches
from medsr.methods.settings import NetworkRecipe
from medsr.methods.sftmd import SFTMD
from medsr.precision import float32_only
from medsr.scan import Factor
from medsr.stages import Stages

if TYPE_CHECKING:
    from medsr.degradation.range import DegradationRange
    from medsr.scan import Scan

__all__ = ["Found", "IkcNetwork", "IkcRecipe"]

PATCHES = 24
"""Patches of a scan that its blur is estimated from, at most."""

STILL = 0.01
"""Root mean square of the change of a code (whose numbers spread by about 1) below which it stands still."""

FINEST = 2.0**-12
"""Step a code is rounded to, so that the order of sums, which the number of threads decides, does not show in it."""


class IkcRecipe(NetworkRecipe):
    """IKC: super-resolution of an unknown blur with iterative kernel correction (Gu et al. 2019, arXiv:1904.03377)."""

    kind: Literal["ikc"] = "ikc"
    features: int = Field(64, ge=4, le=1024, description="channels of the upscaling network (paper: 64)")
    blocks: int = Field(16, ge=1, le=256, description="its residual blocks (paper: 16)")
    tail_kernel: int = Field(9, ge=1, le=15, description="width of its last convolution, odd (paper: 9)")
    code_length: int = Field(10, ge=1, le=64, description="numbers that a blur kernel is told by (paper: 10)")
    kernel_size: int | None = Field(
        None, ge=3, le=63, description="fine samples of a blur kernel along each axis, odd; none: 21 in 2D, 15 in 3D"
    )
    estimator_features: int = Field(64, ge=4, le=512, description="channels of predictor and corrector (paper: 64)")
    corrections: int = Field(7, ge=1, le=50, description="corrections of an estimated blur, at most (paper: 7)")

    @field_validator("tail_kernel", "kernel_size")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError(f"expected an odd width, so that the kernel has a center; found {value}")
        return value

    def build(self) -> IkcNetwork:
        """The untrained network; it knows no blurs yet (see `IkcNetwork.expect`)."""
        return IkcNetwork(
            self.factor,
            features=self.features,
            blocks=self.blocks,
            tail_kernel=self.tail_kernel,
            code_length=self.code_length,
            kernel_size=self.kernel_size,
            estimator_features=self.estimator_features,
            corrections=self.corrections,
        )

    @classmethod
    def small(cls, factor: Factor) -> Self:
        """32 features, 4 blocks, a narrow last kernel, 16 features of predictor and corrector."""
        return cls(factor=factor, features=32, blocks=4, tail_kernel=3, estimator_features=16)


@dataclass(frozen=True, slots=True)
class Found:
    """A blur found from patches of a scan, in coarse samples along each axis of the factor.

    Attributes:
        code: (length,), what the network is told.
        fwhm_samples: (axes,), what it stands for.
        patches: (n, axes), what each patch says for itself at the end.
        history: (1 + corrections, axes): as predicted, then after each correction.
    """

    code: Tensor
    fwhm_samples: Tensor
    patches: Tensor
    history: Tensor


class IkcNetwork(Network):
    """An SFTMD with the predictor and the corrector that find the code of a scan's blur.

    `adapt` estimates the blur of a scan once, from patches spread over all of it, and binds the code: every tile is
    made with the same one. A network that was not adapted, or whose predictor and corrector were not trained, uses
    the code of the middle of the range it expects. For any code flat fields stay flat, and gain and offset pass
    through (see `SFTMD`); the estimate sees neither, for its patches are standardized.

    Args:
        factor, features, blocks, tail_kernel: as `SFTMD`.
        code_length, kernel_size: as `KernelCode`.
        estimator_features: channels of predictor and corrector (paper: 64).
        corrections: corrections of an estimate, at most (paper: 7).

    Attributes:
        sftmd, predictor, corrector, coder: its parts.
        code: (length,), told to the network.
        patch: coarse samples of the patches it was trained on; those of a scan are as large.
        trained: above 0 once predictor and corrector were trained.
        fwhm_samples: the blur it is bound to, coarse samples along each axis; () before `adapt`.

    References:
        J. Gu et al., "Blind super-resolution with iterative kernel correction", 2019, algorithm 1, arXiv:1904.03377.
    """

    code: Tensor
    patch: Tensor
    trained: Tensor
    fwhm_samples: tuple[float, ...] = ()

    def __init__(
        self,
        factor: Factor,
        *,
        features: int = 64,
        blocks: int = 16,
        tail_kernel: int = 9,
        code_length: int = 10,
        kernel_size: int | None = None,
        estimator_features: int = 64,
        corrections: int = 7,
    ) -> None:
        super().__init__()
        self.sftmd = SFTMD(factor, features=features, blocks=blocks, code=code_length, tail_kernel=tail_kernel)
        self.factor, self.halo = self.sftmd.factor, self.sftmd.halo
        dims = len(self.factor)
        self.coder = KernelCode(dims, length=code_length, size=kernel_size)
        self.predictor = Predictor(dims, features=estimator_features, code=code_length)
        self.corrector = Corrector(dims, features=estimator_features, code=code_length)
        self.corrections = corrections
        self._settings = (
            f"features={features}, blocks={blocks}, tail_kernel={tail_kernel}, code_length={code_length}, "
            f"kernel_size={self.coder.size}, estimator_features={estimator_features}, corrections={corrections}"
        )
        self.register_buffer("code", torch.zeros(code_length))
        self.register_buffer("patch", torch.full((dims,), 32 if dims == 2 else 12))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))

    def __repr__(self) -> str:
        return f"IkcNetwork({self.factor}, {self._settings})"

    def expect(
        self, blurs: DegradationRange, spacings: Sequence[Spacing | None], *, patch: Sequence[int], seed: int
    ) -> None:
        """Tell it, before it is trained, which blurs it will meet; they and the seed decide its codes.

        Args:
            blurs: their range.
            spacings: fine spacings of the scans to come.
            patch: coarse samples of the patches it will be trained on.
            seed: of the kernels that codes are made of.

        Raises:
            ValueError: as `KernelCode.learn`.
        """
        self.coder.learn(blurs, self.factor, spacings, seed=seed)
        # Widths are drawn evenly, so the member of the median width is the middle of the range.
        widths = self.coder.widths.sum(1)
        middle = int((widths - (widths.amin() + widths.amax()) / 2).abs().argmin())
        self.code.copy_(self.coder.members[middle])
        self.patch.copy_(torch.tensor(tuple(patch)))

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32, told the code that is bound."""
        estimate: Tensor = self.sftmd(low, self.code)
        return estimate

    def told_kernels(self, low: Tensor, kernels: Tensor) -> Tensor:
        """The estimate told the true kernels (n, *kernel size), as `render_kernel` makes them."""
        estimate: Tensor = self.sftmd(low, self.coder.encode(kernels))
        return estimate

    def adapt(self, scan: Scan) -> IkcNetwork:
        """The network told the blur of this scan; weights are shared. Itself, where it was not trained to find one or
        the scan shows nothing."""
        found = self.find(scan) if self.trained else None
        if found is None:
            return self
        bound = self._bound(found.code, found.fwhm_samples.tolist())
        bound.told = _told(found.fwhm_samples.tolist(), scan)
        return bound

    def tell(self, fwhm_samples: tuple[float, ...]) -> IkcNetwork:
        """The network told a blur that is known, from beads or an edge; weights are shared, `adapt` finds none.

        Args:
            fwhm_samples: full width at half maximum, coarse samples along each axis of the factor; of a blur of the
                shape (Gaussian, Airy or detector) that it learned to expect.
        """
        code = self.coder.encode_fwhm(fwhm_samples, self.factor)
        bound = self._bound(code, list(fwhm_samples))
        bound.trained.zero_()
        bound.told = f"blur told: {' x '.join(f'{width:.2f}' for width in fwhm_samples)} samples"
        return bound

    def _bound(self, code: Tensor, widths: list[float]) -> IkcNetwork:
        bound = copy.deepcopy(self, {id(weight): weight for weight in self.parameters()})
        bound.code.copy_(code)
        bound.fwhm_samples = tuple(widths)
        return bound

    def find(self, scan: Scan) -> Found | None:
        """The blur of a scan, from patches all over it; None where it shows nothing.

        Raises:
            ScanError: the scan has fewer axes than the factor.
        """
        patches = signal_patches(scan, tuple(self.patch.tolist()), count=PATCHES)
        return self.find_of(patches) if len(patches) else None

    @torch.no_grad()
    def find_of(self, low: Tensor) -> Found:
        """The one blur of patches (n, 1, *size): predicted, then corrected until it stands still (algorithm 1).

        Each patch is corrected by itself, so that they disagree as much as they do; their median is taken, and at the
        end what comes closest to it in the family.
        """
        low = low.to(self.code)
        with float32_only(low.device):
            own = self.predictor(low)  # h_0 = P(low)
            history = [own.quantile(0.5, 0)]
            for _ in range(self.corrections):
                own = own + self.corrector(self.sftmd(low, own), low, own)  # h_i = h_(i-1) + C(SR, h_(i-1))
                history.append(own.quantile(0.5, 0))
                if float((history[-1] - history[-2]).square().mean().sqrt()) < STILL:
                    break
        nearest = self.coder.match(torch.stack(history))
        code = (nearest.codes[-1] / FINEST).round() * FINEST
        widths = nearest.fwhm_samples.cpu()
        return Found(code, widths[-1], self.coder.match(own).fwhm_samples.cpu(), widths)

    def stages(self, *, edges: bool = True, gain: float = 1.0, offset: float = 0.0) -> Stages:
        """The network with the code that is bound, cut for an engine; it costs what a plain residual network does."""
        return self.sftmd.stages(self.code, edges=edges, gain=gain, offset=offset)


def _told(widths: list[float], scan: Scan) -> str:
    """The blur in words, such as "blur 0.42 um (1.6 samples)"; slowest axis first where the axes differ."""
    names = scan.grid.axes[-len(widths) :]
    spacing = [scan.grid.spacing_of(name) for name in names]
    samples = _joined([f"{width:.2f}" for width in widths])
    if any(step is None for step in spacing):
        return f"blur {samples} samples"
    um = _joined([f"{width * (step or 0.0):.3g}" for width, step in zip(widths, spacing, strict=True)])
    return f"blur {um} um ({samples} samples)"


def _joined(words: list[str]) -> str:
    return words[0] if len(set(words)) == 1 else " x ".join(words)
