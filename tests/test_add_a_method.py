"""docs/add-a-method.md is true: a copy of the project that follows it has the method, and it obeys the laws."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "add-a-method.md"
BLOCK = re.compile(
    r"^```\{code-block\} (?P<kind>\w+)\n:name: (?P<file>\S+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """A copy of the project with the page's blocks put where they say."""
    for folder in ("medsr", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for block in BLOCK.finditer(PAGE.read_text()):
        path, body = tmp_path / block["file"], block["body"]
        if block["kind"] == "diff":
            path.write_text(patched(path.read_text(), body))
        elif path.exists():
            path.write_text(with_entry(path.read_text(), body))
        else:
            path.write_text(body)
    return tmp_path


def patched(text: str, diff: str) -> str:
    """`+` lines put in: imports before the first of their package, others behind the line shown above them."""
    shown = None
    for line in diff.splitlines():
        if line.startswith("+from "):
            text = text.replace("from medsr.methods.", f"{line[1:]}\nfrom medsr.methods.", 1)
        elif line.startswith("+"):
            assert shown is not None
            assert text.count(f"{shown}\n") == 1, f"the page shows {shown!r}, which is not (once) in the file"
            text = text.replace(f"{shown}\n", f"{shown}\n{line[1:]}\n")
        elif line.strip():
            shown = line[1:]
    return text


def with_entry(text: str, body: str) -> str:
    """The entry behind the dictionary it extends, its recipes imported as those beside it are."""
    names = ", ".join(sorted(set(re.findall(r"\w+Recipe", body))))
    start = text.index("NETWORKS")
    end = text.index("\n}\n", start) + 3
    return f"{text[:end]}from medsr.recipe import {names}\n{body}{text[end:]}"


def test_a_project_that_follows_the_page_has_the_method(followed: Path) -> None:
    asked = ["tests/test_methods.py", "tests/test_trained_methods.py", "-k", "chain", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *asked],
        cwd=followed,
        env=os.environ | {"PYTHONPATH": str(followed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 25, done.stdout[-500:]
    code = (
        "import medsr\nfrom medsr.checkpoint import build_network\nfrom medsr.recipe import Recipe\n"
        "print(build_network(Recipe(method={'kind': 'chain', 'layers': 2}).method))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=followed, env=os.environ | {"PYTHONPATH": str(followed)},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert said.stdout.strip() == "Chain((2, 2), features=64, layers=2)"
