"""train: a recipe becomes a run folder with weights; it can be stopped anywhere and gone on with."""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from medsr.card import TrainingCard
from medsr.checkpoint import build_network, load_checkpoint, load_upscaler, save_checkpoint
from medsr.methods.srresnet import SRResNet
from medsr.recipe import Recipe
from medsr.training.alternation import NotFiniteError
from medsr.training.callbacks import Averaged, Keeper, RandomNumbers, Validation
from medsr.training.data import PatchDataset, PatchLoader, PatchSampler, Shelf, patch_transforms, window_of
from medsr.training.errors import TrainingError
from medsr.training.phases import AdversarialPhase, Phase, PhaseName, PixelPhase
from medsr.training.resume import RESUME, Notes, check_inputs, check_same, read_notes
from medsr.training.runlog import Report, RunLog
from medsr.training.survey import Split, blank_card, split_scans
from medsr.training.validation import Crop, held_out_crops

__all__ = ["TrainingError", "train"]

log = logging.getLogger("medsr.training")

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

GRAY_DRAWS = 64
"""Training patches whose mean and spread tell a content loss what black and white are."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training runs: on which device, and which of how many processes this is (torchrun says)."""

    device: torch.device
    rank: int
    world: int
    local_world: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run at work: its folder, what it learns from, and what it says."""

    folder: Path
    recipe: Recipe
    place: Place
    shelf: Shelf
    split: Split
    card: TrainingCard
    crops: list[Crop]
    runlog: RunLog


def train(recipe: Recipe, *, resume: bool = False, out: Path | None = None) -> Path:
    """Train the network of a recipe; the pixel phase, then (SRGAN) the adversarial phase.

    The run folder holds `best.ckpt`, `last.ckpt` (weights that can be used: averaged, safetensors), `recipe.yaml`,
    `log.jsonl`, `tensorboard/`, `pictures/` and `resume.ckpt` (the whole state, data only). `best.ckpt` is what
    `--checkpoint RUN` finds: of the pixel phase the weights with the highest PSNR on held-out scans; once the
    adversarial phase has begun its latest, for there PSNR falls by design and ranks nothing. The best of the pixel
    phase then stays as `pixel.ckpt`, and is what the adversarial phase starts from.

    On a terminal a bar shows the time left. Ctrl-C lets the step at work end, keeps everything and stops.

    Args:
        recipe: how to train.
        resume: go on with the run in the folder, where it stopped; on the CPU the final weights are, bit for bit,
            those of a run that never stopped. Where there is nothing to go on with, begin.
        out: run folder, instead of the recipe's.

    Returns:
        The run folder.

    Raises:
        TrainingError: the folder holds another run; no scan can be used; a recipe that asks for what is not there;
            another recipe or other scans on resume; a loss that is not finite.
        ValueError: a degradation in micrometers meets a scan of unknown spacing.
        KeyboardInterrupt: it was stopped; its text says how to go on.
    """
    folder = recipe.out if out is None else Path(out)
    place = _place(recipe)
    notes = read_notes(folder) if resume else None
    if notes is not None:
        check_same(folder, notes, recipe, world=place.world)
    elif place.rank == 0:
        _claim(folder, recipe, resume=resume)
    if notes is not None and notes.over and notes.phase == _phases(recipe)[-1]:
        log.info("%s: this run is finished; nothing is left to do", folder)
        return folder
    with _quiet(), torch.random.fork_rng():
        run = _prepare(folder, recipe, place, notes)
        try:
            steps = {} if notes is None else dict(notes.steps)
            for name in _phases(recipe):
                if notes is None or not _is_done(notes, name, recipe):
                    begun = notes if notes is not None and notes.phase == name else None
                    steps[name] = _run_phase(run, name, steps, begun)
        finally:
            run.runlog.close()
    if place.rank == 0:
        _finish(run, steps)
    return folder


def _phases(recipe: Recipe) -> list[PhaseName]:
    """The phases a recipe has, in order."""
    training = recipe.training
    counts: list[tuple[PhaseName, int]] = [
        ("pixel", training.pixel_steps),
        ("adversarial", training.adversarial_steps),
    ]
    return [name for name, steps in counts if steps > 0]


def _is_done(notes: Notes, name: PhaseName, recipe: Recipe) -> bool:
    names = _phases(recipe)
    return names.index(name) < names.index(notes.phase) or (name == notes.phase and notes.over)


def _place(recipe: Recipe) -> Place:
    """The device a recipe asks for, and what torchrun says of the processes.

    Raises:
        TrainingError: there is no GPU, or the precision needs one.
    """
    training = recipe.training
    if training.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "training.device: expected a CUDA GPU that torch can use, found none; set it to auto or cpu"
        )
    cuda = torch.cuda.is_available() and training.device != "cpu"
    if training.precision == "fp16" and not cuda:
        raise TrainingError("training.precision: expected a CUDA GPU for fp16, found none; use bf16 or 32")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if cuda and world == 1 and torch.cuda.device_count() > 1:
        log.info("one of %d GPUs is used; torchrun --nproc-per-node N uses N", torch.cuda.device_count())
    index = int(os.environ.get("LOCAL_RANK", "0"))
    return Place(torch.device("cuda", index) if cuda else torch.device("cpu"), rank, world, local)


def _claim(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the run folder, and write the recipe into it.

    Raises:
        TrainingError: it holds a run already.
    """
    traces = [name for name in ("best.ckpt", "last.ckpt", "recipe.yaml", RESUME) if (folder / name).exists()]
    if traces and not resume:
        raise TrainingError(
            f"{folder}: expected a new run folder, found {' and '.join(traces)} of a run; go on with it (--resume), or "
            "choose another folder (--out)"
        )
    if resume:
        log.info("%s: no state to go on with yet; beginning", folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    _write_yaml(folder / "recipe.yaml", recipe)


def _write_yaml(path: Path, recipe: Recipe) -> None:
    """The recipe with all its settings, as `load_config` reads it back."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def arranged(value: Any) -> Any:
        if isinstance(value, dict):
            return CommentedMap({key: arranged(entry) for key, entry in value.items()})
        if isinstance(value, list):
            row = CommentedSeq(value)
            row.fa.set_flow_style()
            return row
        return value

    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(arranged(recipe.model_dump(mode="json")), stream)


def _prepare(folder: Path, recipe: Recipe, place: Place, notes: Notes | None) -> Run:
    """Open the scans, split them, and cut the crops to validate on."""
    shelf = Shelf(recipe)
    split = split_scans(recipe, shelf)
    card = blank_card(split, recipe)
    if notes is not None:
        check_inputs(folder, notes, card.inputs)
    begun = None if notes is None else (notes.phase, notes.step)
    crops = held_out_crops(split.validation, recipe, shelf) if place.rank == 0 else []
    active = place.rank == 0
    runlog = RunLog(folder, begun=begun, pixel_steps=recipe.training.pixel_steps, active=active)
    if notes is None:
        runlog.row(_phases(recipe)[0], 0, event="split", note=split.note, crops=len(crops))
    if active:
        log.info("%s", split.note)
    return Run(folder, recipe, place, shelf, split, card, crops, runlog)


def _run_phase(run: Run, name: PhaseName, steps: dict[str, int], begun: Notes | None) -> int:
    """One phase, from its beginning or from where it stopped; returns the steps that were done.

    Raises:
        TrainingError: a loss is not finite.
        KeyboardInterrupt: it was stopped.
    """
    recipe = run.recipe
    number = ("pixel", "adversarial").index(name)
    torch.manual_seed(recipe.seed * 2 + number)
    phase, loader = _build_phase(run, name, number)
    averaged = Averaged(phase.network, decay=recipe.training.ema)
    report = Report(run.runlog, every=recipe.training.validate_every_steps)
    validation = Validation(
        averaged,
        run.crops,
        every=recipe.training.validate_every_steps,
        patience=recipe.training.patience if name == "pixel" else None,
        runlog=run.runlog,
        report=report,
        pictures=run.folder / "pictures",
    )

    def notes(done: int, over: bool) -> dict[str, Any]:
        plain = Notes(
            recipe=recipe.model_dump(mode="json"),
            inputs=run.card.inputs,
            world=run.place.world,
            phase=name,
            step=done,
            over=over,
            steps={**steps, name: done},
        )
        return plain.model_dump(mode="json")

    def keep(done: int) -> None:
        _keep(run, phase, validation, averaged.network, {**steps, name: done})

    keeper = Keeper(run.folder / RESUME, notes=notes, keep=keep, validation=validation)
    trainer = _trainer(run, name, [averaged, RandomNumbers(), report, validation, keeper])
    state = None if begun is None else run.folder / RESUME
    try:
        trainer.fit(phase, train_dataloaders=loader, ckpt_path=state, weights_only=True)
    except NotFiniteError as error:
        raise _not_finite(run, phase, error) from None
    except SystemExit:  # the engine's answer to a second Ctrl-C
        raise KeyboardInterrupt(_how_to_resume(run)) from None
    if keeper.interrupted:
        log.warning("%s", _how_to_resume(run))
        raise KeyboardInterrupt(_how_to_resume(run))
    return phase.step + 1


def _build_phase(run: Run, name: PhaseName, number: int) -> tuple[Phase, PatchLoader]:
    """The module of a phase, with the weights it starts from, and its loader."""
    recipe, training = run.recipe, run.recipe.training
    spacings = [facts.spacing_um for facts in run.split.facts]
    dataset = PatchDataset(run.split.training, run.shelf, patch_transforms(recipe, spacings))
    window = window_of(max(facts.stored_bytes for facts in run.split.facts))
    sampler = PatchSampler(
        len(run.split.training),
        steps=training.pixel_steps if name == "pixel" else training.adversarial_steps,
        batch=training.batch * training.accumulate,
        per_scan=recipe.data.patches_per_scan,
        window=window,
        seed=(recipe.seed, number),
        rank=run.place.rank,
        world=run.place.world,
    )
    loader = PatchLoader(dataset, sampler, workers=training.loader_workers, pin=run.place.device.type == "cuda")
    network = _first_weights(run, name)
    if name == "pixel":
        return PixelPhase(recipe, network), loader
    return AdversarialPhase(recipe, network, gray=_gray(dataset, recipe)), loader


def _first_weights(run: Run, name: PhaseName) -> SRResNet:
    """New weights, those the recipe starts from, or the best of the pixel phase."""
    recipe = run.recipe
    network = build_network(recipe.method)
    pixel = run.folder / "pixel.ckpt"
    if name == "adversarial" and recipe.training.pixel_steps > 0:
        network.load_state_dict(load_checkpoint(pixel).network.state_dict())
    elif recipe.training.start is not None:
        start = load_upscaler(recipe.training.start, factor=recipe.method.factor)
        try:
            network.load_state_dict(start.network.state_dict())
        except RuntimeError as error:
            raise TrainingError(
                f"{recipe.training.start}: training.start: expected weights of the recipe's network, found others "
                f"({start!r}); set features, blocks, norm and kernels as that run had them"
            ) from error
    return network


def _gray(dataset: PatchDataset, recipe: Recipe) -> tuple[float, float]:
    """Mean and standard deviation of some training patches; they follow from the seed."""
    seeds = range(GRAY_DRAWS)
    highs = [dataset[(seed % len(dataset.portions), recipe.seed + seed)][1] for seed in seeds]
    values = torch.stack(highs)
    return float(values.mean()), float(values.std())


def _trainer(run: Run, name: PhaseName, callbacks: list[Any]) -> Trainer:
    place = run.place
    strategy = "auto"
    if place.world > 1:  # each player's turn leaves the other's parameters unused
        strategy = "ddp" if name == "pixel" else "ddp_find_unused_parameters_true"
    return Trainer(
        accelerator="gpu" if place.device.type == "cuda" else "cpu",
        devices=place.local_world,
        num_nodes=place.world // place.local_world,
        strategy=strategy,
        precision=PRECISIONS[run.recipe.training.precision],
        max_epochs=1,  # the loader delivers every step of the phase
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=run.folder,
    )


def _keep(run: Run, phase: Phase, validation: Validation, network: SRResNet, steps: dict[str, int]) -> None:
    """Write the weights that can be used: `last.ckpt` always, `best.ckpt` (and `pixel.ckpt`) where they are it."""
    figures = {k: v for k, v in validation.figures.items() if math.isfinite(v)} if validation.fresh else {}
    card = run.card.model_copy(update={"steps": dict(steps), "validation": figures})
    recipe = _shareable(run.recipe)
    save_checkpoint(run.folder / "last.ckpt", network, recipe, card)
    if not validation.fresh or (phase.name == "pixel" and not validation.is_best):
        return
    save_checkpoint(run.folder / "best.ckpt", network, recipe, card)
    if phase.name == "pixel" and run.recipe.training.adversarial_steps > 0:
        shutil.copyfile(run.folder / "best.ckpt", run.folder / ".pixel.part")
        (run.folder / ".pixel.part").replace(run.folder / "pixel.ckpt")


def _shareable(recipe: Recipe) -> Recipe:
    """The recipe without the path it started from, which is nobody else's business."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"start": None})})


def _finish(run: Run, steps: dict[str, int]) -> None:
    """Mark the weights of a run that came to its end."""
    for name in ("best.ckpt", "last.ckpt"):
        kept = load_checkpoint(run.folder / name)
        card = kept.card.model_copy(update={"finished": True})
        save_checkpoint(run.folder / name, kept.network, kept.recipe, card)
        figures = kept.card.validation
        if name == "best.ckpt" and "adversarial" in steps and figures["psnr_db"] < figures["psnr_db_cubic"] - 3:
            log.warning(
                "%s: the adversarial phase ended %.1f dB below cubic; look at the pictures, lower adversarial_weight "
                "or content.weight, or use pixel.ckpt", run.folder, figures["psnr_db_cubic"] - figures["psnr_db"]
            )  # fmt: skip


def _not_finite(run: Run, phase: Phase, error: NotFiniteError) -> TrainingError:
    rate = "learning_rate" if phase.name == "pixel" else "adversarial_learning_rate"
    last = run.folder / "last.ckpt"
    kept = f"the last good weights are in {last}" if last.exists() else "no weights were kept yet"
    return TrainingError(
        f"{run.folder}: {phase.name} step {phase.step + 1}: expected a finite loss, found {error}; lower "
        f"training.{rate}, keep gradient_clip above 0, or use precision 32; {kept}"
    )


def _how_to_resume(run: Run) -> str:
    return f"{run.folder}: stopped, everything is kept; go on with: medsr train CONFIG --resume --out {run.folder}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No banners and tips of the engine; its warnings that do not concern a user are left out by their words."""
    names = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for words in (
                ".*does not have many workers.*",  # patches are cheap; the recipe sets the workers
                ".*GPU available but not used.*",  # the recipe says so
                ".*isinstance\\(treespec, LeafSpec\\).*",  # the engine and torch among themselves
            ):
                warnings.filterwarnings("ignore", message=words)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
