"""What a short training is worth on real scans it has not seen: the claim of docs/measured.md, at CI length."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

import medsr

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def gains(scores: Path, column: str) -> list[float]:
    """Trained method less cubic, one figure a scan."""
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(scores.read_text().splitlines()):
        found.setdefault(row["scan"], {})[row["method"]] = float(row[column])
    return [row.popitem()[1] - row["cubic"] for row in found.values()]


@pytest.mark.shared
def test_a_short_training_beats_cubic_on_held_out_widefield_fields(shared_data: Path, tmp_path: Path) -> None:
    """Fields of view, with all their channels, are either learned from or measured."""
    for path in sorted((shared_data / "dev" / "micro" / "w2s_widefield_8bit").glob("*.tif")):
        field = int(path.name.split("_")[1])
        folder = tmp_path / ("held_out" if field > 30 else "train")
        folder.mkdir(exist_ok=True)
        if field <= 30 or path.name.endswith("_1.tif"):
            shutil.copy(path, folder)
    settings = [f"data.folder={tmp_path / 'train'}", "training.pixel_steps=150", "training.validate_every_steps=150"]
    recipe = medsr.load_config(CONFIGS / "widefield.yaml", medsr.Recipe, settings)
    run = medsr.train(recipe, out=tmp_path / "run")
    report = medsr.evaluate(
        tmp_path / "held_out",
        medsr.load_upscaler(run),
        out=tmp_path / "scores",
        degradation=recipe.degradation,
    )
    assert not report.failed
    gained = gains(tmp_path / "scores" / "scores.csv", "psnr_db")
    assert len(gained) == 5
    assert sum(gained) / len(gained) > 0.5
    assert min(gained) > 0


@pytest.mark.shared
def test_a_short_training_is_not_below_cubic_on_a_held_out_mammogram_view(shared_data: Path, tmp_path: Path) -> None:
    """The two CC views are learned from, the MLO view is measured, on tissue only."""
    views = shared_data / "dev" / "mammo" / "cbis-ddsm" / "P_00173"
    (tmp_path / "train").mkdir()
    for name in ("P_00173_LEFT_CC.dcm", "P_00173_RIGHT_CC.dcm"):
        shutil.copy(views / name, tmp_path / "train")
    settings = [
        f"data.folder={tmp_path / 'train'}",
        "method.features=32",
        "method.blocks=4",
        "method.head_kernel=5",
        "method.tail_kernel=3",
        "degradation.fwhm_samples=null",
        "degradation.read_noise=null",
        "training.adversarial_steps=0",
        "training.pixel_steps=250",
        "training.batch=8",
        "training.learning_rate=1.0e-3",
        "training.ema=0.98",
        "training.validate_every_steps=250",
    ]
    recipe = medsr.load_config(CONFIGS / "mammo.yaml", medsr.Recipe, settings)
    run = medsr.train(recipe, out=tmp_path / "run")
    medsr.evaluate(
        views / "P_00173_LEFT_MLO.dcm",
        medsr.load_upscaler(run),
        out=tmp_path / "scores",
        degradation=recipe.degradation,
    )
    (gain,) = gains(tmp_path / "scores" / "scores.csv", "psnr_foreground_db")
    assert gain > 0
