"""Widths that learn beside the network: it stays the same bit for bit; they are gone on with, kept and calibrated."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from typer.testing import CliRunner

from medsr.blending import blend_checkpoints
from medsr.card import TrainedWidths, TrainingCard
from medsr.checkpoint import CheckpointError, load_checkpoint, load_upscaler, save_checkpoint
from medsr.cli import app
from medsr.data import NUCLEI
from medsr.methods.widths import Widths, both_ends_loss, pinball
from medsr.recipe import Recipe
from medsr.training import train
from medsr.training.data import Shelf
from medsr.training.phases import AdversarialPhase, CorrectionPhase, PixelPhase
from medsr.training.survey import split_scans
from medsr.training.validation import held_out_crops
from medsr.training.widths import first_widths
from medsr.trust.distances import LearnedWidths
from medsr.trust.intervals import calibrate_run, load_intervals
from medsr.trust.model_card import render_card
from medsr.upscaler import fingerprint

SRGAN = {"kind": "srgan", "features": 4, "blocks": 1, "head_kernel": 3, "tail_kernel": 3, "discriminator_features": 4}
ESRGAN = {"kind": "esrgan", "features": 4, "blocks": 1, "growth": 4, "discriminator_features": 4}
IKC = {"kind": "ikc", "features": 4, "blocks": 1, "tail_kernel": 3, "estimator_features": 4, "corrections": 2}
BLUR = {"fwhm_samples": (0.4, 2.4), "read_noise": (0.0, 0.01)}

ASKED: dict[str, dict[str, Any]] = {
    "srgan": {"method": SRGAN, "training": {"adversarial_steps": 3}},
    "srgan-accumulated": {"method": SRGAN, "training": {"adversarial_steps": 2, "accumulate": 2, "schedule": "halve"}},
    "srgan-batch-norm": {"method": {**SRGAN, "norm": "batch"}, "training": {"adversarial_steps": 2}},
    "esrgan": {"method": ESRGAN, "training": {"adversarial_steps": 2}},
    "ikc": {"method": IKC, "training": {"correction_steps": 3}, "degradation": BLUR},
    "scn": {"method": {"kind": "scn"}},
    "fast-bf16": {"method": {"kind": "fast", "features": 4, "blocks": 1}, "training": {"precision": "bf16"}},
    "fast-fixed-line": {
        "method": {"kind": "fast", "features": 4, "blocks": 1},
        "intensity": {"black": 100.0, "white": 9000.0},
    },
    "fast-3d": {
        "method": {"kind": "fast", "features": 4, "blocks": 1, "factor": (1, 2, 2)},
        "data": {"patch": (8, 32, 32)},
    },
}


@pytest.fixture(autouse=True)
def one_thread():
    """One thread adds up in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory) -> Path:
    """Three pieces of the shipped stack."""
    folder = tmp_path_factory.mktemp("stacks")
    stack = tifffile.imread(NUCLEI)
    for number in range(3):
        tifffile.imwrite(folder / f"{'abc'[number]}.tif", stack[10 * number : 10 * number + 8, 40:136, 60:140])
    return folder


@pytest.fixture(scope="module")
def planes(tmp_path_factory) -> list[Path]:
    """Planes of the shipped stack as scans of their own: for the plumbing alone, for they are not exchangeable."""
    folder = tmp_path_factory.mktemp("planes")
    stack = tifffile.imread(NUCLEI)
    for number in range(8):
        tifffile.imwrite(folder / f"plane_{number}.tif", stack[2 * number, 136:232, 60:140])
    return sorted(folder.iterdir())


def recipe_of(folder: Path | None, out: Path, **parts: Any) -> Recipe:
    plain: dict[str, Any] = {
        "method": {"factor": (2, 2), **parts.get("method", SRGAN)},
        "data": {
            "folder": folder, "patch": (32, 32), "validation": 0.3, "validation_crops": 1, **parts.get("data", {}),
        },
        "training": {
            "pixel_steps": 4, "batch": 2, "learning_rate": 1e-3, "ema": 0.9, "validate_every_steps": 2, "device": "cpu",
            **parts.get("training", {}),
        },
        "seed": 3, "out": out,
    }  # fmt: skip
    return Recipe.model_validate(plain | {name: parts[name] for name in ("degradation", "intensity") if name in parts})


@pytest.fixture(scope="module")
def undisturbed(stacks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through both phases that nothing disturbed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run = train(recipe_of(stacks, tmp_path_factory.mktemp("undisturbed") / "run", **ASKED["srgan"]))
    torch.set_num_threads(before)
    return run


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def kept(run: Path, name: str = "last.ckpt") -> dict[str, Tensor]:
    widths = load_checkpoint(run / name).widths
    assert widths is not None
    return widths.state_dict()


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# what is learned beside


@pytest.mark.parametrize("name", ASKED)
def test_the_network_is_bit_for_bit_what_it_is_without(name: str, stacks: Path, tmp_path: Path) -> None:
    parts = ASKED[name]
    without = {**parts, "training": {**parts.get("training", {}), "widths": False}}
    torch.manual_seed(1)
    train(recipe_of(stacks, tmp_path / "with", **parts))
    train(recipe_of(stacks, tmp_path / "without", **without))
    found = sorted(path.name for path in (tmp_path / "with").glob("*.ckpt"))
    assert found == sorted(path.name for path in (tmp_path / "without").glob("*.ckpt"))
    for file in set(found) - {"resume.ckpt"}:
        one, other = (load_checkpoint(tmp_path / run / file) for run in ("with", "without"))
        assert same(one.network.state_dict(), other.network.state_dict())
        assert one.sha256 == other.sha256
        assert one.card.model_copy(update={"widths": None}) == other.card
        assert other.widths is None
        assert one.card.widths is not None
        assert one.card.widths.steps <= sum(one.card.steps.values())
        assert one.card.widths == TrainedWidths(features=16, blocks=2, share=0.1, steps=one.card.widths.steps)
        assert one.widths is not None
        assert not one.widths.training
    plain = [[{k: v for k, v in r.items() if k not in ("seconds", "widths_loss")} for r in rows(tmp_path / run)]
             for run in ("with", "without")]  # fmt: skip
    assert plain[0] == plain[1]
    assert all(r["widths_loss"] > 0 for r in rows(tmp_path / "with") if "loss" in r)
    one, other = (load_upscaler(tmp_path / run) for run in ("with", "without"))
    assert fingerprint(one) == fingerprint(other)
    assert repr(one) == repr(other)
    assert other.widths is None


def test_new_ones_draw_no_random_number_of_the_training(stacks: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, steps = first_widths(None, recipe_of(stacks, tmp_path))
    assert torch.equal(torch.rand(2), expected)
    assert steps == 0
    assert same(first.state_dict(), first_widths(None, recipe_of(stacks, tmp_path))[0].state_dict())


def test_each_phase_moves_them_and_keeps_its_own(undisturbed: Path) -> None:
    """The best of the pixel phase, here its last, and what went on from it."""
    pixel, best, last = (kept(undisturbed, name) for name in ("pixel.ckpt", "best.ckpt", "last.ckpt"))
    assert same(best, last)
    assert not same(pixel, best)
    assert "learned beside it over 7 steps, for 10 % outside before any calibration" in render_card(undisturbed)


def test_they_beat_one_width_everywhere_on_rows_that_were_held_out(tmp_path: Path) -> None:
    """At the same share outside, by the pinball loss of both ends and by the mean width."""
    parts = {
        "method": {"kind": "fast", "features": 12, "blocks": 2},
        "data": {"validation_crops": 6, "foreground": 0.1},
        "training": {"pixel_steps": 200, "batch": 8, "validate_every_steps": 200},
    }
    recipe = recipe_of(None, tmp_path / "run", **parts)
    upscaler = load_upscaler(train(recipe))
    assert upscaler.widths is not None
    shelf = Shelf(recipe)
    crops = held_out_crops(split_scans(recipe, shelf).validation, recipe, shelf)
    low, truth = (torch.cat([getattr(crop, name) for crop in crops]) for name in ("low", "high"))
    with torch.inference_mode():
        estimate = upscaler(low)
        down, up = upscaler.widths(low, estimate)
        needed = torch.maximum((estimate - truth) / down, (truth - estimate) / up)
        scaling, half = (float(np.quantile(each.numpy(), 0.9)) for each in (needed, (truth - estimate).abs()))
        ours = [
            pinball(estimate - scaling * down, truth, 0.05) + pinball(estimate + scaling * up, truth, 0.95),
            (scaling * (down + up)).mean(),
        ]
        flat = [pinball(estimate - half, truth, 0.05) + pinball(estimate + half, truth, 0.95), 2 * half]
    assert float(ours[0]) < 0.9 * float(flat[0])
    assert float(ours[1]) < float(flat[1])
    assert 0.5 < scaling < 2  # they are about right before any calibration


# going on


def cut_power() -> None:
    raise PowerCutError


class PowerCutError(Exception):
    """The process dies."""


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stopped(recipe: Recipe, phase: type, step: int, act: Callable[[], None], expected: type[BaseException]) -> None:
    """A training in which something happens inside a step."""
    whole = phase.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == step:
            act()
        whole(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase, "training_step", training_step)
        with pytest.raises(expected):
            train(recipe)


@pytest.mark.parametrize(
    ("name", "phase", "step"),
    [
        ("srgan", PixelPhase, 3),
        ("srgan", AdversarialPhase, 0),
        ("srgan", AdversarialPhase, 2),
        ("ikc", CorrectionPhase, 2),
        ("fast-3d", PixelPhase, 2),
    ],
)
def test_killed_and_resumed_equals_never_stopped(
    name: str, phase: type, step: int, stacks: Path, undisturbed: Path, tmp_path: Path
) -> None:
    whole = undisturbed if name == "srgan" else train(recipe_of(stacks, tmp_path / "whole", **ASKED[name]))
    recipe = recipe_of(stacks, tmp_path / "run", **ASKED[name])
    stopped(recipe, phase, step, cut_power, PowerCutError)
    torch.rand(7)
    train(recipe, resume=True)
    for file in {path.name for path in whole.glob("*.ckpt")} - {"resume.ckpt"}:
        assert same(kept(tmp_path / "run", file), kept(whole, file)), file
        assert load_checkpoint(tmp_path / "run" / file).sha256 == load_checkpoint(whole / file).sha256
    assert [r.get("widths_loss") for r in rows(tmp_path / "run")] == [r.get("widths_loss") for r in rows(whole)]


def test_ctrl_c_between_validations_keeps_the_step(stacks: Path, undisturbed: Path, tmp_path: Path) -> None:
    recipe = recipe_of(stacks, tmp_path / "run", **ASKED["srgan"])
    stopped(recipe, PixelPhase, 2, press_ctrl_c, KeyboardInterrupt)
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").card.widths.steps == 3  # type: ignore[union-attr]
    train(recipe, resume=True)
    assert same(kept(tmp_path / "run"), kept(undisturbed))


def test_a_run_from_before_there_were_widths_goes_on(stacks: Path, undisturbed: Path, tmp_path: Path) -> None:
    recipe = recipe_of(stacks, tmp_path / "run", **ASKED["srgan"])
    stopped(recipe, PixelPhase, 3, cut_power, PowerCutError)
    path = tmp_path / "run" / "resume.ckpt"
    state = torch.load(path, weights_only=True)
    state["callbacks"] = {k: v for k, v in state["callbacks"].items() if "LearnedBeside" not in k}
    del state["medsr"]["recipe"]["training"]["widths"]
    torch.save(state, path)
    train(recipe, resume=True)
    found = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert found.sha256 == load_checkpoint(undisturbed / "last.ckpt").sha256
    assert found.card.widths is not None
    assert found.card.widths.steps == 2 + 3
    off = {**ASKED["srgan"]["training"], "widths": False}
    changed = recipe_of(stacks, tmp_path / "run", method=SRGAN, training=off)
    with pytest.raises(ValueError, match="training.widths: True became False"):
        train(changed, resume=True)


def test_a_training_starts_from_the_widths_of_its_start(stacks: Path, undisturbed: Path, tmp_path: Path) -> None:
    changes = {"start": undisturbed / "pixel.ckpt", "pixel_steps": 1, "ema": 0.0, "validate_every_steps": 1}
    run = train(recipe_of(stacks, tmp_path / "run", training=changes))
    found = load_checkpoint(run / "last.ckpt").card.widths
    first = load_checkpoint(undisturbed / "pixel.ckpt").card.widths
    assert found is not None
    assert first is not None
    assert found.steps == first.steps + 1
    for name, value in kept(run).items():  # one step of Adam is no longer than its rate
        assert float((value - kept(undisturbed, "pixel.ckpt")[name]).abs().max()) <= 3.1e-3, name


# kept


def rewritten(path: Path, *, drop: str = "", card: Callable[[dict[str, Any]], None] | None = None) -> None:
    with safe_open(path, framework="pt") as stored:
        notes = json.loads(stored.metadata()["medsr"])
        weights = {name: stored.get_tensor(name) for name in stored.keys() if name != drop}  # noqa: SIM118
    if card is not None:
        card(notes["card"])
    path.write_bytes(to_safetensors(weights, metadata={"medsr": json.dumps(notes)}))


def test_checkpoints_from_before_there_were_widths_load(stacks: Path, tmp_path: Path) -> None:
    training = {"widths": False, "pixel_steps": 1}
    run = train(recipe_of(stacks, tmp_path / "run", training=training))
    before = load_checkpoint(run / "best.ckpt")
    rewritten(run / "best.ckpt", card=lambda card: card.pop("widths"))
    found = load_checkpoint(run / "best.ckpt")
    assert found.widths is None
    assert (found.sha256, found.card) == (before.sha256, before.card)
    assert "none learned beside it" in render_card(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": "widths.log_floor"}, "widths.log_floor is missing"),
        ({"card": lambda card: card["widths"].update(features=3)}, "has shape"),
        ({"card": lambda card: card.update(widths=None)}, "is unknown"),
        ({"card": lambda card: card["widths"].update(features=0)}, "expected the recipe and card"),
    ],
)
def test_widths_that_do_not_fit_are_refused(change: dict, words: str, undisturbed: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(undisturbed / "last.ckpt", tmp_path))
    rewritten(path, **change)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


def test_widths_of_which_the_card_says_nothing_are_not_written(undisturbed: Path, tmp_path: Path) -> None:
    found = load_checkpoint(undisturbed / "last.ckpt")
    card: TrainingCard = found.card.model_copy(update={"widths": None})
    with pytest.raises(ValueError, match="on the card, found None; say them there"):
        save_checkpoint(tmp_path / "a.ckpt", found.network, found.recipe, card, widths=found.widths)
    with pytest.raises(ValueError, match="say them there"):
        save_checkpoint(tmp_path / "a.ckpt", found.network, found.recipe, found.card, widths=Widths((2, 2), features=3))
    save_checkpoint(tmp_path / "a.ckpt", found.network, found.recipe, found.card)
    assert load_checkpoint(tmp_path / "a.ckpt").card == card


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_blend_has_the_widths_between(alpha: float, undisturbed: Path, tmp_path: Path) -> None:
    made = blend_checkpoints(undisturbed / "pixel.ckpt", undisturbed, alpha=alpha, out=tmp_path / "blend.ckpt")
    ends = [kept(undisturbed, name) for name in ("pixel.ckpt", "best.ckpt")]
    found = load_checkpoint(made).widths
    assert found is not None
    for name, value in found.state_dict().items():
        expected = torch.lerp(ends[0][name].double(), ends[1][name].double(), alpha).float()
        assert torch.equal(value, expected), name


def test_a_blend_with_one_that_has_none_has_none(undisturbed: Path, tmp_path: Path) -> None:
    found = load_checkpoint(undisturbed / "pixel.ckpt")
    save_checkpoint(tmp_path / "none.ckpt", found.network, found.recipe, found.card)
    for number, pair in enumerate(((tmp_path / "none.ckpt", undisturbed), (undisturbed, tmp_path / "none.ckpt"))):
        made = load_checkpoint(blend_checkpoints(*pair, alpha=0.5, out=tmp_path / f"{number}.ckpt"))
        assert made.widths is None
        assert made.card.widths is None


# calibrated


def test_a_calibration_takes_the_trained_widths(undisturbed: Path, planes: list[Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    asked = {"alpha": 0.3, "delta": 0.3, "device": "cpu"}
    trained = load_upscaler(run).widths
    assert trained is not None
    made = calibrate_run(run, planes, **asked)
    assert made.calibration.kind == "widths"
    found = load_intervals(run).method
    assert isinstance(found, LearnedWidths)
    assert same(found.widths.state_dict(), trained.state_dict())
    assert calibrate_run(run, planes, widths="trained", **asked).calibration == made.calibration
    assert calibrate_run(run, planes, widths="spread", **asked).calibration.kind == "spread"
    again = calibrate_run(run, planes[4:], learn_from=planes[:4], steps=2, **asked | {"alpha": 0.4}).method
    assert isinstance(again, LearnedWidths)
    assert not same(again.widths.state_dict(), trained.state_dict())
    with pytest.raises(ValueError, match="found both; leave one out"):
        calibrate_run(run, planes[4:], learn_from=planes[:4], widths="spread", **asked)


def test_without_trained_widths_the_spread_is_calibrated_and_said(
    undisturbed: Path, planes: list[Path], tmp_path: Path
) -> None:
    found = load_checkpoint(undisturbed / "best.ckpt")
    save_checkpoint(tmp_path / "best.ckpt", found.network, found.recipe, found.card)
    lines: list[str] = []
    made = calibrate_run(tmp_path, planes, alpha=0.3, delta=0.3, device="cpu", note=lines.append)
    assert made.calibration.kind == "spread"
    assert "the checkpoint has no widths of its own" in lines[0]
    with pytest.raises(CheckpointError, match=r"found none; train with training.widths: true"):
        calibrate_run(tmp_path, planes, widths="trained", alpha=0.3, delta=0.3)


def test_the_command_takes_them_unless_told_otherwise(undisturbed: Path, planes: list[Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    for words, kind in (((), "widths"), (("--spread",), "spread")):
        asked = ["calibrate", run, *planes, "--alpha", "0.3", "--delta", "0.3", "--device", "cpu", *words]
        done = CliRunner().invoke(app, [str(word) for word in asked])
        assert done.exit_code == 0, done.output
        assert load_intervals(run).calibration.kind == kind


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_loss_of_both_ends_is_least_at_the_quantiles(share: float) -> None:
    """Of a truth that is normal around a flat estimate: floors that are told a multiple of the standard deviation."""
    widths = Widths((2, 2), features=2, blocks=1).requires_grad_(False)
    flat = torch.full((1, 1, 60, 60), 0.5)
    estimate = torch.full((1, 1, 120, 120), 0.5)
    truth = estimate + 0.01 * torch.randn(estimate.shape, generator=torch.Generator().manual_seed(0))
    levels = 0.01 * np.linspace(0.2, 3, 60)
    losses = []
    for level in levels:
        widths.set_floor(float(level))
        losses.append(float(both_ends_loss(widths, flat, estimate, truth, share=share)))
    wanted = 0.01 * float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - share / 2)))
    assert levels[int(np.argmin(losses))] == pytest.approx(wanted, abs=6e-4)
