"""Goodfellow's alternation: the discriminator's turn, then the generator's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from medsr.training.losses import Adversary, Loss, features_apart

__all__ = ["Learn", "NotFiniteError", "alternate", "learner"]

Learn = Callable[[Iterable[Tensor]], Tensor]
Pairs = Sequence[tuple[Tensor, Tensor]]


class Judge(Protocol):
    """A discriminator that shows its activations, and gives its verdict on them."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of each layer."""
        ...

    def verdict(self, features: list[Tensor]) -> Tensor:
        """Logits from them."""
        ...


class NotFiniteError(ArithmeticError):
    """A loss is NaN or infinite; no step was taken."""


def learner(optimizer: torch.optim.Optimizer, backward: Callable[[Tensor], None] = Tensor.backward) -> Learn:
    """A function that adds up the gradients of some losses, then takes one step and returns the losses' sum.

    Raises (the returned function):
        NotFiniteError: a loss is NaN or infinite; the parameters are as they were.
    """

    def learn(losses: Iterable[Tensor]) -> Tensor:
        total = torch.zeros(())
        for loss in losses:
            if not torch.isfinite(loss):
                raise NotFiniteError(f"{float(loss.detach())}")
            backward(loss)
            total = total + loss.detach().cpu()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return learn


def alternate(
    generator: Callable[[Tensor], Tensor],
    discriminator: nn.Module,
    pairs: Pairs,
    *,
    adversary: Adversary,
    adversarial_weight: float,
    other_loss: Loss | None,
    matching: float = 0.0,
    learn_discriminator: Learn,
    learn_generator: Learn,
) -> tuple[Tensor, Tensor]:
    """One round of Algorithm 1 with k = 1: a step of the discriminator, then a step of the generator.

    Args:
        pairs: what the generator is given and what is real, once for each batch whose gradients are added up.
        other_loss: what else the generator minimizes, of its output and the real (pixel and content loss).
        matching: weight of the difference of the discriminator's own features; above 0 it has to have them.

    Returns:
        The discriminator's and the generator's loss.

    References:
        I. Goodfellow et al.: Generative adversarial nets, NIPS 2014, arXiv:1406.2661, Algorithm 1.
    """
    share = 1.0 / len(pairs)
    # Of a single batch the fake is made once, and its graph kept for the generator's turn.
    kept = generator(pairs[0][0]) if len(pairs) == 1 else None

    def discriminator_losses() -> Iterator[Tensor]:
        for low, high in pairs:
            fake = generator(low) if kept is None else kept
            # Detached: no gradient of the discriminator's turn reaches the generator.
            yield share * adversary.d_loss(discriminator(high), discriminator(fake.detach()))

    d_loss = learn_discriminator(discriminator_losses())

    def generator_losses() -> Iterator[Tensor]:
        for low, high in pairs:
            fake = generator(low) if kept is None else kept
            loss = torch.zeros((), device=fake.device) if other_loss is None else other_loss(fake, high)
            if adversarial_weight > 0 or matching > 0:
                found, fake_logits = _looked_at(discriminator, fake, features=matching > 0)
                with torch.no_grad():
                    seen = adversary.compares or matching > 0
                    wanted, real_logits = (
                        _looked_at(discriminator, high, features=matching > 0) if seen else ([], fake_logits)
                    )
                if adversarial_weight > 0:
                    loss = loss + adversarial_weight * adversary.g_loss(real_logits, fake_logits)
                if matching > 0:
                    loss = loss + matching * features_apart(found, wanted)
            yield share * loss

    discriminator.requires_grad_(False)  # Frozen: the gradient flows through it to the generator, not into it.
    g_loss = learn_generator(generator_losses())
    discriminator.requires_grad_(True)
    return d_loss, g_loss


def _looked_at(discriminator: nn.Module, images: Tensor, *, features: bool) -> tuple[list[Tensor], Tensor]:
    """The discriminator's features, where they are asked for, and its logits, from one pass."""
    if not features:
        return [], discriminator(images)
    judge = cast("Judge", discriminator)
    found = judge.features(images)
    return found, judge.verdict(found)
