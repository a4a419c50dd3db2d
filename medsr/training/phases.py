"""The phases of a training as Lightning modules: pixels, then the adversarial game or the correction of blur."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medsr.methods.discriminators import PatchDiscriminator, SrganDiscriminator
from medsr.methods.ikc import IkcNetwork
from medsr.methods.network import Network
from medsr.methods.unet_discriminator import UnetDiscriminator
from medsr.recipe import AdversarialRecipe, NetworkRecipe, Recipe, TrainingRecipe
from medsr.training.alternation import alternate, learner
from medsr.training.content import content_of
from medsr.training.correction import correct, to_learn
from medsr.training.losses import Loss, adversary_of, pixel_loss_of

__all__ = ["AdversarialPhase", "CorrectionPhase", "Phase", "PixelPhase", "build_discriminator", "scheduled"]

Kind = TypeVar("Kind", bound=nn.Module)
PhaseName = Literal["pixel", "adversarial", "correction"]
Pairs = Sequence[tuple[Tensor, ...]]

BETAS = (0.9, 0.99)
"""Adam's decays; the second is shorter than its default, because training patches differ much."""


class PixelPhase(LightningModule):
    """A network's training on pixels: the pixel loss alone. One that has to know the blur is told the true one.

    Attributes:
        figures: of the last step: loss and step size.
        step: number of the step at work, from 0.
        estimates: of the last step, without gradients, for each batch whose gradients were added up.
    """

    name: PhaseName = "pixel"

    def __init__(self, recipe: Recipe, network: Network) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = packed(network)
        if isinstance(network, IkcNetwork):
            to_learn(network, blur=False)
        self.recipe = recipe
        self.steps = recipe.training.pixel_steps
        self.figures: dict[str, float] = {}
        self.step = 0
        self.estimates: list[Tensor] = []
        self._pixel = _pixel_loss(recipe.method)

    def configure_optimizers(self) -> Optimizer:
        """Adam over the network."""
        return Adam(self.network.parameters(), self.recipe.training.learning_rate, betas=BETAS)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """One step of the network."""
        self.step = batch_idx
        optimizer = cast("LightningOptimizer", self.optimizers())
        rate = set_rate(optimizer, self.recipe.training, self.recipe.training.learning_rate, batch_idx / self.steps)
        pairs = parts_of(batch, self.recipe.training)
        self.estimates = []

        def losses() -> Iterator[Tensor]:
            for low, high, *kernel in pairs:
                estimate = self._estimate(low, kernel)
                self.estimates.append(estimate.detach())
                yield self._pixel(estimate, high) / len(pairs)

        loss = learner(cast("Optimizer", optimizer), self.manual_backward)(losses())
        self.figures = {"loss": float(loss), "rate": rate}

    def _estimate(self, low: Tensor, kernel: list[Tensor]) -> Tensor:
        if isinstance(self.network, IkcNetwork):
            return self.network.told_kernels(low, *kernel)
        estimate: Tensor = self.network(low)
        return estimate

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Limit the gradient; in half precision it is unscaled by now."""
        clip_gradient(optimizer, self.recipe.training.gradient_clip)


class AdversarialPhase(LightningModule):
    """The training with an adversary: generator and discriminator in turns (see `alternate`).

    Args:
        recipe: of a method with an adversary.
        network: the generator, trained on pixels.
        gray: mean and standard deviation of the training patches, for content losses that know photographs.

    Attributes:
        figures: of the last step: the losses of both players and the step size.
        step: number of the step at work, from 0.
        estimates: of the last step, without gradients, for each batch whose gradients were added up.
    """

    name: PhaseName = "adversarial"

    def __init__(self, recipe: Recipe, network: Network, *, gray: tuple[float, float]) -> None:
        super().__init__()
        self.automatic_optimization = False
        method = cast("AdversarialRecipe", recipe.method)
        self.network = packed(network)
        self.discriminator = packed(build_discriminator(method, recipe.data.patch))
        self.recipe = recipe
        self.steps = recipe.training.adversarial_steps
        self.figures: dict[str, float] = {}
        self.step = 0
        self.estimates: list[Tensor] = []
        self._adversary = adversary_of(method.adversary)
        self._adversarial_weight = method.adversarial_weight
        # A feature network stays out of the module's parameters: it is neither averaged, nor saved, nor learned.
        own = method.content.kind == "discriminator"
        self._matching = method.content.weight if own else 0.0
        content = None if own else content_of(method.content, discriminator=self.discriminator, gray=gray)
        self._other: Loss = _weighted(_pixel_loss(method), method.pixel_weight, content)

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for each player."""
        rate = self.recipe.training.adversarial_learning_rate
        players: tuple[nn.Module, ...] = (self.network, self.discriminator)
        return [Adam(player.parameters(), rate, betas=BETAS) for player in players]

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """One round of the game."""
        self.step = batch_idx
        training = self.recipe.training
        g_optimizer, d_optimizer = cast("list[LightningOptimizer]", self.optimizers())
        for optimizer in (g_optimizer, d_optimizer):
            rate = set_rate(optimizer, training, training.adversarial_learning_rate, batch_idx / self.steps)
        pairs = cast("Sequence[tuple[Tensor, Tensor]]", parts_of(batch, training))
        made: list[Tensor] = []

        def generator(low: Tensor) -> Tensor:
            estimate: Tensor = self.network(low)
            made.append(estimate.detach())
            return estimate

        d_loss, g_loss = alternate(
            generator,
            self.discriminator,
            pairs,
            adversary=self._adversary,
            adversarial_weight=self._adversarial_weight,
            other_loss=self._other,
            matching=self._matching,
            learn_discriminator=learner(cast("Optimizer", d_optimizer), self.manual_backward),
            learn_generator=learner(cast("Optimizer", g_optimizer), self.manual_backward),
        )
        self.estimates = made[-len(pairs) :]  # several batches are upscaled twice, once in each player's turn
        self.figures = {"loss": float(g_loss), "discriminator_loss": float(d_loss), "rate": rate}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Limit the gradient; in half precision it is unscaled by now."""
        clip_gradient(optimizer, self.recipe.training.gradient_clip)


class CorrectionPhase(LightningModule):
    """The training of what finds the blur of a scan: predictor and corrector of an IKC (see `correct`).

    Args:
        recipe: of method ikc.
        network: trained on pixels, told the true blur; its upscaling stays as it is.

    Attributes:
        figures: of the last step: mean squared errors of the codes, and the step size.
        step: number of the step at work, from 0.
        estimates: of the last step, told the blurs that were found, for each batch whose gradients were added up; none
            where no widths learn from them.
    """

    name: PhaseName = "correction"

    def __init__(self, recipe: Recipe, network: IkcNetwork) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = packed(network)
        to_learn(network, blur=True)
        self.recipe = recipe
        self.steps = recipe.training.correction_steps
        self.figures: dict[str, float] = {}
        self.step = 0
        self.estimates: list[Tensor] = []

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for each of the two."""
        rate = self.recipe.training.learning_rate
        both: tuple[nn.Module, ...] = (self.network.predictor, self.network.corrector)
        return [Adam(part.parameters(), rate, betas=BETAS) for part in both]

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        """One round: a step of the predictor, several of the corrector."""
        self.step = batch_idx
        training = self.recipe.training
        p_optimizer, c_optimizer = cast("list[LightningOptimizer]", self.optimizers())
        for optimizer in (p_optimizer, c_optimizer):
            rate = set_rate(optimizer, training, training.learning_rate, batch_idx / self.steps)
        pairs = parts_of(batch, training)
        predicted, corrected, last, codes = correct(
            self.network,
            pairs,
            learn_predictor=learner(cast("Optimizer", p_optimizer), self.manual_backward),
            learn_corrector=learner(cast("Optimizer", c_optimizer), self.manual_backward),
        )
        self.figures = {
            "loss": float(corrected), "predicted_loss": float(predicted), "corrected_loss": float(last), "rate": rate
        }  # fmt: skip
        if training.widths:
            with torch.no_grad():
                self.estimates = [self.network.sftmd(low, code) for (low, *_), code in zip(pairs, codes, strict=True)]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Limit the gradient; in half precision it is unscaled by now."""
        clip_gradient(optimizer, self.recipe.training.gradient_clip)


Phase = PixelPhase | AdversarialPhase | CorrectionPhase


def build_discriminator(
    method: AdversarialRecipe, patch: tuple[int, ...]
) -> SrganDiscriminator | PatchDiscriminator | UnetDiscriminator:
    """The untrained discriminator of a recipe, for fine patches of a size (or larger ones)."""
    dims, features = len(method.factor), method.discriminator_features
    if method.discriminator in ("patch", "unet"):
        norm = "spectral" if method.discriminator_norm == "auto" else method.discriminator_norm
        kind = PatchDiscriminator if method.discriminator == "patch" else UnetDiscriminator
        return kind(dims, features=features, patch=patch, norm=norm)
    norm = "batch" if method.discriminator_norm == "auto" else method.discriminator_norm
    return SrganDiscriminator(dims, features=features, norm=norm)


def packed(network: Kind) -> Kind:
    """The network with the channels of its 2D kernels side by side in memory, which convolutions on every device are
    fastest with; the numbers are the same up to rounding."""
    planar = any(isinstance(part, nn.Conv2d) for part in network.modules())
    # torch's own types leave this form of `to` out
    return network.to(memory_format=torch.channels_last) if planar else network  # type: ignore[call-overload]


def scheduled(schedule: Literal["constant", "cosine", "halve"], done: float) -> float:
    """Share of the full step size when `done` (0..1) of the steps are done."""
    match schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        case "halve":
            return float(0.5 ** sum(done >= 1 - 0.5**n for n in (1, 2, 3, 4)))


def set_rate(optimizer: LightningOptimizer, training: TrainingRecipe, full: float, done: float) -> float:
    """Set the step size the schedule asks for, and return it."""
    rate = full * scheduled(training.schedule, done)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def parts_of(batch: tuple[Tensor, ...], training: TrainingRecipe) -> Pairs:
    """The batches whose gradients are added up for one step."""
    return list(zip(*(torch.split(part, training.batch) for part in batch), strict=True))


def clip_gradient(optimizer: Optimizer, largest: float) -> None:
    """Scale the gradient of an optimizer's parameters down to a norm of at most `largest`; 0: no limit."""
    if largest > 0:
        parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, largest)


def _pixel_loss(method: NetworkRecipe) -> Loss:
    return pixel_loss_of(method.pixel_loss, factor=method.factor, slope_weight=method.slope_weight)


def _weighted(pixel: Loss, weight: float, content: Loss | None) -> Loss:
    if content is None:
        return lambda estimate, high: weight * pixel(estimate, high)
    if weight == 0:
        return content
    return lambda estimate, high: weight * pixel(estimate, high) + content(estimate, high)
