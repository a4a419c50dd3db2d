"""Benchmarks: each runs at a toy size and prints its table; what it compares is the same thing; ratios are paired."""

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import medsr

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module
    for name in ("paired", "training", "gpu"):
        sys.modules.pop(name, None)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command a reader of the docs gives, from another folder than the checkout."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)], text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False, timeout=240,
    )  # fmt: skip


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of all tables in a benchmark's output by their way."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_a_ratio_is_taken_inside_each_round(load) -> None:
    """The machine gets twice as slow half-way: the ratio of two ways does not notice."""
    paired = load("paired")
    seconds = {"quick": [1.0, 2.0, 2.0, 1.0, 4.0], "slow": [3.0, 6.0, 6.0, 3.0, 12.0]}
    left = {way: iter(found) for way, found in seconds.items()}
    order: list[str] = []

    def way(name: str):
        def go() -> dict[str, float]:
            order.append(name)
            return {"seconds": next(left[name])}

        return go

    results = paired.run_rounds({name: way(name) for name in seconds}, 5)
    assert results.ratio("slow", "seconds", "quick") == 3.0
    assert results.median("quick", "seconds") == 2.0
    assert order[:4] == ["quick", "slow", "slow", "quick"], "each round begins with another way"


def test_a_way_that_fails_is_named_and_the_others_go_on(load, capsys: pytest.CaptureFixture[str]) -> None:
    paired = load("paired")

    def broken() -> dict[str, float]:
        raise paired.WayFailedError("no such thing")

    results = paired.run_rounds({"sound": lambda: {"seconds": 2.0}, "broken": broken}, 3, warm=1)
    columns = [paired.Column("seconds", "seconds", ".1f", ratio=True)]
    done = paired.report(results, columns, base="sound", title="a trial", settings=argparse.Namespace(rounds=3))
    said = capsys.readouterr().out
    assert rows_of(said)["sound"] == ["2.0", "1.00"]
    assert "broken: failed: no such thing" in said
    assert f"torch {torch.__version__.split('+')[0]}" in said.splitlines()[1]
    assert paired.finish([done], None) == 1
    assert len(results.rounds["sound"]) == 3


def test_a_process_that_dies_is_a_way_that_failed(load, tmp_path: Path) -> None:
    paired = load("paired")
    script = tmp_path / "way.py"
    script.write_text("import sys\nif sys.argv[1:]: raise ValueError('out of luck')\nprint('{\"seconds\": 1.5}')\n")
    assert paired.own_process(str(script)) == {"seconds": 1.5}
    with pytest.raises(paired.WayFailedError, match="ValueError: out of luck"):
        paired.own_process(str(script), "x")


def test_startup(tmp_path: Path) -> None:
    done = run("startup.py", "--rounds", 1, "--warm", 0, "--json", tmp_path / "raw.json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows["python -c pass"][1] == "1.00"
    raw = json.loads((tmp_path / "raw.json").read_text())[0]["rounds"]
    assert {*raw, "way"} <= set(rows)
    assert raw["medsr --help"][0]["seconds"] < raw["import torch"][0]["seconds"], "help waits for torch"


def test_codecs() -> None:
    done = run("codecs.py", "--rounds", 1, "--scan", "nuclei", "--megabytes", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    ours, same = rows["medsr, 1 writer"], rows["zarr-python, blosc zstd 3 bitshuffle"]
    assert float(ours[2]) == pytest.approx(float(same[2]), abs=0.01), "the same codec, the same size"
    assert float(ours[2]) > float(rows["zarr-python, none"][2])


def test_without_a_card_it_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = run("gpu.py")
    assert done.returncode == 0
    assert "nothing measured: torch sees no CUDA card" in done.stdout


def test_gpu_and_training_at_toy_size_on_the_cpu(tmp_path: Path) -> None:
    done = run("gpu.py", "--device", "cpu", "--small", "--rounds", 1, "--json", tmp_path / "raw.json")
    assert done.returncode == 0, done.stdout + done.stderr
    network, pixel, adversarial = json.loads((tmp_path / "raw.json").read_text())
    assert {"matrix product, bfloat16", "network, torch float32", "file to OME-Zarr, auto"} <= set(network["rounds"])
    ended = network["rounds"]["file to OME-Zarr, auto"][0]
    assert ended["megapixels_per_s"] > 0
    for phase in (pixel, adversarial):
        ours = phase["rounds"]["medsr"][0]
        assert 0 < ours["waiting"] < 1
        assert ours["without_waiting"] > ours["steps_per_s"]


@pytest.mark.parametrize(
    ("factor", "size"), [((4, 4), (20, 24)), ((2, 3), (17, 16)), ((1, 2, 2), (6, 12, 10)), ((2, 2, 2), (8, 8, 8))]
)
def test_flop_are_those_that_torch_counts(load, factor: tuple[int, ...], size: tuple[int, ...]) -> None:
    gpu = load("gpu")
    method = medsr.SrresnetRecipe(factor=factor, features=8, blocks=2, head_kernel=5, tail_kernel=7)
    network = medsr.build_network(method).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 1, *size))
    counted = counter.get_flop_counts()["Global"]
    assert gpu.flop(network, size) == sum(n for operation, n in counted.items() if "conv" in str(operation))


def small_recipe(training: ModuleType, phase: str) -> medsr.Recipe:
    parser = argparse.ArgumentParser()
    training.add_settings(parser)
    options = "--features 4 --blocks 1 --batch 2 --patch 32 --steps 1"
    recipe = training.recipe_of(parser.parse_args(options.split()), phase, Path("unused"))
    calm = recipe.training.model_copy(update={"gradient_clip": 0.0})
    return recipe.model_copy(update={"training": calm})


@pytest.mark.parametrize("phase", ["pixel", "adversarial"])
def test_the_plain_loop_learns_what_medsr_learns(load, phase: str) -> None:
    """From the same weights and patches, three steps of each lead to the same weights."""
    from medsr.training.alternation import alternate, learner
    from medsr.training.content import content_of
    from medsr.training.losses import adversary_of, pixel_loss_of

    training = load("training")
    recipe = small_recipe(training, phase)
    method = recipe.method
    torch.manual_seed(3)
    loop = (training.PixelLoop if phase == "pixel" else training.AdversarialLoop)(recipe, "cpu")
    network = medsr.build_network(method).train()
    network.load_state_dict(loop.network.state_dict())
    rate = recipe.training.learning_rate if phase == "pixel" else recipe.training.adversarial_learning_rate
    learn = learner(torch.optim.Adam(network.parameters(), rate, betas=training.BETAS))
    pixel = pixel_loss_of(method.pixel_loss)
    if phase == "adversarial":
        judge = medsr.SrganDiscriminator(2, features=4, norm="batch").train()
        judge.load_state_dict(loop.discriminator.state_dict())
        learn_judge = learner(torch.optim.Adam(judge.parameters(), rate, betas=training.BETAS))
        content = content_of(method.content, discriminator=judge, gray=(0.5, 0.2))
        assert content is not None
    for low, high in training.ready_batches(recipe, "cpu")[:3]:
        found = float(loop.step(low, high))
        if phase == "pixel":
            wanted = float(learn([pixel(network(low), high)]))
        else:
            wanted = float(
                alternate(
                    network, judge, [(low, high)], adversary=adversary_of(method.adversary),
                    adversarial_weight=method.adversarial_weight, learn_discriminator=learn_judge,
                    other_loss=lambda fake, real: method.pixel_weight * pixel(fake, real) + content(fake, real),
                    learn_generator=learn,
                )[1]
            )  # fmt: skip
        assert found == pytest.approx(wanted, rel=1e-5)
        assert math.isfinite(found)
    for one, other in zip(loop.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_tiling() -> None:
    pytest.importorskip("monai")
    done = run("tiling.py", "--size", 256, "--rounds", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(rows_of(done.stdout)) >= {"medsr", "plain_loop", "sliding_window", "zarr_merger"}


def test_volumes_and_what_a_stop_costs() -> None:
    done = run("volumes.py", "--gigabytes", 0.03, "--memory", "9e8")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert float(rows["0.03 GB"][2]) < 900, "the budget holds"
    assert "0.03 GB, stopped halfway and gone on" in rows


def test_engines() -> None:
    done = run("engines.py", "--size", 96, "--blocks", 1, "--tile", 64, "--rounds", 1, "--ways", "medsr torch")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert float(rows["medsr torch"][2]) <= 1, "the plain loop and medsr write the same samples"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL to a process group is POSIX")
def test_the_script_that_kills_catches_a_planted_fault() -> None:
    done = run("kills.py", "--kills", 4, "--plant", "early-record", "--tear", 0)
    assert done.returncode == 1
    assert "FAULT" in done.stdout
    done = run("kills.py", "--kills", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills: every file equals" in done.stdout
