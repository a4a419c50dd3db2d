"""YAML to a model; errors name file, line, key and the nearest right key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import Node

__all__ = ["ConfigError", "apply_overrides", "config_schema", "dump_config", "load_config"]

T = TypeVar("T", bound=BaseModel)
Key = tuple[str | int, ...]

LARGEST = 1_000_000
"""Bytes of a config beyond which the file is not one."""

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

    def where(self, key: Key) -> str:
        """Where a key is said: its own place, else that of what encloses it."""
        return next((self.origin[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.origin), self.path)

    def report(self, key: Key, what: str, *, where: str | None = None) -> None:
        """Note a problem with a key."""
        name = _dotted(key)
        self.problems.setdefault(key, []).append(f"{where or self.where(key)}: {name + ': ' if name else ''}{what}")


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
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as stream:
        _yaml().dump(model.model_dump(mode="json"), stream)
    part.replace(path)


def config_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model's config, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def _yaml() -> YAML:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
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
        raise ConfigError([f"{path}: expected UTF-8 text, found other bytes at {error.start}; is it a config?"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: expected a readable file, found: {error.strerror}"]) from None


def _nearest_file(path: Path) -> str:
    """A sentence naming the configs that lie where a missing one was looked for."""
    folders = dict.fromkeys((path.parent, Path("configs"), Path()))
    there = [str(p) for folder in folders for p in sorted(folder.glob("*.y*ml")) if p.is_file()]
    names = {Path(p).name: p for p in reversed(there)}
    close = get_close_matches(path.name, names, n=1, cutoff=0.5)
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
        return yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        what = " ".join(filter(None, (error.context, error.problem)))
        cure = "indent with spaces, not tabs" if "\\t" in what else "check quotes, brackets and the indent of this line"
        raise ConfigError([f"{path}:{line}: expected YAML, found an error {what}; {cure}"]) from None
    except (YAMLError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ConfigError([f"{path}: expected YAML text, found: {what}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: expected a config, found values nested too deep"]) from None


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

    where = f"{document.path}:{_line(node)}"
    document.origin.setdefault(key, where)
    tag = str(node.tag)
    if id(node) in seen:
        document.report(key, "expected a value, found an alias (*name); write the value out", where=where)
        return None
    seen.add(id(node))
    if isinstance(node, ScalarNode) and tag in CORE:
        return _scalar(node, tag)
    if isinstance(node, SequenceNode) and tag.endswith(":seq"):
        return [_plain(item, (*key, i), document, seen=seen) for i, item in enumerate(node.value)]
    if not isinstance(node, MappingNode) or not tag.endswith(":map"):
        found = tag.replace("tag:yaml.org,2002:", "!!")
        document.report(key, f"expected a plain value, found the tag {found}; nothing was executed", where=where)
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
        document.report((line,), "expected key=value such as training.batch=8", where=where)
        return
    try:
        node = _compose(text, "--set")
    except ConfigError:
        document.report(key, f"expected a YAML value such as 3, text or [2, 2]; found {text!r}", where=where)
        return
    inside = document.values
    for depth, part in enumerate(key[:-1], start=1):
        inside = inside.setdefault(str(part), {})
        if not isinstance(inside, dict):
            found = f"{_shown(inside)} at {_dotted(key[:depth])!r}"
            document.report(key, f"expected a section that holds this key, found {found}", where=where)
            return
    for old in [k for k in (*document.origin, *document.problems) if k[: len(key)] == key]:
        document.origin.pop(old, None)
        document.problems.pop(old, None)
    said = _Document("--set")
    inside[str(key[-1])] = None if node is None else _plain(node, key, said, seen=set())
    document.origin |= dict.fromkeys(said.origin, where) | {key: where}
    for part_key, problems in said.problems.items():
        for problem in problems:
            document.report(part_key, problem.partition(f"{_dotted(part_key)}: ")[2], where=where)


def _validated(document: _Document, model: type[T], overrides: Sequence[str]) -> T:
    for line in overrides:
        _override(line, document)
    result: T | None = None
    try:
        # Through JSON: strict about types, and yet a list is a tuple and a text a path.
        result = model.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        _collect(error, model, document)
    if result is None or document.problems:
        lines = {line for lines in document.problems.values() for line in lines}
        raise ConfigError(sorted(lines, key=_reading_order))
    return result


def _reading_order(line: str) -> tuple[bool, int, str]:
    """Problems of the file first, by line number; then those of overrides."""
    found = re.match(r".*?:(\d+): ", line)
    return line.startswith("--set "), int(found[1]) if found else 0, line


def _collect(error: ValidationError, model: type[BaseModel], document: _Document) -> None:
    """Turn pydantic's errors into lines; several branches of a union become one."""
    by_key: dict[Key, list[Mapping[str, Any]]] = {}
    refused = tuple(document.problems)
    for entry in error.errors(include_url=False):
        key, message = _place(entry, model, document.values)
        if any(key[: len(r)] == r for r in refused):
            continue
        by_key.setdefault(key, []).append({**entry, "msg": message})
    for key, entries in by_key.items():
        if entries[0]["type"] == "extra_forbidden":
            document.report(key, _unknown(key, model, document.values))
        elif entries[0]["type"] == "missing":
            document.report(key, "expected a value, found none; add this key")
        else:
            document.report(key, _merged([_sentence(e) for e in entries]))


def _place(entry: Mapping[str, Any], model: type[BaseModel], values: Any) -> tuple[Key, str]:
    """The key an error speaks of (pydantic's own labels of union branches taken out), and its message."""
    key: list[str | int] = []
    inside, loc = values, entry["loc"]
    for number, part in enumerate(loc):
        if isinstance(inside, dict) and part in inside:
            inside = inside[part]
        elif isinstance(inside, list) and isinstance(part, int) and part < len(inside):
            inside = inside[part]
        elif entry["type"] != "missing" or number + 1 < len(loc):
            continue
        key.append(part)
    message = re.sub(r"^(Value|Assertion) error, ", "", entry["msg"])
    named = re.match(r"([a-z_0-9]+(?:\.[a-z_0-9]+)*): (?=\S)", message)
    if entry["type"] == "value_error" and named:
        # A rule over several keys names the one to change, by a path from the section or from one around it.
        said = tuple(named[1].split("."))
        for start in range(len(key), -1, -1):
            whole = (*key[:start], *said)
            if _fields_at(whole[:-1], model, values).get(str(whole[-1])):
                return whole, message[named.end() :]
    return tuple(key), message


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation: of a union, an Optional, a list, a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _models(part)


def _model_at(key: Key, model: type[BaseModel], values: Any) -> type[BaseModel] | None:
    """The model of the section `key`; of a discriminated union the branch the values choose."""
    here: type[BaseModel] | None = model
    for part in key:
        inside = values.get(part) if isinstance(values, dict) else None
        if isinstance(part, int):
            inside = values[part] if isinstance(values, list) and part < len(values) else None
        elif here is not None:
            info = here.model_fields.get(part)
            branches = [] if info is None else list(_models(info.annotation))
            here = next((b for b in branches if len(branches) == 1 or _chosen(b, inside)), None)
        values = inside
    return here


def _chosen(branch: type[BaseModel], values: Any) -> bool:
    fixed = {n: get_args(f.annotation) for n, f in branch.model_fields.items() if get_origin(f.annotation) is Literal}
    said = values[0] if isinstance(values, list) and values else values
    return isinstance(said, dict) and all(said[n] in options for n, options in fixed.items() if n in said)


def _fields_at(key: Key, model: type[BaseModel], values: Any) -> Mapping[str, Any]:
    found = _model_at(key, model, values)
    return {} if found is None else found.model_fields


def _unknown(key: Key, model: type[BaseModel], values: Any) -> str:
    """What to say of a key that its section does not have: the nearest right one, here or elsewhere."""
    name = str(key[-1])
    section = _model_at(key[:-1], model, values)
    if section is None:
        return "no such field; remove it"
    ranked = sorted(_paths(model, values), key=lambda path: _likeness(name, path, key[:-1]), reverse=True)
    best = ranked[0] if ranked and _likeness(name, ranked[0], key[:-1]) >= 0.7 else None
    if best is None:
        return f"{section.__name__} has no such field. It has: {', '.join(section.model_fields)}."
    near = best[-1] if best[:-1] == key[:-1] else _dotted(best)
    return f"{section.__name__} has no such field. Did you mean {near!r}?"


def _paths(model: type[BaseModel], values: Any, key: Key = ()) -> Iterator[Key]:
    """The keys of a model and of its sections."""
    for name, info in model.model_fields.items():
        yield (*key, name)
        inside = values.get(name) if isinstance(values, dict) else None
        branches = list(_models(info.annotation))
        branch = next((b for b in branches if len(branches) == 1 or _chosen(b, inside)), None)
        if branch is not None and not isinstance(inside, list):
            yield from _paths(branch, inside, (*key, name))


def _likeness(name: str, path: Key, section: Key) -> float:
    """0..1, how alike two names are; a key of the same section wins a tie."""
    return SequenceMatcher(None, name, str(path[-1])).ratio() - (0.0 if path[:-1] == section else 0.05)


EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list such as [2, 2]",
    "list_type": "a list such as [2, 2]",
    "dict_type": "keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "none_required": "nothing (null)",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
    "union_tag_invalid": "{expected_tags} as {discriminator}",
    "union_tag_not_found": "the key {discriminator}, which says which method it is",
}


def _sentence(entry: Mapping[str, Any]) -> str:
    """One pydantic error as `expected ..., found ...`."""
    kind, context, found = entry["type"], entry.get("ctx", {}), entry.get("input")
    if kind not in EXPECTED:
        text = str(entry["msg"])
        return text if "found" in text else f"{text[:1].lower()}{text[1:]}, found {_shown(found)}"
    expected = EXPECTED[kind].format(**context)
    if kind == "union_tag_not_found":
        return f"expected {expected}; found none"
    near = ""
    if kind == "union_tag_invalid":
        found = context["tag"]
    if kind in ("literal_error", "union_tag_invalid"):
        close = get_close_matches(str(found), re.findall(r"'([^']*)'", expected), n=1, cutoff=0.5)
        near = f". Did you mean {close[0]!r}?" if close else ""
    length = f" ({context['actual_length']})" if kind in ("too_short", "too_long") else ""
    return f"expected {expected}, found {_shown(found)}{length}{near}"


def _merged(sentences: list[str]) -> str:
    """`expected a or b, found c` of the branches of a union."""
    split = [re.fullmatch(r"expected (.*?), found (.*)", s) for s in dict.fromkeys(sentences)]
    parts = [m for m in split if m is not None]
    if len(parts) < len(split) or len({m[2] for m in parts}) > 1:
        return "; ".join(dict.fromkeys(sentences))
    return f"expected {' or '.join(m[1] for m in parts)}, found {parts[0][2]}"


def _shown(value: Any) -> str:
    """A value as a person would write it in YAML, cut to a few words."""
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)
