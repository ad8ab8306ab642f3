"""The inventory: every network of the talk, with the parameters and eligible weights published."""

import csv
import json

import pytest

from workbench import cli, inventory, resolve, tasks

NETWORKS = [name for name in resolve.names("networks") if resolve.resolve(name).spec.talk]
# Where we differ from the table, and why: parameters beyond the published count.
MORE_PARAMETERS = {
    # enwik8 holds 205 different bytes; the original's preparation drops one of them, the line feed
    # (it splits lines and adds no end), so its vocabulary is 204: 512 weights and a bias fewer
    "Transformer-XL": 513,
}


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, str]]:
    """Counts made from the originals' definitions."""
    with (resolve.EXPERIMENTS / "talk" / "networks.csv").open(newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def test_all_networks_of_the_talk_are_here(published) -> None:
    titles = [resolve.resolve(name).spec.talk.partition("/")[2] for name in NETWORKS]
    assert sorted(titles) == sorted(published)
    assert len(titles) == 34  # slide: "Tested 34 networks"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_size_of_the_original(name: str, published) -> None:
    row = inventory.row(name)
    printed = resolve.resolve(name).spec.talk.partition("/")[2]
    expected = published[printed]
    more = MORE_PARAMETERS.get(printed, 0)
    assert row["parameters"] == int(expected["params_total"]) + more
    for rule in inventory.RULES:
        assert row[f"eligible_{rule}"] == int(expected[f"eligible_{rule}"]), rule
    assert row["frozen_eligible"] == int(expected["frozen_eligible"])
    assert row["published"] == expected["source"]


@pytest.mark.parametrize("name", resolve.study("tour").networks)
def test_the_declared_shape_is_that_of_the_data(name: str, tmp_path) -> None:
    spec = resolve.resolve(name, "2to4", "smoke").spec
    for phase in spec.phases.values():
        assert tasks.open_task(phase, 0, tmp_path).shape() == tasks.declared_shape(phase)


def test_the_list_is_machine_readable(monkeypatch, capsys) -> None:
    monkeypatch.setattr(resolve, "names", lambda kind: ["resnet50"])
    assert cli.run(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["network"] == "resnet50" and row["parameters"] == 25_557_032  # networks.csv
    assert (row["family"], row["metric"]) == ("classification", "top1")
