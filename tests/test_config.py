"""A config is read whole or refused whole: each mistake with its file, line, key and cure."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from medsr.config import ConfigError, apply_overrides, config_schema, dump_config, load_config
from medsr.recipe import Recipe, SrganRecipe

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Circle(Closed):
    kind: Literal["circle"]
    radius: float = Field(1.0, gt=0)


class Square(Closed):
    kind: Literal["square"]
    side: int = Field(1, ge=1)


class Drawing(Closed):
    """A model that is no recipe: the reader is generic."""

    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Square(kind="square")
    parts: tuple[Circle, ...] = ()
    title: str = ""
    size: tuple[int, int] = (1, 1)
    names: str | int | None = None
    path: Path | None = None
    count: int = 0
    share: float = 0.0
    visible: bool = True


def wrong(tmp_path: Path, text: str, *overrides: str, model: type[BaseModel] = Drawing) -> list[str]:
    """The problems of a config, without its folder."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, model, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def test_the_configs_say_how_they_are_run_and_what_each_setting_changes() -> None:
    assert [p.stem for p in CONFIGS] == [
        "axial",
        "confocal",
        "demo",
        "dfcan",
        "espcn",
        "esrgan",
        "fast",
        "fsrcnn",
        "ikc",
        "mammo",
        "pairs",
        "rcan",
        "real_esrgan",
        "rrdb",
        "scanning",
        "scn",
        "srgan_paper",
        "topography",
        "widefield",
    ]
    for path in CONFIGS:
        lines = path.read_text().splitlines()
        assert lines[0] == f"# medsr train configs/{path.name}"
        settings_ = [line for line in lines if re.match(r" *[a-z_]+: \S", line)]
        assert [line for line in settings_ if "  # " not in line] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_comes_back_from_its_dump(path: Path, tmp_path: Path) -> None:
    recipe = load_config(path, Recipe)
    assert recipe.data.folder is None
    dump_config(recipe, tmp_path / "recipe.yaml")
    assert load_config(tmp_path / "recipe.yaml", Recipe) == recipe
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_config_of_the_paper_holds_its_other_losses_too(tmp_path: Path) -> None:
    path = next(path for path in CONFIGS if path.stem == "srgan_paper")
    first, rest = path.read_text().split("  # SRGAN-MSE", 1)
    _, others = rest.split("  # SRGAN-VGG54", 1)
    said, data = others.split("\n\n", 1)
    lines = [line.replace("# ", "", 1) for line in said.splitlines() if re.match(r"  # +[a-z_]+:( [\[a-z0-9]|$)", line)]
    assert len(lines) == 5
    (tmp_path / "vgg.yaml").write_text(first + "\n".join(lines) + "\n\n" + data)
    method = load_config(tmp_path / "vgg.yaml", Recipe).method
    assert isinstance(method, SrganRecipe)
    assert (method.pixel_weight, method.content.kind, method.content.layer) == (0, "vgg19", (5, 4))
    assert method.content.weight == pytest.approx(1 / 12.75**2, rel=0.05)
    plain = load_config(path, Recipe).method
    assert isinstance(plain, SrganRecipe)
    assert (plain.pixel_weight, plain.content.kind, plain.published) == (1, "none", True)


@settings(deadline=None, max_examples=60)
@given(
    title=st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    | st.sampled_from(["no", "yes", "1e-4", "0x10", "~", "null", "1_000", "2024-01-01", "12:30", "# x", "a: b", " x "]),
    names=st.none() | st.integers() | st.text("ab1.-e", max_size=5),
    share=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(-(2**70), 2**70),
)
def test_any_value_comes_back_from_its_dump(
    tmp_path_factory: pytest.TempPathFactory, title: str, names: str | int | None, share: float, count: int
) -> None:
    model = Drawing(title=title, names=names, share=share, count=count, parts=(Circle(kind="circle"),))
    path = tmp_path_factory.mktemp("dump") / "d.yaml"
    dump_config(model, path)
    assert load_config(path, Drawing) == model


def test_yaml_is_that_of_1_2(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("title: no\nshare: 1e-4\ncount: 010\nvisible: false\nnames: 2024-01-01\n")
    assert load_config(path, Drawing) == Drawing(title="no", share=1e-4, count=10, visible=False, names="2024-01-01")


def test_every_problem_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
# first line
shape:
  kind: circle
  radios: 2
parts:
  - kind: circle
    radius: big
  - {kind: circle, radius: 0}
tittle: x
size: [1]
names: [1]
count: 1.5
share: .nan
visible: no
path: 3
"""
    assert wrong(tmp_path, text) == [
        "c.yaml:4: shape.radios: Circle has no such field. Did you mean 'radius'?",
        'c.yaml:7: parts.0.radius: expected a number, found "big"',
        "c.yaml:8: parts.1.radius: expected more than 0.0, found 0",
        "c.yaml:9: tittle: Drawing has no such field. Did you mean 'title'?",
        "c.yaml:10: size.1: expected an entry, found none; add it",
        "c.yaml:11: names: expected text or a whole number, found [1]",
        "c.yaml:12: count: expected a whole number, found 1.5",
        "c.yaml:13: share: expected a finite number, found NaN",
        'c.yaml:14: visible: expected true or false, found "no"',
        "c.yaml:15: path: expected text, found 3",
    ]


def test_the_example_of_the_plan(tmp_path: Path) -> None:
    text = "# medsr train\nmethod:\n  kind: srgan\n  lerning_rate: 1.0e-4\n"
    assert wrong(tmp_path, text, model=Recipe) == [
        "c.yaml:4: method.lerning_rate: SrganRecipe has no such field. Did you mean 'training.learning_rate'?"
    ]


def test_numbers_are_not_made_of_text_nor_text_of_numbers(tmp_path: Path) -> None:
    assert wrong(tmp_path, 'count: "3"\ntitle: 3\nvisible: 1\n') == [
        'c.yaml:1: count: expected a whole number, found "3"',
        "c.yaml:2: title: expected text, found 3",
        "c.yaml:3: visible: expected true or false, found 1",
    ]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("shape: {kind: cirle}", "c.yaml:1: shape.kind: expected 'circle' or 'square', found \"cirle\". "
         "Did you mean 'circle'?"),
        ("\nshape: {side: 3}", "c.yaml:2: shape.kind: expected 'circle' or 'square', found none; add it"),
        ("shape: {kind: square, radius: 3}", "c.yaml:1: shape.radius: Square has no such field. It has: kind, side."),
        ("count: 1\ncount: 2\n", "c.yaml:2: count: given twice, first in line 1; keep one"),
        ("a: &x 1\ntitle: *x\n", "c.yaml:2: title: expected a value, found an alias (*name); write the value out"),
        ("title: !mine x\n", "c.yaml:1: title: expected a plain value, found the tag !mine; nothing was executed"),
        ("title: 'x\n", "c.yaml:2: expected YAML, found an error while scanning a quoted scalar: found unexpected "
         "end of stream; check quotes, brackets and the indent of this line"),
        ("count: 1\n\tshare: 2\n", "c.yaml:2: expected YAML, found an error while scanning for the next token: found "
         "character '\\t' that cannot start any token; indent with spaces, not tabs"),
        ("- 1\n", "c.yaml:1: expected keys and values such as `seed: 0`, found none"),
        ("count: 1\n---\ncount: 2\n", "found another document"),
        ("", "c.yaml: expected the keys of a Drawing, found an empty file"),
        ("%YAML 1.1\n---\ntitle: no\n", "expected YAML 1.2"),
        ("count: " + "9" * 5000, "which is no number"),
        ("? [1, 2]\n: 3\n", "expected a name as key, found a list or mapping"),
        ("title: \x07\n", "c.yaml: expected YAML text, found: "),
    ],
)  # fmt: skip
def test_one_mistake_one_line(tmp_path: Path, text: str, problem: str) -> None:
    found = wrong(tmp_path, text)
    assert any(problem in line for line in found), found
    assert all("\n" not in line for line in found)


@pytest.mark.parametrize("text", ["a: " * 1 + "[" * 3000, "[" * 200 + "]" * 200, "title: " + "[" * 40 + "]" * 40])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    assert all(len(line) < 300 for line in wrong(tmp_path, text))


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch %s"]',
        '!!python/object/apply:subprocess.check_output [["touch", "%s"]]',
        "!!python/object/new:type [x, !!python/tuple [], {a: !!python/name:os.system x}]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!binary aGk=",
    ],
)
def test_a_python_tag_executes_nothing(tmp_path: Path, value: str) -> None:
    mark = tmp_path / "touched"
    text = f"count: 1\ntitle: {value.replace('%s', str(mark))}\n"
    found = wrong(tmp_path, text)
    assert found[0].startswith("c.yaml:2: title: expected a plain value, found the tag !!")
    assert wrong(tmp_path, "count: 1\n", f"title={value.replace('%s', str(mark))}")[0].startswith("--set title=!!")
    assert not mark.exists()


def test_other_problems_are_still_named_beside_a_refused_value(tmp_path: Path) -> None:
    found = wrong(tmp_path, "title: !x 1\ncount: a\ncount: 3\n")
    assert [line[: line.index(": ", 9)] for line in found] == ["c.yaml:1: title", "c.yaml:2: count", "c.yaml:3: count"]


def test_overrides_win_and_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("shape: {kind: circle, radius: 2}\ncount: 3\nsize: [1, x]\n")
    overrides = ["shape.radius=1e-1", "count=4", "size=[5, 6]", "title=a = b", "names=", "visible=false"]
    model = load_config(path, Drawing, overrides)
    assert model == Drawing(
        shape=Circle(kind="circle", radius=0.1), count=4, size=(5, 6), title="a = b", names=None, visible=False
    )
    assert apply_overrides(Drawing, ["shape.kind=circle"]).shape == Circle(kind="circle")
    assert apply_overrides(Drawing, []) == Drawing()


def test_overrides_are_named_in_errors(tmp_path: Path) -> None:
    overrides = ["count=x", "coutn=3", "shape.kind=sqare", "title.a=1", "size=3,4", "novalue", "share=[", "new.key=1"]
    assert wrong(tmp_path, "title: t\ncount: 3\nvisible: 3\n", *overrides) == [
        "c.yaml:3: visible: expected true or false, found 3",
        '--set count=x: count: expected a whole number, found "x"',
        "--set coutn=3: coutn: Drawing has no such field. Did you mean 'count'?",
        "--set new.key=1: new: Drawing has no such field. It has: shape, parts, title, size, names, path, count, "
        "share, visible.",
        "--set novalue: expected key=value such as training.batch=8",
        "--set shape.kind=sqare: shape.kind: expected 'circle' or 'square', found \"sqare\". Did you mean 'square'?",
        "--set share=[: share: expected a YAML value such as 3, text or [2, 2]; found '['",
        '--set size=3,4: size: expected a list such as [2, 2], found "3,4"',
        "--set title.a=1: title.a: expected a section that holds this key, found \"t\" at 'title'",
    ]


def test_a_missing_file_names_its_neighbors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mammo.yaml").write_text("count: 1\n")
    cases = {
        "mamo.yaml": f"expected a config file, found none. Did you mean '{tmp_path}/mammo.yaml'?",
        "xyz.yaml": f"There are: {tmp_path}/mammo.yaml.",
        ".": "expected a config file, found a folder.",
        "none/xyz.yaml": "expected a config file, found none. Check the path.",
    }
    monkeypatch.chdir(tmp_path)
    for name, problem in cases.items():
        if name.startswith("none"):
            (tmp_path / "mammo.yaml").unlink()
        with pytest.raises(ConfigError, match=re.escape(problem)):
            load_config(tmp_path / name, Drawing)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for data in (b"\xff\xfe\x00\x01", b"\x89PNG\r\n\x1a\n\x00", b"a" * 2_000_000):
        path.write_bytes(data)
        with pytest.raises(ConfigError) as caught:
            load_config(path, Drawing)
        assert len(caught.value.problems) == 1


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.sampled_from("abk:?-[]{}#&*!|>'\"%@` \n\t,.0123456789eE~<="), max_size=40))
def test_any_text_is_a_model_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text)
    for read in (lambda: load_config(path, Drawing), lambda: apply_overrides(Drawing, [text, f"title={text}"])):
        with suppress(ConfigError):
            assert isinstance(read(), Drawing)


def test_rules_over_several_keys_point_at_the_key_to_change(tmp_path: Path) -> None:
    text = "method: {kind: srresnet, factor: [4, 4]}\ndata:\n  sample: nuclei\n  patch: [96, 98]\n"
    assert wrong(tmp_path, text, model=Recipe)[0].startswith("c.yaml:4: data.patch: expected 2 sizes, each a multiple")
    text = "method:\n  kind: srgan\n  content:\n    kind: file\n"
    assert wrong(tmp_path, text, model=Recipe)[0].startswith("c.yaml:3: method.content.path: expected a file")


def test_the_schema_is_json_and_knows_every_method() -> None:
    schema = json.loads(json.dumps(config_schema(Recipe)))
    assert schema["$schema"].startswith("https://json-schema.org")
    assert {"SrganRecipe", "SrresnetRecipe", "TrainingRecipe"} <= set(schema["$defs"])
    assert schema["$defs"]["SrganRecipe"]["properties"]["adversary"]["description"] == (
        SrganRecipe.model_fields["adversary"].description
    )
