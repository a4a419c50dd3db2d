"""train: a recipe becomes a run folder with weights; it can be stopped anywhere and gone on with."""

from __future__ import annotations

import logging
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsr.card import TrainingCard
from medsr.checkpoint import Checkpoint, build_network, load_checkpoint, load_upscaler
from medsr.config import dump_config
from medsr.methods.ikc import IkcNetwork
from medsr.methods.network import Network
from medsr.recipe import AdversarialRecipe, IkcRecipe, Recipe
from medsr.training.alternation import NotFiniteError
from medsr.training.callbacks import Averaged, Keeper, RandomNumbers, Validation
from medsr.training.context import asks_for_a_measured_halo, measure_halos
from medsr.training.data import (
    PatchDataset,
    PatchLoader,
    PatchSampler,
    Shelf,
    loader_workers,
    patch_transforms,
    window_of,
)
from medsr.training.engine import Place, build_trainer, find_place, quiet
from medsr.training.errors import TrainingError
from medsr.training.phases import AdversarialPhase, CorrectionPhase, Phase, PhaseName, PixelPhase
from medsr.training.preflight import check_game, check_paths, is_out_of_memory
from medsr.training.resume import RESUME, Notes, check_inputs, check_same, plain_recipe, read_notes
from medsr.training.runfolder import BEST, LAST, PIXEL, claim_folder, finish_folder, is_finished, keep_weights
from medsr.training.runlog import Report, RunLog
from medsr.training.start import expect_blurs, start_from
from medsr.training.survey import Split, blank_card, split_scans
from medsr.training.validation import Crop, held_out_crops
from medsr.training.widths import LearnedBeside, first_widths

__all__ = ["TrainingError", "train"]

log = logging.getLogger("medsr.training")

GRAY_DRAWS = 64
"""Training patches whose mean and spread tell a content loss what black and white are."""


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
    """Train the network of a recipe; the pixel phase, then (SRGAN) the adversarial or (IKC) the correction phase.

    The run folder holds `best.ckpt`, `last.ckpt` (weights that can be used: averaged, safetensors), `recipe.yaml`,
    `log.jsonl`, `tensorboard/`, `pictures/` and `resume.ckpt` (the whole state, data only). `best.ckpt` is what
    `--checkpoint RUN` finds: the weights with the highest PSNR on held-out scans, of the correction phase once it has
    begun; once the adversarial phase has begun its latest, for there PSNR falls by design and ranks nothing. The best
    of the pixel phase then stays as `pixel.ckpt`, and is what the phase after it starts from.

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
    recipe = recipe.model_copy(update={"out": folder})
    place = find_place(recipe.training)
    notes = read_notes(folder) if resume else None
    if notes is not None:
        check_same(folder, notes, recipe, world=place.world)
    elif place.rank == 0:
        claim_folder(folder, resume=resume)
    trained = notes is not None and notes.over and notes.phase == _phases(recipe)[-1]
    if notes is not None and trained and (not asks_for_a_measured_halo(recipe) or is_finished(folder)):
        if place.rank == 0:
            finish_folder(folder, adversarial=notes.phase == "adversarial")
            log.info("%s: this run is finished; nothing is left to do", folder)
        return folder
    check_paths(recipe, begun=notes is not None)
    with quiet(place.rank), torch.random.fork_rng():
        check_game(recipe)
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
        measure_halos(folder, recipe, run.shelf, run.split, run.crops, device=place.device)
        finish_folder(folder, adversarial="adversarial" in steps)
    return folder


def _phases(recipe: Recipe) -> list[PhaseName]:
    """The phases a recipe has, in order."""
    return [name for name, steps in _counts(recipe) if steps > 0]


def _counts(recipe: Recipe) -> list[tuple[PhaseName, int]]:
    """All phases in order, and how many steps of each a recipe asks for."""
    training = recipe.training
    return [
        ("pixel", training.pixel_steps),
        ("adversarial", training.adversarial_steps),
        ("correction", training.correction_steps),
    ]


def _is_done(notes: Notes, name: PhaseName, recipe: Recipe) -> bool:
    names = _phases(recipe)
    return names.index(name) < names.index(notes.phase) or (name == notes.phase and notes.over)


def _prepare(folder: Path, recipe: Recipe, place: Place, notes: Notes | None) -> Run:
    """Open the scans, split them, and cut the crops to validate on."""
    shelf = Shelf(recipe)
    split = split_scans(recipe, shelf)
    card = blank_card(split, recipe, shelf)
    if notes is not None:
        check_inputs(folder, notes, card.inputs, card.held_out)
    begun = None if notes is None else (notes.phase, notes.step)
    crops = held_out_crops(split.validation, recipe, shelf) if place.rank == 0 else []
    active = place.rank == 0
    if active:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        dump_config(recipe, folder / "recipe.yaml")
    runlog = RunLog(folder, begun=begun, pixel_steps=recipe.training.pixel_steps, active=active)
    if notes is None and active:
        runlog.row(_phases(recipe)[0], 0, event="split", note=split.note, crops=len(crops))
        if split.rows:
            runlog.row(_phases(recipe)[0], 0, event="pairs", **split.rows)
    if active:
        log.info("%s", split.note)
        if isinstance(recipe.method, AdversarialRecipe) and recipe.training.adversarial_steps == 0:
            log.info(
                "training.adversarial_steps is 0: an %s is trained, method.kind %s or not",
                recipe.method.pixel_name,
                recipe.method.kind,
            )
        if isinstance(recipe.method, IkcRecipe) and recipe.training.correction_steps == 0:
            log.info("training.correction_steps is 0: the network will assume the middle of the blurs for every scan")
    return Run(folder, recipe, place, shelf, split, card, crops, runlog)


def _run_phase(run: Run, name: PhaseName, steps: dict[str, int], begun: Notes | None) -> int:
    """One phase, from its beginning or from where it stopped; returns the steps that were done.

    Raises:
        TrainingError: a loss is not finite.
        KeyboardInterrupt: it was stopped.
    """
    recipe = run.recipe
    number = int(name != "pixel")  # no method has both of the phases that may follow
    torch.manual_seed(recipe.seed * 2 + number)
    phase, loader = _build_phase(run, name, number, begun=begun is not None)
    parents = _parents(run, name, begun=begun is not None)
    averaged = Averaged(phase.network, decay=recipe.training.ema)
    beside = None
    if recipe.training.widths:
        before = None if begun is not None else _checkpoint_before(run, name)
        beside = LearnedBeside(first_widths(before, recipe), recipe.training)
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
            recipe=plain_recipe(recipe),
            inputs=run.card.inputs,
            held_out=run.card.held_out,
            world=run.place.world,
            phase=name,
            step=done,
            over=over,
            steps={**steps, name: done},
        )
        return plain.model_dump(mode="json")

    def keep(done: int) -> None:
        figures = {k: v for k, v in validation.figures.items() if math.isfinite(v)} if validation.fresh else {}
        done_so_far = {"steps": {**steps, name: done}, "validation": figures, "parents": parents}
        widths = None if beside is None else beside.kept
        card = run.card.model_copy(update={**done_so_far, "widths": None if beside is None else beside.facts})
        best = validation.fresh and (validation.is_best or name == "adversarial")
        keep_weights(run.folder, averaged.network, recipe, widths=widths, card=card, phase=name, best=best)

    keeper = Keeper(run.folder / RESUME, notes=notes, keep=keep, validation=validation)
    callbacks = [averaged, *([] if beside is None else [beside]), RandomNumbers(), report, validation, keeper]
    trainer = build_trainer(run.place, recipe, name, callbacks=callbacks, folder=run.folder)
    state = None if begun is None else run.folder / RESUME
    try:
        trainer.fit(phase, train_dataloaders=loader, ckpt_path=state, weights_only=True)
    except NotFiniteError as error:
        raise _not_finite(run, phase, error) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(run, phase, error) from error
    except SystemExit:  # the engine's answer to a second Ctrl-C
        raise KeyboardInterrupt(_how_to_resume(run)) from None
    if keeper.interrupted:
        log.warning("%s", _how_to_resume(run))
        raise KeyboardInterrupt(_how_to_resume(run))
    if run.place.rank == 0 and not (run.folder / BEST).exists():
        raise TrainingError(
            f"{run.folder}: {name} phase: expected a validation with a PSNR, found NaN in all; lower "
            "training.learning_rate, or use precision 32"
        )
    return phase.step + 1


def _build_phase(run: Run, name: PhaseName, number: int, *, begun: bool) -> tuple[Phase, PatchLoader]:
    """The module of a phase, with the weights it starts from (where it was begun, its state brings them), and its
    loader."""
    recipe, training = run.recipe, run.recipe.training
    spacings = [facts.spacing_um for facts in run.split.facts]
    dataset = PatchDataset(run.split.training, run.shelf, patch_transforms(recipe, spacings))
    window = window_of(max(facts.stored_bytes for facts in run.split.facts))
    sampler = PatchSampler(
        len(run.split.training),
        steps=dict(_counts(recipe))[name],
        batch=training.batch * training.accumulate,
        per_scan=recipe.data.patches_per_scan,
        window=window,
        seed=(recipe.seed, number),
        rank=run.place.rank,
        world=run.place.world,
    )
    loader = PatchLoader(dataset, sampler, workers=loader_workers(recipe), pin=run.place.device.type == "cuda")
    network = build_network(recipe.method) if begun else _first_weights(run, name)
    if name == "pixel":
        return PixelPhase(recipe, network), loader
    if isinstance(network, IkcNetwork):
        return CorrectionPhase(recipe, network), loader
    return AdversarialPhase(recipe, network, gray=_gray(dataset, recipe)), loader


def _first_weights(run: Run, name: PhaseName) -> Network:
    """New weights, those the recipe starts from, or the best of the pixel phase."""
    recipe = run.recipe
    network = build_network(recipe.method)
    spacings = [facts.spacing_um for facts in run.split.facts]
    if name != "pixel" and recipe.training.pixel_steps > 0:
        network.load_state_dict(load_checkpoint(run.folder / PIXEL).network.state_dict())
    elif recipe.training.start is not None:
        start_from(recipe.training.start, network, recipe, spacings=spacings)
    elif isinstance(network, IkcNetwork):
        expect_blurs(network, recipe, spacings)
    return network


def _checkpoint_before(run: Run, name: PhaseName) -> Checkpoint | None:
    """The weights a phase starts from: the best of the pixel phase, those the recipe starts from, or none."""
    training = run.recipe.training
    if name != "pixel" and training.pixel_steps > 0:
        return load_checkpoint(run.folder / PIXEL)
    return None if training.start is None else load_checkpoint(load_upscaler(training.start).path)


def _parents(run: Run, name: PhaseName, *, begun: bool) -> tuple[str, ...]:
    """SHA-256 of the weights a phase started from; of a phase gone on with, whose start may be gone, as it was kept."""
    training = run.recipe.training
    if begun and training.start is not None and (name == "pixel" or training.pixel_steps == 0):
        return load_checkpoint(run.folder / LAST).card.parents if (run.folder / LAST).exists() else ()
    before = _checkpoint_before(run, name)
    return () if before is None else (before.sha256,)


def _gray(dataset: PatchDataset, recipe: Recipe) -> tuple[float, float]:
    """Mean and standard deviation of some training patches; they follow from the seed."""
    seeds = range(GRAY_DRAWS)
    highs = [dataset[(seed % len(dataset.portions), recipe.seed + seed)][1] for seed in seeds]
    values = torch.stack(highs)
    return float(values.mean()), float(values.std())


def _not_finite(run: Run, phase: Phase, error: NotFiniteError) -> TrainingError:
    rate = "adversarial_learning_rate" if phase.name == "adversarial" else "learning_rate"
    last = run.folder / LAST
    kept = f"the last good weights are in {last}" if last.exists() else "no weights were kept yet"
    return TrainingError(
        f"{run.folder}: {phase.name} step {phase.step + 1}: expected a finite loss, found {error}; lower "
        f"training.{rate}, keep gradient_clip above 0, or use precision 32; {kept}"
    )


def _out_of_memory(run: Run, phase: Phase, error: BaseException) -> TrainingError:
    training, patch = run.recipe.training, list(run.recipe.data.patch)
    where = "GPU" if run.place.device.type == "cuda" else "machine"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TrainingError(
        f"{run.folder}: {phase.name} step {phase.step + 1}: expected the step to fit in the memory of this {where}, "
        f"found too little ({reason}); lower training.batch (now {training.batch}) and raise training.accumulate (now "
        f"{training.accumulate}) to make up for it, take a smaller data.patch (now {patch}) or a smaller network "
        f"(now {_size(run)}), in another run folder (--out)"
    )


def _size(run: Run) -> str:
    """The settings of the network that are numbers."""
    plain = run.recipe.method.model_dump(exclude={"factor", *AdversarialRecipe.model_fields})
    return ", ".join(f"{name} {value}" for name, value in plain.items() if isinstance(value, int))


def _how_to_resume(run: Run) -> str:
    config, folder = (shlex.quote(str(path)) for path in (run.folder / "recipe.yaml", run.folder))
    return f"{run.folder}: stopped, everything is kept; go on with: medsr train {config} --resume --out {folder}"
