"""compare: methods by name, trained where they must be, measured on the same coarse scans, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from pydantic import Field

from medsr.checkpoint import CheckpointError, TrainedUpscaler, load_upscaler
from medsr.degradation import Degradation, DegradationRange
from medsr.evaluation import evaluate
from medsr.io.pseudonyms import Pseudonyms
from medsr.methods.ikc import IkcRecipe
from medsr.methods.named import UNTRAINED
from medsr.methods.settings import AdversarialRecipe, NetworkRecipe, Part
from medsr.paired_evaluation import evaluate_pairs, is_pairs
from medsr.plan import Device
from medsr.recipe import DataRecipe, IntensityRule, Method, Recipe, TrainingRecipe
from medsr.scan import Factor, validate_factor
from medsr.scoring import EvaluationReport
from medsr.training import train
from medsr.upscaler import Upscaler

__all__ = ["KINDS", "Budget", "compare"]

KINDS: Mapping[str, type[NetworkRecipe]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(Method)[0])
}
"""The trained methods by the name a recipe calls them."""

SIDE = {2: 32, 3: 12}
"""Coarse samples of a training patch along each refined axis, where the budget's patch does not fit the factor."""


CORRECTED = 4
"""Pixel steps for each step in which an ikc method learns to find the blur: these cost several estimates each."""


class BudgetData(DataRecipe):
    """What is learned from; patches that suit small networks and a CPU."""

    patch: tuple[int, ...] = Field((64, 64), description="fine samples of a training patch for each axis")
    foreground: float = Field(0.1, ge=0, le=1, description="share of a patch that must be tissue or signal")


class BudgetTraining(TrainingRecipe):
    """How long and how fast; steps that suit a training of minutes."""

    batch: int = Field(8, ge=1, description="patches of one step, in each process")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step size in the pixel phase")
    adversarial_learning_rate: float = Field(2e-4, gt=0, description="Adam's step size in the adversarial phase")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights that are kept; 0: none")


class Budget(Part):
    """How the trained methods of a comparison are trained where no run of them is found: all alike, and small."""

    data: BudgetData = BudgetData()
    degradation: DegradationRange = DegradationRange()
    intensity: IntensityRule = IntensityRule()
    training: BudgetTraining = BudgetTraining()
    adversarial_share: float = Field(0.25, ge=0, le=4, description="adversarial steps for each pixel step")
    seed: int = Field(0, ge=0, description="every random number follows from it")


def compare(
    paths: Path | str | Sequence[Path | str],
    methods: Sequence[str],
    *,
    out: Path | str,
    factor: Factor = (2, 2),
    runs: Path | str | None = None,
    budget: Budget | None = None,
    more: Mapping[str, Upscaler] | None = None,
    degradation: Degradation | DegradationRange | None = None,
    series: str | int | None = None,
    memory: int | None = None,
    device: Device = "auto",
    pseudonyms: Pseudonyms | None = None,
    note: Callable[[str], None] | None = None,
    tick: Callable[[str, int, int], None] | None = None,
) -> EvaluationReport:
    """Measure methods on the same scans: each made coarse once, upscaled by each method, compared with the original.

    A name of `UNTRAINED` (cubic, edges, ...) is used as it is. A name of `KINDS` (srresnet, srgan, ...) is a trained
    method: its run is the folder of that name, or the only one of that kind and factor, in `runs`; with a budget one
    that is not there is trained, in its small size, into `out/runs/<name>`, where a later call finds it. A method
    with an adversary begins with the weights of its pixel method where that is compared too.

    Written are `out/scores.csv`, a row a scan and method (`EvaluationReport`), and `out/<scan>.png`, the same crop of
    all methods.

    Args:
        paths: files and folders of fine scans, which no method should have learned from (a warning says if so); or one
            folder of real pairs, with low/ and high/ (`evaluate_pairs`).
        methods: names, in the order of the table; a name in `more` is that method.
        out: folder, made if absent.
        factor: refinement of all methods.
        runs: folder of run folders.
        budget: how missing runs are trained; None: a missing run is an error.
        more: further methods by the names they have in the table.
        degradation: as in `evaluate`; None: that of the trained runs, which then has to be one; without a run the mean
            over each coarse sample.
        series, memory, device, pseudonyms, note, tick: as in `evaluate`; a checkpoint's card names no scan.

    Raises:
        ValueError: an unknown name, a run that is missing, or runs that were trained for different degradations.
        CheckpointError: a run that cannot be used.
        TrainingError: a training that cannot be done.
    """
    factor, out = validate_factor(factor), Path(out)
    names = list(dict.fromkeys(methods))
    _check_names(names, more or {})
    tell = note or (lambda _: None)
    more = dict(more or {})
    if isinstance(degradation, DegradationRange) and budget is not None:
        budget = _told(budget, degradation)
    upscalers: dict[str, Upscaler] = {}
    for name in _pixel_first([name for name in names if name in KINDS and name not in more]):
        upscalers[name] = _trained(name, factor, runs, out, budget, upscalers, tell)
    trained = [each for each in (*upscalers.values(), *more.values()) if isinstance(each, TrainedUpscaler)]
    if degradation is None and trained:
        degradation = _one_degradation(trained)
    known = _known(degradation, factor, tell)
    for name in names:
        if name in UNTRAINED and name not in more:
            upscalers[name] = UNTRAINED[name](factor, known)
    upscalers = {name: more[name] if name in more else upscalers[name] for name in names} | more
    if len(places := [paths] if isinstance(paths, (str, Path)) else list(paths)) == 1 and is_pairs(places[0]):
        return _on_pairs(Path(places[0]), upscalers, trained, out, series, memory, device, pseudonyms, tell)
    learned = {found.sha256 for each in trained for found in each.card.inputs}
    return evaluate(
        paths,
        upscalers,
        out=out,
        degradation=degradation,
        series=series,
        memory=memory,
        device=device,
        trained_on=learned,
        pseudonyms=pseudonyms,
        note=note,
        tick=tick,
    )


def _on_pairs(
    folder: Path,
    upscalers: Mapping[str, Upscaler],
    trained: Sequence[TrainedUpscaler],
    out: Path,
    series: str | int | None,
    memory: int | None,
    device: Device,
    pseudonyms: Pseudonyms | None,
    note: Callable[[str], None],
) -> EvaluationReport:
    """Real pairs: the measured coarse scans are upscaled, nothing is made coarse."""
    line = next((run.card.pairs for run in trained if run.card.pairs), {})
    return evaluate_pairs(
        folder,
        upscalers,
        out=out,
        line=(line.get("gain", 1.0), line.get("offset", 0.0)),
        rule=trained[0].recipe.data.registration if trained else "whole",
        series=series,
        memory=memory,
        device=device,
        trained_on={found.sha256 for run in trained for found in run.card.inputs},
        pseudonyms=pseudonyms,
        note=note,
    )


def _check_names(names: Sequence[str], more: Mapping[str, Upscaler]) -> None:
    known = (*UNTRAINED, *KINDS, *(name for name in more if name not in UNTRAINED and name not in KINDS))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        near = [close[0] for name in unknown if (close := get_close_matches(name, known, n=1))]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        found = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"methods: expected names out of {', '.join(known)}; found {found}.{hint}")


def _told(budget: Budget, degradation: DegradationRange) -> Budget:
    """The budget whose methods are trained for what they are measured on.

    Raises:
        ValueError: it names another degradation.
    """
    if budget.degradation not in (DegradationRange(), degradation):
        raise ValueError(
            "degradation: expected one for trainings and measuring, found another in the budget than was said; leave "
            "one of the two out"
        )
    return budget.model_copy(update={"degradation": degradation})


def _known(
    degradation: Degradation | DegradationRange | None, factor: Factor, note: Callable[[str], None]
) -> Degradation | None:
    """What a method that is not trained is told of the degradation; nothing where it depends on a scan's spacing."""
    if isinstance(degradation, Degradation) or degradation is None:
        return degradation
    made = degradation.told(factor)
    if made is not None:
        return made
    note("warning: methods that are not trained assume the mean over each coarse sample, for this blur differs by scan")
    return None


def _pixel_first(names: Sequence[str]) -> list[str]:
    """Methods with an adversary last, for they may begin with the weights of another."""
    return sorted(names, key=lambda name: name in KINDS and issubclass(KINDS[name], AdversarialRecipe))


def _trained(
    name: str,
    factor: Factor,
    runs: Path | str | None,
    out: Path,
    budget: Budget | None,
    others: Mapping[str, Upscaler],
    note: Callable[[str], None],
) -> TrainedUpscaler:
    """The run of a trained method, found or made."""
    places = [Path(place) for place in (runs, out / "runs") if place is not None]
    found = next((run for place in places if (run := _run_in(place, name, factor)) is not None), None)
    if found is not None and (budget is None or found.card.finished):
        if budget is not None and found.path.parent.parent == out / "runs":
            _check_same(found, budgeted(budget, KINDS[name], factor, out=out / "runs" / name, others=others))
        note(f"{name}: {found!r}")
        return found
    if budget is None:
        looked = " or ".join(map(str, places))
        raise ValueError(
            f"{name}: expected a run of it for the factor {list(factor)} in {looked}, found none; train one "
            f"(medsr train, method.kind: {name}), name the folder of your runs (--runs), or give scans to train on "
            "(--train)"
        )
    recipe = budgeted(budget, KINDS[name], factor, out=out / "runs" / name, others=others)
    note(f"{name}: no run found; training one: {recipe.training.pixel_steps} steps, in {recipe.out}")
    train(recipe, resume=True)
    return load_upscaler(recipe.out, factor=factor)


def _check_same(run: TrainedUpscaler, recipe: Recipe) -> None:
    """Refuse a run that an earlier comparison trained in another way; folders are not compared, for none is kept.

    Raises:
        ValueError: names the first setting that differs.
    """
    for part in ("method", "data", "intensity", "degradation", "training", "seed"):
        before, now = getattr(run.recipe, part), getattr(recipe, part)
        if isinstance(now, int):
            before, now = {"seed": before}, {"seed": now}
        else:
            before, now = before.model_dump(), now.model_dump()
        for key in now:
            paths = isinstance(now[key], Path) or isinstance(before[key], Path)
            if not paths and before[key] != now[key]:
                raise ValueError(
                    f"{run.path.parent}: expected a run trained with {part}.{key}: {now[key]}, found one with "
                    f"{before[key]}; choose another --out, or leave out what trains (--train) to use it as it is"
                )


def _run_in(place: Path, name: str, factor: Factor) -> TrainedUpscaler | None:
    """The run of a method in a folder of runs: the one of its name, else the only one of its kind and factor."""
    folders = [place / name, *sorted(place.iterdir())] if place.is_dir() else []
    fitting: dict[Path, TrainedUpscaler] = {}
    for folder in folders:
        if folder in fitting or not any((folder / kept).is_file() for kept in ("best.ckpt", "last.ckpt")):
            continue
        try:
            run = load_upscaler(folder)
        except CheckpointError:
            if folder.name == name:
                raise
            continue
        if run.factor == factor and run.name == name:
            if folder.name == name:
                return run
            fitting[folder] = run
    if len(fitting) > 1:
        raise ValueError(
            f"{name}: expected one run of it in {place}, found {', '.join(path.name for path in fitting)}; name the "
            f"folder of the one you mean {name!r}, or give a folder that holds only that one"
        )
    return next(iter(fitting.values()), None)


def budgeted(
    budget: Budget, kind: type[NetworkRecipe], factor: Factor, *, out: Path, others: Mapping[str, Upscaler]
) -> Recipe:
    """The recipe by which a method of a comparison is trained."""
    method = kind.small(factor)
    training, data = TrainingRecipe(**dict(budget.training)), DataRecipe(**dict(budget.data))
    if len(data.patch) != len(factor) or any(p % f or p < 4 * f for p, f in zip(data.patch, factor, strict=False)):
        data = data.model_copy(update={"patch": tuple(SIDE[len(factor)] * f for f in factor)})
    if isinstance(method, AdversarialRecipe):
        steps = {"adversarial_steps": max(1, round(budget.adversarial_share * training.pixel_steps))}
        parent = others.get(method.pixel_name)
        if isinstance(parent, TrainedUpscaler):
            training = training.model_copy(update={**steps, "pixel_steps": 0, "start": parent.path})
        else:
            training = training.model_copy(update=steps)
    if isinstance(method, IkcRecipe) and budget.degradation.blur_varies(method.factor):
        training = training.model_copy(update={"correction_steps": max(1, training.pixel_steps // CORRECTED)})
    return Recipe(
        method=method,
        data=data,
        intensity=budget.intensity,
        degradation=budget.degradation,
        training=training,
        seed=budget.seed,
        out=out,
    )


def _one_degradation(trained: Sequence[TrainedUpscaler]) -> DegradationRange:
    """The degradation that all runs were trained for.

    Raises:
        ValueError: they were trained for different ones.
    """
    first = trained[0].recipe.degradation
    for other in trained[1:]:
        if other.recipe.degradation != first:
            raise ValueError(
                f"degradation: expected runs that were trained for the same, found {trained[0].name} and {other.name} "
                "trained for different ones; say by which the scans are made coarse (--degradation)"
            )
    return first
