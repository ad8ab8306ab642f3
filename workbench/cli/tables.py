"""The commands that read records: table, claims, calibrators and report."""

import argparse

from workbench import dag, resolve
from workbench.cli import arguments as shared


def register(commands: shared.Commands) -> None:
    """Add table, claims, calibrators and report."""
    added = shared.add(commands, "table", _table, "a study's table from records")
    added.add_argument("study")
    _add_networks(added)
    added.add_argument("--seeds", default="", help="as 0,1,2; else those of the scale")
    added.add_argument("--readme", action="store_true", help="show it in README.md too")
    shared.add_results(added)
    shared.add_scale(added)

    added = shared.add(
        commands, "claims", _claims, "every number that the talk prints, with ours, as a table"
    )
    shared.add_results(added)
    shared.add_scale(added)

    added = shared.add(
        commands, "calibrators", _calibrators, "what each calibrator makes of a network's INT8"
    )
    added.add_argument("network")
    shared.add_results(added)
    shared.add_scale(added)

    added = shared.add(commands, "report", _report, "the html page of a scale")
    added.add_argument("--studies", required=True)
    added.add_argument("--name", default="report", help="of the page")
    _add_networks(added)
    shared.add_scale(added)


def _add_networks(parser: argparse.ArgumentParser) -> None:
    every = ",".join(resolve.names("networks"))
    parser.add_argument("--networks", default=every, help="as resnet50,bert_large; else all")


def _table(arguments: argparse.Namespace) -> None:
    from workbench import report

    seeds = dag.seeds({"seeds": arguments.seeds}, arguments.scale)
    networks = arguments.networks.split(",")
    report.table(arguments.study, arguments.scale, networks, seeds, arguments.root)
    if arguments.readme:
        report.readme_block(arguments.scale, arguments.study, arguments.root)


def _claims(arguments: argparse.Namespace) -> None:
    from workbench import report

    print(report.write_claims(arguments.scale, arguments.root))


def _calibrators(arguments: argparse.Namespace) -> None:
    from workbench import report

    resolve.known("networks", arguments.network)
    print(report.markdown(report.calibrators(arguments.network, arguments.scale, arguments.root)))


def _report(arguments: argparse.Namespace) -> None:
    from workbench import report

    networks, studies = arguments.networks.split(","), arguments.studies.split(",")
    report.page(arguments.scale, studies, networks, name=arguments.name)
