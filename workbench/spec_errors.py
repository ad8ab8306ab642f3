"""What is wrong with a spec, as one line: file and key, what was given, what is allowed."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from workbench.sections import Section

Tree = dict[str, Any]
Origins = dict[str, str]  # a dotted key -> the file that gave its value


class SpecError(ValueError):
    """A spec that cannot be used: one line that says which file and key, and what is allowed."""


def nearest(name: str, allowed: list[str]) -> str:
    """A question that offers the most similar allowed name, or nothing."""
    match = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def origin(origins: Origins, key: str) -> str | None:
    """The file that gave the value of a dotted key, or of the nearest key above it that has one."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return None


def unknown(
    origins: Origins, key: str, what: str, name: str, allowed: Iterable[str], word: str = "known"
) -> SpecError:
    """The error of a name that is not among the allowed; `what` says which name of what it is."""
    allowed = list(allowed)
    return SpecError(
        f"experiments/{origin(origins, key)}: {key}: unknown {what}{nearest(name, allowed)}; "
        f"{word}: {', '.join(allowed) or 'none'}"
    )


def checked(section: type[Section], tree: Tree, origins: Origins, label: str) -> Any:
    """The tree as a section; the first thing wrong with it becomes a one-line SpecError."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        # a misspelt key is told as such, not as the absence of the right one
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        key = ".".join(str(part) for part in first["loc"])
        file = origin(origins, key) or label
        if first["type"] == "extra_forbidden":
            allowed = _fields(section, first["loc"][:-1])
            message = (
                f"unknown key{nearest(str(first['loc'][-1]), allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )
        else:
            message = f"{first['msg'].removeprefix('Value error, ')} (given: {first['input']!r})"
            if first["type"] == "missing":
                message = "is missing"
        raise SpecError(f"experiments/{file}: {key or 'spec'}: {message}") from error


def _fields(section: type[Section], path: tuple[Any, ...]) -> list[str]:
    node: Any = section.model_json_schema()
    defined = node.get("$defs", {})
    for part in path:
        node = _followed(node, defined)
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return list(_followed(node, defined).get("properties", {}))


def _followed(node: Tree, defined: Tree) -> Tree:
    for option in node.get("anyOf", []):
        if "$ref" in option:
            node = option
    return defined[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
