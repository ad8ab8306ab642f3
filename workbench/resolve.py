"""From YAML files to one spec: extends, merging in order, the origin of every value, errors."""

import copy
import difflib
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from workbench.admitted import augmentations, builders, minimum_sizes
from workbench.sections import Section
from workbench.spec import Spec, Study

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
NAME = re.compile(r"[a-z0-9_]+")
Tree = dict[str, Any]
Origins = dict[str, str]


class SpecError(ValueError):
    """A spec that cannot be used: one line that says which file and key, and what is allowed."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML in which 1e-4 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Resolved:
    """A spec and, for each of its dotted keys, the file that gave the value."""

    spec: Spec
    origins: Origins

    def origin(self, key: str) -> str:
        """The file that gave the value of a dotted key, or `default`."""
        return self.origins.get(key, "default")


def leaves(tree: Tree, path: str = "") -> list[tuple[str, Any]]:
    """The (dotted key, value) pairs of a tree of mappings."""
    found = []
    for key, value in tree.items():
        here = f"{path}{key}"
        found += leaves(value, f"{here}.") if isinstance(value, dict) and value else [(here, value)]
    return found


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        tree = copy.deepcopy(_parsed(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{_shown(path)}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict | None):
        raise SpecError(f"{_shown(path)}: holds a {type(tree).__name__}, not keys and values")
    return tree or {}


@functools.cache
def _parsed(text: str) -> Any:
    # the same few files stand behind every spec; callers get copies, since merging changes them
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - derives from a safe loader


def names(kind: str) -> list[str]:
    """The networks, treatments, scales or studies that have a file, bases left out."""
    found = sorted(p.stem for p in (EXPERIMENTS / kind).glob("*.yaml") if p.stem[0] != "_")
    for name in found:
        if not NAME.fullmatch(name):  # names become folders, and words of the pipeline's shell
            raise SpecError(
                f"experiments/{kind}/{name}.yaml: names are of small letters, digits and _; rename"
            )
    return found


def known(kind: str, name: str) -> Path:
    """The file of a network, treatment, scale or study, or an error with the nearest name."""
    path = EXPERIMENTS / kind / f"{name}.yaml"
    if name not in names(kind) and not (name.startswith("_") and path.exists()):
        raise SpecError(
            f"unknown {'study' if kind == 'studies' else kind[:-1]} {name!r}"
            f"{nearest(name, names(kind))}; known: {', '.join(names(kind))}"
        )
    return path


def nearest(name: str, allowed: list[str]) -> str:
    """A question that offers the most similar allowed name, or nothing."""
    match = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def resolve(network: str, treatment: str = "2to4", scale: str = "full") -> Resolved:
    """The spec of network x treatment x scale; later files override earlier ones key by key."""
    tree, origins = _extended("networks", network)
    treated = read_yaml(known("treatments", treatment))
    _merge(tree, origins, {"treatment": treated}, f"treatments/{treatment}.yaml")
    overrides = read_yaml(known("scales", scale))
    label = f"scales/{scale}.yaml"
    _check_scale(overrides, label)
    _rescale(tree, origins, overrides, label)
    spec = checked(Spec, tree, origins, f"networks/{network}.yaml")
    _check_names(spec, origins)
    return Resolved(spec, origins)


def checked(section: type[Section], tree: Tree, origins: Origins, label: str) -> Any:
    """The tree as a section; the first thing wrong with it becomes a one-line SpecError."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        # a misspelt key is told as such, not as the absence of the right one
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        key = ".".join(str(part) for part in first["loc"])
        file = _origin(origins, key) or label
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


def study(name: str) -> Study:
    """A study whose treatments and networks exist."""
    tree, origins = _extended("studies", name)
    found = checked(Study, tree, origins, f"studies/{name}.yaml")
    for column in [*found.columns.values(), *found.methods.values()]:
        known("treatments", column.treatment)
    for network in [*found.networks, *(method.network for method in found.methods.values())]:
        known("networks", network)
    return found


def catalog() -> Tree:
    """The data sets: kind, place, files with sha256, licence and how to obtain each."""
    return read_yaml(EXPERIMENTS / "data" / "catalog.yaml")


def data_digests() -> dict[str, str]:
    """For each data set the text that stands for its content: its files' sha256, or its name."""
    return {
        name: " ".join(entry.get("sha256", {}).values()) or name
        for name, entry in catalog().items()
    }


def _extended(kind: str, name: str) -> tuple[Tree, Origins]:
    chain, tree, origins = [name], {}, {}
    while base := read_yaml(known(kind, chain[-1])).get("extends"):
        if base in chain:
            raise SpecError(f"experiments/{kind}/{name}.yaml: extends itself through {base!r}")
        chain.append(base)
    for link in reversed(chain):
        own = {k: v for k, v in read_yaml(known(kind, link)).items() if k != "extends"}
        _merge(tree, origins, own, f"{kind}/{link}.yaml")
    return tree, origins


def _merge(tree: Tree, origins: Origins, extra: Tree, file: str, path: str = "") -> None:
    for key, value in extra.items():
        here = f"{path}{key}"
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], origins, value, file, f"{here}.")
        elif isinstance(value, dict):
            tree[key] = {}
            origins[here] = file
            _merge(tree[key], origins, value, file, f"{here}.")
        else:
            tree[key] = value
            origins[here] = file


def _rescale(tree: Tree, origins: Origins, overrides: Tree, label: str) -> None:
    shared = overrides.get("network", {})
    _merge(tree, origins, shared, label)
    for name, phase in tree.get("phases", {}).items():
        if not isinstance(phase, dict):
            continue  # the schema will refuse it
        standin = dict(overrides.get("standins", {}).get(_data_name(phase), {}))
        adapted = standin.pop("model", {})
        if "model" in phase:  # a builder of its own, under the same width and depth
            path = f"phases.{name}.model."
            _merge(phase["model"], origins, shared.get("model", {}), label, path)
            _merge(phase["model"], origins, adapted, label, path)
        else:
            _merge(tree["model"], origins, adapted, label, "model.")
        _merge(phase, origins, standin, label, f"phases.{name}.")


def _origin(origins: Origins, key: str) -> str | None:
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return None


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


def _data_name(phase: Any) -> str | None:
    data = phase.get("data") if isinstance(phase, dict) else None
    return data.get("name") if isinstance(data, dict) else None


def _check_scale(tree: Tree, label: str) -> None:
    allowed = ["seeds", "resources", "network", "standins"]
    for key in tree:
        if key not in allowed:
            raise SpecError(
                f"experiments/{label}: {key}: unknown key{nearest(key, allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )
    for name in tree.get("standins", {}):
        if name not in catalog():
            raise SpecError(
                f"experiments/{label}: standins.{name}: unknown data set"
                f"{nearest(name, list(catalog()))}"
            )


def _check_names(spec: Spec, origins: Origins) -> None:
    for phase, section in spec.phases.items():
        key = f"phases.{phase}.data.name"
        if section.data.name not in catalog():
            raise SpecError(
                f"experiments/{_origin(origins, key)}: {key}: unknown data set "
                f"{section.data.name!r}{nearest(section.data.name, list(catalog()))}; "
                f"known: {', '.join(catalog())}"
            )
        key = f"phases.{phase}.weights"
        if section.weights and section.weights not in catalog():
            raise SpecError(
                f"experiments/{_origin(origins, key)}: {key}: unknown weights {section.weights!r}"
                f"{nearest(section.weights, list(catalog()))}"
            )
        _check_augment(section.data, f"phases.{phase}.data.augment", origins)
        own = f"phases.{phase}.model" if section.model else "model"
        _check_builder(spec.model_of(phase), own, origins)
        _check_size(spec, phase, origins)


def _check_augment(data: Any, key: str, origins: Origins) -> None:
    if not data.augment:
        return
    file, allowed = _origin(origins, key), augmentations(catalog()[data.name]["kind"])
    for each in data.augment:
        if each.name not in allowed:
            raise SpecError(
                f"experiments/{file}: {key}: unknown augmentation {each.name!r} of {data.name}"
                f"{nearest(each.name, list(allowed))}; known: {', '.join(allowed) or 'none'}"
            )
        for name in each.args:
            if name not in allowed[each.name]:
                raise SpecError(
                    f"experiments/{file}: {key}: unknown argument {name!r} of {each.name}"
                    f"{nearest(name, allowed[each.name])}; allowed: "
                    f"{', '.join(allowed[each.name]) or 'none'}"
                )


def _check_size(spec: Spec, phase: str, origins: Origins) -> None:
    data, builder = spec.phases[phase].data, spec.model_of(phase).build
    least = minimum_sizes().get(builder, 1)
    if data.image_size and max(data.image_size, data.minimum_size or 1) < least:
        key = f"phases.{phase}.data.image_size"
        raise SpecError(
            f"experiments/{_origin(origins, key)}: {key}: {spec.title} ({builder}) takes images of "
            f"at least {least} pixels (given: {data.image_size}); raise it, or set "
            "data.minimum_size"
        )


def _check_builder(model: Any, key: str, origins: Origins) -> None:
    allowed = builders()
    if model.build not in allowed:
        raise SpecError(
            f"experiments/{_origin(origins, key + '.build')}: {key}.build: unknown "
            f"builder {model.build!r}{nearest(model.build, list(allowed))}; "
            f"known: {', '.join(allowed)}"
        )
    for name in model.args:
        if name not in allowed[model.build]:
            raise SpecError(
                f"experiments/{_origin(origins, f'{key}.args.{name}')}: {key}.args.{name}: unknown "
                f"argument of {model.build}{nearest(name, allowed[model.build])}; "
                f"allowed: {', '.join(allowed[model.build])}"
            )


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
