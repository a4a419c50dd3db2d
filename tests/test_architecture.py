"""The plan of the house holds: floors, no circles, nothing heavy behind light commands, what must not exist."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import medsr

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "medsr"

ROOMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "command line": (8, ("cli", "commands", "arguments", "options", "screen")),
    "door": (7, ("__init__",)),
    "training": (6, ("training",)),
    "transforms": (6, ("transforms",)),
    "report": (6, ("report",)),
    "comparison": (6, ("comparison",)),
    "checkpoint": (5, ("checkpoint", "card", "texture", "blending", "blur")),
    "trust": (5, ("trust",)),
    "recipe": (4, ("recipe",)),
    "batch": (
        4,
        (
            *("batch", "closing", "job", "rows", "shards", "streaming", "workers", "serving", "cluster"),
            *("progress", "bucket_progress", "header", "records", "locks"),
        ),
    ),
    "evaluate": (
        4,
        ("evaluation", "trial", "scoring", "footprint", "paired_evaluation", "pairing", "registration"),
    ),
    "library": (4, ("library",)),
    "methods": (3, ("methods",)),
    "consistency": (3, ("consistency",)),
    "upscale": (3, ("upscaling", "plan", "holes", "engines")),
    "degradation": (2, ("degradation",)),
    "io": (2, ("io",)),
    "contract": (2, ("upscaler", "stages", "precision")),
    "tiles": (2, ("tiles",)),
    "scan": (1, ("scan",)),
    "metrics": (1, ("metrics", "frc", "perceptual", "surface")),
    "pictures": (1, ("pictures", "sheet")),
    "config": (1, ("config", "config_errors")),
    "data": (1, ("data",)),
    "version": (1, ("version",)),
}
"""Floor and modules of each room; an import may only point to a lower floor, or inside a room."""

SIDEWAYS = {
    ("metrics", "scan"),
    ("pictures", "scan"),
    ("comparison", "training"),
    ("trust", "checkpoint"),
    ("training", "transforms"),
    ("transforms", "training"),
}
"""Arrows between rooms of one floor that are allowed."""

OF = {module: (floor, room) for room, (floor, modules) in ROOMS.items() for module in modules}


class Arrow(NamedTuple):
    """An import: from a module of the package to a module (dotted, whole)."""

    source: str
    target: str
    line: int
    for_types_only: bool


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax of every module by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


def arrows(name: str, tree: ast.Module) -> Iterator[Arrow]:
    """Every import of a module, those inside functions included."""

    def visit(node: ast.AST, typed: bool) -> Iterator[Arrow]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Arrow(name, alias.name, node.lineno, typed)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Arrow(name, whole if whole in trees() else str(node.module), node.lineno, typed)
        inside = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, typed or inside)

    return visit(tree, False)


@cache
def all_arrows() -> tuple[Arrow, ...]:
    return tuple(arrow for name, tree in trees().items() for arrow in arrows(name, tree))


def room_of(module: str) -> tuple[int, str]:
    parts = module.split(".")
    return OF[parts[1] if len(parts) > 1 else "__init__"]


def test_every_module_has_a_room() -> None:
    tops = {name.split(".")[1] for name in trees() if "." in name}
    assert sorted(tops - set(OF)) == []


def test_imports_point_down() -> None:
    wrong = []
    for arrow in all_arrows():
        if arrow.target.split(".")[0] != "medsr":
            continue
        (from_floor, from_room), (to_floor, to_room) = room_of(arrow.source), room_of(arrow.target)
        if from_room != to_room and to_floor >= from_floor and (from_room, to_room) not in SIDEWAYS:
            wrong.append(f"{arrow.source}:{arrow.line} ({from_floor}) -> {arrow.target} ({to_floor})")
    assert wrong == []


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in trees()}
    for arrow in all_arrows():
        if arrow.target in graph and not arrow.for_types_only and arrow.target != arrow.source:
            graph[arrow.source].add(arrow.target)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_the_command_line_sees_only_the_door() -> None:
    deep = [a for a in all_arrows() if room_of(a.source)[1] == "command line" and a.target.startswith("medsr.")]
    assert [a for a in deep if room_of(a.target)[1] != "command line"] == []


INSIDE = {
    "codecs.py": ("medsr.io.omezarr", "medsr.io.places"),
    "coverage.py": (
        *("medsr.io", "medsr.trust", "medsr.trust.bounds", "medsr.trust.calibration", "medsr.trust.curves"),
        "medsr.trust.distances",
    ),
    "fast.py": ("medsr.engines",),
    "gpu.py": ("medsr.engines",),
}
"""Benchmarks of a part that has no name at the door."""


@pytest.mark.parametrize("folder", ["pipelines", "benchmarks"])
def test_what_a_lab_copies_sees_only_the_door(folder: str) -> None:
    files = sorted((ROOT / folder).glob("*.py"))
    if not files:
        pytest.skip(f"{folder} has no file")
    wrong = [
        f"{path.name}:{arrow.line} -> {arrow.target}"
        for path in files
        for arrow in arrows(path.stem, ast.parse(path.read_text()))
        if arrow.target.startswith("medsr.") and arrow.target not in INSIDE.get(path.name, ())
    ]
    assert wrong == []


def test_monai_and_the_engine_stay_in_their_rooms() -> None:
    engines = {"monai", "pytorch_lightning", "lightning", "tensorboard", "torchvision"}
    users = {room_of(a.source)[1] for a in all_arrows() if a.target.split(".")[0] in engines}
    assert users <= {"training", "transforms"}
    yaml = {room_of(a.source)[1] for a in all_arrows() if a.target.split(".")[0] in {"ruamel", "yaml"}}
    assert yaml == {"config"}


def imported_after(code: str, *, cwd: Path = ROOT) -> set[str]:
    """The top-level packages that a fresh process holds after running `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_door_alone_is_light() -> None:
    heavy = {"torch", "numpy", "scipy", "pydantic", "zarr", "monai", "pytorch_lightning", "ruamel", "rich", "typer"}
    assert imported_after("import medsr") & heavy == set()
    assert imported_after("import medsr.cli") & (heavy - {"rich", "typer"}) == set()


def test_readers_import_no_torch() -> None:
    assert "torch" not in imported_after("import medsr.io\nmedsr.read_scan(medsr.NUCLEI).read()")
    assert not any(a.target.split(".")[0] == "torch" for a in all_arrows() if room_of(a.source)[1] == "io")


def test_a_recipe_is_read_without_the_training_engine() -> None:
    code = "import medsr\nmedsr.load_config('configs/demo.yaml', medsr.Recipe)"
    assert imported_after(code) & {"monai", "pytorch_lightning", "zarr"} == set()


def test_upscaling_imports_neither_monai_nor_the_engine_nor_yaml(tmp_path: Path) -> None:
    """The command as a user gives it, by a checkpoint, to its end."""
    code = """
import sys
import numpy as np
import medsr
from medsr.cli import app
from PIL import Image
method = medsr.SrresnetRecipe(features=4, blocks=1)
card = medsr.TrainingCard(black=(0, 0), white=(9, 9), dtype="uint16")
medsr.save_checkpoint("best.ckpt", medsr.build_network(method), medsr.Recipe(method=method), card)
Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save("a.png")
try:
    app(["upscale", "a.png", "--checkpoint", "best.ckpt", "--out", "out"])
except SystemExit as ended:
    assert ended.code == 0, ended.code
import medsr.batch, medsr.checkpoint, medsr.evaluation, medsr.workers
"""
    held = imported_after(code, cwd=tmp_path)
    assert (tmp_path / "out" / "a.ome.zarr").is_dir()
    assert held & {"monai", "pytorch_lightning", "lightning", "ruamel", "tensorboard"} == set()


def test_the_door_says_the_same_three_times() -> None:
    """For type checkers, for `import *`, and for the lazy import."""
    tree = trees()["medsr"]
    block = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    typed = {a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert typed == set(medsr._HOMES)
    assert typed | {"__version__"} == set(medsr.__all__)
    assert set(medsr.__all__) <= set(dir(medsr))


@pytest.mark.parametrize("name", medsr.__all__)
def test_every_name_of_the_door_opens(name: str) -> None:
    value = getattr(medsr, name)
    assert not isinstance(value, ModuleType)


def test_a_verb_is_not_shut_out_by_the_module_of_its_name() -> None:
    code = (
        "import importlib, pkgutil, medsr\n"
        "[importlib.import_module(f'medsr.{m.name}') for m in pkgutil.iter_modules(medsr.__path__)]\n"
        "import medsr.evaluation, medsr.training.run\n"
        "from medsr import evaluate, train, upscale\n"
        "assert all(map(callable, (evaluate, train, upscale, medsr.evaluate, medsr.train)))\n"
        "from medsr.training import train as again\n"
        "assert again is train, again\n"
    )
    imported_after(code)


def test_the_door_refuses_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'medsr' has no attribute 'nonsense'"):
        _ = medsr.nonsense  # type: ignore[attr-defined]


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project.get("version", medsr.__version__) == medsr.__version__


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for name, tree in trees().items():
        for node in ast.walk(tree):
            yield f"{name}:{getattr(node, 'lineno', 0)}", node


NO_GRAY_LEVELS = {
    "medsr.pictures": "colors of an 8-bit RGB picture",
    "medsr.io.picture": "the limits that the PGM format sets itself",
    "medsr.training.features": "how a published network was fed",
}
"""Where 255 counts something else than the gray levels of a scan."""


def test_gray_levels_are_counted_in_the_intensity_line_only() -> None:
    """No 255 and no 65535 but in `Intensity`; bytes are written 0xFF."""
    found = set()
    for name, tree in trees().items():
        text = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
        source = (text if text.exists() else text.with_suffix("") / "__init__.py").read_text()
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in (255, 65535):
                written = ast.get_source_segment(source, node) or ""
                if not written.lower().startswith("0x"):
                    found.add(name)
    assert found - {"medsr.scan"} <= set(NO_GRAY_LEVELS)


def test_files_are_short() -> None:
    sizes = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {str(path): size for path, size in sizes.items() if size > 400} == {}


def test_modules_say_what_they_are_by_name_and_in_one_line() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "base", "core", "tools"}
    assert [name for name in trees() if name.rsplit(".", 1)[-1] in vague] == []
    lines = {name: ast.get_docstring(tree) or "" for name, tree in trees().items()}
    assert [name for name, text in lines.items() if not text or len(text.splitlines()) > 1] == []


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


PICKLING = ("medsr.workers", "medsr.serving")


def test_what_must_not_exist() -> None:
    wrong = []
    for where, node in nodes():
        name = called(node)
        if isinstance(node, ast.Assert):
            wrong.append(f"{where}: assert")
        elif name in ("print", "hasattr", "eval", "exec"):
            wrong.append(f"{where}: {name}")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            wrong.append(f"{where}: bare except")
        elif isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
            wrong.append(f"{where}: NotImplementedError")
        elif name == "torch.load" and "weights_only=True" not in ast.unparse(node):
            wrong.append(f"{where}: torch.load that may execute code")
        elif isinstance(node, ast.Import) and node.names[0].name == "pickle" and where.split(":")[0] not in PICKLING:
            wrong.append(f"{where}: pickle, outside of the processes that talk to each other")
    assert wrong == []


def test_nothing_is_left_to_do() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    assert [p.name for p in PACKAGE.rglob("*.py") if any(mark in p.read_text() for mark in marks)] == []
