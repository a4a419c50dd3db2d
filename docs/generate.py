"""The reference pages, made from the code: command line, recipe, Python."""

import pkgutil
import shutil
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

WIDTH = 100
"""Columns of the help texts, whatever the terminal of the build is."""

OF_PYDANTIC = ("model_config", "model_post_init")
"""What pydantic adds to a model and no reader asks for."""


def write_reference(folder: Path) -> None:
    """Write all reference pages into `folder`, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    (folder / "cli.md").write_text(cli_page())
    (folder / "config.md").write_text(config_page())
    names = sorted(module_names())
    for name in names:
        (folder / "api" / f"{name}.rst").write_text(module_page(name))
    (folder / "python.md").write_text(python_page(names))


def cli_page() -> str:
    """The `--help` of every command, as plain text."""
    from typer.main import get_command

    from medsr.cli import app

    parts = ["# Command line", "Each text below is what the command prints for `--help`."]
    for path, command in commands("medsr", get_command(app)):
        command.rich_markup_mode = None
        settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
        context = command.context_class(command, info_name=path, **settings)
        help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(f"## {path}\n\n```text\n{help_text}\n```")
    return "\n\n".join(parts) + "\n"


def commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and all below it, each with the words that call it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(f"{path} {name}", inner)


def config_page() -> str:
    """Every key of a config with its type, default and meaning."""
    from medsr.job import OutputOptions
    from medsr.recipe import Recipe

    parts = [
        "# Configuration",
        "`medsr train CONFIG` reads a YAML file with the keys of this page. A key that is left out keeps its default. "
        "`--set key=value` on the command line wins over the file; keys are dotted, such as `training.batch=8`. "
        "`medsr config schema` prints the same as JSON schema for editors.",
        *sections("", Recipe),
        "## medsr upscale --set",
        "How results are stored; the keys of `--set` of `medsr upscale`, and of `medsr.OutputOptions`.",
        table(OutputOptions),
    ]
    return "\n\n".join(parts) + "\n"


def sections(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    """The heading, text and table of a model, then those of the models inside it."""
    kind = model.model_fields.get("kind")
    chosen = kind.default if kind is not None and isinstance(kind.default, str) else None
    title = prefix or "Top level"
    yield f"## {title}" + (f", kind: {chosen}" if chosen and prefix == "method" else "")
    yield " ".join((getdoc(model) or "").split())
    yield table(model)
    for name, field in model.model_fields.items():
        for inner in models(field.annotation):
            yield from sections(f"{prefix}.{name}" if prefix else name, inner)


def models(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in models(part)]


def table(model: type[BaseModel]) -> str:
    """A row for each plain key of a model; sections inside it have tables of their own."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name == "kind" and get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            rows.append(f"| `kind` | `{field.default}` | required | which method: the keys below belong to this one |")
        elif not models(field.annotation):
            meaning = (field.description or "").replace("|", "\\|")
            rows.append(f"| `{name}` | {value_text(field)} | {default_text(field)} | {meaning} |")
    return "\n".join(rows)


def value_text(field: FieldInfo) -> str:
    """What a key may hold, in a YAML writer's words, such as "whole number, at least 1; or null"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [f", {words[n]} {getattr(m, n)}" for m in field.metadata for n in words if hasattr(m, n)]
    kinds = (
        list(get_args(field.annotation)) if get_origin(field.annotation) in (Union, UnionType) else [field.annotation]
    )
    plain = [kind_text(kind, "") for kind in kinds if kind is not type(None)]
    return " or ".join(plain) + "".join(limits) + ("; or `null`" if type(None) in kinds else "")


def kind_text(kind: Any, plural: str) -> str:
    """A type in a YAML writer's words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind_text(inside[0], plural)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin is tuple:
        return f"list of {'' if Ellipsis in inside else f'{len(inside)} '}{kind_text(inside[0], 's')}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names[kind] + plural


def default_text(field: FieldInfo) -> str:
    """A default as YAML says it."""
    if field.default is PydanticUndefined:
        return "required"
    return f"`{yaml_text(field.default)}`"


def yaml_text(value: Any) -> str:
    """A plain value as one line of YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(yaml_text(v) for v in value) + "]"
    return str(value)


def module_names() -> Iterator[str]:
    """Every module of the package that states a public name."""
    import medsr

    for found in pkgutil.walk_packages(medsr.__path__, "medsr."):
        module = import_module(found.name)
        if getattr(module, "__all__", None) or found.name == "medsr.cli":
            yield found.name


def module_page(name: str) -> str:
    """The page of one module: its public names, those of its own making in full."""
    module = import_module(name)
    own = [n for n in module.__all__ if getattr(getattr(module, n), "__module__", name) == name]
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
    if own and not hasattr(module, "__path__"):
        lines[-1:] = ["   :members:", f"   :exclude-members: {', '.join(OF_PYDANTIC)}", ""]
    elsewhere = [n for n in module.__all__ if n not in own]
    if elsewhere:
        lines += ["Names from elsewhere: " + ", ".join(f"``{n}``" for n in elsewhere) + ".", ""]
    return "\n".join(lines)


def python_page(names: list[str]) -> str:
    """The door, name by name, and the list of modules."""
    import medsr

    rows = ["| name | from | what |", "|---|---|---|"]
    for name in medsr.__all__:
        value = getattr(medsr, name)
        home = getattr(value, "__module__", "medsr")
        what = first_line(value) if callable(value) else ""
        rows.append(f"| `medsr.{name}` | {link(home, names)} | {what} |")
    tree = "\n".join(f"api/{name}" for name in names)
    parts = [
        "# Python",
        "`import medsr` is the one door: every noun and verb below is imported when it is first used.",
        "\n".join(rows),
        "## Modules",
        f"```{{toctree}}\n:maxdepth: 1\n\n{tree}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def link(home: str, names: list[str]) -> str:
    """A link to the page of a module, where it has one."""
    return f"[`{home}`](api/{home}.rst)" if home in names else f"`{home}`"


def first_line(value: Any) -> str:
    """The first sentence of a docstring, in one line of a table."""
    text = (getdoc(value) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")
