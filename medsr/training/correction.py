"""IKC's correction: a step of the predictor, then several of the corrector, with the upscaling network as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medsr.methods.ikc import IkcNetwork
from medsr.scan import Grid, Intensity, Scan
from medsr.training.alternation import Learn

__all__ = ["blindly", "correct", "to_learn"]

Batches = Sequence[tuple[Tensor, ...]]


def correct(
    network: IkcNetwork, batches: Batches, *, learn_predictor: Learn, learn_corrector: Learn
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """One round: the predictor learns the codes of coarse patches, then the corrector, as often as the network
    corrects, what is left of the error; the network's estimates carry no gradient.

    Args:
        batches: coarse patches, fine patches and blur kernels, once for each batch whose gradients are added up.

    Returns:
        The mean squared error of the predicted codes, of the corrected ones over all corrections, and of the last; and
        the last codes themselves, for each batch.

    References:
        J. Gu et al., "Blind super-resolution with iterative kernel correction", 2019, equations 3, 5 and 6,
        arXiv:1904.03377.
    """
    share = 1.0 / len(batches)
    lows = [low for low, _, _ in batches]
    codes = [network.coder.encode(kernel) for _, _, kernel in batches]

    def prediction_losses() -> Iterator[Tensor]:
        for low, code in zip(lows, codes, strict=True):
            yield share * functional.mse_loss(network.predictor(low).float(), code)

    predicted = learn_predictor(prediction_losses())
    with torch.no_grad():
        held = [network.predictor(low).float() for low in lows]
    total, last = torch.zeros(()), torch.zeros(())
    for _ in range(network.corrections):
        found: list[Tensor] = []

        def correction_losses(before: Sequence[Tensor] = held, after: list[Tensor] = found) -> Iterator[Tensor]:
            for low, code, used in zip(lows, codes, before, strict=True):
                with torch.no_grad():
                    estimate = network.sftmd(low, used)
                corrected = used + network.corrector(estimate, low, used).float()
                after.append(corrected.detach())
                yield share * functional.mse_loss(corrected, code)

        last = learn_corrector(correction_losses())
        total = total + last / network.corrections
        held = found
    return predicted, total, last, held


def to_learn(network: IkcNetwork, *, blur: bool) -> None:
    """Let predictor and corrector learn (`blur`), or else what they tell the blur to; the others stand still."""
    network.requires_grad_(False)
    if not blur:
        network.sftmd.requires_grad_(True)
        return
    network.predictor.requires_grad_(True)
    network.corrector.requires_grad_(True)
    network.trained.fill_(1)


def blindly(network: IkcNetwork) -> Callable[[Tensor], Tensor]:
    """The network as it is used: each coarse crop (1, 1, *size) is a scan whose blur it finds for itself."""

    def upscale(low: Tensor) -> Tensor:
        stored = low[0, 0].float().cpu().numpy()
        grid = Grid(("z", "y", "x") if stored.ndim == 3 else ("y", "x"))
        scan = Scan(stored, grid, Intensity(0.0, 1.0, np.dtype(np.float32)))
        estimate: Tensor = network.adapt(scan)(low)
        return estimate

    return upscale
