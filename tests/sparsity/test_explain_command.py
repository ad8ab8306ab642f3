import json

from workbench import cli


def test_explain_prints_reasons_and_totals(capsys) -> None:
    assert cli.run(["explain", "sunet7_128", "--rule", "c4+"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("first layer: 3 input channels" in line for line in lines)
    # networks.csv: 31,729,664 by c4, 7,225,344 in transposed convolutions
    assert any(line.startswith("eligible: 38,955,008 of") for line in lines)


def test_explain_is_machine_readable(capsys) -> None:
    assert cli.run(["explain", "resnet50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["totals"]["eligible"] == 25_493_504  # networks.csv
    assert told["layers"][0]["name"] == "conv1.weight"
    assert told["layers"][0]["remedy"].startswith("pad input channels 3 -> 16")


def test_an_unknown_rule_is_one_line(capsys) -> None:
    assert cli.run(["explain", "resnet50", "--rule", "c5"]) == 1
    assert capsys.readouterr().err.startswith("workbench explain: unknown rule: c5; nearest")
