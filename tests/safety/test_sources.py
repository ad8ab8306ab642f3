"""Nothing unsafe in the sources: pickles, YAML that runs code, shells made of names, sockets."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench import resolve

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for room in ("workbench", "examples") for p in (ROOT / room).rglob("*.py"))
# what would run a shell, code or a pickle, or speak to the network
BANNED = {
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "yaml.full_load",
    "yaml.unsafe_load",
    "eval",
    "exec",
    "torch.hub.load",
    "urllib.request.urlopen",
    "requests.get",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The dotted name of each call of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """The literal that a call gives for a keyword, None without it."""
    found = [each.value for each in call.keywords if each.arg == name]
    return ast.literal_eval(found[0]) if found and isinstance(found[0], ast.Constant) else None


def test_nothing_banned_is_called() -> None:
    assert {name for path in FILES for name, _ in calls(path)} & BANNED == set()


def test_checkpoints_of_torch_are_read_as_weights_only() -> None:
    loads = [call for path in FILES for name, call in calls(path) if name == "torch.load"]
    assert len(loads) == 2  # the resume state, and checkpoints of other tools
    assert all(keyword(call, "weights_only") is True for call in loads)


def test_no_subprocess_has_a_shell() -> None:
    started = [
        call
        for path in FILES
        for name, call in calls(path)
        if name.startswith("subprocess.") and name != "subprocess.CalledProcessError"
    ]
    assert started
    for call in started:
        assert keyword(call, "shell") is None and isinstance(call.args[0], ast.List)


def test_yaml_is_read_by_a_safe_loader(tmp_path: Path) -> None:
    path = tmp_path / "unsafe.yaml"
    path.write_text("!!python/object/apply:os.system [touch unsafe]")
    with pytest.raises(resolve.SpecError, match="not YAML"):
        resolve.read_yaml(path)


@pytest.mark.parametrize("name", ["a;touch unsafe", "$(touch unsafe)", "a b", "A"])
def test_names_that_a_shell_could_misread_are_refused(name, experiments) -> None:
    for kind in ("networks", "treatments", "scales", "studies"):
        path = experiments / kind / f"{name}.yaml"
        path.write_text("{}")
        with pytest.raises(resolve.SpecError, match="names are of small letters, digits and _"):
            resolve.names(kind)
        path.unlink()


def test_rules_put_only_checked_words_into_their_shells() -> None:
    text = (ROOT / "Snakefile").read_text()
    constrained = set(re.findall(r"^    (\w+)=.*,$", text.split("wildcard_constraints:")[1], re.M))
    for shell in re.findall(r"shell:\n((?:        .*\n)+)", text):
        words = set(re.findall(r"\{(\w+(?:\.\w+)?)\}", shell))
        wild = {word.removeprefix("wildcards.") for word in words if word.startswith("wildcards.")}
        assert wild <= constrained
        # the params are lists of known names and of whole numbers, checked in workbench/dag.py
        assert words - {f"wildcards.{w}" for w in wild} <= {
            *("log", "threads", "params.networks", "params.seeds", "params.studies")
        }
