"""Training: what is learned from and held out, runs that are stopped and gone on with, and what they leave behind."""

import functools
import json
import logging
import os
import pickle
import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import RandRotate90d
from scipy import ndimage
from torch import Tensor

from medsr.checkpoint import build_network, load_checkpoint, load_upscaler
from medsr.config import load_config
from medsr.data import sample_path
from medsr.io import Source, find_scans, read_scan
from medsr.recipe import Recipe
from medsr.scan import Grid, Intensity, Scan
from medsr.training import TrainingError, train
from medsr.training.callbacks import Averaged, RandomNumbers
from medsr.training.copies import check_apart
from medsr.training.data import PatchDataset, PatchSampler, Portion, Shelf, patch_transforms, window_of
from medsr.training.foreground import ForegroundMap
from medsr.training.phases import AdversarialPhase, PixelPhase, build_discriminator, scheduled
from medsr.training.survey import blank_card, split_scans
from medsr.training.validation import Crop, picture

SECRET = "JANE_DOE_1961"


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks: threads that wait for each other only cost time; and one thread adds up in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture_of(seed: int, shape: tuple[int, int] = (96, 80)) -> np.ndarray:
    """Blobs and lines, 12 bits in uint16."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for _ in range(12):
        center, width = random.uniform(0, shape), random.uniform(2, 9)
        image += random.uniform(0.2, 1) * np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / (2 * width**2))
    image += 0.3 * (np.sin(0.6 * x + random.uniform(0, 6)) > 0.7)
    return (200 + 2500 * image / image.max()).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three scans of a patient whose name is in the files' names."""
    for seed in range(3):
        path = tmp_path / "scans" / f"{SECRET}_{'abc'[seed]}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, picture_of(seed))
    return tmp_path / "scans"


def recipe_of(folder: Path | None, out: Path, **parts: Any) -> Recipe:
    """A recipe of a few steps; `parts` change single settings, such as training={"batch": 2}."""
    plain: dict[str, Any] = {
        "method": {
            "kind": "srgan", "factor": (2, 2), "features": 4, "blocks": 1, "head_kernel": 3, "tail_kernel": 3,
            "discriminator_features": 4, "adversary": "standard",
        },
        "data": {"folder": folder, "patch": (32, 32), "validation": 0.3, "validation_crops": 1},
        "degradation": {"read_noise": (0.0, 0.02)},
        "training": {
            "pixel_steps": 6, "adversarial_steps": 0, "batch": 2, "learning_rate": 1e-3, "ema": 0.9,
            "validate_every_steps": 3, "device": "cpu",
        },
        "seed": 3, "out": out,
    }  # fmt: skip
    for name, changes in parts.items():
        plain[name] = {**plain[name], **changes} if isinstance(changes, dict) else changes
    return Recipe.model_validate(plain)


def weights(run: Path, name: str = "last.ckpt") -> dict[str, Tensor]:
    return load_checkpoint(run / name).network.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def at_step(monkeypatch: pytest.MonkeyPatch, module: type, step: int, act: Callable[[], None]) -> None:
    """Let something happen inside a step."""
    whole = module.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == step:
            act()
        whole(self, batch, batch_idx)

    monkeypatch.setattr(module, "training_step", training_step)


class PowerCutError(Exception):
    """The process dies."""


def cut_power() -> None:
    raise PowerCutError


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# what is learned from


def test_any_step_can_be_gone_on_with() -> None:
    def sampler(**changes: Any) -> PatchSampler:
        return PatchSampler(5, **{"steps": 40, "batch": 4, "per_scan": 3, "window": 2, "seed": (1, 0), **changes})

    whole = list(sampler())
    assert len(whole) == len(sampler()) == 40
    late = sampler()
    late.start = 17
    assert list(late) == whole[17:]
    assert len(late) == 40
    draws = [draw for batch in whole for draw in batch]
    for start in range(0, 150, 15):  # each round of 15 draws visits every portion three times
        assert Counter(index for index, _ in draws[start : start + 15]) == dict.fromkeys(range(5), 3)
        window = {index for index, _ in draws[start : start + 6]}
        assert len(window) == 2  # two portions are open at a time
    assert len({seed for _, seed in draws}) == len(draws)
    ranks = [list(sampler(rank=rank, world=2, batch=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    assert list(sampler(seed=(1, 1))) != whole
    assert window_of(10 * 2**30) == 4
    assert window_of(1) == 256


def source_of(name: str, subject: str = "", parent: str = "scans") -> Source:
    return Source(Path(parent) / name, (Path(parent) / name,), name, subject)


@pytest.mark.parametrize("group", ["subject", "scan", "folder"])
def test_groups_are_never_split(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [source_of(f"{s}{v}.tif", s, f"center{int(s, 16) % 3}") for s in "0123456789" for v in "LR"]
    monkeypatch.setattr("medsr.training.survey.find_scans", lambda _: sources)
    monkeypatch.setattr("medsr.training.survey._facts", lambda *_: None)
    monkeypatch.setattr("medsr.training.survey.copies", lambda _: [])
    monkeypatch.setattr(Shelf, "open", lambda *_: None)
    recipe = recipe_of(Path("/"), Path("run"), data={"group": group})
    split = split_scans(recipe, Shelf(recipe))
    assert len(split.training) + len(split.validation) == 20
    key = {"subject": lambda s: s.subject, "scan": lambda s: s.name, "folder": lambda s: s.path.parent}[group]
    learned, held = ({key(p.source) for p in part} for part in (split.training, split.validation))
    assert not learned & held
    assert len(held) == {"subject": 3, "scan": 6, "folder": 1}[group]


def test_one_subject_of_several_scans_is_split_by_scan_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("medsr.training.survey.find_scans", lambda _: [source_of(n, "feed") for n in ("a", "b", "c")])
    monkeypatch.setattr("medsr.training.survey._facts", lambda *_: None)
    monkeypatch.setattr("medsr.training.survey.copies", lambda _: [])
    monkeypatch.setattr(Shelf, "open", lambda *_: None)
    recipe = recipe_of(Path("/"), Path("run"))
    split = split_scans(recipe, Shelf(recipe))
    assert (len(split.training), len(split.validation)) == (2, 1)
    assert "one subject" in split.note
    assert "may flatter" in caplog.text


@pytest.mark.parametrize("signal_rows", [slice(0, 60), slice(140, 200)])
def test_of_one_scan_a_band_is_held_out_with_a_gap(tmp_path: Path, signal_rows: slice) -> None:
    stored = np.random.default_rng(0).integers(90, 110, (200, 64)).astype(np.uint16)
    stored[signal_rows] = np.random.default_rng(1).integers(500, 4000, stored[signal_rows].shape)
    tifffile.imwrite(tmp_path / "one.tif", stored)
    recipe = recipe_of(tmp_path / "one.tif", tmp_path / "run")
    shelf = Shelf(recipe)
    split = split_scans(recipe, shelf)
    (learned,), (held,) = split.training, split.validation
    assert learned.rows is not None
    assert held.rows is not None
    gap = max(learned.rows[0] - held.rows[1], held.rows[0] - learned.rows[1])
    assert gap == 32  # a patch
    assert held.rows[1] - held.rows[0] == 60
    assert (held.rows[0] == 0) == (signal_rows.start == 0)  # where there is more to see
    np.testing.assert_array_equal(shelf.open(held).read(), stored[slice(*held.rows)])
    np.testing.assert_array_equal(
        shelf.open(learned).read((slice(3, 20, 2), slice(5, 9))), stored[slice(*learned.rows)][3:20:2, 5:9]
    )
    assert "rows" in split.note


def test_odd_scans_are_left_out_and_named(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "torn.tif").write_bytes((folder / f"{SECRET}_a.tif").read_bytes()[:700])
    tifffile.imwrite(folder / "small.tif", np.ones((16, 16), np.uint16))
    recipe = recipe_of(folder, tmp_path / "run")
    split = split_scans(recipe, Shelf(recipe))
    assert len(split.training) + len(split.validation) == 3
    assert "torn.tif" in caplog.text
    assert "small.tif" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch": (128, 128)}, "choose a smaller patch"),
        ({"validation_folder": "same"}, "found this file in both"),
    ],
)
def test_what_cannot_be_learned_from_is_said(folder: Path, tmp_path: Path, change: dict, words: str) -> None:
    if change.get("validation_folder") == "same":
        change = {"validation_folder": folder}
    with pytest.raises(TrainingError, match=words):
        train(recipe_of(folder, tmp_path / "run", data=change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data": {"folder": Path("scand/deep/er")}}, "data.folder"),
        ({"data": {"validation_folder": Path("scand")}}, "data.validation_folder"),
        ({"training": {"start": Path("scand")}}, "training.start"),
        ({"method": {"content": {"kind": "file", "path": Path("scand")}}}, "method.content.path"),
    ],
)
def test_a_path_where_nothing_is_is_refused_before_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=f"found nothing there; check {key}. Did you mean scans?"):
        train(recipe_of(folder, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "training", "words"),
    [
        ({"content": {"kind": "file", "path": Path("scans/weights.pt")}}, {}, "expected a torch state dict"),
        ({"features": 4}, {"batch": 1}, "training.batch: expected at least 2"),
    ],
)
def test_what_the_game_lacks_is_said_before_the_pixel_phase(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict, training: dict, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "weights.pt").write_bytes(b"none")
    training = {"adversarial_steps": 1, **training}
    recipe = recipe_of(folder, tmp_path / "run", method=method, training=training, data={"patch": (16, 16)})
    with pytest.raises(TrainingError, match=words):
        train(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")],
)
def test_too_little_memory_is_said_with_the_cure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full() -> None:
        raise error

    at_step(monkeypatch, PixelPhase, 1, full)
    with pytest.raises(TrainingError, match=r"pixel step \d: .*lower training.batch \(now 2\) and raise"):
        train(recipe_of(folder, tmp_path / "run"))


def test_another_runtime_error_is_not_called_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("shapes differ")

    at_step(monkeypatch, PixelPhase, 1, broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(recipe_of(folder, tmp_path / "run"))


def test_copies_stay_together_and_are_refused_in_the_other_folder(folder: Path, tmp_path: Path) -> None:
    first = folder / f"{SECRET}_a.tif"
    shutil.copy(first, folder / "z.tif")
    for seed in range(6):
        recipe = recipe_of(folder, tmp_path / "run", data={"validation": 0.5}).model_copy(update={"seed": seed})
        split = split_scans(recipe, Shelf(recipe))
        held = {portion.source.path for portion in split.validation}
        assert (first in held) == (folder / "z.tif" in held)
    (tmp_path / "other").mkdir()
    shutil.copy(first, tmp_path / "other" / "y.tif")
    with pytest.raises(TrainingError, match="found 1 of 1 that are copies of scans there"):
        train(recipe_of(folder, tmp_path / "run", data={"validation_folder": tmp_path / "other"}))
    for path in sorted(folder.iterdir())[1:-1]:
        path.unlink()
    with pytest.raises(TrainingError, match="found 2 copies of one"):
        train(recipe_of(folder, tmp_path / "run"))


@pytest.mark.parametrize("by_subject", [True, False])
def test_a_subject_in_both_folders_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, by_subject: bool
) -> None:
    def sources(place: str, subjects: str) -> list[Source]:
        paths = [tmp_path / f"{place}{subject}" for subject in subjects]
        for path in paths:
            path.write_text(path.name)
        return [Source(path, (path,), path.name, path.name[-1]) for path in paths]

    training, validation = sources("one", "abc"), sources("two", "bcde")
    if by_subject:
        with pytest.raises(TrainingError, match="found 2 of 4 subjects that are in one too"):
            check_apart(Path("one"), Path("two"), training, validation, by_subject=True)
    else:
        check_apart(Path("one"), Path("two"), training, validation, by_subject=False)
        assert "may flatter" in caplog.text
    check_apart(Path("one"), Path("two"), training, validation[2:], by_subject=True)


def test_scans_larger_than_memory_give_the_same_patches(folder: Path) -> None:
    recipe = recipe_of(folder, Path("run"))
    portions = [Portion(source) for source in find_scans(folder)]
    pairs = []
    for budget in (0, 10**9):
        shelf = Shelf(recipe, budget=budget)
        assert isinstance(shelf.open(portions[0]).data, np.ndarray) == (budget > 0)
        dataset = PatchDataset(portions, shelf, patch_transforms(recipe, [None]))
        pairs.append([dataset[draw] for draw in ((0, 5), (1, 6), (2, 7), (0, 8))])
    for one, other in zip(*pairs, strict=True):
        assert [tuple(patch.shape) for patch in one] == [(1, 16, 16), (1, 32, 32)]
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(90, 300, 310), (700, 900)])
def test_places_follow_from_the_shape_and_not_from_memory(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], large: bool
) -> None:
    class Lazy:
        def __init__(self, data: np.ndarray) -> None:
            self.data, self.shape, self.dtype = data, data.shape, data.dtype

        def __getitem__(self, region: Any) -> np.ndarray:
            return self.data[region]

    if large:
        monkeypatch.setattr("medsr.training.foreground.LARGE", 1000)
    random = np.random.default_rng(0)
    stored = ndimage.gaussian_filter(random.random(shape, np.float32), 6)
    held = Scan(
        stored, Grid(tuple("zyx"[-len(shape) :])), Intensity(float(stored.min()), float(stored.max()), "float32")
    )
    maps = [ForegroundMap(scan, (48, 64)) for scan in (held, replace(held, data=Lazy(stored)))]
    np.testing.assert_array_equal(maps[0].share, maps[1].share)
    assert 0 < maps[0].share.mean() < 1
    draws = [[m.draw(np.random.RandomState(7), 0.5) for _ in range(20)] for m in maps]
    assert draws[0] == draws[1]


def test_weights_depend_neither_on_memory_nor_on_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for budget, workers in ((0, 0), (10**10, 0), (0, 2)):
        shelf = functools.partial(Shelf, budget=budget)
        run = tmp_path / f"run{budget}{workers}"
        monkeypatch.setattr("medsr.training.run.Shelf", shelf)
        train(recipe_of(folder, run, training={"pixel_steps": 3, "loader_workers": workers}))
        found.append(weights(run))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


# runs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans and a run through both phases that nothing disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "scans").mkdir()
    for seed in range(3):
        tifffile.imwrite(root / "scans" / f"{SECRET}_{seed}.tif", picture_of(seed))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(both_phases(root, root / "run"))
    torch.set_num_threads(before)
    return root


def both_phases(root: Path, out: Path, **training: Any) -> Recipe:
    steps = {"pixel_steps": 6, "adversarial_steps": 5, "validate_every_steps": 3, **training}
    return recipe_of(root / "scans", out, training=steps)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("phase", "step"),
    [
        (PixelPhase, 1),  # before anything was kept
        (PixelPhase, 4),  # in the middle
        (AdversarialPhase, 0),  # at the border of the phases
        (AdversarialPhase, 3),  # right after a validation
    ],
)
def test_killed_and_resumed_equals_never_stopped(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: type, step: int, workers: int
) -> None:
    recipe = both_phases(undisturbed, tmp_path / "run", loader_workers=workers)
    with monkeypatch.context() as patch:
        at_step(patch, phase, step, cut_power)
        with pytest.raises(PowerCutError):
            train(recipe)
    torch.rand(7)  # another process would be elsewhere in its random numbers
    train(recipe, resume=True)
    for name in ("last.ckpt", "best.ckpt", "pixel.ckpt"):
        assert same(weights(tmp_path / "run", name), weights(undisturbed / "run", name))
    keys = [(r["phase"], r["step"], r.get("loss"), r.get("psnr_db")) for r in rows(tmp_path / "run")]
    assert keys == [(r["phase"], r["step"], r.get("loss"), r.get("psnr_db")) for r in rows(undisturbed / "run")]


@pytest.mark.parametrize(("phase", "step"), [(PixelPhase, 0), (PixelPhase, 3), (AdversarialPhase, 4)])
def test_ctrl_c_keeps_the_step_and_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: type, step: int
) -> None:
    recipe = both_phases(undisturbed, tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(patch, phase, step, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt, match=r"medsr train \S*run/recipe.yaml --resume --out \S*run$"):
            train(recipe)
    assert signal.getsignal(signal.SIGINT) is handler
    state = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    assert state["medsr"]["step"] == step + 1  # the step at work was ended
    load_upscaler(tmp_path / "run")  # what there is can be used
    if step == 3:  # scans may have been moved; their hashes tell that they are the same
        shutil.copytree(undisturbed / "scans", tmp_path / "moved")
        data = recipe.data.model_copy(update={"folder": tmp_path / "moved"})
        recipe = recipe.model_copy(update={"data": data, "out": Path("elsewhere")})
    train(recipe, resume=True, out=tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(undisturbed / "run"))
    assert load_config(tmp_path / "run" / "recipe.yaml", Recipe) == recipe.model_copy(update={"out": tmp_path / "run"})


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    recipe = both_phases(undisturbed, undisturbed / "run")
    before = {p.name: p.read_bytes() for p in (undisturbed / "run").glob("*.ckpt")}
    assert train(recipe, resume=True) == undisturbed / "run"
    assert {p.name: p.read_bytes() for p in (undisturbed / "run").glob("*.ckpt")} == before
    with pytest.raises(TrainingError, match="expected a new run folder"):
        train(recipe)


def test_another_recipe_or_other_scans_are_refused(undisturbed: Path, tmp_path: Path) -> None:
    run = undisturbed / "run"
    changed = both_phases(undisturbed, run, learning_rate=2e-3, adversarial_steps=9)
    with pytest.raises(TrainingError) as error:
        train(changed, resume=True)
    assert "training.learning_rate: 0.001 became 0.002" in str(error.value)
    assert "training.adversarial_steps: 5 became 9" in str(error.value)
    state = torch.load(run / "resume.ckpt", weights_only=True)
    state["medsr"] |= {"over": False, "step": 3, "inputs": state["medsr"]["inputs"][:1]}
    other = tmp_path / "run"
    other.mkdir()
    torch.save(state, other / "resume.ckpt")
    with pytest.raises(TrainingError, match="1 that are new or changed"):
        train(both_phases(undisturbed, other), resume=True)
    (other / "resume.ckpt").write_bytes((run / "resume.ckpt").read_bytes()[:5000])
    with pytest.raises(TrainingError, match="resume.ckpt: expected the state of a run"):
        train(both_phases(undisturbed, other), resume=True)


def test_a_run_from_before_a_setting_existed_goes_on(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = both_phases(undisturbed, tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, PixelPhase, 4, cut_power)
        with pytest.raises(PowerCutError):
            train(recipe)
    path = tmp_path / "run" / "resume.ckpt"
    state = torch.load(path, weights_only=True)
    old = state["medsr"]["recipe"]
    for section, name in (("data", "registration"), ("data", "pairs"), ("method", "published"), ("method", "norm")):
        del old[section][name]
    del old["degradation"]["second"], old["intensity"], old["method"]["content"]["layer"], state["medsr"]["held_out"]
    torch.save(state, path)
    changed = {"black": 0.0, "white": 4000.0}
    with pytest.raises(
        TrainingError, match=r"intensity.black: None became 0.0; intensity.white: None became 4000.0; set"
    ):
        train(Recipe.model_validate(recipe.model_dump() | {"intensity": changed}), resume=True)
    train(recipe, resume=True)
    assert same(weights(tmp_path / "run"), weights(undisturbed / "run"))


def test_what_a_run_leaves_behind(undisturbed: Path) -> None:
    run = undisturbed / "run"
    recipe = both_phases(undisturbed, run)
    assert load_config(run / "recipe.yaml", Recipe) == recipe
    best, pixel = load_checkpoint(run / "best.ckpt"), load_checkpoint(run / "pixel.ckpt")
    assert best.card.finished
    assert best.card.steps == {"pixel": 6, "adversarial": 5}
    assert pixel.card.steps["pixel"] in (3, 6)
    assert best.card.validation.keys() == {"psnr_db", "ssim", "psnr_db_cubic", "ssim_cubic"}
    assert best.card.spacing_um is None
    assert best.card.dtype == "uint16"
    assert {"medsr", "torch", "monai", "pydicom", "tifffile", "zarr"} <= best.card.versions.keys()
    assert len(best.card.inputs) == 2
    assert best.card.inputs[0].shape == (96, 80)
    assert len(best.card.held_out) == 1
    assert not set(best.card.inputs) & set(best.card.held_out)
    assert repr(load_upscaler(run / "best.ckpt")).startswith("srgan x2,2")
    assert repr(load_upscaler(run / "pixel.ckpt")).startswith("srresnet x2,2")
    assert same(weights(run, "best.ckpt"), weights(run, "last.ckpt"))  # of the adversarial phase the latest counts
    assert not same(weights(run, "best.ckpt"), weights(run, "pixel.ckpt"))
    found = rows(run)
    assert [r["step"] for r in found if r.get("event") == "validation"] == [3, 6, 3, 5]
    assert all(r["seconds"] >= 0 for r in found)
    assert sorted(p.name for p in (run / "pictures").iterdir()) == ["adversarial_0.png", "pixel_0.png"]
    assert list((run / "tensorboard").iterdir())
    torch.load(run / "resume.ckpt", weights_only=True)  # data only


def test_no_identity_leaves(undisturbed: Path) -> None:
    assert SECRET in str(undisturbed / "scans" / next((undisturbed / "scans").iterdir()).name)
    for path in (undisturbed / "run").rglob("*"):
        if path.is_file() and path.name != "recipe.yaml":
            assert SECRET.encode() not in path.read_bytes(), path


def test_no_folder_name_is_in_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    inside = tmp_path / SECRET
    folder.rename(inside)
    (tmp_path / f"{SECRET}_2").mkdir()
    (inside / f"{SECRET}_c.tif").rename(tmp_path / f"{SECRET}_2" / "c.tif")
    data = {"validation_folder": tmp_path / f"{SECRET}_2"}
    run = train(recipe_of(inside, tmp_path / f"{SECRET}_run", data=data, training={"pixel_steps": 2}))
    again = {"start": run, "pixel_steps": 1, "adversarial_steps": 1}
    run = train(recipe_of(inside, tmp_path / f"{SECRET}_again", data=data, training=again))
    assert len(list(tmp_path.glob("*/*.ckpt"))) == 7
    for path in tmp_path.glob("*/*.ckpt"):
        assert SECRET.encode() not in path.read_bytes(), path
    assert train(recipe_of(inside, run, data=data, training=again), resume=True) == run


def test_a_run_goes_on_without_the_weights_it_started_from(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = shutil.copytree(undisturbed / "run", tmp_path / "start")
    recipe = both_phases(undisturbed, tmp_path / "run", start=start, pixel_steps=0)
    train(recipe.model_copy(update={"out": tmp_path / "whole"}))
    with monkeypatch.context() as patch:
        at_step(patch, AdversarialPhase, 3, cut_power)
        with pytest.raises(PowerCutError):
            train(recipe)
    shutil.rmtree(start)
    train(recipe, resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_psnr_that_is_none_is_never_the_best(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heights = iter([np.nan, 1.0, np.nan, 2.0, np.nan])

    def measured(network: Any, crops: list[Any], device: Any) -> tuple[list[Tensor], dict[str, float]]:
        figures = {"psnr_db": float(next(heights)), "ssim": 1.0, "psnr_db_cubic": 1.0, "ssim_cubic": 1.0}
        return [crop.cubic for crop in crops], figures

    monkeypatch.setattr("medsr.training.callbacks.measure", measured)
    train(recipe_of(folder, tmp_path / "run", training={"pixel_steps": 4, "validate_every_steps": 1}))
    assert load_checkpoint(tmp_path / "run" / "best.ckpt").card.steps == {"pixel": 4}
    with pytest.raises(TrainingError, match="found NaN in all"):
        train(recipe_of(folder, tmp_path / "other", training={"pixel_steps": 1}))


def test_a_run_is_quiet(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(recipe_of(folder, tmp_path / "run", training={"pixel_steps": 2}))
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_a_loss_that_is_not_finite_stops_with_the_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(folder, tmp_path / "run")
    whole = PixelPhase.training_step

    def training_step(self: PixelPhase, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            with torch.no_grad():
                self.network.tail.weight.fill_(torch.nan)
        whole(self, batch, batch_idx)

    monkeypatch.setattr(PixelPhase, "training_step", training_step)
    with pytest.raises(TrainingError, match=r"pixel step 5: expected a finite loss, found nan.*last\.ckpt"):
        train(recipe)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_training_starts_from_other_weights(undisturbed: Path, folder: Path, tmp_path: Path) -> None:
    start = {"start": undisturbed / "run", "pixel_steps": 1, "learning_rate": 1e-12, "ema": 0.0}
    train(recipe_of(folder, tmp_path / "run", training=start))
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, weights(undisturbed / "run", "best.ckpt")[name], atol=1e-6, rtol=0)
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").recipe.training.start is None
    with pytest.raises(TrainingError, match="training.start: expected weights of the recipe's network"):
        train(recipe_of(folder, tmp_path / "other", training=start, method={"features": 8}))


def test_patience_ends_the_pixel_phase(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsr.training.callbacks.measure", lambda network, crops, device: (
        [crop.cubic for crop in crops], {"psnr_db": 1.0, "ssim": 1.0, "psnr_db_cubic": 1.0, "ssim_cubic": 1.0}
    ))  # fmt: skip
    steps = {"pixel_steps": 40, "validate_every_steps": 1, "patience": 2, "adversarial_steps": 1}
    recipe = recipe_of(folder, tmp_path / "run", training=steps)
    train(recipe)
    assert load_checkpoint(tmp_path / "run" / "last.ckpt").card.steps == {"pixel": 3, "adversarial": 1}
    assert train(recipe, resume=True) == tmp_path / "run"


@pytest.mark.parametrize(
    ("training", "method"),
    [
        ({"precision": "bf16"}, {}),
        ({"accumulate": 2, "schedule": "halve", "gradient_clip": 0.0}, {"norm": "batch"}),
        ({"ema": 0.0, "schedule": "constant"}, {"adversary": "hinge", "discriminator": "patch", "pixel_weight": 0.0}),
        ({"pixel_steps": 0}, {"adversary": "least_squares", "content": {"kind": "none"}, "pixel_loss": "mse"}),
    ],
)
def test_settings_train_and_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: dict, method: dict
) -> None:
    steps = {"pixel_steps": 2, "adversarial_steps": 4, "validate_every_steps": 2, **training}
    train(recipe_of(folder, tmp_path / "whole", training=steps, method=method))
    recipe = recipe_of(folder, tmp_path / "run", training=steps, method=method)
    with monkeypatch.context() as patch:
        at_step(patch, AdversarialPhase, 2, cut_power)
        with pytest.raises(PowerCutError):
            train(recipe)
    train(recipe, resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("sample", "factor", "patch"),
    [
        ("mammogram", (4, 4), (64, 64)),
        ("mammogram", (2, 2), (64, 64)),
        ("nuclei", (2, 2), (32, 32)),
        ("nuclei", (1, 2, 2), (8, 32, 32)),
        ("nuclei", (4, 1, 1), (16, 16, 16)),
        ("surface", (2, 2), (32, 32)),
    ],
)
def test_a_shipped_sample_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: str, factor: tuple, patch: tuple
) -> None:
    """Of the samples themselves; a network of a few steps keeps flat fields and leaves cubic little behind."""
    monkeypatch.setattr("medsr.training.callbacks.PICTURED", 1)
    recipe = recipe_of(
        None, tmp_path / "run", method={"kind": "srgan", "factor": factor},
        data={"sample": sample, "patch": patch, "foreground": 0.1},
        training={"pixel_steps": 3, "adversarial_steps": 1},
    )  # fmt: skip
    run = train(recipe)
    card = load_checkpoint(run / "best.ckpt").card
    assert card.validation["psnr_db"] > card.validation["psnr_db_cubic"] - 1
    upscaler = load_upscaler(run)
    flat = torch.full((1, 1, *(8,) * len(factor)), 0.37)
    assert float((upscaler(flat) - 0.37).abs().max()) < 1e-3 * 0.37
    scan = read_scan(sample_path(recipe.data.sample))
    if scan.grid.spacing_um is None:
        assert card.spacing_um is None
    else:
        fine = scan.grid.spacing_um[-len(factor) :]
        assert card.spacing_um is not None
        for found, s, f in zip(card.spacing_um, fine, factor, strict=True):
            assert found is None if s is None else found == pytest.approx((s * f, s * f))


# its parts


def test_schedules() -> None:
    assert scheduled("constant", 0.9) == 1.0
    assert [scheduled("cosine", x) for x in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [scheduled("halve", x) for x in (0.49, 0.5, 0.75, 0.875, 0.99)] == [1.0, 0.5, 0.25, 0.125, 0.0625]


def test_averaged_weights_follow_the_published_recursion(tmp_path: Path) -> None:
    recipe = recipe_of(None, tmp_path)
    phase = PixelPhase(recipe, build_network(recipe.method))
    averaged = Averaged(phase.network, decay=0.5)
    expected = averaged.network.head.weight.clone()
    for step in range(12):
        with torch.no_grad():
            phase.network.head.weight.add_(1.0)
        averaged.on_train_batch_end(None, phase, None, None, step)  # type: ignore[arg-type]
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * phase.network.head.weight.detach()
    torch.testing.assert_close(averaged.network.head.weight, expected)
    assert not averaged.network.training


def test_loss_networks_are_no_part_of_the_module(tmp_path: Path) -> None:
    recipe = recipe_of(None, tmp_path, training={"adversarial_steps": 1})
    phase = AdversarialPhase(recipe, build_network(recipe.method), gray=(0.5, 0.2))
    kinds = {name.split(".")[0] for name, _ in phase.named_parameters()}
    assert kinds == {"network", "discriminator"}
    for dims, patch in ((2, 32), (3, 16)):
        method = recipe.method.model_copy(update={"factor": (2,) * dims})
        for kind in ("srgan", "patch"):
            discriminator = build_discriminator(method.model_copy(update={"discriminator": kind}), (patch,) * dims)
            assert discriminator(torch.rand(2, 1, *(patch,) * dims)).shape[0] == 2


@pytest.mark.parametrize(("factor", "shown"), [((4, 1, 1), (16, 24)), ((2, 2, 2), (20, 24)), ((1, 2, 2), (20, 24))])
def test_the_picture_shows_what_is_refined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr("medsr.training.validation.comparison_png", lambda path, panels, **kwargs: found.update(panels))
    high = torch.rand(1, 1, 16, 20, 24)
    low = torch.rand(1, 1, *(n // f for n, f in zip((16, 20, 24), factor, strict=True)))
    picture(tmp_path / "a.png", Crop(low, high, high), high)
    assert {found[name].shape for name in ("cubic", "estimate", "high")} == {shown}
    np.testing.assert_array_equal(found["high"], high[0, 0, :, 10] if shown == (16, 24) else high[0, 0, 8])


@pytest.mark.parametrize("norm", ["auto", "batch", "spectral", "none"])
def test_the_discriminator_has_the_norm_of_the_recipe(norm: str) -> None:
    for kind, own in (("srgan", "batch"), ("patch", "spectral")):
        recipe = recipe_of(None, Path("run"), method={"discriminator": kind, "discriminator_norm": norm})
        names = build_discriminator(recipe.method, recipe.data.patch).state_dict().keys()
        wanted = own if norm == "auto" else norm
        assert any("running_mean" in name for name in names) == (wanted == "batch")
        assert any("parametrizations" in name for name in names) == (wanted == "spectral")


def test_random_numbers_are_restored(tmp_path: Path) -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    callback = RandomNumbers()
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    first = drawn()
    assert drawn() != first
    callback.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert drawn() == first


def test_patches_have_a_margin_for_the_blur_and_travel_to_other_processes(folder: Path) -> None:
    blur = {"fwhm_samples": (2.0, 3.0)}
    recipe = recipe_of(folder, Path("run"), degradation=blur)
    transforms = patch_transforms(recipe, [None])
    halo = recipe.degradation.center((2, 2)).halo
    assert all(m >= 2 * h > 0 for m, h in zip(transforms[0].margin, halo, strict=True))
    dataset = PatchDataset([Portion(source) for source in find_scans(folder)], Shelf(recipe), transforms)
    pair = dataset[1, 7]
    again = pickle.loads(pickle.dumps(dataset))[1, 7]
    assert all(torch.equal(a, b) for a, b in zip(pair, again, strict=True))
    assert tuple(pair[1].shape) == (1, 32, 32)


BLURS: list[dict[str, Any]] = [
    {"fwhm_samples": (0.2, 1.5), "anisotropy": 2.0},
    {"fwhm_um": (0.1, 0.6), "anisotropy": 4.0},
    {"fwhm_samples": (0.0, 0.05), "anisotropy": 9.0},  # narrower than the grid: widened where it is turned
    {"fwhm_samples": (0.2, 1.5), "anisotropy": 2.0,
     "second": {"between": (0.5, 1.5), "fwhm_samples": (0.0, 0.8), "ringing": (0.7, 1.0)}},
    {"fwhm_um": (0.2, 0.5), "sampling": "cubic",
     "second": {"between": (0.3, 2.2), "fwhm_samples": (0.0, 0.8), "anisotropy": 3.0}},
]  # fmt: skip


@pytest.mark.parametrize("blur", BLURS)
@pytest.mark.parametrize("factor", [(2, 2), (4, 4), (3, 2)])
@pytest.mark.parametrize("spacing", [(0.13, 0.13), (0.1, 0.4)])
def test_no_draw_looks_beyond_the_margin(blur: dict, factor: tuple[int, int], spacing: tuple[float, float]) -> None:
    parts = {"method": {"factor": factor}, "data": {"patch": (48, 48)}, "degradation": blur}
    recipe = recipe_of(None, Path("run"), **parts)
    transforms = patch_transforms(recipe, [spacing])
    margin = [m // f for m, f in zip(transforms[0].margin, factor, strict=True)]
    generator = torch.Generator().manual_seed(5)
    halos = [recipe.degradation.sample(generator, factor, spacing).halo for _ in range(300)]
    largest = [max(along) for along in zip(*halos, strict=True)]
    assert all(m >= h for m, h in zip(margin, largest, strict=True)), (margin, largest)
    square = factor[0] == factor[1] and spacing[0] == spacing[1]
    assert any(isinstance(transform, RandRotate90d) for transform in transforms) == square
    if square:
        assert margin[0] == margin[1] <= max(largest) + 3


@pytest.mark.parametrize("name", ["real_esrgan", "widefield", "ikc"])
def test_the_configs_turn_their_patches(name: str) -> None:
    recipe = load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml", Recipe)
    assert any(isinstance(transform, RandRotate90d) for transform in patch_transforms(recipe, [(0.13, 0.13)]))


def test_the_card_names_no_file(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, tmp_path)
    shelf = Shelf(recipe)
    split = split_scans(recipe, shelf)
    card = blank_card(split, recipe)
    assert SECRET not in card.model_dump_json()
    moved = replace(split, training=tuple(reversed(split.training)), facts=tuple(reversed(split.facts)))
    assert set(blank_card(moved, recipe).inputs) == set(card.inputs)


def test_log_lines_are_for_people(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "medsr.training"):
        train(recipe_of(folder, tmp_path / "run", training={"pixel_steps": 2}), resume=True)
    assert "beginning" in caplog.text
    assert "an srresnet is trained" in caplog.text
    assert "2 to learn, 1 out" in caplog.text
    assert "pixel step 2/2: PSNR" in caplog.text
