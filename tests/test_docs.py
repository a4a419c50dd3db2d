"""The documentation is true: every block of every page runs, and the reference pages say what the code says."""

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from traceback import format_exception

import pytest
from typer.testing import CliRunner

from medsr.config import load_config
from medsr.data import sample_path
from medsr.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MADE = ("reference", "_build")
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if p.relative_to(DOCS).parts[0] not in MADE)]
FENCE = re.compile(r"^(?P<fence>```+|:::+)(?P<tag>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    tag: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found["tag"].strip(), found["body"])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader sits: a folder with the shipped samples, the configs and the pipelines."""
    (tmp_path / "scans").mkdir()
    for name, file in (("mammogram", "mammogram.dcm"), ("nuclei", "nuclei.ome.tif"), ("surface", "surface.ome.tif")):
        shutil.copy(sample_path(name), tmp_path / "scans" / file)
    for folder in ("configs", "pipelines"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for key, value in (("COLUMNS", "120"), ("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # MONAI about a reader nobody asked for
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs(page: Path, desk: Path) -> None:
    """In the order of the page; Python blocks share their names, commands share the folder."""
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        match block.tag:
            case "python":
                exec(compile("\n" * block.line + block.body, str(block), "exec"), names)
            case "pycon":
                run_session(block, names)
            case "console":
                run_commands(block)
            case "yaml":
                (desk / "recipe.yaml").write_text(block.body)
                load_config(desk / "recipe.yaml", Recipe)


def run_session(block: Block, names: dict[str, object]) -> None:
    """Each `>>>` gives the answer the page shows."""
    test = doctest.DocTestParser().get_doctest(block.body, {}, str(block), str(block.page), block.line)
    test.globs = names
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)


def run_commands(block: Block) -> None:
    """Each `$` line ends with exit code 0, unless `echo $?` follows, and prints what the page shows below it."""
    steps = re.split(r"^\$ ", block.body, flags=re.MULTILINE)
    assert not steps[0].strip(), f"{block}: a console block begins with '$ '"
    code = 0
    for step, following in pairwise([*steps[1:], ""]):
        command, _, shown = re.sub(r"\\\n\s*", " ", step).partition("\n")
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text(), f"{block}: no such target: {command}"
            continue
        run = run_medsr if command.startswith("medsr ") else run_shell
        code, said = run(f"(exit {code}); {command}" if run is run_shell else command)
        assert code == 0 or following.startswith("echo $?"), f"{block}: $ {command}\nexit code {code}\n{said}"
        if shown.strip():
            checker, wanted = doctest.OutputChecker(), doctest.Example(command, shown)
            right = checker.check_output(shown, said, FLAGS)
            assert right, f"{block}: $ {command}\n{checker.output_difference(wanted, said, FLAGS)}"


def run_medsr(command: str) -> tuple[int, str]:
    """The command line in this process, which has torch in memory already; exit code and all that was printed."""
    from medsr.cli import app

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the console script does
        result = CliRunner().invoke(app, shlex.split(command)[1:])
    wrong = result.exception is not None and not isinstance(result.exception, SystemExit)
    return result.exit_code, result.output + ("".join(format_exception(result.exception)) if wrong else "")


def run_shell(command: str) -> tuple[int, str]:
    """Any other command; exit code and all that was printed."""
    done = subprocess.run(
        ["bash", "-c", command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.returncode, done.stdout


def test_every_block_is_run_or_says_why_not() -> None:
    """Only plain text and the markup of the pages themselves are not run; there are few of the former."""
    tags = [(str(block), block.tag) for page in PAGES for block in blocks(page)]
    run = {"python", "pycon", "console", "yaml"}
    left = [f"{where} {tag}" for where, tag in tags if tag not in run and tag != "text" and not tag.startswith("{")]
    assert left == []
    assert sum(tag in run for _, tag in tags) > 2 * sum(tag == "text" for _, tag in tags)


def test_the_pages_name_no_outside_font_script_or_style() -> None:
    """The documentation is readable without a network."""
    text = (DOCS / "conf.py").read_text()
    assert "intersphinx" not in text
    assert "http" not in text
    assert "mathjax" not in text


def test_every_key_of_a_config_says_what_it_means() -> None:
    from docs.generate import config_page

    page = config_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if not row.rstrip(" |").count("|") >= 4] == []
    assert "| `patience` | whole number, at least 1; or `null` | `null` |" in page
    assert "| `fwhm_samples` | list of 2 numbers; or `null` | `null` |" in page
    for key in ("`factor`", "`patch`", "`pixel_steps`", "`fwhm_samples`", "`weight`", "`seed`", "`shard`"):
        assert any(row.startswith(f"| {key} |") for row in rows), key


def test_the_architecture_page_names_every_module() -> None:
    page = (DOCS / "architecture.md").read_text()
    found = [p.stem for p in (ROOT / "medsr").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    assert [name for name in found if name != "__init__" and f"`{name}`" not in page] == []


def test_the_pages_name_tests_that_exist() -> None:
    named = [pair for page in PAGES for pair in re.findall(r"`(tests/\w+\.py)::(\w+)`", page.read_text())]
    assert len(named) > 12
    assert [f"{file}::{test}" for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text()] == []


def test_the_reference_names_every_command_and_the_whole_door() -> None:
    import medsr
    from docs.generate import cli_page, module_names, python_page

    page = cli_page()
    assert page == cli_page()
    for command in ("inspect", "train", "upscale", "evaluate", "config"):
        assert f"## medsr {command}" in page
    python = python_page(sorted(module_names()))
    assert [name for name in medsr.__all__ if f"`medsr.{name}`" not in python] == []
