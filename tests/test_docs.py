"""The pages for users name commands, options, studies, files and modules that exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from workbench import cli, resolve

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"workbench", "snakemake", "python", "accelerate", "torchrun"}
COMMAND = re.compile(rf"(?:\$ )?({'|'.join(PROGRAMS)}) (.+)")


def commands() -> list[tuple[str, str, list[str]]]:
    """(page, program, arguments) of the code blocks and of what stands between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += [" ".join(each.split()) for each in re.findall("`([^`]+)`", rest)]
        for line in lines:
            if told := COMMAND.fullmatch(line.strip()):
                arguments = shlex.split(re.sub(r"\[.*?\]|\.\.\.", "", told[2]), comments=True)
                found.append((page.name, told[1], arguments))
    return found


def of_the_workbench() -> list[tuple[str, list[str]]]:
    """(page, arguments) of what the workbench runs, by itself or under a launcher."""
    found = []
    for page, program, arguments in commands():
        if program == "workbench":
            found.append((page, arguments))
        elif "workbench.cli" in arguments:
            found.append((page, arguments[arguments.index("workbench.cli") + 1 :]))
    return found


@pytest.mark.parametrize(("page", "arguments"), of_the_workbench(), ids=lambda v: "".join(v[:30]))
def test_every_command_of_the_workbench_parses(page: str, arguments: list[str]) -> None:
    cli.parser().parse_args(arguments)  # exits with its usage if it does not


def test_the_pages_have_commands_of_every_kind() -> None:
    assert {program for _, program, _ in commands()} == PROGRAMS
    assert len(of_the_workbench()) > 20


def test_every_module_that_is_run_is_there() -> None:
    run = [arguments for _, program, arguments in commands() if program == "python"]
    modules = [arguments[1] for arguments in run if arguments[0] == "-m"]
    assert modules
    assert all(importlib.util.find_spec(module) for module in modules)


def test_snakemake_is_given_profiles_and_settings_that_exist() -> None:
    config = yaml.safe_load((ROOT / "experiments" / "config.yaml").read_text())
    kinds = {"studies": "studies", "networks": "networks", "scale": "scales"}
    for page, program, arguments in commands():
        if program != "snakemake":
            continue
        for option, value in zip(arguments, arguments[1:], strict=False):
            if option == "--workflow-profile":
                assert (ROOT / value / "profile.yaml").exists(), page
        for key, _, value in (a.partition("=") for a in arguments if re.match(r"[a-z]+=", a)):
            assert key in config, page
            if key in kinds and value.islower():
                assert set(value.split(",")) <= set(resolve.names(kinds[key])), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_path_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:experiments|workbench|kernels|profiles|tests)/[^`*{ ]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_network_that_the_readme_adds_is_one_file(experiments: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (experiments / "networks" / "resnet18.yaml").write_text(block)
    assert resolve.resolve("resnet18").spec.title == "ResNet-18"


def test_what_show_prints_in_the_readme_is_what_it_prints(capsys: pytest.CaptureFixture) -> None:
    block = (ROOT / "README.md").read_text().split("$ workbench show ")[1].split("```")[0]
    given, *lines, rest = block.strip().splitlines()
    assert cli.run(["show", *given.split()]) == 0
    printed = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert rest == "..."
    assert {" ".join(line.split()) for line in lines} <= printed
