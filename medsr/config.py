"""YAML to a model; errors name file, line, key and the nearest right key."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from medsr.config_errors import Key, dotted, explain, shown

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

__all__ = ["ConfigError", "apply_overrides", "config_schema", "dump_config", "load_config"]

T = TypeVar("T", bound=BaseModel)

LARGEST = 1_000_000
"""Bytes of a config beyond which the file is not one."""

DEEPEST = 32
"""Sections inside sections beyond which a file is no config."""

CORE = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")}
"""The scalars of YAML 1.2 that are read; anything else is refused, so that a config can only ever hold values."""


class ConfigError(ValueError):
    """What is wrong with a config: one line a problem, `file:line: key: what`, all of them at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(slots=True)
class _Document:
    """Plain values read so far, and where each came from."""

    path: str
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[Key, str] = field(default_factory=dict)
    problems: dict[Key, list[str]] = field(default_factory=dict)
    refused: set[Key] = field(default_factory=set)

    def where(self, key: Key) -> str:
        """Where a key is said: its own place, else that of what encloses it."""
        return next((self.origin[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.origin), self.path)

    def report(self, key: Key, what: str, *, where: str | None = None) -> None:
        """Note a problem with a key."""
        name = dotted(key)
        self.problems.setdefault(key, []).append(f"{where or self.where(key)}: {name + ': ' if name else ''}{what}")

    def refuse(self, key: Key, what: str, *, where: str) -> None:
        """Note a key whose value was not taken, so that nothing more is said of it."""
        self.report(key, what, where=where)
        self.refused.add(key)


def load_config(path: str | Path, model: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a YAML 1.2 file into a pydantic model.

    Only plain values are read: a tag (`!!python/...`), an alias or a key given twice is an error and nothing is ever
    executed. Types are strict: `"16"` is text, not a number. Relative paths inside a config are taken relative to the
    working directory, as on a command line, not to the config.

    Args:
        path: the file.
        model: what it has to hold.
        overrides: `key=value` lines that win over the file; keys dotted (`training.batch=8`), values YAML.

    Raises:
        ConfigError: the file is missing or is no YAML, or keys or values do not fit; all problems at once.
    """
    document = _Document(str(path))
    node = _compose(_text(Path(path)), document.path)
    if node is not None:
        document.origin[()] = f"{document.path}:{_line(node)}"
        document.values = _mapping(node, document)
    else:
        document.report((), f"expected the keys of a {model.__name__}, found an empty file")
    return _validated(document, model, overrides)


def apply_overrides(model: type[T], overrides: Sequence[str]) -> T:
    """A model from `key=value` lines alone; what they leave out keeps its default.

    Raises:
        ConfigError: keys or values do not fit; all problems at once, each named `--set key=value`.
    """
    return _validated(_Document("--set"), model, overrides)


def dump_config(model: BaseModel, path: str | Path) -> None:
    """Write a model as YAML that `load_config` reads back to the same values.

    Raises:
        OSError: the file cannot be written.
    """
    from ruamel.yaml.representer import SafeRepresenter

    class Blocks(SafeRepresenter):
        """A line for each key; lists of numbers on one line."""

        def represent_dict(self, data: Any) -> Any:
            return self.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)

        def represent_str(self, text: Any) -> Any:
            # A character that YAML takes for the end of a line is written as its number, which quotes allow.
            style = None if str(text).isprintable() else '"'
            return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Blocks.add_representer(dict, Blocks.represent_dict)
    Blocks.add_representer(str, Blocks.represent_str)
    yaml = _yaml()
    yaml.Representer = Blocks
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as stream:
        yaml.dump(model.model_dump(mode="json"), stream)
    part.replace(path)


def config_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model's config, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 100
    return yaml


def _text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise ConfigError([f"{path}: expected a config of at most {LARGEST} bytes, found {path.stat().st_size}"])
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: expected a config file, found none.{_nearest_file(path)}"]) from None
    except IsADirectoryError:
        raise ConfigError([f"{path}: expected a config file, found a folder.{_nearest_file(path / '*')}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: expected UTF-8 text, found other bytes at {error.start}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: expected a readable file, found: {error.strerror}"]) from None


def _nearest_file(path: Path) -> str:
    """A sentence naming the configs that lie where a missing one was looked for."""
    folders = dict.fromkeys((path.parent, Path("configs"), Path()))
    files = {p.resolve(): str(p) for folder in [*folders][::-1] for p in sorted(folder.glob("*.y*ml")) if p.is_file()}
    there = sorted(files.values())
    names = {Path(p).stem: p for p in reversed(there)}
    close = get_close_matches(path.stem, names, n=1)
    if close:
        return f" Did you mean {names[close[0]]!r}?"
    return f" There are: {', '.join(there[:8])}." if there else " Check the path."


def _compose(text: str, path: str) -> Node | None:
    """The nodes of a YAML document, nothing constructed; None for an empty one."""
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = _yaml()
    if re.search(r"^%YAML\s+1\.[01]", text, re.MULTILINE):
        raise ConfigError([f"{path}:1: expected YAML 1.2, found an older version, which reads no as false; drop %YAML"])
    try:
        node: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        what = ": ".join(filter(None, (error.context, error.problem)))
        cure = "indent with spaces, not tabs" if "\\t" in what else "check quotes, brackets and the indent of this line"
        raise ConfigError([f"{path}:{line}: expected YAML, found an error {what}; {cure}"]) from None
    except (YAMLError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ConfigError([f"{path}: expected YAML text, found: {what}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: expected a config, found values nested too deep"]) from None
    return node


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _mapping(node: Node, document: _Document) -> dict[str, Any]:
    from ruamel.yaml.nodes import MappingNode

    if not isinstance(node, MappingNode):
        document.report((), "expected keys and values such as `seed: 0`, found none")
        return {}
    values = _plain(node, (), document, seen=set())
    return values if isinstance(values, dict) else {}


def _plain(node: Node, key: Key, document: _Document, *, seen: set[int]) -> Any:
    """Plain values of a node; notes where each was said, and reports what is refused."""
    from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

    where = document.origin.setdefault(key, f"{document.path}:{_line(node)}")
    tag = str(node.tag)
    if id(node) in seen:
        document.refuse(key, "expected a value, found an alias (*name); write the value out", where=where)
        return None
    seen.add(id(node))
    if len(key) > DEEPEST:
        document.refuse(key[:1], f"expected a value, found more than {DEEPEST} levels of nesting", where=where)
        return None
    if isinstance(node, ScalarNode) and tag in CORE:
        try:
            return _scalar(node, tag)
        except ValueError:
            document.refuse(key, f"expected a value, found {shown(str(node.value))}, which is no number", where=where)
            return None
    if isinstance(node, SequenceNode) and tag.endswith(":seq"):
        return [_plain(item, (*key, i), document, seen=seen) for i, item in enumerate(node.value)]
    if not isinstance(node, MappingNode) or not tag.endswith(":map"):
        found = tag.replace("tag:yaml.org,2002:", "!!")
        document.refuse(key, f"expected a plain value, found the tag {found}; nothing was executed", where=where)
        return None
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        name = str(name_node.value)
        if not isinstance(name_node, ScalarNode):
            document.report(key, "expected a name as key, found a list or mapping", where=where)
        elif name in values:
            again = f"{document.path}:{_line(name_node)}"
            first = document.origin[(*key, name)].rpartition(":")[2]
            document.report((*key, name), f"given twice, first in line {first}; keep one", where=again)
        else:
            document.origin[(*key, name)] = f"{document.path}:{_line(name_node)}"
            values[name] = _plain(value_node, (*key, name), document, seen=seen)
    return values


def _scalar(node: Node, tag: str) -> Any:
    """The value of a scalar by its YAML 1.2 tag; dates stay text."""
    if tag.endswith((":str", ":timestamp")):
        return str(node.value)
    from ruamel.yaml.constructor import SafeConstructor

    return SafeConstructor(loader=_yaml()).construct_object(node)


def _override(line: str, document: _Document) -> None:
    """Put one `key=value` into the document."""
    name, equals, text = line.partition("=")
    key: Key = tuple(name.strip().split("."))
    where = f"--set {line}"
    if not equals or "" in key:
        document.report((), "expected key=value such as training.batch=8", where=where)
        return
    try:
        node = _compose(text, "--set")
    except ConfigError:
        document.report(key, f"expected a YAML value such as 3, text or [2, 2]; found {text!r}", where=where)
        return
    inside = document.values
    for depth, part in enumerate(key[:-1], start=1):
        inside = inside.setdefault(str(part), {})
        document.origin.setdefault(key[:depth], where)
        if not isinstance(inside, dict):
            found = f"{shown(inside)} at {dotted(key[:depth])!r}"
            document.report(key, f"expected a section that holds this key, found {found}", where=where)
            return
    for old in [k for k in (*document.origin, *document.problems) if k[: len(key)] == key]:
        document.origin.pop(old, None)
        document.problems.pop(old, None)
        document.refused.discard(old)
    said = _Document("--set")
    inside[str(key[-1])] = None if node is None else _plain(node, key, said, seen=set())
    document.origin |= dict.fromkeys(said.origin, where) | {key: where}
    document.refused |= said.refused
    for part_key, problems in said.problems.items():
        for problem in problems:
            document.report(part_key, problem.partition(f"{dotted(part_key)}: ")[2], where=where)


def _validated(document: _Document, model: type[T], overrides: Sequence[str]) -> T:
    for line in overrides:
        _override(line, document)
    result: T | None = None
    try:
        # Through JSON: strict about types, and yet a list is a tuple and a text a path.
        result = model.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        for key, sentence in explain(error, model, document.values).items():
            if not any(key[: len(r)] == r for r in document.refused):
                document.report(key, sentence)
    if result is None or document.problems:
        lines = {line for lines in document.problems.values() for line in lines}
        raise ConfigError(sorted(lines, key=_reading_order))
    return result


def _reading_order(line: str) -> tuple[bool, int, str]:
    """Problems of the file first, by line number; then those of overrides."""
    found = re.match(r".*?:(\d+): ", line)
    return line.startswith("--set "), int(found[1]) if found else 0, line
