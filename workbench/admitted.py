"""What a spec may name: builders and augmentations, read from their source without importing it."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
MODELS = PACKAGE / "models"
AUGMENT = PACKAGE / "data" / "augment.py"


def builders() -> dict[str, list[str]]:
    """Each builder of workbench/models with the names of its arguments, read without importing."""
    found = {path.stem: _keywords(path).get("build") for path in sorted(MODELS.glob("*.py"))}
    return {builder: keywords for builder, keywords in found.items() if keywords is not None}


def minimum_sizes() -> dict[str, int]:
    """The smallest image, in pixels, of each builder that says so by MINIMUM_SIZE."""
    found = {path.stem: _constant(path, "MINIMUM_SIZE") for path in MODELS.glob("*.py")}
    return {builder: size for builder, size in found.items() if size is not None}


def augmentations(kind: str) -> dict[str, list[str]]:
    """The augmentations for a kind of data with the names of their arguments."""
    keywords = _keywords(AUGMENT)
    return {name: keywords[name] for name in _constant(AUGMENT, kind.upper()) or ()}


def _keywords(path: Path) -> dict[str, list[str]]:
    return {
        node.name: [argument.arg for argument in node.args.kwonlyargs]
        for node in _statements(path)
        if isinstance(node, ast.FunctionDef)
    }


def _constant(path: Path, name: str) -> Any:
    """The value of a constant of a module, None if it has none of this name."""
    for node in _statements(path):
        if isinstance(node, ast.Assign) and name in [getattr(t, "id", None) for t in node.targets]:
            return ast.literal_eval(node.value)
    return None


@cache
def _statements(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text()).body
