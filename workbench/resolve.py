"""From YAML files to one spec: extends, merging in order, the origin of every value, errors."""

import copy
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench import references
from workbench.spec import Spec, Study
from workbench.spec_errors import Origins, SpecError, Tree, checked, nearest

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
NAME = re.compile(r"[a-z0-9_]+")


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
    references.check(spec, origins, catalog())
    return Resolved(spec, origins)


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


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
