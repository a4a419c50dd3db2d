"""What to say of a model's validation errors: key, expected, found, the nearest right key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

__all__ = ["Key", "dotted", "explain", "shown"]

Key = tuple[str | int, ...]


def explain(error: ValidationError, model: type[BaseModel], values: Any) -> dict[Key, str]:
    """One sentence for each key that is wrong; the branches of a union become one.

    Args:
        error: what validating `values` as `model` raised.
        model: the model.
        values: plain dicts, lists and scalars.
    """
    by_key: dict[Key, list[Mapping[str, Any]]] = {}
    for entry in error.errors(include_url=False):
        key, message = _place(entry, model, values)
        by_key.setdefault(key, []).append({**entry, "msg": message})
    said: dict[Key, str] = {}
    for key, entries in by_key.items():
        if entries[0]["type"] == "extra_forbidden":
            said[key] = _unknown(key, model, values)
        elif entries[0]["type"] in ("missing", "union_tag_not_found"):
            said[key] = f"expected {_choices(key, model, values)}, found none; add it"
        else:
            said[key] = _merged([_sentence(e) for e in entries])
    return said


def _place(entry: Mapping[str, Any], model: type[BaseModel], values: Any) -> tuple[Key, str]:
    """The key an error speaks of (pydantic's own labels of union branches taken out), and its message."""
    key: list[str | int] = []
    inside, loc = values, entry["loc"]
    for number, part in enumerate(loc):
        known: Any = inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        if part in known:
            inside = inside[part]
        elif entry["type"] != "missing" or number + 1 < len(loc):
            continue
        key.append(part)
    if entry["type"].startswith("union_tag_"):
        key.append(entry["ctx"]["discriminator"].strip("'"))
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
    said = values[0] if isinstance(values, list) and values else values
    return isinstance(said, dict) and all(said[n] == tag for n, tag in _tags(branch).items() if n in said)


def _tags(branch: type[BaseModel]) -> dict[str, Any]:
    """The keys of a model that allow one value only: what a union is told apart by."""
    options = {n: get_args(f.annotation) for n, f in branch.model_fields.items() if get_origin(f.annotation) is Literal}
    return {name: values[0] for name, values in options.items() if len(values) == 1}


def _choices(key: Key, model: type[BaseModel], values: Any) -> str:
    """What a missing key could hold: the tags of a union where it is one."""
    section = _model_at(key[:-2], model, values)
    info = section.model_fields.get(str(key[-2])) if section is not None and len(key) > 1 else None
    branches = [] if info is None else _models(info.annotation)
    tags = [repr(tags[key[-1]]) for tags in map(_tags, branches) if key[-1] in tags]
    return " or ".join(tags) or ("an entry" if isinstance(key[-1], int) else "a value")


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
    near = best[-1] if best[:-1] == key[:-1] else dotted(best)
    return f"{section.__name__} has no such field. Did you mean {near!r}?"


def _paths(model: type[BaseModel], values: Any, key: Key = ()) -> Iterator[Key]:
    """The keys of a model and of its sections, lists of sections left out."""
    for name, info in model.model_fields.items():
        yield (*key, name)
        inside = values.get(name) if isinstance(values, dict) else None
        branches = [] if get_origin(info.annotation) in (list, tuple, dict) else list(_models(info.annotation))
        branch = next((b for b in branches if len(branches) == 1 or _chosen(b, inside)), None)
        if branch is not None:
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
    "union_tag_invalid": "{expected_tags}",
}


def _sentence(entry: Mapping[str, Any]) -> str:
    """One pydantic error as `expected ..., found ...`."""
    kind, context, found = entry["type"], entry.get("ctx", {}), entry.get("input")
    if kind == "value_error":
        return str(entry["msg"])
    if kind not in EXPECTED:
        text = str(entry["msg"])
        return text if "found" in text else f"{text[:1].lower()}{text[1:]}, found {shown(found)}"
    expected = EXPECTED[kind].format(**context)
    near = ""
    if kind == "union_tag_invalid":
        found = context["tag"]
        expected = " or ".join(expected.split(", "))
    if kind in ("literal_error", "union_tag_invalid"):
        close = get_close_matches(str(found), re.findall(r"'([^']*)'", expected), n=1, cutoff=0.5)
        near = f". Did you mean {close[0]!r}?" if close else ""
    length = f" ({context['actual_length']})" if kind in ("too_short", "too_long") else ""
    return f"expected {expected}, found {shown(found)}{length}{near}"


def _merged(sentences: list[str]) -> str:
    """`expected a or b, found c` of the branches of a union."""
    split = [re.fullmatch(r"expected (.*?), found (.*)", s) for s in dict.fromkeys(sentences)]
    parts = [m for m in split if m is not None]
    if len(parts) < len(split) or len({m[2] for m in parts}) > 1:
        return "; ".join(dict.fromkeys(sentences))
    return f"expected {' or '.join(m[1] for m in parts)}, found {parts[0][2]}"


def shown(value: Any) -> str:
    """A value as a person would write it in YAML, cut to a few words."""
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def dotted(key: Key) -> str:
    """A key as it is written on a command line."""
    return ".".join(str(part) for part in key)
