"""Back-projection: an estimate brought back to the measured scan, a few steps of finite reach."""

from __future__ import annotations

from torch import Tensor

from medsr.degradation import Degradation
from medsr.methods.interpolation import interpolate

__all__ = ["back_projected"]


def back_projected(fine: Tensor, low: Tensor, degradation: Degradation, *, steps: int) -> Tensor:
    """`fine` with the interpolated misfit of its coarse version added, `steps` times.

    References:
        M. Irani, S. Peleg, Improving resolution by image registration, 1991, doi:10.1016/1049-9652(91)90045-L,
        equation 2 with an interpolation for the back-projection kernel.
    """
    for _ in range(steps):
        fine = fine + interpolate(low - degradation.mean(fine), degradation.factor)
    return fine
