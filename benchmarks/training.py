"""Training steps a second: `medsr.train` against a plain PyTorch loop of the same networks, losses and optimizer.

    python benchmarks/training.py [--steps 30] [--rounds 5]
    python benchmarks/training.py --device cuda --precision bf16 --features 64 --blocks 16 --batch 16 --steps 200

medsr runs as a user runs it: patches cut, turned and degraded by its loader, Lightning's loop, averaged weights, a log.
The plain loop takes patches that lie ready on the device, and does what decides the weights: losses, gradients, the
limit on them, Adam, the average. Validation and start-up are outside of the clock in both. `waiting` is the share of
the time in which the device had nothing to do because the loader had no batch ready; `without waiting` is medsr's loop
alone.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from paired import Column, Figures, answer, command_line, finish, own_process, report, run_rounds

import medsr

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mammo.yaml"
PHASES = ("pixel", "adversarial")
WARM = 5
"""Steps before the clock starts: allocators, algorithm choices, the first opening of the scan."""

BETAS = (0.9, 0.99)
BATCHES = 8
"""Batches that the plain loop goes round in."""

COLUMNS = (
    Column("steps_per_s", "steps/s", ".2f", ratio=True),
    Column("waiting", "waiting", ".1%"),
    Column("without_waiting", "steps/s without waiting", ".2f", ratio=True),
)


def recipe_of(arguments: argparse.Namespace, phase: str, out: Path) -> medsr.Recipe:
    """The shipped recipe for mammograms, on the shipped sample, at the size of this benchmark."""
    steps = arguments.steps + WARM
    settings = {
        "method.features": arguments.features,
        "method.blocks": arguments.blocks,
        "method.discriminator_features": arguments.features,
        "data.patch": [arguments.patch] * 2,
        "data.validation_crops": 1,
        "training.batch": arguments.batch,
        "training.precision": f'"{arguments.precision}"',
        "training.loader_workers": arguments.workers,
        "training.device": arguments.device,
        "training.pixel_steps": steps if phase == "pixel" else 0,
        "training.adversarial_steps": steps if phase == "adversarial" else 0,
        "training.validate_every_steps": 10 * steps,
        "out": out,
    }
    return medsr.load_config(CONFIG, medsr.Recipe, [f"{key}={value}" for key, value in settings.items()])


@dataclass
class Watch:
    """When a training loop asked its loader for each batch, and when it had it; on a GPU, by the device's own clock.

    A mark on a GPU is an event in its queue: it passes when all work given before it is done. From the mark of asking
    to that of having, then, the device waited.
    """

    device: str
    asked: list[Any] = field(default_factory=list)
    had: list[Any] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch every DataLoader of this process."""
        from torch.utils.data import DataLoader

        plain = DataLoader.__iter__

        def watched(loader: Any) -> Iterator[Any]:
            batches = plain(loader)
            while True:
                self.asked.append(self._mark())
                batch = next(batches, None)
                if batch is None:
                    return
                self.had.append(self._mark())
                yield batch

        DataLoader.__iter__ = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            DataLoader.__iter__ = plain  # type: ignore[method-assign]

    def figures(self) -> Figures:
        """Steps a second and the share of waiting, from the batch after the warm steps to the last one."""
        steps = len(self.had) - 1 - WARM
        seconds = self._between(self.had[WARM], self.had[-1])
        waited = sum(self._between(self.asked[i], self.had[i]) for i in range(WARM + 1, len(self.had)))
        return {
            "steps_per_s": steps / seconds,
            "waiting": waited / seconds,
            "without_waiting": steps / (seconds - waited),
        }

    def _mark(self) -> Any:
        if self.device == "cpu":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, last: Any) -> float:
        if self.device == "cpu":
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000


def run_medsr(arguments: argparse.Namespace, phase: str) -> Figures:
    """A training of medsr from its recipe to its last step."""
    watch = Watch(arguments.device)
    with tempfile.TemporaryDirectory() as folder, watch.watching():
        medsr.train(recipe_of(arguments, phase, Path(folder) / "run"))
    return watch.figures()


def run_plain(arguments: argparse.Namespace, phase: str) -> Figures:
    """The plain loop."""
    import torch

    recipe = recipe_of(arguments, phase, Path("unused"))
    batches = itertools.cycle(ready_batches(recipe, arguments.device))
    step = (PixelLoop if phase == "pixel" else AdversarialLoop)(recipe, arguments.device).step
    wait: Callable[[], None] = torch.cuda.synchronize if arguments.device != "cpu" else lambda: None
    for _ in range(WARM):
        step(*next(batches))
    wait()
    begun = time.perf_counter()
    for _ in range(arguments.steps):
        step(*next(batches))
    wait()
    rate = arguments.steps / (time.perf_counter() - begun)
    return {"steps_per_s": rate, "waiting": 0.0, "without_waiting": rate}


def ready_batches(recipe: medsr.Recipe, device: str) -> list[tuple[Any, Any]]:
    """Some batches of coarse and fine patches of the shipped mammogram, on the device."""
    import torch

    patch = medsr.RandPatchd("high", recipe.data.patch, foreground=recipe.data.foreground)
    degrade = medsr.RandDegraded("high", recipe.degradation, recipe.method.factor)
    patch.set_random_state(seed=0)
    degrade.set_random_state(seed=0)
    scan = medsr.read_scan(medsr.MAMMOGRAM)
    items = [degrade(patch({"high": scan})) for _ in range(BATCHES * recipe.training.batch)]
    low, high = (torch.stack([item[key].as_subclass(torch.Tensor) for item in items]) for key in ("low", "high"))
    size = recipe.training.batch
    return list(zip(low.to(device).split(size), high.to(device).split(size), strict=True))


class PixelLoop:
    """SRResNet on the pixel loss, as one writes it by hand."""

    def __init__(self, recipe: medsr.Recipe, device: str) -> None:
        import torch

        self.training = recipe.training
        self.network = medsr.build_network(recipe.method).to(device).train()
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.training.learning_rate, betas=BETAS)
        half = self.training.precision == "bf16"
        self.cast = partial(torch.autocast, device, torch.bfloat16, enabled=half)

    def step(self, low: Any, high: Any) -> Any:
        """One step; returns the loss, on the device."""
        from torch.nn import functional

        with self.cast():
            loss = functional.l1_loss(self.network(low).float(), high)
        learn(self.optimizer, loss, self.training.gradient_clip)
        average(self.averaged, self.network, self.training.ema)
        return loss.detach()


class AdversarialLoop(PixelLoop):
    """SRGAN's two players in turns: relativistic game, pixel loss, features of the discriminator."""

    def __init__(self, recipe: medsr.Recipe, device: str) -> None:
        import torch

        super().__init__(recipe, device)
        self.method = recipe.method
        features = recipe.method.discriminator_features
        self.discriminator = medsr.SrganDiscriminator(2, features=features, norm="batch").to(device).train()
        rate = self.training.adversarial_learning_rate
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate, betas=BETAS)
        self.judge = torch.optim.Adam(self.discriminator.parameters(), rate, betas=BETAS)

    def step(self, low: Any, high: Any) -> Any:
        """One round of the game; returns the generator's loss, on the device."""
        import torch
        from torch.nn import functional

        method, judge = self.method, self.discriminator
        with self.cast():
            fake = self.network(low)
            d_loss = relativistic(judge(high), judge(fake.detach()))
        learn(self.judge, d_loss, self.training.gradient_clip)
        judge.requires_grad_(False)
        with self.cast():
            with torch.no_grad():
                wanted, real = judge.features(high), judge(high)
            pairs = zip(judge.features(fake), wanted, strict=True)
            content = [functional.l1_loss(f.float(), w.float()) / w.float().abs().mean() for f, w in pairs]
            loss = method.pixel_weight * functional.l1_loss(fake.float(), high)
            loss = loss + method.content.weight * torch.stack(content).mean()
            loss = loss + method.adversarial_weight * relativistic(judge(fake), real)
        learn(self.optimizer, loss, self.training.gradient_clip)
        judge.requires_grad_(True)
        average(self.averaged, self.network, self.training.ema)
        return loss.detach()


def relativistic(winner: Any, loser: Any) -> Any:
    """Whether the winner looks more real than the average loser, and the reverse (Jolicoeur-Martineau 2019)."""
    from torch.nn.functional import softplus

    winner, loser = winner.float(), loser.float()
    return 0.5 * (softplus(loser.mean() - winner).mean() + softplus(loser - winner.mean()).mean())


def learn(optimizer: Any, loss: Any, clip: float) -> None:
    """Gradient, its limit, step."""
    import torch

    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip > 0:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


def average(kept: Any, network: Any, decay: float) -> None:
    """Move the averaged weights towards the network's."""
    import torch

    with torch.no_grad():
        for old, new in zip(kept.parameters(), network.parameters(), strict=True):
            old.lerp_(new, 1 - decay)


WAYS = {"medsr": run_medsr, "plain loop": run_plain}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The size of the training, small enough for a CPU."""
    parser.add_argument("--steps", type=int, default=30, help="steps on the clock (30)")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=96, help="fine samples of a patch along each axis (96)")
    parser.add_argument("--workers", type=int, default=0, help="processes of medsr's loader (0: in the loop)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")


def in_turn(arguments: argparse.Namespace, phase: str) -> dict[str, Any]:
    """Both ways of one phase, each run in a process of its own; prints the table."""
    names = ("steps", "features", "blocks", "batch", "patch", "workers", "device", "precision")
    options = [text for name in names for text in (f"--{name}", getattr(arguments, name))]
    ways = {way: partial(own_process, __file__, "--one", way, phase, *options) for way in WAYS}
    results = run_rounds(ways, arguments.rounds)
    title = (
        f"training, {phase} phase: x4, {arguments.blocks} blocks of {arguments.features} features, batch "
        f"{arguments.batch}, patch {arguments.patch}, precision {arguments.precision}, {arguments.device}, "
        f"{arguments.workers} loader processes"
    )
    return report(results, COLUMNS, base="plain loop", title=title, settings=arguments, device=arguments.device)


def main() -> int:
    """Run both ways in turn, phase by phase, and print the tables."""
    parser = command_line(__doc__, rounds=5)
    add_settings(parser)
    parser.add_argument("--phase", choices=PHASES, help="one phase only")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "PHASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, phase = arguments.one
        answer(**WAYS[way](arguments, phase))
        return 0
    phases = PHASES if arguments.phase is None else (arguments.phase,)
    return finish([in_turn(arguments, phase) for phase in phases], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
