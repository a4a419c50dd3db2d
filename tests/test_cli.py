"""The command line: what a user types, what comes back on stdout and stderr, and the exit code."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import medsr
from medsr.arguments import amount, factor_of
from medsr.cli import app, main

ROOT = Path(__file__).resolve().parents[1]
TINY = ("method.features=4", "method.blocks=1", "method.head_kernel=3", "training.pixel_steps=4", "training.batch=2",
        "training.validate_every_steps=2", "data.patch=[16,16]", "data.validation_crops=1")  # fmt: skip


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120", "TERM": "dumb"})


def command(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from medsr.cli import main; main()", *map(str, words)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with two small scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, shape in (("field", (20, 24)), ("stack", (3, 16, 18))):
        values = generator.integers(100, 4000, shape).astype(np.uint16)
        axes = "YX" if len(shape) == 2 else "ZYX"
        sizes = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2} | ({"PhysicalSizeZ": 0.5} if axes == "ZYX" else {})
        tifffile.imwrite(folder / f"{name}.ome.tif", values, metadata={"axes": axes} | sizes)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with an untrained checkpoint."""
    method = medsr.SrresnetRecipe(features=4, blocks=1, head_kernel=3, tail_kernel=3)
    card = medsr.TrainingCard(black=(0, 0), white=(4000, 4000), spacing_um=((0.2, 0.2),) * 2, dtype="uint16")
    folder = tmp_path / "run"
    folder.mkdir()
    medsr.save_checkpoint(folder / "best.ckpt", medsr.build_network(method), medsr.Recipe(method=method), card)
    return folder


def test_the_fixed_commands_and_options_are_there() -> None:
    expected = {
        "inspect": {"--json"},
        "train": {"--set", "--resume", "--out"},
        "upscale": {"--out", "--checkpoint", "--method", "--factor", "--memory", "--workers", "--dry-run", "--set"},
        "evaluate": {"--out", "--checkpoint", "--method", "--factor"},
        "config": set(),
    }
    top = call("--help")
    assert top.exit_code == 0
    for name, options in expected.items():
        assert f" {name} " in top.stdout
        page = call(name, "--help")
        assert page.exit_code == 0
        assert options <= set(re.findall(r"--[a-z-]+", page.stdout)), name
        assert all(word not in page.stdout for word in ("TODO", "not implemented"))


def test_the_version() -> None:
    assert call("--version").stdout == f"medsr {medsr.__version__}\n"


def test_inspect_json_of_the_samples() -> None:
    mammogram = json.loads(call("inspect", medsr.MAMMOGRAM, "--json").stdout)
    keys = {"path", "reader", "shape", "axes", "spacing_um", "dtype", "bits", "black", "white", "warnings"}
    assert keys | {"units", "slope", "intercept", "window", "history"} <= set(mammogram)
    assert mammogram["path"] == str(medsr.MAMMOGRAM)
    assert mammogram["spacing_um"] is None
    assert (mammogram["shape"], mammogram["axes"], mammogram["dtype"]) == ([1920, 1472], ["y", "x"], "uint16")
    assert any("spacing" in warning for warning in mammogram["warnings"])
    nuclei = json.loads(call("inspect", medsr.NUCLEI, "--json").stdout)
    assert nuclei["spacing_um"] == pytest.approx([0.29, 0.26, 0.26])
    assert nuclei["axes"] == ["z", "y", "x"]
    scan = medsr.read_scan(medsr.NUCLEI)
    assert (nuclei["black"], nuclei["white"]) == (scan.intensity.black, scan.intensity.white)


def strict(text: str) -> object:
    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_inspect_of_a_folder_is_a_list_of_strict_json(scans: Path) -> None:
    heights = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    heights[3, 4] = np.nan
    tifffile.imwrite(scans / "height.tif", heights)
    result = call("inspect", scans, "--json")
    assert result.exit_code == 0
    facts = strict(result.stdout)
    assert [Path(f["path"]).name for f in facts] == ["field.ome.tif", "height.tif", "stack.ome.tif"]
    assert facts[1]["bits"] == 32
    assert facts[1]["spacing_um"] is None


def test_inspect_for_a_person(scans: Path) -> None:
    result = call("inspect", scans)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == str(scans / "field.ome.tif")
    assert "  shape     20 x 24 (y x)" in lines
    assert "  spacing   0.5 x 0.2 x 0.2 um" in lines


def test_inspect_of_a_bad_file(scans: Path, tmp_path: Path) -> None:
    bad = scans / "bad.tif"
    bad.write_bytes((scans / "field.ome.tif").read_bytes()[:300])
    for words in (("inspect", bad), ("inspect", bad, "--json"), ("inspect", scans, "--json")):
        result = call(*words)
        assert result.exit_code == 1
        assert "bad.tif" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        if "--json" in words:
            found = strict(result.stdout)
            errors = [f for f in (found if isinstance(found, list) else [found]) if "error" in f]
            assert [f["path"] for f in errors] == [str(bad)]
        else:
            assert result.stdout == ""


def test_upscale_by_an_interpolation_and_again(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("upscale", scans, "--out", out, "--method", "cubic", "--factor", "2,2")
    first = call(*words)
    assert first.exit_code == 0, first.stderr
    assert sorted(p.name for p in out.glob("*.ome.zarr")) == ["field.ome.zarr", "stack.ome.zarr"]
    rows = [json.loads(line) for line in (out / "batch.jsonl").read_text().splitlines()]
    assert [(r["scan"], r["status"]) for r in rows] == [("field", "done"), ("stack", "done")]
    again = call(*words)
    assert again.exit_code == 0
    assert re.findall(r"^(\w+) +(\w+)", again.stdout, re.MULTILINE)[1:] == [("field", "skipped"), ("stack", "skipped")]
    result = medsr.read_scan(out / "field.ome.zarr")
    assert result.shape == (40, 48)
    assert result.grid.spacing_um == pytest.approx((0.1, 0.1))


def test_upscale_by_a_checkpoint_with_its_doubts(scans: Path, run: Path, tmp_path: Path) -> None:
    tifffile.imwrite(scans / "plain.tif", np.arange(400, dtype=np.uint16).reshape(20, 20))
    result = call("upscale", scans, "--checkpoint", run, "--out", tmp_path / "out", "--memory", "1.5GB")
    assert result.exit_code == 0, result.stderr
    assert "plain: warning: spacing along y is unknown; the checkpoint was trained for 0.2 um" in result.stderr
    assert "field: warning" not in result.stderr
    result = call("upscale", scans, "--checkpoint", run, "--out", tmp_path / "out", "--factor", "4,4")
    assert result.exit_code == 2
    assert "expected a checkpoint of factor 4,4, found one of 2,2" in result.stderr


def test_a_run_without_best_says_that_last_is_taken(scans: Path, run: Path, tmp_path: Path) -> None:
    (run / "best.ckpt").rename(run / "last.ckpt")
    result = call("upscale", scans, "--checkpoint", run, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert f"{run / 'last.ckpt'}: taken, for this run has no best.ckpt" in result.stderr


def test_one_bad_scan_stops_nothing(scans: Path, tmp_path: Path) -> None:
    (scans / "bad.tif").write_bytes(b"II*\x00" + bytes(100))
    tifffile.imwrite(scans / "color.tif", np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    result = call("upscale", scans, "--out", tmp_path / "out", "--method", "linear", "--factor", "1,2")
    assert result.exit_code == 1
    assert sorted(p.name for p in (tmp_path / "out").glob("*.zarr*")) == ["field.ome.zarr", "stack.ome.zarr"]
    for name in ("bad", "color"):
        assert re.search(rf"^{name}: failed: .*{name}.tif", result.stderr, re.MULTILINE)
        assert re.search(rf"^{name} +failed", result.stdout, re.MULTILINE)
    assert "Traceback" not in result.stderr


def test_a_dry_run_writes_nothing(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("upscale", scans, "--out", out, "--method", "cubic", "--factor", "2,2", "--dry-run")
    assert result.exit_code == 0
    assert not out.exists()
    assert "20 x 24 -> 40 x 48" in result.stdout
    assert "MB" in result.stdout


def test_set_reaches_the_result(scans: Path, tmp_path: Path) -> None:
    words = ("--method", "cubic", "--factor", "2,2", "--set", "chunk=[16, 16]", "--set", "shard=[32, 32]")
    assert call("upscale", scans / "field.ome.tif", "--out", tmp_path, *words).exit_code == 0
    level = json.loads((tmp_path / "field.ome.zarr" / "0" / "zarr.json").read_text())
    assert level["chunk_grid"]["configuration"]["chunk_shape"] == [32, 32]


def mistakes(scans: Path) -> dict[tuple[object, ...], str]:
    """What is typed, and what one line has to say."""
    good = ("upscale", scans, "--out", scans.parent / "out", "--method", "cubic")
    typed = ("upscale", scans, "--out", scans.parent / "out")
    both = (*good, "--factor", "2,2")
    return {
        ("inspect", scans / "feild.ome.tif"): rf"expected a file or folder, found none. Did you mean '{scans}/f",
        ("upscale", scans.parent / "none", *typed[2:], "--method", "cubic", "--factor", "2,2"): "none: expected a file",
        typed: "expected --checkpoint RUN or --method NAME --factor 2,2; found neither",
        (*both, "--checkpoint", "x"): "found both; give one of them",
        good: "--method cubic: expected a factor beside it, found none; add --factor 2,2",
        (*typed, "--method", "cubik", "--factor", "2,2"): "expected linear, cubic, .*'cubik'. Did you mean 'cubic'",
        (*good, "--factor", "2"): "--factor: expected 2 or 3 whole numbers.*found '2'",
        (*good, "--factor", "2,0"): "--factor: expected.*found '2,0'",
        (*both, "--memory", "lots"): "--memory: expected an amount such as 800MB, 1.5GB or 2GiB; found 'lots'",
        (*both, "--set", "chunks=[8, 8]"): r"^--set chunks=\[8, 8\]: chunks: .* Did you mean 'chunk'\?",
        (*both, "--set", "chunk"): "--set chunk: expected key=value",
        (*both, "--device", "tpu"): "device: expected .*tpu",
        (*typed, "--checkpoint", scans.parent / "no-run"): "no-run: expected a checkpoint, found no file",
        (*typed, "--checkpoint", scans): "expected best.ckpt or last.ckpt in this run folder",
        (*typed, "--checkpoint", scans / "field.ome.tif"): "field.ome.tif: expected a checkpoint of medsr",
        ("train", scans / "none.yaml"): "none.yaml: expected a config file, found none",
        ("train", "configs/demo.yaml", "--set", "method.blocks=0"): "^--set method.blocks=0: method.blocks: exp",
    }


@pytest.mark.parametrize("number", range(17))
def test_a_mistake_is_one_line_and_exit_code_2(
    number: int, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words, said = [*mistakes(scans).items()][number]
    result = call(*words)
    assert result.exit_code == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert re.search(said, result.stderr)
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()
    debugged = call(*words, "--debug")
    assert debugged.exit_code == 2
    assert "Traceback" in debugged.stderr
    assert "Traceback" in call("--debug", *words).stderr


def test_all_mistakes_of_a_config_at_once(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method:\n  kind: srgan\n  lerning_rate: 1\n  blocks: x\nsede: 3\n")
    result = call("train", tmp_path / "c.yaml", "--set", "seed=a")
    assert result.exit_code == 2
    places = [re.split(r": ", line.replace(f"{tmp_path}/", ""))[:2] for line in result.stderr.splitlines()]
    assert places == [["c.yaml:3", "method.lerning_rate"], ["c.yaml:4", "method.blocks"], ["c.yaml:5", "sede"],
                      ["--set seed=a", "seed"]]  # fmt: skip


def test_a_folder_without_scans(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    result = call("upscale", tmp_path, "--out", tmp_path / "out", "--method", "cubic", "--factor", "2,2")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert call("inspect", tmp_path).exit_code == 2


def test_a_file_where_the_folder_should_be(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    result = call("upscale", scans, "--out", tmp_path / "out", "--method", "cubic", "--factor", "2,2")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{tmp_path / 'out'}: expected a folder for the results, found a file")


@pytest.mark.parametrize(
    "error, code, said",
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; what is complete is kept"),
        (OSError(28, "No space left on device", "/out/x"), 1, "/out/x: No space left on device; check the path"),
        (PermissionError(13, "Permission denied", "/out"), 2, "/out: Permission denied; check the path"),
        (medsr.MemoryTooSmallError("memory: expected at least 600 MB"), 2, "memory: expected at least 600 MB"),
        (ValueError(""), 2, "ValueError"),
    ],
)
def test_what_goes_wrong_inside_a_verb(
    error: BaseException, code: int, said: str, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(medsr, "upscale_folder", fail)
    result = call("upscale", scans, "--out", tmp_path / "out", "--method", "cubic", "--factor", "2,2")
    assert (result.exit_code, result.stderr) == (code, said + result.stderr[len(said) :])
    assert len(result.stderr.splitlines()) == 1


def test_a_fault_of_the_program_is_not_hidden(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no user's mistake keeps its traceback."""

    def fail(*_args: object, **_options: object) -> None:
        raise AttributeError("a fault")

    monkeypatch.setattr(medsr, "upscale_folder", fail)
    result = call("upscale", scans, "--out", tmp_path / "out", "--method", "cubic", "--factor", "2,2")
    assert isinstance(result.exception, AttributeError)


def test_amounts_of_memory() -> None:
    for text, expected in {"1.5GB": 1_500_000_000, "800MB": 800_000_000, "2GiB": 2**31, "2 g": 2 * 10**9, ".5k": 500,
                         "64KiB": 65536, "1t": 10**12}.items():  # fmt: skip
        assert amount(text) == expected
    assert amount(None) is None
    for text in ("", "GB", "-1GB", "1.5", "1e9B", "0MB", "1XB", "1GB2", "nan GB", "0.0001k"):
        with pytest.raises(ValueError, match="--memory: expected an amount"):
            amount(text)


def test_factors() -> None:
    known = {"2,2": (2, 2), "4, 4": (4, 4), "1,2,2": (1, 2, 2), "2x3": (2, 3), "[4,1,1]": (4, 1, 1)}
    for text, factor in known.items():
        assert factor_of(text) == factor
    for text in ("", "2", "2,", "a,b", "1,1", "2.5,2", "-2,2", "2,2,2,2", "0,2", "2;2", "9999,2"):
        with pytest.raises(ValueError, match="--factor: expected 2 or 3 whole numbers"):
            factor_of(text)


def test_evaluate_writes_scores(scans: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(100, 4000, (96, 96)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "field.tif", values)
    out = tmp_path / "out"
    result = call("evaluate", tmp_path / "field.tif", "--out", out, "--method", "linear", "--factor", "2,2")
    assert result.exit_code == 0, result.stderr
    header, *rows = (out / "scores.csv").read_text().splitlines()
    assert {"scan", "method", "psnr_db", "ssim", "nrmse", "frc_um", "consistency_db"} <= set(header.split(","))
    assert len(rows) >= 2
    assert "psnr_db" in result.stdout
    assert str(out / "scores.csv") in result.stdout


def test_evaluate_of_a_bad_file(scans: Path, tmp_path: Path) -> None:
    (scans / "bad.tif").write_bytes(b"II*\x00" + bytes(100))
    result = call("evaluate", scans, "--out", tmp_path / "out", "--method", "cubic", "--factor", "2,2")
    assert result.exit_code == 1
    assert "bad.tif" in result.stderr
    assert "field" in (tmp_path / "out" / "scores.csv").read_text()


def test_train_then_upscale(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [word for setting in TINY for word in ("--set", setting)]
    result = call("train", ROOT / "configs" / "demo.yaml", *settings, "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert "medsr upscale SCANS --checkpoint run --out OUT" in result.stdout
    for name in ("best.ckpt", "last.ckpt", "log.jsonl", "recipe.yaml"):
        assert (tmp_path / "run" / name).is_file()
    result = call("upscale", scans / "field.ome.tif", "--checkpoint", "run", "--out", "out")
    assert result.exit_code == 0, result.stderr
    result = call("train", ROOT / "configs" / "demo.yaml", *settings, "--set", "training.pixel_steps=6", "--out", "run",
                  "--resume")  # fmt: skip
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["confocal", "mammo", "topography", "widefield"])
def test_each_config_starts_on_a_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data, patches and degradation it ships with; only the network and the time are cut."""
    monkeypatch.chdir(tmp_path)
    small = ["method.features=4", "method.blocks=1", "training.pixel_steps=1", "training.validate_every_steps=1",
             "training.batch=1", "data.validation_crops=1", "training.device=cpu"]  # fmt: skip
    if name == "mammo":
        small += ["training.adversarial_steps=1", "method.discriminator_features=4"]
    settings = [word for setting in small for word in ("--set", setting)]
    result = call("train", ROOT / "configs" / f"{name}.yaml", *settings)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "runs" / name / "best.ckpt").is_file()


def test_the_schema() -> None:
    result = call("config", "schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "Recipe"


def test_the_real_command(scans: Path, tmp_path: Path) -> None:
    """In a process of its own: stdout holds nothing but JSON, a mistake leaves one line and no traceback."""
    done = command("inspect", medsr.MAMMOGRAM, "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert strict(done.stdout)["reader"] == "dicom"
    assert done.stderr == ""
    done = command("upscale", "scans", "--out", "out", "--method", "cubic", "--factor", "2,2", "--workers", "2",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command("upscale", "scan", "--out", "out", "--method", "cubic", "--factor", "2,2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "scan: expected a file or folder, found none. Did you mean 'scans'?\n"
    done = command("upscale", "scans", "--aut", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    """The signal comes while a batch is at work; the same command then goes on."""
    values = np.random.default_rng(0).integers(0, 4000, (3000, 3000)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "big.tif", values)
    words = ["upscale", "big.tif", "--out", "out", "--method", "lanczos", "--factor", "4,4", "--set", "tile=[64, 64]"]
    code = "from medsr.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    part = tmp_path / "out" / "big.ome.zarr.part"
    begun = time.monotonic()
    while not part.exists() and process.poll() is None and time.monotonic() - begun < 60:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "stopped by Ctrl-C; what is complete is kept"
    assert not (tmp_path / "out" / "big.ome.zarr").exists()


def test_help_is_quick() -> None:
    """Under 0.5 s after a warm start; in seconds of the processor, for the machine may be busy with other tests."""
    took = []
    for _ in range(4):
        begun = os.times()
        assert command("--help", cwd=ROOT).returncode == 0
        ended = os.times()
        took.append(ended.children_user + ended.children_system - begun.children_user - begun.children_system)
    assert min(took) < 0.5


def test_a_reader_that_stops_listening(tmp_path: Path) -> None:
    """`medsr inspect FOLDER --json | head -1` ends without a traceback."""
    (tmp_path / "medsr").write_text(f"#!{sys.executable}\nfrom medsr.cli import main\nmain()\n")
    (tmp_path / "medsr").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", "./medsr config schema | head -c 5"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_libraries_do_not_chatter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a library says to programmers does not reach a user; with --debug it does."""
    import warnings

    with warnings.catch_warnings():
        monkeypatch.setattr(sys, "argv", ["medsr", "--version"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        warnings.warn("a library's word", stacklevel=1)
    assert "library" not in capsys.readouterr().err


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name of odd bytes is shown, not a reason to fail."""
    name = os.fsdecode(b"scan_\xff.tif")
    tifffile.imwrite(tmp_path / "a.tif", np.arange(400, dtype=np.uint16).reshape(20, 20))
    shutil.move(tmp_path / "a.tif", tmp_path / name)
    done = command("inspect", tmp_path / name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "scan_" in done.stdout


def test_methods_can_be_projected_averaged_and_compared(scans: Path, tmp_path: Path) -> None:
    plane = scans / "field.ome.tif"
    flags = ("--method", "cubic", "--factor", "2,2")
    for name, more in {"plain": (), "projected": ("--consistent",), "preset": ("--preset", "quantitative")}.items():
        result = call("evaluate", plane, *flags, *more, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    rows = {name: last_row(tmp_path / name / "scores.csv") for name in ("plain", "projected", "preset")}
    assert float(rows["projected"]["consistency_db"]) > float(rows["plain"]["consistency_db"]) + 20
    assert rows["projected"]["consistency_db"] == rows["preset"]["consistency_db"]
    done = call("upscale", plane, *flags, "--consistent", "--ensemble", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    history = medsr.read_scan(tmp_path / "out" / "field.ome.zarr").history
    assert "consistent with area" in history[-2]
    assert "Ensemble" in history[-2]
    assert call("upscale", plane, *flags, "--preset", "pretty", "--out", tmp_path / "out").exit_code == 2


def last_row(path: Path) -> dict[str, str]:
    with path.open() as stream:
        return list(csv.DictReader(stream))[-1]


def test_compare_trains_what_is_missing_and_blend_lies_between(scans: Path, tmp_path: Path) -> None:
    plane, out = scans / "field.ome.tif", tmp_path / "out"
    quick = ["training.batch=2", "training.validate_every_steps=2", "data.patch=[16,16]", "data.validation_crops=1",
             "data.foreground=0"]  # fmt: skip
    words = [word for line in quick for word in ("--set", line)]
    done = call("compare", plane, "--methods", "cubic, srresnet,srgan", "--out", out, "--train", scans, "--steps", "2",
                *words)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "haarpsi" in done.output
    with (out / "scores.csv").open() as stream:
        assert [row["method"] for row in csv.DictReader(stream)] == ["cubic", "srresnet", "srgan"]
    runs = out / "runs"
    blended = call("blend", runs / "srresnet", runs / "srgan", "--alpha", "0.5", "--out", tmp_path / "half.ckpt")
    assert blended.exit_code == 0, blended.output
    low = torch.rand(1, 1, 12, 12)
    a, b, half = (medsr.load_upscaler(p) for p in (runs / "srresnet", runs / "srgan", tmp_path / "half.ckpt"))
    assert half.card.parents
    with torch.no_grad():
        assert not torch.equal(a(low), half(low))
        assert not torch.equal(b(low), half(low))
    wrong = call("compare", plane, "--methods", "cubic", "--out", out, "--set", "seed=1")
    assert wrong.exit_code == 2
    assert "--train" in wrong.output


def test_a_blur_is_not_asked_of_a_method_that_cannot_find_one(scans: Path, tmp_path: Path) -> None:
    method = medsr.SrresnetRecipe(features=4, blocks=1)
    card = medsr.TrainingCard(black=(0, 0), white=(9, 9), dtype="uint16")
    medsr.save_checkpoint(tmp_path / "a.ckpt", medsr.build_network(method), medsr.Recipe(method=method), card)
    result = call("estimate-blur", scans, "--checkpoint", tmp_path / "a.ckpt")
    assert result.exit_code == 2
    assert "method.kind: ikc" in result.output


def test_a_published_file_of_weights_is_a_checkpoint(scans: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = medsr.RRDBNet((2, 2), channels=3, features=8, blocks=1, growth=4, published=True)
    save_file(dict(network.state_dict()), tmp_path / "net.safetensors")
    done = call("upscale", scans / "field.ome.tif", "--checkpoint", tmp_path / "net.safetensors", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert medsr.read_scan(tmp_path / "field.ome.zarr").shape == (40, 48)
    weights = dict(network.state_dict())
    weights["conv_first.weight"] = weights["conv_first.weight"] * torch.nan
    save_file(weights, tmp_path / "broken.safetensors")
    bad = call("upscale", scans, "--checkpoint", tmp_path / "broken.safetensors", "--out", tmp_path / "out")
    assert bad.exit_code == 2
    assert "expected finite weights" in bad.output


def test_names_are_hidden_and_a_card_is_printed(scans: Path, run: Path, tmp_path: Path) -> None:
    (scans / "field.ome.tif").rename(scans / "MILLER_ANNA.ome.tif")
    key = tmp_path / "secret.key"
    words = ("--method", "cubic", "--factor", "2,2", "--pseudonymize", key)
    done = call("upscale", scans, *words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    measured = call("evaluate", scans, *words, "--out", tmp_path / "scores")
    assert measured.exit_code == 0, measured.output
    assert "MILLER" not in done.output + measured.output
    written = [path for folder in ("out", "scores") for path in (tmp_path / folder).rglob("*")]
    assert written
    assert not any("MILLER" in str(path) or (path.is_file() and b"MILLER" in path.read_bytes()) for path in written)
    shown = call("card", run)
    assert shown.exit_code == 0, shown.output
    assert "not for diagnosis" in shown.output.lower()
    assert call("card", run, "--html").output.lstrip().startswith("<")


def test_intervals_are_calibrated_and_written(scans: Path, run: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    (tmp_path / "held").mkdir()
    for index in range(4):
        values = generator.integers(100, 4000, (32, 32)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "held" / f"scan{index}.tif", values)
    few = call("calibrate", run, tmp_path / "held")
    assert few.exit_code == 2
    assert "22" in few.output  # scans that a promise of 0.1 and 0.1 needs
    done = call("calibrate", run, tmp_path / "held", "--alpha", "0.6", "--delta", "0.3")
    assert done.exit_code == 0, done.output
    plane = scans / "field.ome.tif"
    written = call("upscale", plane, "--checkpoint", run, "--intervals", "--out", tmp_path / "out")
    assert written.exit_code == 0, written.output
    places = [tmp_path / "out" / "field.ome.zarr" / part for part in ("lower", "", "upper")]
    lower, estimate, upper = (medsr.read_scan(place).read().astype(int) for place in places)
    assert (lower <= estimate).all()
    assert (estimate <= upper).all()
    assert (lower < upper).any()
    wrong = call("upscale", plane, "--checkpoint", run, "--intervals", "--consistent", "--out", tmp_path / "out")
    assert wrong.exit_code == 2
    assert "drop --consistent" in wrong.output


def test_every_checkpoint_is_asked_whether_a_scan_suits_it(scans: Path, tmp_path: Path) -> None:
    method = medsr.SrresnetRecipe(factor=(2, 2), features=4, blocks=1)
    flags = []
    for name, spacing in (("a", 3.0), ("b", 7.0)):
        card = medsr.TrainingCard(black=(0, 0), white=(9000, 9000), dtype="uint16", spacing_um=((spacing,) * 2,) * 2)
        network = medsr.build_network(method)
        medsr.save_checkpoint(tmp_path / f"{name}.ckpt", network, medsr.Recipe(method=method), card)
        flags += ["--checkpoint", tmp_path / f"{name}.ckpt"]
    done = call("upscale", scans / "field.ome.tif", *flags, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    warnings = " ".join(medsr.read_scan(tmp_path / "out" / "field.ome.zarr").warnings)
    stored = (tmp_path / "out" / "field.ome.zarr" / "zarr.json").read_text()
    assert all(f"outside the {spacing} um" in warnings + stored for spacing in (3, 7))
